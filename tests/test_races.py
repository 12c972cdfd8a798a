"""Several scavengers at once, scavengers that are stopped and come back, workers whose files were taken meanwhile."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import rear.claims
import rear.leader
import rear.recovery
from rear.errors import NotLeaderError, RearError
from rear.lease import Process
from tests.faults import SEED, Point, Tampered, fork, scavenge, scratch_folder, some, wait
from tests.test_crash_scavenger import check, make_base, renew

LEASE_SECONDS = 0.1


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with scratch_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def template(folder: Path) -> Path:
    make_base(folder / "template")
    return folder / "template"


@pytest.fixture
def base(folder: Path) -> Iterator[Path]:
    base = folder / "base"
    yield base
    shutil.rmtree(base, ignore_errors=True)


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


def see_nobody(process: Process) -> None:
    """Stands in for `is_running`: all other processes are on hosts that cannot be seen from here."""
    return


def start_scavenger(base: Path, stop_at: Point | None) -> int:
    """Start a scavenger that stops itself, and return when it has done so."""

    storage = Unlocked(stop_at)

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
    base: Path, template: Path, monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty
) -> None:
    points = some(count_points(base, template), 50)
    for point in points:
        renew(base, template)
        with monkeypatch.context() as patch:
            for module in (rear.claims, rear.leader, rear.recovery):
                patch.setattr(module, "is_running", see_nobody)
            patch.setattr(rear.leader, "LEASE_SECONDS", LEASE_SECONDS)
            deposed = start_scavenger(base, point)
            assert start_scavenger(base, None) == 0
            resume(deposed)
        try:
            scavenge(base)
            check(base)
        except AssertionError as error:
            raise AssertionError(f"stopped at {point}: {error}") from error
    record_property("crash_points", len(points))


@pytest.mark.crash
def test_a_deposed_scavenger_comes_back_in_the_middle(
    base: Path, template: Path, monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty
) -> None:
    """The first stops, the second takes over and stops as well, the first goes on, then the second."""
    points = count_points(base, template)
    pairs = [(one, two) for one in points for two in points]
    chosen = random.Random(SEED).sample(pairs, min(len(pairs), 2000))
    chosen = some(chosen, 50)
    for one, two in chosen:
        renew(base, template)
        with monkeypatch.context() as patch:
            for module in (rear.claims, rear.leader, rear.recovery):
                patch.setattr(module, "is_running", see_nobody)
            patch.setattr(rear.leader, "LEASE_SECONDS", LEASE_SECONDS)
            deposed = start_scavenger(base, one)
            successor = start_scavenger(base, two)
            resume(deposed)
            resume(successor)
        try:
            scavenge(base)
            check(base)
        except AssertionError as error:
            raise AssertionError(f"stopped at {one}, then at {two}: {error}") from error
    record_property("crash_points", len(chosen))
