"""The file object that ``rear_open`` returns: a whole member, kept in memory or in a local spool until it is closed.

Nothing of it is in any archive before `MemberFile.close` has called ``finish``, and then all of it is; what
`MemberFile.flush` has given to ``keep`` is in one even when its process dies. A text file is
an `io.TextIOWrapper` around the binary one. After a fork the file belongs to the parent alone: the child can neither
use it nor archive it, and leaves the spool as it is.
"""

from __future__ import annotations

import errno
import io
import os
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar, cast
from weakref import ref

from rear.core.storage import LOCAL
from rear.errors import RearError, UsageError
from rear.zip.payload import Payload, open_spool, payload_of_bytes, payload_of_file

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_SPOOL_BUFFER_BYTES: Final = 1 << 16

_T = TypeVar("_T")

_nothing: Final = cast("Callable[[], None]", int)
"""Does nothing, without a line of Python: see `_EndedMemberFile`."""

_ENDED: Final = io.BytesIO()
"""The file behind all files that have ended."""
_ENDED.close()

_process = object()
"""Another one in each process that a fork made: cheaper to compare than process ids are to get."""


_beginning = threading.RLock()
"""Held while the buffer of a file is made: threads that share a file must not lose a write."""


def _begin_process() -> None:
    global _process, _beginning
    _process = object()
    # Another thread of the parent may have held it during the fork.
    _beginning = threading.RLock()


os.register_at_fork(after_in_child=_begin_process)


class _Mode(NamedTuple):
    binary: bool
    readable: bool


_modes: Final[dict[str, _Mode]] = {}


def parse_mode(mode: str) -> _Mode:
    """Return what a mode means, by the rules and in the words of ``open()``.

    Raises:
        UsageError: it means nothing, or reading or changing a file that exists.
    """
    if not isinstance(mode, str):
        raise TypeError(f"rear_open() argument 'mode' must be str, not {type(mode).__name__}")
    letters = set(mode)
    if letters - set("rwxabt+") or len(letters) != len(mode):
        raise UsageError(f"invalid mode: {mode!r}")
    if {"t", "b"} <= letters:
        raise UsageError("can't have text and binary mode at once")
    if len(letters & set("rwxa")) != 1:
        raise UsageError("must have exactly one of create/read/write/append mode")
    if letters & set("ra"):
        raise UsageError(
            f"mode {mode!r}: rear_open writes whole new files ('w' or 'x'); to read what was archived, use `rear cat`"
        )
    parsed = _modes[mode] = _Mode("b" in letters, "+" in letters)
    return parsed


