"""One archive anywhere, checked and, if that is asked for, written anew: `rear fsck some.zip`.

The order of writes stands in `rear.fsck.rebuilt_archive`. Here the new archive is built as ``<name>.<random>.new``
beside the place that it is to have; what does not get into it goes to the folder ``<name>.lost+found`` there. With
``--in-place`` the old one is kept as ``<name>.damaged``.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Set
from dataclasses import asdict, replace
from itertools import chain, count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from rear.core.layout import find_base
from rear.core.names import STATE
from rear.core.parallel import Parallel
from rear.core.problems import Outcome, Problem
from rear.core.storage import FRESH_SUFFIX, LOCAL, Storage, StrPath, created, opened
from rear.errors import NotAZipError, RearError, UnsupportedError, UsageError
from rear.events import Advanced
from rear.fsck.inspection import inspect, inspect_steps, without_path
from rear.fsck.rebuilt_archive import RebuiltArchive, run_rebuild
from rear.read.view import directory_of, open_committed
from rear.salvage.rebuild import Rebuilt, rebuild
from rear.scavenger.lost_and_found import LostAndFound
from rear.zip.archive import Archive
from rear.zip.directory import locate

if TYPE_CHECKING:
    from concurrent.futures import Executor

#: What a rebuild looks at again; its word counts then.
_TOLD_BY_REBUILD: Final = frozenset(
    {"archive-gap", "member-data-damaged", "member-header-differs", "member-header-missing", "member-overlap"}
)
_HOPES: Final = frozenset({"would repair", "repaired"})


def check_archive_steps(
    path: StrPath,
    *,
    deep: bool = False,
    output: StrPath | None = None,
    in_place: bool = False,
    executor: Executor | None = None,
    storage: Storage = LOCAL,
) -> Iterator[Problem | Advanced]:
    """Check one archive, and rebuild it if told to; yield problems with what became of each, and how far it is.

    Args:
        path: the archive.
        deep: read every member, too.
        output: write the archive anew under this name, which must not be taken; the old one stays as it is.
        in_place: rebuild the archive if that mends it; the old one is kept as ``<name>.damaged``.
        executor: reads members with ``deep``, if there is one: see `rear.scavenge`.
        storage: the file system.

    Raises:
        UsageError: the archive belongs to a base, which only ``rear fsck BASE`` repairs; or the output exists.
        RearError: the archive cannot be worked on.
        OSError: it cannot be read, or the new one not be written; nothing was changed then.
    """
    given, path = os.fspath(path), os.path.realpath(path)
    check = _ArchiveCheck(given, path, deep, Parallel(executor, storage=storage), storage)
    if output is None and not in_place:
        return check.report()
    if output is not None and in_place:
        raise UsageError("an archive is written anew in its place or under another name, not both")
    if in_place:
        base = _base_of(given) or _base_of(path)
        if base is not None:
            raise UsageError(f"{given} belongs to the base {base}: rear fsck {base} repairs it; nothing was changed")
    target = path if output is None else os.path.abspath(output)
    if output is not None and os.path.lexists(target):
        raise UsageError(f"{os.fspath(output)} exists; name a new file, nothing was changed")
    folder = Path(_free_name(f"{target}.lost+found", storage))
    return check.repair(target, LostAndFound(folder, folder.parent, storage=storage))


def check_archive_file(path: StrPath, **options: Any) -> Iterator[Problem]:
    """Do what `check_archive_steps` does, but do not say how far it is."""
    return (step for step in check_archive_steps(path, **options) if isinstance(step, Problem))


def _base_of(path: str) -> Path | None:
    """Return the base that a final archive, or a file among rear's own, belongs to."""
    for folder in Path(os.path.abspath(path)).parents:
        if folder.name == STATE:
            return folder.parent
    found = find_base(path)
    return None if found is None else found[0].base


# ---- check


