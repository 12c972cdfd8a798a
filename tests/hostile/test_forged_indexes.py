"""What others may rename: segments of indexes, temp archives between their check and their copy, notes of merges,
folders and whole bases; with real other users.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bases import of_kind, scavenge, write
from users import ALICE, BOB, GROUP, Users, base_of_mode, users

import rear
from rear.core import discovery
from rear.core.discovery import counts_as_base
from rear.core.layout import Layout
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import IndexFormatError, NotLeaderError
from rear.events import Advanced, IndexRebuilt, Merged, Refused, Renamed, RolledOver
from rear.fsck.base import fsck
from rear.index.index import Index
from rear.ingest.held_members import CommittedArchives
from rear.journal.codec import encode_line
from rear.read.view import open_committed
from rear.scavenger import leader
from rear.zip.extraction import Extraction

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")


@pytest.fixture(scope="module")
def people() -> Iterator[Users]:
    with users() as people:
        yield people


@pytest.fixture
def base(people: Users) -> Iterator[Path]:
    """A base of the group, with an archive of Bob's that only he may write, or rename."""
    with base_of_mode(0o2775) as base:
        folder = base / "bob"
        folder.mkdir()
        os.chown(folder, BOB, BOB)
        folder.chmod(0o755)
        people.write(BOB, base, "bob/ar.zip/x", 2)
        assert people.rear(BOB, "scavenge", base).status == 0
        (folder / "ar.zip").chmod(0o644)
        yield base


