"""A worker is killed at each of its operations; then everything that it had acknowledged is there exactly once."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bases import scratch_folder
from crash_worker import WRITE, check, renew, work
from faults import RecordProperty, Tampered, after, dying_at, in_child, killed_at, needs_strace, some, traced_calls


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder() as folder:
        yield folder / "work"


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
def test_killed_by_strace_at_system_calls(
    folder: Path, record_property: RecordProperty, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_strace()
    # Calls are counted from the start of Python: each run has to find the same compiled modules.
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(folder.parent / "compiled"))
    renew(folder)
    subprocess.run([*WRITE, str(folder)], check=True)
    renew(folder)
    # With sync="file" the thread that writes does all but the last step itself, so calls can be counted.
    calls = traced_calls([*WRITE, str(folder)], folder / "base")
    count = 0
    for call in some(calls, 8):
        renew(folder)
        count += killed_at(call, [*WRITE, str(folder)]) == -signal.SIGKILL
        with after(f"killed at {call}"):
            check(folder)
    assert count > 5
    record_property("crash_points", count)
    print(f"{count} system calls of {len(calls)}")
