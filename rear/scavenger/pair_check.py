"""What is whole in a claimed temp archive, and what becomes of the rest.

Journal and bytes are laid side by side. Each journaled member is looked up at its offset: a whole one is a candidate
for the merge; one that its worker wrote again, after this pair had failed, counts there; another one is rescued, if
the same bytes are still to be had; what is left of the rest goes to lost+found, and its name to the report. Bytes that
no record covers are scanned for members, which their own extra fields place.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Final

from rear.core.layout import Layout
from rear.core.liveness import is_running, process_of
from rear.core.log import Pace
from rear.core.names import STATE, check_archive, check_name, host_folder
from rear.core.parallel import Parallel
from rear.core.records import Append
from rear.core.storage import Storage, opened
from rear.errors import NotLeaderError, PathError, RearError
from rear.events import Advanced, Claimed, Damaged, Event, Lost, Recovered, Refused, Torn
from rear.index.index import Index, OriginKey
from rear.journal.check import find_suspects, why_bad
from rear.journal.reader import Journal
from rear.salvage.scan import scan
from rear.salvage.scan_result import Found, recovered_content
from rear.scavenger.check_tasks import CheckedAhead
from rear.scavenger.claims import ClaimedPair, Claims, owner_of
from rear.scavenger.flushed_files import FlushedFiles, PartialPolicy
from rear.scavenger.lost_and_found import LostAndFound
from rear.scavenger.plan import Candidate, candidates_of
from rear.scavenger.rebuilt_journal import Unplaced, find_unjournaled
from rear.scavenger.rescue import Rescue
from rear.scavenger.rollover import rolled_over_from
from rear.zip.window import Window

_NOTED_REMAINS: Final = 1000
_NOT_CLOSED: Final = "its writer ended without closing it"


class PairCheck:
    """Checks the pairs of one round of a scavenge.

    Args:
        layout: the base.
        claims: notes what became of members.
        lost_and_found: takes what is left of those that are not whole.
        batch: all pairs of the round; a member that two of them hold is merged once.
        read_all: read the data of every member, not only of those whose worker did not end in good order.
        partial: what becomes of a file that was flushed and not closed: a member, or ``"drop"``: to lost+found.
        parallel: the executor that reads it.
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
        partial: PartialPolicy = "keep",
        parallel: Parallel,
        storage: Storage,
    ) -> None:
        self._layout = layout
        self._claims = claims
        self._lost_and_found = lost_and_found
        self._batch = batch
        self._by_worker: dict[tuple[str, str], list[ClaimedPair]] = {}
        for claimed in batch:
            self._by_worker.setdefault((claimed.pair.host, claimed.pair.worker), []).append(claimed)
        self._read_all = read_all
        self._joining = FlushedFiles(batch, claims, lost_and_found, partial=partial, storage=storage)
        self._ahead = CheckedAhead((claimed for claimed in batch if self._reads_data(claimed)), parallel)
        self._whole: dict[int, Append] = {}
        self._storage = storage
        #: By host and worker, and by sequence number.
        self._candidates: dict[tuple[str, str], dict[int, ClaimedPair]] = {}
        self._second_copies: list[tuple[ClaimedPair, int]] = []
        #: Of members, by archive and origin: looked for, still to be looked for, and found in an index.
        self._looked_up: set[tuple[str, OriginKey]] = set()
        self._to_ask: dict[str, set[OriginKey]] = {}
        self._merged: set[tuple[str, OriginKey]] = set()
        self._rescues: list[Rescue] = []
        self._remains: dict[str, list[Unplaced]] = {}
        self._failed: set[str] = set()

    def close(self) -> None:
        """End the round: what was rescued for it is not needed any more."""
        self._ahead.close()
        for rescue in self._rescues:
            rescue.close()

    def check(self, claimed: ClaimedPair) -> Iterator[list[Candidate] | Event]:
        """Yield the whole members of a pair, many together, and what happened to others."""
        try:
            with ExitStack() as stack:
                descriptor = self._open(claimed, stack)
                if descriptor is not None:
                    self._check_owner(claimed, descriptor)
                    yield from self._add_unjournaled(claimed, descriptor)
                yield from self._check(claimed, descriptor)
        except NotLeaderError:
            raise
        except (OSError, RearError) as error:
            self._failed.add(str(claimed.pair))
            yield Refused(str(claimed.pair), f"its temp archive cannot be checked: {error}; it stays in the inbox")

    def _open(self, claimed: ClaimedPair, stack: ExitStack) -> int | None:
        """Open the temp archive of a pair; return ``None`` when it is missing."""
        path, closed = claimed.temp_archive, claimed.journal.closed
        if claimed.is_trusted and closed is not None:
            with suppress(OSError):
                descriptor = stack.enter_context(opened(path, self._storage))
                if self._storage.size(descriptor) == closed.length:
                    return descriptor
        # NFS may deny a file that is there, and GlusterFS show it as it was a second ago. Only a listing tells the
        # truth, of all pairs of the host.
        if path.name not in self._storage.names(claimed.folder):
            return None
        return stack.enter_context(opened(path, self._storage))

    def _check(self, claimed: ClaimedPair, descriptor: int | None) -> Iterator[list[Candidate] | Event]:
        pending = claimed.journal.pending()
        yield Claimed(str(claimed.pair), claimed.state, len(pending), sum(append.length for append in pending))
        self._whole = self._ahead.take(claimed)
        given_up = self._claims.given_up(claimed.pair) if claimed.opened.repeats_from is not None else set()
        good, bad = yield from self._divide(claimed, self._without_second_copies(claimed, pending), descriptor)
        self._take(claimed, good)
        yield candidates_of(claimed, good)
        for append in good:
            if append.sequence in given_up:
                reason = "it was told of as lost; its worker came back and wrote it again"
                yield Recovered(append.archive, append.name, str(claimed.pair), reason)
        if not bad:
            return
        # To be taken over makes the temp archive go missing as well.
        self._claims.check_kept(claimed)
        elsewhere = self._written_later(claimed, [append for append, _ in bad])
        self._claims.note(claimed, sorted(elsewhere), target="a later temp archive", intent="")
        rescue = Rescue(claimed, storage=self._storage)
        self._rescues.append(rescue)
        for append, reason in bad:
            if append.sequence not in elsewhere:
                yield from self._rescue_or_put_away(claimed, append, reason, descriptor, rescue)

    def _divide(
        self, claimed: ClaimedPair, appends: list[Append], descriptor: int | None
    ) -> Generator[Event, None, tuple[list[Append], list[tuple[Append, str]]]]:
        """Return the members that are whole, and the others with what is wrong with them; yield how far that is."""
        if descriptor is None:
            return [], [(append, "its temp archive is missing") for append in appends]
        suspects = appends
        if not self._reads_data(claimed):
            suspects = find_suspects(descriptor, appends, claimed.opened, storage=self._storage)
        bad = {}
        window = Window(descriptor, 0, self._storage.size(descriptor), storage=self._storage)
        pace = Pace()
        for number, append in enumerate(suspects):
            if pace.is_due():
                yield Advanced("checking", str(claimed.pair), number, len(suspects))
            reason = self._why_bad(claimed, append, descriptor, window)
            if reason is not None:
                bad[append.sequence] = append, reason
        good = [append for append in appends if append.sequence not in bad] if bad else appends
        return good, list(bad.values())

    def _take(self, claimed: ClaimedPair, appends: list[Append]) -> None:
        known = self._candidates.setdefault((claimed.pair.host, claimed.pair.worker), {})
        known.update(dict.fromkeys([append.sequence for append in appends], claimed))

    def _candidate(self, claimed: ClaimedPair, sequence: int) -> ClaimedPair | None:
        """Return the pair that a member with the sequence number, of the worker of a pair, is to be merged from."""
        return self._candidates.get((claimed.pair.host, claimed.pair.worker), {}).get(sequence)

    def _add_unjournaled(self, claimed: ClaimedPair, descriptor: int) -> Iterator[Event]:
        """Add the members that the journal does not name to what it says, and note what else there is."""
        if claimed.is_trusted or claimed.journal.file is not None:
            # Of a file that was flushed, what its last part does not cover is the end of a stream at most.
            return
        remains: list[Unplaced] = []
        for item in find_unjournaled(claimed, descriptor, storage=self._storage):
            if isinstance(item, Unplaced):
                remains.append(item)
                continue
            claimed.journal.appends[item.sequence] = item
            if item.sequence not in claimed.journal.merged:
                yield Recovered(
                    item.archive, item.name, str(claimed.pair), "no journal record; placed by its own extra field"
                )
        self._remains[str(claimed.pair)] = remains

    def _rescue_or_put_away(
        self, claimed: ClaimedPair, append: Append, reason: str, descriptor: int | None, rescue: Rescue
    ) -> Iterator[list[Candidate] | Event]:
        try:
            check_archive(append.archive)
            check_name(append.name)
        except PathError:
            yield self._put_away(claimed, append, reason, descriptor)
            return
        flushed = claimed.journal.flushed
        rescued, source = None if append is flushed else rescue.from_data(append, descriptor), None
        if rescued is None and flushed is not None:
            yield from self._join(claimed, flushed, reason, descriptor, rescue)
            return
        saved_from = "the journal, which holds all that an empty member has" if not append.size else "its intact data"
        if rescued is None:
            from_source = rescue.from_source(append)
            if isinstance(from_source, str):
                yield self._put_away(claimed, append, "; ".join(filter(None, (reason, from_source))), descriptor)
                return
            rescued, source = from_source, append.source
            saved_from = f"its source {source}"
        self._take(claimed, [append])
        yield [rescued]
        told = f"{reason}; archived anew from {saved_from}"
        yield Recovered(append.archive, append.name, str(claimed.pair), told, source)

    def _join(
        self, claimed: ClaimedPair, flushed: Append, reason: str, descriptor: int | None, rescue: Rescue
    ) -> Iterator[list[Candidate] | Event]:
        for item in self._joining.settle(claimed, flushed, reason, descriptor, rescue):
            if isinstance(item, Candidate):
                self._take(claimed, [flushed])
                yield [item]
            else:
                yield item

    def _why_bad(self, claimed: ClaimedPair, append: Append, descriptor: int, window: Window) -> str | None:
        if append is claimed.journal.flushed:
            return _NOT_CLOSED
        if self._whole.get(append.sequence) is append:
            return None
        return why_bad(
            descriptor,
            append,
            claimed.opened,
            window=window,
            read_data=self._reads_data(claimed),
            storage=self._storage,
        )

    def _reads_data(self, claimed: ClaimedPair) -> bool:
        return self._read_all or not claimed.is_trusted

    def _without_second_copies(self, claimed: ClaimedPair, pending: list[Append]) -> list[Append]:
        """Return the members that are not merged, nor candidates, by way of another pair of their worker.

        Only a pair that failed, or that repeats what one had that failed, can hold a second copy.
        """
        suspects = _perhaps_second_copies(claimed, pending)
        if not suspects:
            return pending
        seconds = {append.sequence for append in suspects if self._candidate(claimed, append.sequence)}
        self._second_copies += [(claimed, sequence) for sequence in sorted(seconds)]
        merged = self._merged_already(claimed, suspects) - seconds
        self._claims.note(claimed, sorted(merged), target="by way of another temp archive", intent="")
        return [append for append in pending if append.sequence not in merged and append.sequence not in seconds]

    def settle_second_copies(self) -> None:
        """After the merges of the round: note those second copies whose first copy has arrived; the others stay."""
        arrived: dict[int, tuple[ClaimedPair, list[int]]] = {}
        for claimed, sequence in self._second_copies:
            first = self._candidate(claimed, sequence)
            if first is not None and sequence in first.journal.merged:
                arrived.setdefault(id(claimed), (claimed, []))[1].append(sequence)
        for claimed, sequences in arrived.values():
            self._claims.note(claimed, sequences, target="by way of another temp archive", intent="")

    def _check_owner(self, claimed: ClaimedPair, descriptor: int) -> None:
        """Refuse a temp archive that is a link to another user's file: what is in it is not this journal's to tell.

        Raises:
            RearError: so it is.
        """
        if os.fstat(descriptor).st_uid != owner_of(claimed):
            raise RearError("it belongs to another user than its journal")

    def _written_later(self, claimed: ClaimedPair, appends: list[Append]) -> set[int]:
        """Return those members that the worker wrote again, and that wait in a later pair."""
        if not appends:
            return set()
        pair = claimed.pair
        others = {other.pair: other.journal for other in self._by_worker[pair.host, pair.worker]}
        later = [journal for other, journal in others.items() if other.rotation > pair.rotation]
        later += self._claims.later_journals(pair, besides=others)
        return {append.sequence for append in appends if any(_counts_in(journal, append.sequence) for journal in later)}

    def _merged_already(self, claimed: ClaimedPair, appends: list[Append]) -> set[int]:
        """Return those members that are in their final archive, or in one that was rolled over from it."""
        if not self._looked_up:
            # All of the round at once: an index knows origins by reading all of its rows.
            for other in self._batch:
                self._look_up(other, _perhaps_second_copies(other, other.journal.pending()))
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
                    index = Index.open(self._layout, name, storage=self._storage)
                    self._merged.update((archive, key) for key in index.find_origins(keys))
            except (RearError, OSError):
                # A forged path, or no usable index: a second copy meets the first one by name and content then.
                continue

    def _put_away(self, claimed: ClaimedPair, append: Append, reason: str, descriptor: int | None) -> Event:
        is_last = claimed.journal.closed is None and append.sequence == next(reversed(claimed.journal.appends))
        # Of a process that died on a host that lives, only the last member can be unfinished, and it was not
        # acknowledged. Where the host itself may have lost power, it may have been.
        kind = Torn if is_last and is_running(process_of(claimed.opened)) is False else Lost
        note = {"reason": reason, "pair": str(claimed.pair), **append._asdict()}
        name = f"{claimed.pair.host}-{claimed.pair.stem}-{append.sequence}"
        found = self._partly_decodable(claimed, append, descriptor)
        if found is not None and descriptor is not None:
            reason += self._put_partial(name, descriptor, found, note)
        if claimed.state == "stale":
            reason += "; its worker cannot be seen, and may still have it: if it comes back, it writes the file again"
        item = self._lost_and_found.put_bytes(name, descriptor, append.offset, append.length, note)
        self._claims.note(claimed, [append.sequence], target=item, intent="")
        return kind(
            append.archive, append.name, str(claimed.pair), append.source, append.offset, append.length, reason, item
        )

    def _partly_decodable(self, claimed: ClaimedPair, append: Append, descriptor: int | None) -> Found | None:
        if descriptor is None or append.offset >= self._storage.size(descriptor):
            return None
        end = min(append.offset + append.length, self._storage.size(descriptor))
        cookie = claimed.opened.cookie
        for item in scan(descriptor, start=append.offset, end=end, cookie=cookie, storage=self._storage):
            return item if isinstance(item, Found) and item.recoverable_bytes else None
        return None

    def _put_partial(self, name: str, descriptor: int, found: Found, note: dict[str, Any]) -> str:
        """Keep what decodes of a member that is not whole; return what there is to say about it."""
        content = recovered_content(descriptor, found, storage=self._storage)
        base_name = host_folder(found.name.rstrip("/").rpartition("/")[2])
        item = self._lost_and_found.put_content(f"{name}-{base_name}", content, note)
        return f"; its first {found.recoverable_bytes:,} of {found.size:,} bytes decode and are in {item}"

    def has_failed(self, claimed: ClaimedPair) -> bool:
        """Whether a pair could not be checked to its end."""
        return str(claimed.pair) in self._failed

    def has_remains(self, claimed: ClaimedPair) -> bool:
        """Whether a checked pair holds, or its journal held, what is accounted for nowhere."""
        journal = claimed.journal
        return bool(self._remains.get(str(claimed.pair)) or (journal.damage and not _is_accounted_for(journal)))

    def put_away_remains(self, claimed: ClaimedPair) -> Iterator[Event]:
        """Keep the whole pair, because it holds what cannot be placed, and say what."""
        remains = self._remains.get(str(claimed.pair), []) + [
            Unplaced(damage.start, damage.length, f"of the journal: {damage.reason}")
            for damage in claimed.journal.damage
        ]
        reasons = [{"start": one.start, "length": one.length, "reason": one.reason} for one in remains[:_NOTED_REMAINS]]
        note = {"pair": str(claimed.pair), "remains": reasons}
        said = []
        for one in remains:
            reason = one.reason
            if one.found is not None and one.found.state == "partial":
                with opened(claimed.temp_archive, self._storage) as descriptor:
                    name = f"{claimed.pair.host}-{claimed.pair.stem}-at-{one.start}"
                    reason += self._put_partial(name, descriptor, one.found, note)
            said.append(reason)
        item = self._lost_and_found.put_pair(claimed.pair, claimed.folder, note)
        for one, reason in zip(remains, said, strict=True):
            origin = one.found.origin if one.found is not None else None
            if one.found is not None and origin is not None:
                yield Lost(
                    origin.archive, one.found.name, str(claimed.pair), origin.source, one.start, one.length, reason,
                    item,
                )  # fmt: skip
            else:
                yield Damaged(str(claimed.pair), one.start, one.length, reason, item)


