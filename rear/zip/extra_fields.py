"""Extra areas, and what they and MS-DOS fields say: names, sizes over 4 GiB, times.

Paragraph numbers are those of PKWARE's APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from functools import lru_cache

from rear.zip.codecs import crc32
from rear.zip.structures import EXTRA_HEADER, FLAG_UTF8, LIMIT_32, TIMESTAMP, UNICODE_PATH, ZIP64


def extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield ``(identifier, data)`` of an extra area (4.5.1); stop silently at what is no field any more."""
    position = 0
    while position + 4 <= len(extra):
        identifier, length = EXTRA_HEADER.unpack_from(extra, position)
        position += 4
        if position + length > len(extra):
            return
        yield identifier, extra[position : position + length]
        position += length


def decode_name(name: bytes, flags: int, extra: bytes) -> str:
    """Return a member's name as text: UTF-8 when flagged (4.4.4, bit 11) or in a field of its own (4.6.9), else CP437.

    What is valid UTF-8 is read as UTF-8 without a flag too: Info-ZIP on Unix does not set it, and CP437 text is not
    valid.
    """
    if name.isascii():
        return name.decode("ascii")
    if flags & FLAG_UTF8:
        return name.decode("utf-8", "surrogateescape")
    for identifier, data in extra_fields(extra):
        # The field counts only while it belongs to the name: a tool that knows it not may have renamed the member.
        if identifier == UNICODE_PATH and data[:1] == b"\x01" and data[1:5] == crc32(name).to_bytes(4, "little"):
            return data[5:].decode("utf-8", "surrogateescape")
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("cp437")


def zip64_values(extra: bytes, wanted: list[int]) -> list[int]:
    """Replace each value of ``wanted`` that is at its limit by the next one of the Zip64 field (4.5.3)."""
    if LIMIT_32 not in wanted:
        return wanted
    if extra[:2] == b"\x01\0":
        # Nearly always it is the first: no loop for a million entries.
        data = extra[4 : 4 + int.from_bytes(extra[2:4], "little")]
    else:
        data = next((data for identifier, data in extra_fields(extra) if identifier == ZIP64), b"")
    position = 0
    result = []
    for value in wanted:
        if value == LIMIT_32 and position + 8 <= len(data):
            value = int.from_bytes(data[position : position + 8], "little")
            position += 8
        result.append(value)
    return result


def _dos_date_and_time(second: int) -> tuple[int, int]:
    """Return date and time in MS-DOS format and local time (4.4.6), clamped to the years 1980 to 2107."""
    try:
        moment = time.localtime(second)
    except (OverflowError, OSError, ValueError):
        moment = time.localtime(0)
    if moment.tm_year < 1980:
        return 0x21, 0
    if moment.tm_year > 2107:
        return 0xFF9F, 0xBF7D
    date = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    return date, moment.tm_hour << 11 | moment.tm_min << 5 | min(moment.tm_sec, 59) >> 1


# Members that came together have the same seconds, and mktime looks for the zone's file each time.
@lru_cache(maxsize=1024)
def dos_to_ns(date: int, clock: int) -> int:
    """Return nanoseconds since the epoch of an MS-DOS date and time in local time; 0 when it is no date."""
    fields = (date >> 9) + 1980, date >> 5 & 15, date & 31, clock >> 11, clock >> 5 & 63, (clock & 31) * 2, 0, 0, -1
    try:
        return int(time.mktime(fields)) * 1_000_000_000
    except (OverflowError, ValueError):
        return 0


@lru_cache(maxsize=64)
def times_of_second(second: int) -> tuple[bytes, bytes]:
    """Return time and date in MS-DOS format (4.4.6) as headers have them, and the extended timestamp field (4.6.1).

    The latter is empty for a time that it cannot hold.
    """
    date, clock = _dos_date_and_time(second)
    fits = -0x80000000 <= second <= 0x7FFFFFFF
    return struct.pack("<2H", clock, date), struct.pack("<2HBi", TIMESTAMP, 5, 1, second) if fits else b""
