"""Second copies: members that a worker wrote again after a pair of its had failed, and that count once.

A worker that meets an error goes on in a new pair, and writes there again what it could not prove to be on stable
storage. So one member may wait in two pairs of a round, be merged from the first one already, or wait in a pair that a
later round claims. A pair that its worker ended in good order holds second copies only from where it says so.

Anybody may write a pair under a worker's name. So a copy is one only of the same writer, for the same place, and with
the same content; what is none is merged like any other member.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

from rear.core.layout import Layout
from rear.core.records import Append
from rear.core.storage import Storage
from rear.errors import RearError
from rear.events import Refused
from rear.scavenger.archived_members import MemberOfPair, look_up, member_of_pair
from rear.scavenger.claims import ClaimedPair, Claims
from rear.scavenger.final_archive import Comparison
from rear.scavenger.plan import Candidate, Existing
from rear.scavenger.worker_pairs import WorkerPairs, worker_of

#: Where the archive should be there is none that rear has made: nothing, or a folder, link, or FIFO.
_NO_ARCHIVE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)
_Worker = tuple[str, str, int]


class SecondCopies:
    """Which members of the pairs of one round are to be had elsewhere.

    Attributes:
        others: pairs of the same workers that are not of this round.
    """

    def __init__(self, layout: Layout, claims: Claims, batch: list[ClaimedPair], *, storage: Storage) -> None:
        self.others = WorkerPairs(layout, claims, batch, storage=storage)
        self._layout = layout
        self._claims = claims
        self._batch = batch
        self._storage = storage
        self._compare = Comparison(None, storage)
        #: By worker and sequence number: the pair from which a member is to be merged.
        self._first_copies: dict[_Worker, dict[int, ClaimedPair]] = {}
        self._rescued: dict[MemberOfPair, Candidate] = {}
        self._second_copies: list[tuple[ClaimedPair, int]] = []
        #: Members by pair and sequence number: looked for, still to be looked for, and found in an archive.
        self._looked_up: set[MemberOfPair] = set()
        self._to_ask: dict[str, list[Candidate]] = {}
        self._merged: set[MemberOfPair] = set()
        #: Archives of which that cannot be found out now, and why.
        self._unknown: dict[str, OSError] = {}

    def take(self, claimed: ClaimedPair, appends: list[Append], rescued: Candidate | None = None) -> None:
        """Remember that members are to be merged from this pair: other copies of them are second ones.

        ``rescued`` is where the only one of them is by now, if not in the temp archive.
        """
        known = self._first_copies.setdefault(worker_of(claimed), {})
        known.update(dict.fromkeys([append.sequence for append in appends], claimed))
        if rescued is not None:
            self._rescued[member_of_pair(rescued)] = rescued

    def without(self, claimed: ClaimedPair, pending: list[Append]) -> list[Append]:
        """Return the members of a pair that are neither merged nor to be merged by way of another pair.

        Only a pair that failed, or that repeats what one had that failed, can hold a second copy. Of one that a
        scavenger before had claimed, members may be in their archive and not noted.

        Raises:
            OSError: an archive that may hold them cannot be read now; merged anyway, a member could be there twice.
        """
        suspects = _suspects(claimed, pending)
        if not suspects:
            return pending
        seconds = {append.sequence for append in suspects if self._is_second(claimed, append)}
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
        return {append.sequence for append in appends if self.others.written_later(claimed, append)}

    def _note(self, claimed: ClaimedPair, sequences: list[int]) -> None:
        self._claims.note(claimed, sequences, target="by way of another temp archive", intent="")

    def _first_copy(self, claimed: ClaimedPair, sequence: int) -> ClaimedPair | None:
        """Return the pair from which a member of the same worker is to be merged."""
        return self._first_copies.get(worker_of(claimed), {}).get(sequence)

    def _is_second(self, claimed: ClaimedPair, append: Append) -> bool:
        first = self._first_copy(claimed, append.sequence)
        if first is None or first is claimed:
            return False
        other = self._rescued.get((first.name, append.sequence))
        other = other or Candidate(first, first.journal.appends[append.sequence])
        is_alike = _place(other.append) == _place(append)
        return is_alike and self._compare.is_copy(Candidate(claimed, append), _existing(other))

    def _merged_already(self, claimed: ClaimedPair, appends: list[Append]) -> set[int]:
        """Return those members that are in their final archive, or in one that was rolled over from it."""
        if not self._looked_up:
            # All of the round at once: an index knows origins by reading all of its rows.
            for other in self._batch:
                self._look_up(other, _suspects(other, other.journal.pending()))
            self._ask_archives()
        self._look_up(claimed, appends)
        self._ask_archives()
        return {append.sequence for append in appends if (claimed.name, append.sequence) in self._merged}

    def _look_up(self, claimed: ClaimedPair, appends: list[Append]) -> None:
        for append in appends:
            key = claimed.name, append.sequence
            if key not in self._looked_up:
                self._looked_up.add(key)
                self._to_ask.setdefault(append.archive, []).append(Candidate(claimed, append))

    def _ask_archives(self) -> None:
        asked, self._to_ask = self._to_ask, {}
        for archive, candidates in asked.items():
            try:
                looked = look_up(self._layout, archive, candidates, thoroughly=False, storage=self._storage)
            except RearError:
                # A forged path, or no Zip.
                continue
            except OSError as error:
                if error.errno not in _NO_ARCHIVE:
                    self._unknown[archive] = error
            else:
                self._merged |= looked.found


def _place(append: Append) -> tuple[str, str]:
    return append.archive, append.name


def _existing(candidate: Candidate) -> Existing:
    append = candidate.append
    return Existing(append.crc, append.size, True, 0, 0, candidate.key, candidate)


def _suspects(claimed: ClaimedPair, appends: list[Append]) -> list[Append]:
    """Return those members of a pair that another one of its worker may hold, too, or an archive already."""
    first = claimed.opened.repeats_from
    if claimed.is_taken_over or not claimed.is_trusted:
        return appends
    return [] if first is None else [append for append in appends if append.sequence >= first]
