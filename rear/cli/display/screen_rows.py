"""What has a line of its own on a screen: a finding, a final archive, a temp archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class FindingRow(NamedTuple):
    """What is worth a line: a label (``renamed``, ``LOST``), its style, and a sentence."""

    label: str
    style: str
    text: str


@dataclass(slots=True)
class ArchiveLine:
    """One final archive: what has been merged into it, what is coming, and what is done with it."""

    archive: str
    state: str
    members: int = 0
    size_bytes: int = 0
    archive_size_bytes: int | None = None
    coming_members: int = 0
    coming_bytes: int = 0
    copied_bytes: int = 0
    is_busy: bool = True


@dataclass(slots=True)
class PairLine:
    """One temp archive: its state, how many of its members are checked, and how many were found whole."""

    pair: str
    state: str
    members: int = 0
    size_bytes: int = 0
    checked: int = 0
    bad: int = 0
    is_busy: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts lines: the busiest first, then what needs attention, then the largest, live ones last."""
        order = {"quarantined": 1, "refused": 1, "crashed": 2, "stale": 2, "closed": 3, "waits": 4, "live": 5}
        return (0 if self.is_busy else order[self.state], -self.size_bytes)
