"""What is whole in a claimed temp archive, and what becomes of the rest.

Each journaled member is looked up at its offset. A whole one is a candidate for the merge; one that its worker wrote
again, after this pair had failed, counts there; what is left of any other goes to lost+found, and its name to the
report.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from rear.check import why_bad
from rear.claims import ClaimedPair, Claims, process_of
from rear.contents import opened
from rear.errors import NotLeaderError, RearError
from rear.events import Claimed, Event, Lost, Refused, Torn
from rear.index import Index, OriginKey
from rear.journal import Damage
from rear.layout import Layout
from rear.lease import is_running
from rear.lostfound import LostAndFound
from rear.plan import Candidate
from rear.records import Append
from rear.rollover import rolled_over_from
from rear.storage import Storage
from rear.zipformat import CENTRAL_SIGNATURE, END_SIGNATURE, ZIP64_END_SIGNATURE

_DIRECTORY_SIGNATURES = (CENTRAL_SIGNATURE, END_SIGNATURE, ZIP64_END_SIGNATURE)


class Salvage:
    """Checks the pairs of one round of a scavenge.

    Args:
        layout: the base.
        claims: notes what became of members.
        lost_and_found: takes what is left of those that are not whole.
        batch: all pairs of the round; a member that two of them hold is merged once.
        read_all: read the data of every member, not only of those whose worker did not end in good order.
        storage: the file system.
    """

    def __init__(
        self,
        layout: Layout,
        claims: Claims,
        lost_and_found: LostAndFound,
        batch: list[ClaimedPair],
        *,
        read_all: bool,
        storage: Storage,
    ) -> None:
        self._layout = layout
        self._claims = claims
        self._lost_and_found = lost_and_found
        self._batch = batch
        self._read_all = read_all
        self._storage = storage
        self._candidates: dict[OriginKey, ClaimedPair] = {}
        self._second_copies: list[tuple[ClaimedPair, int]] = []

    def check(self, claimed: ClaimedPair) -> Iterator[Candidate | Event]:
        """Yield the whole members of a pair, and what happened to others."""
        pending = claimed.journal.pending()
        yield Claimed(str(claimed.pair), claimed.state, len(pending), sum(append.length for append in pending))
        pending = self._without_second_copies(claimed, pending)
        with ExitStack() as stack:
            descriptor = None
            try:
                if claimed.temp_archive.name in self._storage.names(claimed.folder):
                    descriptor = stack.enter_context(opened(claimed.temp_archive, self._storage))
                    self._check_owner(claimed, descriptor)
                bad: list[tuple[Append, str]] = []
                for append in pending:
                    reason = self._why_bad(claimed, append, descriptor)
                    if reason is None:
                        self._candidates[_key(claimed, append)] = claimed
                        yield Candidate(claimed, append)
                    else:
                        bad.append((append, reason))
                if bad:
                    # To be taken over makes the temp archive go missing as well.
                    self._claims.check_kept(claimed)
            except NotLeaderError:
                raise
            except (OSError, RearError) as error:
                yield Refused(str(claimed.pair), f"its temp archive cannot be checked: {error}; it stays in the inbox")
                return
            elsewhere = self._written_later(claimed, [append for append, _ in bad])
            self._claims.note(claimed, sorted(elsewhere), target="a later temp archive", intent="")
            for append, reason in bad:
                if append.sequence not in elsewhere:
                    yield self._put_away(claimed, append, reason, descriptor)

    def _why_bad(self, claimed: ClaimedPair, append: Append, descriptor: int | None) -> str | None:
        if descriptor is None:
            return "its temp archive is missing"
        return why_bad(
            descriptor, append, claimed.opened, archive_length=self._storage.size(descriptor),
            read_data=self._read_all or not claimed.is_trusted, storage=self._storage,
        )  # fmt: skip

    def _without_second_copies(self, claimed: ClaimedPair, pending: list[Append]) -> list[Append]:
        """Return the members that are not merged, nor candidates, by way of another pair of their worker.

        Only a pair that failed, or that repeats what one had that failed, can hold a second copy.
        """
        first = claimed.opened.repeats_from
        if claimed.is_trusted and first is None:
            return pending
        start = 0 if first is None or not claimed.is_trusted else first
        suspects = [append for append in pending if append.sequence >= start]
        seconds = {append.sequence for append in suspects if _key(claimed, append) in self._candidates}
        self._second_copies += [(claimed, sequence) for sequence in sorted(seconds)]
        merged = self._merged_already(claimed, suspects) - seconds
        self._claims.note(claimed, sorted(merged), target="by way of another temp archive", intent="")
        return [append for append in pending if append.sequence not in merged and append.sequence not in seconds]

    def settle_second_copies(self) -> None:
        """After the merges of the round: note those second copies whose first copy has arrived; the others stay."""
        arrived: dict[int, tuple[ClaimedPair, list[int]]] = {}
        for claimed, sequence in self._second_copies:
            first = self._candidates[claimed.pair.host, claimed.pair.worker, sequence]
            if sequence in first.journal.merged:
                arrived.setdefault(id(claimed), (claimed, []))[1].append(sequence)
        for claimed, sequences in arrived.values():
            self._claims.note(claimed, sequences, target="by way of another temp archive", intent="")

    def _check_owner(self, claimed: ClaimedPair, descriptor: int) -> None:
        """Refuse a temp archive that is a link to another user's file: what is in it is not this journal's to tell.

        Raises:
            RearError: so it is.
        """
        if os.fstat(descriptor).st_uid != os.lstat(claimed.temp_archive.with_suffix(".journal")).st_uid:
            raise RearError("it belongs to another user than its journal")

    def _written_later(self, claimed: ClaimedPair, appends: list[Append]) -> set[int]:
        """Return those members that the worker wrote again, and that wait in a later pair."""
        if not appends:
            return set()
        pair = claimed.pair
        later = [
            other.journal
            for other in self._batch
            if (other.pair.host, other.pair.worker) == (pair.host, pair.worker) and other.pair.rotation > pair.rotation
        ]
        later += self._claims.later_journals(pair)
        return {
            append.sequence
            for append in appends
            if any(append.sequence in journal.appends and append.sequence not in journal.aborted for journal in later)
        }

    def _merged_already(self, claimed: ClaimedPair, appends: Iterable[Append]) -> set[int]:
        """Return those members that are in their final archive, or in one that was rolled over from it."""
        by_archive: dict[str, set[OriginKey]] = {}
        for append in appends:
            by_archive.setdefault(append.archive, set()).add(_key(claimed, append))
        merged: set[int] = set()
        for archive, keys in by_archive.items():
            try:
                for name in (archive, *rolled_over_from(self._layout, archive, storage=self._storage)):
                    index = Index.open(self._layout, name, storage=self._storage)
                    merged.update(key[2] for key in index.find_origins(keys))
            except (RearError, OSError):
                # A forged path, or no usable index: a second copy meets the first one by name and content then.
                continue
        return merged

    def _put_away(self, claimed: ClaimedPair, append: Append, reason: str, descriptor: int | None) -> Event:
        is_last = claimed.journal.closed is None and append.sequence == next(reversed(claimed.journal.appends))
        # Of a process that died on a host that lives, only the last member can be unfinished, and it was not
        # acknowledged. Where the host itself may have lost power, it may have been.
        kind = Torn if is_last and is_running(process_of(claimed.opened)) is False else Lost
        note = {"reason": reason, "pair": str(claimed.pair), **append._asdict()}
        item = self._lost_and_found.put_bytes(
            f"{claimed.pair.host}-{claimed.pair.stem}-{append.sequence}", descriptor, append.offset, append.length, note
        )
        self._claims.note(claimed, [append.sequence], target=item, intent="")
        return kind(
            append.archive, append.name, str(claimed.pair), append.source, append.offset, append.length, reason, item
        )

    def find_unknown(self, claimed: ClaimedPair) -> list[Damage]:
        """Return what a pair may hold that its journal does not name: damaged records, bytes after the last member."""
        journal = claimed.journal
        if journal.closed is not None or claimed.temp_archive.name not in self._storage.names(claimed.folder):
            return journal.damage
        end = max((append.offset + append.length for append in journal.appends.values()), default=0)
        with opened(claimed.temp_archive, self._storage) as descriptor:
            length = self._storage.size(descriptor) - end
            if length <= 0 or self._storage.read(descriptor, 4, end).startswith(_DIRECTORY_SIGNATURES):
                return journal.damage
        return [
            *journal.damage,
            Damage(end, length, "these bytes of the temp archive follow the last journaled member"),
        ]


def _key(claimed: ClaimedPair, append: Append) -> OriginKey:
    return claimed.pair.host, claimed.pair.worker, append.sequence
