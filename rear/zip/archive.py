"""One open archive, whoever made it: its entries, and its members' headers and content.

It knows no merge: `rear.read.view` opens a final archive as it is committed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import IO, Final, NoReturn, TypeVar

from rear.core.records import Origin
from rear.core.storage import Storage, close_read
from rear.errors import MemberNotFoundError, UnsupportedError, ZipFormatError
from rear.zip.codecs import crc32, decode
from rear.zip.directory import PIECE_BYTES, Directory, entries, entry_at, fingerprint, names
from rear.zip.headers import CentralEntry, LocalHeader, decode_local_header
from rear.zip.origin import decode_origin
from rear.zip.structures import FLAG_ENCRYPTED, LOCAL, LOCAL_SIGNATURE
from rear.zip.window import FIRST_BYTES, Window

_T = TypeVar("_T")
#: Of so many names, the ones most like a missing one are suggested.
_SUGGESTION_POOL: Final = 2_000
#: What local header and directory have to agree in; the last three only if they do not follow the data (4.4.4, bit 3).
_COMPARED: Final = ("name", "method", "encryption flag", "CRC-32", "compressed size", "size")


class Archive:
    """One open archive, as it was when `rear.read.view.open_committed` opened it; used by one thread at a time.

    Args:
        path: the archive's path, links resolved.
        descriptor: the open file, closed with the archive.
        directory: where its central directory is; of the old archive, while a merge is under way.
        snapshot: a copy of the bytes from the directory to the end of the archive, closed with it.
        storage: the file system.

    Attributes:
        window: what of the file is in memory; whoever reads members in their order shares it.
    """

    def __init__(self, path: str, descriptor: int, directory: Directory, snapshot: IO[bytes], storage: Storage) -> None:
        self.path = path
        self.directory = directory
        self._descriptor = descriptor
        self._snapshot = snapshot
        self._storage = storage
        self.window = Window(descriptor, 0, directory.archive_length, first_bytes=FIRST_BYTES, storage=storage)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._snapshot.close()
            close_read(descriptor, self._storage)

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
        return self._walk(entries)

    def names(self) -> Iterator[tuple[int, str]]:
        """Yield ``(position, name)`` of each entry, faster than `entries`; `entry_at` returns the entry.

        Raises:
            ZipFormatError: the directory is damaged.
        """
        return self._walk(names)

    def _walk(self, walk: Callable[..., Iterator[_T]]) -> Iterator[_T]:
        try:
            yield from walk(self._snapshot.fileno(), self.directory, start=0)
        except ZipFormatError as error:
            raise ZipFormatError(error.what, self.path) from None

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
        if position + LOCAL.size <= self.directory.offset:
            head = self.window.read_on(position, LOCAL.size)
        if len(head) < LOCAL.size or head[:4] != LOCAL_SIGNATURE:
            self._fail(entry, f"no local header at byte {position:,}: {head[:4]!r} instead of {LOCAL_SIGNATURE!r}")
        length = LOCAL.size + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        return self.window.read_on(position, length)

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
            data = self.window.read_on(start, min(PIECE_BYTES, end - start))
            if not data:
                raise ZipFormatError(f"the file ends {end - start:,} bytes early")
            start += len(data)
            yield data

    def _fail(self, entry: CentralEntry, text: str) -> NoReturn:
        raise ZipFormatError(f"member {entry.name!r:.300}: {text}", self.path) from None


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
