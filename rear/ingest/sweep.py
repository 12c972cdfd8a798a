"""A sweep of a folder: files that no index knows go to a final archive, and those whose bytes are there may go.

A sweep is a worker and a scavenger in one. It copies files to temp archives like a pickup, has them merged, and only
then looks whether it may delete: see `rear.ingest.source_removal`. Whenever it stops, the next sweep goes on from what
is on disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Final

from rear.core.escaped_names import escape_name, member_folder, member_name
from rear.core.folder_tree import REPLACED
from rear.core.layout import Layout, check_place, without_links
from rear.core.names import Target
from rear.core.records import recorded_time_ns
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import PathError, SourceError
from rear.events import Collected, Event, Refused, SourceDeleted, SourceLeft, SweepStarted, Swept
from rear.ingest.held_members import HeldMember, SourceIndex, key_of
from rear.ingest.merging import Merging, base_to_fill, check_seconds
from rear.ingest.source_removal import CHANGED, remove
from rear.ingest.source_tree import SourceEntry, SourceTree
from rear.scavenger.options import ScavengeOptions, options_for
from rear.worker.worker import Worker
from rear.zip.codecs import method_of
from rear.zip.payload import payload_of_source

BATCH_FILES: Final = 20_000
"""So many files are looked up, archived, merged and deleted at once."""
BATCH_BYTES: Final = 16 << 30
"""Or files of so many bytes: a sweep needs this much room for temp archives."""
_SPOOL_BYTES: Final = 8 << 20
_OTHERS_WRITE: Final = "others are still writing what they have taken from this folder"


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """How to sweep; see `sweep` for the meaning of each."""

    older_than_seconds: float = 0.0
    delete: bool = False
    dry_run: bool = False
    wait_seconds: float = 60.0
    select: Callable[[str], bool] | None = None
    escape_names: bool = False
    one_file_system: bool = False

    def __post_init__(self) -> None:
        check_seconds("older_than_seconds", self.older_than_seconds)
        check_seconds("wait_seconds", self.wait_seconds)


@dataclass(slots=True)
class _Totals:
    """What a sweep has counted, by the names that `Swept` has for it."""

    files: int = 0
    archived: int = 0
    size_bytes: int = 0
    there_already: int = 0
    deleted: int = 0
    pending: int = 0
    left_alone: int = 0
    refused: int = 0

    def add_event(self, event: Event) -> None:
        self.left_alone += isinstance(event, SourceLeft)
        self.refused += isinstance(event, Refused)
        self.deleted += isinstance(event, SourceDeleted)

    def add_archived(self, source: SourceEntry) -> None:
        self.archived += 1
        self.size_bytes += source.stamp.size


def sweep(
    directory: StrPath,
    into: StrPath,
    *,
    base: StrPath,
    older_than_seconds: float = 0.0,
    delete: bool = False,
    dry_run: bool = False,
    wait_seconds: float = 60.0,
    select: Callable[[str], bool] | None = None,
    verify: bool | None = None,
    max_size: int | None = None,
    max_members: int | None = None,
    escape_names: bool = False,
    one_file_system: bool = False,
    storage: Storage = LOCAL,
) -> Iterator[Event]:
    """Archive the files below a directory that the index of a final archive does not know, and yield what happens.

    A file is known by its path, size and mtime, or by its very bytes in the member that it would become. Files are
    archived like pickups, with mtime and mode, and merged by a scavenge of the base. Nothing happens before the first
    event is asked for; the last one is `Swept`. What needs attention comes as `Refused`.

    Args:
        directory: what is below it is swept; symbolic links, FIFOs, sockets and devices are left alone, as is any base.
        into: ``ar.zip`` or ``ar.zip/prefix``, relative to the base.
        base: directory on the shared file system; made when the first file is archived.
        older_than_seconds: files whose mtime is younger are left for a later sweep.
        delete: remove each file whose bytes, read back from the committed archive, are those that it has now.
        dry_run: only say what would be archived; nothing is changed.
        wait_seconds: how long to wait, all in all, for other scavengers to merge or to let this one do it.
        select: called with each file's path below ``directory``; only those for which it is true are looked at.
        verify: as for `rear.scavenge`.
        max_size: as for `rear.scavenge`.
        max_members: as for `rear.scavenge`.
        escape_names: archive what no name can hold (a control character, a backslash, a byte that is no UTF-8) as
            ``%0A``, in ``into`` too: see `rear.escape_name`.
        one_file_system: leave out what is mounted below ``directory``.
        storage: the file system.

    Raises:
        PathError: ``into`` names no archive, or leaves the base.
        UsageError: an option has a value that cannot be used; or the directory is a base, or lies in its state.
        BaseError: the base is no directory.
        NotArchivedError: files could not be brought to stable storage; all sources are in place.
        OSError: the directory cannot be read, or the base cannot be written.
    """
    target = member_folder(into, escape=escape_names)
    options = SweepOptions(older_than_seconds, delete, dry_run, wait_seconds, select, escape_names, one_file_system)
    layout = base_to_fill(base)
    target = Target(without_links(layout, target.archive), target.name)
    check_place(layout, target.archive)
    merging = options_for(layout, verify=verify, max_size=max_size, max_members=max_members, storage=storage)
    return _Sweep(directory, target, layout, options, merging, storage).events()


class _Sweep:
    """The steps of one sweep."""

    def __init__(
        self,
        directory: StrPath,
        target: Target,
        layout: Layout,
        options: SweepOptions,
        merging: ScavengeOptions,
        storage: Storage,
    ) -> None:
        self._directory = directory
        self._target = target
        self._layout = layout
        self._options = options
        self._merging = Merging(layout, merging, options.wait_seconds, storage=storage)
        self._storage = storage
        self._index = SourceIndex(layout, target.archive, self._name_of, storage=storage)
        self._method = method_of("deflate")
        self._totals = _Totals()

    def _name_of(self, source: SourceEntry) -> str:
        # Of those that `_why_not` has let pass.
        return self._target.name + (escape_name(source.relative) if self._options.escape_names else source.relative)

    def events(self) -> Iterator[Event]:
        with SourceTree(
            self._directory,
            self._layout,
            one_file_system=self._options.one_file_system,
            storage=self._storage,
        ) as tree:
            for event in self._run(tree):
                self._totals.add_event(event)
                yield event
            yield Swept(tree.root, self._target.archive, **asdict(self._totals))

    def _run(self, tree: SourceTree) -> Iterator[Event]:
        yield SweepStarted(str(self._layout.base), tree.root, self._target.archive, self._target.name.rstrip("/"))
        if not self._options.dry_run:
            # What an earlier sweep had archived when it died is merged first, so that it is not archived again.
            yield from self._merging.once()
        batch: list[SourceEntry] = []
        size_bytes = 0
        for found in tree.walk():
            if isinstance(found, Event):
                yield found
                continue
            if self._options.select is not None and not self._options.select(found.relative):
                continue
            self._totals.files += 1
            problem = self._why_not(found)
            if problem is not None:
                yield problem
                continue
            batch.append(found)
            size_bytes += found.stamp.size
            if len(batch) >= BATCH_FILES or size_bytes >= BATCH_BYTES:
                yield from self._sweep(batch, tree)
                batch, size_bytes = [], 0
        if batch:
            yield from self._sweep(batch, tree)

    def _why_not(self, source: SourceEntry) -> Event | None:
        limit = self._options.older_than_seconds
        if limit and time.time() - source.stamp.mtime_ns / 1e9 < limit:
            return SourceLeft(source.path, f"changed less than {limit:g} s ago")
        try:
            member_name(source.relative, escape=self._options.escape_names, prefix=self._target.name)
        except PathError as error:
            return Refused(source.path, f"it cannot become a member: {error}; left as it is")
        return None

    def _sweep(self, batch: list[SourceEntry], tree: SourceTree) -> Iterator[Event]:
        # In the order in which a merge moves them: what is on its way now is found there, or in the archive.
        waiting = self._on_their_way(batch, tree)
        held = self._index.find(batch, tree)
        self._totals.there_already += len(held)
        missing = [source for source in batch if source not in held]
        waiting.intersection_update(missing)
        new = [source for source in missing if source not in waiting]
        if self._options.dry_run:
            for source in new:
                self._totals.add_archived(source)
                yield self._collected(source)
            self._totals.pending += len(waiting)
            return
        expected = sorted(waiting)
        for event in self._collect(new, tree):
            if isinstance(event, SourceEntry):
                expected.append(event)
                yield self._collected(event)
            else:
                yield event
        if expected:
            merged = yield from self._merge(expected, tree)
            for source in merged:
                self._totals.add_archived(source)
            held |= merged
        if self._options.delete:
            yield from remove(held, self._index, tree, storage=self._storage)

    def _collected(self, source: SourceEntry) -> Collected:
        return Collected(source.path, self._target.archive, self._name_of(source), source.stamp.size)

    # ---- to a temp archive

    def _collect(self, sources: list[SourceEntry], tree: SourceTree) -> Iterator[SourceEntry | Event]:
        """Copy files to temp archives of this process; yield those that are acknowledged, and why others are not.

        Raises:
            OSError: the base cannot be written.
            NotArchivedError: as for `RearFs.close`.
        """
        if not sources:
            return
        worker = Worker(self._layout, storage=self._storage)
        with closing(worker):
            for source in sources:
                problem = self._collect_one(worker, source, tree)
                if problem is None:
                    yield source
                elif os.path.lexists(source.path):
                    yield problem

    def _collect_one(self, worker: Worker, source: SourceEntry, tree: SourceTree) -> Event | None:
        """Archive one file, or say why not."""
        try:
            payload, stamp = payload_of_source(
                source.path, self._method, _SPOOL_BYTES, folder=tree.folder_of(source), expected=source.stamp
            )
        except SourceError:
            return SourceLeft(source.path, CHANGED)
        except OSError as error:
            if error.errno in REPLACED:
                return SourceLeft(source.path, CHANGED)
            return Refused(source.path, f"it cannot be read: {error.strerror}; left as it is")
        target = Target(self._target.archive, self._name_of(source))
        try:
            worker.append(
                target, payload, mtime_ns=recorded_time_ns(stamp.mtime_ns), mode=stamp.mode, source=source.path
            )
        except SourceError:
            return SourceLeft(source.path, CHANGED)
        except OSError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.filename == source.path:
                return Refused(source.path, f"it cannot be read: {cause.strerror}; left as it is")
            raise
        return None

    # ---- to the final archive

    def _merge(
        self, collected: list[SourceEntry], tree: SourceTree
    ) -> Generator[Event, None, dict[SourceEntry, HeldMember]]:
        """Have files merged, and return where they are; say so where others have not let that happen in time."""
        merged: dict[SourceEntry, HeldMember] = {}
        missing, waiting = collected, set(collected)

        def look(situation: str) -> str:
            nonlocal missing, waiting
            waiting = self._on_their_way(missing, tree)
            merged.update(self._index.find(missing, tree))
            missing = [source for source in missing if source not in merged]
            waiting.intersection_update(missing)
            # Another sweep may have had the same files merged while what this one wrote of them is still in the inbox.
            is_done = not waiting and (not situation or not self._on_their_way(collected, tree))
            return "" if is_done else situation or _OTHERS_WRITE

        reason = yield from self._merging.until(look)
        if waiting:
            self._totals.pending += len(waiting)
            yield Refused(
                self._target.archive,
                f"{len(waiting):,} files of {tree.root} are kept in temp archives, but not merged yet: {reason}; "
                "the files stay where they are, and a later sweep goes on",
            )
        for source in missing:
            if source not in waiting and os.path.lexists(source.path):
                yield Refused(
                    source.path, f"it was archived, but is not in {self._target.archive}: see lost+found; left in place"
                )
        return merged

    def _on_their_way(self, sources: list[SourceEntry], tree: SourceTree) -> set[SourceEntry]:
        """Return those files that are in temp archives, of whomever."""
        if not sources:
            return set()
        keys = self._index.pending(f"{tree.root.rstrip('/')}/")
        return {source for source in sources if hash(key_of(source)) in keys}
