"""`rear fsck some.zip`: checks one archive anywhere, and rebuilds it beside the old one if told to.

Write order, so that at no instant there is less than before. A is the archive, N the new one.

    1. what does not get into N is put into the folder beside it, with notes, and synced
    2. N is written as A.<random>.new and synced
    3. N is read back, all of it, and compared with what was to be written (`rear.salvage.read_back`)
    4. --in-place: A gets a second name, A.damaged (a copy, where the file system has no hard links); folder synced
    5. N is renamed to A, or to the name that --output gave; folder synced

A crash before 5 leaves A as it was, and perhaps files that end in ``.new``.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Generator, Iterator, Set
from dataclasses import asdict, replace
from itertools import chain, count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from rear.core.layout import find_base
from rear.core.names import STATE
from rear.core.parallel import Parallel
from rear.core.problems import Outcome, Problem
from rear.core.storage import LOCAL, Storage, StrPath, opened
from rear.errors import NotAZipError, RearError, UnsupportedError, UsageError
from rear.events import Advanced
from rear.fsck.inspection import inspect, inspect_steps
from rear.read.view import directory_of, open_committed
from rear.salvage import info_zip
from rear.salvage.read_back import why_wrong
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


def check_archive_file(
    path: StrPath, *, deep: bool = False, output: StrPath | None = None, in_place: bool = False,
    executor: Executor | None = None, storage: Storage = LOCAL,
) -> Iterator[Problem]:  # fmt: skip
    """Check one archive, and rebuild it if told to; yield problems with what became of each.

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
    steps = check_archive_steps(path, deep=deep, output=output, in_place=in_place, executor=executor, storage=storage)
    return (step for step in steps if isinstance(step, Problem))


def check_archive_steps(
    path: StrPath, *, deep: bool = False, output: StrPath | None = None, in_place: bool = False,
    executor: Executor | None = None, storage: Storage = LOCAL,
) -> Iterator[Problem | Advanced]:  # fmt: skip
    """Do what `check_archive_file` does, and say now and then how far it is."""
    given, path = os.fspath(path), os.path.realpath(path)
    if output is None and not in_place:
        return _report(given, path, deep, Parallel(executor, storage=storage), storage)
    if output is not None and in_place:
        raise UsageError("an archive is written anew in its place or under another name, not both")
    if in_place:
        base = _base_of(given) or _base_of(path)
        if base is not None:
            raise UsageError(f"{given} belongs to the base {base}: rear fsck {base} repairs it; nothing was changed")
    target = path if output is None else os.path.abspath(output)
    if output is not None and os.path.lexists(target):
        raise UsageError(f"{os.fspath(output)} exists; name a new file, nothing was changed")
    return _Repair(given, path, target, deep, Parallel(executor, storage=storage), storage).problems()


def _base_of(path: str) -> Path | None:
    """Return the base that a final archive, or a file among rear's own, belongs to."""
    for folder in Path(os.path.abspath(path)).parents:
        if folder.name == STATE:
            return folder.parent
    found = find_base(path)
    return None if found is None else found[0].base


# ---- report only


def _report(given: str, path: str, deep: bool, parallel: Parallel, storage: Storage) -> Iterator[Problem | Advanced]:
    try:
        directory_of(path, storage=storage)
    except NotAZipError as error:
        with _Held() as held:
            try:
                with opened(path, storage) as descriptor:
                    scanned = rebuild(descriptor, target=None, keep_aside=None, subject=given, storage=storage)
                    rebuilt = held.take(scanned)
            except UnsupportedError as volume:
                yield Problem("archive-split", given, str(volume), "left")
                return
            yield _no_directory(given, path, error, rebuilt)
            yield from held.problems()
    except UnsupportedError:
        yield from inspect(path, subject=given, storage=storage)
    else:
        yield from inspect_steps(path, deep=deep, subject=given, parallel=parallel, storage=storage)


