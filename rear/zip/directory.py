"""Central directories: where one is, what it says, whether it is still the same.

An end of central directory record is believed only if it describes this very file, because the last one in a torn
archive may belong to a Zip that was stored as a member: its comment ends at the last byte of the file, the directory
ends where the end records begin, the first entry is there, and where the recorded offsets do not fit the file (those of
a self-extractor need not), the first member is where the first entry says, and the whole is no member of another Zip.
Paragraph numbers are those of APPNOTE 6.3.10.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from rear.core.storage import LOCAL, Storage
from rear.errors import NotAZipError, UnsupportedError, ZipFormatError
from rear.zip.codecs import crc32
from rear.zip.extra_fields import decode_name, zip64_values
from rear.zip.headers import CentralEntry, decode_central_entry
from rear.zip.member_data import raw_bytes
from rear.zip.structures import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    END,
    END_SIGNATURE,
    FLAG_MASKED,
    LIMIT_16,
    LIMIT_32,
    LOCAL_LIMIT_BYTES,
    LOCAL_SIGNATURE,
    ZIP64_END,
    ZIP64_END_SIGNATURE,
    ZIP64_LOCATOR,
    ZIP64_LOCATOR_SIGNATURE,
)
from rear.zip.structures import LOCAL as LOCAL_HEADER

PIECE_BYTES: Final = 1 << 20
"""Directories are read in pieces of this size; the longest entry (4.4.10 to 4.4.12) takes a fifth of it."""
ZIP64_END_LIMIT_BYTES: Final = 4096
"""Longest Zip64 end record that is looked for: 56 bytes, and what software adds of its own (4.3.14.2)."""
_END_RECORDS_LIMIT: Final = 16
"""So many end records that end at the last byte are looked at: a forged comment has room for 3,000, each of which may
want the whole directory to be counted."""
_FINGERPRINT_BYTES: Final = 4096
_TAIL_BYTES: Final = END.size + LIMIT_16
#: Version needed for an encrypted or compressed directory (4.4.3.2); what a Zip64 end record then adds (7.3.4).
_VERSION_MASKED: Final = 62
_ZIP64_END_2: Final = struct.Struct("<HQQH")
#: Signature, flags, and the lengths of name, extra area and comment of an entry (4.3.12).
_ENTRY_LENGTHS: Final = struct.Struct("<4s4xH18x3H")


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the central directory of an archive stands. All positions are real ones in the file.

    Recorded offsets (of members and of the directory) count from ``prefix``: 0 in most archives, else the length of
    what somebody put before the Zip (a self-extractor), where the offsets were not adjusted.
    """

    archive_length: int
    offset: int
    length: int
    entries: int
    prefix: int
    comment: bytes


class _End(NamedTuple):
    """What the end records say: real position of the first of them, and the rest as recorded."""

    position: int
    entries: int
    length: int
    offset: int
    zip64: bool


def locate(descriptor: int, *, storage: Storage = LOCAL) -> Directory:
    """Find the central directory of an open file, and check that it is one; its entries are not read, save the first.

    Raises:
        NotAZipError: no end record describes this file.
        UnsupportedError: the archive is split into volumes, or its directory is encrypted or compressed.
    """
    size = storage.size(descriptor)
    if size < END.size:
        raise NotAZipError(f"{size:,} bytes are too few for a Zip file, which has {END.size} at least")
    tail_start = max(0, size - _TAIL_BYTES)
    tail = storage.read(descriptor, size - tail_start, tail_start)
    failure: NotAZipError | UnsupportedError | None = None
    checked = 0
    position = tail.rfind(END_SIGNATURE)
    while position >= 0 and checked < _END_RECORDS_LIMIT:
        if len(tail) - position >= END.size:
            comment_length = int.from_bytes(tail[position + END.size - 2 : position + END.size], "little")
            if position + END.size + comment_length == len(tail):
                checked += 1
                try:
                    return _check(descriptor, size, tail_start + position, tail[position:], storage)
                except (NotAZipError, UnsupportedError) as error:
                    failure = failure or error
        position = tail.rfind(END_SIGNATURE, 0, position + len(END_SIGNATURE) - 1)
    if failure is not None:
        raise failure
    raise NotAZipError(f"no end of central directory record with a comment that ends at the last of {size:,} bytes")