class _ArchiveCheck(NamedTuple):
    """One archive that is checked, and may be written anew: its path as ``given``, and ``path`` without links."""

    given: str
    path: str
    deep: bool
    parallel: Parallel
    storage: Storage

    def report(self) -> Iterator[Problem | Advanced]:
        """Check the archive, and tell what a repair would do."""
        try:
            directory_of(self.path, storage=self.storage)
        except NotAZipError as error:
            yield from self._report_without_directory(error)
            return
        except UnsupportedError:
            # An inspection says which.
            pass
        yield from inspect_steps(
            self.path, deep=self.deep, subject=self.given, parallel=self.parallel, storage=self.storage
        )

    def _report_without_directory(self, error: NotAZipError) -> Iterator[Problem]:
        with _HeldProblems() as held:
            try:
                with opened(self.path, self.storage) as descriptor:
                    work = rebuild(descriptor, target=None, keep_aside=None, subject=self.given, storage=self.storage)
                    rebuilt = run_rebuild(work, held.add)
            except UnsupportedError as volume:
                if volume.code != "volumes":
                    raise
                yield Problem("archive-split", self.given, str(volume), "left")
                return
            yield self._no_directory(error, rebuilt)
            yield from held.problems()

    def _inspect(self, held: _HeldProblems) -> NotAZipError | None:
        """Check the archive as it is; return why it has no directory, if so."""
        try:
            with open_committed(self.path, storage=self.storage) as archive:
                self._check_settled(archive)
                for problem in inspect(
                    archive, deep=self.deep, subject=self.given, parallel=self.parallel, storage=self.storage
                ):
                    held.add(problem)
        except NotAZipError as error:
            return error
        return None

    def _check_settled(self, archive: Archive) -> None:
        """Refuse an archive that a merge has begun to write to: what is shown of it stands in the merge's intent."""
        try:
            settled = locate(archive.descriptor, storage=self.storage) == archive.directory
        except NotAZipError:
            settled = False
        if not settled:
            raise RearError(f"a merge into {self.given} is under way, or has died: run rear scavenge first")

    def _no_directory(self, error: NotAZipError, rebuilt: Rebuilt) -> Problem:
        """Return the problem that the archive has no directory, and what was found in it."""
        reason = without_path(error, self.path)
        if not rebuilt.members and not rebuilt.damaged:
            return Problem("archive-not-a-zip", self.given, f"{reason}; and no member was found in it", "left")
        damaged = f", {rebuilt.damaged:,} damaged ones" if rebuilt.damaged else ""
        detail = f"{reason}; {rebuilt.members:,} whole members were found{damaged}"
        outcome: Outcome = "would repair" if rebuilt.members else "left"
        return Problem("archive-directory-damaged", self.given, detail, outcome)

    # ---- repair

    def repair(self, target: str, aside: LostAndFound) -> Iterator[Problem | Advanced]:
        """Check the archive, and write it anew as ``target`` if that mends it, or if it is another name.

        What does not get into the new one goes ``aside``.
        """
        with _HeldProblems() as inspected, _HeldProblems() as rebuilding:
            yield Advanced("reading", self.given)
            try:
                reason = self._inspect(inspected)
            except UnsupportedError:
                yield from inspect(self.path, subject=self.given, storage=self.storage)
                return
            if target == self.path and reason is None and not inspected.is_rebuild_needed:
                yield from inspected.problems()
                return
            yield Advanced("rebuilding", self.given)
            try:
                verdict = self._rebuild(target, aside, reason, rebuilding)
            except (RearError, OSError) as error:
                if isinstance(error, UnsupportedError) and error.code == "volumes":
                    yield Problem("archive-split", self.given, str(error), "left")
                    return
                yield from inspected.problems()
                raise
            done: Outcome = "left" if verdict.outcome == "left" else "repaired"
            if reason is not None or verdict.outcome == "left":
                yield verdict
            yield from inspected.problems(done, but=rebuilding.offsets)
            yield from rebuilding.problems(done)

    def _rebuild(self, target: str, aside: LostAndFound, reason: NotAZipError | None, held: _HeldProblems) -> Problem:
        """Write the new archive and put it in its place; return what came of it."""
        fresh = f"{target}.{secrets.token_hex(6)}{FRESH_SUFFIX}"
        with RebuiltArchive(self.path, fresh, subject=self.given, keep_aside=aside, storage=self.storage) as new:
            before = _state(os.fstat(new.original))
            rebuilt, by_zip = self._build(new, os.path.dirname(target), reason, held)
            verdict = self._verdict(rebuilt, reason, by_zip, new.wrong)
            if verdict.outcome != "left":
                if _state(os.stat(self.path)) != before:
                    raise RearError(f"{self.given} was changed by another program meanwhile; nothing was changed here")
                self._publish(new, target)
            return verdict

    def _build(
        self, new: RebuiltArchive, folder: str, reason: NotAZipError | None, held: _HeldProblems
    ) -> tuple[Rebuilt, str]:
        """Write the members; return what came of it, and what `zip -FF` had to do with it."""
        rebuilt = new.build(new.original, held.add)
        if rebuilt.members or rebuilt.damaged or reason is None or not self.storage.size(new.original):
            return rebuilt, ""
        fixed, lack = new.build_by_zip(folder, held.add)
        if fixed is None:
            return rebuilt, lack or "zip -FF made nothing of it"
        return fixed, "zip -FF found members" if fixed.members else "zip -FF found none either"

    def _verdict(self, rebuilt: Rebuilt, reason: NotAZipError | None, by_zip: str, wrong: str | None) -> Problem:
        """Return what is to be told of the old archive."""
        if reason is not None and not rebuilt.members:
            problem = self._no_directory(reason, rebuilt)
            return replace(problem, detail=f"{problem.detail}; {by_zip}") if by_zip else problem
        if wrong is not None:
            detail = f"the new archive did not pass its check ({wrong}), so nothing was changed"
            return Problem("refused", self.given, detail, "left")
        if reason is None:
            return Problem("archive-directory-damaged", self.given, "", "repaired")
        if by_zip:
            detail = f"{by_zip}: {rebuilt.members:,}, and all of them passed every check"
            return Problem("archive-repaired-by-zip", self.given, detail, "repaired")
        return replace(self._no_directory(reason, rebuilt), outcome="repaired")

    def _publish(self, new: RebuiltArchive, target: str) -> None:
        folder = os.path.dirname(target)
        if target == self.path:
            self._keep_old(new.original, folder)
        elif os.path.basename(target) in self.storage.names(folder):
            raise UsageError(f"{target} has been made by another program meanwhile; nothing was changed")
        new.install(target)

    def _keep_old(self, source: int, folder: str) -> None:
        """Give the old archive a second name, so that it outlives the rename over its first one."""
        storage = self.storage
        kept = _free_name(f"{self.path}.damaged", storage)
        if not storage.link(self.path, kept):
            copy = f"{kept}.{secrets.token_hex(6)}{FRESH_SUFFIX}"
            with created(copy, storage, mode=0o600) as target:
                storage.copy_owner_and_mode(source, target)
                length = storage.size(source)
                storage.copy_range(source, target, source_start=0, target_start=0, length=length)
                storage.sync(target)
            storage.rename(copy, kept)
        storage.sync_directory(folder)


