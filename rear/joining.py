"""Files that were flushed, and whose writers died: the parts that are whole, ended and made one member.

The parts are one compressed stream, so they are copied as they are; only its end and a local header are added. The
member is *partial*: its metadata say so. See ``rear.parts`` for how they come about, ``rear.rescue`` for where the
member is until it is merged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Literal, NamedTuple

from rear.check import raw_bytes
from rear.claims import ClaimedPair
from rear.codecs import STORED, STREAM_ENDS, StreamDecoder, crc32, decode
from rear.contents import opened
from rear.errors import FormatError, JournalError, UnsupportedError
from rear.journal import decode_line, decode_record, read_lines
from rear.records import Append, File, Pair, Part, partial_of
from rear.storage import Storage

PartialPolicy = Literal["keep", "drop"]
_READ_BYTES = 256 << 10
_PART_LINE = b'{"kind":"part"'


class Joined(NamedTuple):
    """What there is of a file that was flushed.

    Attributes:
        append: the file as far as its parts are whole, in the temp archive, without an end; ``None`` when none is.
        bad_parts: how many are not whole, or stand behind one that is not.
    """

    append: Append | None
    bad_parts: int

    @property
    def size(self) -> int:
        """Bytes of the file that are whole."""
        return 0 if self.append is None else self.append.size


class Joining:
    """The parts of all files that the pairs of one round hold.

    Args:
        batch: the pairs.
        storage: the file system.
    """

    def __init__(self, batch: Iterable[ClaimedPair], *, storage: Storage) -> None:
        self._storage = storage
        self._joined: dict[Pair, Joined] = {}
        #: A file whose pair had failed has several.
        self._pairs: dict[tuple[str, str, int], list[ClaimedPair]] = {}
        for claimed in batch:
            if claimed.journal.file is not None:
                self._pairs.setdefault(_key(claimed, claimed.journal.file), []).append(claimed)

    def join(self, claimed: ClaimedPair, descriptor: int | None) -> Joined:
        """Read all parts of a pair and return what is whole from the beginning.

        Args:
            claimed: a pair of one file.
            descriptor: its open temp archive, if there is one.

        Raises:
            UnsupportedError: the parts cannot be decoded here.
            OSError: journal or temp archive cannot be read.
        """
        if claimed.pair not in self._joined:
            self._joined[claimed.pair] = _join(claimed, descriptor, self._storage)
        return self._joined[claimed.pair]

    def counts_elsewhere(self, claimed: ClaimedPair) -> str | None:
        """Tell where a file that was joined counts instead: a pair has all that an earlier one had, or nothing.

        Raises:
            UnsupportedError, OSError: as `join`.
        """
        file = claimed.journal.file
        assert file is not None
        others = self._pairs.get(_key(claimed, file), [])
        if any(self._takes_over(other) for other in others if other.pair.rotation > claimed.pair.rotation):
            return "a later temp archive"
        has_earlier = any(other.pair.rotation < claimed.pair.rotation and not _is_given_up(other) for other in others)
        return "an earlier temp archive" if has_earlier and not self._takes_over(claimed) else None

    def _takes_over(self, claimed: ClaimedPair) -> bool:
        file = claimed.journal.file
        assert file is not None
        if _is_given_up(claimed):
            # What its writer gave up there he gave up altogether.
            return True
        with ExitStack() as stack:
            descriptor = None
            if claimed.temp_archive.name in self._storage.names(claimed.folder):
                descriptor = stack.enter_context(opened(claimed.temp_archive, self._storage))
            size = self.join(claimed, descriptor).size
        return size >= file.repeated_size and file.sequence in claimed.journal.appends


def content_of(append: Append, descriptor: int, *, storage: Storage) -> Iterator[bytes]:
    """Yield the plain content of a joined file.

    Raises:
        FormatError: the temp archive changed meanwhile.
        OSError: it cannot be read.
    """
    data = raw_bytes(descriptor, append.data_offset, append.compressed_size, storage=storage)
    return decode(append.method, itertools.chain(data, [STREAM_ENDS[append.method]]))


def _key(claimed: ClaimedPair, file: File) -> tuple[str, str, int]:
    return claimed.pair.host, claimed.pair.worker, file.first_sequence


def _is_given_up(claimed: ClaimedPair) -> bool:
    file = claimed.journal.file
    return file is not None and file.sequence in claimed.journal.aborted


def _join(claimed: ClaimedPair, descriptor: int | None, storage: Storage) -> Joined:
    file = claimed.journal.file
    assert file is not None
    if file.method not in STREAM_ENDS:
        raise UnsupportedError(f"{file.name} was flushed with compression method {file.method}, which cannot be ended")
    stream = None if descriptor is None else _Stream(descriptor, file, storage)
    last, bad_parts = None, 0
    for part in _parts(claimed, storage):
        if stream is not None and not bad_parts and stream.reaches(part):
            last = part
        else:
            bad_parts += 1
    return Joined(None if last is None else partial_of(file, last), bad_parts)


def _parts(claimed: ClaimedPair, storage: Storage) -> Iterator[Part]:
    """Yield the parts that a journal names; those of damaged records are in the next one."""
    descriptor = storage.open(claimed.folder / f"{claimed.pair.stem}.journal")
    try:
        for _, line, complete in read_lines(descriptor, storage=storage):
            if not complete or not line.startswith(_PART_LINE, 9):
                continue
            try:
                record = decode_record(decode_line(line))
            except JournalError:
                continue
            if isinstance(record, Part):
                yield record
    finally:
        storage.close(descriptor)


class _Stream:
    """Decodes the parts of a file one after the other."""

    def __init__(self, descriptor: int, file: File, storage: Storage) -> None:
        self._descriptor = descriptor
        self._storage = storage
        self._length = storage.size(descriptor)
        self._decoder = None if file.method == STORED else StreamDecoder(file.method)
        self._position = file.offset
        self._size = self._crc = 0

    def reaches(self, part: Part) -> bool:
        """Whether all up to the end of a part is what the journal says."""
        end = part.offset + part.length
        if not self._position <= end <= self._length or part.source_end < self._size:
            return False
        feed_bytes = _READ_BYTES if self._decoder is None else self._decoder.feed_bytes
        try:
            while self._position < end:
                data = self._storage.read(self._descriptor, min(feed_bytes, end - self._position), self._position)
                if not data:
                    return False
                self._position += len(data)
                for piece in (data,) if self._decoder is None else self._decoder.decode(data):
                    self._size += len(piece)
                    self._crc = crc32(piece, self._crc)
                    if self._size > part.source_end:
                        return False
        except FormatError:
            return False
        return (self._size, self._crc) == (part.source_end, part.crc)
