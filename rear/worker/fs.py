"""What users write with: `rear_fs`, `rear_open` and `rear_pickup`."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from rear.core.config import load
from rear.core.context import current, enter, entered, has_left, install_builtins, leave, remove_builtins
from rear.core.discovery import name_base
from rear.core.layout import Layout
from rear.core.log import tell_error
from rear.core.names import Target, split_target
from rear.core.records import METADATA_DEPTH_LIMIT, Metadata, is_metadata, recorded_time_ns
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import BaseError, RearError, UsageError
from rear.worker.member_file import MemberFile, OpenFiles
from rear.worker.text_member_file import TextMemberFile, open_member
from rear.worker.worker import Worker
from rear.worker.worker_options import WorkerOptions
from rear.zip import codecs
from rear.zip.payload import Payload

if TYPE_CHECKING:
    from rear.worker.pickup import Pickup
    from rear.worker.pickup_listing import SourceFile

METADATA_LIMIT_BYTES = 60 << 10
_READ_MODES = frozenset({"r", "rt", "tr", "rb", "br"})


class RearFs:
    """A base, open for writing by this process: each file goes into the process's own temp archive.

    Use it as ``with rear_fs(base):`` or ``async with`` (asyncio and trio). Inside, `rear_open` and `rear_pickup` need
    no other argument; contexts nest, and threads started inside use the one that was current there. Nothing is made
    on disk before the first file is closed.

    What is not given is set by the environment, by the base's ``.rear/config.toml``, or by default: see
    ``rear config``.

    Args:
        base: directory on the shared file system; made when the first file is closed.
        rotation_span: seconds after which a new temp archive begins, at the latest: up to a quarter earlier, so that
            the workers of a job do not all come at once.
        rotation_size: bytes after which a new temp archive begins.
        success_only: a file whose ``with`` block raised is not archived.
        compression: ``"deflate"``, ``"stored"`` or ``"zstd"`` (extra ``rear[zstd]``); skipped where content does not
            shrink.
        sync: ``"interval"``: a closed file survives SIGKILL at once, and loss of power after at most
            ``sync_interval`` seconds; ``"file"``: closing a file waits until it also survives loss of power.
        sync_interval: seconds between two syncs.
        lease_seconds: after this long without a sign of life another host may take over what this process left.
        spool_size: bytes of one file that stay in memory; more goes to local disk.
        install_builtins: make ``rear_open`` and ``rear_pickup`` builtins while the context is open.
        storage: the file system; for tests.

    Raises:
        UsageError: an option has a value that cannot be used.
        ConfigError: a setting of the environment or of the base's configuration has one.
        BaseError: the base is there, but is no directory.
        OSError: the base's configuration is there and cannot be read.
    """

    def __init__(
        self,
        base: StrPath,
        *,
        rotation_span: float | None = None,
        rotation_size: int | None = None,
        success_only: bool = True,
        compression: str | None = None,
        sync: str | None = None,
        sync_interval: float | None = None,
        lease_seconds: float | None = None,
        spool_size: int | None = None,
        install_builtins: bool = False,
        storage: Storage = LOCAL,
    ) -> None:
        if not os.fspath(base) or "\0" in os.fsdecode(base):
            raise UsageError(f"the base {base!r} is no path")
        self._layout = Layout(os.fsdecode(base))
        if os.path.lexists(self._layout.base) and not os.path.isdir(self._layout.base):
            raise BaseError(f"{self._layout.base} is not a directory: it cannot be a base")
        name_base(self._layout.base)
        given = {
            "rotation_span": rotation_span,
            "rotation_size": rotation_size,
            "compression": compression,
            "sync": sync,
            "sync_interval": sync_interval,
            "lease_seconds": lease_seconds,
            "spool_size": spool_size,
        }
        settings = load(self._layout, "worker", given, storage=storage)
        spool_bytes: int = settings.pop("spool_size")
        if spool_bytes < 0:
            raise UsageError(f"spool_size is {spool_bytes!r}: it has to be a number of bytes")
        method = codecs.method_of(settings.pop("compression"))
        self._storage = storage
        self._install_builtins = install_builtins
        self._tokens: list[object] = []
        self._worker = Worker(
            self._layout, WorkerOptions(**settings), on_first_pair=lambda: _note_open(self), storage=storage
        )
        self._files = OpenFiles(self._worker, method=method, spool_size=spool_bytes, success_only=success_only)

    @property
    def base(self) -> str:
        """Absolute path of the base."""
        return str(self._layout.base)

    def open(
        self,
        path: StrPath,
        mode: str = "w",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        metadata: Metadata | None = None,
    ) -> IO[Any]:
        """Open a member; `rear_open` is this method of the innermost `rear_fs`.

        Closing a file that was written archives it, and returning from ``close()`` acknowledges it: it is kept from
        then on. What is read may still be on its way to the final archive: see `rear.read.members`.

        Args:
            path: ``ar.zip/path/to/file``: everything up to the first part that ends in ``.zip`` is the final archive,
                relative to the base, the rest is the name in it.
            mode: ``r``, ``w``, ``x``, ``w+`` or ``x+``, with ``b`` or ``t``, as for `open`. ``x`` refuses a name that
                this process wrote before.
            encoding: as for `open`.
            errors: as for `open`.
            newline: as for `open`.
            metadata: a dict that JSON can hold, 60 KiB at most; it travels in the journal, in the member's extra
                field and into the index.

        Returns:
            a text or binary file object.

        Raises:
            PathError: the path names no archive or no member, leaves the base, or names an archive of another base that
                lies in this one.
            UsageError: mode or metadata cannot be used.
            FileNotFoundError: mode ``r``, and no file of that name was acknowledged.
            FileExistsError: mode ``x``, and the name was written before, or is being written.
            RearError: this was closed.
        """
        return self._open(path, mode, encoding, errors, newline, metadata)

    def _open(
        self,
        path: StrPath,
        mode: str,
        encoding: str | None,
        errors: str | None,
        newline: str | None,
        metadata: Metadata | None,
    ) -> IO[Any]:
        # By position, here and below: passing names takes longer than what is done with them.
        target = split_target(path)
        if mode in _READ_MODES:
            from rear.read.members import open_written

            text = {"encoding": encoding, "errors": errors, "newline": newline}
            return open_written(self._layout, target, mode, **text, storage=self._storage)
        kept = None if metadata is None else _check_metadata(metadata)
        if self._worker.closed:
            raise RearError(f"{target.archive}/{target.name} cannot be opened: the rear_fs of {self.base} is closed")
        if target.archive not in self._worker.own_archives:
            target = Target(self._worker.check_place(target.archive), target.name)
        name, files = os.fspath(path), self._files
        file: MemberFile | TextMemberFile
        if mode == "wb" and encoding is errors is newline is None:
            # Nothing of it has to be looked at.
            file = member = MemberFile(name, mode, False, files)
        else:
            file = open_member(name, mode, files, encoding, errors, newline)
            member = file.buffer if isinstance(file, TextMemberFile) else file  # type: ignore[assignment]
        try:
            files.add(member, target, kept)
            if self not in _open_systems:
                _note_open(self)
            return file  # type: ignore[return-value]
        except BaseException:
            files.forget(member)
            raise

    def pickup(
        self,
        source: StrPath,
        path: StrPath,
        *,
        metadata: Metadata | None = None,
        keep: bool = False,
        on_refused: Callable[[RearError | OSError], object] | None = None,
        escape_names: bool = False,
        one_file_system: bool = False,
    ) -> Pickup:
        """Archive a file or a directory tree made by others, and remove it; `rear_pickup` is this of the innermost
        `rear_fs`.

        Use the result as ``with``: the source is read when the block ends, or call its ``close()``. It is removed
        only once its archived bytes are on stable storage and were read back; time of change and permission bits are
        kept.

        Args:
            source: the file or directory; it need not exist before the block ends.
            path: ``ar.zip/name`` as for `open`; for a directory the folder in the archive, or ``ar.zip/``.
            metadata: as for `open`, of each member.
            keep: copy, and leave the source where it is.
            on_refused: is told of each file below a directory that cannot be archived: a FIFO, a name that no member
                can have, what may not be read. It stays, the rest is archived. Without it one such file is an error.
            escape_names: archive what no name can hold (a control character, a backslash, a byte that is no UTF-8) as
                ``%0A``, in ``path`` and below a directory: see `rear.escape_name`.
            one_file_system: leave out what is mounted below a directory.

        Raises:
            PathError: as for `open`.
            UsageError: the metadata cannot be used.

        On leaving, `SourceError`: the source is missing, is a symbolic link, FIFO or device, or changed while it was
        read.
        """
        # Most programs pick up nothing.
        from rear.core.escaped_names import pickup_target
        from rear.worker.pickup import Pickup

        target = pickup_target(path, escape=escape_names)
        target = Target(self._worker.check_place(target.archive), target.name)
        kept = None if metadata is None else _check_metadata(metadata)

        def sink(file: SourceFile, payload: Payload, on_stable: Callable[[], None] | None) -> None:
            member = Target(target.archive, file.name)
            self._worker.append(member, payload, recorded_time_ns(file.mtime_ns), file.mode, kept, file.path, on_stable)
            self._files.note_written(member)

        return Pickup(
            source,
            target.name,
            method=self._files.method,
            spool_size=self._files.spool_size,
            success_only=self._files.success_only,
            sink=sink,
            keep=keep,
            on_refused=on_refused,
            escape_names=escape_names,
            one_file_system=one_file_system,
        )

    def sync(self) -> None:
        """Return when all files closed so far also survive a loss of power.

        Raises:
            OSError: that is not possible now; they are kept and tried again.
        """
        self._worker.sync()

    def close(self) -> None:
        """Archive files that are still open, and end the temp archive, so that a scavenger takes it at once.

        Where the block of this ``rear_fs`` has failed, files that were never flushed, and whose own blocks have not
        ended, are dropped instead.
        Everything is closed that can be, whatever fails; a second call tries again what the first left undone.

        Raises:
            NotArchivedError: acknowledged files could not be brought to stable storage; it names them.
            OSError: a file that was still open could not be archived.
        """
        self._close(has_failed=False)

    def _close(self, *, has_failed: bool) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._worker.close)
            for file in self._files:
                # An exception that comes as a block is left may come before the first line of `__exit__`.
                is_unwanted = has_failed and self._files.is_unwanted(file)
                stack.callback(file.abandon if is_unwanted else file.close)
        # Only now: after an error or Ctrl-C, the end of the interpreter is another chance.
        _open_systems.discard(self)

    def __enter__(self) -> Self:
        if self._worker.closed:
            raise RearError(f"the rear_fs of {self.base} is closed: make a new one")
        before = entered()
        try:
            self._tokens.append(enter(self))
            if self._install_builtins:
                install_builtins({"rear_open": rear_open, "rear_pickup": rear_pickup})
            return self
        except BaseException:
            if (token := entered()) is not before:
                leave(token, self)
            raise

    def _leave(self) -> bool:
        """Undo one `__enter__`, of this task if there is one, and tell whether it was the last."""
        if self._tokens:
            token = entered()
            if token not in self._tokens:
                token = self._tokens[-1]
            leave(token, self)
            self._tokens = [token for token in self._tokens if not has_left(token)]
            if self._install_builtins:
                remove_builtins()
        return not self._tokens

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._leave():
            self._close_after(error)

    def _close_after(self, error: BaseException | None) -> None:
        try:
            self._close(has_failed=error is not None)
        except (RearError, OSError) as failure:
            if error is None:
                raise
            # Who waits for what the block raised, Ctrl-C or another, is to get it.
            error.add_note(f"and then, on leaving the rear_fs of {self.base}: {failure}")
            tell_error("%s: %s", self.base, failure)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import anyio

        if not self._leave():
            return
        # Closing waits for syncs: not in the event loop; and a cancelled task must still close.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close_after, error)

    def __repr__(self) -> str:
        return f"<rear_fs {self.base!r}>"


def _check_metadata(metadata: Metadata) -> Metadata:
    if not isinstance(metadata, dict):
        raise UsageError(f"metadata is a {type(metadata).__name__}: it has to be a dict")
    try:
        encoded = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"metadata cannot be written as JSON: {error}") from None
    if len(encoded) > METADATA_LIMIT_BYTES:
        raise UsageError(f"metadata takes {len(encoded):,} bytes as JSON, {METADATA_LIMIT_BYTES:,} at most")
    # A copy: the caller may change the dict before the file is closed.
    kept: Metadata = json.loads(encoded)
    if not is_metadata(kept):
        raise UsageError(f"metadata nests more than {METADATA_DEPTH_LIMIT} levels deep")
    return kept


_open_systems: set[RearFs] = set()
"""Those with files of this process that someone has to close."""
_process_noted = False


def _note_open(fs: RearFs) -> None:
    """Have a ``rear_fs`` closed when this process ends."""
    global _process_noted
    _open_systems.add(fs)
    if not _process_noted and "multiprocessing.process" in sys.modules:
        from multiprocessing import process, util

        _process_noted = True
        # Children of multiprocessing leave by os._exit, past atexit, but run their finalizers.
        if process.parent_process() is not None:
            util.Finalize(None, _close_at_child_exit, exitpriority=100)


def _close_at_child_exit() -> None:
    # multiprocessing waits for other threads too, but only afterwards, and they may still write.
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    _close_open_systems()


def _close_open_systems() -> None:
    for fs in list(_open_systems):
        try:
            fs.close()
        except Exception as error:
            # One that fails must not keep the others from being closed.
            tell_error("%s: %s", fs.base, error)


def _begin_process() -> None:
    global _process_noted
    _process_noted = False
    _open_systems.clear()


atexit.register(_close_open_systems)
os.register_at_fork(after_in_child=_begin_process)

rear_fs = RearFs


def rear_open(
    path: StrPath,
    mode: str = "w",
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    metadata: Metadata | None = None,
) -> IO[Any]:
    """Open ``ar.zip/path/to/file`` in the innermost `rear_fs`: see `RearFs.open`.

    Raises:
        NoContextError: outside any ``with rear_fs(base):``.
    """
    system: RearFs = current()
    return system._open(path, mode, encoding, errors, newline, metadata)


def rear_pickup(
    source: StrPath,
    path: StrPath,
    *,
    metadata: Metadata | None = None,
    keep: bool = False,
    on_refused: Callable[[RearError | OSError], object] | None = None,
    escape_names: bool = False,
    one_file_system: bool = False,
) -> Pickup:
    """Move a file made by others into ``ar.zip/name`` of the innermost `rear_fs` when the block ends: see
    `RearFs.pickup`.

    Raises:
        NoContextError: outside any ``with rear_fs(base):``.
    """
    system: RearFs = current()
    names = {"escape_names": escape_names, "one_file_system": one_file_system}
    return system.pickup(source, path, metadata=metadata, keep=keep, on_refused=on_refused, **names)
