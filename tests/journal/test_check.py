"""What is checked for many members at once is what is found one by one."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import rear
from rear.core.names import are_plain_names, check_name
from rear.core.records import Append, Open
from rear.core.storage import LOCAL, Storage
from rear.errors import PathError
from rear.journal.check import find_suspects, why_bad
from rear.journal.reader import Journal, read_journal
from rear.zip.window import Window

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
    reads: list[int] = []

    class Counting(Storage):
        def read(self, descriptor: int, length: int, offset: int) -> bytes:
            reads.append(length)
            return super().read(descriptor, length, offset)

    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert find_suspects(descriptor, journal.pending()[:500], journal.opened, storage=Counting()) == []
    finally:
        os.close(descriptor)
    assert len(reads) == 1
    # Of large members the headers alone.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert find_suspects(descriptor, journal.pending()[600:], journal.opened, storage=Counting()) == []
    finally:
        os.close(descriptor)
    assert sum(reads[1:]) < 100 * 200