def _is_accounted_for(journal: Journal) -> bool:
    """Whether a damaged journal, with the members that a scan added, leaves no member out.

    The numbers of members follow each other; a valid record after the damage shows that the damage is not the end.
    """
    numbers = journal.appends.keys() | journal.aborted
    if not numbers or len(numbers) != max(numbers) - min(numbers) + 1:
        return False
    if journal.closed is not None:
        return journal.closed.members == len(journal.appends.keys() - journal.aborted)
    return all(damage.start + damage.length < journal.length for damage in journal.damage)


def _counts_in(journal: Journal, sequence: int) -> bool:
    """Whether a pair holds a member, or held it, and it did not go from there to lost+found."""
    if sequence not in journal.appends or sequence in journal.aborted:
        return False
    noted = journal.merged.get(sequence)
    return noted is None or not noted.target.startswith(f"{STATE}/")


def _perhaps_second_copies(claimed: ClaimedPair, appends: list[Append]) -> list[Append]:
    """Return those members of a pair that another one of its worker may hold, too."""
    first = claimed.opened.repeats_from
    if not claimed.is_trusted:
        return appends
    return [] if first is None else [append for append in appends if append.sequence >= first]


def _key(claimed: ClaimedPair, append: Append) -> OriginKey:
    return claimed.pair.host, claimed.pair.worker, append.sequence
