"""What a pair that failed leaves behind on a file system that drops what it could not sync, as network clients do."""

from __future__ import annotations

import errno
import os
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bases import check_base, of_kind, put, scavenge
from faults import Failing, is_one_of
from pairs import see_nobody, write_pair

import rear
from rear.core.storage import Storage
from rear.errors import BaseError, NotLeaderError, RearError
from rear.events import Damaged, Event, Finished, Lost, NothingYet, Planned, Recovered, Refused
from rear.journal.reader import read_journal


class Dropping(Storage):
    """Takes all writes; a sync that fails drops what came since the last one that did not."""

    def __init__(self) -> None:
        self.is_full = False
        self.failures = 0
        self._synced: dict[str, int] = {}

    def sync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not self.is_full:
            super().sync(descriptor)
            self._synced[path] = self.size(descriptor)
            return
        self.failures += 1
        os.ftruncate(descriptor, self._synced.get(path, 0))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def write(fs: rear.worker.fs.RearFs, name: str, acknowledged: dict[str, bytes]) -> None:
    data = f"{name}\n".encode() * 300
    try:
        put(fs, f"ar.zip/{name}", data)
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
    else:
        acknowledged[f"ar.zip/{name}"] = data


def alarms(events: list[Event]) -> list[Event]:
    return of_kind(events, Refused, Lost, Damaged)


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("sync", ["file", "interval"])
def test_a_disk_that_was_full_for_a_while_raises_no_false_alarm(tmp_path: Path, before: int, sync: str) -> None:
    storage, acknowledged = Dropping(), dict[str, bytes]()
    with rear.rear_fs(tmp_path, sync=sync, storage=storage) as fs:
        for number in range(before):
            write(fs, f"before-{number}", acknowledged)
        fs.sync()
        storage.is_full = True
        for number in range(4):
            write(fs, f"full-{number}", acknowledged)
            if sync == "interval":
                with pytest.raises((OSError, RearError)):
                    fs.sync()
        assert storage.failures >= 4
        storage.is_full = False
        for number in range(3):
            write(fs, f"after-{number}", acknowledged)
    journals = [read_journal(path) for path in (tmp_path / ".rear/inbox").rglob("*.journal")]
    assert [journal.damage for journal in journals if journal.damage] == []
    events = scavenge(tmp_path)
    assert alarms(events) == []
    everything = {f"ar.zip/full-{number}": f"full-{number}\n".encode() * 300 for number in range(4)}
    check_base(tmp_path, acknowledged, perhaps=everything)


