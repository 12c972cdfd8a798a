"""The bytes of a merge: the members, as they are, and then the old directory with the new entries behind it.

When they are written, and what has to be on stable storage before, is said by `rear.scavenger.merge`.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rear.core.parallel import Parallel
from rear.core.storage import Storage
from rear.errors import ZipFormatError
from rear.events import Copied
from rear.journal.encoder import central_entries
from rear.journal.intent import read_begin
from rear.journal.writer import JournalWriter
from rear.scavenger.check_tasks import changed_members
from rear.scavenger.copy_tasks import Piece, copy_on_executor, copying
from rear.scavenger.plan import MergePlan
from rear.zip import directory as directories
from rear.zip.directory import Directory
from rear.zip.headers import encode_central_entry, encode_end
from rear.zip.structures import CENTRAL

_PROGRESS_BYTES = 64 << 20
AT_ONCE = 512
"""Members whose records are taken apart field by field: so few stay in the processor's cache."""


class MergeWriter:
    """Writes to an open final archive, or to the new file that is to become it, what a plan says."""

    def __init__(self, parallel: Parallel, *, storage: Storage) -> None:
        self._parallel = parallel
        self._storage = storage

    def copy(self, plan: MergePlan, descriptor: int) -> Iterator[Copied]:
        """Copy all members here; say now and then how far that is."""
        copied = reported = 0
        for length in copying(_pieces(plan), descriptor, storage=self._storage):
            copied += length
            if copied - reported >= _PROGRESS_BYTES:
                reported = copied
                yield Copied(plan.archive, copied, plan.size_bytes)

    def copy_shared(self, plan: MergePlan, descriptor: int, path: Path, permit: Path) -> Iterator[Copied]:
        """Copy on the executor. The permit is removed with the intent, and before anything is undone."""
        self._storage.close(self._storage.create(permit))
        copied = 0
        for length in copy_on_executor(
            _pieces(plan),
            permit=permit,
            target=path,
            descriptor=descriptor,
            parallel=self._parallel,
            storage=self._storage,
        ):
            copied += length
            yield Copied(plan.archive, copied, plan.size_bytes)

    def write_directory(self, plan: MergePlan, descriptor: int, intent: JournalWriter) -> Directory:
        """Write the old directory, as opaque bytes, and the new entries after it; cut the file there."""
        position = plan.target_end
        old_entries = 0
        if plan.old is not None:
            tail_start = read_begin(intent.descriptor, storage=self._storage).tail_start
            kept = Directory(plan.old.archive_length, tail_start, plan.old.length, plan.old.entries, 0, b"")
            old_entries = plan.old.entries
            gone = {(replaced.name, replaced.existing.target_start - plan.prefix) for replaced in plan.replaced}
            for start, length, removed in self._kept_parts(intent.descriptor, kept, gone):
                self._storage.copy_range(
                    intent.descriptor, descriptor, source_start=start, target_start=position, length=length
                )
                position += length
                old_entries -= removed
        entries = b"".join(_entries(plan))
        comment = plan.old.comment if plan.old else b""
        count = old_entries + len(plan.placements)
        length = position + len(entries) - plan.target_end
        end = encode_end(
            entries=count, directory_length=length, directory_offset=plan.target_end - plan.prefix, comment=comment
        )
        total = position + self._storage.write(descriptor, [entries, end], position)
        self._storage.truncate(descriptor, total)
        return Directory(total, plan.target_end, length, count, plan.prefix, comment)

    def _kept_parts(
        self, descriptor: int, kept: Directory, gone: set[tuple[str, int]]
    ) -> Iterator[tuple[int, int, int]]:
        """Yield ``(start, length, entries removed after it)`` of the old directory; one part, unless entries go."""
        if not gone:
            yield kept.offset, kept.length, 0
            return
        start = position = kept.offset
        for entry in directories.entries(descriptor, kept, storage=self._storage):
            length = CENTRAL.size + len(entry.name_bytes) + len(entry.extra) + len(entry.comment)
            if (entry.name, entry.offset) in gone:
                yield start, position - start, 1
                start = position + length
            position += length
        yield start, position - start, 0

    def verify(self, plan: MergePlan, descriptor: int, path: Path, *, is_shared: bool) -> None:
        """Read the merged members back.

        Raises:
            ZipFormatError: one is not the same as before.
            UnsupportedError: one cannot be decoded here.
            OSError: the archive cannot be read.
        """
        if is_shared and not self._parallel.is_local:
            # Other hosts wrote: this one may still show what was there before.
            self._storage.drop_cache(descriptor)
        changed = changed_members(
            plan.placements,
            path=path,
            descriptor=descriptor,
            is_shared=is_shared,
            parallel=self._parallel,
            storage=self._storage,
        )
        for name in changed:
            raise ZipFormatError(f"{name} is not the same after the merge as before it; the merge was undone")


def _pieces(plan: MergePlan) -> Iterator[Piece]:
    """Yield all that is copied, in the order of its place in the archive."""
    if not plan.renamed:
        return _ranges(plan)
    headers = (
        Piece(placed.header, 0, placed.target_start, len(placed.header)) for placed in plan.renamed if placed.header
    )
    return heapq.merge(headers, _ranges(plan), key=lambda piece: piece.target_start)


def _ranges(plan: MergePlan) -> Iterator[Piece]:
    for _, ranges in groupby(plan.ranges, lambda wanted: id(wanted.claimed)):
        path = None
        for claimed, source_start, target_start, length in ranges:
            path = path or os.fspath(claimed.temp_archive)
            yield Piece(path, source_start, target_start, length, claimed.identity)


def _entries(plan: MergePlan) -> Iterator[bytes]:
    """Yield the directory entries of the new members."""
    for start in range(0, len(plan.placements), AT_ONCE):
        placements = plan.placements[start : start + AT_ONCE]
        offsets = [placed.target_start - plan.prefix for placed in placements]
        appends = [append for (_, append), _, _, _, _ in placements]
        entries = None if plan.renamed else central_entries(appends, offsets)
        if entries is None:
            members = (placed.member for placed in placements)
            entries = list(map(encode_central_entry, members, offsets))
        yield from entries
