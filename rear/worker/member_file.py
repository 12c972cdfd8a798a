"""The file object that ``rear_open`` returns: a whole member, kept in memory or in a local spool until it is closed.

Nothing of it is in any archive before `MemberFile.close` has had its owner archive it, and then all of it is; what
`MemberFile.flush` has had it keep is in one even when its process dies. A text file is an `io.TextIOWrapper` around
this one, see
``rear.worker.text_member_file``. After a fork the file belongs to the parent alone: the child can neither use it
nor archive it, and leaves the spool as it is.
"""

from __future__ import annotations

import errno
import io
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final, Self, TypeVar
from weakref import ref

from rear.core.names import Target
from rear.core.records import Metadata
from rear.core.storage import is_failure
from rear.errors import RearError
from rear.worker import spool_file
from rear.worker.flushed_file import FlushedFile
from rear.worker.spool_file import ENDED, MemberBytes, do_nothing
from rear.worker.worker import Worker, explained
from rear.worker.written_names import WrittenNames

_FILE_MODE: Final = 0o100644

_T = TypeVar("_T")


class OpenFile:
    """What a file's owner knows of it while it is being written."""

    __slots__ = ("flushed", "key", "metadata", "place", "target")

    def __init__(self, target: Target, key: int, metadata: Metadata | None) -> None:
        self.target = target
        #: Hash of the target.
        self.key = key
        #: Where it stands among the open files.
        self.place: object = key
        self.metadata = metadata
        #: What keeps what was flushed of it, from the first flush on.
        self.flushed: FlushedFile | None = None


