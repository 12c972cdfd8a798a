"""Members about which nothing needs to be asked: the local header repeats its directory entry, and the data is right.

Nearly all members are of that kind. `Archive.verify` and `rear.zip.bounds` answer what the others raise, in several times
the time; so a member that is not sound here is not damaged yet, but one to look at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from rear.core.storage import Storage
from rear.zip.archive import Archive
from rear.zip.codecs import DEFLATED, STORED, crc32, inflate
from rear.zip.headers import CentralEntry
from rear.zip.structures import FLAG_DESCRIPTOR, FLAG_ENCRYPTED, LIMIT_32, LOCAL, LOCAL_SIGNATURE

#: What a local header repeats of a directory entry: flags to length of the name (4.3.7, 4.3.12).
_REPEATED: Final = struct.Struct("<4H3IH").pack
_UNUSUAL_FLAGS: Final = FLAG_DESCRIPTOR | FLAG_ENCRYPTED
_PIECE_BYTES: Final = 1 << 20
_FIRST_READ_BYTES: Final = 16 << 10
_LARGE_BYTES: Final = 1 << 20
#: Extra areas are seldom longer.
_EXTRA_BYTES: Final = 256


def sound_ends(
    archive: Archive, entries: Iterable[CentralEntry], *, read_data: bool, storage: Storage
) -> Iterator[tuple[CentralEntry, int]]:
    """Yield the entries of an archive, each with where its member ends, or 0 where that has to be looked at.

    Sound: the local header repeats the entry, the data ends before the directory, and size and CRC-32 are right.
    At most as many bytes are read as data as the archive has: what comes after that, in members that overlap, has 0.

    Args:
        archive: open.
        entries: some of its entries or all, best in the order of their members.
        read_data: whether size and CRC-32 of the data count.
        storage: the file system.

    Raises:
        ZipFormatError: ``entries`` did.
    """
    directory, descriptor, pack, head_bytes = archive.directory, archive.descriptor, _REPEATED, LOCAL.size
    prefix, limit, budget = directory.prefix, directory.offset, directory.archive_length
    data, view, base, loaded, ahead = b"", memoryview(b""), 0, 0, _FIRST_READ_BYTES
    for entry in entries:
        _, flags, method, clock, date, crc, compressed_size, size, _, offset, name, _, _ = entry
        budget -= compressed_size
        is_large = (compressed_size > _LARGE_BYTES or size > _LARGE_BYTES) if read_data else size >= LIMIT_32
        if flags & _UNUSUAL_FLAGS or is_large or compressed_size >= LIMIT_32 or budget < 0:
            yield entry, 0
            continue
        position, name_length = prefix + offset, len(name)
        at, name_end = position - base, head_bytes + name_length
        wanted = name_end + (compressed_size if read_data else 0)
        if at < 0 or (at + wanted + _EXTRA_BYTES > loaded and base + loaded < limit):
            # What goes forward is read ahead, so that small members do not cost a system call each.
            ahead = min(4 * ahead, _PIECE_BYTES) if 0 <= at <= loaded else _FIRST_READ_BYTES
            length = max(0, min(max(ahead, wanted + _EXTRA_BYTES), limit - position))
            data, base, at = storage.read(descriptor, length, position), position, 0
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
        if not read_data:
            yield entry, base + end if base + end <= limit else 0
        elif end > loaded:
            yield entry, 0
        elif method == STORED:
            yield entry, base + end if compressed_size == size and crc32(view[start:end]) == crc else 0
        elif method == DEFLATED:
            plain = inflate(view[start:end], size)
            yield entry, base + end if plain is not None and crc32(plain) == crc else 0
        else:
            yield entry, 0
