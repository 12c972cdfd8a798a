"""Containers: names of hosts that change with each run, namespaces of their own for processes and time, one boot id."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bases import check_base, found_in, of_kind, put, scavenge, unfinished_graves, write
from pairs import see_nobody
from programs import rear_command, run_rear, wait_for

import rear
from rear.core.layout import Layout
from rear.core.liveness import Observations, is_running, this_process
from rear.core.storage import Storage
from rear.errors import NotLeaderError
from rear.events import LeftAlone, Refused
from rear.scavenger.leader import Leadership

WRITER = """
import sys, time
from rear import rear_fs
with rear_fs(sys.argv[1], lease_seconds=float(sys.argv[2]), sync=sys.argv[3]) as fs:
    for number in range(int(sys.argv[4])):
        with fs.open(f"ar.zip/{number}", "w") as file:
            file.write(f"content of {number}")
        print(number, flush=True)
        time.sleep(0.02)
    print("written", flush=True)
    sys.stdin.readline()
"""


def contained(*options: str) -> list[str]:
    """Return the command that runs another one in namespaces of its own; skip the test where that is not possible."""
    command = ["unshare", *options, "--fork", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("makes namespaces: takes root and util-linux")
    return command


def container(name: str) -> list[str]:
    """Return the command that runs another one in a container of its own."""
    return [*contained("--uts", "--pid", "--mount-proc"), "sh", "-c", f'hostname {name}; exec "$0" "$@"']


def start_writer(
    base: Path, count: int, *, within: list[str], lease: float = 60.0, sync: str = "interval"
) -> subprocess.Popen[str]:
    """Start a worker, in a container, that writes files and then waits."""
    command = [*within, sys.executable, "-c", WRITER, str(base), str(lease), sync, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def scavenge_in(name: str, *options: object) -> subprocess.CompletedProcess[str]:
    """Run ``rear scavenge`` in a container of its own."""
    command = [*container(name), *rear_command("scavenge", *options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    while (said := process.stdout.readline()) != f"{line}\n":
        assert said, "the worker has ended"


def expected(count: int) -> dict[str, bytes]:
    return {f"ar.zip/{number}": f"content of {number}".encode() for number in range(count)}


@pytest.mark.parametrize("sync", ["interval", "file"])
def test_a_worker_in_a_time_namespace_is_not_robbed(base: Path, sync: str) -> None:
    """There its start is told as another time."""
    worker = start_writer(base, 60, within=contained("--time", "--boottime", "86400"), sync=sync)
    read_until(worker, "10")
    events = scavenge(base)
    assert [event.code for event in of_kind(events, LeftAlone)] == ["worker-unseen"]
    assert worker.communicate("\n", timeout=60)[0].endswith("written\n")
    assert worker.returncode == 0
    scavenge(base)
    check_base(base, expected(60))


def test_a_killed_worker_is_taken_over_whatever_the_scavengers_are_called(base: Path) -> None:
    worker = start_writer(base, 20, within=container("worker-1"), lease=1.0)
    read_until(worker, "written")
    worker.kill()
    worker.communicate()
    for run in range(40):
        done = scavenge_in(f"cron-{run}", base)
        assert done.returncode == 0, done.stderr
        if found_in(base):
            break
    # One looks, one sees that nothing has changed for a lease.
    assert run < 20
    check_base(base, expected(20))


def test_one_scavenge_may_wait_for_what_cannot_be_seen(base: Path) -> None:
    live = start_writer(base / "live", 1, within=container("worker-1"), lease=2.0)
    gone = start_writer(base, 20, within=container("worker-2"), lease=1.0)
    read_until(gone, "written")
    read_until(live, "written")
    gone.kill()
    gone.communicate()
    done = subprocess.run(
        [*container("cron-1"), *rear_command("scavenge", "--wait", base)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    check_base(base, expected(20))
    # A worker that lives is waited for once, and not robbed.
    done = run_rear("scavenge", "--wait", "--plain", base / "live")
    assert done.returncode == 0, done.stderr
    assert "cannot be seen from here" in done.stdout
    assert not found_in(base / "live")
    live.communicate("\n", timeout=60)


LEADER = """
import os, signal, sys
import rear.scavenger.leader
rear.scavenger.leader.LEASE_SECONDS = 1.0
import rear
for event in rear.scavenge(sys.argv[1]):
    if event.kind == "claimed":
        os._exit(9)
