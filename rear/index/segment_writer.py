"""Writes a segment of an index: rows of a merge, and those of older segments that it takes in."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from rear.errors import IndexFormatError
from rear.index.segment import (
    APPLICATION_ID,
    BELOW_COLUMNS,
    COLUMNS,
    INTEGER_LIMIT,
    METADATA_POSITION,
    NOT_NULL,
    READ_ERRORS,
    SCHEMA_VERSION,
    SEGMENT_COLUMNS,
    TEXT_POSITIONS,
    Connected,
    IndexRow,
    MemberKey,
    Segment,
    connect,
    stored,
    translated,
    uri_of,
)

_ROWS_AT_ONCE: Final = 1_000
_INSERT: Final = f"INSERT INTO members VALUES ({', '.join('?' * len(IndexRow._fields))})"


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
    if values[METADATA_POSITION] is not None:
        values[METADATA_POSITION] = json.dumps(values[METADATA_POSITION], ensure_ascii=False, separators=(",", ":"))
    for position in TEXT_POSITIONS:
        values[position] = stored(values[position])
    return tuple(values)


def _need_no_conversion(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether SQLite can take all of these rows, given by columns, as they are: see `_values`."""
    metadata = columns[METADATA_POSITION]
    if metadata.count(None) != len(metadata):
        return False
    return all(
        "".join(filter(None, set(columns[position]))).isascii()
        for position in TEXT_POSITIONS
        if position != METADATA_POSITION
    )


class SegmentWriter(Connected):
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
            # Nobody else knows this file, so no lock is asked for: folders for temporary files may know none.
            self._connection = connect(f"file:{quote(os.fsencode(path))}?nolock=1")
        except sqlite3.Error as error:
            raise translated(error, path) from error
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
            raise translated(error, path) from error
        except BaseException:
            self.close()
            raise

    def _create_tables(self) -> None:
        self._database.create_table("members", COLUMNS, not_null=NOT_NULL)
        self._database.create_table("removed", {"name": str, "target_start": int})
        self._database.create_table("below", BELOW_COLUMNS)
        self._database.create_table("segment", SEGMENT_COLUMNS)
        self._connection.execute("CREATE TEMP TABLE gone (name TEXT, target_start INTEGER, last_rowid INTEGER)")
        self._connection.commit()

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
                "INSERT INTO removed VALUES (?, ?)", ((stored(name), target_start) for name, target_start in removed)
            )
            self._connection.commit()
            return self._count("members")
        except sqlite3.Error as error:
            raise translated(error, self.path) from error
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
            with uri_of(path) as uri:
                self._connection.execute("ATTACH ? AS other", (uri,))
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
        except READ_ERRORS as error:
            raise translated(error, path) from error

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
            raise translated(error, self.path) from error

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
