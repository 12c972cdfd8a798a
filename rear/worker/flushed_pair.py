"""The pair of one file that is flushed before it is closed: one header, one compressed stream, one record a flush."""

from __future__ import annotations

from rear.core.layout import Layout
from rear.core.records import Append, File, Open, Origin, Pair, Part
from rear.core.storage import Storage
from rear.worker.pair_writer import PairWriter
from rear.zip.headers import Member, encode_central_entry, encode_local_header, member_of


class FlushedPair(PairWriter):
    """The pair of one file: see `PairWriter`."""

    #: The number of the file in this pair.
    sequence = 0
    #: How many bytes of the file its writer was told are kept here.
    kept_size = 0
    #: It has failed in the background, and the kernel may not tell again.
    has_failed = False

    def __init__(self, layout: Layout, pair: Pair, opened: Open, *, storage: Storage) -> None:
        super().__init__(layout, pair, opened, storage=storage)
        self._opened = opened

    def begin(self, file: File, header: bytes) -> None:
        """Record which file this is, and write a local header that stays until the file is complete.

        Raises:
            OSError: the pair is of no use.
        """
        self.sequence = file.sequence
        with self._journal_lock:
            self._journal.append(file)
        self.length = self._storage.write(self._descriptor, [header], 0)

    def append_part(self, part: Part, data: bytes) -> None:
        """Write one part: its record, then its data.

        Raises:
            OSError: the pair is of no use any more.
        """
        with self._journal_lock:
            self._journal.append(part)
        self.length += self._storage.write(self._descriptor, [data], self.length)

    def complete(self, append: Append, end: bytes) -> None:
        """End the stream, write the final local header where it fits, then the member's record.

        The record comes last: as long as it is missing the parts count, and need neither.

        Raises:
            OSError: the pair is of no use any more.
        """
        self._storage.write(self._descriptor, [end], self.length)
        header = self._encoder.header(append)
        if len(header) == append.data_offset:
            self._storage.write(self._descriptor, [header], 0)
        with self._journal_lock:
            self._journal.append(append)
        self.length, self.members = append.length, 1
        self.directory += encode_central_entry(member_of(append), 0)

    def open_header(self, file: File, mtime_ns: int) -> bytes:
        """Return the local header of a file that is not complete."""
        opened = self._opened
        origin = Origin(
            opened.cookie,
            file.sequence,
            file.archive,
            opened.host,
            opened.worker,
            mtime_ns,
            file.mode,
            metadata=file.metadata,
        )
        member = Member(file.name, file.method, 0, 0, 0, mtime_ns, file.mode)
        return encode_local_header(member, origin, is_open=True)
