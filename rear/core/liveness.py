"""Who is alive: the identity of a process, and beats as other hosts saw them.

No decision compares clocks of two hosts. On the host of a process its pid, boot and start time decide at once. From
elsewhere a process is *stale* when what it writes has not changed over a whole lease of the observer's own clock:
`rear.scavenger.inbox` holds it to that. Observations are kept in a file, so that a scavenger started by cron needs no
memory of its own.
"""

from __future__ import annotations

import binascii
import json
import os
import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from rear.core.layout import Layout
from rear.core.names import host_folder
from rear.core.records import Open
from rear.core.storage import LOCAL, Storage, opened

_OBSERVATIONS_LIMIT_BYTES: Final = 64 << 20
_WORKER_NAME: Final = re.compile(r"(?P<pid>[0-9]{1,10})-(?P<start>[0-9a-f]{1,16})-(?P<place>[0-9a-f]{8})-[0-9a-f]+\Z")


class Process(NamedTuple):
    """A process, told apart from all that ever ran on any host."""

    host: str
    pid: int
    process_start: int | None
    boot_id: str | None
    pid_namespace: str | None


def this_process() -> Process:
    """Return the identity of the running process; parts that this system does not tell are ``None``."""
    pid = os.getpid()
    return Process(host_folder(os.uname().nodename), pid, _process_start(pid), _boot_id(), _pid_namespace())


def worker_name(process: Process, random: str) -> str:
    """Return the name of a worker: unique for ever, and telling which process it is even when its journal does not.

    Two workers that start on one host in one instant differ in pid; in two pid namespaces, in the rest.
    """
    return f"{process.pid}-{process.process_start or 0:x}-{_place(process)}-{random}"


def _place(process: Process) -> str:
    """Eight digits for the boot and pid namespace in which the number of a process means something."""
    return f"{binascii.crc32(f'{process.boot_id} {process.pid_namespace}'.encode()):08x}"


def process_of_worker(host: str, worker: str) -> Process | None:
    """Return the process that a worker's name tells of, if it was one of this host, boot and pid namespace."""
    here = this_process()
    found = _WORKER_NAME.match(worker)
    if found is None or host != here.host or found["place"] != _place(here):
        return None
    return here._replace(pid=int(found["pid"]), process_start=int(found["start"], 16))


def decode_process(record: dict[str, Any]) -> Process:
    """Return the process that a record names; what has another type counts as not told."""
    host, pid = record.get("host"), record.get("pid")
    start, boot_id, namespace = record.get("process_start"), record.get("boot_id"), record.get("pid_namespace")
    return Process(
        host if isinstance(host, str) else "",
        pid if isinstance(pid, int) else 0,
        start if isinstance(start, int) else None,
        boot_id if isinstance(boot_id, str) else None,
        namespace if isinstance(namespace, str) else None,
    )


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _boot_id() -> str | None:
    text = _read("/proc/sys/kernel/random/boot_id")
    return text.strip() if text else None


def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot.

    ``None`` when that is unknown; -1 for one that has ended and waits for its parent.
    """
    text = _read(f"/proc/{pid}/stat")
    if text is None:
        return None
    # The command, in parentheses, may itself hold spaces and parentheses: proc(5), fields 3 (state) and 22 (starttime).
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX" and len(_tasks(pid)) <= 1:
        return -1
    return int(fields[19])


def _tasks(pid: int) -> list[str]:
    # A main thread that has ended looks like a zombie while other threads of the process go on.
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def is_running(process: Process) -> bool | None:
    """Tell whether a process runs: ``None`` when that cannot be known from here (other host, boot or pid namespace)."""
    here = this_process()
    if process.boot_id is None or process.process_start is None:
        return None
    if (process.host, process.pid_namespace) != (here.host, here.pid_namespace):
        return None
    if process.boot_id != here.boot_id:
        # Two machines may share a host name, and only one of them has booted anew: unknown, not dead.
        return None
    try:
        os.kill(process.pid, 0)
    except (ProcessLookupError, OverflowError):
        # A number beyond those that processes get is forged.
        return False
    except PermissionError:
        pass
    start = _process_start(process.pid)
    # Without a readable start time (hidepid) the number may have been given to another process.
    return None if start is None else start == process.process_start


class Liveness:
    """Who is alive: what can be seen from here and, where nothing can, what a person asserts.

    Args:
        assume_dead: hosts, workers and leaders that a person knows to be gone, by the names that messages give them.

    Attributes:
        unused: those of them that have not decided anything yet.
    """

    def __init__(self, assume_dead: Collection[str] = ()) -> None:
        self._assumed = {name: name if "/" in name else host_folder(name) for name in assume_dead}
        self.unused = set(self._assumed)

    def is_running(self, process: Process, name: str) -> bool | None:
        """Tell whether a process runs; what can be seen from here counts more than what a person says."""
        running = is_running(process)
        if running is not None:
            return running
        wanted = (process.host, name, f"{process.host}/{name}")
        found = {given for given, assumed in self._assumed.items() if assumed in wanted}
        self.unused -= found
        return False if found else None


class Observations:
    """What this host has seen of beats, and since when on its own clock.

    Each topic has a file of its own for each host.
    """

    def __init__(self, layout: Layout, *, topic: str, storage: Storage = LOCAL) -> None:
        here = this_process()
        self._path = layout.observation(topic, here.host)
        self._storage = storage
        self._boot_id = here.boot_id
        self._before: dict[str, tuple[str, float]] = self._load()
        self._seen: dict[str, tuple[str, float]] = {}

    def _load(self) -> dict[str, tuple[str, float]]:
        try:
            with opened(self._path, self._storage) as descriptor:
                data = json.loads(self._storage.read(descriptor, _OBSERVATIONS_LIMIT_BYTES, 0))
            if data["boot_id"] != self._boot_id:
                return {}
            return {str(name): (str(beat), float(since)) for name, (beat, since) in data["seen"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, OSError):
            # Seen by nobody means alive: losing this file costs a lease of patience, nothing else.
            return {}

    def unchanged_seconds(self, name: str, beat: str) -> float:
        """Note that ``name`` shows ``beat`` now, and return for how long this host has seen it unchanged."""
        now = self._storage.uptime()
        before, since = self._before.get(name, (beat, now))
        if before != beat or since > now:
            since = now
        self._seen[name] = (beat, since)
        return now - since

    def save(self) -> None:
        """Write what was seen for the next scavenge on this host; names not seen this time are forgotten."""
        if not self._seen and not self._before:
            return
        data = json.dumps({"boot_id": self._boot_id, "seen": self._seen}).encode()
        self._storage.make_directories(self._path.parent)
        self._storage.replace(self._path, data)


def process_of(opened: Open) -> Process:
    """Return the process that began a journal."""
    return Process(opened.host, opened.pid, opened.process_start, opened.boot_id, opened.pid_namespace)
