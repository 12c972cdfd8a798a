"""A base at a glance: who works, what waits, what was done last, and what needs a person.

Only a look: nothing is changed, no lock is taken, no observation is written. So what it says may be a moment old, and
a pair that moves between two folders meanwhile may be missing or counted twice.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from rear.core.descent import open_folder
from rear.core.layout import has_state, layout_of
from rear.core.liveness import is_running
from rear.core.storage import LOCAL, Storage, StrPath, opened
from rear.core.text import counted
from rear.diagnostics.backlog import Backlog, Signs, State, WaitingPair
from rear.errors import FutureVersionError, JournalError, UnfinishedIntentError
from rear.journal.intent import read_begin
from rear.scavenger.leader import read_owner
from rear.scavenger.refusals import unusable_parts
from rear.scavenger.report import ReportSummary, last_summaries

_Seen = TypeVar("_Seen")

JSON_VERSION: Final = 1
REPORTS_SHOWN: Final = 5
REASONS_SHOWN: Final = 10
"""Of things that cannot be used; all are counted."""
FILES_LIMIT: Final = 100_000
"""So many files of lost+found and of the graveyard are counted, at most."""

#: What a worker is when its pairs differ: the first of these that one of them shows.
_WORKER_STATES: Final[tuple[State, ...]] = ("live", "unconfirmed", "stale", "crashed")
BACKLOG_STATES: Final[tuple[State, ...]] = (*_WORKER_STATES, "closed", "claimed")


@dataclass(slots=True)
class Pile:
    """Temp archives, with how much is in them."""

    temp_archives: int = 0
    members: int = 0
    size_bytes: int = 0

    def add(self, waiting: WaitingPair) -> None:
        """Count one more."""
        self.temp_archives += 1
        self.members += waiting.members
        self.size_bytes += waiting.size_bytes


@dataclass(slots=True)
class Host:
    """Workers of one host by state, and all of its temp archives."""

    host: str
    live: int = 0
    unconfirmed: int = 0
    stale: int = 0
    crashed: int = 0
    backlog: Pile = field(default_factory=Pile)


class Leader(NamedTuple):
    """Who leads; ``state`` is ``crashed`` when that process is gone: its scavenge was interrupted."""

    name: str
    host: str
    pid: int
    state: Literal["live", "unconfirmed", "stale", "crashed"]
    since_ns: int | None


class Files(NamedTuple):
    """Files of a folder; ``is_complete`` is false when there were more than are counted."""

    items: int
    size_bytes: int
    is_complete: bool


NO_FILES: Final = Files(0, 0, is_complete=True)


class Space(NamedTuple):
    """What is free on the file system, for this user; inodes are ``None`` where it does not count them."""

    size_bytes: int
    free_bytes: int
    inodes: int | None
    free_inodes: int | None


class Attention(NamedTuple):
    """Something that a person or a scavenge should see to."""

    code: str
    detail: str


ATTENTION_CODES: Final = (
    "crashed_workers",
    "leader_gone",
    "intents_left",
    "unusable_files",
    "shut",
    "refused",
    "lost_and_found",
    "no_space",
)


@dataclass(frozen=True, slots=True)
class BaseStatus:
    """What a base looks like now.

    Attributes:
        base: its absolute path.
        taken_ns: when this was seen.
        is_used: whether any worker has written there.
        hosts: with workers or temp archives.
        backlog: what is not in a final archive yet: ``live`` and ``unconfirmed`` is still written, ``closed`` waits
            for a scavenge, ``crashed`` and ``stale`` too, ``claimed`` is being merged.
        oldest_ns: when the oldest temp archive of the backlog was begun, by the clock of its host.
        unusable: files in the inbox that are none of rear's, or whose journal is missing or cannot be read.
        unusable_reasons: of some of them.
        waiting_reasons: of some temp archives that do not say yet who writes them, and until when a scavenge waits.
        leader: the scavenger at work.
        scavenges: the last ones that did or found something, the newest first.
        intents: final archives with a merge that is under way, or that died.
        lost_and_found: what stands there.
        graveyard: merged pairs that wait for their retention to end.
        space: of the file system.
        shut: what this user may not read, or nobody can, and why: it is not counted.
        attention: empty when all is well.
    """

    base: str
    taken_ns: int
    is_used: bool
    hosts: tuple[Host, ...] = ()
    backlog: dict[State, Pile] = field(default_factory=lambda: {state: Pile() for state in BACKLOG_STATES})
    oldest_ns: int | None = None
    unusable: int = 0
    unusable_reasons: tuple[str, ...] = ()
    waiting_reasons: tuple[str, ...] = ()
    leader: Leader | None = None
    scavenges: tuple[ReportSummary, ...] = ()
    intents: tuple[str, ...] = ()
    lost_and_found: Files = NO_FILES
    graveyard: Files = NO_FILES
    space: Space | None = None
    shut: tuple[str, ...] = ()
    attention: tuple[Attention, ...] = ()

    @property
    def total(self) -> Pile:
        """All of the backlog."""
        total = Pile()
        for pile in self.backlog.values():
            total.temp_archives += pile.temp_archives
            total.members += pile.members
            total.size_bytes += pile.size_bytes
        return total

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object, with the version of its shape and its kind first."""
        found = asdict(self)
        for name in ("leader", "lost_and_found", "graveyard", "space"):
            value = getattr(self, name)
            found[name] = None if value is None else value._asdict()
        found["scavenges"] = [summary._asdict() for summary in self.scavenges]
        found["attention"] = [attention._asdict() for attention in self.attention]
        return {"version": JSON_VERSION, "kind": "status", **found, "total": asdict(self.total)}


