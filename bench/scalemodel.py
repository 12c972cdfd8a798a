"""How load grows with workers and members: a model of a base, made of counted calls and measured rates.

Nothing is timed here: what rear calls was counted under strace, and ``tests/long/test_scale.py`` counts it again;
limits are imported from rear itself. A `Machine` says what a call costs. The tables of ``docs/explanation/scale.md``:
`bench.scaletables`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rear.index.index import SMALL_MEMBERS
from rear.journal.check import _NEAR_BYTES
from rear.scavenger.scavenge import MEMBERS_A_ROUND
from rear.worker.pair_writer import DIRECTORY_LIMIT_BYTES
from rear.worker.pairs import JITTER
from rear.worker.worker_options import WorkerOptions


class Calls(NamedTuple):
    """System calls that reach a file server.

    Attributes:
        names: calls that name a file or folder, or change its length: open, stat, mkdir, rename, unlink, a listing.
        closes: of files and folders; a call to the server on NFS 4, Lustre and GlusterFS, though not for every file.
        syncs: fsync of files and folders.
    """

    names: float = 0.0
    closes: float = 0.0
    syncs: float = 0.0

    @property
    def metadata(self) -> float:
        """Metadata operations, counted so that a plain ``open()``, ``write()`` and ``close()`` are two."""
        return self.names + self.closes

    def times(self, number: float) -> Calls:
        """Return the calls of doing it ``number`` times."""
        return Calls(*(number * count for count in self))


def total(calls: Iterable[Calls]) -> Calls:
    """Return the sum of all calls."""
    return Calls(*map(sum, zip(Calls(), *calls, strict=True)))


# Counted; what a scavenge costs is linear in these. Look-ups of names that are not there are counted as well.
PLAIN_FILE = Calls(names=1, closes=1)
ROTATION = Calls(names=8, closes=4, syncs=6)
"""A new pair, and the end of the one before: two files, their folder, a truncation, the syncs of the end."""
SYNC = Calls(syncs=2)
"""Each ``sync_interval`` while something is not synced: journal and temp archive."""
BEAT = Calls(names=1, syncs=1)
"""Each quarter of a lease while a pair is open: its journal, and a look for flush requests."""
SCAVENGE = Calls(names=78, closes=31, syncs=5)
"""A scavenge that does something: lock, term, folders and whether they can be used, report."""
HOST = Calls(names=7, closes=4, syncs=1)
"""A host folder with pairs that are claimed; one with live pairs alone: `IDLE_HOST`."""
IDLE_HOST = Calls(names=1, closes=1)
LIVE_PAIR = Calls(names=2, closes=1)
"""Looked at in every scavenge: its journal, and the notes that are not there."""
PAIR = Calls(names=17, closes=2)
PAIR_IN_ARCHIVE = Calls(names=6, closes=5, syncs=2)
"""Notes beside a pair, for each final archive that it holds members of."""
NEW_ARCHIVE = Calls(names=64, closes=26, syncs=10)
MERGE = Calls(names=108, closes=36, syncs=7)
"""A merge into an archive that exists; after a rename of a full one: `MERGE` and `RENAME`."""
RENAME = Calls(closes=3, syncs=5)

# Bytes of one member besides its name of ``name_bytes``; the origin of a member and the path of its archive included.
JOURNAL_RECORD_BYTES = 242
LOCAL_HEADER_BYTES = 146
DIRECTORY_ENTRY_BYTES = 55
"""46 of APPNOTE 4.3.12 and an extended timestamp of 9."""
ZIP64_OFFSET_BYTES = 12
"""More for a member behind 4 GiB (APPNOTE 4.5.3)."""
INDEX_ROW_BYTES = 120
OBSERVATION_BYTES = 90
JOURNAL_READ_SECONDS = 8.6e-6


@dataclass(frozen=True)
class Jobs:
    """Who writes what.

    Args:
        workers: processes that write all the time.
        members: files that they write in all.
        files_a_second: of one worker.
        size_bytes: of one file, as it is stored.
        name_bytes: of its name in the archive.
        workers_a_host: processes that share a host folder.
        empty_hosts: host folders that earlier jobs have left: a scavenge lists them, too.
        archives: final archives that are written at the same time, each by its share of the workers.
        archives_a_worker: to how many of them one worker writes.
    """

    workers: int
    members: int
    files_a_second: float = 0.1
    size_bytes: int = 4096
    name_bytes: int = 40
    workers_a_host: int = 64
    empty_hosts: int = 0
    archives: int = 1
    archives_a_worker: int = 1

    @property
    def hosts(self) -> int:
        """Folders in the inbox."""
        return math.ceil(self.workers / self.workers_a_host)

    @property
    def member_bytes(self) -> int:
        """Length of one member in a temp archive and in a final one."""
        return LOCAL_HEADER_BYTES + self.name_bytes + self.size_bytes

    def directory_bytes(self, members: float) -> float:
        """Length of the central directory of an archive of so many members."""
        behind_4_gib = max(0.0, members - (1 << 32) / self.member_bytes)
        return members * (DIRECTORY_ENTRY_BYTES + self.name_bytes) + behind_4_gib * ZIP64_OFFSET_BYTES


@dataclass(frozen=True)
class Knobs:
    """What users set; the names of rear."""

    rotation_span: float = WorkerOptions().rotation_span
    rotation_size: int = WorkerOptions().rotation_size
    sync_interval: float = WorkerOptions().sync_interval
    lease_seconds: float = WorkerOptions().lease_seconds
    every_seconds: float = 300.0
    max_members: int | None = None


@dataclass(frozen=True)
class Machine:
    """What things cost. The seconds of the processor are measured, those of the server are examples.

    Args:
        call_seconds: one metadata operation, waited for.
        sync_seconds: one fsync, waited for.
        bytes_a_second: between server and scavenger, or inside the server.
        scavenge_seconds: of the processor, once a scavenge.
        member_seconds: of the processor, a merged member.
        pair_seconds: of the processor, a merged pair.
        look_seconds: of the processor, a live pair that is looked at.
        neighbour_seconds: of the processor, for each pair that lies in the claim folder beside a merged one.
        index_write_seconds: of the processor, a row that is taken over into a larger segment.
        index_scan_seconds: of the processor, a row that is read because a crashed worker's members may be merged.
    """

    call_seconds: float = 0.0005
    sync_seconds: float = 0.005
    bytes_a_second: float = 1e9
    scavenge_seconds: float = 0.25
    member_seconds: float = 25e-6
    pair_seconds: float = 0.4e-3
    look_seconds: float = 0.15e-3
    neighbour_seconds: float = 0.72e-6
    index_write_seconds: float = 1.0e-6
    index_scan_seconds: float = 0.15e-6


SERVER = Machine()
LOCAL = Machine(call_seconds=0.0, sync_seconds=0.0, bytes_a_second=math.inf)
"""Time of the processor alone, as on a disk in memory."""


# ---- workers


class Lifetime(NamedTuple):
    """For how long one worker writes to one pair: until the first of its three limits; the last one has a jitter."""

    shortest_seconds: float
    longest_seconds: float

    @property
    def mean_seconds(self) -> float:
        """Any length in between is as likely as any other."""
        return (self.shortest_seconds + self.longest_seconds) / 2

    def ended_share(self, number: int, seconds: float) -> float:
        """Return the share of workers whose pair of that number, from 1 on, has ended by then."""
        first, last = number * self.shortest_seconds, number * self.longest_seconds
        if seconds < first or seconds >= last:
            return float(seconds >= last)
        # A sum of many lengths: near to a normal distribution.
        deviation = math.sqrt(number / 12) * (self.longest_seconds - self.shortest_seconds)
        return (1 + math.erf((seconds - (first + last) / 2) / deviation / math.sqrt(2))) / 2


def lifetime(jobs: Jobs, knobs: Knobs) -> Lifetime:
    """Return how long pairs last."""
    # A pair begins with its first member, so it holds one at least.
    by_size = max(1.0, knobs.rotation_size / jobs.member_bytes) / jobs.files_a_second
    by_directory = max(1.0, DIRECTORY_LIMIT_BYTES / (DIRECTORY_ENTRY_BYTES + jobs.name_bytes)) / jobs.files_a_second
    spans = (knobs.rotation_span * (1 - JITTER), knobs.rotation_span)
    return Lifetime(*(min(by_size, by_directory, max(span, 1 / jobs.files_a_second)) for span in spans))


def pair_seconds(jobs: Jobs, knobs: Knobs) -> float:
    """Return for how long one worker writes to one pair, on average."""
    return lifetime(jobs, knobs).mean_seconds


def worker_calls(jobs: Jobs, knobs: Knobs) -> Calls:
    """Return the calls a second of all workers."""
    open_share = min(1.0, knobs.rotation_span * (1 - JITTER / 2) / pair_seconds(jobs, knobs))
    rotations = jobs.workers / pair_seconds(jobs, knobs)
    syncs = jobs.workers * min(1 / knobs.sync_interval, jobs.files_a_second)
    beats = jobs.workers * open_share / (knobs.lease_seconds / 4)
    return total([ROTATION.times(rotations), SYNC.times(syncs), BEAT.times(beats)])


def calls_a_file(jobs: Jobs, knobs: Knobs) -> Calls:
    """Return the calls of workers a file, all told; a plain file costs `PLAIN_FILE`."""
    return worker_calls(jobs, knobs).times(1 / (jobs.workers * jobs.files_a_second))


def rotations_a_second(jobs: Jobs, knobs: Knobs) -> float:
    """Return how many workers that began in one second rotate in one second, at most: the first time."""
    pair = lifetime(jobs, knobs)
    return jobs.workers / max(1.0, pair.longest_seconds - pair.shortest_seconds)


def ended_pairs(jobs: Jobs, knobs: Knobs, seconds: float) -> int:
    """Return how many pairs have ended, so many seconds after all workers began."""
    written = jobs.members / (jobs.workers * jobs.files_a_second)
    pair = lifetime(jobs, knobs)
    if seconds >= written:
        return jobs.workers * math.ceil(written / pair.mean_seconds)
    of_all = int(seconds // pair.longest_seconds)
    of_some = int(seconds // pair.shortest_seconds)
    rotations = of_all + sum(pair.ended_share(number, seconds) for number in range(of_all + 1, of_some + 1))
    return int(jobs.workers * rotations)


# ---- archives


@dataclass
class Archive:
    """One final archive with its index, and those that it was renamed to when it was full."""

    jobs: Jobs
    max_members: int | None = None
    members: int = 0
    full: int = 0
    merges: int = 0
    directory_bytes_moved: float = 0.0
    index_rows_taken_over: int = 0
    segments: list[int] = field(default_factory=list)

    def merge(self, members: int) -> Calls:
        """Merge so many members, in as many merges as the cap asks for; return the calls."""
        calls = []
        while members:
            if self.members == self.max_members:
                self.full, self.members, self.segments = self.full + 1, 0, []
                calls.append(RENAME)
            room = members if self.max_members is None else min(members, self.max_members - self.members)
            calls.append(MERGE if self.members or self.full else NEW_ARCHIVE)
            # The old directory goes to the intent, and behind the new members again; the new entries once.
            old = self.jobs.directory_bytes(self.members)
            self.directory_bytes_moved += old + self.jobs.directory_bytes(self.members + room)
            self.members += room
            self.merges += 1
            self._index(room)
            members -= room
        return total(calls)

    def _index(self, members: int) -> None:
        # As `rear.index.index` decides which segments a new one takes in.
        added = members
        while self.segments and self.segments[-1] <= max(2 * members, SMALL_MEMBERS):
            members += self.segments.pop()
        self.segments.append(members)
        self.index_rows_taken_over += members - added


# ---- the scavenger


@dataclass(frozen=True)
class Scavenged:
    """One scavenge: when it began and how long it took, what it found, and the calls that it made."""

    begun_seconds: float
    seconds: float
    pairs: int
    members: int
    calls: Calls


@dataclass
class Scavenger:
    """Merges pairs in rounds, as `rear.scavenger.scavenge` does, and adds up what that costs."""

    jobs: Jobs
    knobs: Knobs
    machine: Machine
    archive: Archive = field(init=False)

    def __post_init__(self) -> None:
        # All archives grow alike, so one stands for all.
        self.archive = Archive(self.jobs, self.knobs.max_members)

    def scavenge(self, *, begun_seconds: float, pairs: int, members: int, live: int) -> Scavenged:
        """Take ``pairs`` with ``members`` in all from the inbox, and look at ``live`` ones beside them."""
        jobs, machine = self.jobs, self.machine
        hosts = min(jobs.hosts, pairs)
        idle_hosts = jobs.hosts - hosts + jobs.empty_hosts
        calls = [SCAVENGE, HOST.times(hosts), IDLE_HOST.times(idle_hosts), LIVE_PAIR.times(live)]
        seconds = machine.scavenge_seconds + live * machine.look_seconds
        count = rounds(members) if pairs else 0
        for number in range(count):
            some = members * (number + 1) // count - members * number // count
            its_pairs = pairs * (number + 1) // count - pairs * number // count
            calls.append(self._round(its_pairs, some))
            seconds += self._round_seconds(its_pairs, some)
        done = total(calls)
        seconds += done.metadata * machine.call_seconds + done.syncs * machine.sync_seconds
        return Scavenged(begun_seconds, seconds, pairs, members, done)

    def _round(self, pairs: int, members: int) -> Calls:
        entries = pairs * self.jobs.archives_a_worker
        touched = min(self.jobs.archives, entries)
        merged = self.archive.merge(max(1, members // touched)).times(touched)
        return total([PAIR.times(pairs), PAIR_IN_ARCHIVE.times(entries), merged])

    def _round_seconds(self, pairs: int, members: int) -> float:
        jobs, machine = self.jobs, self.machine
        neighbours = pairs / min(jobs.hosts, pairs)
        processor = (
            members * machine.member_seconds
            + pairs * machine.pair_seconds
            + pairs * neighbours * machine.neighbour_seconds
        )
        journals = members * (JOURNAL_RECORD_BYTES + jobs.name_bytes)
        copied = members * jobs.member_bytes
        # Of larger members only the local headers are read, one request each.
        if jobs.member_bytes <= _NEAR_BYTES:
            headers = copied / machine.bytes_a_second
        else:
            headers = members * machine.call_seconds
        return processor + headers + (journals + copied) / machine.bytes_a_second

    def derived_seconds(self) -> float:
        """Seconds that all merges so far have spent on directories and indexes."""
        archive, machine, archives = self.archive, self.machine, self.jobs.archives
        rows = archive.index_rows_taken_over
        index_bytes = rows * (INDEX_ROW_BYTES + 2 * self.jobs.name_bytes)
        # Once more than it is written: its checksum goes to the intent.
        directory_bytes = 1.5 * archive.directory_bytes_moved
        moved = (directory_bytes + index_bytes) / machine.bytes_a_second
        return archives * (rows * machine.index_write_seconds + moved)


@dataclass
class Outcome:
    """What a simulation saw."""

    jobs: Jobs
    knobs: Knobs
    scavenges: list[Scavenged]
    archive: Archive
    written_seconds: float
    """When the last worker ended."""

    @property
    def inbox_pairs(self) -> int:
        """Most pairs in the inbox at the beginning of a scavenge, with those that are being written."""
        return max((one.pairs for one in self.scavenges), default=0) + self.jobs.workers

    @property
    def busy_share(self) -> float:
        """Share of the time of writing that the scavenger works; the rest it waits for ``every_seconds``."""
        during = [one for one in self.scavenges if one.begun_seconds < self.written_seconds]
        return sum(one.seconds for one in during) / max(1.0, sum(o.seconds + self.knobs.every_seconds for o in during))

    @property
    def behind_seconds(self) -> float:
        """How long after the last worker's end all was merged."""
        last = self.scavenges[-1]
        return last.begun_seconds + last.seconds - self.written_seconds

    @property
    def scavenger_calls(self) -> Calls:
        """Calls a second of the scavenger while it works."""
        return total(one.calls for one in self.scavenges).times(1 / sum(one.seconds for one in self.scavenges))


