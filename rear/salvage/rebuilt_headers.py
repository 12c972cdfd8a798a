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
from rear.salvage.local_headers import Facts, facts_of
from rear.salvage.scan_result import Run
from rear.zip.codecs import DEFLATED, STORED
from rear.zip.extra_fields import decode_name, extra_fields
from rear.zip.headers import CentralEntry, LocalHeader, Member, encode_local_header, unix_attributes, version_needed
from rear.zip.origin import decode_origin
from rear.zip.structures import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    EXTRA_HEADER,
    FLAG_DESCRIPTOR,
    FLAG_ENCRYPTED,
    FLAG_MASKED,
    FLAG_UTF8,
    LIMIT_16,
    LIMIT_32,
    LOCAL,
    LOCAL_SIGNATURE,
    MADE_BY_UNIX,
    ORIGIN,
    TIMESTAMP,
    UNICODE_PATH,
    ZIP64,
)

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
_TIME: Final = EXTRA_HEADER.pack(TIMESTAMP, 5)
_TIME_BYTES: Final = len(_TIME) + 5
_ORIGIN_IDENTIFIER: Final = ORIGIN.to_bytes(2, "little")


class Naming(NamedTuple):
    """A name as bytes, and whether they are flagged as UTF-8 (4.4.4, bit 11)."""

    name: bytes
    is_utf8: bool

    def text(self, extra: bytes) -> str:
        """Return it as text; an extra field may have it in UTF-8 (4.6.9)."""
        return decode_name(self.name, FLAG_UTF8 if self.is_utf8 else 0, extra)


def naming_of(name: str) -> Naming:
    """Return a name as it is written: UTF-8, flagged unless it is ASCII."""
    return Naming(name.encode("utf-8", "surrogateescape"), not name.isascii())


def _without(extra: bytes, *unwanted: int) -> bytes:
    """Return an extra area without some of its fields."""
    fields = ((identifier, data) for identifier, data in extra_fields(extra) if identifier not in unwanted)
    return b"".join(EXTRA_HEADER.pack(identifier, len(data)) + data for identifier, data in fields)


def _flags(flags: int, naming: Naming) -> int:
    return flags & ~FLAG_UTF8 | (FLAG_UTF8 if naming.is_utf8 else 0)


def is_consistent(local: LocalHeader, naming: Naming, facts: Facts) -> bool:
    """Whether a local header can stay as it is."""
    if local.name != naming.name:
        return False
    return local.has_descriptor or facts_of(local) == facts


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
    _, _, _, _, clock, date, *recorded, _, _ = LOCAL.unpack_from(header)
    keep, flags = keeps_descriptor(local), _flags(local.flags, naming)
    unwanted = [ORIGIN] if naming.name == local.name else [ORIGIN, UNICODE_PATH]
    if keep:
        # What stands in the header of such a member may be zero; the Zip64 field tells how long its descriptor is.
        facts = Facts._make(recorded)
    else:
        unwanted.append(ZIP64)
        flags &= ~FLAG_DESCRIPTOR
    made = LocalHeader(flags, local.method, *facts, naming.name, _without(local.extra, *unwanted), 0)
    return _encode_local(made, (clock, date), is_as_recorded=keep)


def _encode_local(local: LocalHeader, moment: tuple[int, int], *, is_as_recorded: bool = False) -> bytes:
    """Return a local header as bytes; sizes over 32 bits go into a Zip64 field (4.5.3) if they do not stand there."""
    flags, method, crc, compressed_size, size, name, extra, _ = local
    is_large = not is_as_recorded and max(compressed_size, size) >= LIMIT_32
    if is_large:
        extra = EXTRA_HEADER.pack(ZIP64, 16) + struct.pack("<2Q", size, compressed_size) + extra
        compressed_size = size = LIMIT_32
    head = version_needed(method, is_large), flags, method, *moment, crc, compressed_size, size, len(name), len(extra)
    return LOCAL.pack(LOCAL_SIGNATURE, *head) + name + extra


def _make_own_header(local: LocalHeader, naming: Naming, facts: Facts, origin: Origin) -> bytes:
    name = naming.name.decode("utf-8", "surrogateescape")
    member = Member(name, local.method, *facts, origin.mtime_ns, origin.mode)
    return encode_local_header(member, origin)


def header_of_entry(entry: CentralEntry) -> bytes:
    """Return a local header for a member of which only the directory entry is left."""
    extra = _without(entry.extra, ZIP64)
    made = LocalHeader(entry.flags & ~FLAG_DESCRIPTOR, entry.method, *facts_of(entry), entry.name_bytes, extra, 0)
    return _encode_local(made, (entry.dos_time, entry.dos_date))


def make_central_entry(
    header: bytes, local: LocalHeader, naming: Naming, facts: Facts, old: CentralEntry | None
) -> CentralEntry:
    """Return the directory entry of a member; its offset is 0 yet.

    ``header`` is as it will stand there. Of an old entry, attributes, times, extra fields and comment are kept.
    """
    # The new directory is not encrypted, and masks nothing.
    flags = _flags(local.flags & ~FLAG_MASKED, naming)
    if old is not None:
        extra = _without(old.extra, *((ZIP64,) if old.name_bytes == naming.name else (ZIP64, UNICODE_PATH)))
        entry = old._replace(flags=flags, method=local.method, offset=0, name_bytes=naming.name, extra=extra)
        return entry._replace(**facts._asdict())
    clock, date = LOCAL.unpack_from(header)[4:6]
    origin = decode_origin(header)
    attributes = new_attributes(naming.name, None if origin is None else origin.mode)
    described = flags, local.method, clock, date, *facts
    return CentralEntry(MADE_BY_UNIX, *described, attributes, 0, naming.name, central_extra(local.extra), b"")


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
        fields.append(EXTRA_HEADER.pack(identifier, len(data)) + data)
    return b"".join(fields)


def encode_entry(entry: CentralEntry, offset: int) -> bytes:
    """Return a directory entry whose member is at ``offset``, with a Zip64 field where needed (4.3.12, 4.5.3)."""
    made_by, flags, method, clock, date, crc, compressed_size, size, attributes, _, name, extra, comment = entry
    large = b"".join(struct.pack("<Q", value) for value in (size, compressed_size, offset) if value >= LIMIT_32)
    compressed_size, size, offset = min(compressed_size, LIMIT_32), min(size, LIMIT_32), min(offset, LIMIT_32)
    if large:
        zip64 = EXTRA_HEADER.pack(ZIP64, len(large)) + large
        extra = zip64 + extra if len(zip64) + len(extra) <= LIMIT_16 else zip64
    described = made_by, version_needed(method, bool(large)), flags, method, clock, date, crc, compressed_size, size
    lengths = len(name), len(extra), len(comment)
    head = CENTRAL.pack(CENTRAL_SIGNATURE, *described, *lengths, 0, 0, attributes, offset)
    return b"".join((head, name, extra, comment))


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
    joined = b"".join(parts)
    return PlainEntries(joined, len(joined) - len(parts[-1]))


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
