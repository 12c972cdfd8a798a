"""One segment of an index: an SQLite file that is written once, on local disk, and never modified afterwards.

A segment holds the rows of one or more merges (``members``), the rows of older segments that no longer count
(``removed``), what it says of itself (``segment``) and the segments on which it builds (``below``). The tables are
described for users in ``docs/reference/index-schema.md``; their only definition is here and in
`rear.index.segment_writer`.

Text is stored as TEXT. What UTF-8 cannot encode (the path of a source may hold any bytes) is stored as a BLOB of these
bytes, and comes back as Python's ``surrogateescape`` text.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import quote

from rear.core.descent import status_of
from rear.core.records import Metadata
from rear.core.storage import LOCAL, created, opened
from rear.errors import IndexFormatError

SCHEMA_VERSION: Final = 1
SQLITE_VERSION: Final = sqlite3.sqlite_version
APPLICATION_ID: Final = int.from_bytes(b"rear")
"""In the SQLite header, so that ``file`` and we can tell a segment from another database."""
ROW_LIMIT_BYTES: Final = 1 << 20
"""Largest row: a name and metadata at their limits fit. A forged segment cannot make a reader take more memory."""
INTEGER_LIMIT: Final = (1 << 63) - 1
"""Largest number that SQLite holds; a forged Zip64 archive may claim larger ones."""
PATH_LIMIT_BYTES: Final = 500
"""SQLite opens no path of 512 bytes (MAX_PATHNAME in its os_unix.c)."""
PART_SUFFIX: Final = ".part"
BELOW_LIMIT: Final = 1_000
"""More segments below one another are damage; compaction keeps about ten."""
#: The second: a message about a damaged file may quote bytes of it.
READ_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)


class IndexRow(NamedTuple):
    """One member of a final archive: where it is, what it is, and where it came from.

    ``target_start`` to ``target_end`` is its range in the archive, local header included; ``source_start`` to
    ``source_end`` the range of the plain bytes in ``source``, the path of a picked-up file. Times are in nanoseconds
    since the Unix epoch; ``archived_ns`` is the time of the merge. ``None``: not known, as of members that other
    software added; after a rebuild from the archive, ``archived_ns`` is not known of any.
    """

    name: str
    source: str | None
    source_start: int | None
    source_end: int | None
    target_start: int
    target_end: int | None
    archived_ns: int | None
    size: int
    compressed_size: int
    method: int
    crc: int
    mtime_ns: int | None
    mode: int | None
    host: str | None
    worker: str | None
    sequence: int | None
    metadata: Metadata | None = None


OriginKey = tuple[str, str, int]
"""Host, worker and sequence number: what makes a member unique before it has a final archive."""
SourceKey = tuple[str, int, int]
"""Path of a source, its size in bytes and its mtime in nanoseconds: which state of which file a member was made of."""
MemberKey = tuple[str, int]
"""Name and target start: what makes a member unique in its archive."""

COLUMNS: Final = {
    name: str if name in ("name", "source", "host", "worker", "metadata") else int for name in IndexRow._fields
}
NOT_NULL: Final = ("name", "target_start", "size", "compressed_size", "method", "crc")
TEXT_POSITIONS: Final = tuple(position for position, kind in enumerate(COLUMNS.values()) if kind is str)
SEGMENT_COLUMNS: Final = {
    "number": int, "id": str, "archive": str, "fingerprint": str, "members": int, "removed": int, "created_ns": int,
}  # fmt: skip
"""What a segment says of itself, in the one row of its table ``segment``."""
BELOW_COLUMNS: Final = {"number": int, "id": str}
METADATA_POSITION: Final = IndexRow._fields.index("metadata")


class Below(NamedTuple):
    """A segment on which another one builds."""

    number: int
    id: str


@dataclass(frozen=True, slots=True)
class Segment:
    """What a segment says of itself.

    ``archive`` is the name that the archive had then: it may have been renamed since. ``fingerprint`` is that of the
    archive's central directory after the merge. ``below`` lists all older segments that still count, oldest first.
    ``status`` is that of the file.
    """

    path: Path
    number: int
    id: str
    archive: str
    fingerprint: str
    members: int
    removed: int
    created_ns: int
    below: tuple[Below, ...]
    status: os.stat_result

    def check_place(self) -> None:
        """Make sure that the file still has its name, and had it all the time: to be renamed changes its ctime.

        SQLite opens files by their names: between a look at one and that, another one could stand there.

        Raises:
            IndexFormatError: another one is, or was, in its place.
            OSError: it has gone.
        """
        now = status_of(self.path)
        if (now.st_ino, now.st_ctime_ns) != (self.status.st_ino, self.status.st_ctime_ns):
            raise IndexFormatError(f"{self.path}: another file took its place")

    @property
    def key(self) -> Below:
        """How a newer segment names this one."""
        return Below(self.number, self.id)


def segment_name(number: int) -> str:
    """File name of a segment."""
    return f"{number}.sqlite"


def parse_segment_name(name: str) -> int | None:
    """Return the number of a segment from its file name, or ``None`` when it is no segment's."""
    stem = name.removesuffix(".sqlite")
    if stem == name or len(stem) > 15 or not (stem.isascii() and stem.isdigit()):
        return None
    number = int(stem)
    return number if segment_name(number) == name and number > 0 else None


def parse_number(name: str) -> int | None:
    """Return the number of a segment, or of the temporary file of one that was being written."""
    if name.endswith(PART_SUFFIX):
        name = f"{name.partition('-')[0]}.sqlite"
    return parse_segment_name(name)


def stored(text: str | None) -> str | bytes | None:
    """Return text as SQLite can take it."""
    if text is None or text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            # A lone surrogate that stands for no byte: it comes from forged JSON, and need not come back the same.
            return text.encode("utf-8", "surrogatepass")
    return text


def translated(error: Exception, path: Path) -> Exception:
    """Return an error of SQLite as what it is here: of the operating system, or of the format."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return OSError(errno.EIO, f"{os.strerror(errno.EIO)}: {error}", os.fspath(path))
    return IndexFormatError(f"{path}: {error}")


@contextmanager
def uri_of(path: Path) -> Iterator[str]:
    """Yield the URI by which SQLite opens a segment, in this block; where its path is too long for it, of a copy."""
    # As bytes: the base may have a name that is no UTF-8.
    text = os.fsencode(path)
    if len(text) < PATH_LIMIT_BYTES:
        yield f"file:{quote(text)}?immutable=1"
        return
    # What is open needs its name no longer.
    with tempfile.TemporaryDirectory(prefix="rear-index-") as folder:
        copy = Path(folder, path.name)
        with opened(path, LOCAL) as source, created(copy, LOCAL) as target:
            LOCAL.copy_range(source, target, source_start=0, target_start=0, length=LOCAL.size(source))
        yield f"file:{quote(os.fsencode(copy))}?immutable=1"


def connect(database: str) -> sqlite3.Connection:
    # Its own cursors are never shared, but a generator of rows may be continued in another thread.
    connection = sqlite3.connect(database, uri=True, check_same_thread=False)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, ROW_LIMIT_BYTES)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


class Connected:
    """What reads or writes one segment, and closes its connection at the end of a block."""

    _connection: sqlite3.Connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
