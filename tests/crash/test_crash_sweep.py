"""A sweep is killed, loses power or fails at each of its operations: no source goes before its bytes are committed.

After each accident, sweeps with ``--delete`` go on where it stopped; then every file is in the archive exactly once.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bases import check_base, scratch_folder
from crash_sweep import SWEEP, sweep
from faults import (
    SEED,
    Failing,
    Point,
    RecordProperty,
    Tampered,
    after,
    at,
    in_child,
    is_anything,
    is_growing,
    kill_at_system_calls,
    some,
    while_in_trouble,
)
from power_loss import Powered, run_until

import rear
from rear.core.storage import Storage
from rear.errors import RearError
from rear.events import Collected
from rear.read.view import open_committed

_random = random.Random(SEED)
OLD = {"a.txt": b"as it was when it was swept first\n" * 9, "sub/kept.bin": _random.randbytes(3_000)}
PENDING = {"pending/one.txt": b"in a temp archive of a sweep that was killed" * 5, "pending/two.bin": b"\0" * 900}
NEW = {
    "a.txt": b"it has changed since\n" * 30, "empty": b"", "sub/new.txt": b"new " * 700,
    "sub/deep/same.txt": b"new " * 700, "z.bin": _random.randbytes(60_000), "ü.txt": "ü\n".encode() * 40,
}  # fmt: skip
SPOOL = OLD | PENDING | NEW
EXPECTED = {f"ar.zip/spool/{name}": data for name, data in SPOOL.items() if name != "a.txt"}
EXPECTED |= {"ar.zip/spool/a.txt": OLD["a.txt"], "ar.zip/spool/a~1.txt": NEW["a.txt"]}
MTIME_NS = 1_700_000_000_123_456_789
SWEEPS_AT_MOST = 4


class _UnlinksByPath(Storage):
    """Has `unlink_at` counted, and stopped at, like any other `unlink`."""

    def unlink_at(self, directory: int, name: str) -> None:
        self.unlink(os.path.join(os.readlink(f"/proc/self/fd/{directory}"), name))


class SweepTampered(_UnlinksByPath, Tampered):
    pass


class SweepFailing(_UnlinksByPath, Failing):
    pass


class SweepPowered(_UnlinksByPath, Powered):
    """The power goes for the base. What was removed from the spool is gone at once: it is on another disk."""


def dying_at(wanted: Point) -> SweepTampered:
    def act(point: Point, path: str) -> None:
        if point[::2] == wanted[::2]:
            os.kill(os.getpid(), signal.SIGKILL)

    return SweepTampered(act)


def fill(folder: Path, files: dict[str, bytes], mtime_ns: int) -> None:
    for name, data in files.items():
        path = folder / "spool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, ns=(mtime_ns, mtime_ns))


def make_template(folder: Path) -> None:
    """A folder of which an earlier sweep has archived two files and another one, killed, has two in a temp archive."""

    def be_killed() -> None:
        def act(point: Point, path: str) -> None:
            if point.operation == "write" and ".rear/intents" in path:
                os.kill(os.getpid(), signal.SIGKILL)

        list(
            rear.sweep(
                folder / "spool", "ar.zip/spool", base=folder / "base", storage=SweepTampered(act),
                select=lambda name: name.startswith("pending/"),
            )
        )  # fmt: skip

    (folder / "base").mkdir(parents=True)
    fill(folder, OLD, MTIME_NS)
    list(rear.sweep(folder / "spool", "ar.zip/spool", base=folder / "base"))
    fill(folder, PENDING, MTIME_NS)
    assert in_child(be_killed) == -signal.SIGKILL
    fill(folder, NEW, MTIME_NS + 1)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with scratch_folder() as folder:
        make_template(folder / "work")
        # Sources are known by their path: each run has the same one.
        (folder / "work").rename(folder / "template")
        yield folder


@pytest.fixture
def folder(home: Path) -> Iterator[Path]:
    renew(home / "work")
    yield home / "work"
    shutil.rmtree(home / "work", ignore_errors=True)


def renew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folder.parent / "template", folder)


def committed(folder: Path) -> set[bytes]:
    """Return the contents of all members that are in the archive by rear's own word, right after an accident."""
    try:
        with open_committed(folder / "base/ar.zip") as archive:
            return {b"".join(archive.read(entry)) for entry in archive.entries()}
    except FileNotFoundError:
        return set()


def left(folder: Path) -> dict[str, bytes]:
    spool = folder / "spool"
    return {path.relative_to(spool).as_posix(): path.read_bytes() for path in spool.rglob("*") if path.is_file()}


