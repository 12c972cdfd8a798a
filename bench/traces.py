"""System calls of a job, by ``strace``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.job import BEGIN, END
from bench.runner import Bench, Job

_CALL = re.compile(r"^\d+ +(\w+)\(")


def under_strace(bench: Bench, job: Job, trace: Path, expression: str) -> Job:
    """Return a job that writes the calls of ``expression`` to ``trace``, and those that say when the stopwatch runs."""
    strace = bench.peer("strace")
    wanted = f"trace={expression},newfstatat,stat,statx"
    prefix = (strace.path, "-f", "-y", "-qq", "-e", wanted, "-o", str(trace))
    return replace(job, prefix=prefix, environment=strace.environment)


def calls(trace: Path, folder: Path) -> Iterator[str]:
    """Yield the names of the calls about anything below a folder that were made while the stopwatch ran."""
    is_running = False
    with trace.open(errors="replace") as lines:
        for line in lines:
            match = _CALL.match(line)
            if BEGIN in line or END in line:
                is_running = BEGIN in line
            elif match and is_running and (f"{folder}/" in line or f"{folder}>" in line or f'{folder}"' in line):
                yield match.group(1)
