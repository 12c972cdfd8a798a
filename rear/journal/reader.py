"""Reads a journal: whole, at both ends, or what a scavenger noted beside it.

A reader goes on after the next newline when a line is damaged. A last line without newline is *torn*: its writer died
there, and that is normal; any other line that fails its checksum is *damage*, reported in bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from operator import itemgetter
from sys import getsizeof
from typing import Final, NamedTuple

from rear.core.records import Abort, Append, Beat, Close, File, MergedRecord, Open, Part, Record, partial_of
from rear.core.storage import LOCAL, Storage, StrPath, close_read
from rear.errors import FutureVersionError, JournalError
from rear.journal.append_lines import parse_appends
from rear.journal.codec import SHORTEST_LINE, decode_line, decode_record

MEMBERS_LIMIT: Final = 120_000
"""No pair has as many: a worker ends one at 4 MiB of central directory (see `rear.worker.worker`), of which each member
takes 47 bytes at least. What has more is forged, and would take memory without bound."""
HELD_LIMIT_BYTES: Final = 128 << 20
"""So much memory the texts of one file of records may take. A worker ends its pair long before: see
`rear.worker.pair_writer`."""
_NOTES_HELD_BYTES: Final = 64 << 20
_NOTED_LIMIT: Final = 4 * MEMBERS_LIMIT
"""Each member is noted once, or again after a crash."""
NOTES_LIMIT_BYTES: Final = 2 << 30
"""Longer notes are forged: each member is noted once, with the path of an archive or of an item in lost+found."""
BAD_LINES_LIMIT: Final = 10_000
"""Nothing is looked for behind so many lines that are no records: a loss of power leaves zeros, which are one line."""
_LONG_LINE_COUNTS: Final = 100
"""For so many of them counts what is longer than any line: garbage without end is read for 200 MiB."""
LINE_LIMIT_BYTES: Final = 2 << 20
"""Longer lines are damage: name and metadata at their limits, every character escaped, stay below this."""
SKIM_BYTES: Final = 16 << 10
"""So much is read of each end of a journal to see whose it is and how far it is."""
_READ_BYTES: Final = 128 << 10
_NUMBER_BYTES: Final = 32
_MEMBER_BYTES: Final = 1_000
_texts_of: Final = itemgetter(*map(Append._fields.index, ("source", "archive", "name")))
_sequence_of: Final = itemgetter(Append._fields.index("sequence"))


class Damage(NamedTuple):
    """Bytes of a file of records that are no record."""

    start: int
    length: int
    reason: str


def read_lines(descriptor: int, *, storage: Storage = LOCAL, start: int = 0) -> Iterator[tuple[int, bytes, bool]]:
    """Yield ``(offset, line, complete)`` of a file, with bounded memory; ``complete`` is false for a last line
    without newline.

    A line over `LINE_LIMIT_BYTES` comes in pieces, each incomplete or no record.
    """
    for offset, lines, complete, _, _ in _read_many_lines(descriptor, storage, start):
        for line in lines:
            yield offset, line, complete
            offset += len(line) + 1


class _Lines(NamedTuple):
    """Complete lines that follow each other, or one that is not complete, or none: a hole of the file."""

    offset: int
    lines: list[bytes]
    complete: bool
    #: A character may take more than one byte of memory.
    is_wide: bool = False
    hole_bytes: int = 0


def _read_many_lines(descriptor: int, storage: Storage, start: int) -> Iterator[_Lines]:
    """Yield what `read_lines` does, many complete lines at once, with the offset of the first; holes are not read."""
    pending, offset, position = b"", start, start
    while data := storage.read(descriptor, _READ_BYTES, position):
        position += len(data)
        if not data[0] and not data.strip(b"\0"):
            beyond = storage.next_data(descriptor, position)
            if beyond > position:
                yield _Lines(offset, [pending + data], False)
                yield _Lines(position, [], False, hole_bytes=beyond - position)
                pending, offset, position = b"", beyond, beyond
                continue
        if end := data.rfind(b"\n") + 1:
            block, pending = pending + data[:end], data[end:]
            yield _Lines(offset, block[:-1].split(b"\n"), True, not block.isascii() or b"\\" in block)
            offset += len(block)
        else:
            pending += data
        if len(pending) > LINE_LIMIT_BYTES:
            yield _Lines(offset, [pending], False)
            offset += len(pending)
            pending = b""
    if pending:
        yield _Lines(offset, [pending], False)


class Journal:
    """What one journal says, after all its records were read."""

    __slots__ = (
        "aborted",
        "appends",
        "beats",
        "closed",
        "damage",
        "file",
        "flushed",
        "held_bytes",
        "lacks_file",
        "length",
        "merged",
        "notes_status",
        "opened",
        "status",
        "torn",
    )

    def __init__(self, opened: Open | None = None) -> None:
        self.opened = opened
        self.closed: Close | None = None
        self.appends: dict[int, Append] = {}
        self.file: File | None = None
        #: The file as far as it was flushed; among ``appends`` until the record comes that it is complete.
        self.flushed: Append | None = None
        #: Parts are here, and not the record of which file they are.
        self.lacks_file = False
        self.aborted: set[int] = set()
        self.merged: dict[int, MergedRecord] = {}
        self.beats = 0
        #: About so much memory its texts take, with the metadata of its members.
        self.held_bytes = 0
        self.damage: list[Damage] = []
        self.torn: Damage | None = None
        self.length = 0
        #: Of the file that was read: its owner is the pair's writer, whatever it says.
        self.status: os.stat_result | None = None
        #: Of the file with notes beside it, when there was one.
        self.notes_status: os.stat_result | None = None

    @property
    def weight(self) -> int:
        """How many usual members take about as much memory."""
        return max(len(self.appends), self.held_bytes // _MEMBER_BYTES)

    def pending(self) -> list[Append]:
        """Members that are neither aborted nor merged, in the order in which they were written."""
        return [
            append
            for sequence, append in self.appends.items()
            if sequence not in self.aborted and sequence not in self.merged
        ]

    def take_appends(self, appends: list[Append]) -> None:
        """Add many records of members."""
        self.appends.update(zip(map(_sequence_of, appends), appends, strict=True))

    def take(self, record: Record) -> None:
        """Add one record."""
        if type(record) is Append:
            self.appends[record.sequence] = record
            return
        match record:
            case Part() if self.file is not None:
                self.flushed = self.appends[self.file.sequence] = partial_of(self.file, record)
            case Part():
                self.lacks_file = True
                raise JournalError("a part of no file")
            case File() if self.file is None:
                self.file = record
            case File():
                raise JournalError("a second file record")
            case Beat():
                self.beats = max(self.beats, record.number)
            case Abort():
                self.aborted.add(record.sequence)
            case MergedRecord():
                self.merged.update(dict.fromkeys(record.sequences, record))
            case Close():
                self.closed = record
            case Open() if self.opened is None:
                self.opened = record
            case Open():
                raise JournalError("a second open record")

    def take_damage(self, damage: Damage) -> None:
        """Add a damaged line; damage without a gap is one."""
        before = self.damage[-1] if self.damage else None
        if before is not None and before.start + before.length == damage.start:
            self.damage[-1] = before._replace(length=before.length + damage.length)
        else:
            self.damage.append(damage)

    def take_torn(self, start: int, length: int) -> None:
        """Add a line without newline, or the next piece of one that is longer than any record."""
        before = self.torn
        if before is not None and before.start + before.length == start:
            start, length = before.start, before.length + length
        self.torn = Damage(start, length, "torn: no newline")

    def take_hole(self, start: int, length: int) -> None:
        """Add a hole of the file, with the zeros right before it."""
        torn, self.length = self.torn, start + length
        if torn is not None and torn.start + torn.length == start:
            start, length, self.torn = torn.start, torn.length + length, None
        self.take_damage(Damage(start, length, "a hole in the file"))

    def end_at(self, length: int) -> None:
        """Count all as damage from the last damage to the end of the file, which has that length."""
        last = self.damage.pop() if self.damage else self.torn
        assert last is not None
        self.damage.append(last._replace(length=length - last.start))
        self.length, self.torn = length, None


def read_journal(path: StrPath, *, held_bytes: int = HELD_LIMIT_BYTES, storage: Storage = LOCAL) -> Journal:
    """Read a journal to its end; damage is noted, not raised.

    Args:
        path: the journal.
        held_bytes: how much memory its texts may take.
        storage: the file system.

    Raises:
        FutureVersionError: a newer rear wrote it.
        JournalError: it tells of more members than a pair can have, or of more than a worker writes of them.
        OSError: it cannot be read.
    """
    descriptor = storage.open(path)
    try:
        status = os.fstat(descriptor)
        parser = _Parser(status.st_size)
        for block in _read_many_lines(descriptor, storage, 0):
            if not parser.take(block):
                break
            parser.check_bounds(held_bytes)
        journal = parser.finished()
        journal.status = status
        return journal
    finally:
        close_read(descriptor, storage)


def read_notes(path: StrPath, *, storage: Storage = LOCAL) -> Journal:
    """Read what scavengers noted beside a journal; a journal of nothing when they noted nothing.

    Raises:
        JournalError: as of `read_journal`.
        OSError: the file is there and cannot be read.
    """
    try:
        notes = read_journal(path, held_bytes=_NOTES_HELD_BYTES, storage=storage)
    except FileNotFoundError:
        return Journal()
    if notes.length > NOTES_LIMIT_BYTES:
        # Nothing could be noted behind it: a file has a longest length.
        raise JournalError(f"notes of {notes.length:,} bytes, which no scavenger writes")
    return notes


def skim_journal(path: StrPath, *, tail_bytes: int = SKIM_BYTES, storage: Storage = LOCAL) -> Journal:
    """Read only the ends of a journal: who writes it, whether it is of one file, whether it is closed, its length, and
    its first and last members.

    Args:
        path: the journal.
        tail_bytes: how much is read of its end.
        storage: the file system.

    Raises:
        FutureVersionError: a newer rear wrote it.
        OSError: it cannot be read.
    """
    descriptor = storage.open(path)
    try:
        parser, last = _Parser(None), -1
        size = storage.size(descriptor)
        start = max(0, size - tail_bytes)
        if start:
            # The tail begins within a line, and may begin among the first ones.
            last = start
            for line in _first_lines(storage.read(descriptor, SKIM_BYTES, 0)):
                parser.take_line(*line)
                last = max(last, line[0])
        for block in _read_many_lines(descriptor, storage, start):
            offset, lines, complete, _, _ = block
            if not complete:
                # Also where it began before the tail: that it is there, and grows, is a sign of life.
                parser.take(block)
                continue
            while lines and offset <= last:
                offset += len(lines.pop(0)) + 1
            parser.take_lines(offset, lines)
        journal = parser.finished()
        journal.length = max(journal.length, size)
        return journal
    finally:
        close_read(descriptor, storage)


def _first_lines(head: bytes) -> list[tuple[int, bytes, bool]]:
    """Return the lines of a journal up to its first member, as `read_lines` does."""
    lines: list[tuple[int, bytes, bool]] = []
    offset = 0
    for line in head.split(b"\n")[:-1]:
        lines.append((offset, line, True))
        offset += len(line) + 1
        if line.startswith(b'{"kind":"append"', 9):
            break
    return lines


def parse_journal(lines: Iterable[tuple[int, bytes, bool]], length: int | None = None) -> Journal:
    """Build a journal from lines as `read_lines` yields them.

    Args:
        lines: of the file.
        length: of the file in bytes, where it is known: then a long stretch without any record ends the reading.
    """
    parser = _Parser(length)
    for line in lines:
        if not parser.take_line(*line):
            break
    return parser.finished()


def _is_too_short(line: bytes) -> bool:
    return len(line) < SHORTEST_LINE


class _Parser:
    """Builds a journal from its lines; see `parse_journal`."""

    def __init__(self, length: int | None) -> None:
        self._journal = Journal()
        self._length = length
        self._bad_lines = self._noted = 0
        self._is_wide = False

    def take(self, block: _Lines) -> bool:
        """Take what was read at once; false ends the reading."""
        if block.complete:
            self._is_wide = block.is_wide
            return self.take_lines(block.offset, block.lines)
        if block.lines:
            return self.take_line(block.offset, block.lines[0], False)
        self._journal.take_hole(block.offset, block.hole_bytes)
        return True

    def check_bounds(self, held_bytes: int) -> None:
        """Refuse a journal, or notes, of more members than a pair can have, or of texts that take more memory.

        Raises:
            JournalError: so it is.
        """
        journal = self._journal
        if max(len(journal.appends), len(journal.merged), len(journal.aborted)) > MEMBERS_LIMIT:
            raise JournalError(f"more than {MEMBERS_LIMIT:,} members, which no temp archive has")
        if journal.held_bytes > held_bytes or self._noted > _NOTED_LIMIT:
            raise JournalError("more names, paths and metadata than a worker writes into one journal")

    def take_line(self, offset: int, line: bytes, complete: bool) -> bool:
        """Take one line, as `read_lines` yields it; false ends the reading."""
        journal = self._journal
        if self._length is not None and not self._may_go_on():
            journal.end_at(self._length)
            return False
        journal.length = offset + len(line) + complete
        if not complete:
            journal.take_torn(offset, len(line))
            self._bad_lines += _LONG_LINE_COUNTS if len(line) > LINE_LIMIT_BYTES else 1
            return True
        if journal.torn is not None:
            journal.take_damage(journal.torn._replace(reason="a line that is longer than any record"))
            journal.torn = None
        try:
            record = decode_record(decode_line(line))
            if offset and isinstance(record, Open):
                # What stands before it somebody else may have written: a member that looks like a journal is none.
                raise JournalError("an open record that is not the first one")
            if record is not None:
                journal.take(record)
                self._count(record, len(line))
            self._bad_lines = 0
        except FutureVersionError:
            raise
        except JournalError as error:
            journal.take_damage(Damage(offset, len(line) + 1, str(error)))
            self._bad_lines += 1
        return True

    def take_lines(self, offset: int, lines: list[bytes]) -> bool:
        """Take many complete lines, most of them append records; false ends the reading."""
        if min(map(len, lines), default=SHORTEST_LINE) >= SHORTEST_LINE:
            return self._take_lines(offset, lines)
        # Newlines are the garbage that is cheapest to write: it has to be cheap to read.
        for is_garbage, group in groupby(lines, _is_too_short):
            some = list(group)
            length = sum(map(len, some)) + len(some)
            if not is_garbage or not self._may_go_on():
                if not self._take_lines(offset, some):
                    return False
            else:
                self._journal.take_damage(Damage(offset, length, "not a record"))
                self._journal.length, self._bad_lines = offset + length, self._bad_lines + len(some)
            offset += length
        return True

    def _may_go_on(self) -> bool:
        return self._length is None or max(self._bad_lines, len(self._journal.damage)) < BAD_LINES_LIMIT

    def _count(self, record: Record, length: int) -> None:
        """Count what a record of a line of that length takes of the memory."""
        if isinstance(record, MergedRecord):
            self._noted += len(record.sequences)
            length = _NUMBER_BYTES * len(record.sequences) + sum(map(getsizeof, record))
        elif self._is_wide:
            length = sum(map(getsizeof, record))
        self._journal.held_bytes += length

    def _take_lines(self, offset: int, lines: list[bytes]) -> bool:
        for run, appends in parse_appends(lines):
            if appends is not None and self._may_go_on():
                length = sum(map(len, run)) + len(run)
                offset += length
                self._journal.take_appends(appends)
                if self._is_wide:
                    length = sum(map(getsizeof, chain.from_iterable(map(_texts_of, appends))))
                self._journal.held_bytes += length
                self._journal.length, self._bad_lines = offset, 0
                continue
            for line in run:
                if not self.take_line(offset, line, True):
                    return False
                offset += len(line) + 1
        return True

    def finished(self) -> Journal:
        """Return the journal."""
        journal = self._journal
        if journal.torn and journal.torn.length > LINE_LIMIT_BYTES:
            journal.take_damage(journal.torn)
        return journal
