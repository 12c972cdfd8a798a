"""Python's garbage collector, while many objects are made that all stay."""

from __future__ import annotations

import gc
from collections.abc import Generator
from typing import Final, TypeVar

_Item = TypeVar("_Item")
OBJECTS: Final = 5_000_000
"""So many more objects than before have to be there until garbage is looked for: those of a round are fewer."""


def seldom_collected(steps: Generator[_Item, None, None]) -> Generator[_Item, None, None]:
    """Yield what a generator does, with hardly any garbage collections until it ends.

    Records of a hundred thousand members stay until their round ends: to look through them again and again costs a
    tenth of a merge.
    """
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(max(before[0], OBJECTS), *before[1:])
    try:
        yield from steps
    finally:
        gc.set_threshold(*before)
