"""The bytes of one member while they are written: as they came at first, then in memory, when they are many in a spool.

Most files are written at once and never looked at again: those have no buffer. Threads may share a file: one alone
makes the buffer, and one alone moves it to the spool, a local file without a name.

An exception may come at any line, from a signal handler: what was written before is there once, and what was being
written is there or not. So all that is changed is done in one step of the interpreter, or in C.

They belong to the process that made them. A forked child shares the position in the spool with its parent, and would
write the buffered bytes out when it drops its copy of the file: so in the child everything seems to succeed and nothing
happens.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn, cast

from rear.core.storage import LOCAL, is_failure
from rear.errors import RearError
from rear.zip.payload import Payload, open_spool, payload_of_bytes, payload_of_file

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_SPOOL_BUFFER_BYTES: Final = 1 << 16

process = object()
"""Another one in each process that a fork made: cheaper to compare than process ids are to get."""

ENDED: Final = io.BytesIO()
"""The file behind all files that have ended."""
ENDED.close()

_beginning = threading.RLock()
"""Held while the buffer of a file is made: threads that share a file must not lose a write."""

do_nothing: Final = cast("Callable[[], None]", int)
"""A finalizer that is not a line of Python: the exception of a signal handler that is called in a ``__del__`` becomes a
message on standard error, and in a program that writes many files Ctrl-C would do nothing now and then."""

_spools: Final[set[io.BufferedRandom]] = set()
"""Spools of files that are open. Whatever is to be collected is closed in no particular order; what is in here is not
closed before the file that it belongs to."""


def _begin_process() -> None:
    global process, _beginning
    process = object()
    for spool in list(_spools):
        # The position is shared with the parent, and what is buffered would be written when the child drops its copy.
        spool.raw.close()
    _spools.clear()
    # Another thread of the parent may have held it during the fork.
    _beginning = threading.RLock()


os.register_at_fork(after_in_child=_begin_process)


class Memory(io.BytesIO):
    """Bytes that the collector does not clear before the file that they belong to is closed."""

    __slots__ = ()

    # Any finalizer will do.
    __del__ = staticmethod(do_nothing)


def _drop(spool: io.BufferedRandom) -> None:
    """Close a spool. What is still buffered need not reach a file that no one will read."""
    try:
        spool.raw.close()
    finally:
        _spools.discard(spool)


class MemberBytes(io.BufferedIOBase):
    """Bytes that are written, and read where the mode allows it, until they are a payload."""

    # Slots, because a dictionary for each file takes longer than all the rest of its making.
    __slots__ = (
        "_failure", "_file", "_first", "_lock", "_readable", "_spool_size", "name", "process", "rewinds",
    )  # fmt: skip

    #: The path that it was opened by.
    name: str
    #: The process that it belongs to.
    process: object
    #: Counts up with each seek, until a flush has seen it; greater than 0 also where the position is before the end.
    rewinds: int
    _readable: bool
    #: Up to this many bytes are held in memory.
    _spool_size: int
    #: Of the spool: the file is incomplete.
    _failure: OSError | None
    #: Buffer or spool, made when it is needed: most files are written at once, and their bytes are in ``_first`` then.
    _file: io.BytesIO | io.BufferedRandom | None
    _first: bytes | None
    #: Made with the buffer: of threads that share a file, one alone moves it to its spool.
    _lock: threading.RLock

    def write(self, data: ReadableBuffer, /) -> int:
        """Write bytes and return how many.

        Raises:
            OSError: the local spool cannot take them. The file is incomplete then and will not be archived.
        """
        if self.process is not process:
            self.refuse_child()
        file = self._file
        if file is None:
            if type(data) is bytes and len(data) <= self._spool_size:
                with _beginning:
                    if self._file is None and self._first is None:
                        self._first = data
                        return len(data)
            self._usable()
        with self._lock:
            # Another thread may have moved it to its spool.
            file = cast("io.BytesIO | io.BufferedRandom", self._file)
            length = len(data) if type(data) is bytes else memoryview(data).nbytes
            if type(file) is Memory and file.tell() + length <= self._spool_size:
                return file.write(data)
            # More than a buffer may be there in part after an exception: at the end of a file that is cut off.
            end = file.tell() if length > _SPOOL_BUFFER_BYTES and not self.rewinds else None
            try:
                if isinstance(file, io.BytesIO):
                    file = self._spill(file)
                return file.write(data)
            except BaseException as error:
                if is_failure(error):
                    self._failure = error
                elif end is not None:
                    self._cut(end)
                raise

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes, to the end by default."""
        return self._reading().read(size)

    def read1(self, size: int = -1, /) -> bytes:
        """Read up to ``size`` bytes, with at most one access to the spool."""
        return self._reading().read1(size)

    def readinto(self, target: WriteableBuffer, /) -> int:
        """Fill ``target`` and return how many bytes that were."""
        return self._reading().readinto(target)

    def readinto1(self, target: WriteableBuffer, /) -> int:
        """Like `readinto`, with at most one access to the spool."""
        file = self._reading()
        return file.readinto(target) if isinstance(file, io.BytesIO) else file.readinto1(target)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read up to the next newline, which is included."""
        return self._reading().readline(-1 if size is None else size)

    def __next__(self) -> bytes:
        line = self._reading().readline()
        if not line:
            raise StopIteration
        return line

    def peek(self, size: int = 0, /) -> bytes:
        """Return some of the bytes that come next, and stay where the file is."""
        file = self._reading()
        if isinstance(file, io.BytesIO):
            with self._lock, file.getbuffer() as view:
                position = file.tell()
                return bytes(view[position : position + max(size, io.DEFAULT_BUFFER_SIZE)])
        return file.peek(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position, which may lie behind the end, and return it."""
        self._usable()
        with self._lock:
            file = self._usable()
            self.rewinds += 1
            if isinstance(file, io.BytesIO):
                # BytesIO takes a position before the start for the start.
                if whence == os.SEEK_CUR:
                    offset, whence = file.tell() + offset, os.SEEK_SET
                elif whence == os.SEEK_END:
                    offset, whence = _size_of(file) + offset, os.SEEK_SET
                if offset < 0 and whence == os.SEEK_SET:
                    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            try:
                return file.seek(offset, whence)
            except OSError as error:
                self._note(error)
                raise

    def tell(self) -> int:
        """Return the position."""
        if self._file is None and self.process is process:
            # A text file asks for it as it begins.
            return len(self._first or b"")
        return self._usable().tell()

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the file with zeros to ``size`` bytes, by default where it is, and return the size."""
        self._usable()
        with self._lock:
            file = self._usable()
            self.rewinds += 1
            position = file.tell()
            if size is None:
                size = position
            if size < 0:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            try:
                if isinstance(file, io.BytesIO):
                    if size > self._spool_size:
                        file = self._spill(file)
                    elif size > (length := _size_of(file)):
                        with file.getbuffer() as view:
                            longer = Memory(b"".join([view, bytes(size - length)]))
                            longer.seek(position)
                            self._file = longer
                        return size
                return file.truncate(size)
            except OSError as error:
                self._note(error)
                raise

    def _push(self) -> None:
        """Write out what Python buffers of the spool."""
        if self._file is None and self.process is process:
            return
        self._usable()
        with self._lock:
            file = self._usable()
            try:
                file.flush()
            except OSError as error:
                self._note(error)
                raise

    def read_at(self, start: int, length: int) -> bytes:
        """Return a range of what was flushed or is pushed out, wherever the position is; any thread may ask."""
        if self._file is None:
            return (self._first or b"")[start : start + length]
        self._check_open()
        with self._lock:
            file = self._usable()
            if isinstance(file, io.BytesIO):
                # Not a view: another thread could not write while it lives.
                return file.getvalue()[start : start + length]
            return LOCAL.read(file.fileno(), length, start)

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        if self._file is None:
            return len(self._first or b"")
        self._check_open()
        with self._lock:
            file = self._usable()
            if isinstance(file, io.BytesIO):
                return _size_of(file)
            self._push()
            return os.fstat(file.fileno()).st_size

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was ever written, and nobody went anywhere."""
        return self._file is None and self._first is None

    def payload(self, method: int) -> Payload:
        """Return all of the file as a payload; for who archives it.

        Raises:
            OSError: the local spool cannot be written or read.
        """
        file = self._file
        if file is None:
            return payload_of_bytes(self._first or b"", method)
        if isinstance(file, io.BytesIO):
            return payload_of_bytes(file.getvalue(), method)
        return payload_of_file(file, self.size, method, self._spool_size)

    # -- what kind of file it is

    def readable(self) -> bool:
        """Whether the mode has a ``+``."""
        self._check_open()
        return self._readable

    def writable(self) -> bool:
        """Always."""
        self._check_open()
        return True

    seekable = writable

    def isatty(self) -> bool:
        """Never."""
        self._check_open()
        return False

    def fileno(self) -> int:
        """Refuse: there is no file that another program could write to."""
        self._check_open()
        raise io.UnsupportedOperation(
            f"{self.name} has no file descriptor: its bytes go into an archive. A program that needs one can write a"
            " local file for rear_pickup"
        )

    # -- helpers

    def _usable(self) -> io.BytesIO | io.BufferedRandom:
        if self.process is not process:
            self.refuse_child()
        file = self._file
        if file is None:
            with _beginning:
                made = Memory(self._first or b"")
                made.seek(0, os.SEEK_END)
                lock = threading.RLock()
                # A signal handler may have come to this very file meanwhile. Python looks for signals in calls only.
                if self._file is None:
                    self._lock = lock
                    self._file = made
                file = self._file
        return file

    def _reading(self) -> io.BytesIO | io.BufferedRandom:
        if not self._readable:
            self._check_open()
            raise io.UnsupportedOperation("not readable")
        return self._usable()

    def _check_open(self) -> None:
        if self._file is ENDED and self.closed:
            raise ValueError("I/O operation on closed file.")

    def refuse_child(self) -> NoReturn:
        """Say that the file belongs to the process that a fork has made this one of.

        Raises:
            RearError: always.
        """
        raise RearError(f"{self.name} was opened before a fork and belongs to the parent process")

    def _note(self, error: OSError) -> None:
        # A refused position harms no byte. Anything else may have happened while the buffer was written out.
        if is_failure(error) and error.errno != errno.EINVAL:
            self._failure = error

    def _cut(self, size: int) -> None:
        """Leave the file as it was before a write that was interrupted."""
        file = self._usable()
        try:
            file.seek(size)
            if size < self.size:
                file.truncate(size)
        except OSError as error:
            self._failure = error

    def _spill(self, memory: io.BytesIO) -> io.BufferedRandom:
        """Move what is in memory to a new spool, at the same position; it stays until it is dropped.

        Raises:
            OSError: the local disk cannot take it.
        """
        spool = io.BufferedRandom(io.FileIO(open_spool(), "rb+"), _SPOOL_BUFFER_BYTES)
        _spools.add(spool)
        try:
            # While there is a view nothing can be written to the memory: a signal handler that tries is told.
            with memory.getbuffer() as view:
                spool.write(view)
                spool.seek(memory.tell())
                self._file = spool
        except BaseException:
            if self._file is not spool:
                _drop(spool)
            raise
        return spool

    def _close_buffer(self, file: io.BytesIO | io.BufferedRandom) -> None:
        if isinstance(file, io.BytesIO):
            file.close()
        else:
            _drop(file)


def _size_of(memory: io.BytesIO) -> int:
    with memory.getbuffer() as view:
        return len(view)
