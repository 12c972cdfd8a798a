"""A folder and what lies below it, found, opened and removed without following a symbolic link.

Every folder is opened from the one above it, beginning with a descriptor that is held all the time. So whoever swaps a
folder for a link, after its names were read, leads nobody elsewhere: what he puts there is told from what was found by
device and inode, and a file is removed from the very folder in which it was looked at last.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple, Self

from rear.core.discovery import counts_as_base
from rear.core.names import STATE
from rear.core.source_file import SourceStamp, at_path, stamp_of
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import SourceError

_OPEN_LIMIT: Final = 32
"""So many folders, the innermost ones, stay open: from one to the next it is a step, not the whole way."""
#: What opening says when something else is in the place of a folder or a file.
REPLACED: Final = frozenset({errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO})
ELSEWHERE: Final = "on another file system, which --one-file-system leaves out"


class Identity(NamedTuple):
    """Which file or folder it is, whatever its name."""

    dev: int
    ino: int


def identity_of(status: os.stat_result) -> Identity:
    """Return which file or folder a status is of."""
    return Identity(status.st_dev, status.st_ino)


class FolderTree:
    """One folder, held open; use it as a context manager. Paths are relative to it, ``""`` is the folder itself.

    Args:
        root: links in its own path are followed, once.
        folders: which folder each path has to be, as far as that is known already; any other one is not entered.
        storage: the file system.

    Attributes:
        path: absolute path, as it was given.
        folders: as above; whoever lists a folder notes it here.

    Raises:
        OSError: it cannot be opened, or is another one.
    """

    def __init__(
        self, root: StrPath, *, folders: Mapping[str, Identity] | None = None, storage: Storage = LOCAL
    ) -> None:
        self.path = os.fsdecode(root)
        self.folders = dict(folders or {})
        self._storage = storage
        self._open: list[tuple[str, int]] = []
        self._descriptor = storage.open_directory(os.path.realpath(self.path), to_pass=True)
        try:
            self._check_folder("", self._descriptor)
            self.folders[""] = identity_of(os.fstat(self._descriptor))
        except BaseException:
            storage.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all that is open."""
        while self._open:
            self._storage.close(self._open.pop()[1])
        self._storage.close(self._descriptor)

    def inner(self, path: str) -> str:
        """Return what is below the folder, given as the folder itself was, as a path relative to it."""
        return path[len(self.path) :].strip("/")

    def enter(self, folder: str) -> int:
        """Return a descriptor of a folder, which stays open until another one is entered.

        Raises:
            OSError: it, or a folder on the way, has gone or is no folder any more.
        """
        if self._open and self._open[-1][0] == folder:
            return self._open[-1][1]
        while self._open and self._open[-1][0] != folder and not folder.startswith(f"{self._open[-1][0]}/"):
            self._storage.close(self._open.pop()[1])
        entered, descriptor = self._open[-1] if self._open else ("", self._descriptor)
        for part in folder[len(entered) :].split("/"):
            if not part:
                continue
            descriptor = self._storage.open_directory(part, directory=descriptor)
            entered = f"{entered}/{part}" if entered else part
            self._open.append((entered, descriptor))
            try:
                self._check_folder(entered, descriptor)
            except BaseException:
                self._storage.close(self._open.pop()[1])
                raise
            if len(self._open) > _OPEN_LIMIT:
                self._storage.close(self._open.pop(0)[1])
        return descriptor

    def _check_folder(self, folder: str, descriptor: int) -> None:
        expected = self.folders.get(folder)
        if expected is not None and identity_of(os.fstat(descriptor)) != expected:
            raise NotADirectoryError(errno.ENOTDIR, "another folder is in its place", os.path.join(self.path, folder))

    def open_to_list(self, folder: str) -> int:
        """Return a descriptor of its own of a folder, for `os.listdir`; it is the caller's to close."""
        return self._storage.open_directory(".", directory=self.enter(folder))

    def place_of(self, path: str) -> tuple[int, str]:
        """Return the folder that something is in, as a descriptor as of `enter`, and its name there."""
        folder, _, name = path.rpartition("/")
        return self.enter(folder), name or "."

    def status(self, path: str) -> os.stat_result:
        """Return the status of what is there, of a link itself."""
        folder, name = self.place_of(path)
        return os.stat(name, dir_fd=folder, follow_symlinks=False)

    @contextmanager
    def opened(self, path: str, expected: SourceStamp) -> Iterator[int]:
        """Open a file to read, and close it at the end of the block.

        Raises:
            FileNotFoundError: it has gone.
            SourceError: it is another file by now, or has changed since it was found.
            OSError: it cannot be read.
        """
        try:
            folder, name = self.place_of(path)
            descriptor = self._storage.open(name, directory=folder)
        except OSError as error:
            raise _told(error, expected.path) from None
        try:
            check_unchanged(expected, os.fstat(descriptor))
            yield descriptor
        finally:
            self._storage.close(descriptor)

    def unlink(self, path: str, expected: SourceStamp) -> None:
        """Remove a file, or a link, if it is still what was found.

        Raises:
            FileNotFoundError: it has gone.
            SourceError: it is another file by now, or has changed since it was found: it is left in place.
            OSError: it cannot be removed.
        """
        try:
            folder, name = self.place_of(path)
            check_unchanged(expected, os.stat(name, dir_fd=folder, follow_symlinks=False))
            self._storage.unlink_at(folder, name)
        except OSError as error:
            raise _told(error, expected.path) from None

    def remove_directory(self, folder: str) -> None:
        """Remove an empty folder; if it is not empty, has gone or been replaced, do nothing.

        Raises:
            OSError: it cannot be removed.
        """
        try:
            outer, name = self.place_of(folder)
            if identity_of(os.stat(name, dir_fd=outer, follow_symlinks=False)) == self.folders.get(folder):
                self._storage.remove_directory_at(outer, name)
        except OSError as error:
            if error.errno not in REPLACED and error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise


def holds_base(descriptor: int, path: str) -> bool:
    """Whether an open folder, found as ``path``, is a base of rear that counts, which no walk goes into."""
    with suppress(OSError):
        return stat.S_ISDIR(os.stat(STATE, dir_fd=descriptor).st_mode) and counts_as_base(path, path)
    return False


def check_unchanged(expected: SourceStamp, status: os.stat_result) -> None:
    """Make sure that a file is the one that was found, with the same content as far as its status tells.

    Raises:
        SourceError: it is another one, or has changed.
    """
    # The mode may differ: the content is what is archived.
    if stamp_of(expected.path, status)[:5] != expected[:5]:
        raise SourceError(f"{expected.path} has changed since it was found")


def _told(error: OSError, path: str) -> SourceError | OSError:
    """Return an error of a call by descriptor as one of a path."""
    return SourceError(f"{path} was replaced by something else") if error.errno in REPLACED else at_path(error, path)
