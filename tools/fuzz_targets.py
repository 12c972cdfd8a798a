"""What is fuzzed: readers of files that anybody may have written. `fuzz.py`, ``tests/hostile/test_fuzz.py`` feed them.

A target takes the bytes of a file. It lets documented errors pass, and fails on anything else: another exception, a
result that contradicts itself, a read that asks for more memory than a reader may take, more reads than the size of the
file explains.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

import make_zoo

import rear
from rear.core.liveness import this_process
from rear.core.names import check_archive
from rear.core.records import Abort, Append, Beat, Close, MergedRecord
from rear.core.storage import Storage, StrPath
from rear.errors import FutureVersionError, JournalError, UnsupportedError, ZipFormatError
from rear.journal.codec import encode_record
from rear.journal.intent import Begin, Move, commit_intent, read_intent, write_intent
from rear.journal.reader import parse_journal, read_journal, read_lines, skim_journal
from rear.journal.writer import JournalWriter
from rear.salvage.scan import scan
from rear.salvage.scan_result import Found, Gap, Nested, recovered_content
from rear.zip.codecs import DEFLATED, crc32
from rear.zip.directory import entries, entry_at, fingerprint, locate, names

_T = TypeVar("_T")
READ_LIMIT_BYTES: Final = 8 << 20
"""No reader may ask for more at once, whatever a file says."""
PIECE_LIMIT_BYTES: Final = 4 << 20
"""Longest piece of decoded content."""
CALL_BYTES: Final = 64
"""What one read counts at least, so that reads of nothing are bounded too."""


class RunawayError(AssertionError):
    """A reader takes more memory or time than the size of the file explains."""


class Bounded(Storage):
    """A file in memory behind a real descriptor; reads are counted and bounded.

    Args:
        data: what the file holds.
        factor: how often all of it may be read.
    """

    def __init__(self, data: bytes, factor: int = 40) -> None:
        self.descriptor = os.memfd_create("fuzzed")
        os.write(self.descriptor, data)
        self._rest = (1 << 20) + factor * len(data)

    def open(self, path: StrPath, *, write: bool = False, directory: int | None = None) -> int:
        """Return the one file, by whatever name."""
        return os.dup(self.descriptor)

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        """Read, within the bounds."""
        if length > READ_LIMIT_BYTES:
            raise RunawayError(f"a read of {length:,} bytes at {offset:,}")
        data = super().read(descriptor, length, offset)
        self._rest -= max(len(data), CALL_BYTES)
        if self._rest < 0:
            raise RunawayError("too many reads for a file of this size")
        return data

    def __enter__(self) -> Bounded:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.descriptor)


# --- targets


def check_journal(data: bytes) -> None:
    """Read a journal, whole and only its ends."""
    with Bounded(data) as storage:
        pieces = [line + b"\n" * complete for _, line, complete in read_lines(storage.descriptor, storage=storage)]
        assert b"".join(pieces) == data
        try:
            journal = read_journal("journal", storage=storage)
            skim_journal("journal", storage=storage)
        except FutureVersionError:
            return
        one_by_one = parse_journal(read_lines(storage.descriptor, storage=storage), len(data))
    assert journal.appends == one_by_one.appends
    assert journal.damage == one_by_one.damage
    end = 0
    for damage in journal.damage:
        assert end <= damage.start
        assert damage.length > 0
        end = damage.start + damage.length
    assert end <= journal.length <= len(data)
    for append in journal.pending():
        assert parse_journal([(0, encode_record(append)[:-1], True)]).appends == {append.sequence: append}


def check_intent(data: bytes) -> None:
    """Read an intent."""
    with Bounded(data) as storage:
        try:
            intent = read_intent("intent", storage=storage)
        except JournalError:
            return
    check_archive(intent.archive)
    assert intent.planned or not intent.committed
    assert intent.tail_length >= 0
    if intent.planned:
        kept = data[intent.tail_start : intent.tail_start + intent.tail_length]
        assert zlib.crc32(kept) == intent.tail_crc
    for move in intent.moves:
        assert isinstance(move.name, str)


def check_directory(data: bytes) -> None:
    """Find and read a central directory."""
    with Bounded(data) as storage:
        descriptor = storage.descriptor
        try:
            directory = locate(descriptor, storage=storage)
        except (ZipFormatError, UnsupportedError):
            return
        assert 0 <= directory.prefix <= directory.offset
        assert directory.offset + directory.length <= directory.archive_length == len(data)
        fingerprint(descriptor, directory, storage=storage)
        try:
            found = list(names(descriptor, directory, storage=storage))
        except ZipFormatError:
            found = None
        try:
            listed = list(entries(descriptor, directory, storage=storage))
        except ZipFormatError:
            listed = None
        assert (found is None) == (listed is None)
        if found is None or listed is None:
            return
        assert len(found) == directory.entries
        assert [name for _, name in found] == [entry.name for entry in listed]
        for (position, _), entry in zip(found, listed, strict=True):
            assert entry_at(descriptor, directory, position, storage=storage) == entry
            assert isinstance(entry.mtime_ns, int)
            assert 0 <= entry.mode <= 0xFFFF


def check_scanner(data: bytes) -> None:
    """Scan a file and read what was found."""
    with Bounded(data) as storage:
        position = 0
        try:
            for event in scan(storage.descriptor, storage=storage):
                if isinstance(event, Nested):
                    assert 0 <= event.start < event.start + event.length <= len(data)
                    continue
                start, end = (
                    (event.start, event.start + event.length) if isinstance(event, Gap) else (event.offset, event.end)
                )
                assert position == start < end <= len(data), f"{position} {event}"
                position = end
                if isinstance(event, Found):
                    _check_found(data, event, storage)
        except UnsupportedError:
            return
        assert position == len(data)


def _check_found(data: bytes, found: Found, storage: Storage) -> None:
    assert data.startswith(found.header_bytes, found.offset)
    assert (found.reason == "") == (found.state == "whole")
    length = crc = 0
    for piece in recovered_content(storage_descriptor(storage), found, storage=storage):
        assert len(piece) <= PIECE_LIMIT_BYTES
        length, crc = length + len(piece), zlib.crc32(piece, crc)
    if found.state == "whole":
        assert length == found.size == found.recoverable_bytes
        assert crc == found.crc
    elif found.state != "unverified":
        assert length == found.recoverable_bytes


def storage_descriptor(storage: Storage) -> int:
    """Return the descriptor of the one file of `Bounded`."""
    assert isinstance(storage, Bounded)
    return storage.descriptor


# --- valid artefacts


def journal_seeds() -> list[bytes]:
    """Return a worker's journal, and one with a record of each kind."""
    with tempfile.TemporaryDirectory() as base:
        with rear.rear_fs(base):
            for name in ("a.txt", "é/b", "c"):
                with rear.rear_open(f"runs/ar.zip/{name}", "wb", metadata={"run": 7}) as file:
                    file.write(name.encode() * 9)
        (path,) = Path(base).glob(".rear/inbox/*/*.journal")
        written = path.read_bytes()
    append = Append(9, "/source", 0, 5, 300, 60, "ar.zip", "name", DEFLATED, 1, 5, 5, 10**18, 0o100644, {"a": [1]})
    records = (append, Abort(9), Beat(3), MergedRecord((1, 2), "ar.zip", "7"), Close("exit", 3, 900))
    more = b"".join([encode_record(record) for record in records])
    return [written, written + more, more]


