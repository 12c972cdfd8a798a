"""``rear status``: the state of a base at a glance."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from rear.cli.exit import ATTENTION, note, told
from rear.cli.options import Base, JsonObject, flag, seconds, valued
from rear.cli.signals import StopRequest
from rear.errors import RearError, UsageError

if TYPE_CHECKING:
    from rear.diagnostics.status import BaseStatus


def status(
    base: Base = ".",
    watch: Annotated[bool, flag("Stay, and look again and again, until Ctrl-C.", "--watch", "-w")] = False,
    every: Annotated[str | None, valued("DURATION", "How often --watch looks; 2s when not given.")] = None,
    as_json: JsonObject = False,
    openmetrics: Annotated[
        str | None,
        valued(
            "FILE",
            "Write it as metrics to FILE, at once, for the textfile collector of Prometheus' node exporter; "
            "nothing is printed.",
        ),
    ] = None,
) -> None:
    """Show the state of a base: workers, what waits, what was done last, what is wrong.

    It only looks, and changes nothing. The status is 1 when something needs attention: a crashed worker, a scavenge
    that died, files that cannot be used, something in lost+found, too little space; docs/how-to/watch.md says when.

    Example: rear status /nfs/base
    """
    from rear.diagnostics.status import Observer

    if as_json and openmetrics is not None:
        raise UsageError("--json prints and --openmetrics writes a file: name one of them")
    if every is not None and not watch:
        raise UsageError("--every goes with --watch")
    observer = Observer(base)
    pause_seconds = seconds(every or "2s")
    stop = StopRequest()
    if watch:
        stop.set_by(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    screen = None if as_json or openmetrics is not None else _Screen(live=watch)
    with screen or nullcontext():
        needs_attention = has_looked = False
        while True:
            try:
                seen = observer.look()
                needs_attention = bool(seen.attention)
                if screen is not None:
                    screen.show(seen)
                elif openmetrics is not None:
                    from rear.diagnostics.openmetrics import as_text, write_file

                    write_file(openmetrics, as_text(seen))
                else:
                    print(json.dumps(seen.as_json(), ensure_ascii=True), flush=True)
                has_looked = True
            except BrokenPipeError:
                raise
            except (OSError, RearError, MemoryError) as error:
                # Who watches a base is not to be left alone when its server is restarted.
                if not (watch and has_looked):
                    raise
                needs_attention = True
                note(f"{told(error)}; it is tried again in {pause_seconds:g} s")
            if not watch or stop.wait(pause_seconds):
                break
    raise typer.Exit(ATTENTION if needs_attention else 0)


class _Screen:
    """For people: a page; while it is watched on a terminal, one that stays in place."""

    def __init__(self, *, live: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        from rear.cli.display.status_page import page

        self._page = page
        self._console = Console(highlight=False)
        is_live = live and self._console.is_terminal and not self._console.is_dumb_terminal
        # On the other screen of the terminal: what was there comes back, and the last page is printed below it. It is
        # drawn again a few times a second, so that it follows the size of the window.
        self._live = Live(console=self._console, screen=True, refresh_per_second=4) if is_live else None
        self._last: BaseStatus | None = None

    def __enter__(self) -> None:
        if self._live is not None:
            self._live.start()

    def __exit__(self, *exc_info: object) -> None:
        if self._live is not None:
            self._live.stop()
            if self._last is not None and exc_info[0] is None and sys.stdout.isatty():
                self._console.print(self._page(self._last))

    def show(self, seen: BaseStatus) -> None:
        self._last = seen
        if self._live is not None:
            self._live.update(self._page(seen))
        else:
            self._console.print(self._page(seen))
