"""Signals that ask to stop: at once, as Ctrl-C does, or as a request that is looked at now and then."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: all that Ctrl-C undoes and closes is undone and closed.

    Like Ctrl-C it is no error, so that nothing on the way takes it for one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Ended` when SIGTERM or SIGHUP comes, unless the process was told to ignore it (nohup), and
    `KeyboardInterrupt` for Ctrl-C, which ends the process at once before and after that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        # What is undone now takes its time; a second signal would only leave it to the next run.
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    interrupt = signal.getsignal(signal.SIGINT)
    try:
        for number in numbers:
            signal.signal(number, end)
        if interrupt not in (signal.SIG_IGN, None):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        if interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class StopRequest:
    """Like a `threading.Event`, whose ``set`` may wait for ever for the ``wait`` that a signal has interrupted."""

    def __init__(self) -> None:
        self._is_set = False
        # The one queue whose `put` may be called in a signal handler.
        self._queue: SimpleQueue[None] = SimpleQueue()

    def set_by(self, *numbers: int) -> None:
        """Have these signals ask to stop, from now on."""

        def ask(number: int, frame: FrameType | None) -> None:
            self.set()

        for number in numbers:
            signal.signal(number, ask)

    def set(self) -> None:
        """Ask to stop; by any thread, in a signal handler too."""
        self._is_set = True
        self._queue.put(None)

    def is_set(self) -> bool:
        """Whether somebody has asked."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait that long, or until somebody asks; return whether somebody has."""
        if not self._is_set:
            try:
                self._queue.get(timeout=seconds)
            except Empty:
                pass
        return self._is_set
