"""Claims of a leader: pairs that it has taken from the inbox, until it releases, buries or removes them.

All moves are renames of single files. A pair belongs to whoever has its journal in his folder: claiming renames the
journal first, releasing and burying rename it last. Whatever a crash leaves apart, the next leader brings together
again in its own folder. A pair is removed in the order temp archive, journal, notes: without its notes a journal would
tell of members that nobody has seen.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from rear.core.descent import status_of, staying_in
from rear.core.layout import PAIR_SUFFIXES, make_in_base, parse_pair
from rear.core.liveness import BIRTH_SECONDS, Observations, is_running, process_of
from rear.core.names import is_safe_component
from rear.core.parallel import Identity
from rear.core.records import Open, Pair
from rear.core.storage import FRESH_SUFFIX, Storage
from rear.errors import FutureVersionError, JournalError, NotLeaderError
from rear.events import Event, JournalFault, LeftAlone, Refused
from rear.journal.pending import with_notes
from rear.journal.reader import Journal, read_journal
from rear.scavenger.leader import Leadership
from rear.scavenger.notes import notes_of, write_notes
from rear.scavenger.owners import ALL, Owners, owner_of
from rear.scavenger.refusals import hosts_in, names_unless_shut, saved, tried

RESCUE_SUFFIX = ".rescue"
_GRAVEYARD_LEASES, _LISTING_SECONDS = 10, 1.0
GRAVEYARD_SECONDS = BIRTH_SECONDS
_FAULTS: dict[JournalFault, str] = {
    "missing": "its journal is missing",
    "no-first-record": "its journal has no first record",
    "first-record-damaged": "the first record of its journal is damaged",
    "made-by-another": "another user's scavenger had to make its journal anew",
    "file-record-damaged": "its journal does not say of which file its parts are",
}


@dataclass(slots=True)
class ClaimedPair:
    """A pair in this leader's claim folder.

    Attributes:
        state: ``closed``; ``crashed`` (its worker is seen to be gone); ``stale`` (it shows no sign of life, and may
            come back).
        data: another file that holds members of the pair; see `rear.scavenger.rescue`.
    """

    pair: Pair
    folder: Path
    journal: Journal
    state: str
    data: Path | None = None
    #: No worker can write to it any more: it was closed, or has waited in the graveyard.
    is_final: bool = False
    #: A leader before had claimed it: what that one has merged of it may not be noted.
    is_taken_over: bool = False
    #: Of its temp archive, open for the check.
    status: os.stat_result | None = None
    #: Of `temp_archive`, then: nothing else is read under its name afterwards.
    identity: Identity | None = None
    #: The pair's, as events and intents give it.
    name: str = field(init=False)
    #: Members of which only notes that were read say that they are done with.
    unproven: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.name = str(self.pair)
        self.unproven = set(self.journal.merged)

    @property
    def temp_archive(self) -> Path:
        """Path of the file that holds the members: the temp archive, or a rescue of some of its members."""
        return self.data or self.folder / f"{self.pair.stem}.zip"

    @property
    def opened(self) -> Open:
        """The journal's first record."""
        assert self.journal.opened is not None
        return self.journal.opened

    @property
    def is_trusted(self) -> bool:
        """Whether its worker ended it in good order, so that local headers alone are proof."""
        closed = self.journal.closed
        return closed is not None and closed.reason != "poisoned" and not self.journal.damage


class Orphan(NamedTuple):
    """A temp archive whose worker has ended, and whose journal is missing or does not even tell who wrote it."""

    pair: Pair
    code: JournalFault

    @property
    def reason(self) -> str:
        """What is wrong with its journal, in words."""
        return _FAULTS[self.code]


#: A folder is not there, or is something that rear has not made.
_ELSEWHERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_SHUT: Final = (errno.EACCES, errno.EPERM)


