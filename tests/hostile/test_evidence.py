"""Which evidence counts: forged journals, notes, intents and first copies, of whatever user, cost nobody else.

Files of other users are made by real ``chown``; only root can do that, so others skip those.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bases import members, of_kind, renew, scavenge, scratch_folder
from faults import Failing, Point, Tampered, after, at, dying_at, in_child, points_of, some
from pairs import MTIME_NS, dead_worker, see_nobody, write_pair
from users import ALICE, BOB, GROUP, base_of_mode, users

from rear.core.layout import Layout
from rear.core.liveness import this_process
from rear.core.records import MergedRecord, Pair
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import RearError
from rear.events import Damaged, Event, Lost, Merged, Recovered, Refused, Renamed, RolledBack, RolledForward
from rear.fsck.base import fsck
from rear.journal.codec import encode_record
from rear.journal.intent import Begin, Move, commit_intent, write_intent
from rear.journal.reader import read_journal
from rear.read.view import open_committed
from rear.zip import directory as directories
from rear.zip.codecs import crc32
from rear.zip.directory import Directory

WORKER = "7-7-abcdef"
SECRET = b"for nobody else\n" * 40
MEMBERS = {1: ("a.txt", b"the first file"), 2: ("b.txt", b"the second one")}
EXPECTED = dict(MEMBERS.values())


@pytest.fixture
def base() -> Iterator[Path]:
    with scratch_folder() as folder:
        (folder / "base").mkdir()
        yield folder / "base"


def give(user: int, *paths: Path) -> None:
    """Give files to another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in paths:
        os.chown(path, user, user, follow_symlinks=False)


def name_of(rotation: int = 0, worker: str = WORKER) -> str:
    return str(Pair(this_process().host, worker, rotation))


def texts_of(events: list[Event], base: Path) -> str:
    """Return all that a scavenge has told anybody, or kept where others read it."""
    kept = [path.read_bytes() for path in (base / ".rear").rglob("*") if path.is_file() and "inbox" not in path.parts]
    return " ".join(map(str, events)) + b" ".join(kept).decode("latin-1")


# ---- sources


@pytest.fixture
def source(base: Path) -> Path:
    """A file that its user alone may read."""
    path = base.parent / "secret"
    path.write_bytes(SECRET)
    os.utime(path, ns=(MTIME_NS, MTIME_NS))
    path.chmod(0o600)
    return path


def write_pickup(base: Path, source: Path) -> tuple[Path, Path]:
    """Write a pair of a worker that is gone, whose temp archive has lost the bytes of a pickup."""
    temp, journal = write_pair(
        base, 0, {1: ("loot", SECRET), 2: ("a", b"one")}, sources={1: source}, worker=dead_worker()
    )
    data = temp.read_bytes()
    temp.write_bytes(data.replace(SECRET, bytes(len(SECRET))))
    return temp, journal


def open_to_the_group(journal: Path) -> None:
    journal.chmod(0o664)


def open_to_all(journal: Path) -> None:
    journal.chmod(0o646)


def read_only(journal: Path) -> None:
    # As rear keeps bytes of others in lost+found.
    journal.chmod(0o444)


def of_another_user(journal: Path) -> None:
    give(ALICE, journal, journal.with_suffix(".zip"))


def open_record_after_damage(journal: Path) -> None:
    journal.write_bytes(b"what a member of an archive begins with\n" + journal.read_bytes())


def made_anew(journal: Path) -> None:
    parsed = read_journal(journal)
    assert parsed.opened is not None
    records = [parsed.opened._replace(created_ns=0, uid=os.geteuid()), *parsed.appends.values()]
    journal.write_bytes(b"".join(map(encode_record, records)))


@pytest.mark.parametrize(
    "change", [open_to_the_group, open_to_all, read_only, of_another_user, open_record_after_damage, made_anew]
)
def test_a_journal_that_others_may_have_written_opens_no_file(
    base: Path, source: Path, change: Callable[[Path], None]
) -> None:
    _, journal = write_pickup(base, source)
    change(journal)
    events = scavenge(base)
    assert of_kind(events, Lost, Damaged, Recovered)
    assert not (base / "ar.zip").exists() or "loot" not in members(base)
    told = texts_of(events, base)
    assert SECRET.decode() not in told
    assert source.read_bytes() == SECRET


