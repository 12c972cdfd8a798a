"""Part of a file in memory, which moves along the file: members that follow each other cost few system calls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from rear.core.storage import LOCAL, Storage

PIECE_BYTES: Final = 1 << 21
"""Read at a time. The longest local header (131,100 bytes) takes a sixteenth of it."""
FIRST_BYTES: Final = 16 << 10
"""Read first by who may want one member alone; then four times as much each time, as long as reads go forward."""
_AHEAD_LIMIT_BYTES: Final = 1 << 20


class Window:
    """The range ``[start, end)`` of an open file, of which one piece is in memory.

    ``data`` are the bytes from ``base`` on. A file that turns out to be shorter ends where its bytes end.

    Args:
        descriptor: the open file.
        start: first byte, in bytes from the start of the file.
        end: first byte that does not belong to the range.
        first_bytes: read where no read has gone on to; `FIRST_BYTES` for who does not read all of the range.
        storage: the file system.
    """

    __slots__ = ("_ahead", "_descriptor", "_first_bytes", "_storage", "base", "data", "end", "start")

    def __init__(
        self, descriptor: int, start: int, end: int, *, first_bytes: int = PIECE_BYTES, storage: Storage = LOCAL
    ) -> None:
        self._descriptor = descriptor
        self._storage = storage
        self._first_bytes = self._ahead = first_bytes
        self.start = start
        self.end = end
        self.base = start
        self.data = b""

    def load(self, position: int, length: int) -> None:
        """Have ``length`` bytes from ``position`` on in memory, as far as the range has them."""
        end = self.base + len(self.data)
        if self.base <= position and (position + length <= end or end >= self.end):
            return
        goes_on = self.base <= position <= end
        self._ahead = max(self._first_bytes, min(4 * self._ahead, _AHEAD_LIMIT_BYTES)) if goes_on else self._first_bytes
        length = min(max(self._ahead, length), self.end - position)
        self.data = self._storage.read(self._descriptor, length, position) if length > 0 else b""
        self.base = position

    def read_on(self, position: int, length: int) -> bytes:
        """Return ``length`` bytes at ``position``, fewer at the end of the range; the window moves there."""
        at = position - self.base
        if at < 0 or at + length > len(self.data):
            self.load(position, length)
            at = position - self.base
        return self.data[at : at + length]

    def read(self, position: int, length: int) -> bytes:
        """Return ``length`` bytes at ``position``, fewer at the end of the range; what is in memory stays there."""
        length = min(length, self.end - position)
        if length <= 0 or position < self.start:
            return b""
        at = position - self.base
        if at >= 0 and at + length <= len(self.data):
            return self.data[at : at + length]
        return self._storage.read(self._descriptor, length, position)

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes of ``[start, end)`` in order, from memory as far as they are there."""
        end = min(end, self.end)
        while start < end:
            at = start - self.base
            if 0 <= at < len(self.data):
                piece = memoryview(self.data)[at : at + end - start]
            else:
                piece = memoryview(self._storage.read(self._descriptor, min(PIECE_BYTES, end - start), start))
                if not piece:
                    return
            start += len(piece)
            yield piece

    def matches(self, pattern: re.Pattern[bytes], start: int, end: int, *, longest: int = 4) -> Iterator[int]:
        """Yield where ``pattern`` matches in ``[start, end)``.

        Args:
            pattern: what to look for.
            start: first position.
            end: where all matches must have ended.
            longest: length of the longest match in bytes.
        """
        end = min(end, self.end)
        while start < end:
            at = start - self.base
            if at >= 0 and (at + longest <= len(self.data)):
                data = self.data
            else:
                at, data = 0, self._storage.read(self._descriptor, min(PIECE_BYTES, end - start), start)
                if not data:
                    return
            base, stop = start - at, min(len(data), at + end - start)
            for match in pattern.finditer(data, at, stop):
                start = base + match.end()
                yield base + match.start()
            if base + stop >= end:
                return
            # A match may begin in the last bytes of a piece.
            start = max(start, base + stop - longest + 1)
            if not data[-1] and not any(data):
                # Zeros that do not match do not match in a hole, either, however long it is.
                start = max(start, self.next_data(base + stop) - longest + 1)

    def next_data(self, position: int) -> int:
        """Return where data begins at or after ``position``, past a hole of a sparse file."""
        return min(self._storage.next_data(self._descriptor, position), self.end)
