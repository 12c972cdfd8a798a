"""Rows about reading: lists and deep checks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench import archives, data
from bench.runner import Bench, Command, Contender, Job, rear_command

Files = Iterable[tuple[str, bytes]]


def _program(bench: Bench, name: str, program: str, *arguments: str, cpus: Sequence[int] | None = None) -> Contender:
    def step(folder: Path) -> Command:
        peer = bench.peer(program)
        return Command([peer.path, *arguments], environment=peer.environment, cpus=cpus)

    return Contender(name, step, needs=program)


def _archive(bench: Bench, name: str, files: Callable[[], Files], method: int) -> str:
    """Return the path of an archive that several contenders read."""
    folder = bench.shared(name, lambda folder: archives.write(folder / "ar.zip", files(), method=method))
    return str(folder / "ar.zip")


def ls(bench: Bench) -> None:
    """Names of all members of archives with 50,000, 500,000 and 1,000,000 of them, to nowhere.

    Times are those of the whole commands, from start to exit.
    """
    for count in [50_000, 500_000, 1_000_000] if not bench.is_quick else [5_000, 50_000]:
        _list(bench, count)


def _list(bench: Bench, count: int) -> None:
    name = f"ls-{count}"
    path = _archive(bench, name, lambda: data.small_files(count, size_bytes=64), archives.STORED)
    contenders = [
        Contender("rear ls", lambda folder: rear_command("ls", path), "rear"),
        Contender("rear ls --long", lambda folder: rear_command("ls", "--long", path), "rear"),
        _program(bench, "zipinfo -1", "zipinfo", "-1", path),
        _program(bench, "unzip -l", "unzip", "-l", path),
        _program(bench, "bsdtar -t", "bsdtar", "-tf", path),
        Contender("python -m zipfile -l", lambda folder: Command([sys.executable, "-m", "zipfile", "-l", path])),
    ]
    bench.compare(f"{count:,}", contenders, x=count, rounds=2)
    bench.forget(name)


def fsck(bench: Bench) -> None:
    """Every member is read and its CRC checked: 50,000 of 4 KiB, and twenty of 50 MB, stored and deflated.

    All but "--jobs 2" run on one processor. ``rear`` is timed without the start of its command, which is in the row
    ``start``, and of the processes of "--jobs 2".
    """
    count, large = bench.size(50_000, 5_000), bench.size(20, 1)
    if len(os.sched_getaffinity(0)) < 2:
        bench.skip("rear --jobs 2", "there is one processor only")
    for label, method in (("stored", archives.STORED), ("deflated", archives.DEFLATED)):
        _check(bench, f"small, {label}", lambda: data.small_files(count), method)
    _check(bench, "large, stored", lambda: _large(large, data.noise), archives.STORED)
    _check(bench, "large, deflated", lambda: _large(large, data.text), archives.DEFLATED)


def _check(bench: Bench, case: str, files: Callable[[], Files], method: int) -> None:
    path = _archive(bench, f"fsck {case}", files, method)
    cpus = [min(os.sched_getaffinity(0))]
    check = "bench.readers:check_deep"
    contenders = [
        Contender("rear", lambda folder: Job(check, {"path": path, "jobs": 1}, cpus=cpus), "rear"),
        _program(bench, "unzip -tq", "unzip", "-tq", path, cpus=cpus),
        _program(bench, "7z t", "7z", "t", "-bd", "-mmt=1", path, cpus=cpus),
        _program(bench, "bsdtar -xO", "bsdtar", "-xOf", path, cpus=cpus),
    ]
    if len(os.sched_getaffinity(0)) > 1:
        contenders.append(Contender("rear --jobs 2", lambda folder: Job(check, {"path": path, "jobs": 2}), "rear"))
    bench.compare(case, contenders, rounds=3)
    bench.forget(f"fsck {case}")


def _large(count: int, content: Callable[[int, int], bytes]) -> Files:
    # One content for all: making text takes longer than checking it, and nobody looks whether members are alike.
    one = content(50_000_000, 0)
    return ((f"large-{number}", one) for number in range(count))
