"""One segment of an index: an SQLite file that is written once, on local disk, and never modified afterwards.

A segment holds the rows of one or more merges (``members``), the rows of older segments that no longer count
(``removed``), what it says of itself (``segment``) and the segments on which it builds (``below``). The tables are
described for users in ``docs/reference/index-schema.md``; here is their only definition. Only this module knows SQLite and
sqlite-utils.

Text is stored as TEXT. What UTF-8 cannot encode (the path of a source may hold any bytes) is stored as a BLOB of these
bytes, and comes back as Python's ``surrogateescape`` text.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from rear.core.records import Metadata
from rear.core.storage import LOCAL, Storage
from rear.errors import FutureVersionError, IndexFormatError

SCHEMA_VERSION: Final = 1
SQLITE_VERSION: Final = sqlite3.sqlite_version
APPLICATION_ID: Final = int.from_bytes(b"rear")
"""In the SQLite header, so that ``file`` and we can tell a segment from another database."""
ROW_LIMIT_BYTES: Final = 1 << 20
"""Largest row: a name and metadata at their limits fit. A forged segment cannot make a reader take more memory."""
INTEGER_LIMIT: Final = (1 << 63) - 1
"""Largest number that SQLite holds; a forged Zip64 archive may claim larger ones."""
BELOW_LIMIT: Final = 1_000
"""More segments below one another are damage; compaction keeps about ten."""
#: Measured with 1M rows, half of 200,000 names found: IN lists of 500 0.65 s, a temporary table 1.1 s, 5,000 6.8 s.
_NAMES_AT_ONCE: Final = 500
_ROWS_AT_ONCE: Final = 1_000
_HEADER_BYTES: Final = 100
#: The second: a message about a damaged file may quote bytes of it.
_READ_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)


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

_COLUMNS: Final = {
    name: str if name in ("name", "source", "host", "worker", "metadata") else int for name in IndexRow._fields
}
_NOT_NULL: Final = ("name", "target_start", "size", "compressed_size", "method", "crc")
_TEXT: Final = tuple(position for position, kind in enumerate(_COLUMNS.values()) if kind is str)
_METADATA: Final = IndexRow._fields.index("metadata")
_ACCEPTED: Final = tuple(
    {*((str, bytes) if kind is str else (int,)), *(() if name in _NOT_NULL else (type(None),))}
    for name, kind in _COLUMNS.items()
)
_SELECTED: Final = ", ".join(f"members.{name}" for name in IndexRow._fields)
_INSERT: Final = f"INSERT INTO members VALUES ({', '.join('?' * len(IndexRow._fields))})"
_TABLES: Final = ("below", "members", "removed", "segment")


class Below(NamedTuple):
    """A segment on which another one builds."""

    number: int
    id: str


@dataclass(frozen=True, slots=True)
class Segment:
    """What a segment says of itself.

    ``archive`` is the name that the archive had then: it may have been renamed since. ``fingerprint`` is that of the
    archive's central directory after the merge. ``below`` lists all older segments that still count, oldest first.
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


def _stored(text: str | None) -> str | bytes | None:
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


def _values(row: IndexRow) -> tuple[Any, ...]:
    """Return a row as SQLite can take it."""
    if (
        row.metadata is None
        and row.name.isascii()
        and (row.source is None or row.source.isascii())
        and (row.host is None or row.host.isascii())
        and (row.worker is None or row.worker.isascii())
    ):
        return tuple(row)
    values: list[Any] = list(row)
    if values[_METADATA] is not None:
        values[_METADATA] = json.dumps(values[_METADATA], ensure_ascii=False, separators=(",", ":"))
    for position in _TEXT:
        values[position] = _stored(values[position])
    return tuple(values)


