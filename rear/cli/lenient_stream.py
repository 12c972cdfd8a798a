"""Standard output and standard error for people: when one is closed or its terminal gone, the work goes on."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console


class LenientStream:
    """Writes to a stream as long as that works, and goes silent when it does not: nobody is there to read.

    A process that was started without standard output or standard error has ``None`` in its place.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        #: Why it went silent.
        self.failure: OSError | ValueError | None = None
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write text; what the encoding of the stream lacks is escaped."""
        if self._stream is not None:
            try:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except (OSError, ValueError) as error:
                self._give_up(self._stream, error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(self._stream, error)

    def console(self, **options: Any) -> Console:
        """Return a console of Rich that prints here."""
        from rich.console import Console

        return Console(file=cast(TextIO, self), highlight=False, **options)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                return self._stream.isatty()
        return False

    def fileno(self) -> int:
        """Return the file descriptor.

        Raises:
            OSError: there is none.
        """
        if self._stream is None:
            raise OSError("the stream is closed")
        return self._stream.fileno()

    def _give_up(self, stream: IO[str], error: OSError | ValueError) -> None:
        self._stream, self.failure = None, error
        # Python would try once more to write what is buffered when it exits, complain, and change the exit status.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
