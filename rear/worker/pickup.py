"""Moving files that others made into an archive: look at all of them, archive them, remove them at the very end.

A source goes only when everything of its pickup is on stable storage and was read back, and only if it is still what
was archived. A pickup that fails leaves all its sources in place.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from rear.core.discovery import counts_as_base
from rear.core.escaped_names import member_name
from rear.core.layout import base_above, state_above
from rear.core.log import warn
from rear.core.names import STATE, check_name
from rear.core.source_file import SourceStamp, describe_kind, stamp_of
from rear.core.storage import LOCAL, StrPath
from rear.errors import PathError, RearError, SourceError, UsageError
from rear.zip.codecs import STORED
from rear.zip.payload import Payload, payload_of_bytes, payload_of_source


class SourceFile(NamedTuple):
    """One file, symbolic link or empty directory that becomes a member.

    ``name`` is the member's name; ``relative`` is the part of it below the picked-up directory, empty for the source
    itself. An empty directory's names end in ``/``.
    """

    path: str
    name: str
    relative: str
    mtime_ns: int
    mode: int


Sink = Callable[[SourceFile, Payload, Callable[[], None] | None], None]
"""Archives one file. The payload is the sink's from then on; the function, if any, is to be called, by any thread, when
the bytes are proven on stable storage."""


Refusal = Callable[[RearError | OSError], object]
"""Is told why one file of a tree is left where it is, while the rest is archived."""


def collect(
    source: str,
    name: str = "",
    *,
    keep: bool = True,
    on_refused: Refusal | None = None,
    escape_names: bool = False,
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

    Raises:
        SourceError: the source is missing or a symbolic link, or it is or holds a FIFO, socket or device; or rear keeps
            it for itself.
        PathError: a name in the tree cannot be kept.
        OSError: something cannot be read.
    """
    base = _base_of(source)
    try:
        status = os.lstat(source)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{source}: there is no such file") from None
    if not stat.S_ISDIR(status.st_mode):
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{source} is {describe_kind(status.st_mode)}: only files and directories are picked up")
        if base is not None and not keep and source.lower().endswith(".zip"):
            raise SourceError(f"{source} counts as a final archive of the base {base}: copy it, or move it out first")
        check_name(name)
        _check_readable(source)
        return [SourceFile(source, name, "", status.st_mtime_ns, status.st_mode)]
    if base is not None and base == os.path.realpath(source):
        raise SourceError(f"{source} is a base of rear: pick up a folder of files, the base holds its own archives")
    prefix = f"{name}/" if name else ""
    found: list[SourceFile] = []
    folders = [(source, "", status)]
    while folders:
        folder, relative, status = folders.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            if not entries and prefix + relative:
                inner = member_name(relative, escape=escape_names, prefix=prefix)
                found.append(SourceFile(folder, inner, relative, status.st_mtime_ns, status.st_mode))
        except (PathError, OSError) as error:
            if on_refused is None or not relative:
                raise
            on_refused(error)
            continue
        below = []
        for entry in entries:
            inner = relative + entry.name
            try:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    if entry.name.casefold() == STATE:
                        warn("%s is what rear keeps for itself: it is left out", entry.path)
                    elif os.path.isdir(os.path.join(entry.path, STATE)) and counts_as_base(entry.path, entry.path):
                        warn("%s is a base of rear: it is left out", entry.path)
                    else:
                        below.append((entry.path, f"{inner}/", status))
                    continue
                member = member_name(inner, escape=escape_names, prefix=prefix)
                mode = _checked_mode(entry.path, status.st_mode)
            except (RearError, OSError) as error:
                if on_refused is None:
                    raise
                on_refused(error)
                continue
            if base is not None and not keep and entry.name.lower().endswith(".zip"):
                warn("%s counts as a final archive of the base %s: it is left out", entry.path, base)
                continue
            found.append(SourceFile(entry.path, member, inner, status.st_mtime_ns, mode))
        folders += reversed(below)
    found.sort(key=lambda file: file.name)
    return found