def _check(descriptor: int, size: int, position: int, record: bytes, storage: Storage) -> Directory:
    """Return the directory that the end record at ``position`` describes, if it describes this file."""
    end = _read_end(descriptor, position, record, storage)
    offset = end.position - end.length
    prefix = offset - end.offset
    if end.length < CENTRAL.size * end.entries or (end.length and not end.entries):
        raise NotAZipError(f"the end record at {position:,} claims {end.entries:,} entries in {end.length:,} bytes")
    if offset < 0 or prefix < 0:
        raise NotAZipError(
            f"the end record at {position:,} describes a directory of {end.length:,} bytes at {end.offset:,}, "
            f"which would end at {end.offset + end.length:,} instead of {end.position:,}"
        )
    directory = Directory(size, offset, end.length, end.entries, prefix, record[END.size :])
    if not end.entries:
        if prefix:
            raise NotAZipError(
                f"the end record at {position:,} describes an empty archive, but {prefix:,} bytes precede it"
            )
        return directory
    first = _first_entry(descriptor, directory, storage)
    if first.flags & FLAG_MASKED:
        raise UnsupportedError("the central directory is encrypted", "encryption")
    if prefix:
        _check_prefix(descriptor, directory, first, storage)
    if not end.zip64 and end.length >= CENTRAL.size << 16:
        return _unwrap_count(descriptor, directory, storage)
    return directory


def _read_end(descriptor: int, position: int, record: bytes, storage: Storage) -> _End:
    """Return what the end record, and the Zip64 one where there is one, say (4.3.14 to 4.3.16)."""
    _, disk, directory_disk, here, entries, length, offset, _ = END.unpack_from(record)
    zip64 = _read_zip64_end(descriptor, position, storage)
    end = _End(position, entries, length, offset, False)
    if zip64 is not None:
        # A value of the end record that is at its limit stands in the Zip64 record (4.4.1.4); the others have to agree.
        mine = (entries, LIMIT_16, zip64.entries), (length, LIMIT_32, zip64.length), (offset, LIMIT_32, zip64.offset)
        if any(value not in (limit, large) for value, limit, large in mine):
            raise NotAZipError(
                f"the end record at {position:,} says {entries:,} entries, {length:,} bytes at {offset:,}; "
                f"the Zip64 one says {zip64.entries:,} entries, {zip64.length:,} bytes at {zip64.offset:,}"
            )
        return zip64
    # Without a Zip64 record the limits are values like others.
    if disk or directory_disk or here != entries:
        raise UnsupportedError(f"volume {disk + 1} of a split archive; rear reads archives of one file", "volumes")
    return end


def _read_zip64_end(descriptor: int, position: int, storage: Storage) -> _End | None:
    """Return what the Zip64 end record says whose locator ends at ``position``, or ``None`` when there is none."""
    locator_position = position - ZIP64_LOCATOR.size
    if locator_position < ZIP64_END.size:
        return None
    start = max(0, locator_position - ZIP64_END_LIMIT_BYTES)
    data = storage.read(descriptor, position - start, start)
    locator = data[locator_position - start :]
    if len(locator) < ZIP64_LOCATOR.size or locator[:4] != ZIP64_LOCATOR_SIGNATURE:
        return None
    _, _, recorded, volumes = ZIP64_LOCATOR.unpack_from(locator)
    if volumes > 1:
        raise UnsupportedError(
            f"the archive is split into {volumes:,} volumes; rear reads archives of one file", "volumes"
        )
    found = data.rfind(ZIP64_END_SIGNATURE, 0, locator_position - start)
    while found >= 0:
        if locator_position - start - found >= ZIP64_END.size:
            _, size, _, needed, disk, directory_disk, here, entries, length, offset = ZIP64_END.unpack_from(data, found)
            if start + found + 12 + size == locator_position:
                break
        found = data.rfind(ZIP64_END_SIGNATURE, 0, found + len(ZIP64_END_SIGNATURE) - 1)
    else:
        raise NotAZipError(
            f"no Zip64 end record ends at {locator_position:,}, where its locator stands; that says {recorded:,}"
        )
    if disk or directory_disk or here != entries:
        raise UnsupportedError("the archive is split into volumes; rear reads archives of one file", "volumes")
    if needed >= _VERSION_MASKED and size >= ZIP64_END.size - 12 + _ZIP64_END_2.size:
        method, _, _, algorithm = _ZIP64_END_2.unpack_from(data, found + ZIP64_END.size)
        if method or algorithm:
            raise UnsupportedError("the central directory is encrypted or compressed", "encryption")
    if recorded + (start + found - length - offset) != start + found and recorded != start + found:
        raise NotAZipError(f"the Zip64 end record is at {start + found:,}, its locator says {recorded:,}")
    return _End(start + found, entries, length, offset, True)