def _need_no_conversion(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether SQLite can take all of these rows, given by columns, as they are: see `_values`."""
    metadata = columns[_METADATA]
    if metadata.count(None) != len(metadata):
        return False
    return all("".join(filter(None, set(columns[position]))).isascii() for position in _TEXT if position != _METADATA)


class _RowError(IndexFormatError):
    """A row is damaged; it does not know of which segment it is."""


def _row(values: Sequence[Any]) -> IndexRow:
    """Return a row from what SQLite gave; a forged segment may hold anything.

    Raises:
        _RowError: a value has another type than its column.
    """
    kinds = tuple(map(type, values))
    if kinds in _PLAIN:
        return IndexRow._make(values)
    for position, (kind, accepted) in enumerate(zip(kinds, _ACCEPTED, strict=True)):
        if kind not in accepted:
            raise _RowError(f"{IndexRow._fields[position]} is {kind.__name__}")
    changed = list(values)
    for position in _TEXT:
        if kinds[position] is bytes:
            changed[position] = values[position].decode("utf-8", "surrogateescape")
    if changed[_METADATA] is None:
        if bytes not in kinds and len(_PLAIN) < 1_000:
            _PLAIN.add(kinds)
        return IndexRow._make(changed)
    try:
        changed[_METADATA] = json.loads(changed[_METADATA])
    except (ValueError, RecursionError) as error:
        raise _RowError(f"metadata is no JSON: {error}") from None
    if not isinstance(changed[_METADATA], dict):
        raise _RowError("metadata is not a JSON object")
    return IndexRow._make(changed)


#: Types of rows that need no conversion, as they were met: one look-up instead of a check of each value.
_PLAIN: Final[set[tuple[type, ...]]] = set()


def _translated(error: Exception, path: Path) -> Exception:
    """Return an error of SQLite as what it is here: of the operating system, or of the format."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return OSError(errno.EIO, f"{os.strerror(errno.EIO)}: {error}", os.fspath(path))
    return IndexFormatError(f"{path}: {error}")


def _uri(path: Path) -> str:
    # As bytes: the base may have a name that is no UTF-8.
    return f"file:{quote(os.fsencode(path))}?immutable=1"


def _connect(database: str) -> sqlite3.Connection:
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


def _check_file(path: Path, storage: Storage) -> None:
    """Check the SQLite header (sqlite.org/fileformat2.html, 1.3) before SQLite reads the file."""
    # Opening a FIFO would wait for its writer.
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise IndexFormatError(f"{path}: not a regular file")
    descriptor = storage.open(path)
    try:
        size = storage.size(descriptor)
        header = storage.read(descriptor, _HEADER_BYTES, 0)
    finally:
        storage.close(descriptor)
    if len(header) < _HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        raise IndexFormatError(f"{path}: not an SQLite file")
    (page_size,) = struct.unpack_from(">H", header, 16)
    (pages,) = struct.unpack_from(">I", header, 28)
    version, application = struct.unpack_from(">I4xI", header, 60)
    if application != APPLICATION_ID:
        raise IndexFormatError(f"{path}: an SQLite file, but no segment of an index")
    if version > SCHEMA_VERSION:
        raise FutureVersionError(f"{path}: schema version {version}, this rear knows up to {SCHEMA_VERSION}")
    expected = pages * (65_536 if page_size == 1 else page_size)
    if size != expected:
        raise IndexFormatError(f"{path}: {size:,} bytes instead of {expected:,}")


def read_segment(path: Path, *, storage: Storage = LOCAL) -> Segment:
    """Read what a segment says of itself; its rows are not looked at.

    Raises:
        IndexFormatError: the file is damaged, or no segment.
        FutureVersionError: a newer rear wrote it.
        OSError: it cannot be read, or is no longer there.
    """
    _check_file(path, storage)
    try:
        connection = _connect(_uri(path))
        try:
            return _read_segment(connection, path)
        finally:
            connection.close()
    except _READ_ERRORS as error:
        raise _translated(error, path) from error


def _read_segment(connection: sqlite3.Connection, path: Path) -> Segment:
    schema = connection.execute("SELECT type, name, sql FROM sqlite_master LIMIT 32").fetchall()
    tables = sorted(name for kind, name, _ in schema if kind == "table")
    # A view or a virtual table could make a plain SELECT run code of the forger's choice.
    if (
        tables != list(_TABLES)
        or any(kind not in ("table", "index") for kind, _, _ in schema)
        or any(kind == "table" and not str(sql).upper().startswith("CREATE TABLE") for kind, _, sql in schema)
        or [column[1] for column in connection.execute("PRAGMA table_info(members)")] != list(IndexRow._fields)
    ):
        raise IndexFormatError(f"{path}: not the schema of a segment")
    found = connection.execute(
        "SELECT number, id, archive, fingerprint, members, removed, created_ns FROM segment LIMIT 2"
    ).fetchall()
    below = connection.execute("SELECT number, id FROM below ORDER BY number LIMIT ?", (BELOW_LIMIT + 1,)).fetchall()
    if len(found) != 1 or len(below) > BELOW_LIMIT:
        raise IndexFormatError(f"{path}: {len(found)} descriptions, {len(below)} segments below")
    (values,) = found
    if list(map(type, values)) != [int, str, str, str, int, int, int] or any(
        list(map(type, pair)) != [int, str] for pair in below
    ):
        raise IndexFormatError(f"{path}: the description has values of other types")
    number, identity, archive, fingerprint, members, removed, created_ns = values
    older = tuple(Below(*pair) for pair in below)
    contradicts = min(members, removed) < 0 or any(key.number >= number for key in older)
    if contradicts or number != parse_segment_name(path.name):
        raise IndexFormatError(f"{path}: the description contradicts itself or the file's name")
    return Segment(path, number, identity, archive, fingerprint, members, removed, created_ns, older)


class SegmentReader:
    """Reads the rows of one segment that still count.

    Args:
        segment: the segment.
        newer: all segments above it; the rows that they removed are hidden.

    Raises (each method):
        IndexFormatError: the segment is damaged.
        OSError: it cannot be read, or is no longer there.
    """

    def __init__(self, segment: Segment, newer: Sequence[Segment] = ()) -> None:
        self._segment = segment
        self._hidden = ""
        try:
            self._connection = _connect(_uri(segment.path))
        except _READ_ERRORS as error:
            raise _translated(error, segment.path) from error
        try:
            # Opens the file now, and the pages that all questions begin with: later it may have another name or none.
            self._connection.execute("SELECT 1 FROM segment").fetchone()
            for other in newer:
                if other.removed:
                    self._hide(other)
        except _READ_ERRORS as error:
            self.close()
            raise _translated(error, segment.path) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _hide(self, other: Segment) -> None:
        if not self._hidden:
            self._connection.execute(
                "CREATE TEMP TABLE hidden (name TEXT, target_start INTEGER, PRIMARY KEY (name, target_start))"
                " WITHOUT ROWID"
            )
            self._hidden = (
                " AND NOT EXISTS (SELECT 1 FROM hidden"
                " WHERE hidden.name = members.name AND hidden.target_start = members.target_start)"
            )
        with SegmentReader(other) as reader:
            self._connection.executemany(
                "INSERT OR IGNORE INTO hidden VALUES (?, ?)",
                reader._execute("SELECT name, target_start FROM removed", (), limit=other.removed),
            )
        self._connection.commit()

    def _execute(self, sql: str, parameters: Sequence[Any], *, limit: int) -> Iterator[Any]:
        """Yield what a query finds; more than ``limit`` rows are damage (a forged tree may never end)."""
        try:
            for count, values in enumerate(self._connection.execute(sql, parameters)):
                if count >= limit:
                    raise IndexFormatError(f"{self._segment.path}: more rows than the segment has")
                yield values
        except _READ_ERRORS as error:
            raise _translated(error, self._segment.path) from error

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[IndexRow]:
        try:
            yield from map(_row, self._execute(sql, parameters, limit=self._segment.members))
        except _RowError as error:
            raise IndexFormatError(f"{self._segment.path}: {error}") from None

    def rows(self) -> Iterator[IndexRow]:
        """Yield all rows in the order of the archive's central directory."""
        return self._rows(f"SELECT {_SELECTED} FROM members WHERE 1{self._hidden} ORDER BY rowid")

    def select(self, condition: str, parameters: Sequence[str | int]) -> Iterator[IndexRow]:
        """Yield the rows that fulfil an SQL condition on the columns of ``members``, in the order of `rows`."""
        sql = f"SELECT {_SELECTED} FROM members WHERE ({condition}){self._hidden} ORDER BY members.rowid"
        return self._rows(sql, [_stored(value) if isinstance(value, str) else value for value in parameters])

    def end(self) -> int:
        """Return where in the archive the last of the members ends."""
        sql = f"SELECT MAX(IFNULL(target_end, target_start)) FROM members WHERE 1{self._hidden}"
        return max((value for (value,) in self._execute(sql, (), limit=1) if isinstance(value, int)), default=0)

    def find(self, names: Sequence[str]) -> dict[str, IndexRow]:
        """Return the last row of each name that is there. Sorted names are found fastest."""
        found = {}
        for start in range(0, len(names), _NAMES_AT_ONCE):
            some = [_stored(name) for name in names[start : start + _NAMES_AT_ONCE]]
            # By rowid second: the last row of a name wins. The index has this order already.
            sql = (
                f"SELECT {_SELECTED} FROM members WHERE name IN ({','.join('?' * len(some))}){self._hidden}"
                " ORDER BY name, members.rowid"
            )
            for row in self._rows(sql, some):
                found[row.name] = row
        return found

    def find_origins(self, keys: Iterable[OriginKey]) -> dict[OriginKey, IndexRow]:
        """Return the last row of each member of these origins; reads the whole segment."""
        try:
            # With the types of `members`: between columns of different affinity SQLite uses no index.
            self._connection.execute(
                "CREATE TEMP TABLE IF NOT EXISTS wanted (sequence INTEGER, host TEXT, worker TEXT,"
                " PRIMARY KEY (sequence, host, worker)) WITHOUT ROWID"
            )
            self._connection.execute("DELETE FROM wanted")
            self._connection.executemany(
                "INSERT OR IGNORE INTO wanted VALUES (?, ?, ?)",
                [(key[2], _stored(key[0]), _stored(key[1])) for key in keys if 0 <= key[2] <= INTEGER_LIMIT],
            )
            self._connection.commit()
        except _READ_ERRORS as error:
            raise _translated(error, self._segment.path) from error
        # CROSS JOIN keeps the order: members are read once, in sequence.
        sql = (
            f"SELECT {_SELECTED} FROM members CROSS JOIN wanted ON wanted.sequence = members.sequence"
            f" AND wanted.host = members.host AND wanted.worker = members.worker WHERE 1{self._hidden}"
        )
        found = {}
        for row in self._rows(sql):
            if row.host is not None and row.worker is not None and row.sequence is not None:
                found[row.host, row.worker, row.sequence] = row
        return found

    def find_sources(self, keys: Iterable[SourceKey]) -> dict[SourceKey, IndexRow]:
        """Return the last row of each member that was made of these sources; reads the whole segment."""
        try:
            # As in `find_origins`.
            self._connection.execute(
                "CREATE TEMP TABLE IF NOT EXISTS wanted_sources (source TEXT, size INTEGER, mtime_ns INTEGER,"
                " PRIMARY KEY (source, size, mtime_ns)) WITHOUT ROWID"
            )
            self._connection.execute("DELETE FROM wanted_sources")
            self._connection.executemany(
                "INSERT OR IGNORE INTO wanted_sources VALUES (?, ?, ?)",
                [(_stored(source), size, mtime_ns) for source, size, mtime_ns in keys if size <= INTEGER_LIMIT],
            )
            self._connection.commit()
        except _READ_ERRORS as error:
            raise _translated(error, self._segment.path) from error
        sql = (
            f"SELECT {_SELECTED} FROM members CROSS JOIN wanted_sources AS wanted ON wanted.source = members.source"
            f" AND wanted.size = members.size AND wanted.mtime_ns = members.mtime_ns WHERE 1{self._hidden}"
        )
        found = {}
        for row in self._rows(sql):
            if row.source is not None and row.mtime_ns is not None:
                found[row.source, row.size, row.mtime_ns] = row
        return found


class SegmentWriter:
    """Builds one segment as a file on local disk.

    Args:
        path: a new file in a private folder, not on a network file system.

    Raises (each method):
        OSError: it cannot be written.
        IndexFormatError: a segment to be absorbed is damaged.
    """

    def __init__(self, path: Path) -> None:
        from sqlite_utils import Database

        self.path = path
        try:
            self._connection = _connect(os.fspath(path))
        except sqlite3.Error as error:
            raise _translated(error, path) from error
        try:
            # The file is thrown away when anything fails, and synced where it goes: no journal, no sync.
            self._connection.execute("PRAGMA journal_mode = OFF")
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._database = Database(self._connection, execute_plugins=False)
            self._create_tables()
        except sqlite3.Error as error:
            self.close()
            raise _translated(error, path) from error
        except BaseException:
            self.close()
            raise

    def _create_tables(self) -> None:
        self._database.create_table("members", _COLUMNS, not_null=_NOT_NULL)
        self._database.create_table("removed", {"name": str, "target_start": int})
        self._database.create_table("below", {"number": int, "id": str})
        self._database.create_table(
            "segment",
            {
                "number": int, "id": str, "archive": str, "fingerprint": str,
                "members": int, "removed": int, "created_ns": int,
            },
        )  # fmt: skip
        self._connection.execute("CREATE TEMP TABLE gone (name TEXT, target_start INTEGER, last_rowid INTEGER)")
        self._connection.commit()

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _count(self, table: str) -> int:
        (count,) = self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)

    def add(self, rows: Iterable[IndexRow], *, removed: Iterable[MemberKey] = ()) -> int:
        """Add the rows of one merge, in the order of the central directory; return how many there are in all.

        ``removed`` are rows of older segments that no longer count.
        """
        try:
            rows = iter(rows)
            while batch := list(islice(rows, _ROWS_AT_ONCE)):
                self._insert(batch)
            self._connection.executemany(
                "INSERT INTO removed VALUES (?, ?)", ((_stored(name), target_start) for name, target_start in removed)
            )
            self._connection.commit()
            return self._count("members")
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error
        except OverflowError as error:
            raise IndexFormatError(f"a number of a row is over {INTEGER_LIMIT:,}") from error

    def _insert(self, rows: list[IndexRow]) -> None:
        """Add rows, at least one.

        What is the same in all of them stands in the statement, and columns that are equal are given once: that halves
        the time.
        """
        columns = tuple(zip(*rows, strict=True))
        if not _need_no_conversion(columns):
            self._connection.executemany(_INSERT, map(_values, rows))
            return
        parts: list[str] = []
        varying: list[tuple[Any, ...]] = []
        for column in columns:
            first = column[0]
            is_number = type(first) is int and -INTEGER_LIMIT <= first <= INTEGER_LIMIT
            if (first is None or is_number) and column.count(first) == len(column):
                parts.append("NULL" if first is None else str(first))
                continue
            if column not in varying:
                varying.append(column)
            parts.append(f"?{varying.index(column) + 1}")
        self._connection.executemany(f"INSERT INTO members VALUES ({', '.join(parts)})", zip(*varying, strict=True))

    def absorb(self, path: Path, *, members: int) -> None:
        """Add the rows of a segment, that many, which is newer than all that was added so far."""
        try:
            self._connection.execute("ATTACH ? AS other", (_uri(path),))
            self._connection.execute(
                "INSERT INTO gone SELECT name, target_start, (SELECT coalesce(max(rowid), 0) FROM main.members)"
                " FROM other.removed"
            )
            before = self._count("main.members")
            self._connection.execute(
                "INSERT INTO main.members SELECT * FROM other.members ORDER BY rowid LIMIT ?", (members + 1,)
            )
            found = self._count("main.members") - before
            if found != members:
                raise IndexFormatError(f"{path}: {found:,} or more rows instead of {members:,}")
            self._connection.commit()
            self._connection.execute("DETACH other")
        except _READ_ERRORS as error:
            raise _translated(error, path) from error

    def finish(
        self, *, number: int, identity: str, archive: str, fingerprint: str, below: Sequence[Segment], created_ns: int
    ) -> None:
        """Add the index and the description, and close the file."""
        try:
            self._database.table("members").create_index(["name"], index_name="members_name")
            self._drop_removed()
            if not below:
                self._connection.execute("DELETE FROM removed")
            self._connection.executemany("INSERT INTO below VALUES (?, ?)", [segment.key for segment in below])
            self._connection.execute(
                "INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, identity, archive, fingerprint, self._count("members"), self._count("removed"), created_ns),
            )
            self._connection.commit()
            self._connection.close()
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error

    def _drop_removed(self) -> None:
        """Apply what absorbed segments removed to older absorbed rows; the rest concerns segments below."""
        if not self._count("gone"):
            return
        self._connection.execute(
            "CREATE TEMP TABLE dead AS SELECT gone.rowid AS gone_rowid, members.rowid AS member_rowid"
            " FROM gone CROSS JOIN members ON members.name = gone.name"
            " AND members.target_start = gone.target_start AND members.rowid <= gone.last_rowid"
        )
        self._connection.execute("DELETE FROM members WHERE rowid IN (SELECT member_rowid FROM dead)")
        self._connection.execute("DELETE FROM gone WHERE rowid IN (SELECT gone_rowid FROM dead)")
        self._connection.execute("INSERT INTO removed SELECT DISTINCT name, target_start FROM gone")
