"""Finds members in all archives of a base, by their indexes.

SQL only narrows down what may be meant, by an index on names where a pattern begins with text; `Query.accepts` decides.
So an archive whose index is missing, damaged or out of date is searched through its central directory, and the result
is the same.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Final, NamedTuple

from rear.core.layout import find_base
from rear.core.storage import StrPath
from rear.errors import IndexFormatError, RearError, UsageError
from rear.index.index import Index, IndexRow, rows_of
from rear.read.archive_tree import ArchiveTree
from rear.read.patterns import coarse_glob, has_wildcard, translate
from rear.read.view import open_committed, state_of
from rear.zip.archive import Archive
from rear.zip.headers import CentralEntry

#: SQLite refuses an OR of a thousand.
_NARROWING_LIMIT: Final = 500
_UNESCAPED: Final = re.compile(r"[A-Za-z0-9_.+-]+")


class FoundMember(NamedTuple):
    """A member that was found: the path of its archive, and its row as the index has it."""

    archive: str
    member: IndexRow

    @property
    def path(self) -> str:
        """The path by which ``rear cat`` and ``rear get`` know it."""
        return f"{self.archive}/{self.member.name}"


class NamePattern:
    """A pattern that is matched against the last part of a name, or against all of it when it has a ``/`` itself.

    Wildcards are those of `rear.read.patterns`; a text without them means itself, not what is below it.

    Raises:
        UsageError: it is no pattern.
    """

    def __init__(self, pattern: str) -> None:
        text = pattern.rstrip("/") or pattern
        self._anywhere = "/" not in text
        self._text = text
        try:
            self._compiled = re.compile(("(?:.*/)?" if self._anywhere else "") + translate(text), re.DOTALL)
        except re.error as error:
            raise UsageError(f"pattern {pattern!r}: {error}") from None

    def matches(self, name: str) -> bool:
        """Whether a name is meant; the ``/`` at the end of a directory's name counts for nothing."""
        name = name.removesuffix("/")
        own = name.rpartition("/")[2] if self._anywhere else name
        return own == self._text or self._compiled.fullmatch(name) is not None

    def condition(self, column: str) -> tuple[str, list[str | int]]:
        """Return an SQL condition that all matching values fulfil."""
        if not self._anywhere and not has_wildcard(self._text):
            return f"{column} IN (?, ?)", [self._text, f"{self._text}/"]
        glob = coarse_glob(f"*{self._text}*" if self._anywhere else f"{self._text}*")
        return ("1", []) if glob == "*" else (f"{column} GLOB ?", [glob])


class Query(NamedTuple):
    """What is looked for; all that is given has to hold. See `find`; ``texts`` are patterns by column of the index."""

    names: list[NamePattern]
    texts: dict[str, NamePattern]
    since_ns: int | None
    larger_bytes: int | None
    smaller_bytes: int | None
    metadata: dict[str, str | None]

    def condition(self) -> tuple[str, list[str | int]]:
        """Return an SQL condition that all members fulfil that are meant."""
        conditions: list[str] = []
        parameters: list[str | int] = []
        names = [name.condition("name") for name in self.names]
        if names and len(names) <= _NARROWING_LIMIT and ("1", []) not in names:
            # As a list of its own: all of it can be answered from the index on names, a third of the table.
            some = " OR ".join(condition for condition, _ in names)
            conditions.append(f"members.rowid IN (SELECT rowid FROM members WHERE {some})")
            parameters += [value for _, values in names for value in values]
        for column, pattern in self.texts.items():
            condition, values = pattern.condition(f"members.{column}")
            conditions.append(f"members.{column} IS NOT NULL AND {condition}")
            parameters += values
        for condition, limit in (
            ("members.size > ?", self.larger_bytes),
            ("members.size < ?", self.smaller_bytes),
            ("members.mtime_ns >= ?", self.since_ns),
        ):
            if limit is not None:
                conditions.append(condition)
                parameters.append(max(-(1 << 63), min(limit, (1 << 63) - 1)))
        for key, value in self.metadata.items():
            conditions.append("members.metadata IS NOT NULL")
            for text in (key, value):
                # What JSON never escapes stands in it as it is, be it a text there or a number.
                if text is not None and _UNESCAPED.fullmatch(text):
                    conditions.append("instr(members.metadata, ?)")
                    parameters.append(text)
        return " AND ".join(f"({condition})" for condition in conditions) or "1", parameters

    def accepts_name(self, name: str) -> bool:
        """Whether a name is meant; the rest of the member is not known yet."""
        return not self.names or any(pattern.matches(name) for pattern in self.names)

    def accepts_size(self, size: int) -> bool:
        """Whether a size in bytes is meant."""
        return (self.larger_bytes is None or size > self.larger_bytes) and (
            self.smaller_bytes is None or size < self.smaller_bytes
        )

    def accepts(self, row: IndexRow) -> bool:
        """Whether a member is meant."""
        return (
            self.accepts_name(row.name)
            and self.accepts_size(row.size)
            and (self.since_ns is None or (row.mtime_ns is not None and row.mtime_ns >= self.since_ns))
            and (not self.texts or self._has_texts(row))
            and (not self.metadata or all(self._has_metadata(row, *item) for item in self.metadata.items()))
        )

    def _has_texts(self, row: IndexRow) -> bool:
        found = ((pattern, getattr(row, column)) for column, pattern in self.texts.items())
        return all(text is not None and pattern.matches(text) for pattern, text in found)

    @staticmethod
    def _has_metadata(row: IndexRow, key: str, value: str | None) -> bool:
        if row.metadata is None or key not in row.metadata:
            return False
        actual = row.metadata[key]
        return value is None or value == (actual if isinstance(actual, str) else json.dumps(actual, ensure_ascii=False))


