"""Headers of members that move to a rebuilt archive: what is known of them is kept, and what was damaged is made anew.

Directory entries of members without a question are made many at once, and say what `make_central_entry` says of one
without an old entry: a million one by one would take ten times as long. Paragraph numbers are those of APPNOTE 6.3.10.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from rear.core.records import Origin
from rear.salvage.scan_result import Run
from rear.zip.codecs import DEFLATED, STORED
from rear.zip.extra_fields import extra_fields
from rear.zip.headers import CentralEntry, LocalHeader, Member, encode_local_header, unix_attributes, version_needed
from rear.zip.origin import decode_origin
from rear.zip.structures import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    EXTRA_LIMIT_BYTES,
    FLAG_DESCRIPTOR,
    FLAG_ENCRYPTED,
    FLAG_MASKED,
    FLAG_UTF8,
    LIMIT_32,
    LOCAL,
    LOCAL_SIGNATURE,
    MADE_BY_UNIX,
    ORIGIN,
    TIMESTAMP,
    UNICODE_PATH,
    ZIP64,
)

_FIELD: Final = struct.Struct("<2H")
_UNIX_OLD: Final = 0x7855  # Info-ZIP Unix type 2, whose central form is empty (4.6.1)
_FILE_MODE: Final = stat.S_IFREG | 0o644
_DIRECTORY_MODE: Final = stat.S_IFDIR | 0o755
#: Signature, made by, version needed (4.3.12), by method. Up to the lengths, the rest is as in the local header.
_HEADS: Final = {
    method: CENTRAL_SIGNATURE + struct.pack("<2H", MADE_BY_UNIX, version_needed(method, False))
    for method in (STORED, DEFLATED)
}
#: Length of the comment, disk, internal attributes: none.
_MIDDLE: Final = bytes(6)
#: Head, as in the local header, length of the extra field, `_MIDDLE` with attributes, offset.
_ENTRY: Final = struct.Struct("<8s22sH10sI")
_SLASH: Final = ord("/")
_OFFSET_AT: Final = CENTRAL.size - 4
_LENGTHS: Final = struct.Struct("<28x3H")
_TIME: Final = struct.pack("<2H", TIMESTAMP, 5)
_TIME_BYTES: Final = len(_TIME) + 5
_ORIGIN_IDENTIFIER: Final = ORIGIN.to_bytes(2, "little")


class Facts(NamedTuple):
    """What was found out about a member's data, whatever its header says."""

    crc: int
    compressed_size: int
    size: int


class Naming(NamedTuple):
    """A name as bytes, and whether they are flagged as UTF-8 (4.4.4, bit 11)."""

    name: bytes
    is_utf8: bool


def naming_of(name: str) -> Naming:
    """Return a name as it is written: UTF-8, flagged unless it is ASCII."""
    return Naming(name.encode("utf-8", "surrogateescape"), not name.isascii())


def _fields(extra: bytes, without: frozenset[int]) -> bytes:
    return b"".join(
        _FIELD.pack(identifier, len(data)) + data
        for identifier, data in extra_fields(extra)
        if identifier not in without
    )


def is_consistent(local: LocalHeader, naming: Naming, facts: Facts) -> bool:
    """Whether a local header can stay as it is."""
    if local.name != naming.name:
        return False
    return local.has_descriptor or (local.crc, local.compressed_size, local.size) == facts


def keeps_descriptor(local: LocalHeader) -> bool:
    """Whether a member needs its data descriptor: with PKWARE's encryption, bit 3 says which byte checks the key."""
    return local.has_descriptor and bool(local.flags & FLAG_ENCRYPTED)


def make_local_header(header: bytes, local: LocalHeader, naming: Naming, facts: Facts) -> bytes:
    """Return a new local header for a member: another name, or sizes and CRC-32 that are right.

    Sizes stand in it, so its data needs no descriptor, unless `keeps_descriptor`.
    """
    origin = decode_origin(header)
    if origin is not None:
        return _make_own_header(local, naming, facts, origin)
    without = {ZIP64, ORIGIN} | ({UNICODE_PATH} if naming.name != local.name else set())
    keep = keeps_descriptor(local)
    _, _, _, _, clock, date, crc, compressed_size, size, _, _ = LOCAL.unpack_from(header)
    method, needed = local.method, version_needed(local.method, False)
    flags = local.flags & ~FLAG_UTF8 | (FLAG_UTF8 if naming.is_utf8 else 0)
    zip64 = b""
    if keep:
        # What stands in the header of such a member may be zero; the Zip64 field tells how long its descriptor is.
        zip64 = _only(local.extra, ZIP64)
    else:
        flags &= ~FLAG_DESCRIPTOR
        crc, compressed_size, size = facts
        if compressed_size >= LIMIT_32 or size >= LIMIT_32:
            zip64 = struct.pack("<2HQQ", ZIP64, 16, size, compressed_size)
            compressed_size = size = LIMIT_32
            needed = version_needed(method, True)
    extra = zip64 + _fields(local.extra, frozenset(without))
    head = LOCAL.pack(
        LOCAL_SIGNATURE, needed, flags, method, clock, date, crc, compressed_size, size, len(naming.name), len(extra)
    )
    return head + naming.name + extra


