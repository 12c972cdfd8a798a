"""What a merge that died can have left of its archive: proven from the archive itself before anything is undone.

An intent says where the old directory stood, and keeps it. Whoever writes such a file by hand may make it as right as
he likes, so each of its words is laid beside the archive. Nothing that is sound is changed, but for members of this
very merge, which are still in their temp archives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Final

from rear.core.records import Append
from rear.core.storage import COPY_CHUNK_BYTES, Storage, opened
from rear.errors import NotAZipError, UnsupportedError, ZipFormatError
from rear.journal.intent import Intent, Move
from rear.scavenger.claims import ClaimedPair
from rear.zip import directory as directories
from rear.zip.directory import Directory
from rear.zip.headers import CentralEntry, LocalHeader, decode_local_header, local_header_length
from rear.zip.member_data import has_content
from rear.zip.origin import decode_origin
from rear.zip.structures import CENTRAL, END, LOCAL, ZIP64_END, ZIP64_LOCATOR

_LOOKED_AT: Final = 20_000
"""Local headers of about so many members are looked at, spread over all: each may be a read of its own."""
_ENTRY_EXTRA_BYTES: Final = 9 + 28
_END_BYTES: Final = END.size + ZIP64_END.size + ZIP64_LOCATOR.size


class MergeRemains:
    """An archive, open as ``descriptor``, on which a merge died, and the intent of that, open as ``source``."""

    def __init__(self, intent: Intent, descriptor: int, source: int, *, storage: Storage) -> None:
        assert intent.old is not None
        self._intent = intent
        self._old: Directory = intent.old
        self._descriptor = descriptor
        self._source = source
        self._storage = storage

    def is_untouched(self) -> bool:
        """Whether the archive ends as it did before the merge: there is nothing to undo."""
        intent, old = self._intent, self._old
        return self._storage.size(self._descriptor) == old.archive_length and same_bytes(
            self._source, intent.tail_start, self._descriptor, old.offset, intent.tail_length, storage=self._storage
        )

    def can_be(self, claimed: Mapping[str, ClaimedPair]) -> bool:
        """Whether this merge can have left the archive like that, and its members are still to be had elsewhere.

        ``claimed`` are the pairs in the claim folder, by name.
        """
        moves = copied(self._intent)
        if not moves or moves[0].target_start != self._old.offset or not self._has_fitting_size(moves):
            return False
        if not self._keeps_its_directory():
            return False
        found = self._sound_directory()
        if found is None:
            return not self._holds_others(moves)
        # All of it is written, and the commit alone is missing; or the old end has begun to take its place again.
        come = members_from(self._descriptor, found, self._old.offset, storage=self._storage)
        is_this = come == names_by_place(moves)
        return is_this and (self._is_being_undone() or self._lacks_nothing(moves, claimed))

    def _is_being_undone(self) -> bool:
        length = min(CENTRAL.size, self._intent.tail_length)
        start = self._intent.tail_start
        return same_bytes(self._source, start, self._descriptor, self._old.offset, length, storage=self._storage)

    def _has_fitting_size(self, moves: list[Move]) -> bool:
        """Whether the archive is as long as the merge can have made it, and no shorter than the old members."""
        entries = sum(CENTRAL.size + _ENTRY_EXTRA_BYTES + len(move.name.encode()) for move in moves)
        longest = moves[-1].target_end + self._intent.tail_length + entries + _END_BYTES
        size = self._storage.size(self._descriptor)
        return self._old.offset <= size <= max(longest, self._old.archive_length)

    def _sound_directory(self) -> Directory | None:
        try:
            found = directories.locate(self._descriptor, storage=self._storage)
            for _ in directories.entries(self._descriptor, found, storage=self._storage):
                pass
        except (NotAZipError, UnsupportedError, ZipFormatError):
            # Half of it is on disk: the merge was in the middle, or the power lost.
            return None
        return found

    def _keeps_its_directory(self) -> bool:
        """Whether the directory that the intent keeps decodes whole, and its members stand before it in the archive."""
        old, start = self._old, self._intent.tail_start
        kept = Directory(start + self._intent.tail_length, start, old.length, old.entries, 0, b"")
        looked_at = found = 0
        try:
            step = 1 + old.entries // _LOOKED_AT
            for number, entry in enumerate(directories.entries(self._source, kept, storage=self._storage)):
                if number % step:
                    continue
                looked_at += 1
                position = old.prefix + entry.offset
                header = self._header_at(position) if position < old.offset else None
                found += header is not None and _may_be_of(header, entry)
        except ZipFormatError:
            return False
        # A member may have been damaged before.
        return 2 * found >= looked_at

    def _holds_others(self, moves: list[Move]) -> bool:
        """Whether members stand where this merge puts others."""
        for move in moves[:: 1 + len(moves) // _LOOKED_AT]:
            header = self._header_at(move.target_start)
            if header is not None and header.name != move.name.encode():
                return True
        return False

    def _lacks_nothing(self, moves: list[Move], claimed: Mapping[str, ClaimedPair]) -> bool:
        """Whether each of these members that is whole here is, byte for byte, in its temp archive as well."""
        for pair, group in groupby(sorted(moves), itemgetter(0)):
            with ExitStack() as stack:
                one, descriptor = claimed.get(pair), -1
                if one is not None:
                    with suppress(OSError):
                        descriptor = stack.enter_context(opened(one.temp_archive, self._storage))
                for move in group:
                    append = one.journal.appends.get(move.sequence) if one is not None else None
                    is_copy = one and append and descriptor >= 0 and self._is_copy(move, append, one, descriptor)
                    if not is_copy and self._is_whole(move):
                        return False
        return True

    def _is_whole(self, move: Move) -> bool:
        header = self._header_at(move.target_start)
        if header is None:
            return False
        start = move.target_start + header.length
        try:
            return has_content(
                self._descriptor, start, header.compressed_size, header.method, size=header.size, crc=header.crc,
                storage=self._storage,
            )  # fmt: skip
        except ZipFormatError:
            return False
        except UnsupportedError:
            # It may be.
            return True

    def _is_copy(self, move: Move, append: Append, claimed: ClaimedPair, descriptor: int) -> bool:
        if not is_member(self._descriptor, move.target_start, claimed, append, storage=self._storage):
            return False
        # One that got another name has another header.
        length, start = append.compressed_size, move.target_end - append.compressed_size
        return same_bytes(self._descriptor, start, descriptor, append.data_offset, length, storage=self._storage)

    def _header_at(self, position: int) -> LocalHeader | None:
        return header_at(self._descriptor, position, storage=self._storage)[0]


def _may_be_of(header: LocalHeader, entry: CentralEntry) -> bool:
    """Whether a local header may be that of a member of a directory: tools write names in two ways, and bits flip."""
    if header.name == entry.name_bytes or (header.size, header.crc) == (entry.size, entry.crc):
        return True
    return header.has_descriptor and header.method == entry.method


def copied(intent: Intent) -> list[Move]:
    """Return the members that a merge copies, in the order of their places."""
    moves = (move for move in intent.moves if move.target_end > move.target_start)
    return sorted(moves, key=attrgetter("target_start"))


def names_by_place(moves: Iterable[Move]) -> dict[int, str]:
    """Return the names of copied members by their places."""
    return {move.target_start: move.name for move in moves}


def members_from(descriptor: int, directory: Directory, start: int, *, storage: Storage) -> dict[int, str]:
    """Return the names of the members of an archive that begin at ``start`` or behind it, by offset.

    Raises:
        ZipFormatError: the directory is damaged.
    """
    return {
        entry.offset + directory.prefix: entry.name
        for entry in directories.entries(descriptor, directory, storage=storage)
        if entry.offset + directory.prefix >= start
    }


def header_at(descriptor: int, position: int, *, storage: Storage) -> tuple[LocalHeader | None, bytes]:
    """Return the local header at a place of an open archive, decoded and as it is; ``None`` where none is."""
    head = storage.read(descriptor, LOCAL.size, position)
    try:
        data = storage.read(descriptor, local_header_length(head), position)
        return decode_local_header(data), data
    except ZipFormatError:
        return None, b""


def is_member(descriptor: int, position: int, claimed: ClaimedPair, append: Append, *, storage: Storage) -> bool:
    """Whether the local header at a place of an open archive is that of a member of a pair, with its size and CRC-32.

    Under which name, is not asked: another member may have had it.
    """
    header, data = header_at(descriptor, position, storage=storage)
    origin = decode_origin(data) if header is not None else None
    if header is None or origin is None:
        return False
    identity = origin.host, origin.worker, origin.sequence, origin.archive
    return identity == (claimed.pair.host, claimed.pair.worker, append.sequence, append.archive) and (
        header.size, header.crc,
    ) == (append.size, append.crc)  # fmt: skip


def same_bytes(left: int, left_start: int, right: int, right_start: int, length: int, *, storage: Storage) -> bool:
    """Whether two ranges of open files hold the same bytes."""
    for start in range(0, length, COPY_CHUNK_BYTES):
        count = min(COPY_CHUNK_BYTES, length - start)
        mine = storage.read(left, count, left_start + start)
        if len(mine) < count or mine != storage.read(right, count, right_start + start):
            return False
    return True
