"""What a final archive holds already: which names are taken, and whether a member is the same as one that is there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import NamedTuple

from rear.core.descent import status_of
from rear.core.layout import Layout, check_owner, look_anew
from rear.core.parallel import identity_of, open_checked
from rear.core.permissions import is_shared
from rear.core.records import PARTIAL
from rear.core.storage import COPY_CHUNK_BYTES, Storage, close_read, opened
from rear.errors import FormatError, UnsupportedError, ZipFormatError
from rear.index.index import Index, IndexRow
from rear.scavenger.claims import ClaimedPair
from rear.scavenger.plan import Candidate, Existing
from rear.zip import directory as directories
from rear.zip.directory import Directory
from rear.zip.headers import decode_local_header, local_header_length
from rear.zip.member_data import member_content, size_and_crc
from rear.zip.structures import FLAG_ENCRYPTED, LOCAL


@dataclass(slots=True)
class FinalArchive:
    """A final archive, open for a merge; descriptor and directory are ``None`` when it does not exist yet."""

    archive: str
    path: Path
    descriptor: int | None
    directory: Directory | None

    def is_mirrored_by(self, index: Index, *, storage: Storage) -> bool:
        """Whether an index tells of exactly what the archive's directory says."""
        if self.descriptor is None or self.directory is None:
            return False
        fingerprint = directories.fingerprint(self.descriptor, self.directory, storage=storage)
        return index.matches(fingerprint, self.directory.entries)

    def is_older_than(self, index: Index) -> bool:
        """Whether an index tells of members behind the end of the archive, as this host sees it."""
        return self.directory is not None and bool(index.segments) and self.directory.offset < index.end


@contextmanager
def open_final_archive(layout: Layout, archive: str, *, storage: Storage, write: bool = True) -> Iterator[FinalArchive]:
    """Open a final archive for a merge.

    Raises:
        ZipFormatError: it is no Zip file that can be appended to.
        RearError, OSError: it cannot be used.
    """
    path = layout.archive(archive)
    check_owner(layout, path)
    look_anew(path, storage=storage)
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(opened(path, storage, write=write))
        except FileNotFoundError:
            yield FinalArchive(archive, path, None, None)
            return
        yield FinalArchive(archive, path, descriptor, directories.locate(descriptor, storage=storage))


def create_for(
    pairs: Iterable[ClaimedPair],
    path: Path,
    *,
    sharing: int | None,
    mode: int | None = None,
    forebear: os.stat_result | None = None,
    storage: Storage,
) -> int:
    """Make the file of a new final archive: open to no more users than each of the pairs that go into it.

    In a base that a group shares its members write to it, too, as far as they may read it. When all pairs are of one
    user, and another one (root) scavenges, it is given to that user, who could not read what was private otherwise.

    Args:
        pairs: those that go into it.
        path: where it is made.
        sharing: the group that shares the base; see `group_sharing`.
        mode: that it has instead.
        forebear: status of the archive that was full, and whose name it gets: it is no more open than that.
        storage: the file system.
    """
    found = [status_of_pair(pair) for pair in {pair.name: pair for pair in pairs}.values()]
    users, groups = {status.st_uid for status in found}, {status.st_gid for status in found}
    found += [] if forebear is None else [forebear]
    bits = reduce(and_, (status.st_mode for status in found), 0o666) if mode is None else mode
    if len({status.st_gid for status in found}) > 1:
        bits = _without_group(bits)
    if sharing is not None:
        # Temp archives are private, always; who is to merge has to write here.
        bits |= (bits & stat.S_IRGRP) >> 1
    descriptor = storage.create(path, bits | 0o600)
    if len(users) == len(groups) == 1:
        storage.give(descriptor, *users, *groups)
    made = os.fstat(descriptor)
    wanted = stat.S_IMODE(made.st_mode) if mode is None else mode
    if made.st_gid not in {*groups, sharing}:
        wanted = _without_group(wanted)
    if wanted != stat.S_IMODE(made.st_mode):
        storage.set_mode(descriptor, wanted)
    return descriptor


def _without_group(mode: int) -> int:
    """Return a mode without what it allows the group alone: what one group was allowed is not another one's."""
    return mode & (0o606 | (mode & 0o006) << 3)


