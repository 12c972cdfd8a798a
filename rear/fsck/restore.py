"""Puts a rebuilt archive in the place of a damaged one of a base; the damaged one is kept in lost+found.

The order of writes: the new archive is built aside, synced, read back and compared (`rear.salvage.read_back`); the damaged
one gets a second name in lost+found (a copy where there are no links); the new one is renamed over it; the index is
made again. A crash before the rename leaves the damaged archive where it was, and what was built goes with the next
check.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rear.core.layout import Layout, check_inside
from rear.core.problems import Problem
from rear.core.storage import Storage, opened
from rear.errors import IndexFormatError, UnfinishedIntentError, UnsupportedError, ZipFormatError
from rear.index.index import Index, rows_of
from rear.journal.intent import intents_of
from rear.read.view import open_committed
from rear.salvage.info_zip import fix
from rear.salvage.read_back import Written, why_wrong
from rear.salvage.rebuild import Rebuilt, rebuild
from rear.salvage.rebuilt_names import KnownMember
from rear.scavenger.leader import Leadership
from rear.scavenger.lost_and_found import LostAndFound
from rear.scavenger.recovery import fresh_path, install


class Restoration:
    """Restores final archives of one base, for one leader.

    Args:
        layout: the base.
        leadership: asked before an archive is replaced.
        lost_and_found: keeps the damaged archives, and what does not get into the new ones.
        storage: the file system.
    """

    def __init__(
        self, layout: Layout, leadership: Leadership, lost_and_found: LostAndFound, *, storage: Storage
    ) -> None:
        self._layout = layout
        self._leadership = leadership
        self._lost_and_found = lost_and_found
        self._storage = storage

    def restore(self, archive: str, mendable: list[Problem]) -> list[Problem]:
        """Rebuild an archive, and return what was found and done.

        Args:
            archive: its path relative to the base.
            mendable: what is wrong with it.

        Raises:
            RearError, OSError: the archive is as it was.
        """
        path, reason = self._layout.archive(archive), mendable[0].detail
        check_inside(self._layout, path)
        self._check_no_intent(archive)
        fresh = fresh_path(self._layout.intent(archive, self._leadership.name))
        self._storage.make_directories(fresh.parent)
        self._unlink(fresh)
        try:
            problems, rebuilt = self._build(archive, path, fresh)
            if not rebuilt.members:
                problems, rebuilt = self._build_by_zip(archive, path, fresh)
            if not rebuilt.members:
                return [*problems, Problem("archive-not-a-zip", archive, reason, "left")]
            self._copy_owner_and_mode(path, fresh)
            known = _known(Index.open(self._layout, archive, storage=self._storage))
            item = self._lost_and_found.put_copy(_flat(archive), path, {"archive": archive, "reason": reason})
            self._leadership.prove()
            install(fresh, path, storage=self._storage)
        except BaseException:
            self._unlink(fresh)
            raise
        done = [replace(problem, outcome="repaired", lost_and_found=item) for problem in mendable]
        return done + problems + self._missing(archive, known, problems)

    def _copy_owner_and_mode(self, path: Path, fresh: Path) -> None:
        with opened(path, self._storage) as source, opened(fresh, self._storage, write=True) as target:
            self._storage.copy_owner_and_mode(source, target)
            self._storage.sync(target)

    def _check_no_intent(self, archive: str) -> None:
        """Refuse while a merge waits to be undone: its undo would write the old end into the new archive."""
        if intents_of(self._layout, archive, storage=self._storage):
            raise UnfinishedIntentError(f"a merge into {archive} could not be brought to an end; that comes first")

    def _unlink(self, fresh: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._storage.unlink(fresh)

    def _build(self, archive: str, source: Path, fresh: Path) -> tuple[list[Problem], Rebuilt]:
        known = _known(Index.open(self._layout, archive, storage=self._storage))
        problems: list[Problem] = []
        target = self._storage.create(fresh)
        try:
            with opened(source, self._storage) as descriptor:
                work = rebuild(
                    descriptor, target=target, keep_aside=self._lost_and_found, subject=archive, known=known.get,
                    item_prefix=f"{_flat(archive)}-", storage=self._storage,
                )  # fmt: skip
                rebuilt = _collected(work, problems.append)
                self._storage.sync(target)
                if rebuilt.members:
                    self._check(fresh, rebuilt.written, descriptor)
        finally:
            self._storage.close(target)
        return problems, rebuilt

    def _build_by_zip(self, archive: str, path: Path, fresh: Path) -> tuple[list[Problem], Rebuilt]:
        """Let ``zip -FF`` try; what it makes is scanned, and checked, like the archive itself."""
        nothing = Rebuilt(0, 0, Written())
        with tempfile.TemporaryDirectory(prefix="rear-fsck-") as folder:
            try:
                fixed = fix(path, folder, storage=self._storage)
            except UnsupportedError as error:
                return [Problem("archive-not-a-zip", archive, str(error), "noted")], nothing
            if fixed is None:
                return [Problem("archive-not-a-zip", archive, "zip -FF made nothing of it either", "noted")], nothing
            self._unlink(fresh)
            problems, rebuilt = self._build(archive, fixed, fresh)
        if rebuilt.members:
            detail = f"zip -FF found {rebuilt.members:,} members that pass all checks"
            problems.append(Problem("archive-repaired-by-zip", archive, detail, "repaired"))
        return problems, rebuilt

    def _check(self, fresh: Path, written: Written, source: int) -> None:
        wrong = why_wrong(fresh, written, source=source, storage=self._storage)
        if wrong is not None:
            raise ZipFormatError(f"the rebuilt archive is not sound: {wrong}; the old one stays as it is")

    def _missing(self, archive: str, known: dict[int, KnownMember], problems: list[Problem]) -> list[Problem]:
        """Make the index again, and name the members that only the old one knows."""
        with open_committed(self._layout.archive(archive), storage=self._storage) as found:
            Index.open(self._layout, archive, storage=self._storage).rebuild(rows_of(found), found.fingerprint)
            there = {name for _, name in found.names()}
        there.update(problem.name for problem in problems if problem.name is not None)
        return [
            Problem("member-lost", archive, "the index names it, and nothing of it was found", "left", name=member.name)
            for member in known.values()
            if member.name not in there
        ]


def _known(index: Index) -> dict[int, KnownMember]:
    """Return what an index says of the members by their offsets; what it cannot say is not needed."""
    known: dict[int, KnownMember] = {}
    with contextlib.suppress(IndexFormatError, OSError):
        for row in index.rows():
            known[row.target_start] = KnownMember(row.name, row.crc, row.size)
    return known


def _collected(work: Iterator[Problem], take: Callable[[Problem], None]) -> Rebuilt:
    """Run a rebuild to its end."""
    while True:
        try:
            take(next(work))
        except StopIteration as end:
            rebuilt: Rebuilt = end.value
            return rebuilt


def _flat(archive: str) -> str:
    """Return the path of an archive as one file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", archive).lstrip(".-")[-128:] or "archive.zip"