def _no_directory(given: str, path: str, error: Exception, rebuilt: Rebuilt) -> Problem:
    reason = str(error).removeprefix(f"{path}: ")
    if not rebuilt.members and not rebuilt.damaged:
        return Problem("archive-not-a-zip", given, f"{reason}; and no member was found in it", "left")
    found = f"{rebuilt.members:,} whole members were found" + f", {rebuilt.damaged:,} damaged ones" * (
        rebuilt.damaged > 0
    )
    outcome: Outcome = "would repair" if rebuilt.members else "left"
    return Problem("archive-directory-damaged", given, f"{reason}; {found}", outcome)


class _Held:
    """Problems that are not told before it is certain what became of them; spooled, since they may be very many."""

    def __enter__(self) -> _Held:
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

    def take(self, problems: Generator[Problem, None, Rebuilt]) -> Rebuilt:
        """Add all problems of a rebuild, and return what came of it."""
        while True:
            try:
                self.add(next(problems))
            except StopIteration as end:
                rebuilt: Rebuilt = end.value
                return rebuilt

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


# ---- repair


class _Repair:
    """One archive that is to be written anew.

    Args:
        given: its path as the user knows it.
        path: the same without links.
        target: what the new one is to be called.
        deep: read all members first.
        parallel: the executor that reads them.
        storage: the file system.
    """

    def __init__(self, given: str, path: str, target: str, deep: bool, parallel: Parallel, storage: Storage) -> None:
        self._given = given
        self._path = path
        self._target = target
        self._deep = deep
        self._parallel = parallel
        self._storage = storage
        folder = Path(_free_name(f"{target}.lost+found", storage))
        self._aside = LostAndFound(folder, folder.parent, storage=storage)
        #: What is wrong with the new archive.
        self._wrong: str | None = None

    @property
    def _is_in_place(self) -> bool:
        return self._target == self._path

    def problems(self) -> Iterator[Problem | Advanced]:
        with _Held() as inspected, _Held() as rebuilding:
            yield Advanced("reading", self._given)
            try:
                reason = self._inspect(inspected)
            except UnsupportedError:
                yield from inspect(self._path, subject=self._given, storage=self._storage)
                return
            if self._is_in_place and reason is None and not inspected.is_rebuild_needed:
                yield from inspected.problems()
                return
            yield Advanced("rebuilding", self._given)
            try:
                verdict = self._rebuild(reason, rebuilding)
            except UnsupportedError as volume:
                yield Problem("archive-split", self._given, str(volume), "left")
                return
            except (RearError, OSError):
                yield from inspected.problems()
                raise
            done: Outcome = "left" if verdict.outcome == "left" else "repaired"
            if reason is not None or verdict.outcome == "left":
                yield verdict
            yield from inspected.problems(done, but=rebuilding.offsets)
            yield from rebuilding.problems(done)

    def _inspect(self, held: _Held) -> NotAZipError | None:
        """Check the archive as it is; return why it has no directory, if so."""
        try:
            with open_committed(self._path, storage=self._storage) as archive:
                self._check_settled(archive)
                for problem in inspect(
                    archive, deep=self._deep, subject=self._given, parallel=self._parallel, storage=self._storage
                ):
                    held.add(problem)
        except NotAZipError as error:
            return error
        return None

    def _check_settled(self, archive: Archive) -> None:
        """Refuse an archive that a merge has begun to write to: what is shown of it stands in the merge's intent."""
        try:
            settled = locate(archive.descriptor, storage=self._storage) == archive.directory
        except NotAZipError:
            settled = False
        if not settled:
            raise RearError(f"a merge into {self._given} is under way, or has died: run rear scavenge first")

    def _rebuild(self, reason: NotAZipError | None, held: _Held) -> Problem:
        """Write the new archive and put it in its place; return what came of it."""
        storage, fresh = self._storage, f"{self._target}.{secrets.token_hex(6)}.new"
        source = storage.open(self._path)
        try:
            before = _state(os.fstat(source))
            target = storage.create(fresh)
            try:
                storage.copy_owner_and_mode(source, target)
                rebuilt, by_zip = self._write(source, target, fresh, reason, held)
            finally:
                storage.close(target)
            verdict = self._verdict(rebuilt, reason, by_zip)
            if verdict.outcome != "left":
                if _state(os.stat(self._path)) != before:
                    raise RearError(f"{self._given} was changed by another program meanwhile; nothing was changed here")
                self._publish(fresh, source)
            return verdict
        finally:
            storage.close(source)
            if os.path.basename(fresh) in storage.names(os.path.dirname(fresh)):
                storage.unlink(fresh)

    def _write(
        self, source: int, target: int, fresh: str, reason: NotAZipError | None, held: _Held
    ) -> tuple[Rebuilt, str]:
        """Write the members to the target; return what came of it, and what `zip -FF` had to do with it."""
        rebuilt = self._rebuild_from(source, target, fresh, held)
        if rebuilt.members or rebuilt.damaged or reason is None or not self._storage.size(source):
            return rebuilt, ""
        try:
            fixed = info_zip.fix(self._path, os.path.dirname(self._target), storage=self._storage)
        except UnsupportedError as error:
            return rebuilt, str(error)
        if fixed is None:
            return rebuilt, "zip -FF made nothing of it"
        try:
            with opened(fixed, self._storage) as descriptor:
                rebuilt = self._rebuild_from(descriptor, target, fresh, held)
        finally:
            self._storage.unlink(fixed)
        return rebuilt, "zip -FF found members" if rebuilt.members else "zip -FF found none either"

    def _rebuild_from(self, source: int, target: int, fresh: str, held: _Held) -> Rebuilt:
        """Write the members of an open archive to the target, sync it and read it back."""
        storage = self._storage
        rebuilt = held.take(
            rebuild(source, target=target, keep_aside=self._aside, subject=self._given, storage=storage)
        )
        storage.sync(target)
        self._wrong = why_wrong(fresh, rebuilt.written, source=source, storage=storage) if rebuilt.members else None
        return rebuilt

    def _verdict(self, rebuilt: Rebuilt, reason: NotAZipError | None, by_zip: str) -> Problem:
        """Return what is to be told of the old archive."""
        if reason is not None and not rebuilt.members:
            problem = _no_directory(self._given, self._path, reason, rebuilt)
            return replace(problem, detail=f"{problem.detail}; {by_zip}") if by_zip else problem
        if self._wrong is not None:
            detail = f"the new archive did not pass its check ({self._wrong}), so nothing was changed"
            return Problem("refused", self._given, detail, "left")
        if reason is None:
            return Problem("archive-directory-damaged", self._given, "", "repaired")
        if by_zip:
            detail = f"{by_zip}: {rebuilt.members:,}, and all of them passed every check"
            return Problem("archive-repaired-by-zip", self._given, detail, "repaired")
        return replace(_no_directory(self._given, self._path, reason, rebuilt), outcome="repaired")

    def _publish(self, fresh: str, source: int) -> None:
        folder = os.path.dirname(self._target)
        if self._is_in_place:
            self._keep_old(source, folder)
        elif os.path.basename(self._target) in self._storage.names(folder):
            raise UsageError(f"{self._target} has been made by another program meanwhile; nothing was changed")
        self._storage.rename(fresh, self._target)
        self._storage.sync_directory(folder)

    def _keep_old(self, source: int, folder: str) -> None:
        """Give the old archive a second name, so that it outlives the rename over its first one."""
        storage = self._storage
        kept = _free_name(f"{self._path}.damaged", storage)
        if not storage.link(self._path, kept):
            copy = f"{kept}.{secrets.token_hex(6)}.new"
            target = storage.create(copy)
            try:
                storage.copy_owner_and_mode(source, target)
                length = storage.size(source)
                storage.copy_range(source, target, source_start=0, target_start=0, length=length)
                storage.sync(target)
            finally:
                storage.close(target)
            storage.rename(copy, kept)
        storage.sync_directory(folder)


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _free_name(path: str, storage: Storage) -> str:
    """Return ``path``, or with a number behind it where it is taken."""
    taken = set(storage.names(os.path.dirname(path)))
    names = chain([path], (f"{path}-{number}" for number in count(1)))
    return next(name for name in names if os.path.basename(name) not in taken)