class MemberFile(MemberBytes):
    """A member as a binary file, whose ``name`` is the path of the target; its owner archives it."""

    __slots__ = ("_quiet", "_unended", "is_entered", "is_forgotten", "mode", "opened", "owner", "text")

    #: The mode as it was given.
    mode: str
    #: What the owner wants to know of it.
    opened: OpenFile
    #: It was not archived, and its user does not know that yet.
    is_abandoned = False

    def __init__(self, path: str, mode: str, readable: bool, owner: OpenFiles) -> None:
        # All of it here: calling the base class takes longer than all this.
        self.name = path
        self.mode = mode
        self.process = spool_file.process
        self.rewinds = 0
        self._readable = readable
        self._spool_size = owner.spool_size
        self._failure = None
        self._file = None
        self._first = None
        self.owner = owner
        #: A ``with`` block was entered; the collector came before the end.
        self.is_entered = self.is_forgotten = False
        #: Held by a thread in which it is flushed by itself, not by its user. A lock, because no exception leaves it
        #: taken, and a thread that gets the number of one that ended does not own it.
        self._quiet: threading.RLock | None = None
        #: A text file around this one: it may hold characters that are not here yet.
        self.text: ref[io.TextIOWrapper] | None = None
        # The last one: without it there is nothing to end. Who deletes it, one thread alone, ends the file.
        self._unended = True

    def flush(self) -> None:
        """Make what was written so far as safe as a closed file: if this process dies, it becomes a partial member.

        Raises:
            OSError: the local spool has failed, and the file will not be archived; or what its owner raises, and
                the file can be flushed again.
        """
        self._push()
        if self._quiet is not None and self._quiet._is_owned():  # type: ignore[attr-defined]
            return
        seen = self.rewinds
        self.owner.keep(self)
        if not seen:
            return
        with self._lock:
            # Another thread may have gone somewhere else meanwhile.
            if self.rewinds == seen:
                self.rewinds = int(self._usable().tell() < self.size)

    def detach(self) -> Any:
        """Refuse: there is no raw stream."""
        raise io.UnsupportedOperation("detach")

    def __repr__(self) -> str:
        return f"<rear.{type(self).__name__} name={self.name!r} mode={self.mode!r}{' closed' if self.closed else ''}>"

    # -- its end

    @property
    def closed(self) -> bool:
        """Whether the file was closed or discarded."""
        return not hasattr(self, "_unended")

    def close(self) -> None:
        """Archive the file, the first time; in a forked child, only drop it.

        Raises:
            OSError: an earlier write to the local spool has failed, so the file is incomplete and was discarded; or
                what its owner raises.
        """
        if self._failure is not None and not self.closed:
            failure = self._failure
            self.discard()
            reason = f"not archived: its local spool has failed ({failure.strerror})"
            raise OSError(failure.errno, reason, self.name) from failure
        if self.text is not None and (text := self.text()) is not None:
            text.close()
            return
        try:
            del self._unended
        except AttributeError:
            return
        # What another thread, or a signal handler, writes from here on would come too late.
        self.__class__ = _EndingMemberFile
        try:
            if self.process is spool_file.process:
                self.owner.archive(self)
        finally:
            self._drop()

    def discard(self) -> None:
        """Drop the file: it will not be archived. Does nothing once it is closed."""
        if not self._end():
            return
        try:
            if self.process is spool_file.process:
                self.owner.discard(self)
        finally:
            self._drop()

    def abandon(self) -> None:
        """Discard the file for its user, who is told so when he closes it after all. Does nothing once it is closed."""
        if not self._end():
            return
        try:
            if self.process is spool_file.process:
                self.owner.discard(self)
        finally:
            self._drop()
            self.__class__ = _AbandonedMemberFile

    def forget(self) -> None:
        """Drop the file and tell no one."""
        if self._end():
            self._drop()

    def __enter__(self) -> Self:
        self.is_entered = True
        # Not the inherited one, which asks a property: nearly always this is all.
        if self._file is None:
            return self
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.owner.success_only:
            try:
                self.discard()
            except BaseException:
                # Ctrl-C: what is half written must not be archived after all.
                self.discard()
                raise
        else:
            self.close()

    def __del__(self) -> None:
        # The collector may come here before it comes to the text file, which closes this one in the right order.
        if not self.closed and self.text is None:
            if self.process is spool_file.process:
                warn_unclosed(self, self)
            else:
                self._drop()

    # -- for a text file around it

    def enclose(self, text: io.TextIOWrapper) -> None:
        """Belong to a text file from now on."""
        self._quiet = threading.RLock()
        self.text = ref(text)

    @property
    def has_failed(self) -> bool:
        """Whether its spool has failed, so that it will not be archived."""
        return self._failure is not None

    def quietly(self, call: Callable[[], _T]) -> _T:
        """Call what flushes by the way: only a flush that the user asks for keeps what was written."""
        if self._quiet is None or self.process is not spool_file.process:
            # A thread of the parent may have had that lock.
            return call()
        with self._quiet:
            return call()

    def _end(self) -> bool:
        """Whether this call is the one that ends the file."""
        try:
            del self._unended
        except AttributeError:
            return False
        self.__class__ = _EndingMemberFile
        return True

    def _drop(self) -> None:
        file, self._file = self._file, ENDED
        if file is not None:
            self._close_buffer(file)
        self.__class__ = _EndedMemberFile


class _EndingMemberFile(MemberFile):
    """A file on its way into the archive: it is read, and not changed any more."""

    __slots__ = ()

    __del__ = staticmethod(do_nothing)

    def _refuse(self, *arguments: object) -> Any:
        raise ValueError("I/O operation on closed file.")

    write = seek = truncate = flush = _refuse


class _EndedMemberFile(_EndingMemberFile):
    """What a file becomes when it has ended, because no line of Python may run when it is collected: see
    `spool_file.do_nothing`.
    """

    __slots__ = ()

    closed = True
    __del__ = staticmethod(do_nothing)


class _AbandonedMemberFile(_EndedMemberFile):
    """A file that its ``rear_fs`` has dropped: closing it must not seem to archive it."""

    __slots__ = ()

    is_abandoned = True

    def close(self) -> None:
        raise RearError(f"{self.name} was not archived: the block of its rear_fs had failed before its own had ended")


for _ended in (_EndedMemberFile, _AbandonedMemberFile):
    _ended.__name__ = MemberFile.__name__


def warn_unclosed(file: MemberFile | io.TextIOWrapper, member: MemberFile) -> None:
    """Warn of a file that was forgotten, and close it."""
    member.is_forgotten = True
    try:
        warnings.warn(f"unclosed file {member.name!r}", ResourceWarning, stacklevel=3, source=file)
    finally:
        file.close()


