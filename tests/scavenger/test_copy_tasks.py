"""Copies that come too late: after a commit they change nothing, after an undo they reach nothing that anybody reads.

A late copy is the task itself, called by hand where an executor might still be running it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bases
import fixtures
import pytest
from bases import contents, files_below, of_kind, scavenge, write
from executors import EXPECTED, Here, check, recover, renew
from faults import Failing, Point, RecordProperty, Tampered, after, dying_at, in_child, points_of, some
from power_loss import lose_power_at_each

import rear
from rear.core.layout import Layout
from rear.core.liveness import this_process
from rear.core.storage import LOCAL, Storage
from rear.events import Event, Lost, Refused
from rear.journal.codec import encode_line
from rear.journal.intent import FORMAT_VERSION, read_intent
from rear.scavenger import copy_tasks
from rear.scavenger.copy_tasks import CopyTask, copy_for_leader, withdraw

ELSEWHERE = {**this_process()._asdict(), "host": "elsewhere", "boot_id": "another"}


folder_base, base, small = fixtures.folder_base, fixtures.executors_base, fixtures.small_tasks


def late(task: CopyTask) -> str | None:
    """Run a copy too late; tell why it did nothing, if so."""
    try:
        copy_for_leader(task, LOCAL)
    except OSError as error:
        return error.strerror
    return None


def run_all_late(tasks: list[CopyTask], base: Path) -> None:
    """Run copies too late, and make sure that no file under the base has changed by that."""
    before = {path: (base / path).read_bytes() for path in files_below(base)}
    assert tasks
    for task in tasks:
        late(task)
    assert {path: (base / path).read_bytes() for path in files_below(base)} == before


class Dies(BaseException):
    """What ends a leader that is left where it stands, as if it had been killed."""


def until(base: Path, wanted: type[Event], **options: Any) -> None:
    for event in rear.scavenge(base, **options):
        if isinstance(event, wanted):
            return


# ---- late copies


def test_after_the_commit(base: Path) -> None:
    executor = Here()
    scavenge(base, executor=executor)
    run_all_late(executor.copies, base)
    check(base)


def test_after_the_next_merges(base: Path) -> None:
    """The archive has grown over what was its directory, and its next merge is undone in place."""
    first = Here()
    scavenge(base, executor=first)
    write(base, {"ar.zip/more.txt": os.urandom(50_000)})
    storage = Failing(errno.ENOSPC, lambda point, path: point.operation == "truncate" and path.endswith("ar.zip"))
    second = Here()
    events = scavenge(base, executor=second, storage=storage)
    assert storage.failed
    assert of_kind(events, Refused)
    run_all_late(first.copies + second.copies, base)
    third = Here()
    scavenge(base, executor=third)
    assert any(task.target.endswith("ar.zip") for task in third.copies)
    run_all_late(first.copies + second.copies + third.copies, base)
    assert len(contents(base / "ar.zip")) == sum(target.startswith("ar.zip") for target in EXPECTED) + 1


def test_after_roll_over(base: Path) -> None:
    executor = Here()
    scavenge(base, executor=executor)
    write(base, {"ar.zip/more.txt": b"more"})
    scavenge(base, max_members=3)
    assert (base / "ar-0.zip").exists()
    run_all_late(executor.copies, base)
    assert contents(base / "ar.zip") == [("more.txt", b"more")]
    (base / "ar-0.zip").rename(base / "ar-9.zip")
    run_all_late(executor.copies, base)


@pytest.mark.parametrize("operation", ["truncate", "sync"])
def test_after_the_leader_has_undone_its_merge(base: Path, operation: str) -> None:
    """No copy is registered any more, so the old end is back in place; what comes now finds no permit."""
    before, inode = (base / "ar.zip").read_bytes(), (base / "ar.zip").stat().st_ino
    executor = Here()
    failed = 0

    def fails(point: Point, path: str) -> bool:
        nonlocal failed
        # The first such operation on each archive is the leader's: tasks sync, too, but not these two files.
        is_leaders = point.operation == operation and path.endswith((".archive", "ar.zip")) and bool(executor.copies)
        failed += is_leaders
        return is_leaders and failed % 2 == 1

    # Tasks have a storage of their own, which does not fail.
    executor = Here(lambda arguments: (*arguments[:-1], LOCAL))
    events = scavenge(base, executor=executor, storage=Failing(errno.EIO, fails))
    assert len(of_kind(events, Refused)) == 2
    assert (base / "ar.zip").read_bytes() == before
    assert (base / "ar.zip").stat().st_ino == inode
    assert not (base / "sub").exists()
    assert len(executor.copies) > 6
    run_all_late(executor.copies, base)
    scavenge(base)
    check(base)
    run_all_late(executor.copies, base)


@pytest.mark.parametrize("how", ["killed", "in this process"])
def test_after_the_next_leader_has_undone_the_merge(base: Path, how: str) -> None:
    before = (base / "ar.zip").read_bytes()
    tasks = die_before_commit(base)
    assert (base / "ar.zip").read_bytes() != before
    if how == "in this process":
        # Late copies while the intent stands, before anybody has recovered: they are wanted still.
        assert {late(task) for task in tasks} == {None}
    scavenger = rear.scavenge(base, storage=Tampered(stop_after_recovery(base)))
    with pytest.raises(Dies):
        list(scavenger)
    assert (base / "ar.zip").read_bytes() == before
    run_all_late(tasks, base)
    scavenge(base)
    check(base)
    run_all_late(tasks, base)


def die_before_commit(base: Path) -> list[CopyTask]:
    """Let a leader in another process die when all is copied to ar.zip; return its tasks."""
    kept = base.parent / "tasks"

    def lead() -> None:
        executor = Here(lambda arguments: (*arguments[:-1], LOCAL))

        def act(point: Point, path: str) -> None:
            if point.operation == "truncate" and path.endswith("ar.zip"):
                kept.write_bytes(pickle.dumps(executor.copies))
                os.kill(os.getpid(), signal.SIGKILL)

        scavenge(base, executor=executor, storage=Tampered(act))

    assert in_child(lead) == -signal.SIGKILL
    tasks: list[CopyTask] = pickle.loads(kept.read_bytes())
    return [task for task in tasks if task.target.endswith("ar.zip")]


def stop_after_recovery(base: Path) -> Any:
    def act(point: Point, path: str) -> None:
        # The first write of the next merge.
        if path.endswith(".planning"):
            raise Dies

    return act


def test_an_intent_with_a_permit_is_not_for_an_older_rear(base: Path) -> None:
    tasks = die_before_commit(base)
    [path] = Layout(base).intents.glob("*.intent")
    first = path.read_bytes().partition(b"\n")[0]
    assert b'"format_version":2' in first
    assert Path(tasks[0].permit).name.encode() in first
    assert read_intent(path).planned
    assert FORMAT_VERSION == 2


def test_an_intent_without_an_executor_is_for_any_rear(base: Path) -> None:
    seen: list[bytes] = []

    def act(point: Point, path: str) -> None:
        if path.endswith("ar.zip") and point.operation == "truncate":
            [intent] = Layout(base).intents.glob("*.intent")
            seen.append(intent.read_bytes().partition(b"\n")[0])

    scavenge(base, storage=Tampered(act))
    assert b'"format_version":1' in seen[0]
    assert b"permit" not in seen[0]


# ---- copies under way while a merge is undone


class Pausing(Storage):
    """Stops in the middle of the first copy to an archive, until it is told to go on."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.is_stopped = threading.Event()
        self.go_on = threading.Event()

    def copy_range(self, source: int, target: int, *, source_start: int, target_start: int, length: int) -> None:
        if os.readlink(f"/proc/self/fd/{target}").endswith(self.suffix) and not self.is_stopped.is_set():
            half = length // 2
            super().copy_range(source, target, source_start=source_start, target_start=target_start, length=half)
            self.is_stopped.set()
            assert self.go_on.wait(60)
        super().copy_range(source, target, source_start=source_start, target_start=target_start, length=length)