def test_the_users_own_journal_does(base: Path, source: Path) -> None:
    write_pickup(base, source)
    assert not of_kind(scavenge(base), Lost)
    assert members(base)["loot"] == SECRET


def test_a_source_of_another_user_is_left_alone(base: Path, source: Path) -> None:
    write_pickup(base, source)
    give(ALICE, source)
    [lost] = of_kind(scavenge(base), Lost)
    assert "another user" in lost.reason


def test_nothing_is_told_of_another_content(base: Path, source: Path) -> None:
    write_pickup(base, source)
    other = bytes(reversed(SECRET))
    source.write_bytes(other)
    os.utime(source, ns=(MTIME_NS, MTIME_NS))
    events = scavenge(base)
    assert of_kind(events, Lost)
    assert f"{crc32(other):08x}" not in texts_of(events, base)
    assert str(crc32(other)) not in texts_of(events, base)


@pytest.mark.parametrize("replace", [lambda path: path.symlink_to("/etc/passwd"), os.mkfifo, Path.mkdir])
def test_what_took_the_place_of_a_source_is_not_opened(
    base: Path, source: Path, replace: Callable[[Path], None]
) -> None:
    write_pickup(base, source)
    source.unlink()
    replace(source)
    [lost] = of_kind(scavenge(base), Lost)
    assert "its source" in lost.reason


def test_what_is_saved_from_a_private_source_is_as_private_in_lost_and_found(base: Path, source: Path) -> None:
    base.chmod(0o2775)
    write_pair(base, 0, {1: ("loot", b"it has the name already")}, close="exit", worker="6-6-abcdef")
    scavenge(base)
    write_pickup(base, source)
    scavenge(base, on_conflict="first")
    [kept] = list((base / ".rear/lost+found").rglob("*.zip"))
    assert not kept.stat().st_mode & 0o277
    with zipfile.ZipFile(kept) as archive:
        assert archive.read("loot") == SECRET


def test_workers_of_a_shared_base_keep_their_pairs_to_themselves() -> None:
    with users() as people, base_of_mode(0o2775) as base:
        people.write(ALICE, base, "ar.zip/a-", umask=0o077)
        pairs = [path for path in (base / ".rear/inbox").rglob("*") if path.is_file()]
        assert {oct(path.stat().st_mode & 0o777) for path in pairs} == {"0o640"}
        assert len(pairs) == 2
        for user, name in ((BOB, "b"), (ALICE, "c")):
            done = people.rear(user, "scavenge", base, umask=0o077)
            assert done.status == 0, done.errors
            # Who is to merge next writes to what another one made.
            assert (base / "ar.zip").stat().st_mode & 0o777 == 0o660
            people.write(ALICE, base, f"ar.zip/{name}-", umask=0o077)


# ---- notes


def forge_note(journal: Path, sequences: list[int], target: str = "ar.zip", **changes: Any) -> Path:
    """Write a note as a scavenger of this user does."""
    record = MergedRecord(tuple(sequences), target, "an intent", f"{journal.parent.name}/{journal.stem}")
    notes = journal.with_suffix(".merged")
    notes.write_bytes(encode_record(record._replace(**changes)))
    notes.chmod(0o644)
    return notes


@pytest.mark.parametrize("close", ["exit", None])
@pytest.mark.parametrize("target", ["ar.zip", "other.zip", "by way of another temp archive", "a later temp archive"])
def test_what_was_noted_and_is_not_in_its_archive_is_merged_again(base: Path, close: str | None, target: str) -> None:
    write_pair(base, 0, {1: ("old.txt", b"old")}, close="exit", worker="6-6-abcdef")
    scavenge(base)
    _, journal = write_pair(base, 0, MEMBERS, close=close)
    forge_note(journal, [1, 2], target)
    events = scavenge(base)
    assert members(base) == {**EXPECTED, "old.txt": b"old"}
    assert [event.name for event in of_kind(events, Recovered)] == ["a.txt", "b.txt"]


@pytest.mark.parametrize("where", ["graveyard", "claims/dead"])
def test_a_forged_note_removes_nothing_from_where_pairs_wait(base: Path, where: str) -> None:
    temp, journal = write_pair(base, 0, MEMBERS, close="exit")
    notes = forge_note(journal, [1, 2], "other.zip")
    folder = base / ".rear" / where / journal.parent.name
    folder.mkdir(parents=True)
    for path in (temp, journal, notes):
        path.rename(folder / path.name)
    scavenge(base)
    assert members(base) == EXPECTED


