"""Writes members below one directory, and nowhere else, whatever their names say.

Every directory on the way is opened relative to the one above it and never through a symbolic link; a member is written
under a temporary name, checked, and then gets its own. What is there already stays, unless it is to be replaced. None
of this goes through `rear.core.storage`: that is the seam to a base, and here any directory of the user's is written
to.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final

from rear.core.escaped_names import unescape_name
from rear.core.names import check_relative_path, undotted
from rear.core.storage import StrPath
from rear.errors import ExtractionError, PathError
from rear.zip.archive import Archive
from rear.zip.headers import CentralEntry

LINK_LIMIT_BYTES: Final = 4096
"""Longest target of a symbolic link (Linux's PATH_MAX)."""
_DRIVE: Final = re.compile(r"[A-Za-z]:")
#: Elsewhere a colon is a letter like others.
_HAS_DRIVES: Final = sys.platform in ("win32", "cygwin", "msys")
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV})
_REFUSALS: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EROFS, errno.EIO}
)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Extraction:
    """Extracts members below ``folder``; a context that gives new directories their mode and time when it ends.

    Args:
        folder: made with its parents if it does not exist; it alone may be reached through links.
        force: replace files that are there already.
        strip: leave out so many leading parts of the names; members with no more parts than that are skipped.
        keep_modes: give files and directories the permission bits that they had, whatever the umask.
        unescape_names: write files under the names that `rear.core.escaped_names` has escaped.
        on_written: called with the number of bytes of each piece of a file's content that was written.

    Raises:
        OSError: the folder cannot be made or entered.
    """

    def __init__(
        self,
        folder: StrPath,
        *,
        force: bool = False,
        strip: int = 0,
        keep_modes: bool = False,
        unescape_names: bool = False,
        on_written: Callable[[int], object] | None = None,
    ) -> None:
        os.makedirs(folder, exist_ok=True)
        self._root = os.open(folder, _DIRECTORY)
        self._force = force
        self._strip = strip
        self._unescape_names = unescape_names
        self._on_written = on_written
        self._parent: tuple[list[str], int] = ([], self._root)
        #: Device and inode of the folders that were made here.
        self._made: dict[tuple[str, ...], tuple[int, int]] = {}
        self._directories: dict[tuple[str, ...], CentralEntry] = {}
        self._mask = os.umask(0o077)
        os.umask(self._mask)
        self._kept = 0o777 if keep_modes else 0o777 & ~self._mask

    def __enter__(self) -> Extraction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # The deepest first: to set a directory's time, nothing may change in it any more.
            for parts, entry in sorted(self._directories.items(), key=lambda item: item[0], reverse=True):
                self._finish_directory(list(parts), entry)
        finally:
            self._enter([])
            os.close(self._root)

    def extract(self, archive: Archive, entry: CentralEntry) -> None:
        """Write one member: a directory, a symbolic link that stays inside, or else a regular file.

        Raises:
            ExtractionError: its name or its link is unsafe, or something is in its place already.
            ZipFormatError: it is damaged.
            UnsupportedError: it is encrypted or has no codec.
            OSError: it could not be written.
        """
        try:
            self._extract(archive, entry, self._parts(entry.name))
        except ExtractionError as error:
            raise ExtractionError(f"{archive.path}: member {entry.name!r:.300}: {error}") from None

    def _extract(self, archive: Archive, entry: CentralEntry, parts: list[str]) -> None:
        if not parts:
            return
        if entry.is_directory or stat.S_ISDIR(entry.mode):
            self._enter(parts)
            if tuple(parts) in self._made:
                self._directories[tuple(parts)] = entry
            return
        self._enter(parts[:-1])
        parent, name = self._parent[1], parts[-1]
        self._check_free(parent, name)
        temporary = f".rear-{secrets.token_hex(8)}.part"
        try:
            if stat.S_ISLNK(entry.mode):
                self._write_link(archive, entry, parent, temporary, depth=len(parts) - 1)
            else:
                self._write_file(archive, entry, parent, temporary)
            self._publish(parent, temporary, name)
        finally:
            try:
                os.unlink(temporary, dir_fd=parent)
            except FileNotFoundError:
                pass

    def _parts(self, name: str) -> list[str]:
        """Return the checked parts of a member's name, none when it is skipped."""
        path = undotted(name.removesuffix("/"))
        if not path:
            if name.startswith("/") or not name:
                raise ExtractionError(f"unsafe name {name!r}")
            return []
        try:
            parts = check_relative_path(path)
        except PathError as error:
            raise ExtractionError(f"unsafe name: {error}") from None
        if _HAS_DRIVES and _DRIVE.match(parts[0]):
            raise ExtractionError(f"unsafe name: {name!r:.200} begins with a drive letter")
        parts = parts[self._strip :]
        # Checked before: nothing that is taken back is a part of its own, or leads elsewhere.
        return list(map(unescape_name, parts)) if self._unescape_names else parts

    def _enter(self, parts: list[str]) -> None:
        """Make ``parts`` the open parent directory, and make those of them that do not exist."""
        known, descriptor = self._parent
        if parts == known:
            return
        if descriptor != self._root:
            os.close(descriptor)
        self._parent = [], self._root
        descriptor = self._root
        try:
            for depth, part in enumerate(parts, 1):
                below, made = _enter_part(descriptor, part)
                if made and not os.listdir(below):
                    # Another one may be in its place already, of somebody who keeps it for himself.
                    self._made[tuple(parts[:depth])] = _identity(below)
                if descriptor != self._root:
                    os.close(descriptor)
                descriptor = below
        except BaseException:
            if descriptor != self._root:
                os.close(descriptor)
            raise
        self._parent = parts, descriptor

    def _check_free(self, parent: int, name: str) -> None:
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            raise ExtractionError("a directory is in its place")
        if not self._force:
            raise ExtractionError("there is a file of that name already; --force replaces it")

    def _write_file(self, archive: Archive, entry: CentralEntry, parent: int, temporary: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
        with open(descriptor, "wb", buffering=0) as target:
            for data in archive.read(entry):
                rest = memoryview(data)
                while rest:
                    rest = rest[target.write(rest) :]
                if self._on_written is not None:
                    self._on_written(len(data))
            with _where_refused():
                os.fchmod(descriptor, self._mode(entry, 0o666))
            mtime_ns = _mtime_ns(archive, entry)
            with _where_refused():
                os.utime(descriptor, ns=(mtime_ns, mtime_ns))

    def _mode(self, entry: CentralEntry, default: int) -> int:
        """Return what a file or directory may be given: the umask holds, or its owner's files would be open to all."""
        # Never set-user-id, set-group-id or sticky; a mode of 0 stands for none (archives made on DOS).
        return entry.mode & 0o777 & self._kept if entry.mode & 0o777 else default & ~self._mask

    def _write_link(self, archive: Archive, entry: CentralEntry, parent: int, temporary: str, *, depth: int) -> None:
        if entry.size > LINK_LIMIT_BYTES:
            raise ExtractionError(f"a symbolic link with a target of {entry.size:,} bytes")
        target = os.fsdecode(b"".join(archive.read(entry)))
        parts = target.split("/")
        climbs = 0
        while climbs < len(parts) and parts[climbs] == "..":
            climbs += 1
        # '..' after another part could lead out through a link that this part is.
        leads_up = climbs > depth or ".." in parts[climbs:]
        if not target or "\0" in target or target[0] == "/" or leads_up:
            raise ExtractionError(f"its symbolic link to {target!r:.200} might lead out of the folder")
        os.symlink(target, temporary, dir_fd=parent)
        mtime_ns = _mtime_ns(archive, entry)
        with _where_refused():
            os.utime(temporary, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _publish(self, parent: int, temporary: str, name: str) -> None:
        if not self._force:
            try:
                # Unlike a rename, a link never replaces what came in between.
                os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
                return
            except FileExistsError:
                raise ExtractionError("there is a file of that name already; --force replaces it") from None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            self._check_free(parent, name)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)

    def _finish_directory(self, parts: list[str], entry: CentralEntry) -> None:
        # The directory is there and so are its files; its mode and time are worth no failure, each by itself.
        with suppress(OSError, ExtractionError):
            self._enter(parts)
            if _identity(self._parent[1]) != self._made[tuple(parts)]:
                return
            with suppress(OSError):
                os.fchmod(self._parent[1], self._mode(entry, 0o777))
            os.utime(self._parent[1], ns=(entry.mtime_ns, entry.mtime_ns))


@contextmanager
def _where_refused() -> Iterator[None]:
    """Go on where mode or time of a file cannot be set: FAT, CIFS and mounts of object stores refuse that."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _enter_part(descriptor: int, part: str) -> tuple[int, bool]:
    """Open a directory below another one, or make it; return its descriptor, and whether it was made."""
    try:
        try:
            return os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor), False
        except FileNotFoundError:
            os.mkdir(part, 0o777, dir_fd=descriptor)
            return os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor), True
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise ExtractionError(f"{part!r} in its path is no directory, or a symbolic link") from None


def _mtime_ns(archive: Archive, entry: CentralEntry) -> int:
    origin = archive.origin(entry)
    return entry.mtime_ns if origin is None else origin.mtime_ns
