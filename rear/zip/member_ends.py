"""Where members end: their local headers, and on request their data, compared with the directory entries.

Of nearly all members nothing needs to be asked: the local header repeats its entry, and the data is right. `sound_ends`
finds these in a fraction of the time that `member_end` and `verify` take, which tell what is the matter with others. So
a member that is not sound is not damaged yet, but one to look at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from rear.zip.archive import Archive, header_difference
from rear.zip.codecs import DEFLATED, STORED, crc32, inflate
from rear.zip.headers import CentralEntry, decode_local_header, descriptor_lengths
from rear.zip.structures import (
    DESCRIPTOR_LIMIT_BYTES,
    FLAG_DESCRIPTOR,
    FLAG_ENCRYPTED,
    LIMIT_32,
    LOCAL,
    LOCAL_SIGNATURE,
)

#: What a local header repeats of a directory entry: flags to length of the name (4.3.7, 4.3.12).
_REPEATED: Final = struct.Struct("<4H3IH").pack
_UNUSUAL_FLAGS: Final = FLAG_DESCRIPTOR | FLAG_ENCRYPTED
_LARGE_BYTES: Final = 1 << 20
#: Extra areas are seldom longer.
_EXTRA_BYTES: Final = 256


def sound_ends(
    archive: Archive, entries: Iterable[CentralEntry], *, read_data: bool
) -> Iterator[tuple[CentralEntry, int]]:
    """Yield the entries of an archive, each with where its member ends, or 0 where that has to be looked at.

    Sound: the local header repeats the entry, the data ends before the directory, and size and CRC-32 are right.
    At most as many bytes are read as data as the archive has: what comes after that, in members that overlap, has 0.

    Args:
        archive: open.
        entries: some of its entries or all, best in the order of their members.
        read_data: whether size and CRC-32 of the data count.

    Raises:
        ZipFormatError: ``entries`` did.
    """
    directory, window, pack, head_bytes = archive.directory, archive.window, _REPEATED, LOCAL.size
    prefix, limit, budget = directory.prefix, directory.offset, directory.archive_length
    data, view, base, loaded = b"", memoryview(b""), 0, 0
    for entry in entries:
        _, flags, method, clock, date, crc, compressed_size, size, _, offset, name, _, _ = entry
        budget -= compressed_size
        is_large = (compressed_size > _LARGE_BYTES or size > _LARGE_BYTES) if read_data else size >= LIMIT_32
        if flags & _UNUSUAL_FLAGS or is_large or compressed_size >= LIMIT_32 or budget < 0:
            yield entry, 0
            continue
        position, name_length = prefix + offset, len(name)
        at, name_end = position - base, head_bytes + name_length
        wanted = name_end + (compressed_size if read_data else 0) + _EXTRA_BYTES
        if at < 0 or (at + wanted > loaded and base + loaded < limit):
            window.load(position, wanted)
            data, base, at = window.data, window.base, position - window.base
            view, loaded = memoryview(data), len(data)
        repeated = pack(flags, method, clock, date, crc, compressed_size, size, name_length)
        start = at + name_end
        if (
            start > loaded
            or data[at + 6 : at + 28] != repeated
            or data[at + head_bytes : start] != name
            or data[at : at + 4] != LOCAL_SIGNATURE
        ):
            yield entry, 0
            continue
        start += data[at + 28] | data[at + 29] << 8
        end = start + compressed_size
        if base + end > limit or (read_data and end > loaded):
            yield entry, 0
        elif not read_data:
            yield entry, base + end
        elif method == STORED:
            yield entry, base + end if compressed_size == size and crc32(view[start:end]) == crc else 0
        elif method == DEFLATED:
            plain = inflate(view[start:end], size)
            yield entry, base + end if plain is not None and crc32(plain) == crc else 0
        else:
            yield entry, 0


def verify(archive: Archive, entry: CentralEntry) -> None:
    """Read a member and keep nothing; errors are those of `Archive.read`."""
    _, end = next(sound_ends(archive, (entry,), read_data=True))
    if not end:
        for _ in archive.read(entry):
            pass


def member_end(archive: Archive, entry: CentralEntry) -> tuple[int, str | None]:
    """Return the byte after a member and its data descriptor, and what in its local header contradicts its entry.

    Raises:
        ZipFormatError: there is no local header where the entry says.
    """
    local = decode_local_header(archive.local_header_bytes(entry))
    end, limit = (
        archive.directory.prefix + entry.offset + local.length + entry.compressed_size,
        archive.directory.offset,
    )
    if local.has_descriptor and end <= limit:
        data = archive.window.read_on(end, min(DESCRIPTOR_LIMIT_BYTES, limit - end))
        end += next(descriptor_lengths(data, entry.crc, entry.compressed_size, entry.size), 0)
    return end, header_difference(entry, local)
