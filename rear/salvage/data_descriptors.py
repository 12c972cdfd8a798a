"""Where the data of members ends whose size stands behind it: data descriptors (APPNOTE 4.3.9), looked for ahead.

A descriptor that says how long its data is names the one position where that data has to begin. So one pass over the
archive finds the descriptors of all members; whoever asks for the end of one member reads on from where the last search
stopped, and never twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

from rear.salvage.local_headers import BOUNDARY_PATTERN, Facts, is_boundary, is_signature_at
from rear.zip.structures import DESCRIPTOR_LAYOUTS, DESCRIPTOR_SIGNATURE
from rear.zip.window import Window

_PATTERN: Final = re.compile(BOUNDARY_PATTERN.pattern + b"|" + DESCRIPTOR_SIGNATURE)
#: Descriptors that wait for a member to ask for them; forged ones must not fill the memory.
_WAITING_LIMIT: Final = 1 << 18
_PER_MEMBER_LIMIT: Final = 64


class Descriptor(NamedTuple):
    """A data descriptor: one with a signature, or one that a signature of a record follows."""

    position: int
    #: First byte after it.
    end: int
    facts: Facts
    #: What follows is a boundary, and not merely a signature.
    followed: bool
    #: The signature of a record follows, be the record as damaged as it may.
    marked: bool


class DescriptorSearch:
    """Finds descriptors by the distance from the data that they are about."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._waiting: dict[int, list[Descriptor]] = defaultdict(list)
        self._waiting_count = 0
        self._first = self._searched = window.start
        self._places: Iterator[int] | None = None

    def candidates(self, data_offset: int) -> Iterator[Descriptor]:
        """Yield the descriptors whose compressed size is the distance from ``data_offset``, nearest first."""
        if data_offset >= self._searched or data_offset < self._first:
            self._waiting.clear()
            self._waiting_count = 0
            self._first = self._searched = data_offset
            self._places = None
        given = 0
        while True:
            waiting = self._waiting.get(data_offset, [])
            while given < len(waiting):
                yield waiting[given]
                given += 1
            if given >= _PER_MEMBER_LIMIT or not self._search_on(data_offset):
                return

    def _search_on(self, data_offset: int) -> bool:
        """Look at one more place; ``False`` when there is none left."""
        if self._places is None:
            self._places = self._places_from(self._searched)
        place = next(self._places, None)
        if place is None:
            return False
        self._searched = place + 1
        is_signature = self._window.read(place, 4) == DESCRIPTOR_SIGNATURE
        for signature, layout in DESCRIPTOR_LAYOUTS:
            if bool(signature) != is_signature:
                continue
            at = place + 4 if signature else place - layout.size
            values = self._window.read(at, layout.size)
            if at < data_offset or len(values) < layout.size:
                continue
            if not signature and self._window.read(at - 4, 4) == DESCRIPTOR_SIGNATURE:
                # One with a signature, met from behind: its size is wrong by those four bytes.
                continue
            facts = Facts._make(layout.unpack(values))
            position, end = at - len(signature), at + layout.size
            start = position - facts.compressed_size
            if start < data_offset or (start > data_offset and self._waiting_count >= _WAITING_LIMIT):
                continue
            followed = is_boundary(self._window, end)
            marked = followed or is_signature_at(self._window, end)
            self._waiting[start].append(Descriptor(position, end, facts, followed, marked))
            self._waiting_count += 1
        return True

    def _places_from(self, position: int) -> Iterator[int]:
        yield from self._window.matches(_PATTERN, position, self._window.end)
        yield self._window.end
