"""Probes of a file system that need several processes: who wins a race, and who gets a lock.

The second processes work in the same folder, or, with a peer, half of them through another mount of it.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from rear.diagnostics.findings import Finding, Judge
from rear.diagnostics.probe_context import ProbeContext, error_name
from rear.diagnostics.probe_process import NoAnswerError, ProbeProcess, version_bytes

RACES: Final = 100
_ROUND_SECONDS: Final = 0.004
_HEAD_START_SECONDS: Final = 0.05
_REPLACE_SECONDS: Final = 1.0
_REPLACEMENTS: Final = 2_000
LOCK_SECONDS: Final = 10.0
#: How long the lock of a killed process may stay.
DEAD_LOCK_SECONDS: Final = 5.0


def _racers(context: ProbeContext) -> list[ProbeProcess]:
    return [*context.near, *(process for process in context.far if process not in context.near)]


def _who(context: ProbeContext) -> str:
    return f"{len(_racers(context))} processes{' on two mounts' if context.has_peer else ''}"


def _race(context: ProbeContext, command: str, place: str, arguments: Callable[[int], dict[str, int]]) -> Counter[int]:
    """Let all processes do the same at the same time; return how many won each round."""
    begin = time.monotonic() + _HEAD_START_SECONDS
    racers = _racers(context)
    for number, process in enumerate(racers):
        process.send(command, place, count=RACES, begin=begin, pause_seconds=_ROUND_SECONDS, **arguments(number))
    winners: Counter[int] = Counter()
    for process in racers:
        winners.update(process.receive()["won"])
    return winners


def probe_exclusive_create(context: ProbeContext) -> Finding:
    """Whether of several processes that create one file with ``O_EXCL`` one succeeds (A5)."""
    judge = Judge("exclusive_create", "races")
    context.place(judge.probe)
    winners = _race(context, "create", judge.probe, lambda number: {})
    several = sum(winners[number] > 1 for number in range(RACES))
    none = sum(winners[number] == 0 for number in range(RACES))
    if several:
        return judge.broken(
            f"in {several} of {RACES} races of {_who(context)} several won",
            "Where locks do not exclude either, two scavengers that begin at once may both lead (promises 2 and 3): "
            "start scavengers on one host only.",
            several,
        )
    if none:
        return judge.degraded(
            f"in {none} of {RACES} races of {_who(context)} none was told that it won",
            "Scavengers that begin at once may all leave, with status 0: the next one leads.",
            none,
        )
    return judge.ok(f"{RACES} races of {_who(context)}, one winner each", 0)


def probe_rename(context: ProbeContext) -> Finding:
    """Whether of several processes that rename one file one succeeds, and the file is then there once (A4)."""
    judge = Judge("rename", "races")
    folder = context.place(judge.probe)
    for number in range(RACES):
        context.write_file(folder / f"from-{number}", str(number).encode(), sync=False)
    winners = _race(context, "rename", judge.probe, lambda number: {"racer": number})
    names = context.storage.names(folder)
    there: Counter[int] = Counter(int(found.split("-")[1]) for found in names if found.startswith("to-"))
    left = sum(found.startswith("from-") for found in names)
    wrong = sum(there[number] != 1 or winners[number] > 1 for number in range(RACES))
    if wrong or left:
        return judge.broken(
            f"in {max(wrong, left)} of {RACES} races of {_who(context)} a file was renamed by several, or is there "
            "twice or not at all",
            "A leader and one that it deposed may hold the same pair (promises 2 to 5): start scavengers on one host "
            "only.",
            max(wrong, left),
        )
    denied = sum(winners[number] == 0 for number in range(RACES))
    if denied:
        return judge.degraded(
            f"{denied} of {RACES} renames were done and reported as failed",
            "rear looks where the file is now, by a listing.",
            denied,
        )
    return judge.ok(f"{RACES} races of {_who(context)}, one winner each", 0)


def probe_rename_over(context: ProbeContext) -> Finding:
    """Whether a reader of a file that is being renamed over sees the old one or the new one."""
    judge = Judge("rename_over", "reads")
    context.write_file(context.place(judge.probe) / "current", version_bytes(0))
    writer, reader = context.near[0], context.far[-1]
    until = time.monotonic() + _REPLACE_SECONDS
    reader.send("reread", judge.probe, until=until)
    writer.send("replace", judge.probe, count=_REPLACEMENTS, until=until)
    versions = writer.receive()["versions"]
    counts = reader.receive()
    reads, missing, stale, mixed = (counts[kind] for kind in ("reads", "missing", "stale", "mixed"))
    seen = f"{versions} replacements, {reads:,} reads"
    if missing or mixed:
        return judge.broken(
            f"{seen}: {missing:,} times there was no file, {mixed:,} times a mixture",
            "A crash at that moment can leave an archive missing, or mixed, that is being given a new inode (promise "
            "3).",
            missing + mixed,
        )
    if stale:
        return judge.degraded(
            f"{seen}: {stale:,} could not be opened, though the file was listed",
            "A reader may be told for a moment that there is no such archive: run it again. A merge looks into the "
            "listing, too.",
            stale,
        )
    return judge.ok(f"{seen}: old or new each time", 0)


# Locks.

_LOCKS_ARE_A_HINT: Final = (
    "A lock is only a hint that saves time: who leads is decided by exclusive creation of the next term and the beat "
    "in the lock's record. Index files are read without locks."
)


def probe_locks(context: ProbeContext) -> Finding:
    """Whether the POSIX lock that a leader takes excludes other processes, and goes with its owner (A14)."""
    judge = Judge("locks", "s")
    context.write_file(context.place(judge.probe) / "lock", b"", sync=False)
    try:
        return _probe_locks(context, judge)
    except NoAnswerError:
        context.renew_processes()
        return judge.broken(
            f"no answer within {LOCK_SECONDS:.0f} s",
            "A scavenge would hang like this; workers take no locks and go on. Repair the lock service, or mount with "
            "nolock: rear does not rely on locks.",
            LOCK_SECONDS,
        )


def _probe_locks(context: ProbeContext, judge: Judge) -> Finding:
    holder, other = context.near[0], context.far[-1]
    where = "on another mount" if context.has_peer else "of this host"
    for process, is_first in ((holder, True), (other, False)):
        error = _lock(process)
        if error in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return judge.degraded(f"there are none ({error_name(error)})", _LOCKS_ARE_A_HINT)
        if is_first and error:
            effect = "Each scavenge ends with this error; workers go on, and no file is lost."
            return judge.broken(f"refused: {error_name(error)}", effect)
        if not is_first and not error:
            _unlock(other)
            return judge.degraded(f"a process {where} gets a lock that another one holds", _LOCKS_ARE_A_HINT)
        if not is_first and error not in (errno.EACCES, errno.EAGAIN):
            return judge.broken(f"refused: {error_name(error)}", "Each scavenge there ends with this error.")
    _unlock(holder)
    if not _gets_lock(other):
        return _stuck(judge, "given back")
    _unlock(other)
    victim = ProbeProcess(holder.folder)
    try:
        if _lock(victim):
            return _stuck(judge, "given back")
    finally:
        # SIGKILL.
        victim.close()
    if not _gets_lock(other):
        return _stuck(judge, "of a killed process")
    _unlock(other)
    return judge.ok(f"they exclude processes {where}, and go when their owner is killed")


def _lock(process: ProbeProcess) -> int:
    """Have a process try the lock; return 0 or the error number."""
    reply = process.ask("lock", "locks", timeout_seconds=LOCK_SECONDS, name="lock")
    return int(reply["error"])


def _unlock(process: ProbeProcess) -> None:
    process.ask("unlock", "locks", timeout_seconds=LOCK_SECONDS, name="lock")


def _gets_lock(process: ProbeProcess) -> bool:
    """Whether a process has the lock within the limit for one of a dead owner."""
    begun = time.monotonic()
    while True:
        waited = time.monotonic() - begun
        if not _lock(process):
            return True
        if waited > DEAD_LOCK_SECONDS:
            return False
        time.sleep(0.02)


def _stuck(judge: Judge, whose: str) -> Finding:
    return judge.broken(
        f"a lock that was {whose} is still held after {DEAD_LOCK_SECONDS:.0f} s",
        "No scavenge can lead until the server lets it go: each leaves with status 0 and names the owner. Workers go "
        "on, nothing is lost.",
        DEAD_LOCK_SECONDS,
    )


RACE_PROBES: Final = (probe_exclusive_create, probe_rename, probe_rename_over, probe_locks)
