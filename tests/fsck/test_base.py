"""``rear fsck BASE``: what it finds, mends and leaves; -n changes nothing; killed anywhere it loses nothing."""

from __future__ import annotations

import errno
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fixtures
import pytest
from bases import check_base, contents, put, renew
from checkout import REAR
from damaged_bases import (
    DAMAGE,
    EXPECTED,
    FILES,
    check,
    cut_end_record,
    expected_after,
    interrupt_merge_and_damage_intent,
    kill_scavenger_when,
    leave_fresh_file,
    remove_index,
    write_files,
)
from faults import Failing, RecordProperty, after, at, dying_at, dying_when, fork, in_child, is_one_of, points_of, some
from pairs import dead_worker, write_pair
from power_loss import lose_power_at_each
from zips import directory_offset, flip

import rear
from rear.core.problems import CATALOG, Problem, exit_status, outcome_of
from rear.core.storage import LOCAL, Storage
from rear.errors import BaseError, NotLeaderError
from rear.events import Checked, Event
from rear.fsck.base import fsck
from rear.journal.reader import read_journal
from rear.read.view import open_committed


def problems(events: list[Event], *outcomes: str) -> list[Problem]:
    return [
        event
        for event in events
        if isinstance(event, Problem) and event.outcome in (outcomes or ("repaired", "left", "would repair"))
    ]


def status(events: list[Event]) -> int:
    return exit_status(map(outcome_of, events))


def state_of(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_ino) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def data_start(base: Path) -> int:
    """Where the bytes of random.bin begin."""
    with open_committed(base / "ar.zip") as archive:
        entry = archive.find("random.bin")
        return entry.offset + archive.local_header(entry).length


@pytest.fixture(scope="module")
def sound(folder: Path) -> Path:
    """A base with everything merged."""
    base = folder / "sound"
    write_files(base)
    for _ in rear.scavenge(base):
        pass
    check_base(base, EXPECTED)
    return base


folder_base = fixtures.folder_base


@pytest.fixture
def base(folder_base: Path, sound: Path) -> Path:
    return renew(folder_base, sound)


# --- damage: each makes one kind of it, and is named by the code that fsck has to give it ------------------------


def kill_scavenger(base: Path) -> str:
    write_pair(base, 0, {1: ("late", b"late")}, close="exit")
    kill_scavenger_when(base, lambda point, path: path.endswith(".planning"))
    assert {problem.code for problem in problems(check(base, report_only=True), "would repair")} == {
        "scavenger-crashed"
    }
    return "scavenger-crashed"


def test_a_sound_base_is_clean(base: Path) -> None:
    before = state_of(base)
    events = check(base, deep=True)
    assert problems(events) == []
    assert status(events) == 0
    done = events[-1]
    assert isinstance(done, Checked)
    assert (done.archives, done.members, done.report) == (2, len(EXPECTED), None)
    after = state_of(base)
    # Each leader takes a number.
    for state in (before, after):
        for name in [name for name in state if name.startswith((".rear/terms", ".rear/lock"))]:
            del state[name]
    assert {name: value for name, value in after.items() if value != before.get(name)} == {}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_mended_and_gone(base: Path, damage: Callable[[Path], str]) -> None:
    code = damage(base)
    before = state_of(base)
    told = check(base, report_only=True)
    assert state_of(base) == before
    assert code in {problem.code for problem in problems(told, "would repair")}
    assert status(told) == 4
    mended = check(base)
    assert code in {problem.code for problem in problems(mended, "repaired")}, problems(mended)
    assert problems(mended, "left") == []
    assert status(mended) == 1
    check_base(base, expected_after(damage), lost_and_found=True)
    again = check(base, deep=True)
    assert (problems(again), status(again)) == ([], 0)


def test_claims_of_a_scavenger_that_was_killed(base: Path) -> None:
    kill_scavenger(base)
    assert status(check(base, report_only=True)) == 4
    check(base)
    check_base(base, EXPECTED | {"ar.zip/late": b"late"})
    assert status(check(base, report_only=True)) == 0


def test_the_damaged_archive_is_kept(base: Path) -> None:
    cut_end_record(base)
    damaged = (base / "ar.zip").read_bytes()
    (problem,) = [problem for problem in problems(check(base)) if problem.code == "archive-directory-damaged"]
    assert problem.lost_and_found is not None
    assert (base / problem.lost_and_found).read_bytes() == damaged
    (noted,) = [one for one in problems(check(base), "noted") if one.code == "lost-and-found-items"]
    assert "lost+found" in noted.subject


