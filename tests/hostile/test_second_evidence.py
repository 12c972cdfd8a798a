"""Evidence of the second rank: copies under other names, forged items and headers, files that others go on with,
archives of foreign making, archives that were moved away.
"""

from __future__ import annotations

import contextlib
import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zoo
from bases import members, of_kind, scavenge, scratch_folder, write
from faults import dying_when, in_child
from pairs import GONE, MTIME_NS, dead_worker, open_record, write_pair
from users import ALICE, BOB, GROUP, base_of_mode, users

from rear.core.layout import Layout
from rear.core.liveness import this_process
from rear.core.records import File, MergedRecord, Origin, Pair, Part, origin_of
from rear.core.storage import LOCAL
from rear.events import Merged, Recovered, Refused, Renamed, RolledBack
from rear.journal.codec import encode_record
from rear.journal.reader import read_journal
from rear.scavenger import archived_members
from rear.scavenger.claims import Claims
from rear.scavenger.final_archive import Comparison
from rear.scavenger.plan import Candidate, Existing
from rear.zip.codecs import crc32
from rear.zip.headers import Member, encode_local_header, member_of

WORKER = "7-7-abcdef"
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


def waiting(base: Path) -> list[Path]:
    return [path for path in (base / ".rear/inbox").rglob("*") if path.is_file()]


# ---- a second copy


@pytest.mark.parametrize("close", ["closed", None])
@pytest.mark.parametrize("owner", [None, ALICE])
@pytest.mark.parametrize("forged_first", [True, False])
def test_a_copy_under_another_name_drops_no_member(
    base: Path, close: str | None, owner: int | None, forged_first: bool
) -> None:
    """Under her worker's name, with her number and content, and another name."""
    mine, forged = (1, 0) if forged_first else (0, 1)
    write_pair(base, mine, MEMBERS, close=close)
    paths = write_pair(base, forged, {1: ("zzz", MEMBERS[1][1])}, close="closed")
    if owner is not None:
        give(owner, *paths)
    scavenge(base)
    assert members(base) == {**EXPECTED, "zzz": MEMBERS[1][1]}
    assert not waiting(base)


@pytest.mark.parametrize("on_conflict", ["rename", "first", "last"])
def test_a_damaged_member_is_no_copy_of_what_another_user_says_it_is(base: Path, on_conflict: str) -> None:
    """Of one user, the whole one of two copies would do."""
    temp, _ = write_pair(base, 0, MEMBERS, close="closed")
    temp.write_bytes(temp.read_bytes().replace(MEMBERS[1][1], MEMBERS[1][1].upper()))
    give(ALICE, *write_pair(base, 1, {1: MEMBERS[1]}, close="closed"))
    scavenge(base, on_conflict=on_conflict)
    kept = [base / "ar.zip", *(base / ".rear/lost+found").rglob("*.zip")]
    assert any(MEMBERS[1][1].upper() in path.read_bytes() for path in kept)


@pytest.mark.parametrize("on_conflict", ["rename", "first", "last"])
def test_copies_under_two_names_that_give_way_stop_nothing(base: Path, on_conflict: str) -> None:
    write_pair(base, 0, {1: MEMBERS[1]}, close="closed")
    write_pair(base, 1, {1: ("zzz", b"of the same number")}, close="closed")
    others = {1: ("a.txt", b"another"), 2: ("zzz", b"another, too"), 3: ("c.txt", b"the third")}
    write_pair(base, 0, others, close="closed", worker="8-8-abcdef")
    assert not of_kind(scavenge(base, on_conflict=on_conflict), Refused)
    assert {name for name, _ in others.values()} <= set(members(base))
    kept = b"".join(path.read_bytes() for path in (base / ".rear/lost+found").rglob("*.zip"))
    for content in (MEMBERS[1][1], b"of the same number", b"another", b"another, too"):
        assert content in kept or content in members(base).values()


# ---- notes and items


def forge_note(journal: Path, sequence: int = 1, *, intent: str = "") -> Path:
    """Write a note that its readers do not believe."""
    notes = journal.with_suffix(".merged")
    notes.write_bytes(
        encode_record(MergedRecord((sequence,), "ar.zip", intent, f"{journal.parent.name}/{journal.stem}"))
    )
    notes.chmod(0o664)
    return notes