def _time_ns(moment: datetime) -> int:
    try:
        return int(moment.timestamp() * 1_000_000_000)
    except (OverflowError, ValueError) as error:
        raise UsageError(f"{moment}: {error}") from None


class Search:
    """Yields what is found, by archive and in the order of its directory. Made by `find`; to be gone through once.

    Attributes:
        unindexed: archives that had to be searched through their directory, because no index mirrors them.
        errors: what could not be searched: damaged archives, folders that may not be read. Both are complete when all
            is yielded.
    """

    def __init__(self, place: str, archives: NamePattern | None, query: Query) -> None:
        self._place = place
        self._archives = archives
        self._query = query
        self.unindexed: list[str] = []
        self.errors: list[RearError | OSError] = []

    def __iter__(self) -> Iterator[FoundMember]:
        for path in self._paths():
            try:
                for row in self._rows(path):
                    yield FoundMember(path, row)
            except FileNotFoundError:
                # Its first merge is under way, or it was renamed just now. The one that was asked for has to be there.
                if path == self._place:
                    raise
            except (RearError, OSError) as error:
                self.errors.append(error)

    def _paths(self) -> Iterator[str]:
        if not os.path.isdir(self._place):
            yield self._place
            return
        tree = ArchiveTree(self._place)
        for relative in tree:
            if self._archives is None or self._archives.matches(relative):
                yield os.path.join(self._place, relative)
        self.errors += tree.errors

    def _rows(self, path: str) -> Iterator[IndexRow]:
        given = 0
        index = mirroring_index(path)
        if index is not None:
            try:
                for row in filter(self._query.accepts, index.select(*self._query.condition())):
                    yield row
                    given += 1
                return
            except (IndexFormatError, OSError):
                # Both ways keep the order of the directory: what is given already comes first there, too.
                pass
        with open_committed(path) as archive:
            self.unindexed.append(path)
            rows = rows_of(archive, self._candidates(archive))
            yield from islice(filter(self._query.accepts, rows), given, None)

    def _candidates(self, archive: Archive) -> Iterator[CentralEntry]:
        query = self._query
        named = (archive.entry_at(position) for position, name in archive.names() if query.accepts_name(name))
        return (entry for entry in named if query.accepts_size(entry.size))


def mirroring_index(path: str) -> Index | None:
    """Return the index of an archive, if it has one that mirrors it."""
    found = find_base(path)
    if found is None:
        return None
    directory, fingerprint = state_of(path)
    try:
        index = Index.open(*found)
    except OSError:
        return None
    return index if index.matches(fingerprint, directory.entries) else None


def find(
    base: StrPath,
    pattern: str | Iterable[str] = (),
    *,
    archive: str | None = None,
    host: str | None = None,
    worker: str | None = None,
    source: str | None = None,
    changed_since: datetime | None = None,
    larger_bytes: int | None = None,
    smaller_bytes: int | None = None,
    metadata: Mapping[str, str | None] | None = None,
) -> Search:
    """Find members of all archives of a base, or below one folder of it, or in one archive.

    A pattern with a ``/`` is matched against the whole text, one without against its last part: ``*.log``, ``a.txt``,
    ``logs/*.txt``, ``runs/**/a.txt``. ``*`` and ``?`` match anything but ``/``, ``**`` matches that too.

    Args:
        base: the base, a folder in it, or an archive. Archives outside any base have no index, but are searched too.
        pattern: one or several patterns for the member's name, of which one has to match; none: all members.
        archive: a pattern for the archive's path below ``base``.
        host: a pattern for the host of the worker.
        worker: a pattern for the name of the worker.
        source: a pattern for the path of the picked-up file.
        changed_since: the member's last change is not before this; in local time unless it has a zone.
        larger_bytes: the content is longer than so many bytes.
        smaller_bytes: the content is shorter than so many bytes.
        metadata: keys that the member's metadata have to have, each with its value (what is no text as JSON), or
            with ``None`` for any value.

    Returns:
        An iterable of `FoundMember`, which tells afterwards which archives had no index, and what could not be
        searched.

    Raises:
        UsageError: a pattern is none.
        OSError: while it is gone through: the base cannot be read.
    """
    texts = {"host": host, "worker": worker, "source": source}
    query = Query(
        [NamePattern(name) for name in ([pattern] if isinstance(pattern, str) else pattern)],
        {column: NamePattern(text) for column, text in texts.items() if text is not None},
        None if changed_since is None else _time_ns(changed_since),
        larger_bytes,
        smaller_bytes,
        dict(metadata or {}),
    )
    return Search(os.fspath(base), None if archive is None else NamePattern(archive), query)
