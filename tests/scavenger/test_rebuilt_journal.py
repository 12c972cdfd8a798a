"""Journal and bytes of crashed workers laid side by side: what one of them lost is taken from the other."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bases import check_base, members, of_kind, put, renew, scavenge
from faults import RecordProperty, Tampered, after, dying_at, fork, in_child, some, wait
from pairs import MTIME_NS, dead_worker, see_nobody, write_pair
from power_loss import lose_power_at_each, scavenge_on
from programs import wait_for
from zips import flip

import rear
from rear.core.liveness import this_process
from rear.core.records import Pair
from rear.core.storage import LOCAL
from rear.events import (
    Claimed,
    Cleared,
    Damaged,
    Event,
    JournalDamaged,
    JournalRebuilt,
    LeftAlone,
    Lost,
    Recovered,
    Torn,
)
from rear.journal.codec import encode_record
from rear.journal.reader import read_journal
from rear.read.view import open_committed
from rear.salvage.scan import scan
from rear.scavenger.claims import ClaimedPair
from rear.scavenger.rebuilt_journal import find_unjournaled
from rear.zip.codecs import DEFLATED, crc32

TEXT = b"".join(f"line {number} of a log\n".encode() for number in range(4000))
MEMBERS = {number: (f"logs/{number}.txt", TEXT[: number * 997] + bytes([number])) for number in range(1, 8)}
EXPECTED = {f"ar.zip/{name}": data for name, data in MEMBERS.values()}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path, 0, MEMBERS, worker=dead_worker(), method=DEFLATED)


def losses(events: list[Event]) -> list[Event]:
    return [event for event in events if event.severity == "loss"]


def test_a_lost_journal_costs_nothing(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pair[1].unlink()
    events = scavenge(tmp_path)
    (rebuilt,) = of_kind(events, JournalRebuilt)
    assert (rebuilt.members, losses(events)) == (len(MEMBERS), [])
    check_base(tmp_path, EXPECTED)


def test_a_journal_of_any_length_costs_nothing(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    whole = pair[1].read_bytes()
    base = tmp_path / "base"
    chance = random.Random(1)
    lengths = {0, 1, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(25))}
    lengths |= {position + shift for position in range(len(whole)) if whole[position] == 10 for shift in (0, 1)}
    for length in sorted(lengths):
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(tmp_path / ".rear", base / ".rear")
        os.truncate(base / pair[1].relative_to(tmp_path), length)
        events = scavenge(base)
        assert losses(events) == [], length
        check_base(base, EXPECTED, lost_and_found=True)


def test_a_flipped_bit_anywhere_in_the_journal_costs_nothing(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    base = tmp_path / "base"
    chance = random.Random(2)
    length = pair[1].stat().st_size
    for position in sorted({0, 5, 9, length - 1, *(chance.randrange(length) for _ in range(40))}):
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(tmp_path / ".rear", base / ".rear")
        flip(base / pair[1].relative_to(tmp_path), position)
        events = scavenge(base)
        check_base(base, EXPECTED, lost_and_found=True)
        # Damage at the very end may have named a member whose bytes are gone too: nobody can tell.
        if position < length - 300:
            assert losses(events) == [], position


def test_a_damaged_record_in_the_middle_is_told_of(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    whole = pair[1].read_bytes()
    third = sum(map(len, whole.splitlines(keepends=True)[:3]))
    flip(pair[1], third + 30)
    events = scavenge(tmp_path)
    (recovered,) = of_kind(events, Recovered)
    assert (recovered.archive, recovered.name) == ("ar.zip", MEMBERS[3][0])
    assert len(of_kind(events, JournalDamaged)) == 1
    check_base(tmp_path, EXPECTED)


def test_members_of_a_lost_journal_that_are_merged_already_are_not_merged_again(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    temp = pair[0].read_bytes()
    scavenge(tmp_path)
    pair[0].write_bytes(temp)
    scavenge(tmp_path)
    check_base(tmp_path, EXPECTED)
    # Nor when the first copy got another name, and its name was taken by somebody else.
    base = tmp_path / "second"
    write_pair(base, 0, {1: (MEMBERS[1][0], b"taken")})
    scavenge(base)
    place = base / pair[0].relative_to(tmp_path)
    for _ in range(3):
        place.write_bytes(temp)
        scavenge(base)
    renamed = EXPECTED | {"ar.zip/logs/1.txt": b"taken", "ar.zip/logs/1~1.txt": MEMBERS[1][1]}
    check_base(base, renamed)


def test_a_damaged_local_header_costs_nothing(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    journal = read_journal(pair[1])
    for sequence, shift in {2: 0, 3: 27, 4: 33, 5: 80, 6: 14}.items():
        flip(pair[0], journal.appends[sequence].offset + shift)
    events = scavenge(tmp_path)
    assert losses(events) == []
    assert [event.name for event in of_kind(events, Recovered)] == [MEMBERS[number][0] for number in range(2, 7)]
    check_base(tmp_path, EXPECTED)
    with open_committed(tmp_path / "ar.zip") as archive:
        origins = [archive.origin(entry) for entry in archive.entries()]
    assert sorted(origin.sequence for origin in origins if origin) == list(MEMBERS)


def test_what_decodes_of_a_damaged_member_is_kept_apart(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    append = read_journal(pair[1]).appends[6]
    flip(pair[0], append.data_offset + append.compressed_size // 2)
    (lost,) = of_kind(scavenge(tmp_path), Lost)
    assert lost.name == MEMBERS[6][0]
    (partial,) = (tmp_path / ".rear/lost+found").rglob("*.partial")
    assert partial.name.endswith("6.txt.partial")
    content = partial.read_bytes()
    # Up to the flipped bit it is right; decoders notice that a little later.
    same = next((at for at, pair in enumerate(zip(content, MEMBERS[6][1], strict=False)) if pair[0] != pair[1]), 0)
    assert same > len(MEMBERS[6][1]) // 4
    assert str(partial.relative_to(tmp_path)) in lost.reason
    assert json.loads(partial.with_name(f"{partial.name}.json").read_text())["name"] == MEMBERS[6][0]
    check_base(
        tmp_path, {target: data for target, data in EXPECTED.items() if "6.txt" not in target}, lost_and_found=True
    )


def test_a_hole_is_named(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    journal = read_journal(pair[1])
    start, end = journal.appends[3].offset, journal.appends[4].offset + journal.appends[4].length
    data = bytearray(pair[0].read_bytes())
    data[start:end] = bytes(end - start)
    pair[0].write_bytes(data)
    events = scavenge(tmp_path)
    assert [event.name for event in of_kind(events, Lost)] == [MEMBERS[3][0], MEMBERS[4][0]]
    gone = (MEMBERS[3][0], MEMBERS[4][0])
    check_base(
        tmp_path, {target: data for target, data in EXPECTED.items() if not target.endswith(gone)}, lost_and_found=True
    )


def test_an_empty_member_needs_no_bytes(tmp_path: Path) -> None:
    temp, _ = write_pair(tmp_path, 0, {1: ("a", b"one"), 2: ("empty", b""), 3: ("folder/", b"")})
    temp.unlink()
    events = scavenge(tmp_path)
    assert [event.name for event in of_kind(events, Lost)] == ["a"]
    assert members(tmp_path) == {"empty": b"", "folder/": b""}


# --- from the source ------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "spool" / "result.txt"
    path.parent.mkdir()
    path.write_bytes(TEXT)
    os.utime(path, ns=(MTIME_NS, MTIME_NS))
    return path


def change_time(path: Path) -> None:
    os.utime(path, ns=(MTIME_NS, MTIME_NS + 1))


def change_content(path: Path) -> None:
    path.write_bytes(TEXT[:-1] + b"?")
    os.utime(path, ns=(MTIME_NS, MTIME_NS))


def change_size(path: Path) -> None:
    path.write_bytes(TEXT[:-1])
    os.utime(path, ns=(MTIME_NS, MTIME_NS))


def change_owner(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, 12345, -1)


def make_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("missing", [True, False])
def test_a_pickup_is_archived_anew_from_its_source(tmp_path: Path, source: Path, missing: bool) -> None:
    temp, journal = write_pair(tmp_path, 0, {1: ("a", b"one"), 2: ("b", TEXT)}, sources={2: source}, method=DEFLATED)
    if missing:
        temp.unlink()
    else:
        append = read_journal(journal).appends[2]
        flip(temp, append.data_offset + 20)
    events = scavenge(tmp_path)
    (recovered,) = of_kind(events, Recovered)
    assert str(source) in str(recovered)
    expected = {"b": TEXT} if missing else {"a": b"one", "b": TEXT}
    assert members(tmp_path) == expected
    # What was not archived by its worker is not removed for it either.
    assert source.read_bytes() == TEXT
    assert [event.name for event in of_kind(events, Lost)] == ["a"] * missing
    assert of_kind(scavenge(tmp_path), Claimed) == []


@pytest.mark.parametrize(
    "change", [Path.unlink, change_time, change_content, change_size, change_owner, make_link, make_fifo]
)
def test_another_source_is_not_taken_for_it(tmp_path: Path, source: Path, change: Callable[[Path], None]) -> None:
    temp, _ = write_pair(tmp_path, 0, {1: ("b", TEXT), 2: ("last", b"it may be torn")}, sources={1: source})
    temp.unlink()
    change(source)
    (lost,) = of_kind(scavenge(tmp_path), Lost)
    assert (lost.name, lost.source) == ("b", str(source))
    assert "its source" in lost.reason
    assert not (tmp_path / "ar.zip").exists()


# --- a journal's word about files ------------------------------------------------------------------------------------


def forge(journal: Path, **changes: object) -> None:
    """Change what a journal says of its members."""
    parsed = read_journal(journal)
    assert parsed.opened is not None
    records = [parsed.opened, *(append._replace(**changes) for append in parsed.appends.values())]  # type: ignore[arg-type]
    journal.write_bytes(b"".join(map(encode_record, records)))


def test_a_forged_source_ends_no_scavenge(tmp_path: Path) -> None:
    temp, journal = write_pair(tmp_path, 0, {1: ("a", b"x" * 100), 2: ("b", b"y")})
    forge(journal, source="/spool/a\0b")
    os.truncate(temp, 50)
    assert [event.name for event in of_kind(scavenge(tmp_path), Lost)] == ["a"]


def test_a_source_of_another_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "sparse"
    source.touch()
    os.truncate(source, 1 << 40)
    temp, journal = write_pair(tmp_path / "base", 0, {1: ("a", b"x" * 100), 2: ("b", b"y")})
    forge(journal, source=str(source), method=DEFLATED)
    os.truncate(temp, 50)
    monkeypatch.setattr("rear.scavenger.rescue.payload_of_file", None)
    (lost,) = of_kind(scavenge(tmp_path / "base"), Lost)
    assert "has changed since" in str(lost)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_journal_that_was_made_anew_gives_no_right_to_files_of_who_made_it(tmp_path: Path) -> None:
    base, secret = tmp_path / "base", tmp_path / "secret"
    secret.write_bytes(b"1234")
    secret.chmod(0o600)
    temp, journal = write_pair(base, 0, {1: ("a", b"x" * 100), 2: ("b", b"y")}, worker=dead_worker())
    forge(
        journal, source=str(secret), size=4, source_end=4, crc=crc32(b"1234"), mtime_ns=secret.stat().st_mtime_ns,
    )  # fmt: skip
    journal.write_bytes(b"no first record\n" + b"".join(journal.read_bytes().splitlines(keepends=True)[1:]))
    temp.unlink()
    os.chown(journal, 12345, 12345)
    scavenge(base)
    assert not (base / "ar.zip").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_temp_archive_of_another_user_gets_a_journal_again(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pair[1].unlink()
    os.chown(pair[0], 12345, 12345)
    scavenge(tmp_path)
    check_base(tmp_path, EXPECTED)


def test_a_journal_of_members_without_anything_else_is_told_of(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pair[1].write_bytes(b"".join(pair[1].read_bytes().splitlines(keepends=True)[1:]))
    pair[0].unlink()
    told = {event.name for event in scavenge(tmp_path) if isinstance(event, (Lost, Torn))}
    assert told == {name for name, _ in MEMBERS.values()}


# --- who is alive ---------------------------------------------------------------------------------------------------


def test_a_live_worker_without_journal_is_left_alone(tmp_path: Path) -> None:
    def work() -> None:
        with rear.rear_fs(tmp_path) as fs:
            put(fs, "ar.zip/a", "one")
            time.sleep(60)

    worker = fork(work)
    try:
        wait_for(lambda: list(tmp_path.rglob("*.zip")))
        (journal,) = tmp_path.rglob("*.journal")
        time.sleep(0.3)
        journal.unlink()
        (left,) = of_kind(scavenge(tmp_path), LeftAlone)
        assert "lives" in str(left)
    finally:
        os.kill(worker, signal.SIGKILL)
        assert wait(worker) == -signal.SIGKILL
    scavenge(tmp_path)
    assert members(tmp_path) == {"a": b"one"}


def test_an_orphan_of_an_unseen_host_waits_until_it_does_not_grow(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None]
) -> None:
    pair[1].unlink()
    see_nobody(monkeypatch)
    for seconds in (0, 500):
        later(seconds)
        (left,) = of_kind(scavenge(tmp_path), LeftAlone)
        assert "cannot be seen" in str(left)
    later(101)
    assert of_kind(scavenge(tmp_path), JournalRebuilt)
    assert members(tmp_path) == dict(MEMBERS.values())
    # Nobody knows that it cannot come back, so it is buried.
    assert [path.name for path in (tmp_path / ".rear/graveyard").rglob("*.zip")] == [pair[0].name]
    for _ in range(2):
        later(10_000)
        events = scavenge(tmp_path)
    assert of_kind(events, Cleared)
    check_base(tmp_path, EXPECTED)


def test_a_temp_archive_that_tells_nothing_is_kept_as_a_whole(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pair[1].unlink()
    pair[0].write_bytes(os.urandom(5000))
    data = pair[0].read_bytes()
    (damaged,) = of_kind(scavenge(tmp_path), Damaged)
    assert (tmp_path / damaged.lost_and_found).read_bytes() == data
    assert json.loads((tmp_path / damaged.lost_and_found).with_suffix(".json").read_text())["reason"] in damaged.reason
    assert not pair[0].exists()
    assert losses(scavenge(tmp_path)) == []


@pytest.mark.skipif(shutil.which("zip") is None, reason="zip is not installed")
def test_what_zip_makes_of_a_temp_archive_counts_only_when_its_members_pass(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair[1].unlink()
    data = pair[0].read_bytes()
    blind = {pair[0].name}

    def scan_blindly(descriptor: int, **options: object) -> Iterator[object]:
        """A scanner that makes nothing of the temp archive itself."""
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        if name in blind:
            blind.discard(name)
            return iter(())
        return scan(descriptor, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("rear.scavenger.rebuilt_journal.scan", scan_blindly)
    (rebuilt,) = of_kind(scavenge(tmp_path), JournalRebuilt)
    assert rebuilt.members == len(MEMBERS)
    check_base(tmp_path, EXPECTED, lost_and_found=True)
    (kept,) = (tmp_path / ".rear/lost+found").rglob("*.zip")
    assert kept.read_bytes() == data


def test_a_crash_while_what_zip_made_takes_its_place(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    good = tmp_path / "good"
    shutil.copy(pair[0], good)
    pair[1].unlink()
    pair[0].write_bytes(bytes(1000))

    def fix(path: Path, folder: str, *, storage: object) -> Path:
        """Stands for a ``zip -FF`` that finds the members."""
        return Path(shutil.copy(good, Path(folder) / "fixed.zip"))

    monkeypatch.setattr("rear.scavenger.rebuilt_journal.fix", fix)
    template = tmp_path / "template"
    shutil.copytree(tmp_path / ".rear", template / ".rear")
    storage = Tampered()
    shutil.copytree(template, base)
    scavenge(base, storage=storage)
    for point in storage.points:
        renew(base, template)
        in_child(lambda point=point: scavenge(base, storage=dying_at(point)))
        for _ in range(2):
            scavenge(base)
        check_base(base, EXPECTED, lost_and_found=True)


def test_without_zip_that_is_said(tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pair[1].unlink()
    pair[0].write_bytes(os.urandom(5000))
    monkeypatch.setenv("PATH", "")
    (damaged,) = of_kind(scavenge(tmp_path), Damaged)
    assert "zip is not installed" in str(damaged)


def test_a_torn_directory_of_its_own_is_no_finding(tmp_path: Path) -> None:
    temp, journal = write_pair(tmp_path, 0, MEMBERS, worker=dead_worker(), method=DEFLATED, close="exit")
    whole, records = temp.read_bytes(), journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(records[:-1]))
    end = max(append.offset + append.length for append in read_journal(journal).appends.values())
    opened = read_journal(journal)
    claimed = ClaimedPair(Pair(this_process().host, dead_worker(), 0), temp.parent, opened, "crashed")
    for length in range(end, len(whole)):
        temp.write_bytes(whole[:length])
        descriptor = os.open(temp, os.O_RDONLY)
        assert list(find_unjournaled(claimed, descriptor, storage=LOCAL)) == [], length
        os.close(descriptor)


def test_bytes_that_nobody_can_place_are_kept_and_told_of(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pair[0].open("ab") as file:
        file.write(b"what is this?" * 10)
    events = scavenge(tmp_path)
    (damaged,) = of_kind(events, Damaged)
    assert damaged.length == 130
    assert (tmp_path / damaged.lost_and_found).read_bytes().endswith(b"what is this?")
    check_base(tmp_path, EXPECTED, lost_and_found=True)


# --- crashes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(folder: Path) -> Path:
    """A base with an orphan, a damaged journal, a damaged header, a rescue from a source, and a hole."""
    base = folder / "template"
    source = folder / "source"
    source.write_bytes(TEXT)
    os.utime(source, ns=(MTIME_NS, MTIME_NS))
    worker = dead_worker()
    orphan, journal = write_pair(
        base, 0, {number: (f"o/{number}", data) for number, (_, data) in MEMBERS.items()}, worker=worker
    )
    journal.unlink()
    _, journal = write_pair(base, 0, {number: (f"j/{number}", data) for number, (_, data) in MEMBERS.items()})
    flip(journal, len(b"".join(journal.read_bytes().splitlines(keepends=True)[:4])) + 40)
    temp, journal = write_pair(
        base,
        0,
        {1: ("h/1", b"header"), 2: ("s/2", TEXT), 3: ("hole", b"x" * 2000)},
        worker="8-8-abcdef",
        sources={2: source},
    )
    appends = read_journal(journal).appends
    flip(temp, appends[1].offset + 2)
    flip(temp, appends[2].data_offset + 100)
    data = temp.read_bytes()
    temp.write_bytes(data[: appends[3].offset] + bytes(appends[3].length))
    assert orphan.exists()
    return base


SURVIVORS = {f"ar.zip/o/{number}": data for number, (_, data) in MEMBERS.items()}
SURVIVORS |= {f"ar.zip/j/{number}": data for number, (_, data) in MEMBERS.items()}
SURVIVORS |= {"ar.zip/h/1": b"header", "ar.zip/s/2": TEXT}


@pytest.mark.crash
def test_salvage_is_killed_at_every_operation(folder: Path, template: Path, record_property: RecordProperty) -> None:
    base = folder / "base"
    renew(base, template)
    storage = Tampered()
    events = scavenge(base, storage=storage)
    assert {event.name for event in of_kind(events, Lost) + of_kind(events, Torn)} == {"hole"}
    check_base(base, SURVIVORS, lost_and_found=True)
    points = some(storage.points, 60)
    for point in points:
        renew(base, template)
        assert in_child(lambda point=point: scavenge(base, storage=dying_at(point))) == -signal.SIGKILL, point
        for _ in range(3):
            scavenge(base)
        with after(f"killed at {point}"):
            check_base(base, SURVIVORS, lost_and_found=True)
            assert list((base / ".rear/lost+found").rglob("*-3.part")) or list(
                (base / ".rear/lost+found").rglob("*-3.json")
            )
    record_property("crash_points", len(points))


@pytest.mark.crash
def test_salvage_loses_power(template: Path, record_property: RecordProperty) -> None:
    def judge(base: Path) -> None:
        scavenge(base)
        check_base(base, SURVIVORS, lost_and_found=True)

    count = lose_power_at_each(template, scavenge_on, judge, points=40, seeds=2)
    record_property("crash_points", count)


def test_a_directory_that_breaks_off_is_no_loss(tmp_path: Path) -> None:
    """A full disk, or SIGKILL, ends the write of a temp archive's directory anywhere."""
    base = tmp_path / "base"
    archive, journal = write_pair(base, 0, MEMBERS, worker=dead_worker(), method=DEFLATED, close="exit")
    whole, records = archive.read_bytes(), journal.read_bytes().splitlines(keepends=True)
    members_end = read_journal(journal, storage=LOCAL).appends[max(MEMBERS)]
    begin = members_end.offset + members_end.length
    assert whole[begin : begin + 4] == b"PK\x01\x02"
    for length in [*range(begin, begin + 120, 11), begin + 1, *range(len(whole) - 90, len(whole), 9), len(whole)]:
        shutil.rmtree(base)
        archive.parent.mkdir(parents=True)
        archive.write_bytes(whole[:length])
        # Without its last record, "close".
        journal.write_bytes(b"".join(records[:-1]))
        assert losses(scavenge(base)) == [], length
        check_base(base, EXPECTED)


def test_other_bytes_behind_the_members_are_kept(tmp_path: Path) -> None:
    archive, _ = write_pair(tmp_path, 0, MEMBERS, worker=dead_worker(), method=DEFLATED)
    with archive.open("ab") as file:
        file.write(b"PKW" + bytes(20))
    (damaged,) = losses(scavenge(tmp_path))
    assert isinstance(damaged, Damaged)
    assert (damaged.length, (tmp_path / damaged.lost_and_found).exists()) == (23, True)
