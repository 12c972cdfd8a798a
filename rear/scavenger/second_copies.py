"""Second copies: members that a worker wrote again after a pair of its had failed, and that count once.

A worker that meets an error goes on in a new pair, and writes there again what it could not prove to be on stable
storage. So one member may wait in two pairs of a round, be merged from the first one already, or wait in a pair that a
later round claims. A pair that its worker ended in good order holds second copies only from where it says so.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import Final

from rear.core.layout import Layout
from rear.core.names import STATE
from rear.core.records import Append
from rear.core.storage import Storage
from rear.errors import IndexFormatError, RearError
from rear.events import Refused
from rear.index.index import Index, OriginKey, rows_of
from rear.journal.reader import Journal
from rear.read.view import open_committed
from rear.scavenger.claims import ClaimedPair, Claims
from rear.scavenger.rollover import rolled_over_from

#: Where the archive should be there is none that rear has made: nothing, or a folder, link, or FIFO.
_NO_ARCHIVE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)


class SecondCopies:
    """Which members of the pairs of one round are to be had elsewhere."""

    def __init__(self, layout: Layout, claims: Claims, batch: list[ClaimedPair], *, storage: Storage) -> None:
        self._layout = layout
        self._claims = claims
        self._batch = batch
        self._storage = storage
        self._by_worker: dict[tuple[str, str], list[ClaimedPair]] = {}
        for claimed in batch:
            self._by_worker.setdefault(_worker(claimed), []).append(claimed)
        #: By worker and sequence number: the pair from which a member is to be merged.
        self._first_copies: dict[tuple[str, str], dict[int, ClaimedPair]] = {}
        self._second_copies: list[tuple[ClaimedPair, int]] = []
        #: Of members, by archive and origin: looked for, still to be looked for, and found in an index.
        self._looked_up: set[tuple[str, OriginKey]] = set()
        self._to_ask: dict[str, set[OriginKey]] = {}
        self._merged: set[tuple[str, OriginKey]] = set()
        #: Archives of which that cannot be found out now, and why.
        self._unknown: dict[str, OSError] = {}

    def take(self, claimed: ClaimedPair, appends: list[Append]) -> None:
        """Remember that members are to be merged from this pair: other copies of them are second ones."""
        known = self._first_copies.setdefault(_worker(claimed), {})
        known.update(dict.fromkeys([append.sequence for append in appends], claimed))

    def without(self, claimed: ClaimedPair, pending: list[Append]) -> list[Append]:
        """Return the members of a pair that are neither merged nor to be merged by way of another pair.

        Only a pair that failed, or that repeats what one had that failed, can hold a second copy.

        Raises:
            OSError: an archive that may hold them cannot be read now; merged anyway, a member could be there twice.
        """
        suspects = _suspects(claimed, pending)
        if not suspects:
            return pending
        seconds = {append.sequence for append in suspects if self._first_copy(claimed, append.sequence)}
        self._second_copies += [(claimed, sequence) for sequence in sorted(seconds)]
        merged = self._merged_already(claimed, suspects) - seconds
        for append in suspects:
            if append.archive in self._unknown:
                raise self._unknown[append.archive]
        self._note(claimed, sorted(merged))
        return [append for append in pending if append.sequence not in merged and append.sequence not in seconds]

    def settle(self) -> Iterator[Refused]:
        """After the merges of the round: note those second copies whose first copy has arrived; the others stay."""
        arrived: dict[int, tuple[ClaimedPair, list[int]]] = {}
        for claimed, sequence in self._second_copies:
            first = self._first_copy(claimed, sequence)
            if first is not None and sequence in first.journal.merged:
                arrived.setdefault(id(claimed), (claimed, []))[1].append(sequence)
        for claimed, sequences in arrived.values():
            try:
                self._note(claimed, sequences)
            except OSError as error:
                yield Refused(claimed.name, f"what was merged of it cannot be noted: {error}; it stays in the inbox")

    def written_later(self, claimed: ClaimedPair, appends: list[Append]) -> set[int]:
        """Return those members that the worker wrote again, and that wait in a later pair."""
        if not appends:
            return set()
        pair = claimed.pair
        others = {other.pair: other.journal for other in self._by_worker[_worker(claimed)]}
        later = [journal for other, journal in others.items() if other.rotation > pair.rotation]
        later += self._claims.later_journals(pair, besides=others)
        return {append.sequence for append in appends if any(_counts_in(journal, append.sequence) for journal in later)}

    def _note(self, claimed: ClaimedPair, sequences: list[int]) -> None:
        self._claims.note(claimed, sequences, target="by way of another temp archive", intent="")

    def _first_copy(self, claimed: ClaimedPair, sequence: int) -> ClaimedPair | None:
        """Return the pair from which a member of the same worker is to be merged."""
        return self._first_copies.get(_worker(claimed), {}).get(sequence)

    def _merged_already(self, claimed: ClaimedPair, appends: list[Append]) -> set[int]:
        """Return those members that are in their final archive, or in one that was rolled over from it."""
        if not self._looked_up:
            # All of the round at once: an index knows origins by reading all of its rows.
            for other in self._batch:
                self._look_up(other, _suspects(other, other.journal.pending()))
            self._ask_indexes()
        self._look_up(claimed, appends)
        self._ask_indexes()
        return {append.sequence for append in appends if (append.archive, _key(claimed, append)) in self._merged}

    def _look_up(self, claimed: ClaimedPair, appends: list[Append]) -> None:
        for append in appends:
            key = _key(claimed, append)
            if (append.archive, key) not in self._looked_up:
                self._looked_up.add((append.archive, key))
                self._to_ask.setdefault(append.archive, set()).add(key)

    def _ask_indexes(self) -> None:
        asked, self._to_ask = self._to_ask, {}
        for archive, keys in asked.items():
            try:
                for name in (archive, *rolled_over_from(self._layout, archive, storage=self._storage)):
                    self._merged.update((archive, key) for key in self._held_in(name, keys))
            except RearError:
                # A forged path, or no Zip.
                continue
            except OSError as error:
                if error.errno not in _NO_ARCHIVE:
                    self._unknown[archive] = error

    def _held_in(self, archive: str, keys: set[OriginKey]) -> Iterable[OriginKey]:
        """Return those members that an archive holds, by its index, or by itself where there is none of use."""
        try:
            index = Index.open(self._layout, archive, storage=self._storage)
            if index.segments:
                return index.find_origins(keys)
        except (IndexFormatError, OSError):
            pass
        try:
            with open_committed(self._layout.archive(archive), storage=self._storage) as there:
                return keys.intersection((row.host, row.worker, row.sequence) for row in rows_of(there))
        except FileNotFoundError:
            # The others may be there.
            return ()


def _worker(claimed: ClaimedPair) -> tuple[str, str]:
    return claimed.pair.host, claimed.pair.worker


def _key(claimed: ClaimedPair, append: Append) -> OriginKey:
    return claimed.pair.host, claimed.pair.worker, append.sequence


def _suspects(claimed: ClaimedPair, appends: list[Append]) -> list[Append]:
    """Return those members of a pair that another one of its worker may hold, too."""
    first = claimed.opened.repeats_from
    if not claimed.is_trusted:
        return appends
    return [] if first is None else [append for append in appends if append.sequence >= first]


def _counts_in(journal: Journal, sequence: int) -> bool:
    """Whether a pair holds a member, or held it, and it did not go from there to lost+found."""
    if sequence not in journal.appends or sequence in journal.aborted:
        return False
    noted = journal.merged.get(sequence)
    return noted is None or not noted.target.startswith(f"{STATE}/")
