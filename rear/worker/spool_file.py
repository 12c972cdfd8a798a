"""Where the bytes of an open file are when they are many: a local file without a name, the spool, behind a buffer.

It belongs to the process that made it. A forked child shares the file position with its parent, and would write the
buffered bytes out when it drops its copy of the file: so in the child everything seems to succeed and nothing happens.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from rear.zip.payload import open_spool

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_SPOOL_BUFFER_BYTES: Final = 1 << 16

process = object()
"""Another one in each process that a fork made: cheaper to compare than process ids are to get."""

do_nothing: Final = cast("Callable[[], None]", int)
"""A finalizer that is not a line of Python: the exception of a signal handler that is called in a ``__del__`` becomes a
message on standard error, and in a program that writes many files Ctrl-C would do nothing now and then."""

_spools: Final[set[io.BufferedRandom]] = set()
"""Spools of files that are open. Whatever is to be collected is closed in no particular order; what is in here is not
closed before the file that it belongs to."""


def _begin_process() -> None:
    global process
    process = object()


os.register_at_fork(after_in_child=_begin_process)


class Memory(io.BytesIO):
    """Bytes that the collector does not clear before the file that they belong to is closed."""

    __slots__ = ()

    # Any finalizer will do.
    __del__ = staticmethod(do_nothing)


class SpoolFile(io.FileIO):
    """A spool that does nothing more once it is abandoned or after a fork."""

    def __init__(self, descriptor: int, mode: str) -> None:
        super().__init__(descriptor, mode)
        self._process: object = process

    def abandon(self) -> None:
        """Let whatever comes from now on have no effect."""
        self._process = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write bytes and return how many."""
        if self._process is not process:
            return memoryview(data).nbytes
        return super().write(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position and return it."""
        return super().seek(offset, whence) if self._process is process else 0

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the file and return its size."""
        return super().truncate(size) if self._process is process else 0


def spill(memory: io.BytesIO) -> io.BufferedRandom:
    """Return a new spool with what was in memory, at the same position; it stays until `drop`.

    Raises:
        OSError: the local disk cannot take it.
    """
    spool = io.BufferedRandom(SpoolFile(open_spool(), "rb+"), _SPOOL_BUFFER_BYTES)
    try:
        with memory.getbuffer() as view:
            spool.write(view)
        spool.seek(memory.tell())
    except BaseException:
        cast("SpoolFile", spool.raw).abandon()
        raise
    _spools.add(spool)
    return spool


def drop(spool: io.BufferedRandom) -> None:
    """Close a spool. What is still buffered need not reach a file that no one will read."""
    cast("SpoolFile", spool.raw).abandon()
    _spools.discard(spool)
    spool.close()
