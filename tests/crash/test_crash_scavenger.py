"""A scavenger is killed at each of its operations, again while it recovers; then everything is there exactly once."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import sys
from pathlib import Path

import fixtures
import pytest
from bases import check_base, contents, of_kind, renew, scavenge
from crash_scavenger import EXPECTED, check, recover
from faults import (
    SEED,
    Point,
    RecordProperty,
    Tampered,
    after,
    dying_at,
    in_child,
    kill_at_system_calls,
    points_of,
    some,
)

import rear.scavenger.scavenge
from rear.errors import RearError
from rear.events import Refused
from rear.journal.intent import read_intent

SCAVENGE = [sys.executable, "-c", "import rear, sys\nfor event in rear.scavenge(sys.argv[1]): pass"]


template, base = fixtures.crash_template, fixtures.folder_base


def count_points(base: Path, template: Path) -> list[Point]:
    renew(base, template)
    points = points_of(lambda storage: scavenge(base, storage=storage))
    check(base)
    return points


@pytest.mark.crash
def test_killed_at_every_operation(base: Path, template: Path, record_property: RecordProperty) -> None:
    points = count_points(base, template)
    assert len(points) > 60
    for point in points:
        renew(base, template)
        assert in_child(lambda point=point: scavenge(base, storage=dying_at(point))) == -signal.SIGKILL, point
        with after(f"killed at {point}"):
            recover(base)
    record_property("crash_points", len(points))
    print(f"{len(points)} crash points")


@pytest.mark.crash
def test_recovery_is_killed_four_times(base: Path, template: Path, record_property: RecordProperty) -> None:
    points = some(count_points(base, template), 14)
    count = 0
    for point in points:
        renew(base, template)
        in_child(lambda point=point: scavenge(base, storage=dying_at(point)))
        state = renew(base.parent / "state", base)
        recovery = points_of(lambda storage: scavenge(base, storage=storage))
        for number in range(4):
            renew(base, state)
            # Each of the four dies later than the one before it, all within what one recovery does.
            for later in range(4):
                died_at = len(recovery) * (4 * later + number) // 16
                in_child(lambda died_at=recovery[died_at]: scavenge(base, storage=dying_at(died_at)))
                count += 1
            with after(f"killed at {point}, recovery {number}"):
                recover(base)
    record_property("crash_points", count)
    print(f"{count} recoveries killed")


@pytest.mark.crash
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("first", {target: data for target, data in EXPECTED.items() if target != "ar.zip/twice~1.txt"}),
        (
            "last",
            {target: data for target, data in EXPECTED.items() if not target.startswith("ar.zip/twice")}
            | {"ar.zip/twice.txt": EXPECTED["ar.zip/twice~1.txt"]},
        ),
    ],
)
def test_killed_under_other_policies(base: Path, template: Path, policy: str, expected: dict[str, bytes]) -> None:
    renew(base, template)
    points = points_of(lambda storage: scavenge(base, storage=storage, on_conflict=policy))
    check_base(base, expected, lost_and_found=True)
    for point in some(points, 40):
        renew(base, template)
        in_child(lambda point=point: scavenge(base, storage=dying_at(point), on_conflict=policy))
        scavenge(base, on_conflict=policy)
        with after(f"killed at {point}"):
            check_base(base, expected, lost_and_found=True)


@pytest.mark.crash
def test_killed_while_archives_roll_over(base: Path, template: Path) -> None:
    renew(base, template)
    for point in some(points_of(lambda storage: scavenge(base, storage=storage, max_members=6)), 50):
        renew(base, template)
        in_child(lambda point=point: scavenge(base, storage=dying_at(point), max_members=6))
        scavenge(base, max_members=6)
        with after(f"killed at {point}"):
            check_rolled_over(base)


def check_rolled_over(base: Path) -> None:
    """Assert that each member is there once; the two that are the same may be in two archives."""
    found = [member for path in [*base.glob("*.zip"), *base.glob("sub/*.zip")] for member in contents(path)]
    # The name of one is free again in a new archive, so it need not give way.
    assert sorted(name.replace("~1", "") for name, _ in found if name != "same.txt") == sorted(
        target.partition(".zip/")[2].replace("~1", "") for target in EXPECTED if not target.endswith("same.txt")
    )


@pytest.mark.crash
def test_the_record_of_a_merge_stays_while_its_archive_is_a_link(base: Path, template: Path) -> None:
    """Its user has moved the archive away, and put a link there; when it is back, the merge is undone."""
    renew(base, template)
    copies, away = list[Point](), base.parent / "away.zip"
    storage = Tampered()
    storage.act = lambda point, path: (
        copies.append(point) if point.operation == "copy_range" and path.endswith("/ar.zip") else None
    )
    scavenge(base, storage=storage)
    assert len(copies) > 2
    for point in copies[1:3]:
        renew(base, template)
        assert in_child(lambda point=point: scavenge(base, storage=dying_at(point))) == -signal.SIGKILL
        (base / "ar.zip").rename(away)
        (base / "ar.zip").symlink_to(away)
        before = away.read_bytes()
        scavenge(base)
        assert away.read_bytes() == before
        assert list((base / ".rear/intents").glob("*.intent"))
        away.replace(base / "ar.zip")
        with after(f"killed at {point}"):
            recover(base)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_the_disk_is_full_for_a_while(base: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge is committed and cannot be noted; the same leader's next round is into the same archive."""
    monkeypatch.setattr(rear.scavenger.scavenge, "PAIRS_A_ROUND", 1)
    renew(base, template)
    points = points_of(lambda storage: scavenge(base, storage=storage, max_members=7))
    chance = random.Random(SEED)
    for point in some(points, 150):
        renew(base, template)
        length = chance.choice([1, 2, 5, 20])

        def be_full(other: Point, path: str, first: int = point.number, length: int = length) -> None:
            if first <= other.number < first + length and other.operation in ("create", "write", "mkdir", "copy_range"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        with contextlib.suppress(OSError, RearError):
            scavenge(base, storage=Tampered(be_full), max_members=7)
        for _ in range(2):
            scavenge(base, max_members=7)
        with after(f"full at {point} for {length}"):
            check_rolled_over(base)


def test_a_record_of_a_merge_is_not_written_over_by_its_own_leader(
    base: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge is committed, and cannot be noted; the next round has members for the same archive."""
    monkeypatch.setattr(rear.scavenger.scavenge, "PAIRS_A_ROUND", 1)
    renew(base, template)

    def be_full(point: Point, path: str) -> None:
        if point.operation in ("create", "write") and path.endswith(".merged"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    assert any("unfinished" in event.reason for event in of_kind(scavenge(base, storage=Tampered(be_full)), Refused))
    intents = [read_intent(path) for path in (base / ".rear/intents").glob("*.intent")]
    assert {intent.archive: intent.committed for intent in intents}["ar.zip"]
    recover(base)


@pytest.mark.crash
def test_what_was_taken_over_and_cannot_be_noted_is_still_looked_up_by_the_next_leader(
    base: Path, template: Path
) -> None:
    """A leader died after its commit, and the record of its merge is gone; for the next leader the disk is full."""
    renew(base, template)
    commits = [
        point
        for point in points_of(lambda storage: scavenge(base, storage=storage, max_members=7))
        if point.operation in ("create", "write", "sync", "unlink")
    ]

    def be_full(point: Point, path: str) -> None:
        if point.operation in ("create", "write") and path.endswith(".merged"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    for point in some(commits, 60):
        renew(base, template)
        in_child(lambda point=point: scavenge(base, storage=dying_at(point), max_members=7))
        if list((base / ".rear/claims").rglob("*.journal")):
            scavenge(base, storage=Tampered(be_full), max_members=7)
            for path in (base / ".rear/intents").glob("*"):
                if read_intent(path).committed:
                    path.unlink()
            scavenge(base, storage=Tampered(be_full), max_members=7)
        scavenge(base, max_members=7)
        with after(f"killed at {point}"):
            check_rolled_over(base)


NOTES = (".merged",)
TAKING_OVER = (".journal", ".zip", ".merged")


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("operations", "suffixes"), [
    ({"create", "write"}, NOTES), ({"rename"}, TAKING_OVER), ({"create", "write", "rename"}, ("",)),
])  # fmt: skip
def test_the_disk_is_full_for_the_leader_after_one_that_was_killed(
    base: Path, template: Path, operations: set[str], suffixes: tuple[str, ...]
) -> None:
    """What it cannot note, or take over, is neither forgotten nor merged again; full archives are renamed meanwhile."""
    renew(base, template)
    points = points_of(lambda storage: scavenge(base, storage=storage, max_members=6))
    for point in some(points, 30):
        renew(base, template)
        in_child(lambda point=point: scavenge(base, storage=dying_at(point), max_members=6))

        def be_full(point: Point, path: str) -> None:
            if point.operation in operations and path.endswith(suffixes) and "/.rear/terms/" not in path:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        with contextlib.suppress(OSError, RearError):
            scavenge(base, storage=Tampered(be_full), max_members=6)
        scavenge(base, max_members=6)
        with after(f"killed at {point}"):
            check_rolled_over(base)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_killed_by_strace_at_system_calls(
    base: Path, template: Path, traceable: None, record_property: RecordProperty
) -> None:
    def judge() -> None:
        scavenge(base)
        check(base)

    calls, count = kill_at_system_calls([*SCAVENGE, str(base)], base, 16, lambda: renew(base, template), judge)
    assert {call.name for call in calls} >= {"fsync", "unlinkat", "renameat"}
    assert count == min(16, len(calls))
    record_property("crash_points", count)
    print(f"{count} system calls")


@pytest.mark.crash
def test_a_commit_that_fails_is_taken_back_before_the_archive_is(base: Path, template: Path) -> None:
    """The sync of a commit fails, and the scavenger is killed while it undoes the merge: the commit must not count."""
    renew(base, template)
    storage = Tampered()
    syncs: list[Point] = []
    storage.act = lambda point, path: syncs.append(point) if is_commit(point, path) else None
    scavenge(base, storage=storage)
    # Of each of the two merges, one sync of the plan, and then one of the commit.
    assert len(syncs) == 4
    for failing in syncs[1::2]:
        for later in range(1, 12):
            renew(base, template)

            def act(point: Point, path: str, failing: Point = failing, later: int = later) -> None:
                if point[::2] == failing[::2]:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), path)
                if point.number == failing.number + later:
                    os.kill(os.getpid(), signal.SIGKILL)

            assert in_child(lambda act=act: scavenge(base, storage=Tampered(act))) == -signal.SIGKILL
            with after(f"{failing} failed, killed {later} later"):
                recover(base)


def is_commit(point: Point, path: str) -> bool:
    return point.operation == "sync" and path.endswith((".intent", ".planning"))
