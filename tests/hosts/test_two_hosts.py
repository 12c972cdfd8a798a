"""Two hosts on real network file systems: nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import RecordProperty
from two_hosts import KINDS, LEASE_SECONDS, Laboratory, NfsHost, Stage

pytestmark = [
    pytest.mark.netfs,
    pytest.mark.skipif(os.environ.get("REAR_NETFS") != "1", reason="run by nox -s netfs, as root"),
    pytest.mark.timeout(180),
]

SYNC_SECONDS = 1.0
#: For one sync to end in, under load.
SLACK_SECONDS = 1.0
CUT_SECONDS = 8.0
SERVER_DOWN_SECONDS = 3.0
#: Until a server has let go of the lock of a host that is gone, and then a lease.
TAKE_OVER_SECONDS = 45.0


class Laboratories:
    """The laboratory of one kind, made anew after a scenario that failed: who knows what that left."""

    def __init__(self, kind: str, folders: pytest.TempPathFactory) -> None:
        self._kind = kind
        self._folders = folders
        self._laboratory: Laboratory | None = None

    def get(self) -> Laboratory:
        if self._laboratory is None:
            # pytest keeps the logs there.
            self._laboratory = KINDS[self._kind](self._folders.mktemp(self._kind)).__enter__()
        return self._laboratory

    def close(self) -> None:
        if self._laboratory is not None:
            self._laboratory.close()
            self._laboratory = None


@pytest.fixture(scope="module", params=sorted(KINDS, reverse=True))
def laboratories(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratories]:
    reason = KINDS[request.param].why_not()
    if reason is not None:
        pytest.skip(reason)
    laboratories = Laboratories(request.param, tmp_path_factory)
    yield laboratories
    laboratories.close()


@pytest.fixture
def stage(laboratories: Laboratories, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    stage = Stage(laboratories.get(), name, tmp_path)
    stage.wait_for_share()
    yield stage
    if not stage.passed:
        stage.keep_evidence()
        laboratories.close()
    elif stage.a.is_off:
        stage.a.power_on()


def test_workers_on_one_host_scavengers_on_both(stage: Stage) -> None:
    workers = [stage.work(stage.a, "--sync", sync) for sync in ("interval", "interval", "file")]
    workers[0].wait_for("acknowledged")
    scavengers = [stage.scavenge(host) for host in (stage.a, stage.b)]
    time.sleep(8)
    for worker in workers:
        worker.stop()
        assert not worker.lines("refused", "not_archived")
    for scavenger in scavengers:
        scavenger.stop()
        assert not scavenger.lines("failed")
    stage.end_well(stage.b, "renamed", "torn", "lost", "refused")


@pytest.mark.parametrize("sync", ["interval", "file"])
def test_a_worker_is_frozen_past_its_lease(stage: Stage, sync: str) -> None:
    worker = stage.work(stage.a, "--sync", sync, "--rotation", "300")
    worker.wait_for("acknowledged", count=20)
    scavenger = stage.scavenge(stage.b)
    scavenger.wait_for("finished")
    assert not scavenger.lines("claimed"), "a live worker was robbed"
    stage.a.freeze()
    before = len(stage.acknowledged())
    scavenger.wait_for("merged")
    stage.a.thaw()
    worker.wait_for("acknowledged", count=before + 20)
    worker.stop()
    scavenger.stop()
    stage.settle(stage.b)
    assert not worker.lines("refused", "not_archived")
    stage.judge(lost_and_found=True, false_alarms=True)


def test_a_worker_is_cut_off_and_joined_again(stage: Stage) -> None:
    worker = stage.work(stage.a, "--rotation", "300")
    worker.wait_for("acknowledged", count=20)
    scavenger = stage.scavenge(stage.b)
    scavenger.wait_for("finished")
    stage.a.cut()
    scavenger.wait_for("merged")
    # Past the time after which servers forget what a client has open, too.
    time.sleep(CUT_SECONDS)
    before = len(stage.acknowledged())
    stage.a.join()
    worker.wait_for("acknowledged", count=before + 20, seconds=60)
    worker.stop()
    scavenger.stop()
    stage.settle(stage.b)
    stage.judge(lost_and_found=True, false_alarms=True)


@pytest.mark.parametrize("sync", ["interval", "file"])
def test_the_host_of_a_worker_loses_power(stage: Stage, sync: str, record_property: RecordProperty) -> None:
    worker = stage.work(stage.a, "--sync", sync, "--rotation", "300")
    worker.wait_for("acknowledged", count=20)
    time.sleep(3 * SYNC_SECONDS)
    stage.a.power_off()
    lines = worker.lines("acknowledged")
    late = {line["target"] for line in lines if line["at"] > lines[-1]["at"] - SYNC_SECONDS - SLACK_SECONDS}
    stage.settle(stage.b)
    lost = stage.judge(may_be_lost=late if sync == "interval" else set(), lost_and_found=True)
    named = stage.called_lost()
    record_property("lost", f"{len(lost)} of {len(lines)}, {len(lost & named)} of them by name")
    assert named & set(stage.acknowledged()) <= lost, "called lost, and is there"
    assert sync == "interval" or not lost


def test_a_person_says_that_a_host_without_power_is_dead(stage: Stage) -> None:
    worker = stage.work(stage.a, "--sync", "file", "--rotation", "300", "--lease", "3600")
    worker.wait_for("acknowledged", count=20)
    stage.a.power_off()
    assert stage.rear(stage.b, "scavenge", stage.base).returncode == 0
    assert len(stage.rear(stage.b, "ls", stage.base, "--pending").stdout.splitlines()) >= 20
    done = stage.rear(stage.b, "scavenge", stage.base, "--assume-dead", "rearA", "--json")
    assert '"kind": "merged"' in done.stdout, done.stdout
    assert stage.rear(stage.b, "ls", stage.base, "--pending").stdout == ""
    stage.settle(stage.b)
    stage.judge(lost_and_found=True)


@pytest.fixture
def merging(stage: Stage) -> Stage:
    """A base with archives, and ended temp archives that wait to be merged into them."""
    stage.work(stage.a, "--count", "15").end()
    stage.settle(stage.b)
    stage.merged = stage.acknowledged()
    stage.work(stage.a, "--count", "40", "--pause", "0").end()
    return stage


#: In the middle of the new members; of the commit record; of what is noted beside the journals.
STEPS = ["copy_range:.zip", "write:.intent", "write:.merged"]


@pytest.mark.parametrize("step", STEPS)
def test_the_leader_is_frozen_during_a_merge(merging: Stage, step: str) -> None:
    stage = merging
    leader = stage.scavenge(stage.a, "--pause-at", step)
    leader.wait_for("paused")
    stage.a.freeze()
    successor = stage.scavenge(stage.b)
    successor.wait_for("finished", seconds=TAKE_OVER_SECONDS)
    stage.a.thaw()
    leader.wait_for("resumed")
    leader.stop()
    successor.stop()
    stage.end_well(stage.b, "renamed", "lost")


def test_a_leader_has_just_read_what_another_host_merges_into(merging: Stage) -> None:
    """What it read is old; and a merge that builds on it would write over what the other host has merged."""
    stage = merging
    # Whether the second one hits the moment is a matter of luck: without the second look, one round in two loses files.
    for _ in range(5):
        first = stage.start_settling(stage.a)
        second = stage.look_and_merge(stage.b, after=first)
        first.end()
        second.end()
        assert second.lines("looked")
        stage.work(stage.a, "--count", "12", "--pause", "0").end()
    stage.end_well(stage.b, "renamed", "lost", "refused")


def test_the_leader_is_cut_off_during_a_merge(merging: Stage) -> None:
    stage = merging
    leader = stage.scavenge(stage.a, "--pause-at", STEPS[0])
    leader.wait_for("paused")
    stage.a.cut()
    successor = stage.scavenge(stage.b)
    successor.wait_for("finished", seconds=TAKE_OVER_SECONDS)
    stage.a.join()
    leader.wait_for("resumed")
    leader.stop(60)
    successor.stop()
    stage.end_well(stage.b, "renamed", "lost")


@pytest.mark.parametrize("step", STEPS[:2])
def test_the_host_of_the_leader_loses_power(merging: Stage, step: str) -> None:
    stage = merging
    leader = stage.scavenge(stage.a, "--pause-at", step)
    leader.wait_for("paused")
    stage.a.power_off()
    stage.end_well(stage.b, "renamed", "lost", seconds=TAKE_OVER_SECONDS)


@pytest.fixture
def large(merging: Stage) -> Stage:
    """The same, with some megabytes to copy."""
    merging.work(merging.a, "--count", "60", "--pause", "0", large=True).end()
    return merging


def test_another_host_checks_and_copies_for_the_leader(large: Stage) -> None:
    stage = large
    executor = stage.execute(stage.b)
    leader = stage.scavenge(stage.a, *stage.executor_options(60))
    leader.wait_for("finished", seconds=60)
    leader.stop()
    executor.stop()
    done = executor.lines("executed")
    assert {line["task"] for line in done} >= {"copy_for_leader"}, done
    assert not any(line["failed"] for line in done), done
    stage.end_well(stage.a, "renamed", "lost", "refused")


def test_the_executor_is_frozen_while_it_copies_and_thawed_after_the_commit(large: Stage) -> None:
    stage = large
    executor = stage.execute(stage.b, "--pause-at", STEPS[0])
    leader = stage.scavenge(stage.a, *stage.executor_options(2))
    executor.wait_for("paused", seconds=60)
    stage.b.freeze()
    leader.wait_for("finished", seconds=60)
    stage.b.thaw()
    executor.wait_for("resumed")
    executor.stop()
    leader.stop()
    stage.end_well(stage.a, "renamed", "lost", "refused")


def test_the_executor_is_frozen_while_it_copies_and_thawed_after_an_undo(large: Stage) -> None:
    stage = large
    executor = stage.execute(stage.b, "--pause-at", STEPS[0])
    leader = stage.scavenge(stage.a, *stage.executor_options(60))
    executor.wait_for("paused", seconds=60)
    stage.b.freeze()
    stage.kill(leader)
    # Merged before the others: so what the executor still writes is wrong where it was to go.
    stage.work(stage.a, "--count", "60", "--pause", "0", "--called", "a", large=True).end()
    # What it undoes gets a new inode, since nobody can see from here whether the copy has ended.
    stage.settle(stage.a)
    stage.b.thaw()
    executor.wait_for("resumed")
    executor.stop()
    stage.settle(stage.a)
    assert stage.events("rolled_back")
    assert not stage.events("renamed", "lost", "refused")
    stage.judge()


def test_the_server_is_killed_while_workers_write(stage: Stage) -> None:
    workers = [stage.work(host, "--sync", sync) for host, sync in ((stage.a, "interval"), (stage.b, "file"))]
    for worker in workers:
        worker.wait_for("acknowledged", count=20)
    stage.laboratory.kill_server()
    time.sleep(SERVER_DOWN_SECONDS)
    stage.laboratory.start_server()
    before = [len(worker.lines("acknowledged")) for worker in workers]
    for worker, count in zip(workers, before, strict=True):
        worker.wait_for("acknowledged", count=count + 20, seconds=60)
        worker.stop()
    stage.settle(stage.b)
    stage.judge(lost_and_found=True)


def test_the_server_is_killed_during_a_merge(merging: Stage) -> None:
    stage = merging
    leader = stage.scavenge(stage.a, "--pause-at", STEPS[0])
    leader.wait_for("paused")
    stage.laboratory.kill_server()
    time.sleep(SERVER_DOWN_SECONDS)
    stage.laboratory.start_server()
    leader.wait_for("resumed")
    leader.wait_for("finished", "failed", "not_leader", seconds=60)
    leader.stop()
    stage.end_well(stage.b, "renamed", "lost")


@pytest.mark.parametrize("sync", ["interval", "file"])
def test_the_server_is_full_while_a_worker_writes(stage: Stage, sync: str) -> None:
    worker = stage.work(stage.a, "--sync", sync, large=True)
    worker.wait_for("acknowledged", count=10)
    stage.laboratory.fill(leave_bytes=1 << 20)
    worker.wait_for("refused", count=3)
    stage.laboratory.make_room()
    before = len(stage.acknowledged())
    worker.wait_for("acknowledged", count=before + 20)
    worker.stop()
    # What a worker left before its first record can be seen to be nothing on its own host alone.
    stage.settle(stage.a)
    stage.judge(lost_and_found=True)


def test_the_server_is_full_during_a_merge(merging: Stage) -> None:
    stage = merging
    stage.work(stage.a, "--count", "60", "--pause", "0", large=True).end()
    stage.laboratory.fill(leave_bytes=1 << 20)
    scavenger = stage.scavenge(stage.b)
    scavenger.wait_for("refused", "failed", count=3)
    # While it tries again, an archive is no Zip for moments.
    scavenger.stop()
    # GlusterFS keeps a reserve of the disk and refuses to write over old bytes too, so nothing can be undone there yet.
    stage.check_archives(stage.a, stage.merged, by_others=isinstance(stage.a, NfsHost))
    stage.laboratory.make_room()
    stage.end_well(stage.b, "renamed", "lost")


def test_clocks_are_two_hours_apart(stage: Stage) -> None:
    reason = stage.a.why_no_clock()
    if reason is not None:
        stage.passed = True
        pytest.skip(reason)
    stage.a.set_clock(hours_ahead=2)
    try:
        times = [int(host.run("date", "+%s").stdout) for host in (stage.a, stage.b)]
        assert times[0] - times[1] > 7000
        workers = [stage.work(host, "--rotation", "300") for host in (stage.a, stage.b)]
        workers[0].wait_for("acknowledged")
        scavengers = [stage.scavenge(host) for host in (stage.a, stage.b)]
        time.sleep(3 * LEASE_SECONDS)
        assert not stage.events("claimed"), "a live worker was robbed"
        for program in (*workers, *scavengers):
            program.stop()
        for host in (stage.a, stage.b):
            stage.settle(host)
        stage.judge()
    finally:
        stage.a.set_clock(hours_ahead=0)
