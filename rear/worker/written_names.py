"""Which names were written, in some ten bytes a name: hashes of them, in many small arrays.

A worker may write millions of files, and mode ``x`` asks of each name whether it was written before. The last few
thousand hashes are in a set; from there they move, thousands at once, to the arrays. On its way a hash is first added
where it goes to and then taken from where it was, and who looks for it goes the same way: so no lock is needed, which
the collector or a signal handler, coming back to `WrittenNames.add` from the middle of it, would wait for in vain.
"""

from __future__ import annotations

import threading
from array import array
from typing import Final

_RECENT_NAMES: Final = 4096
_NAMES_AN_ARRAY: Final = 256
"""On average, at most: looking for a hash reads one array from its beginning to its end."""
_GROWTH: Final = 8


class WrittenNames:
    """A set of hashes that only grows. Safe from many threads, and from whatever interrupts one."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        #: Sets on their way to the arrays.
        self._leaving: tuple[set[int], ...] = ()
        #: As many as a power of two; the lowest bits of a hash tell in which one it is, perhaps more than once.
        self._arrays: list[array[int]] = [array("q")]
        self._stored = 0
        self._moving = threading.RLock()

    def add(self, key: int) -> None:
        """Add a hash, of 64 bits with sign."""
        recent = self._recent
        recent.add(key)
        if len(recent) >= _RECENT_NAMES or recent is not self._recent:
            self._add_again(key)

    def _add_again(self, key: int) -> None:
        # That set may be on its way already, and have been read to its end before this hash came.
        while True:
            recent = self._recent
            recent.add(key)
            if recent is self._recent:
                break
        # Not where the collector has interrupted a move: that one goes on afterwards.
        if len(recent) >= _RECENT_NAMES and not self._moving._is_owned():  # type: ignore[attr-defined]
            with self._moving:
                if recent is self._recent:
                    self._move()

    def __contains__(self, key: int) -> bool:
        if key in self._recent or any(key in names for names in self._leaving):
            return True
        arrays = self._arrays
        return key in arrays[key & (len(arrays) - 1)]

    def _move(self) -> None:
        # What Ctrl-C leaves undone here is done again by the next move.
        self._leaving = (*self._leaving, self._recent)
        self._recent = set()
        for names in self._leaving:
            self._store(list(names))
        self._leaving = ()

    def _store(self, keys: list[int]) -> None:
        arrays = self._arrays
        lowest_bits = len(arrays) - 1
        for key in keys:
            arrays[key & lowest_bits].append(key)
        self._stored += len(keys)
        if self._stored > len(arrays) * _NAMES_AN_ARRAY:
            self._grow()

    def _grow(self) -> None:
        """Make the arrays anew, without what they hold twice, and more of them if that is much."""
        before = self._arrays
        some = before[:_GROWTH]
        is_much = sum(len(set(keys)) for keys in some) > len(some) * _NAMES_AN_ARRAY // 2
        arrays: list[array[int]] = [array("q") for _ in range(len(before) * (_GROWTH if is_much else 1))]
        lowest_bits = len(arrays) - 1
        stored = 0
        for keys in map(set, before):
            stored += len(keys)
            for key in keys:
                arrays[key & lowest_bits].append(key)
        self._arrays, self._stored = arrays, stored
