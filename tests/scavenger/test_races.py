"""Several scavengers at once, scavengers that are stopped and come back, workers whose files were taken meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import fixtures
import pytest
from bases import check_base, contents, of_kind, put, renew, scavenge
from crash_scavenger import check
from faults import FULL, SEED, Point, RecordProperty, Tampered, after, fork, in_child, some, wait
from pairs import see_nobody

import rear
import rear.core.liveness
import rear.scavenger.claims
import rear.scavenger.leader
import rear.scavenger.pair_check
import rear.scavenger.recovery
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import NotLeaderError, RearError
from rear.events import Event, Lost

LEASE_SECONDS = 0.1


template, base = fixtures.crash_template, fixtures.folder_base


class Unlocked(Tampered):
    """As seen from another host, on a mount that locks nothing; stops the process once, at ``stop_at``."""

    def __init__(self, stop_at: Point | None = None) -> None:
        super().__init__(self._stop)
        self.stop_at = stop_at

    def _stop(self, point: Point, path: str) -> None:
        if self.stop_at is not None and point[::2] == self.stop_at[::2]:
            self.stop_at = None
            os.kill(os.getpid(), signal.SIGSTOP)

    def try_lock(self, descriptor: int) -> bool:
        self.number = 0
        return True


def start_scavenger(base: Path, stop_at: Point | Unlocked | None) -> int:
    """Start a scavenger that stops itself, and return when it has done so."""

    storage = stop_at if isinstance(stop_at, Unlocked) else Unlocked(stop_at)

    def run() -> None:
        for _ in range(1000):
            try:
                scavenge(base, storage=storage)
            except NotLeaderError as error:
                if "takes over in" not in str(error):
                    raise SystemExit(2) from None
                time.sleep(LEASE_SECONDS / 2)
            except (RearError, OSError):
                raise SystemExit(3) from None
            else:
                return

    pid = fork(run)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status) or os.WIFEXITED(status)
    return pid if os.WIFSTOPPED(status) else 0


def resume(pid: int) -> int | None:
    if pid == 0:
        return None
    os.kill(pid, signal.SIGCONT)
    return wait(pid)


def count_points(base: Path, template: Path) -> list[Point]:
    renew(base, template)
    storage = Unlocked()
    scavenge(base, storage=storage)
    return [point for point in storage.points if not point.half]


@pytest.mark.crash
def test_a_deposed_scavenger_comes_back(
    base: Path, template: Path, monkeypatch: pytest.MonkeyPatch, record_property: RecordProperty
) -> None:
    points = some(count_points(base, template), 50)
    for point in points:
        renew(base, template)
        with monkeypatch.context() as patch:
            see_nobody(patch)
            patch.setattr(rear.scavenger.leader, "LEASE_SECONDS", LEASE_SECONDS)
            deposed = start_scavenger(base, point)
            assert start_scavenger(base, None) == 0
            resume(deposed)
        with after(f"stopped at {point}"):
            scavenge(base)
            check(base)
    record_property("crash_points", len(points))


@pytest.mark.crash
def test_a_deposed_scavenger_comes_back_in_the_middle(
    base: Path, template: Path, monkeypatch: pytest.MonkeyPatch, record_property: RecordProperty
) -> None:
    """The first stops, the second takes over and stops as well, the first goes on, then the second."""
    points = count_points(base, template)
    pairs = [(one, two) for one in points for two in points]
    chosen = random.Random(SEED).sample(pairs, min(len(pairs), 2000))
    chosen = some(chosen, 50)
    for one, two in chosen:
        renew(base, template)
        with monkeypatch.context() as patch:
            see_nobody(patch)
            patch.setattr(rear.scavenger.leader, "LEASE_SECONDS", LEASE_SECONDS)
            deposed = start_scavenger(base, one)
            successor = start_scavenger(base, two)
            resume(deposed)
            resume(successor)
        with after(f"stopped at {one}, then at {two}"):
            scavenge(base)
            check(base)
    record_property("crash_points", len(chosen))


# --- scavengers and workers at once -------------------------------------------------------------------------------


def at_once(functions: list[Callable[[], object]]) -> list[int]:
    """Run functions in processes of their own that begin in the same moment; return how they ended."""
    read_end, write_end = os.pipe()

    def run(function: Callable[[], object]) -> None:
        os.close(write_end)
        os.read(read_end, 1)
        function()

    children = [fork(lambda function=function: run(function)) for function in functions]
    os.close(read_end)
    os.close(write_end)
    return [wait(child) for child in children]


def scavenge_once(base: Path, storage: Storage) -> None:
    with contextlib.suppress(NotLeaderError):
        scavenge(base, storage=storage)


@pytest.mark.crash
@pytest.mark.parametrize("storage", [LOCAL, Unlocked()], ids=["locks", "no locks"])
def test_scavengers_race(base: Path, template: Path, storage: Storage) -> None:
    for _ in range(150 if FULL else 25):
        renew(base, template)
        assert at_once([lambda: scavenge_once(base, storage)] * 3) == [0, 0, 0]
        scavenge(base)
        check(base)


def write_many(base: Path, number: int, files: int) -> None:
    log = os.open(base.parent / f"log{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with rear.rear_fs(base, rotation_size=4_000, sync_interval=0.02) as fs:
        for count in range(files):
            target = f"{'abc'[count % 3]}.zip/{number}/{count}.txt"
            put(fs, target, target * (count % 50))
            os.write(log, f"{target}\n".encode())
            time.sleep(0.004)
    if number % 2:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.crash
def test_scavengers_are_killed_at_random_while_workers_write(base: Path) -> None:
    base.mkdir()
    files = 2000 if FULL else 400
    workers = [fork(lambda number=number: write_many(base, number, files)) for number in range(4)]
    chance = random.Random(SEED)
    running = set(workers)
    while running:
        scavenger = fork(lambda: scavenge_once(base, LOCAL))
        other = fork(lambda: scavenge_once(base, LOCAL))
        time.sleep(chance.uniform(0.0, 0.12))
        os.kill(scavenger, signal.SIGKILL)
        wait(scavenger)
        assert wait(other) == 0
        running = {worker for worker in running if os.waitpid(worker, os.WNOHANG) == (0, 0)}
    events = scavenge(base)
    assert not of_kind(events, Lost)
    acknowledged = {}
    for number in range(4):
        for target in (base.parent / f"log{number}").read_text().splitlines():
            acknowledged[target] = (target * (int(target.rpartition("/")[2][:-4]) % 50)).encode()
        (base.parent / f"log{number}").unlink()
    assert len(acknowledged) == 4 * files
    check_base(base, acknowledged)


# --- workers that were paused -------------------------------------------------------------------------------------


class Clock(Storage):
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def uptime(self) -> float:
        return super().uptime() + self.ahead


def take_over(base: Path, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Scavenge as a host would that cannot see the worker, and that waits out its lease."""
    clock = Clock()
    with monkeypatch.context() as patch:
        see_nobody(patch)
        scavenge(base, storage=clock)
        clock.ahead = 61.0
        return scavenge(base, storage=clock)


