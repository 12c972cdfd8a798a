"""A `logging.Handler` whose log is a member of a final archive, one for each process, that a crash cannot take away.

    handler = RearHandler("logs.zip/{host}/{pid}-{time}.log", base="/nfs/base")
    logging.getLogger().addHandler(handler)

What was logged and flushed, by default each record, is in the archive even if the process is killed: see
``docs/how-to/logging.md``. It works from `logging.config.dictConfig` as any handler does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import IO, Any
from weakref import ref

from rear.core.context import current
from rear.core.liveness import this_process
from rear.core.names import split_target
from rear.core.records import Metadata
from rear.core.storage import StrPath
from rear.core.threads import Bell, HelperThread
from rear.errors import NoContextError, RearError, UsageError
from rear.worker.fs import RearFs

_OWN_LOGGER = "rear"


class RearHandler(logging.Handler):
    """Writes log records to one member a process, and flushes them so that they survive SIGKILL.

    The member begins with the first record of a process; a child of ``fork`` begins its own. It is complete when the
    handler is closed, at the latest by `logging.shutdown` or the end of the ``rear_fs``; of a process that dies it is
    partial. Records of the logger ``rear`` and those below it are left out: rear writes them while it is busy with
    this very file.

    Args:
        path: ``ar.zip/name`` as for `rear.rear_open`; ``{host}``, ``{pid}`` and ``{time}`` (local, of the first record,
            as ``20260131T235959``) stand for those of the process. Members of one name get numbers, ``a~1.log``.
        level: records below it are left out; a number or a name.
        base: a base to open a ``rear_fs`` on, which is closed with the handler.
        fs: a ``rear_fs`` that is open instead. Without both, the one that is current where the handler is made, or at
            the first record.
        flush_level: records of this level and above are flushed at once; the default is all of them.
        flush_seconds: others are flushed so many seconds later at the latest.
        encoding: of the text.
        errors: what becomes of characters that it cannot hold, as for `open`.
        metadata: travels with the member, as for `rear.rear_open`.

    Raises:
        PathError: ``path`` names no archive or no member, or leaves the base.
        UsageError: an option has a value that cannot be used, or both ``base`` and ``fs`` are given.
        BaseError: the base is there, but is no directory.
    """

    terminator = "\n"

    def __init__(
        self,
        path: str,
        level: int | str = logging.NOTSET,
        *,
        base: StrPath | None = None,
        fs: RearFs | None = None,
        flush_level: int | str = logging.NOTSET,
        flush_seconds: float = 1.0,
        encoding: str = "utf-8",
        errors: str = "backslashreplace",
        metadata: Metadata | None = None,
    ) -> None:
        super().__init__(level)
        if base is not None and fs is not None:
            raise UsageError("RearHandler takes a base or a rear_fs, not both")
        if not flush_seconds > 0:
            raise UsageError(f"flush_seconds is {flush_seconds!r}: it has to be a number greater than 0")
        "".encode(encoding, errors)
        self.path = path
        self.flush_level = _level_of(flush_level)
        self.flush_seconds = flush_seconds
        self._encoding = encoding
        self._errors = errors
        self._metadata = metadata
        self._begin()
        split_target(self._expanded())
        self._own_fs = RearFs(base) if base is not None else None
        self._fs = fs or self._own_fs
        with contextlib.suppress(NoContextError):
            self._fs = self._fs or current()
        self._closed = False

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._file: IO[Any] | None = None
        #: When what was written has to be flushed, on the monotonic clock.
        self._due: float | None = None
        bell = self._bell = Bell()
        # It sleeps, and must not keep a handler that its program has dropped.
        handler = ref(self, lambda _: bell.ring())
        self._thread = HelperThread(lambda: _flush_late(handler, bell))

    def filter(self, record: logging.LogRecord) -> Any:
        """Leave out what rear itself logs, and what the handler's filters do."""
        if record.name == _OWN_LOGGER or record.name.startswith(f"{_OWN_LOGGER}."):
            return False
        return super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, and flush it now or soon."""
        try:
            data = f"{self.format(record)}{self.terminator}".encode(self._encoding, self._errors)
            file = self._opened()
            file.write(data)
            if record.levelno >= self.flush_level:
                self._flush(file)
            else:
                self._flush_later()
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Make what was logged so far survive SIGKILL of this process.

        Raises:
            OSError: that was not possible; it is kept in memory, and tried again with the next record.
        """
        with self.lock or contextlib.nullcontext():
            if self._file is not None and self._pid == os.getpid() and not self._file.closed:
                self._flush(self._file)

    def close(self) -> None:
        """Complete the member, and close the ``rear_fs`` that the handler has opened.

        Raises:
            OSError: the member could not be completed; what was flushed of it is kept.
            NotArchivedError: as for `rear.RearFs.close`.
        """
        with self.lock or contextlib.nullcontext():
            is_first, self._closed = not self._closed, True
            self._bell.ring()
            try:
                if self._file is not None and self._pid == os.getpid():
                    self._file.close()
            finally:
                super().close()
                if is_first and self._own_fs is not None:
                    self._own_fs.close()

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter and emit a record; as the inherited one, which an exception may leave with its lock taken."""
        found = self.filter(record)
        if found:
            assert self.lock is not None
            with self.lock:
                self.emit(found if isinstance(found, logging.LogRecord) else record)
        return found

    # Everything below runs with the handler's lock held.

    def _opened(self) -> IO[Any]:
        if self._pid != os.getpid():
            # The parent's file is the parent's alone.
            self._begin()
        if self._closed or (self._file is not None and self._file.closed):
            raise RearError(f"the log {self.path} is closed: a record that comes now is not archived")
        if self._file is None:
            self._fs = self._fs or current()
            self._file = self._fs.open(self._expanded(), "wb", metadata=self._metadata)
        return self._file

    def _expanded(self) -> str:
        now = time.strftime("%Y%m%dT%H%M%S")
        try:
            return self.path.format(host=this_process().host, pid=os.getpid(), time=now)
        except (LookupError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{self.path!r} cannot be filled in ({error}): {{host}}, {{pid}} and {{time}} are known"
            ) from None

    def _flush(self, file: IO[Any]) -> None:
        self._due = None
        file.flush()

    def _flush_later(self) -> None:
        now = time.monotonic()
        # What is overdue is told again: an exception may have come before the thread was.
        if self._due is None or self._due < now:
            self._due = now + self.flush_seconds
            self._thread.start("rear log")
            self._bell.ring()

    # By the thread.

    def _flush_if_due(self) -> float | None:
        """Flush when it is time; return in how many seconds it will be, ``None`` when nothing waits."""
        due = self._due
        if due is None or self._closed:
            return None
        if (left := due - time.monotonic()) > 0:
            return left
        self._due = None
        try:
            self.flush()
        except Exception:
            # The next record, or close(), tells whoever asks; logging here could come back to this handler.
            pass
        return None


def _flush_late(reference: ref[RearHandler], bell: Bell) -> None:
    while (handler := reference()) is not None and not handler._closed:
        seconds = handler._flush_if_due()
        del handler
        bell.wait(seconds)


def _level_of(level: int | str) -> int:
    if isinstance(level, int):
        return level
    try:
        return logging.getLevelNamesMapping()[level]
    except KeyError:
        raise UsageError(f"flush_level is {level!r}: it has to be a level of logging") from None
