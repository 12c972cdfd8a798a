"""The files below one directory, as a sweep sees them: found, opened and removed without following a symbolic link.

How they are reached is `rear.core.folder_tree`'s. A base of rear that lies below the directory is left out, and where
the directory itself lies in a base, so are ``.zip`` files: they are final archives.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

from rear.core.discovery import counts_as_base
from rear.core.folder_tree import ELSEWHERE, REPLACED, FolderTree, holds_base
from rear.core.layout import Layout
from rear.core.names import STATE
from rear.core.source_file import SourceStamp, describe_kind, stamp_of
from rear.core.storage import Storage, StrPath
from rear.errors import UsageError
from rear.events import Event, Refused, SourceLeft

_PATH_LIMIT_BYTES: Final = 4_096
"""Longest path, with its end, that Linux opens (limits.h, PATH_MAX): a tree that is deeper ends there."""


class SourceEntry(NamedTuple):
    """A regular file below the directory: its path in it, and its state when it was found."""

    relative: str
    stamp: SourceStamp

    @property
    def path(self) -> str:
        """Absolute path."""
        return self.stamp.path


class SourceTree:
    """One directory that is swept; use it as a context manager.

    Args:
        directory: resolved once, links in its own path are followed.
        layout: the base to which the files go.
        one_file_system: leave out what is mounted below it.
        storage: the file system.

    Attributes:
        root: absolute path of the directory, without links.

    Raises:
        UsageError: the directory is a base, or lies in what rear keeps for itself.
        OSError: it cannot be opened.
    """

    def __init__(self, directory: StrPath, layout: Layout, *, one_file_system: bool = False, storage: Storage) -> None:
        self.root = os.path.realpath(os.fsdecode(directory))
        self._storage = storage
        self._base = os.path.realpath(layout.base)
        self._is_in_base = self._find_base()
        self._one_file_system = one_file_system
        self._tree = FolderTree(self.root, storage=storage)

    def _find_base(self) -> bool:
        """Whether the directory lies in a base, this one or another one.

        Raises:
            UsageError: see the class.
        """
        root = Path(self.root)
        if self._is_base(self.root):
            raise UsageError(f"{self.root} is a base of rear: sweep a folder of files, the base holds its own archives")
        for folder in root.parents:
            if self._is_base(str(folder)):
                if root.relative_to(folder).parts[0].casefold() == STATE:
                    raise UsageError(f"{self.root} lies in {folder / STATE}, which rear keeps for itself")
                return True
        return False

    def _is_base(self, folder: str) -> bool:
        if folder == self._base:
            return True
        if os.path.isdir(os.path.join(folder, STATE)) and counts_as_base(folder, self.root):
            return True
        with suppress(OSError):
            return os.path.samefile(folder, self._base)
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tree.close()

    # ---- finding

    def walk(self) -> Iterator[SourceEntry | Event]:
        """Yield every regular file, and say why other things are left; the names of one folder at a time are in memory.

        Sorted within each folder, files before what is in folders. Files may be removed meanwhile.
        """
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                descriptor = self._tree.open_to_list(folder)
            except OSError as error:
                yield self._not_listed(folder, error)
                continue
            inner: list[str] = []
            try:
                if folder and self._has_state(folder, descriptor):
                    yield SourceLeft(self._path(folder), "a base of rear, which is never swept")
                    continue
                for name in sorted(os.listdir(descriptor)):
                    found = self._look(f"{folder}/{name}" if folder else name, name, descriptor)
                    if isinstance(found, str):
                        inner.append(found)
                    elif found is not None:
                        yield found
            except OSError as error:
                yield self._not_listed(folder, error)
            finally:
                self._storage.close(descriptor)
            folders += reversed(inner)

    def _look(self, relative: str, name: str, descriptor: int) -> SourceEntry | Event | str | None:
        """Return what is there: a file, a folder as its path, something to tell of, or ``None`` when it has gone."""
        path = self._path(relative)
        try:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            return Refused(path, f"it cannot be looked at: {error.strerror}; left as it is")
        if len(os.fsencode(path)) >= _PATH_LIMIT_BYTES:
            return Refused(path, f"its path is longer than {_PATH_LIMIT_BYTES - 1:,} bytes; left as it is")
        if self._one_file_system and status.st_dev != self._tree.folders[""].dev:
            return SourceLeft(path, ELSEWHERE)
        if stat.S_ISDIR(status.st_mode):
            if name.casefold() == STATE:
                return SourceLeft(path, "rear keeps that for itself")
            return relative
        if not stat.S_ISREG(status.st_mode):
            return SourceLeft(path, f"{describe_kind(status.st_mode)}: only regular files are swept")
        if self._is_in_base and name.lower().endswith(".zip"):
            return SourceLeft(path, "a .zip file in a base counts as a final archive, which is never swept")
        return SourceEntry(relative, stamp_of(path, status))

    def _has_state(self, folder: str, descriptor: int) -> bool:
        if self._path(folder) == self._base:
            return True
        # The base is made with the first file.
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(self._base)):
                return True
        return holds_base(descriptor, self._path(folder))

    def _not_listed(self, folder: str, error: OSError) -> Event:
        path = self._path(folder)
        if folder and (isinstance(error, FileNotFoundError) or error.errno in REPLACED):
            return SourceLeft(path, "removed or replaced while its folder was swept")
        return Refused(path, f"the folder cannot be listed: {error.strerror}; what is in it was left as it is")

    # ---- using

    def folder_of(self, source: SourceEntry) -> int:
        """Return a descriptor of the folder that a file is in; it stays open until another one is asked for.

        Raises:
            OSError: the folder has gone, or something else is in its place.
        """
        return self._tree.place_of(source.relative)[0]

    def opened(self, source: SourceEntry) -> AbstractContextManager[int]:
        """Open a file to read: see `FolderTree.opened`."""
        return self._tree.opened(source.relative, source.stamp)

    def unlink(self, source: SourceEntry) -> None:
        """Remove a file if it is still what was found: see `FolderTree.unlink`."""
        self._tree.unlink(source.relative, source.stamp)

    def _path(self, relative: str) -> str:
        return os.path.join(self.root, relative) if relative else self.root
