"""What breaks things for real: storage that fails or dies at an operation, child processes, strace, and the judge.

A test runs once to count the operations and then again for each of them, and dies or fails there; a second scavenge
has to make good whatever that left. `check_base` says whether it did.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rear.core.storage import Storage
from rear.errors import RearError

FULL = os.environ.get("REAR_CRASH") == "full"
SEED = 20_240_229
CHILD_SECONDS = 60.0
_T = TypeVar("_T")
#: What pytest's fixture ``record_property`` is: each crash test records how many points it ran.
RecordProperty = Callable[[str, object], None]


def some(points: Sequence[_T], count: int) -> list[_T]:
    """Return all points with ``REAR_CRASH=full``, else a slice of them, the same each time, with both ends."""
    if FULL or len(points) <= count:
        return list(points)
    chosen = random.Random(SEED).sample(range(1, len(points) - 1), count - 2)
    return [points[number] for number in sorted([0, *chosen, len(points) - 1])]


# --- storage that breaks ------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """A moment in a run: before operation ``number``, or (``half``) when it has done half of its work."""

    number: int
    operation: str
    half: bool = False


class Tampered(Storage):
    """Calls ``act`` before each operation that changes something, and once more in the middle of those that move bytes.

    What ``act`` raises comes out of the operation; it may as well kill or stop the process.
    """

    def __init__(self, act: Callable[[Point, str], None] = lambda point, path: None) -> None:
        self.act = act
        self.number = 0
        self.points: list[Point] = []
        self._counting = threading.Lock()

    def _begin(self, operation: str, path: object, *, can_be_half: bool = False) -> Point:
        with self._counting:
            point = Point(self.number, operation)
            self.number += 1
            self.points.append(point)
            if can_be_half:
                self.points.append(point._replace(half=True))
        self.act(point, str(path))
        return point

    def create(self, path: Any, mode: int = 0o666) -> int:
        self._begin("create", path)
        return super().create(path, mode)

    def write(self, descriptor: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        path = _path_of(descriptor)
        point = self._begin("write", path, can_be_half=True)
        data = b"".join(buffers)
        half = len(data) // 2
        super().write(descriptor, [data[:half]], offset)
        self.act(point._replace(half=True), path)
        super().write(descriptor, [data[half:]], offset + half)
        return len(data)

    def copy_range(self, source: int, target: int, *, source_start: int, target_start: int, length: int) -> None:
        path = _path_of(target)
        point = self._begin("copy_range", path, can_be_half=True)
        half = length // 2
        super().copy_range(source, target, source_start=source_start, target_start=target_start, length=half)
        self.act(point._replace(half=True), path)
        super().copy_range(
            source, target, source_start=source_start + half, target_start=target_start + half, length=length - half
        )

    def truncate(self, descriptor: int, length: int) -> None:
        self._begin("truncate", _path_of(descriptor))
        super().truncate(descriptor, length)

    def sync(self, descriptor: int) -> None:
        self._begin("sync", _path_of(descriptor))
        super().sync(descriptor)

    def sync_directory(self, path: Any) -> None:
        self._begin("sync_directory", path)
        super().sync_directory(path)

    def rename(self, source: Any, target: Any) -> None:
        self._begin("rename", source)
        super().rename(source, target)

    def link(self, source: Any, target: Any) -> bool:
        self._begin("link", source)
        return super().link(source, target)

    def unlink(self, path: Any) -> None:
        self._begin("unlink", path)
        super().unlink(path)

    def remove_directory(self, path: Any) -> None:
        self._begin("remove_directory", path)
        super().remove_directory(path)

    def make_directories(self, path: Any, *, sync: bool = True) -> None:
        if not os.path.isdir(path):
            self._begin("make_directories", path)
        super().make_directories(path, sync=sync)


class CountsReads(Storage):
    """Notes how many bytes each read gives."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        data = super().read(descriptor, length, offset)
        self.lengths.append(len(data))
        return data


def _path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def points_of(work: Callable[[Tampered], object]) -> list[Point]:
    """Return all points of some work with a storage."""
    storage = Tampered()
    work(storage)
    return storage.points


def dying_when(is_wanted: Callable[[Point, str], bool], sign: signal.Signals = signal.SIGKILL) -> Tampered:
    """Return storage whose process gets a signal at some points."""

    def act(point: Point, path: str) -> None:
        if is_wanted(point, path):
            os.kill(os.getpid(), sign)

    return Tampered(act)


def dying_at(wanted: Point, sign: signal.Signals = signal.SIGKILL) -> Tampered:
    """Return storage whose process gets a signal at one point."""
    return dying_when(at(wanted), sign)


class Failing(Tampered):
    """Raises an ``OSError`` at some points, until it is told to stop.

    Args:
        error: its number.
        when: which points fail.
        healthy: nothing fails, until it is told to.
    """

    def __init__(self, error: int, when: Callable[[Point, str], bool], *, healthy: bool = False) -> None:
        super().__init__(self._fail)
        self.error = error
        self.when = when
        self.failed: list[tuple[Point, str]] = []
        self.healthy = healthy

    def _fail(self, point: Point, path: str) -> None:
        if not self.healthy and self.when(point, path):
            self.failed.append((point, path))
            raise OSError(self.error, os.strerror(self.error), path)


