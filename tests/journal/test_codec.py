"""Records of a journal, each kind: whole, byte by byte, cut at each length, changed in each byte, junk behind it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rear.core.records import Abort, Append, Beat, Close, File, MergedRecord, Open, Part, Record, unpacked
from rear.core.storage import Storage
from rear.errors import FutureVersionError, JournalError
from rear.journal import reader as journals
from rear.journal.codec import decode_line, decode_record, encode_line, encode_record
from rear.journal.reader import read_journal, read_lines, skim_journal
from rear.zip.codecs import crc32

METADATA = {"run": 7, "tags": ["ü", None, 1.5], "deep": {"a": {"b": True}}}
RECORDS: list[Record] = [
    Open(1, "host", "4711-2b67-0123456789abcdef", 3, (1 << 63) - 1, 4711, None, None, None, 0, 60.0, -1),
    Open(1, "host", "4711-2b67-0123456789abcdef", 3, 7, 4711, 5, "boot", "pid:[1]", 1000, 0.5, 9, 12),
    Append(1, None, 0, 5, 0, 100, "ar.zip", "a.txt", 0, 0xFFFFFFFF, 5, 5, 10**18, 0o100644),
    Append(2, "/data/ü \udcff", 3, 8, 100, 120, "b/ü.zip", 'q"\\/\x7f\u2028.txt', 8, 0, 5, 9, -5, 0, METADATA),
    File(3, 1, 77, "ar.zip", "log.txt", 8, 61, 0o100600, METADATA),
    File(3, 3, 0, "ar.zip", "log.txt", 0, 61, 0o100600),
    Part(0, 1000, 61, 500, 0xDEADBEEF, 10**18),
    Abort(4),
    Beat(5),
    Close("rotation", 2, 220),
    MergedRecord((), "ar.zip", ""),
    MergedRecord((1, 2, (1 << 63) - 1), "runs/7/ar.zip", "0123-leader.intent"),
]
IDS = [f"{type(record).__name__}-{number}" for number, record in enumerate(RECORDS)]
BEAT = encode_record(Beat(1))


class OneByteAtATime(Storage):
    """A file that gives one byte for each read."""

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        return super().read(descriptor, min(length, 1), offset)


def decoded(line: bytes) -> Record | None:
    record = decode_record(decode_line(line))
    return record._replace(metadata=unpacked(record.metadata)) if isinstance(record, Append) else record


def of(path: Path, data: bytes) -> journals.Journal:
    path.write_bytes(data)
    return read_journal(path)


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_whole(record: Record) -> None:
    line = encode_record(record)
    assert line.count(b"\n") == 1
    found = decoded(line.removesuffix(b"\n"))
    assert found == record
    assert type(found) is type(record)


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_byte_by_byte(record: Record, tmp_path: Path) -> None:
    line, path = encode_record(record), tmp_path / "x.journal"
    path.write_bytes(BEAT + line + line[:7])
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = list(read_lines(descriptor, storage=OneByteAtATime()))
    finally:
        os.close(descriptor)
    end = len(BEAT) + len(line)
    assert found == [(0, BEAT[:-1], True), (len(BEAT), line[:-1], True), (end, line[:7], False)]


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_cut_at_each_length_it_is_torn(record: Record, tmp_path: Path) -> None:
    line, path = encode_record(record), tmp_path / "x.journal"
    for length in range(len(line)):
        with pytest.raises(JournalError):
            decoded(line[: min(length, len(line) - 2)])
        journal = of(path, BEAT + line[:length])
        assert (journal.beats, journal.damage) == (1, [])
        assert journal.length == len(BEAT) + length
        assert (journal.torn and (journal.torn.start, journal.torn.length)) == ((len(BEAT), length) if length else None)
        assert not journal.appends


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_a_change_of_any_byte_is_noticed(record: Record, tmp_path: Path) -> None:
    line, path = encode_record(record), tmp_path / "x.journal"
    for position in range(len(line) - 1):
        for changed in {line[position] ^ 1, line[position] ^ 0x20, 0, 0xFF} - {line[position], ord("\n")}:
            forged = line[:position] + bytes([changed]) + line[position + 1 :]
            if forged[:9].lower() == line[:9]:
                continue
            with pytest.raises(JournalError):
                decoded(forged[:-1])
    journal = of(path, line[:12] + b"?" + line[13:] + BEAT)
    assert [(damage.start, damage.length) for damage in journal.damage] == [(0, len(line))]
    assert journal.beats == 1


@pytest.mark.parametrize("junk", [b" ", b"\0", b"x", b"}", b'{"kind":"beat"}', b"\xff" * 100, bytes(5000)])
@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_junk_behind_it(record: Record, junk: bytes, tmp_path: Path) -> None:
    line, path = encode_record(record), tmp_path / "x.journal"
    with pytest.raises(JournalError):
        decoded(line[:-1] + junk)
    # On a line of its own, complete and torn.
    lines = BEAT + junk + b"\n" + BEAT + junk
    journal = of(path, lines)
    assert [(damage.start, damage.length) for damage in journal.damage] == [(len(BEAT), len(junk) + 1)]
    assert (journal.torn.start, journal.torn.length) == (len(lines) - len(junk), len(junk))


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity"])
def test_a_number_that_json_cannot_write_again_is_damage(number: str, tmp_path: Path) -> None:
    data = encode_record(RECORDS[3])[9:-1].replace(b'"run":7', f'"run":{number}'.encode())
    line = b"%08x %b\n" % (crc32(data), data)
    journal = of(tmp_path / "x.journal", line)
    assert not journal.appends
    assert [(damage.start, damage.length) for damage in journal.damage] == [(0, len(line))]


def test_unknown_kinds_and_keys_are_ignored_and_a_later_version_is_refused() -> None:
    assert decoded(encode_line({"kind": "later", "x": 1})[:-1]) is None
    assert decoded(encode_line({"x": 1})[:-1]) is None
    assert decoded(encode_line({"kind": "beat", "number": 3, "x": [{}]})[:-1]) == Beat(3)
    with pytest.raises(FutureVersionError):
        decoded(encode_line({"kind": "open", "format_version": 2})[:-1])


def test_pieces_of_an_endless_line_end_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LINE_LIMIT_BYTES", 1 << 18)
    monkeypatch.setattr(journals, "BAD_LINES_LIMIT", 3)
    size = 3 << 20
    journal = of(tmp_path / "x.journal", bytes(size))
    assert journal.length == size
    assert sum(damage.length for damage in journal.damage) <= size
    assert journal.damage[-1].start + journal.damage[-1].length == size
    assert journal.torn is None


@pytest.mark.parametrize("members", [0, 1, 2, 100, 500])
@pytest.mark.parametrize("beats", [0, 3, 900])
@pytest.mark.parametrize("close", [False, True])
def test_a_skim_tells_what_reading_all_tells(tmp_path: Path, members: int, beats: int, close: bool) -> None:
    records: list[Record] = [RECORDS[1], *(RECORDS[2]._replace(sequence=number) for number in range(members))]  # type: ignore[call-arg]
    records += [*map(Beat, range(beats)), *[RECORDS[9]] * close]
    path = tmp_path / "x.journal"
    whole = of(path, b"".join(map(encode_record, records)))
    ends = skim_journal(path)
    for name in ("opened", "closed", "beats", "length", "damage", "torn", "file"):
        assert getattr(ends, name) == getattr(whole, name)
    assert list(ends.appends)[:1] == list(whole.appends)[:1]
    assert ends.appends.items() <= whole.appends.items()
    far = skim_journal(path, tail_bytes=1 << 20)
    assert list(far.appends)[-1:] == list(whole.appends)[-1:]


@pytest.mark.parametrize("growth", [b"\0" * 40_000, b"x" * 40_000 + b"\n"], ids=["torn", "one long line"])
def test_a_skim_tells_the_length_also_where_no_line_begins_in_the_tail(tmp_path: Path, growth: bytes) -> None:
    """It is what shows other hosts that a worker lives."""
    path = tmp_path / "x.journal"
    path.write_bytes(encode_record(RECORDS[0]) + growth)
    skimmed, read = skim_journal(path), read_journal(path)
    assert skimmed.opened == read.opened
    assert skimmed.length == read.length == path.stat().st_size
    assert bool(skimmed.torn) == bool(read.torn)