def test_a_member_that_is_damaged_is_lost_once_and_by_name(base: Path) -> None:
    offset = directory_offset(base / "ar.zip")
    flip(base / "ar.zip", data_start(base) + 5000)
    # Without --deep nothing shows it; then it is told of each time, and the archive stays as it is.
    assert status(check(base)) == 0
    for _ in range(2):
        (problem,) = problems(check(base, deep=True))
        assert (problem.code, problem.name, problem.outcome) == ("member-data-damaged", "random.bin", "left")
    # With a damaged directory the archive is rebuilt, without it.
    os.truncate(base / "ar.zip", offset)
    events = check(base)
    assert status(events) == 4
    assert {problem.name for problem in problems(events, "left")} == {"random.bin"}
    check_base(base, {t: data for t, data in EXPECTED.items() if "random" not in t}, lost_and_found=True)
    assert status(check(base, deep=True)) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_rebuilt_archive_keeps_owner_and_mode(base: Path) -> None:
    path = base / "ar.zip"
    path.chmod(0o640)
    os.chown(path, 12345, 12346)
    cut_end_record(base)
    assert status(check(base)) == 1
    found = path.stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o640, 12345, 12346)


def test_an_archive_whose_merge_cannot_be_undone_now_is_not_rebuilt(base: Path) -> None:
    """Its undo, later, would write the old end into the new archive."""

    class Once(Storage):
        def copy_range(self, source: int, target: int, **options: Any) -> None:
            if os.readlink(f"/proc/self/fd/{target}").endswith("/ar.zip"):
                raise OSError(errno.EIO, os.strerror(errno.EIO), "ar.zip")
            super().copy_range(source, target, **options)

    write_pair(base, 0, {1: ("late", b"late" * 90)}, close="exit")
    kill_scavenger_when(base, lambda point, path: point.operation == "write" and path.endswith("/ar.zip"))
    start = data_start(base)
    flip(base / "ar.zip", 31)
    flip(base / "ar.zip", start + 9)
    for storage in (Once(), LOCAL, LOCAL):
        check(base, deep=True, storage=storage)
    found = [name for name, _ in contents(base / "ar.zip")]
    assert len(found) == len(set(found))
    assert set(found) >= {"late", *FILES} - {"random.bin"}


def test_nothing_in_lost_and_found_is_taken_for_the_rest_of_a_write(base: Path) -> None:
    flip(base / "ar.zip", data_start(base) + 5000)
    cut_end_record(base)
    temp, journal = write_pair(base, 0, {1: ("hole", b"x" * 500), 2: ("whole", b"y")})
    append = read_journal(journal).appends[1]
    flip(temp, append.data_offset + 7)
    check(base)
    lost_and_found = base / ".rear/lost+found"
    before = state_of(lost_and_found)
    assert {".part", ".partial", ".json", ".zip"} <= {Path(name).suffix for name in before}
    check(base)
    for _ in rear.scavenge(base):
        pass
    assert state_of(lost_and_found) == before


def test_a_member_that_only_the_index_knows_is_named(base: Path) -> None:
    with open_committed(base / "ar.zip") as archive:
        entry = archive.find("logs/5.txt")
        length = archive.local_header(entry).length + entry.compressed_size
        offset = archive.directory.offset
    data = bytearray((base / "ar.zip").read_bytes()[:offset])
    data[entry.offset : entry.offset + length] = bytes(length)
    (base / "ar.zip").write_bytes(data)
    (problem,) = problems(check(base), "left")
    assert (problem.code, problem.name) == ("member-lost", "logs/5.txt")


def test_several_damages_at_once(base: Path) -> None:
    interrupt_merge_and_damage_intent(base)
    write_pair(base, 1, {2: ("more", b"more")}, worker="9-9-abcdef")
    flip(base / "sub/other.zip", 31)
    remove_index(base)
    events = check(base)
    assert status(events) == 1, problems(events)
    check_base(base, EXPECTED | {"ar.zip/late": b"late", "ar.zip/more": b"more"}, lost_and_found=True)
    assert status(check(base, deep=True)) == 0


def test_what_a_live_worker_owns_is_not_touched(base: Path) -> None:
    with rear.rear_fs(base) as fs:
        put(fs, "ar.zip/live", "alive")
        (journal,) = (base / ".rear/inbox").rglob("*.journal")
        events = check(base)
        assert status(events) == 0
        assert journal.exists()
        put(fs, "ar.zip/live too", "alive")
    for _ in rear.scavenge(base):
        pass
    check_base(base, EXPECTED | {"ar.zip/live": b"alive", "ar.zip/live too": b"alive"})


def test_an_archive_that_somebody_else_is_writing_is_left(base: Path) -> None:
    with zipfile.ZipFile(base / "whole.zip", "w") as archive:
        archive.writestr("a", b"a" * 1000)
    data = (base / "whole.zip").read_bytes()
    (base / "theirs.zip").write_bytes(data[:-30])
    events = check(base)
    (problem,) = problems(events)
    assert (problem.code, problem.subject, problem.outcome) == ("archive-directory-damaged", "theirs.zip", "left")
    assert (base / "theirs.zip").read_bytes() == data[:-30]


def test_an_archive_that_is_no_zip_any_more_is_left(base: Path) -> None:
    length = (base / "ar.zip").stat().st_size
    (base / "ar.zip").write_bytes(os.urandom(length))
    noise = (base / "ar.zip").read_bytes()
    events = check(base)
    assert status(events) == 4
    assert (base / "ar.zip").read_bytes() == noise
    assert "archive-not-a-zip" in {problem.code for problem in problems(events, "left")}