def test_a_merged_record_in_the_journal_itself_is_a_hint_as_well(base: Path) -> None:
    _, journal = write_pair(base, 0, MEMBERS, close="exit")
    with journal.open("ab") as file:
        file.write(encode_record(MergedRecord((1, 2), "ar.zip", "", name_of())))
    scavenge(base)
    assert members(base) == EXPECTED


def test_what_is_there_is_not_merged_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes of a leader that died between noting and clearing; with its index, without, and in a full archive."""
    temp, journal = write_pair(base, 0, MEMBERS, close="exit")
    template = base.parent / "template"
    shutil.copytree(journal.parent, template)
    scavenge(base)
    for lose in (lambda: None, lambda: shutil.rmtree(base / ".rear/index"), lambda: rename_full(base)):
        lose()
        shutil.copytree(template, journal.parent, dirs_exist_ok=True)
        notes = forge_note(journal, [1, 2])
        events = scavenge(base)
        assert not of_kind(events, Merged, Recovered)
        assert not any(path.exists() for path in (temp, journal, notes))


def rename_full(base: Path) -> None:
    (base / "ar.zip").rename(base / "ar-0.zip")
    write_pair(base, 0, {1: ("next.txt", b"next")}, close="exit", worker="6-6-abcdef")
    scavenge(base)


def of_no_pair(notes: Path) -> None:
    notes.write_bytes(encode_record(read_journal(notes).merged[1]._replace(pair=None)))


def of_another_pair(notes: Path) -> None:
    notes.write_bytes(encode_record(read_journal(notes).merged[1]._replace(pair=name_of(8))))


@pytest.mark.parametrize(
    "change", [of_no_pair, of_another_pair, lambda notes: notes.chmod(0o664), lambda notes: give(ALICE, notes)]
)
def test_a_note_alone_counts_only_from_whom_it_is(base: Path, change: Callable[[Path], None]) -> None:
    """Its archive is not there: moved away, or it never was."""
    _, journal = write_pair(base, 0, MEMBERS, close="exit")
    change(forge_note(journal, [1, 2]))
    scavenge(base)
    assert members(base) == EXPECTED


def test_a_note_counts_when_its_user_has_moved_the_archive_away(base: Path) -> None:
    _, journal = write_pair(base, 0, MEMBERS, close="exit")
    forge_note(journal, [1, 2])
    events = scavenge(base)
    assert not (base / "ar.zip").exists()
    assert not of_kind(events, Merged, Recovered, Refused)
    assert not journal.exists()


def test_the_writers_own_notes_count_too_for_who_scavenges_next(base: Path) -> None:
    temp, journal = write_pair(base, 0, MEMBERS, close="exit")
    give(ALICE, temp, journal, forge_note(journal, [1, 2]))
    assert not of_kind(scavenge(base), Merged)
    assert not (base / "ar.zip").exists()


def test_what_went_to_lost_and_found_has_to_be_there(base: Path) -> None:
    _, journal = write_pair(base, 0, MEMBERS, close=None)
    forge_note(journal, [1], f".rear/lost+found/2026-01-01/{this_process().host}-{WORKER}-0-1.part")
    scavenge(base)
    assert members(base) == EXPECTED


def test_notes_of_another_user_are_not_continued(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts of them goes into a file of the caller."""
    _, journal = write_pair(base, 0, MEMBERS, close=None)
    notes = forge_note(journal, [1])
    give(BOB, notes)
    see_nobody(monkeypatch, running=False)
    scavenge(base)
    assert members(base) == EXPECTED
    [kept] = (base / ".rear/graveyard").rglob("*.merged")
    assert kept.stat().st_uid == os.geteuid()
    assert sorted(read_journal(kept).merged) == [1, 2]
    assert all(record.pair == name_of() for record in read_journal(kept).merged.values())


# ---- intents


def make_archive(base: Path, count: int = 6) -> Directory:
    """Make an archive in two merges; return where its directory was after the first one."""
    old = None
    for number in range(2):
        write_pair(
            base, 0, {number + 1: (f"{number}.txt", b"x" * (100 * count))}, close="exit", worker=f"{number}-6-ab"
        )
        scavenge(base)
        with open(base / "ar.zip", "rb") as file:
            old = old or directories.locate(file.fileno())
    assert old is not None
    return old


