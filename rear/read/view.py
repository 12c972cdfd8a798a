"""A final archive as it is committed, also while a merge writes into it.

A merge appends over the central directory of a final archive, so while it runs the file has none. `open_committed` then
takes the copy that the merge's intent keeps, and shows the archive as it was before; members never move, so their data
needs no such care. A directory that a merge might overwrite while it is read is copied first, and the copy is used only
if nothing changed in between: by the file's own word (inode, size, time of change, asked anew through ``open``), and by
the absence of an intent. A Zip outside of any base is opened the same way.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from pathlib import Path
from typing import IO, Final, NamedTuple

from rear.core.layout import find_base
from rear.core.storage import LOCAL, Storage, StrPath, close_read
from rear.core.trust import counts_for_archive
from rear.errors import FutureVersionError, JournalError, NotAZipError, UnsupportedError, ZipFormatError
from rear.journal.intent import Intent, read_open_intent
from rear.zip.archive import Archive
from rear.zip.directory import Directory, fingerprint, locate

SNAPSHOT_MEMORY_BYTES: Final = 32 << 20
"""Longer directories are copied to local disk instead of memory."""
_TRIES: Final = 60
_PAUSE_SECONDS: Final = 0.05
#: What reading from a file says that another host removed or cut meanwhile.
_CHANGED_ERRORS: Final = frozenset({errno.ESTALE, errno.EIO, errno.ENOENT})
#: What opening says of a link, a FIFO, a folder or a socket: whatever it is called, no scavenger merges by it.
_NO_FILE: Final = frozenset({errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO, errno.ENODEV})


class _CommittedView(NamedTuple):
    """An archive that is open, and where its directory was when nothing changed."""

    path: str
    descriptor: int
    directory: Directory
    fingerprint: str
    snapshot: IO[bytes] | None


class _Merge(NamedTuple):
    """A merge that has not committed: its intent, and the open file that it stands in."""

    intent: Intent
    descriptor: int
    inode: int


def open_committed(path: StrPath, *, storage: Storage = LOCAL) -> Archive:
    """Open an archive with a copy of its directory; up to 32 MiB of it in memory.

    Raises:
        FileNotFoundError: there is none; or its first merge is still under way.
        NotAZipError: the file is no Zip, or a torn one.
        UnsupportedError: it is split into volumes, or its directory is encrypted.
        FutureVersionError: a newer rear merges into it.
        OSError: it cannot be read, or (``EBUSY``) it changes all the time.
    """
    view = _consistent_view(path, storage, copy=True)
    assert view.snapshot is not None
    return Archive(view.path, view.descriptor, view.directory, view.snapshot, storage)


def directory_of(path: StrPath, *, storage: Storage = LOCAL) -> Directory:
    """Return where the directory of an archive is, without reading or copying it; of the old one during a merge.

    Errors are those of `open_committed`.
    """
    return state_of(path, storage=storage)[0]


def state_of(path: StrPath, *, storage: Storage = LOCAL) -> tuple[Directory, str]:
    """Return where the directory of an archive is, and its fingerprint; otherwise like `directory_of`."""
    view = _consistent_view(path, storage, copy=False)
    close_read(view.descriptor, storage)
    return view.directory, view.fingerprint


def _consistent_view(given: StrPath, storage: Storage, *, copy: bool) -> _CommittedView:
    path = os.path.realpath(given)
    intents = _intent_paths(given, path)
    failure: Exception | None = None
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        merge = _merge_under_way(intents, path, storage)
        try:
            descriptor = storage.open(path)
            try:
                before = _state(descriptor)
                view, failure = _try_view(path, descriptor, merge, storage, copy)
                if _unchanged(path, before, merge, intents, storage):
                    if failure is not None:
                        raise failure
                    assert view is not None
                    descriptor = -1
                    return view
                if view is not None and view.snapshot is not None:
                    view.snapshot.close()
            finally:
                if descriptor >= 0:
                    close_read(descriptor, storage)
        finally:
            if merge is not None:
                close_read(merge.descriptor, storage)
    if failure is not None:
        raise failure
    raise OSError(errno.EBUSY, "the archive changes all the time", path)


def _try_view(
    path: str, descriptor: int, merge: _Merge | None, storage: Storage, copy: bool
) -> tuple[_CommittedView | None, Exception | None]:
    """Return a view of the archive, or the error that counts if nothing changed meanwhile."""
    source, start = descriptor, None
    try:
        if merge is None:
            directory = locate(descriptor, storage=storage)
        elif merge.intent.old is None:
            raise FileNotFoundError(errno.ENOENT, "the first merge into this archive is under way", path)
        else:
            directory, source, start = merge.intent.old, merge.descriptor, merge.intent.tail_start
        mark = fingerprint(source, directory, storage=storage, start=start)
        snapshot = _copy_tail(source, directory, start, storage) if copy else None
    except ZipFormatError as error:
        return None, NotAZipError(f"{path}: {error}")
    except UnsupportedError as error:
        return None, UnsupportedError(f"{path}: {error}", error.code)
    except OSError as error:
        error.filename = error.filename or path
        if error.errno not in _CHANGED_ERRORS:
            raise
        return None, error
    return _CommittedView(path, descriptor, directory, mark, snapshot), None


def _copy_tail(source: int, directory: Directory, start: int | None, storage: Storage) -> IO[bytes]:
    """Copy all from the directory to the end of the archive into an unlinked file in memory or on local disk."""
    length = directory.archive_length - directory.offset
    snapshot: IO[bytes]
    if length <= SNAPSHOT_MEMORY_BYTES and hasattr(os, "memfd_create"):
        snapshot = open(os.memfd_create("rear-directory"), "wb+", buffering=0)
    else:
        snapshot = tempfile.TemporaryFile(prefix="rear-", buffering=0)
    try:
        start = directory.offset if start is None else start
        storage.copy_range(source, snapshot.fileno(), source_start=start, target_start=0, length=length)
    except BaseException:
        snapshot.close()
        raise
    return snapshot


def _state(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _unchanged(
    path: str, before: tuple[int, int, int], merge: _Merge | None, intents: list[Path], storage: Storage
) -> bool:
    now = _merge_under_way(intents, path, storage)
    if now is not None:
        close_read(now.descriptor, storage)
    if merge is not None:
        # The archive itself changes all the time, but not its members, and the intent keeps the rest.
        return now is not None and now.inode == merge.inode
    try:
        # NFS asks the server for the attributes of a file when it is opened, and may not do so for a mere stat.
        descriptor = storage.open(path)
    except FileNotFoundError:
        return False
    try:
        return now is None and _state(descriptor) == before
    finally:
        close_read(descriptor, storage)


def _intent_paths(given: StrPath, path: str) -> list[Path]:
    """Stems of the intents of merges into this archive, by the given name and by the one without links."""
    bases = {find_base(given), find_base(path)}
    return [base[0].intent(base[1]).with_suffix("") for base in bases if base is not None]


def _merge_under_way(stems: list[Path], archive: str, storage: Storage) -> _Merge | None:
    for stem in stems:
        try:
            # NFS may not see a new file by its name for half a minute, but in its folder at once.
            names = storage.names(stem.parent)
        except PermissionError:
            # Who may not look into the base's state may still read its archives while nothing is merged.
            continue
        for name in names:
            if name.startswith(stem.name) and name.endswith(".intent"):
                merge = _open_merge(stem.with_name(name), archive, storage)
                if merge is not None:
                    return merge
    return None


def _open_merge(path: Path, archive: str, storage: Storage) -> _Merge | None:
    try:
        descriptor = storage.open(path)
    except PermissionError:
        return None
    except OSError as error:
        if error.errno not in _CHANGED_ERRORS | _NO_FILE:
            raise
        return None
    merge = None
    try:
        merge = _read_merge(path, archive, descriptor, storage)
    finally:
        if merge is None:
            close_read(descriptor, storage)
    return merge


def _read_merge(path: Path, archive: str, descriptor: int, storage: Storage) -> _Merge | None:
    try:
        status = os.fstat(descriptor)
        if not counts_for_archive(status, path, Path(archive)):
            # Whoever could not have changed the archive does not change what is seen of it.
            return None
        intent, inode = read_open_intent(descriptor, storage=storage), status.st_ino
        # Until it is planned, a merge has not begun to write, so the archive is whole. And intents of one archive and
        # leader follow each other under one name: what was read has to be the file that is open.
        if not intent.planned or intent.committed or storage.status(path).st_ino != inode:
            return None
    except FutureVersionError:
        raise
    except JournalError:
        # Incomplete: nothing is planned yet.
        return None
    except OSError as error:
        if error.errno not in _CHANGED_ERRORS:
            raise
        return None
    return _Merge(intent, descriptor, inode)
