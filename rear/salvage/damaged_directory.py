"""What is left of a central directory: entries that can still be read, found again by the member that they describe.

A damaged or cut directory is still the best witness of what its members are called and of what stands in no local
header (attributes, comments). So all that looks like an entry is read, and believed only where a member is where it
says. Memory: two numbers an entry.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final

from rear.core.storage import Storage
from rear.errors import ZipFormatError
from rear.zip.directory import PIECE_BYTES
from rear.zip.headers import CentralEntry, decode_central_entry
from rear.zip.structures import CENTRAL, CENTRAL_LIMIT_BYTES, CENTRAL_SIGNATURE
from rear.zip.window import FIRST_BYTES, Window

_TRIAL_ENTRIES: Final = 200


class DirectoryRemains:
    """The readable entries of a directory, by the position of the member that each describes."""

    def __init__(self, descriptor: int, *, storage: Storage) -> None:
        self._descriptor = descriptor
        self._storage = storage
        self._ahead = Window(descriptor, 0, storage.size(descriptor), first_bytes=FIRST_BYTES, storage=storage)
        self._offsets = array("Q")
        self._positions = array("Q")
        self._shift = 0
        #: Whether members are where the entries say, so that entries without a member tell of one that is gone.
        self.is_trusted = False

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, start: int, length: int) -> None:
        """Read what looks like entries in a range of the file; what does not is passed over."""
        for position, entry in _readable_entries(self._descriptor, start, length, self._storage):
            if entry.offset <= 0x7FFF_FFFF_FFFF_FFFF:
                self._offsets.append(entry.offset)
                self._positions.append(position)

    def settle(self, name_at: Callable[[int], bytes | None], *, prefix: int | None, first: int) -> None:
        """Find out what recorded offsets count from; afterwards entries can be looked up.

        Where the directory is whole, ``prefix`` is what its end record says. Else they count from the start of the
        file or so that the first entry is that of the member at ``first``: whatever more names of members confirm.
        """
        order = sorted(range(len(self._offsets)), key=self._offsets.__getitem__)
        self._offsets = array("Q", (self._offsets[number] for number in order))
        self._positions = array("Q", (self._positions[number] for number in order))
        if not self._offsets:
            return
        shifts = [0, first - self._offsets[0]] if prefix is None else [prefix]
        scores = {shift: self._matches(shift, name_at) for shift in shifts}
        self._shift = max(shifts, key=scores.__getitem__)
        self.is_trusted = prefix is not None or scores[self._shift] > 0

    def _matches(self, shift: int, name_at: Callable[[int], bytes | None]) -> int:
        step = max(1, len(self._offsets) // _TRIAL_ENTRIES)
        trials = range(0, len(self._offsets), step)
        return sum(self.entry(number).name_bytes == name_at(self._offsets[number] + shift) for number in trials)

    def find(self, position: int) -> Iterator[CentralEntry]:
        """Return the entries of the member whose local header is at ``position`` of the file; nearly always one."""
        return map(self.entry, self._numbers(position))

    def _numbers(self, position: int) -> Iterator[int]:
        offset = position - self._shift
        number = bisect_left(self._offsets, offset) if offset >= 0 else len(self._offsets)
        while number < len(self._offsets) and self._offsets[number] == offset:
            yield number
            number += 1

    def rank(self, position: int) -> int:
        """Return where the last entry of a member stands, -1 without one: of one name, readers show the last."""
        return max((self._positions[number] for number in self._numbers(position)), default=-1)

    def all(self) -> Iterator[tuple[int, int]]:
        """Yield ``(position of the member, number)`` of each entry, by position; `entry` returns the entry."""
        for number, offset in enumerate(self._offsets):
            yield offset + self._shift, number

    def entry(self, number: int) -> CentralEntry:
        """Return the entry of a number that `all` gave."""
        position = self._positions[number]
        head = self._ahead.read_on(position, CENTRAL.size)
        length = CENTRAL.size + sum(CENTRAL.unpack(head)[10:13])
        return decode_central_entry(self._ahead.read_on(position, length))[0]


def _readable_entries(descriptor: int, start: int, length: int, storage: Storage) -> Iterator[tuple[int, CentralEntry]]:
    """Yield position and value of each entry in a range; after bytes that are none, go on at the next signature."""
    end = start + length
    while start < end:
        data = storage.read(descriptor, min(PIECE_BYTES, end - start), start)
        is_last = start + len(data) >= end
        position = 0
        while position < len(data):
            if not is_last and len(data) - position < CENTRAL_LIMIT_BYTES:
                break
            try:
                entry, following = decode_central_entry(data, position)
            except ZipFormatError:
                position = data.find(CENTRAL_SIGNATURE, position + 1)
                if position < 0:
                    position = len(data) if is_last else len(data) - len(CENTRAL_SIGNATURE) + 1
                continue
            yield start + position, entry
            position = following
        if not position:
            return
        start += position
