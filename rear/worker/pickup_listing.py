"""What a pickup archives: a file, or a tree of them, looked at as a whole before anything is read."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from rear.core.escaped_names import member_name
from rear.core.folder_tree import ELSEWHERE, REPLACED, FolderTree, holds_base, identity_of
from rear.core.layout import base_above, state_above
from rear.core.log import warn
from rear.core.names import STATE, check_name
from rear.core.source_file import SourceStamp, at_path, describe_kind, stamp_of
from rear.core.storage import LOCAL
from rear.errors import PathError, RearError, SourceError


class SourceFile(NamedTuple):
    """One file, symbolic link or empty directory that becomes a member.

    ``name`` is the member's name; ``relative`` is the part of it below the picked-up directory, empty for the source
    itself. An empty directory's names end in ``/``.
    """

    stamp: SourceStamp
    name: str
    relative: str

    @property
    def path(self) -> str:
        """Absolute path."""
        return self.stamp.path

    @property
    def mtime_ns(self) -> int:
        """Time of change, in ns since 1970."""
        return self.stamp.mtime_ns

    @property
    def mode(self) -> int:
        """Kind and permission bits."""
        return self.stamp.mode


Refusal = Callable[[RearError | OSError], object]
"""Is told why one file of a tree is left where it is, while the rest is archived."""


def collect(
    source: str,
    name: str = "",
    *,
    keep: bool = True,
    on_refused: Refusal | None = None,
    escape_names: bool = False,
    one_file_system: bool = False,
    tree: FolderTree | None = None,
) -> list[SourceFile]:
    """Return what a pickup of ``source`` would archive, sorted; nothing is changed.

    A base of rear in a tree is left out, and said to be.

    Args:
        source: a regular file or a directory.
        name: the member's name, of a directory the folder in the archive; empty for the archive's root.
        keep: the source is not to be removed; otherwise a ``.zip`` file in a base is left out, too: it counts as a
            final archive.
        on_refused: is told of each thing below a directory that cannot be archived; without it that is raised.
        escape_names: escape what no name can hold, below the directory: see `rear.core.escaped_names`.
        one_file_system: leave out what is mounted below the directory.
        tree: the folder that holds the source, open; the folders that are looked into are noted there.

    Raises:
        SourceError: the source is missing or a symbolic link, or it is or holds a FIFO, socket or device; or rear keeps
            it for itself.
        PathError: a name in the tree cannot be kept.
        OSError: something cannot be read.
    """
    if tree is None:
        with open_holder(source) as holder:
            return _Listing(holder, source, name, keep, on_refused, escape_names, one_file_system).files
    return _Listing(tree, source, name, keep, on_refused, escape_names, one_file_system).files


class _Listing:
    """What a pickup finds: see `collect`.

    Args:
        tree: the folder that holds the source; the folders that are looked into are noted there.

    Attributes:
        files: what is archived, sorted.
    """

    def __init__(
        self,
        tree: FolderTree,
        source: str,
        name: str,
        keep: bool,
        on_refused: Refusal | None,
        escape_names: bool,
        one_file_system: bool,
    ) -> None:
        self.files: list[SourceFile] = []
        self._tree = tree
        self._source = source
        self._prefix = f"{name}/" if name else ""
        self._on_refused = on_refused
        self._escape_names = escape_names
        self._base = _base_of(source)
        # Its .zip files count as final archives, which are not moved.
        self._is_kept = keep or self._base is None
        try:
            status = tree.status(tree.inner(source))
        except (FileNotFoundError, NotADirectoryError):
            raise SourceError(f"{source}: there is no such file") from None
        self._device = status.st_dev if one_file_system else None
        if stat.S_ISDIR(status.st_mode):
            self._walk()
            self.files.sort(key=lambda file: file.name)
            return
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{source} is {describe_kind(status.st_mode)}: only files and directories are picked up")
        if not self._is_kept and source.lower().endswith(".zip"):
            raise SourceError(
                f"{source} counts as a final archive of the base {self._base}: copy it, or move it out first"
            )
        check_name(name)
        self.files.append(SourceFile(_readable(stamp_of(source, status), *tree.place_of(tree.inner(source))), name, ""))

    def _walk(self) -> None:
        folders = [""]
        while folders:
            relative = folders.pop()
            path = self._path(relative)
            try:
                descriptor = self._tree.open_to_list(self._tree.inner(path))
                try:
                    folders += self._list(relative, path, descriptor)
                finally:
                    LOCAL.close(descriptor)
            except PathError as error:
                self._refuse(error, relative)
            except OSError as error:
                self._refuse(told_gone(error, path), relative)

    def _list(self, relative: str, path: str, descriptor: int) -> list[str]:
        """Take what is to be archived in one folder; return the folders in it, the first one last."""
        if holds_base(descriptor, os.path.abspath(path)):
            if not relative:
                raise SourceError(
                    f"{path} is a base of rear: pick up a folder of files, the base holds its own archives"
                )
            warn("%s is a base of rear: it is left out", path)
            return []
        names = sorted(os.listdir(descriptor))
        status = os.fstat(descriptor)
        if not names and self._prefix + relative:
            self._add(relative, stamp_of(path, status))
        self._tree.folders[self._tree.inner(path)] = identity_of(status)
        below, before = [], path.rstrip("/")
        for name in names:
            try:
                if self._look(f"{before}/{name}", relative + name, name, descriptor):
                    below.append(f"{relative}{name}/")
            except RearError as error:
                self._refuse(error, relative + name)
            except OSError as error:
                self._refuse(at_path(error, self._path(relative + name)), relative + name)
        return below[::-1]

    def _look(self, path: str, relative: str, name: str, descriptor: int) -> bool:
        """Take what is to be archived; return whether it is a folder."""
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        if self._device is not None and status.st_dev != self._device:
            warn("%s is %s", path, ELSEWHERE)
        elif stat.S_ISDIR(status.st_mode):
            if name.casefold() != STATE:
                return True
            warn("%s is what rear keeps for itself: it is left out", path)
        elif self._is_kept or not name.lower().endswith(".zip"):
            self._add(relative, _readable(stamp_of(path, status), descriptor, name))
        else:
            warn("%s counts as a final archive of the base %s: it is left out", path, self._base)
        return False

    def _add(self, relative: str, stamp: SourceStamp) -> None:
        name = member_name(relative, escape=self._escape_names, prefix=self._prefix)
        self.files.append(SourceFile(stamp, name, relative))

    def _path(self, relative: str) -> str:
        return os.path.join(self._source, relative).rstrip("/") or "/"

    def _refuse(self, error: RearError | OSError, relative: str) -> None:
        if self._on_refused is None or not relative:
            raise error
        self._on_refused(error)


def open_holder(source: str) -> FolderTree:
    """Open the folder that holds a source.

    Raises:
        SourceError: there is none.
        OSError: it cannot be opened.
    """
    try:
        return FolderTree(os.path.dirname(source))
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{source}: there is no such file") from None


def told_gone(error: OSError, path: str) -> RearError | OSError:
    """Return an error of going into a folder as one of a path; what has gone or been replaced is the source's fault."""
    if error.errno in REPLACED or isinstance(error, FileNotFoundError):
        return SourceError(f"{path} was removed or replaced while its folder was picked up")
    return at_path(error, path)


def _base_of(source: str) -> str | None:
    """Return the base that a source lies in, if any.

    Raises:
        SourceError: the source lies in what rear keeps for itself.
    """
    path = os.path.realpath(source)
    if (base := state_above(path)) is not None:
        raise SourceError(f"{source} lies in {base}/{STATE}, which rear keeps for itself")
    return base_above(path)


def _readable(stamp: SourceStamp, folder: int, name: str) -> SourceStamp:
    """Return the state that a member gets; refuse what is no file or link, and what may not be read."""
    if stat.S_ISLNK(stamp.mode):
        return stamp._replace(mode=stat.S_IFLNK | 0o777)
    if not stat.S_ISREG(stamp.mode):
        raise SourceError(f"{stamp.path} is {describe_kind(stamp.mode)}: it cannot be picked up")
    if not os.access(name, os.R_OK, dir_fd=folder, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), stamp.path)
    return stamp
