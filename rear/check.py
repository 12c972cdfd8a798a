"""Does a temp archive hold what its journal says? Each journaled member is looked up at its offset.

A journal is input like any other: every number in it is checked against the file before a byte is read on its word.
"""

from __future__ import annotations

from collections.abc import Iterator

from rear.codecs import crc32, decode
from rear.errors import FormatError, PathError, ZipFormatError
from rear.layout import check_archive, check_name
from rear.records import Append, Open
from rear.storage import COPY_CHUNK_BYTES, Storage
from rear.zipformat import EXTRA_LIMIT_BYTES, LIMIT_16, LOCAL, decode_local_header, decode_origin

_HEADER_LIMIT_BYTES = LOCAL.size + LIMIT_16 + EXTRA_LIMIT_BYTES


def why_bad(
    descriptor: int, append: Append, opened: Open, *, archive_length: int, read_data: bool, storage: Storage
) -> str | None:
    """Tell what is wrong with a journaled member, or ``None`` when it is whole.

    Args:
        descriptor: the open temp archive.
        append: what the journal says of the member.
        opened: the journal's first record.
        archive_length: length of the temp archive in bytes.
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
    if append.offset + append.length > archive_length:
        return f"the temp archive ends at {archive_length:,}, the member at {append.offset + append.length:,}"
    try:
        reason = _header_differs(storage.read(descriptor, header_length, append.offset), append, opened)
        if reason is None and read_data:
            reason = why_data_bad(descriptor, append, storage)
    except FormatError as error:
        return str(error)
    return reason


def _header_differs(data: bytes, append: Append, opened: Open) -> str | None:
    header = decode_local_header(data)
    found = (header.name, header.method, header.crc, header.compressed_size, header.size, header.length)
    expected = (
        append.name.encode(), append.method, append.crc, append.compressed_size, append.size,
        append.length - append.compressed_size,
    )  # fmt: skip
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


def raw_bytes(descriptor: int, start: int, length: int, *, storage: Storage) -> Iterator[bytes]:
    """Yield a range of a file in pieces.

    Raises:
        ZipFormatError: the file ends within it.
    """
    end = start + length
    while start < end:
        data = storage.read(descriptor, min(COPY_CHUNK_BYTES, end - start), start)
        if not data:
            raise ZipFormatError(f"the file ends {end - start:,} bytes early")
        start += len(data)
        yield data


def member_content(
    descriptor: int, data_offset: int, compressed_size: int, method: int, *, storage: Storage
) -> Iterator[bytes]:
    """Yield the plain content of a member.

    Raises:
        ZipFormatError: the data is malformed or ends early.
        UnsupportedError: no codec for its method.
    """
    return decode(method, raw_bytes(descriptor, data_offset, compressed_size, storage=storage))
