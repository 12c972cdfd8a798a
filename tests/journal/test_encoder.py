"""Line, header and entry of a member, made one by one and many at once, are what the general functions give."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from faults import CountsReads
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rear
from rear.core.names import Target, are_plain_names, check_name
from rear.core.records import Append, Metadata, Open, Origin
from rear.core.storage import LOCAL
from rear.errors import PathError
from rear.journal.check import find_suspects, why_bad
from rear.journal.codec import encode_record
from rear.journal.encoder import Encoder
from rear.journal.manyheaders import central_entries, columns_of, local_headers
from rear.journal.reader import Journal, read_journal
from rear.zip.headers import Member, encode_central_entry, encode_local_header
from rear.zip.payload import Payload
from rear.zip.structures import LIMIT_32
from rear.zip.window import Window

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
sizes = st.integers(0, LIMIT_32 + 2) | st.integers(0, 1 << 40)
times = st.integers(0, 1 << 62) | st.integers(-(1 << 62), 0) | st.integers(1_700_000_000_000_000_000, 1 << 61)
opened = st.builds(
    Open, st.just(1), texts, texts, st.integers(0, 9), st.integers(0, (1 << 64) - 1), st.just(1), st.none(), st.none(),
    st.none(), st.just(0), st.just(60.0), st.just(0),
)  # fmt: skip
members = st.tuples(
    texts, texts, st.sampled_from([0, 8, 93]), st.integers(0, LIMIT_32), sizes, sizes, sizes, times,
    st.integers(0, 0xFFFFFFFF), st.none() | texts, st.none() | st.dictionaries(texts, st.integers(), max_size=2),
)  # fmt: skip


@given(opened, st.lists(members, min_size=1, max_size=6))
def test_it_gives_what_the_general_functions_give(opened: Open, members: list[tuple]) -> None:
    encoder = Encoder(opened)
    for sequence, given_member in enumerate(members):
        archive, name, method, crc, compressed_size, size, offset, mtime_ns, mode, source, metadata = given_member
        # Twice: parts are kept from the first time.
        for _ in range(2):
            payload = Payload(method, crc, compressed_size, size)
            encoded = encoder.encode(sequence, Target(archive, name), payload, offset, mtime_ns, mode, source, metadata)
            assert encoded == _expected(
                opened, sequence, Target(archive, name), payload, offset, mtime_ns, mode, source, metadata
            )


def _expected(
    opened: Open, sequence: int, target: Target, payload: Payload, offset: int, mtime_ns: int, mode: int,
    source: str | None, metadata: Metadata | None,
) -> tuple[bytes, bytes, bytes]:  # fmt: skip
    (archive, name), size, compressed_size = target, payload.size, payload.compressed_size
    member = Member(name, payload.method, payload.crc, compressed_size, size, mtime_ns, mode)
    header = encode_local_header(
        member,
        Origin(opened.cookie, sequence, archive, opened.host, opened.worker, mtime_ns, mode, source, 0, metadata),
    )
    record = Append(
        sequence, source, 0, size, offset, len(header) + compressed_size, archive, name, payload.method, payload.crc,
        compressed_size, size, mtime_ns, mode, metadata,
    )  # fmt: skip
    return encode_record(record), header, encode_central_entry(member, offset)


def test_many_archives_and_modes_are_not_all_kept() -> None:
    opened = Open(1, "host", "worker", 0, 7, 1, None, None, None, 0, 60.0, 0)
    encoder, payload = Encoder(opened), Payload(0, 1, 2, 2)
    for number in range(2_500):
        target, mode = Target(f"{number}%d.zip", "a"), 0o100000 + number
        encoded = encoder.encode(1, target, payload, 0, 10**18, mode, None, None)
        assert encoded == _expected(opened, 1, target, payload, 0, 10**18, mode, None, None)
    assert len(encoder._kinds) <= 1_000


# ---- many at once

names = st.text(st.sampled_from("ab./ \\\x7f\x00ü~"), max_size=6)


@given(st.lists(names, max_size=4))
@example(["a", ""])
@example(["", ""])
@example(["a/", "b"])
@example(["a", ".."])
@example(["a" * 5000])
def test_plain_names_are_right(given_names: list[str]) -> None:
    if are_plain_names(given_names):
        for name in given_names:
            check_name(name)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_what_is_no_name_is_not_plain(name: str) -> None:
    try:
        check_name(name)
    except PathError:
        assert not are_plain_names(["a", name, "b"])


opened_records = st.builds(
    Open, st.just(1), st.sampled_from(["host", "hö"]), st.just("w-1"), st.just(0), st.integers(0, (1 << 64) - 1),
    st.just(1), st.none(), st.none(), st.none(), st.just(0), st.just(60.0), st.just(0), st.none(),
)  # fmt: skip
appends = st.lists(
    st.builds(
        Append, st.integers(0, 1 << 62), st.sampled_from([None, None, None, "/x"]), st.just(0), st.just(0),
        st.integers(0, LIMIT_32 + 9), st.just(200), st.sampled_from(["ar.zip", "b/ü.zip"]),
        st.sampled_from(["a", "b/c.txt", "b/c.txt", "ü"]), st.sampled_from([0, 8, 93]), st.integers(0, LIMIT_32),
        st.integers(0, 99) | st.just(LIMIT_32), st.integers(0, LIMIT_32 - 1),
        st.sampled_from([0, 10**18, 10**18 + 5, 10**9 - 1, -1, 5 * 10**18]), st.sampled_from([0o100644, 0o40755]),
        st.sampled_from([None, None, None, {"a": 1}]),
    ),
    min_size=1, max_size=3,
)  # fmt: skip


@settings(deadline=None)
@given(opened_records, appends)
def test_headers_and_entries_are_those_of_the_encoder(opened: Open, members: list[Append]) -> None:
    columns = columns_of(members)
    if columns is None:
        for member in members:
            if columns_of([member]) is None:
                is_plain = member.source is None and member.metadata is None and member.name.isascii()
                assert not is_plain or member.compressed_size >= LIMIT_32 or member.mtime_ns > 1 << 61
        return
    encoder = Encoder(opened)
    assert local_headers(columns, opened) == [encoder.header(member) for member in members]
    entries = central_entries(columns, columns.offsets)
    if max(columns.offsets) >= LIMIT_32:
        assert entries is None
    else:
        expected = [Member(one.name, *one[8:14]) for one in members]
        assert entries == [
            encode_central_entry(member, one.offset) for member, one in zip(expected, members, strict=True)
        ]


def test_forged_numbers_have_no_header() -> None:
    opened = Open(1, "host", "w-1", 0, 1 << 64, 1, None, None, None, 0, 60.0, 0)
    columns = columns_of([Append(1, None, 0, 5, 0, 100, "ar.zip", "a", 0, 7, 5, 5, 10**18, 0o644, None)])
    assert columns is not None
    assert local_headers(columns, opened) is None
    assert local_headers(columns, opened._replace(cookie=1)) is not None


# ---- checks


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Journal, Path]:
    """A closed pair of members for two archives, small and larger ones."""
    base = tmp_path_factory.mktemp("base")
    with rear.rear_fs(base, compression="stored"):
        for number in range(700):
            with rear.rear_open(f"{'ab'[number % 2]}.zip/d/{number}.txt", "wb") as file:
                file.write(b"x" * (number % 50 if number < 600 else 30_000))
    (journal,) = base.glob(".rear/inbox/*/*.journal")
    return read_journal(journal), journal.with_suffix(".zip")


def _found(path: Path, members: list[Append], opened: Open) -> tuple[list[Append], list[Append]]:
    """Return the suspects, and what is bad by the look at each."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        window = Window(descriptor, 0, os.fstat(descriptor).st_size)
        bad = [
            one for one in members
            if why_bad(descriptor, one, opened, window=window, read_data=False, storage=LOCAL) is not None
        ]  # fmt: skip
        return find_suspects(descriptor, members, opened, storage=LOCAL), bad
    finally:
        os.close(descriptor)


