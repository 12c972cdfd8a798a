"""The way down from a base to what lies in it: from folder to folder by descriptors, and never through a link.

Many users may write below a base, and whoever swaps a folder for a link there would have rear read, move or remove what
she may not touch herself. A check of names comes too early, or too late: hence each part is opened in the open folder
that it was found in. The base's own folder is named by the user, and may be reached by links.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Final, NamedTuple

from rear.core.names import STATE
from rear.core.openat2 import folder_opener

StrPath = str | os.PathLike[str]

#: Only to go on from: on Linux that costs an NFS client no round trip, and asks for no right to list.
_PASSING: Final = (
    getattr(os, "O_PATH", getattr(os, "O_SEARCH", os.O_RDONLY)) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
)
_LISTING: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: A base's folder is opened by the name that its user gave, through her links.
_FOLLOWING: Final = ~os.O_NOFOLLOW

_HERE: Final = -100
"""``AT_FDCWD``"""
#: After so many steps the kernel is asked to go all of a way at once, if it can: to find that out takes a while.
_STEPS_ONE_BY_ONE: Final = 500
_steps = 0
_open_at_once: Callable[[int, str], int | None] | None = None

_bases: set[str] = set()


class Place(NamedTuple):
    """Where something lies: its base, the way from there to its folder (parts with ``/`` between), and its name; and
    the folder's whole path.
    """

    base: str
    way: str
    folder: str
    name: str


def know_base(folder: str) -> None:
    """Have all that lies below a base reached without links, also where it is none of rear's own files.

    Args:
        folder: the base, absolute; one inside of another base has links only above itself.
    """
    folder = folder.rstrip("/")
    if folder not in _bases:
        _bases.add(folder)
        _way_to.cache_clear()


def known_bases() -> tuple[str, ...]:
    """Return all bases that this process knows: what a task in another one has to know, too."""
    return tuple(_bases)


def place_of(path: str) -> Place | None:
    """Return where in a base a path lies; ``None`` of one in no base, and of a base itself.

    What is above a ``.rear`` is a base, also one that nobody has told of.
    """
    folder, _, name = path.rpartition("/")
    if name in ("", "."):
        return place_of(folder) if folder else None
    if name == ".." or path in _bases:
        return None
    found = _way_to(folder)
    if found is None:
        return Place(folder or "/", "", folder or "/", name) if name == STATE and path != STATE else None
    return Place(*found, name)


@lru_cache(maxsize=4096)
def _way_to(path: str) -> tuple[str, str, str] | None:
    """Return the base of a folder, the way from there to it, which is empty of a base itself, and its path."""
    folder = path
    while folder not in _bases:
        folder, slash, _ = folder.rpartition("/")
        if not slash:
            folder, slash, _ = f"{path}/".partition(f"/{STATE}/")
            if not slash:
                return None
            break
    parts = [part for part in path[len(folder) :].split("/") if part not in ("", ".")]
    # A name with ".." in it is no name that rear has built: a user has given it, and means what it leads to.
    return None if ".." in parts else (folder or "/", "/".join(parts), "/".join([folder, *parts]) or "/")


class in_folder:
    """What a call takes for a path, as ``with``: its last part and the descriptor of the folder that this is in.

    Outside of a base the path itself, and ``None``. Errors of the call are told with the full path.

    Raises:
        OSError: the folder cannot be entered, is missing, or (``ELOOP``) a link is in its place, or in one above it.
    """

    __slots__ = ("_folder", "_is_kept", "_name", "_path")

    def __init__(self, path: StrPath) -> None:
        self._path = os.fspath(path)

    def __enter__(self) -> tuple[str, int | None]:
        place = place_of(self._path)
        if place is None:
            self._name, self._folder = self._path, -1
            return self._path, None
        kept = _kept.folders.get(place.folder)
        self._is_kept = kept is not None
        self._name, self._folder = place.name, _descend(place, self._path) if kept is None else kept
        return self._name, self._folder

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._folder < 0:
            return
        try:
            if isinstance(error, OSError):
                if self._is_kept and error.errno == errno.ESTALE and not _can_be_reached(self._path):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._path) from None
                _tell(error, self._name, self._folder, self._path, self._path)
        finally:
            if not self._is_kept:
                os.close(self._folder)


class staying_in:
    """For the length of a block this thread reaches what is right in some folders by one way down to each of them.

    Of a folder that is not there, or goes meanwhile, nothing is there. Other errors are those of `in_folder`.
    """

    __slots__ = ("_before", "_folders", "_mine")

    def __init__(self, *folders: StrPath) -> None:
        self._folders = [os.fspath(folder) for folder in folders]

    def __enter__(self) -> None:
        self._before, self._mine = _kept.folders, dict[str, int]()
        try:
            for folder in self._folders:
                found = _way_to(folder)
                if found is not None and found[2] not in self._before:
                    with suppress(FileNotFoundError):
                        self._mine[found[2]] = _descend(Place(*found, ""), folder)
        except BaseException:
            self.__exit__()
            raise
        _kept.folders = self._before | self._mine

    def __exit__(self, *_: object) -> None:
        _kept.folders = self._before
        for descriptor in self._mine.values():
            os.close(descriptor)


class _Kept(threading.local):
    """Descriptors of folders, by their paths, to which this thread knows the way already."""

    def __init__(self) -> None:
        self.folders: dict[str, int] = {}


_kept: Final = _Kept()


def open_folder(path: StrPath, *, directory: int | None = None, follow: bool = False, to_pass: bool = False) -> int:
    """Open a folder to list or sync it, by its name in another open one if that is given; return its descriptor.

    Args:
        path: of the folder.
        directory: descriptor of the folder that it is in.
        follow: a link in its place, where it lies in no base.
        to_pass: only to get at what is in it, also where it may not be listed.

    Raises:
        OSError: it is missing, no folder, shut, or (``ELOOP``) a link is in its place, or in one above it.
    """
    flags = _PASSING if to_pass else _LISTING
    if directory is not None:
        return os.open(path, flags, dir_fd=directory)
    with in_folder(path) as (name, folder):
        return os.open(name, flags & _FOLLOWING if follow and folder is None else flags, dir_fd=folder)


def walk(
    top: StrPath, *, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder below one, and that itself, with the names of the folders and of the other files in it.

    Like `os.walk`: who asks may take folders out of the list, and is told of errors if it wants; but no link is
    followed, also not one that has come since its folder was listed: each is an error.
    """
    tell = on_error or (lambda error: None)
    waiting = [os.fspath(top)]
    while waiting:
        path = waiting.pop()
        try:
            descriptor = open_folder(path)
            try:
                with os.scandir(descriptor) as entries:
                    items = [(one.name, one.is_symlink(), one.is_dir(follow_symlinks=False)) for one in entries]
            finally:
                os.close(descriptor)
        except OSError as error:
            tell(error)
            continue
        for name, is_link, _ in items:
            if is_link:
                tell(_refused(f"{path}/{name}"))
        folders = [name for name, _, is_one in items if is_one]
        yield path, folders, [name for name, is_link, is_one in items if not is_link and not is_one]
        waiting += [f"{path}/{name}" for name in reversed(folders)]


