"""The fast way through a journal finds what reading it line by line finds."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rear
from rear.core.names import Target
from rear.core.records import Abort, Append, Beat, Close, Merged, Open, Record
from rear.errors import FutureVersionError
from rear.journal import reader as journals
from rear.journal.append_lines import parse_appends
from rear.journal.codec import encode_line, encode_record
from rear.journal.encoder import Encoder
from rear.journal.reader import parse_journal, read_journal, read_lines
from rear.zip.payload import Payload

OPENED = Open(1, "host", "4711-2b67-0123456789abcdef", 0, 7, 4711, 5, "boot", None, 0, 60.0, 9)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["ar.zip", "a/b.txt", 'q"', "\\"]
)
naturals = st.integers(0, 1 << 40) | st.sampled_from([0, (1 << 63) - 1, 1 << 63, 10**19])
appends = st.builds(
    Append, st.integers(0, 30), st.none() | texts, st.just(0) | naturals, naturals, naturals, naturals, texts, texts,
    st.sampled_from([0, 8, 0xFFFF, 0x10000]), st.integers(0, 1 << 32), naturals, naturals,
    st.integers(-(1 << 63), 1 << 63), st.sampled_from([0o100644, 0, 1 << 32]),
    st.none() | st.dictionaries(texts, st.integers(), max_size=1),
)  # fmt: skip
plain_appends = st.builds(
    Append, st.integers(1, 30), st.none(), st.just(0), st.just(5), st.integers(0, 99), st.just(120), st.just("ar.zip"),
    st.sampled_from(["a.txt", "b.txt", "ü"]), st.just(0), st.just(7), st.just(5), st.just(5), st.just(10**18),
    st.just(0o100644), st.none(),
)  # fmt: skip
others = st.builds(Abort, st.integers(0, 30)) | st.builds(Beat, st.integers(0, 9)) | st.just(OPENED)
records = st.lists(appends | plain_appends | plain_appends | others, max_size=30)


def one_by_one(path: Path) -> journals.Journal:
    """Read a journal without the fast way."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return parse_journal(read_lines(descriptor), path.stat().st_size)
    finally:
        os.close(descriptor)


def contents(journal: journals.Journal) -> list[object]:
    """Return all that a journal says, and the order of its members."""
    return [list(journal.appends.items()), *(getattr(journal, name) for name in journal.__slots__)]


def assert_same(path: Path) -> journals.Journal:
    """Compare both ways."""
    journal = read_journal(path)
    assert contents(journal) == contents(one_by_one(path))
    for append in journal.appends.values():
        assert type(append) is Append
    return journal


@settings(max_examples=100, deadline=None)
@given(written=records, seed=st.integers(0, 99), damages=st.integers(0, 3), cut=st.booleans())
def test_both_ways_find_the_same(
    tmp_path_factory: pytest.TempPathFactory, written: list[Record], seed: int, damages: int, cut: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "given.journal"
    data = bytearray(b"".join(map(encode_record, [OPENED, *written])))
    random_numbers = random.Random(seed)
    for _ in range(damages):
        at = random_numbers.randrange(len(data))
        data[at : at + random_numbers.randrange(3)] = random_numbers.randbytes(random_numbers.randrange(4))
    path.write_bytes(data[: random_numbers.randrange(len(data))] if cut else data)
    assert_same(path)


@pytest.mark.parametrize(
    "forged",
    [
        '"sequence":01', '"sequence":+1', '"sequence":-0', '"sequence":1.0', '"sequence":true', '"sequence":"1"',
        '"sequence": 1', '"sequence":1,"sequence":2', '"sequence":9223372036854775808', '"sequence":1,"size":-1',
        '"sequence":1,"source":""', '"sequence":1,"x":"\\u0000"', '"sequence":1,"source":"a\tb"',
    ],
)  # fmt: skip
def test_forms_that_only_look_alike_are_read_with_care(tmp_path: Path, forged: str) -> None:
    line = encode_record(_append(1))
    payload = line[9:-1].decode().replace('"sequence":1', forged, 1).encode()
    path = tmp_path / "x.journal"
    plain = b"".join(encode_record(_append(number)) for number in range(2, 12))
    path.write_bytes(plain + b"%08x %b\n" % (journals.crc32(payload), payload) + plain)
    assert_same(path)


def _append(number: int) -> Append:
    return Append(
        number, None, 0, 5, number * 100, 100, "ar.zip", f"{number}.txt", 0, 7, 5, 5, 10**18, 0o100644, None
    )  # fmt: skip


def test_a_later_format_is_refused_behind_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    lines = [encode_record(_append(number)) for number in range(50)]
    path.write_bytes(b"".join(lines) + encode_line({"kind": "open", "format_version": 2}) + b"".join(lines))
    with pytest.raises(FutureVersionError):
        read_journal(path)


def test_nothing_counts_behind_a_long_stretch_of_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    lines = b"".join(encode_record(_append(number)) for number in range(50))
    path.write_bytes(lines + b"x\n" * journals.BAD_LINES_LIMIT + lines.replace(b"a", b"b") + lines)
    assert len(assert_same(path).damage) == 1
    path.write_bytes(lines + b"x\n" * (journals.BAD_LINES_LIMIT - 1) + encode_record(_append(99)))
    assert 99 in assert_same(path).appends


def test_lines_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    long_one = _append(5)._replace(name="n" * 700_000)
    lines = [encode_record(_append(number)) for number in range(3000)]
    path.write_bytes(b"".join([*lines, encode_record(long_one), *lines[:99], b"y" * 3_000_000, b"\n", *lines]))
    journal = assert_same(path)
    assert len(journal.appends) == 3000
    assert journal.damage


def test_what_a_worker_writes_is_taken_the_fast_way() -> None:
    encoder = Encoder(OPENED)
    sources = [None, "/data/ü.txt"]
    payload = Payload(8, 7, 5, 6)
    lines = [
        encoder.encode(number, Target("ar.zip", f"ü/{number}"), payload, number * 99, 10**18, 0o644, source, None)[0]
        for number, source in enumerate(sources * 20)
    ]
    block = b"".join(lines)
    ((length, found),) = parse_appends(block)
    assert length == len(block)
    assert found is not None
    assert [append.source for append in found] == sources * 20
    assert b"".join(map(encode_record, found)) == block


def test_only_what_is_no_append_record_is_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rear.rear_fs(tmp_path, compression="stored"):
        for number in range(1000):
            with rear.rear_open(f"ar.zip/{number}.txt", "wb") as file:
                file.write(b"x")
    (path,) = tmp_path.glob(".rear/inbox/*/*.journal")
    decoded: list[bytes] = []
    decode_line = journals.decode_line
    monkeypatch.setattr(journals, "decode_line", lambda line: decoded.append(line) or decode_line(line))
    assert len(read_journal(path).appends) == 1000
    assert len(decoded) < 10
    assert not any(b'"append"' in line for line in decoded)


def test_records_of_all_kinds_among_others(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    written: list[Record] = [OPENED]
    for number in range(100):
        written.append(_append(number))
        if number % 9 == 5:
            written += [Abort(number), Beat(number), Merged((number,), "ar.zip", "")]
        if number % 17 == 3:
            written.append(_append(number)._replace(metadata={"a": 1}))
    path.write_bytes(b"".join(map(encode_record, [*written, Close("exit", 1, 2)])))
    journal = assert_same(path)
    assert journal.closed
    assert len(journal.appends) == 100
