"""Checks of many members that an executor does: journaled ones, merged ones, those of any archive.

A task names a file and what should be in it, and tells what it did not find whole. That is only a hint: another host
may have an older view of a file, or lack a codec. So whoever asked looks at such a member again, and that counts.
A member is read by one task as a whole, however large it is.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rear.core.parallel import _TRAVELLING_BYTES, TASK_BYTES, TASK_MEMBERS, Parallel, cut, is_much, open_same
from rear.core.records import Append, Open
from rear.core.storage import Storage, opened
from rear.errors import FormatError, UnsupportedError
from rear.journal.check import why_bad
from rear.scavenger.claims import ClaimedPair
from rear.scavenger.plan import Placement
from rear.zip.codecs import is_whole
from rear.zip.headers import decode_local_header, local_header_length
from rear.zip.member_data import has_content
from rear.zip.origin import decode_origin
from rear.zip.window import Window

_SMALL_BYTES = 1 << 20
_HEAD_BYTES = 1 << 10
"""Local headers are seldom longer, so that header and data of a small member are read at once."""


# ---- journaled members


class JournaledMembers(NamedTuple):
    """Some members of one temp archive, as its journal tells of them."""

    path: str
    opened: Open
    appends: tuple[Append, ...]


def find_bad(parts: tuple[JournaledMembers, ...], storage: Storage) -> list[list[int]]:
    """Read journaled members; return of each part the sequence numbers of those that were not found whole.

    Raises:
        OSError: a temp archive cannot be read.
    """
    return [_find_bad(part, storage) for part in parts]


def _find_bad(part: JournaledMembers, storage: Storage) -> list[int]:
    with opened(part.path, storage) as descriptor:
        window = Window(descriptor, 0, storage.size(descriptor), storage=storage)

        def is_whole(append: Append) -> bool:
            try:
                return not why_bad(descriptor, append, part.opened, window=window, read_data=True, storage=storage)
            except UnsupportedError:
                return False

        return [append.sequence for append in part.appends if not is_whole(append)]


class CheckedAhead:
    """Checks the journaled members of a round on an executor, ahead of who asks for them pair by pair.

    ``wanted`` are pairs in the order in which they will be asked for.
    """

    def __init__(self, wanted: Iterable[ClaimedPair], parallel: Parallel) -> None:
        self._results: Generator[tuple[tuple[JournaledMembers, ...], list[list[int]] | None], None, None] | None = None
        #: By path of the temp archive: how many members are still to come back, and which came back whole.
        self._missing: dict[str, int] = {}
        self._whole: dict[str, dict[int, Append]] = {}
        if not parallel.has_executor:
            return
        all_members = [
            JournaledMembers(os.fspath(claimed.temp_archive), claimed.opened, tuple(claimed.journal.pending()))
            for claimed in wanted
        ]
        count = sum(len(members.appends) for members in all_members)
        length = sum(append.length for members in all_members for append in members.appends)
        if is_much(length, count):
            self._missing = {members.path: len(members.appends) for members in all_members}
            # What fails is looked at by who asks.
            self._results = parallel.run(find_bad, _batches(all_members), here=lambda parts: None)

    def take(self, claimed: ClaimedPair) -> dict[int, Append]:
        """Wait for the members of a pair, and return those that were found whole, by sequence number."""
        path = os.fspath(claimed.temp_archive)
        while self._results is not None and self._missing.get(path):
            parts, found = next(self._results)
            for number, part in enumerate(parts):
                self._missing[part.path] -= len(part.appends)
                bad = None if found is None else set(found[number])
                if bad is not None:
                    whole = self._whole.setdefault(part.path, {})
                    whole.update((one.sequence, one) for one in part.appends if one.sequence not in bad)
        return self._whole.pop(path, {})

    def close(self) -> None:
        """Cancel what nobody has asked for."""
        if self._results is not None:
            self._results.close()


def _batches(all_members: list[JournaledMembers]) -> Iterator[tuple[JournaledMembers, ...]]:
    """Put members together to tasks, across temp archives, and cut where one would become too large."""
    batch: list[JournaledMembers] = []
    count = length = travelling = 0
    for members in all_members:
        begin = 0
        for number, append in enumerate(members.appends):
            count, length = count + 1, length + append.length
            # A local header holds what the record does.
            travelling += append.length - append.compressed_size
            if count >= TASK_MEMBERS or length >= TASK_BYTES or travelling >= _TRAVELLING_BYTES:
                yield (*batch, members._replace(appends=members.appends[begin : number + 1]))
                batch, begin = [], number + 1
                count = length = travelling = 0
        if begin < len(members.appends):
            batch.append(members._replace(appends=members.appends[begin:]))
    if batch:
        yield tuple(batch)


# ---- merged members


class MergedMember(NamedTuple):
    """A member, and where its local header begins in the final archive."""

    name: str
    start: int
    method: int
    compressed_size: int
    size: int
    crc: int


class MergedMembers(NamedTuple):
    """Some members of one final archive, or of the new file that is to become it."""

    path: str
    inode: int
    members: tuple[MergedMember, ...]


def changed_members(
    placements: Iterable[Placement],
    *,
    path: Path,
    descriptor: int,
    is_shared: bool,
    parallel: Parallel,
    storage: Storage,
) -> Iterator[str]:
    """Read merged members back, and yield the names of those that are not what they were.

    ``is_shared`` says that an executor has copied them.

    Raises:
        UnsupportedError: a member cannot be decoded here.
        OSError: the archive cannot be read.
    """
    inode = os.fstat(descriptor).st_ino

    tasks = (
        MergedMembers(os.fspath(path), inode, batch)
        for batch in cut(map(_merged, placements), lambda one: (one.compressed_size, len(one.name)))
    )
    for task, suspects in parallel.run(find_changed, tasks, here=_all_of, is_worthwhile=is_shared):
        for number in suspects:
            if _is_changed(descriptor, task.members[number], storage):
                yield task.members[number].name


def _all_of(task: MergedMembers) -> Iterable[int]:
    return range(len(task.members))


def find_changed(task: MergedMembers, storage: Storage) -> list[int]:
    """Read merged members; return the numbers of those that were not found to be what they were.

    Raises:
        OSError: the archive cannot be read, or (``ECANCELED``) is another file.
    """
    descriptor = open_same(task.path, task.inode, storage)
    try:

        def is_changed(member: MergedMember) -> bool:
            try:
                return _is_changed(descriptor, member, storage)
            except (FormatError, UnsupportedError):
                return True

        return [number for number, member in enumerate(task.members) if is_changed(member)]
    finally:
        storage.close(descriptor)


def _is_changed(descriptor: int, member: MergedMember, storage: Storage) -> bool:
    is_small = max(member.compressed_size, member.size) <= _SMALL_BYTES
    first = storage.read(descriptor, _HEAD_BYTES + (member.compressed_size if is_small else 0), member.start)
    length = local_header_length(first)
    if len(first) < length:
        first = storage.read(descriptor, length, member.start)
    header = decode_local_header(first[:length])
    if decode_origin(first[:length]) is None:
        # Its checksum covers all of the header.
        return True
    data = memoryview(first)[length : length + member.compressed_size]
    if header.name != member.name.encode():
        return True
    if is_small and is_whole(data, member.method, member.size, member.crc):
        return False
    return not has_content(
        descriptor,
        member.start + header.length,
        member.compressed_size,
        member.method,
        size=member.size,
        crc=member.crc,
        storage=storage,
    )


def _merged(placed: Placement) -> MergedMember:
    append = placed.candidate.append
    return MergedMember(
        placed.name, placed.target_start, append.method, append.compressed_size, append.size, append.crc
    )