def _base_of(source: str) -> str | None:
    """Return the base that a source lies in, if any.

    Raises:
        SourceError: the source lies in what rear keeps for itself.
    """
    path = os.path.realpath(source)
    if (base := state_above(path)) is not None:
        raise SourceError(f"{source} lies in {base}/{STATE}, which rear keeps for itself")
    return base_above(path)


def _checked_mode(path: str, mode: int) -> int:
    """Return the mode that a member gets; refuse what is no file or link, and what may not be read."""
    if stat.S_ISLNK(mode):
        return stat.S_IFLNK | 0o777
    if not stat.S_ISREG(mode):
        raise SourceError(f"{path} is {describe_kind(mode)}: it cannot be picked up")
    _check_readable(path)
    return mode


def remove_source(stamp: SourceStamp) -> bool:
    """Remove a file if it is still what was archived; otherwise leave it, log a warning and return ``False``."""
    try:
        found = stamp_of(stamp.path, os.lstat(stamp.path))
        # The mode may differ: the content is what was archived.
        if found[:5] != stamp[:5]:
            warn("%s has changed since it was archived: it is left in place", stamp.path)
            return False
        LOCAL.unlink(stamp.path)
    except FileNotFoundError:
        # It was in a temporary folder of the program's own, which has removed it: what is archived is safe.
        return False
    except OSError as error:
        warn("%s was archived, but cannot be removed: %s", stamp.path, error.strerror)
        return False
    return True


class Pickup:
    """Archives a file or a directory tree when its ``with`` block ends, or when `close` is called.

    Args:
        source: the file or directory; it need not exist yet. A relative path begins in the current directory of now.
        name: the member's name, or the folder in the archive for a directory; empty for the archive's root.
        method: compression method.
        spool_size: up to this many bytes of one file are held in memory.
        success_only: leave the source alone when the block raises.
        sink: archives one file.
        keep: never remove the source.
        on_refused: is told of each file below a directory that cannot be archived and stays; the rest is archived.
            Without it one such file ends the pickup.
        escape_names: escape what no name can hold, below the directory.

    Attributes:
        archived: what is acknowledged so far.

    Raises:
        UsageError: ``source`` cannot be a path.
    """

    def __init__(
        self,
        source: StrPath,
        name: str,
        *,
        method: int,
        spool_size: int,
        success_only: bool,
        sink: Sink,
        keep: bool = False,
        on_refused: Refusal | None = None,
        escape_names: bool = False,
    ) -> None:
        self.source = _absolute(source)
        self.name = name
        self.archived: list[SourceFile] = []
        self._keep = keep
        self._on_refused = on_refused
        self._escape_names = escape_names
        self._method = method
        self._spool_size = spool_size
        self._success_only = success_only
        self._sink = sink
        self._ended = False
        self._process = os.getpid()

    def __enter__(self) -> str:
        """Return the absolute path of the source."""
        return self.source

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._success_only:
            self.discard()
        else:
            self.close()

    def close(self) -> None:
        """Archive the source, the first time; in a forked child, do nothing. It is removed later, see `remove_source`,
        unless it is to be kept.

        Raises:
            SourceError: the source is missing, is or holds what cannot be archived, or changed while it was read.
            PathError: a name in the tree cannot be kept.
            OSError: something cannot be read, or what the sink raises. Some files of a tree may be archived then, but
                none will be removed.
        """
        if self._ended:
            return
        self._ended = True
        if self._process != os.getpid():
            return
        files = collect(
            self.source, self.name, keep=self._keep, on_refused=self._on_refused, escape_names=self._escape_names
        )
        removal = None if self._keep else _Removal(len(files), _folders(self.source, files))
        if removal is not None and not files:
            removal.finish()
        for number, file in enumerate(files):
            try:
                self.archived.append(self._archive(number, file, removal))
            except (SourceError, OSError) as error:
                if self._on_refused is None or not file.relative or not _is_of(error, file):
                    raise
                if removal is not None:
                    removal.give_up(number)
                self._on_refused(error)

    def discard(self) -> None:
        """Leave the source alone. Does nothing once it is archived."""
        self._ended = True

    def _archive(self, number: int, file: SourceFile, removal: _Removal | None) -> SourceFile:
        payload: Payload
        stamp: SourceStamp | None = None
        if stat.S_ISREG(file.mode):
            payload, stamp = payload_of_source(file.path, self._method, self._spool_size)
            # What was read counts, not what was there when the tree was listed.
            file = file._replace(mtime_ns=stamp.mtime_ns, mode=stamp.mode)
        elif stat.S_ISLNK(file.mode):
            payload, stamp = _payload_of_link(file.path)
            file = file._replace(mtime_ns=stamp.mtime_ns)
        else:
            payload = payload_of_bytes(b"", STORED)
        self._sink(file, payload, None if removal is None else removal.expect(number, stamp))
        return file

    def __repr__(self) -> str:
        return f"<rear.Pickup source={self.source!r} name={self.name!r}{' ended' if self._ended else ''}>"


