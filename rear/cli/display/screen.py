"""Events as a live screen: who leads, how far it is, the archives and pairs at work, and what was found.

It takes the terminal's other screen, so that the one before comes back untouched when it ends, however the terminal
was resized meanwhile. A thread draws, a few times a second; whatever the terminal does, the work goes on.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final

from rear.cli.display.progress import Progress
from rear.cli.display.screen_parts import frame
from rear.cli.lenient_stream import LenientStream
from rear.core.threads import Bell, HelperThread
from rear.events import Event

if TYPE_CHECKING:
    from rich.text import Text

FIRST_SECONDS: Final = 0.4
"""What ends sooner leaves no flash of a screen behind."""
_PERIOD_SECONDS: Final = 0.15
_LOCK_SECONDS: Final = 0.1


class Screen:
    """Draws a `Progress` until it is closed; `lock` is held while that changes."""

    def __init__(self, progress: Progress, stream: LenientStream) -> None:
        from rich.text import Text

        self.lock = threading.Lock()
        self._progress = progress
        self._console = stream.console(force_terminal=True)
        self._frame = Text()
        self._seen: tuple[int, int, Text] | None = None
        self._stop = Bell()
        self._thread: HelperThread | None = None
        self._pause_seconds = FIRST_SECONDS
        self.resume()

    def resume(self) -> None:
        """Begin to draw; also after `pause`."""
        # A new one of each: nothing is left in them of an exception that came as the last ones were ended.
        self._stop = Bell()
        self._thread = HelperThread(self._draw)
        self._thread.start("rear screen")

    def pause(self) -> None:
        """Give the terminal back as it was."""
        self._stop.ring()
        if self._thread is not None:
            self._thread.join()
        self._thread, self._pause_seconds = None, 0.0

    def show(self, event: Event) -> None:
        """Do nothing more: the thread draws what the event has changed."""

    def warn(self, text: str) -> None:
        """Do nothing more: it is among the findings."""

    close = pause

    def _draw(self) -> None:
        from rich.control import Control
        from rich.live import Live

        if self._stop.wait(self._pause_seconds):
            return
        self._seen = None
        with Live(
            console=self._console,
            get_renderable=lambda: self._frame,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as live:
            while True:
                if self._has_changed():
                    live.refresh()
                if self._stop.wait(_PERIOD_SECONDS):
                    break
            # For terminals that have no other screen: nothing of this one stays.
            self._console.control(Control.home(), Control.clear())

    def _has_changed(self) -> bool:
        """Make the next frame; return whether it looks different."""
        from rich.text import Text

        # Not without a limit: a signal handler may wait for this thread while it holds the lock.
        if not self.lock.acquire(timeout=_LOCK_SECONDS):
            return False
        try:
            width, height = self._console.size = self._size()
            lines = frame(
                self._progress, time.monotonic(), width=width, height=height, is_ascii=self._console.options.ascii_only
            )
        finally:
            self.lock.release()
        self._frame = Text("\n", no_wrap=True, overflow="crop").join(lines)
        seen, self._seen = self._seen, (width, height, self._frame)
        return seen != self._seen

    def _size(self) -> tuple[int, int]:
        """Return the terminal's size now; COLUMNS and LINES can make it smaller, not larger."""
        try:
            width, height = os.get_terminal_size(self._console.file.fileno())
        except OSError:
            width, height = 0, 0
        wanted = [os.environ.get(name, "") for name in ("COLUMNS", "LINES")]
        columns, lines = (int(text) if text.isdecimal() and int(text) > 0 else 1 << 16 for text in wanted)
        return min(width or 80, columns), min(height or 24, lines)