def forge_intent(
    base: Path, old: Directory, moves: list[Move], *, tail: Path | None = None, commit: bool = False
) -> Path:
    """Write an intent with the right digest and checksum, of a process that is gone."""
    layout = Layout(base)
    layout.intents.mkdir(parents=True, exist_ok=True)
    path = layout.intent("ar.zip", "1-1-deadbeef")
    process = this_process()._replace(pid=2_000_000_000, process_start=1)
    descriptor = os.open(tail or base / "ar.zip", os.O_RDONLY)
    writer = write_intent(path, Begin("ar.zip", "x", old, process), moves, archive_descriptor=descriptor, storage=LOCAL)
    if commit:
        commit_intent(writer)
    os.close(writer.descriptor)
    os.close(descriptor)
    return path


def now(base: Path) -> tuple[Directory, list[Move]]:
    with open(base / "ar.zip", "rb") as file:
        found = directories.locate(file.fileno())
        entries = list(directories.entries(file.fileno(), found))
    ends = [*(entry.offset for entry in entries[1:]), found.offset]
    moves = [
        Move(name_of(0, f"{number}-6-ab"), number + 1, entry.name, entry.offset, end)
        for number, (entry, end) in enumerate(zip(entries, ends, strict=True))
    ]
    return found, moves


def write_old_state(base: Path, old: Directory) -> Path:
    """Write the archive as it was before its last merge."""
    with open(base / "ar.zip", "rb") as file:
        data = file.read(old.offset)
        entries = list(directories.entries(file.fileno(), now(base)[0]))
    copy = base.parent / "old.zip"
    with zipfile.ZipFile(base / "ar.zip") as archive, zipfile.ZipFile(copy, "w") as target:
        first = archive.infolist()[0]
        target.writestr(first, archive.read(first))
    assert len(entries) == 2
    tail = copy.read_bytes()[-old.archive_length + old.offset :]
    copy.write_bytes(data + tail)
    return copy


@pytest.mark.parametrize("commit", [False, True])
def test_a_forged_intent_takes_nothing_out_of_a_sound_archive(base: Path, commit: bool) -> None:
    """It has the right digest, the directory of before, and tells of the very members that came since."""
    old = make_archive(base)
    before = (base / "ar.zip").read_bytes()
    _, moves = now(base)
    tail = write_old_state(base, old)
    path = forge_intent(base, old, moves[1:], tail=tail, commit=commit)
    # A pair under that name, without the bytes.
    temp, journal = write_pair(base, 0, {2: ("1.txt", b"x" * 600)}, close="exit", worker="1-6-ab")
    os.truncate(temp, 10)
    claims = base / ".rear/claims/dead" / journal.parent.name
    claims.mkdir(parents=True)
    for file in (temp, journal):
        file.rename(claims / file.name)
    scavenge(base)
    assert (base / "ar.zip").read_bytes() == before
    assert not path.exists()
    assert set(members(base)) == {"0.txt", "1.txt"}


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_forged_intent_about_nothing_changes_nothing(base: Path, shift: int) -> None:
    make_archive(base)
    before = (base / "ar.zip").read_bytes()
    found, _ = now(base)
    old = Directory(found.archive_length, found.offset + shift, found.length - max(0, shift), 2, 0, b"")
    forge_intent(base, old, [Move(name_of(), 1, "a.txt", old.offset, old.offset + 50)])
    scavenge(base)
    assert (base / "ar.zip").read_bytes() == before


def test_a_forged_intent_for_a_torn_archive_hides_no_members(base: Path) -> None:
    old = make_archive(base)
    tail = write_old_state(base, old)
    forge_intent(base, old, [Move(name_of(), 1, "a.txt", old.offset, old.offset + 50)], tail=tail)
    length = (base / "ar.zip").stat().st_size - 10
    os.truncate(base / "ar.zip", length)
    [refused] = of_kind(scavenge(base), Refused)
    assert (base / "ar.zip").stat().st_size == length
    assert refused.subject == "ar.zip"