class Claims:
    """The claim folder of one leader."""

    def __init__(self, leadership: Leadership, *, owners: Owners = ALL, storage: Storage) -> None:
        self._layout = leadership.layout
        self._owners = owners
        self._leader = leadership.name
        self._prove = leadership.prove
        self._leaders_before: list[str] = []
        self._storage = storage
        self._buried = Observations(self._layout, topic="graveyard", storage=storage)
        #: When a folder was listed, and what was in it.
        self._listed: dict[Path, tuple[float, frozenset[str]]] = {}

    def adopt(self) -> Iterator[Event]:
        """Take over the pairs of leaders before; the renames and unlinks of one that comes back then find nothing.

        Yields what cannot be taken over, because it is shut: it stays where it is.
        """
        # As long as it is there, nobody has taken over: see `Leadership.prove`.
        make_in_base(self._layout.base, self._layout.claims / self._leader, storage=self._storage)
        leaders = filter(is_safe_component, self._storage.names(self._layout.claims))
        self._leaders_before = [leader for leader in leaders if leader != self._leader]
        # Now, after the listing: a leader after this one begins its term before it makes its folder.
        self._prove()
        for leader in self._leaders_before:
            for pair in self._pairs(self._layout.claims / leader, PAIR_SUFFIXES):
                if isinstance(pair, Event):
                    yield pair
                    continue
                if left := self._owners.left(pair, self._layout.claims / leader / pair.host):
                    yield left
                    continue
                source, target = self._layout.claims / leader / pair.host, self._layout.claim_folder(self._leader, pair)
                yield from tried(pair, "taken over", partial(self._move, pair, source, target), prove=self._prove)
            self._remove_unfinished(self._layout.claims / leader)
            self._remove_empty(self._layout.claims / leader)

    def adopted(self) -> Iterator[ClaimedPair | Orphan | Event]:
        """Yield the pairs that are in the claim folder already, each with all its files."""
        whole = dict.fromkeys(self._pairs(self._layout.claims / self._leader))
        present: dict[Path, set[str]] = {}
        for pair in whole:
            if isinstance(pair, Event):
                yield pair
                continue
            folder = self._layout.claim_folder(self._leader, pair)
            if folder not in present:
                present[folder] = set(self._storage.names(folder))
            # A pair whose other files are shut is not one that has lost them.
            gather = partial(self._gather, pair, folder, present[folder])
            refused = next(tried(pair, "brought together", gather, prove=self._prove), None)
            found = refused or read_pair(pair, folder, storage=self._storage)
            if isinstance(found, ClaimedPair):
                found.is_taken_over = True
            yield found
        for pair in self._pairs(self._layout.claims / self._leader, PAIR_SUFFIXES):
            if not isinstance(pair, Event) and pair not in whole:
                folder = self._layout.claim_folder(self._leader, pair)
                if folder not in present:
                    present[folder] = set(self._storage.names(folder))
                yield from self._without_journal(pair, folder, present[folder])

    def _gather(self, pair: Pair, folder: Path, present: set[str]) -> None:
        """Bring the other files of a pair to its journal; ``present`` is what the folder holds.

        The leader before may have died between the renames of a claim or a burial; or it is in the middle of them, and
        does not know yet that it was deposed: what was not at one place the first time is at another the second time.
        """
        self._prove()
        inbox, graveyard = self._layout.inbox_folder(pair), self._layout.graveyard_folder(pair)
        others = [self._layout.claims / leader / pair.host for leader in self._leaders_before]
        for suffix in ("zip", "merged"):
            name, shut = f"{pair.stem}.{suffix}", None
            for source in () if name in present else (inbox, graveyard, *others, inbox, graveyard):
                try:
                    self._storage.rename(source / name, folder / name)
                    break
                except OSError as error:
                    if error.errno not in _ELSEWHERE:
                        shut = error
            else:
                # Without its notes a pair that is taken over is looked up in its archives.
                if shut is not None and (suffix == "zip" or shut.errno not in _SHUT):
                    raise shut

    def _without_journal(self, pair: Pair, folder: Path, present: set[str]) -> Iterator[Orphan | Event]:
        if f"{pair.stem}.zip" in present:
            yield Orphan(pair, "missing")
        else:
            # The last file of a pair that was being removed.
            last = folder / f"{pair.stem}.merged"
            yield from tried(pair, "removed", partial(self._storage.unlink, last), prove=self._prove)

    def claim(self, waiting: Pair | Orphan) -> ClaimedPair | Orphan | Event:
        """Take a pair from the inbox, or say why that is not possible."""
        pair = waiting.pair if isinstance(waiting, Orphan) else waiting
        folder = self._layout.claim_folder(self._leader, pair)
        inbox, needs_journal = self._layout.inbox_folder(pair), isinstance(waiting, Pair)
        move = partial(self._move, pair, inbox, folder, needs_journal=needs_journal)
        refused = next(tried(pair, "claimed", move, prove=self._prove), None)
        if left := self._owners.left(pair, folder):
            self._move(pair, folder, inbox, journal_last=True)
        return left or refused or read_pair(pair, folder, storage=self._storage)

    def read(self, pair: Pair) -> ClaimedPair | Orphan | Event:
        """Read a pair in the claim folder again."""
        return read_pair(pair, self.folder(pair), storage=self._storage)

    def folder(self, pair: Pair) -> Path:
        """Folder of a pair that this leader has claimed."""
        return self._layout.claim_folder(self._leader, pair)

    def release(self, claimed: ClaimedPair) -> None:
        """Put a pair back into the inbox: some of its members cannot be merged now."""
        self._move(claimed.pair, claimed.folder, self._layout.inbox_folder(claimed.pair), journal_last=True)

    def note(self, claimed: ClaimedPair, sequences: list[int], *, target: str, intent: str) -> None:
        """Note on stable storage that members are in ``target``, so that they are never merged again.

        Raises:
            NotLeaderError: another leader has taken the pair.
            OSError: that failed.
        """
        if not sequences:
            return
        self.check_kept(claimed)
        path = claimed.folder / f"{claimed.pair.stem}.merged"
        records = notes_of(sequences, target, intent, claimed.name)
        try:
            with staying_in(claimed.folder):
                write_notes(path, claimed.journal, claimed.unproven, records, storage=self._storage)
            self._storage.sync_directory(claimed.folder)
        except FileNotFoundError:
            self.check_kept(claimed)
            raise

    def check_kept(self, claimed: ClaimedPair) -> None:
        """Make sure that a pair is still in the claim folder.

        Raises:
            NotLeaderError: another leader has taken it.
        """
        name = f"{claimed.pair.stem}.journal"
        if not self._is_kept(claimed.folder, name):
            raise NotLeaderError(f"{claimed.pair} was taken over by another scavenger: nothing more to do here")

    def _is_kept(self, folder: Path, name: str) -> bool:
        """Whether a file is in the claim folder: by a look at it, which old views of NFS may answer, and by a listing,
        which tells the truth; that one is of use for a moment, so that many pairs do not cost a listing each.
        """
        listed_at, names = self._listed.get(folder, (-_LISTING_SECONDS, frozenset[str]()))
        if name in names and self._storage.uptime() - listed_at < _LISTING_SECONDS and os.path.lexists(folder / name):
            return True
        listed_at, names = self._storage.uptime(), frozenset(self._storage.names(folder))
        self._listed[folder] = listed_at, names
        return name in names

    def clear(self, claimed: ClaimedPair) -> None:
        """Remove a pair whose members are all accounted for; bury it when its worker may still write to it.

        Also one whose worker is seen to be gone: what is seen may be wrong (a restored checkpoint, a copied machine).
        """
        if not claimed.is_final:
            self._move(claimed.pair, claimed.folder, self._layout.graveyard_folder(claimed.pair), journal_last=True)
        else:
            remove_pair(claimed.pair, claimed.folder, storage=self._storage)

    def exhumed(self) -> Iterator[ClaimedPair | Orphan | Event]:
        """Claim buried pairs in which late members were found, and those to which no worker can write any more.

        They wait out a retention longer than any lease; where a worker is seen to be gone, one lease.
        """
        ready: dict[Pair, bool] = {}
        for pair in self._pairs(self._layout.graveyard):
            if isinstance(pair, Event):
                yield pair
                continue
            if self._owners.left(pair, self._layout.graveyard_folder(pair)):
                continue
            journal = load_journal(pair, self._layout.graveyard_folder(pair), storage=self._storage)
            if isinstance(journal, Event):
                yield journal
            elif journal is not None:
                is_over = self._is_over(pair, journal)
                if journal.pending() or is_over:
                    ready[pair] = is_over
        # Whatever stops the merges to come, what was seen has its time.
        yield from saved(self._buried)
        for pair, is_over in ready.items():
            folder = self._layout.claim_folder(self._leader, pair)
            move = partial(self._move, pair, self._layout.graveyard_folder(pair), folder, needs_journal=True)
            if refused := next(tried(pair, "exhumed", move, prove=self._prove), None):
                yield refused
                continue
            claimed = read_pair(pair, folder, storage=self._storage)
            if isinstance(claimed, ClaimedPair) and is_over:
                claimed.state, claimed.is_final = "crashed", True
            if not isinstance(claimed, Event):
                yield claimed

    def _is_over(self, pair: Pair, journal: Journal) -> bool:
        opened = journal.opened
        if journal.closed is not None or opened is None:
            return True
        seen = self._buried.unchanged_seconds(str(pair), str(journal.length))
        # One that lives after all goes on beating.
        is_gone = is_running(process_of(opened)) is False
        lease = opened.lease_seconds
        return seen >= (lease if is_gone else max(GRAVEYARD_SECONDS, _GRAVEYARD_LEASES * lease))

    def finish(self) -> None:
        """Remove the claim folder, which is empty after a scavenge that ended well."""
        self._remove_empty(self._layout.claims / self._leader)

    def _pairs(self, folder: Path, suffixes: tuple[str, ...] = ("journal",)) -> list[Pair | Refused]:
        """Return the pairs of which ``folder`` has a file with one of the suffixes, in the order of their names.

        And what there is to say about folders that are shut.
        """
        pairs: dict[Pair | Refused, None] = {}
        for found in hosts_in(self._layout, folder, storage=self._storage):
            if isinstance(found, Refused):
                pairs[found] = None
                continue
            host, names = found
            for name in names:
                pair = parse_pair(host, name) if name.endswith(suffixes) else None
                if pair is not None:
                    pairs[pair] = None
        return list(pairs)

    def _move(
        self, pair: Pair, source: Path, target: Path, *, journal_last: bool = False, needs_journal: bool = False
    ) -> None:
        make_in_base(self._layout.base, target, storage=self._storage)
        moved: list[str] = []
        with staying_in(source, target):
            try:
                for suffix in sorted(PAIR_SUFFIXES, key=lambda suffix: (suffix == "journal") is journal_last):
                    name = f"{pair.stem}.{suffix}"
                    try:
                        self._storage.rename(source / name, target / name)
                        moved.append(name)
                    except FileNotFoundError:
                        # Whoever has the journal owns the pair. NFS may also deny a rename that it did: only a listing
                        # tells.
                        if needs_journal and suffix == "journal" and name not in self._storage.names(target):
                            return
            except OSError:
                # One file of it is shut: all of the pair stays where it was.
                for name in reversed(moved):
                    with contextlib.suppress(OSError):
                        self._storage.rename(target / name, source / name)
                raise

    def _remove_unfinished(self, folder: Path) -> None:
        for host in filter(is_safe_component, names_unless_shut(folder, storage=self._storage)):
            for name in names_unless_shut(folder / host, storage=self._storage):
                with contextlib.suppress(OSError):
                    if name.endswith((RESCUE_SUFFIX, FRESH_SUFFIX)) and self._owners.takes(folder / host / name):
                        self._storage.unlink(folder / host / name)

    def _remove_empty(self, folder: Path) -> None:
        for host in names_unless_shut(folder, storage=self._storage):
            with contextlib.suppress(OSError):
                self._storage.remove_directory(folder / host)
        with contextlib.suppress(OSError):
            self._storage.remove_directory(folder)


