"""Names that may occur twice among those of a large archive, in bounded memory."""

from __future__ import annotations

from typing import Final

_BITS_A_NAME: Final = 64
_MOST_BITS: Final = 1 << 28
#: Up to so many names their hashes are kept: 20 MB, faster than a table, and certain.
_HASHES_LIMIT: Final = 250_000


class SeenNames:
    """Finds names that may occur twice: by their hashes, and in large archives by a table of bits (a Bloom filter).

    Of some names the latter says so that do not, so they are compared. ``count`` is about how many there will be.

    Attributes:
        perhaps_twice: hashes of names that may occur twice. Python's are keyed at random: nobody can make names that
            collide.
    """

    def __init__(self, count: int) -> None:
        bits = 1 << 16
        while bits < min(count * _BITS_A_NAME, _MOST_BITS):
            bits *= 2
        self._mask = bits - 1
        self._hashes: set[int] | None = set() if count <= _HASHES_LIMIT else None
        self._table = bytearray(0 if self._hashes is not None else bits // 8)
        self.perhaps_twice: set[int] = set()

    def add(self, name: str) -> None:
        """Note a name; one that may have been there already is noted in ``perhaps_twice``."""
        key = hash(name)
        if self._hashes is not None and len(self._hashes) <= _HASHES_LIMIT:
            if key in self._hashes:
                self.perhaps_twice.add(key)
            self._hashes.add(key)
            return
        if self._hashes is not None:
            # Go on with a table: there are more names than the end record said.
            hashes, self._hashes = self._hashes, None
            self._table = bytearray((self._mask + 1) // 8)
            for other in hashes:
                self._mark(other)
        if self._mark(key):
            self.perhaps_twice.add(key)

    def _mark(self, key: int) -> bool:
        """Mark both places of a key; return whether they were marked already."""
        was_marked = True
        for place in (key & self._mask, key >> 32 & self._mask):
            byte, bit = place >> 3, 1 << (place & 7)
            was_marked = was_marked and self._table[byte] & bit > 0
            self._table[byte] |= bit
        return was_marked

    def contains(self, name: str) -> bool:
        """Whether a name was added; now and then true of one that was not."""
        key = hash(name)
        if self._hashes is not None:
            return key in self._hashes
        places = key & self._mask, key >> 32 & self._mask
        return all(self._table[place >> 3] & 1 << (place & 7) for place in places)