"""


def test_a_killed_leader_is_taken_over_whatever_the_next_ones_are_called(base: Path) -> None:
    with rear.rear_fs(base) as fs:
        put(fs, "ar.zip/a", b"a")
    subprocess.run([*container("cron-1"), sys.executable, "-c", LEADER, str(base)], capture_output=True)
    done = scavenge_in("cron-2", base)
    # A monitor sees that this one did nothing, and a person what to do.
    assert done.returncode == 1
    assert "--wait" in done.stderr
    wait_for(lambda: run_rear("status", base).returncode == 1)
    assert "cron-1" in run_rear("status", base).stdout
    done = subprocess.run(
        [*container("cron-3"), *rear_command("scavenge", "--wait", base)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    check_base(base, {"ar.zip/a": b"a"})


EXEC = """
import os, sys
from rear import rear_fs
fs = rear_fs(sys.argv[1], lease_seconds=1.0)
with fs.open("ar.zip/before", "w") as file:
    file.write("before")
os.execv(sys.executable, [sys.executable, "-c", "print('another program', flush=True); input()"])
"""


def test_a_process_that_became_another_program_is_no_worker_any_more(base: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", EXEC, str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "another program\n"
    assert [event.code for event in of_kind(scavenge(base), LeftAlone)] == ["worker-lives"]
    wait_for(lambda: scavenge(base) and found_in(base))
    process.communicate("\n", timeout=30)
    check_base(base, {"ar.zip/before": b"before"})


# --- taken for dead by mistake --------------------------------------------------------------------------------------


def see_all_dead(patch: pytest.MonkeyPatch) -> None:
    """What is seen from here is wrong: a restored checkpoint, a machine that was copied while it ran."""
    see_nobody(patch, False)


def write_three(fs: rear.RearFs, base: Path, patch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Write a file, have its pair taken, and write on."""
    for name in ("before", "after", "last"):
        put(fs, f"ar.zip/{name}", name.encode() * 100)
        if name == "before":
            with patch.context() as blind:
                see_all_dead(blind)
                scavenge(base)
            assert found_in(base) == {"ar.zip/before": b"before" * 100}
    return {f"ar.zip/{name}": name.encode() * 100 for name in ("before", "after", "last")}


@pytest.mark.parametrize("sync", ["interval", "file"])
@pytest.mark.parametrize("ends", [True, False], ids=["closed", "killed"])
def test_a_worker_that_was_taken_for_dead_loses_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch, sync: str, ends: bool
) -> None:
    fs = rear.rear_fs(base, sync=sync)
    written = write_three(fs, base, monkeypatch)
    # What came later is in a pair that waits in the graveyard.
    assert unfinished_graves(base)
    if ends:
        fs.close()
    else:
        with monkeypatch.context() as blind:
            see_all_dead(blind)
            scavenge(base)
        assert found_in(base) == written
        fs.close()
    scavenge(base)
    check_base(base, written)


