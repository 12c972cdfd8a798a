"""Reads segments of an index: what one says of itself, and its rows that still count.

A segment may be forged: SQLite is kept from running anything that stands in it, and values are checked.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rear.core.storage import LOCAL, Storage, close_read
from rear.errors import FutureVersionError, IndexFormatError
from rear.index.segment import (
    APPLICATION_ID,
    BELOW_COLUMNS,
    BELOW_LIMIT,
    COLUMNS,
    INTEGER_LIMIT,
    METADATA_POSITION,
    NOT_NULL,
    READ_ERRORS,
    SCHEMA_VERSION,
    SEGMENT_COLUMNS,
    TEXT_POSITIONS,
    Below,
    Connected,
    IndexRow,
    OriginKey,
    Segment,
    SourceKey,
    connect,
    parse_segment_name,
    stored,
    translated,
    uri_of,
)

#: Measured with 1M rows, half of 200,000 names found: IN lists of 500 0.65 s, a temporary table 1.1 s, 5,000 6.8 s.
_NAMES_AT_ONCE: Final = 500
_HEADER_BYTES: Final = 100
_ACCEPTED: Final = tuple(
    {*((str, bytes) if kind is str else (int,)), *(() if name in NOT_NULL else (type(None),))}
    for name, kind in COLUMNS.items()
)
_SELECTED: Final = ", ".join(f"members.{name}" for name in IndexRow._fields)
_TABLES: Final = ("below", "members", "removed", "segment")


class _RowError(IndexFormatError):
    """What is wrong with a row; of which segment it is, is not known here."""


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
    for position in TEXT_POSITIONS:
        if kinds[position] is bytes:
            changed[position] = values[position].decode("utf-8", "surrogateescape")
    if changed[METADATA_POSITION] is None:
        if bytes not in kinds and len(_PLAIN) < 1_000:
            _PLAIN.add(kinds)
        return IndexRow._make(changed)
    try:
        changed[METADATA_POSITION] = json.loads(changed[METADATA_POSITION])
    except (ValueError, RecursionError) as error:
        raise _RowError(f"metadata is no JSON: {error}") from None
    if not isinstance(changed[METADATA_POSITION], dict):
        raise _RowError("metadata is not a JSON object")
    return IndexRow._make(changed)


#: Types of rows that need no conversion, as they were met: one look-up instead of a check of each value.
_PLAIN: Final[set[tuple[type, ...]]] = set()


def _check_file(path: Path, storage: Storage) -> os.stat_result:
    """Check the SQLite header (sqlite.org/fileformat2.html, 1.3) before SQLite reads the file; return its status."""
    # Opening a FIFO would wait for its writer.
    if not stat.S_ISREG(storage.status(path).st_mode):
        raise IndexFormatError(f"{path}: not a regular file")
    descriptor = storage.open(path)
    try:
        status = os.fstat(descriptor)
        header = storage.read(descriptor, _HEADER_BYTES, 0)
    finally:
        close_read(descriptor, storage)
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
    if status.st_size != expected:
        raise IndexFormatError(f"{path}: {status.st_size:,} bytes instead of {expected:,}")
    return status


def read_segment(path: Path, *, storage: Storage = LOCAL) -> Segment:
    """Read what a segment says of itself; its rows are not looked at.

    Raises:
        IndexFormatError: the file is damaged, or no segment.
        FutureVersionError: a newer rear wrote it.
        OSError: it cannot be read, or is no longer there.
    """
    status = _check_file(path, storage)
    try:
        with uri_of(path) as uri:
            connection = connect(uri)
        try:
            return _read_segment(connection, path, status)
        finally:
            connection.close()
    except READ_ERRORS as error:
        raise translated(error, path) from error


def _read_segment(connection: sqlite3.Connection, path: Path, status: os.stat_result) -> Segment:
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
    found = connection.execute(f"SELECT {', '.join(SEGMENT_COLUMNS)} FROM segment LIMIT 2").fetchall()
    below = connection.execute("SELECT number, id FROM below ORDER BY number LIMIT ?", (BELOW_LIMIT + 1,)).fetchall()
    if len(found) != 1 or len(below) > BELOW_LIMIT:
        raise IndexFormatError(f"{path}: {len(found)} descriptions, {len(below)} segments below")
    (values,) = found
    if list(map(type, values)) != list(SEGMENT_COLUMNS.values()) or any(
        list(map(type, pair)) != list(BELOW_COLUMNS.values()) for pair in below
    ):
        raise IndexFormatError(f"{path}: the description has values of other types")
    number, identity, archive, fingerprint, members, removed, created_ns = values
    older = tuple(Below(*pair) for pair in below)
    contradicts = min(members, removed) < 0 or any(key.number >= number for key in older)
    if contradicts or number != parse_segment_name(path.name):
        raise IndexFormatError(f"{path}: the description contradicts itself or the file's name")
    segment = Segment(path, number, identity, archive, fingerprint, members, removed, created_ns, older, status)
    segment.check_place()
    return segment


class SegmentReader(Connected):
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
            with uri_of(segment.path) as uri:
                self._connection = connect(uri)
        except READ_ERRORS as error:
            raise translated(error, segment.path) from error
        try:
            # Opens the file now, and the pages that all questions begin with: later it may have another name or none.
            self._connection.execute("SELECT 1 FROM segment").fetchone()
            segment.check_place()
            for other in newer:
                if other.removed:
                    self._hide(other)
        except READ_ERRORS as error:
            self.close()
            raise translated(error, segment.path) from error
        except BaseException:
            self.close()
            raise

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
        except READ_ERRORS as error:
            raise translated(error, self._segment.path) from error

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
        return self._rows(sql, [stored(value) if isinstance(value, str) else value for value in parameters])

    def end(self) -> int:
        """Return where in the archive the last of the members ends."""
        sql = f"SELECT MAX(IFNULL(target_end, target_start)) FROM members WHERE 1{self._hidden}"
        return max((value for (value,) in self._execute(sql, (), limit=1) if isinstance(value, int)), default=0)

    def find(self, names: Sequence[str]) -> dict[str, IndexRow]:
        """Return the last row of each name that is there. Sorted names are found fastest."""
        found = {}
        for start in range(0, len(names), _NAMES_AT_ONCE):
            some = [stored(name) for name in names[start : start + _NAMES_AT_ONCE]]
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
        wanted = [
            (sequence, stored(host), stored(worker))
            for host, worker, sequence in keys
            if 0 <= sequence <= INTEGER_LIMIT
        ]
        return {
            (row.host, row.worker, row.sequence): row
            for row in self._rows_of(("sequence", "host", "worker"), wanted)
            if row.host is not None and row.worker is not None and row.sequence is not None
        }

    def find_sources(self, keys: Iterable[SourceKey]) -> dict[SourceKey, IndexRow]:
        """Return the last row of each member that was made of these sources; reads the whole segment."""
        wanted = [(stored(source), size, mtime_ns) for source, size, mtime_ns in keys if size <= INTEGER_LIMIT]
        return {
            (row.source, row.size, row.mtime_ns): row
            for row in self._rows_of(("source", "size", "mtime_ns"), wanted)
            if row.source is not None and row.mtime_ns is not None
        }

    def _rows_of(self, columns: tuple[str, ...], wanted: list[tuple[Any, ...]]) -> Iterator[IndexRow]:
        """Yield the rows that have wanted values in these columns."""
        # With the types of `members`: between columns of different affinity SQLite uses no index.
        typed = ", ".join(f"{name} {'TEXT' if COLUMNS[name] is str else 'INTEGER'}" for name in columns)
        places = ", ".join("?" * len(columns))
        try:
            self._connection.execute("DROP TABLE IF EXISTS temp.wanted")
            self._connection.execute(
                f"CREATE TEMP TABLE wanted ({typed}, PRIMARY KEY ({', '.join(columns)})) WITHOUT ROWID"
            )
            self._connection.executemany(f"INSERT OR IGNORE INTO wanted VALUES ({places})", wanted)
            self._connection.commit()
        except READ_ERRORS as error:
            raise translated(error, self._segment.path) from error
        # CROSS JOIN keeps the order: members are read once, in sequence.
        same = " AND ".join(f"wanted.{name} = members.{name}" for name in columns)
        yield from self._rows(f"SELECT {_SELECTED} FROM members CROSS JOIN wanted ON {same} WHERE 1{self._hidden}")
