"""Threads, and waiting for them, that an exception at any moment leaves in good order.

A signal handler that raises, or `PyThreadState_SetAsyncExc`, may end any line of Python. `threading.Condition` takes
and gives back its lock in such lines, and with it `Event`, `Semaphore`, `queue.Queue` and `Thread.start`: the lock
stays taken, and whoever comes next waits for ever. ``with lock:`` of a `threading.Lock` or `RLock` is one step of the
interpreter, so nothing else is used here.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable


class Bell:
    """Wakes one thread that waits, or that is about to wait."""

    def __init__(self) -> None:
        #: Free once it was rung.
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake it; by any thread, in a signal handler and a finalizer too."""
        try:
            self._silence.release()
        except RuntimeError:
            # It was rung already.
            pass

    def wait(self, seconds: float | None = None) -> bool:
        """Return when it was rung since the last time, or that long has passed, and whether it was rung."""
        return self._silence.acquire(timeout=-1 if seconds is None else min(max(seconds, 0.0), threading.TIMEOUT_MAX))


class _Thread(threading.Thread):
    # As it was before `rear.core.context` wrapped it: that one asks for the running thread, which has no object here.
    start = threading.Thread.start


class HelperThread:
    """A daemon thread in which no signal handler runs: ``work`` is called once, and has to see to its own errors."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        #: It was started, or is about to be.
        self.has_started = False
        #: Held by the thread while it runs: of two that were started, one runs.
        self._running = threading.Lock()
        self._is_over = False

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._running.locked()

    def start(self, name: str) -> None:
        """Start it, the first time; where no thread can be made, at the end of the interpreter for one, the next time.

        After an exception that came in the middle of this it can be called again.
        """
        if self.has_started:
            return
        try:
            self.has_started = True
            # `Thread.start` waits for the new thread by a condition: not in this thread, where an exception may come.
            _thread.start_new_thread(self._start, (name,))
        except BaseException as error:
            self.has_started = False
            if not isinstance(error, RuntimeError):
                raise

    def _start(self, name: str) -> None:
        try:
            _Thread(target=self._run, name=name, daemon=True).start()
        except (RuntimeError, MemoryError):
            self.has_started = False

    def _run(self) -> None:
        if self._running.acquire(blocking=False):
            try:
                if not self._is_over:
                    self._work()
            finally:
                self._running.release()

    def join(self) -> None:
        """Return when it has ended and never runs again; what ends it has to be told before."""
        self._is_over = True
        with self._running:
            self.has_started = False