@pytest.mark.parametrize("by", ["close", "rotation"])
def test_a_worker_that_was_taken_for_dead_finds_out_when_its_pair_ends(
    base: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    fs = rear.rear_fs(base, sync="file", rotation_span=3600 if by == "close" else 0.5)
    written = write_three(fs, base, monkeypatch)
    # Even when nobody would ever look into that graveyard again.
    shutil.rmtree(base / ".rear" / "graveyard", ignore_errors=True)
    if by == "rotation":
        wait_for(lambda: list((base / ".rear" / "inbox").rglob("*.zip")))
    fs.close()
    scavenge(base)
    check_base(base, written)


class HalfWritten(Storage):
    """Stops in the middle of the bytes of one member."""

    def __init__(self) -> None:
        self.is_half, self.goes_on = threading.Event(), threading.Event()

    def write(self, descriptor: int, buffers: Any, offset: int) -> int:
        if len(buffers) == 2 and len(buffers[1]) == 5000:
            super().write(descriptor, [buffers[0], buffers[1][:100]], offset)
            self.is_half.set()
            assert self.goes_on.wait(30)
        return super().write(descriptor, buffers, offset)


class Meanwhile(Storage):
    """Lets a worker beat when its claimed temp archive is opened."""

    def __init__(self, beat: Callable[[], object]) -> None:
        self.beat = beat

    def open(self, path: Any, **options: Any) -> int:
        if "/claims/" in str(path) and str(path).endswith(".zip"):
            self.beat()
        return super().open(path, **options)


def test_a_worker_that_is_taken_for_dead_in_the_middle_of_a_write_is_left_alone_when_it_beats(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = HalfWritten()
    fs = rear.rear_fs(base, storage=storage, compression="stored")
    put(fs, "ar.zip/before", b"before")
    writing = threading.Thread(target=put, args=(fs, "ar.zip/half", b"h" * 5000))
    writing.start()
    assert storage.is_half.wait(30)
    pair = fs._worker.current_pair
    assert pair is not None
    with monkeypatch.context() as blind:
        see_all_dead(blind)
        (refused,) = of_kind(scavenge(base, storage=Meanwhile(pair.beat)), Refused)
    assert "is writing to it" in refused.reason
    assert list((base / ".rear" / "inbox").rglob("*.journal"))
    storage.goes_on.set()
    writing.join()
    fs.close()
    scavenge(base)
    check_base(base, {"ar.zip/before": b"before", "ar.zip/half": b"h" * 5000})


def test_a_lock_of_nobody_behind_a_blank_record_is_waited_out(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before passed it over, and ended in good order."""
    monkeypatch.setattr("rear.scavenger.leader.LEASE_SECONDS", 0.5)
    write(base, {"ar.zip/a": b"a"})
    Layout(base).lock.touch()

    class Locked(Storage):
        def try_lock(self, descriptor: int) -> bool:
            return False

    for _ in range(2):
        with pytest.raises(NotLeaderError, match="is being scavenged"):
            scavenge(base, storage=Locked())
    time.sleep(0.6)
    scavenge(base, storage=Locked())
    check_base(base, {"ar.zip/a": b"a"})


def test_a_clock_without_a_boot_id_adds_up(look: Callable[..., float]) -> None:
    assert look(None, 0, host="here") == 0
    assert look(None, 10, host="here") == 10
    assert look(None, 70, host="here") == 70


def test_a_pair_waits_a_lease_in_the_graveyard_also_where_its_worker_is_seen_to_be_gone(base: Path) -> None:
    worker = start_writer(base, 3, within=[], lease=1.0)
    read_until(worker, "written")
    worker.kill()
    worker.communicate()
    scavenge(base)
    graves = Layout(base).graveyard
    assert found_in(base) == expected(3)
    assert list(graves.glob("*/*.zip"))
    scavenge(base)

    def is_cleared() -> bool:
        scavenge(base)
        return not list(graves.glob("*/*"))

    wait_for(is_cleared)
    check_base(base, expected(3))


# --- who runs, and for how long nobody has seen a sign of life ------------------------------------------------------


@pytest.mark.parametrize("key", ["host", "boot_id", "pid_namespace", "time_namespace"])
@pytest.mark.parametrize("value", ["another", None])
def test_a_process_is_judged_only_where_its_number_and_start_mean_the_same(key: str, value: str | None) -> None:
    here = this_process()
    assert is_running(here) is True
    gone = here._replace(pid=1_999_999_999, process_start=1)
    assert is_running(gone) is False
    for process in (here, gone):
        assert is_running(process._replace(**{key: value})) is None


class Elsewhere(Storage):
    """A clock of its own."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead

    def uptime(self) -> float:
        return self.ahead


@pytest.fixture
def look(base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Look for a sign of life, on a machine, at a time of its clock, and remember."""
    base.mkdir(exist_ok=True)

    def look(boot: str | None, uptime: float, beat: str = "1", *, host: str = "") -> float:
        with monkeypatch.context() as patch:
            here = this_process()._replace(boot_id=boot, host=host or os.urandom(4).hex())
            patch.setattr("rear.core.liveness.this_process", lambda: here)
            observations = Observations(Layout(base), topic="workers", storage=Elsewhere(uptime))
            seconds = observations.unchanged_seconds("worker", beat)
            observations.save()
            return seconds

    return look


def test_what_several_observers_saw_adds_up_and_never_to_more_than_has_passed(look: Callable[..., float]) -> None:
    # The real time is that of the first machine; the clock of the second one is at 5000 then.
    assert look("first", 0) == 0
    assert look("first", 10) == 10
    assert look("second", 5015) == 10
    assert look("second", 5035) == 30
    assert look("first", 40) == 40
    assert look("second", 5050) == 45
    # One that has booted anew has another clock, and believes what was seen.
    assert look("third", 1) == 45
    assert look("third", 11) == 55
    assert look("first", 70) == 70
    assert look("first", 71, "2") == 0
    assert look("second", 5075, "2") == 0
    assert look("second", 5080, "2") == 5


def test_a_clock_that_goes_back_is_no_time(look: Callable[..., float]) -> None:
    assert look("first", 100) == 0
    assert look("first", 50) == 0
    assert look("first", 60) == 10


def test_many_observers_take_bounded_space(look: Callable[..., float], base: Path) -> None:
    for number in range(50):
        look(f"boot {number}", 10.0)
    assert Layout(base).observation("workers").stat().st_size < 1000


def test_a_lock_that_nobody_alive_holds_is_waited_out(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may keep the lock of a client that is dead; one that beats is never deposed."""
    monkeypatch.setattr("rear.scavenger.leader.LEASE_SECONDS", 1.0)
    with rear.rear_fs(base) as fs:
        put(fs, "ar.zip/a", b"a")
    process = subprocess.Popen(
        [sys.executable, "-c", LEADER.replace("os._exit(9)", "os.kill(os.getpid(), signal.SIGSTOP)"), str(base)],
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    try:
        with pytest.raises(NotLeaderError, match="is being scavenged"):
            Leadership(Layout(base))
        time.sleep(1.1)
        scavenge(base)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
    check_base(base, {"ar.zip/a": b"a"})
