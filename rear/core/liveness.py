"""Who is alive: the identity of a process, and beats as other hosts saw them.

No decision compares clocks of two hosts. Where the number and the start time of a process mean the same to both (one
host and boot, one pid namespace, one time namespace) they decide at once. From elsewhere a process is *stale* when
what it writes has not changed over a whole lease: `rear.scavenger.inbox` holds it to that. Observations are kept in the
base, so that a scavenger started by cron, in a container of another name each time, needs no memory of its own.
"""

from __future__ import annotations

import binascii
import json
import os
import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple, TypedDict

from rear.core.layout import Layout, make_in_base
from rear.core.names import host_folder
from rear.core.records import Open
from rear.core.storage import LOCAL, Storage, opened

BIRTH_SECONDS: Final = 600.0
"""So long a pair is left alone, without a change, whose journal does not say yet who writes it and with what lease.

Nothing else can tell that its worker is dead, where that cannot be seen. A worker that takes more than half of this to
make a pair looks whether it is still there before it uses it.
"""
_OBSERVATIONS_LIMIT_BYTES: Final = 4 << 20
"""More is neither written nor read: some 30,000 names, which take some 100 MB of memory at worst."""
_CLOCKS_LIMIT: Final = 8
"""Of so many clocks it is remembered what they saw of one name, the latest."""
_WORKER_NAME: Final = re.compile(r"(?P<pid>[0-9]{1,10})-(?P<start>[0-9a-f]{1,16})-(?P<place>[0-9a-f]{8})-[0-9a-f]+\Z")


class Process(NamedTuple):
    """A process, told apart from all that ever ran on any host."""

    host: str
    pid: int
    process_start: int | None
    boot_id: str | None
    pid_namespace: str | None
    time_namespace: str | None = None


def this_process() -> Process:
    """Return the identity of the running process; parts that this system does not tell are ``None``."""
    pid = os.getpid()
    host, start = host_folder(os.uname().nodename), _process_start(pid)
    return Process(host, pid, start, _boot_id(), _namespace("pid"), _namespace("time"))


def worker_name(process: Process, random: str) -> str:
    """Return the name of a worker: unique for ever, and telling which process it is even when its journal does not.

    Two workers that start on one host in one instant differ in pid; in two pid namespaces, in the rest.
    """
    return f"{process.pid}-{process.process_start or 0:x}-{_place(process)}-{random}"


def _place(process: Process) -> str:
    """Eight digits for the boot and the namespaces in which number and start time of a process mean something."""
    place = f"{process.boot_id} {process.pid_namespace} {process.time_namespace}"
    return f"{binascii.crc32(place.encode()):08x}"


def process_of_worker(host: str, worker: str) -> Process | None:
    """Return the process that a worker's name tells of, if it was one that can be seen from here."""
    here = this_process()
    found = _WORKER_NAME.match(worker)
    if found is None or host != here.host or found["place"] != _place(here):
        return None
    return here._replace(pid=int(found["pid"]), process_start=int(found["start"], 16))


def decode_process(record: dict[str, Any]) -> Process:
    """Return the process that a record names; what has another type counts as not told."""
    host, pid = record.get("host"), record.get("pid")
    start = record.get("process_start")
    places = (record.get(key) for key in ("boot_id", "pid_namespace", "time_namespace"))
    return Process(
        host if isinstance(host, str) else "",
        pid if isinstance(pid, int) else 0,
        start if isinstance(start, int) else None,
        *(place if isinstance(place, str) else None for place in places),
    )


def _read(path: str) -> str | None:
    try:
        # As bytes: a codec would be imported, and a fork in the middle of an import leaves its lock taken in the child.
        with open(path, "rb") as file:
            return file.read().decode("ascii", "replace")
    except OSError:
        return None


def _boot_id() -> str | None:
    text = _read("/proc/sys/kernel/random/boot_id")
    return text.strip() if text else None