def group_sharing(layout: Layout) -> int | None:
    """Return the group that shares a base, if one does: what goes into its archives is for all of its members."""
    return status_of(layout.base, follow=True).st_gid if is_shared(layout.state) else None


def too_open(archive: os.stat_result, pair: os.stat_result, *, sharing: int | None, mode: int | None) -> int:
    """Return the bits of those who may read a final archive and not a pair that is to go into it; 0 if there are none.

    Args:
        archive: its status.
        pair: status of the pair's temp archive.
        sharing: the group that shares the base.
        mode: what the setting ``archive_mode`` allows.
    """
    others = pair.st_mode & stat.S_IROTH
    group = pair.st_mode & stat.S_IRGRP if pair.st_gid == archive.st_gid else others << 3
    allowed = (stat.S_IRGRP if archive.st_gid == sharing else group) | others | (mode or 0)
    # Whoever may not read it has no business to write it.
    allowed |= (allowed & 0o044) >> 1
    found = archive.st_mode & 0o066
    if archive.st_uid not in (pair.st_uid, os.geteuid(), 0) and not allowed & 0o044:
        found |= stat.S_IRUSR
    return found & ~allowed


def status_of_pair(pair: ClaimedPair) -> os.stat_result:
    """Return owner and mode of a pair: of its temp archive, as checked, or of its journal where that is gone."""
    if pair.status is not None:
        return pair.status
    path = pair.folder / f"{pair.pair.stem}.zip"
    try:
        return status_of(path)
    except FileNotFoundError:
        return status_of(path.with_suffix(".journal"))


def is_as_checked(pair: ClaimedPair) -> bool:
    """Whether the file that holds a pair's members still is the one that was checked."""
    try:
        return pair.identity in (None, identity_of(status_of(pair.temp_archive)))
    except OSError:
        return False


@contextmanager
def opened_as_checked(pair: ClaimedPair, storage: Storage) -> Iterator[int]:
    """Open the file that holds a pair's members, in a block; errors are those of `open_checked`."""
    descriptor = open_checked(pair.temp_archive, pair.identity, storage)
    try:
        yield descriptor
    finally:
        close_read(descriptor, storage)


