"""Zips of any number of members in seconds, as any writer would make them, and a look at how many members a Zip has.

Written here from APPNOTE 4.3.7, 4.3.12, 4.3.14 to 4.3.16, because Python's ``zipfile`` needs minutes for what the
rows of a million members read, and because what measures rear should not be made or checked by rear.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

_DATE, _TIME = (2026 - 1980) << 9 | 1 << 5 | 1, 0
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_BUFFER_BYTES = 8 << 20
STORED, DEFLATED = 0, 8


def write(path: Path, files: Iterable[tuple[str, bytes]], *, method: int = STORED, torn: bool = False) -> int:
    """Write a Zip below 4 GiB and return its number of members.

    Args:
        path: the new file.
        files: names and contents; contents that come again are compressed once.
        method: `STORED`, or `DEFLATED` at level 6.
        torn: leave out the directory and the second half of the last member, as a writer does that dies.
    """
    compressed: dict[int, tuple[bytes, bytes, int]] = {}
    central = bytearray()
    offset = count = start = 0
    with open(path, "wb", buffering=_BUFFER_BYTES) as file:
        for name, content in files:
            # The content itself is kept as well, so that its id stays its own.
            if id(content) not in compressed:
                data = _deflate(content) if method == DEFLATED else content
                compressed[id(content)] = (content, data, zlib.crc32(content))
            _, data, crc = compressed[id(content)]
            encoded = name.encode()
            common = (20, 0, method, _TIME, _DATE, crc, len(data), len(content), len(encoded), 0)
            start = offset
            offset += file.write(_LOCAL.pack(b"PK\3\4", *common)) + file.write(encoded) + file.write(data)
            if not torn:
                central += _CENTRAL.pack(b"PK\1\2", 0x031E, *common, 0, 0, 0, 0o100644 << 16, start) + encoded
            count += 1
        if torn:
            file.truncate(start + (offset - start) // 2)
        else:
            file.write(central)
            file.write(_end(count, offset, len(central)))
    return count


def _deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


def _end(count: int, offset: int, length: int) -> bytes:
    end = b""
    if count >= 0xFFFF:
        end += _END64.pack(b"PK\6\6", _END64.size - 12, 0x032D, 45, 0, 0, count, count, length, offset)
        end += _LOCATOR64.pack(b"PK\6\7", 0, offset + length, 1)
    shown = min(count, 0xFFFF)
    return end + _END.pack(b"PK\5\6", 0, 0, shown, shown, length, offset, 0)


def directory_range(path: Path) -> tuple[int, int, int]:
    """Return where the central directory of a Zip without comment begins, its length, and its number of entries."""
    with open(path, "rb") as file:
        file.seek(-_END.size, 2)
        end_offset = file.tell()
        signature, _, _, _, entries, length, offset, _ = _END.unpack(file.read(_END.size))
        if signature != b"PK\5\6":
            raise ValueError(f"{path.name} does not end as a Zip does")
        if entries == 0xFFFF or offset == 0xFFFFFFFF or length == 0xFFFFFFFF:
            file.seek(end_offset - _LOCATOR64.size)
            signature, _, offset64, _ = _LOCATOR64.unpack(file.read(_LOCATOR64.size))
            if signature == b"PK\6\7":
                file.seek(offset64)
                *_, entries, length, offset = _END64.unpack(file.read(_END64.size))
    return offset, length, entries


def expect_members(path: Path, expected: int, *, tolerated: int = 0) -> None:
    """Raise `ValueError` unless a Zip has so many members, or a few less: who loses some is not fast, but wrong."""
    _, _, entries = directory_range(path)
    if not expected - tolerated <= entries <= expected:
        raise ValueError(f"{path.name} has {entries:,} members instead of {expected:,}")