class _HeldProblems:
    """Problems that are not told before it is certain what became of them; spooled, since they may be very many."""

    def __enter__(self) -> _HeldProblems:
        self._spool: IO[bytes] = tempfile.TemporaryFile(prefix="rear-")
        #: Where they are, if at one place.
        self.offsets: set[int] = set()
        self.is_rebuild_needed = False
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def add(self, problem: Problem) -> None:
        self._spool.write(json.dumps(asdict(problem)).encode() + b"\n")
        self.is_rebuild_needed |= problem.needs_rebuild
        if problem.offset is not None:
            self.offsets.add(problem.offset)

    def problems(self, would_repair: Outcome = "would repair", *, but: Set[int] = frozenset()) -> Iterator[Problem]:
        """Yield them, except those of members and gaps at the offsets ``but``.

        Args:
            would_repair: what has become of those that would be repaired.
            but: where something else has been told.
        """
        self._spool.seek(0)
        for line in self._spool:
            problem = Problem(**json.loads(line))
            if problem.offset in but and problem.code in _TOLD_BY_REBUILD:
                continue
            yield replace(problem, outcome=would_repair) if problem.outcome in _HOPES else problem


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _free_name(path: str, storage: Storage) -> str:
    """Return ``path``, or with a number behind it where it is taken."""
    taken = set(storage.names(os.path.dirname(path)))
    names = chain([path], (f"{path}-{number}" for number in count(1)))
    return next(name for name in names if os.path.basename(name) not in taken)
