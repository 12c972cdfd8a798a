"""Members as files to be read: of any archive, and of a base, where they may still be on their way to it.

A member is the final archive's, as it is committed. If that has none of the name, it is one that a worker has
acknowledged and that waits in a temp archive: the one with the latest mtime, should there be several. A pending member
is read only if all of it is whole.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import IO, Any, Final, NamedTuple, Self, TypedDict, Unpack

from rear.core.layout import Layout, without_links
from rear.core.names import Target
from rear.core.storage import LOCAL, Storage, StrPath, close_read
from rear.errors import MemberNotFoundError, PathError, UnsupportedError, UsageError, ZipFormatError
from rear.journal.pending import pending_members
from rear.read.view import open_committed
from rear.zip.archive import Archive
from rear.zip.codecs import STORED, crc32
from rear.zip.headers import CentralEntry
from rear.zip.member_data import member_content

_MODES: Final = frozenset({"r", "rt", "tr", "rb", "br"})
_TRIES: Final = 3


class ArchiveReader:
    """An archive, open for reading as it was then; made by `open_archive`, used by one thread at a time.

    Names can be iterated over and asked for with ``in``.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._positions: dict[str, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive, and with it its members."""
        self._archive.close()

    @property
    def path(self) -> str:
        """Path of the archive, without links."""
        return self._archive.path

    def names(self) -> list[str]:
        """Return the names of all members, in the order of the directory; those of folders end in ``/``.

        Raises:
            ZipFormatError: the directory is damaged.
        """
        return [name for _, name in self._archive.names()]

    def __iter__(self) -> Iterator[str]:
        return (name for _, name in self._archive.names())

    def __len__(self) -> int:
        return self._archive.directory.entries

    def __contains__(self, name: object) -> bool:
        return name in self._by_name()

    def _by_name(self) -> dict[str, int]:
        if self._positions is None:
            self._positions = {name: position for position, name in self._archive.names()}
        return self._positions

    def entry(self, name: str) -> CentralEntry:
        """Return what the directory says of a member: ``size``, ``mtime_ns``, ``mode``, ``method``, ``crc``, ….

        Raises:
            MemberNotFoundError: there is none of that name.
        """
        position = self._by_name().get(name)
        return self._archive.find(name) if position is None else self._archive.entry_at(position)

    def open(
        self,
        name: str,
        mode: str = "rb",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a member.

        Args:
            name: the member.
            mode: ``rb`` or ``r``.
            encoding: as for `open`, with ``r``.
            errors: as for `open`.
            newline: as for `open`.

        Returns:
            a file that can seek: at once in a stored member; in others a step back decodes from the beginning. Its
            size and CRC-32 are checked when it is read from the beginning to the end.

        Raises:
            MemberNotFoundError: there is none of that name.
            UnsupportedError: the member is encrypted, or its compression method has no codec here.
            ZipFormatError: the member's local header contradicts the directory; while reading: its data is damaged.
        """
        _check_mode(mode)
        raw = _MemberStream(_range_of(self._archive, self.entry(name)), lambda: None)
        return _wrapped(raw, mode, encoding, errors, newline)

    def read(self, name: str) -> bytes:
        """Return the content of a member; errors are those of `open`."""
        return b"".join(self._archive.read(self.entry(name)))


def open_archive(path: StrPath, *, storage: Storage = LOCAL) -> ArchiveReader:
    """Open a Zip archive, whoever made it, also while a merge into it is under way.

    Args:
        path: the archive.
        storage: the file system.

    Raises:
        FileNotFoundError: there is none; or its first merge is still under way.
        NotAZipError: the file is no Zip, or a torn one.
        OSError: it cannot be read.
    """
    return ArchiveReader(open_committed(path, storage=storage))


class TextOptions(TypedDict, total=False):
    """How a member is read as text; as for `open`."""

    encoding: str | None
    errors: str | None
    newline: str | None


def open_written(
    layout: Layout, target: Target, mode: str, *, storage: Storage = LOCAL, **text: Unpack[TextOptions]
) -> IO[Any]:
    """Open a member of a base, committed or on its way.

    Args:
        layout: the base.
        target: final archive and name.
        mode: ``rb`` or ``r``, as for `ArchiveReader.open`.
        storage: the file system.
        text: see there.

    Raises:
        FileNotFoundError: nobody has acknowledged such a member.
        RearError, OSError: as for `ArchiveReader.open`.
    """
    _check_mode(mode)
    with suppress(PathError):
        target = Target(without_links(layout, target.archive), target.name)
    # A member may be merged between the look at the archive and the look at what waits.
    for _ in range(_TRIES):
        stream = None
        with suppress(FileNotFoundError, MemberNotFoundError):
            stream = _open_in(layout.archive(target.archive), target.name, storage)
        stream = stream or _open_pending(layout, target, storage)
        if stream is not None:
            return _wrapped(stream, mode, **text)
    path = str(layout.base / target.archive / target.name)
    raise FileNotFoundError(errno.ENOENT, "no such member, neither in the archive nor on its way to it", path)


def open_in_archive(path: StrPath, name: str, mode: str = "rb", **text: Unpack[TextOptions]) -> IO[Any]:
    """Open one member of an archive; arguments and errors are those of `open_archive` and `ArchiveReader.open`."""
    _check_mode(mode)
    return _wrapped(_open_in(path, name, LOCAL), mode, **text)


def _open_in(path: StrPath, name: str, storage: Storage) -> _MemberStream:
    archive = open_committed(path, storage=storage)
    try:
        return _MemberStream(_range_of(archive, archive.find(name)), archive.close)
    except BaseException:
        archive.close()
        raise


def _open_pending(layout: Layout, target: Target, storage: Storage) -> _MemberStream | None:
    members = pending_members(layout, target.archive, graveyard=True, storage=storage)
    found = [member for member in members if member.append.name == target.name]
    found.sort(key=lambda member: (member.append.mtime_ns, member.append.sequence), reverse=True)
    for member in found:
        descriptor = member.open(storage)
        if descriptor is not None:
            append = member.append
            label = f"{layout.base / target.archive}: member {target.name!r:.300}"
            sizes = (append.compressed_size, append.size)
            content = _Range(descriptor, append.data_offset, *sizes, append.method, append.crc, label, storage)
            return _MemberStream(content, partial(close_read, descriptor, storage))
    return None


class _Range(NamedTuple):
    """Where the bytes of a member are, and what is known of them."""

    descriptor: int
    start: int
    compressed_size: int
    size: int
    method: int
    crc: int
    label: str
    storage: Storage


def _range_of(archive: Archive, entry: CentralEntry) -> _Range:
    label = f"{archive.path}: member {entry.name!r:.300}"
    if entry.is_directory:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), f"{archive.path}/{entry.name}")
    if entry.is_encrypted:
        raise UnsupportedError(f"{label} is encrypted", "encryption")
    start = archive.directory.prefix + entry.offset + archive.local_header(entry).length
    if start + entry.compressed_size > archive.directory.offset:
        raise ZipFormatError(f"{label}: its data would end behind the begin of the directory")
    return _Range(archive.descriptor, start, entry.compressed_size, entry.size, entry.method, entry.crc, label, LOCAL)