class Lagging(Here):
    """Does every task at once, but for one that a thread is stopped in the middle of."""

    def __init__(self, suffix: str) -> None:
        super().__init__()
        self.storage = Pausing(suffix)
        self.pool = ThreadPoolExecutor(1)

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Any:
        _, _, task, *_ = arguments
        is_wanted = isinstance(task, CopyTask) and task.target.endswith(self.storage.suffix)
        if not is_wanted or self.storage.is_stopped.is_set():
            return super().submit(function, *arguments)
        self.note(*arguments)
        future = self.pool.submit(function, *arguments[:-1], self.storage)
        assert self.storage.is_stopped.wait(60)
        return future

    def finish(self) -> None:
        self.storage.go_on.set()
        self.pool.shutdown()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rear.core.parallel, "PATIENCE_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("suffix", ["ar.zip", ".archive"])
def test_the_leader_does_not_wait_for_ever_for_a_copy(base: Path, suffix: str) -> None:
    executor = Lagging(suffix)
    scavenge(base, executor=executor, verify=True)
    check_with_registration(base)
    before = {path: (base / path).read_bytes() for path in EXPECTED if (base / path).is_file()}
    executor.finish()
    assert {path: (base / path).read_bytes() for path in before} == before
    check(base)


def check_with_registration(base: Path) -> None:
    """Merged, committed, and cleared: a registration of a copy that still runs does not hold anything up."""
    assert files_below(Layout(base).intents) == []
    check(base)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("suffix", ["ar.zip", ".archive"])
