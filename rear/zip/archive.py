"""Reads one archive, whoever made it: a final archive, a closed temp archive, any other Zip file.

A merge appends over the central directory of a final archive, so while it runs the file has none. `Archive.open` then
takes the copy that the merge's intent keeps, and shows the archive as it was before; members never move, so their data
needs no such care. A directory that a merge might overwrite while it is read is copied first, and the copy is used only
if nothing changed in between: by the file's own word (inode, size, time of change, asked anew through ``open``), and by
the absence of an intent.
"""

from __future__ import annotations

import errno
import heapq
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, NamedTuple, NoReturn

from rear.core.layout import find_base
from rear.core.records import Origin
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import (
    FutureVersionError,
    JournalError,
    MemberNotFoundError,
    NotAZipError,
    UnsupportedError,
    ZipFormatError,
)
from rear.journal.intent import Intent, read_intent
from rear.zip.codecs import crc32, decode, is_whole
from rear.zip.directory import PIECE_BYTES, Directory, entries, entry_at, fingerprint, locate, names
from rear.zip.headers import CentralEntry, LocalHeader, decode_local_header
from rear.zip.origin import decode_origin
from rear.zip.structures import FLAG_DESCRIPTOR, FLAG_ENCRYPTED, LIMIT_32, LOCAL_SIGNATURE
from rear.zip.structures import LOCAL as LOCAL_HEADER

SNAPSHOT_MEMORY_BYTES: Final = 32 << 20
"""Longer directories are copied to local disk instead of memory."""
_TRIES: Final = 60
_PAUSE_SECONDS: Final = 0.05
_FIRST_READ_BYTES: Final = 16 << 10
#: Of so many names, the ones most like a missing one are suggested.
_SUGGESTION_POOL: Final = 2_000
#: What local header and directory have to agree in; the last three only if they do not follow the data (4.4.4, bit 3).
_COMPARED: Final = ("name", "method", "encryption flag", "CRC-32", "compressed size", "size")
#: What a local header repeats of a directory entry: flags to length of the name (4.3.7, 4.3.12).
_REPEATED: Final = struct.Struct("<4H3IH").pack
#: What reading from a file says that another host removed or cut meanwhile.
_CHANGED_ERRORS: Final = frozenset({errno.ESTALE, errno.EIO, errno.ENOENT})


