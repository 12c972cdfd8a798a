"""The index of one final archive: which members it has, where they are and where they came from.

SQLite must not modify a file on a network file system, so an index is a folder of *immutable segments*, ``<n>.sqlite``.
Each merge builds one small file on local disk, copies it under a temporary name, syncs it, renames it and syncs the
folder.

The newest segment names all older ones that still count, by number and by a random identity. So one rename takes an
index from one state to the next, whatever else lies in the folder, and segments of another writer that took the same
number do not fit in. Numbers only grow. A merge takes small segments of before into its own, which keeps them few: each
is more than twice as large as the next newer one, unless it is tiny.

The index is derived data. What cannot be read is as if absent, and `Index.matches` tells whether what is there mirrors
the archive.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, TypeVar

from rear.core.layout import Layout, make_in_base
from rear.core.storage import LOCAL, PRIVATE_MODE, Storage, created, opened
from rear.core.trust import counts_for_archive
from rear.errors import FutureVersionError, IndexFormatError
from rear.index.belief import why_not_believed
from rear.index.rows import rows_of
from rear.index.segment import (
    PART_SUFFIX,
    Below,
    IndexRow,
    MemberKey,
    OriginKey,
    Segment,
    SourceKey,
    parse_number,
    parse_segment_name,
    segment_name,
)
from rear.index.segment_reader import SegmentReader, read_segment
from rear.index.segment_writer import SegmentWriter

__all__ = ["Index", "IndexRow", "MemberKey", "OriginKey", "SourceKey", "rows_of"]

SMALL_MEMBERS: Final = 4_096
"""Segments up to this size are always taken into the next one: writing them again costs some milliseconds."""
_LARGEST_NUMBER: Final = 10**14
"""Who adds one at a time comes to none above: such a segment is forged, and would leave no next number."""
_ATTEMPTS: Final = 5

_K = TypeVar("_K")
_T = TypeVar("_T")


class Index:
    """The index of one final archive, as it was when it was opened or last written by this object.

    Any number of processes may read; only the leading scavenger writes. A reader that finds segments replaced meanwhile
    goes on with the new ones.

    Attributes:
        segments: those that count, oldest first.
        problems: what else lies in the folder and should not, one sentence each.
    """

    def __init__(self, layout: Layout, archive: str, *, storage: Storage = LOCAL) -> None:
        self.archive = archive
        self.segments: list[Segment] = []
        self.problems: list[str] = []
        self._layout, self._storage = layout, storage
        self._folder = layout.index(archive)
        self._earlier_name = archive
        self._base = layout.base if layout.base.is_dir() else None

    @classmethod
    def open(cls, layout: Layout, archive: str, *, storage: Storage = LOCAL) -> Index:
        """Find the segments of an archive's index; a missing index is an empty one.

        Raises:
            PathError: ``archive`` is no path of a final archive.
            OSError: the folder cannot be read.
        """
        index = cls(layout, archive, storage=storage)
        index._load()
        return index

    # ---- what it knows

    @property
    def count(self) -> int:
        """How many members it knows."""
        return sum(segment.members - segment.removed for segment in self.segments)

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the central directory that it mirrors; ``None`` of an empty index."""
        return self.segments[-1].fingerprint if self.segments else None

    @property
    def end(self) -> int:
        """Where in the archive the last of the members ends that it knows.

        Raises:
            IndexFormatError, OSError: as `find`.
        """
        return self._read(self._end)

    def matches(self, fingerprint: str, entries: int) -> bool:
        """Whether it mirrors the central directory of this fingerprint and number of entries."""
        return self.fingerprint == fingerprint and self.count == entries

    def find(self, names: Iterable[str]) -> dict[str, IndexRow]:
        """Return the rows of those names that are taken; where a name occurs twice, the last one.

        Raises:
            IndexFormatError: a segment is damaged: rebuild the index.
            OSError: a segment cannot be read.
        """
        return self._find_newest(names, lambda reader, some: reader.find(sorted(some)))

    def find_origins(self, keys: Iterable[OriginKey]) -> dict[OriginKey, IndexRow]:
        """Return the rows of members by host, worker and sequence number. It reads all rows: ask for many at once.

        Raises:
            IndexFormatError, OSError: as `find`.
        """
        return self._find_newest(keys, SegmentReader.find_origins)

    def find_sources(self, keys: Iterable[SourceKey]) -> dict[SourceKey, IndexRow]:
        """Return the rows of members by source, size and mtime; the last one of each. It reads all rows, as above.

        Raises:
            IndexFormatError, OSError: as `find`.
        """
        return self._find_newest(keys, SegmentReader.find_sources)

    def rows(self) -> Iterator[IndexRow]:
        """Yield all rows in the order of the central directory.

        Raises:
            IndexFormatError, OSError: as `find`; also when another host removes a segment on NFS while it is read.
        """
        stack, readers = self._read(self._open_all)
        with stack:
            for reader in readers:
                yield from reader.rows()

    def select(self, condition: str, parameters: Sequence[str | int]) -> Iterator[IndexRow]:
        """Yield the rows that fulfil an SQL condition on the columns of ``members``, in the order of `rows`.

        Raises:
            IndexFormatError, OSError: as `rows`.
        """
        stack, readers = self._read(self._open_all)
        with stack:
            for reader in readers:
                yield from reader.select(condition, parameters)

    def _find_newest(
        self, keys: Iterable[_K], ask: Callable[[SegmentReader, set[_K]], dict[_K, IndexRow]]
    ) -> dict[_K, IndexRow]:
        wanted = set(keys)

        def find() -> dict[_K, IndexRow]:
            found: dict[_K, IndexRow] = {}
            for segment, newer in reversed(_with_newer(self.segments)):
                if len(found) < len(wanted):
                    with SegmentReader(segment, newer) as reader:
                        found.update(ask(reader, wanted - found.keys()))
            return found

        return self._read(find)

    def _end(self) -> int:
        stack, readers = self._open_all()
        with stack:
            return max((reader.end() for reader in readers), default=0)

    def _open_all(self) -> tuple[ExitStack, list[SegmentReader]]:
        with ExitStack() as stack:
            readers = [stack.enter_context(SegmentReader(*pair)) for pair in _with_newer(self.segments)]
            return stack.pop_all(), readers

    def _read(self, question: Callable[[], _T]) -> _T:
        """Ask again when newer segments took the place of those that were read."""
        for _ in range(_ATTEMPTS):
            newest = self._newest_number
            try:
                return question()
            except (IndexFormatError, OSError):
                self._load()
                # An index that lost segments is no newer one: its answer would be "not taken".
                if self._newest_number <= newest:
                    raise
        raise OSError(errno.ESTALE, "the index is replaced faster than it can be read", str(self._folder))

    # ---- what is there

    @property
    def _newest_number(self) -> int:
        return self.segments[-1].number if self.segments else 0

    def _load(self) -> None:
        names = self._storage.names(self._folder)
        for _ in range(_ATTEMPTS):
            self.segments, self.problems = [], []
            self._load_newest(names)
            if not self.problems:
                return
            # Segments may have vanished because newer ones replace them: only a second look can tell.
            names, before = self._storage.names(self._folder), names
            if names == before:
                return

    def _load_newest(self, names: list[str]) -> None:
        numbers = sorted((number for name in names if (number := parse_segment_name(name)) is not None), reverse=True)
        for number in numbers:
            newest = self._read_segment(number)
            if newest is None:
                continue
            below = [self._read_segment(key.number, key) for key in newest.below]
            segments = [segment for segment in below if segment is not None]
            if len(segments) == len(below):
                self.segments = [*segments, newest]
                return
            self.problems.append(f"{newest.path}: segments below it are missing")

    def _read_segment(self, number: int, key: Below | None = None) -> Segment | None:
        path = self._folder / segment_name(number)
        try:
            segment = read_segment(path, storage=self._storage)
        except (FutureVersionError, IndexFormatError, OSError) as error:
            self.problems.append(str(error))
            return None
        reason = why_not_believed(segment, self._layout.archive(self.archive), (self.archive, self._earlier_name))
        if reason is not None:
            self.problems.append(f"{path}: {reason}; it does not count")
            return None
        if key is not None and segment.key != key:
            self.problems.append(f"{path}: another segment than the one that was built upon")
            return None
        return segment

    # ---- how it grows

    def publish(
        self,
        rows: Iterable[IndexRow],
        fingerprint: str,
        *,
        previous: str | None,
        removed: Iterable[MemberKey] = (),
    ) -> bool:
        """Add the rows of one merge, after its commit. Again, after a crash at whatever point, it changes nothing more.

        Args:
            rows: the new members, in the order of the central directory.
            fingerprint: of the central directory after the merge.
            previous: of the central directory before the merge; ``None`` when there was none: the index begins anew.
            removed: members of before (name and target start) that are in the central directory no more.

        Returns:
            Whether the index now mirrors ``fingerprint``. ``False``: it did not mirror ``previous`` or is damaged, and
            nothing was changed: use `rebuild`.

        Raises:
            OSError: the index is as before, or as it should be; with ``ENOSPC`` and the temporary folder's path, there
                is no room on local disk.
        """
        self._load()
        if self.fingerprint == fingerprint:
            self._clean()
            return True
        if previous is not None and self.fingerprint != previous:
            return False
        try:
            self._write(rows, fingerprint, self.segments if previous is not None else [], removed)
        except IndexFormatError as error:
            self.problems.append(str(error))
            return False
        return True

    def rebuild(self, rows: Iterable[IndexRow], fingerprint: str) -> None:
        """Replace all by the rows of a whole archive, in the order of its central directory.

        Raises:
            OSError: as `publish`.
            IndexFormatError: a row cannot be stored.
        """
        self._write(rows, fingerprint, [], ())

    def _write(
        self, rows: Iterable[IndexRow], fingerprint: str, segments: list[Segment], removed: Iterable[MemberKey]
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="rear-index-") as scratch, ExitStack() as stack:
            writer = stack.enter_context(SegmentWriter(Path(scratch, "new.sqlite")))
            added = writer.add(rows, removed=removed)
            kept, absorbed = _split(segments, added)
            if absorbed:
                writer.close()
                merged = stack.enter_context(SegmentWriter(Path(scratch, "merged.sqlite")))
                for segment in absorbed:
                    merged.absorb(segment.path, members=segment.members)
                    segment.check_place()
                merged.absorb(writer.path, members=added)
                writer = merged
            number, identity = self._next_number(), secrets.token_hex(8)
            writer.finish(
                number=number,
                identity=identity,
                archive=self.archive,
                fingerprint=fingerprint,
                below=kept,
                created_ns=time.time_ns(),
            )
            self._install(writer.path, self._folder / segment_name(number), identity)
        self._load()
        self._clean()

    def _next_number(self) -> int:
        # Of damaged segments and of temporary names too: a name is never used twice, caches of other hosts may know it.
        names = self._storage.names(self._folder)
        numbers = {name: number for name in names if (number := parse_number(name)) is not None}
        forged = [name for name, number in numbers.items() if number > _LARGEST_NUMBER]
        for name in forged:
            self._unlink(name)
        taken = max((number for number in numbers.values() if number <= _LARGEST_NUMBER), default=0)
        # Which numbers there were before is not known then.
        return taken + 1 + (secrets.randbelow(1 << 32) if forged else 0)

    def _install(self, source: Path, target: Path, identity: str) -> None:
        storage = self._storage
        make_in_base(self._base, self._folder, storage=storage)
        part = target.with_name(f"{target.stem}-{identity}{PART_SUFFIX}")
        try:
            with ExitStack() as stack:
                source_descriptor = stack.enter_context(opened(source, storage))
                target_descriptor = stack.enter_context(created(part, storage, mode=0o600))  # then as the archive
                path = self._layout.archive(self.archive)
                with suppress(OSError), opened(path, storage) as archive:
                    storage.copy_owner_and_mode(archive, target_descriptor)
                    if not counts_for_archive(os.fstat(target_descriptor), part, path):
                        # What others may write says nothing; what its owner may not does not, either.
                        storage.set_mode(target_descriptor, storage.mode(target_descriptor) & PRIVATE_MODE | 0o200)
                size = storage.size(source_descriptor)
                storage.copy_range(source_descriptor, target_descriptor, source_start=0, target_start=0, length=size)
                storage.sync(target_descriptor)
            storage.rename(part, target)
        except OSError:
            self._unlink(part.name)
            raise
        storage.sync_directory(self._folder)

    def _clean(self) -> None:
        """Remove segments that count no more and remains of writers that died; what cannot be removed waits."""
        if not self.segments:
            return
        newest = self._newest_number
        live = {segment.path.name for segment in self.segments}
        for name in self._storage.names(self._folder):
            number = parse_number(name)
            if number is not None and number <= newest and name not in live and not self._is_of_the_future(name):
                self._unlink(name)

    def _is_of_the_future(self, name: str) -> bool:
        try:
            read_segment(self._folder / name, storage=self._storage)
        except (FutureVersionError, IndexFormatError, OSError) as error:
            return isinstance(error, FutureVersionError)
        return False

    def _unlink(self, name: str) -> None:
        try:
            self._storage.unlink(self._folder / name)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.problems.append(f"not removed: {error}")

    # ---- what becomes of it

    def rename(self, archive: str) -> Index:
        """Move the index along with its archive, which is called ``archive`` now. Doing it again changes nothing.

        What lies at the new place is replaced, unless there is nothing to move.

        Raises:
            PathError: ``archive`` is no path of a final archive.
            OSError: the folder could not be renamed; both indexes are incomplete at worst, and so as if absent.
        """
        target = Index(self._layout, archive, storage=self._storage)
        if self._storage.names(self._folder):
            target.remove()
            self._storage.make_directories(target._folder.parent)
            self._storage.rename(self._folder, target._folder)
            self._storage.sync_directory(target._folder.parent)
            if self._folder.parent != target._folder.parent:
                self._storage.sync_directory(self._folder.parent)
        self._load()
        target._earlier_name = self._earlier_name
        target._load()
        return target

    def remove(self) -> None:
        """Remove all segments, the oldest first, so that what a crash leaves is incomplete and as if absent.

        Raises:
            OSError: something could not be removed.
        """
        names = self._storage.names(self._folder)
        for _, name in sorted((number, name) for name in names if (number := parse_number(name)) is not None):
            self._storage.unlink(self._folder / name)
        self._load()
        if not self._storage.names(self._folder):
            with suppress(FileNotFoundError):
                self._storage.remove_directory(self._folder)


def _with_newer(segments: list[Segment]) -> list[tuple[Segment, list[Segment]]]:
    """Return each segment with all that are newer."""
    return [(segment, segments[position:]) for position, segment in enumerate(segments, 1)]


def _split(segments: list[Segment], members: int) -> tuple[list[Segment], list[Segment]]:
    """Return the older segments that stay and those that a new one of so many members takes in.

    Each one that stays is more than twice as large as the next newer one, so there are logarithmically many, and a
    row is written again logarithmically often.
    """
    position = len(segments)
    while position and segments[position - 1].members <= max(2 * members, SMALL_MEMBERS):
        position -= 1
        members += segments[position].members
    return segments[:position], segments[position:]
