"""Strays in rear's own folders: rests of writes that never ended, indexes without archives, files of others."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from rear.core.descent import walk
from rear.core.layout import Layout
from rear.core.names import check_archive, is_litter
from rear.core.problems import Problem
from rear.core.storage import FRESH_SUFFIX, Storage
from rear.errors import PathError
from rear.index.index import Index
from rear.index.segment import PART_SUFFIX, parse_segment_name
from rear.read.archive_tree import VANISHED
from rear.scavenger.claims import RESCUE_SUFFIX
from rear.scavenger.copy_tasks import PERMIT_SUFFIX, REGISTRATION_SUFFIX

_INTENT_SUFFIXES: Final = (".intent", ".planning", ".archive", PERMIT_SUFFIX, REGISTRATION_SUFFIX)
_FRESH: Final = re.compile(r".+\.[0-9a-f]{12}\.new\Z")
"""What `Storage.replace` and others write before they rename it."""


def find_strays(layout: Layout, *, repair: bool, storage: Storage) -> Iterator[Problem]:
    """Yield what belongs to nothing; remove what is certainly the rest of a write.

    Args:
        layout: the base.
        repair: remove it; only a leader may, because all that write such files are leaders.
        storage: the file system.

    Raises:
        OSError: a folder cannot be read.
    """
    strays = _Strays(layout, repair, storage)
    yield from strays.unknown()
    yield from strays.temporaries()
    yield from strays.indexes()
    yield from strays.lost_and_found()
    yield from strays.shut


class _Strays:
    def __init__(self, layout: Layout, repair: bool, storage: Storage) -> None:
        self._layout = layout
        self._repair = repair
        self._storage = storage
        #: What could not be looked at, complete at the end.
        self.shut: list[Problem] = []

    def _tell_shut(self, error: OSError) -> None:
        if error.errno in VANISHED:
            return
        path = Path(os.fsdecode(error.filename or self._layout.state))
        # What is shut among the pairs, and of the base's own parts, was told before.
        pairs = self._layout.inbox, self._layout.claims, self._layout.graveyard
        if path not in self._layout.parts and not any(map(path.is_relative_to, pairs)):
            problem = Problem("refused", self._subject(path), error.strerror or str(error), "left")
            if problem not in self.shut:
                self.shut.append(problem)

    def _names(self, folder: Path) -> list[str]:
        try:
            return self._storage.names(folder)
        except OSError as error:
            self._tell_shut(error)
            return []

    def unknown(self) -> Iterator[Problem]:
        # The inbox is not here: a scavenge tells of what it does not know.
        expected: dict[Path, Callable[[str], bool]] = {
            self._layout.state: _STATE_NAMES.__contains__,
            self._layout.intents: lambda name: name.endswith(_INTENT_SUFFIXES),
            self._layout.terms: str.isdecimal,
            self._layout.reports: lambda name: name.endswith(".json"),
        }
        for folder, is_expected in expected.items():
            for name in self._names(folder):
                if not is_expected(name) and not _FRESH.match(name) and not is_litter(name):
                    yield Problem("stray-file", self._subject(folder / name), "rear gives no such name", "noted")

    def temporaries(self) -> Iterator[Problem]:
        """Yield rests of atomic writes: until the rename nobody relies on them, and what they hold is elsewhere."""
        for folder, folders, files in walk(self._layout.state, on_error=self._tell_shut):
            # A scavenger that does not lead yet may be writing there.
            folders[:] = sorted(name for name in folders if Path(folder, name) != self._layout.observations / "leader")
            for name in sorted(files):
                path = Path(folder, name)
                if path.parent == self._layout.flush_requests:
                    yield self._remove(path, "a request to live workers, by a scavenger that is gone")
                elif self._is_unfinished(path):
                    yield self._remove(path, "its writer died before it was done")

    def _is_unfinished(self, path: Path) -> bool:
        # By folder: in lost+found, what ends like the rest of a write may be what somebody's file is called.
        if path.is_relative_to(self._layout.indexes):
            return path.name.endswith(PART_SUFFIX)
        if path.is_relative_to(self._layout.claims):
            return path.name.endswith((RESCUE_SUFFIX, FRESH_SUFFIX))
        if path.is_relative_to(self._layout.inbox) or path.is_relative_to(self._layout.graveyard):
            return False
        return _FRESH.match(path.name) is not None

    def _remove(self, path: Path, detail: str) -> Problem:
        if self._repair:
            try:
                self._storage.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                return Problem("stray-temporary", self._subject(path), f"{detail}; it stays: {error.strerror}", "left")
        return Problem("stray-temporary", self._subject(path), detail, "repaired" if self._repair else "would repair")

    def indexes(self) -> Iterator[Problem]:
        """Yield indexes of archives that are not there: removed by a person, or lost."""
        for folder, folders, files in walk(self._layout.indexes):
            folders.sort()
            if not any(parse_segment_name(name) is not None for name in files):
                continue
            archive = Path(folder).relative_to(self._layout.indexes).as_posix()
            try:
                check_archive(archive)
            except PathError:
                yield Problem("stray-file", self._subject(Path(folder)), "an index of what is no archive", "noted")
                continue
            try:
                problem = self._without_archive(archive)
            except OSError as error:
                self._tell_shut(error)
            else:
                yield from [problem] if problem else []

    def _without_archive(self, archive: str) -> Problem | None:
        path = self._layout.archive(archive)
        if path.name in self._storage.names(path.parent):
            return None
        count = Index.open(self._layout, archive, storage=self._storage).count
        detail = f"the archive is not there; its index names {count:,} members"
        return Problem("index-stray", self._subject(self._layout.index(archive)), detail, "noted")

    def lost_and_found(self) -> Iterator[Problem]:
        folder = self._layout.lost_and_found
        count = size = 0
        for inner, _, files in walk(folder):
            for name in files:
                with contextlib.suppress(OSError):
                    size += self._storage.status(f"{inner}/{name}").st_size
                    count += 1
        if count:
            detail = f"{count:,} files of {size:,} bytes in all; each item's .json says what it is"
            yield Problem("lost-and-found-items", self._subject(folder), detail, "noted")

    def _subject(self, path: Path) -> str:
        return path.relative_to(self._layout.base).as_posix()


_STATE_NAMES: Final = frozenset(
    ("claims", "config.toml", "flush", "graveyard", "inbox", "index", "intents", "lock", "lost+found",
     "observations", "reports", "terms")
)  # fmt: skip
