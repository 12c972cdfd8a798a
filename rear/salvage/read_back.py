"""Does a rebuilt archive hold what was to be written? One pass over the new file, before it replaces anything.

`Written` notes, while the archive is written, what has to stand where: the CRC-32 of bytes that the scan had in memory
when it found them whole, of headers and directory as they were made, and for what was not in memory then, where it was
copied from. `why_wrong` reads the new file from its first byte to its last one and compares. So a byte that the copy,
the file system or the memory between has changed is noticed, whether a member's CRC-32 covers it or not.

That the bytes mean what they should is proven apart: the directory is found as any reader finds it, and counts what was
written; members about which there was a question are decoded again from the new file, each beside its entry; of the
others, whose entries were made from the headers themselves and thousands at once, the first and the last of each run.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from rear.core.storage import Storage, StrPath, close_read
from rear.errors import RearError, UnsupportedError, ZipFormatError
from rear.zip.archive import Archive
from rear.zip.codecs import crc32
from rear.zip.directory import Directory, entries, entry_at, locate
from rear.zip.headers import CentralEntry
from rear.zip.member_ends import member_end, verify
from rear.zip.window import Window

_NO_CRC: Final = -1
_EACH: Final = -1


class _Section(NamedTuple):
    """Entries that follow each other in the directory; ``last``: where the last one begins, or `_EACH`."""

    length: int
    members: int
    last: int


class Written:
    """What a rebuild has written, in the order of the new file. Memory: 24 bytes for each part or run of entries."""

    def __init__(self) -> None:
        self._lengths = array("Q")
        self._sources = array("Q")
        self._crcs = array("q")
        self._sections = [array("Q"), array("Q"), array("q")]
        self.size_bytes = 0

    def note_bytes(self, data: bytes) -> None:
        """Note bytes that were made for the new archive."""
        self._add(0, len(data), crc32(data))

    def note_copy(self, source_start: int, length: int, crc: int | None) -> None:
        """Note a range of the old archive; ``crc`` is that of what the scan saw, if it had all of it in memory."""
        joins = crc is None and self._crcs and self._crcs[-1] == _NO_CRC
        if joins and self._sources[-1] + self._lengths[-1] == source_start:
            self._lengths[-1] += length
            self.size_bytes += length
        elif length:
            self._add(source_start, length, _NO_CRC if crc is None else crc)

    def _add(self, source: int, length: int, crc: int) -> None:
        self._lengths.append(length)
        self._sources.append(source)
        self._crcs.append(crc)
        self.size_bytes += length

    def note_entry(self, length: int) -> None:
        """Note the length of a directory entry whose member was looked at by itself."""
        lengths, members, lasts = self._sections
        if lasts and lasts[-1] == _EACH:
            lengths[-1] += length
            members[-1] += 1
        else:
            self.note_entries(length, 1, _EACH)

    def note_entries(self, length: int, members: int, last: int) -> None:
        """Note the entries of a run of plain members: their length, their number, and where the last of them begins."""
        for numbers, value in zip(self._sections, (length, members, last), strict=True):
            numbers.append(value)

    def sections(self) -> Iterator[_Section]:
        """Yield the entries, as they were noted."""
        return map(_Section._make, zip(*self._sections, strict=True))

    def parts(self) -> Iterator[tuple[int, int, int]]:
        """Yield length, where it was copied from, and CRC-32 of each part; -1 where it has to be compared."""
        return zip(self._lengths, self._sources, self._crcs, strict=True)


def why_wrong(path: StrPath, written: Written, *, source: int, storage: Storage) -> str | None:
    """Read a rebuilt archive, and tell where it is not what was written; ``None`` when all of it is.

    ``source`` is the old archive, open; the new one is written to its end.

    Raises:
        OSError: one of them cannot be read.
    """
    descriptor = storage.open(path)
    try:
        return _wrong_bytes(descriptor, written, source, storage) or _wrong_members(path, descriptor, written, storage)
    finally:
        close_read(descriptor, storage)


def _wrong_bytes(descriptor: int, written: Written, source: int, storage: Storage) -> str | None:
    size = storage.size(descriptor)
    if size != written.size_bytes:
        return f"it has {size:,} bytes instead of {written.size_bytes:,}"
    new = Window(descriptor, 0, size, storage=storage)
    old = Window(source, 0, storage.size(source), storage=storage)
    position = 0
    for length, start, crc in written.parts():
        end, found, shift = position + length, 0, start - position
        same = True
        for at, piece in _pieces(new, position, end):
            if crc == _NO_CRC:
                other = b"".join(bytes(part) for _, part in _pieces(old, at + shift, at + shift + len(piece)))
                same = same and bytes(piece) == other
            else:
                found = crc32(piece, found)
        if not same or (crc != _NO_CRC and found != crc):
            return f"bytes {position:,} to {end:,} are not what was written"
        position = end
    return None


def _pieces(window: Window, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """Yield the bytes of a range, each piece with where it begins."""
    while start < end:
        window.load(start, 1)
        at = start - window.base
        piece = memoryview(window.data)[at : at + end - start]
        if not piece:
            return
        yield start, piece
        start += len(piece)


def _wrong_members(path: StrPath, descriptor: int, written: Written, storage: Storage) -> str | None:
    members = sum(section.members for section in written.sections())
    length = sum(section.length for section in written.sections())
    try:
        directory = locate(descriptor, storage=storage)
        if (directory.entries, directory.length, directory.prefix) != (members, length, 0):
            return f"its directory has {directory.entries:,} members instead of {members:,}"
        # Closed by whoever opened it.
        archive = Archive(str(path), descriptor, directory, io.BytesIO(), storage)
        position = 0
        for section in written.sections():
            for entry in _entries_to_check(descriptor, directory, position, section, storage):
                wrong = _wrong_member(archive, entry)
                if wrong is not None:
                    return wrong
            position += section.length
    except RearError as error:
        return error.what if isinstance(error, ZipFormatError) else str(error)
    return None


def _entries_to_check(
    descriptor: int, directory: Directory, position: int, section: _Section, storage: Storage
) -> Iterator[CentralEntry]:
    if section.last == _EACH:
        part = replace(
            directory, offset=directory.offset + position, length=section.length, entries=section.members, comment=b""
        )
        yield from entries(descriptor, part, storage=storage)
        return
    for at in (position, position + section.last):
        yield entry_at(descriptor, directory, at, storage=storage)


def _wrong_member(archive: Archive, entry: CentralEntry) -> str | None:
    """Tell in what a member is not as its entry says; of what cannot be decoded here, the header is compared."""
    try:
        end, difference = member_end(archive, entry)
        if difference is None and end > archive.directory.offset:
            difference = f"its data would end at {end:,}, the directory begins at {archive.directory.offset:,}"
        if difference is not None:
            return f"member {entry.name!r:.300} at {entry.offset:,}: {difference}"
        verify(archive, entry)
    except UnsupportedError:
        pass
    except ZipFormatError as error:
        return error.what
    return None
