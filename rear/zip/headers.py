"""Local headers, data descriptors, directory entries and end records, as bytes and as values; no file is opened here.

Paragraph numbers are those of PKWARE's APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from rear.core.records import Append, Origin
from rear.errors import ZipFormatError
from rear.zip.codecs import BZIP2, DEFLATE64, LZMA, ZSTANDARD, crc32
from rear.zip.extra_fields import decode_name, dos_to_ns, extra_fields, times_of_second, zip64_values
from rear.zip.origin import ORIGIN_HEAD, ORIGIN_VERSION, encode_origin
from rear.zip.structures import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    DESCRIPTOR_32,
    DESCRIPTOR_LAYOUTS,
    END,
    END_SIGNATURE,
    EXTRA_HEADER,
    FLAG_DESCRIPTOR,
    FLAG_ENCRYPTED,
    FLAG_UTF8,
    LIMIT_16,
    LIMIT_32,
    LOCAL,
    LOCAL_HEAD,
    LOCAL_SIGNATURE,
    MADE_BY_UNIX,
    ORIGIN,
    SIZES,
    TIMESTAMP,
    ZIP64,
    ZIP64_END,
    ZIP64_END_SIGNATURE,
    ZIP64_LOCATOR,
    ZIP64_LOCATOR_SIGNATURE,
)

_NEEDED: Final = {DEFLATE64: 21, BZIP2: 46, LZMA: 63, ZSTANDARD: 63}  # 4.4.3.2


class LocalHeader(NamedTuple):
    """A local file header (4.3.7); ``compressed_size`` and ``size`` with the Zip64 field already applied."""

    flags: int
    method: int
    crc: int
    compressed_size: int
    size: int
    name: bytes
    extra: bytes
    length: int

    @property
    def has_descriptor(self) -> bool:
        """Whether sizes and CRC follow the data instead of standing here (4.4.4, bit 3)."""
        return bool(self.flags & FLAG_DESCRIPTOR)


class CentralEntry(NamedTuple):
    """A central directory entry (4.3.12), Zip64 applied; ``offset`` is as recorded, without the prefix."""

    made_by: int
    flags: int
    method: int
    dos_time: int
    dos_date: int
    crc: int
    compressed_size: int
    size: int
    external_attributes: int
    offset: int
    name_bytes: bytes
    extra: bytes
    comment: bytes

    @property
    def name(self) -> str:
        """The name as text, see `decode_name`."""
        return decode_name(self.name_bytes, self.flags, self.extra)

    @property
    def is_directory(self) -> bool:
        """Whether the entry stands for a directory."""
        return self.name_bytes.endswith(b"/")

    @property
    def is_encrypted(self) -> bool:
        """Whether the data is encrypted."""
        return bool(self.flags & FLAG_ENCRYPTED)

    @property
    def mode(self) -> int:
        """Unix ``st_mode``, or 0 when the archive was made by software that knows none (4.4.2, 4.4.15)."""
        return self.external_attributes >> 16 if self.made_by >> 8 == 3 else 0

    @property
    def mtime_ns(self) -> int:
        """Time of last change in nanoseconds since the epoch: the UTC field, or else DOS time as local."""
        extra = self.extra
        if extra[:4] == b"UT\x05\0" and len(extra) >= 9 and extra[4] & 1:
            # As nearly all write it: no loop for a million entries.
            return int.from_bytes(extra[5:9], "little", signed=True) * 1_000_000_000
        for identifier, data in extra_fields(extra):
            if identifier == TIMESTAMP and len(data) >= 5 and data[0] & 1:
                return int.from_bytes(data[1:5], "little", signed=True) * 1_000_000_000
        return dos_to_ns(self.dos_date, self.dos_time)


class Member(NamedTuple):
    """What a writer knows of a member before its first byte is written."""

    name: str
    method: int
    crc: int
    compressed_size: int
    size: int
    mtime_ns: int
    mode: int


def member_of(append: Append, name: str | None = None) -> Member:
    """Return what a directory says of a journaled member, which may get another name than the journal has."""
    (_, _, _, _, _, _, _, journaled_name, method, crc, compressed_size, size, mtime_ns, mode, _) = append
    return Member(journaled_name if name is None else name, method, crc, compressed_size, size, mtime_ns, mode)


def version_needed(method: int, zip64: bool) -> int:
    """Return the version needed to extract a member (4.4.3.2)."""
    return max(_NEEDED.get(method, 20), 45 if zip64 else 0)


def encode_local_header(member: Member, origin: Origin | None, *, is_open: bool = False) -> bytes:
    """Return the complete local header of a member, without data descriptor (4.3.7).

    Args:
        member: name, method, CRC-32 and sizes, all known.
        origin: what rear's own field is to say; its source is left out where it does not fit.
        is_open: CRC-32 and sizes are not known yet, as bit 3 says (4.4.4): nobody takes it for a whole member.

    Raises:
        ZipFormatError: the extra area would exceed 65,535 bytes, or the metadata is no text in UTF-8.
    """
    name = member.name.encode()
    dos, timestamp = times_of_second(member.mtime_ns // 1_000_000_000)
    compressed_size, size, zip64 = member.compressed_size, member.size, b""
    if compressed_size >= LIMIT_32 or size >= LIMIT_32:
        # In a local header the Zip64 field must hold both sizes (4.5.3).
        zip64 = struct.pack("<2HQQ", ZIP64, 16, size, compressed_size)
        compressed_size = size = LIMIT_32
    extra = zip64 + timestamp
    tail = b"" if origin is None else encode_origin(origin, LIMIT_16 - len(extra) - 4 - ORIGIN_HEAD.size)
    field_length = ORIGIN_HEAD.size + len(tail) if tail else 0
    extra_length = len(extra) + (field_length + 4 if tail else 0)
    if extra_length > LIMIT_16:
        raise ZipFormatError(f"the extra fields of {member.name!r} take {extra_length:,} bytes, {LIMIT_16:,} at most")
    constants = local_constants(member.method, member.name.isascii(), bool(zip64))
    sizes = SIZES.pack(member.crc, compressed_size, size, len(name))
    head = b"".join((constants, dos, sizes, extra_length.to_bytes(2, "little")))
    if is_open:
        flags = int.from_bytes(head[6:8], "little") | FLAG_DESCRIPTOR
        head = b"".join((head[:6], flags.to_bytes(2, "little"), head[8:]))
    if not tail:
        return head + name + extra
    covered = b"".join((head, name, extra, tail))
    own = EXTRA_HEADER.pack(ORIGIN, field_length) + ORIGIN_HEAD.pack(ORIGIN_VERSION, crc32(covered))
    return b"".join((head, name, extra, own, tail))


@lru_cache(maxsize=64)
def local_constants(method: int, is_ascii: bool, zip64: bool = False) -> bytes:
    """Return the first 10 bytes of a local header (4.3.7), up to the method: the same for many members.

    Args:
        method: compression method.
        is_ascii: whether the name is ASCII.
        zip64: whether there is a Zip64 field.
    """
    flags = 0 if is_ascii else FLAG_UTF8
    return LOCAL_HEAD.pack(LOCAL_SIGNATURE, version_needed(method, zip64), flags, method)


@lru_cache(maxsize=64)
def central_constants(
    method: int, is_ascii: bool, mode: int, extra_length: int, zip64: bool = False
) -> tuple[bytes, bytes]:
    """Return what is the same for many directory entries (4.3.12): up to the method, and from the length of the extra
    area to the external attributes.
    """
    flags = 0 if is_ascii else FLAG_UTF8
    head = struct.pack("<4s4H", CENTRAL_SIGNATURE, MADE_BY_UNIX, version_needed(method, zip64), flags, method)
    return head, struct.pack("<4HI", extra_length, 0, 0, 0, unix_attributes(mode))


def unix_attributes(mode: int) -> int:
    """Return the external attributes of a Unix mode (4.4.15), with the directory bit of MS-DOS."""
    return (mode & 0xFFFF) << 16 | (0x10 if stat.S_ISDIR(mode) else 0)


def local_header_length(data: bytes) -> int:
    """Return the length of the local header whose first 30 bytes are given, with its name and extra area.

    Raises:
        ZipFormatError: it is none.
    """
    if len(data) < LOCAL.size or data[:4] != LOCAL_SIGNATURE:
        raise ZipFormatError(f"no local header: {bytes(data[:4])!r} instead of {LOCAL_SIGNATURE!r}")
    return LOCAL.size + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")


def decode_local_header(data: bytes, position: int = 0) -> LocalHeader:
    """Return the local header that begins at ``position``.

    Raises:
        ZipFormatError: there is none, or ``data`` ends within it.
    """
    if len(data) < position + LOCAL.size or data[position : position + 4] != LOCAL_SIGNATURE:
        raise ZipFormatError(
            f"no local header: {bytes(data[position : position + 4])!r} instead of {LOCAL_SIGNATURE!r}"
        )
    _, _, flags, method, _, _, crc, compressed_size, size, name_length, extra_length = LOCAL.unpack_from(data, position)
    name_end = position + LOCAL.size + name_length
    end = name_end + extra_length
    if len(data) < end:
        raise ZipFormatError(f"a local header of {end - position:,} bytes is cut off after {len(data) - position:,}")
    extra = bytes(data[name_end:end])
    size, compressed_size = zip64_values(extra, [size, compressed_size])
    name = bytes(data[position + LOCAL.size : name_end])
    return LocalHeader(flags, method, crc, compressed_size, size, name, extra, end - position)


def descriptor_lengths(data: bytes, crc: int, compressed_size: int, size: int) -> Iterator[int]:
    """Yield the lengths of the data descriptors that ``data`` begins with and that say exactly this (4.3.9).

    Zeros can make two layouts fit. Where sizes have 32 bits, software that knows no Zip64 descriptors cuts longer ones.
    """
    for signature, layout in DESCRIPTOR_LAYOUTS:
        mask = LIMIT_32 if layout is DESCRIPTOR_32 else -1
        expected = signature + layout.pack(crc, compressed_size & mask, size & mask)
        if data.startswith(expected):
            yield len(expected)


def encode_central_entry(member: Member, offset: int) -> bytes:
    """Return the central directory entry of a member whose local header is at ``offset`` (4.3.12)."""
    text, method, crc, compressed_size, size, mtime_ns, mode = member
    name = text.encode()
    dos, extra = times_of_second(mtime_ns // 1_000_000_000)
    zip64 = b""
    if compressed_size >= LIMIT_32 or size >= LIMIT_32:
        zip64 = struct.pack("<QQ", size, compressed_size)
        compressed_size = size = LIMIT_32
    if offset >= LIMIT_32:
        zip64 += struct.pack("<Q", offset)
        offset = LIMIT_32
    if zip64:
        extra = EXTRA_HEADER.pack(ZIP64, len(zip64)) + zip64 + extra
    head, tail = central_constants(method, len(name) == len(text), mode, len(extra), bool(zip64))
    sizes = SIZES.pack(crc, compressed_size, size, len(name))
    return b"".join((head, dos, sizes, tail, offset.to_bytes(4, "little"), name, extra))


def decode_central_entry(data: bytes, position: int = 0) -> tuple[CentralEntry, int]:
    """Return the entry that begins at ``position`` and where the next one would begin.

    Raises:
        ZipFormatError: there is none, or ``data`` ends within it.
    """
    if len(data) < position + CENTRAL.size or data[position : position + 4] != CENTRAL_SIGNATURE:
        raise ZipFormatError(f"no directory entry at byte {position:,}: {bytes(data[position : position + 4])!r}")
    fields = CENTRAL.unpack_from(data, position)
    _, made_by, _, *described, name_length, extra_length, comment_length, _, _, attributes, offset = fields
    flags, method, clock, date, crc, compressed_size, size = described
    name_end = position + CENTRAL.size + name_length
    extra_end = name_end + extra_length
    end = extra_end + comment_length
    if len(data) < end:
        raise ZipFormatError(f"a directory entry of {end - position:,} bytes at byte {position:,} is cut off")
    extra = bytes(data[name_end:extra_end])
    size, compressed_size, offset = zip64_values(extra, [size, compressed_size, offset])
    name, comment = bytes(data[position + CENTRAL.size : name_end]), bytes(data[extra_end:end])
    numbers = made_by, flags, method, clock, date, crc, compressed_size, size, attributes, offset
    return CentralEntry(*numbers, name, extra, comment), end


def encode_end(
    *, entries: int, directory_length: int, directory_offset: int, comment: bytes = b"", end_offset: int | None = None
) -> bytes:
    """Return what follows a central directory: the end record, with the Zip64 ones before it where needed (4.3.14 to
    4.3.16).

    Args:
        entries: number of directory entries.
        directory_length: length of the directory in bytes.
        directory_offset: where the directory begins, as recorded (without the archive's prefix).
        comment: the archive comment.
        end_offset: where the bytes returned here will begin, as recorded; right after the directory by default.
    """
    zip64 = b""
    if entries >= LIMIT_16 or directory_length >= LIMIT_32 or directory_offset >= LIMIT_32:
        at = directory_offset + directory_length if end_offset is None else end_offset
        head = ZIP64_END_SIGNATURE, ZIP64_END.size - 12, MADE_BY_UNIX, 45, 0, 0
        zip64 = ZIP64_END.pack(*head, entries, entries, directory_length, directory_offset)
        zip64 += ZIP64_LOCATOR.pack(ZIP64_LOCATOR_SIGNATURE, 0, at, 1)
    count = min(entries, LIMIT_16)
    length, offset = min(directory_length, LIMIT_32), min(directory_offset, LIMIT_32)
    return zip64 + END.pack(END_SIGNATURE, 0, 0, count, count, length, offset, len(comment)) + comment
