"""What stands at a position of a Zip, told without a central directory: a local header, a boundary, a descriptor.

Four bytes of signature prove nothing: payload may hold them. So what follows is asked to be plausible as well, and a
*boundary* (where a member may end) is a plausible header, a directory or the end of the file. Paragraph numbers are
those of APPNOTE 6.3.10.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from rear.zip.headers import (
    CentralEntry,
    LocalHeader,
    decode_central_entry,
    decode_local_header,
    descriptor_lengths,
    local_header_length,
)
from rear.zip.structures import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    DESCRIPTOR_LIMIT_BYTES,
    END,
    END_SIGNATURE,
    LIMIT_16,
    LOCAL,
    LOCAL_HEAD,
    LOCAL_LIMIT_BYTES,
    LOCAL_SIGNATURE,
    NEWEST_VERSION,
    ZIP64_END,
    ZIP64_END_SIGNATURE,
    ZIP64_LOCATOR,
    ZIP64_LOCATOR_SIGNATURE,
)
from rear.zip.window import Window

LOCAL_PATTERN: Final = re.compile(LOCAL_SIGNATURE)
DIRECTORY_PATTERN: Final = re.compile(b"|".join((CENTRAL_SIGNATURE, END_SIGNATURE, ZIP64_END_SIGNATURE)))
BOUNDARY_PATTERN: Final = re.compile(LOCAL_PATTERN.pattern + b"|" + DIRECTORY_PATTERN.pattern)

#: Bits that 4.4.4 leaves unused or reserves.
_RESERVED_FLAGS: Final = 0xD780
#: 4.4.5, without what is marked as reserved.
_METHODS: Final = frozenset({0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 16, 18, 19, 20, 93, 94, 95, 96, 97, 98, 99})
#: Some software writes its system (4.4.2) into the high byte of the version needed.
_NEWEST_SYSTEM: Final = 30
_DIGITAL_SIGNATURE: Final = b"PK\x05\x05"  # 4.3.13


class Facts(NamedTuple):
    """CRC-32 and sizes of a member's data: as a header, an entry or a descriptor has them, or as they were found."""

    crc: int
    compressed_size: int
    size: int


def facts_of(said: LocalHeader | CentralEntry) -> Facts:
    """Return what a header or an entry says of the data."""
    return Facts(said.crc, said.compressed_size, said.size)


class DirectoryRange(NamedTuple):
    """Directory records that follow each other, and what the end record at their end says, if there is one."""

    start: int
    #: Where the end records begin.
    records: int
    end: int
    #: Entries, length and offset of the directory as recorded; ``None`` without an end record.
    recorded: tuple[int, int, int] | None
    first: CentralEntry | None


def implausible(head: bytes) -> str:
    """Tell what is odd about the fixed part of a local header; nothing when it may be one."""
    _, needed, flags, method = LOCAL_HEAD.unpack_from(head)
    return _oddity(needed, flags, method)


def _oddity(needed: int, flags: int, method: int) -> str:
    if needed & 0xFF > NEWEST_VERSION or needed >> 8 > _NEWEST_SYSTEM:
        return f"version needed {needed:#06x}"
    if flags & _RESERVED_FLAGS:
        return f"reserved flags in {flags:#06x}"
    if method not in _METHODS:
        return f"unknown compression method {method}"
    return ""


def local_header(window: Window, position: int) -> tuple[LocalHeader, bytes, str] | None:
    """Return the local header at ``position`` with its bytes, and what is odd about it.

    ``None`` when there is no signature, or the header does not fit into the range.
    """
    data, at = window.data, position - window.base
    if at < 0 or len(data) < at + LOCAL.size:
        data, at = window.read(position, LOCAL.size), 0
        if len(data) < LOCAL.size:
            return None
    if data[at : at + 4] != LOCAL_SIGNATURE:
        return None
    length = local_header_length(data[at : at + LOCAL.size])
    found = data[at : at + length]
    if len(found) < length:
        found = window.read(position, length)
        if len(found) < length:
            return None
    header = decode_local_header(found)
    oddity = implausible(found)
    if not oddity and (not header.name or b"\0" in header.name):
        oddity = "NUL in its name" if header.name else "no name"
    return header, found, oddity


def is_header(window: Window, position: int) -> bool:
    """Tell whether a plausible local header is there."""
    there = local_header(window, position)
    return there is not None and not there[2]


def flipped_signature(window: Window, position: int) -> tuple[LocalHeader, bytes] | None:
    """Return a plausible local header whose signature has one or two wrong bits, where one has to be."""
    head = window.read(position, LOCAL.size)
    if len(head) < LOCAL.size:
        return None
    wrong = int.from_bytes(head[:4], "little") ^ int.from_bytes(LOCAL_SIGNATURE, "little")
    if wrong.bit_count() > 2 or implausible(head):
        return None
    length = local_header_length(LOCAL_SIGNATURE + head[4:])
    found = window.read(position, length)
    if len(found) < length:
        return None
    header = decode_local_header(LOCAL_SIGNATURE + found[4:])
    return (header, found) if header.name and b"\0" not in header.name else None


