"""A member of another Zip as a payload: its compressed bytes as they stand there, with their known CRC-32."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from typing import Final

from rear.core.source_file import SourceStamp, stamp_of
from rear.core.storage import LOCAL, Storage
from rear.errors import SourceError
from rear.zip.archive import Archive
from rear.zip.codecs import DEFLATED, STORED, ZSTANDARD
from rear.zip.headers import CentralEntry
from rear.zip.member_data import raw_bytes
from rear.zip.payload import Payload, RangePayload, payload_of_file

_KEPT_METHODS: Final = frozenset({STORED, DEFLATED, ZSTANDARD})
"""What workers write. Others are compressed anew: some need flags in the header, all need rarer readers."""
_IN_MEMORY_BYTES: Final = 64 << 10
_SPOOL_BYTES: Final = 8 << 20


class OpenZip:
    """A Zip that payloads read from, until the last of them is gone.

    Args:
        path: the file.
        storage: the file system.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str, *, storage: Storage = LOCAL) -> None:
        self._storage = storage
        self._descriptor = -1
        self._descriptor = storage.open(path)
        self.stamp: SourceStamp = stamp_of(path, os.fstat(self._descriptor))

    def __del__(self) -> None:
        if self._descriptor >= 0:
            self._storage.close(self._descriptor)

    def pieces(self, start: int, length: int) -> Iterator[bytes]:
        """Yield the bytes of a range.

        Raises:
            SourceError: the file is not what it was when it was opened.
            OSError: it cannot be read.
        """

        def cut(missing: int) -> OSError:
            end = start + length - missing
            return OSError(errno.EIO, f"the file ended at byte {end:,}, {missing:,} bytes early", self.stamp.path)

        yield from raw_bytes(self._descriptor, start, length, cut=cut, storage=self._storage)
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Make sure that nobody has written to the file.

        Raises:
            SourceError: somebody has.
        """
        if stamp_of(self.stamp.path, os.fstat(self._descriptor))[:5] != self.stamp[:5]:
            raise SourceError(f"{self.stamp.path} was written to while it was read")


def payload_of_member(archive: Archive, entry: CentralEntry, content: OpenZip) -> Payload:
    """Return the bytes of a member, as they are compressed where workers write that method.

    Args:
        archive: the Zip.
        entry: the member, which was verified.
        content: the same Zip.

    Raises:
        RearError: the member cannot be read.
        OSError: there is no local space, or the Zip cannot be read.
    """
    size, compressed_size = entry.size, entry.compressed_size
    if entry.method in _KEPT_METHODS:
        start = archive.directory.prefix + entry.offset + archive.local_header(entry).length
        if compressed_size > _IN_MEMORY_BYTES:
            return RangePayload(content, start, entry.method, entry.crc, compressed_size, size)
        return Payload(entry.method, entry.crc, compressed_size, size, archive.window.read_on(start, compressed_size))
    with tempfile.TemporaryFile(prefix="rear-") as file:
        for piece in archive.read(entry):
            file.write(piece)
        return payload_of_file(file, size, DEFLATED, _SPOOL_BYTES)


def mode_of(entry: CentralEntry) -> int:
    """Return ``st_mode`` of a member, as far as the Zip has it, with its kind."""
    if entry.is_directory:
        return stat.S_IFDIR | (entry.mode & 0o7777 or 0o755)
    return entry.mode if stat.S_IFMT(entry.mode) else stat.S_IFREG | (entry.mode & 0o7777 or 0o644)
