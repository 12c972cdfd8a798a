"""System calls of a job, by ``strace``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from bench.job import BEGIN, END
from bench.runner import Bench, Job

_CALL = re.compile(r"^\d+ +(\w+)\(")
_OPENED = re.compile(r"\bopen(?:at|at2)?\(.* = (\d+)<")
_CLOSE = re.compile(r"\bclose\((\d+)<")


def under_strace(bench: Bench, job: Job, trace: Path, expression: str) -> Job:
    """Return a job that writes the calls of ``expression`` to ``trace``, and those that say when the stopwatch runs."""
    strace = bench.peer("strace")
    wanted = f"trace={expression},newfstatat,stat,statx"
    prefix = (strace.path, "-f", "-y", "-qq", "-e", wanted, "-o", str(trace))
    return replace(job, prefix=prefix, environment=strace.environment)


def to_server(lines: Iterable[str]) -> Iterator[str]:
    """Leave out what asks nothing of a file server: folders that are opened only to go on from (``O_PATH``), for which
    the kernel does the look-ups that it does for any path, and the closing of these and of second descriptors.
    """
    opened: set[str] = set()
    for line in lines:
        found = _OPENED.search(line)
        closed = None if found else _CLOSE.search(line)
        if found:
            if "O_PATH" in line:
                continue
            opened.add(found[1])
        elif closed:
            if closed[1] not in opened:
                continue
            opened.remove(closed[1])
        yield line


def calls(trace: Path, folder: Path) -> Iterator[str]:
    """Yield the names of the calls about anything below a folder that were made while the stopwatch ran."""
    is_running = False
    with trace.open(errors="replace") as lines:
        for line in to_server(lines):
            match = _CALL.match(line)
            if BEGIN in line or END in line:
                is_running = BEGIN in line
            elif match and is_running and (f"{folder}/" in line or f"{folder}>" in line or f'{folder}"' in line):
                yield match.group(1)