def is_signature_at(window: Window, position: int) -> bool:
    """Tell whether the signature of a record stands at ``position``, whatever follows it."""
    return BOUNDARY_PATTERN.match(window.read(position, 4)) is not None


def is_damaged_boundary(window: Window, position: int) -> bool:
    """Tell whether a header begins at ``position`` that is damaged: in its signature, or anywhere behind that."""
    return is_signature_at(window, position) or flipped_signature(window, position) is not None


def is_boundary(window: Window, position: int) -> bool:
    """Tell whether a member may end at ``position``: a header, a directory or the end of the range is there."""
    if position == window.end:
        return True
    head = window.read(position, CENTRAL.size)
    signature = head[:4]
    if not head:
        return False
    if len(head) < LOCAL.size and (LOCAL_SIGNATURE.startswith(signature) or CENTRAL_SIGNATURE.startswith(signature)):
        # Torn there.
        return True
    if signature == LOCAL_SIGNATURE:
        return len(head) >= LOCAL.size and not implausible(head)
    if signature == CENTRAL_SIGNATURE:
        return _is_central(head)
    if signature == END_SIGNATURE:
        return len(head) >= END.size and position + END.size + int.from_bytes(head[20:22], "little") <= window.end
    return signature == ZIP64_END_SIGNATURE and position + ZIP64_END.size <= window.end


def _is_central(head: bytes) -> bool:
    if len(head) < CENTRAL.size:
        return True
    fields = CENTRAL.unpack_from(head)
    needed, flags, method, name_length = *fields[2:5], fields[10]
    return name_length > 0 and not _oddity(needed, flags, method)


def descriptor_length(window: Window, position: int, facts: Facts) -> int:
    """Return the length of the data descriptor at ``position`` that says exactly this, 0 when there is none."""
    data = window.read(position, DESCRIPTOR_LIMIT_BYTES)
    lengths = list(descriptor_lengths(data, *facts))
    # Where two layouts fit, the one that a boundary follows is meant.
    followed = (length for length in lengths if len(lengths) == 1 or is_boundary(window, position + length))
    return next(followed, lengths[0] if lengths else 0)


def directory_range(window: Window, position: int) -> DirectoryRange:
    """Return how far directory records go on from ``position``; nowhere (``end == position``) when none is there."""
    start, first = position, None
    while True:
        window.load(position, LOCAL_LIMIT_BYTES + LIMIT_16 + CENTRAL.size)
        data, at = window.data, position - window.base
        head = data[at : at + CENTRAL.size]
        if head[:4] != CENTRAL_SIGNATURE or not _is_central(head):
            break
        length = CENTRAL.size
        if len(head) == CENTRAL.size:
            length += sum(CENTRAL.unpack(head)[10:13])
        if at + length > len(data):
            # Torn in its last entry.
            return DirectoryRange(start, window.end, window.end, None, first)
        if first is None:
            first, _ = decode_central_entry(data, at)
        position += length
    records = position
    if window.read(position, 4) == _DIGITAL_SIGNATURE:
        position = min(position + 6 + int.from_bytes(window.read(position + 4, 2), "little"), window.end)
    end, recorded = _end_records(window, position)
    return DirectoryRange(start, records, end, recorded, first)


def _is_torn(record: bytes, signature: bytes, length: int) -> bool:
    """Whether the file ends within a record."""
    return 0 < len(record) < length and signature.startswith(record[: len(signature)])


def _end_records(window: Window, position: int) -> tuple[int, tuple[int, int, int] | None]:
    zip64 = None
    record = window.read(position, ZIP64_END.size)
    if record[:4] == ZIP64_END_SIGNATURE and len(record) == ZIP64_END.size:
        *_, entries, length, offset = ZIP64_END.unpack_from(record)
        after = position + 12 + int.from_bytes(record[4:12], "little")
        locator = window.read(after, ZIP64_LOCATOR.size)
        if locator[:4] == ZIP64_LOCATOR_SIGNATURE and len(locator) == ZIP64_LOCATOR.size:
            zip64 = entries, length, offset
            position = after + ZIP64_LOCATOR.size
        elif _is_torn(locator, ZIP64_LOCATOR_SIGNATURE, ZIP64_LOCATOR.size):
            return window.end, None
    elif _is_torn(record, ZIP64_END_SIGNATURE, ZIP64_END.size):
        return window.end, None
    record = window.read(position, END.size)
    if _is_torn(record, END_SIGNATURE, END.size):
        return window.end, zip64
    if record[:4] != END_SIGNATURE or len(record) < END.size:
        return position, zip64
    _, _, _, _, entries, length, offset, comment_length = END.unpack_from(record)
    end = min(position + END.size + comment_length, window.end)
    return end, zip64 or (entries, length, offset)