def status_of(path: StrPath, *, follow: bool = False) -> os.stat_result:
    """Return the status of what has a name; in a base that of a link itself, else that if ``follow`` is not set."""
    with in_folder(path) as (name, folder):
        return os.stat(name, dir_fd=folder, follow_symlinks=follow and folder is None)


def is_folder(path: StrPath) -> bool:
    """Whether there is a folder; ``False`` of what is missing or else.

    Raises:
        OSError: that cannot be found out, or (``ELOOP``) a link is in its place, or in one above it, below a base.
    """
    try:
        mode = status_of(path, follow=True).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISLNK(mode):
        raise _refused(os.fspath(path))
    return stat.S_ISDIR(mode)


def _descend(place: Place, path: str) -> int:
    """Return a descriptor of the folder of a place."""
    global _steps, _open_at_once
    if _open_at_once is not None:
        # Most often there is no link in the name of the base, either.
        below = _open_at_once(_HERE, place.folder)
        if below is not None:
            return below
    try:
        folder = os.open(place.base, _PASSING & _FOLLOWING)
    except OSError as error:
        error.filename = path
        raise
    if not place.way:
        return folder
    if _open_at_once is not None:
        below = _open_at_once(folder, place.way)
        if below is not None:
            os.close(folder)
            return below
        # What is wrong is found out step by step.
    way = place.base.rstrip("/")
    for part in place.way.split("/"):
        way = f"{way}/{part}"
        try:
            below = os.open(part, _PASSING, dir_fd=folder)
        except OSError as error:
            _tell(error, part, folder, way, path)
            raise
        finally:
            os.close(folder)
        folder = below
        _steps += 1
        if _steps == _STEPS_ONE_BY_ONE:
            _open_at_once = folder_opener(_PASSING)
    return folder


def _tell(error: OSError, name: str, folder: int, way: str, path: str) -> None:
    """Have an error tell the full path that was asked for; or raise that of a link on the way, which is ``ENOTDIR`` to
    Linux.
    """
    # What has `error` among its own names must not raise it: such a cycle keeps all callers' objects until garbage is
    # looked for, and that takes longer than the rest of a round.
    if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(name, folder):
        raise _refused(way) from None
    if error.filename == name and error.filename2 is None:
        error.filename = path


def _can_be_reached(path: str) -> bool:
    """Whether the folder of a path is there: to NFS the descriptor of one that has gone is a stale one."""
    place = place_of(path)
    assert place is not None
    try:
        os.close(_descend(place, path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _refused(path: str) -> OSError:
    return OSError(errno.ELOOP, "a link, and below a base none is followed", path)


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
