"""The parts of one file that was flushed: one compressed stream, of which as much counts as is whole.

Records tell where parts end and what CRC-32 the file has there. Without them the stream itself has to do: the pair
holds nothing else, and its local header says which file it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from rear.core.records import Append, File, Origin, Pair, Part, partial_of, unpacked
from rear.core.storage import Storage, StrPath, close_read
from rear.errors import FormatError, JournalError, UnsupportedError, ZipFormatError
from rear.journal.codec import decode_line, decode_record, encode_record
from rear.journal.reader import read_lines
from rear.zip.codecs import DEFLATED, STORED, STREAM_ENDS, StreamDecoder, crc32
from rear.zip.headers import decode_local_header
from rear.zip.origin import decode_origin
from rear.zip.structures import LOCAL_LIMIT_BYTES

_READ_BYTES: Final = 256 << 10
_PART_LINE: Final = b'{"kind":"part"'
_TRIES: Final = 16
"""So many marks that may end a part are tried, the last ones."""
_SIZE_LIMIT: Final = (1 << 63) - 1
_PART_END: Final = b"\0\0\xff\xff"
"""Where a part of a deflate stream ends: the lengths of an empty stored block (RFC 1951, 3.2.4)."""


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


def join_parts(file: File, journal_path: StrPath, descriptor: int | None, *, storage: Storage) -> Joined:
    """Read all parts of a file and return what is whole from the beginning.

    Args:
        file: its record.
        journal_path: the journal that names the parts.
        descriptor: the open temp archive, if there is one.
        storage: the file system.

    Raises:
        UnsupportedError: the parts cannot be decoded here.
        OSError: journal or temp archive cannot be read.
    """
    _check_method(file)
    stream = None if descriptor is None else _Stream(descriptor, file, storage)
    whole, _, bad_parts = _divide(stream, journal_path, storage)
    return Joined(None if whole is None else partial_of(file, whole), bad_parts)


def _check_method(file: File) -> None:
    if file.method not in STREAM_ENDS:
        raise UnsupportedError(f"{file.name} was flushed with compression method {file.method}, which cannot be ended")


def _divide(stream: _Stream | None, journal_path: StrPath, storage: Storage) -> tuple[Part | None, Part | None, int]:
    """Return the last whole part, the last one of those behind it, and how many these are."""
    whole = bad = None
    bad_parts = 0
    for part in _parts(journal_path, storage):
        if stream is not None and not bad_parts and stream.reaches(part):
            whole = part
        else:
            bad, bad_parts = part, bad_parts + 1
    return whole, bad, bad_parts


def records_without_journal(
    pair: Pair, known: File | None, journal_path: StrPath | None, descriptor: int, *, storage: Storage
) -> tuple[int, list[File | Part]]:
    """Return cookie and records of a file that was flushed, from its temp archive and what is left of the journal.

    Args:
        pair: the pair, to which the local header has to belong.
        known: the record of the file, if it is left.
        journal_path: the journal, if there is one.
        descriptor: the open temp archive.
        storage: the file system.

    Returns:
        no record where the temp archive does not begin with such a file, or nothing of it is whole.

    Raises:
        UnsupportedError: the parts cannot be decoded here.
        OSError: journal or temp archive cannot be read.
    """
    found = _file_of_header(pair, descriptor, storage)
    if found is None:
        return 0, []
    origin, file = found
    if known is not None and known.sequence == file.sequence:
        file = known
    _check_method(file)
    stream = _Stream(descriptor, file, storage, origin.mtime_ns)
    whole = bad = None
    if journal_path is not None:
        whole, bad, _ = _divide(stream, journal_path, storage)
    if bad is None:
        whole = stream.rest() or whole
    parts = [part for part in (whole, bad) if part is not None]
    if whole is not None and bad is None:
        end, length = whole.offset + whole.length, storage.size(descriptor)
        tail = storage.read(descriptor, min(8, length - end), end) if length > end else b""
        if tail and not STREAM_ENDS[file.method].startswith(tail):
            # No record tells of it. Its CRC-32 is wrong on purpose: so it is kept in lost+found, and told of.
            parts.append(Part(whole.source_end, whole.source_end, end, length - end, whole.crc ^ 1, whole.mtime_ns))
    return (origin.cookie, [file, *parts]) if parts else (0, [])


def _file_of_header(pair: Pair, descriptor: int, storage: Storage) -> tuple[Origin, File] | None:
    head = storage.read(descriptor, LOCAL_LIMIT_BYTES, 0)
    try:
        header = decode_local_header(head)
        origin = decode_origin(head[: header.length])
        if origin is None or not header.has_descriptor or (origin.host, origin.worker) != (pair.host, pair.worker):
            return None
        sequence = origin.sequence
        file = File(
            sequence,
            first_sequence=sequence,
            repeated_size=0,
            archive=origin.archive,
            name=header.name.decode(),
            method=header.method,
            offset=header.length,
            mode=origin.mode,
            metadata=unpacked(origin.metadata),
        )
        # What no journal could say is no file of ours.
        decode_record(decode_line(encode_record(file).removesuffix(b"\n")))
    except (FormatError, ValueError):
        return None
    return origin, file


def _parts(journal_path: StrPath, storage: Storage) -> Iterator[Part]:
    """Yield the parts that a journal names; those of damaged records are in the next one."""
    descriptor = storage.open(journal_path)
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
        close_read(descriptor, storage)


class _Stream:
    """Decodes the parts of a file one after the other."""

    def __init__(self, descriptor: int, file: File, storage: Storage, mtime_ns: int = 0) -> None:
        self._descriptor = descriptor
        self._file = file
        self._storage = storage
        self._length = storage.size(descriptor)
        self._decoder = None if file.method == STORED else StreamDecoder(file.method)
        self._position = file.offset
        self._method = file.method
        self._size = self._crc = 0
        self._size_limit = _SIZE_LIMIT
        self._mtime_ns = mtime_ns

    def rest(self) -> Part | None:
        """Return what follows as one part, up to where one ended; ``None`` when there is nothing, or no telling."""
        if self._decoder is None:
            return self._until(self._length)
        if self._method != DEFLATED:
            return None
        start, source_start, limit = self._position, self._size, self._length
        for _ in range(_TRIES):
            end = self._last_part_end(start, limit)
            if end <= start:
                return None
            # The mark may be content: a stored block shows what it holds.
            fresh = _Stream(self._descriptor, self._file, self._storage, self._mtime_ns)
            part = fresh._until(end)
            if part is not None and fresh._can_end():
                return part._replace(source_start=source_start, offset=start, length=end - start)
            limit = end - 1
        return None

    def _until(self, end: int) -> Part | None:
        start, source_start = self._position, self._size
        self._size_limit = _SIZE_LIMIT
        try:
            while self._position < end:
                self._feed(end)
        except FormatError:
            return None
        if self._size == source_start:
            return None
        return Part(source_start, self._size, start, end - start, self._crc, self._mtime_ns)

    def _can_end(self) -> bool:
        """Whether the stream stands between two blocks: then its end can follow."""
        assert self._decoder is not None
        try:
            return not b"".join(self._decoder.decode(STREAM_ENDS[self._method])) and self._decoder.ended
        except FormatError:
            return False

    def _last_part_end(self, start: int, limit: int) -> int:
        position, overlap = limit, len(_PART_END) - 1
        while position > start:
            begin = max(start, position - _READ_BYTES)
            wanted = min(position - begin + overlap, limit - begin)
            found = self._storage.read(self._descriptor, wanted, begin).rfind(_PART_END)
            if found >= 0:
                return begin + found + len(_PART_END)
            position = begin
        return start

    def _feed(self, end: int) -> None:
        feed_bytes = _READ_BYTES if self._decoder is None else self._decoder.feed_bytes
        data = self._storage.read(self._descriptor, min(feed_bytes, end - self._position), self._position)
        if not data:
            raise ZipFormatError("the temp archive ends early")
        self._position += len(data)
        for piece in (data,) if self._decoder is None else self._decoder.decode(data):
            self._size += len(piece)
            self._crc = crc32(piece, self._crc)
            if self._size > self._size_limit:
                raise ZipFormatError("more data than there should be")

    def reaches(self, part: Part) -> bool:
        """Whether all up to the end of a part is what the journal says."""
        end = part.offset + part.length
        if not self._position <= end <= self._length or part.source_end < self._size:
            return False
        self._size_limit = part.source_end
        try:
            while self._position < end:
                self._feed(end)
        except FormatError:
            return False
        self._mtime_ns = part.mtime_ns
        return (self._size, self._crc) == (part.source_end, part.crc)
