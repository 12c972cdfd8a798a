"""The tables of ``docs/explanation/scale.md``, made of what `bench.scalemodel` says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from bench.scalemodel import (
    JOURNAL_READ_SECONDS,
    OBSERVATION_BYTES,
    PLAIN_FILE,
    ROTATION,
    Jobs,
    Knobs,
    Machine,
    Scavenger,
    crash_seconds,
    pair_seconds,
    rotations_a_second,
    rounds,
    simulate,
    waiting_pairs,
    worker_calls,
)
from rear.scavenger.scavenge import MEMBERS_A_ROUND


def short(number: float) -> str:
    """Return a number with two or three digits and a unit: 1.5 k, 20 M."""
    for factor, unit in [(1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")]:
        if number >= factor * 0.9995:
            return f"{number / factor:.3g}{unit}"
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"


def duration(seconds: float) -> str:
    """Return a duration in its largest fitting unit."""
    for factor, unit in [(86_400, "d"), (3_600, "h"), (60, "min")]:
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds:.2g} s"


class Table(NamedTuple):
    """A table of the page, which the comment ``<!-- table: <name> -->`` stands above."""

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return its lines."""
        lines = [f"| {' | '.join(cells)} |" for cells in self.rows]
        return "\n".join([f"| {' | '.join(self.head)} |", "|" + "---|" * len(self.head), *lines, ""])


def written(page: str, tables: Iterable[Table]) -> str:
    """Return a page with its tables made anew.

    Raises:
        ValueError: the page has no place for one of them.
    """
    for table in tables:
        place = re.compile(rf"(<!-- table: {re.escape(table.name)} -->\n\n)(?:\|.*\n)*")
        if not place.search(page):
            raise ValueError(f"there is no table {table.name!r} in the page")
        page = place.sub(partial(_put, table), page)
    return page


def _put(table: Table, found: re.Match[str]) -> str:
    return found[1] + table.markdown()


TUNED = Knobs(
    rotation_span=7200.0, sync_interval=60.0, lease_seconds=600.0, every_seconds=900.0, max_members=10**6
)  # fmt: skip
WORKER_HEAD = ["plain `open()`", "rear", "ratio", "fsyncs", "rotations in the worst second"]


def worker_row(jobs: Jobs, knobs: Knobs) -> list[str]:
    """Return cells: calls a second with plain files and with rear, fsyncs, and the worst second."""
    calls, plain = worker_calls(jobs, knobs), PLAIN_FILE.times(jobs.workers * jobs.files_a_second)
    burst = ROTATION.times(rotations_a_second(jobs, knobs))
    return [
        short(plain.metadata), short(calls.metadata), f"{calls.metadata / plain.metadata:.2g}", short(calls.syncs),
        short(burst.metadata),
    ]  # fmt: skip


def workers_table() -> Table:
    rows = []
    for files_a_second in (1.0, 0.01):
        for workers in (100, 10_000, 100_000):
            for name, knobs in [("default", Knobs()), ("tuned", TUNED)]:
                jobs = Jobs(workers, 10**9, files_a_second)
                pair = short(pair_seconds(jobs, knobs) * files_a_second)
                rows.append([f"{workers:,}", f"{files_a_second:g}", name, pair, *worker_row(jobs, knobs)])
    return Table("workers", ["workers", "files a second each", "knobs", "members a pair", *WORKER_HEAD], rows)


def knobs_table() -> Table:
    jobs, default = Jobs(100_000, 10**9, 1.0), Knobs()
    cases = [("all defaults", default)]
    cases += [(f"`rotation_span` {span:g}", replace(default, rotation_span=span)) for span in (60.0, 1800.0, 7200.0)]
    cases += [(f"`sync_interval` {wait:g}", replace(default, sync_interval=wait)) for wait in (10.0, 60.0)]
    cases += [(f"`lease_seconds` {lease:g}", replace(default, lease_seconds=lease)) for lease in (300.0, 600.0)]
    cases.append(("all tuned", TUNED))
    rows = [[name, *worker_row(jobs, knobs)] for name, knobs in cases]
    return Table("knobs", ["", *WORKER_HEAD], rows)


def sustained_table(machine: Machine) -> Table:
    rows = []
    for members_a_pair in (3, 30, 300, 3_000, 30_000):
        cells = []
        for size_bytes in (4096, 65_536):
            scavenger = Scavenger(Jobs(1_000, 0, size_bytes=size_bytes), Knobs(max_members=10**6), machine)
            members = 1_000 * members_a_pair
            one = scavenger.scavenge(begun_seconds=0, pairs=1_000, members=members, live=0)
            seconds = one.seconds + scavenger.derived_seconds()
            cells += [short(1_000 / seconds), short(members / seconds)]
        rows.append([f"{members_a_pair:,}", *cells])
    head = ["members a pair", "pairs a second, 4 KiB", "members a second", "pairs a second, 64 KiB", "members a second"]
    return Table("sustained", head, rows)


def archives_table(machine: Machine) -> Table:
    rows = []
    for archives, archives_a_worker in [(1, 1), (10, 1), (10, 10), (100, 100), (1_000, 1)]:
        jobs = Jobs(1_000, 0, archives=archives, archives_a_worker=archives_a_worker)
        scavenger = Scavenger(jobs, Knobs(), machine)
        one = scavenger.scavenge(begun_seconds=0, pairs=1_000, members=100_000, live=0)
        rows.append([
            f"{archives:,}", f"{archives_a_worker}", short(one.calls.metadata), short(one.calls.syncs),
            duration(one.seconds),
        ])  # fmt: skip
    head = ["archives", "a worker writes to", "metadata operations", "fsyncs", "seconds"]
    return Table("archives", head, rows)


