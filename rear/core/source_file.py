"""A file that others made, read once and unchanged: it is a regular file, and it stays the same while it is read."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from rear.core.storage import LOCAL
from rear.errors import SourceError


class SourceStamp(NamedTuple):
    """Which file a pickup has read, and in which state: another stamp means other bytes."""

    path: str
    dev: int
    ino: int
    size: int
    mtime_ns: int
    mode: int


def stamp_of(path: str, status: os.stat_result) -> SourceStamp:
    """Return the state of a file as its status gives it."""
    return SourceStamp(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)


def describe_kind(mode: int) -> str:
    """Return what kind of file it is, with its article."""
    return next((kind for test, kind in _KINDS if test(mode)), "a special file")


_KINDS: Final[tuple[tuple[Callable[[int], bool], str], ...]] = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def open_source(
    path: str, *, folder: int | None = None, expected: SourceStamp | None = None
) -> tuple[int, SourceStamp]:
    """Open a file to read; by its name in an open folder, if one is given, and only if it is the expected one."""
    name = path if folder is None else os.path.basename(path)
    try:
        # Opening a device can do something to it: look first.
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if expected is not None:
            compare_stamps(expected, stamp_of(path, status))
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{path} is {describe_kind(status.st_mode)}: only regular files are picked up")
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{path}: there is no such file") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise SourceError(f"{path} was replaced by something that is not a regular file") from error
        raise at_path(error, path) from None
    try:
        status = os.fstat(descriptor)
        if expected is not None:
            compare_stamps(expected, stamp_of(path, status))
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{path} was replaced by {describe_kind(status.st_mode)}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, stamp_of(path, status)


def source_pieces(descriptor: int, stamp: SourceStamp, piece_size: int) -> Iterator[bytes]:
    position = 0
    try:
        while position < stamp.size:
            piece = LOCAL.read(descriptor, min(piece_size, stamp.size - position), position)
            if not piece:
                raise SourceError(f"{stamp.path} was cut to {position:,} of {stamp.size:,} bytes while it was read")
            yield piece
            position += len(piece)
        if LOCAL.read(descriptor, 1, position):
            raise SourceError(f"{stamp.path} grew beyond {stamp.size:,} bytes while it was read")
    except OSError as error:
        # Reading by descriptor tells no path.
        raise with_path(error, stamp.path) from error


def with_path(error: OSError, path: str) -> OSError:
    # What a signal handler raises, ``TimeoutError("too late")``, stays what it is.
    return error if error.filename is not None or error.errno is None else OSError(error.errno, error.strerror, path)


def at_path(error: OSError, path: str) -> OSError:
    """Return an error of a call by descriptor, or by a name in an open folder, as one of a path."""
    return error if error.errno is None else OSError(error.errno, error.strerror, path)


def verify_unchanged(descriptor: int, stamp: SourceStamp, *, folder: int | None = None) -> None:
    name = stamp.path if folder is None else os.path.basename(stamp.path)
    try:
        compare_stamps(stamp, stamp_of(stamp.path, os.fstat(descriptor)))
        compare_stamps(stamp, stamp_of(stamp.path, os.stat(name, dir_fd=folder, follow_symlinks=False)))
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{stamp.path} was removed or renamed while it was read") from None
    except OSError as error:
        raise at_path(error, stamp.path) from None


def compare_stamps(expected: SourceStamp, found: SourceStamp) -> None:
    if (expected.dev, expected.ino) != (found.dev, found.ino):
        raise SourceError(f"{expected.path} was replaced by another file while it was read")
    if expected.size != found.size:
        raise SourceError(f"{expected.path} changed while it was read, from {expected.size:,} to {found.size:,} bytes")
    if expected.mtime_ns != found.mtime_ns:
        raise SourceError(f"{expected.path} was written to while it was read")
