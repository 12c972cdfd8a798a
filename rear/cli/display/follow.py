"""Events for people and programs: a live screen, lines, or JSON, and a summary at the end.

Standard error has what goes on while it goes on; standard output has the result: the summary, or with ``--json`` all
events. Whatever becomes of either, the work goes on.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Protocol

from rear.cli.display.json_lines import JsonLines
from rear.cli.display.lines import Lines
from rear.cli.display.progress import Progress
from rear.cli.display.screen import Screen
from rear.cli.display.summary import summary_lines
from rear.cli.exit import note
from rear.cli.lenient_stream import LenientStream
from rear.core.text import shown
from rear.events import Event


class Display(Protocol):
    """Shows events until it is closed."""

    def show(self, event: Event) -> None:
        """Show an event that the progress has taken."""

    def warn(self, text: str) -> None:
        """Show what the library told its program's log."""

    def close(self) -> None:
        """Leave the terminal clean."""


def show(events: Iterable[Event], style: str) -> bool:
    """Show events as `follow` does, without a summary; return whether something was lost, or left as it is."""
    return follow(events, style, command="scavenge", subject="", has_summary=False).needs_attention


def follow(
    events: Iterable[Event],
    style: str,
    *,
    command: str,
    subject: str,
    dry_run: bool = False,
    sums_up: bool = True,
    has_summary: bool = True,
) -> Progress:
    """Show events as they come, and a summary; return what they add up to.

    Args:
        events: of one scavenge, check or sweep.
        style: ``live`` (a screen where there is a terminal, else as plain), ``plain`` (lines), ``quiet`` (only what
            needs attention) or ``json`` (all, on standard output).
        command: ``scavenge``, ``fsck`` or ``sweep``.
        subject: the base or archive, as the user named it.
        dry_run: nothing is changed.
        sums_up: print a summary even when nothing was done or found.
        has_summary: print one at all; not where the command sums up in words of its own.

    Raises:
        BrokenPipeError: of ``json``, nobody reads it any more.
        Exception: what the events raise, after the terminal was left clean, and what was done so far was said.
    """
    progress = Progress(command, subject, time.monotonic(), dry_run=dry_run)
    stream = LenientStream(sys.stderr)
    display: Display
    lock: AbstractContextManager[object] = nullcontext()
    if style == "json":
        display = JsonLines(progress)
    elif style == "live" and _is_screen(stream):
        display = Screen(progress, stream)
        lock = display.lock
    else:
        display = Lines(progress, stream, is_quiet=style == "quiet")
    try:
        with _log_to(display, progress, lock), _suspended_by_ctrl_z(display):
            for event in events:
                with lock:
                    progress.take(event, time.monotonic())
                display.show(event)
    except KeyboardInterrupt:
        progress.failure = "interrupted"
        raise
    except BrokenPipeError:
        raise
    except Exception as error:
        progress.failure, progress.error = "failed", str(error)
        raise
    finally:
        progress.last = time.monotonic()
        display.close()
        if has_summary and style in ("live", "plain") and (sums_up or _did_something(progress)):
            _print_summary(progress, lists_all=isinstance(display, Screen))
    return progress


def _is_screen(stream: LenientStream) -> bool:
    """Whether a live screen can be drawn."""
    is_able = os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
    return stream.isatty() and is_able and os.environ.get("TTY_COMPATIBLE") != "0"


def _did_something(progress: Progress) -> bool:
    return bool(progress.merged_members or progress.found)


@contextmanager
def _log_to(display: Display, progress: Progress, lock: AbstractContextManager[object]) -> Iterator[None]:
    """Show warnings of the library, which would else be written in the middle of the screen."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with lock:
                progress.warn(record.getMessage())
            display.warn(record.getMessage())

    logger, handler = logging.getLogger("rear"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _suspended_by_ctrl_z(display: Display) -> Iterator[None]:
    """Give the terminal back while the process is stopped by Ctrl-Z."""
    is_main = threading.current_thread() is threading.main_thread()
    if not isinstance(display, Screen) or not is_main or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
        yield
        return

    def suspend(number: int, frame: FrameType | None) -> None:
        display.pause()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, suspend)
        display.resume()

    signal.signal(signal.SIGTSTP, suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)


def _print_summary(progress: Progress, *, lists_all: bool) -> None:
    from rich.text import Text

    if progress.failure is not None and not _did_something(progress):
        return
    stream = LenientStream(sys.stdout)
    console = stream.console(soft_wrap=True)
    lines = list(summary_lines(progress, lists_all=lists_all))
    width = max((len(line.head) for line in lines), default=0)
    for number, line in enumerate(lines):
        margin = f"  {line.head:{width}}  " if number else ""
        console.print(Text(f"{margin}{shown(line.text)}", style=line.style))
    stream.flush()
    if isinstance(stream.failure, OSError) and stream.failure.errno != errno.EPIPE:
        # The work is done, and so it is no failure; but whoever wanted the summary has to know that there was one.
        note(f"the summary did not get out: standard output: {stream.failure.strerror}")
