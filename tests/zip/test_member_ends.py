"""The quick look at members and the thorough one: they must not differ in what they find."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zoo
from faults import CountsReads
from zips import directory_offset, many_members, write_zip

from rear.fsck import inspection
from rear.fsck.inspection import inspect
from rear.read.view import open_committed
from rear.zip.headers import CentralEntry
from rear.zip.member_ends import sound_ends


def nothing_is_sound(archive: Any, entries: Iterable[CentralEntry], **_: Any) -> Iterator[tuple[CentralEntry, int]]:
    return ((entry, 0) for entry in entries)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return an archive with one thing or several that are wrong, anywhere in it."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(found))
        match chance.randrange(4):
            case 0:
                found[place] ^= 1 << chance.randrange(8)
            case 1:
                found[place : place + 16] = bytes(len(found[place : place + 16]))
            case 2:
                source = chance.randrange(len(found))
                found[place : place + 30] = found[source : source + 30][: len(found) - place]
            case 3:
                found[place : place + 4] = chance.randbytes(4)[: len(found) - place]
    return bytes(found)


@pytest.mark.parametrize("writer", zoo.WRITERS)
def test_the_same_problems(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = zoo.make(writer, tmp_path)
    path, original, chance = tmp_path / "damaged.zip", good.read_bytes(), random.Random(writer)
    found = 0
    for round_number in range(25):
        path.write_bytes(damaged(original, chance) if round_number else original)
        for deep in (False, True):
            quick = list(inspect(path, deep=deep))
            with monkeypatch.context() as patch:
                patch.setattr(inspection, "sound_ends", nothing_is_sound)
                thorough = list(inspect(path, deep=deep))
            assert quick == thorough
            found += len(quick)
    assert found


def test_names_that_only_seem_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "C:/autoexec.bat",
        "a/../b",
        "..",
        "/etc/passwd",
        "./a",
        "a//b",
        "a\\b",
        "é",
        "x:y",
        "dir/",
        "plain",
        "C:\\a",
    ]
    path = write_zip(tmp_path / "a.zip", dict.fromkeys(names, b"1"))
    quick = list(inspect(path))
    monkeypatch.setattr(inspection, "is_plain_name", lambda name: False)
    assert quick == list(inspect(path))
    told = {problem.name for problem in quick if problem.code == "member-unsafe-name" and problem.outcome == "left"}
    assert told == {"a/../b", "..", "/etc/passwd", "C:\\a"}


@pytest.mark.parametrize("writer", ["zipfile", "zip", "rear"])
def test_nearly_all_members_are_sound(writer: str, tmp_path: Path) -> None:
    """Otherwise it would be quick about nothing."""
    many_members(writer, tmp_path) if writer != "rear" else shutil.copy(
        zoo.make("rear", tmp_path), tmp_path / "made.zip"
    )
    storage = CountsReads()
    with open_committed(tmp_path / "made.zip", storage=storage) as archive:
        storage.lengths.clear()
        ends = [end for _, end in sound_ends(archive, archive.entries(), read_data=True)]
    assert all(ends)
    assert ends == sorted(ends)
    assert len(storage.lengths) < 10


def test_data_of_members_that_overlap_is_not_read_for_ever(tmp_path: Path) -> None:
    path = zoo.make("zipfile", tmp_path)
    storage = CountsReads()
    with open_committed(path, storage=storage) as archive:
        entries = list(archive.entries()) * 1000
        storage.lengths.clear()
        ends = [end for _, end in sound_ends(archive, entries, read_data=True)]
    assert 0 < sum(map(bool, ends)) < len(entries) / 2
    assert sum(storage.lengths) < 1000 * directory_offset(path)


def test_an_offset_that_no_file_has_is_no_error(tmp_path: Path) -> None:
    with open_committed(write_zip(tmp_path / "a.zip", {"a": b"1"})) as archive:
        entries = [entry._replace(offset=offset) for entry in archive.entries() for offset in (0, 1 << 40, 1 << 63)]
        assert [bool(end) for _, end in sound_ends(archive, entries, read_data=True)] == [True, False, False]