class IndexedNames:
    """Answers from the index which names a final archive has."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def find(self, names: Iterable[str]) -> dict[str, Existing]:
        """Return those of ``names`` that are taken."""
        return {name: _existing(row) for name, row in self._index.find(names).items()}


def _existing(row: IndexRow) -> Existing:
    is_plain = row.mode is None or row.mode >> 12 in (0, 0o10)
    end = row.target_end if row.target_end is not None else row.target_start
    is_partial = row.metadata is not None and row.metadata.get(PARTIAL) is True
    key = row.host, row.worker, row.sequence
    return Existing(row.crc, row.size, is_plain, row.target_start, end, key, is_partial=is_partial)


class NoNames:
    """The names of an archive that does not exist."""

    def find(self, names: Iterable[str]) -> dict[str, Existing]:
        return {}


class DirectoryNames:
    """Answers from the directory itself, for a dry run that may not make an index."""

    def __init__(self, target: FinalArchive, storage: Storage) -> None:
        self._target = target
        self._storage = storage

    def find(self, names: Iterable[str]) -> dict[str, Existing]:
        wanted = set(names)
        descriptor, directory = self._target.descriptor, self._target.directory
        assert descriptor is not None
        assert directory is not None
        found = {}
        for entry in directories.entries(descriptor, directory, storage=self._storage):
            if entry.name in wanted:
                start = entry.offset + directory.prefix
                found[entry.name] = Existing(
                    entry.crc, entry.size, entry.mode >> 12 in (0, 0o10), start, start, (None, None, None)
                )
        return found


class _Data(NamedTuple):
    """Where the data of a member is, in an open file."""

    descriptor: int
    start: int
    compressed_size: int
    method: int


class Comparison:
    """Compares a candidate's content with that of a member, byte by byte."""

    def __init__(self, target: FinalArchive | None, storage: Storage) -> None:
        self._target = target
        self._storage = storage

    def __call__(self, candidate: Candidate, existing: Existing) -> bool:
        """Whether both have the same content."""
        return self._compare(candidate, existing, max(candidate.append.size, existing.size))

    def begins_alike(self, candidate: Candidate, existing: Existing) -> bool:
        """Whether the content of one is the beginning of the other's."""
        return self._compare(candidate, existing, min(candidate.append.size, existing.size))

    def is_copy(self, candidate: Candidate, existing: Existing) -> bool:
        """Whether a member of the same identity has the candidate's content, so that the candidate can be done without.

        Size and CRC-32 alone do not say so: they may be forged for one that holds other bytes, or none.
        """
        append = candidate.append
        if (existing.size, existing.crc) != (append.size, append.crc):
            return False
        if self(candidate, existing):
            return True
        # It may be the candidate that is damaged.
        return self._is_whole(existing, existing.candidate) and not self._is_whole(existing, candidate)

    def _is_whole(self, existing: Existing, candidate: Candidate | None) -> bool:
        """Whether the data of a candidate, or of ``existing`` itself, has its size and CRC-32."""
        try:
            with ExitStack() as stack:
                data = self._member(existing) if candidate is None else self._candidate(candidate, stack)
                return size_and_crc(self._content(data), existing.size) == (existing.size, existing.crc)
        except (FormatError, FileNotFoundError):
            return False

    def _compare(self, candidate: Candidate, existing: Existing, size: int) -> bool:
        try:
            with ExitStack() as stack:
                mine = self._candidate(candidate, stack)
                other = existing.candidate
                theirs = self._member(existing) if other is None else self._candidate(other, stack)
                if mine[2:] == theirs[2:] and _same_data(mine, theirs, storage=self._storage):
                    return True
                return begin_alike(self._content(mine), self._content(theirs), size)
        except (FormatError, UnsupportedError, FileNotFoundError):
            # What cannot be read is not known to be the same: both are kept.
            return False

    def _content(self, data: _Data) -> Iterator[bytes]:
        return member_content(data.descriptor, data.start, data.compressed_size, data.method, storage=self._storage)

    def _candidate(self, candidate: Candidate, stack: ExitStack) -> _Data:
        append = candidate.append
        descriptor = stack.enter_context(opened_as_checked(candidate.claimed, self._storage))
        return _Data(descriptor, append.data_offset, append.compressed_size, append.method)

    def _member(self, existing: Existing) -> _Data:
        assert self._target is not None
        descriptor = self._target.descriptor
        assert descriptor is not None
        head = self._storage.read(descriptor, LOCAL.size, existing.target_start)
        head = self._storage.read(descriptor, local_header_length(head), existing.target_start)
        header = decode_local_header(head)
        start = existing.target_start + header.length
        if header.flags & FLAG_ENCRYPTED or header.has_descriptor:
            # Encrypted, or of foreign making with its size behind the data: compared as what it is, different.
            raise ZipFormatError("not comparable")
        return _Data(descriptor, start, header.compressed_size, header.method)


def _same_data(left: _Data, right: _Data, *, storage: Storage) -> bool:
    """Whether two members, of one compressed size, have the same compressed data."""
    for start in range(0, left.compressed_size, COPY_CHUNK_BYTES):
        count = min(COPY_CHUNK_BYTES, left.compressed_size - start)
        mine = storage.read(left.descriptor, count, left.start + start)
        if len(mine) < count or mine != storage.read(right.descriptor, count, right.start + start):
            return False
    return True


def begin_alike(left: Iterator[bytes], right: Iterator[bytes], size: int) -> bool:
    """Whether the first ``size`` bytes of two streams are the same, or all of them are."""
    return _equal(_first(left, size), _first(right, size))


def _first(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    for piece in pieces:
        if size <= 0:
            return
        yield piece[:size]
        size -= len(piece)


def _equal(left: Iterator[bytes], right: Iterator[bytes]) -> bool:
    """Whether two streams hold the same bytes, however they are cut into pieces."""
    mine = theirs = b""
    while True:
        mine, theirs = mine or next(left, b""), theirs or next(right, b"")
        length = min(len(mine), len(theirs))
        if mine[:length] != theirs[:length] or (length == 0 and (mine or theirs)):
            return False
        if length == 0:
            return True
        mine, theirs = mine[length:], theirs[length:]
