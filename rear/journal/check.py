"""Does a temp archive hold what its journal says? Each journaled member is looked up at its offset.

A journal is input like any other: every number in it is checked against the file before a byte is read on its word.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from operator import add, sub
from typing import Any

from rear.core.names import are_plain_names, check_archive, check_name
from rear.core.records import Append, Open, unpacked
from rear.core.storage import Storage
from rear.errors import FormatError, PathError, ZipFormatError
from rear.journal.encoder import Encoder
from rear.zip.codecs import is_whole
from rear.zip.headers import decode_local_header
from rear.zip.member_data import member_content, size_and_crc
from rear.zip.origin import decode_origin
from rear.zip.structures import LOCAL, LOCAL_LIMIT_BYTES
from rear.zip.window import Window

_SMALL_BYTES = 1 << 20
#: The headers of such members are so near to each other that all between them is read as well.
_NEAR_BYTES = 16 << 10
_AT_ONCE = 512
#: Raised for forged numbers and texts that no header can hold.
_UNWRITABLE = (ZipFormatError, struct.error)


def find_suspects(descriptor: int, appends: Sequence[Append], opened: Open, *, storage: Storage) -> list[Append]:
    """Return those journaled members whose local headers are not, at first sight and byte for byte, what their worker
    writes for such a record: what is wrong with them, if anything, `why_bad` tells of each.

    Args:
        descriptor: the open temp archive.
        appends: what the journal says of the members.
        opened: the journal's first record.
        storage: the file system.

    Raises:
        OSError: the temp archive cannot be read.
    """
    end = storage.size(descriptor)
    suspects: list[Append] = []
    for start in range(0, len(appends), _AT_ONCE):
        batch = appends[start : start + _AT_ONCE]
        if not _are_as_journaled(descriptor, batch, opened, end, storage):
            suspects += batch
    return suspects


def _are_as_journaled(descriptor: int, appends: Sequence[Append], opened: Open, end: int, storage: Storage) -> bool:
    fields: Any = Append._make(zip(*appends, strict=True))
    if not are_plain_names(fields.name) or max(map(add, fields.offset, fields.length)) > end:
        return False
    try:
        for archive in set(fields.archive):
            check_archive(archive)
        headers = list(map(_encoder(opened).header, appends))
    except (PathError, *_UNWRITABLE):
        return False
    lengths = list(map(len, headers))
    if lengths != list(map(sub, fields.length, fields.compressed_size)):
        return False
    first = min(fields.offset)
    span = max(map(add, fields.offset, lengths)) - first
    places = zip(fields.offset, lengths, strict=True)
    if span <= len(appends) * _NEAR_BYTES:
        data = storage.read(descriptor, span, first)
        return [data[offset - first : offset - first + length] for offset, length in places] == headers
    return all(
        storage.read(descriptor, length, offset) == header
        for (offset, length), header in zip(places, headers, strict=True)
    )


def why_bad(
    descriptor: int, append: Append, opened: Open, *, window: Window, read_data: bool, storage: Storage
) -> str | None:
    """Tell what is wrong with a journaled member, or ``None`` when it is whole.

    Args:
        descriptor: the open temp archive.
        append: what the journal says of the member.
        opened: the journal's first record.
        window: on all of it; members are best asked for in their order.
        read_data: decode the data as well, and compare its size and CRC-32.
        storage: the file system.

    Raises:
        UnsupportedError: its data cannot be decoded here: neither whole nor bad.
        OSError: the temp archive cannot be read.
    """
    try:
        check_archive(append.archive)
        check_name(append.name)
    except PathError as error:
        return str(error)
    header_length = append.length - append.compressed_size
    if not LOCAL.size <= header_length <= LOCAL_LIMIT_BYTES:
        return f"a local header of {header_length:,} bytes is impossible"
    if append.offset + append.length > window.end:
        return f"the temp archive ends at {window.end:,}, the member at {append.offset + append.length:,}"
    # Of a small member all is read at once.
    is_small = read_data and append.length <= _SMALL_BYTES and append.size <= _SMALL_BYTES
    try:
        length = append.length if is_small else header_length
        if append.length <= _NEAR_BYTES:
            window.load(append.offset, length)
        data = window.read(append.offset, length)
        reason = _header_differs(data[:header_length], append, opened)
        if reason is not None or not read_data:
            return reason
        if is_small and is_whole(memoryview(data)[header_length:], append.method, append.size, append.crc):
            return None
        return why_data_bad(descriptor, append, storage)
    except FormatError as error:
        return str(error)


def _header_differs(data: bytes, append: Append, opened: Open) -> str | None:
    expected_header = _expected_header(append, opened)
    if data == expected_header:
        return None
    header = decode_local_header(data)
    found = (header.name, header.method, header.crc, header.compressed_size, header.size, header.length)
    length = append.length - append.compressed_size
    expected = (append.name.encode(), append.method, append.crc, append.compressed_size, append.size, length)
    labels = ("name", "method", "CRC-32", "compressed size", "size", "header length")
    for label, expected_value, found_value in zip(labels, expected, found, strict=True):
        if expected_value != found_value:
            return f"{label} {found_value!r:.80} in the local header, {expected_value!r:.80} in the journal"
    origin = decode_origin(data)
    if origin is None:
        return "the local header does not pass the checksum of its origin field"
    if (origin.cookie, origin.sequence, origin.archive) != (opened.cookie, append.sequence, append.archive):
        return "the local header belongs to another member"
    # A member that gets another name gets a new header, made of these.
    if (origin.mtime_ns, origin.mode, origin.metadata) != (append.mtime_ns, append.mode, unpacked(append.metadata)):
        return "time, mode or metadata in the local header are not those in the journal"
    return "no header can hold what the journal says" if expected_header is None else None


def _expected_header(append: Append, opened: Open) -> bytes | None:
    """Return what stands before nearly all members: to compare is faster than to decode."""
    try:
        return _encoder(opened).header(append)
    except _UNWRITABLE:
        return None


@lru_cache(maxsize=2)
def _encoder(opened: Open) -> Encoder:
    return Encoder(opened)


def why_data_bad(descriptor: int, append: Append, storage: Storage) -> str | None:
    """Tell what is wrong with the data of a journaled member, whatever its local header says; ``None``: nothing.

    Raises:
        UnsupportedError: it cannot be decoded here.
        OSError: the temp archive cannot be read.
    """
    data_offset, compressed_size, method = append.data_offset, append.compressed_size, append.method
    try:
        pieces = member_content(descriptor, data_offset, compressed_size, method, storage=storage)
        size, crc = size_and_crc(pieces, append.size)
    except FormatError as error:
        return str(error)
    if size > append.size:
        return f"the data expands to more than {append.size:,} bytes"
    if (size, crc) != (append.size, append.crc):
        return f"{size:,} bytes with CRC-32 {crc:08x} instead of {append.size:,} with {append.crc:08x}"
    return None