class _Removal:
    """Removes the sources of one pickup when the last of them is on stable storage."""

    def __init__(self, count: int, folders: list[str]) -> None:
        self._folders = folders
        self._missing = set(range(count))
        self._stamps: list[SourceStamp | None] = [None] * count

    def expect(self, number: int, stamp: SourceStamp | None) -> Callable[[], None]:
        """Return what is to be called when that file, or empty directory, is on stable storage."""
        self._stamps[number] = stamp
        return lambda: self._settle(number)

    def give_up(self, number: int) -> None:
        """Leave a file that could not be archived; the others do not wait for it."""
        self._stamps[number] = None
        self._settle(number)

    def _settle(self, number: int) -> None:
        # Each of these is one step of the interpreter, so threads need no lock.
        if number in self._missing:
            self._missing.discard(number)
            if not self._missing:
                self.finish()

    def finish(self) -> None:
        """Remove everything that was archived, and the folders that this leaves empty."""
        for stamp in self._stamps:
            if stamp is not None:
                remove_source(stamp)
        for folder in self._folders:
            try:
                LOCAL.remove_directory(folder)
            except OSError as error:
                # Not empty: something was left in place, or has come since.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    warn("%s was archived, but cannot be removed: %s", folder, error.strerror)


def _folders(source: str, files: list[SourceFile]) -> list[str]:
    """Return the folders of a tree, inner ones first; those that were made since are not among them."""
    if len(files) == 1 and files[0].path == source and stat.S_ISREG(files[0].mode):
        return []
    folders = {source}
    for file in files:
        folder = file.path if stat.S_ISDIR(file.mode) else os.path.dirname(file.path)
        while folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    return sorted(folders, reverse=True)


def _is_of(error: Exception, file: SourceFile) -> bool:
    """Whether an error is one of reading this file; after one of the base, further files would fare no better."""
    if isinstance(error, SourceError):
        return True
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    return isinstance(cause, OSError) and cause.filename == file.path


def _absolute(source: StrPath) -> str:
    path = os.fsdecode(source)
    if not path or "\0" in path:
        raise UsageError(f"the source {path!r} is no path")
    # Not abspath: it takes `link/..` for nothing, and that may be another directory.
    # The current folder may be gone: it is asked for only where it counts.
    path = (path if os.path.isabs(path) else os.path.join(os.getcwd(), path)).rstrip("/") or "/"
    return os.path.realpath(path) if os.path.basename(path) in ("", ".", "..") else path


def _check_readable(path: str) -> None:
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def _payload_of_link(path: str) -> tuple[Payload, SourceStamp]:
    try:
        stamp = stamp_of(path, os.lstat(path))
        target = os.readlink(os.fsencode(path))
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{path} was removed or renamed while its folder was picked up") from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise SourceError(f"{path} was replaced while its folder was picked up") from None
        raise
    return payload_of_bytes(target, STORED), stamp