def _first_entry(descriptor: int, directory: Directory, storage: Storage) -> CentralEntry:
    head = storage.read(descriptor, CENTRAL.size, directory.offset)
    if len(head) < CENTRAL.size or head[:4] != CENTRAL_SIGNATURE:
        raise NotAZipError(
            f"no central directory at {directory.offset:,}, {directory.length:,} bytes before the end records: "
            f"{head[:4]!r} instead of {CENTRAL_SIGNATURE!r}"
        )
    _, _, *lengths = _ENTRY_LENGTHS.unpack_from(head)
    length = CENTRAL.size + sum(lengths)
    if length > directory.length:
        raise NotAZipError(f"the first entry has {length:,} bytes, the central directory {directory.length:,}")
    entry, _ = decode_central_entry(storage.read(descriptor, length, directory.offset))
    return entry


def _check_prefix(descriptor: int, directory: Directory, first: CentralEntry, storage: Storage) -> None:
    """Check that an archive whose offsets count from ``prefix`` is no member of another, torn one."""
    prefix = directory.prefix
    position = prefix + first.offset
    found = storage.read(descriptor, len(LOCAL_SIGNATURE), position) if position < directory.offset else b""
    if found != LOCAL_SIGNATURE:
        raise NotAZipError(
            f"the first entry's member should be at {position:,}: {found!r} instead of {LOCAL_SIGNATURE!r}"
        )
    start = max(0, prefix - LOCAL_LIMIT_BYTES)
    before = storage.read(descriptor, prefix - start, start)
    inside = storage.read(descriptor, len(LOCAL_SIGNATURE), 0) == LOCAL_SIGNATURE or _ends_in_local_header(before)
    if inside:
        raise NotAZipError(
            f"the last end record belongs to a Zip that begins at {prefix:,}, inside another one without directory"
        )


def _ends_in_local_header(data: bytes) -> bool:
    position = data.find(LOCAL_SIGNATURE)
    while 0 <= position <= len(data) - LOCAL_HEADER.size:
        name_length, extra_length = LOCAL_HEADER.unpack_from(data, position)[-2:]
        if position + LOCAL_HEADER.size + name_length + extra_length == len(data):
            return True
        position = data.find(LOCAL_SIGNATURE, position + 1)
    return False


def _unwrap_count(descriptor: int, directory: Directory, storage: Storage) -> Directory:
    """Count the entries of an archive without Zip64: some software (macOS, old Java) writes the count modulo 65,536."""
    pieces = _pieces(descriptor, directory.offset, directory.length, storage)
    try:
        entries = sum(1 for _ in _scan(pieces, None))
    except ZipFormatError as error:
        raise NotAZipError(str(error)) from None
    if entries & LIMIT_16 != directory.entries:
        raise NotAZipError(f"the central directory has {entries:,} entries, its end record says {directory.entries:,}")
    return Directory(
        directory.archive_length, directory.offset, directory.length, entries, directory.prefix, directory.comment
    )


def _pieces(descriptor: int, start: int, length: int, storage: Storage) -> Iterator[bytes]:
    def cut(missing: int) -> ZipFormatError:
        return ZipFormatError(f"the central directory is cut off: {missing:,} of {length:,} bytes are missing")

    return raw_bytes(descriptor, start, length, cut=cut, storage=storage)


def _scan(pieces: Iterator[bytes], expected: int | None) -> Iterator[tuple[int, str]]:
    """Yield position and name of each entry, the fast way; see `names`."""
    unpack, head_length = _ENTRY_LENGTHS.unpack_from, CENTRAL.size
    rest, start, count = b"", 0, 0
    for piece in pieces:
        buffer, position = rest + piece, 0
        last = len(buffer) - head_length
        while position <= last:
            signature, flags, name_length, extra_length, comment_length = unpack(buffer, position)
            if signature != CENTRAL_SIGNATURE:
                raise _no_entry(buffer, position, start, count)
            name_end = position + head_length + name_length
            end = name_end + extra_length + comment_length
            if end > len(buffer):
                break
            name = buffer[position + head_length : name_end]
            if name.isascii():
                yield start + position, name.decode("ascii")
            else:
                yield start + position, decode_name(name, flags, buffer[name_end : name_end + extra_length])
            position = end
            count += 1
        start += position
        rest = buffer[position:]
    _check_end(len(rest), count, expected)


def _no_entry(buffer: bytes, position: int, start: int, count: int) -> ZipFormatError:
    found = buffer[position : position + 4]
    return ZipFormatError(
        f"entry {count + 1:,} at byte {start + position:,} of the central directory: "
        f"{found!r} instead of {CENTRAL_SIGNATURE!r}"
    )


