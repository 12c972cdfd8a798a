"""The write-ahead log beside a temp archive: codec, writer, reader.

The worker alone writes the journal. What a scavenger has done with the members it notes in a file of its own beside it
(``.merged``, same format): a worker that was only paused may still write at the end of its journal.

One record a line: the CRC-32 of the payload in eight hexadecimal digits, a space, one JSON object, a newline. The
payload holds the record's kind, so the checksum covers it. A reader goes on after the next newline when a line is
damaged. A last line without newline is *torn*: its writer died there, and that is normal; any other line that fails
its checksum is *damage*, reported in bytes. Unknown kinds and keys are ignored; a format version from the future is
refused. See ``docs/format.md``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, Final, NamedTuple

from rear.core.records import Abort, Append, Beat, Close, File, Merged, Open, Part, Record, is_metadata, partial_of
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import FutureVersionError, JournalError
from rear.journal.append_lines import LARGEST, parse_appends
from rear.zip.codecs import crc32

FORMAT_VERSION: Final = 1
BAD_LINES_LIMIT: Final = 10_000
"""Nothing is looked for behind so many lines that are no records: a loss of power leaves zeros, which are one line."""
LINE_LIMIT_BYTES: Final = 2 << 20
"""Longer lines are damage: name and metadata at their limits, every character escaped, stay below this."""
_READ_BYTES: Final = 128 << 10
_SKIM_BYTES: Final = 16 << 10
_sequence: Final = itemgetter(Append._fields.index("sequence"))
_KINDS: Final[dict[str, type[Any]]] = {
    "open": Open, "append": Append, "file": File, "part": Part, "abort": Abort, "beat": Beat, "close": Close,
    "merged": Merged,
}  # fmt: skip
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {number:.40} could not be written again")
    return value


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
_decode_json = _decoder.decode
_scan_json: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once  # type: ignore[attr-defined]
_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode


def encode_line(payload: dict[str, Any]) -> bytes:
    """Return one line: checksum, space, JSON, newline."""
    # surrogateescape: the path of a source may hold bytes that are no UTF-8, and they come back as they were.
    data = _encode_json(payload).encode("utf-8", "surrogateescape")
    return b"%08x %b\n" % (crc32(data), data)


def decode_line(line: bytes) -> dict[str, Any]:
    """Return the payload of one line, given without its newline.

    Raises:
        JournalError: the checksum or the JSON is wrong.
    """
    if len(line) < 11 or line[8:9] != b" ":
        raise JournalError("not a record")
    try:
        expected = int(line[:8], 16)
    except ValueError:
        raise JournalError("not a record") from None
    data = line[9:]
    if crc32(data) != expected:
        raise JournalError(f"checksum {crc32(data):08x} instead of {expected:08x}")
    try:
        text = data.decode("utf-8", "surrogateescape")
        try:
            # What decode() does besides, looking for white space, takes half of its time.
            payload, end = _scan_json(text, 0)
        except StopIteration:
            payload, end = None, -1
        if end != len(text):
            payload = _decode_json(text)
        if b"\\u" in data:
            # A forged escape of half a character could not be written anywhere again.
            _encode_json(payload).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError) as error:
        raise JournalError(f"no JSON: {error}") from None
    if not isinstance(payload, dict):
        raise JournalError("not a JSON object")
    return payload


def encode_record(record: Record) -> bytes:
    """Return a record as one line."""
    fields = zip(record._fields, record, strict=True)
    return encode_line({"kind": _NAMES[type(record)], **{key: value for key, value in fields if value is not None}})


class _Field(NamedTuple):
    key: str
    accepts: Callable[[Any], bool]
    required: bool


# Exact types: JSON's true is an int to isinstance.
def _integer(value: Any) -> bool:
    return type(value) is int and -LARGEST <= value <= LARGEST


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _short(limit: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 <= value <= limit


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(map(_natural, value))


_ACCEPTS: Final = {
    "int": _natural, "str": _text, "float": _number, "tuple[int, ...]": _naturals, "Metadata": is_metadata,
}  # fmt: skip
_SIGNED: Final = {"mtime_ns", "created_ns"}
#: What has to fit into a header of a Zip file.
_SHORT: Final = {"mode": 0xFFFFFFFF, "crc": 0xFFFFFFFF, "method": 0xFFFF}


def _schema(kind: type[Any]) -> list[_Field]:
    schema = []
    for name, annotation in kind.__annotations__.items():
        base, _, optional = (annotation if isinstance(annotation, str) else annotation.__forward_arg__).partition(" | ")
        accepts = _integer if name in _SIGNED else _short(_SHORT[name]) if name in _SHORT else _ACCEPTS[base]
        schema.append(_Field(name, accepts, not optional))
    return schema


_SCHEMAS: Final = {name: _schema(kind) for name, kind in _KINDS.items()}

#: Types of the fields of nearly all append records: one comparison instead of a check of each.
_PLAIN_APPENDS: Final = tuple(
    tuple(
        (source if name == "source" else type(None) if name == "metadata" else str)
        if name in ("source", "metadata", "archive", "name")
        else int
        for name in Append._fields
    )
    for source in (type(None), str)
)


def _plain_append(payload: dict[str, Any]) -> Append | None:
    """Return an append record without metadata whose values are as they have to be; ``None``: look closer."""
    values = tuple(map(payload.get, Append._fields))
    if tuple(map(type, values)) not in _PLAIN_APPENDS:
        return None
    record = Append._make(values)
    (
        sequence, _, source_start, source_end, offset, length, _, _, method, crc, compressed_size, size, mtime_ns, mode,
        _,
    ) = record  # fmt: skip
    if (
        min(sequence, source_start, source_end, offset, length, method, crc, compressed_size, size, mode) >= 0
        and max(sequence, source_start, source_end, offset, length, compressed_size, size) <= LARGEST
        and method <= 0xFFFF
        and max(crc, mode) <= 0xFFFFFFFF
        and -LARGEST <= mtime_ns <= LARGEST
    ):
        return record
    return None


def decode_record(payload: dict[str, Any]) -> Record | None:
    """Return a payload as a record, or ``None`` for a kind that this version does not know.

    Raises:
        JournalError: a key is missing or has a value of another type.
        FutureVersionError: an ``open`` record of a later format.
    """
    name = payload.get("kind")
    if name == "append" and (plain := _plain_append(payload)) is not None:
        return plain
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(name, str):
        return None
    if kind is Open and _natural(payload.get("format_version")) and payload["format_version"] > FORMAT_VERSION:
        raise FutureVersionError(
            f"format version {payload['format_version']}, this rear knows up to {FORMAT_VERSION}: "
            "use the rear that wrote it"
        )
    values = []
    for key, accepts, required in _SCHEMAS[name]:
        value = payload.get(key)
        if not accepts(value) and (required or value is not None):
            raise JournalError(f"{name} record: {key} is {value!r:.80}")
        values.append(value)
    record: Record = kind._make(values)
    if isinstance(record, Merged):
        return record._replace(sequences=tuple(record.sequences))
    return record


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


class JournalWriter:
    """Appends records to a file of records that this process alone writes; one write call a record.

    Args:
        descriptor: the open file; closed by `close`.
        length: its length in bytes, where the next record goes. A torn last line has to be ended first: see `resume`.
    """

    def __init__(self, descriptor: int, length: int = 0, *, storage: Storage = LOCAL) -> None:
        self.descriptor = descriptor
        self.length = length
        self._storage = storage

    @classmethod
    def resume(cls, path: StrPath, journal: Journal, *, storage: Storage = LOCAL) -> JournalWriter:
        """Open a file of records to add some; a torn last line is ended by a newline, and so becomes damage."""
        writer = cls(storage.open(path, write=True), journal.length, storage=storage)
        if journal.torn is not None:
            writer.write(b"\n")
        return writer

    def append(self, record: Record) -> None:
        """Write one record. An error leaves the length as it was, so what the next record overwrites is never read."""
        self.write(encode_record(record))

    def write(self, line: bytes) -> None:
        """Write one encoded line."""
        try:
            self.length += self._storage.write(self.descriptor, [line], self.length)
        except BaseException:
            # Part of the line may be there, after Ctrl-C all of it: what the next one does not cover would be damage.
            with contextlib.suppress(OSError):
                self._storage.truncate(self.descriptor, self.length)
            raise

    def sync(self) -> None:
        """Bring all records to stable storage."""
        self._storage.sync(self.descriptor)

    def close(self) -> None:
        """Close the file, without a sync."""
        self._storage.close(self.descriptor)