class Archive:
    """One open archive, as it was when it was opened; made by `Archive.open`, used by one thread at a time.

    Attributes:
        path: the archive's path, links resolved.
        directory: where its central directory is; of the old archive, while a merge is under way.
    """

    def __init__(self, path: str, descriptor: int, directory: Directory, snapshot: IO[bytes], storage: Storage) -> None:
        self.path = path
        self.directory = directory
        self._descriptor = descriptor
        self._snapshot = snapshot
        self._storage = storage
        self._window = ReadAhead(descriptor, storage)

    @classmethod
    def open(cls, path: StrPath, *, storage: Storage = LOCAL) -> Archive:
        """Open an archive with a copy of its directory; up to 32 MiB of it in memory.

        Raises:
            FileNotFoundError: there is none; or its first merge is still under way.
            NotAZipError: the file is no Zip, or a torn one.
            UnsupportedError: it is split into volumes, or its directory is encrypted.
            FutureVersionError: a newer rear merges into it.
            OSError: it cannot be read, or (``EBUSY``) it changes all the time.
        """
        view = _consistent_view(path, storage, copy=True)
        assert view.snapshot is not None
        return cls(view.path, view.descriptor, view.directory, view.snapshot, storage)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._snapshot.close()
            self._storage.close(descriptor)

    @property
    def descriptor(self) -> int:
        """The open file, to be read only; it is closed with the archive."""
        return self._descriptor

    @property
    def fingerprint(self) -> str:
        """What the index compares; see `rear.zip.directory.fingerprint`."""
        return fingerprint(self._snapshot.fileno(), self.directory, start=0)

    def entries(self) -> Iterator[CentralEntry]:
        """Yield the directory's entries in their order, with bounded memory.

        Raises:
            ZipFormatError: the directory is damaged.
        """
        try:
            yield from entries(self._snapshot.fileno(), self.directory, start=0)
        except ZipFormatError as error:
            raise ZipFormatError(f"{self.path}: {error}") from None

    def names(self) -> Iterator[tuple[int, str]]:
        """Yield ``(position, name)`` of each entry, faster than `entries`; `entry_at` returns the entry.

        Raises:
            ZipFormatError: the directory is damaged.
        """
        try:
            yield from names(self._snapshot.fileno(), self.directory, start=0)
        except ZipFormatError as error:
            raise ZipFormatError(f"{self.path}: {error}") from None

    def entry_at(self, position: int) -> CentralEntry:
        """Return the entry at a position that `names` gave."""
        return entry_at(self._snapshot.fileno(), self.directory, position, start=0)

    def find(self, name: str) -> CentralEntry:
        """Return the entry of that name; the last one, should there be several.

        Raises:
            MemberNotFoundError: there is none; the message suggests names that are like it.
            ZipFormatError: the directory is damaged.
        """
        found = -1
        for position, other in self.names():
            if other == name:
                found = position
        if found < 0:
            raise MemberNotFoundError(f"{self.path} has no member {name!r:.300}{self._suggest(name)}")
        return self.entry_at(found)

    def _suggest(self, name: str) -> str:
        import difflib

        folder, _, last = name.casefold().rpartition("/")

        def likeness(other: str) -> int:
            other_folder, _, other_last = other.casefold().rpartition("/")
            return 2 * (other_last == last) + (other_folder == folder)

        short = (other for _, other in self.names() if len(other) <= 2 * len(name) + 10)
        pool = heapq.nlargest(_SUGGESTION_POOL, short, key=likeness)
        # Case is the commonest slip, and difflib would see it as a difference.
        for other in pool:
            if other.casefold() == name.casefold():
                return f": did you mean {other!r:.300}?"
        close = difflib.get_close_matches(name, pool, n=3) if len(name) <= 1_000 else []
        return f": did you mean {' or '.join(f'{other!r:.300}' for other in close)}?" if close else ""

    def local_header(self, entry: CentralEntry) -> LocalHeader:
        """Return a member's local header, which has to agree with its directory entry.

        Raises:
            ZipFormatError: there is none, or it says something else in name, method, sizes or CRC.
        """
        header = self.local_header_bytes(entry)
        try:
            local = decode_local_header(header)
        except ZipFormatError as error:
            self._fail(entry, str(error))
        difference = header_difference(entry, local)
        if difference is not None:
            self._fail(entry, difference)
        return local

    def origin(self, entry: CentralEntry) -> Origin | None:
        """Return where a member came from, or ``None`` when rear did not write it.

        Raises:
            ZipFormatError: there is no local header where the entry says.
        """
        return decode_origin(self.local_header_bytes(entry))

    def local_header_bytes(self, entry: CentralEntry) -> bytes:
        """Return a member's local header as it stands in the file, with name and extra area; nothing is compared.

        Raises:
            ZipFormatError: there is none where the entry says.
        """
        position = self.directory.prefix + entry.offset
        head = b""
        if position + LOCAL_HEADER.size <= self.directory.offset:
            head = self._window.read(position, LOCAL_HEADER.size)
        if len(head) < LOCAL_HEADER.size or head[:4] != LOCAL_SIGNATURE:
            self._fail(entry, f"no local header at byte {position:,}: {head[:4]!r} instead of {LOCAL_SIGNATURE!r}")
        length = LOCAL_HEADER.size + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        return self._window.read(position, length)

    def plain_header_length(self, entry: CentralEntry) -> int:
        """Return the length of a local header that repeats its entry word by word, as nearly all do; 0: look closer."""
        name, compressed_size, size = entry.name_bytes, entry.compressed_size, entry.size
        position = self.directory.prefix + entry.offset
        end = LOCAL_HEADER.size + len(name)
        if entry.flags & FLAG_DESCRIPTOR or compressed_size >= LIMIT_32 or size >= LIMIT_32:
            return 0
        if position + end > self.directory.offset:
            return 0
        data = self._window.read(position, end)
        repeated = _REPEATED(
            entry.flags, entry.method, entry.dos_time, entry.dos_date, entry.crc, compressed_size, size, len(name)
        )
        if data[6:28] != repeated or data[30:] != name or data[:4] != LOCAL_SIGNATURE:
            return 0
        return end + int.from_bytes(data[28:30], "little")

    def read_at(self, position: int, length: int) -> bytes:
        """Return raw bytes of the file, fewer at its end; reads that go forward cost few system calls."""
        return self._window.read(position, length)

    def read(self, entry: CentralEntry) -> Iterator[bytes]:
        """Yield a member's content in pieces of at most about 1 MiB, and check size and CRC-32 at its end.

        Raises:
            ZipFormatError: local header, stream, size or CRC-32 are not what the directory says.
            UnsupportedError: the member is encrypted, or its compression method has no codec here.
        """
        if entry.is_encrypted:
            raise UnsupportedError(f"{self.path}: member {entry.name!r:.300} is encrypted", "encryption")
        start = self.directory.prefix + entry.offset + self.local_header(entry).length
        end = start + entry.compressed_size
        if end > self.directory.offset:
            self._fail(entry, f"its data would end at {end:,}, the directory begins at {self.directory.offset:,}")
        size = crc = 0
        try:
            for plain in decode(entry.method, self._chunks(start, end)):
                size += len(plain)
                if size > entry.size:
                    break
                crc = crc32(plain, crc)
                yield plain
        except ZipFormatError as error:
            self._fail(entry, str(error))
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.path}: member {entry.name!r:.300}: {error}", error.code) from None
        if size != entry.size:
            more = "or more " if size > entry.size else ""
            self._fail(entry, f"{size:,} bytes {more}instead of {entry.size:,}")
        if crc != entry.crc:
            self._fail(entry, f"CRC-32 {crc:08x} instead of {entry.crc:08x}")

    def _chunks(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            data = self._window.read(start, min(PIECE_BYTES, end - start))
            if not data:
                raise ZipFormatError(f"the file ends {end - start:,} bytes early")
            start += len(data)
            yield data

    def verify(self, entry: CentralEntry) -> None:
        """Read a member and keep nothing; errors are those of `read`."""
        if entry.size <= PIECE_BYTES and entry.compressed_size <= PIECE_BYTES and self._is_whole(entry):
            return
        for _ in self.read(entry):
            pass

    def _is_whole(self, entry: CentralEntry) -> bool:
        """Whether a small member is beyond doubt as its entry says: what is told of others, `read` finds out."""
        length = self.plain_header_length(entry)
        if not length or entry.flags & FLAG_ENCRYPTED:
            return False
        start = self.directory.prefix + entry.offset + length
        if start + entry.compressed_size > self.directory.offset:
            return False
        data = self._window.read(start, entry.compressed_size)
        return len(data) == entry.compressed_size and is_whole(data, entry.method, entry.size, entry.crc)

    def _fail(self, entry: CentralEntry, text: str) -> NoReturn:
        raise ZipFormatError(f"{self.path}: member {entry.name!r:.300}: {text}") from None


def header_difference(entry: CentralEntry, local: LocalHeader) -> str | None:
    """Tell in what a local header contradicts its directory entry, or ``None`` when they agree."""
    expected: tuple[object, ...] = (entry.name_bytes, entry.method, entry.flags & FLAG_ENCRYPTED)
    actual: tuple[object, ...] = (local.name, local.method, local.flags & FLAG_ENCRYPTED)
    if not local.has_descriptor:
        expected += (entry.crc, entry.compressed_size, entry.size)
        actual += (local.crc, local.compressed_size, local.size)
    if actual == expected:
        return None
    what = next(what for what in zip(_COMPARED, actual, expected, strict=False) if what[1] != what[2])
    return "{} {!r:.200} in the local header, {!r:.200} in the directory".format(*what)


class ReadAhead:
    """Reads ahead while reads go forward through the file, so that small members do not cost a system call each."""

    def __init__(self, descriptor: int, storage: Storage) -> None:
        self._descriptor = descriptor
        self._storage = storage
        self._start = 0
        self._data = b""
        self._ahead = _FIRST_READ_BYTES

    def read(self, position: int, length: int) -> bytes:
        """Return ``length`` bytes at ``position``, fewer at the end of the file."""
        skip = position - self._start
        if skip >= 0 and skip + length <= len(self._data):
            return self._data[skip : skip + length]
        forward = 0 <= skip <= len(self._data)
        self._ahead = min(self._ahead * 4, PIECE_BYTES) if forward else _FIRST_READ_BYTES
        data = self._storage.read(self._descriptor, max(length, self._ahead), position)
        self._start, self._data = position, data
        return data[:length]


class _View(NamedTuple):
    path: str
    descriptor: int
    directory: Directory
    fingerprint: str
    snapshot: IO[bytes] | None


class _Merge(NamedTuple):
    """A merge that has not committed: its intent, and the open file that it stands in."""

    intent: Intent
    descriptor: int
    inode: int


def directory_of(path: StrPath, *, storage: Storage = LOCAL) -> Directory:
    """Return where the directory of an archive is, without reading or copying it; of the old one during a merge.

    Errors are those of `Archive.open`.
    """
    return state_of(path, storage=storage)[0]


def state_of(path: StrPath, *, storage: Storage = LOCAL) -> tuple[Directory, str]:
    """Return where the directory of an archive is, and its fingerprint; otherwise like `directory_of`."""
    view = _consistent_view(path, storage, copy=False)
    storage.close(view.descriptor)
    return view.directory, view.fingerprint


def _consistent_view(given: StrPath, storage: Storage, *, copy: bool) -> _View:
    path = os.path.realpath(given)
    intents = _intent_paths(given, path)
    failure: Exception | None = None
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        merge = _merge_under_way(intents, storage)
        try:
            descriptor = storage.open(path)
            try:
                before = _state(descriptor)
                view, failure = _try_view(path, descriptor, merge, storage, copy)
                if _unchanged(path, before, merge, intents, storage):
                    if failure is not None:
                        raise failure
                    assert view is not None
                    descriptor = -1
                    return view
                if view is not None and view.snapshot is not None:
                    view.snapshot.close()
            finally:
                if descriptor >= 0:
                    storage.close(descriptor)
        finally:
            if merge is not None:
                storage.close(merge.descriptor)
    if failure is not None:
        raise failure
    raise OSError(errno.EBUSY, "the archive changes all the time", path)


def _try_view(
    path: str, descriptor: int, merge: _Merge | None, storage: Storage, copy: bool
) -> tuple[_View | None, Exception | None]:
    """Return a view of the archive, or the error that counts if nothing changed meanwhile."""
    source, start = descriptor, None
    try:
        if merge is None:
            directory = locate(descriptor, storage=storage)
        elif merge.intent.old is None:
            raise FileNotFoundError(errno.ENOENT, "the first merge into this archive is under way", path)
        else:
            directory, source, start = merge.intent.old, merge.descriptor, merge.intent.tail_start
        mark = fingerprint(source, directory, storage=storage, start=start)
        snapshot = _copy_tail(source, directory, start, storage) if copy else None
    except ZipFormatError as error:
        return None, NotAZipError(f"{path}: {error}")
    except UnsupportedError as error:
        return None, UnsupportedError(f"{path}: {error}", error.code)
    except OSError as error:
        error.filename = error.filename or path
        if error.errno not in _CHANGED_ERRORS:
            raise
        return None, error
    return _View(path, descriptor, directory, mark, snapshot), None


def _copy_tail(source: int, directory: Directory, start: int | None, storage: Storage) -> IO[bytes]:
    """Copy all from the directory to the end of the archive into an unlinked file in memory or on local disk."""
    length = directory.archive_length - directory.offset
    snapshot: IO[bytes]
    if length <= SNAPSHOT_MEMORY_BYTES and hasattr(os, "memfd_create"):
        snapshot = open(os.memfd_create("rear-directory"), "wb+", buffering=0)
    else:
        snapshot = tempfile.TemporaryFile(prefix="rear-", buffering=0)
    try:
        storage.copy_range(
            source,
            snapshot.fileno(),
            source_start=directory.offset if start is None else start,
            target_start=0,
            length=length,
        )
    except BaseException:
        snapshot.close()
        raise
    return snapshot


def _state(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _unchanged(
    path: str, before: tuple[int, int, int], merge: _Merge | None, intents: list[Path], storage: Storage
) -> bool:
    now = _merge_under_way(intents, storage)
    if now is not None:
        storage.close(now.descriptor)
    if merge is not None:
        # The archive itself changes all the time, but not its members, and the intent keeps the rest.
        return now is not None and now.inode == merge.inode
    try:
        # NFS asks the server for the attributes of a file when it is opened, and may not do so for a mere stat.
        descriptor = storage.open(path)
    except FileNotFoundError:
        return False
    try:
        return now is None and _state(descriptor) == before
    finally:
        storage.close(descriptor)


def _intent_paths(given: StrPath, path: str) -> list[Path]:
    """Stems of the intents of merges into this archive, by the given name and by the one without links."""
    bases = {find_base(given), find_base(path)}
    return [base[0].intent(base[1]).with_suffix("") for base in bases if base is not None]


def _merge_under_way(stems: list[Path], storage: Storage) -> _Merge | None:
    for stem in stems:
        try:
            # NFS may not see a new file by its name for half a minute, but in its folder at once.
            names = storage.names(stem.parent)
        except PermissionError:
            # Who may not look into the base's state may still read its archives while nothing is merged.
            continue
        for name in names:
            if name.startswith(stem.name) and name.endswith(".intent"):
                merge = _open_merge(stem.with_name(name), storage)
                if merge is not None:
                    return merge
    return None


def _open_merge(path: Path, storage: Storage) -> _Merge | None:
    try:
        descriptor = storage.open(path)
    except PermissionError:
        return None
    except OSError as error:
        if error.errno not in _CHANGED_ERRORS:
            raise
        return None
    merge = _read_merge(path, descriptor, storage)
    if merge is None:
        storage.close(descriptor)
    return merge


def _read_merge(path: Path, descriptor: int, storage: Storage) -> _Merge | None:
    try:
        intent = read_intent(path, storage=storage)
        inode = os.fstat(descriptor).st_ino
        # Until it is planned, a merge has not begun to write, so the archive is whole. And intents of one archive and
        # leader follow each other under one name: what was read has to be the file that is open.
        if not intent.planned or intent.committed or os.stat(path).st_ino != inode:
            return None
    except FutureVersionError:
        storage.close(descriptor)
        raise
    except JournalError:
        # Incomplete: nothing is planned yet.
        return None
    except OSError as error:
        if error.errno not in _CHANGED_ERRORS:
            storage.close(descriptor)
            raise
        return None
    return _Merge(intent, descriptor, inode)
