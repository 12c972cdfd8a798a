"""A worker is killed at each of its operations; then everything that it had acknowledged is there exactly once."""

from __future__ import annotations

import signal
from pathlib import Path

import fixtures
import pytest
from crash_worker import WRITE, check, renew, work
from faults import RecordProperty, Tampered, after, dying_at, in_child, kill_at_system_calls, some

folder = fixtures.scratch_work


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sync", ["file", "interval"])
def test_killed_at_every_operation(folder: Path, sync: str, record_property: RecordProperty) -> None:
    renew(folder)
    storage = Tampered()
    work(folder, sync, storage)
    check(folder)
    assert not (folder / "picked").exists()
    points = storage.points
    count = 0
    for point in some(points, 90):
        renew(folder)
        # The background thread of the interval makes the number of operations vary a little.
        count += in_child(lambda point=point: work(folder, sync, dying_at(point))) == -signal.SIGKILL
        with after(f"killed at {point}"):
            check(folder)
    assert count > 50
    record_property("crash_points", count)
    print(f"{count} crash points of {len(points)}")


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_killed_by_strace_at_system_calls(folder: Path, traceable: None, record_property: RecordProperty) -> None:
    # With sync="file" the thread that writes does all but the last step itself, so calls can be counted.
    calls, count = kill_at_system_calls(
        [*WRITE, str(folder)], folder / "base", 8, lambda: renew(folder), lambda: check(folder)
    )
    assert count > 5
    record_property("crash_points", count)
    print(f"{count} system calls of {len(calls)}")
