"""Which bytes of an archive belong to which member: bytes that are nobody's, and members that begin within others."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise


class MemberRanges:
    """The ranges of members, three numbers each; members without a local header have none.

    Args:
        limit: where the central directory begins: ranges end there at the latest.
        most_overlaps: so many are kept one by one; the rest is only counted.

    Attributes:
        overlaps: entries that begin within another member, by number, with where that one begins; see `gaps`.
        further_overlaps: how many more there are.
    """

    def __init__(self, limit: int, most_overlaps: int) -> None:
        self.overlaps: dict[int, int] = {}
        self.further_overlaps = 0
        self._limit = limit
        self._most_overlaps = most_overlaps
        self._starts = array("Q")
        self._ends = array("Q")
        self._numbers = array("Q")

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, number: int, start: int, end: int) -> None:
        """Note the range of an entry, local header included."""
        self._starts.append(start)
        self._ends.append(end)
        self._numbers.append(number)

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Yield ranges that belong to no member; on the way, note all overlaps."""
        order: Iterable[int] = range(len(self._starts))
        if any(left > right for left, right in pairwise(self._starts)):
            order = sorted(order, key=self._starts.__getitem__)
        reached, owner = 0, 0
        for position in order:
            start, end = self._starts[position], self._ends[position]
            if start > reached:
                yield reached, start
            elif start < reached:
                if len(self.overlaps) < self._most_overlaps:
                    self.overlaps[self._numbers[position]] = owner
                else:
                    self.further_overlaps += 1
            if end > reached:
                reached, owner = end, start
        if reached < self._limit:
            yield reached, self._limit