class Observer:
    """Looks at a base; the second look of one observer can tell whether a worker elsewhere has shown a sign of life.

    Args:
        base: directory on the shared file system.
        storage: the file system.

    Raises:
        BaseError: there is no such base.
        OSError: it cannot be looked at.
    """

    def __init__(self, base: StrPath, *, storage: Storage = LOCAL) -> None:
        self._layout = layout_of(base)
        self._storage = storage
        self._backlog = Backlog(self._layout, storage=storage)
        self._signs = Signs(self._layout, "leader", storage)
        #: What cannot be looked at, and why.
        self._shut: dict[str, str] = {}

    def look(self) -> BaseStatus:
        """Return what the base looks like now.

        Raises:
            BaseError: the base has gone.
            OSError: it cannot be looked at.
        """
        self._shut = {}
        layout = layout_of(self._layout.base)
        base, taken_ns, space = str(layout.base), time.time_ns(), _space(layout.base)
        if not has_state(layout):
            return BaseStatus(base, taken_ns, is_used=False, space=space)
        self._shut.update((part.subject, part.reason) for part in unusable_parts(layout, storage=self._storage))
        # First: a merge that ends meanwhile leaves a leader without intents, not intents without a leader.
        intents = self._unless_shut(layout.intents, lambda: tuple(self._intents()), tuple[str, ...]())
        inbox = _Inbox()
        self._unless_shut(layout.inbox, lambda: inbox.add_all(self._backlog.look()), None)
        status = BaseStatus(
            base,
            taken_ns,
            is_used=True,
            hosts=tuple(inbox.finished_hosts()),
            backlog=inbox.piles,
            oldest_ns=inbox.oldest_ns,
            unusable=inbox.unusable,
            unusable_reasons=tuple(inbox.reasons),
            waiting_reasons=tuple(inbox.waits),
            leader=self._unless_shut(layout.lock, self._leader, None),
            scavenges=self._unless_shut(
                layout.reports, lambda: tuple(last_summaries(layout, REPORTS_SHOWN, storage=self._storage)), ()
            ),
            intents=intents,
            lost_and_found=self._unless_shut(
                layout.lost_and_found, lambda: _files(layout.lost_and_found, ".json"), NO_FILES
            ),
            graveyard=self._unless_shut(layout.graveyard, lambda: _files(layout.graveyard, ".journal"), NO_FILES),
            space=space,
        )
        status = replace(status, shut=tuple(f"{where}: {reason}" for where, reason in self._shut.items()))
        return replace(status, attention=tuple(_attention(status)))

    def _unless_shut(self, path: Path, look: Callable[[], _Seen], otherwise: _Seen) -> _Seen:
        """Look at one thing; when that cannot be done, note it, and go on with the others."""
        try:
            return look()
        except OSError as error:
            where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else path
            where = where.relative_to(self._layout.base) if where.is_relative_to(self._layout.base) else where
            self._shut.setdefault(os.fspath(where), error.strerror or str(error))
            return otherwise

    def _leader(self) -> Leader | None:
        owner = read_owner(self._layout, storage=self._storage)
        if owner is None:
            return None
        running = is_running(owner.process)
        state: Literal["live", "unconfirmed", "stale", "crashed"] = "live" if running else "crashed"
        if running is None:
            state = self._signs.state(owner.leader, owner.beat, owner.lease_seconds)
        return Leader(owner.leader, owner.process.host, owner.process.pid, state, owner.since_ns)

    def _intents(self) -> Iterator[str]:
        for name in self._storage.names(self._layout.intents):
            if not name.endswith(".intent"):
                continue
            try:
                with opened(self._layout.intents / name, self._storage) as descriptor:
                    yield read_begin(descriptor, storage=self._storage).archive
            except FileNotFoundError:
                continue
            except (JournalError, FutureVersionError, UnfinishedIntentError, OSError):
                yield name


def look_at(base: StrPath, *, storage: Storage = LOCAL) -> BaseStatus:
    """Return what a base looks like now; nothing is changed. Arguments and errors are those of `Observer`."""
    return Observer(base, storage=storage).look()