@pytest.mark.parametrize("proven", [True, False], ids=["synced before", "not synced before"])
@pytest.mark.parametrize("merged", [True, False], ids=["merged", "only claimed"])
def test_a_worker_that_was_paused_loses_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch, proven: bool, merged: bool
) -> None:
    clock = Clock()
    expected = {}
    with rear.rear_fs(base, sync_interval=3600, storage=clock) as fs:

        def write(name: str) -> None:
            put(fs, f"ar.zip/{name}", name.encode() * 100)
            expected[f"ar.zip/{name}"] = name.encode() * 100

        write("before")
        if proven:
            fs.sync()
        if merged:
            events = take_over(base, monkeypatch)
            assert [event.as_json()["state"] for event in events if event.kind == "claimed"] == ["stale"]
        else:
            inbox = next((base / ".rear" / "inbox").iterdir())
            claims = base / ".rear" / "claims" / "a-leader-that-died" / inbox.name
            claims.parent.mkdir(parents=True)
            inbox.rename(claims)
        clock.ahead = 61.0
        write("after")
        write("last")
    scavenge(base)
    scavenge(base)
    check_base(base, expected)


def test_a_late_member_of_a_buried_pair_is_found(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker writes to a file that was taken and merged, in the moment before it notices."""
    fs = rear.rear_fs(base, sync_interval=3600)
    for name in ("before", "late"):
        put(fs, f"ar.zip/{name}", name.encode())
        if name == "before":
            take_over(base, monkeypatch)
            assert list((base / ".rear" / "graveyard").rglob("*.zip"))
    with monkeypatch.context() as patch:
        see_nobody(patch)
        scavenge(base)
    assert sorted(contents(base / "ar.zip")) == [("before", b"before"), ("late", b"late")]
    fs.close()
    scavenge(base)
    check_base(base, {"ar.zip/before": b"before", "ar.zip/late": b"late"})


def test_beats_alone_do_not_keep_a_pair(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to a file that another host has taken succeeds: a beat after a gap proves nothing."""
    clock = Clock()
    fs = rear.rear_fs(base, sync_interval=3600, storage=clock)
    put(fs, "ar.zip/before", b"before")
    pair = fs._worker._pairs.current
    assert pair.beat()
    take_over(base, monkeypatch)
    clock.ahead = 61.0
    assert not pair.beat()
    assert not pair.beat()
    put(fs, "ar.zip/after", b"after")
    fs.close()
    scavenge(base)
    check_base(base, {"ar.zip/before": b"before", "ar.zip/after": b"after"})


# --- leaders that take over claims --------------------------------------------------------------------------------


class Looking(Unlocked):
    """Stops the process once: at a listing, or before it takes a file from another claim folder, by its number."""

    def __init__(self, *, listing: int = 0, taking: int = 0) -> None:
        super().__init__()
        self.listings = self.takings = self.listings_before_last = 0
        self.stop_at_listing = listing
        self.stop_at_taking = taking

    def names(self, path: StrPath) -> list[str]:
        self.listings += 1
        if self.listings == self.stop_at_listing:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().names(path)

    def rename(self, source: StrPath, target: StrPath) -> None:
        if "/claims/" in os.fspath(source) and "/claims/" in os.fspath(target):
            self.takings += 1
            self.listings_before_last = self.listings
            if self.takings == self.stop_at_taking:
                os.kill(os.getpid(), signal.SIGSTOP)
        super().rename(source, target)

    def try_lock(self, descriptor: int) -> bool:
        self.listings = 0
        return super().try_lock(descriptor)


@pytest.mark.crash
def test_a_deposed_scavenger_does_not_take_claims_back(
    base: Path, template: Path, monkeypatch: pytest.MonkeyPatch, record_property: RecordProperty
) -> None:
    """One dies with claims; another is stopped while it takes them over, and goes on while a third one does so."""
    monkeypatch.setattr(rear.scavenger.leader, "LEASE_SECONDS", LEASE_SECONDS)

    def again() -> None:
        renew(base, template)
        dying = Tampered(lambda point, path: os.kill(os.getpid(), signal.SIGKILL) if ".planning" in path else None)
        assert in_child(lambda: scavenge(base, storage=dying)) == -signal.SIGKILL
        assert len(list((base / ".rear" / "claims").rglob("*.journal"))) == 2

    again()
    looking = Looking()
    scavenge(base, storage=looking)
    # Until some listings after the last file is taken over: later on it has all that it will have.
    listings = range(1, looking.listings_before_last + 12)
    stops = [(listing, taking) for listing in listings for taking in range(1, looking.takings + 1)]
    count = 0
    for listing, taking in some(stops, 40):
        again()
        with monkeypatch.context() as patch:
            see_nobody(patch)
            deposed = start_scavenger(base, Looking(listing=listing))
            successor = start_scavenger(base, Looking(taking=taking))
            count += bool(deposed and successor)
            resume(deposed)
            resume(successor)
        with after(f"stopped at listing {listing}, then at file {taking}"):
            scavenge(base)
            check(base)
            # The template has a torn member; nothing else may have seemed to be lost meanwhile.
            notes = [path.read_text() for path in (base / ".rear" / "lost+found").rglob("*.json")]
            assert all("torn.txt" in note for note in notes), notes
    assert count > 20
    record_property("crash_points", count)
