"""Jobs that read archives with rear: salvage and the deep check."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, wait
from contextlib import contextmanager
from time import sleep

from bench.job import Stopwatch
from rear.core.parallel import local_pool
from rear.fsck import archive as repair

_START_SECONDS = 0.3


def salvage(stopwatch: Stopwatch, *, source: str, target: str) -> None:
    """Write what is whole of an archive without directory into a new one, as ``rear fsck --output`` does."""
    with stopwatch:
        problems = list(repair.check_archive_file(source, output=target))
    if not problems:
        raise RuntimeError("a torn archive was found to be whole")
    stopwatch.note("problems", len(problems))


def check_deep(stopwatch: Stopwatch, *, path: str, jobs: int) -> None:
    """Read every member, as ``rear fsck --deep`` does, with ``--jobs`` if that is more than one."""
    with started_pool(jobs) as executor, stopwatch:
        problems = list(repair.check_archive_file(path, deep=True, executor=executor))
    stopwatch.count_children()
    if problems:
        raise RuntimeError(f"a whole archive was found to be damaged: {problems[0]}")


@contextmanager
def started_pool(jobs: int) -> Iterator[Executor | None]:
    """Yield the processes of ``--jobs``, started: their start is not what is measured. None for one job."""
    if jobs == 1:
        yield None
        return
    with local_pool(jobs, warm_up=("rear.fsck.inspection_tasks",)) as executor:
        # Each one sleeps until the others are there, too: idle ones would get all tasks.
        wait([executor.submit(sleep, _START_SECONDS) for _ in range(jobs)])
        yield executor