def simulate(jobs: Jobs, knobs: Knobs, machine: Machine = SERVER, *, limit: int = 200_000) -> Outcome:
    """Let workers write until all members are written, and a scavenger run every ``every_seconds`` until all is merged.

    Args:
        jobs: who writes what.
        knobs: what the user has set.
        machine: what things cost.
        limit: give up after so many scavenges.
    """
    span = pair_seconds(jobs, knobs)
    written = jobs.members / (jobs.workers * jobs.files_a_second)
    all_pairs = ended_pairs(jobs, knobs, written)
    scavenger = Scavenger(jobs, knobs, machine)
    scavenges: list[Scavenged] = []
    clock, taken, merged = knobs.every_seconds, 0, 0
    while taken < all_pairs and len(scavenges) < limit:
        if clock >= written:
            ended, members, live = ended_pairs(jobs, knobs, clock), jobs.members, 0
        else:
            ended = ended_pairs(jobs, knobs, clock)
            # Behind the pairs that have ended: what they hold, never what is still being written.
            members, live = min(jobs.members, int(ended * span * jobs.files_a_second)), jobs.workers
        before = scavenger.derived_seconds()
        one = scavenger.scavenge(begun_seconds=clock, pairs=ended - taken, members=members - merged, live=live)
        one = replace(one, seconds=one.seconds + scavenger.derived_seconds() - before)
        scavenges.append(one)
        taken, merged = ended, members
        clock += one.seconds + knobs.every_seconds
    return Outcome(jobs, knobs, scavenges, scavenger.archive, written)


def waiting_pairs(outcome: Outcome, seconds: float) -> int:
    """Return how many pairs have ended by then, and were not taken by a scavenge that had ended."""
    taken = sum(one.pairs for one in outcome.scavenges if one.begun_seconds + one.seconds <= seconds)
    return ended_pairs(outcome.jobs, outcome.knobs, seconds) - taken


def crash_seconds(members: float, pairs: int, machine: Machine, *, members_a_pair: int = 300) -> float:
    """Return what it takes to find out which members of crashed workers are merged already.

    Args:
        members: of the archive, and of those that it was renamed to.
        pairs: of crashed workers.
        machine: what things cost.
        members_a_pair: of each.
    """
    row_bytes = INDEX_ROW_BYTES + 2 * Jobs.name_bytes
    once_a_round = members * (machine.index_scan_seconds + row_bytes / machine.bytes_a_second)
    return once_a_round * rounds(pairs * members_a_pair)


def rounds(members: int) -> int:
    """Return in how many rounds a scavenge merges so many members."""
    return max(1, math.ceil(members / MEMBERS_A_ROUND))