def forge_item(base: Path, journal: Path) -> Path:
    """Put a local header into lost+found, as if a later member had taken the place of the first one."""
    parsed = read_journal(journal)
    assert parsed.opened is not None
    append = parsed.appends[1]
    folder = base / ".rear/lost+found/2001-01-01"
    folder.mkdir(parents=True, exist_ok=True)
    item = folder / f"{parsed.opened.host}-{parsed.opened.worker}-1-replaced.part"
    item.write_bytes(encode_local_header(member_of(append), origin_of(parsed.opened, append)))
    return item


@pytest.mark.parametrize("close", ["closed", None])
@pytest.mark.parametrize("owner", [None, ALICE])
def test_a_forged_note_and_a_forged_item_remove_nothing(base: Path, close: str | None, owner: int | None) -> None:
    _, journal = write_pair(base, 0, MEMBERS, close=close)
    notes, item = forge_note(journal), forge_item(base, journal)
    if owner is not None:
        notes.chmod(0o644)
        give(owner, notes, item, item.parent)
    events = scavenge(base)
    assert members(base) == EXPECTED
    assert [event.name for event in of_kind(events, Recovered)] == ["a.txt"]


def forge_bytes(base: Path, rotation: int, *, name: str = "a.txt") -> None:
    """Write a pair of another user with the identity, name, size and CRC-32 of the first member, and other bytes."""
    temp, journal = write_pair(base, rotation, {1: (name, MEMBERS[1][1])}, close="closed")
    content = MEMBERS[1][1][:-4] + b"%04d" % rotation
    temp.write_bytes(temp.read_bytes().replace(MEMBERS[1][1], content))
    if os.geteuid() == 0:
        give(ALICE, temp, journal)


@pytest.mark.parametrize("close", ["closed", None])
def test_a_noted_member_with_other_bytes_in_the_archive_is_not_the_same(base: Path, close: str | None) -> None:
    forge_bytes(base, 7)
    scavenge(base)
    _, journal = write_pair(base, 0, MEMBERS, close=close)
    forge_note(journal)
    [renamed] = of_kind(scavenge(base), Renamed)
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert archive.read(renamed.new_name) == MEMBERS[1][1]
        assert archive.read("b.txt") == MEMBERS[2][1]


def test_what_is_there_is_found_without_its_temp_archive(base: Path) -> None:
    temp, journal = write_pair(base, 0, {1: MEMBERS[1]}, worker=dead_worker())
    scavenge(base)
    [notes] = (base / ".rear/graveyard").rglob("*.merged")
    notes.chmod(0o664)
    notes.with_suffix(".zip").unlink()
    for path in (notes.with_suffix(".journal"), notes):
        path.rename(journal.parent / path.name)
    assert not of_kind(scavenge(base), Merged, Recovered, Refused)
    assert members(base) == {"a.txt": MEMBERS[1][1]}
    assert not temp.exists()


