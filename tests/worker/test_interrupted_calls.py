"""System calls that do less than they were asked for, or are interrupted: nothing depends on one call doing it all."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fixtures
import pytest
from bases import check_base, scavenge, write
from damaged_bases import DAMAGE, check, expected_after, remove_directory, write_files
from faults import SEED, needs_strace
from pairs import write_pair

FILES = {f"ar.zip/{number}": random.Random(number).randbytes(number * 900) for number in range(12)}
FILES |= {"sub/b.zip/text": b"some text\n" * 5000}
EXPECTED = {f"ar.zip/{number}": bytes([number]) * 4000 for number in range(6)}
PROGRAM = """
import sys, rear
base, log = sys.argv[1:]
with rear.rear_fs(base, sync="file") as fs:
    for number in range(6):
        target = f"ar.zip/{number}"
        try:
            with fs.open(target, "wb") as file:
                file.write(bytes([number]) * 4000)
        except InterruptedError:
            continue
        with open(log, "a") as acknowledged:
            print(target, file=acknowledged)
try:
    for event in rear.scavenge(base, verify=True):
        pass
except InterruptedError:
    pass
"""
#: Calls by what they do, and the number of the first one that is interrupted: Python itself has to start.
CALLS = {
    "pwritev,pwritev2,pwrite64": 2, "pread64": 60, "fsync,fdatasync": 2, "rename,renameat,renameat2": 1,
    "unlink,unlinkat": 1, "ftruncate": 1, "copy_file_range": 1, "mkdir,mkdirat": 1, "fcntl": 7,
}  # fmt: skip


base = fixtures.scratch_base


class Partial:
    """Makes calls of ``os`` do a part of their work, as they may on any file system, most of all on a network."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.count = 0

    def less(self, length: int) -> int:
        if length < 2 or self.chance.random() < 0.5:
            return length
        self.count += 1
        return self.chance.randint(1, length - 1)

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real: dict[str, Callable[..., Any]] = {
            name: getattr(os, name) for name in ("pwrite", "pwritev", "pread", "copy_file_range")
        }

        def pwrite(descriptor: int, data: Any, offset: int) -> int:
            return int(real["pwrite"](descriptor, memoryview(data).cast("B")[: self.less(len(data))], offset))

        def pwritev(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
            return pwrite(descriptor, b"".join(buffers), offset)

        def pread(descriptor: int, length: int, offset: int) -> bytes:
            return bytes(real["pread"](descriptor, self.less(length), offset))

        def copy_file_range(source: int, target: int, count: int, *offsets: int) -> int:
            return int(real["copy_file_range"](source, target, self.less(count), *offsets))

        for name, function in {
            "pwrite": pwrite, "pwritev": pwritev, "pread": pread, "copy_file_range": copy_file_range,
        }.items():  # fmt: skip
            monkeypatch.setattr(os, name, function)


@pytest.mark.parametrize("seed", range(4))
def test_worker_and_scavenger(base: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    partial = Partial(SEED + seed)
    partial.patch(monkeypatch)
    write(base, FILES)
    scavenge(base, verify=True)
    write_pair(base, 0, {1: ("crashed", b"crashed" * 500)})
    scavenge(base)
    assert partial.count > 20
    monkeypatch.undo()
    check_base(base, FILES | {"ar.zip/crashed": b"crashed" * 500})


@pytest.mark.parametrize("damage", DAMAGE)
def test_fsck(base: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], str]) -> None:
    write_files(base)
    scavenge(base)
    code = damage(base)
    partial = Partial(SEED)
    partial.patch(monkeypatch)
    assert code in {event.as_json().get("code") for event in check(base, deep=True)}
    assert partial.count > 5
    monkeypatch.undo()
    check_base(base, expected_after(damage), lost_and_found=True)


@pytest.mark.parametrize("calls", CALLS)
def test_interrupted(base: Path, calls: str) -> None:
    """Every other call of one kind ends with EINTR before it has done anything.

    Python calls again where POSIX has it so; where it does not (rename, unlink, mkdir), this is an error like others.
    """
    needs_strace()
    base.mkdir()
    log, acknowledged = base.parent / "log", base.parent / "acknowledged"
    acknowledged.touch()
    command = [
        "strace", "-f", "-qq", "-o", str(log), "-e", f"trace={calls}",
        "-e", f"inject={calls}:error=EINTR:when={CALLS[calls]}+2",
        sys.executable, "-c", PROGRAM, str(base), str(acknowledged),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or "InterruptedError" in done.stderr or "NotArchivedError" in done.stderr, done.stderr
    assert "INJECTED" in log.read_text()
    targets = acknowledged.read_text().split()
    if calls not in ("rename,renameat,renameat2", "unlink,unlinkat", "mkdir,mkdirat"):
        assert len(targets) == len(EXPECTED), done.stderr
    for _ in range(2):
        scavenge(base)
    check_base(base, {target: EXPECTED[target] for target in targets}, perhaps=EXPECTED)


def test_the_scanner_reads_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(base)
    scavenge(base)
    remove_directory(base)
    Partial(SEED).patch(monkeypatch)
    assert check(base, report_only=True)
