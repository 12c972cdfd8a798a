"""Writes a journal: appends records to a file of records that this process alone writes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rear.core.records import Record
from rear.core.storage import LOCAL, Storage, StrPath
from rear.journal.codec import encode_record

if TYPE_CHECKING:
    # A worker writes journals, and reads none.
    from rear.journal.reader import Journal


class JournalWriter:
    """Appends records to a file of records that this process alone writes; one write call a record.

    Args:
        descriptor: the open file; closed by `close`.
        length: its length in bytes, where the next record goes. A torn last line has to be ended first: see `resume`.
    """

    def __init__(self, descriptor: int, length: int = 0, *, storage: Storage = LOCAL) -> None:
        self.descriptor = descriptor
        self.length = length
        self._storage = storage

    @classmethod
    def resume(cls, path: StrPath, journal: Journal, *, storage: Storage = LOCAL) -> JournalWriter:
        """Open a file of records to add some; a torn last line is ended by a newline, and so becomes damage."""
        writer = cls(storage.open(path, write=True), journal.length, storage=storage)
        if journal.torn is not None:
            writer.write(b"\n")
        return writer

    def append(self, record: Record) -> None:
        """Write one record. An error leaves the length as it was, so what the next record overwrites is never read."""
        self.write(encode_record(record))

    def write(self, line: bytes) -> None:
        """Write one encoded line."""
        try:
            self.length += self._storage.write(self.descriptor, [line], self.length)
        except BaseException:
            # Part of the line may be there, after Ctrl-C all of it: what the next one does not cover would be damage.
            with contextlib.suppress(OSError):
                self._storage.truncate(self.descriptor, self.length)
            raise

    def sync(self) -> None:
        """Bring all records to stable storage."""
        self._storage.sync(self.descriptor)

    def close(self) -> None:
        """Close the file, without a sync."""
        self._storage.close(self.descriptor)
