"""Other pairs of a worker, as they are when a round begins: in the inbox, claimed, and in the graveyard.

Each folder is listed once a round, however many of its pairs ask.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path

from rear.core.layout import Layout, parse_pair
from rear.core.names import STATE
from rear.core.records import Pair
from rear.core.storage import Storage
from rear.errors import JournalError
from rear.journal.reader import Journal, read_notes
from rear.scavenger.claims import ClaimedPair, Claims, load_journal, owner_of
from rear.scavenger.refusals import names_unless_shut


class WorkerPairs:
    """The pairs that workers have elsewhere than in the round."""

    def __init__(self, layout: Layout, claims: Claims, *, storage: Storage) -> None:
        self._layout = layout
        self._claims = claims
        self._storage = storage
        self._listed: dict[Path, dict[str, list[tuple[Pair, str]]]] = {}

    def later_journals(self, claimed: ClaimedPair, *, besides: Container[Pair] = ()) -> Iterator[Journal]:
        """Yield the journals that the worker of a pair, and its writer, began after it, wherever they wait: in the
        inbox, claimed for a later round, or in the graveyard.
        """
        pair = claimed.pair
        graveyard, inbox = self._layout.graveyard_folder(pair), self._layout.inbox_folder(pair)
        for folder in (graveyard, self._claims.folder(pair), inbox):
            for other in self._pairs(pair, folder, "journal", self._storage.names):
                if other.rotation > pair.rotation and other not in besides:
                    journal = load_journal(other, folder, storage=self._storage)
                    is_whole = isinstance(journal, Journal) and journal.opened is not None
                    if isinstance(journal, Journal) and is_whole and owner_of(journal) == owner_of(claimed.journal):
                        yield journal

    def given_up(self, pair: Pair) -> set[int]:
        """Return those members of a worker that went to lost+found from pairs of its that are buried."""
        folder = self._layout.graveyard_folder(pair)
        given_up: set[int] = set()
        list_names = partial(names_unless_shut, storage=self._storage)
        for other in self._pairs(pair, folder, "merged", list_names):
            if other.rotation < pair.rotation:
                try:
                    notes = read_notes(folder / f"{other.stem}.merged", storage=self._storage).merged
                except (OSError, JournalError):
                    # Told when that pair itself is looked at.
                    continue
                kept = f"{STATE}/{self._layout.lost_and_found.name}/"
                given_up.update(sequence for sequence, note in notes.items() if note.target.startswith(kept))
        return given_up

    def _pairs(self, pair: Pair, folder: Path, suffix: str, list_names: Callable[[Path], list[str]]) -> Iterator[Pair]:
        by_worker = self._listed.get(folder)
        if by_worker is None:
            by_worker = {}
            for name in list_names(folder):
                if found := parse_pair(pair.host, name):
                    by_worker.setdefault(found.worker, []).append((found, name))
            self._listed[folder] = by_worker
        return (other for other, name in by_worker.get(pair.worker, []) if name.endswith(suffix))
