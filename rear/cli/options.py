"""Options that several commands have, and what becomes of their values."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rear.core.config import Config
from rear.core.layout import Layout
from rear.core.text import parse_seconds, parse_size_bytes
from rear.errors import UsageError

if TYPE_CHECKING:
    from concurrent.futures import Executor


def base_argument(help: str, metavar: str = "[BASE]") -> Any:
    """Return the argument for a base, which is that of the environment or the current folder without it."""
    return typer.Argument(envvar="REAR_BASE", help=help, metavar=metavar, show_default="the current folder")


#: Of commands that write, or that only look.
Base = Annotated[str, base_argument("The base that the workers write to.")]
#: Of commands whose arguments are other things.
BaseOption = Annotated[
    str, typer.Option("--base", envvar="REAR_BASE", help="The base.", metavar="BASE", show_default="the current folder")
]
AssumeDead = Annotated[
    list[str] | None,
    typer.Option(
        help="You know that this host, worker or scavenger is gone: do not wait for its lease. May be repeated.",
        metavar="HOST|WORKER",
        show_default=False,
    ),
]
Meta = Annotated[
    list[str] | None, typer.Option("--meta", metavar="KEY=VALUE", help="Metadata of each member. Repeatable.")
]
Compression = Annotated[
    str | None, typer.Option("--compression", metavar="METHOD", help="deflate, stored or zstd.", show_default="deflate")
]

# ---- how it is shown

Plain = Annotated[
    bool, typer.Option("--plain", help="Lines instead of a live screen; so it is anyway without a terminal.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output; see the page JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only what needs attention.")]
JsonObject = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def style_of(*, plain: bool, json: bool, quiet: bool) -> str:
    """Return the style that options ask for, as `rear.cli.display.follow.follow` knows it."""
    return "json" if json else "quiet" if quiet else "plain" if plain else "live"


# ---- durations, sizes and times, as people write them


def seconds(text: str) -> float:
    """Return a duration such as ``30``, ``30s``, ``5m``, ``2h`` or ``1d`` in seconds."""
    try:
        return parse_seconds(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def size_bytes(text: str | None) -> int | None:
    """Return a size such as ``1000``, ``500M`` or ``50G`` (powers of 1024) in bytes; ``None`` where none is given."""
    try:
        return None if text is None else parse_size_bytes(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def moment(text: str | None) -> datetime | None:
    """Return a time such as ``2h`` (ago), ``2026-11-21`` or ``2026-11-21T08:30``; local unless it has an offset.

    ``None`` where none is given.
    """
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        pass
    try:
        return datetime.now() - timedelta(seconds=seconds(text))
    except (typer.BadParameter, OverflowError):
        raise typer.BadParameter(f"{text!r} is no time: write 2h or 1d (ago), 2026-11-21 or 2026-11-21T08:30") from None


# ---- who checks and copies beside this process

Jobs = Annotated[
    int | None,
    typer.Option(
        help="Check and copy by so many processes, where there is much to do.", min=1, metavar="N", show_default="1"
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        help="Check and copy on the workers of a Dask cluster, by the address of its scheduler (tcp://host:8786). "
        "Needs rear[dask].",
        metavar="ADDRESS",
        show_default=False,
    ),
]


class Executors:
    """Opens the executor that ``--jobs`` or ``--dask`` asks for; with neither, the configuration of the base.

    Raises:
        UsageError: both are given.
    """

    def __init__(self, base: str, jobs: int | None, dask: str | None) -> None:
        if jobs is not None and jobs > 1 and dask is not None:
            raise UsageError("--jobs is for processes on this host, --dask for those of a cluster: name one of them")
        if jobs is None and dask is None:
            settings = Config(Layout(base)).resolve("scavenger", {})
            # As between options: a setting of one kind keeps the other out, and the cluster is the larger one.
            jobs, dask = settings["jobs"], settings["dask"]
        self._jobs = jobs
        self._dask = dask
        self._has_connected = False

    @contextmanager
    def open(self) -> Iterator[Executor | None]:
        """Open the executor for one run; ``None`` when this process does all.

        Raises:
            UnsupportedError: Dask is not installed.
            OSError: its scheduler does not answer, and never has. Later on, this process goes on without it.
        """
        with ExitStack() as stack:
            if self._dask is not None:
                yield self._connect(self._dask, stack)
            elif self._jobs is not None and self._jobs > 1:
                from rear.core.parallel import local_pool

                yield stack.enter_context(
                    local_pool(self._jobs, warm_up=("rear.scavenger.check_tasks", "rear.scavenger.copy_tasks"))
                )
            else:
                yield None

    def _connect(self, address: str, stack: ExitStack) -> Executor | None:
        from rear.dask import connected

        try:
            executor = stack.enter_context(connected(address))
        except OSError as error:
            if not self._has_connected:
                raise
            print(f"rear: {address}: {error.strerror}; this process works without it", file=sys.stderr)
            return None
        self._has_connected = True
        return executor
