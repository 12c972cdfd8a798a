"""Merges into final archives: what is written, and in which order.

The order, and what a crash leaves in each gap, stands in ``docs/durability.md``. In short: intent, ranges, directory,
sync, commit; then index, notes beside the journals, and the intent goes. Before the commit everything is undone,
after it everything is completed. An archive that does not exist yet, or on which a leader that may still come back
was working, is built as a new file and renamed.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import add
from pathlib import Path
from typing import Any, Final

from rear.core.layout import Layout, look_anew
from rear.core.parallel import Parallel
from rear.core.records import Append
from rear.core.storage import Storage, opened
from rear.errors import IndexFormatError, RearError, ZipFormatError
from rear.events import Advanced, Copied, Event, IndexRebuilt, Merged, Renamed, SetAside
from rear.index.index import Index, IndexRow, rows_of
from rear.journal.intent import commit_intent, read_begin, write_intent
from rear.journal.manyheaders import central_entries, columns_of
from rear.journal.writer import JournalWriter
from rear.scavenger.check_tasks import changed_members
from rear.scavenger.claims import ClaimedPair, Claims
from rear.scavenger.copy_tasks import Piece, copy_on_executor, new_permit
from rear.scavenger.final_archive import Comparison, FinalArchive, IndexedNames, NoNames, open_final_archive
from rear.scavenger.leader import Leadership
from rear.scavenger.lost_and_found import LostAndFound
from rear.scavenger.plan import Candidate, Conflict, MergePlan, Names, make_plan, planned, sequences_of
from rear.scavenger.recovery import Recovery, check_vacant, fresh_path, install
from rear.zip import directory as directories
from rear.zip.archive import Archive
from rear.zip.directory import Directory
from rear.zip.headers import encode_central_entry, encode_end, member_of
from rear.zip.structures import CENTRAL

log = logging.getLogger("rear")
_PROGRESS_BYTES = 64 << 20
SHARED_COPY_BYTES = 256 << 20
"""From so many bytes on, one merge is copied, and read back, on the executor; for less, that would not be worth it."""
_AT_ONCE = 512
"""Members whose records are taken apart field by field: so few stay in the processor's cache."""
_STALE_SECONDS = 5.0
_STALE_PAUSE_SECONDS = 0.25


