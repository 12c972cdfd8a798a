"""Copies of one merge that an executor does, and the fence around them.

A task may still be running, somewhere that cannot be seen from here, when the leader has given it up. After a commit
that does no harm: it writes the same bytes to the same place once more. After an undo it would write over the old
directory. So nobody copies for a leader without two files beside the intent:

* the *permit*, made by the leader once its intent stands and removed before anything is undone. Its name is random.
* a *registration*, made by each task before it looks for the permit, and removed when its bytes are synced. It names
  the process.

A task that finds no permit, or no intent, writes nothing. Who undoes removes the permit first and looks for
registrations then: of a task that found the permit, the registration was there before. Both look by listing the
folder, after they have changed it themselves, which is what network file systems answer truthfully. Where a
registration stays, of a process that is not known to be gone, the archive gets a new inode.

The leader itself copies everything outside of whole blocks of 1 MiB, counted in the target, because a network file
system may write a page back as a whole: nobody shares one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from rear.core.liveness import Process, decode_process, is_running, this_process
from rear.core.parallel import TASK_BYTES, TASK_MEMBERS, Identity, Parallel, open_checked
from rear.core.storage import Storage, created, opened
from rear.errors import JournalError
from rear.journal.codec import decode_line, encode_line

PERMIT_SUFFIX: Final = ".permit"
REGISTRATION_SUFFIX: Final = ".copying"
BLOCK_BYTES = 1 << 20
"""No two tasks write to one block of this length, nor does the leader write to a block of a task."""
WITHDRAWAL_SECONDS = 5.0
"""So long the undo of a merge waits for copies that are under way."""
_LOOK_AGAIN_BYTES: Final = 16 << 20
_POLL_SECONDS: Final = 0.05
_RECORD_LIMIT_BYTES: Final = 4096
_INLINE_BYTES: Final = 1 << 20


class Piece(NamedTuple):
    """Bytes on their way: ``length`` of them from ``source_start`` of a file, or of ``data`` itself.

    ``identity`` is that of the file when it was checked.
    """

    source: str | bytes
    source_start: int
    target_start: int
    length: int
    identity: Identity | None = None

    @property
    def target_end(self) -> int:
        """Where the next piece begins."""
        return self.target_start + self.length


class CopyTask(NamedTuple):
    """Whole blocks of one final archive, and what goes into them.

    Args:
        permit: path of the permit of the merge.
        target: path of the archive, or of the new file that is to become it.
        inode: number of that file.
        pieces: in the order of their targets, without gaps.
    """

    permit: str
    target: str
    inode: int
    pieces: tuple[Piece, ...]

    @property
    def length(self) -> int:
        """How many bytes are copied."""
        return sum(piece.length for piece in self.pieces)


# ---- the leader's side


def new_permit(intent_path: Path) -> Path:
    """Return a path for the permit of a merge; the file is still to be made."""
    return intent_path.with_name(f"{intent_path.stem}-{secrets.token_hex(8)}{PERMIT_SUFFIX}")


def copy_on_executor(
    pieces: Iterable[Piece], *, permit: Path, target: Path, descriptor: int, parallel: Parallel, storage: Storage
) -> Iterator[int]:
    """Copy all pieces, whole blocks of them on an executor; yield how many bytes each step has copied.

    When it ends, all that tasks have copied is on stable storage; what was copied here is not yet.

    Pieces are in the order of their targets, without gaps; the file of the permit exists.

    Raises:
        OSError: something could not be copied here, either.
    """
    inode = os.fstat(descriptor).st_ino
    remainders: list[Piece] = []

    def tasks() -> Iterator[CopyTask]:
        for batch in batches(pieces, remainders):
            yield CopyTask(os.fspath(permit), os.fspath(target), inode, tuple(batch))

    def here(task: CopyTask) -> int:
        return copy_pieces(task.pieces, descriptor, storage=storage)

    for _, copied in parallel.run(copy_for_leader, tasks(), here=here):
        yield copied
    yield copy_pieces(remainders, descriptor, storage=storage)


def batches(pieces: Iterable[Piece], remainders: list[Piece]) -> Iterator[list[Piece]]:
    """Yield whole blocks, as many as make a task; what lies before the first and after the last whole block remains.

    Pieces are in the order of their targets, without gaps; ``remainders`` gets what is no whole block.
    """
    batch: list[Piece] = []
    block: list[Piece] = []
    length = inline = 0
    for piece in _cut_at_blocks(pieces):
        if piece.target_start % BLOCK_BYTES and not block:
            remainders.append(piece)
            continue
        block.append(piece)
        if piece.target_end % BLOCK_BYTES:
            continue
        added = sum(one.length for one in block if isinstance(one.source, bytes))
        is_full = length >= TASK_BYTES or len(batch) + len(block) > TASK_MEMBERS or inline + added > _INLINE_BYTES
        if batch and is_full:
            yield batch
            batch, length, inline = [], 0, 0
        for one in block:
            _append_joined(batch, one)
        length, inline, block = length + BLOCK_BYTES, inline + added, []
    if batch:
        yield batch
    remainders += block


def _cut_at_blocks(pieces: Iterable[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        done = 0
        while done < piece.length:
            source_start, target_start = piece.source_start + done, piece.target_start + done
            length = min(piece.length - done, BLOCK_BYTES - target_start % BLOCK_BYTES)
            yield Piece(piece.source, source_start, target_start, length, piece.identity)
            done += length


def _append_joined(batch: list[Piece], piece: Piece) -> None:
    """Append a piece, or make the last one longer: a run of members is one call, which a server may do by itself."""
    last = batch[-1] if batch else None
    if last is not None and last.source == piece.source and last.source_start + last.length == piece.source_start:
        batch[-1] = last._replace(length=last.length + piece.length)
    else:
        batch.append(piece)


def withdraw(intent_path: Path, *, storage: Storage) -> bool:
    """Forbid all copies of a merge, and wait for those under way; return whether one may still be written.

    Call it before anything is undone, whoever led the merge.

    Raises:
        OSError: the permit cannot be removed.
    """
    folder = intent_path.parent
    for name in names_of(intent_path, storage=storage):
        if name.endswith(PERMIT_SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                storage.unlink(folder / name)
    deadline = storage.uptime() + WITHDRAWAL_SECONDS
    while True:
        registered = [name for name in names_of(intent_path, storage=storage) if name.endswith(REGISTRATION_SUFFIX)]
        if not any(_may_write(folder / name, storage) for name in registered):
            return False
        if storage.uptime() > deadline:
            return True
        time.sleep(_POLL_SECONDS)


def names_of(intent_path: Path, *, storage: Storage) -> list[str]:
    """Return the names of the permit and the registrations of one merge; the intent itself may be gone."""
    names = storage.names(intent_path.parent)
    return [name for name in names if intent_stem_of(name) == intent_path.stem]


def intent_stem_of(name: str) -> str | None:
    """Return the stem of the intent that a permit or a registration belongs to, ``None`` for other names."""
    stem, _, suffix = name.rpartition(".")
    parts = {PERMIT_SUFFIX[1:]: 1, REGISTRATION_SUFFIX[1:]: 2}.get(suffix)
    return None if parts is None else stem.rsplit("-", parts)[0]


def _may_write(path: Path, storage: Storage) -> bool:
    process = _registered(path, storage)
    return process is None or is_running(process) is not False


def _registered(path: Path, storage: Storage) -> Process | None:
    """Return the process that a registration names; ``None`` when that cannot be read."""
    try:
        with opened(path, storage) as descriptor:
            record = storage.read(descriptor, _RECORD_LIMIT_BYTES, 0)
        return decode_process(decode_line(record.removesuffix(b"\n")))
    except (JournalError, OSError):
        return None


# ---- the task's side


def copy_for_leader(task: CopyTask, storage: Storage) -> int:
    """Copy and sync what a task says, if its merge still wants it; return how many bytes that was.

    Raises:
        OSError: not all of it was copied. With ``ECANCELED``: the merge is over, or the file another one.
    """
    permit = Path(task.permit)
    registration = permit.with_name(f"{permit.stem}-{secrets.token_hex(8)}{REGISTRATION_SUFFIX}")
    needed = {permit.name, f"{intent_stem_of(permit.name)}.intent"}
    _register(registration, storage)
    is_settled = True
    try:
        with opened(task.target, storage, write=True) as target:
            if os.fstat(target).st_ino != task.inode:
                raise OSError(errno.ECANCELED, "another file than the one that is merged into", task.target)
            try:
                for pieces in _steps(task.pieces):
                    # Only now: so the file that is open is the one of a merge that is not undone yet.
                    if not needed <= set(storage.names(permit.parent)):
                        raise OSError(errno.ECANCELED, "the merge is over", task.target)
                    is_settled = False
                    copy_pieces(pieces, target, storage=storage)
            finally:
                if not is_settled:
                    storage.sync(target)
                    is_settled = True
    finally:
        # Of what was not synced nobody knows when it reaches the file: then the registration stays.
        if is_settled:
            with contextlib.suppress(OSError):
                storage.unlink(registration)
    return task.length


def _register(path: Path, storage: Storage) -> None:
    with created(path, storage) as descriptor:
        storage.write(descriptor, [encode_line({"kind": "copying", **this_process()._asdict()})], 0)
        storage.sync(descriptor)
    storage.sync_directory(path.parent)


def _steps(pieces: tuple[Piece, ...]) -> Iterator[list[Piece]]:
    """Cut a task into steps of about 16 MiB, so that it notices soon that nobody wants it any more."""
    step: list[Piece] = []
    length = 0
    for piece in pieces:
        step.append(piece)
        length += piece.length
        if length >= _LOOK_AGAIN_BYTES:
            yield step
            step, length = [], 0
    if step:
        yield step


def copy_pieces(pieces: Iterable[Piece], target: int, *, storage: Storage) -> int:
    """Copy pieces to an open file; return how many bytes that was.

    Raises:
        OSError: that failed; doing it again is possible.
    """
    return sum(copying(pieces, target, storage=storage))


def copying(pieces: Iterable[Piece], target: int, *, storage: Storage) -> Iterator[int]:
    """Copy pieces to an open file, and yield the length of each; errors are those of `copy_pieces`."""
    path: str | None = None
    source = -1
    try:
        for piece in pieces:
            if isinstance(piece.source, bytes):
                end = piece.source_start + piece.length
                storage.write(target, [piece.source[piece.source_start : end]], piece.target_start)
            else:
                if piece.source != path:
                    if path is not None:
                        storage.close(source)
                        path = None
                    source = open_checked(piece.source, piece.identity, storage)
                    path = piece.source
                storage.copy_range(
                    source,
                    target,
                    source_start=piece.source_start,
                    target_start=piece.target_start,
                    length=piece.length,
                )
            yield piece.length
    finally:
        if path is not None:
            storage.close(source)