@pytest.mark.parametrize("failing", [".rear", "base"])
def test_a_base_that_cannot_be_looked_at_is_neither_missing_nor_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    base = tmp_path / "base"
    with rear.rear_fs(base) as fs:
        write(fs, "a", {})
    real = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if os.path.basename(os.fspath(path)) == failing:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), os.fspath(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(OSError, match="not connected") as caught:
        scavenge(base)
    assert not isinstance(caught.value, BaseError)
    monkeypatch.undo()
    assert of_kind(scavenge(base), NothingYet) == []


def test_a_merge_that_cannot_be_undone_says_what_to_do(tmp_path: Path) -> None:
    acknowledged: dict[str, bytes] = {}
    for name in ("old", "new"):
        with rear.rear_fs(tmp_path) as fs:
            write(fs, name, acknowledged)
        if name == "old":
            scavenge(tmp_path)

    class Full(Storage):
        """Refuses all writes to the archive, also over old bytes, as GlusterFS does near its reserve."""

        def copy_range(self, source: int, target: int, **options: Any) -> None:
            if os.readlink(f"/proc/self/fd/{target}").endswith("ar.zip"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().copy_range(source, target, **options)

        def replace(self, path: Any, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

    events = scavenge(tmp_path, storage=Full())
    refusals = [str(event) for event in of_kind(events, Refused)]
    assert any("could not be undone" in text and "scavenge again" in text for text in refusals), refusals
    assert any("report could not be written" in text for text in refusals)
    assert isinstance(events[-1], Finished)
    scavenge(tmp_path)
    check_base(tmp_path, acknowledged)


def test_a_member_that_was_told_of_as_lost_is_told_of_when_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None]
) -> None:
    temp, _ = write_pair(tmp_path, 0, {1: ("a", b"one"), 2: ("b", b"two" * 100), 3: ("c", b"three")})
    os.truncate(temp, 200)
    see_nobody(monkeypatch)
    for seconds in (0, 61):
        later(seconds)
        events = scavenge(tmp_path)
    lost = of_kind(events, Lost)
    assert [event.name for event in lost] == ["b", "c"]  # type: ignore[attr-defined]
    assert "may still have it" in str(lost[0])
    write_pair(tmp_path, 1, {2: ("b", b"two" * 100), 3: ("c", b"three")}, close="exit", repeats_from=2)
    events = scavenge(tmp_path)
    assert [event.name for event in of_kind(events, Recovered)] == ["b", "c"]
    assert alarms(events) == []


class LosesItsLock(Storage):
    """From some moment on, fails all I/O on the lock file that was opened before, as NFS does after a lost lock."""

    def __init__(self) -> None:
        self.old: set[int] = set()
        self.has_lost = False

    def create(self, path: Any, mode: int = 0o666) -> int:
        descriptor = super().create(path, mode)
        return self._noted(path, descriptor)

    def open(self, path: Any, **options: Any) -> int:
        return self._noted(path, super().open(path, **options))

    def _noted(self, path: Any, descriptor: int) -> int:
        self.old.discard(descriptor)
        if not self.has_lost and os.path.basename(os.fspath(path)) == "lock":
            self.old.add(descriptor)
        return descriptor

    def _check(self, descriptor: int) -> None:
        if self.has_lost and descriptor in self.old:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        self._check(descriptor)
        return super().read(descriptor, length, offset)

    def write(self, descriptor: int, buffers: Any, offset: int) -> int:
        self._check(descriptor)
        return super().write(descriptor, buffers, offset)

    def copy_range(self, source: int, target: int, **options: Any) -> None:
        if self.has_lost:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().copy_range(source, target, **options)


@pytest.mark.parametrize("is_deposed", [True, False])
def test_a_leader_that_lost_its_lock_says_what_it_is(tmp_path: Path, is_deposed: bool) -> None:
    acknowledged: dict[str, bytes] = {}
    with rear.rear_fs(tmp_path) as fs:
        write(fs, "a", acknowledged)
    storage = LosesItsLock()
    events = rear.scavenge(tmp_path, storage=storage)
    found: list[Event] = []
    if is_deposed:
        with pytest.raises(NotLeaderError, match="taken over"):  # noqa: PT012
            for event in events:
                found.append(event)
                if isinstance(event, Planned):
                    storage.has_lost = True
                    # What another scavenger, elsewhere, leaves to be seen.
                    (term,) = (tmp_path / ".rear/terms").iterdir()
                    term.with_name(str(int(term.name) + 1)).touch()
        assert of_kind(found, Refused) == []
    else:
        for event in events:
            found.append(event)
            storage.has_lost = storage.has_lost or isinstance(event, Planned)
        assert len(of_kind(found, Refused)) == 1
    for path in (tmp_path / ".rear/lock", *(tmp_path / ".rear/terms").iterdir()):
        path.unlink()
    scavenge(tmp_path)
    check_base(tmp_path, acknowledged)


def test_a_failed_pair_that_was_taken_is_not_written_over_while_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None]
) -> None:
    """Nobody beats a pair that failed. Its worker lives, and is well again just when another host copies from it."""
    disk = Failing(errno.EIO, is_one_of("sync", "create"), healthy=True)
    acknowledged: dict[str, bytes] = {}

    class Scavenger(Storage):
        has_copied = False

        def copy_range(self, source: int, target: int, **options: Any) -> None:
            if not self.has_copied and ".rear/intents" in os.readlink(f"/proc/self/fd/{target}"):
                self.has_copied = True
                disk.healthy = True
                fs.sync()
            super().copy_range(source, target, **options)

    with rear.rear_fs(tmp_path, storage=disk, sync_interval=1e6) as fs:
        for number in range(100):
            acknowledged[f"ar.zip/{number}"] = os.urandom(3000)
            put(fs, f"ar.zip/{number}", acknowledged[f"ar.zip/{number}"])
        fs.sync()
        write(fs, "not synced", acknowledged)
        disk.healthy = False
        with pytest.raises(OSError, match="Input/output"):
            fs.sync()
        see_nobody(monkeypatch)
        scavenge(tmp_path)
        later(61)
        scavenger = Scavenger()
        scavenge(tmp_path, storage=scavenger)
        assert scavenger.has_copied
    monkeypatch.undo()
    for seconds in (0, 0, 10_000, 10_000):
        later(seconds)
        scavenge(tmp_path)
    check_base(tmp_path, acknowledged)


@pytest.mark.parametrize("meanwhile", ["rolled over", "synced"])
def test_a_failed_sync_of_a_beat_is_told_to_whoever_comes_next(tmp_path: Path, meanwhile: str) -> None:
    """The kernel tells of it once, to the thread that beats: another one must not take the pages for synced."""
    failed = threading.Event()

    class Failing(Storage):
        def sync(self, descriptor: int) -> None:
            if not failed.is_set() and any(frame.name == "beat" for frame in traceback.extract_stack()):
                failed.set()
                if meanwhile == "rolled over":
                    worker.roll_over()
                else:
                    thread = threading.Thread(target=worker._prover.sync_last)
                    thread.start()
                    thread.join(0.5)
                raise OSError(errno.EIO, "journal pages are gone")
            super().sync(descriptor)

    with rear.rear_fs(tmp_path, storage=Failing(), sync_interval=3600, lease_seconds=0.4) as fs:
        worker: Any = fs._worker
        put(fs, "ar.zip/a", b"data")
        assert failed.wait(10)
        fs.sync()
        journals = sorted(tmp_path.glob(".rear/inbox/*/*.journal"))
        # It is in a pair whose syncs have all succeeded.
        assert "-1." in journals[-1].name
    scavenge(tmp_path)
    check_base(tmp_path, {"ar.zip/a": b"data"})
