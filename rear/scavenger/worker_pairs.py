"""Other pairs of a worker, as they are when a round begins: in the inbox, claimed, and in the graveyard.

Each folder is listed, and each file read, once a round, however many of its pairs ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from rear.core.layout import Layout, parse_pair
from rear.core.names import STATE
from rear.core.records import Append, Pair
from rear.core.storage import Storage
from rear.errors import JournalError
from rear.journal.reader import Journal, read_notes
from rear.scavenger.claims import ClaimedPair, Claims, load_journal
from rear.scavenger.owners import owner_of
from rear.scavenger.refusals import names_unless_shut

_Worker = tuple[str, str, int]
_Copy = tuple[int, str, str, int, int]
"""A member by its number, place, size and CRC-32."""


class WorkerPairs:
    """The pairs of the workers of one round, of that round and elsewhere.

    Each file is read once a round, and of it nothing is held but what members of the round have in common with it.
    """

    def __init__(self, layout: Layout, claims: Claims, batch: Iterable[ClaimedPair], *, storage: Storage) -> None:
        self._layout = layout
        self._claims = claims
        self._storage = storage
        self._by_worker: dict[_Worker, list[ClaimedPair]] = {}
        for claimed in batch:
            self._by_worker.setdefault(worker_of(claimed), []).append(claimed)
        self._listed: dict[Path, dict[str, list[tuple[Pair, str]]]] = {}
        #: Of each worker, in which pair its members were written last, by rotation.
        self._last: dict[_Worker, dict[_Copy, int]] = {}
        self._given_up: dict[_Worker, dict[int, int]] = {}

    def written_later(self, claimed: ClaimedPair, append: Append) -> bool:
        """Whether the worker and writer of a pair wrote a member again in a later one, wherever that waits: in this
        round, in the inbox, claimed for a later round, or in the graveyard.
        """
        worker = worker_of(claimed)
        if worker not in self._last:
            self._last[worker] = self._last_copies(worker)
        return self._last[worker][_copy(append)] > claimed.pair.rotation

    def _last_copies(self, worker: _Worker) -> dict[_Copy, int]:
        here = self._by_worker[worker]
        last = {_copy(append): -1 for claimed in here for append in claimed.journal.appends.values()}
        for claimed in here:
            _note_last(last, claimed.journal, claimed.pair.rotation)
        besides, first = {claimed.pair for claimed in here}, min(claimed.pair.rotation for claimed in here)
        pair = here[0].pair
        for folder in (self._layout.graveyard_folder(pair), self._claims.folder(pair), self._layout.inbox_folder(pair)):
            for other in self._pairs(pair, folder, "journal", self._storage.names):
                if other.rotation > first and other not in besides:
                    journal = load_journal(other, folder, storage=self._storage)
                    is_whole = isinstance(journal, Journal) and journal.opened is not None
                    if isinstance(journal, Journal) and is_whole and owner_of(journal) == worker[2]:
                        _note_last(last, journal, other.rotation)
        return last

    def was_given_up(self, claimed: ClaimedPair, sequence: int) -> bool:
        """Whether a member went to lost+found from an earlier pair of its worker, which is buried."""
        worker = worker_of(claimed)
        if worker not in self._given_up:
            self._given_up[worker] = self._first_given_up(worker)
        return self._given_up[worker].get(sequence, claimed.pair.rotation) < claimed.pair.rotation

    def _first_given_up(self, worker: _Worker) -> dict[int, int]:
        """Return in which buried pair members that the round holds were given up first, by rotation."""
        here = [claimed for claimed in self._by_worker[worker] if claimed.opened.repeats_from is not None]
        wanted = {sequence for claimed in here for sequence in claimed.journal.appends}
        last = max(claimed.pair.rotation for claimed in here)
        pair, first = here[0].pair, dict[int, int]()
        folder, kept = self._layout.graveyard_folder(pair), f"{STATE}/{self._layout.lost_and_found.name}/"
        list_names = partial(names_unless_shut, storage=self._storage)
        for other in self._pairs(pair, folder, "merged", list_names):
            if other.rotation < last:
                try:
                    notes = read_notes(folder / f"{other.stem}.merged", storage=self._storage).merged
                except (OSError, JournalError):
                    # Told when that pair itself is looked at.
                    continue
                for sequence in wanted & notes.keys():
                    if notes[sequence].target.startswith(kept):
                        first[sequence] = min(other.rotation, first.get(sequence, other.rotation))
        return first

    def _pairs(self, pair: Pair, folder: Path, suffix: str, list_names: Callable[[Path], list[str]]) -> Iterator[Pair]:
        by_worker = self._listed.get(folder)
        if by_worker is None:
            by_worker = {}
            for name in list_names(folder):
                if found := parse_pair(pair.host, name):
                    by_worker.setdefault(found.worker, []).append((found, name))
            self._listed[folder] = by_worker
        return (other for other, name in by_worker.get(pair.worker, []) if name.endswith(suffix))


def worker_of(claimed: ClaimedPair) -> tuple[str, str, int]:
    """Return who wrote a pair: host, worker and user."""
    return claimed.pair.host, claimed.pair.worker, owner_of(claimed.journal)


def _copy(append: Append) -> _Copy:
    return append.sequence, append.archive, append.name, append.size, append.crc


def _note_last(last: dict[_Copy, int], journal: Journal, rotation: int) -> None:
    """Note the members that a pair holds, or held, if they did not go from there to lost+found."""
    for append in journal.appends.values():
        copy = _copy(append)
        if last.get(copy, rotation) < rotation and append.sequence not in journal.aborted:
            noted = journal.merged.get(append.sequence)
            if noted is None or not noted.target.startswith(f"{STATE}/"):
                last[copy] = rotation