def test_an_intent_of_somebody_else_counts_for_nothing_and_holds_nothing_up(base: Path) -> None:
    old = make_archive(base)
    tail = write_old_state(base, old)
    _, moves = now(base)
    path = forge_intent(base, old, moves[1:], tail=tail)
    give(ALICE, path)
    write_pair(base, 0, MEMBERS, close="exit")
    for _ in range(2):
        events = scavenge(base)
        [refused] = of_kind(events, Refused)
        assert refused.subject == f".rear/intents/{path.name}"
        assert not of_kind(events, RolledBack, RolledForward)
        assert path.exists()
        assert set(members(base)) == {"0.txt", "1.txt", *EXPECTED}
        with open_committed(base / "ar.zip") as archive:
            assert {entry.name for entry in archive.entries()} == set(members(base))
    list(fsck(base))
    assert not path.exists()
    assert not of_kind(scavenge(base), Refused)


ANYTHING: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("/"), "loop": lambda path: path.symlink_to(path.name),
    "file": Path.touch, "fifo": os.mkfifo, "shut": lambda path: path.mkdir(mode=0),
}  # fmt: skip
UNREADABLE = {
    "garbage": b"\xff\n" * 5_000,
    "deep": b"[" * 200_000 + b"\n",
    "of_another": None,
    "no_intent": b"x\n" * 50,
}


def spoil_intent(base: Path, kind: str) -> Path:
    """Put what is no record of a merge in the place of one."""
    path = Layout(base).intent("ar.zip", "1-1-deadbeef")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "of_another":
        begin = Begin("other.zip", "x", None, this_process())
        write_intent(path, begin, [], archive_descriptor=None, storage=LOCAL).close()
    else:
        path.write_bytes(UNREADABLE[kind] or b"")
    return path


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("is_new", [False, True])
def test_an_intent_that_cannot_be_read_holds_nothing_up(base: Path, kind: str, is_new: bool) -> None:
    there = {} if is_new else {"0.txt": b"x" * 600, "1.txt": b"x" * 600}
    if there:
        make_archive(base)
    path = spoil_intent(base, kind)
    write_pair(base, 0, MEMBERS, close="exit")
    assert [one.subject for one in of_kind(scavenge(base), Refused)] == [f".rear/intents/{path.name}", "ar.zip"]
    assert members(base) == EXPECTED | there
    assert not path.exists()
    assert [item for item in (base / ".rear/lost+found").rglob("*") if item.name.startswith(path.stem)]
    assert not of_kind(scavenge(base), Refused)


@pytest.mark.parametrize("kind", ["full_folder", *(kind for kind in ANYTHING if kind != "file")])
@pytest.mark.parametrize("intent", ["planned", "first", "first_committed"])
def test_what_stands_where_an_archive_is_built_holds_nothing_up(base: Path, kind: str, intent: str) -> None:
    there = {"0.txt": b"x" * 600, "1.txt": b"x" * 600} if intent == "planned" else {}
    layout = Layout(base)
    if there:
        make_archive(base)
        with open(base / "ar.zip", "rb") as file:
            begin = Begin("ar.zip", "x", directories.locate(file.fileno()), None)
            write_intent(layout.intent("ar.zip", "x"), begin, [], archive_descriptor=file.fileno()).close()
    else:
        write_pair(base, 1, {3: ("c.txt", b"3")}, close="exit")
        layout.intents.mkdir()
        moves = [Move(name_of(1), 3, "c.txt", 0, 50)]
        writer = write_intent(layout.intent("ar.zip", "x"), Begin("ar.zip", "x", None), moves, archive_descriptor=None)
        if intent == "first_committed":
            commit_intent(writer)
        writer.close()
        there = {"c.txt": b"3"}
    fresh = layout.intent("ar.zip", "x").with_suffix(".archive")
    if kind == "full_folder":
        (fresh / "x").mkdir(parents=True)
    else:
        ANYTHING[kind](fresh)
    write_pair(base, 0, MEMBERS, close="exit")
    scavenge(base)
    assert members(base) == EXPECTED | there
    assert not list(layout.intents.iterdir())


@pytest.mark.parametrize("damage", ["torn", "torn_in_a_zip", "no_index", "gone"])
def test_an_intent_that_cannot_be_read_stays_beside_an_archive_that_may_need_it(base: Path, damage: str) -> None:
    make_archive(base)
    path, archive = spoil_intent(base, "garbage"), base / "ar.zip"
    data = archive.read_bytes()
    write_pair(base, 0, MEMBERS, close="exit")
    if damage == "torn":
        archive.write_bytes(data[:-40])
    elif damage == "torn_in_a_zip":
        # As half a merge of a member that is a Zip itself: what is at the end is a directory, and not that of all.
        archive.write_bytes(data[:700] + data)
    elif damage == "no_index":
        shutil.rmtree(base / ".rear/index/ar.zip")
    else:
        archive.unlink()
    before = archive.read_bytes() if archive.exists() else None
    assert of_kind(scavenge(base), Refused)
    assert (archive.read_bytes() if archive.exists() else None) == before
    assert path.exists()
    assert list((base / ".rear").rglob("7-7-abcdef-0.zip"))