def _check_end(rest_length: int, count: int, expected: int | None) -> None:
    if rest_length:
        raise ZipFormatError(
            f"the last {rest_length:,} bytes of the central directory are no entry; {count:,} come before"
        )
    if expected is not None and count != expected:
        raise ZipFormatError(f"the central directory has {count:,} entries, its end record says {expected:,}")


def entries(
    descriptor: int, directory: Directory, *, storage: Storage = LOCAL, start: int | None = None
) -> Iterator[CentralEntry]:
    """Yield the entries of a directory in their order, with bounded memory.

    Args:
        descriptor: the open archive, or another file that holds a copy of the directory.
        directory: what `locate` said.
        storage: the file system.
        start: where the directory begins in ``descriptor``, if not where it begins in the archive.

    Raises:
        ZipFormatError: bytes that are no entry, or another number of entries than the end record says.
    """
    pieces = _pieces(descriptor, directory.offset if start is None else start, directory.length, storage)
    # The loop of `_scan`, written out: a million entries pass here, and a call each would cost as much again.
    unpack, new, head_length = CENTRAL.unpack_from, tuple.__new__, CENTRAL.size
    rest, done, count = b"", 0, 0
    for piece in pieces:
        buffer, position = rest + piece, 0
        last = len(buffer) - head_length
        while position <= last:
            (
                signature, made_by, _, flags, method, clock, date, crc, compressed_size, size, name_length,
                extra_length, comment_length, _, _, attributes, offset,
            ) = unpack(buffer, position)  # fmt: skip
            if signature != CENTRAL_SIGNATURE:
                raise _no_entry(buffer, position, done, count)
            name_start = position + head_length
            name_end = name_start + name_length
            extra_end = name_end + extra_length
            end = extra_end + comment_length
            if end > len(buffer):
                break
            extra = buffer[name_end:extra_end]
            if offset == LIMIT_32 or size == LIMIT_32 or compressed_size == LIMIT_32:
                size, compressed_size, offset = zip64_values(extra, [size, compressed_size, offset])
            yield new(
                CentralEntry,
                (
                    made_by, flags, method, clock, date, crc, compressed_size, size, attributes, offset,
                    buffer[name_start:name_end], extra, buffer[extra_end:end],
                ),
            )  # fmt: skip
            position = end
            count += 1
        done += position
        rest = buffer[position:]
    _check_end(len(rest), count, directory.entries)


def names(
    descriptor: int, directory: Directory, *, storage: Storage = LOCAL, start: int | None = None
) -> Iterator[tuple[int, str]]:
    """Yield ``(position, name)`` of each entry, for half of the work of `entries`; `entry_at` returns one entry.

    Arguments and errors are those of `entries`; positions are relative to the begin of the directory.
    """
    return _scan(
        _pieces(descriptor, directory.offset if start is None else start, directory.length, storage), directory.entries
    )


def entry_at(
    descriptor: int, directory: Directory, position: int, *, storage: Storage = LOCAL, start: int | None = None
) -> CentralEntry:
    """Return the entry that begins at ``position`` of the directory.

    Raises:
        ZipFormatError: there is none.
    """
    begin = (directory.offset if start is None else start) + position
    head = storage.read(descriptor, CENTRAL.size, begin)
    if len(head) < CENTRAL.size:
        raise ZipFormatError(f"no directory entry at byte {position:,}")
    _, _, *lengths = _ENTRY_LENGTHS.unpack_from(head)
    return decode_central_entry(storage.read(descriptor, CENTRAL.size + sum(lengths), begin))[0]


def fingerprint(descriptor: int, directory: Directory, *, storage: Storage = LOCAL, start: int | None = None) -> str:
    """Return a short text that changes whenever members are added.

    It holds lengths, offset and count, and a CRC-32 of the last entries and the end records.

    Args:
        descriptor: the open archive, or a copy of the bytes from its directory to its end.
        directory: what `locate` said.
        storage: the file system.
        start: where the directory begins in ``descriptor``, if not where it begins in the archive.
    """
    shift = 0 if start is None else start - directory.offset
    begin = directory.offset + max(0, directory.length - _FINGERPRINT_BYTES)
    data = storage.read(descriptor, directory.archive_length - begin, begin + shift)
    numbers = directory.archive_length, directory.offset, directory.length, directory.entries
    return "-".join([*(f"{number:x}" for number in numbers), f"{crc32(data):08x}"])
