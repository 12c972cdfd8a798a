"""Moving files that others made into an archive: look at all of them, archive them, remove them at the very end.

A source goes only when everything of its pickup is on stable storage and was read back, and only if it is still what
was archived. A pickup that fails leaves all its sources in place.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping

from rear.core.folder_tree import FolderTree, Identity
from rear.core.log import warn
from rear.core.source_file import SourceStamp, at_path, stamp_of
from rear.core.storage import StrPath
from rear.errors import SourceError, UsageError
from rear.worker.pickup_listing import Refusal, SourceFile, collect, open_holder, told_gone
from rear.zip.codecs import STORED
from rear.zip.payload import Payload, payload_of_bytes, payload_of_source

Sink = Callable[[SourceFile, Payload, Callable[[], None] | None], None]
"""Archives one file. The payload is the sink's from then on; the function, if any, is to be called, by any thread, when
the bytes are proven on stable storage."""


def remove_source(stamp: SourceStamp, tree: FolderTree | None = None) -> bool:
    """Remove a file if it is still what was archived; otherwise leave it, log a warning and return ``False``.

    Args:
        stamp: what was archived.
        tree: the open folder below which the file is; without it the one that holds the file.
    """
    try:
        if tree is None:
            with FolderTree(os.path.dirname(stamp.path)) as holder:
                return remove_source(stamp, holder)
        tree.unlink(tree.inner(stamp.path), stamp)
    except FileNotFoundError:
        # It was in a temporary folder of the program's own, which has removed it: what is archived is safe.
        return False
    except SourceError:
        warn("%s has changed since it was archived: it is left in place", stamp.path)
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
        one_file_system: leave out what is mounted below the directory.

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
        one_file_system: bool = False,
    ) -> None:
        self.source = _absolute(source)
        self.name = name
        self.archived: list[SourceFile] = []
        self._keep = keep
        self._on_refused = on_refused
        self._escape_names = escape_names
        self._one_file_system = one_file_system
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
        with open_holder(self.source) as tree:
            files = collect(
                self.source,
                self.name,
                keep=self._keep,
                on_refused=self._on_refused,
                escape_names=self._escape_names,
                one_file_system=self._one_file_system,
                tree=tree,
            )
            removal = None if self._keep else _Removal(self.source, len(files), tree.folders)
            if removal is not None and not files:
                removal.finish()
            for number, file in enumerate(files):
                try:
                    self.archived.append(self._archive(number, file, tree, removal))
                except (SourceError, OSError) as error:
                    if self._on_refused is None or not file.relative or not _is_of(error, file):
                        raise
                    if removal is not None:
                        removal.give_up(number)
                    self._on_refused(error)

    def discard(self) -> None:
        """Leave the source alone. Does nothing once it is archived."""
        self._ended = True

    def _archive(self, number: int, file: SourceFile, tree: FolderTree, removal: _Removal | None) -> SourceFile:
        payload: Payload
        stamp: SourceStamp | None = None
        try:
            folder, name = tree.place_of(tree.inner(file.path))
        except OSError as error:
            raise told_gone(error, file.path) from None
        if stat.S_ISREG(file.mode):
            # What was read counts, not what was there when the tree was listed.
            payload, stamp = payload_of_source(file.path, self._method, self._spool_size, folder=folder)
            file = file._replace(stamp=stamp)
        elif stat.S_ISLNK(file.mode):
            payload, stamp = _payload_of_link(file.path, folder, name)
            file = file._replace(stamp=stamp._replace(mode=file.mode))
        else:
            payload = payload_of_bytes(b"", STORED)
        self._sink(file, payload, None if removal is None else removal.expect(number, stamp))
        return file

    def __repr__(self) -> str:
        return f"<rear.Pickup source={self.source!r} name={self.name!r}{' ended' if self._ended else ''}>"


class _Removal:
    """Removes the sources of one pickup when the last of them is on stable storage.

    No folder stays open until then: a program may have thousands of pickups on their way. They are opened again, and
    have to be the ones that were looked into.
    """

    def __init__(self, source: str, count: int, folders: Mapping[str, Identity]) -> None:
        self._source = source
        self._folders = dict(folders)
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
        try:
            with FolderTree(os.path.dirname(self._source), folders=self._folders) as tree:
                for stamp in self._stamps:
                    if stamp is not None:
                        remove_source(stamp, tree)
                # Inner ones first; those that were made since are not among them.
                for folder in sorted(filter(None, self._folders), reverse=True):
                    self._remove_folder(folder, tree)
        except FileNotFoundError:
            # As for a file.
            return
        except OSError as error:
            warn("%s was archived, but cannot be removed: %s", self._source, error.strerror)

    @staticmethod
    def _remove_folder(folder: str, tree: FolderTree) -> None:
        try:
            tree.remove_directory(folder)
        except OSError as error:
            warn("%s was archived, but cannot be removed: %s", os.path.join(tree.path, folder), error.strerror)


def _is_of(error: Exception, file: SourceFile) -> bool:
    """Whether an error is one of reading this file; after one of the base, further files would fare no better."""
    if isinstance(error, SourceError):
        return True
    return any(isinstance(one, OSError) and one.filename == file.path for one in (error, error.__cause__))


def _absolute(source: StrPath) -> str:
    path = os.fsdecode(source)
    if not path or "\0" in path:
        raise UsageError(f"the source {path!r} is no path")
    # Not abspath: it takes `link/..` for nothing, and that may be another directory.
    # The current folder may be gone: it is asked for only where it counts.
    path = (path if os.path.isabs(path) else os.path.join(os.getcwd(), path)).rstrip("/") or "/"
    return os.path.realpath(path) if os.path.basename(path) in ("", ".", "..") else path


def _payload_of_link(path: str, folder: int, name: str) -> tuple[Payload, SourceStamp]:
    try:
        stamp = stamp_of(path, os.stat(name, dir_fd=folder, follow_symlinks=False))
        target = os.readlink(os.fsencode(name), dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{path} was removed or renamed while its folder was picked up") from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise SourceError(f"{path} was replaced while its folder was picked up") from None
        raise at_path(error, path) from None
    return payload_of_bytes(target, STORED), stamp
