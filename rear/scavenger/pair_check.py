"""What is whole in a claimed temp archive, and what becomes of the rest.

Journal and bytes are laid side by side. Each journaled member is looked up at its offset: a whole one is a candidate
for the merge; one that its worker wrote again, after this pair had failed, counts there; another one is rescued, if
the same bytes are still to be had; what is left of the rest goes to lost+found, and its name to the report. Bytes that
no record covers are scanned for members, which their own extra fields place. Of a pair that its worker closed in good
order only headers are read, unless all is to be verified.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from rear.core.layout import Layout
from rear.core.liveness import is_running, process_of
from rear.core.log import Pace
from rear.core.names import check_archive, check_name
from rear.core.parallel import Parallel, identity_of
from rear.core.records import Append, unpacked
from rear.core.storage import Storage, opened
from rear.errors import NotLeaderError, PathError, RearError
from rear.events import Advanced, Claimed, Damaged, Event, Lost, Recovered, Refused, Torn
from rear.journal.check import find_suspects, why_bad
from rear.journal.reader import Journal
from rear.salvage.scan import scan
from rear.salvage.scan_result import Found, recovered_content
from rear.scavenger.check_tasks import CheckedAhead
from rear.scavenger.claims import ClaimedPair, Claims
from rear.scavenger.flushed_files import MAY_COME_BACK, FlushedFiles
from rear.scavenger.lost_and_found import LostAndFound, item_name
from rear.scavenger.noted_members import NotedMembers
from rear.scavenger.options import ScavengeOptions
from rear.scavenger.owners import OwnerBudget, owner_of
from rear.scavenger.plan import Candidate, candidates_of
from rear.scavenger.rebuilt_journal import Unplaced, check_holes, find_unjournaled
from rear.scavenger.rescue import Rescue
from rear.scavenger.second_copies import SecondCopies
from rear.zip.window import Window

_NOTED_REMAINS: Final = 1000
_ITEMS_A_PAIR: Final = 1000
"""So many bad members of a pair are kept one by one, and no more bytes than it has; else all of its temp archive is."""
DECODED_BYTES: Final = 8 << 30
"""So much is decoded of each user in a scavenge, of pairs that decode to more than a usual multiple of what they take:
some 20 seconds. Of a pair that was closed in good order nothing is decoded."""
_DECODED_FACTOR: Final = 64
_SURELY_READ_BYTES: Final = 1 << 20
_OVERLAPS: Final = "its bytes belong to another member, too"
_NOT_CLOSED: Final = "its writer ended without closing it"


class PairCheck:
    """Checks the pairs of one round of a scavenge.

    A member that two pairs of its batch hold is merged once.

    Attributes:
        second_copies: which members count by way of another pair.
    """

    def __init__(
        self,
        layout: Layout,
        claims: Claims,
        lost_and_found: LostAndFound,
        batch: list[ClaimedPair],
        *,
        options: ScavengeOptions,
        decoded: OwnerBudget,
        parallel: Parallel,
        storage: Storage,
    ) -> None:
        self._read_all = options.verify
        #: Pairs that decode to more than is read of their users unasked.
        self._unread = {claimed.name for claimed in batch if not self._may_decode(claimed, decoded, storage)}
        readable = [claimed for claimed in batch if claimed.name not in self._unread]
        self.second_copies = SecondCopies(layout, claims, batch, storage=storage)
        self._noted = NotedMembers(layout, batch, storage=storage)
        self._claims = claims
        self._lost_and_found = lost_and_found
        self._joining = FlushedFiles(readable, claims, lost_and_found, partial=options.partial, storage=storage)
        self._ahead = CheckedAhead((claimed for claimed in readable if self._reads_data(claimed)), parallel)
        self._whole: dict[int, Append] = {}
        self._storage = storage
        self._rescues: list[Rescue] = []
        self._remains: dict[str, list[Unplaced]] = {}
        self._failed: set[str] = set()
        self._listed: dict[Path, set[str]] = {}

    def close(self) -> None:
        """End the round: what was rescued for it is not needed any more."""
        self._ahead.close()
        for rescue in self._rescues:
            rescue.close()

    def prove_notes(self) -> Iterator[Event]:
        """Find anew, before the first check, what notes say is merged; what is not waits again, and is told of."""
        return self._noted.prove()

    def check(self, claimed: ClaimedPair) -> Iterator[list[Candidate] | Event]:
        """Yield the whole members of a pair, many together, and what happened to others."""
        try:
            if claimed.name in self._noted.unknown:
                raise self._noted.unknown[claimed.name]
            if claimed.name in self._unread:
                raise RearError(
                    "it decodes to so much more than it takes that it is read only by a scavenge after this one, or by "
                    "`rear scavenge --verify`"
                )
            with ExitStack() as stack:
                descriptor = self._open(claimed, stack)
                if descriptor is not None:
                    claimed.status = os.fstat(descriptor)
                    claimed.identity = identity_of(claimed.status)
                    self._check_owner(claimed, claimed.status)
                    check_holes(descriptor, storage=self._storage)
                    yield from self._add_unjournaled(claimed, descriptor)
                yield from self._check(claimed, descriptor)
        except NotLeaderError:
            raise
        except (OSError, RearError) as error:
            self._failed.add(claimed.name)
            yield Refused(claimed.name, f"its temp archive cannot be checked: {error}; it stays in the inbox")

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
        if path.name not in self._names(claimed.folder):
            return None
        return stack.enter_context(opened(path, self._storage))

    def _names(self, folder: Path) -> set[str]:
        """Return what is in a folder of claimed pairs, which are all here since before the round."""
        if folder not in self._listed:
            self._listed[folder] = set(self._storage.names(folder))
        return self._listed[folder]

    def _check(self, claimed: ClaimedPair, descriptor: int | None) -> Iterator[list[Candidate] | Event]:
        pending = claimed.journal.pending()
        yield Claimed(claimed.name, claimed.state, len(pending), sum(append.length for append in pending))
        self._whole = self._ahead.take(claimed)
        good, bad = yield from self._divide(claimed, self.second_copies.without(claimed, pending), descriptor)
        self.second_copies.take(claimed, good)
        yield candidates_of(claimed, good)
        for append in good if claimed.opened.repeats_from is not None else ():
            if self.second_copies.others.was_given_up(claimed, append.sequence):
                reason = "it was told of as lost; its worker came back and wrote it again"
                yield Recovered(append.archive, append.name, claimed.name, reason)
        if not bad:
            return
        # To be taken over makes the temp archive go missing as well.
        self._claims.check_kept(claimed)
        if claimed.state == "crashed" and self.has_grown(claimed):
            raise RearError("its worker was taken for gone, and is writing to it")
        elsewhere = self.second_copies.written_later(claimed, [append for append, _ in bad])
        self._claims.note(claimed, sorted(elsewhere), target="a later temp archive", intent="")
        rescue = Rescue(claimed, descriptor, storage=self._storage)
        self._rescues.append(rescue)
        size = 0 if descriptor is None else self._storage.size(descriptor)
        items_left, bytes_left = _ITEMS_A_PAIR, size
        together: list[tuple[Append, str]] = []
        for append, reason in bad:
            if append.sequence in elsewhere:
                continue
            items_left, bytes_left = items_left - 1, bytes_left - max(0, min(append.length, size - append.offset))
            if reason is _OVERLAPS or items_left < 0 or bytes_left < 0:
                together.append((append, reason))
            else:
                yield from self._rescue_or_put_away(append, reason, rescue)
        if together:
            yield from self._put_away_together(claimed, together)

    def _divide(
        self, claimed: ClaimedPair, appends: list[Append], descriptor: int | None
    ) -> Generator[Event, None, tuple[list[Append], list[tuple[Append, str]]]]:
        """Return the members that are whole, and the others with what is wrong with them; yield how far that is."""
        if descriptor is None:
            return [], [(append, "its temp archive is missing") for append in appends]
        bad = {}
        size = self._storage.size(descriptor)
        if sum(append.length for append in appends) > size:
            # Members within members would be read, and copied, again and again.
            bad = {append.sequence: (append, _OVERLAPS) for append in _overlapping(appends, size)}
        suspects = [append for append in appends if append.sequence not in bad] if bad else appends
        if not self._reads_data(claimed):
            suspects = find_suspects(descriptor, suspects, claimed.opened, storage=self._storage)
        window = Window(descriptor, 0, size, storage=self._storage)
        pace = Pace()
        for number, append in enumerate(suspects):
            if pace.is_due():
                yield Advanced("checking", claimed.name, number, len(suspects))
            reason = self._why_bad(claimed, append, descriptor, window)
            if reason is not None:
                bad[append.sequence] = append, reason
        good = [append for append in appends if append.sequence not in bad] if bad else appends
        return good, list(bad.values())

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
            if item.sequence not in claimed.journal.merged and item.sequence not in claimed.unproven:
                yield Recovered(
                    item.archive, item.name, claimed.name, "no journal record; placed by its own extra field"
                )
        self._remains[claimed.name] = remains

    def _rescue_or_put_away(self, append: Append, reason: str, rescue: Rescue) -> Iterator[list[Candidate] | Event]:
        claimed = rescue.claimed
        try:
            check_archive(append.archive)
            check_name(append.name)
        except PathError:
            yield self._put_away(claimed, append, reason, rescue.source)
            return
        flushed = claimed.journal.flushed
        rescued, source = None if append is flushed else rescue.from_data(append), None
        if rescued is None and flushed is not None:
            yield from self._join(flushed, reason, rescue)
            return
        saved_from = "the journal, which holds all that an empty member has" if not append.size else "its intact data"
        if rescued is None:
            from_source = rescue.from_source(append)
            if isinstance(from_source, str):
                yield self._put_away(claimed, append, "; ".join(filter(None, (reason, from_source))), rescue.source)
                return
            rescued, source = from_source, append.source
            saved_from = f"its source {source}"
        self.second_copies.take(claimed, [append], rescued)
        yield [rescued]
        told = f"{reason}; archived anew from {saved_from}"
        yield Recovered(append.archive, append.name, claimed.name, told, source)

    def _join(self, flushed: Append, reason: str, rescue: Rescue) -> Iterator[list[Candidate] | Event]:
        for item in self._joining.settle(flushed, reason, rescue):
            if isinstance(item, Candidate):
                self.second_copies.take(rescue.claimed, [flushed], item)
                yield [item]
            else:
                yield item

    def _why_bad(self, claimed: ClaimedPair, append: Append, descriptor: int, window: Window) -> str | None:
        if append is claimed.journal.flushed:
            return _NOT_CLOSED
        if self._whole.get(append.sequence) is append:
            return None
        reads_data = self._reads_data(claimed)
        return why_bad(descriptor, append, claimed.opened, window=window, read_data=reads_data, storage=self._storage)

    def _reads_data(self, claimed: ClaimedPair) -> bool:
        return self._read_all or not claimed.is_trusted

    def _may_decode(self, claimed: ClaimedPair, decoded: OwnerBudget, storage: Storage) -> bool:
        """Whether members that have to be read decode to what is usual, or to what their user may have read besides."""
        if self._read_all or claimed.is_trusted:
            return True
        pending = claimed.journal.pending()
        size = sum(append.size for append in pending)
        if size <= _SURELY_READ_BYTES:
            return True
        length = sum(append.compressed_size for append in pending)
        with suppress(OSError):
            length = min(length, storage.size_of(claimed.temp_archive))
        return size <= _DECODED_FACTOR * length or decoded.takes(owner_of(claimed.journal), size)

    def _check_owner(self, claimed: ClaimedPair, status: os.stat_result) -> None:
        """Refuse a temp archive that is a link to another user's file: what is in it is not this journal's to tell.

        Raises:
            RearError: so it is.
        """
        if status.st_uid != owner_of(claimed.journal):
            raise RearError("it belongs to another user than its journal")

    def _put_away(self, claimed: ClaimedPair, append: Append, reason: str, descriptor: int | None) -> Event:
        is_last = claimed.journal.closed is None and append.sequence == next(reversed(claimed.journal.appends))
        # Of a process that died on a host that lives, only the last member can be unfinished, and it was not
        # acknowledged. Where the host itself may have lost power, it may have been.
        kind = Torn if is_last and is_running(process_of(claimed.opened)) is False else Lost
        note = {"reason": reason, "pair": claimed.name, **append._asdict(), "metadata": unpacked(append.metadata)}
        found = self._partly_decodable(claimed, append, descriptor)
        if found is not None and descriptor is not None:
            reason += self._put_partial(item_name(claimed.pair, append.sequence, found.name), descriptor, found, note)
        if claimed.state == "stale":
            reason += MAY_COME_BACK
        name = item_name(claimed.pair, append.sequence)
        item = self._lost_and_found.put_bytes(name, descriptor, append.offset, append.length, note)
        self._claims.note(claimed, [append.sequence], target=item, intent="")
        return kind(
            append.archive, append.name, claimed.name, append.source, append.offset, append.length, reason, item
        )

    def _put_away_together(self, claimed: ClaimedPair, bad: list[tuple[Append, str]]) -> Iterator[Event]:
        """Keep all of a temp archive for bad members that are many, or that it cannot hold all."""
        temp_archive, name = claimed.folder / f"{claimed.pair.stem}.zip", item_name(claimed.pair, "whole")
        sequences = [append.sequence for append, _ in bad]
        note = {"pair": claimed.name, "reason": f"{len(bad):,} members of it are not whole, or overlap"}
        if temp_archive.name in self._storage.names(claimed.folder):
            item = self._lost_and_found.put_copy(f"{name}.zip", temp_archive, note)
        else:
            item = self._lost_and_found.put_bytes(name, None, 0, 0, note)
        self._claims.note(claimed, sequences, target=item, intent="")
        overlapping = sum(reason is _OVERLAPS for _, reason in bad)
        if overlapping > _ITEMS_A_PAIR:
            # No worker writes such: that they are forged is told once, and who they should be stands in the journal.
            journal = claimed.folder / f"{claimed.pair.stem}.journal"
            kept = self._lost_and_found.put_copy(f"{name}.journal", journal, note)
            yield Damaged(claimed.name, 0, 0, f"{overlapping:,} members overlap others; {kept} names them", item)
            bad = [one for one in bad if one[1] is not _OVERLAPS]
        for one, reason in bad:
            yield Lost(one.archive, one.name, claimed.name, one.source, one.offset, one.length, reason, item)

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
        owner = os.fstat(descriptor).st_uid
        if not self._lost_and_found.takes_decoded(found.recoverable_bytes, found.end - found.offset, owner):
            return f"; {found.recoverable_bytes:,} bytes of it decode, which are kept compressed only: they are so many"
        content = recovered_content(descriptor, found, storage=self._storage)
        item = self._lost_and_found.put_content(name, content, note, source=descriptor)
        return f"; its first {found.recoverable_bytes:,} of {found.size:,} bytes decode and are in {item}"

    def has_failed(self, claimed: ClaimedPair) -> bool:
        """Whether a pair could not be checked to its end."""
        return claimed.name in self._failed

    def has_grown(self, claimed: ClaimedPair) -> bool:
        """Whether its worker has written to its journal since that was read."""
        size = self._storage.size_of(claimed.folder / f"{claimed.pair.stem}.journal")
        return not claimed.is_final and size > claimed.journal.length

    def has_remains(self, claimed: ClaimedPair) -> bool:
        """Whether a checked pair holds, or its journal held, what is accounted for nowhere."""
        journal = claimed.journal
        return bool(self._remains.get(claimed.name) or (journal.damage and not _is_accounted_for(journal)))

    def put_away_remains(self, claimed: ClaimedPair) -> Iterator[Event]:
        """Keep the whole pair, because it holds what cannot be placed, and say what."""
        remains = self._remains.get(claimed.name, []) + [
            Unplaced(damage.start, damage.length, f"of the journal: {damage.reason}")
            for damage in claimed.journal.damage
        ]
        reasons = [{"start": one.start, "length": one.length, "reason": one.reason} for one in remains[:_NOTED_REMAINS]]
        note = {"pair": claimed.name, "remains": reasons}
        said = []
        for one in remains:
            reason = one.reason
            if one.found is not None and one.found.state == "partial":
                with opened(claimed.temp_archive, self._storage) as descriptor:
                    name = item_name(claimed.pair, f"at-{one.start}", one.found.name)
                    reason += self._put_partial(name, descriptor, one.found, note)
            said.append(reason)
        item = self._lost_and_found.put_pair(claimed.pair, claimed.folder, note)
        for one, reason in zip(remains, said, strict=True):
            origin = one.found.origin if one.found is not None else None
            if one.found is not None and origin is not None:
                name, source = one.found.name, origin.source
                yield Lost(origin.archive, name, claimed.name, source, one.start, one.length, reason, item)
            else:
                yield Damaged(claimed.name, one.start, one.length, reason, item)


def _overlapping(appends: list[Append], size: int) -> Iterator[Append]:
    """Yield the members of a file that begin within another one; of two at one place the last one written counts."""
    end = 0
    for append in sorted(appends, key=lambda one: (one.offset, -one.sequence)):
        if append.offset < end:
            yield append
        elif append.offset + append.length <= size:
            end = append.offset + append.length


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
