"""The intent: undo and redo record of one merge into one final archive.

The file holds, in this order: a ``begin`` record, the bytes of the archive from its old central directory to its end,
verbatim (nothing for an archive that did not exist), ``moves`` records that say which member of which temp archive
goes where, a ``planned`` record, and, once the merge is on stable storage, a ``commit`` record. All records are lines
as in a journal. The file gets its name when all up to ``planned`` is on stable storage; until then the archive is
untouched. See ``docs/reference/format.md``.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from rear.core.descent import status_of
from rear.core.layout import Layout
from rear.core.liveness import Process, decode_process
from rear.core.names import check_archive
from rear.core.storage import COPY_CHUNK_BYTES, LOCAL, PRIVATE_MODE, Storage, StrPath, opened
from rear.core.trust import counts_for_archive
from rear.errors import FutureVersionError, JournalError, PathError, UnfinishedIntentError
from rear.journal.codec import decode_line, encode_line
from rear.journal.reader import read_lines
from rear.journal.writer import JournalWriter
from rear.zip.codecs import crc32
from rear.zip.directory import Directory

FORMAT_VERSION: Final = 2
"""What is read. Written is 1, or 2 when an executor copies: who undoes that has to know what
`rear.scavenger.copy_tasks` says."""
UNFINISHED_SUFFIX: Final = ".planning"
_MOVES_A_RECORD: Final = 500
_LONG_NAME: Final = 256
_MOVES_LIMIT: Final = 250_000
"""A round of a scavenge has fewer members; what has more was not written by one."""
_HOLES_BYTES: Final = 64 << 20
_POSITION_LIMIT: Final = 1 << 62  # no file is longer, and the operating system takes what is computed from it


class Move(NamedTuple):
    """One member's way: sequence number in its temp archive, name and place in the final archive.

    ``target_end`` equals ``target_start`` for a member whose content was there already: nothing was copied.
    """

    pair: str
    sequence: int
    name: str
    target_start: int
    target_end: int


@dataclass(slots=True)
class Intent:
    """What an intent file says."""

    archive: str
    leader: str
    old: Directory | None
    tail_start: int
    tail_length: int
    tail_crc: int
    planned: bool = False
    committed: bool = False
    moves: list[Move] = field(default_factory=list)
    process: Process | None = None


class Begin(NamedTuple):
    """What the first record of an intent says of a merge.

    ``archive`` is relative to the base, ``leader`` who merges, in ``process``; ``old`` is where the archive's directory
    stands, ``None`` when there is no archive yet. ``permit`` is the name of the file without which no executor copies
    for this merge; ``None`` when none does.
    """

    archive: str
    leader: str
    old: Directory | None
    process: Process | None = None
    permit: str | None = None


def write_intent(
    path: Path, begin: Begin, moves: Iterable[Move], *, archive_descriptor: int | None, storage: Storage = LOCAL
) -> JournalWriter:
    """Write an intent up to its ``planned`` record and bring it to stable storage; return its open file for the commit.

    Args:
        path: of the intent; its folder exists, the file does not.
        begin: what its first record says.
        moves: what is to be merged.
        archive_descriptor: the open archive, for the bytes to keep; ``None`` with ``begin.old``.
        storage: the file system.

    Raises:
        OSError: it could not be written; the archive is untouched.
    """
    archive, leader, old, process, permit = begin
    written = path.with_suffix(UNFINISHED_SUFFIX)
    descriptor = storage.create(written, PRIVATE_MODE)
    try:
        tail_length = old.archive_length - old.offset if old else 0
        tail_crc = (
            _tail_crc(archive_descriptor, old.offset, tail_length, storage)
            if old and archive_descriptor is not None
            else 0
        )
        writer = JournalWriter(descriptor, storage=storage)
        record = {
            "kind": "begin",
            "format_version": 1 if permit is None else 2,
            "archive": archive,
            "leader": leader,
            "process": None if process is None else process._asdict(),
            "old": _encode_directory(old),
            "tail_length": tail_length,
            "tail_crc": tail_crc,
            **({} if permit is None else {"permit": permit}),
        }
        writer.write(encode_line(record))
        if old is not None and archive_descriptor is not None:
            storage.copy_range(
                archive_descriptor, descriptor, source_start=old.offset, target_start=writer.length, length=tail_length
            )
            writer.length += tail_length
        for line in _encode_moves(moves):
            writer.write(line)
        writer.write(encode_line({"kind": "planned"}))
        writer.sync()
        storage.rename(written, path)
        written = path
        storage.sync_directory(path.parent)
        return writer
    except BaseException:
        void_intent(descriptor, storage=storage)
        storage.close(descriptor)
        with contextlib.suppress(OSError):
            storage.unlink(written)
        raise


def void_intent(descriptor: int, *, storage: Storage = LOCAL) -> None:
    """Have an open intent say nothing any more; call it before its name is removed.

    Somebody may have renamed it meanwhile, and would bring it back: readers were shown the old directory again.
    """
    with contextlib.suppress(OSError):
        storage.truncate(descriptor, 0)


def commit_intent(writer: JournalWriter) -> None:
    """Write the ``commit`` record and bring it to stable storage: from here on the merge is only ever completed."""
    writer.write(encode_line({"kind": "commit"}))
    writer.sync()


def _tail_crc(descriptor: int, start: int, length: int, storage: Storage) -> int:
    crc, position, end = 0, start, start + length
    while position < end:
        data = storage.read(descriptor, min(COPY_CHUNK_BYTES, end - position), position)
        if not data:
            break
        crc = crc32(data, crc)
        position += len(data)
    return crc


def _encode_directory(directory: Directory | None) -> dict[str, Any] | None:
    if directory is None:
        return None
    return {
        "archive_length": directory.archive_length,
        "offset": directory.offset,
        "length": directory.length,
        "entries": directory.entries,
        "prefix": directory.prefix,
        "comment": directory.comment.hex(),
    }


def _encode_moves(moves: Iterable[Move]) -> Iterator[bytes]:
    for pair, group in groupby(moves, itemgetter(0)):
        members = [move[1:] for move in group]
        # A line has a longest length.
        is_long = max(len(name) for _, name, _, _ in members) > _LONG_NAME
        at_once = 1 if is_long else _MOVES_A_RECORD
        for start in range(0, len(members), at_once):
            yield encode_line({"kind": "moves", "pair": pair, "members": members[start : start + at_once]})


def intents_of(layout: Layout, archive: str, *, storage: Storage = LOCAL) -> list[Path]:
    """Return the intents that count of merges into a final archive, by whomever.

    Raises:
        PathError: ``archive`` is no path of a final archive.
    """
    stem = layout.intent(archive).stem
    names = storage.names(layout.intents)
    found = [layout.intents / name for name in names if name.startswith(stem) and name.endswith(".intent")]
    return [path for path in found if _counts_by_name(path, layout.archive(archive))]


def _counts_by_name(path: Path, archive: Path) -> bool:
    try:
        status = status_of(path)
        return stat.S_ISREG(status.st_mode) and counts_for_archive(status, path, archive)
    except OSError:
        # What cannot be looked at may be a merge under way.
        return True


def read_intent(path: StrPath, *, storage: Storage = LOCAL) -> Intent:
    """Read an intent; one that was not finished has ``planned`` false, and its archive is untouched.

    Raises:
        UnfinishedIntentError: not even its first record is there.
        JournalError: it is damaged, or names a path outside the base.
        FutureVersionError: a newer rear wrote it.
        OSError: it cannot be read.
    """
    with opened(path, storage) as descriptor:
        return read_open_intent(descriptor, storage=storage)


def read_open_intent(descriptor: int, *, storage: Storage = LOCAL) -> Intent:
    """Read an open intent; otherwise as `read_intent`."""
    intent = read_begin(descriptor, storage=storage)
    for _, line, complete in read_lines(descriptor, storage=storage, start=intent.tail_start + intent.tail_length):
        if not complete or not _take(intent, line):
            break
    if intent.planned:
        _check_tail(descriptor, intent, storage)
    return intent


def read_begin(descriptor: int, *, storage: Storage = LOCAL) -> Intent:
    """Read the first record of an open intent.

    Raises:
        UnfinishedIntentError: not even that is there.
        JournalError, FutureVersionError, OSError: as `read_intent`.
    """
    try:
        _, line, complete = next(read_lines(descriptor, storage=storage))
    except StopIteration:
        raise UnfinishedIntentError("the intent is empty") from None
    if not complete:
        raise UnfinishedIntentError("the first record of the intent is torn")
    return _decode_begin(decode_line(line), len(line) + 1)


def _decode_begin(payload: dict[str, Any], tail_start: int) -> Intent:
    if payload.get("kind") != "begin":
        raise JournalError("not an intent")
    version = payload.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FutureVersionError(f"intent of format version {version}, this rear knows up to {FORMAT_VERSION}")
    try:
        old = payload["old"]
        directory = None
        if old is not None:
            numbers = [old[key] for key in ("archive_length", "offset", "length", "entries", "prefix")]
            length, offset, directory_length, entries, prefix = map(int, numbers)
            directory = Directory(length, offset, directory_length, entries, prefix, bytes.fromhex(old["comment"]))
            positions_fit = directory.offset + directory.length <= directory.archive_length <= _POSITION_LIMIT
            if not positions_fit or min(numbers) < 0:
                raise JournalError("impossible positions in an intent")
        archive, leader = payload["archive"], payload["leader"]
        tail_length, tail_crc = int(payload["tail_length"]), int(payload["tail_crc"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise JournalError(f"an intent without {error}") from None
    if not isinstance(archive, str):
        raise JournalError(f"an intent for {archive!r:.80}")
    try:
        check_archive(archive)
    except PathError as error:
        raise JournalError(f"an intent for no archive of this base: {error}") from None
    if tail_length != (directory.archive_length - directory.offset if directory else 0):
        raise JournalError("the lengths in an intent contradict each other")
    process = payload.get("process")
    return Intent(
        archive,
        str(leader),
        directory,
        tail_start,
        tail_length,
        tail_crc,
        process=decode_process(process) if isinstance(process, dict) else None,
    )


def _check_tail(descriptor: int, intent: Intent, storage: Storage) -> None:
    if storage.is_mostly_holes(descriptor, _HOLES_BYTES):
        raise JournalError("a sparse file that is nearly nothing but holes")
    if _tail_crc(descriptor, intent.tail_start, intent.tail_length, storage) != intent.tail_crc:
        raise JournalError(f"the kept directory of {intent.archive} does not pass its checksum")


def _take(intent: Intent, line: bytes) -> bool:
    """Add one record; false ends the reading: what follows a damaged record was never on stable storage."""
    try:
        payload = decode_line(line)
    except JournalError:
        return False
    match payload.get("kind"):
        case "moves":
            moves = _decode_moves(payload)
            if moves is None:
                return False
            intent.moves += moves
            if len(intent.moves) > _MOVES_LIMIT:
                raise JournalError(f"an intent of more than {_MOVES_LIMIT:,} members")
        case "planned":
            intent.planned = True
        case "commit":
            intent.committed = intent.planned
    return True


def _decode_moves(payload: dict[str, Any]) -> list[Move] | None:
    pair, members = payload.get("pair"), payload.get("members")
    if not isinstance(pair, str) or not isinstance(members, list):
        return None
    moves = []
    for member in members:
        match member:
            case [int(sequence), str(name), int(start), int(end)]:
                moves.append(Move(pair, sequence, name, start, end))
            case _:
                return None
    return moves