def names_in(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        return sorted(opened.namelist())


def segments_of(base: Path, archive: str = "bob/ar.zip") -> list[Path]:
    return sorted((base / ".rear/index" / archive).glob("*.sqlite"), key=lambda path: int(path.stem))


def change(segment: Path, *statements: str, user: int = ALICE) -> None:
    """Lay another segment in the place of one, as a user who may write to the folder."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy.sqlite")
        shutil.copy(segment, copy)
        with sqlite3.connect(copy) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
        fresh = segment.with_name("fresh")
        fresh.write_bytes(copy.read_bytes())
    os.chown(fresh, user, GROUP)
    fresh.chmod(0o644)
    fresh.rename(segment)


# ---- an index of somebody who could not have written the archive


HIDDEN = ["DELETE FROM members WHERE name = 'x0.txt'"]
MOVED = ["UPDATE members SET name = 'new0.txt' WHERE name = 'x0.txt'"]
BEHIND = ["UPDATE members SET target_end = 1000000000", "UPDATE segment SET fingerprint = '0'"]


@pytest.mark.parametrize("statements", [HIDDEN, [*HIDDEN, "UPDATE segment SET members = 1"], MOVED, BEHIND])
def test_a_forged_index_decides_nothing(people: Users, base: Path, statements: list[str]) -> None:
    change(segments_of(base)[-1], *statements)
    people.write(BOB, base, "bob/ar.zip/new", 1)
    people.write(ALICE, base, "bob/ar.zip/x", 1)
    assert not of_kind(scavenge(base), Refused)
    assert names_in(base / "bob/ar.zip") == ["new0.txt", "x0.txt", "x1.txt"]
    assert rear_clean(people, base)


def rear_clean(people: Users, base: Path) -> bool:
    status: int = people.rear(0, "fsck", base).status
    return status == 0


@only_root
def test_nor_does_one_that_was_made_in_good_faith_of_another_archive(people: Users, base: Path) -> None:
    people.write(ALICE, base, "alice.zip/x", 40)
    scavenge(base)
    [genuine] = segments_of(base, "alice.zip")
    assert genuine.stat().st_uid in (0, ALICE)
    os.chown(genuine, 0, 0)
    for segment in segments_of(base):
        segment.unlink()
    # Her renaming keeps its owner.
    genuine.rename(base / ".rear/index/bob/ar.zip" / genuine.name)
    assert Index.open(Layout(base), "bob/ar.zip").segments == []
    people.write(BOB, base, "bob/ar.zip/new", 1)
    assert not of_kind(scavenge(base), Refused)
    assert names_in(base / "bob/ar.zip") == ["new0.txt", "x0.txt", "x1.txt"]


def test_who_reads_is_not_shown_it_either(people: Users, base: Path) -> None:
    change(segments_of(base)[-1], *MOVED)
    found = people.rear(BOB, "find", base, "*.txt")
    assert "x0.txt" in found.output
    assert "new0.txt" not in found.output
    told = people.rear(0, "fsck", base)
    assert "user 47001" in told.output + told.errors
    assert rear_clean(people, base)


def test_full_archives_are_not_looked_up_in_it(people: Users, base: Path) -> None:
    for _ in range(4):
        people.write(BOB, base, "bob/ar.zip/more", 1)
        assert people.rear(BOB, "scavenge", base, "--max-members", "1").status == 0
    full = "bob/ar-0.zip"
    assert segments_of(base, full)
    change(segments_of(base, full)[-1], "UPDATE members SET name = 'never.txt'")
    held = CommittedArchives(Layout(base), "bob/ar.zip", storage=LOCAL)
    assert held.find_named({1: "never.txt"}, lambda wanted, row: True) == {}
    assert held.find_named({1: "x0.txt"}, lambda wanted, row: True)[1].archive == full


@only_root
def test_the_group_that_may_write_an_archive_keeps_its_index(people: Users) -> None:
    """Its members scavenge in turn: an index of one of them is none for the next to make again."""
    with base_of_mode(0o2775) as base:
        for number, user in enumerate((ALICE, BOB, 0, ALICE)):
            people.write(user, base, f"ar.zip/{number}-", 2)
            done = people.rear(user, "scavenge", "--json", base)
            assert done.status == 0, done.errors
            assert "index_rebuilt" not in done.output


def test_of_others_nobody_but_the_owner_may_write_one(people: Users, base: Path) -> None:
    (base / "bob/ar.zip").chmod(0o664)
    for user in (0, BOB):
        people.write(ALICE, base, f"bob/ar.zip/{user}-", 1)
        done = people.rear(user, "scavenge", "--json", base)
        assert done.status == 0, done.errors
        assert "index_rebuilt" not in done.output
        for segment in segments_of(base):
            assert segment.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) == 0


@only_root
@pytest.mark.parametrize("planted", [shutil.copy, os.rename])
def test_fsck_leaves_a_zip_alone_for_which_an_index_was_planted(
    people: Users, base: Path, planted: Callable[[Path, Path], object]
) -> None:
    people.write(ALICE, base, "ar.zip/x", 1)
    scavenge(base)
    torn = base / "bob/own.zip"
    with zipfile.ZipFile(torn, "w") as opened:
        opened.writestr("a", b"first")
    torn.write_bytes(torn.read_bytes().partition(b"PK\1\2")[0])
    os.chown(torn, BOB, BOB)
    before = torn.read_bytes(), torn.stat()
    folder = base / ".rear/index/bob/own.zip"
    folder.mkdir()
    [segment] = segments_of(base, "ar.zip")
    os.chown(segment, 0, 0)
    planted(segment, folder / segment.name)
    problems = [event for event in fsck(base) if event.kind == "problem"]
    assert any("not rear's" in str(problem) for problem in problems)
    assert (torn.read_bytes(), torn.stat().st_uid, torn.stat().st_ino) == (
        before[0], before[1].st_uid, before[1].st_ino,
    )  # fmt: skip
    assert not any("member-lost" in str(problem) for problem in problems)


@pytest.mark.parametrize("statements", [HIDDEN, MOVED, ["UPDATE members SET crc = 7"], BEHIND[:1]])
def test_fsck_compares_an_index_with_the_directory(tmp_path: Path, statements: list[str]) -> None:
    write(tmp_path, {f"ar.zip/{name}": name for name in ("x0.txt", "x1.txt")})
    scavenge(tmp_path)
    assert not [event for event in fsck(tmp_path, report_only=True) if event.kind == "problem"]
    change(segments_of(tmp_path, "ar.zip")[-1], *statements, user=os.geteuid())
    [problem] = [event for event in fsck(tmp_path) if event.kind == "problem"]
    assert "index-damaged" in str(problem)
    assert not [event for event in fsck(tmp_path) if event.kind == "problem"]


@pytest.mark.parametrize("name", ["999999999999999.sqlite", "999999999999999-ab.part"])
def test_the_last_number_of_all_leaves_a_next_one(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"ar.zip/x": "first"})
    scavenge(tmp_path)
    segment = segments_of(tmp_path, "ar.zip")[-1]
    segment.rename(segment.with_name(name))
    write(tmp_path, {"ar.zip/x": "second"})
    assert of_kind(scavenge(tmp_path), Renamed)
    assert names_in(tmp_path / "ar.zip") == ["x", "x~1"]
    write(tmp_path, {"ar.zip/y": "third"})
    assert not of_kind(scavenge(tmp_path), IndexRebuilt)


def test_a_segment_that_takes_another_ones_place_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, {"ar.zip/x": "x"})
    scavenge(tmp_path)
    index = Index.open(Layout(tmp_path), "ar.zip")
    change(segments_of(tmp_path, "ar.zip")[-1], "DELETE FROM members", user=os.geteuid())
    with pytest.raises(IndexFormatError, match="another file took its place"):
        index.find(["x"])


# ---- a temp archive that is another file when it is copied


@only_root
@pytest.mark.parametrize("phase", ["planning", "copying"])
@pytest.mark.parametrize("is_new", [False, True])
def test_what_is_copied_is_what_was_checked(people: Users, phase: str, is_new: bool) -> None:
    with base_of_mode(0o2775) as base:
        people.write(BOB, base, "ar.zip/bobs", 1)
        if not is_new:
            scavenge(base)
            people.write(BOB, base, "ar.zip/bobs-second", 1)
        people.write(ALICE, base, "ar.zip/loot", 1)
        private = base / "key"
        private.write_bytes(b"private to Bob " * 400)
        os.chown(private, BOB, BOB)
        private.chmod(0o600)
        events: list[Any] = []
        for event in rear.scavenge(base):
            if isinstance(event, Advanced) and event.phase == phase:
                [temp_archive] = [
                    path for path in (base / ".rear/claims").rglob("*.zip") if path.stat().st_uid == ALICE
                ]
                temp_archive.rename(base / "kept")
                private.rename(temp_archive)
            events.append(event)
        refused = of_kind(events, Refused)
        assert any("another file than" in one.reason for one in refused)
        if phase == "planning":
            assert [merged.members for merged in of_kind(events, Merged)] == [1], "Bob's waits for nobody"
        for archive in base.glob("*.zip"):
            assert b"private to Bob" not in archive.read_bytes()
        for found in (base / ".rear").rglob("*"):
            if found.is_file() and b"private to Bob" in found.read_bytes():
                assert (found.stat().st_uid, stat.S_IMODE(found.stat().st_mode)) == (BOB, 0o600)


# ---- a note of a merge that has failed


class Renaming(Storage):
    """Somebody renames the note of a merge while it is written, or when the merge fails."""

    def __init__(self, kept: Path, suffix: str) -> None:
        self._kept = kept
        self._suffix = suffix

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        base = self._kept.parent
        for path in (base / ".rear/intents").glob(f"*{self._suffix}"):
            path.rename(self._kept)
            if self._suffix == ".intent":
                raise OSError(5, "broken")


@pytest.mark.parametrize("suffix", [".planning", ".intent"])
def test_a_note_that_was_renamed_away_hides_nothing_later(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, {"ar.zip/first": "first"})
    scavenge(tmp_path)
    write(tmp_path, {"ar.zip/second": "second"})
    kept = tmp_path / "kept"
    assert of_kind(scavenge(tmp_path, storage=Renaming(kept, suffix)), Refused)
    assert kept.exists()
    scavenge(tmp_path)
    write(tmp_path, {"ar.zip/third": "third"})
    scavenge(tmp_path)
    stem = Layout(tmp_path).intent("ar.zip").stem
    kept.rename(tmp_path / f".rear/intents/{stem}-other.intent")
    with open_committed(tmp_path / "ar.zip") as archive:
        assert [name for _, name in archive.names()] == ["first", "second", "third"]
    assert names_in(tmp_path / "ar.zip") == ["first", "second", "third"]


# ---- folders


@only_root
def test_a_folder_in_the_place_of_one_that_was_just_made_is_not_shared(
    people: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    with base_of_mode(0o2775) as base:
        private = base / "private"
        private.mkdir(mode=0o700)
        (private / "key").write_text("private")
        os.chown(private, 0, 0)
        people.write(ALICE, base, "sub/ar.zip/x", 1)
        make = os.mkdir

        def swap(name: Any, *arguments: Any, **options: Any) -> None:
            make(name, *arguments, **options)
            if name == "sub" and private.exists():
                os.rename(base / "sub", base / "sub-")
                os.rename(private, base / "sub")

        monkeypatch.setattr(os, "mkdir", swap)
        scavenge(base)
        status = (base / "sub").stat()
        assert (status.st_mode & (stat.S_IRWXG | stat.S_IRWXO), status.st_gid) == (0, 0)


@only_root
def test_a_folder_in_which_another_process_is_at_work_already_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    with base_of_mode(0o2775) as base:
        make = os.mkdir

        def work(name: Any, *arguments: Any, **options: Any) -> None:
            make(name, *arguments, **options)
            (base / "a/b/file").touch() if name == "b" else None

        monkeypatch.setattr(os, "mkdir", work)
        LOCAL.make_directories(base / "a/b")
        for folder in (base / "a", base / "a/b"):
            assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_gid) == (0o2775, GROUP)


def test_what_get_finishes_is_what_it_has_made(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        folder = zipfile.ZipInfo("made/")
        folder.external_attr = (stat.S_IFDIR | 0o777) << 16
        opened.writestr(folder, b"")
        opened.writestr("made/x", b"x")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with open_committed(tmp_path / "a.zip") as archive, Extraction(tmp_path / "out", keep_modes=True) as extraction:
        for entry in archive.entries():
            extraction.extract(archive, entry)
        (tmp_path / "out/made").rename(tmp_path / "out/kept")
        private.rename(tmp_path / "out/made")
        (tmp_path / "out/elsewhere").mkdir()
        extraction._enter(["elsewhere"])
    assert stat.S_IMODE((tmp_path / "out/made").stat().st_mode) == 0o700


# ---- a base that was moved


@only_root
@pytest.mark.parametrize(
    ("made", "around", "counts"),
    [
        ((0, 0o755, 0), (0, 0o1777, 0), True),
        ((0, 0o2775, GROUP), (0, 0o1777, 0), False),
        ((0, 0o2775, GROUP), (0, 0o777, GROUP), False),
        ((0, 0o2775, GROUP), (0, 0o2775, GROUP), True),
        ((0, 0o2775, GROUP), (0, 0o2775, GROUP + 1), False),
        ((0, 0o2777, GROUP), (0, 0o2775, GROUP), False),
        ((0, 0o2775, GROUP), (0, 0o755, 0), True),
        ((BOB, 0o2775, GROUP), (0, 0o2775, GROUP), True),
    ],
)
def test_an_owner_counts_where_nobody_else_could_have_moved_it_to(
    tmp_path: Path, made: tuple[int, int, int], around: tuple[int, int, int], counts: bool
) -> None:
    discovery._told.clear()
    base, state = tmp_path / "base", tmp_path / "base/.rear"
    state.mkdir(parents=True)
    place = base / "bob"
    place.mkdir(mode=0o700)
    os.chown(place, BOB, BOB)
    for path, (user, mode, group) in ((state, made), (base, around)):
        os.chown(path, user, group)
        path.chmod(mode)
    assert counts_as_base(base, place / "ar.zip") is counts


# ---- what stands in the way of who leads


def lay_lock(base: Path) -> None:
    record = {
        "kind": "leader", "leader": "elsewhere-1-abc", "beat": 0, "lease_seconds": 0.5, "host": "elsewhere", "pid": 1,
        "process_start": 1, "boot_id": "b", "pid_namespace": "p", "time_namespace": "t",
    }  # fmt: skip
    (base / ".rear/lock").write_bytes(encode_line(record).ljust(1024))


@pytest.mark.parametrize("thing", ["leader", "leader/seen.json"])
def test_nothing_in_the_way_of_a_note_stops_all_scavenges(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, thing: str
) -> None:
    write(tmp_path, {"ar.zip/x": "x"})
    lay_lock(tmp_path)
    path = tmp_path / ".rear/observations" / thing
    if thing == "leader":
        path.parent.mkdir()
        path.touch()
    else:
        (path / "inside").mkdir(parents=True)
    with pytest.raises(NotLeaderError, match="takes over in"):
        scavenge(tmp_path)
    assert f"{path} stood in the way" in caplog.text
    assert of_kind(scavenge(tmp_path, wait=True), Merged)
    assert not list((tmp_path / ".rear").rglob("*.new"))


class Unwritable(Storage):
    def replace(self, path: StrPath, data: bytes, mode: int = 0o666) -> None:
        if "observations" in os.fspath(path):
            raise PermissionError(13, "shut", path)
        super().replace(path, data, mode)


def test_who_waits_needs_no_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"ar.zip/x": "x"})
    lay_lock(tmp_path)
    assert of_kind(scavenge(tmp_path, wait=True, storage=Unwritable()), Merged)
    assert "cannot be noted, only waited for" in caplog.text
    assert not leader._unsaved


@pytest.mark.parametrize("digits", ["9" * 248, "9" * 18, "1" + "0" * 18])
def test_a_forged_number_does_not_keep_a_full_archive_from_getting_one(tmp_path: Path, digits: str) -> None:
    with rear.rear_fs(tmp_path) as fs, fs.open("ar.zip/0", "w") as file:
        file.write("0")
    scavenge(tmp_path)
    forged = tmp_path / f"ar-{digits}.zip"
    forged.touch()
    renamed = set()
    for number in range(1, 4):
        write(tmp_path, {f"ar.zip/{number}": str(number)})
        renamed |= {event.renamed_to for event in of_kind(scavenge(tmp_path, max_members=1), RolledOver)}
    assert len(renamed) == 3
    assert forged.stat().st_size == 0
    assert sorted(name for path in tmp_path.glob("ar*.zip") if path != forged for name in names_in(path)) == [*"0123"]