class _Inbox:
    """Adds up what waits."""

    def __init__(self) -> None:
        self.piles: dict[State, Pile] = {state: Pile() for state in BACKLOG_STATES}
        self.oldest_ns: int | None = None
        self.unusable = 0
        self.reasons: list[str] = []
        self.waits: list[str] = []
        self._hosts: dict[str, Host] = {}
        self._workers: dict[tuple[str, str], set[State]] = {}

    def add_all(self, backlog: Iterable[WaitingPair]) -> None:
        """Take all that waits."""
        for waiting in backlog:
            self.add(waiting)

    def add(self, waiting: WaitingPair) -> None:
        """Take one more file or pair."""
        if waiting.state == "unusable":
            self.unusable += 1
            if len(self.reasons) < REASONS_SHOWN:
                self.reasons.append(waiting.reason)
            return
        if waiting.reason and len(self.waits) < REASONS_SHOWN:
            self.waits.append(waiting.reason)
        self.piles[waiting.state].add(waiting)
        self._hosts.setdefault(waiting.host, Host(waiting.host)).backlog.add(waiting)
        if waiting.state in _WORKER_STATES:
            self._workers.setdefault((waiting.host, waiting.worker), set()).add(waiting.state)
        if waiting.created_ns:
            self.oldest_ns = min(waiting.created_ns, self.oldest_ns or waiting.created_ns)

    def finished_hosts(self) -> list[Host]:
        """Return all hosts, by name, with their workers counted."""
        for (host, _), states in self._workers.items():
            state = next(state for state in _WORKER_STATES if state in states)
            setattr(self._hosts[host], state, getattr(self._hosts[host], state) + 1)
        return sorted(self._hosts.values(), key=lambda host: host.host)


def _files(folder: Path, suffix: str) -> Files:
    """Count the files below a folder of folders: those with a suffix are the items, all have a size."""
    items = size_bytes = seen = 0
    for entry in _entries(folder, depth=2):
        seen += 1
        if seen > FILES_LIMIT:
            return Files(items, size_bytes, is_complete=False)
        items += entry.name.endswith(suffix)
        try:
            size_bytes += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return Files(items, size_bytes, is_complete=True)


def _entries(folder: StrPath, depth: int, directory: int | None = None) -> Iterator[os.DirEntry[str]]:
    with contextlib.ExitStack() as stack:
        try:
            descriptor = open_folder(folder, directory=directory)
        except FileNotFoundError:
            return
        stack.callback(os.close, descriptor)
        for entry in stack.enter_context(os.scandir(descriptor)):
            if not entry.is_dir(follow_symlinks=False):
                yield entry
            elif depth > 1:
                with contextlib.suppress(PermissionError):
                    # The rest is counted.
                    yield from _entries(entry.name, depth - 1, descriptor)


def _space(folder: Path) -> Space:
    found = os.statvfs(folder)
    has_inodes = found.f_files > 0
    return Space(
        found.f_blocks * found.f_frsize,
        found.f_bavail * found.f_frsize,
        found.f_files if has_inodes else None,
        found.f_favail if has_inodes else None,
    )


def _attention(status: BaseStatus) -> Iterator[Attention]:
    gone = sum(host.crashed + host.stale for host in status.hosts)
    if gone:
        members = status.backlog["crashed"].members + status.backlog["stale"].members
        yield Attention(
            "crashed_workers", f"{counted(gone, 'crashed worker')} left {counted(members, 'member')}: run rear scavenge"
        )
    leader = status.leader
    is_led = leader is not None and leader.state in ("live", "unconfirmed")
    if leader is not None and not is_led:
        what = "is gone" if leader.state == "crashed" else "shows no sign of life"
        yield Attention(
            "leader_gone",
            f"the scavenger {leader.pid} on {leader.host} {what}: run rear scavenge, it goes on from there",
        )
    if status.intents and not is_led:
        died = counted(len(status.intents), "merge")
        yield Attention("intents_left", f"{died} died: run rear scavenge, it undoes or completes them")
    if status.unusable and not is_led:
        # While a scavenger works, a pair may just be on its way.
        files = counted(status.unusable, "file")
        yield Attention("unusable_files", f"{files} in the inbox cannot be used as they are: run rear fsck")
    if status.shut:
        yield Attention("shut", f"{counted(len(status.shut), 'thing')} cannot be looked at: {'; '.join(status.shut)}")
    last = status.scavenges[0] if status.scavenges else None
    if last is not None and last.refused > 0:
        what = "check" if last.totals.get("kind") == "checked" else "scavenge"
        yield Attention(
            "refused", f"the last {what} left {counted(last.refused, 'thing')} as found: see .rear/reports/{last.name}"
        )
    if status.lost_and_found.items:
        items = counted(status.lost_and_found.items, "item")
        yield Attention(
            "lost_and_found", f"{items} in .rear/lost+found: read the notes (*.json), then move them elsewhere"
        )
    if status.space is not None and status.space.free_bytes < status.total.size_bytes:
        yield Attention("no_space", "less space is free than the backlog needs when it is merged: make room")