def test_an_intent_of_a_group_counts_where_that_may_replace_the_archive(base: Path) -> None:
    old = make_archive(base)
    tail = write_old_state(base, old)
    path = forge_intent(base, old, now(base)[1][1:], tail=tail)
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, ALICE, GROUP)
    path.chmod(0o664)
    os.chown(base, 0, GROUP)
    for folder in (base / ".rear", base / ".rear/intents"):
        os.chown(folder, 0, GROUP)
    base.chmod(0o2775)
    assert RolledBack not in {type(event) for event in scavenge(base)}
    assert not path.exists()


def test_a_forged_commit_notes_no_member_of_others(base: Path) -> None:
    """It says that members of a claimed pair are in the archive, where others are."""
    make_archive(base)
    found, moves = now(base)
    _, journal = write_pair(base, 0, MEMBERS, close="exit")
    lies = [move._replace(pair=name_of(), sequence=number) for number, move in enumerate(moves, 1)]
    old = Directory(found.archive_length, moves[0].target_start, 0, 0, 0, b"")
    with open(base / "ar.zip", "rb") as file:
        empty = base.parent / "empty.zip"
        empty.write_bytes(file.read())
    forge_intent(base, old, lies, tail=empty, commit=True)
    scavenge(base)
    assert set(members(base)) == {"0.txt", "1.txt", *EXPECTED}
    assert not journal.exists()


# ---- second copies


@pytest.mark.parametrize("is_merged", [True, False], ids=["merged before", "in the same round"])
@pytest.mark.parametrize("owner", [None, BOB])
def test_a_forged_first_copy_drops_no_member(base: Path, is_merged: bool, owner: int | None) -> None:
    """A pair under the name of a live worker, with another content; then she crashes."""
    forged = write_pair(base, 0, {1: ("a.txt", b"forged content"), 2: ("other.txt", b"y")}, close="exit")
    if owner is not None:
        give(owner, *forged)
    if is_merged:
        scavenge(base)
    write_pair(base, 1, MEMBERS)
    events = scavenge(base)
    there = members(base)
    assert b"the first file" in there.values()
    assert b"the second one" in there.values()
    assert b"forged content" in there.values()
    assert [event.archive for event in of_kind(events, Renamed)] == ["ar.zip"]


def test_a_forged_first_copy_with_the_right_checksums_drops_no_member(base: Path) -> None:
    """Of a temp archive that was closed in good order only headers are read."""
    temp, _ = write_pair(base, 0, MEMBERS, close="exit")
    data = temp.read_bytes()
    temp.write_bytes(data.replace(MEMBERS[1][1], MEMBERS[1][1].upper()))
    write_pair(base, 1, MEMBERS)
    scavenge(base)
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert archive.read("a~1.txt") == MEMBERS[1][1]


@pytest.mark.parametrize("is_merged", [True, False])
def test_a_second_copy_of_the_same_writer_is_merged_once(base: Path, is_merged: bool) -> None:
    write_pair(base, 0, MEMBERS)
    if is_merged:
        scavenge(base)
    write_pair(base, 1, {**MEMBERS, 3: ("c.txt", b"the third")}, repeats_from=1)
    scavenge(base)
    assert members(base) == {**EXPECTED, "c.txt": b"the third"}


def test_a_copy_that_somebody_says_to_have_does_not_count_for_one_that_is_lost(base: Path) -> None:
    temp, _ = write_pair(base, 0, {**MEMBERS, 3: ("c.txt", b"the third")})
    temp.write_bytes(temp.read_bytes().replace(MEMBERS[2][1], bytes(len(MEMBERS[2][1]))))
    forged = write_pair(base, 1, {2: ("b.txt", b"other content")}, worker=WORKER)
    give(BOB, *forged)
    [lost] = of_kind(scavenge(base), Lost)
    assert lost.name == "b.txt"


