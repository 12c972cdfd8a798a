"""Jobs for the original rear 0.1.2, in an environment of its own: the ``rear`` that is imported here is that one."""

from __future__ import annotations

import builtins
import importlib
import os
import zipfile
from pathlib import Path
from typing import Any

from bench import data
from bench.job import Stopwatch, fork_workers


def _fs(folder: str) -> Any:
    return importlib.import_module("rear").rear_fs(folder)


def write(stopwatch: Stopwatch, *, folder: str, count: int) -> None:
    """Write small files as its readme shows; it knows no compression."""
    trio = importlib.import_module("trio")
    files = list(data.small_files(count))

    async def work() -> None:
        with stopwatch:
            async with _fs(folder):
                rear_open = builtins.rear_open  # type: ignore[attr-defined]
                for name, content in files:
                    with rear_open(f"ar.zip/{name}", "w+b") as file:
                        file.write(content)
                stopwatch.lap("acknowledged_seconds")

    trio.run(work)


def translate(stopwatch: Stopwatch, *, sources: list[str], folder: str) -> None:
    """Make temp archives as the original writes them, of Zips that hold the same members; not measured.

    Its names tell the second of their making, and two of one second would be one file: each gets a second of its own.
    """
    inbox = Path(folder, "inbox")
    inbox.mkdir(parents=True)
    with stopwatch:
        for number, source in enumerate(sources):
            path = inbox / f"host-260101_{number // 3600:02}{number // 60 % 60:02}{number % 60:02}.zip"
            with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
                for member in old.infolist():
                    content = old.read(member)
                    member.filename = f"ar.zip/{member.filename}"
                    member.extra = b""
                    # ISA-L's level 1 is beside zlib's.
                    new.writestr(member, content, member.compress_type, 1)


def merge(stopwatch: Stopwatch, *, folder: str) -> None:
    """Scavenge once."""
    scan = importlib.import_module("rear.scavenger").try_scan_once
    with stopwatch:
        scan(folder, flush=True)


def end_to_end(stopwatch: Stopwatch, *, folder: str, workers: int, files_each: int, unzip: list[str]) -> None:
    """Workers write, one scavenge merges, ``unzip -tq`` verifies.

    Each worker gets a host name of its own: workers of one host that start in the same second would write to one file.
    """
    socket = importlib.import_module("trio").socket
    files = list(data.small_files(workers * files_each))
    scan = importlib.import_module("rear.scavenger").try_scan_once

    def work(worker: int) -> None:
        socket.gethostname = lambda: f"host{worker}"
        _write_part(folder, files[worker::workers])

    with stopwatch:
        fork_workers(workers, work)
        scan(folder, flush=True)
        if unzip and os.spawnv(os.P_WAIT, unzip[0], [*unzip, f"{folder}/ar.zip"]):
            raise RuntimeError("unzip finds the archive damaged")


def _write_part(folder: str, files: list[tuple[str, bytes]]) -> None:
    trio = importlib.import_module("trio")

    async def work() -> None:
        async with _fs(folder):
            rear_open = builtins.rear_open  # type: ignore[attr-defined]
            for name, content in files:
                with rear_open(f"ar.zip/{name}", "w+b") as file:
                    file.write(content)

    trio.run(work)
