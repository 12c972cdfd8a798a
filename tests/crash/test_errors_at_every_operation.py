"""Each storage operation of a worker and of a scavenger fails once, or from some point on for a while."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fixtures
import pytest
from bases import check_base, of_kind, put, renew, scavenge
from crash_scavenger import FOREIGN, recover
from crash_worker import only_empty_pairs_are_left
from faults import (
    ERRORS,
    SEED,
    Failing,
    Point,
    after,
    at,
    in_child,
    is_anything,
    is_growing,
    is_one_of,
    points_of,
    refused,
    some,
    while_in_trouble,
)

import rear
import rear.errors
from rear.core.storage import Storage
from rear.errors import RearError
from rear.events import LeftAlone, Lost
from rear.read.view import open_committed

template, base = fixtures.crash_template, fixtures.folder_base


# --- the scavenger ------------------------------------------------------------------------------------------------


def is_no_worse(base: Path) -> None:
    """Rear's own reader shows all old members of the archive that existed, whole."""
    with open_committed(base / "ar.zip") as archive:
        names = {entry.name for entry in archive.entries()}
    assert names >= FOREIGN.keys()


def scavenge_in_trouble(base: Path, storage: Failing) -> None:
    try:
        events = scavenge(base, storage=storage)
    except OSError as error:
        assert refused(error), error  # noqa: PT017
    except RearError:
        pass
    else:
        assert not of_kind(events, Lost), (storage.failed, events)


@pytest.mark.crash
def test_a_scavenger_fails_once_at_every_operation(base: Path, template: Path) -> None:
    renew(base, template)
    points = points_of(lambda storage: scavenge(base, storage=storage))
    for point, error in zip(some(points, 90), itertools.cycle(ERRORS)):
        renew(base, template)
        failing = Failing(error, at(point))
        with after(f"{errno.errorcode[error]} at {point}"):
            scavenge_in_trouble(base, failing)
            assert failing.failed
            is_no_worse(base)
            recover(base)


@pytest.mark.crash
@pytest.mark.parametrize("kind", [is_growing, is_anything])
def test_a_scavenger_is_in_trouble_from_some_operation_on(
    base: Path, template: Path, kind: Callable[[Point, str], bool]
) -> None:
    renew(base, template)
    points = points_of(lambda storage: scavenge(base, storage=storage))
    for point, error in zip(some(points, 50), itertools.cycle(ERRORS)):
        renew(base, template)
        with after(f"{errno.errorcode[error]} from {point} on"):
            scavenge_in_trouble(base, Failing(error, while_in_trouble(point, kind)))
            is_no_worse(base)
            recover(base)


# --- the worker ---------------------------------------------------------------------------------------------------

FILES = {f"ar.zip/{number}.txt": f"file {number} ".encode() * 100 * number for number in range(12)}
FILES["sub/large.zip/large.bin"] = random.Random(SEED).randbytes(50_000)

AFTERWARDS = b"once the fault is over"


def write_all(base: Path, storage: Storage, **options: Any) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Write all files, then another one when the fault is over; return what was acknowledged and what was not."""
    acknowledged, refused_ones = {}, {}
    fs = rear.rear_fs(base, storage=storage, rotation_size=9_000, spool_size=10_000, **options)
    for target, data in FILES.items():
        try:
            put(fs, target, data)
        except OSError as error:
            assert refused(error), error  # noqa: PT017
            archive = target.partition(".zip/")[0] + ".zip"
            assert str(base / archive) in str(error), error  # noqa: PT017
            refused_ones[target] = data
        else:
            acknowledged[target] = data
    if isinstance(storage, Failing):
        storage.healthy = True
    put(fs, "ar.zip/afterwards", AFTERWARDS)
    acknowledged["ar.zip/afterwards"] = AFTERWARDS
    fs.close()
    return acknowledged, refused_ones


def write_all_in_child(base: Path, storage: Storage, **options: Any) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Do so in a process of its own: a temp archive that cannot be ended waits for the end of its process."""
    notes = base.parent / "notes.json"

    def run() -> None:
        acknowledged, refused_ones = write_all(base, storage, **options)
        notes.write_text(json.dumps([list(acknowledged), list(refused_ones)]))

    assert in_child(run) == 0
    acknowledged, refused_ones = json.loads(notes.read_text())
    every = FILES | {"ar.zip/afterwards": AFTERWARDS}
    return {target: every[target] for target in acknowledged}, {target: every[target] for target in refused_ones}


def settle(base: Path, acknowledged: dict[str, bytes], refused_ones: dict[str, bytes]) -> None:
    events = scavenge(base)
    left = [event for event in events if isinstance(event, LeftAlone) and "no first record" not in event.reason]
    lost = of_kind(events, Lost)
    assert not left, left
    assert not lost, lost
    check_base(base, acknowledged, perhaps=refused_ones, lost_and_found=True, leftovers=True)
    only_empty_pairs_are_left(base)


