"""How far a command has come, on standard error: only on a terminal, and only of what takes longer than a moment."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_QUIET_SECONDS = 0.5
_BETWEEN_SECONDS = 0.1


class ByteProgress:
    """A bar of bytes that appears after half a second, asks then how many there will be, and leaves nothing behind."""

    def __init__(self, title: str, total_bytes: Callable[[], int]) -> None:
        self._title = title
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._next = time.monotonic() + _QUIET_SECONDS
        self._bar: tuple[Progress, TaskID] | None = None
        self._wanted = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def advance(self, count: int) -> None:
        """So many bytes more are done."""
        self._done_bytes += count
        if not self._wanted or time.monotonic() < self._next:
            return
        if self._bar is None:
            self._bar = self._show()
        progress, task = self._bar
        progress.update(task, completed=self._done_bytes)
        self._next = time.monotonic() + _BETWEEN_SECONDS

    def _show(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        task = progress.add_task(self._title, total=self._total_bytes())
        progress.start()
        return progress, task