def _namespace(kind: str) -> str | None:
    """Return the name of a namespace of this process: ``time:[4026531834]``; ``time:`` where the kernel has no such."""
    try:
        return os.readlink(f"/proc/self/ns/{kind}")
    except FileNotFoundError:
        return f"{kind}:" if os.path.isdir("/proc/self/ns") else None
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
    """Tell whether a process runs: ``None`` when that cannot be known from here.

    In another pid namespace its number means another process, in another time namespace its start time another time;
    two machines may share a host name, or, copied while they ran, a boot id.
    """
    here = this_process()
    seen_from = here.host, here.boot_id, here.pid_namespace, here.time_namespace
    if None in seen_from or process.process_start is None:
        return None
    if (process.host, process.boot_id, process.pid_namespace, process.time_namespace) != seen_from:
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
    """For how long signs of life have not changed, as all scavengers of a base saw it; each topic has a file.

    Whose clock it was is told by boot and time namespace, not by the name of a host, which changes with each run of a
    container. What several saw adds up: another clock tells nothing of now, but who reads there that a sign of life
    was seen unchanged for ten seconds, and sees the same, knows that ten seconds have passed.
    """

    def __init__(self, layout: Layout, *, topic: str, storage: Storage = LOCAL) -> None:
        here = this_process()
        self._base, self._path = layout.base, layout.observation(topic)
        self._storage = storage
        # Where no boot is told, a clock that begins anew is seen to go back.
        self._clock = f"{here.boot_id or here.host} {here.time_namespace}"
        self._before = self._load()
        self._seen: dict[str, _Observation] = {}

    def _load(self) -> _File:
        # Typed, so that forged JSON takes no more memory than it can need; nor on import, a worker has no use for it.
        import msgspec

        try:
            with opened(self._path, self._storage) as descriptor:
                if self._storage.size(descriptor) > _OBSERVATIONS_LIMIT_BYTES:
                    return {}
                data = self._storage.read(descriptor, _OBSERVATIONS_LIMIT_BYTES, 0)
            return msgspec.json.decode(data, type=_File)
        except (ValueError, RecursionError, OSError):
            # Seen by nobody means alive: losing this file costs a lease of patience, nothing else.
            return {}

    def _noted(self, name: str) -> _Observation | None:
        """Return what was seen of a name before, if it makes sense."""
        if name not in self._before.get("seen", {}):
            return None
        beat, seconds, since = self._before["seen"][name]
        try:
            return _Observation(beat, seconds, {self._before["clocks"][number]: time for number, time in since})
        except LookupError:
            return None

    def unchanged_seconds(self, name: str, beat: str) -> float:
        """Note that ``name`` shows ``beat`` now, and return for how long, at least, it has been seen unchanged."""
        now = self._storage.uptime()
        before = self._seen.get(name) or self._noted(name)
        if before is None or before.beat != beat:
            before = _Observation(beat, 0.0, {})
        since = before.since.get(self._clock, now)
        seconds = max(before.seconds, now - since)
        others = [(clock, time) for clock, time in before.since.items() if clock != self._clock]
        # Each look, by whatever clock, came after all that it had read of.
        clocks = dict([*others[1 - _CLOCKS_LIMIT :], (self._clock, now - seconds)])
        self._seen[name] = _Observation(beat, seconds, clocks)
        return seconds

    def save(self) -> None:
        """Write what was seen for the next scavenge; names not seen this time are forgotten."""
        if not self._seen and not self._before:
            return
        names = list(self._seen)
        # Of more than are read again none would ever count as dead: of the first ones some do, and make room.
        while len(data := self._encoded(names)) > _OBSERVATIONS_LIMIT_BYTES:
            names = names[: len(names) // 2]
        make_in_base(self._base, self._path.parent, storage=self._storage)
        self._storage.replace(self._path, data)

    def _encoded(self, names: list[str]) -> bytes:
        clocks = list({clock: None for name in names for clock in self._seen[name].since})
        numbers = {clock: number for number, clock in enumerate(clocks)}
        seen = {
            name: (beat, seconds, [(numbers[clock], time) for clock, time in since.items()])
            for name, (beat, seconds, since) in ((name, self._seen[name]) for name in names)
        }
        return json.dumps({"clocks": clocks, "seen": seen}).encode()


class _File(TypedDict, total=False):
    """What the file holds: for each name its sign of life, for how long it was seen, and since when by each clock."""

    clocks: list[str]
    seen: dict[str, tuple[str, float, list[tuple[int, float]]]]


class _Observation(NamedTuple):
    """A sign of life, for how many seconds it was seen unchanged, and since when that is, by each clock."""

    beat: str
    seconds: float
    since: dict[str, float]


def process_of(opened: Open) -> Process:
    """Return the process that began a journal."""
    places = opened.boot_id, opened.pid_namespace, opened.time_namespace
    return Process(opened.host, opened.pid, opened.process_start, *places)
