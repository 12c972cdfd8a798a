"""A file that is flushed before it is closed: what was flushed is as safe as a closed file.

Its first flush begins a pair for it alone. Each flush appends one part, record first: the next piece of one compressed
stream, ended at a byte. Closing appends the end of the stream, writes the final local header over the first one and
journals the member as any other. A writer that dies leaves the parts, which a scavenger joins: see
``rear.scavenger.flushed_files``.

Nothing but the file itself holds its content. When a pair fails or was taken over, all that was flushed goes to a new
pair, under a new number: a partial member that was made of the old one meanwhile must not be taken for the file.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from weakref import ref

from rear.core.log import LaterLog
from rear.core.names import Target
from rear.core.records import Append, File, Metadata, Part
from rear.core.storage import is_failure
from rear.errors import RearError
from rear.worker.flushed_pair import FlushedPair
from rear.worker.spool_file import MemberBytes
from rear.zip.codecs import DEFLATED, STORED, STREAM_ENDS, PartCompressor, compress, crc32

if TYPE_CHECKING:
    from rear.worker.worker import Worker

PART_LIMIT_BYTES = 4 << 20
"""More plain bytes are flushed in several parts, so that memory stays bounded."""
_SAMPLE_BYTES = 64 << 10
_SAMPLED_FROM_BYTES = 1 << 10
"""A first part that is shorter tells nothing of how the file will shrink."""
_ATTEMPTS = 2
_T = TypeVar("_T")
_MOVES = "%s: %s; all that was flushed goes to a new temp archive"


class FlushedFile:
    """What was flushed of one file, in one pair after the other if need be. Safe from many threads.

    Of ``content``, the file, only a weak reference is kept. Whatever ``method`` says, the file is stored where a
    beginning of some length does not shrink.
    """

    def __init__(
        self,
        target: Target,
        method: int,
        mode: int,
        metadata: Metadata | None,
        content: MemberBytes,
        worker: Worker,
    ) -> None:
        self._target = target
        self._method = method
        self._mode = mode
        self._metadata = metadata
        self._content = ref(content)
        self._worker = worker
        self._options = worker.options
        self._pair: FlushedPair | None = None
        #: Pairs that failed, and hold what was flushed until another one does.
        self._earlier: list[FlushedPair] = []
        self._first_sequence: int | None = None
        #: How much of the file its writer was told is kept, in whichever pair.
        self._kept_size = 0
        self._begin_stream()
        self._is_dirty = False
        self._synced = self._beaten = 0.0
        self._sync_lock = threading.Lock()
        self._lock = threading.RLock()
        #: What is to be told once the lock is given back.
        self._log = LaterLog()

    def flush(self, content: MemberBytes) -> None:
        """Append what was written since; returning acknowledges it.

        Raises:
            OSError: neither the pair nor a new one took it. What was flushed before is kept, and the next flush or
                the end of the file tries again.
            RearError: called by a signal handler that interrupted another flush of this file.
        """
        self._alone(lambda: self._flush(content))

    def finish(self, content: MemberBytes) -> bool:
        """Append the rest, and close the pair; returning true acknowledges the whole file.

        Returns:
            false when nothing was ever flushed: then the file is a member like others.

        Raises:
            OSError: as for `flush`.
        """
        return self._alone(lambda: self._finish(content))

    def abort(self) -> None:
        """Drop the file with all that was flushed of it: its writer does not want it."""
        self._alone(self._abort)

    def sync(self) -> None:
        """Bring what was flushed to stable storage.

        Raises:
            OSError: that is not possible now; it is tried again.
        """
        self._alone(self._sync_all)

    def leave(self) -> None:
        """Write nothing more: a scavenger finds what was flushed once this process is gone."""
        self._alone(self._leave)

    def leave_after_fork(self) -> None:
        """In a child of ``fork``: close the child's copies of the descriptors."""
        self._lock, self._sync_lock = threading.RLock(), threading.Lock()
        for pair in (*self._earlier, self._pair):
            if pair is not None:
                pair.release_after_fork()
        self._earlier, self._pair = [], None

    # By the background thread.

    @property
    def due(self) -> float | None:
        """When `tend` has something to do, on the clock ``uptime``."""
        pair = self._pair
        if pair is None:
            return None
        beat = max(self._beaten, pair.created) + self._options.beat_seconds
        return min(beat, self._synced + self._options.sync_interval) if self._is_dirty or pair.has_failed else beat

    def tend(self, now: float) -> None:
        """Beat and sync when it is time; what fails goes to a new pair."""
        pair = self._pair
        if pair is None:
            return
        # Without the lock: flushes go on while a server is waited for, beats while a part of gigabytes is written.
        try:
            has_gap = pair.is_doubtful()
            if now - max(self._beaten, pair.created) >= self._options.beat_seconds:
                self._beaten = now
                if not ((not has_gap or pair.confirm()) and pair.beat()):
                    raise _lost(pair)
            if self._is_dirty and now - self._synced >= self._options.sync_interval:
                self._synced = now
                self._sync(pair)
                self._confirm(pair)
        except OSError as error:
            if pair is self._pair:
                pair.has_failed = True
                self._log.warn(_MOVES, pair.path, error)
        if pair.has_failed and self._lock.acquire(blocking=False):
            try:
                self._move()
            except OSError as error:
                self._log.tell_error("%s: %s; what was flushed is kept and tried again", self._name, error)
            finally:
                self._lock.release()
        self._log.tell()

    def _alone(self, do: Callable[[], _T]) -> _T:
        """Do something with the lock held, and tell the log afterwards."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise RearError(f"{self._name}: called by a signal handler that interrupted a flush of this very file")
        try:
            with self._lock:
                return do()
        finally:
            self._log.tell()

    # Everything below runs with the lock held.

    def _flush(self, content: MemberBytes) -> None:
        size = content.size
        self._look_for_changes(content, size)
        if not size and self._earlier:
            # Cut to nothing: what was flushed before counts no more.
            earlier, self._earlier, self._kept_size = self._earlier, [], 0
            self._drop(earlier)
        if size and (self._pair is None or size > self._size):
            self._write(content, size, is_last=False)

    def _finish(self, content: MemberBytes) -> bool:
        if self._pair is None and not self._earlier and not self._kept_size:
            self._worker.end_flushed(self)
            return False
        try:
            size = content.size
            self._look_for_changes(content, size)
            self._write(content, size, is_last=True)
        except BaseException:
            self._leave()
            raise
        pair, self._pair = self._pair, None
        assert pair is not None
        try:
            pair.close("complete")
        except OSError as error:
            if not is_failure(error):
                raise
            # All of it is synced; a scavenger takes it over once this process is gone.
            self._log.warn("%s stays unfinished until this process has ended: %s", pair.path, error)
            pair.release()
        self._worker.end_flushed(self)
        return True

    def _abort(self) -> None:
        pairs = [*self._earlier, *([self._pair] if self._pair is not None else [])]
        self._earlier, self._pair = [], None
        for pair in pairs:
            # Its parts may be on stable storage: what it says of them has to be there, too.
            with contextlib.suppress(OSError):
                pair.abort([pair.sequence])
                pair.sync()
            pair.remove()
        self._worker.end_flushed(self)

    def _sync_all(self) -> None:
        pair = self._pair
        try:
            if pair is not None and self._is_dirty:
                self._sync(pair)
                self._confirm(pair)
        except OSError as error:
            if not is_failure(error):
                raise
            assert pair is not None
            self._log.warn(_MOVES, pair.path, error)
            pair.has_failed = True
        self._move()
        if self._pair is not None and self._is_dirty:
            self._sync(self._pair)

    @property
    def _name(self) -> str:
        return f"{self._target.archive}/{self._target.name}"

    def _begin_stream(self) -> None:
        self._size = self._crc = 0
        self._mtime_ns = 0
        self._compressor: PartCompressor | None = None

    def _look_for_changes(self, content: MemberBytes, size: int) -> None:
        """Give up a pair that has failed, or whose stream does not go on as the file does, which was changed before its
        end.
        """
        if self._pair is not None and self._pair.has_failed:
            self._give_up(self._pair)
        if self._pair is None or not (content.rewinds or size < self._size):
            return
        crc = 0
        for start in range(0, min(size, self._size), PART_LIMIT_BYTES):
            crc = crc32(content.read_at(start, min(PART_LIMIT_BYTES, self._size - start)), crc)
        if size < self._size or crc != self._crc:
            self._give_up(self._pair)

    def _write(self, content: MemberBytes, size: int, *, is_last: bool) -> None:
        """Bring all up to ``size`` into the pair, or into a new one with all that came before."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                pair = self._pair or self._begin(content, size)
                self._append_until(pair, content, size)
                if is_last:
                    pair.complete(self._member(pair), STREAM_ENDS[self._method])
                was_dirty, self._is_dirty = self._is_dirty, True
                if not (was_dirty or self._options.syncs_each):
                    self._worker.wake()
                # Those before are needed until this one is proven.
                if self._options.syncs_each or is_last or self._earlier:
                    self._sync(pair)
                    if (is_last or self._earlier) and not pair.confirm():
                        raise _lost(pair)
                self._confirm(pair)
            except BaseException as error:
                if self._pair is not None:
                    if is_failure(error):
                        self._log.warn(_MOVES, self._pair.path, error)
                    self._give_up(self._pair)
                if attempt == _ATTEMPTS or not is_failure(error):
                    raise
            else:
                pair.kept_size = self._kept_size = size
                earlier, self._earlier = self._earlier, []
                self._drop(earlier)
                return

    def _begin(self, content: MemberBytes, size: int) -> FlushedPair:
        self._begin_stream()
        sequence = self._worker.next_sequence()
        if self._first_sequence is None:
            self._first_sequence = sequence
            if self._method != STORED:
                sample = content.read_at(0, min(size, _SAMPLE_BYTES))
                if len(sample) >= _SAMPLED_FROM_BYTES and len(compress(sample, DEFLATED)) >= len(sample):
                    self._method = STORED
        pair = self._pair = self._worker.make_flushed_pair()
        self._compressor = PartCompressor(self._method)
        self._mtime_ns = time.time_ns()
        repeated_size = size if self._kept_size else 0
        file = File(
            sequence, self._first_sequence, repeated_size, *self._target, self._method, 0, self._mode, self._metadata
        )
        header = pair.open_header(file, self._mtime_ns)
        pair.begin(file._replace(offset=len(header)), header)
        self._header_length = len(header)
        return pair

    def _append_until(self, pair: FlushedPair, content: MemberBytes, size: int) -> None:
        assert self._compressor is not None
        while self._size < size:
            data = content.read_at(self._size, min(PART_LIMIT_BYTES, size - self._size))
            if not data:
                raise OSError(errno.EIO, f"the local spool ended after {self._size:,} of {size:,} bytes")
            end, crc, self._mtime_ns = self._size + len(data), crc32(data, self._crc), time.time_ns()
            compressed = self._compressor.compress(data)
            part = Part(self._size, end, pair.length, len(compressed), crc, self._mtime_ns)
            pair.append_part(part, compressed)
            self._size, self._crc = end, crc

    def _member(self, pair: FlushedPair) -> Append:
        length = pair.length + len(STREAM_ENDS[self._method])
        archive, name = self._target
        return Append(
            pair.sequence, source=None, source_start=0, source_end=self._size, offset=0, length=length,
            archive=archive, name=name, method=self._method, crc=self._crc,
            compressed_size=length - self._header_length, size=self._size,
            mtime_ns=self._mtime_ns, mode=self._mode, metadata=self._metadata,
        )  # fmt: skip

    def _sync(self, pair: FlushedPair) -> None:
        # One at a time: the kernel tells of a failure once, to whoever comes first.
        with self._sync_lock:
            if pair.has_failed:
                raise OSError(errno.EIO, "an earlier sync has failed", str(pair.path))
            if pair is self._pair:
                self._is_dirty = False
            try:
                pair.sync()
            except OSError:
                pair.has_failed = True
                raise

    def _confirm(self, pair: FlushedPair) -> None:
        """After a gap longer than half the lease, make sure that the pair is still ours."""
        if pair.is_doubtful() and not pair.confirm():
            raise _lost(pair)

    def _move(self) -> None:
        """Bring what was flushed out of a pair that has failed into a new one."""
        if self._pair is not None and self._pair.has_failed:
            self._give_up(self._pair)
        content = self._content()
        # A file that is being changed where it was flushed is in no state that anybody has asked to keep.
        if self._pair is None and self._kept_size and content is not None and not content.rewinds:
            self._write(content, self._kept_size, is_last=False)

    def _give_up(self, pair: FlushedPair) -> None:
        """Never write to a pair again; it stays as it is while it holds what was flushed."""
        self._pair = None
        self._is_dirty = False
        try:
            is_owned = pair.is_owned()
        except OSError:
            is_owned = True
        if not is_owned:
            # Who took it knows all that it could tell.
            pair.release()
        elif pair.kept_size:
            self._earlier.append(pair)
        else:
            self._drop([pair])

    def _drop(self, pairs: list[FlushedPair]) -> None:
        """Remove pairs that do not count: they hold nothing, or another one holds it, or nobody wants it."""
        for pair in pairs:
            # Where it cannot be removed, this says so.
            with contextlib.suppress(OSError):
                pair.abort([pair.sequence])
            pair.remove()

    def _leave(self) -> None:
        for pair in (*self._earlier, self._pair):
            if pair is not None:
                pair.release()
        self._earlier, self._pair = [], None
        self._worker.end_flushed(self)


def _lost(pair: FlushedPair) -> OSError:
    return OSError(errno.ESTALE, "it was taken over while this process was paused", str(pair.path))
