"""Starts contenders one after the other and tells what each took: a small process, since the size of who forks counts.

Linux starts the peak memory of a new program with that of the process that it was forked from, so the benchmark itself,
with all that it has imported, must not be that process. Reads one JSON object a line, answers with one. Run it as
``python -I -S launcher.py``; it imports nothing large.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn

_running = 0


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Run one program to its end.

    Args:
        order: ``argv``, ``environment``, ``folder`` to work in, files for ``stdin``, ``stdout`` and ``stderr``,
            ``cpus`` to run on (or null), ``timeout_seconds``.

    Returns:
        ``status`` (minus the signal that killed it), ``seconds`` from fork to exit, ``cpu_seconds`` (user and system,
        with the children that it waited for), ``peak_bytes`` (its own or its largest child's), ``is_timed_out``.
    """
    global _running
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        _become(order)
    _running = child
    is_timed_out = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal is_timed_out
        is_timed_out = True
        _kill(child)

    signal.signal(signal.SIGALRM, end)
    signal.alarm(order["timeout_seconds"])
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    signal.alarm(0)
    _running = 0
    # What a contender left running must not slow the next one down.
    _kill(child)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "is_timed_out": is_timed_out,
    }


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass


def _become(order: dict[str, Any]) -> NoReturn:
    try:
        os.setsid()
        os.chdir(order["folder"])
        writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", writing), (2, "stderr", writing)):
            os.dup2(os.open(order[name], flags, 0o666), number)
        if order["cpus"]:
            os.sched_setaffinity(0, order["cpus"])
        os.execvpe(order["argv"][0], order["argv"], order["environment"])
    except BaseException as error:
        os.write(2, f"{order['argv'][0]}: {error}\n".encode())
    os._exit(127)


def _stop(number: int, frame: FrameType | None) -> None:
    if _running:
        _kill(_running)
    os._exit(1)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
