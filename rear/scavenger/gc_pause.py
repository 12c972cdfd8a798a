"""A pause of Python's garbage collector, while many objects are made that all stay."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator
from typing import Final, TypeVar

_Item = TypeVar("_Item")
OBJECTS: Final = 5_000_000
"""So many more objects than before have to be there until garbage is looked for: those of a round are fewer."""

#: The thresholds are of the process, and two threads may scavenge two bases.
_lock = threading.Lock()
_inside = 0
_before = gc.get_threshold()


def seldom_collected(steps: Generator[_Item, None, None]) -> Generator[_Item, None, None]:
    """Yield what a generator does, with hardly any garbage collections until it ends.

    Records of a hundred thousand members stay until their round ends: to look through them again and again costs a
    tenth of a merge.
    """
    _enter()
    try:
        yield from steps
    finally:
        _leave()


def _enter() -> None:
    global _inside, _before
    with _lock:
        if not _inside:
            _before = gc.get_threshold()
            if _before[0]:
                gc.set_threshold(max(_before[0], OBJECTS), *_before[1:])
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if not _inside:
            gc.set_threshold(*_before)