# ---- cost


@pytest.mark.parametrize("close", ["exit", None])
def test_folders_are_listed_a_fixed_number_of_times_however_many_pairs_there_are(
    base: Path, close: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = type(LOCAL).names
    listed: list[str] = []

    def listing(self: Storage, path: StrPath) -> list[str]:
        listed.append(str(path))
        return names(self, path)

    monkeypatch.setattr(type(LOCAL), "names", listing)
    counts = []
    for pairs in (20, 60):
        for number in range(pairs):
            write_pair(base, 0, {1: (f"{pairs}/{number}.txt", b"x")}, close=close, worker=f"7-{pairs}-{number:06x}")
        listed.clear()
        scavenge(base)
        counts.append(sum(this_process().host in path for path in listed))
    assert counts[1] <= counts[0] + 10


@pytest.mark.parametrize("kind", ANYTHING)
@pytest.mark.parametrize("place", ["a-1-ab", "~"])
def test_what_stands_among_claims_holds_up_no_pairs_that_are_taken_over(base: Path, kind: str, place: str) -> None:
    """Of a leader that died while it claimed one pair; of another one all files are there but the temp archive."""
    claims, bad = base / ".rear/claims", base / ".rear/claims" / place
    temp, journal = write_pair(base, 0, MEMBERS, close="exit")
    bereft, _ = write_pair(base, 1, {7: ("lost.txt", b"lost")}, close="exit")
    (claims / "dead" / journal.parent.name).mkdir(parents=True)
    for path in (journal, bereft.with_suffix(".journal")):
        path.rename(claims / "dead" / path.parent.name / path.name)
    bereft.unlink()
    ANYTHING[kind](bad)

    def shut(point: Point, path: str) -> None:
        if kind == "shut" and point.operation in ("rename", "names") and f"/claims/{place}" in path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    for _ in range(2):
        scavenge(base, storage=Tampered(shut))
        assert members(base) == EXPECTED
    assert not temp.exists()


# ---- crashes


FORGED = {**EXPECTED, "c.txt": b"the third", "0.txt": b"x" * 600, "1.txt": b"x" * 600}


@pytest.fixture
def template(base: Path) -> Path:
    """A base with forged notes, of another user where that can be, a forged intent, and a forged first copy."""
    old = make_archive(base)
    forge_intent(base, old, now(base)[1][1:], tail=write_old_state(base, old))
    _, journal = write_pair(base, 0, MEMBERS, worker=dead_worker())
    notes = forge_note(journal, [1])
    if os.geteuid() == 0:
        os.chown(notes, BOB, BOB)
    _, journal = write_pair(base, 0, {1: ("c.txt", b"the third")}, close="exit", worker="5-5-abcdef")
    forge_note(journal, [1])
    (base / ".rear/claims").mkdir(exist_ok=True)
    (base / ".rear/claims/a-1-ab").symlink_to(base.parent)
    return base.rename(base.parent / "template")


@pytest.fixture
def unreadable(template: Path) -> Path:
    """The same with an intent that cannot be read."""
    spoil_intent(template, "garbage")
    return template


def check_forged(base: Path) -> None:
    assert not of_kind(scavenge(base), Lost)
    assert members(base) == FORGED
    assert not list((base / ".rear/inbox").rglob("*.journal"))


@pytest.mark.crash
@pytest.mark.parametrize("intent", ["template", "unreadable"])
def test_a_scavenger_is_killed_among_forged_evidence(base: Path, intent: str, request: pytest.FixtureRequest) -> None:
    template = request.getfixturevalue(intent)
    renew(base, template)
    points = points_of(lambda storage: scavenge(base, storage=storage))
    check_forged(base)
    for point in some(points, 40):
        renew(base, template)
        assert in_child(lambda point=point: scavenge(base, storage=dying_at(point))) == -signal.SIGKILL
        with after(f"killed at {point}"):
            check_forged(base)


@pytest.mark.crash
def test_a_scavenger_fails_among_forged_evidence(base: Path, template: Path) -> None:
    renew(base, template)
    for point in some(points_of(lambda storage: scavenge(base, storage=storage)), 40):
        renew(base, template)
        with contextlib.suppress(OSError, RearError):
            assert not of_kind(scavenge(base, storage=Failing(errno.EIO, at(point))), Lost)
        with after(f"failed at {point}"):
            check_forged(base)
