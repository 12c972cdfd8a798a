"""Events as lines on standard error: for pipes, logs, and whoever prefers them to a screen."""

from __future__ import annotations

from collections import Counter
from typing import Final

from rear.cli.display.progress import Progress
from rear.cli.display.wording import describe, style_of
from rear.cli.lenient_stream import LenientStream
from rear.core.problems import Problem
from rear.core.text import printable, seconds_text, shown, size_text
from rear.events import Collected, Event

LINES_OF_A_KIND: Final = 20
"""After this many lines of one kind the rest are counted; the JSON report names them all."""
REMINDER_SECONDS: Final = 30.0
"""So often a line tells how far it is."""


class Lines:
    """Prints events, if it ``is_quiet`` those that need attention; Rich leaves colours out where nobody sees them."""

    def __init__(self, progress: Progress, stream: LenientStream, *, is_quiet: bool) -> None:
        self._progress = progress
        self._is_quiet = is_quiet
        self._console = stream.console(soft_wrap=True)
        self._shown: Counter[str] = Counter()
        self._reminded = progress.started

    def show(self, event: Event) -> None:
        """Print an event, if it is worth a line."""
        if self._progress.last - self._reminded >= REMINDER_SECONDS:
            self._reminded = self._progress.last
            if not self._is_quiet:
                self._print(progress_line(self._progress, self._progress.last), "dim")
        if isinstance(event, Collected) and not self._progress.is_dry_run:
            return
        text = describe(event)
        if not text or (self._is_quiet and event.severity == "info"):
            return
        kind = event.code if isinstance(event, Problem) else event.kind
        self._shown[kind] += 1
        if self._shown[kind] <= LINES_OF_A_KIND:
            self._print(text, style_of(event))

    def warn(self, text: str) -> None:
        """Print what the library told its program's log."""
        self._print_plain(f"warning: {printable(text)}", "yellow")

    def close(self) -> None:
        """Say how many lines were left out."""
        for kind, count in self._shown.items():
            if count > LINES_OF_A_KIND:
                self._print(f"… and {count - LINES_OF_A_KIND:,} more of kind {kind}", "dim")

    def _print(self, text: str, style: str) -> None:
        self._print_plain(shown(text), style)

    def _print_plain(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style))


def progress_line(progress: Progress, now: float) -> str:
    """Return how far it is, in one line without colours."""
    parts = []
    if progress.known_bytes:
        about = "about " if progress.is_guess else ""
        parts.append(f"{size_text(progress.done_bytes)} of {about}{size_text(progress.expected_bytes)}")
    elif progress.phase_total:
        parts.append(f"{progress.phase_done:,} of {progress.phase_total:,}")
    rate, left = progress.bytes_a_second, progress.seconds_left(now)
    if rate:
        parts.append(f"{size_text(round(rate))}/s")
    if left is not None:
        parts.append(f"{seconds_text(left)} left")
    subject = f" {progress.phase_subject}" if progress.phase_subject else ""
    return f"{progress.phase or 'waiting'}{subject}: {', '.join(parts)}".rstrip(": ")
