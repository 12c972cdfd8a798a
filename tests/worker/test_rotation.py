"""Time passes: new temp archives, flush requests, beats, syncs, and a background thread that never gives up."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bases import members, put
from faults import Failing, is_one_of
from programs import in_threads, run_code, wait_for

import rear
from rear import rear_fs
from rear.core.storage import Storage
from rear.events import LeftAlone
from rear.journal.reader import Journal, read_journal
from rear.worker import fs as fs_module
from rear.worker import pair_writer, worker
from rear.worker.fs import RearFs


def journals(base: Path) -> list[Journal]:
    found = [read_journal(path) for path in (base / ".rear" / "inbox").glob("*/*.journal")]
    return sorted((journal for journal in found if journal.opened), key=lambda journal: journal.opened.rotation)  # type: ignore[union-attr]


def write(fs: RearFs, name: str, data: bytes = b"x" * 100) -> None:
    put(fs, f"ar.zip/{name}", data)


def merged_names(base: Path, **options: Any) -> list[str]:
    events = list(rear.scavenge(base, **options))
    assert [event for event in events if event.severity != "info"] == []
    return sorted(members(base))


class Counting(Storage):
    """Counts what is done to which kind of file."""

    def __init__(self) -> None:
        self.synced: list[str] = []
        self.closed = 0
        self.written = 0

    def name_of(self, descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix

    def sync(self, descriptor: int) -> None:
        self.synced.append(self.name_of(descriptor))
        super().sync(descriptor)


class NoSync(Storage):
    """A disk that is fast because it trusts its power supply."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_directory(self, path: Any) -> None:
        pass


# -- rotation


def test_a_new_temp_archive_each_span(base: Path) -> None:
    with rear_fs(base, rotation_span=0.2, sync_interval=0.05) as fs:
        begun = time.monotonic()
        count = 0
        while time.monotonic() - begun < 1.1:
            write(fs, str(count))
            count += 1
            time.sleep(0.01)
        # The end of a span needs no further file, and closes the old archive soon.
        wait_for(lambda: all(journal.closed for journal in journals(base)))
        assert fs._worker._pairs.current is None
    found = journals(base)
    assert 4 <= len(found) <= 7
    assert {journal.closed.reason for journal in found if journal.closed} == {"rotation"}
    assert [journal.opened.rotation for journal in found if journal.opened] == list(range(len(found)))
    assert len(merged_names(base)) == count