def test_of_whole_members_none_is_suspect(pair: tuple[Journal, Path]) -> None:
    journal, path = pair
    assert journal.opened is not None
    assert _found(path, journal.pending(), journal.opened) == ([], [])


def test_damage_anywhere_in_the_headers_is_seen(pair: tuple[Journal, Path], tmp_path: Path) -> None:
    journal, path = pair
    assert journal.opened is not None
    members, content = journal.pending(), path.read_bytes()
    random_numbers = random.Random(7)
    for _ in range(60):
        member = random_numbers.choice(members)
        at = random_numbers.randrange(member.offset, member.data_offset)
        damaged = bytearray(content)
        damaged[at] ^= 1 << random_numbers.randrange(8)
        copy = tmp_path / "x.zip"
        copy.write_bytes(damaged)
        suspects, bad = _found(copy, members, journal.opened)
        # A bit that changes no meaning, as that of the DOS time, is no damage; a look at the member itself tells.
        assert member in suspects
        assert set(map(id, bad)) <= set(map(id, suspects))


def test_a_temp_archive_that_is_cut_is_seen(pair: tuple[Journal, Path], tmp_path: Path) -> None:
    journal, path = pair
    assert journal.opened is not None
    members = journal.pending()
    copy = tmp_path / "x.zip"
    copy.write_bytes(path.read_bytes()[: members[650].offset + members[650].length - 1])
    suspects, bad = _found(copy, members, journal.opened)
    assert bad == members[650:]
    assert set(range(650, 700)) <= {one.sequence - members[0].sequence for one in suspects}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "d/other.txt"}, {"name": "../x"}, {"name": "d//x"}, {"archive": "c.zip"}, {"archive": "../a.zip"},
        {"archive": ".rear/a.zip"}, {"sequence": 10**6}, {"crc": 1}, {"size": 999}, {"method": 8}, {"mode": 0o100777},
        {"mtime_ns": 10**18}, {"mtime_ns": 1 << 62}, {"offset": 0}, {"offset": 1 << 62}, {"length": 3},
        {"length": 1 << 60}, {"compressed_size": 0}, {"compressed_size": 1 << 62},
        {"metadata": {"a": 1}}, {"name": "x" * 70_000},
        {"name": "\udc80"}, {"size": 1 << 33, "compressed_size": 1 << 33},
    ],
)  # fmt: skip
def test_forged_records_are_caught(pair: tuple[Journal, Path], changes: dict[str, object]) -> None:
    journal, path = pair
    assert journal.opened is not None
    members = journal.pending()
    members[77] = members[77]._replace(**changes)
    suspects, bad = _found(path, members, journal.opened)
    assert bad == [members[77]]
    assert members[77] in suspects


def test_many_small_members_are_read_at_once(pair: tuple[Journal, Path]) -> None:
    journal, path = pair
    assert journal.opened is not None
    storage = CountsReads()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert find_suspects(descriptor, journal.pending()[:500], journal.opened, storage=storage) == []
    finally:
        os.close(descriptor)
    assert len(storage.lengths) == 1
    # Of large members the headers alone.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert find_suspects(descriptor, journal.pending()[600:], journal.opened, storage=storage) == []
    finally:
        os.close(descriptor)
    assert sum(storage.lengths[1:]) < 100 * 200
