"""Merges into final archives: what is written, and in which order.

The order, and what a crash leaves in each gap, stands in ``docs/explanation/durability.md``. In short: intent, ranges,
directory, sync, commit; then index, notes beside the journals, and the intent goes. Before the commit everything is
undone, after it everything is completed. An archive that does not exist yet, or on which a leader that may still come
back was working, is built as a new file and renamed.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import add
from pathlib import Path
from typing import Any, Final

from rear.core.descent import status_of
from rear.core.layout import look_anew, make_in_base
from rear.core.log import warn
from rear.core.parallel import Parallel
from rear.core.records import Append, unpacked
from rear.core.storage import Storage, opened
from rear.core.trust import counts_for_archive
from rear.errors import IndexFormatError, RearError, ZipFormatError
from rear.events import Advanced, Event, Merged, Narrowed, Refused, Renamed, SetAside
from rear.index.index import Index, IndexRow
from rear.journal.intent import Begin, commit_intent, intents_of, read_begin, void_intent, write_intent
from rear.journal.writer import JournalWriter
from rear.scavenger.claims import Claims
from rear.scavenger.copy_tasks import new_permit
from rear.scavenger.final_archive import (
    Comparison,
    FinalArchive,
    IndexedNames,
    NoNames,
    create_for,
    group_sharing,
    is_as_checked,
    open_final_archive,
    opened_as_checked,
    status_of_pair,
    too_open,
)
from rear.scavenger.leader import Leadership
from rear.scavenger.lost_and_found import LostAndFound, item_name
from rear.scavenger.merge_index import bring_up_to_date, is_older, open_index, rebuild
from rear.scavenger.merge_writer import AT_ONCE, MergeWriter
from rear.scavenger.options import ScavengeOptions
from rear.scavenger.plan import Candidate, MergePlan, Names, make_plan, planned, sequences_of
from rear.scavenger.recovery import Recovery, check_vacant, fresh_path, install
from rear.scavenger.rollover import rolled_over_from
from rear.zip import directory as directories
from rear.zip.directory import Directory
from rear.zip.headers import member_of

SHARED_COPY_BYTES = 256 << 20
"""From so many bytes on, one merge is copied, and read back, on the executor; for less, that would not be worth it."""
_STALE_SECONDS = 5.0
_STALE_PAUSE_SECONDS = 0.25


@dataclass(slots=True)
class _Merge:
    """A merge whose intent stands.

    Attributes:
        planned_length: of the intent without a commit.
        before: fingerprint of the directory as it was when the merge was planned.
        permit: of an executor to copy for this merge; ``None`` where none does.
        has_begun: whether the archive may have been written to.
    """

    plan: MergePlan
    target: FinalArchive
    intent_path: Path
    intent: JournalWriter
    planned_length: int
    before: str | None
    permit: Path | None
    has_begun: bool = False


class Merger:
    """Merges members into final archives for one leader.

    The leadership is asked before each step that a deposed leader must not do.
    """

    def __init__(
        self,
        leadership: Leadership,
        claims: Claims,
        recovery: Recovery,
        lost_and_found: LostAndFound,
        *,
        options: ScavengeOptions,
        parallel: Parallel,
        storage: Storage,
    ) -> None:
        self._layout = leadership.layout
        self._leadership = leadership
        self._claims = claims
        self._recovery = recovery
        self._lost_and_found = lost_and_found
        self._options = options
        self._parallel = parallel
        self._storage = storage
        self._writer = MergeWriter(parallel, storage=storage)

    def merge(self, archive: str, candidates: list[Candidate]) -> Iterator[Event]:
        """Merge checked members into one final archive.

        Raises:
            RearError, OSError: nothing was merged, and the archive is as it was, unless the message says otherwise.
        """
        yield Advanced("planning", archive, 0, len(candidates))
        with self._current_target(archive) as (target, index), ExitStack() as stack:
            candidates = yield from self._admitted(target, (yield from self._as_checked(candidates)))
            if not candidates:
                return
            names: Names = NoNames()
            if target.descriptor is not None:
                names = IndexedNames((yield from bring_up_to_date(index, target, stack, storage=self._storage)))
            try:
                plan = self._make_plan(target, candidates, names)
            except IndexFormatError as error:
                current = yield from rebuild(index, target, str(error), "unreadable", stack, storage=self._storage)
                plan = self._make_plan(target, candidates, IndexedNames(current))
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
                index = open_index(self._layout, archive, storage=self._storage)
                if not is_older(target, index, storage=self._storage):
                    yield target, index
                    return
            if self._storage.uptime() > deadline:
                raise RearError(
                    f"{archive} is shorter than its index says: this host sees an old state of it, or somebody put an "
                    "older copy in its place; nothing was merged. If it is as it should be, rear fsck accepts it"
                )
            time.sleep(_STALE_PAUSE_SECONDS)

    def _as_checked(self, candidates: list[Candidate]) -> Generator[Event, None, list[Candidate]]:
        """Return those of pairs whose file still is what was checked: who swaps hers holds up nobody else."""
        swapped = set()
        for claimed in {id(claimed): claimed for claimed, _ in candidates}.values():
            if not is_as_checked(claimed):
                swapped.add(claimed.name)
                yield Refused(claimed.name, "its temp archive has gone, or is another file than was checked")
        return [one for one in candidates if one.claimed.name not in swapped] if swapped else candidates

    def _admitted(self, target: FinalArchive, candidates: list[Candidate]) -> Generator[Event, None, list[Candidate]]:
        """Return those that may go into an archive: it is open to nobody who may not read their temp archive.

        For what comes from its owner, or from a group whose members may replace it, it is narrowed first: a crash
        behind that leaves it as it is, but narrower.
        """
        descriptor = target.descriptor
        if descriptor is None:
            return candidates
        sharing, refused = group_sharing(self._layout), set()
        for claimed in {one.claimed.name: one.claimed for one in candidates}.values():
            archive, pair = os.fstat(descriptor), status_of_pair(claimed)
            bits = too_open(archive, pair, sharing=sharing, mode=self._archive_mode)
            before, after = stat.S_IMODE(archive.st_mode), stat.S_IMODE(archive.st_mode) & ~bits
            if not bits:
                continue
            may_replace = pair.st_uid == archive.st_uid or archive.st_gid == sharing
            if may_replace and os.geteuid() in (0, archive.st_uid):
                self._leadership.prove()
                self._storage.set_mode(descriptor, after)
                self._storage.sync(descriptor)
                yield Narrowed(target.archive, f"{before:04o}", f"{after:04o}", claimed.name)
                continue
            refused.add(claimed.name)
            yield Refused(
                claimed.name,
                f"its members for {target.archive} wait: that is open (mode {before:04o}, of user {archive.st_uid}) to "
                f"users who may not read its temp archive (mode {stat.S_IMODE(pair.st_mode):04o}, of user "
                f"{pair.st_uid}). Let the owner of one of them, or root, chmod it, or set archive_mode",
            )
        return [one for one in candidates if one.claimed.name not in refused]

    @property
    def _archive_mode(self) -> int | None:
        mode = self._options.archive_mode
        return None if mode is None else int(mode, 8)

    def _forebear(self, archive: str) -> os.stat_result | None:
        """Return the status of the archive that was renamed when it was full, and that a new one follows."""
        if self._options.max_size is None and self._options.max_members is None:
            return None
        for name in rolled_over_from(self._layout, archive, storage=self._storage):
            with suppress(FileNotFoundError):
                return status_of(self._layout.archive(name))
        return None

    def _make_plan(self, target: FinalArchive, candidates: list[Candidate], names: Names) -> MergePlan:
        comparison = Comparison(target, self._storage)
        return make_plan(
            target.archive,
            target.directory,
            candidates,
            names=names,
            same_content=comparison,
            begins_alike=comparison.begins_alike,
            is_copy=comparison.is_copy,
            may_replace=partial(_may_replace, target),
            on_conflict=self._options.on_conflict,
        )

    def _put_aside(self, plan: MergePlan, target: FinalArchive) -> Iterator[Event]:
        """Bring what the policy does not let in, or takes out, to lost+found before anything else happens."""
        for candidate, name, reason in plan.aside:
            append, pair = candidate.append, candidate.claimed.pair
            note = {"archive": plan.archive, "name": name, "reason": reason, **append._asdict()}
            note["metadata"] = unpacked(append.metadata)
            member = member_of(append, name)
            with opened_as_checked(candidate.claimed, self._storage) as descriptor:
                item = self._lost_and_found.put_member(
                    item_name(pair, append.sequence), descriptor, append.offset, append.length, member, note
                )
            self._claims.note(candidate.claimed, [append.sequence], target=item, intent="")
            yield SetAside(plan.archive, name, str(pair), reason, item)
        for name, existing, is_contained in plan.replaced:
            if is_contained:
                continue
            assert target.descriptor is not None
            host, worker, sequence = existing.key
            reason = "a later member has that name, and the last one is kept"
            kept_name = f"{host or 'unknown'}-{worker or 'unknown'}-{sequence or existing.target_start}-replaced"
            length = existing.target_end - existing.target_start
            note = {"archive": plan.archive, "name": name, "reason": reason}
            item = self._lost_and_found.put_bytes(kept_name, target.descriptor, existing.target_start, length, note)
            yield SetAside(plan.archive, name, "", reason, item)

    # Writing.

    def _write(self, plan: MergePlan, target: FinalArchive, index: Index) -> Iterator[Event]:
        merge = self._begin(plan, target)
        try:
            after, fingerprint = yield from self._write_archive(merge)
            if target.descriptor is None:
                check_vacant(self._layout.base, target.path, storage=self._storage)
            self._leadership.prove()
            commit_intent(merge.intent)
        except BaseException as error:
            with ExitStack() as stack:
                stack.callback(self._storage.close, merge.intent.descriptor)
                try:
                    self._undo(merge)
                except OSError as failure:
                    if isinstance(error, Exception):
                        raise RearError(_describe_stuck(plan.archive, error, failure)) from error
            raise
        self._storage.close(merge.intent.descriptor)
        self._leadership.prove()
        if target.descriptor is None:
            install(fresh_path(merge.intent_path), target.path, storage=self._storage)
        yield Merged(plan.archive, len(plan.placements), plan.size_bytes, after.archive_length)
        yield Advanced("indexing", plan.archive)
        self._publish(plan, index, merge.before, fingerprint)
        self._note(plan.archive, [placed.candidate for placed in plan.placements], merge.intent_path.stem)
        self._recovery.clear(merge.intent_path)
        for placed in plan.renamed:
            yield Renamed(plan.archive, placed.candidate.append.name, placed.name, placed.candidate.claimed.name)

    def _begin(self, plan: MergePlan, target: FinalArchive) -> _Merge:
        """Bring the intent to stable storage."""
        path = self._layout.intent(plan.archive, self._leadership.name)
        make_in_base(self._layout.base, path.parent, storage=self._storage)
        # It may be this leader's own, of a merge that is committed and could not be noted: never written over.
        self._check_alone(target, [])
        before = None
        if target.descriptor is not None and target.directory is not None:
            before = directories.fingerprint(target.descriptor, target.directory, storage=self._storage)
        is_shared = self._parallel.has_executor and plan.size_bytes >= SHARED_COPY_BYTES
        permit = new_permit(path) if is_shared else None
        begin = Begin(
            plan.archive,
            self._leadership.name,
            plan.old,
            self._leadership.process,
            None if permit is None else permit.name,
        )
        intent = write_intent(path, begin, plan.moves(), archive_descriptor=target.descriptor, storage=self._storage)
        return _Merge(plan, target, path, intent, intent.length, before, permit)

    def _write_archive(self, merge: _Merge) -> Generator[Event, None, tuple[Directory, str]]:
        """Write members and directory, and sync and check them; return the directory and its fingerprint."""
        plan, storage = merge.plan, self._storage
        self._check_unchanged(merge)
        with ExitStack() as stack:
            descriptor, path = merge.target.descriptor, merge.target.path
            if descriptor is None:
                path = fresh_path(merge.intent_path)
                descriptor = create_for(
                    [copy.claimed for copy in plan.ranges],
                    path,
                    sharing=group_sharing(self._layout),
                    mode=self._archive_mode,
                    forebear=self._forebear(plan.archive),
                    storage=storage,
                )
                stack.callback(storage.close, descriptor)
                storage.sync_directory(merge.intent_path.parent)
            merge.has_begun = True
            yield Advanced("copying", plan.archive, 0, plan.size_bytes)
            if merge.permit is None:
                yield from self._writer.copy(plan, descriptor)
            else:
                yield from self._writer.copy_shared(plan, descriptor, path, merge.permit)
            after = self._writer.write_directory(plan, descriptor, merge.intent)
            yield Advanced("syncing", plan.archive)
            storage.sync(descriptor)
            if self._options.verify:
                yield Advanced("verifying", plan.archive)
                self._writer.verify(plan, descriptor, path, is_shared=merge.permit is not None)
            return after, directories.fingerprint(descriptor, after, storage=storage)

    def _check_alone(self, target: FinalArchive, own: list[Path]) -> None:
        if intents_of(self._layout, target.archive, storage=self._storage) != own:
            raise FileExistsError(errno.EEXIST, "another merge into this archive is unfinished", str(target.path))

    def _check_unchanged(self, merge: _Merge) -> None:
        """Make sure, with the intent in place and before the first byte is written, that the plan is still right.

        A leader that comes later finds the intent, and gives the archive a new inode before it touches it.
        """
        self._leadership.prove()
        target = merge.target
        self._check_alone(target, [merge.intent_path])
        if target.descriptor is None:
            return
        look_anew(target.path, storage=self._storage)
        with opened(target.path, self._storage) as descriptor:
            now = directories.locate(descriptor, storage=self._storage)
            is_same = os.path.samestat(os.fstat(descriptor), os.fstat(target.descriptor))
            if not is_same or directories.fingerprint(descriptor, now, storage=self._storage) != merge.before:
                raise ZipFormatError(f"{target.path} was changed by somebody else while the merge was planned")

    def _undo(self, merge: _Merge) -> None:
        """Bring back the old archive after a failure, through what is open: names may be those of another leader by
        now.
        """
        intent, descriptor = merge.intent.descriptor, merge.target.descriptor
        if self._storage.size(intent) != merge.planned_length:
            # The commit may be on stable storage. If it cannot be taken back there, the next leader decides by it.
            self._storage.truncate(intent, merge.planned_length)
            self._storage.sync(intent)
        if merge.has_begun and descriptor is not None and merge.plan.old is not None:
            begin = read_begin(intent, storage=self._storage)
            self._recovery.undo_own(begin, merge.intent_path, descriptor, intent)
        void_intent(intent, storage=self._storage)
        self._recovery.clear(merge.intent_path)

    def _publish(self, plan: MergePlan, index: Index, before: str | None, fingerprint: str) -> None:
        now = time.time_ns()
        rows = map(_new_row, _index_rows(plan, now))
        removed = [(replaced.name, replaced.existing.target_start) for replaced in plan.replaced]
        try:
            index.publish(rows, fingerprint, previous=before, removed=removed)
        except OSError as error:
            # Derived data: an index that does not match is made again when it is needed.
            warn("the index of %s could not be written: %s", plan.archive, error)

    def _note(self, archive: str, candidates: Iterable[Candidate], intent: str) -> None:
        self._leadership.prove()
        for claimed, sequences in sequences_of(candidates):
            self._claims.note(claimed, sequences, target=archive, intent=intent)


def _may_replace(target: FinalArchive, candidate: Candidate) -> bool:
    """Whether all who could have written a pair could have replaced an archive with bare hands."""
    claimed = candidate.claimed
    return counts_for_archive(status_of_pair(claimed), claimed.folder / claimed.pair.stem, target.path)


def _describe_stuck(archive: str, error: Exception, failure: OSError) -> str:
    return (
        f"{error}; and the merge could not be undone at once: {failure}. Until the next scavenge can do it, other "
        f"programs may not be able to read {archive}; rear reads it as it was before. Free some space, or mend what "
        "failed, and scavenge again"
    )


def _index_rows(plan: MergePlan, archived_ns: int) -> Iterator[tuple[Any, ...]]:
    """Yield the values of an `IndexRow` for each new member."""
    for start in range(0, len(plan.placements), AT_ONCE):
        candidates, names, starts, lengths, _ = zip(*plan.placements[start : start + AT_ONCE], strict=True)
        claimed, appends = zip(*candidates, strict=True)
        fields: Any = Append._make(zip(*appends, strict=True))
        ends = map(add, starts, lengths)
        hosts, workers = [one.pair.host for one in claimed], [one.pair.worker for one in claimed]
        yield from zip(
            names, fields.source, fields.source_start, fields.source_end, starts, ends, [archived_ns] * len(names),
            fields.size, fields.compressed_size, fields.method, fields.crc, fields.mtime_ns, fields.mode, hosts,
            workers, fields.sequence, map(unpacked, fields.metadata), strict=True,
        )  # fmt: skip


_new_row: Final = partial(tuple.__new__, IndexRow)
