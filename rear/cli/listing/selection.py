"""What the reading commands share: which archive and which members an argument means, and how their names are shown.

An argument is the path of an archive, with a member or a pattern after it (``ar.zip/logs/*.txt``) where the command
takes one. The archive is the first part of the path that is a file: nothing else can lie below a file. Patterns are
those of `rear.read.patterns`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from rear.core.text import shown
from rear.errors import UsageError
from rear.read.patterns import Patterns
from rear.zip.archive import Archive
from rear.zip.headers import CentralEntry

PATTERN_HELP: Final = (
    "Patterns: '*' and '?' match anything but '/', '**' matches that too, '[...]' one character of a set; "
    "a plain name selects that member, or all below it. Quote them, so that the shell leaves them alone."
)
_FLUSH_BYTES: Final = 64 << 10
_BATCH: Final = 1_000


class Selection(NamedTuple):
    """An archive, and what in it: a member's name, a pattern, or nothing for all of it."""

    archive: str
    member: str


def split(argument: str) -> Selection:
    """Split an argument after the archive that it begins with.

    Raises:
        FileNotFoundError: no part of it exists as a file.
        UsageError: it is the path of a directory.
    """
    position = 0
    while True:
        position = argument.find("/", position + 1)
        archive = argument if position < 0 else argument[:position]
        if os.path.isfile(archive):
            return Selection(archive, "" if position < 0 else argument[position + 1 :])
        if not os.path.isdir(archive):
            # Says why: it may exist, and the user may not look.
            os.stat(archive)
            raise OSError(errno.EINVAL, "neither a file nor a directory", archive)
        if position < 0:
            raise UsageError(f"{argument!r} is a directory, not an archive")


def selected(archive: Archive, patterns: Patterns) -> Iterator[CentralEntry]:
    """Yield the entries of the members that match, of all without patterns."""
    if not patterns:
        return archive.entries()
    matches = patterns.matches
    return map(archive.entry_at, (position for position, name in archive.names() if matches(name)))


class LineWriter:
    """Writes lines to standard output, many at a time; what its encoding lacks is escaped. Use it as a context."""

    def __init__(self) -> None:
        self._stream = sys.stdout
        self._encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._lines: list[str] = []
        self._length = 0

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def can_show(self, text: str) -> bool:
        """Whether the encoding of standard output has all of these characters."""
        try:
            text.encode(self._encoding)
        except UnicodeEncodeError:
            return False
        return True

    def write(self, line: str) -> None:
        """Write one line."""
        self._lines.append(line)
        self._length += len(line)
        if self._length >= _FLUSH_BYTES:
            self.flush()

    def write_all(self, lines: Iterable[str]) -> None:
        """Write many lines as they are."""
        lines = iter(lines)
        while batch := list(islice(lines, _BATCH)):
            self._lines += batch
            self.flush()

    def write_escaped(self, lines: Iterable[str]) -> None:
        """Write many lines as `shown` returns them."""
        lines = iter(lines)
        while batch := list(islice(lines, _BATCH)):
            # Almost always none needs it, and one look at all of them is far cheaper than one at each.
            together = "".join(batch)
            if not together.isprintable() or "\\" in together:
                batch = list(map(shown, batch))
            self._lines += batch
            self.flush()

    def write_exact(self, names: Iterable[str]) -> None:
        """Write names as they are, each with a NUL after it."""
        names = iter(names)
        while batch := list(islice(names, _BATCH)):
            self._stream.buffer.write("\0".join([*batch, ""]).encode("utf-8", "surrogateescape"))
        self._stream.flush()

    def flush(self) -> None:
        """Write out what is kept."""
        if self._lines:
            text = "\n".join([*self._lines, ""])
            self._lines, self._length = [], 0
            self._stream.buffer.write(text.encode(self._encoding, "backslashreplace"))
            self._stream.flush()