def load_journal(
    pair: Pair, folder: Path, read: Callable[..., Journal] = read_journal, *, storage: Storage
) -> Journal | Event | None:
    """Read a journal, and with all of it what was noted about it; ``None`` when it has gone."""
    try:
        path = folder / f"{pair.stem}.journal"
        with staying_in(folder):
            journal = read(path, storage=storage)
            if read is read_journal:
                journal = with_notes(journal, path, storage=storage)
    except FileNotFoundError:
        return None
    except (FutureVersionError, JournalError, OSError) as error:
        return Refused(str(pair), f"its journal cannot be used: {error}; left as it is")
    opened = journal.opened
    if opened is not None and Pair(opened.host, opened.worker, opened.rotation) != pair:
        return Refused(str(pair), "its journal says that it belongs to another temp archive; left as it is")
    return journal


def read_pair(pair: Pair, folder: Path, *, storage: Storage) -> ClaimedPair | Orphan | Event:
    """Read a pair where it is, or say why that is not possible."""
    journal = load_journal(pair, folder, storage=storage)
    if journal is None:
        if f"{pair.stem}.zip" in storage.names(folder):
            return Orphan(pair, "missing")
        return taken(pair)
    if isinstance(journal, Event):
        return journal
    if journal.opened is None:
        return without_first_record(pair, journal)
    if journal.lacks_file:
        return Orphan(pair, "file-record-damaged")
    if journal.opened.created_ns == 0 and _is_of_other(pair, folder, journal):
        return Orphan(pair, "made-by-another")
    if journal.closed is not None:
        state = "closed"
    else:
        state = "crashed" if is_running(process_of(journal.opened)) is False else "stale"
    return ClaimedPair(pair, folder, journal, state, is_final=state == "closed")


def _is_of_other(pair: Pair, folder: Path, journal: Journal) -> bool:
    """Whether another scavenger's user made a journal anew: it counts for that one alone."""
    with contextlib.suppress(FileNotFoundError):
        return status_of(folder / f"{pair.stem}.zip").st_uid != owner_of(journal)
    return False


def remove_pair(pair: Pair, folder: Path, *, storage: Storage) -> None:
    """Remove the files of a pair, its notes last."""
    with staying_in(folder):
        for suffix in ("zip", "journal", "merged"):
            with contextlib.suppress(FileNotFoundError):
                storage.unlink(folder / f"{pair.stem}.{suffix}")


def without_first_record(pair: Pair, journal: Journal) -> Orphan:
    """Return a pair whose journal does not say who wrote it."""
    return Orphan(pair, "first-record-damaged" if journal.damage else "no-first-record")


def taken(pair: Pair) -> LeftAlone:
    """Return the event that tells of a pair that has gone."""
    return LeftAlone(str(pair), "taken by somebody else", "taken")