@pytest.mark.crash
@pytest.mark.parametrize("sync", ["file", "interval"])
def test_a_worker_fails_once_at_every_operation(base: Path, sync: str) -> None:
    points = points_of(lambda storage: write_all(base, storage, sync=sync, sync_interval=0.01))
    for point, error in zip(some(points, 50), itertools.cycle(ERRORS)):
        shutil.rmtree(base)
        failing = Failing(error, at(point))
        with after(f"{errno.errorcode[error]} at {point}"):
            acknowledged, refused_ones = write_all_in_child(base, failing, sync=sync, sync_interval=0.01)
            # One failure is survived by going to a new temp archive, unless that could not even be begun.
            assert len(refused_ones) <= 1
            settle(base, acknowledged, refused_ones)


@pytest.mark.crash
@pytest.mark.parametrize("kind", [is_growing, is_anything])
@pytest.mark.parametrize("sync", ["file", "interval"])
def test_a_worker_is_in_trouble_for_a_while(base: Path, sync: str, kind: Callable[[Point, str], bool]) -> None:
    points = points_of(lambda storage: write_all(base, storage, sync=sync, sync_interval=0.01))
    for point, error in zip(some(points, 22), itertools.cycle(ERRORS)):
        for length in (4, 40):
            shutil.rmtree(base, ignore_errors=True)
            failing = Failing(error, while_in_trouble(point, kind, length))
            with after(f"{errno.errorcode[error]} from {point} on, {length} operations"):
                settle(base, *write_all_in_child(base, failing, sync=sync, sync_interval=0.01))


def test_a_full_disk_and_a_worker_that_ends_meanwhile(base: Path) -> None:
    """Nothing can be proven any more: closing says so by name, and a scavenger finds what there is."""
    failing = Failing(errno.ENOSPC, is_one_of("create", "sync", "write"))
    failing.healthy = True
    fs = rear.rear_fs(base, storage=failing, sync_interval=3600)
    put(fs, "ar.zip/a", b"acknowledged")
    failing.healthy = False
    with pytest.raises(rear.errors.NotArchivedError, match=r"ar\.zip/a"):
        fs.close()
    failing.healthy = True
    fs.close()
    settle(base, {"ar.zip/a": b"acknowledged"}, {})


#: Smallest images in MiB that these can be made in.
SMALL_DISKS = {"ext4": 8, "xfs": 320, "btrfs": 128}


@pytest.mark.crash
@pytest.mark.parametrize("kind", SMALL_DISKS)
def test_a_real_full_disk(tmp_path: Path, kind: str) -> None:
    """Workers and scavenger run into the end of a small disk, space is freed, and all goes on."""
    with small_disk(tmp_path, kind) as disk:
        base = disk / "base"
        fill(disk, leave_bytes=6_500_000)
        data = random.Random(SEED).randbytes(300_000)
        acknowledged = {}
        with rear.rear_fs(base, sync="file", compression="stored") as fs:
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(2_500_000))
            failures = 0
            for number in range(30):
                try:
                    put(fs, f"ar.zip/{number}", data)
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017
                    failures += 1
                else:
                    acknowledged[f"ar.zip/{number}"] = data
            assert failures
            assert acknowledged
            ballast.unlink()
        # The merge needs as much again: it is refused, undone, and done when there is room.
        events = scavenge(base)
        if kind == "ext4":
            # Where blocks can be shared, the same members need no room a second time.
            assert [event for event in events if event.kind == "refused"], events
        assert not of_kind(events, Lost)
        shutil.copytree(base, tmp_path / "larger")
    settle(tmp_path / "larger", acknowledged, {})


@contextlib.contextmanager
def small_disk(folder: Path, kind: str) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mounting a small disk takes root and mkfs.{kind}")
    image, disk = folder / "image", folder / "disk"
    disk.mkdir()
    with open(image, "wb") as file:
        file.truncate(SMALL_DISKS[kind] << 20)
    options = ["-O", "^has_journal"] if kind == "ext4" else []
    subprocess.run([f"mkfs.{kind}", "-q", *options, image], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, disk], check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"loop devices cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(disk: Path, *, leave_bytes: int) -> None:
    """Write files until so much room is left."""
    for number in itertools.count():
        if shutil.disk_usage(disk).free <= leave_bytes:
            return
        try:
            with open(disk / f"filler-{number}", "wb", buffering=0) as file:
                file.write(bytes(1 << 20))
                os.fsync(file.fileno())
        except OSError:
            # Not all that is called free can be had.
            for last in range(number + 1)[-(leave_bytes >> 20) - 1 :]:
                (disk / f"filler-{last}").unlink(missing_ok=True)
            return
