"""Standard input, output and error as they were given: closed, full, or with few characters.

What a command prints is its result: when it does not get out, that is an error which names standard output. What it
says on standard error is for people: when nobody can read it, the work goes on.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: A closed one takes and gives nothing, but its number is taken: else the next file that is opened would get it.
_CLOSED: Final = {0: os.O_WRONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}


class Output(io.FileIO):
    """Standard output, whose errors name it."""

    #: Nobody reads it any more.
    is_cut = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write what goes in at once.

        Raises:
            OSError: that failed; it names standard output.
        """
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            self.is_cut = self.is_cut or error.errno == errno.EPIPE
            raise


class _Errors(io.FileIO):
    """Standard error, which nobody may be there to read."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def take_over() -> Output | None:
    """Make standard output and standard error as above, and return the former; ``None`` where a program has put others
    in their place.
    """
    for number, flags in _CLOSED.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Errors(2, "w", closefd=False), sys.stderr)
    if sys.stdout is not sys.__stdout__:
        return None
    output = Output(1, "w", closefd=False)
    sys.stdout = _text(output, sys.stdout)
    return output


def _text(raw: io.FileIO, before: object) -> io.TextIOWrapper:
    """Return a stream in place of the one that Python has made; what its encoding lacks is escaped."""
    file = io.BufferedWriter(raw)
    if not isinstance(before, io.TextIOWrapper):
        return io.TextIOWrapper(file, "utf-8", "backslashreplace")
    return io.TextIOWrapper(
        file,
        before.encoding,
        "backslashreplace",
        # ``python -u`` writes through to a raw file; here a buffer lies in between.
        line_buffering=before.line_buffering or before.write_through,
        write_through=before.write_through,
    )


def read_input(size: int) -> bytes:
    """Return up to so many bytes of standard input as they come, none at its end.

    Raises:
        OSError: that failed; it names standard input.
    """
    try:
        return os.read(0, size)
    except OSError as error:
        error.filename = "standard input"
        raise