def test_strangers_are_noted(base: Path) -> None:
    (base / ".rear/readme.txt").write_text("mine")
    (base / ".rear/reports").mkdir(exist_ok=True)
    (base / ".rear/reports/mine").write_text("mine")
    (base / "sub/other.zip").unlink()
    events = check(base)
    assert status(events) == 0
    assert {(problem.code, problem.subject) for problem in problems(events, "noted")} == {
        ("stray-file", ".rear/readme.txt"),
        ("stray-file", ".rear/reports/mine"),
        ("index-stray", ".rear/index/sub/other.zip"),
    }
    assert (base / ".rear/readme.txt").exists()


def test_a_base_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BaseError):
        list(fsck(tmp_path / "missing"))
    events = check(tmp_path)
    assert status(events) == 0
    assert list(tmp_path.iterdir()) == []


def test_while_a_scavenger_works(base: Path) -> None:
    write_pair(base, 0, {1: ("late", b"late")}, close="exit")
    stopping = dying_when(is_one_of("copy_range"), signal.SIGSTOP)
    scavenger = fork(lambda: list(rear.scavenge(base, storage=stopping)))
    _, stopped = os.waitpid(scavenger, os.WUNTRACED)
    assert os.WIFSTOPPED(stopped)
    with pytest.raises(NotLeaderError):
        list(fsck(base))
    told = check(base, report_only=True)
    assert {"unfinished-merge", "scavenger-crashed"} <= {problem.code for problem in problems(told, "noted")}
    assert status(told) == 0
    while os.WIFSTOPPED(stopped):
        os.kill(scavenger, signal.SIGCONT)
        _, stopped = os.waitpid(scavenger, os.WUNTRACED)
    assert os.waitstatus_to_exitcode(stopped) == 0
    assert status(check(base)) == 0
    check_base(base, EXPECTED | {"ar.zip/late": b"late"})


def test_every_code_is_in_the_catalog() -> None:
    with pytest.raises(ValueError, match="no code"):
        Problem("made-up", "x", "y", "left")
    source = "".join(path.read_text() for path in REAR.rglob("*.py"))
    for code in CATALOG:
        assert source.count(f'"{code}"') >= 2, f"{code} is never given"


# --- crashes --------------------------------------------------------------------------------------------------------


def damage_much(base: Path) -> None:
    interrupt_merge_and_damage_intent(base)
    lose_journal_of_another(base)
    flip(base / "sub/other.zip", 31)
    leave_fresh_file(base)


def lose_journal_of_another(base: Path) -> None:
    _, journal = write_pair(base, 1, {2: ("more", b"more")}, worker=dead_worker())
    journal.unlink()


MUCH = EXPECTED | {"ar.zip/late": b"late", "ar.zip/more": b"more"}


@pytest.fixture(scope="module")
def damaged(folder: Path, sound: Path) -> Path:
    base = folder / "damaged"
    renew(base, sound)
    damage_much(base)
    return base


@pytest.mark.crash
def test_killed_at_every_operation(base: Path, damaged: Path, record_property: RecordProperty) -> None:
    renew(base, damaged)
    points = some(points_of(lambda storage: check(base, storage=storage)), 60)
    check_base(base, MUCH, lost_and_found=True)
    for point in points:
        renew(base, damaged)
        assert in_child(lambda point=point: check(base, storage=dying_at(point))) == -signal.SIGKILL, point
        with after(f"killed at {point}"):
            for _ in range(4):
                events = check(base)
            assert status(events) == 0
            check_base(base, MUCH, lost_and_found=True)
    record_property("crash_points", len(points))


@pytest.mark.crash
def test_power_lost_at_every_operation(damaged: Path, record_property: RecordProperty) -> None:
    def judge(base: Path) -> None:
        check(base)
        assert status(check(base)) == 0
        check_base(base, MUCH, lost_and_found=True)

    count = lose_power_at_each(damaged, lambda base, storage: check(base, storage=storage), judge, points=40, seeds=2)
    record_property("crash_points", count)


@pytest.mark.crash
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES, errno.ESTALE, errno.EINTR])
def test_errors_at_every_operation(base: Path, damaged: Path, error: int) -> None:
    renew(base, damaged)
    points = some(points_of(lambda storage: check(base, storage=storage)), 25)
    for point in points:
        renew(base, damaged)
        failing = Failing(error, at(point))
        try:
            check(base, storage=failing)
        except OSError as failure:
            assert failure.errno == error  # noqa: PT017
        with after(f"{errno.errorcode[error]} at {point}"):
            check(base)
            assert status(check(base)) == 0
            check_base(base, MUCH, lost_and_found=True)


def test_what_is_not_rears_is_promised_no_repair(base: Path) -> None:
    base.mkdir(exist_ok=True)
    with rear.rear_fs(base) as fs:
        fs.open("ar.zip/a", "w").close()
    list(rear.scavenge(base))
    (base / "junk.zip").write_bytes(b"junk")
    for report_only in (True, False, True):
        found = [event for event in fsck(base, report_only=report_only) if isinstance(event, Problem)]
        assert [(problem.subject, problem.outcome) for problem in found] == [("junk.zip", "left")]
        assert "not rear's" in found[0].detail