class _MemberStream(io.RawIOBase):
    """A member's plain bytes. What is read in order from the beginning is checked at its end."""

    def __init__(self, content: _Range, on_close: Callable[[], None]) -> None:
        self._content = content
        self._on_close = on_close
        self._position = 0
        #: Of what was seen in order from the beginning.
        self._crc = self._seen = 0
        self._decoded: Iterator[bytes] | None = None
        self._piece = b""
        self._piece_start = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._content.size}.get(whence)
        if begin is None or begin + offset < 0:
            raise ValueError(f"cannot seek to {offset} from {whence}")
        self._position = begin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._check_open()
        view = memoryview(buffer).cast("B")
        missing = self._content.size - self._position
        # At its end once more: data that goes on is damaged, too.
        data = self._at_position(min(len(view), missing)) if missing > 0 else self._check_end()
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _at_position(self, length: int) -> bytes:
        content = self._content
        if content.method == STORED:
            data = content.storage.read(content.descriptor, length, content.start + self._position)
            if not data:
                raise ZipFormatError(f"{content.label}: the file ends within it")
            self._check(self._position, data)
            return data
        if self._decoded is None or self._position < self._piece_start:
            self._decoded = member_content(
                content.descriptor, content.start, content.compressed_size, content.method, storage=content.storage
            )
            self._piece, self._piece_start = b"", 0
        while self._position >= self._piece_start + len(self._piece):
            self._piece_start += len(self._piece)
            self._piece = self._next_piece()
            if not self._piece:
                raise ZipFormatError(f"{content.label}: {self._piece_start:,} bytes instead of {content.size:,}")
            self._check(self._piece_start, self._piece)
        start = self._position - self._piece_start
        return self._piece[start : start + length]

    def _next_piece(self) -> bytes:
        assert self._decoded is not None
        try:
            return next(filter(None, self._decoded), b"")
        except ZipFormatError as error:
            raise ZipFormatError(f"{self._content.label}: {error}") from None

    def _check(self, start: int, data: bytes) -> None:
        if start != self._seen:
            return
        self._seen += len(data)
        self._crc = crc32(data, self._crc)
        if self._seen > self._content.size:
            raise ZipFormatError(f"{self._content.label}: more than {self._content.size:,} bytes")
        if self._seen == self._content.size and self._crc != self._content.crc:
            raise ZipFormatError(f"{self._content.label}: CRC-32 {self._crc:08x} instead of {self._content.crc:08x}")

    def _check_end(self) -> bytes:
        decoded, self._decoded = self._decoded, None
        if decoded is not None and self._seen == self._content.size and next(filter(None, decoded), b""):
            raise ZipFormatError(f"{self._content.label}: more than {self._content.size:,} bytes")
        return b""

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._on_close()


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise UsageError(f"mode {mode!r}: a member is read with 'r' or 'rb'")


def _wrapped(
    raw: _MemberStream, mode: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
) -> IO[Any]:
    buffered = io.BufferedReader(raw, 1 << 16)
    if "b" in mode:
        if (encoding, errors, newline) != (None, None, None):
            buffered.close()
            raise UsageError("binary mode doesn't take an encoding, errors or newline argument")
        return buffered
    try:
        return io.TextIOWrapper(buffered, encoding, errors, newline)
    except BaseException:
        buffered.close()
        raise