def test_undone_while_a_copy_is_under_way(base: Path, suffix: str) -> None:
    """The one that is under way ends in a file that nobody has a name for."""
    before, inode = (base / "ar.zip").read_bytes(), (base / "ar.zip").stat().st_ino
    executor = Lagging(suffix)
    storage = Failing(errno.ENOSPC, lambda point, path: point.operation == "truncate" and path.endswith(suffix))
    events = scavenge(base, executor=executor, storage=storage)
    assert of_kind(events, Refused)
    if suffix == "ar.zip":
        assert (base / "ar.zip").read_bytes() == before
        assert (base / "ar.zip").stat().st_ino != inode
    state = {path: (base / path).read_bytes() for path in files_below(base)}
    executor.finish()
    assert {path: (base / path).read_bytes() for path in files_below(base)} == state
    run_all_late(executor.copies, base)
    scavenge(base)
    check(base)


@pytest.mark.usefixtures("impatient")
def test_undone_when_a_copy_under_way_has_ended(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the old end goes back in place."""
    monkeypatch.setattr(copy_tasks, "WITHDRAWAL_SECONDS", 30.0)
    before, inode = (base / "ar.zip").read_bytes(), (base / "ar.zip").stat().st_ino
    executor = Lagging("ar.zip")

    def fails(point: Point, path: str) -> bool:
        if point.operation == "truncate" and path.endswith("ar.zip") and not executor.storage.go_on.is_set():
            threading.Timer(0.3, executor.storage.go_on.set).start()
            return True
        return False

    events = scavenge(base, executor=executor, storage=Failing(errno.ENOSPC, fails))
    assert of_kind(events, Refused)
    assert (base / "ar.zip").read_bytes() == before
    assert (base / "ar.zip").stat().st_ino == inode
    executor.finish()
    scavenge(base)
    check(base)


@pytest.mark.parametrize(
    ("registered", "is_renewed"),
    [
        ({**this_process()._asdict(), "pid": 2**22 + 1}, False),
        (this_process()._asdict(), True),
        (ELSEWHERE, True),
        ({}, True),
        (None, True),
    ],
    ids=["gone", "running", "on another host", "nameless", "empty file"],
)
def test_the_next_leader_gives_a_new_inode_when_a_copy_may_be_under_way(
    base: Path, registered: dict[str, Any] | None, is_renewed: bool
) -> None:
    before, inode = (base / "ar.zip").read_bytes(), (base / "ar.zip").stat().st_ino
    tasks = die_before_commit(base)
    permit = Path(tasks[0].permit)
    registration = permit.with_name(f"{permit.stem}-00000000000000ff.copying")
    registration.write_bytes(b"" if registered is None else encode_line({"kind": "copying", **registered}))
    # What a copy has open that is still under way.
    with open(base / "ar.zip", "r+b") as opened:
        with pytest.raises(Dies):
            scavenge(base, storage=Tampered(stop_after_recovery(base)))
        assert (base / "ar.zip").read_bytes() == before
        assert ((base / "ar.zip").stat().st_ino != inode) is is_renewed
        if is_renewed:
            opened.seek(0)
            opened.write(b"x" * 1_000_000)
    scavenge(base)
    check(base)


def test_a_copy_registers_before_it_looks_for_the_permit(base: Path) -> None:
    """Whoever removes the permit in between and finds nobody registered is right."""
    tasks = die_before_commit(base)
    permit = Path(tasks[0].permit)
    intent = Layout(base).intents / f"{copy_tasks.intent_stem_of(permit.name)}.intent"
    seen: list[bool] = []

    class Racing(Storage):
        def names(self, path: Any) -> list[str]:
            if Path(path) == permit.parent and not seen:
                seen.append(withdraw(intent, storage=LOCAL))
            return super().names(path)

    before = (base / "ar.zip").read_bytes()
    with pytest.raises(OSError, match="is over"):
        copy_for_leader(tasks[0], Racing())
    # It had registered, so who withdrew could not be sure.
    assert seen == [True]
    assert (base / "ar.zip").read_bytes() == before
    scavenge(base)
    check(base)


def test_a_copy_that_cannot_be_synced_stays_registered(base: Path) -> None:
    tasks = die_before_commit(base)
    storage = Failing(errno.EIO, lambda point, path: point.operation == "sync" and path.endswith("ar.zip"))
    with pytest.raises(OSError, match="Input/output"):
        copy_for_leader(tasks[0], storage)
    [registration] = Layout(base).intents.glob("*.copying")
    assert str(os.getpid()) in registration.read_text()
    inode = (base / "ar.zip").stat().st_ino
    scavenge(base)
    assert (base / "ar.zip").stat().st_ino != inode
    check(base)


def test_rests_of_copies_without_an_intent_are_swept(base: Path) -> None:
    intents = Layout(base).intents
    intents.mkdir(exist_ok=True)
    for name in ("d-h.o.st-1-abc-0011.permit", "d-h.o.st-1-abc-0011-22.copying"):
        (intents / name).touch()
        assert copy_tasks.intent_stem_of(name) == "d-h.o.st-1-abc"
    assert copy_tasks.intent_stem_of("d-host-1-abc.intent") is None
    scavenge(base)
    assert files_below(intents) == []


# ---- a leader that dies at any operation


def lead(base: Path, storage: Storage) -> list[Event]:
    return scavenge(base, storage=storage, executor=Here(), verify=True)


@pytest.mark.crash
def test_killed_at_every_operation(base: Path, record_property: RecordProperty) -> None:
    """The executor works in the leader's process, so its operations are among those that die."""
    every = points_of(lambda storage: lead(base, storage))
    check(base)
    points = some(every, 60)
    for point in points:
        renew(base)
        assert in_child(lambda point=point: lead(base, dying_at(point))) == -signal.SIGKILL, point
        with after(f"killed at {point}"):
            recover(base)
    record_property("crash_points", len(points))
    print(f"{len(points)} of {len(every)} crash points")


@pytest.mark.crash
def test_recovery_is_killed_and_late_copies_come_between(base: Path, record_property: RecordProperty) -> None:
    """A leader dies, so does its successor, while the copies of the first go on wherever they please."""
    tasks = die_before_commit(base)
    state = bases.renew(base.parent / "state", base)
    points = some(points_of(lambda storage: scavenge(base, storage=storage)), 40)
    for point in points:
        bases.renew(base, state)
        # The copy has other inodes.
        moved = [task._replace(inode=(base / "ar.zip").stat().st_ino) for task in tasks]
        in_child(lambda point=point: scavenge(base, storage=dying_at(point)))
        for task in moved:
            late(task)
        events = scavenge(base)
        for task in moved:
            late(task)
        with after(f"killed at {point}"):
            assert not of_kind(events, Lost, Refused)
            check(base)
    record_property("crash_points", len(points))


@pytest.mark.crash
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_an_error_at_every_operation(base: Path, error: int, record_property: RecordProperty) -> None:
    points = some([point for point in points_of(lambda storage: lead(base, storage)) if not point.half], 25)
    for wanted in points:
        renew(base)
        storage = Failing(error, lambda point, path, wanted=wanted: point[:2] == wanted[:2])
        executor = Here()
        with contextlib.suppress(OSError):
            scavenge(base, storage=storage, executor=executor, verify=True)
        for task in executor.copies:
            late(task)
        scavenge(base)
        for task in executor.copies:
            late(task)
        with after(f"{errno.errorcode[error]} at {wanted}"):
            check(base)
    record_property("crash_points", len(points))


class Forgetful(Here):
    """Keeps nothing of what it was asked to do."""

    def note(self, *arguments: Any) -> None:
        self.submitted += 1


@pytest.mark.crash
def test_power_is_lost(base: Path, record_property: RecordProperty) -> None:
    def work(base: Path, storage: Storage) -> None:
        scavenge(base, storage=storage, executor=Forgetful(), verify=True)

    count = lose_power_at_each(base.with_name("template"), work, recover, points=30, seeds=2)
    record_property("crash_points", count)
    print(f"{count} states after power loss")
