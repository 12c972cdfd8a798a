"""The process around a contender that is Python: ``python -m bench.job MODULE:FUNCTION RESULT ARGUMENTS``.

The function gets a `Stopwatch` and starts it itself, so that neither the start of the interpreter, nor imports, nor the
making of data is counted. Knows nothing of rear: the original runs in it, too.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

BEGIN, END = "/rear-bench-begins", "/rear-bench-ends"
"""Names that nothing has: looking for them shows in a trace where the stopwatch runs."""


class Stopwatch:
    """Measures what happens inside ``with``: seconds, and CPU time with that of the children that were waited for."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._start = self._cpu_start = 0.0

    def __enter__(self) -> Self:
        os.path.exists(BEGIN)
        self._cpu_start = _cpu_seconds()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.values["seconds"] = time.perf_counter() - self._start
        self.values["cpu_seconds"] = _cpu_seconds() - self._cpu_start
        os.path.exists(END)

    def count_children(self) -> None:
        """Take the CPU time of children that were waited for since, with that of their start."""
        self.values["cpu_seconds"] = _cpu_seconds() - self._cpu_start

    def lap(self, name: str) -> None:
        """Note how many seconds have passed, under a name that ends in ``_seconds``."""
        self.values[name] = time.perf_counter() - self._start

    def note(self, name: str, value: float) -> None:
        """Note a number that is no time."""
        self.values[name] = value


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def fork_workers(workers: int, work: Callable[[int], None]) -> None:
    """Run ``work`` in so many forked processes at once, and wait for all.

    Raises:
        RuntimeError: some of them failed.
    """
    children = []
    for worker in range(workers):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(worker)
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    if failed:
        raise RuntimeError(f"{len(failed)} of {workers} processes failed")


def main() -> None:
    function, result, arguments = sys.argv[1:]
    module, _, name = function.partition(":")
    stopwatch = Stopwatch()
    getattr(importlib.import_module(module), name)(stopwatch, **json.loads(arguments))
    with open(result, "w") as file:
        json.dump(stopwatch.values, file)


if __name__ == "__main__":
    main()