class Merger:
    """Merges members into final archives for one leader.

    Args:
        layout: the base.
        leadership: asked before each step that a deposed leader must not do.
        claims: notes what became of members.
        recovery: undoes a merge that fails.
        lost_and_found: takes what the conflict policy does not let in.
        on_conflict: policy for members of one name and different content.
        verify: read the merged bytes back and check them before the commit.
        parallel: the executor that copies and checks.
        storage: the file system.
    """

    def __init__(
        self,
        layout: Layout,
        leadership: Leadership,
        claims: Claims,
        recovery: Recovery,
        lost_and_found: LostAndFound,
        *,
        on_conflict: Conflict,
        verify: bool,
        parallel: Parallel,
        storage: Storage,
    ) -> None:
        self._layout = layout
        self._leadership = leadership
        self._claims = claims
        self._recovery = recovery
        self._lost_and_found = lost_and_found
        self._on_conflict = on_conflict
        self._verify = verify
        self._parallel = parallel
        self._storage = storage

    def merge(self, archive: str, candidates: list[Candidate]) -> Iterator[Event]:
        """Merge checked members into one final archive.

        Raises:
            RearError, OSError: nothing was merged, and the archive is as it was, unless the message says otherwise.
        """
        yield Advanced("planning", archive, 0, len(candidates))
        with self._current_target(archive) as (target, index):
            yield from self._bring_up_to_date(index, target)
            try:
                plan = self._make_plan(
                    target, candidates, IndexedNames(index) if target.descriptor is not None else NoNames()
                )
            except IndexFormatError as error:
                yield self._rebuild(index, target, str(error))
                plan = self._make_plan(target, candidates, IndexedNames(index))
            yield planned(plan)
            yield from self._put_aside(plan, target)
            if plan.placements:
                yield from self._write(plan, target, index)
            is_there = {(move.pair, move.sequence) for move in plan.duplicates}
            doubles = (one for one in candidates if (one.claimed.name, one.append.sequence) in is_there)
            self._note(plan.archive, doubles if is_there else (), "")

    @contextmanager
    def _current_target(self, archive: str) -> Iterator[tuple[FinalArchive, Index]]:
        """Open an archive and its index, and wait until this host sees all of it that another one has merged.

        A new segment of the index has a new name, so it is seen at once where the archive may not be.
        """
        deadline = self._storage.uptime() + _STALE_SECONDS
        while True:
            with open_final_archive(self._layout, archive, storage=self._storage) as target:
                index = Index.open(self._layout, archive, storage=self._storage)
                if not self._is_older(target, index):
                    yield target, index
                    return
            if self._storage.uptime() > deadline:
                raise RearError(
                    f"{archive} is shorter than its index says: this host sees an old state of it, or somebody put an "
                    "older copy in its place; nothing was merged. If it is as it should be, rear fsck accepts it"
                )
            time.sleep(_STALE_PAUSE_SECONDS)

    def _is_older(self, target: FinalArchive, index: Index) -> bool:
        try:
            return not target.is_mirrored_by(index, storage=self._storage) and target.is_older_than(index)
        except IndexFormatError:
            # It is made again, and knows no better then.
            return False

    def _bring_up_to_date(self, index: Index, target: FinalArchive) -> Iterator[Event]:
        if target.descriptor is None or target.is_mirrored_by(index, storage=self._storage):
            return
        yield self._rebuild(index, target, "it did not match the archive" if index.segments else "there was none")

    def _rebuild(self, index: Index, target: FinalArchive, reason: str) -> IndexRebuilt:
        with Archive.open(target.path, storage=self._storage) as archive:
            index.rebuild(rows_of(archive), archive.fingerprint)
            return IndexRebuilt(target.archive, archive.directory.entries, reason)

    def _make_plan(self, target: FinalArchive, candidates: list[Candidate], names: Names) -> MergePlan:
        return make_plan(
            target.archive, target.directory, candidates,
            names=names, same_content=Comparison(target, self._storage), on_conflict=self._on_conflict,
        )  # fmt: skip

    def _put_aside(self, plan: MergePlan, target: FinalArchive) -> Iterator[Event]:
        """Bring what the policy does not let in, or takes out, to lost+found before anything else happens."""
        for candidate, name, reason in plan.aside:
            append, pair = candidate.append, candidate.claimed.pair
            note = {"archive": plan.archive, "name": name, "reason": reason, **append._asdict()}
            member = member_of(append, name)
            with opened(candidate.claimed.temp_archive, self._storage) as descriptor:
                item = self._lost_and_found.put_member(
                    f"{pair.host}-{pair.stem}-{append.sequence}", descriptor, append.offset, append.length, member, note
                )
            self._claims.note(candidate.claimed, [append.sequence], target=item, intent="")
            yield SetAside(plan.archive, name, str(pair), reason, item)
        for name, existing in plan.replaced:
            assert target.descriptor is not None
            host, worker, sequence = existing.key
            reason = "a later member has that name, and the last one is kept"
            item_name = f"{host or 'unknown'}-{worker or 'unknown'}-{sequence or existing.target_start}-replaced"
            length = existing.target_end - existing.target_start
            item = self._lost_and_found.put_bytes(
                item_name, target.descriptor, existing.target_start, length,
                {"archive": plan.archive, "name": name, "reason": reason},
            )  # fmt: skip
            yield SetAside(plan.archive, name, "", reason, item)

    # Writing.

    def _write(self, plan: MergePlan, target: FinalArchive, index: Index) -> Iterator[Event]:
        intent_path = self._layout.intent(plan.archive, self._leadership.name)
        self._storage.make_directories(intent_path.parent)
        before = None
        if target.descriptor is not None and target.directory is not None:
            before = directories.fingerprint(target.descriptor, target.directory, storage=self._storage)
        is_shared = self._parallel.has_executor and plan.size_bytes >= SHARED_COPY_BYTES
        permit = new_permit(intent_path) if is_shared else None
        writer = write_intent(
            intent_path, archive=plan.archive, leader=self._leadership.name, old=plan.old,
            archive_descriptor=target.descriptor, moves=plan.moves(), process=self._leadership.process,
            permit=None if permit is None else permit.name, storage=self._storage,
        )  # fmt: skip
        planned_length, has_begun = writer.length, False
        try:
            self._check_unchanged(plan, target, before, intent_path)
            with ExitStack() as stack:
                descriptor, path = target.descriptor, target.path
                if descriptor is None:
                    path = fresh_path(intent_path)
                    descriptor = self._storage.create(path)
                    stack.callback(self._storage.close, descriptor)
                    self._storage.sync_directory(intent_path.parent)
                has_begun = True
                yield Advanced("copying", plan.archive, 0, plan.size_bytes)
                if permit is None:
                    yield from self._copy(plan, descriptor)
                else:
                    yield from self._copy_shared(plan, descriptor, path, permit)
                after = self._write_directory(plan, descriptor, writer)
                yield Advanced("syncing", plan.archive)
                self._storage.sync(descriptor)
                if self._verify:
                    yield Advanced("verifying", plan.archive)
                    self._verify_merged(plan, descriptor, path, is_shared=is_shared)
                fingerprint = directories.fingerprint(descriptor, after, storage=self._storage)
            if target.descriptor is None:
                check_vacant(target.path, storage=self._storage)
            self._leadership.prove()
            commit_intent(writer)
        except BaseException as error:
            with ExitStack() as stack:
                stack.callback(self._storage.close, writer.descriptor)
                try:
                    self._undo(plan, target.descriptor if has_begun else None, writer, planned_length, intent_path)
                except OSError as failure:
                    if isinstance(error, Exception):
                        raise RearError(_describe_stuck(plan.archive, error, failure)) from error
            raise
        self._storage.close(writer.descriptor)
        self._leadership.prove()
        if target.descriptor is None:
            install(fresh_path(intent_path), target.path, storage=self._storage)
        yield Merged(plan.archive, len(plan.placements), plan.size_bytes, after.archive_length)
        yield Advanced("indexing", plan.archive)
        self._publish(plan, index, before, fingerprint)
        self._note(plan.archive, [placed.candidate for placed in plan.placements], intent_path.stem)
        self._recovery.clear(intent_path)
        for placed in plan.renamed:
            yield Renamed(plan.archive, placed.candidate.append.name, placed.name, str(placed.candidate.claimed.pair))

    def _check_unchanged(self, plan: MergePlan, target: FinalArchive, before: str | None, intent_path: Path) -> None:
        """Make sure, with the intent in place and before the first byte is written, that the plan is still right.

        A leader that comes later finds the intent, and gives the archive a new inode before it touches it.
        """
        self._leadership.prove()
        if self._recovery.intents_of(plan.archive) != [intent_path]:
            raise FileExistsError(errno.EEXIST, "another merge into this archive is unfinished", str(target.path))
        if target.descriptor is None:
            return
        look_anew(target.path, storage=self._storage)
        with opened(target.path, self._storage) as descriptor:
            now = directories.locate(descriptor, storage=self._storage)
            is_same = os.path.samestat(os.fstat(descriptor), os.fstat(target.descriptor))
            if not is_same or directories.fingerprint(descriptor, now, storage=self._storage) != before:
                raise ZipFormatError(f"{target.path} was changed by somebody else while the merge was planned")

    def _undo(
        self, plan: MergePlan, descriptor: int | None, intent: JournalWriter, planned_length: int, intent_path: Path
    ) -> None:
        """Bring back the old archive after a failure, through what is open: names may be those of another leader by
        now.

        Args:
            plan: what was to be merged.
            descriptor: the open archive, if it existed and may have been written to.
            intent: the open intent.
            planned_length: its length without a commit.
            intent_path: its path.
        """
        if self._storage.size(intent.descriptor) != planned_length:
            # The commit may be on stable storage. If it cannot be taken back there, the next leader decides by it.
            self._storage.truncate(intent.descriptor, planned_length)
            self._storage.sync(intent.descriptor)
        if descriptor is not None and plan.old is not None:
            begin = read_begin(intent.descriptor, storage=self._storage)
            self._recovery.undo_own(begin, intent_path, descriptor, intent.descriptor)
        self._recovery.clear(intent_path)

    def _copy(self, plan: MergePlan, descriptor: int) -> Iterator[Event]:
        total = plan.size_bytes
        copied = reported = 0
        for placed in plan.renamed:
            if placed.header is not None:
                copied += self._storage.write(descriptor, [placed.header], placed.target_start)
        source: int | None = None
        claimed: ClaimedPair | None = None
        try:
            for wanted in plan.ranges:
                if wanted.claimed is not claimed:
                    if source is not None:
                        self._storage.close(source)
                        source = None
                    source = self._storage.open(wanted.claimed.temp_archive)
                    claimed = wanted.claimed
                assert source is not None
                self._storage.copy_range(
                    source, descriptor,
                    source_start=wanted.source_start, target_start=wanted.target_start, length=wanted.length,
                )  # fmt: skip
                copied += wanted.length
                if copied - reported >= _PROGRESS_BYTES:
                    reported = copied
                    yield Copied(plan.archive, copied, total)
        finally:
            if source is not None:
                self._storage.close(source)

    def _copy_shared(self, plan: MergePlan, descriptor: int, path: Path, permit: Path) -> Iterator[Event]:
        """Copy on the executor. The permit is removed with the intent, and before anything is undone."""
        self._storage.close(self._storage.create(permit))
        copied = 0
        for length in copy_on_executor(
            _pieces(plan), permit=permit, target=path, descriptor=descriptor, parallel=self._parallel,
            storage=self._storage,
        ):  # fmt: skip
            copied += length
            yield Copied(plan.archive, copied, plan.size_bytes)

    def _write_directory(self, plan: MergePlan, descriptor: int, intent: JournalWriter) -> Directory:
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

    def _verify_merged(self, plan: MergePlan, descriptor: int, path: Path, *, is_shared: bool) -> None:
        if is_shared and not self._parallel.is_local:
            # Other hosts wrote: this one may still show what was there before.
            self._storage.drop_cache(descriptor)
        changed = changed_members(
            plan.placements, path=path, descriptor=descriptor, is_shared=is_shared, parallel=self._parallel,
            storage=self._storage,
        )  # fmt: skip
        for name in changed:
            raise ZipFormatError(f"{name} is not the same after the merge as before it; the merge was undone")

    def _publish(self, plan: MergePlan, index: Index, before: str | None, fingerprint: str) -> None:
        now = time.time_ns()
        rows = map(_new_row, _index_rows(plan, now))
        removed = [(replaced.name, replaced.existing.target_start) for replaced in plan.replaced]
        try:
            index.publish(rows, fingerprint, previous=before, removed=removed)
        except OSError as error:
            # Derived data: an index that does not match is made again when it is needed.
            log.warning("the index of %s could not be written: %s", plan.archive, error)

    def _note(self, archive: str, candidates: Iterable[Candidate], intent: str) -> None:
        self._leadership.prove()
        for claimed, sequences in sequences_of(candidates):
            self._claims.note(claimed, sequences, target=archive, intent=intent)


