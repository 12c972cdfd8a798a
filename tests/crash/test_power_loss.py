"""The power goes at each operation, and takes with it what was not synced: data missing, torn or zeroed, names missing.

Changes of names reach the disk in their order, as journaling file systems and NFS servers have it; data in any order.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path

import crash_scavenger
import crash_worker
import pytest
from bases import check_base, members, scavenge
from faults import RecordProperty, after, some
from pairs import write_pair
from power_loss import Powered, lose_power_at_each, run_until, scavenge_on

from rear.core.storage import Storage, created


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_a_worker_that_syncs_every_file(scratch: Path, record_property: RecordProperty) -> None:
    disk, left = scratch / "disk", scratch / "left"

    def work(storage: Powered) -> None:
        crash_worker.work(scratch, "file", storage, base=disk / "base")

    def renew() -> None:
        crash_worker.renew(scratch)
        disk.mkdir()

    renew()
    storage = Powered(disk)
    work(storage)
    points = some(storage.points, 60)
    for point in points:
        for seed in range(4):
            renew()
            run_until(point, disk, left, work, seed)
            acknowledged = (scratch / "acknowledged").read_text().splitlines()
            if (left / "base" / ".rear").exists():
                scavenge(left / "base")
                with after(f"power lost at {point}, seed {seed}"):
                    check_base(
                        left / "base", {target: crash_worker.ALL[target] for target in acknowledged},
                        perhaps=crash_worker.ALL, lost_and_found=True, leftovers=True,
                    )  # fmt: skip
            else:
                assert acknowledged == []
    record_property("crash_points", len(points) * 4)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_a_scavenger(scratch: Path, record_property: RecordProperty) -> None:
    def judge(base: Path) -> None:
        scavenge(base)
        crash_scavenger.check(base)

    template = crash_scavenger.make_base(scratch / "template")
    count = lose_power_at_each(template, scavenge_on, judge, points=90, seeds=3)
    record_property("crash_points", count)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_a_pair_goes_only_when_the_archive_in_which_its_members_were_found_is_kept(
    scratch: Path, record_property: RecordProperty
) -> None:
    """Whoever took the pair and wrote the archive has not synced that, nor its name."""
    template = scratch / "template"
    template.mkdir()
    members_of_pair = {number: (f"{number}.txt", os.urandom(3_000)) for number in range(4)}
    temp, journal = write_pair(template, 0, members_of_pair, close="exit")
    waiting = {path.name: path.read_bytes() for path in (temp, journal)}
    scavenge(template)
    merged = (template / "ar.zip").read_bytes()
    (template / "ar.zip").unlink()
    claim = template / ".rear/claims/dead" / journal.parent.name
    claim.mkdir(parents=True)
    for name, data in waiting.items():
        (claim / name).write_bytes(data)

    def work(base: Path, storage: Storage) -> None:
        with created(base / "ar.zip", storage) as descriptor:
            storage.write(descriptor, [merged], 0)
        scavenge_on(base, storage)

    def judge(base: Path) -> None:
        with contextlib.suppress(AssertionError, zipfile.BadZipFile, OSError):
            if members(base) == dict(members_of_pair.values()):
                return
        # What is left of the archive has to make room, and all is merged anew.
        (base / "ar.zip").unlink(missing_ok=True)
        scavenge(base)
        assert members(base) == dict(members_of_pair.values())

    record_property("crash_points", lose_power_at_each(template, work, judge, points=40, seeds=4))
