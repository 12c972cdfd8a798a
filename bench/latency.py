"""The row about a filesystem whose metadata is far away."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.job import Stopwatch
from bench.peers import ORIGINAL
from bench.results import Role
from bench.runner import ROOT, Bench, Contender, Job, environment

DELAYS_MS = (0.0, 0.2, 1.0, 5.0)
_MOUNT_SECONDS = 20.0


def latency(bench: Bench) -> None:
    """One worker writes files of 4 KiB to a filesystem on which each metadata request takes 0, 0.2, 1 or 5 ms longer.

    ``rear and scavenge`` is the whole way: the worker, and then a scavenge of the same base, over the same
    filesystem. That is ``bench/slowfs.py``, by FUSE; reading, writing and closing wait for nothing there.
    """
    reason = _why_not()
    if reason:
        bench.skip("simulated network filesystem", reason)
        return
    for delay_ms in DELAYS_MS:
        with _mounted(delay_ms / 1000) as mount:
            count = bench.size(500, 100)
            bench.compare(
                f"{delay_ms:g} ms",
                _contenders(bench, mount, count),
                unit="ms a file",
                scale=1e3 / count,
                x=delay_ms,
                rounds=2,
            )


def _contenders(bench: Bench, mount: Path, count: int) -> list[Contender]:
    # Not many folders: making one for nearly each file would be all that is measured.
    small: dict[str, object] = {"kind": "few folders", "count": count}

    def on_mount(name: str, function: str, role: Role, **arguments: object) -> Contender:
        return Contender(name, lambda folder: Job(function, {"folder": tempfile.mkdtemp(dir=mount), **arguments}), role)

    def original(folder: Path) -> Job:
        arguments = {"folder": tempfile.mkdtemp(dir=mount), "count": count}
        return Job("bench.original:write", arguments, python=bench.peer(ORIGINAL).path)

    return [
        on_mount("rear", "bench.writers:write_with_rear", "rear", compression="stored", **small),
        on_mount("rear and scavenge", "bench.latency:write_and_scavenge", "rear", count=count),
        on_mount("plain open()", "bench.writers:write_plain_files", "peer", **small),
        Contender(ORIGINAL, original, needs=ORIGINAL),
    ]


def _why_not() -> str | None:
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is not installed (pip install rear[bench])"
    if shutil.which("fusermount3") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "FUSE 3 cannot be used here (Debian package fuse3, /dev/fuse)"
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/stderr", "w+b") as errors:
        Path(folder, "root").mkdir()
        try:
            with _mount(Path(folder), 0.0, errors.fileno()):
                return None
        except OSError as error:
            return f"nothing can be mounted with FUSE here: {error}"


@contextmanager
def _mounted(delay_seconds: float) -> Iterator[Path]:
    # Memory is behind it, so that the times of a disk are not in the numbers.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="rear-bench-", dir=memory) as folder:
        Path(folder, "root").mkdir()
        with _mount(Path(folder), delay_seconds, subprocess.DEVNULL) as mount:
            yield mount


@contextmanager
def _mount(folder: Path, delay_seconds: float, errors: int) -> Iterator[Path]:
    mount = folder / "mount"
    mount.mkdir()
    argv = [sys.executable, "-P", "-m", "bench.slowfs", str(folder / "root"), str(mount), str(delay_seconds)]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, cwd="/",
        env=environment({"PYTHONPATH": str(ROOT)}),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + _MOUNT_SECONDS
        while not os.path.ismount(mount):
            if process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"the FUSE process ended with status {process.poll()}")
            time.sleep(0.02)
        yield mount
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mount)], capture_output=True, check=False)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_and_scavenge(stopwatch: Stopwatch, *, folder: str, count: int) -> None:
    """Write small files, and merge them."""
    from bench import data
    from bench.writers import write_part_with_rear
    from rear import scavenge

    files = list(data.small_files(count, folders=4))
    with stopwatch:
        write_part_with_rear(folder, files, compression="stored")
        for _ in scavenge(folder):
            pass
