"""Real processes on one base: many at once, killed, forked, racing; and all the ways in which an interpreter ends."""

from __future__ import annotations

import array
import contextlib
import fcntl
import multiprocessing
import os
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bases import check_archive, files_below, found_in, journals, unfinished_graves
from children import (
    content,
    leave_process,
    only_an_open_file,
    target,
    write,
    write_after,
    write_in_inherited,
    write_in_pool,
)
from programs import run_code, start_code

import rear
from rear import rear_fs, rear_open
from rear.errors import NotLeaderError, RearError


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return start_code(code, *arguments, stdin=subprocess.PIPE)


def wait_for_output(process: subprocess.Popen[str], *, size_bytes: int) -> None:
    """Wait until a process has printed that much; it stays in the pipe."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        waiting = array.array("i", [0])
        fcntl.ioctl(process.stdout, termios.FIONREAD, waiting)
        if waiting[0] >= size_bytes:
            return
        time.sleep(0.02)
    raise TimeoutError(f"process {process.pid} printed less than {size_bytes} bytes")


WORKER = """
import sys
from rear import rear_fs, rear_open
from children import content, target
base, worker, count, options = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), eval(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
with rear_fs(base, **options):
    for number in range(count):
        with rear_open(target(worker, number), "wb") as file:
            file.write(content(worker, number))
        print(number, flush=True)
"""


def scavenge(base: Path, **options: Any) -> list[rear.events.Event]:
    """Merge; everything has to be in good order."""
    events = list(rear.scavenge(base, **options))
    assert [event for event in events if event.severity == "loss"] == []
    return events


def leftovers(base: Path) -> list[str]:
    """Files that should be gone once everything is merged."""
    folders = ("inbox", "claims", "intents", "lost+found")
    found = [f".rear/{folder}/{path}" for folder in folders for path in files_below(base / ".rear" / folder)]
    return found + unfinished_graves(base)


# -- many at once


def test_sixteen_workers(base: Path) -> None:
    workers = [start(WORKER, base, number, 500, {"rotation_size": 300_000}) for number in range(16)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        _, errors = worker.communicate(timeout=100)
        assert (worker.returncode, errors) == (0, "")
    temp_archives = list((base / ".rear" / "inbox").glob("*/*.zip"))
    assert len(temp_archives) > 16
    for path in temp_archives[::5]:
        check_archive(path)
    scavenge(base)
    found = found_in(base)
    assert found == {target(worker, number): content(worker, number) for worker in range(16) for number in range(500)}
    assert leftovers(base) == []
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*.zip")}
    scavenge(base)
    assert {path: path.stat().st_mtime_ns for path in base.rglob("*.zip")} == before


def test_killed_workers_and_two_scavengers(base: Path) -> None:
    """What was acknowledged before SIGKILL is there, once; scavengers run all the while and race for it."""
    scavenger_code = """
import sys, time
import rear
from rear.errors import NotLeaderError
print("ready", flush=True)
worst, rounds, led = "info", 0, 0
while not rounds or not select.select([sys.stdin], [], [], 0.01)[0]:
    rounds += 1
    try:
        for event in rear.scavenge(sys.argv[1]):
            if event.severity == "loss":
                print(event, flush=True)
        led += 1
    except NotLeaderError:
        pass
print("led", led, flush=True)
"""
    base.mkdir()
    options = {"rotation_size": 300_000}
    workers = [start(WORKER, base, number, 100_000, options) for number in range(6)]
    scavengers = [start("import select\n" + scavenger_code, base) for _ in range(2)]
    acknowledged: list[list[str]] = []
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        wait_for_output(worker, size_bytes=300)
    for worker in workers:
        time.sleep(0.13)
        worker.kill()
    for worker in workers:
        output, errors = worker.communicate(timeout=60)
        assert worker.returncode == -signal.SIGKILL, errors
        # The last line may be cut off.
        acknowledged.append(output.split("\n")[1:-1])
    led = 0
    for scavenger in scavengers:
        output, errors = scavenger.communicate("stop\n", timeout=60)
        assert scavenger.returncode == 0, errors
        _ready, *problems, last = output.splitlines()
        assert problems == []
        led += int(last.removeprefix("led "))
    assert led > 0
    scavenge(base, verify=True)
    found = found_in(base)
    expected = {
        target(worker, int(number)): content(worker, int(number))
        for worker, numbers in enumerate(acknowledged)
        for number in numbers
    }
    assert len(expected) > 100
    assert {name: found.get(name) for name in expected} == expected
    # Each worker may have finished one more that it could not tell of.
    for name in found.keys() - expected.keys():
        worker, number = int(name.split("/")[-3]), int(Path(name).stem)
        assert number == len(acknowledged[worker])
        assert found[name] == content(worker, number)
    # What was torn may have been put into lost+found, nothing else stays.
    assert [path for path in leftovers(base) if not path.startswith(".rear/lost+found/")] == []


def test_two_workers_that_start_in_one_instant(base: Path) -> None:
    context = multiprocessing.get_context("fork")
    count = 8
    barrier = context.Barrier(count)
    children = [context.Process(target=write_after, args=(barrier, str(base), number)) for number in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    opened = [journal.opened for journal in journals(base)]
    assert len({(one.worker, one.rotation) for one in opened if one is not None}) == count
    assert len({one.cookie for one in opened if one is not None}) == count
    scavenge(base)
    assert found_in(base) == {target(number, 7): content(number, 7) for number in range(count)}


# -- forks


@contextlib.contextmanager
def forked(leave: str) -> Iterator[bool]:
    """Fork; true in the child, which ends the given way, and the parent waits for it at the end."""
    pid = os.fork()
    if pid:
        yield False
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        return
    # Not a word of the child may reach the test runner.
    status = 1
    try:
        yield True
        status = 0
    except SystemExit as error:
        status = 0 if error.code is None else 2
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        if leave == "atexit" and status == 0:
            from rear.worker import fs

            fs._close_open_systems()
        os._exit(status)


@pytest.mark.parametrize("leave", ["_exit", "atexit"])
def test_a_child_of_fork_inherits_the_context(base: Path, leave: str) -> None:
    """It gets a temp archive of its own, and the parent goes on undisturbed, also while the child writes."""
    with rear_fs(base, sync_interval=0.01) as fs:
        write(0, range(20))
        with forked(leave) as is_child:
            if is_child:
                write(1, range(60))
                fs.sync()
            else:
                write(0, range(20, 60))
        write(0, range(60, 80))
    assert len({journal.opened.worker for journal in journals(base) if journal.opened}) == 2
    assert sum(journal.closed is None for journal in journals(base)) == (leave == "_exit")
    scavenge(base)
    assert found_in(base) == {
        **{target(0, number): content(0, number) for number in range(80)},
        **{target(1, number): content(1, number) for number in range(60)},
    }


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_file_that_was_opened_before_the_fork_is_the_parents(base: Path, size: int) -> None:
    with rear_fs(base, spool_size=1000):
        file, text = rear_open("ar.zip/a", "wb"), rear_open("ar.zip/b", "w")
        file.write(b"a" * size)
        text.write("b" * size)
        with forked("atexit") as is_child:
            if is_child:
                for one, data in ((file, b"child"), (text, "child")):
                    with pytest.raises(RearError, match="fork"):
                        one.write(data)
                    one.close()
                write(1, range(5))
        file.write(b"c" * size)
        text.write("d" * size)
        file.close()
        text.close()
    scavenge(base)
    assert found_in(base) == {
        "ar.zip/a": b"a" * size + b"c" * size,
        "ar.zip/b": b"b" * size + b"d" * size,
        **{target(1, number): content(1, number) for number in range(5)},
    }


def test_the_background_thread_runs_on_both_sides_of_a_fork(base: Path) -> None:
    """Both go on syncing and rolling over, though the child of a fork has no threads at first."""
    with rear_fs(base, rotation_span=0.1, sync_interval=0.02) as fs:
        write(0, range(3))
        with forked("_exit") as is_child:
            worker = int(is_child)
            for number in range(10, 20):
                write(worker, range(number, number + 1))
                time.sleep(0.06)
            assert fs._worker._background.is_alive
    # The child left the last pair unfinished, no other.
    assert sum(journal.closed is None for journal in journals(base)) <= 1
    assert len(journals(base)) > 6
    scavenge(base)
    assert len(found_in(base)) == 23


@pytest.mark.timeout(400)
def test_forks_in_the_middle_of_anything(base: Path) -> None:
    """Threads append, sync and roll over while the process forks: no lock stays locked in a child."""
    stop = threading.Event()

    def work(worker: int) -> None:
        number = 0
        while not stop.is_set():
            write(worker, range(number, number + 1))
            number += 1
        counts[worker] = number

    counts: dict[int, int] = {}
    children = 25
    with rear_fs(base, rotation_size=50_000, sync_interval=0.001, lease_seconds=0.01):
        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
        for thread in threads:
            thread.start()
        for child in range(children):
            with forked("atexit") as is_child:
                if is_child:
                    signal.alarm(20)
                    write(100 + child, range(5))
        stop.set()
        for thread in threads:
            thread.join()
    scavenge(base)
    counts |= {100 + child: 5 for child in range(children)}
    assert found_in(base) == {
        target(worker, number): content(worker, number) for worker, count in counts.items() for number in range(count)
    }


def test_no_descriptors_are_left_in_a_child(base: Path) -> None:
    with rear_fs(base):
        write(0, range(3))
        with forked("_exit") as is_child:
            if is_child:
                names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_link(fd)]
                assert [name for name in names if str(base) in name] == []


def is_link(descriptor: str) -> bool:
    # The one that lists the folder is closed again.
    return os.path.islink(f"/proc/self/fd/{descriptor}")


# -- multiprocessing


open_for_good: Any = None


def begin_pool_worker(base: str) -> None:
    """A context that is never left: the end of the process closes it."""
    global open_for_good
    open_for_good = rear_fs(base).__enter__()


METHODS = pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])


def expected_of_pool(count: int) -> dict[str, bytes]:
    return {target(number % 4, number): content(number % 4, number) for number in range(count)}


@METHODS
def test_a_pool_whose_workers_open_their_own(base: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with context.Pool(3) as pool:
        pool.map(write_in_pool, [(str(base), number) for number in range(40)], chunksize=1)
        pool.close()
        pool.join()
    assert all(journal.closed for journal in journals(base))
    scavenge(base)
    assert found_in(base) == expected_of_pool(40)


@METHODS
def test_an_executor_whose_workers_never_leave_their_context(base: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, context, initializer=begin_pool_worker, initargs=(str(base),)) as executor:
        processes = set(executor.map(write_in_inherited, range(30)))
    assert {journal.opened.pid for journal in journals(base) if journal.opened} == processes
    assert all(journal.closed for journal in journals(base)), "the end of a child closes its temp archive"
    scavenge(base)
    assert found_in(base) == expected_of_pool(30)


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_signal_handler_that_forks_in_the_middle_of_a_call(base: Path, operation: str) -> None:
    """Its child goes on in the call: it must neither touch the parent's pairs nor wait for what is the parent's."""
    code = """
import os, signal, sys
from rear import rear_fs
from rear.core.storage import Storage

class Forks(Storage):
    armed = False
    def interrupt(self, name):
        if self.armed and name == sys.argv[2]:
            self.armed = False
            os.kill(os.getpid(), signal.SIGUSR1)
    def write(self, descriptor, data, offset):
        self.interrupt("write")
        return super().write(descriptor, data, offset)
    def sync(self, descriptor):
        self.interrupt("sync")
        super().sync(descriptor)

def handler(*_):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    else:
        signal.alarm(20)
        children.append(os.getpid())

children = []
signal.signal(signal.SIGUSR1, handler)
storage = Forks()
fs = rear_fs(sys.argv[1], sync_interval=1000.0, storage=storage)
for name in "abc":
    fs.open(f"ar.zip/{name}", "w").close()
storage.armed = True
fs.open("ar.zip/d", "w").close()
fs.sync()
if children:
    os._exit(0)
fs._worker.roll_over()
fs.open("ar.zip/e", "w").close()
fs.close()
"""
    done = run_code(code, base, operation)
    assert done.returncode == 0, done.stderr
    scavenge(base)
    assert found_in(base) == {f"ar.zip/{name}": b"" for name in "abcde"}


def test_forked_pool_workers_use_the_context_of_their_parent(base: Path) -> None:
    context = multiprocessing.get_context("fork")
    with rear_fs(base):
        write(0, range(100, 103))
        with ProcessPoolExecutor(2, context) as executor:
            processes = set(executor.map(write_in_inherited, range(20)))
        assert os.getpid() not in processes
        write(0, range(103, 105))
    assert all(journal.closed for journal in journals(base))
    scavenge(base)
    assert found_in(base) == expected_of_pool(20) | {target(0, n): content(0, n) for n in range(100, 105)}


def test_a_pool_that_is_terminated_loses_nothing_acknowledged(base: Path) -> None:
    context = multiprocessing.get_context("fork")
    with rear_fs(base):
        pool = context.Pool(2)
        pool.map(write_in_inherited, range(20))
        pool.terminate()
        pool.join()
    scavenge(base)
    assert found_in(base) == expected_of_pool(20)


@METHODS
@pytest.mark.parametrize("how", ["return", "sys.exit", "os._exit", "exception", "thread"])
def test_ends_of_a_process(base: Path, method: str, how: str) -> None:
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=leave_process, args=(str(base), how))
    child.start()
    child.join(60)
    assert child.exitcode == (1 if how == "exception" else 0)
    expected = {target(1, number): content(1, number) for number in range(3)}
    if how == "thread":
        expected |= {target(2, number): content(2, number) for number in range(3)}
    if how != "os._exit":
        expected["one.zip/open"] = b"still open"
    assert all(journal.closed for journal in journals(base)) == (how != "os._exit")
    scavenge(base)
    assert found_in(base) == expected


@METHODS
def test_a_process_that_ends_before_its_first_file_is_closed(base: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=only_an_open_file, args=(str(base),))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    scavenge(base)
    assert found_in(base) == {"one.zip/open": b"still open"}


# -- the end of an interpreter

HEAD = """
import sys, threading, time
from rear import rear_fs, rear_open
fs = rear_fs(sys.argv[1])
fs.__enter__()
def write(name):
    with rear_open("ar.zip/" + name, "w") as file:
        file.write(name)
"""

ENDS: dict[str, tuple[str, set[str], int]] = {
    "plain": ("write('a')", {"a"}, 0),
    "inside with": ("with rear_fs(sys.argv[1]):\n    write('a')\n    sys.exit(3)", {"a"}, 3),
    "open binary file": ("file = rear_open('ar.zip/a', 'wb')\nfile.write(b'a')", {"a"}, 0),
    "open text file": ("write('b')\nfile = rear_open('ar.zip/a', 'w')\nfile.write('a')", {"a", "b"}, 0),
    "open file in a cycle": ("x = [rear_open('ar.zip/a', 'w')]\nx.append(x)\nx[0].write('a')", {"a"}, 0),
    "exception": ("write('a')\n1 / 0", {"a"}, 1),
    "exception in a file": (
        "write('a')\nwith rear_open('ar.zip/b', 'w') as file:\n    file.write('half')\n    1 / 0", {"a"}, 1,
    ),
    "sys.exit": ("write('a')\nfile = rear_open('ar.zip/b', 'w')\nfile.write('b')\nsys.exit(5)", {"a", "b"}, 5),
    "running thread": (
        "def late():\n    time.sleep(0.3)\n    write('late')\nwrite('a')\nthreading.Thread(target=late).start()",
        {"a", "late"}, 0,
    ),
    "daemon thread": (
        "def work():\n    while True:\n        time.sleep(0.01)\n"
        "write('a')\nthreading.Thread(target=work, daemon=True).start()", {"a"}, 0,
    ),
    "exit function": (
        "import atexit\nwrite('a')\natexit.register(write, 'b')", {"a", "b"}, 0,
    ),
    "logging": (
        "import logging\nfile = rear_open('ar.zip/a', 'w')\nlogging.basicConfig(stream=file, format='%(message)s')\n"
        "file.write('a')\nwrite('b')", {"a", "b"}, 0,
    ),
    "two contexts": (
        "other = rear_fs(sys.argv[1])\nother.open('ar.zip/other', 'w').write('other')\nwrite('a')", {"a", "other"}, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_ends_of_an_interpreter(base: Path, end: str) -> None:
    code, names, status = ENDS[end]
    child = start(HEAD + code, base)
    output, errors = child.communicate(timeout=60)
    assert (child.returncode, output) == (status, "")
    assert ("Traceback" in errors) == (status == 1), errors
    assert "Exception ignored" not in errors
    assert all(journal.closed for journal in journals(base)), errors
    scavenge(base)
    assert found_in(base) == {f"ar.zip/{name}": name.encode() for name in names}


def test_an_end_with_a_full_disk_is_told(base: Path) -> None:
    """One context that cannot be closed does not keep the others from it, and what is lost is named."""
    code = """
from rear.core.storage import Storage
class Full(Storage):
    def sync(self, descriptor):
        raise OSError(28, "No space left on device")
bad = rear_fs(sys.argv[1] + "/bad", storage=Full(), sync_interval=60)
bad.open("ar.zip/lost", "w").close()
write("a")
"""
    base.mkdir()
    child = start(HEAD + code, base)
    _, errors = child.communicate(timeout=60)
    assert "ar.zip/lost" in errors
    assert "No space left" in errors
    assert all(journal.closed for journal in journals(base))
    scavenge(base)
    assert found_in(base) == {"ar.zip/a": b"a"}


def test_a_worker_that_is_terminated_by_a_handler(base: Path) -> None:
    """The usual way to end on SIGTERM: the handler raises SystemExit wherever the program is."""
    code = """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
number = 0
while True:
    write(str(number))
    print(number, flush=True)
    number += 1
"""
    for delay in (0.05, 0.11, 0.2):
        folder = base / str(delay)
        child = start(HEAD + code, folder)
        # Not by a first line of output: what is read beside it, `communicate` would not see.
        while not (folder / ".rear").exists():
            assert child.poll() is None
            time.sleep(0.005)
        time.sleep(delay)
        child.terminate()
        output, errors = child.communicate(timeout=60)
        assert child.returncode == 7, errors
        assert "Exception ignored" not in errors
        assert all(journal.closed for journal in journals(folder))
        events = scavenge(folder)
        assert [event for event in events if event.severity != "info"] == []
        acknowledged = [line for line in output.splitlines() if line]
        found = found_in(folder)
        assert {f"ar.zip/{name}": name.encode() for name in acknowledged}.items() <= found.items()
        assert len(found) <= len(acknowledged) + 1


def test_who_is_not_the_leader_says_so(base: Path) -> None:
    with rear_fs(base):
        write(0, range(3))
    events = rear.scavenge(base)
    next(events)
    done = start("import sys, rear\nlist(rear.scavenge(sys.argv[1]))", base)
    _, errors = done.communicate(timeout=60)
    assert NotLeaderError.__name__ in errors
    list(events)
    assert found_in(base) == {target(0, number): content(0, number) for number in range(3)}


STOPPING = """
import signal, sys, time, threading
from rear.cli.signals import StopRequest
stop = StopRequest()
signal.signal(signal.SIGALRM, lambda *_: stop.set())
signal.setitimer(signal.ITIMER_REAL, 0.00005, 0.00005)
deadline = time.monotonic() + 1.5
count = 0
while time.monotonic() < deadline:
    stop._is_set = False
    stop.wait(0.00001)
    count += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(count)
"""


def test_a_signal_that_meets_a_wait_does_not_wait_for_it() -> None:
    """With `threading.Event`, `set` may wait for ever for the wait that it has interrupted."""
    assert int(run_code(STOPPING, timeout=30, check=True).stdout) > 100