def intent_seeds() -> list[bytes]:
    """Return intents of a merge into a new and into an old archive, committed and not."""
    seeds = []
    moves = [Move("host/worker-0", number, f"name{number}", number * 100, number * 100 + 90) for number in range(5)]
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "ar.zip")
        archive.write_bytes(make_zoo.make("zipfile", make_zoo.SMALL))
        descriptor = os.open(archive, os.O_RDONLY)
        for number, old in enumerate((None, locate(descriptor))):
            path = Path(folder, f"{number}.intent")
            writer: JournalWriter = write_intent(
                path,
                Begin("ar.zip", "leader", old, this_process()),
                moves,
                archive_descriptor=None if old is None else descriptor,
            )
            seeds.append(path.read_bytes())
            commit_intent(writer)
            writer.close()
            seeds.append(path.read_bytes())
        os.close(descriptor)
    return seeds


def zip_seeds() -> list[bytes]:
    """Return small archives of the writers that are installed."""
    return [made.data for made in make_zoo.samples() if isinstance(made, make_zoo.Sample)]


# --- damage that keeps most of the structure

_NUMBERS: Final = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
_LARGE: Final = (*_NUMBERS, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, (1 << 64) - 1)
_JSON: Final = (
    b"0", b"-1", b"1e400", b"NaN", b"true", b"null", b"[]", b"{}", b'""', b'"../x"', b'"\\ud800"', b'"\\u0000"',
    b"9223372036854775807", b"9223372036854775808", b"1" + b"0" * 40, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000,
)  # fmt: skip


class Chooser(Protocol):
    """Where choices come from: `random.Random`, or what a test makes of numbers."""

    def randint(self, low: int, high: int, /) -> int:
        """Return a number from ``low`` to ``high``."""

    def choice(self, values: Sequence[_T], /) -> _T:
        """Return one of the values."""


