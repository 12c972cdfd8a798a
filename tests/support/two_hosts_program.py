"""What runs on the hosts of `test_two_hosts`: a worker that tells what was acknowledged, and scavengers.

What happens goes, a line of JSON each, to a log that is not on the share. A line of a worker is on this machine's disk
before the next file is begun, so that it outlives the host.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from faults import Point, Tampered

import rear
import rear.core.parallel
import rear.scavenger.check_tasks
import rear.scavenger.claims
import rear.scavenger.copy_tasks
import rear.scavenger.inbox
import rear.scavenger.leader
import rear.scavenger.merge
from rear.cli.signals import StopRequest
from rear.core.layout import Layout
from rear.core.storage import LOCAL, Storage
from rear.errors import NotArchivedError, NotLeaderError, RearError
from rear.read.view import open_committed

ARCHIVES = ("a.zip", "runs/b.zip", "runs/7/c.zip")
#: A scenario takes seconds, so what is buried does not wait for ten minutes to be looked through a last time.
GRAVEYARD_SECONDS = 1.0
PAUSE_SECONDS = 2.0


def target(prefix: str, number: int) -> str:
    """Return the path of a worker's file."""
    return f"{ARCHIVES[number % len(ARCHIVES)]}/{prefix}/{number:05d}"


def content(path: str, *, large: bool = False) -> bytes:
    """Return the bytes of a worker's file: some do not shrink, some are empty, a few are large."""
    source = random.Random(path)
    if large:
        return source.randbytes(source.randrange(1, 128 << 10))
    size = source.choice((0, 10, 1_000, 5_000, 20_000, 200_000))
    data = source.randbytes(size)
    return data if source.random() < 0.5 else data.hex().encode()


class Log:
    """A log that is on disk line by line."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._lock = threading.Lock()

    def write(self, kind: str, **fields: object) -> None:
        """Append one line."""
        line = json.dumps({"kind": kind, "at": LOCAL.uptime(), **fields}).encode() + b"\n"
        with self._lock:
            os.write(self._descriptor, line)
            os.fsync(self._descriptor)


def work(arguments: argparse.Namespace, log: Log, stopped: StopRequest) -> None:
    """Write files until told to stop, and log each when its close has returned."""
    if arguments.called:
        os.uname = lambda: SimpleNamespace(nodename=arguments.called)  # type: ignore[assignment,return-value]
    fs = rear.rear_fs(
        arguments.base, lease_seconds=arguments.lease, sync=arguments.sync, rotation_span=arguments.rotation,
        compression=arguments.compression,
    )  # fmt: skip
    number = 0
    while not stopped.is_set() and number != arguments.count:
        path = target(arguments.prefix, number)
        try:
            with fs.open(path, "wb") as file:
                file.write(content(path, large=arguments.large))
            log.write("acknowledged", target=path)
        except OSError as error:
            log.write("refused", target=path, error=str(error))
            stopped.wait(0.2)
        number += 1
        stopped.wait(arguments.pause)
    log.write("closing")
    _again(log, fs.close)
    log.write("ended")


def _again(log: Log, close: Callable[[], None]) -> None:
    """Close as a careful program does: what could not be archived is kept, so a second try may do."""
    deadline = LOCAL.uptime() + 30
    while True:
        try:
            close()
        except (NotArchivedError, OSError) as error:
            log.write("not_archived", error=str(error))
            if LOCAL.uptime() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def pausing(where: str, log: Log) -> Storage:
    """Return storage that pauses once: ``copy_range:.zip`` in the middle of a copy into a file of that kind."""
    operation, _, part = where.partition(":")
    paused = threading.Event()

    def act(point: Point, path: str) -> None:
        can_be_half = operation in ("write", "copy_range")
        if point.operation == operation and part in path and point.half == can_be_half and not paused.is_set():
            paused.set()
            log.write("paused", path=path)
            time.sleep(PAUSE_SECONDS)
            log.write("resumed", path=path)

    return Tampered(act)


class FolderExecutor(Executor):
    """Hands tasks to a process of another host, by files in a folder that both have, outside of the share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        # Storage that pauses stays here.
        values = [LOCAL if isinstance(value, Storage) else value for value in arguments]
        name = f"{os.getpid()}-{self._count}"
        self._count += 1
        _publish(self._folder / f"{name}.task", pickle.dumps((function, values, keywords)))
        future: Future[Any] = Future()
        threading.Thread(target=self._wait, args=(future, self._folder / f"{name}.result"), daemon=True).start()
        return future

    def _wait(self, future: Future[Any], path: Path) -> None:
        while not path.exists():
            time.sleep(0.02)
        if future.set_running_or_notify_cancel():
            future.set_result(pickle.loads(path.read_bytes()))


def _publish(path: Path, data: bytes) -> None:
    path.with_suffix(".part").write_bytes(data)
    path.with_suffix(".part").rename(path)