@contextlib.contextmanager
def after(what: str) -> Iterator[None]:
    """Have a failed assertion, or an error, say what was done before."""
    try:
        yield
    except (AssertionError, OSError, RearError) as error:
        raise AssertionError(f"{what}: {error}") from error


# --- processes ----------------------------------------------------------------------------------------------------


def fork(function: Callable[[], object]) -> int:
    """Run a function in a child process and return its id; it ends with status 0, or 70 and a traceback."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        function()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 71
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(pid: int, *, seconds: float = CHILD_SECONDS) -> int:
    """Return how a child ended: its status, or the negative number of the signal."""
    descriptor = os.pidfd_open(pid)
    try:
        ending = select.poll()
        ending.register(descriptor, select.POLLIN)
        has_ended = ending.poll(seconds * 1000)
    finally:
        os.close(descriptor)
    if not has_ended:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert has_ended, f"the child was still running after {seconds:.0f} s"
    return status


def in_child(function: Callable[[], object]) -> int:
    """Run a function in a child process and return how it ended."""
    return wait(fork(function))


# --- strace -------------------------------------------------------------------------------------------------------

TRACED = (
    "pwrite64", "pwritev", "pwritev2", "write", "fsync", "fdatasync", "ftruncate", "rename", "renameat", "renameat2",
    "unlink", "unlinkat", "openat", "mkdir", "mkdirat", "copy_file_range", "rmdir",
)  # fmt: skip


@functools.cache
def why_no_strace() -> str | None:
    """Tell why strace cannot be used here, if so."""
    program = shutil.which("strace")
    if program is None:
        return "strace is not installed"
    trial = subprocess.run(
        [program, "-f", "-qq", "-o", os.devnull, "-e", "trace=rmdir", "true"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return None if trial.returncode == 0 else f"strace does not work here: {trial.stderr.strip()}"


def needs_strace() -> None:
    """Skip the running test where strace cannot be used."""
    # Programs that die under strace import this file, too, and need not wait for pytest.
    import pytest

    reason = why_no_strace()
    if reason is not None:
        pytest.skip(reason)


class Call(NamedTuple):
    """The ``number``-th call, from 1, of one system call in one run."""

    name: str
    number: int


def traced_calls(program: Sequence[str], folder: Path) -> list[Call]:
    """Run a program under strace and return those of its calls that change something below ``folder``."""
    log = folder.parent / f"{folder.name}.strace"
    command = ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", f"trace={','.join(TRACED)}", *program]
    subprocess.run(command, check=True, timeout=CHILD_SECONDS, stdout=subprocess.DEVNULL)
    counts: dict[tuple[str, str], int] = {}
    calls = []
    for line in log.read_text(errors="replace").splitlines():
        thread, _, rest = line.partition(" ")
        name = rest.strip().partition("(")[0]
        if name not in TRACED:
            continue
        number = counts[thread, name] = counts.get((thread, name), 0) + 1
        if str(folder) in rest and (name != "openat" or "O_CREAT" in rest):
            calls.append(Call(name, number))
    log.unlink()
    return calls


def killed_at(call: Call, program: Sequence[str]) -> int:
    """Run a program that is killed when it enters one system call; return how it ended."""
    # Not with --seccomp-bpf: strace 6.1 then injects nothing on some kernels.
    command = [
        "strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call.name}",
        "-e", f"inject={call.name}:signal=SIGKILL:when={call.number}", *program,
    ]  # fmt: skip
    return subprocess.run(
        command, check=False, timeout=CHILD_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ).returncode


def kill_at_system_calls(
    command: Sequence[str], below: Path, count: int, renew: Callable[[], object], judge: Callable[[], object]
) -> tuple[list[Call], int]:
    """Kill a program when it enters some of its system calls that change something below a folder; judge each time.

    Calls are counted from the start of Python, so each run has to find the same compiled modules.

    Returns:
        all such calls of a run that nobody kills, and how many times it was killed.
    """
    renew()
    subprocess.run(command, check=True)
    renew()
    calls = traced_calls(command, below)
    judge()
    killed = 0
    for call in some(calls, count):
        renew()
        # strace ends as its child did.
        killed += killed_at(call, command) == -signal.SIGKILL
        with after(f"killed at {call}"):
            judge()
    return calls, killed


def refused(error: OSError) -> bool:
    """Whether an error is one of those that storage is made to raise here."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.ESTALE, errno.EINTR)


ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.ESTALE, errno.EINTR)


def is_growing(point: Point, path: str) -> bool:
    return point.operation in ("create", "write", "copy_range", "make_directories", "sync")


def is_anything(point: Point, path: str) -> bool:
    return True


def is_one_of(*operations: str) -> Callable[[Point, str], bool]:
    """Return what holds for some operations, whenever they come."""
    return lambda point, path: point.operation in operations


def while_in_trouble(
    point: Point, kind: Callable[[Point, str], bool], length: float = math.inf
) -> Callable[[Point, str], bool]:
    """Return what holds for operations of one kind among so many from a point on."""
    return lambda found, path: found[::2] >= point[::2] and found.number < point.number + length and kind(found, path)


def at(point: Point) -> Callable[[Point, str], bool]:
    """Return what holds at one point alone."""
    return lambda found, path: found[::2] == point[::2]