def test_workers_that_begin_together_rotate_apart_and_none_too_late(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still, so that what is decided at which second can be seen."""
    now = [10_000.0]
    monkeypatch.setattr(Storage, "uptime", lambda self: now[0])

    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(rear_fs(base, rotation_span=1000, lease_seconds=1e6)) for _ in range(12)]
        for turn in range(2):
            for number, fs in enumerate(workers):
                write(fs, f"{turn}/{number}")
            begun = now[0]
            ended: list[float] = []
            for after in (0.0, 749.9, 800.0, 850.0, 900.0, 950.0, 1000.0):
                now[0] = begun + after
                for fs in workers:
                    fs._worker.wake()
                # By then each has looked at the clock, or some seconds later on a busy machine.
                time.sleep(0.05)
                wait_for(
                    lambda after=after: all(
                        (fs._worker._pairs.current is None) is (after >= fs._worker._pairs.rotation_seconds)
                        for fs in workers
                    )
                )
                ended.append(sum(fs._worker._pairs.current is None for fs in workers))
            assert ended[:2] == [0, 0]
            assert any(0 < count < len(workers) for count in ended[2:-1]), "all at once"
            wait_for(lambda: all(fs._worker._pairs.current is None for fs in workers))
    assert len(journals(base)) == 24
    assert len(merged_names(base)) == 24


def test_an_idle_worker_makes_nothing_new(base: Path) -> None:
    with rear_fs(base, rotation_span=0.05, sync_interval=0.01, lease_seconds=0.1) as fs:
        write(fs, "a")
        wait_for(lambda: journals(base)[0].closed)
        time.sleep(0.3)
        assert len(journals(base)) == 1
        write(fs, "b")
        assert len(journals(base)) == 2
    assert merged_names(base) == ["a", "b"]


def test_a_new_temp_archive_when_one_is_full(base: Path) -> None:
    with rear_fs(base, rotation_size=1000, compression="stored") as fs:
        for number in range(10):
            write(fs, str(number), b"x" * 600)
        write(fs, "large", b"x" * 5000)
    assert [len(journal.appends) for journal in journals(base)] == [2, 2, 2, 2, 2, 1]
    assert len(merged_names(base)) == 11


def test_a_new_temp_archive_when_the_directory_grows_large(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_writer, "DIRECTORY_LIMIT_BYTES", 1000)
    with rear_fs(base) as fs:
        for number in range(100):
            write(fs, str(number), b"")
    assert 5 < len(journals(base)) < 12
    assert len(merged_names(base)) == 100


def test_a_new_temp_archive_when_the_journal_grows_large(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_writer, "JOURNAL_LIMIT_BYTES", 10_000)
    with rear_fs(base) as fs:
        for number in range(20):
            with fs.open(f"ar.zip/{number}", "wb", metadata={"text": "x" * 1_000}) as file:
                file.write(b"x")
    assert 2 <= len(journals(base)) <= 4
    assert len(merged_names(base)) == 20


def test_thousands_of_rotations_leave_nothing_behind(base: Path) -> None:
    descriptors = set(os.listdir("/proc/self/fd"))
    with rear_fs(base, rotation_size=1, sync_interval=0.001, storage=NoSync()) as fs:
        for number in range(1500):
            write(fs, str(number))
            if number % 100 == 0:
                fs.sync()
                # Closed pairs are let go: those that are open now are few.
                assert len(os.listdir("/proc/self/fd")) - len(descriptors) < 20
        alive = fs._worker
        fs.sync()
        assert alive._retained.bytes == 0
        assert not alive._pairs.rolling
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert len(journals(base)) == 1500
    assert fs not in fs_module._open_systems


HOLDING = """
import gc, sys, weakref
from rear import rear_fs
with rear_fs(sys.argv[1]) as fs:
    with fs.open("ar.zip/a", "w") as file:
        file.write("a")
reference = weakref.ref(fs)
del fs, file
gc.collect()
print(reference())
"""


def test_nothing_holds_a_context_that_is_closed(base: Path) -> None:
    # In a process of its own: tests that raise at any line leave what CPython holds for good.
    assert run_code(HOLDING, base).stdout == "None\n"


# -- flush


def test_a_flush_request(base: Path) -> None:
    """`rear scavenge --flush`: live workers end their temp archives, without any end of their own."""
    stop = threading.Event()
    written: list[str] = []

    def work(number: int) -> None:
        with rear_fs(base, lease_seconds=0.4, sync_interval=0.05) as fs:
            while not stop.is_set():
                name = f"{number}/{len(written)}"
                write(fs, name)
                written.append(name)
                time.sleep(0.01)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(written) > 20)
        assert any(isinstance(event, LeftAlone) for event in rear.scavenge(base))
        assert not (base / "ar.zip").exists()
        for _ in range(2):
            before = set(written)
            names = merged_names(base, flush=True, flush_wait_seconds=20)
            assert before <= set(names)
        assert {journal.closed.reason for journal in journals(base) if journal.closed} <= {"flush"}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not list((base / ".rear" / "flush").iterdir())
    assert merged_names(base) == sorted(written)


def test_a_flush_does_not_wait_for_ever(base: Path) -> None:
    with rear_fs(base, lease_seconds=1000) as fs:
        write(fs, "a")
        begun = time.monotonic()
        events = list(rear.scavenge(base, flush=True, flush_wait_seconds=0.3))
        assert time.monotonic() - begun < 10
        assert any(isinstance(event, LeftAlone) for event in events)
    assert merged_names(base) == ["a"]


# -- beats


def test_beats_go_on(base: Path) -> None:
    with rear_fs(base, lease_seconds=0.2) as fs:
        write(fs, "a")
        first = journals(base)[0].beats
        wait_for(lambda: journals(base)[0].beats >= first + 5)
        write(fs, "b")
    (journal,) = journals(base)
    assert journal.damage == []
    assert journal.closed is not None


def test_beats_go_on_during_a_long_append(base: Path) -> None:
    class Slow(Storage):
        waited = False

        def write(self, descriptor: int, buffers: Any, offset: int) -> int:
            # The first member of a temp archive, header and data.
            if len(buffers) == 2 and not self.waited:
                self.waited = True
                first = journals(base)[0].beats
                wait_for(lambda: journals(base)[0].beats >= first + 4)
            return super().write(descriptor, buffers, offset)

    with rear_fs(base, storage=Slow(), lease_seconds=0.1) as fs:
        write(fs, "a")
    assert merged_names(base) == ["a"]


# -- the background thread


@pytest.mark.parametrize("error", [OSError(5, "broken"), RuntimeError("a mistake"), MemoryError()], ids=repr)
@pytest.mark.parametrize("where", ["sync", "names"])
def test_the_background_thread_outlives_errors(base: Path, error: Exception, where: str) -> None:
    class Unlucky(Storage):
        failures = 3

        def _fail(self, operation: str) -> None:
            if operation == where and threading.current_thread().name.startswith("rear ") and self.failures:
                self.failures -= 1
                raise error

        def sync(self, descriptor: int) -> None:
            self._fail("sync")
            super().sync(descriptor)

        def names(self, path: Any) -> list[str]:
            self._fail("names")
            return super().names(path)

    storage = Unlucky()
    with rear_fs(base, storage=storage, sync_interval=0.02, lease_seconds=0.1) as fs:
        count = 0
        while storage.failures:
            write(fs, str(count))
            count += 1
            time.sleep(0.005)
            assert count < 2000
        assert fs._worker._background.is_alive
        write(fs, "last")
        wait_for(lambda: not fs._worker._retained.items)
    assert len(merged_names(base)) == count + 1


def test_members_are_kept_while_nothing_can_be_synced(base: Path) -> None:
    storage = Failing(errno.EIO, is_one_of("sync"))
    with rear_fs(base, storage=storage, sync_interval=0.02) as fs:
        write(fs, "a")
        time.sleep(0.2)
        with pytest.raises(OSError, match="Input/output"):
            write(fs, "b")
        time.sleep(0.2)
        # One archive that failed and one more attempt, however often it was tried.
        assert len(list((base / ".rear" / "inbox").glob("*/*.zip"))) <= 3
        assert len(fs._worker._pairs.failed) <= 2
        with pytest.raises(OSError, match="Input/output"):
            fs.sync()
        storage.healthy = True
        fs.sync()
        assert fs._worker._retained.items == []
        assert fs._worker._retained.bytes == 0
        assert fs._worker._pairs.failed == []
        write(fs, "c")
    assert merged_names(base) == ["a", "c"]


# -- sync


def test_file_sync_is_done_before_close_returns(base: Path) -> None:
    storage = Counting()
    with rear_fs(base, storage=storage, sync="file", sync_interval=1000) as fs:
        for number in range(5):
            storage.synced.clear()
            write(fs, str(number))
            assert storage.synced[:2] == [".journal", ".zip"]
            assert fs._worker._retained.items == []
    assert len(merged_names(base)) == 5


def test_threads_share_a_sync(base: Path) -> None:
    """While one sync is under way, others wait and are then served by one together."""

    class Slow(Counting):
        def sync(self, descriptor: int) -> None:
            super().sync(descriptor)
            time.sleep(0.01)

    storage = Slow()

    def work(number: int) -> None:
        for count in range(5):
            write(fs, f"{number}/{count}")

    with rear_fs(base, storage=storage, sync="file", sync_interval=1000) as fs:
        in_threads(work, range(16))
        assert storage.synced.count(".zip") < 60
        assert fs._worker._retained.items == []
    assert len(merged_names(base)) == 80


def test_interval_sync_is_done_within_the_interval(base: Path) -> None:
    storage = Counting()
    with rear_fs(base, storage=storage, sync_interval=0.1) as fs:
        for _ in range(3):
            storage.synced.clear()
            begun = time.monotonic()
            write(fs, "a", os.urandom(10_000))
            assert fs._worker._retained.items
            wait_for(lambda: not fs._worker._retained.items)
            assert time.monotonic() - begun < 5
            assert storage.synced[:2] == [".journal", ".zip"]
        storage.synced.clear()
        time.sleep(0.3)
        assert storage.synced == [], "nothing new, nothing to sync"


def test_sync_covers_members_of_archives_that_have_rolled_over(base: Path) -> None:
    """Also when the thread that would have closed them is busy elsewhere."""
    storage = Counting()
    with rear_fs(base, storage=storage, sync_interval=1000) as fs:
        fs._worker._background.stopping = True  # no background thread: what it would do is left to sync()
        for number in range(3):
            write(fs, str(number))
            fs._worker.roll_over()
        write(fs, "last")
        storage.synced.clear()
        fs.sync()
        assert storage.synced.count(".zip") >= 4
        assert fs._worker._retained.items == []


def test_what_is_kept_is_bounded(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RETAINED_LIMIT_BYTES", 1 << 20)
    with rear_fs(base, sync_interval=1000, compression="stored") as fs:
        most = 0
        for number in range(100):
            write(fs, str(number), os.urandom(100_000))
            most = max(most, fs._worker._retained.bytes)
        assert 900_000 < most <= 1 << 20
        # Files without a byte cost memory too.
        for number in range(3000):
            write(fs, f"empty/{number}", b"")
        assert len(fs._worker._retained.items) < 1100
    assert len(merged_names(base)) == 3100


def test_the_background_thread_syncs_before_appends_have_to_wait(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "HURRY_BYTES", 1 << 20)
    with rear_fs(base, compression="stored", sync_interval=3600.0) as fs:
        for round_number in (1, 2):
            for number in range(20):
                write(fs, f"{round_number}/{number}", bytes(60_000))
            # What was appended after that sync had begun waits for the next.
            wait_for(lambda: fs._worker._retained.bytes < 1 << 20)
    assert len(merged_names(base)) == 40


def test_pickups_are_removed_after_the_interval(base: Path) -> None:
    source = base.parent / "source"
    with rear_fs(base, sync_interval=0.1) as fs:
        source.write_bytes(b"s" * 1000)
        with fs.pickup(source, "ar.zip/a"):
            pass
        assert source.exists()
        wait_for(lambda: not source.exists())
        source.write_bytes(b"t" * 1000)
        with fs.pickup(source, "ar.zip/b"):
            pass
        fs.sync()
        assert not source.exists()
    with rear_fs(base, sync="file", sync_interval=1000) as fs:
        source.write_bytes(b"u")
        fs.pickup(source, "ar.zip/c").close()
        assert not source.exists()
    with rear_fs(base, sync_interval=1000) as fs:
        source.write_bytes(b"v")
        fs.pickup(source, "ar.zip/d").close()
        assert source.exists()
    assert not source.exists()
    assert merged_names(base) == ["a", "b", "c", "d"]


def test_a_pickup_whose_bytes_do_not_come_back_stays(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Lying(Storage):
        def write(self, descriptor: int, buffers: Any, offset: int) -> int:
            if len(buffers) == 2:
                buffers = [buffers[0], bytes(len(buffers[1]))]
            return super().write(descriptor, buffers, offset)

    source = base.parent / "source"
    source.write_bytes(b"s" * 1000)
    with rear_fs(base, storage=Lying(), sync="file", compression="stored") as fs:
        fs.pickup(source, "ar.zip/a").close()
    assert source.read_bytes() == b"s" * 1000
    assert "stays in place" in caplog.text


def test_ctrl_c_during_the_sync_of_another_thread_keeps_the_source(base: Path) -> None:
    """Who is told that a pickup failed finds its source, even when a sync that covers it succeeds afterwards."""
    in_sync, go_on = threading.Event(), threading.Event()

    class Slow(Storage):
        def sync(self, descriptor: int) -> None:
            if threading.current_thread().name == "other":
                in_sync.set()
                assert go_on.wait(20)
            super().sync(descriptor)

    source = base.parent / "source"
    source.write_bytes(b"s")
    with rear_fs(base, storage=Slow(), sync_interval=1000) as fs:
        fs.pickup(source, "ar.zip/a").close()
        (item,) = fs._worker._retained.items
        other = threading.Thread(target=fs.sync, name="other")
        other.start()
        assert in_sync.wait(20)
        fs._worker._withdraw(item)  # as `append` does when Ctrl-C comes while it waits
        go_on.set()
        other.join()
        assert fs._worker._retained.bytes == 0
    assert source.exists()
