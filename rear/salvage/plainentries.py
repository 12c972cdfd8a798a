"""Directory entries of members about which there is no question, many at once.

They say what `rear.salvage.rebuilt_headers.make_central_entry` says of a member without an old entry; a million of them one by one would
take ten times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from rear.salvage.rebuilt_headers import MADE_BY_UNIX, central_extra, new_attributes
from rear.salvage.scan_result import Run
from rear.zip.codecs import DEFLATED, STORED
from rear.zip.headers import version_needed
from rear.zip.structures import CENTRAL, CENTRAL_SIGNATURE, LIMIT_32, LOCAL, ORIGIN, TIMESTAMP

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
