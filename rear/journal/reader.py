"""Reads a journal: whole, at both ends, or what a scavenger noted beside it.

A reader goes on after the next newline when a line is damaged. A last line without newline is *torn*: its writer died
there, and that is normal; any other line that fails its checksum is *damage*, reported in bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Final, NamedTuple

from rear.core.records import Abort, Append, Beat, Close, File, Merged, Open, Part, Record, partial_of
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import FutureVersionError, JournalError
from rear.journal.append_lines import parse_appends
from rear.journal.codec import decode_line, decode_record

BAD_LINES_LIMIT: Final = 10_000
"""Nothing is looked for behind so many lines that are no records: a loss of power leaves zeros, which are one line."""
LINE_LIMIT_BYTES: Final = 2 << 20
"""Longer lines are damage: name and metadata at their limits, every character escaped, stay below this."""
_READ_BYTES: Final = 128 << 10
_SKIM_BYTES: Final = 16 << 10
_sequence: Final = itemgetter(Append._fields.index("sequence"))


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
    for offset, block, complete in _read_blocks(descriptor, storage, start):
        if not complete:
            yield offset, block, False
            continue
        for line in block[:-1].split(b"\n"):
            yield offset, line, True
            offset += len(line) + 1


def _read_blocks(descriptor: int, storage: Storage, start: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield whole lines, many together, as ``(offset, block, True)``, and the rest as `read_lines` does."""
    pending, offset, position = b"", start, start
    while data := storage.read(descriptor, _READ_BYTES, position):
        position += len(data)
        end = data.rfind(b"\n") + 1
        if end:
            block, pending = pending + data[:end], data[end:]
            yield offset, block, True
            offset += len(block)
        else:
            pending += data
        if len(pending) > LINE_LIMIT_BYTES:
            yield offset, pending, False
            offset += len(pending)
            pending = b""
    if pending:
        yield offset, pending, False


class Journal:
    """What one journal says, after all its records were read."""

    __slots__ = (
        "aborted", "appends", "beats", "closed", "damage", "file", "flushed", "lacks_file", "length", "merged",
        "opened", "torn",
    )  # fmt: skip

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
        self.merged: dict[int, Merged] = {}
        self.beats = 0
        self.damage: list[Damage] = []
        self.torn: Damage | None = None
        self.length = 0

    def pending(self) -> list[Append]:
        """Members that are neither aborted nor merged, in the order in which they were written."""
        return [
            append
            for sequence, append in self.appends.items()
            if sequence not in self.aborted and sequence not in self.merged
        ]

    def take_appends(self, appends: list[Append]) -> None:
        """Add many records of members."""
        self.appends.update(zip(map(_sequence, appends), appends, strict=True))

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
            case Merged():
                self.merged.update(dict.fromkeys(record.sequences, record))
            case Close():
                self.closed = record
            case Open() if self.opened is None:
                self.opened = record
            case Open():
                raise JournalError("a second open record")


def read_journal(path: StrPath, *, storage: Storage = LOCAL) -> Journal:
    """Read a journal to its end; damage is noted, not raised.

    Raises:
        FutureVersionError: a newer rear wrote it.
        OSError: it cannot be read.
    """
    descriptor = storage.open(path)
    try:
        parser = _Parser(storage.size(descriptor))
        for offset, block, complete in _read_blocks(descriptor, storage, 0):
            if not (parser.take_block(offset, block) if complete else parser.take_line(offset, block, False)):
                break
        return parser.finished()
    finally:
        storage.close(descriptor)


def read_notes(path: StrPath, *, storage: Storage = LOCAL) -> Journal:
    """Read what scavengers noted beside a journal; a journal of nothing when they noted nothing.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        return read_journal(path, storage=storage)
    except FileNotFoundError:
        return Journal()


def skim_journal(path: StrPath, *, storage: Storage = LOCAL) -> Journal:
    """Read only the first two and the last records of a journal: who writes it, whether it is of one file, whether it
    is closed, and its length.

    Raises:
        FutureVersionError: a newer rear wrote it.
        OSError: it cannot be read.
    """
    descriptor = storage.open(path)
    try:
        length = storage.size(descriptor)
        head = storage.read(descriptor, _SKIM_BYTES, 0)
        if length <= _SKIM_BYTES:
            return parse_journal(read_lines(descriptor, storage=storage))
        start = length - _SKIM_BYTES
        tail = storage.read(descriptor, _SKIM_BYTES, start)
        start += tail.find(b"\n") + 1
        lines = read_lines(descriptor, storage=storage, start=start)
        first, _, rest = head.partition(b"\n")
        second = rest.partition(b"\n")[0]
        return parse_journal(itertools.chain([(0, first, True), (len(first) + 1, second, True)], lines))
    finally:
        storage.close(descriptor)


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


class _Parser:
    """Builds a journal from its lines; see `parse_journal`."""

    def __init__(self, length: int | None) -> None:
        self._journal = Journal()
        self._length = length
        self._bad_lines = 0

    def take_line(self, offset: int, line: bytes, complete: bool) -> bool:
        """Take one line, as `read_lines` yields it; false ends the reading."""
        journal = self._journal
        journal.length = offset + len(line) + complete
        if self._length is not None and self._bad_lines >= BAD_LINES_LIMIT:
            journal.damage[-1] = journal.damage[-1]._replace(length=self._length - journal.damage[-1].start)
            journal.length, journal.torn = self._length, None
            return False
        if not complete:
            journal.torn = Damage(offset, len(line), "torn: no newline")
            self._bad_lines += 1
            return True
        try:
            record = decode_record(decode_line(line))
            if record is not None:
                journal.take(record)
            self._bad_lines = 0
        except FutureVersionError:
            raise
        except JournalError as error:
            self._bad_lines += 1
            before = journal.damage[-1] if journal.damage else None
            if before is not None and before.start + before.length == offset:
                journal.damage[-1] = before._replace(length=before.length + len(line) + 1)
            else:
                journal.damage.append(Damage(offset, len(line) + 1, str(error)))
        return True

    def take_block(self, offset: int, block: bytes) -> bool:
        """Take a block of whole lines, most of them append records; false ends the reading."""
        position = 0
        for length, appends in parse_appends(block):
            end = position + length
            if appends is not None and self._bad_lines < BAD_LINES_LIMIT:
                self._journal.take_appends(appends)
                self._journal.length, self._bad_lines = offset + end, 0
            else:
                for line in block[position : end - 1].split(b"\n"):
                    if not self.take_line(offset + position, line, True):
                        return False
                    position += len(line) + 1
            position = end
        return True

    def finished(self) -> Journal:
        """Return the journal."""
        journal = self._journal
        if journal.torn and journal.torn.length > LINE_LIMIT_BYTES:
            journal.damage.append(journal.torn)
        return journal
