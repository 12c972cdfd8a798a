"""Rows of the live screen: findings, final archives and temp archives, in bounded memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, NamedTuple

PAIR_LIMIT: Final = 1_000
ARCHIVE_LIMIT: Final = 1_000
"""So many lines are kept at most; of more, the least busy ones are only counted."""
#: What an archive is when it is no longer at work.
_ENDED: Final = {"inspecting": "checked", "comparing": "whole", "rebuilding": "rebuilt"}


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


class ArchiveRows(dict[str, ArchiveLine]):
    """Final archives by path, in bounded memory: of too many, those that got the fewest bytes are only counted."""

    def __init__(self) -> None:
        super().__init__()
        self.more = 0
        self._at_work: ArchiveLine | None = None

    def at(self, archive: str) -> ArchiveLine:
        """Return the line of the archive that is at work now; the one before it has ended."""
        if self._at_work is None or self._at_work.archive != archive:
            self.end()
            line = self.get(archive)
            if line is None:
                line = self[archive] = ArchiveLine(archive, "")
                self._forget()
            self._at_work = line
            line.is_busy = True
        return self._at_work

    def end(self) -> None:
        """No archive is at work any more."""
        line, self._at_work = self._at_work, None
        if line is not None:
            line.is_busy = False
            if line.state in ("planning", "indexing"):
                line.state = "merged" if line.members else "nothing new"
            else:
                line.state = _ENDED.get(line.state, line.state)

    def _forget(self) -> None:
        if len(self) <= ARCHIVE_LIMIT:
            return
        quiet = [line for line in self.values() if not line.is_busy and line.state != "refused"]
        quiet.sort(key=lambda line: line.size_bytes)
        for line in quiet[: ARCHIVE_LIMIT // 2]:
            del self[line.archive]
            self.more += 1

    def refuse(self, archive: str) -> None:
        """Nothing comes into this archive."""
        line = self[archive]
        line.state, line.is_busy = "refused", False
        line.coming_members = line.coming_bytes = line.copied_bytes = 0
        if self._at_work is line:
            self._at_work = None

    def rename(self, archive: str, new: str) -> None:
        """An archive is full, and has another name now."""
        line = self.pop(archive, None)
        if line is not None:
            line.archive, line.state, line.is_busy = new, "full", False
            self[new] = line
        self._at_work = None


class PairRows(dict[str, PairLine]):
    """Temp archives by name, in bounded memory: of too many, the least busy ones are only counted, by state."""

    def __init__(self) -> None:
        super().__init__()
        self.more: Counter[str] = Counter()
        self._at_work: PairLine | None = None

    def add(self, line: PairLine) -> PairLine:
        """Add a line, and return it."""
        self[line.pair] = line
        if len(self) > PAIR_LIMIT:
            ranked = sorted(self.values(), key=lambda line: line.rank)
            for least in ranked[PAIR_LIMIT // 2 :]:
                self.more[least.state] += 1
                del self[least.pair]
        return line

    def add_waiting(self, pair: str, state: str) -> None:
        """Add one that stays where it is, if there is room; it is not worth the line of another one."""
        if len(self) < PAIR_LIMIT // 2:
            self[pair] = PairLine(pair, state)
        else:
            self.more[state] += 1

    def begin(self, line: PairLine) -> None:
        """Add the one whose members are checked now."""
        self._at_work = self.add(line)

    def end(self) -> int:
        """No members are checked any more; return how many were that nobody has told of."""
        line, self._at_work = self._at_work, None
        if line is None:
            return 0
        line.is_busy = False
        untold = line.members - line.checked
        line.checked = line.members
        return untold

    def remove(self, pair: str) -> None:
        """One is gone."""
        if self.pop(pair, None) is None:
            state = "closed" if self.more["closed"] else "crashed"
            self.more[state] = max(self.more[state] - 1, 0)

    def begin_round(self) -> None:
        """Forget what was claimed before: what could not be merged has gone back to the inbox."""
        for pair in [line.pair for line in self.values() if line.state in ("closed", "crashed", "stale")]:
            del self[pair]
        self.more = Counter({"live": self.more["live"], "waits": self.more["waits"]})
