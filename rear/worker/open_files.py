"""The files of one ``rear_fs`` that are being written: what becomes of each, and which names were written before."""

from __future__ import annotations

import errno
import time
import weakref
from collections.abc import Iterator
from typing import Final

from rear.core.names import Target
from rear.core.records import Metadata
from rear.worker.flushed_file import FlushedFile
from rear.worker.member_file import MemberFile, OpenFile
from rear.worker.worker import Worker, explained
from rear.worker.written_names import WrittenNames

_FILE_MODE: Final = 0o100644


class OpenFiles:
    """Has a worker archive files when they are closed: the owner of each `MemberFile`.

    Args:
        worker: archives members.
        method: compression method.
        spool_size: up to this many bytes of a file are held in memory.
        success_only: a ``with`` block that raises discards the file.
    """

    def __init__(self, worker: Worker, *, method: int, spool_size: int, success_only: bool) -> None:
        self.method = method
        self.spool_size = spool_size
        self.success_only = success_only
        self._worker = worker
        #: By hash of their names the files that are being written, the second one of a name by its own reference. Not
        #: a WeakSet: that one cannot be listed while other threads open files.
        self._open: dict[object, weakref.ref[MemberFile]] = {}
        self._written = WrittenNames()

    def __iter__(self) -> Iterator[MemberFile]:
        """Those that are there still."""
        for reference in list(self._open.values()):
            file = reference()
            if file is not None:
                yield file

    def add(self, file: MemberFile, target: Target, metadata: Metadata | None) -> None:
        """Take on a new file.

        Raises:
            FileExistsError: its mode has an ``x``, and the name was written before, or is being written.
        """
        key = hash(target)
        reference = weakref.ref(file)
        opened = file.opened = OpenFile(target, key, metadata)
        # One step, so that of two threads with mode x one alone gets the name. And it comes first: a file that is
        # finished stands among the written ones before it is taken from those that are being written.
        if self._open.setdefault(key, reference) is not reference:
            opened.place = reference
            self._open[reference] = reference
        if "x" in file.mode and (opened.place is reference or key in self._written):
            raise FileExistsError(errno.EEXIST, "this process wrote that name already", file.name)

    def forget(self, file: MemberFile) -> None:
        """Drop a file that could not be opened after all, however far `add` came with it."""
        opened: OpenFile | None = getattr(file, "opened", None)
        if opened is not None and self._open.get(opened.place) is weakref.ref(file):
            del self._open[opened.place]
        file.forget()

    def note_written(self, target: Target) -> None:
        """Remember that a name was written."""
        self._written.add(hash(target))

    # -- what a `FileOwner` does

    def archive(self, file: MemberFile) -> None:
        """Archive a file.

        Raises:
            OSError: that failed; what was flushed of it is kept.
        """
        opened = file.opened
        try:
            if opened.flushed is None or not self._finish_flushed(file, opened.flushed):
                payload = file.payload(self.method)
                self._worker.append(opened.target, payload, time.time_ns(), _FILE_MODE, opened.metadata)
            self._written.add(opened.key)
        finally:
            self._open.pop(opened.place, None)

    def _finish_flushed(self, file: MemberFile, flushed: FlushedFile) -> bool:
        try:
            return flushed.finish(file)
        except OSError as error:
            what = "this member is not complete; what was flushed of it is kept"
            raise explained(error, what, self._path_of(file)) from error

    def keep(self, file: MemberFile) -> None:
        """Keep what was written so far of a file.

        Raises:
            OSError: that failed; it can be tried again.
        """
        opened = file.opened
        if opened.flushed is None:
            opened.flushed = self._worker.open_flushed(opened.target, self.method, _FILE_MODE, opened.metadata, file)
        try:
            opened.flushed.flush(file)
        except OSError as error:
            what = "this could not be flushed; what was flushed before is kept"
            raise explained(error, what, self._path_of(file)) from error

    def discard(self, file: MemberFile) -> None:
        """Drop a file with all that was flushed of it."""
        opened = file.opened
        self._open.pop(opened.place, None)
        if opened.flushed is not None:
            opened.flushed.abort()

    def _path_of(self, file: MemberFile) -> str:
        return f"{self._worker.layout.base}/{file.name}"
