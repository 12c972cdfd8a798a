"""What final archives hold already, as they are committed: members by their names, files by path, size and mtime.

A file counts as archived when the index has its path, size and mtime, or when the member that it would become is there
with exactly its bytes: one that was only touched is not archived again. Archives that were rolled over from the final
archive count too. Where an index does not mirror its archive, one is made for the moment on local disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import Final, NamedTuple, TypeVar

from rear.core.layout import Layout
from rear.core.names import numbered
from rear.core.records import recorded_time_ns
from rear.core.storage import Storage, opened
from rear.errors import RearError, ZipFormatError
from rear.index.index import Index, IndexRow, SourceKey
from rear.index.scratch_index import scratch_index
from rear.ingest.source_tree import SourceEntry, SourceTree
from rear.journal.intent import intents_of
from rear.journal.pending import pending_members
from rear.read.view import open_committed
from rear.scavenger.rollover import MAY_BE_BEHIND, rolled_over_from
from rear.zip.archive import Archive
from rear.zip.headers import CentralEntry

_NUMBERS_LIMIT: Final = 100
"""So many members ``a~1.txt``, ``a~2.txt``, … are compared with a file that was only touched; then it is archived."""
_TRIES: Final = 20
_T = TypeVar("_T")
_PAUSE_SECONDS: Final = 0.1


class HeldMember(NamedTuple):
    """Where the bytes of a file are: the final archive, and the index's row of the member."""

    archive: str
    row: IndexRow


def key_of(source: SourceEntry) -> SourceKey:
    """Return what the index knows a file by."""
    return source.path, source.stamp.size, recorded_time_ns(source.stamp.mtime_ns)


class CommittedArchives:
    """One final archive and those that were rolled over from it, as they are committed.

    Args:
        layout: the base.
        archive: path of the final archive, relative to the base.
        storage: the file system.
    """

    def __init__(self, layout: Layout, archive: str, *, storage: Storage) -> None:
        self._layout = layout
        self._archive = archive
        self._storage = storage

    def indexes(self, stack: ExitStack) -> Iterator[tuple[str, Index]]:
        """Yield the final archive and those that were rolled over from it, each with an index that mirrors it.

        Raises:
            RearError, OSError: an archive or its index cannot be read.
        """
        # Listed after the final archive was opened: it may be renamed meanwhile, and is met twice then.
        for number, archive in enumerate(chain([self._archive], self._rolled_over())):
            index = Index.open(self._layout, archive, storage=self._storage)
            # Full archives do not change any more.
            if number < MAY_BE_BEHIND or not index.segments:
                try:
                    shown = stack.enter_context(self.open_archive(archive))
                except FileNotFoundError:
                    continue
                index = self._mirroring(index, shown, stack)
            yield archive, index

    def _rolled_over(self) -> Iterator[str]:
        yield from rolled_over_from(self._layout, self._archive, storage=self._storage)

    def find_named(self, names: Mapping[_T, str], is_same: Callable[[_T, IndexRow], bool]) -> dict[_T, HeldMember]:
        """Return where members are: under their name, or under one that a merge gave them, as ``a~1.txt``.

        Args:
            names: of what is looked for.
            is_same: whether a row tells of it.

        Raises:
            RearError, OSError: an archive or its index cannot be read.
        """
        held: dict[_T, HeldMember] = {}
        with ExitStack() as stack:
            for archive, index in self.indexes(stack):
                missing = {wanted: name for wanted, name in names.items() if wanted not in held}
                for rows in _numbered_rows(index, missing):
                    for wanted, row in rows.items():
                        if is_same(wanted, row):
                            held[wanted] = HeldMember(archive, row)
                            del missing[wanted]
        return held

    def _mirroring(self, index: Index, archive: Archive, stack: ExitStack) -> Index:
        """Return the index, or where it does not mirror its archive, another one that is thrown away afterwards."""
        if index.matches(archive.fingerprint, archive.directory.entries):
            return index
        return stack.enter_context(scratch_index(index.archive, archive))

    def open_archive(self, archive: str) -> Archive:
        """Open a final archive as it is committed; errors are those of `rear.read.view.open_committed`."""
        return open_committed(self._layout.archive(archive), storage=self._storage)

    def open_durable(self, archive: str) -> Archive:
        """Open a final archive of which everything that is shown survives a loss of power.

        A commit that is being written may be seen before it is on stable storage. Afterwards comes the index, and at
        last the intent goes: either tells that it is.

        Raises:
            RearError: a merge is being committed just now, or was left like that.
            OSError: it cannot be read or synced.
        """
        for _ in range(_TRIES):
            with ExitStack() as stack:
                shown = stack.enter_context(self.open_archive(archive))
                index = Index.open(self._layout, archive, storage=self._storage)
                is_current = index.matches(shown.fingerprint, shown.directory.entries)
                if is_current or not intents_of(self._layout, archive, storage=self._storage):
                    # What another program has added is in nobody's commit.
                    with opened(shown.path, self._storage) as descriptor:
                        self._storage.sync(descriptor)
                    stack.pop_all()
                    return shown
            time.sleep(_PAUSE_SECONDS)
        raise RearError("a merge into it is not yet complete")


