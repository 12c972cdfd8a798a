"""Where a member of an archive ends, as its local header and its directory entry say together."""

from __future__ import annotations

from rear.zip.archive import Archive, header_difference
from rear.zip.headers import CentralEntry, decode_local_header, descriptor_lengths
from rear.zip.structures import DESCRIPTOR_LIMIT_BYTES


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
        data = archive.read_at(end, min(DESCRIPTOR_LIMIT_BYTES, limit - end))
        end += next(descriptor_lengths(data, entry.crc, entry.compressed_size, entry.size), 0)
    return end, header_difference(entry, local)
