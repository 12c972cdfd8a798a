"""When a final archive is full, and then: ``ar.zip`` is renamed ``ar-0.zip``, index and all, and a new one begins."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rear.core.layout import Layout
from rear.core.storage import Storage
from rear.errors import UsageError
from rear.events import RolledOver
from rear.index.index import Index
from rear.journal.intent import intents_of
from rear.scavenger.plan import Candidate
from rear.zip.directory import Directory
from rear.zip.structures import CENTRAL, END, ZIP64_END, ZIP64_LOCATOR

MAY_BE_BEHIND: Final = 2
"""The index of an archive, or of what was renamed last, lacks what one merged that died before it wrote that."""
_FORGED: Final = 10**18
"""Who adds one at a time never comes here: after a number of 248 digits no name would be short enough."""
_ENTRY_EXTRA_BYTES = 9 + 28
_END_BYTES = END.size + ZIP64_END.size + ZIP64_LOCATOR.size


@dataclass(frozen=True, slots=True)
class Cap:
    """How large a final archive may become; a single member that is larger still gets an archive of its own.

    Args:
        size_bytes: of the whole file; ``None`` for no limit.
        members: number of members; ``None`` for no limit.

    Raises:
        UsageError: a limit below 1.
    """

    size_bytes: int | None = None
    members: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_size", self.size_bytes), ("max_members", self.members)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}: it has to be 1 or more")

    def fitting(self, candidates: list[Candidate], directory: Directory | None) -> int:
        """Return how many of the candidates, from the first on, an archive can take."""
        if self.size_bytes is None and self.members is None:
            return len(candidates)
        size = directory.archive_length if directory else _END_BYTES
        members = directory.entries if directory else 0
        for number, (_, append) in enumerate(candidates):
            size += append.length + CENTRAL.size + len(append.name.encode()) + _ENTRY_EXTRA_BYTES
            members += 1
            is_over = (self.size_bytes is not None and size > self.size_bytes) or (
                self.members is not None and members > self.members
            )
            if is_over:
                return number if number or (directory is not None and directory.entries) else 1
        return len(candidates)


def roll_over(layout: Layout, archive: str, *, storage: Storage) -> RolledOver:
    """Give a full archive the next free number.

    Raises:
        OSError: it could not be renamed; or (``EEXIST``) a merge into it is unfinished.
    """
    path = layout.archive(archive)
    if intents_of(layout, archive, storage=storage):
        # By another name it would not be found by who brings that merge to an end, and all would be merged again.
        raise FileExistsError(errno.EEXIST, "another merge into this archive is unfinished", str(path))
    numbers = _numbers(path, storage)
    number = max((number for number in numbers.values() if number < _FORGED), default=-1) + 1
    while (renamed := f"{path.stem}-{number}{path.suffix}") in numbers:
        number += 1
    target = (Path(archive).parent / renamed).as_posix()
    storage.rename(path, path.parent / renamed)
    storage.sync_directory(path.parent)
    # A crash before the next line leaves an index that does not match: both archives get a new one when it is needed.
    Index.open(layout, archive, storage=storage).rename(target)
    return RolledOver(archive, target)


def rolled_over_from(layout: Layout, archive: str, *, storage: Storage) -> list[str]:
    """Return the archives that may have been renamed from ``archive``, the latest first."""
    numbers = _numbers(layout.archive(archive), storage)
    folder = Path(archive).parent
    return [(folder / name).as_posix() for name in sorted(numbers, key=lambda name: -numbers[name])]


def _numbers(path: Path, storage: Storage) -> dict[str, int]:
    pattern = re.compile(re.escape(path.stem) + r"-([0-9]+)\.zip\Z", re.IGNORECASE)
    return {name: int(found[1]) for name in storage.names(path.parent) if (found := pattern.match(name))}