class SourceIndex(CommittedArchives):
    """Looks files up in the indexes of one final archive and of those that were rolled over from it.

    Args:
        layout: the base.
        archive: path of the final archive, relative to the base.
        name_of: the name of the member that a file becomes.
        storage: the file system.
    """

    def __init__(
        self, layout: Layout, archive: str, name_of: Callable[[SourceEntry], str], *, storage: Storage
    ) -> None:
        super().__init__(layout, archive, storage=storage)
        self._name_of = name_of

    def find(self, sources: Iterable[SourceEntry], tree: SourceTree) -> dict[SourceEntry, HeldMember]:
        """Return where those files are that are archived; ask for many at once: it reads whole indexes.

        Raises:
            RearError, OSError: an archive or its index cannot be read.
        """
        missing = {key_of(source): source for source in sources}
        held: dict[SourceEntry, HeldMember] = {}
        with ExitStack() as stack:
            for archive, index in self.indexes(stack):
                if missing:
                    for key, row in index.find_sources(missing).items():
                        if (row.source_start, row.source_end) == (0, row.size):
                            held[missing.pop(key)] = HeldMember(archive, row)
        if missing:
            held.update(self._find_same(list(missing.values()), tree))
        return held

    def _find_same(self, sources: list[SourceEntry], tree: SourceTree) -> dict[SourceEntry, HeldMember]:
        """Return those files whose bytes are in the member that they would become, or in ``a~1.txt`` and so on."""
        same: dict[SourceEntry, HeldMember] = {}
        with ExitStack() as stack:
            try:
                archive = stack.enter_context(self.open_archive(self._archive))
            except FileNotFoundError:
                return same
            index = self._mirroring(Index.open(self._layout, self._archive, storage=self._storage), archive, stack)
            missing = {source: self._name_of(source) for source in sources}
            for rows in _numbered_rows(index, missing):
                members = Members(archive, rows.values(), storage=self._storage)
                for source, row in rows.items():
                    if self._is_same(members, source, row, tree):
                        same[source] = HeldMember(self._archive, row)
                        del missing[source]
        return same

    def _is_same(self, members: Members, source: SourceEntry, row: IndexRow, tree: SourceTree) -> bool:
        is_file = row.mode is None or row.mode >> 12 in (0, 0o10)
        if row.size != source.stamp.size or not is_file:
            return False
        try:
            return members.has(row, source, tree)
        except (RearError, OSError):
            # What cannot be compared is archived, or cannot be read: then the one who archives it says so.
            return False

    def pending(self, root: str) -> set[int]:
        """Return what is on its way into the archive: hashes of the keys of files below ``root`` that journals name."""
        # Of a journal that cannot be read a file is archived twice at worst, and the merge keeps one copy.
        appends = (member.append for member in pending_members(self._layout, self._archive, storage=self._storage))
        return {
            hash((append.source, append.size, append.mtime_ns))
            for append in appends
            if append.source and append.source.startswith(root)
        }


class Members:
    """Some members of an open archive, to be compared with files.

    Args:
        archive: the open archive.
        rows: what the index says of the members.
        storage: the file system.
    """

    def __init__(self, archive: Archive, rows: Iterable[IndexRow], *, storage: Storage) -> None:
        self._archive = archive
        self._storage = storage
        wanted: dict[str, set[int]] = {}
        for row in rows:
            wanted.setdefault(row.name, set()).add(row.target_start)
        self._entries: dict[tuple[str, int], CentralEntry] = {}
        for position, name in archive.names():
            if name in wanted:
                entry = archive.entry_at(position)
                start = entry.offset + archive.directory.prefix
                if start in wanted[name]:
                    self._entries[name, start] = entry

    def entry(self, row: IndexRow) -> CentralEntry:
        """Return the directory entry of a member.

        Raises:
            ZipFormatError: the member is not where the index says.
        """
        entry = self._entries.get((row.name, row.target_start))
        if entry is None:
            raise ZipFormatError(f"{self._archive.path} has no member {row.name!r:.300} at byte {row.target_start:,}")
        return entry

    def has(self, row: IndexRow, source: SourceEntry, tree: SourceTree) -> bool:
        """Whether a member decodes to exactly the bytes of a file.

        Raises:
            ZipFormatError: the member is not where the index says, or is damaged.
            UnsupportedError: it cannot be decoded here.
            SourceError: the file is another one by now, or has changed since it was found.
            OSError: one of the two cannot be read; ``FileNotFoundError``: the file has gone.
        """
        with tree.opened(source) as descriptor:
            position = 0
            # All of it, although the first difference would do: the CRC-32 is compared at the end.
            is_same = True
            for piece in self._archive.read(self.entry(row)):
                is_same = is_same and self._storage.read(descriptor, len(piece), position) == piece
                position += len(piece)
            return is_same and not self._storage.read(descriptor, 1, position)


def _numbered_rows(index: Index, missing: Mapping[_T, str]) -> Iterator[dict[_T, IndexRow]]:
    """Look names up, then the same with 1, 2, … behind them; yield the rows that there are for each number.

    Args:
        index: where they are looked up.
        missing: what is looked for, and its name; what the caller takes out meanwhile is looked for no longer.
    """
    candidates: Iterable[_T] = missing
    for number in range(_NUMBERS_LIMIT):
        names = {wanted: missing[wanted] for wanted in candidates if wanted in missing}
        if number:
            names = {wanted: numbered(name, number) for wanted, name in names.items()}
        rows = index.find(names.values())
        # A number that is free ends the numbers: see `rear.scavenger.plan`.
        candidates = [wanted for wanted, name in names.items() if name in rows]
        if not candidates:
            return
        yield {wanted: rows[names[wanted]] for wanted in candidates}