def mutate(data: bytes, donor: bytes, generator: Chooser, *, records: bool) -> bytes:
    """Return a damaged or forged variant of a valid file.

    Args:
        data: the valid file.
        donor: another one, to splice with.
        generator: where choices come from.
        records: whether the file has lines with checksums, which forgers know how to compute.
    """
    for _ in range(generator.randint(1, 4)):
        data = generator.choice(_RECORD_CHANGES if records else _ZIP_CHANGES)(data, donor, generator)
    return repair_checksums(data) if records and generator.randint(0, 3) else data


def repair_checksums(data: bytes) -> bytes:
    """Return lines with the checksums that their payloads have."""
    *lines, rest = data.split(b"\n")
    return (
        b"".join(b"%08x %b\n" % (crc32(line[9:]), line[9:]) if line[8:9] == b" " else line + b"\n" for line in lines)
        + rest
    )


_Change = Callable[[bytes, bytes, Chooser], bytes]


def _place(data: bytes, generator: Chooser) -> int:
    return generator.randint(0, max(0, len(data) - 1))


def _flip(data: bytes, donor: bytes, generator: Chooser) -> bytes:
    place = _place(data, generator)
    return (
        data[:place]
        + bytes([value ^ 1 << generator.randint(0, 7) for value in data[place : place + 1]])
        + data[place + 1 :]
    )


def _truncate(data: bytes, donor: bytes, generator: Chooser) -> bytes:
    return data[: _place(data, generator)]


def _splice(data: bytes, donor: bytes, generator: Chooser) -> bytes:
    return data[: _place(data, generator)] + donor[_place(donor, generator) :]


def _zeros(data: bytes, donor: bytes, generator: Chooser) -> bytes:
    place, length = _place(data, generator), generator.randint(1, 300)
    return data[:place] + bytes(length) + data[place + length * generator.randint(0, 1) :]


def _repeat(data: bytes, donor: bytes, generator: Chooser) -> bytes:
    start, end = sorted((_place(data, generator), _place(data, generator)))
    return data[:end] + data[start:end] * generator.randint(1, 3) + data[end:]


def _remove(data: bytes, donor: bytes, generator: Chooser) -> bytes:
    start, end = sorted((_place(data, generator), _place(data, generator)))
    return data[:start] + data[end:]


def _field(data: bytes, donor: bytes, generator: Chooser) -> bytes:
    """Set a field that follows a signature to an extreme value."""
    signatures = [place for place in range(len(data) - 3) if data[place : place + 2] == b"PK" and data[place + 2] < 9]
    if not signatures:
        return data
    place = generator.choice(signatures) + 4 + 2 * generator.randint(0, 26)
    width = generator.choice(("H", "I", "Q"))
    value = generator.choice(_LARGE) & (1 << 8 * struct.calcsize(f"<{width}")) - 1
    changed = bytearray(data + bytes(max(0, place + 8 - len(data))))
    struct.pack_into(f"<{width}", changed, place, value)
    return bytes(changed[: len(data)])


def _value(data: bytes, donor: bytes, generator: Chooser) -> bytes:
    """Replace a JSON value by an extreme one."""
    colons = [place for place in range(len(data)) if data[place : place + 1] == b":"]
    if not colons:
        return data
    start = generator.choice(colons) + 1
    end = start
    while end < len(data) and data[end : end + 1] not in (b",", b"}", b"\n"):
        end += 1
    return data[:start] + generator.choice(_JSON) + data[end:]


def _lines(data: bytes, donor: bytes, generator: Chooser) -> bytes:
    """Exchange two lines, of which one may be another file's."""
    lines, others = data.split(b"\n"), donor.split(b"\n")
    place = generator.randint(0, len(lines) - 1)
    lines[place] = generator.choice([*lines, *others])
    return b"\n".join(lines)


_ANY_CHANGES: Final[tuple[_Change, ...]] = (_flip, _truncate, _splice, _zeros, _repeat, _remove)
_ZIP_CHANGES: Final[tuple[_Change, ...]] = (*_ANY_CHANGES, _field, _field, _field)
_RECORD_CHANGES: Final[tuple[_Change, ...]] = (*_ANY_CHANGES, _value, _value, _lines)


class Target(NamedTuple):
    """A reader, valid files for it, and whether they are lines with checksums."""

    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    records: bool


TARGETS: Final = {
    "journal": Target(check_journal, journal_seeds, True),
    "intent": Target(check_intent, intent_seeds, True),
    "directory": Target(check_directory, zip_seeds, False),
    "scanner": Target(check_scanner, zip_seeds, False),
}
