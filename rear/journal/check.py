"""Does a temp archive hold what its journal says? Each journaled member is looked up at its offset.

A journal is input like any other: every number in it is checked against the file before a byte is read on its word.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from operator import add, sub

from rear.core.names import check_archive, check_name
from rear.core.records import Append, Open
from rear.core.storage import Storage
from rear.errors import FormatError, PathError, ZipFormatError
from rear.journal.encoder import Encoder
from rear.journal.manyheaders import columns_of, local_headers
from rear.zip.codecs import crc32, is_whole
from rear.zip.headers import decode_local_header
from rear.zip.member_data import member_content
from rear.zip.origin import decode_origin
from rear.zip.structures import EXTRA_LIMIT_BYTES, LIMIT_16, LOCAL
from rear.zip.window import Window

_SMALL_BYTES = 1 << 20
#: The headers of such members are so near to each other that all between them is read as well.
_NEAR_BYTES = 16 << 10
_AT_ONCE = 512
_HEADER_LIMIT_BYTES = LOCAL.size + LIMIT_16 + EXTRA_LIMIT_BYTES


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
    columns = columns_of(appends)
    if columns is None:
        return False
    try:
        for archive in set(columns.archives):
            check_archive(archive)
    except PathError:
        return False
    headers = local_headers(columns, opened)
    if headers is None or max(map(add, columns.offsets, columns.lengths)) > end:
        return False
    lengths = list(map(len, headers))
    if lengths != list(map(sub, columns.lengths, columns.compressed_sizes)):
        return False
    first = min(columns.offsets)
    span = max(map(add, columns.offsets, lengths)) - first
    places = zip(columns.offsets, lengths, strict=True)
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
    if not LOCAL.size <= header_length <= _HEADER_LIMIT_BYTES:
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
    if data == _expected_header(append, opened):
        return None
    header = decode_local_header(data)
    found = (header.name, header.method, header.crc, header.compressed_size, header.size, header.length)
    numbers = (append.method, append.crc, append.compressed_size, append.size)
    expected = (append.name.encode(), *numbers, append.length - append.compressed_size)
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
    if (origin.mtime_ns, origin.mode, origin.metadata) != (append.mtime_ns, append.mode, append.metadata):
        return "time, mode or metadata in the local header are not those in the journal"
    return None


def _expected_header(append: Append, opened: Open) -> bytes | None:
    """Return what stands before nearly all members: to compare is faster than to decode."""
    try:
        return _encoder(opened).header(append)
    except (ZipFormatError, struct.error):
        # Forged numbers and texts that no header can hold.
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
    size = crc = 0
    data_offset, compressed_size, method = append.data_offset, append.compressed_size, append.method
    try:
        for piece in member_content(descriptor, data_offset, compressed_size, method, storage=storage):
            size += len(piece)
            crc = crc32(piece, crc)
            if size > append.size:
                return f"the data expands to more than {append.size:,} bytes"
    except FormatError as error:
        return str(error)
    if (size, crc) != (append.size, append.crc):
        return f"{size:,} bytes with CRC-32 {crc:08x} instead of {append.size:,} with {append.crc:08x}"
    return None
