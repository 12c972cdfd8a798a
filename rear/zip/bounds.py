"""Where a member of an archive ends, as its local header and its directory entry say together."""

from __future__ import annotations

import struct
from typing import Final

from rear.zip.archive import Archive, header_difference
from rear.zip.headers import CentralEntry, decode_local_header

_DESCRIPTOR_SIGNATURE: Final = b"PK\x07\x08"
_DESCRIPTOR_LIMIT_BYTES: Final = 24


def member_end(archive: Archive, entry: CentralEntry) -> tuple[int, str | None]:
    """Return the byte after a member and its data descriptor, and what in its local header contradicts its entry.

    Raises:
        ZipFormatError: there is no local header where the entry says.
    """
    start = archive.directory.prefix + entry.offset
    if length := archive.plain_header_length(entry):
        return start + length + entry.compressed_size, None
    local = decode_local_header(archive.local_header_bytes(entry))
    end, limit = start + local.length + entry.compressed_size, archive.directory.offset
    if local.has_descriptor and end <= limit:
        data = archive.read_at(end, min(_DESCRIPTOR_LIMIT_BYTES, limit - end))
        end += descriptor_length(data, entry.crc, entry.compressed_size, entry.size)
    return end, header_difference(entry, local)


def descriptor_length(data: bytes, crc: int, compressed_size: int, size: int) -> int:
    """Return the length of the data descriptor that ``data`` begins with, 0 when there is none that fits (4.3.9).

    It may have a signature or not, and sizes of 32 or 64 bits; nothing in the header tells which.
    """
    at = 4 if data[:4] == _DESCRIPTOR_SIGNATURE else 0
    # What looks like a signature may be a CRC.
    for start in {at, 0}:
        for layout, mask in (("<IQQ", -1), ("<3I", 0xFFFFFFFF)):
            expected = struct.pack(layout, crc, compressed_size & mask, size & mask)
            if data[start : start + len(expected)] == expected:
                return start + len(expected)
    return 0
