"""One temp archive and its journal, open for appending by this process alone.

The order of one append is: journal record, member bytes, acknowledgement. The first error of a write or a sync
poisons the pair: what the kernel reported once it will not report again, so nothing after it can be believed. See
``docs/explanation/durability.md``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable

from rear.core.layout import Layout
from rear.core.liveness import BIRTH_SECONDS
from rear.core.names import Target
from rear.core.records import Abort, Beat, Close, Metadata, Open, PackedMetadata, Pair
from rear.core.storage import PRIVATE_MODE, Storage, is_failure
from rear.errors import FormatError
from rear.journal.encoder import Encoder
from rear.journal.writer import JournalWriter
from rear.zip.headers import encode_end, local_header_length
from rear.zip.member_data import has_content
from rear.zip.payload import Payload, RangePayload, SharedFile
from rear.zip.structures import LOCAL

DIRECTORY_LIMIT_BYTES = 4 << 20
"""A temp archive of many tiny members ends here: its directory is held in memory until then."""
JOURNAL_LIMIT_BYTES = 32 << 20
"""And here, by its journal: who reads that may need four bytes of memory for each, and has a limit (see
`rear.journal.reader`)."""


class Item:
    """A member on its way: kept by the worker until it is proven on stable storage."""

    __slots__ = (
        "metadata", "mode", "mtime_ns", "offset", "on_stable", "pair", "payload", "proven", "sequence", "source",
        "target",
    )  # fmt: skip

    def __init__(
        self,
        sequence: int,
        target: Target,
        payload: Payload,
        mtime_ns: int,
        mode: int,
        source: str | None,
        metadata: Metadata | PackedMetadata | None,
        on_stable: Callable[[], None] | None,
    ) -> None:
        self.sequence = sequence
        self.target = target
        self.payload = payload
        self.mtime_ns = mtime_ns
        self.mode = mode
        self.source = source
        self.metadata = metadata
        self.on_stable = on_stable
        self.pair: PairWriter | None = None
        self.offset = 0
        self.proven = False


class PairWriter:
    """Appends members to a new temp archive: ``pair`` was never used before, ``opened`` is its journal's first record.

    Raises:
        OSError: a file could not be made, or the first record not written; what was made is removed again.
    """

    def __init__(self, layout: Layout, pair: Pair, opened: Open, *, storage: Storage) -> None:
        self.pair = pair
        self.path = layout.temp_archive(pair)
        self.journal_path = layout.journal(pair)
        self.length = 0
        self.members = 0
        #: The temp archive's own central directory, so far.
        self.directory = bytearray()
        #: Whether it alone holds a member that counts; otherwise it need not be closed when it has failed.
        self.needed = False
        #: Whether one of them was never proven, and cannot be written again.
        self.holds_only_copy = False
        #: When it was certainly this process's own, on the clock that goes on during sleep; before the first system
        #: call.
        self._confirmed = self.created = storage.uptime()
        self._half_lease_seconds = opened.lease_seconds / 2
        self._encoder = Encoder(opened)
        self._storage = storage
        self._names_synced = False
        self._beats = 0
        self._failure: OSError | None = None
        self._unrecorded: list[int] = []
        #: Where the last sync that succeeded found the journal, the temp archive, its members and their directory.
        self._synced = (0, 0, 0, 0)
        self._aborted_since: list[int] = []
        self._is_cut = False
        #: It belongs to the parent of this process.
        self.is_inherited = False
        # Beats go on while a large member is being appended, so the journal has a lock of its own.
        self._journal_lock = threading.Lock()
        # The kernel tells one thread of a failed sync, once: the others have to learn of it here.
        self._journal_sync_lock = threading.Lock()
        self._sync_failure: OSError | None = None
        self._descriptor = -1
        self._journal = JournalWriter(-1, storage=storage)
        #: How long the journal was when the pair was last seen to be this process's own.
        self._confirmed_length = 0
        storage.make_directories(self.path.parent)
        try:
            self._journal.descriptor = storage.create(self.journal_path, PRIVATE_MODE)
            self._descriptor = storage.create(self.path, PRIVATE_MODE)
            self._journal.append(opened)
            if storage.uptime() - self.created > BIRTH_SECONDS / 2 and not self.is_owned():
                # Until its first record can be seen, no lease protects it.
                raise OSError(errno.ESTALE, "a scavenger has removed it while it was made", os.fspath(self.path))
        except FileExistsError:
            # That one is not ours to remove.
            self.release()
            raise
        except BaseException:
            self.remove()
            raise

    @property
    def released(self) -> bool:
        """Whether its files were closed."""
        return self._descriptor < 0

    def append(self, item: Item) -> None:
        """Write one member: its record, then header and data in one call.

        Raises:
            OSError: the pair is poisoned.
            SourceError: the source changed while it was copied; the pair is as before, with an ``abort`` record.
        """
        if self._failure is not None:
            raise self._failure
        payload = item.payload
        offset, members, directory_length = self.length, self.members, len(self.directory)
        line, header, entry = self._encoder.encode(item, offset)
        try:
            with self._journal_lock:
                self._journal.write(line)
            if payload.data is not None:
                self._storage.write(self._descriptor, [header, payload.data], offset)
            else:
                self._write_chunks(header, payload)
            self.directory += entry
            item.pair, item.offset = self, offset
            self.members = members + 1
            self.length = offset + len(header) + payload.compressed_size
        except BaseException as error:
            if is_failure(error):
                raise
            # The source failed, or Ctrl-C came: not acknowledged, and the next member goes to the same place. Noted
            # before all else, because Ctrl-C may come again while it is recorded.
            self._unrecorded.append(item.sequence)
            self._aborted_since.append(item.sequence)
            item.pair = None
            self.length, self.members = offset, members
            del self.directory[directory_length:]
            try:
                self.abort([])
                self._storage.truncate(self._descriptor, self.length)
            except OSError as failure:
                # The next append is told: raised here, it would hide what came, and this member would be tried again.
                self._failure = failure
            raise

    def _write_chunks(self, header: bytes, payload: Payload) -> None:
        position = self.length + self._storage.write(self._descriptor, [header], self.length)
        for chunk in payload.chunks():
            position += self._storage.write(self._descriptor, [chunk], position)

    def abort(self, sequences: list[int]) -> None:
        """Record that members do not count here: not acknowledged, or proven in a later pair."""
        with self._journal_lock:
            # What could not be recorded comes first the next time: without it a member counts as lost that never was
            # kept.
            self._unrecorded += sequences
            self._aborted_since += sequences
            while self._unrecorded:
                self._journal.append(Abort(self._unrecorded[0]))
                del self._unrecorded[0]

    def sync(self) -> None:
        """Bring all that was appended before this call to stable storage; appends may go on meanwhile.

        Raises:
            OSError: the pair is poisoned.
        """
        with self._journal_lock:
            reached = self._journal.length, self.length, self.members, len(self.directory)
            # Of the last ones the record may still have to be written.
            aborts = max(0, len(self._aborted_since) - len(self._unrecorded))
        self._sync_journal()
        self._storage.sync(self._descriptor)
        if not self._names_synced:
            self._storage.sync_directory(self.path.parent)
            self._names_synced = True
        with self._journal_lock:
            self._synced = reached
            del self._aborted_since[:aborts]

    def _sync_journal(self) -> None:
        with self._journal_sync_lock:
            if self._sync_failure is not None:
                raise OSError(self._sync_failure.errno, "an earlier sync has failed", str(self.journal_path))
            # No ``try`` in here: CPython 3.11 leaves the lock taken when a trace function raises at its line.
            self._sync_failure = _failure_of(self._journal.sync)
            if self._sync_failure is not None:
                raise self._sync_failure

    def cut_back(self) -> None:
        """Take back what was written since the last sync that succeeded, once its members are proven elsewhere.

        After an error the kernel may have dropped part of it: what is written behind that would follow a hole.

        Raises:
            OSError: that failed.
        """
        journal_length, length, members, directory_length = self._synced
        with self._journal_lock:
            self._storage.truncate(self._journal.descriptor, journal_length)
            self._journal.length = journal_length
            self._unrecorded = list(dict.fromkeys([*self._unrecorded, *self._aborted_since]))
        self._storage.truncate(self._descriptor, length)
        self.length, self.members = length, members
        del self.directory[directory_length:]
        self._is_cut = True
        # Of what is left nothing was lost.
        self._sync_failure = None

    def beat(self) -> bool:
        """Show other hosts that this process lives, by a record that reaches the server; false when the pair is lost.

        Raises:
            OSError: the pair is poisoned.
        """
        begun = self._storage.uptime()
        self._beats += 1
        with self._journal_lock:
            self._journal.append(Beat(self._beats))
        self._sync_journal()
        if self.is_doubtful():
            # Writes and syncs succeed on files that another host has taken: after a gap only a listing tells.
            return self.confirm()
        self._confirmed = begun
        return True

    def is_doubtful(self) -> bool:
        """Whether for more than half a lease nothing has shown that the pair is still this process's own."""
        return self._storage.uptime() - self._confirmed > self._half_lease_seconds

    def confirm(self) -> bool:
        """Look whether the pair is still this process's own, and remember when it was."""
        begun, length = self._storage.uptime(), self._journal.length
        if not self.is_owned():
            return False
        self._confirmed, self._confirmed_length = begun, length
        return True

    def written_since_confirmed(self) -> list[Item]:
        """Read back the members that were written since the pair was last seen to be this process's own.

        Raises:
            OSError: the files cannot be read any more: who took them has removed them.
        """
        from rear.journal.reader import parse_journal, read_lines

        lines = read_lines(self._journal.descriptor, storage=self._storage, start=self._confirmed_length)
        journal = parse_journal(lines)
        journal.aborted.update(self._unrecorded)
        file = SharedFile(self._descriptor, self._storage)
        return [
            Item(
                append.sequence,
                Target(append.archive, append.name),
                RangePayload(file, append.data_offset, append.method, append.crc, append.compressed_size, append.size),
                append.mtime_ns,
                append.mode,
                append.source,
                append.metadata,
                None,
            )
            for append in journal.pending()
        ]

    def is_full(self, rotation_size: int) -> bool:
        """Whether a new pair has to begin: it has so many bytes, or what is held of it in memory gets too much."""
        return (
            self.length >= rotation_size
            or len(self.directory) >= DIRECTORY_LIMIT_BYTES
            or self._journal.length >= JOURNAL_LIMIT_BYTES
        )

    def is_owned(self) -> bool:
        """Whether both files are still where this process made them; a scavenger that took them has renamed them.

        Raises:
            OSError: the folder cannot be listed.
        """
        names = self._storage.names(self.path.parent)
        return self.journal_path.name in names and self.path.name in names

    def holds(self, item: Item) -> bool:
        """Read a member back and tell whether its header, size and CRC are those that were written."""
        payload = item.payload
        head = self._storage.read(self._descriptor, LOCAL.size, item.offset)
        try:
            return has_content(
                self._descriptor,
                item.offset + local_header_length(head),
                payload.compressed_size,
                payload.method,
                size=payload.size,
                crc=payload.crc,
                storage=self._storage,
            )
        except FormatError:
            return False

    def close(self, reason: str) -> None:
        """Make the temp archive a valid Zip by itself, sync it, and record that nothing follows.

        After Ctrl-C it can be called again.

        Raises:
            OSError: it stays open and without ``close`` record; `release` leaves it to a scavenger, which takes it
                over once this process is gone.
        """
        if self.released:
            return
        directory_offset = total = self.length
        end = encode_end(entries=self.members, directory_length=len(self.directory), directory_offset=directory_offset)
        try:
            if self._unrecorded:
                self.abort([])
            # Nobody beats a pair that failed, so a scavenger may be copying what was cut off: that has to end in an
            # error of its copy, never in other bytes.
            if not self._is_cut:
                total += self._storage.write(self._descriptor, [self.directory, end], directory_offset)
            self._storage.truncate(self._descriptor, total)
            self.sync()
        except OSError:
            # Part of a directory would look like bytes that nobody can place.
            with contextlib.suppress(OSError):
                self._storage.truncate(self._descriptor, directory_offset)
            raise
        with self._journal_lock:
            self._journal.append(Close(reason, self.members, total))
            self._sync_journal()
            # Under the lock: no beat may follow that record.
            self._close_files()

    def release(self) -> None:
        """Close the descriptors and write nothing; idempotent. Whatever is called later fails with ``EBADF``."""
        # A beat of the background thread must not find the number of a file that was opened since.
        with self._journal_lock:
            self._close_files()

    def release_after_fork(self) -> None:
        """In a child of ``fork``: close the child's copies of the descriptors, and leave the files for ever."""
        self.is_inherited = True
        # A thread of the parent may have held it.
        self._journal_lock = threading.Lock()
        self._journal_sync_lock = threading.Lock()
        self.release()

    def _close_files(self) -> None:
        descriptors = self._journal.descriptor, self._descriptor
        self._journal.descriptor = self._descriptor = -1
        for descriptor in descriptors:
            try:
                if descriptor >= 0:
                    self._storage.close(descriptor)
            except OSError:
                # After a sync the error of a close says nothing; without one the members are kept by the worker.
                pass

    def remove(self) -> None:
        """Remove a pair that holds no member."""
        self.release()
        if self.is_inherited:
            return
        for path in (self.path, self.journal_path):
            try:
                self._storage.unlink(path)
            except OSError:
                # An empty pair of a live worker harms nobody; a scavenger clears it later.
                pass


def _failure_of(call: Callable[[], None]) -> OSError | None:
    try:
        call()
    except OSError as error:
        if not is_failure(error):
            raise
        return error
    return None