class OpenFiles:
    """Has a worker archive files when they are closed: the owner of each `MemberFile`.

    Up to ``spool_size`` bytes of each are held in memory; with ``success_only`` a ``with`` block that raises discards
    its file.
    """

    def __init__(self, worker: Worker, *, method: int, spool_size: int, success_only: bool) -> None:
        self.method = method
        self.spool_size = spool_size
        self.success_only = success_only
        self._worker = worker
        #: By hash of their names the files that are being written, the second one of a name by its own reference. Not
        #: a WeakSet: that one cannot be listed while other threads open files.
        self._open: dict[object, ref[MemberFile]] = {}
        self._written = WrittenNames()

    def __iter__(self) -> Iterator[MemberFile]:
        """Those that are there still."""
        for reference in list(self._open.values()):
            file = reference()
            if file is not None:
                yield file

    def add(self, file: MemberFile, target: Target, metadata: Metadata | None) -> None:
        """Take on a new file.

        Raises:
            FileExistsError: its mode has an ``x``, and the name was written before, or is being written.
        """
        key = hash(target)
        reference = ref(file)
        opened = file.opened = OpenFile(target, key, metadata)
        # One step, so that of two threads with mode x one alone gets the name. And it comes first: a file that is
        # finished stands among the written ones before it is taken from those that are being written.
        found = self._open.setdefault(key, reference)
        if found is not reference:
            if (other := found()) is None or isinstance(other, _EndedMemberFile):
                # An exception came as that one ended.
                self._open[key] = reference
            else:
                opened.place = reference
                self._open[reference] = reference
        if "x" in file.mode and (opened.place is reference or key in self._written):
            raise FileExistsError(errno.EEXIST, "this process wrote that name already", file.name)

    def forget(self, file: MemberFile) -> None:
        """Drop a file that could not be opened after all, however far `add` came with it."""
        opened: OpenFile | None = getattr(file, "opened", None)
        if opened is not None and self._open.get(opened.place) is ref(file):
            del self._open[opened.place]
        file.forget()

    def note_written(self, target: Target) -> None:
        """Remember that a name was written."""
        self._written.add(hash(target))

    # -- called by its files

    def archive(self, file: MemberFile) -> None:
        """Archive a file.

        Raises:
            OSError: that failed; what was flushed of it is kept.
        """
        if file.is_forgotten and self.is_unwanted(file):
            # An exception came as it was opened, or as its block was left: nobody has asked to keep what there is.
            if hasattr(file, "opened"):
                self.discard(file)
            return
        opened = file.opened
        try:
            if opened.flushed is None or not self._finish_flushed(file, opened.flushed):
                payload = file.payload(self.method)
                self._worker.append(opened.target, payload, time.time_ns(), _FILE_MODE, opened.metadata)
            self._written.add(opened.key)
        finally:
            self._open.pop(opened.place, None)

    def is_unwanted(self, file: MemberFile) -> bool:
        """Whether nobody has asked to keep an open file, if its user will not close it any more."""
        opened: OpenFile | None = getattr(file, "opened", None)
        was_flushed = opened is not None and opened.flushed is not None
        return not was_flushed and (file.is_untouched or (file.is_entered and self.success_only))

    def _finish_flushed(self, file: MemberFile, flushed: FlushedFile) -> bool:
        try:
            return flushed.finish(file)
        except OSError as error:
            if not is_failure(error):
                raise
            what = "this member is not complete; what was flushed of it is kept"
            raise explained(error, what, self._path_of(file)) from error

    def keep(self, file: MemberFile) -> None:
        """Keep what was written so far of a file.

        Raises:
            OSError: that failed; it can be tried again.
        """
        opened = file.opened
        if opened.flushed is None:
            opened.flushed = self._worker.open_flushed(opened.target, self.method, _FILE_MODE, opened.metadata, file)
        try:
            opened.flushed.flush(file)
        except OSError as error:
            if not is_failure(error):
                raise
            what = "this could not be flushed; what was flushed before is kept"
            raise explained(error, what, self._path_of(file)) from error

    def discard(self, file: MemberFile) -> None:
        """Drop a file with all that was flushed of it."""
        opened = file.opened
        self._open.pop(opened.place, None)
        if opened.flushed is not None:
            opened.flushed.abort()

    def _path_of(self, file: MemberFile) -> str:
        return f"{self._worker.layout.base}/{file.name}"
