"""A second process for the doctor: it races, locks and looks, in the same folder or through another mount of it.

One JSON object a line comes in on standard input, one goes out for each on standard output. It ends when its standard
input does, so that nothing stays behind when the doctor is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from rear.core.storage import LOCAL, StrPath, created, opened

Reply = dict[str, Any]

ANSWER_SECONDS: Final = 120.0
"""A second process that has not answered by then counts as hung."""
VERSION_BYTES: Final = 4096
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})
_LINE_LIMIT_BYTES: Final = 1 << 20
_SHORTEST_PAUSE_SECONDS: Final = 0.002
_LONGEST_PAUSE_SECONDS: Final = 0.05


class NoAnswerError(Exception):
    """A second process did not answer in time, or died. The doctor makes a finding of it."""


class ProbeProcess:
    """The doctor's end of a second process in ``folder``, which another process may see under another path."""

    def __init__(self, folder: StrPath) -> None:
        self.folder = os.fspath(folder)
        self._process = subprocess.Popen(
            # The same modules as here, whatever the current folder holds.
            [
                sys.executable,
                "-c",
                f"import sys; sys.path[:] = {sys.path!r}; import rear.diagnostics.probe_process as p; p.serve()",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C is for the doctor: it ends this process when it has cleaned up.
            start_new_session=True,
        )
        self._received = b""

    def send(self, command: str, place: str = "", **arguments: Any) -> None:
        """Send one of the commands of `serve`, for the folder ``place`` in its own; `receive` returns the answer.

        Raises:
            NoAnswerError: the process has ended.
        """
        assert self._process.stdin is not None
        request = {"command": command, "folder": os.path.join(self.folder, place), **arguments}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise NoAnswerError("a second process died") from None

    def receive(self, timeout_seconds: float = ANSWER_SECONDS) -> Reply:
        """Return the next answer.

        Raises:
            NoAnswerError: none came in time, or the process died.
            OSError: what it tried failed.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        while b"\n" not in self._received:
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise NoAnswerError(f"no answer from a second process within {timeout_seconds:.0f} s")
            data = self._process.stdout.read(1 << 16)
            if not data or len(self._received) > _LINE_LIMIT_BYTES:
                raise NoAnswerError("a second process died")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        reply: Reply = json.loads(line)
        if "errno" in reply:
            raise OSError(reply["errno"], reply["strerror"], reply["filename"])
        return reply

    def ask(self, command: str, place: str = "", *, timeout_seconds: float = ANSWER_SECONDS, **arguments: Any) -> Reply:
        """Ask for something and return the answer; see `send` and `receive`."""
        self.send(command, place, **arguments)
        return self.receive(timeout_seconds)

    def kill(self) -> None:
        """Send SIGKILL, and do not wait for its effect."""
        self._process.kill()

    def close(self) -> None:
        """End the process at once."""
        self.kill()
        # A process that hangs in a dead server's file system dies when that answers.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


# The other end.


def serve() -> None:
    """Answer what comes in on standard input until that ends."""
    locks: dict[str, int] = {}
    commands: dict[str, Callable[..., Iterator[Reply]]] = {
        "create": _create,
        "rename": _rename,
        "replace": _replace,
        "reread": _reread,
        "read": _read,
        "watch": _watch,
        "remember": _remember,
        "take": _take,
        "lock": lambda folder, name: _lock(locks, os.path.join(folder, name)),
        "unlock": lambda folder, name: _unlock(locks, os.path.join(folder, name)),
        "list": lambda folder: iter([{"names": LOCAL.names(folder)}]),
    }
    for line in iter(sys.stdin.buffer.readline, b""):
        arguments = json.loads(line)
        try:
            for reply in commands[arguments.pop("command")](**arguments):
                _answer(reply)
        except OSError as error:
            _answer({"errno": error.errno, "strerror": error.strerror, "filename": error.filename})


def _answer(reply: Reply) -> None:
    sys.stdout.write(f"{json.dumps(reply)}\n")
    sys.stdout.flush()


def _create(folder: str, **race: Any) -> Iterator[Reply]:
    def attempt(number: int) -> None:
        LOCAL.close(LOCAL.create(os.path.join(folder, f"created-{number}")))

    return _race(attempt, frozenset({errno.EEXIST}), **race)


def _rename(folder: str, racer: int, **race: Any) -> Iterator[Reply]:
    def attempt(number: int) -> None:
        LOCAL.rename(os.path.join(folder, f"from-{number}"), os.path.join(folder, f"to-{number}-{racer}"))

    return _race(attempt, _GONE, **race)


def _race(
    attempt: Callable[[int], None], lost: frozenset[int], count: int, begin: float, pause_seconds: float
) -> Iterator[Reply]:
    """Try in each round at its time, as all that take part in the race do; an error of ``lost`` is a race lost."""
    won = []
    for number in range(count):
        wait = begin + number * pause_seconds - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        try:
            attempt(number)
            won.append(number)
        except OSError as error:
            if error.errno not in lost:
                raise
    yield {"won": won}


def version_bytes(number: int) -> bytes:
    """Return the content of one version of the file that is renamed over: no two mixed are a third."""
    return number.to_bytes(8, "big") * (VERSION_BYTES // 8)


def _replace(folder: str, count: int, until: float) -> Iterator[Reply]:
    current, fresh = os.path.join(folder, "current"), os.path.join(folder, "fresh")
    number = 0
    while number < count and time.monotonic() < until:
        number += 1
        with created(fresh, LOCAL) as descriptor:
            LOCAL.write(descriptor, [version_bytes(number)], 0)
            LOCAL.sync(descriptor)
        LOCAL.rename(fresh, current)
    yield {"versions": number}


def _reread(folder: str, until: float) -> Iterator[Reply]:
    current = os.path.join(folder, "current")
    counts = {"reads": 0, "missing": 0, "stale": 0, "mixed": 0}
    while time.monotonic() < until:
        counts["reads"] += 1
        try:
            with opened(current, LOCAL) as descriptor:
                data = LOCAL.read(descriptor, VERSION_BYTES + 1, 0)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # NFS and FUSE may answer an open from what they remember: a listing tells whether the name was gone.
            counts["stale" if "current" in LOCAL.names(folder) else "missing"] += 1
            continue
        if data != version_bytes(int.from_bytes(data[:8], "big")):
            counts["mixed"] += 1
    yield dict(counts)


def _read(folder: str, name: str, offset: int, length: int) -> Iterator[Reply]:
    with opened(os.path.join(folder, name), LOCAL) as descriptor:
        yield {"data": LOCAL.read(descriptor, length, offset).hex(), "size": LOCAL.size(descriptor)}


def _lock(locks: dict[str, int], path: str) -> Iterator[Reply]:
    """Try the lock that the leader takes; tell 0 or the error number, which `Storage.try_lock` does not tell."""
    descriptor = LOCAL.open(path, write=True)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        LOCAL.close(descriptor)
        yield {"error": error.errno or errno.EIO}
    else:
        locks[path] = descriptor
        yield {"error": 0}


def _unlock(locks: dict[str, int], path: str) -> Iterator[Reply]:
    LOCAL.close(locks.pop(path))
    yield {}


# Watching: who sees what another process did, by which call, and when.

_ALL_EVENTS: Final = ("create", "append", "rename", "unlink")
EVENTS: Final = {
    "stat": _ALL_EVENTS,
    "open": _ALL_EVENTS,
    "listed": _ALL_EVENTS,
    "listdir": ("create", "rename", "unlink"),
}
METHODS: Final = tuple(EVENTS)
BEFORE_BYTES: Final = 1000
AFTER_BYTES: Final = 5000


def _watch(folder: str, limit_seconds: float) -> Iterator[Reply]:
    """Look again and again, with each call in a folder of its own: one call may refresh what another one remembers."""
    waiting = [(method, event) for method in METHODS for event in EVENTS[method]]
    missed: dict[str, float] = {}
    seen: dict[str, float] = {}
    for method, event in waiting:
        # Now there is something old to remember.
        _sees(folder, method, event)
    yield {"ready": True}
    deadline = time.monotonic() + limit_seconds
    pause = _SHORTEST_PAUSE_SECONDS
    while waiting and time.monotonic() < deadline:
        for method, event in list(waiting):
            begun = time.monotonic()
            if _sees(folder, method, event):
                seen[f"{method} {event}"] = begun
                waiting.remove((method, event))
            else:
                missed[f"{method} {event}"] = begun
        # Standard input becomes readable when the doctor has gone.
        if waiting and select.select([sys.stdin], [], [], pause)[0]:
            return
        pause = min(pause * 1.2, _LONGEST_PAUSE_SECONDS)
    yield {"missed": missed, "seen": seen}


def _remember(folder: str, name: str) -> Iterator[Reply]:
    """Look at a file, as a scavenger does at a pair that is still being written."""
    LOCAL.names(folder)
    for method in ("stat", "open") * 2:
        _size(folder, name, method)
    yield {}


def _take(folder: str, name: str) -> Iterator[Reply]:
    """Take a file as a leader claims one, and say how many bytes there are then."""
    taken = f"taken-{name}"
    LOCAL.rename(os.path.join(folder, name), os.path.join(folder, taken))
    yield {"open": _size(folder, taken, "open")}


def _sees(folder: str, method: str, event: str) -> bool:
    where = os.path.join(folder, method)
    if method == "listdir":
        names = set(os.listdir(where))
        return {
            "create": "created" in names,
            "rename": "renamed" in names and "to-rename" not in names,
            "unlink": "to-unlink" not in names,
        }[event]
    if method == "listed":
        # Some clients believe what they remember of a file until they have listed its folder again.
        LOCAL.names(where)
    match event:
        case "create":
            return _size(where, "created", method) is not None
        case "append":
            return _size(where, "to-append", method) == AFTER_BYTES
        case "rename":
            is_gone = _size(where, "to-rename", method) is None
            return _size(where, "renamed", method) is not None and is_gone
        case _:
            return _size(where, "to-unlink", method) is None


def _size(folder: str, name: str, method: str) -> int | None:
    """Return the size of a file as ``stat`` tells it, else how many bytes a reader gets; ``None`` without a file."""
    path = os.path.join(folder, name)
    try:
        if method == "stat":
            return os.stat(path).st_size
        with opened(path, LOCAL) as descriptor:
            return len(LOCAL.read(descriptor, AFTER_BYTES + 1, 0))
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return None