def execute(arguments: argparse.Namespace, log: Log, stopped: StopRequest) -> None:
    """Do the tasks of a leader on another host."""
    storage = pausing(arguments.pause_at, log) if arguments.pause_at else LOCAL
    folder = Path(arguments.executor)
    while not stopped.is_set():
        for path in sorted(folder.glob("*.task")):
            function, values, keywords = pickle.loads(path.read_bytes())
            values = [storage if isinstance(value, Storage) else value for value in values]
            task = values[1].__name__
            log.write("begun", task=task)
            result = function(*values, **keywords)
            _publish(path.with_suffix(".result"), pickle.dumps(result))
            path.unlink()
            log.write("executed", task=task, failed=isinstance(result, rear.core.parallel.Failed))
        stopped.wait(0.02)
    log.write("ended")


def share_small_work(patience_seconds: float) -> None:
    """Let an executor have work of some hundred kilobytes, too."""
    rear.scavenger.merge.SHARED_COPY_BYTES = rear.core.parallel.SHARED_CHECK_BYTES = 1
    rear.scavenger.copy_tasks.BLOCK_BYTES = 64 << 10
    rear.scavenger.copy_tasks.TASK_BYTES = 256 << 10  # type: ignore[misc]
    rear.scavenger.copy_tasks.WITHDRAWAL_SECONDS = 1.0
    rear.core.parallel.PATIENCE_SECONDS = patience_seconds


def scavenge(arguments: argparse.Namespace, log: Log, stopped: StopRequest) -> int:
    """Scavenge again and again, and log all events; with ``--settle`` until nothing is left to do."""
    executor = None
    if arguments.executor:
        share_small_work(arguments.patience)
        executor = FolderExecutor(Path(arguments.executor))
    rear.scavenger.leader.LEASE_SECONDS = arguments.lease  # type: ignore[misc]
    rear.scavenger.claims.GRAVEYARD_SECONDS = rear.scavenger.inbox.GRAVEYARD_SECONDS = GRAVEYARD_SECONDS  # type: ignore[misc]
    rear.scavenger.claims._GRAVEYARD_LEASES = 0  # type: ignore[misc]
    storage = pausing(arguments.pause_at, log) if arguments.pause_at else LOCAL
    deadline = LOCAL.uptime() + arguments.seconds
    while not stopped.is_set():
        try:
            for event in rear.scavenge(arguments.base, verify=executor is not None, executor=executor, storage=storage):
                log.write(event.kind, severity=event.severity, **event.as_fields())
        except NotLeaderError as error:
            log.write("not_leader", error=str(error))
        except (RearError, OSError) as error:
            log.write("failed", error=f"{type(error).__name__}: {error}")
        waiting = what_waits(arguments.base)
        if arguments.settle and waiting == []:
            return 0
        if LOCAL.uptime() > deadline:
            log.write("gave_up", waiting=waiting)
            return 1
        stopped.wait(arguments.pause)
    return 0


def look_and_merge(arguments: argparse.Namespace, log: Log, stopped: StopRequest) -> int:
    """Read the archives again and again until another scavenger begins to merge; then write, and merge right after it.

    What this host has read of an archive is old then, but so new that a file system may not look again.
    """
    looks = 0
    while not any(line["kind"] == "planned" for line in read_log(Path(arguments.after))):
        if stopped.is_set():
            return 1
        for name in ARCHIVES:
            try:
                with open_committed(Path(arguments.base, name)) as archive:
                    looks += len(list(archive.names()))
            except OSError as error:
                # The server did not answer in time, under load.
                log.write("not_looked", error=str(error))
    log.write("looked", members=looks)
    work(arguments, log, stopped)
    return scavenge(arguments, log, stopped)


def what_waits(base: str) -> list[str] | None:
    """Return the files that a scavenge has yet to deal with; ``None`` when the share does not tell."""
    layout = Layout(base)
    found = []
    try:
        os.listdir(layout.inbox)
        for folder in (layout.inbox, layout.claims, layout.intents, layout.graveyard):
            for path, _, names in os.walk(folder, onerror=_unless_missing):
                found += [str(Path(path, name).relative_to(layout.state)) for name in names]
    except OSError:
        return None
    return sorted(found)


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def main() -> int:
    """Run as told by the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["work", "scavenge", "look_and_merge", "execute"])
    parser.add_argument("base")
    parser.add_argument("log")
    parser.add_argument("--lease", type=float, default=3.0)
    parser.add_argument("--pause", type=float, default=0.02)
    parser.add_argument("--prefix", default="w")
    parser.add_argument("--sync", default="interval")
    parser.add_argument("--rotation", type=float, default=3.0)
    parser.add_argument("--compression", default="deflate")
    parser.add_argument("--count", type=int, default=-1)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--called", default="", metavar="HOST")
    parser.add_argument("--pause-at", default="")
    parser.add_argument("--settle", action="store_true")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--executor", default="", metavar="FOLDER")
    parser.add_argument("--patience", type=float, default=60.0)
    parser.add_argument("--after", default="", metavar="LOG")
    arguments = parser.parse_args()
    stopped = StopRequest()
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    log = Log(arguments.log)
    log.write("started", pid=os.getpid())
    if arguments.what == "work":
        work(arguments, log, stopped)
        return 0
    if arguments.what == "execute":
        execute(arguments, log, stopped)
        return 0
    if arguments.what == "look_and_merge":
        return look_and_merge(arguments, log, stopped)
    return scavenge(arguments, log, stopped)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; the last one may be half a line."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]


if __name__ == "__main__":
    sys.exit(main())
