"""Who checks and copies beside this process: the executor that ``--jobs`` or ``--dask`` asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Final

from rear.cli.exit import note
from rear.cli.options import valued
from rear.core.config import load
from rear.core.layout import Layout
from rear.errors import UsageError

if TYPE_CHECKING:
    from concurrent.futures import Executor

Jobs = Annotated[
    int | None, valued("N", "Check and copy by so many processes, where there is much to do.", min=1, default="1")
]
Dask = Annotated[
    str | None,
    valued(
        "ADDRESS",
        "Check and copy on the workers of a Dask cluster, by the address of its scheduler (tcp://host:8786). "
        "Needs rear[dask].",
    ),
]
#: What its processes import while they start.
_TASKS: Final = ("rear.scavenger.check_tasks", "rear.scavenger.copy_tasks", "rear.fsck.inspection_tasks")


class Executors:
    """Opens the executor that ``--jobs`` or ``--dask`` asks for; with neither, the configuration of the base.

    Raises:
        UsageError: both are given.
    """

    def __init__(self, base: str, jobs: int | None, dask: str | None) -> None:
        if jobs is not None and jobs > 1 and dask is not None:
            raise UsageError("--jobs is for processes on this host, --dask for those of a cluster: name one of them")
        self._base = base
        self._jobs = jobs
        self._dask = dask
        self._has_connected = False

    @contextmanager
    def open(self) -> Iterator[Executor | None]:
        """Open the executor for one run; ``None`` when this process does all.

        Raises:
            ConfigError: a setting of the base makes no sense.
            UnsupportedError: Dask is not installed.
            OSError: its scheduler does not answer, and never has. Later on, this process goes on without it. Or the
                configuration cannot be read.
        """
        jobs, dask = self._jobs, self._dask
        if jobs is None and dask is None:
            settings = load(Layout(self._base), "scavenger", {})
            # As between options: a setting of one kind keeps the other out, and the cluster is the larger one.
            jobs, dask = settings["jobs"], settings["dask"]
        with ExitStack() as stack:
            if dask is not None:
                yield self._connect(dask, stack)
            elif jobs is not None and jobs > 1:
                from rear.core.parallel import local_pool

                yield stack.enter_context(local_pool(jobs, warm_up=_TASKS))
            else:
                yield None

    def _connect(self, address: str, stack: ExitStack) -> Executor | None:
        from rear.dask import connected

        try:
            executor = stack.enter_context(connected(address))
        except OSError as error:
            if not self._has_connected:
                raise
            note(f"{address}: {error.strerror}; this process works without it")
            return None
        self._has_connected = True
        return executor
