"""One sweep of a folder: files that no index knows go to a final archive, and those whose bytes are there may go.

A sweep is a worker and a scavenger in one. It copies files to temp archives like a pickup, has them merged, and only
then looks whether it may delete: see `rear.ingest.source_removal`. Whenever it stops, the next sweep goes on from what is on
disk.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final

from rear.core.layout import Layout
from rear.core.names import Target, check_name, split_into
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import BaseError, NotLeaderError, PathError, SourceError, UsageError
from rear.events import (
    Collected,
    Event,
    Refused,
    SourceDeleted,
    SourceLeft,
    SweepStarted,
    Swept,
    Waiting,
)
from rear.ingest.committed import Held, SourceIndex, key_of
from rear.ingest.merging import Merging
from rear.ingest.source_removal import CHANGED, remove
from rear.ingest.source_tree import Source, SourceTree
from rear.scavenger.options import ScavengeOptions, options_for
from rear.worker.worker import Worker
from rear.zip.codecs import method_of
from rear.zip.payload import payload_of_source

BATCH_FILES: Final = 20_000
"""So many files are looked up, archived, merged and deleted at once."""
BATCH_BYTES: Final = 16 << 30
"""Or files of so many bytes: a sweep needs this much room for temp archives."""
_SPOOL_BYTES: Final = 8 << 20
_FIRST_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """How to sweep; see `sweep` for the meaning of each."""

    older_than_seconds: float = 0.0
    delete: bool = False
    dry_run: bool = False
    wait_seconds: float = 60.0
    select: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        for name in ("older_than_seconds", "wait_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise UsageError(f"{name} is {value!r}: it has to be a number of seconds, 0 or more")


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
        storage: the file system.

    Raises:
        PathError: ``into`` names no archive, or leaves the base.
        UsageError: an option has a value that cannot be used; or the directory is a base, or lies in its state.
        BaseError: the base is no directory.
        NotArchivedError: files could not be brought to stable storage; all sources are in place.
        OSError: the directory cannot be read, or the base cannot be written.
    """
    target = split_into(into)
    options = SweepOptions(older_than_seconds, delete, dry_run, wait_seconds, select)
    layout = Layout(base)
    if os.path.lexists(layout.base) and not os.path.isdir(layout.base):
        raise BaseError(f"{layout.base} is not a directory: it cannot be a base")
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
        self._merging = Merging(layout, merging, storage=storage)
        self._storage = storage
        self._index = SourceIndex(layout, target.archive, self._name_of, storage=storage)
        self._method = method_of("deflate")
        self._wait_left = options.wait_seconds
        self._has_told_to_wait = False
        self._files = self._archived = self._size_bytes = self._there_already = 0
        self._deleted = self._pending = self._left_alone = self._refused = 0

    def _name_of(self, source: Source) -> str:
        return self._target.name + source.relative

    def events(self) -> Iterator[Event]:
        with SourceTree(self._directory, self._layout, storage=self._storage) as tree:
            for event in self._run(tree):
                self._left_alone += isinstance(event, SourceLeft)
                self._refused += isinstance(event, Refused)
                self._deleted += isinstance(event, SourceDeleted)
                yield event
            yield Swept(
                tree.root, self._target.archive, self._files, self._archived, self._size_bytes, self._there_already,
                self._deleted, self._pending, self._left_alone, self._refused,
            )  # fmt: skip

    def _run(self, tree: SourceTree) -> Iterator[Event]:
        yield SweepStarted(str(self._layout.base), tree.root, self._target.archive, self._target.name.rstrip("/"))
        if not self._options.dry_run:
            # What an earlier sweep had archived when it died is merged first, so that it is not archived again.
            with suppress(NotLeaderError):
                yield from self._merging.events()
        batch: list[Source] = []
        size_bytes = 0
        for found in tree.walk():
            if isinstance(found, Event):
                yield found
                continue
            if self._options.select is not None and not self._options.select(found.relative):
                continue
            self._files += 1
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

    def _why_not(self, source: Source) -> Event | None:
        limit = self._options.older_than_seconds
        if limit and time.time() - source.stamp.mtime_ns / 1e9 < limit:
            return SourceLeft(source.path, f"changed less than {limit:g} s ago")
        try:
            check_name(self._name_of(source))
        except PathError as error:
            return Refused(source.path, f"it cannot become a member: {error}; left as it is")
        return None

    def _sweep(self, batch: list[Source], tree: SourceTree) -> Iterator[Event]:
        held = self._index.find(batch, tree)
        self._there_already += len(held)
        missing = [source for source in batch if source not in held]
        waiting = self._on_their_way(missing, tree)
        new = [source for source in missing if source not in waiting]
        if self._options.dry_run:
            for source in new:
                self._count(source)
                yield self._collected(source)
            self._pending += len(waiting)
            return
        expected = sorted(waiting)
        for event in self._collect(new, tree):
            if isinstance(event, Source):
                expected.append(event)
                yield self._collected(event)
            else:
                yield event
        if expected:
            merged: dict[Source, Held] = {}
            yield from self._wait_for(expected, merged, tree)
            for source in merged:
                self._count(source)
            held |= merged
        if self._options.delete:
            yield from remove(held, self._index, tree, storage=self._storage)

    def _count(self, source: Source) -> None:
        self._archived += 1
        self._size_bytes += source.stamp.size

    def _collected(self, source: Source) -> Collected:
        return Collected(source.path, self._target.archive, self._name_of(source), source.stamp.size)

    # ---- to a temp archive

    def _collect(self, sources: list[Source], tree: SourceTree) -> Iterator[Source | Event]:
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
                problem = self._collect_one(worker, source)
                if problem is None:
                    yield source
                elif os.path.lexists(source.path):
                    yield problem

    def _collect_one(self, worker: Worker, source: Source) -> Event | None:
        """Archive one file, or say why not."""
        try:
            payload, stamp = payload_of_source(source.path, self._method, _SPOOL_BYTES)
        except SourceError:
            return SourceLeft(source.path, CHANGED)
        except OSError as error:
            return Refused(source.path, f"it cannot be read: {error.strerror}; left as it is")
        if stamp[:5] != source.stamp[:5]:
            # By way of a folder that was swapped for a link, this may be any file that the caller can read.
            payload.close()
            return SourceLeft(source.path, CHANGED)
        try:
            worker.append(
                Target(self._target.archive, self._name_of(source)), payload,
                mtime_ns=stamp.mtime_ns, mode=stamp.mode, source=source.path,
            )  # fmt: skip
        except SourceError:
            return SourceLeft(source.path, CHANGED)
        except OSError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.filename == source.path:
                return Refused(source.path, f"it cannot be read: {cause.strerror}; left as it is")
            raise
        return None

    # ---- to the final archive

    def _wait_for(self, sources: list[Source], merged: dict[Source, Held], tree: SourceTree) -> Iterator[Event]:
        """Have files merged, and fill ``merged``; wait for other scavengers and workers as long as that is allowed."""
        pause = _FIRST_PAUSE_SECONDS
        collected = sources
        while True:
            reason, has_led = "others are still writing what they have taken from this folder", True
            try:
                yield from self._merging.events()
            except NotLeaderError as error:
                reason, has_led = error.situation, False
            merged.update(self._index.find(sources, tree))
            sources = [source for source in sources if source not in merged]
            waiting = self._on_their_way(sources, tree)
            # Another sweep may have had the same files merged while what this one wrote of them is still in the inbox.
            is_done = not waiting and (has_led or not self._on_their_way(collected, tree))
            if is_done or self._wait_left <= 0:
                break
            if not self._has_told_to_wait:
                self._has_told_to_wait = True
                yield Waiting(reason, self._wait_left)
            pause = min(pause, self._wait_left)
            self._wait_left -= pause
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
        if waiting:
            self._pending += len(waiting)
            yield Refused(
                self._target.archive,
                f"{len(waiting):,} files of {tree.root} are kept in temp archives, but not merged yet: {reason}; "
                "the files stay where they are, and a later sweep goes on",
            )
        for source in sources:
            if source not in waiting and os.path.lexists(source.path):
                yield Refused(
                    source.path, f"it was archived, but is not in {self._target.archive}: see lost+found; left in place"
                )

    def _on_their_way(self, sources: list[Source], tree: SourceTree) -> set[Source]:
        """Return those files that are in temp archives, of whomever."""
        if not sources:
            return set()
        keys = self._index.pending(f"{tree.root.rstrip('/')}/")
        return {source for source in sources if hash(key_of(source)) in keys}
