"""What waits under a base, at a glance: who wrote each pair, in what state it is, how much it holds.

Journals are not read through: who and when stands in the first record, how much in the last one. The members of a pair
that is still written are counted by the sequence numbers of its first and last append record, so that number may be a
little too high where members were aborted.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from rear.core.layout import PAIR_SUFFIXES, Layout, parse_pair
from rear.core.liveness import BIRTH_SECONDS, Observations, Process, is_running, process_of, process_of_worker
from rear.core.names import is_litter, is_safe_component
from rear.core.records import Close, Open, Pair
from rear.core.storage import Storage
from rear.errors import JournalError
from rear.journal.reader import SKIM_BYTES, read_notes, skim_journal
from rear.scavenger.refusals import names_in

State = Literal["live", "unconfirmed", "stale", "crashed", "closed", "claimed", "unusable"]
"""Of a pair: its worker lives; nobody on this host can tell yet; it showed no sign of life for its lease; it is gone;
it has ended the pair; a scavenger has it; its journal is missing or cannot be used, or the file is none of rear's.
"""

_LARGE_TAIL_BYTES: Final = 1 << 20
"""So much is read of a journal whose last records tell of no member."""
_NOTES_LIMIT_BYTES: Final = 4 << 20
_VANISHED: Final = frozenset({errno.ENOENT, errno.ESTALE})


class WaitingPair(NamedTuple):
    """One pair, or file without one, in the inbox or claimed."""

    host: str
    worker: str
    state: State
    members: int = 0
    size_bytes: int = 0
    created_ns: int | None = None
    reason: str = ""


class Glance(NamedTuple):
    """What the ends of a journal say."""

    opened: Open | None
    closed: Close | None
    members: int
    size_bytes: int
    #: What changes while its worker lives; the same text that a scavenge notes: see `rear.scavenger.claims`.
    sign_of_life: str


class Signs:
    """Signs of life of processes that cannot be seen from here, as far as this host has watched them.

    What scavenges of this host have noted under ``topic`` (``workers``, ``leader``) counts, and what was seen earlier
    through this object; nothing is written.
    """

    def __init__(self, layout: Layout, topic: str, storage: Storage) -> None:
        self._observations = Observations(layout, topic=topic, storage=storage)
        self._storage = storage
        self._seen: dict[str, tuple[str, float, bool]] = {}

    def state(self, name: str, beat: str, lease_seconds: float) -> Literal["live", "unconfirmed", "stale"]:
        """Note that ``name`` shows ``beat`` now, and say what that tells of it."""
        now = self._storage.uptime()
        unchanged_seconds = self._observations.unchanged_seconds(name, beat)
        before, since, moved = self._seen.get(name, (beat, now - unchanged_seconds, False))
        if before != beat:
            since, moved = now, True
        self._seen[name] = beat, since, moved
        if now - since >= lease_seconds:
            return "stale"
        return "live" if moved else "unconfirmed"

    def unchanged_seconds(self, name: str) -> float:
        """Return for how long that has been so, at the last look."""
        return self._storage.uptime() - self._seen[name][1]


class Backlog:
    """Looks at the pairs of a base, again and again if need be."""

    def __init__(self, layout: Layout, *, storage: Storage) -> None:
        self._layout = layout
        self._storage = storage
        self._signs = Signs(layout, "workers", storage)
        self._running: dict[Process, bool | None] = {}

    def look(self) -> Iterator[WaitingPair]:
        """Yield all that is in the inbox and in the folders of claims.

        Raises:
            OSError: a folder cannot be read.
        """
        self._running = {}
        yield from self._folder(self._layout.inbox, is_claimed=False)
        for leader in self._storage.names(self._layout.claims):
            if is_safe_component(leader):
                try:
                    yield from self._folder(self._layout.claims / leader, is_claimed=True)
                except OSError as error:
                    yield WaitingPair(leader, "", "unusable", reason=f"claims/{leader}: {error.strerror}")

    def _folder(self, folder: Path, *, is_claimed: bool) -> Iterator[WaitingPair]:
        for host in self._storage.names(folder):
            if is_litter(host):
                continue
            if not is_safe_component(host):
                yield WaitingPair(host, "", "unusable", reason=f"{host} is not a name that rear gives")
                continue
            try:
                names = set(names_in(folder / host, storage=self._storage))
            except OSError as error:
                yield WaitingPair(host, "", "unusable", reason=f"{host}, all of the folder: {error.strerror}")
                continue
            for name in sorted(names):
                pair = parse_pair(host, name)
                if pair is None:
                    # A claim folder also has files of the scavenger at work.
                    if not is_claimed and not is_litter(name):
                        yield WaitingPair(host, "", "unusable", reason=f"{host}/{name} is not a name that rear gives")
                elif name.endswith(".journal"):
                    waiting = self._pair(pair, folder / host, names, is_claimed=is_claimed)
                    if waiting is not None:
                        yield waiting
                elif name.endswith(".zip") and f"{pair.stem}.{PAIR_SUFFIXES[0]}" not in names and not is_claimed:
                    yield WaitingPair(host, pair.worker, "unusable", reason=f"{pair} has no journal")

    def _pair(self, pair: Pair, folder: Path, names: set[str], *, is_claimed: bool) -> WaitingPair | None:
        path = folder / f"{pair.stem}.journal"
        try:
            glance = glance_at(path, storage=self._storage)
            has_notes = f"{pair.stem}.merged" in names
            members = glance.members - (self._merged(folder / f"{pair.stem}.merged") if has_notes else 0)
            state = "claimed" if is_claimed else self._state(pair, glance, folder, names)
        except OSError as error:
            if error.errno in _VANISHED:
                # Claimed, merged or released since it was listed.
                return None
            return WaitingPair(pair.host, pair.worker, "unusable", reason=f"{pair}: {error.strerror}")
        except JournalError as error:
            return WaitingPair(pair.host, pair.worker, "unusable", reason=f"{pair}: {error}")
        created_ns = glance.opened.created_ns if glance.opened else None
        reason = ""
        if glance.opened is None and state == "unconfirmed":
            left = BIRTH_SECONDS - self._signs.unchanged_seconds(str(pair))
            reason = f"{pair} has no first record in its journal: without a sign of life for another {left:.0f} s"
            reason += " a scavenge takes it for dead"
        return WaitingPair(pair.host, pair.worker, state, max(0, members), glance.size_bytes, created_ns, reason)

    def _merged(self, path: Path) -> int:
        try:
            if self._storage.size_of(path) > _NOTES_LIMIT_BYTES:
                return 0
        except FileNotFoundError:
            return 0
        return len(read_notes(path, storage=self._storage).merged)

    def _state(self, pair: Pair, glance: Glance, folder: Path, names: set[str]) -> State:
        if glance.closed is not None:
            return "closed"
        opened = glance.opened
        if opened is None:
            # Its worker has just begun, or died doing so.
            process = process_of_worker(pair.host, pair.worker)
            running = None if process is None else self._is_running(process)
            if running is not None:
                return "live" if running else "crashed"
            # As a scavenge notes it.
            path = folder / f"{pair.stem}.zip"
            length = self._storage.size_of(path) if path.name in names else 0
            return self._signs.state(str(pair), f"/{length}", BIRTH_SECONDS)
        running = self._is_running(process_of(opened))
        if running is not None:
            return "live" if running else "crashed"
        return self._signs.state(str(pair), glance.sign_of_life, opened.lease_seconds)

    def _is_running(self, process: Process) -> bool | None:
        if process not in self._running:
            self._running[process] = is_running(process)
        return self._running[process]


def glance_at(path: Path, *, storage: Storage) -> Glance:
    """Read the first and the last records of a journal.

    Raises:
        FutureVersionError: a newer rear wrote it.
        OSError: it cannot be read.
    """
    for tail_bytes in (SKIM_BYTES, _LARGE_TAIL_BYTES):
        journal = skim_journal(path, tail_bytes=tail_bytes, storage=storage)
        # A file that is flushed counts when it is complete.
        members = [append for append in journal.appends.values() if append is not journal.flushed]
        # The first one stands at the begin: the last one is there as soon as there is a second.
        if len(members) > 1 or journal.closed or journal.length <= tail_bytes:
            break
    sign = f"{journal.beats}/{journal.length}"
    if journal.closed is not None:
        return Glance(journal.opened, journal.closed, journal.closed.members, journal.closed.length, sign)
    if not members:
        return Glance(journal.opened, None, 0, 0, sign)
    first, last = members[0], members[-1]
    return Glance(journal.opened, None, max(1, last.sequence - first.sequence + 1), last.offset + last.length, sign)
