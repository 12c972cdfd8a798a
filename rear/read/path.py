"""`Path`: members of archives by the manners of `pathlib`.

A path goes through archives as if they were folders: ``Path("/nfs/base/ar.zip/logs")``. The first part that ends in
``.zip`` and is no directory is the archive. Below a base, what waits to be merged is there as well: see
`rear.read.members`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, Self

from rear.core.context import current
from rear.core.layout import Layout, find_base
from rear.core.names import Target
from rear.errors import MemberNotFoundError, UsageError
from rear.journal.pending import pending_members
from rear.read.members import open_in_archive, open_written
from rear.read.patterns import translate
from rear.read.view import open_committed

_FOLDER_MODE = stat.S_IFDIR | 0o755
_PLACES = frozenset({"", ".", ".."})


class PathStatus(NamedTuple):
    """What `Path.stat` returns: that of a member, or of a folder in an archive."""

    st_mode: int
    st_size: int
    st_mtime_ns: int

    @property
    def st_mtime(self) -> float:
        """Time of last change in seconds since the epoch."""
        return self.st_mtime_ns / 1e9


class _Place(NamedTuple):
    """An archive, the base that it belongs to, if any, and the name of a member or a folder in it; empty: its root."""

    archive: str
    base: tuple[Layout, str] | None
    name: str

    def members(self) -> dict[str, PathStatus]:
        """Return all members by name, those of folders without ``/``.

        Raises:
            FileNotFoundError: there is neither an archive nor anything on the way to it.
        """
        found: dict[str, PathStatus] = {}
        if self.base is not None:
            layout, archive = self.base
            for append, _, _ in pending_members(layout, archive, graveyard=True):
                known = found.get(append.name.rstrip("/"))
                if known is None or known.st_mtime_ns <= append.mtime_ns:
                    found[append.name.rstrip("/")] = PathStatus(append.mode, append.size, append.mtime_ns)
        try:
            opened = open_committed(self.archive)
        except FileNotFoundError:
            if not found:
                raise
            return found
        with opened:
            for entry in opened.entries():
                if not _PLACES.isdisjoint(entry.name.rstrip("/").split("/")):
                    # As parts of a path they would lead elsewhere.
                    continue
                kind = _FOLDER_MODE if entry.is_directory else stat.S_IFREG | 0o644
                mode = entry.mode if stat.S_IFMT(entry.mode) else kind
                found[entry.name.rstrip("/")] = PathStatus(mode, entry.size, entry.mtime_ns)
        return found


class Path(PurePosixPath):
    """A file or folder in an archive, or one on the way to it; an ordinary one outside of archives.

    What `pathlib.PurePosixPath` has (``/``, ``name``, ``suffix``, ``parent``, ``relative_to``, ``match``, …), and what
    is below. Every call opens the archive anew: for many members of one archive, `open_archive` is faster.
    """

    __slots__ = ()

    def _place(self) -> _Place | None:
        parts = os.path.join(os.getcwd(), str(self)).split("/")
        for number, part in enumerate(parts, 1):
            archive = "/".join(parts[:number])
            if part.lower().endswith(".zip") and not os.path.isdir(archive):
                return _Place(archive, find_base(archive), "/".join(parts[number:]))
        return None

    def stat(self) -> PathStatus:
        """Return mode, size and time of last change.

        Raises:
            FileNotFoundError: there is no such member, nor one below it.
            ZipFormatError: the archive is damaged.
        """
        place = self._place()
        if place is None or not place.name:
            try:
                status = os.stat(self)
                mode = _FOLDER_MODE if place is not None else status.st_mode
                return PathStatus(mode, status.st_size, status.st_mtime_ns)
            except FileNotFoundError:
                if place is None or not place.members():
                    raise
                return PathStatus(_FOLDER_MODE, 0, 0)
        members = place.members()
        if place.name in members:
            return members[place.name]
        times = [status.st_mtime_ns for name, status in members.items() if name.startswith(f"{place.name}/")]
        if not times:
            raise FileNotFoundError(errno.ENOENT, "no such member", str(self))
        return PathStatus(_FOLDER_MODE, 0, max(times))

    def _mode(self) -> int:
        try:
            return self.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def exists(self) -> bool:
        """Whether there is such a member or folder."""
        return self._mode() != 0

    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self._mode())

    def is_dir(self) -> bool:
        """Whether it is a folder; an archive is one."""
        return stat.S_ISDIR(self._mode())

    def iterdir(self) -> Iterator[Self]:
        """Yield what is in a folder, sorted by name.

        Raises:
            FileNotFoundError: there is no such folder.
            NotADirectoryError: it is a file.
        """
        return (self / name for name in sorted(self.children()))

    def children(self) -> dict[str, PathStatus]:
        """Return what is in a folder by name; folders that only names of members imply are among it."""
        place = self._place()
        if place is None:
            return {name: (self / name).stat() for name in os.listdir(self)}
        members = place.members()
        prefix = f"{place.name}/" if place.name else ""
        found: dict[str, PathStatus] = {}
        for name, status in members.items():
            if name.startswith(prefix) and name != place.name:
                child, _, below = name[len(prefix) :].partition("/")
                if not below:
                    found[child] = status
                else:
                    found.setdefault(child, PathStatus(_FOLDER_MODE, 0, status.st_mtime_ns))
        own = members.get(place.name)
        if own is not None and not stat.S_ISDIR(own.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self))
        if not found and own is None and place.name:
            raise FileNotFoundError(errno.ENOENT, "no such member", str(self))
        return found

    def glob(self, pattern: str) -> Iterator[Self]:
        """Yield what matches a pattern below this folder, sorted: ``*``, ``?``, ``[…]`` and ``**`` as in `pathlib`.

        Raises:
            UsageError: the pattern is empty or absolute.
            FileNotFoundError: this is in an archive that is not there.
        """
        if not pattern or pattern.startswith("/"):
            raise UsageError(f"the pattern {pattern!r} is empty or absolute")
        place = self._place()
        if place is None:
            import glob

            return (self / name for name in sorted(glob.glob(pattern, root_dir=str(self), recursive=True)))
        prefix = f"{place.name}/" if place.name else ""
        below: set[str] = set()
        for name in place.members():
            if name.startswith(prefix) and name != place.name:
                parts = name[len(prefix) :].split("/")
                below.update("/".join(parts[:count]) for count in range(1, len(parts) + 1))
        matches = _compiled(pattern.rstrip("/")).fullmatch
        return (self / name for name in sorted(below) if matches(f"{name}/"))

    def rglob(self, pattern: str) -> Iterator[Self]:
        """Yield what matches a pattern at any depth below this folder: `glob` of ``**/pattern``."""
        return self.glob(f"**/{pattern}")

    def open(
        self, mode: str = "r", *, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> IO[Any]:
        """Open a member: for reading anywhere, for writing inside a ``rear_fs`` of its base.

        Args:
            mode: as for `rear_open`; outside of archives as for `open`.
            encoding: as for `open`.
            errors: as for `open`.
            newline: as for `open`.

        Raises:
            FileNotFoundError, IsADirectoryError: there is no such member, or it is a folder.
            NoContextError: to write outside any ``with rear_fs(base):``.
            UsageError: to write to another base than that of the innermost ``rear_fs``.
        """
        place = self._place()
        if place is None:
            return open(self, mode, encoding=encoding, errors=errors, newline=newline)
        options: dict[str, Any] = {"encoding": encoding, "errors": errors, "newline": newline}
        if "r" not in mode:
            return current().open(self._target(place), mode, **options)  # type: ignore[no-any-return]
        if not place.name:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self))
        if place.base is not None:
            layout, archive = place.base
            return open_written(layout, Target(archive, place.name), mode, **options)
        try:
            return open_in_archive(place.archive, place.name, mode, **options)
        except MemberNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, str(error), str(self)) from None

    def _target(self, place: _Place) -> str:
        base = current().base.rstrip("/") + "/"
        path = f"{place.archive}/{place.name}"
        for candidate in (path, os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))):
            if candidate.startswith(base):
                return candidate[len(base) :]
        raise UsageError(f"{self} is not below {base}, the base of the innermost rear_fs")

    def read_bytes(self) -> bytes:
        """Return the content; errors are those of `open`."""
        with self.open("rb") as file:
            content: bytes = file.read()
        return content

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the content as text; errors are those of `open`."""
        with self.open("r", encoding=encoding, errors=errors) as file:
            content: str = file.read()
        return content

    def write_bytes(self, data: bytes) -> int:
        """Write a member; returning acknowledges it. Errors are those of `open`."""
        with self.open("wb") as file:
            return file.write(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        """Write a member as text; returning acknowledges it. Errors are those of `open`."""
        with self.open("w", encoding=encoding, errors=errors) as file:
            return file.write(data)


def _compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern for names whose parts all end in a slash; as `pathlib` has them, ``**`` is a part of its own."""
    parts = pattern.split("/")
    translated = (translate(re.sub(r"\*+", "*", part), negations="!") for part in parts)
    any_depth = "(?:[^/]+/)*"
    return re.compile(
        "".join(any_depth if part == "**" else f"{text}/" for part, text in zip(parts, translated, strict=True)),
        re.DOTALL,
    )
