"""Checks of many members of any archive that an executor does.

What a task tells is only a hint, as in `rear.scavenger.check_tasks`: whoever asked looks again at what was not found
right, and that counts.
"""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from rear.core.parallel import Parallel, cut, is_much, open_same
from rear.core.storage import Storage
from rear.errors import FormatError, UnsupportedError, ZipFormatError
from rear.zip.archive import Archive
from rear.zip.codecs import STORED
from rear.zip.directory import Directory
from rear.zip.headers import CentralEntry
from rear.zip.member_ends import member_end, sound_ends, verify

LOCAL_CHECK_SECONDS = 0.7
"""Processes of this host have to start first, so they are not asked for what one alone does in about this time."""
#: What one process takes for a member, for a stored byte and for a plain byte that has to be decoded.
_MEMBER_SECONDS = 4e-6
_STORED_BYTE_SECONDS = 0.3e-9
_DECODED_BYTE_SECONDS = 0.9e-9
#: Members that are smaller than this on the average are estimated without a look at each.
_LOOKED_AT_BYTES = 64 << 10


def is_worth_sharing(archive: Archive, parallel: Parallel) -> bool:
    """Whether an executor checks the members of an archive sooner than this process alone would."""
    directory = archive.directory
    if not parallel.has_executor or not is_much(directory.offset, directory.entries):
        return False
    return not parallel.is_local or _seconds_alone(archive) >= LOCAL_CHECK_SECONDS


def _seconds_alone(archive: Archive) -> float:
    """Estimate how long one process takes, once the file is in memory: memory gives stored bytes as fast to one."""
    directory = archive.directory
    seconds = directory.entries * _MEMBER_SECONDS
    if directory.offset < directory.entries * _LOOKED_AT_BYTES:
        return seconds + directory.offset * _DECODED_BYTE_SECONDS
    # Who reads it for good tells of damage.
    with suppress(ZipFormatError):
        for entry in archive.entries():
            is_stored = entry.method == STORED
            seconds += entry.compressed_size * _STORED_BYTE_SECONDS if is_stored else entry.size * _DECODED_BYTE_SECONDS
    return seconds


class ListedMembers(NamedTuple):
    """Some members of one archive, as its directory tells of them."""

    path: str
    inode: int
    directory: Directory
    entries: tuple[CentralEntry, ...]


def checked_entries(archive: Archive, parallel: Parallel) -> Iterator[tuple[CentralEntry, int]]:
    """Yield all entries of an archive, each with where its member ends; 0 unless an executor has found it all right.

    All right: the local header agrees with the entry, the data ends before the directory, size and CRC-32 are right.

    Args:
        archive: open.
        parallel: the executor.

    Raises:
        ZipFormatError: the directory is damaged; all entries before that have been yielded.
    """
    inode, directory = os.fstat(archive.descriptor).st_ino, replace(archive.directory, comment=b"")
    entries = archive.entries()
    rest: list[CentralEntry] = []
    failures: list[ZipFormatError] = []

    def readable() -> Iterator[CentralEntry]:
        # Members that overlap must not have the same bytes read a million times.
        budget = directory.archive_length
        try:
            for entry in entries:
                budget -= entry.compressed_size
                if budget < 0:
                    rest.append(entry)
                    return
                yield entry
        except ZipFormatError as error:
            failures.append(error)

    tasks = (ListedMembers(archive.path, inode, directory, batch) for batch in cut(readable(), _sizes_of_entry))
    for task, ends in parallel.run(find_ends, tasks, here=lambda task: array("Q", bytes(8 * len(task.entries)))):
        yield from zip(task.entries, ends, strict=True)
    if failures:
        raise failures[0]
    yield from ((entry, 0) for entry in chain(rest, entries))


def _sizes_of_entry(entry: CentralEntry) -> tuple[int, int]:
    read = entry.compressed_size if entry.method == STORED else max(entry.compressed_size, entry.size)
    return read, len(entry.name_bytes) + len(entry.extra) + len(entry.comment)


def find_ends(task: ListedMembers, storage: Storage) -> array[int]:
    """Read members; return where each ends, or 0 unless all is right with it.

    Raises:
        OSError: the archive cannot be read, or (``ECANCELED``) is another file.
    """
    descriptor = open_same(task.path, task.inode, storage)
    # All that is asked of the directory is in the entries.
    with Archive(task.path, descriptor, task.directory, io.BytesIO(), storage) as archive:
        ends = sound_ends(archive, task.entries, read_data=True)
        return array("Q", (end or _end_if_right(archive, entry) for entry, end in ends))


def _end_if_right(archive: Archive, entry: CentralEntry) -> int:
    with suppress(FormatError, UnsupportedError):
        end, difference = member_end(archive, entry)
        if difference is None and end <= archive.directory.offset:
            verify(archive, entry)
            return end
    return 0
