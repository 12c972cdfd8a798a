"""Flushed files whose writers died before they closed them: which of their pairs count, and how far.

The member is *partial*: its metadata say so. See ``rear.worker.flushed_file`` for how its parts come about,
``rear.journal.flushed_parts`` for what is whole of them, ``rear.scavenger.rescue`` for where the member is until it is
merged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal

from rear.core.liveness import is_running, process_of
from rear.core.records import Append, File, Pair
from rear.core.storage import Storage, opened
from rear.errors import FormatError
from rear.events import Event, Lost, Partial, SetAside, Torn
from rear.journal.flushed_parts import Joined, join_parts
from rear.scavenger.claims import ClaimedPair, Claims
from rear.scavenger.final_archive import begin_alike
from rear.scavenger.lost_and_found import LostAndFound, item_name
from rear.scavenger.owners import owner_of
from rear.scavenger.plan import Candidate
from rear.scavenger.rescue import Rescue
from rear.zip.codecs import STREAM_ENDS, decode
from rear.zip.member_data import raw_bytes

PartialPolicy = Literal["keep", "drop"]
_File = tuple[str, str, int, int]
"""A file by host, worker and user who wrote it, and the first number that it had."""
MAY_COME_BACK: Final = "; its worker cannot be seen, and may still have it: if it comes back, it writes the file again"
"""Ends the reason why a member of a stale pair is torn or lost."""


class FlushedFiles:
    """The parts of all files that the pairs of one round hold."""

    def __init__(
        self,
        batch: Iterable[ClaimedPair],
        claims: Claims,
        lost_and_found: LostAndFound,
        *,
        partial: PartialPolicy,
        storage: Storage,
    ) -> None:
        self._claims = claims
        self._lost_and_found = lost_and_found
        self._partial = partial
        self._storage = storage
        self._joined: dict[Pair, Joined] = {}
        #: A file whose pair had failed has several.
        self._pairs: dict[_File, list[ClaimedPair]] = {}
        #: To which pair each of them is compared: a later one, or an earlier one.
        self._others: dict[Pair, tuple[ClaimedPair | None, ClaimedPair | None]] = {}
        self._listed: dict[Path, set[str]] = {}
        for claimed in batch:
            if claimed.journal.file is not None:
                self._pairs.setdefault(_key(claimed, claimed.journal.file), []).append(claimed)

    def settle(self, flushed: Append, reason: str, rescue: Rescue) -> Iterator[Candidate | Event]:
        """Make a member of what is whole of a file that was flushed, or keep that in lost+found.

        ``flushed`` is the file as far as its journal says that it was flushed, ``reason`` why there is no more of it.

        Raises:
            UnsupportedError: the parts cannot be decoded here.
            OSError: journal or temp archive cannot be read, or something cannot be written.
        """
        claimed, descriptor = rescue.claimed, rescue.source
        joined, bad_parts = self._join(claimed, descriptor)
        elsewhere = self._counts_elsewhere(claimed)
        if elsewhere is not None:
            where, has_all = elsewhere
            if has_all or joined is None or descriptor is None:
                self._claims.note(claimed, [flushed.sequence], target=where, intent="")
            else:
                # Its writer has changed what he had flushed, or gave it up. Or somebody else says so.
                told = f"it counts in {where}, which does not begin with the {joined.size:,} bytes that are here"
                kept = self._put_content(claimed, joined, descriptor, told)
                yield SetAside(joined.archive, joined.name, claimed.name, told, kept)
            return
        if bad_parts:
            yield self._put_bad_parts(claimed, flushed, joined, bad_parts, descriptor)
        if joined is None or descriptor is None:
            return
        told = f"{reason}; what it flushed is kept, {joined.size:,} bytes"
        item: str | None = None
        if self._partial == "drop":
            item = self._put_content(claimed, joined, descriptor, told)
        else:
            yield rescue.from_parts(joined)
        if joined.sequence not in claimed.unproven:
            # Else that was told before.
            yield Partial(joined.archive, joined.name, claimed.name, joined.size, told, item)

    def _put_content(self, claimed: ClaimedPair, joined: Append, descriptor: int, reason: str) -> str:
        """Keep what is whole of a file as it is, and note that; return the item."""
        note = {"reason": reason, "pair": claimed.name, **joined._asdict()}
        if self._lost_and_found.takes_decoded(joined.size, joined.compressed_size, owner_of(claimed.journal)):
            content = _content_of(joined, descriptor, self._storage)
            name = item_name(claimed.pair, joined.sequence, joined.name)
            item = self._lost_and_found.put_content(name, content, note, source=descriptor)
        else:
            name, start = item_name(claimed.pair, joined.sequence), joined.data_offset
            item = self._lost_and_found.put_bytes(name, descriptor, start, joined.compressed_size, note)
        self._claims.note(claimed, [joined.sequence], target=item, intent="")
        return item

    def _put_bad_parts(
        self, claimed: ClaimedPair, flushed: Append, joined: Append | None, bad_parts: int, descriptor: int | None
    ) -> Event:
        """Keep what is not whole of a file; all of it when ``joined`` is none."""
        # A process that dies on a host that lives leaves one unfinished flush at most.
        is_torn = bad_parts == 1 and is_running(process_of(claimed.opened)) is False
        size, start = (0, flushed.data_offset) if joined is None else (joined.size, joined.offset + joined.length)
        length = flushed.offset + flushed.length - start
        reason = f"{bad_parts:,} of the parts that were flushed, from byte {size:,} of it on, are not whole"
        if claimed.state == "stale":
            reason += MAY_COME_BACK
        note = {"reason": reason, "pair": claimed.name, **flushed._asdict()}
        item = self._lost_and_found.put_bytes(
            item_name(claimed.pair, flushed.sequence), descriptor, start, length, note
        )
        if joined is None:
            self._claims.note(claimed, [flushed.sequence], target=item, intent="")
        return (Torn if is_torn else Lost)(
            flushed.archive, flushed.name, claimed.name, None, start, length, reason, item
        )

    def _join(self, claimed: ClaimedPair, descriptor: int | None) -> Joined:
        file = claimed.journal.file
        assert file is not None
        if claimed.pair not in self._joined:
            path = claimed.folder / f"{claimed.pair.stem}.journal"
            self._joined[claimed.pair] = join_parts(file, path, descriptor, storage=self._storage)
        return self._joined[claimed.pair]

    def _counts_elsewhere(self, claimed: ClaimedPair) -> tuple[str, bool] | None:
        """Tell where a file counts instead, and whether all that is here is there, too.

        A pair has all that an earlier one had, or nothing. But anybody may write one that says so. Each is compared to
        one other pair: of later ones the next that has all, to which that one's own bytes are compared then.
        """
        file = claimed.journal.file
        assert file is not None
        if claimed.pair not in self._others:
            self._find_others(self._pairs[_key(claimed, file)])
        later, earlier = self._others[claimed.pair]
        if later is not None:
            return "a later temp archive", self._goes_on_in(claimed, later)
        if earlier is not None and not self._takes_over(claimed):
            return "an earlier temp archive", self._goes_on_in(claimed, earlier)
        return None

    def _find_others(self, pairs: list[ClaimedPair]) -> None:
        """Find for each pair of a file the next one that takes over, and the longest one before."""
        pairs = sorted(pairs, key=lambda claimed: claimed.pair.rotation)
        later: ClaimedPair | None = None
        next_ones = []
        for claimed in reversed(pairs):
            next_ones.append(later)
            later = claimed if self._takes_over(claimed) else later
        longest, earlier = -1, None
        for claimed, following in zip(pairs, reversed(next_ones), strict=True):
            self._others[claimed.pair] = following, earlier
            with ExitStack() as stack:
                size = self._join(claimed, self._open(claimed, stack)).size
            if size > longest and not _is_given_up(claimed):
                longest, earlier = size, claimed

    def _goes_on_in(self, claimed: ClaimedPair, other: ClaimedPair) -> bool:
        """Whether another pair begins with all bytes of the file that this one has."""
        try:
            with ExitStack() as stack:
                mine, size = self._content(claimed, stack)
                theirs, length = self._content(other, stack)
                return length >= size and begin_alike(mine, theirs, size)
        except FormatError:
            return False

    def _content(self, claimed: ClaimedPair, stack: ExitStack) -> tuple[Iterator[bytes], int]:
        """Return the content of a file as far as a pair has it whole, and how long that is."""
        file, descriptor = claimed.journal.file, self._open(claimed, stack)
        assert file is not None
        append = claimed.journal.appends.get(file.sequence)
        if append is claimed.journal.flushed:
            append = self._join(claimed, descriptor).append
            end = STREAM_ENDS[file.method]
        else:
            end = b""
        if append is None or descriptor is None:
            return iter(()), 0
        data = raw_bytes(descriptor, append.data_offset, append.compressed_size, storage=self._storage)
        return decode(append.method, itertools.chain(data, [end])), append.size

    def _open(self, claimed: ClaimedPair, stack: ExitStack) -> int | None:
        if claimed.temp_archive.name not in self._names(claimed.folder):
            return None
        return stack.enter_context(opened(claimed.temp_archive, self._storage))

    def _names(self, folder: Path) -> set[str]:
        if folder not in self._listed:
            self._listed[folder] = set(self._storage.names(folder))
        return self._listed[folder]

    def _takes_over(self, claimed: ClaimedPair) -> bool:
        file = claimed.journal.file
        assert file is not None
        if _is_given_up(claimed):
            # What its writer gave up there he gave up altogether.
            return True
        with ExitStack() as stack:
            size = self._join(claimed, self._open(claimed, stack)).size
        return size >= file.repeated_size and file.sequence in claimed.journal.appends


def _content_of(append: Append, descriptor: int, storage: Storage) -> Iterator[bytes]:
    data = raw_bytes(descriptor, append.data_offset, append.compressed_size, storage=storage)
    return decode(append.method, itertools.chain(data, [STREAM_ENDS[append.method]]))


def _key(claimed: ClaimedPair, file: File) -> _File:
    return claimed.pair.host, claimed.pair.worker, owner_of(claimed.journal), file.first_sequence


def _is_given_up(claimed: ClaimedPair) -> bool:
    file = claimed.journal.file
    return file is not None and file.sequence in claimed.journal.aborted