def _only(extra: bytes, wanted: int) -> bytes:
    return b"".join(
        _FIELD.pack(identifier, len(data)) + data for identifier, data in extra_fields(extra) if identifier == wanted
    )


def _make_own_header(local: LocalHeader, naming: Naming, facts: Facts, origin: Origin) -> bytes:
    name = naming.name.decode("utf-8", "surrogateescape")
    member = Member(name, local.method, *facts, origin.mtime_ns, origin.mode)
    return encode_local_header(member, origin)


def header_of_entry(entry: CentralEntry) -> bytes:
    """Return a local header for a member of which only the directory entry is left."""
    zip64, compressed_size, size = b"", entry.compressed_size, entry.size
    if compressed_size >= LIMIT_32 or size >= LIMIT_32:
        zip64 = struct.pack("<2HQQ", ZIP64, 16, size, compressed_size)
        compressed_size = size = LIMIT_32
    flags = entry.flags & ~FLAG_DESCRIPTOR
    extra = zip64 + _fields(entry.extra, frozenset({ZIP64}))
    head = LOCAL.pack(
        LOCAL_SIGNATURE,
        version_needed(entry.method, bool(zip64)),
        flags,
        entry.method,
        entry.dos_time,
        entry.dos_date,
        entry.crc,
        compressed_size,
        size,
        len(entry.name_bytes),
        len(extra),
    )
    return head + entry.name_bytes + extra


def make_central_entry(
    header: bytes, local: LocalHeader, naming: Naming, facts: Facts, old: CentralEntry | None
) -> CentralEntry:
    """Return the directory entry of a member; its offset is 0 yet.

    Args:
        header: the local header as it will stand in the archive.
        local: the same, decoded.
        naming: the name.
        facts: sizes and CRC-32.
        old: the member's entry in the old directory: attributes, times, extra fields and comment come from there.
    """
    # The new directory is not encrypted, and masks nothing.
    flags = local.flags & ~(FLAG_UTF8 | FLAG_MASKED) | (FLAG_UTF8 if naming.is_utf8 else 0)
    if old is not None:
        without = {ZIP64, UNICODE_PATH} if old.name_bytes != naming.name else {ZIP64}
        return old._replace(
            flags=flags,
            method=local.method,
            crc=facts.crc,
            compressed_size=facts.compressed_size,
            size=facts.size,
            offset=0,
            name_bytes=naming.name,
            extra=_fields(old.extra, frozenset(without)),
        )
    clock, date = LOCAL.unpack_from(header)[4:6]
    origin = decode_origin(header)
    attributes = new_attributes(naming.name, None if origin is None else origin.mode)
    return CentralEntry(
        MADE_BY_UNIX,
        flags,
        local.method,
        clock,
        date,
        facts.crc,
        facts.compressed_size,
        facts.size,
        attributes,
        0,
        naming.name,
        central_extra(local.extra),
        b"",
    )


def new_attributes(name: bytes, mode: int | None) -> int:
    """Return the external attributes (4.4.15) of a member whose mode is known or, with ``None``, is not."""
    if mode is None:
        mode = _DIRECTORY_MODE if name.endswith(b"/") else _FILE_MODE
    return unix_attributes(mode)


def central_extra(extra: bytes) -> bytes:
    """Return the extra fields of a local header in the form that they have in the directory."""
    fields = []
    for identifier, data in extra_fields(extra):
        if identifier in (ZIP64, ORIGIN):
            continue
        if identifier == TIMESTAMP:
            # Only the time of change stands in the directory (Info-ZIP's extrafld.txt).
            data = data[: 5 if data[:1] and data[0] & 1 else 1]
        elif identifier == _UNIX_OLD:
            data = b""
        fields.append(_FIELD.pack(identifier, len(data)) + data)
    return b"".join(fields)


