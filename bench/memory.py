"""The row about memory, and its job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench import data
from bench.job import Stopwatch
from bench.merge import copy_of
from bench.runner import Bench, Command, Contender, Job

_PIECE_BYTES = 1 << 20
_GIB = 1 << 30


def memory(bench: Bench) -> None:
    """Peak memory of a worker that writes one large member of log lines, and of the scavenger that merges it.

    Beside them an interpreter that does nothing. The worker compresses; the member is written in pieces of 1 MiB.
    Only a full run writes 5 GiB.
    """
    sizes = [("64 MiB", 64 << 20), ("1 GiB", _GIB), ("5 GiB", 5 * _GIB)]
    for label, size_bytes in sizes[: bench.size(3, 1)]:
        _measure(bench, label, size_bytes)


def _measure(bench: Bench, label: str, size_bytes: int) -> None:
    def write(folder: Path) -> Job:
        return Job("bench.memory:write_one", {"folder": str(folder), "size_bytes": size_bytes})

    def compare(case: str, contenders: Sequence[Contender]) -> None:
        bench.compare(
            case, contenders, quantity="peak_bytes", unit="MiB", scale=1 / (1 << 20), x=size_bytes / _GIB, rounds=1
        )

    bare = Contender("bare interpreter", lambda folder: Command([sys.executable, "-c", "pass"]), "limit")
    compare(f"worker, member of {label}", [Contender("rear", write, "rear"), bare])
    base = bench.shared(f"memory-{label}", lambda folder: bench.do(write(folder)))
    scavenger = Contender(
        "rear",
        lambda folder: Job(
            "bench.mergers:merge_with_rear", {"folder": str(folder / "base"), "warm": str(folder / "warm")}
        ),
        "rear",
        prepare=copy_of(base),
    )
    compare(f"scavenger, member of {label}", [scavenger, bare])
    bench.forget(f"memory-{label}")


def write_one(stopwatch: Stopwatch, *, folder: str, size_bytes: int) -> None:
    """Write one member of so many bytes."""
    from rear import rear_fs, rear_open

    piece = data.text(_PIECE_BYTES, 0)
    with stopwatch, rear_fs(folder), rear_open("ar.zip/large.txt", "wb") as file:
        for _ in range(size_bytes // _PIECE_BYTES):
            file.write(piece)