def test_many_that_say_to_be_one_member_are_not_all_compared(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rotation in range(100, 120):
        forge_bytes(base, rotation)
        scavenge(base)
    _, journal = write_pair(base, 0, {1: MEMBERS[1]}, close="closed")
    forge_note(journal)
    compared = []

    class Counting(Comparison):
        def is_copy(self, candidate: Candidate, existing: Existing) -> bool:
            compared.append(existing.target_start)
            return super().is_copy(candidate, existing)

    monkeypatch.setattr(archived_members, "Comparison", Counting)
    events = scavenge(base)
    assert of_kind(events, Renamed)
    assert len(compared) == archived_members._COMPARED_WITH
    assert MEMBERS[1][1] in (base / "ar.zip").read_bytes()


# ---- a file that somebody goes on with


def write_flushed(base: Path, rotation: int, sequence: int, content: bytes, archive: str = "ar.zip") -> list[Path]:
    """Write a pair of a worker that died with one file open, after it had flushed that."""
    here = this_process()
    pair = Pair(here.host, WORKER, rotation)
    opened = open_record(here._replace(pid=GONE, process_start=1), pair, cookie=rotation + 1, uid=os.geteuid())
    origin = Origin(rotation + 1, sequence, archive, here.host, WORKER, MTIME_NS, 0o100644)
    head = encode_local_header(Member("log", 0, 0, 0, 0, MTIME_NS, 0o100644), origin, is_open=True)
    file = File(sequence, 1, 0, archive, "log", 0, len(head), 0o100644)
    part = Part(0, len(content), len(head), len(content), crc32(content), MTIME_NS)
    folder = Layout(base).inbox_folder(pair)
    LOCAL.make_directories(folder)
    paths = [folder / f"{pair.stem}.zip", folder / f"{pair.stem}.journal"]
    paths[0].write_bytes(head + content)
    paths[1].write_bytes(b"".join(map(encode_record, (opened, file, part))))
    return paths


FIRST, LATER = b"measured: 1 2 3\n", b"measured: 1 2 3\nmeasured: 4\n"


@pytest.mark.parametrize("on_conflict", ["rename", "first", "last"])
def test_another_user_does_not_go_on_with_a_partial_file(on_conflict: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be several users")
    with base_of_mode(0o2775) as base:
        folder = base / "bob"
        folder.mkdir()
        folder.chmod(0o755)
        give(BOB, folder, *write_flushed(base, 0, 1, FIRST, "bob/ar.zip"))
        scavenge(base)
        assert (folder / "ar.zip").stat().st_uid == BOB
        give(ALICE, *write_flushed(base, 5, 6, LATER, "bob/ar.zip"))
        scavenge(base, on_conflict=on_conflict)
        there = members(base, "bob/ar.zip")
        kept = b"".join(path.read_bytes() for path in (base / ".rear/lost+found").rglob("*.*") if path.is_file())
        if on_conflict == "last":
            assert there == {"log": LATER}
            assert FIRST in kept
        else:
            assert there["log"] == FIRST
            assert LATER in kept or there["log~1"] == LATER


@pytest.mark.parametrize("owner", [None, BOB, "group"])
def test_its_writer_goes_on_with_a_partial_file(owner: int | str | None) -> None:
    """Of one user; root scavenges for another one; members of a group share base and archives."""
    with base_of_mode(0o2775, group=GROUP if os.geteuid() == 0 else os.getegid()) as base:
        for rotation, content in ((0, FIRST), (5, LATER)):
            paths = write_flushed(base, rotation, 1 + rotation, content)
            if isinstance(owner, int):
                give(owner, *paths)
            elif owner == "group":
                give(BOB if rotation else ALICE, *paths)
                for path in paths:
                    os.chown(path, -1, GROUP)
            scavenge(base)
        assert members(base) == {"log": LATER}


def test_two_users_say_to_have_one_file_in_one_round(base: Path) -> None:
    give(BOB, *write_flushed(base, 0, 1, FIRST))
    give(ALICE, *write_flushed(base, 5, 6, LATER))
    scavenge(base)
    assert sorted(members(base).values()) == [FIRST, LATER]


# ---- archives of foreign making


def as_written(data: bytes) -> bytes:
    return data


def upper_case_in_directory(data: bytes) -> bytes:
    """Change the names in the central directory, and not those in the local headers."""
    cut = data.index(b"PK\1\2")
    return data[:cut] + data[cut:].replace(b"short.txt", b"SHORT.TXT").replace(b"logs/n", b"LOGS/n")


def one_flipped_bit(data: bytes) -> bytes:
    return data.replace(b"short.txt", b"qhort.txt", 1)


@pytest.mark.crash
@pytest.mark.parametrize("change", [as_written, upper_case_in_directory, one_flipped_bit])
@pytest.mark.parametrize(
    "writer", ["zipfile", "zipfile-stream", "zipfile-zip64", "zip", "zip-prefix", "7z", "bsdtar", "bytes-bare-8"]
)
def test_a_merge_into_any_archive_that_dies_is_undone(
    base: Path, writer: str, change: Callable[[bytes], bytes]
) -> None:
    (base / "ar.zip").write_bytes(change(zoo.make(writer, base.parent).read_bytes()))
    with zipfile.ZipFile(base / "ar.zip") as archive:
        before = archive.namelist()
    write(base, {"ar.zip/new": b"n" * 100_000})
    dying = dying_when(lambda point, path: point.half and point.operation == "copy_range" and path.endswith("/ar.zip"))
    assert in_child(lambda: scavenge(base, storage=dying)) == -signal.SIGKILL
    events = scavenge(base)
    assert of_kind(events, RolledBack)
    assert not of_kind(events, Refused)
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert archive.namelist() == [*before, "new"]


# ---- archives that were moved away


@pytest.mark.parametrize("where", ["graveyard", "inbox"])
@pytest.mark.parametrize("next_name", ["c.txt", "a.txt"])
def test_what_was_moved_away_with_its_archive_does_not_come_again(
    base: Path, where: str, next_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new archive has its name by now."""
    _, journal = write_pair(base, 0, MEMBERS, worker=dead_worker())
    scavenge(base)
    (base / "ar.zip").rename(base / "week48.zip")
    write_pair(base, 0, {1: (next_name, b"the third")}, close="closed", worker="6-6-abcdef")
    scavenge(base)
    buried = list((base / ".rear/graveyard").rglob("*.*"))
    assert len(buried) == 3
    if where == "inbox":
        for path in buried:
            path.rename(journal.parent / path.name)
    monkeypatch.setattr(Claims, "_is_over", lambda self, pair, journal: True)
    assert not of_kind(scavenge(base), Merged, Recovered, Refused)
    assert members(base) == {next_name: b"the third"}
    assert members(base, "week48.zip") == EXPECTED


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_member_that_gave_way_does_not_come_again(
    base: Path, is_replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later member took its place, as asked; whether what it was is in lost+found still, makes no difference."""
    write_pair(base, 0, MEMBERS, worker=dead_worker())
    scavenge(base)
    write_pair(base, 0, {1: ("a.txt", b"the last one")}, close="closed", worker="6-6-abcdef")
    scavenge(base, on_conflict="last")
    if not is_replaced:
        for path in (base / ".rear/lost+found").rglob("*.*"):
            with contextlib.suppress(OSError):
                path.unlink()
    monkeypatch.setattr(Claims, "_is_over", lambda self, pair, journal: True)
    assert not of_kind(scavenge(base, on_conflict="last"), Merged, Recovered)
    assert members(base) == {"a.txt": b"the last one", "b.txt": MEMBERS[2][1]}


def test_a_note_of_a_merge_counts_only_from_whom_it_is(base: Path) -> None:
    write_pair(base, 0, {3: ("old.txt", b"old")}, close="closed", worker="6-6-abcdef")
    scavenge(base)
    _, journal = write_pair(base, 0, MEMBERS, close="closed")
    forge_note(journal, intent=f"{Layout(base).intent('ar.zip').stem}-vm-1-ab")
    scavenge(base)
    assert members(base) == {**EXPECTED, "old.txt": b"old"}


@pytest.mark.parametrize("archive", ["../ar.zip", "/etc/ar.zip", "x", ".rear/ar.zip"])
def test_a_note_of_a_merge_into_no_archive_stops_nobody(base: Path, archive: str) -> None:
    _, journal = write_pair(base, 0, MEMBERS, close="closed")
    data = journal.read_bytes()
    parsed = read_journal(journal)
    assert parsed.opened is not None
    forged = parsed.appends[1]._replace(archive=archive)
    journal.write_bytes(data.splitlines(keepends=True)[0] + encode_record(forged))
    notes = journal.with_suffix(".merged")
    notes.write_bytes(encode_record(MergedRecord((1,), archive, "x-y", f"{journal.parent.name}/{journal.stem}")))
    notes.chmod(0o644)
    write_pair(base, 0, {1: ("c.txt", b"the third")}, close="closed", worker="6-6-abcdef")
    scavenge(base)
    # What its temp archive says itself is merged; there it is for ar.zip.
    assert members(base) == {"c.txt": b"the third", "b.txt": MEMBERS[2][1]}


def test_users_do_not_lose_to_each_other() -> None:
    """All of it once with real users: forged pairs and notes of one, a scavenge of each of them."""
    with users() as people, base_of_mode(0o2775) as base:
        people.write(BOB, base, "ar.zip/b-", 2)
        [journal] = (base / ".rear/inbox").rglob("*.journal")
        notes, item = forge_note(journal), forge_item(base, journal)
        give(ALICE, notes, item, item.parent)
        for user in (BOB, ALICE, BOB):
            assert people.rear(user, "scavenge", base).status in (0, 1)
        assert members(base) == {f"b-{number}.txt": f"ar.zip/b-{number}".encode() for number in range(2)}