def encode_entry(entry: CentralEntry, offset: int) -> bytes:
    """Return a directory entry whose member is at ``offset``, with a Zip64 field where needed (4.3.12, 4.5.3)."""
    compressed_size, size, large = entry.compressed_size, entry.size, b""
    if size >= LIMIT_32:
        large += struct.pack("<Q", size)
        size = LIMIT_32
    if compressed_size >= LIMIT_32:
        large += struct.pack("<Q", compressed_size)
        compressed_size = LIMIT_32
    if offset >= LIMIT_32:
        large += struct.pack("<Q", offset)
        offset = LIMIT_32
    extra = (_FIELD.pack(ZIP64, len(large)) + large if large else b"") + entry.extra
    if len(extra) > EXTRA_LIMIT_BYTES:
        extra = extra[: len(extra) - len(entry.extra)]
    needed = version_needed(entry.method, bool(large))
    head = CENTRAL.pack(
        CENTRAL_SIGNATURE,
        entry.made_by,
        needed,
        entry.flags,
        entry.method,
        entry.dos_time,
        entry.dos_date,
        entry.crc,
        compressed_size,
        size,
        len(entry.name_bytes),
        len(extra),
        len(entry.comment),
        0,
        0,
        entry.external_attributes,
        offset,
    )
    return b"".join((head, entry.name_bytes, extra, entry.comment))


class PlainEntries(NamedTuple):
    """The directory entries of a run, and where the last of them begins."""

    data: bytes
    last: int


def encode_plain_entries(run: Run) -> PlainEntries | None:
    """Return the directory entries of a run, as if each member stayed where it is.

    ``None`` past 4 GiB, and where something in an extra field raises a question after all.
    """
    base, data, rows = run.base, run.data, run.rows
    if run.end > LIMIT_32:
        return None
    if not run.has_extra and b"/\0" not in b"\0".join((*run.names, b"")):
        return _bare_entries(run)
    file = _MIDDLE + struct.pack("<I", new_attributes(b"", None))
    folder = _MIDDLE + struct.pack("<I", new_attributes(b"/", None))
    pack, heads, modes, size = _ENTRY.pack, _HEADS, run.modes, LOCAL.size
    tails: dict[int, bytes] = {}
    parts: list[bytes] = []
    for (at, start, _, _, _, name_length), name in zip(rows, run.names, strict=True):
        tail = folder if name[-1] == _SLASH else file
        name_end = at + size + name_length
        if name_end == start:
            parts.append(pack(heads[data[at + 8]], data[at + 6 : at + 28], 0, tail, base + at) + name)
            continue
        mode, extra = modes.get(at), data[name_end:start]
        if mode is not None:
            tail = tails.get(mode) or tails.setdefault(mode, _MIDDLE + struct.pack("<I", new_attributes(name, mode)))
        elif _ORIGIN_IDENTIFIER in extra:
            return None
        extra = extra[:_TIME_BYTES] if _is_own_extra(extra) else central_extra(extra)
        parts.append(pack(heads[data[at + 8]], data[at + 6 : at + 28], len(extra), tail, base + at) + name + extra)
    return _joined(parts)


def _bare_entries(run: Run) -> PlainEntries:
    """Return the directory entries of files without any extra field: all of an entry is packed at once."""
    base, data, rows, heads = run.base, run.data, run.rows, _HEADS
    tail = _MIDDLE + struct.pack("<I", new_attributes(b"", None))
    packs = {length: struct.Struct(f"<8s22sH10sI{length}s").pack for length in {row[5] for row in rows}}
    return _joined(
        [
            packs[length](heads[data[at + 8]], data[at + 6 : at + 28], 0, tail, base + at, name)
            for (at, _, _, _, _, length), name in zip(rows, run.names, strict=True)
        ]
    )


def _joined(entries: list[bytes]) -> PlainEntries:
    data = b"".join(entries)
    return PlainEntries(data, len(data) - len(entries[-1]))


def _is_own_extra(extra: bytes) -> bool:
    """Tell whether an extra area is what rear writes: the time of change, then its own field to the end."""
    return (
        extra.startswith(_TIME)
        and extra[4] == 1
        and extra.startswith(_ORIGIN_IDENTIFIER, _TIME_BYTES)
        and _TIME_BYTES + 4 + int.from_bytes(extra[_TIME_BYTES + 2 : _TIME_BYTES + 4], "little") == len(extra)
    )


def moved_entries(entries: bytes, count: int, shift: int) -> bytes:
    """Return entries of members that have moved together by ``shift`` bytes."""
    if not shift:
        return entries
    moved, position = bytearray(entries), 0
    for _ in range(count):
        at = position + _OFFSET_AT
        moved[at : at + 4] = (int.from_bytes(moved[at : at + 4], "little") + shift).to_bytes(4, "little")
        position += CENTRAL.size + sum(_LENGTHS.unpack_from(entries, position))
    return bytes(moved)


def plain_names(run: Run) -> Iterator[str]:
    """Yield the names of a run as text."""
    joined = b"\0".join(run.names)
    if joined.isascii():
        return iter(joined.decode("ascii").split("\0"))
    return (found.name for found in run.members())