def scavenger_table(machine: Machine, members: int) -> Table:
    head = ["workers", "knobs", "largest inbox, pairs", "scavenge, median", "longest", "busy", "behind"]
    rows = []
    cases = [(100, 1), (10_000, 1), (100_000, 1), (100_000, 10)]
    for workers, bases in cases:
        for name, knobs in [("default", Knobs()), ("tuned", TUNED)]:
            jobs = Jobs(workers // bases, members // bases, files_a_second=5_000 / workers)
            outcome = simulate(jobs, knobs, machine)
            times = sorted(one.seconds for one in outcome.scavenges)
            rows.append([
                f"{workers:,}" + (f" in {bases} bases, each" if bases > 1 else ""), name, short(outcome.inbox_pairs),
                duration(times[len(times) // 2]), duration(times[-1]), f"{outcome.busy_share:.0%}",
                duration(outcome.behind_seconds),
            ])  # fmt: skip
    return Table("scavenger", head, rows)


def inbox_table(machine: Machine) -> Table:
    jobs = Jobs(100_000, 10**9, 0.05)
    outcomes = [simulate(jobs, knobs, machine) for knobs in (Knobs(), replace(TUNED, rotation_span=3600.0), TUNED)]
    rows = [
        [f"{hours} h", *(short(waiting_pairs(outcome, 3600.0 * hours)) for outcome in outcomes)]
        for hours in (1, 4, 12, 24, 48)
    ]
    head = ["after", "default", "tuned, `rotation_span` 3600", "tuned, 7200"]
    return Table("inbox", head, rows)


def hosts_table(machine: Machine) -> Table:
    head = ["workers a host", "host folders", "pairs a claim folder", "metadata operations", "seconds"]
    rows = []
    for workers_a_host, empty in [(1, 900_000), (1, 0), (16, 0), (64, 0), (1_000, 0), (100_000, 0)]:
        jobs = Jobs(100_000, 0, 0.01, workers_a_host=workers_a_host, empty_hosts=empty)
        scavenger = Scavenger(jobs, Knobs(), machine)
        one = scavenger.scavenge(begun_seconds=0, pairs=jobs.workers, members=3 * jobs.workers, live=0)
        rows.append([
            f"{workers_a_host:,}", f"{jobs.hosts:,}" + (f" and {empty:,} empty" if empty else ""),
            short(max(1.0, jobs.workers / rounds(one.members) / jobs.hosts)), short(one.calls.metadata),
            duration(one.seconds),
        ])  # fmt: skip
    return Table("hosts", head, rows)


def directories_table(machine: Machine) -> Table:
    head = ["members", "`--max-members`", "archives", "merges", "directory bytes moved", "of the data", "seconds"]
    rows = []
    for members in (10**6, 10**7, 10**8, 10**9):
        for cap in (None, *(cap for cap in (10**7, 10**6) if cap < members)):
            scavenger = Scavenger(Jobs(1, members), Knobs(max_members=cap), machine)
            archive, longest = scavenger.archive, 0.0
            for _ in range(members // MEMBERS_A_ROUND):
                before = scavenger.derived_seconds()
                archive.merge(MEMBERS_A_ROUND)
                longest = max(longest, scavenger.derived_seconds() - before)
            moved = archive.directory_bytes_moved
            rows.append([
                short(members), "none" if cap is None else short(cap), f"{archive.full + 1:,}", f"{archive.merges:,}",
                f"{short(moved)}B", f"{short(moved / members / 4096)} ×",
                f"{duration(scavenger.derived_seconds())}, at most {duration(longest)} a merge",
            ])  # fmt: skip
    return Table("directories", head, rows)


def crashes_table(machine: Machine) -> Table:
    pairs = (1, 1_000, 100_000)
    rows = [
        [short(members), *(duration(crash_seconds(members, count, machine)) for count in pairs)]
        for members in (10**6, 10**7, 10**8, 10**9)
    ]
    head = ["members in the archive and those it was renamed to", "1 crashed pair", *(f"{n:,}" for n in pairs[1:])]
    return Table("crashes", head, rows)


def graveyard_table() -> Table:
    rows = []
    for workers in (64, 10_000, 100_000):
        members = workers * 300
        rows.append([
            f"{workers:,}", short(members), duration(members * JOURNAL_READ_SECONDS), f"{rounds(members):,}",
            f"{short(workers * OBSERVATION_BYTES)}B",
        ])  # fmt: skip
    head = ["stale workers", "members, 300 a pair", "read again, each scavenge", "rounds at its end", "observations"]
    return Table("graveyard", head, rows)


def all_tables(machine: Machine, members: int) -> list[Table]:
    """Return all tables of the page.

    Args:
        machine: what things cost.
        members: files in all, where a table is about a whole campaign.
    """
    return [
        workers_table(), knobs_table(), sustained_table(machine), archives_table(machine),
        scavenger_table(machine, members), inbox_table(machine), hosts_table(machine),
        directories_table(machine), crashes_table(machine), graveyard_table(),
    ]  # fmt: skip
