"""A check of a base, `rear fsck BASE`: a scavenge, then each final archive, each index, and what belongs to nothing.

It yields typed problems, each with what became of it, and the events of the scavenge. Nothing is removed that is not
proven to be elsewhere: a damaged archive and everything that cannot be placed stays in lost+found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from rear.core.layout import Layout, check_owner, has_state, layout_of, look_anew
from rear.core.liveness import Liveness
from rear.core.names import STATE, check_archive
from rear.core.parallel import Parallel
from rear.core.problems import Outcome, Problem
from rear.core.storage import LOCAL, Storage, StrPath, opened
from rear.errors import FormatError, IndexFormatError, PathError, UnsupportedError, ZipFormatError
from rear.events import Advanced, Checked, Event, NothingYet, Phase
from rear.fsck.event_problems import guarded, problem_of
from rear.fsck.inspection import inspect_steps
from rear.fsck.restore import Restoration
from rear.fsck.strays import find_strays
from rear.fsck.unfinished_work import UnfinishedWork
from rear.index.index import Index, IndexRow, rows_of
from rear.index.segment import INTEGER_LIMIT
from rear.read.archive_tree import ArchiveTree
from rear.read.view import open_committed
from rear.salvage.scan import scan
from rear.salvage.scan_result import Found
from rear.scavenger.leader import Leadership, is_led
from rear.scavenger.lost_and_found import LostAndFound, lost_and_found_of
from rear.scavenger.options import options_for
from rear.scavenger.refusals import unusable_parts
from rear.scavenger.report import Report, report_refused
from rear.scavenger.scavenge import Scavenge

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rear.zip.archive import Archive
    from rear.zip.directory import Directory
    from rear.zip.headers import CentralEntry


def fsck(
    base: StrPath,
    *,
    report_only: bool = False,
    deep: bool = False,
    assume_dead: Sequence[str] = (),
    executor: Executor | None = None,
    storage: Storage = LOCAL,
) -> Iterator[Event]:
    """Check a base and repair what can be repaired without losing anything; yield problems and what happens.

    Nothing happens before the first event is asked for; the last one is `Checked`. What a live worker owns is never
    touched.

    Args:
        base: directory on the shared file system.
        report_only: change nothing; problems say what would be repaired.
        deep: read and decode every member of every final archive.
        assume_dead: as for `rear.scavenge`.
        executor: as for `rear.scavenge`; with ``deep`` it also reads the final archives.
        storage: the file system.

    Raises:
        BaseError: there is no such base.
        NotLeaderError: a scavenger is at work; nothing was done. With ``report_only`` it does not matter.
        OSError: the base cannot be read, or not be written.
    """
    return _run(layout_of(base), report_only, deep, Liveness(assume_dead), executor, storage)


def _run(
    layout: Layout, report_only: bool, deep: bool, liveness: Liveness, executor: Executor | None, storage: Storage
) -> Iterator[Event]:
    is_used = has_state(layout)
    if not is_used:
        yield NothingYet(str(layout.base))
    with ExitStack() as stack:
        leadership = None
        if is_used and not report_only:
            leadership = stack.enter_context(Leadership(layout, liveness=liveness, storage=storage))
        report = Report()
        check = _Check(layout, leadership, deep, liveness, executor, storage)
        for event in check.events():
            report.add(event)
            yield event
        done = Checked(str(layout.base), check.archives, check.members, None)
        if leadership is not None:
            try:
                done = replace(done, report=report.write(layout, leadership.name, done.as_json(), storage=storage))
            except OSError as error:
                refused = report_refused(error)
                yield problem_of(refused) or refused
        yield done


@dataclass(slots=True)
class _Check:
    """One check of a base; without ``leadership`` of this process nothing is changed."""

    layout: Layout
    leadership: Leadership | None
    deep: bool
    liveness: Liveness
    executor: Executor | None
    storage: Storage
    archives: int = 0
    members: int = 0
    refused: set[tuple[str, str]] = field(default_factory=set)
    parallel: Parallel = field(init=False)
    lost_and_found: LostAndFound = field(init=False)

    def __post_init__(self) -> None:
        self.parallel = Parallel(self.executor, storage=self.storage)
        self.lost_and_found = lost_and_found_of(self.layout, storage=self.storage)

    def events(self) -> Iterator[Event]:
        """Check everything, and yield what is found and done."""
        unfinished = UnfinishedWork(self.layout, self.liveness, storage=self.storage)
        if self.leadership is None:
            yield Advanced("checking")
            yield from self._as_problems(unusable_parts(self.layout, storage=self.storage))
            yield from unfinished.temp_archives()
            # What a scavenger is doing right now is no problem.
            outcome: Outcome = "noted" if self._is_led() else "would repair"
            yield from unfinished.claims(outcome)
            yield from unfinished.intents(outcome)
            yield from self._each_archive("inspecting", self._check_archive)
        else:
            yield from unfinished.settle_intents(self.leadership, self.lost_and_found)
            options = options_for(self.layout, verify=self.deep or None, executor=self.executor, storage=self.storage)
            scavenge = Scavenge(self.layout, options, self.leadership, self.liveness, self.storage)
            yield from self._as_problems(scavenge.recover())
            # An archive that is rebuilt now takes what waits for it.
            yield from self._each_archive("inspecting", self._check_archive)
            yield from self._as_problems(scavenge.merge())
        yield from self._each_archive("comparing", self._check_index)
        yield Advanced("tidying")
        yield from find_strays(self.layout, repair=self.leadership is not None, storage=self.storage)

    def _is_led(self) -> bool:
        with suppress(OSError):
            return is_led(self.layout, storage=self.storage)
        # Whose lock nobody else may read works, or has worked: not to be told of as dead.
        return True

    def _as_problems(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            yield problem_of(event) or event

    # ---- final archives

    def _each_archive(self, phase: Phase, check: Callable[[str], Iterator[Event]]) -> Iterator[Event]:
        archives = []
        tree = ArchiveTree(self.layout.base, any_kind=True)
        shut: list[OSError] = []
        for archive in tree:
            try:
                check_archive(archive)
                check_owner(self.layout, self.layout.archive(archive))
                archives.append(archive)
            except PathError:
                pass
            except OSError as error:
                shut.append(OSError(error.errno, error.strerror, self.layout.archive(archive)))
        for failure in (*tree.errors, *shut) if phase == "inspecting" else ():
            folder = os.path.relpath(os.fsdecode(failure.filename), self.layout.base)
            yield Problem("refused", folder, f"archives below it cannot be checked: {failure.strerror}", "left")
        for number, archive in enumerate(archives):
            yield Advanced(phase, archive, number, len(archives))
            for event in guarded(archive, check(archive)):
                if isinstance(event, Problem) and event.code == "refused":
                    # What is refused both times is one thing.
                    said = event.subject, event.detail
                    if said in self.refused:
                        continue
                    self.refused.add(said)
                yield event

    def _check_archive(self, archive: str) -> Iterator[Event]:
        self.archives += 1
        mendable = []
        path = self.layout.archive(archive)
        look_anew(path, storage=self.storage)
        for found in inspect_steps(path, deep=self.deep, subject=archive, parallel=self.parallel, storage=self.storage):
            if isinstance(found, Problem) and found.outcome == "would repair":
                mendable.append(found)
            else:
                yield found
        if mendable and not self._is_ours(archive):
            # Another one in the base may be somebody's who is just writing it.
            for problem in mendable:
                detail = f"{problem.detail}; not rear's: mend it by rear fsck --output or --in-place, with its path"
                yield replace(problem, outcome="left", detail=detail)
        elif mendable and self.leadership is not None:
            yield Advanced("rebuilding", archive)
            restoration = Restoration(self.layout, self.leadership, self.lost_and_found, storage=self.storage)
            yield from restoration.restore(archive, mendable)
        else:
            yield from mendable

    # ---- indexes

    def _check_index(self, archive: str) -> Iterator[Event]:
        look_anew(self.layout.archive(archive), storage=self.storage)
        try:
            found = open_committed(self.layout.archive(archive), storage=self.storage)
        except (FormatError, UnsupportedError):
            # That was said when the archive itself was checked.
            return
        with found:
            index = Index.open(self.layout, archive, storage=self.storage)
            entries = found.directory.entries
            self.members += entries
            is_current = index.matches(found.fingerprint, entries)
            damage = index.problems[0] if index.problems else _damage_of(index, found if is_current else None)
            if damage is None and is_current:
                return
            if damage is None and not index.segments and not self._is_ours(archive):
                return
            code = "index-damaged" if damage else "index-outdated" if index.segments else "index-missing"
            outcome: Outcome = "would repair"
            if self.leadership is not None:
                index.rebuild(rows_of(found), found.fingerprint)
                outcome = "repaired"
        detail = damage or f"the archive has {entries:,} members"
        yield Problem(code, f"{STATE}/index/{archive}", detail, outcome)

    def _is_ours(self, archive: str) -> bool:
        if Index.open(self.layout, archive, storage=self.storage).segments:
            return True
        with opened(self.layout.archive(archive), self.storage) as descriptor:
            return any(
                item.origin is not None
                for item in scan(descriptor, read_data=False, storage=self.storage)
                if isinstance(item, Found)
            )


def _damage_of(index: Index, archive: Archive | None) -> str | None:
    """Read all rows of an index; tell what is wrong with them, or how the archive that it mirrors differs from them."""
    try:
        for row, entry in zip_longest(index.rows(), () if archive is None else archive.entries()):
            if archive is not None and not (row and entry and _is_of(row, entry, archive.directory)):
                name = (row or entry).name
                return f"what it says of {name!r:.300} is not what the directory of the archive says"
    except IndexFormatError as error:
        return str(error)
    except ZipFormatError:
        # That was said when the archive itself was checked.
        pass
    return None


def _is_of(row: IndexRow, entry: CentralEntry, directory: Directory) -> bool:
    start = directory.prefix + entry.offset
    said = row.name, row.target_start, row.size, row.compressed_size, row.method, row.crc
    numbers = (min(number, INTEGER_LIMIT) for number in (start, entry.size, entry.compressed_size))
    ends_right = row.target_end is None or row.target_end <= max(directory.offset, row.target_start)
    return said == (entry.name, *numbers, entry.method, entry.crc) and ends_right
