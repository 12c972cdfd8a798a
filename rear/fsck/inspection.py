"""An inspection of one archive whose central directory is there, whoever made it: each local header against its entry.

Then where members are (overlaps, gaps, entries that lead nowhere), what they are called (names that escape, names that
occur twice), and if asked for, what they hold: size and CRC-32 of each. Memory stays bounded: three numbers a member,
and a table of bits for the names. What other programs find nothing wrong with is at most *noted* here, save for names
that escape.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from rear.core.log import Pace
from rear.core.names import check_name, is_plain_name
from rear.core.parallel import Parallel
from rear.core.problems import Outcome, Problem
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import NotAZipError, PathError, RearError, UnsupportedError, ZipFormatError
from rear.events import Advanced
from rear.fsck.inspection_tasks import checked_entries, is_worth_sharing
from rear.fsck.member_ranges import MemberRanges
from rear.read.view import open_committed
from rear.salvage.repeated_names import SeenNames
from rear.zip.archive import Archive, header_difference
from rear.zip.headers import CentralEntry, LocalHeader, decode_local_header
from rear.zip.member_data import raw_bytes
from rear.zip.member_ends import member_end, sound_ends, verify

DETAILED_LIMIT: Final = 100_000
"""So many overlaps, and so many names that may occur twice, are looked at one by one; the rest is only counted."""
_DRIVE: Final = re.compile(r"[A-Za-z]:([\\/])")


def inspect_steps(
    target: StrPath | Archive,
    *,
    deep: bool = False,
    subject: str | None = None,
    parallel: Parallel | None = None,
    storage: Storage = LOCAL,
) -> Iterator[Problem | Advanced]:
    """Check one archive and yield what is found, and now and then how far it is; nothing is changed.

    What a rebuild mends has the outcome ``would repair``.

    Args:
        target: path of the archive, or the open archive.
        deep: read every member, and compare its size and CRC-32.
        subject: what problems call the archive; its path by default.
        parallel: the executor that reads members, if there is one.
        storage: the file system; only read.

    Raises:
        FutureVersionError: a newer rear merges into it.
        OSError: it cannot be read.
    """
    if isinstance(target, Archive):
        yield from _Inspection(target, subject or target.path, deep, parallel, storage).steps()
        return
    subject = subject or str(target)
    try:
        archive = open_committed(target, storage=storage)
    except NotAZipError as error:
        yield Problem("archive-directory-damaged", subject, without_path(error, target), "would repair")
    except UnsupportedError as error:
        code = "archive-split" if error.code == "volumes" else "archive-unsupported"
        yield Problem(code, subject, without_path(error, target), "left")
    else:
        with archive:
            yield from _Inspection(archive, subject, deep, parallel, storage).steps()


def inspect(target: StrPath | Archive, **options: Any) -> Iterator[Problem]:
    """Do what `inspect_steps` does, but do not say how far it is."""
    return (step for step in inspect_steps(target, **options) if isinstance(step, Problem))


def without_path(error: RearError, path: StrPath) -> str:
    """Return what `open_committed` says without the path that it begins with: the subject says it."""
    return str(error).removeprefix(f"{os.path.realpath(path)}: ")


def escape_of(name: str) -> str | None:
    """Tell how a member would leave the directory that it is extracted to, by a careless program on any system."""
    if "\0" in name:
        return "it holds NUL"
    if name.startswith(("/", "\\")):
        return "it is absolute"
    if (drive := _DRIVE.match(name)) and drive[1] == "\\":
        return "it begins with a drive letter"
    if ".." in name and ".." in re.split(r"[/\\]", name):
        return "it has a part '..'"
    return None


class _Inspection:
    """One check of one open archive."""

    def __init__(self, archive: Archive, subject: str, deep: bool, parallel: Parallel | None, storage: Storage) -> None:
        self._archive = archive
        self._subject = subject
        self._deep = deep
        self._parallel = parallel or Parallel(storage=storage)
        self._storage = storage
        self._prefix = archive.directory.prefix
        self._limit = archive.directory.offset
        self._ranges = MemberRanges(self._limit, DETAILED_LIMIT)
        self._names = SeenNames(archive.directory.entries)

    def steps(self) -> Iterator[Problem | Advanced]:
        number, pace = 0, Pace()
        budget = self._archive.directory.archive_length
        try:
            for number, (entry, end) in enumerate(self._entries()):
                if pace.is_due():
                    yield Advanced("reading", self._subject, number, self._archive.directory.entries)
                found: Sequence[Problem] = ()
                if end:
                    self._ranges.add(number, self._prefix + entry.offset, end)
                else:
                    found = self._check_member(number, entry)
                    yield from found
                name = entry.name
                self._names.add(name)
                if not is_plain_name(name) or name[1:2] == ":":
                    yield from self._check_name(entry, name)
                if self._deep and not found:
                    # Members that overlap, which is told as such, must not have the same bytes read a million times.
                    budget -= entry.compressed_size
                    if budget >= 0 and not end:
                        yield from self._check_content(entry)
        except ZipFormatError as error:
            yield Problem("archive-directory-damaged", self._subject, error.what, "would repair", self._limit)
        yield from self._check_ranges()
        yield from self._check_names_again()

    def _entries(self) -> Iterator[tuple[CentralEntry, int]]:
        """Yield all entries, each with where its member ends, if it was found that it is all right, or 0."""
        if self._deep and is_worth_sharing(self._archive, self._parallel):
            return checked_entries(self._archive, self._parallel)
        return sound_ends(self._archive, self._archive.entries(), read_data=self._deep)

    def _about(self, code: str, entry: CentralEntry, error: object, outcome: Outcome) -> Problem:
        detail = str(error).removeprefix(f"{self._archive.path}: member {entry.name!r:.300}: ")
        offset, length = self._prefix + entry.offset, entry.compressed_size or None
        return Problem(code, self._subject, detail, outcome, offset, length, entry.name)

    # ---- one member

    def _check_member(self, number: int, entry: CentralEntry) -> Sequence[Problem]:
        try:
            end, difference = member_end(self._archive, entry)
        except ZipFormatError as error:
            return [self._about("member-header-missing", entry, error, "would repair")]
        self._ranges.add(number, self._prefix + entry.offset, min(end, self._limit))
        if difference is not None:
            return [self._about("member-header-differs", entry, difference, "would repair")]
        if end > self._limit:
            detail = f"its data would end at {end:,}, the directory begins at {self._limit:,}"
            return [self._about("member-overlap", entry, detail, "would repair")]
        return ()

    def _check_name(self, entry: CentralEntry, name: str) -> Iterable[Problem]:
        try:
            check_name(name)
        except PathError as error:
            escape, oddity = escape_of(name), str(error)
        else:
            # Where rear runs it stays inside like others; on other systems it does not.
            escape, oddity = None, f"{name!r:.200} begins with a drive letter" if _DRIVE.match(name) else ""
        if escape is not None:
            return [self._about("member-unsafe-name", entry, f"{name!r:.200}: {escape}", "left")]
        # bsdtar writes "./name".
        if oddity and not name.startswith("./"):
            return [self._about("member-unsafe-name", entry, oddity, "noted")]
        return ()

    def _check_content(self, entry: CentralEntry) -> Iterable[Problem]:
        try:
            verify(self._archive, entry)
        except UnsupportedError as error:
            return [self._about("member-unverifiable", entry, error, "noted")]
        except ZipFormatError as error:
            if self._header_fits(entry):
                return [self._about("member-data-damaged", entry, error, "left")]
        return ()

    def _header_fits(self, entry: CentralEntry) -> bool:
        local: LocalHeader = decode_local_header(self._archive.local_header_bytes(entry))
        end = self._prefix + entry.offset + local.length + entry.compressed_size
        return header_difference(entry, local) is None and end <= self._limit

    # ---- all members together

    def _check_ranges(self) -> Iterator[Problem]:
        """Yield gaps; overlaps are told by name later."""
        for start, end in self._ranges.gaps():
            yield self._gap(start, end)
        more = self._ranges.further_overlaps
        if more:
            yield Problem("member-overlap", self._subject, f"{more:,} more members overlap others", "would repair")

    def _gap(self, start: int, end: int) -> Problem:
        what = "zeros" if self._are_zeros(start, end) else "bytes that belong to no member"
        if start == 0 and len(self._ranges):
            detail = f"{end:,} {what} before the first member"
            return Problem("archive-prefix", self._subject, detail, "noted", 0, end)
        where = "before the directory" if end == self._limit else "between members"
        detail = f"{end - start:,} {what} {where}"
        return Problem("archive-gap", self._subject, detail, "noted", start, end - start)

    def _are_zeros(self, start: int, end: int) -> bool:
        pieces = raw_bytes(self._archive.descriptor, start, end - start, storage=self._storage)
        try:
            return all(not piece.strip(b"\0") for piece in pieces)
        except ZipFormatError:
            return False

    def _check_names_again(self) -> Iterator[Problem]:
        """Tell overlaps by name, and look whether names that seemed to be there twice are."""
        overlaps = self._ranges.overlaps
        if not overlaps and not self._names.perhaps_twice:
            return
        first: dict[int, int] = {}
        more = 0
        try:
            for number, (position, name) in enumerate(self._archive.names()):
                if number in overlaps:
                    detail = f"it begins within the member at {overlaps[number]:,}"
                    yield self._about("member-overlap", self._archive.entry_at(position), detail, "would repair")
                key = hash(name)
                if key not in self._names.perhaps_twice:
                    continue
                if key in first:
                    yield from self._duplicate(name, first[key], position)
                elif len(first) >= DETAILED_LIMIT:
                    more += 1
                    continue
                first[key] = position
        except ZipFormatError:
            return
        if more:
            detail = f"too many names occur twice: the last {more:,} were not compared"
            yield Problem("member-duplicate-name", self._subject, detail, "would repair")

    def _duplicate(self, name: str, earlier: int, later: int) -> Iterable[Problem]:
        hidden, shown = self._archive.entry_at(earlier), self._archive.entry_at(later)
        if hidden.name != name:
            return []
        detail = f"another member of this name at {self._prefix + shown.offset:,} hides it"
        # rear never writes a name twice. Others do: zipfile when a member is written anew, jar for directories.
        ours = not name.endswith("/") and self._is_ours(hidden) and self._is_ours(shown)
        return [self._about("member-duplicate-name", hidden, detail, "would repair" if ours else "noted")]

    def _is_ours(self, entry: CentralEntry) -> bool:
        try:
            return self._archive.origin(entry) is not None
        except ZipFormatError:
            return False
