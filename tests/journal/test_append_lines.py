"""The fast way through a journal finds what reading it line by line finds, and that is what a plain reference finds."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rear
from rear.core.names import Target
from rear.core.records import Abort, Append, Beat, Close, MergedRecord, Open, Record, unpacked
from rear.errors import FutureVersionError, JournalError
from rear.journal import reader as journals
from rear.journal.append_lines import parse_appends
from rear.journal.codec import decode_line, decode_record, encode_line, encode_record
from rear.journal.encoder import Encoder
from rear.journal.reader import parse_journal, read_journal, read_lines
from rear.worker.pair_writer import Item
from rear.zip.codecs import crc32
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
    names = [name for name in journal.__slots__ if name not in ("status", "held_bytes")]
    return [list(journal.appends.items()), *(getattr(journal, name) for name in names)]


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


NUMBERS = {name for name in Append._fields if name not in ("source", "archive", "name", "metadata")}
LIMITS = {"crc": 0xFFFFFFFF, "mode": 0xFFFFFFFF, "method": 0xFFFF}
LARGEST = (1 << 63) - 1


def reference(line: bytes) -> Append | None:
    """Return the record of a line with a right checksum, as plainly as can be; ``None``: it is none."""

    def number(text: str) -> float:
        value = float(text)
        if value - value != 0:
            raise ValueError(text)
        return value

    def depth(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    try:
        payload = json.loads(line[9:].decode("utf-8", "surrogateescape"), parse_float=number, parse_constant=number)
        json.dumps(payload, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError):
        return None
    if not isinstance(payload, dict) or payload.get("kind") != "append":
        return None
    values = {name: payload.get(name) for name in Append._fields}
    for name in NUMBERS:
        least = -LARGEST if name == "mtime_ns" else 0
        if type(values[name]) is not int or not least <= values[name] <= LIMITS.get(name, LARGEST):
            return None
    metadata = values["metadata"]
    if metadata is not None and (type(metadata) is not dict or depth(metadata) > 64):
        return None
    texts = (values["archive"], values["name"], "" if values["source"] is None else values["source"])
    return Append(**values) if all(type(text) is str for text in texts) else None


ODD_VALUES = [
    "0", "1", "-0", "-1", "+1", "01", "1.0", "1e2", "1e999", "-1e999", "NaN", "Infinity", "true", "false", "null", "",
    "65535", "65536", "4294967295", "4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775807",
    "-9223372036854775808", "1" * 25, "1" * 5000, '""', '"a"', '"1"', '"a\\/b"', '"\\u0000"', '"\\u00fc"', '"\\x"',
    '"\\ud83d\\ude00"', '"\\ud800"', '"\\udc80"', '"\\ude00\\ud83d"', '"\\ud83d\\u0041"', '"\x7f"', '"\t"', '"\0"',
    '"\udcff"', '"\udced\udca0\udc80"', '"\u2028"', '"\U0001f600"', "[]", "{}", '{"a":1}', '{"a":NaN}', '{"a":1e999}',
    '{"a":[{"b":null}]}', "[" * 63 + "]" * 63, "[" * 3000 + "]" * 3000, " 1 ", "1 2", "1,", "'a'",
    '{"a":' + "[" * 63 + "]" * 63 + "}", '{"a":' + "[" * 64 + "]" * 64 + "}", '{"a":' + "[" * 65 + "]" * 65 + "}",
]  # fmt: skip
keys = st.sampled_from([*Append._fields, "kind", "x", "\\u006eame", "nam\\u0065"])


@settings(max_examples=1500, deadline=None)
@given(
    changes=st.lists(st.tuples(keys, st.sampled_from(ODD_VALUES)), max_size=3),
    replaces=st.booleans(),
    dropped=st.sets(st.sampled_from(Append._fields), max_size=1),
    tail=st.sampled_from(["", "", "", " ", "\r", "\0", "x", "}", ',{"kind":"append"}', "\ufeff"]),
    is_upper=st.booleans(),
)
def test_odd_lines_are_what_a_plain_reference_finds(
    changes: list[tuple[str, str]], replaces: bool, dropped: set[str], tail: str, is_upper: bool
) -> None:
    plain = {name: json.dumps(value) for name, value in _append(1)._asdict().items() if value is not None}
    items = [(name, text) for name, text in plain.items() if name not in dropped]
    if replaces:
        items = [(name, dict(changes).get(name, text)) for name, text in items]
        changes = [(name, text) for name, text in changes if name not in plain]
    text = ",".join(['"kind":"append"', *(f'"{name}":{text}' for name, text in [*items, *changes])])
    payload = f"{{{text}}}{tail}".encode("utf-8", "surrogateescape")
    checksum = b"%08X" if is_upper else b"%08x"
    line = checksum % crc32(payload) + b" " + payload
    assert_as_reference(line)


def test_each_odd_value_of_each_key() -> None:
    texts = {name: json.dumps(value) for name, value in _append(1)._asdict().items() if value is not None}
    for key in [*Append._fields, "x"]:
        for value in ODD_VALUES:
            text = ",".join(f'"{name}":{text}' for name, text in {**texts, key: value}.items())
            payload = f'{{"kind":"append",{text}}}'.encode("utf-8", "surrogateescape")
            assert_as_reference(b"%08x %b" % (crc32(payload), payload))


def assert_as_reference(line: bytes) -> None:
    """Read a line that begins as one of an append record both ways."""
    try:
        record = decode_record(decode_line(line))
    except JournalError:
        record = None
    wanted = reference(line)
    assert isinstance(record, Append) == (wanted is not None)
    if wanted is not None and isinstance(record, Append):
        assert record._replace(metadata=unpacked(record.metadata)) == wanted
        wanted = record
    for lines, found in parse_appends([line] * 5):
        if found is not None:
            assert lines in ([line], [line] * 5)
            assert found == [wanted] * len(lines)
            assert type(found[0]) is Append
            assert list(map(type, found[0])) == list(map(type, wanted or ()))


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
        encoder.encode(
            Item(number, Target("ar.zip", f"ü/{number}"), payload, 10**18, 0o644, source, None, None), number * 99
        )[0]
        for number, source in enumerate(sources * 20)
    ]
    lines = [line.removesuffix(b"\n") for line in lines]
    ((taken, found),) = parse_appends(lines)
    assert taken == lines
    assert found is not None
    assert [append.source for append in found] == sources * 20
    assert [encode_record(append)[:-1] for append in found] == lines


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
            written += [Abort(number), Beat(number), MergedRecord((number,), "ar.zip", "")]
        if number % 17 == 3:
            written.append(_append(number)._replace(metadata={"a": 1}))
    path.write_bytes(b"".join(map(encode_record, [*written, Close("exit", 1, 2)])))
    journal = assert_same(path)
    assert journal.closed
    assert len(journal.appends) == 100