def _pieces(plan: MergePlan) -> Iterator[Piece]:
    """Yield all that is copied, in the order of its place in the archive."""
    headers = (
        Piece(placed.header, 0, placed.target_start, len(placed.header)) for placed in plan.renamed if placed.header
    )
    ranges = (
        Piece(os.fspath(wanted.claimed.temp_archive), wanted.source_start, wanted.target_start, wanted.length)
        for wanted in plan.ranges
    )
    return heapq.merge(headers, ranges, key=lambda piece: piece.target_start)


def _describe_stuck(archive: str, error: Exception, failure: OSError) -> str:
    return (
        f"{error}; and the merge could not be undone at once: {failure}. Until the next scavenge can do it, other "
        f"programs may not be able to read {archive}; rear reads it as it was before. Free some space, or mend what "
        "failed, and scavenge again"
    )


def _entries(plan: MergePlan) -> Iterator[bytes]:
    """Yield the directory entries of the new members."""
    for start in range(0, len(plan.placements), _AT_ONCE):
        placements = plan.placements[start : start + _AT_ONCE]
        offsets = [placed.target_start - plan.prefix for placed in placements]
        columns = None if plan.renamed else columns_of([append for (_, append), _, _, _, _ in placements])
        entries = None if columns is None else central_entries(columns, offsets)
        if entries is None:
            members = (placed.member for placed in placements)
            entries = list(map(encode_central_entry, members, offsets))
        yield from entries


def _index_rows(plan: MergePlan, archived_ns: int) -> Iterator[tuple[Any, ...]]:
    """Yield the values of an `IndexRow` for each new member."""
    for start in range(0, len(plan.placements), _AT_ONCE):
        candidates, names, starts, lengths, _ = zip(*plan.placements[start : start + _AT_ONCE], strict=True)
        claimed, appends = zip(*candidates, strict=True)
        fields: Any = Append._make(zip(*appends, strict=True))
        ends = map(add, starts, lengths)
        hosts, workers = [one.pair.host for one in claimed], [one.pair.worker for one in claimed]
        yield from zip(
            names, fields.source, fields.source_start, fields.source_end, starts, ends, [archived_ns] * len(names),
            fields.size, fields.compressed_size, fields.method, fields.crc, fields.mtime_ns, fields.mode, hosts,
            workers, fields.sequence, fields.metadata, strict=True,
        )  # fmt: skip


_new_row: Final = partial(tuple.__new__, IndexRow)
