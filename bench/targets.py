"""What is aimed at, as data: ratios between results of one run. `bench.verdicts` says what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from bench.peers import ORIGINAL

Sense = Literal["at most", "at least"]


@dataclass(frozen=True)
class Measure:
    """One median of a run.

    Args:
        row: name of the row.
        case: name of the case in it.
        contender: who was measured.
        quantity: which of the sampled values; ``None``: the one that counts in that row, in its unit.
    """

    row: str
    case: str
    contender: str
    quantity: str | None = "seconds"


@dataclass(frozen=True)
class Target:
    """A limit for one number.

    Args:
        what: the words of the target.
        of: what is divided, or from which ``to`` is taken off.
        to: what it is divided by: the sum of these.
        limit: bound of the number.
        sense: on which side of the bound it is to be.
        how: how the number is made of ``of`` and ``to``.
        unit: of the number; empty for a ratio.
        scale: factor from the number to the unit.
        is_cpu_told: whether the same number of CPU times says something.
    """

    what: str
    of: Measure
    to: tuple[Measure, ...]
    limit: float
    sense: Sense = "at most"
    how: Literal["ratio", "difference", "value"] = "ratio"
    unit: str = ""
    scale: float = 1.0
    is_cpu_told: bool = True


@dataclass(frozen=True)
class _Case:
    """The targets of rear in one case of a row."""

    what: str
    row: str
    case: str
    rear: str = "rear"

    def measure(self, contender: str, quantity: str | None = "seconds") -> Measure:
        return Measure(self.row, self.case, contender, quantity)

    def at_most(
        self, limit: float, other: str, remark: str = "", quantity: str = "seconds", *, to: str = "", called: str = ""
    ) -> Target:
        """Return: rear takes at most so many times what the other one takes, of ``quantity`` or ``to``."""
        what = f"{self.what}{remark}: to {called or other}"
        return Target(what, self.measure(self.rear, quantity), (self.measure(other, to or quantity),), limit)

    def faster(self, limit: float, other: str, called: str = "") -> Target:
        """Return: rear is at least so many times faster than the other one."""
        what = f"{self.what}: faster than {called or other}"
        return Target(what, self.measure(other), (self.measure(self.rear),), limit, "at least")

    def value(self, limit: float, what: str, quantity: str | None, unit: str, scale: float = 1.0) -> Target:
        """Return: a number of rear alone is at most so much."""
        return Target(
            f"{self.what}: {what}", self.measure(self.rear, quantity), (), limit, "at most", "value", unit, scale
        )

    def difference(self, limit: float, other: str, quantity: str, unit: str, scale: float) -> Target:
        """Return: rear takes at most so much more than the other one."""
        of, to = self.measure(self.rear, quantity), self.measure(other, quantity)
        return Target(f"{self.what}, over a {other}", of, (to,), limit, "at most", "difference", unit, scale)


def _worker() -> Iterator[Target]:
    stored = _Case("ingest, stored, 4 KiB", "ingest", "stored")
    yield stored.at_most(1.6, "two bare writes", " (until acknowledged)", "acknowledged_seconds")
    # The same boundaries for both: whoever waits for the disk is beside somebody who does, too.
    yield stored.at_most(1.6, "two bare writes, fsync", " (with the last fsync)")
    yield stored.faster(2, ORIGINAL)
    yield stored.faster(1, "plain open()")
    deflated = _Case("ingest, deflate", "ingest", "deflated")
    yield deflated.faster(2, "zipfile level 1")
    yield deflated.at_most(1, "zipfile level 1", " (bytes of compressed data)", "data_bytes")
    yield deflated.at_most(1, "zipfile level 1", " (bytes of the whole archive)", "archive_bytes")
    operations = _Case("metadata operations", "operations", "metadata operations")
    yield operations.value(0.01, "at 1,000 files a rotation", None, "a file")


def _merge() -> Iterator[Target]:
    for method in ("stored", "deflated"):
        small = _Case(f"merge, 50,000 × 4 KiB, {method}", "merge", method)
        yield small.at_most(3, "cat")
        yield small.at_most(1.6, "cat", " (without the index: until committed)", "committed_seconds", to="seconds")
        yield small.at_most(3, "cat, fsync")
        yield small.faster(5, ORIGINAL)
        yield small.faster(10, "zipmerge")
    large = _Case("merge, large members", "merge-large", "large members")
    yield large.at_most(1.1, "cat")
    yield large.at_most(1.1, "cat, fsync")
    calls = _Case("merge, large members", "merge-large", "calls")
    yield Target(
        "merge, large members: calls of copy_file_range for a run of members",
        calls.measure("rear", "copy_calls"), (calls.measure("rear", "ranges"),), 1,
    )  # fmt: skip
    full = _Case("merge of 5,000 into 1 M", "merge-growth", "1,000,000")
    yield Target(
        f"{full.what}: to the time into an empty archive + a copy of the directory",
        full.measure("rear"), (Measure("merge-growth", "0", "rear"), full.measure("copy of the directory")), 3,
    )  # fmt: skip
    yield full.faster(20, ORIGINAL)
    yield full.value(100, "peak memory", "peak_bytes", "MB", 1e-6)
    for method in ("stored", "deflated"):
        verify = _Case(f"merge, 50,000 × 4 KiB, {method}, --verify", "verify", method, "rear --verify")
        yield verify.at_most(3, "rear", called="the same without")


def _reading() -> Iterator[Target]:
    for method, limit in (("stored", 3.0), ("deflated", 1.0)):
        for count in ("5,000", "50,000", "500,000"):
            yield _Case(f"salvage, {method}, {count}", "salvage", f"{method}, {count}").faster(limit, "zip -FF")
    tiny = _Case("salvage, a million tiny members", "salvage-tiny", "stored, 1,000,000")
    yield tiny.faster(1, "zip -FF")
    ls = _Case("ls of 1 M members", "ls", "1,000,000", "rear ls")
    yield ls.faster(1, "zipinfo -1")
    yield ls.value(100, "peak memory", "peak_bytes", "MB", 1e-6)
    for size in ("small", "large"):
        for method in ("stored", "deflated"):
            check = _Case(f"fsck --deep, {size}, {method}, one processor", "fsck", f"{size}, {method}")
            yield from (check.faster(1, peer) for peer in ("unzip -tq", "7z t", "bsdtar -xO"))
    for method in ("stored", "deflated"):
        # "Close to twice": the second process has to be started, too.
        case = f"large, {method}"
        jobs = _Case(f"fsck --deep, {case}, --jobs 2", "fsck", case, "rear --jobs 2")
        yield replace(jobs.faster(1.7, "rear", "one process"), is_cpu_told=False)


def _resources() -> Iterator[Target]:
    worker = _Case("memory of a worker, member of 5 GiB", "memory", "worker, member of 5 GiB")
    yield worker.difference(64, "bare interpreter", "peak_bytes", "MiB", 1 / (1 << 20))
    scavenger = Measure("memory", "scavenger, member of 5 GiB", "rear", "peak_bytes")
    small = Measure("memory", "scavenger, member of 64 MiB", "rear", "peak_bytes")
    yield Target("memory of a scavenger, member of 5 GiB: to one of 64 MiB", scavenger, (small,), 1.1)
    start = _Case("import rear", "start", "import", "import rear")
    yield start.difference(50, "bare interpreter", "seconds", "ms", 1e3)
    yield _Case("start", "start", "command", "rear --help").value(250, "rear --help", "seconds", "ms", 1e3)


TARGETS: tuple[Target, ...] = (*_worker(), *_merge(), *_reading(), *_resources())
