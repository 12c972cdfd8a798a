"""Restores damaged final archives of a base, each from its own members; the damaged one is kept in lost+found.

The order of writes stands in `rear.fsck.rebuilt_archive`. Here the new archive is built among the intents, which the
next check clears of what a crash has left there, and in the end the index is made again.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

from rear.core.layout import Layout, check_inside
from rear.core.problems import Problem
from rear.core.storage import Storage
from rear.errors import IndexFormatError, UnfinishedIntentError, ZipFormatError
from rear.fsck.rebuilt_archive import RebuiltArchive
from rear.index.index import Index, rows_of
from rear.journal.intent import intents_of
from rear.read.view import open_committed
from rear.salvage.info_zip import scratch_folder
from rear.salvage.rebuilt_names import KnownMember
from rear.scavenger.leader import Leadership
from rear.scavenger.lost_and_found import LostAndFound
from rear.scavenger.recovery import fresh_path


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
        # The undo of a merge that waits for it would write the old end into the new archive.
        if intents_of(self._layout, archive, storage=self._storage):
            raise UnfinishedIntentError(f"a merge into {archive} could not be brought to an end; that comes first")
        fresh = fresh_path(self._layout.intent(archive, self._leadership.name))
        self._storage.make_directories(fresh.parent)
        known = _known(Index.open(self._layout, archive, storage=self._storage))
        problems: list[Problem] = []
        with RebuiltArchive(
            path,
            fresh,
            subject=archive,
            keep_aside=self._lost_and_found,
            known=known.get,
            item_prefix=f"{_flat(archive)}-",
            storage=self._storage,
        ) as new:
            members = new.build(new.original, problems.append).members
            if not members:
                problems, members = self._build_by_zip(archive, new)
            if not members:
                return [*problems, Problem("archive-not-a-zip", archive, reason, "left")]
            if new.wrong is not None:
                raise ZipFormatError(f"the rebuilt archive is not sound: {new.wrong}; the old one stays as it is")
            item = self._lost_and_found.put_copy(_flat(archive), path, {"archive": archive, "reason": reason})
            self._leadership.prove()
            new.install(path)
        done = [replace(problem, outcome="repaired", lost_and_found=item) for problem in mendable]
        return done + problems + self._missing(archive, known, problems)

    def _build_by_zip(self, archive: str, new: RebuiltArchive) -> tuple[list[Problem], int]:
        problems: list[Problem] = []
        with scratch_folder() as folder:
            rebuilt, lack = new.build_by_zip(folder, problems.append)
        if rebuilt is None:
            return [Problem("archive-not-a-zip", archive, lack or "zip -FF made nothing of it either", "noted")], 0
        if rebuilt.members:
            detail = f"zip -FF found {rebuilt.members:,} members that pass all checks"
            problems.append(Problem("archive-repaired-by-zip", archive, detail, "repaired"))
        return problems, rebuilt.members

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


def _flat(archive: str) -> str:
    """Return the path of an archive as one file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", archive).lstrip(".-")[-128:] or "archive.zip"