def open_member(
    path: str,
    mode: str,
    spool_size: int,
    success_only: bool,
    finish: Callable[[MemberFile], None],
    discard: Callable[[MemberFile], None] | None = None,
    keep: Callable[[MemberFile], None] | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> MemberFile | TextMemberFile:
    """Return a new file for one member.

    Args:
        path: the target, as the file's ``name``.
        mode: ``w``, ``x``, ``w+``, ``x+``, with ``b`` or ``t``, as ``open()`` means them.
        spool_size: up to this many bytes are held in memory, more in a local file without a name.
        success_only: a ``with`` block that raises discards the file.
        finish: archives the file; called once, by the first `MemberFile.close`.
        discard: told instead when the file will not be archived.
        keep: keeps what is written so far; called by `MemberFile.flush`.
        encoding: as for ``open()``.
        errors: as for ``open()``.
        newline: as for ``open()``.

    Raises:
        UsageError: the mode means nothing, or the options do not go with it.
        LookupError: no such encoding or error handler.
    """
    parsed = _modes.get(mode) or parse_mode(mode)
    if parsed.binary:
        for option, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                raise UsageError(f"binary mode doesn't take {'an' if option[0] == 'e' else 'a'} {option} argument")
        return MemberFile(path, mode, parsed.readable, spool_size, success_only, finish, discard, keep)
    member = MemberFile(path, mode, parsed.readable, spool_size, success_only, finish, discard, keep)
    try:
        return TextMemberFile(member, encoding, errors, newline)
    except BaseException:
        member.forget()
        raise


class MemberFile(io.BufferedIOBase):
    """A member as a binary file; see `open_member`."""

    # Slots, because a dictionary for each file takes longer than all the rest of its making.
    __slots__ = (
        "_discard", "_failure", "_file", "_finish", "_first", "_in_memory", "_keep", "_lock", "_process",
        "_quiet_thread", "_readable", "_spool_size", "_success_only", "_text", "is_rewound", "mode", "name", "parts",
        "ticket",
    )  # fmt: skip

    #: What `finish` and `discard` want to know of it.
    ticket: Any
    #: What `keep` has made of it; see `rear.worker.flushed_file`.
    parts: Any
    #: Whether it may have been changed where it was flushed.
    #: Counts up with each seek, until a flush has seen it.
    is_rewound: int
    #: Made with the buffer: of threads that share a file, one alone moves it to its spool.
    _lock: threading.RLock
    #: The path that it was opened by, and the mode as it was given.
    name: str
    mode: str

    def __init__(
        self,
        path: str,
        mode: str,
        readable: bool,
        spool_size: int,
        success_only: bool,
        finish: Callable[[MemberFile], None],
        discard: Callable[[MemberFile], None] | None,
        keep: Callable[[MemberFile], None] | None = None,
    ) -> None:
        self.name = path
        self.mode = mode
        self._readable = readable
        self._spool_size = spool_size
        self._success_only = success_only
        self._discard = discard
        self._keep = keep
        self.parts = None
        self.is_rewound = 0
        #: A thread in which it is flushed by itself, not by its user.
        self._quiet_thread: int | None = None
        self._process = _process
        self._in_memory = True
        self._failure: OSError | None = None
        #: Made when it is needed: most files are written at once, and their bytes are in ``_first`` then.
        self._file: io.BytesIO | io.BufferedRandom | None = None
        self._first: list[bytes] = []
        #: A text file around this one: it may hold characters that are not here yet.
        self._text: ref[TextMemberFile] | None = None
        # The last one: without it there is nothing to end. Who deletes it, one thread alone, ends the file.
        self._finish = finish

    # -- the bytes

    def write(self, data: ReadableBuffer, /) -> int:
        """Write bytes and return how many.

        Raises:
            OSError: the local spool cannot take them. The file is incomplete then and will not be archived.
        """
        if self._process is not _process:
            raise self._foreign()
        file = self._file
        if file is None:
            if type(data) is bytes and not self._first and len(data) <= self._spool_size:
                self._first.append(data)
                if self._file is not None:
                    # Another thread has just made the buffer, and may not have seen this.
                    self._move_first(self._file)
                return len(data)
            self._usable()
        with self._lock:
            # Another thread may have moved it to its spool.
            file = self._usable()
            if self._in_memory:
                length = len(data) if type(data) is bytes else memoryview(data).nbytes
                if file.tell() + length <= self._spool_size:
                    return file.write(data)
            try:
                if self._in_memory:
                    file = self._spill()
                return file.write(data)
            except OSError as error:
                self._failure = error
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
            position = file.tell()
            data = file.read(max(size, io.DEFAULT_BUFFER_SIZE))
            file.seek(position)
            return data
        return file.peek(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position, which may lie behind the end, and return it."""
        self._usable()
        with self._lock:
            file = self._usable()
            self.is_rewound += 1
            if self._in_memory:
                # BytesIO takes a position before the start for the start.
                if whence == os.SEEK_CUR:
                    offset, whence = file.tell() + offset, os.SEEK_SET
                elif whence == os.SEEK_END:
                    offset, whence = self._size_in_memory() + offset, os.SEEK_SET
                if offset < 0 and whence == os.SEEK_SET:
                    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            try:
                return file.seek(offset, whence)
            except OSError as error:
                self._note(error)
                raise

    def tell(self) -> int:
        """Return the position."""
        return self._usable().tell()

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the file with zeros to ``size`` bytes, by default where it is, and return the size."""
        self._usable()
        with self._lock:
            file = self._usable()
            self.is_rewound += 1
            position = file.tell()
            if size is None:
                size = position
            if size < 0:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            try:
                if self._in_memory:
                    if size > self._spool_size:
                        file = self._spill()
                    elif size > (length := self._size_in_memory()):
                        file.seek(length)
                        file.write(bytes(size - length))
                        file.seek(position)
                        return size
                return file.truncate(size)
            except OSError as error:
                self._note(error)
                raise

    def flush(self) -> None:
        """Make what was written so far as safe as a closed file: if this process dies, it becomes a partial member.

        Raises:
            OSError: the local spool has failed, and the file will not be archived; or what ``keep`` raises, and the
                file can be flushed again.
        """
        self._push()
        if self._keep is None or self._quiet_thread == threading.get_ident():
            return
        seen = self.is_rewound
        self._keep(self)
        with self._lock:
            # Another thread may have gone somewhere else meanwhile.
            if self.is_rewound == seen:
                self.is_rewound = int(self._usable().tell() < self.size)

    def _push(self) -> io.BytesIO | io.BufferedRandom:
        """Write out what Python buffers of the spool."""
        self._usable()
        with self._lock:
            file = self._usable()
            try:
                file.flush()
            except OSError as error:
                self._failure = error
                raise
            return file

    def read_at(self, start: int, length: int) -> bytes:
        """Return a range of what was flushed or is pushed out, wherever the position is; any thread may ask."""
        if self._file is None:
            return b"".join(self._first)[start : start + length]
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
            return sum(map(len, self._first))
        self._check_open()
        with self._lock:
            if self._in_memory:
                return self._size_in_memory()
            self._push()
            return os.fstat(self._usable().fileno()).st_size

    def payload(self, method: int) -> Payload:
        """Return all of the file as a payload; for ``finish``.

        Raises:
            OSError: the local spool cannot be written or read.
        """
        file = self._file
        if file is None:
            first = self._first
            return payload_of_bytes(first[0] if len(first) == 1 else b"".join(first), method)
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

    def seekable(self) -> bool:
        """Always."""
        self._check_open()
        return True

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

    def detach(self) -> Any:
        """Refuse: there is no raw stream."""
        raise io.UnsupportedOperation("detach")

    def __repr__(self) -> str:
        return f"<rear.{type(self).__name__} name={self.name!r} mode={self.mode!r}{' closed' if self.closed else ''}>"

    # -- its end

    @property
    def closed(self) -> bool:
        """Whether the file was closed or discarded."""
        return not hasattr(self, "_finish")

    def close(self) -> None:
        """Archive the file, the first time; in a forked child, only drop it.

        Raises:
            OSError: an earlier write to the local spool has failed, so the file is incomplete and was discarded; or
                what ``finish`` raises.
        """
        if self._failure is not None and not self.closed:
            failure = self._failure
            self.discard()
            reason = f"not archived: its local spool has failed ({failure.strerror})"
            raise OSError(failure.errno, reason, self.name) from failure
        if self._text is not None and (text := self._text()) is not None:
            text.close()
            return
        try:
            finish = self._finish
            del self._finish
        except AttributeError:
            return
        # What another thread, or a signal handler, writes from here on would come too late.
        self.__class__ = _EndingMemberFile
        try:
            if self._process is _process:
                finish(self)
        finally:
            self._drop()

    def discard(self) -> None:
        """Drop the file: it will not be archived. Does nothing once it is closed."""
        if not self._end():
            return
        try:
            if self._discard is not None and self._process is _process:
                self._discard(self)
        finally:
            self._drop()

    def forget(self) -> None:
        """Drop the file and tell no one."""
        if self._end():
            self._drop()

    def __enter__(self) -> Self:
        # Not the inherited one, which asks a property: nearly always this is all.
        if self._file is None:
            return self
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and self._success_only:
            self.discard()
        else:
            self.close()

    def __del__(self) -> None:
        # The collector may come here before it comes to the text file, which closes this one in the right order.
        if not self.closed and self._text is None:
            if self._process is _process:
                _warn_unclosed(self, self.name, self.close)
            else:
                self._drop()

    # -- helpers

    def _usable(self) -> io.BytesIO | io.BufferedRandom:
        if self._process is not _process:
            raise self._foreign()
        file = self._file
        if file is None:
            with _beginning:
                file = self._file
                if file is None:
                    file = _Memory(b"")
                    self._move_first(file)
                    self._lock = threading.RLock()
                    self._file = file
                    # A thread that has just added something sees the buffer, or is seen here.
                    self._move_first(file)
        return file

    def _move_first(self, file: io.BytesIO | io.BufferedRandom) -> None:
        with _beginning:
            while self._first:
                file.write(self._first.pop(0))

    def _reading(self) -> io.BytesIO | io.BufferedRandom:
        if not self._readable:
            self._check_open()
            raise io.UnsupportedOperation("not readable")
        return self._usable()

    def _check_open(self) -> None:
        if self._file is _ENDED and self.closed:
            raise ValueError("I/O operation on closed file.")

    def _foreign(self) -> RearError:
        return RearError(f"{self.name} was opened before a fork and belongs to the parent process")

    def _note(self, error: OSError) -> None:
        # A refused position harms no byte. Anything else may have happened while the buffer was written out.
        if error.errno != errno.EINVAL:
            self._failure = error

    def _size_in_memory(self) -> int:
        if self._file is None:
            return sum(map(len, self._first))
        with cast("io.BytesIO", self._file).getbuffer() as view:
            return len(view)

    def _spill(self) -> io.BufferedRandom:
        memory = cast("io.BytesIO", self._usable())
        position = memory.tell()
        spool = io.BufferedRandom(_SpoolIO(open_spool(), "rb+"), _SPOOL_BUFFER_BYTES)
        try:
            with memory.getbuffer() as view:
                spool.write(view)
            spool.seek(position)
        except BaseException:
            cast("_SpoolIO", spool.raw).abandon()
            raise
        _spools.add(spool)
        self._file = spool
        self._in_memory = False
        memory.close()
        return spool

    def _end(self) -> bool:
        """Whether this call is the one that ends the file."""
        try:
            del self._finish
        except AttributeError:
            return False
        self.__class__ = _EndingMemberFile
        return True

    def _drop(self) -> None:
        file, self._file = self._file, _ENDED
        if not self._in_memory:
            # What is still buffered need not reach a file that no one will read.
            cast("_SpoolIO", cast("io.BufferedRandom", file).raw).abandon()
            _spools.discard(cast("io.BufferedRandom", file))
        if file is not None:
            file.close()
        self.__class__ = _EndedMemberFile


class _EndingMemberFile(MemberFile):
    """A file on its way into the archive: it is read, and not changed any more."""

    __slots__ = ()

    __del__ = staticmethod(_nothing)

    def _refuse(self, *arguments: object) -> Any:
        raise ValueError("I/O operation on closed file.")

    write = seek = truncate = flush = _refuse


class _EndedMemberFile(_EndingMemberFile):
    """What a file becomes when it has ended, because no line of Python may run when it is collected.

    The exception of a signal handler that is called in a ``__del__`` becomes a message on standard error: in a program
    that writes many files, now and then Ctrl-C would do nothing.
    """

    __slots__ = ()

    closed = True
    __del__ = staticmethod(_nothing)


_spools: Final[set[io.BufferedRandom]] = set()
"""Spools of files that are open. Whatever is to be collected is closed in no particular order; what is in here is not
closed before the file that it belongs to."""


class _Memory(io.BytesIO):
    """Bytes that the collector does not clear before the file that they belong to is closed."""

    __slots__ = ()

    # Any finalizer will do; this one is not written in Python, see `_EndedMemberFile`.
    __del__ = staticmethod(_nothing)


class _SpoolIO(io.FileIO):
    """A spool file that does nothing more once it is abandoned or after a fork.

    A forked child shares the file position with its parent, and would write the buffered bytes out when it drops its
    copy of the file. So in the child everything seems to succeed.
    """

    def __init__(self, descriptor: int, mode: str) -> None:
        super().__init__(descriptor, mode)
        self._process: object = _process

    def abandon(self) -> None:
        self._process = None

    def write(self, data: ReadableBuffer, /) -> int:
        if self._process is not _process:
            return memoryview(data).nbytes
        return super().write(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return super().seek(offset, whence) if self._process is _process else 0

    def truncate(self, size: int | None = None, /) -> int:
        return super().truncate(size) if self._process is _process else 0


class TextMemberFile(io.TextIOWrapper):
    """A member as a text file; see `open_member`."""

    _member: MemberFile | None = None

    def __init__(self, member: MemberFile, encoding: str | None, errors: str | None, newline: str | None) -> None:
        super().__init__(member, encoding, errors, newline)
        self._member = member
        member._text = ref(self)

    @property
    def mode(self) -> str:
        """The mode as it was given."""
        return "" if self._member is None else self._member.mode

    def write(self, text: str, /) -> int:
        """Write text and return its length in characters."""
        member = self._member
        # Otherwise a forked child would learn of it only once some thousand characters are together.
        if member is not None and member._process is not _process:
            raise member._foreign()
        return super().write(text)

    def tell(self) -> int:
        """Return the position, as a number that `seek` understands."""
        return self._quietly(super().tell)

    def seek(self, cookie: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position that `tell` returned, to the start or to the end."""
        return self._quietly(lambda: super(TextMemberFile, self).seek(cookie, whence))

    def truncate(self, size: int | None = None, /) -> int:
        """Cut the file to ``size`` bytes, by default where it is, and return the size."""
        return self._quietly(lambda: super(TextMemberFile, self).truncate(size))

    def _quietly(self, call: Callable[[], _T]) -> _T:
        """Call what flushes by the way: only a flush that the user asks for keeps what was written."""
        member = self._member
        if member is None:
            return call()
        before = member._quiet_thread
        try:
            member._quiet_thread = threading.get_ident()
            return call()
        finally:
            member._quiet_thread = before

    def close(self) -> None:
        """Archive the file, the first time. When its last characters cannot be written, it is discarded.

        Raises:
            OSError: see `MemberFile.close`.
        """
        member = self._member
        if member is None or member.closed:
            return
        if member._process is _process and member._failure is None:
            try:
                self._quietly(super().flush)
            except BaseException:
                member.discard()
                raise
        member._text = None
        try:
            member.close()
        finally:
            self.__class__ = _EndedTextMemberFile

    def discard(self) -> None:
        """Drop the file: it will not be archived. Does nothing once it is closed."""
        if self._member is not None:
            self._member.discard()
            self.__class__ = _EndedTextMemberFile

    def detach(self) -> MemberFile:  # type: ignore[override]
        """Return the binary file, which goes on alone."""
        super().detach()
        member, self._member = self._member, None
        assert member is not None
        member._text = None
        return member

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and self._member is not None and self._member._success_only:
            self.discard()
        else:
            self.close()

    def __del__(self) -> None:
        member = self._member
        if member is not None and not member.closed:
            if member._process is _process:
                _warn_unclosed(self, member.name, self.close)
            else:
                self.close()


class _EndedTextMemberFile(TextMemberFile):
    """See `_EndedMemberFile`."""

    __del__ = staticmethod(_nothing)


_EndedMemberFile.__name__ = MemberFile.__name__
_EndedTextMemberFile.__name__ = TextMemberFile.__name__


def _warn_unclosed(file: object, name: str, close: Callable[[], None]) -> None:
    try:
        warnings.warn(f"unclosed file {name!r}", ResourceWarning, stacklevel=3, source=file)
    finally:
        close()