def no_source_went_too_early(folder: Path) -> None:
    there, safe = left(folder), committed(folder)
    for name, data in SPOOL.items():
        if name in there:
            assert there[name] == data, f"{name} is not what it was"
        else:
            assert data in safe, f"{name} was deleted, and its bytes are not committed"


def recover(folder: Path, *, leftovers: bool = False) -> None:
    """Sweep until nothing is left, and judge."""
    no_source_went_too_early(folder)
    for _ in range(SWEEPS_AT_MOST):
        assert in_child(lambda: sweep(folder)) == 0
        if not left(folder):
            break
    assert left(folder) == {}
    check_base(folder / "base", EXPECTED, lost_and_found=True, leftovers=leftovers)


def points_of(folder: Path) -> list[Point]:
    storage = SweepTampered()
    collected = [event.name for event in sweep(folder, storage) if isinstance(event, Collected)]
    assert sorted(collected) == sorted(f"spool/{name}" for name in NEW), "what was archived before is archived again"
    recover(folder)
    return storage.points


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_killed_at_every_operation(folder: Path, record_property: RecordProperty) -> None:
    points = points_of(folder)
    assert sum(point.operation == "unlink" for point in points) > len(SPOOL)
    count = 0
    chosen = some(points, 60)
    for point in chosen:
        renew(folder)
        count += in_child(lambda point=point: sweep(folder, dying_at(point))) == -signal.SIGKILL
        with after(f"killed at {point}"):
            recover(folder)
    # The background thread of the worker makes the number of operations vary a little.
    assert count > 0.9 * len(chosen)
    record_property("crash_points", count)
    print(f"{count} crash points of {len(points)}")


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_each_of_four_sweeps_is_killed(folder: Path, record_property: RecordProperty) -> None:
    points = points_of(folder)
    chance = random.Random(SEED)
    count = 0
    for point in some(points, 20):
        renew(folder)
        chosen = [point, *(chance.choice(points[: len(points) // 2]) for _ in range(3))]
        for each in chosen:
            count += in_child(lambda each=each: sweep(folder, dying_at(each))) == -signal.SIGKILL
            with after(f"killed at {chosen}"):
                no_source_went_too_early(folder)
        with after(f"killed at {chosen}"):
            recover(folder)
    assert count > 40
    record_property("crash_points", count)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_killed_by_strace_at_system_calls(folder: Path, traceable: None, record_property: RecordProperty) -> None:
    calls, count = kill_at_system_calls(
        [*SWEEP, str(folder)], folder, 6, lambda: renew(folder), lambda: recover(folder)
    )
    names = {call.name for call in calls}
    assert names >= {"fsync", "unlinkat", "renameat"}
    assert count > min(6, len(calls)) // 2
    record_property("crash_points", count)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_the_power_goes(folder: Path, record_property: RecordProperty) -> None:
    points = points_of(folder)
    survivors = folder.parent / "survivors"
    chosen = some(points, 30)
    for point in chosen:
        for seed in range(3):
            renew(folder)
            shutil.rmtree(survivors, ignore_errors=True)
            survivors.mkdir()
            run_until(point, folder / "base", survivors, lambda storage: sweep(folder, storage), seed, SweepPowered)
            shutil.rmtree(folder / "base")
            survivors.rename(folder / "base")
            with after(f"power lost at {point}, seed {seed}"):
                # A journal that has lost its first record stays in the inbox, and is reported each time.
                recover(folder, leftovers=True)
    record_property("crash_points", len(chosen) * 3)


ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.ESTALE)


def in_trouble(folder: Path, storage: SweepFailing) -> None:
    """Sweep in a process that ends then: what its worker could not close is left as a crash leaves it."""

    def child() -> None:
        try:
            sweep(folder, storage)
        except OSError as error:
            if error.errno not in ERRORS:
                raise
        except RearError:
            pass

    assert in_child(child) == 0


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_every_operation_fails_once(folder: Path, record_property: RecordProperty) -> None:
    points = points_of(folder)
    chosen = some(points, 40)
    for point, error in zip(chosen, itertools.cycle(ERRORS)):
        renew(folder)
        in_trouble(folder, SweepFailing(error, at(point)))
        with after(f"{errno.errorcode[error]} at {point}"):
            recover(folder)
    record_property("crash_points", len(chosen))


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [is_growing, is_anything])
def test_everything_fails_from_some_operation_on(folder: Path, kind: Callable[[Point, str], bool]) -> None:
    points = points_of(folder)
    for point, error in zip(some(points, 40), itertools.cycle(ERRORS)):
        renew(folder)
        in_trouble(folder, SweepFailing(error, while_in_trouble(point, kind)))
        with after(f"{errno.errorcode[error]} from {point} on"):
            recover(folder)
