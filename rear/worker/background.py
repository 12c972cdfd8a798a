"""The background thread of a worker: it syncs, beats, rolls over and answers flush requests, each when it is time."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Final

from rear.core.log import tell_error
from rear.core.storage import Storage

if TYPE_CHECKING:
    from rear.worker.worker import Worker

LONGEST_WAIT_SECONDS: Final = 3600.0


class BackgroundThread:
    """A thread that looks after one worker; it starts with the first member."""

    def __init__(self, worker: Worker, *, storage: Storage) -> None:
        #: It is to end, with the turn that it is in.
        self.stopping = False
        #: Much is kept in memory: it is to sync at once.
        self.hurries = False
        self._worker = worker
        self._storage = storage
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._beaten = self._synced = 0.0
        self._answered_flushes: set[str] = set()

    @property
    def has_started(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None

    @property
    def is_alive(self) -> bool:
        """Whether it is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, name: str) -> None:
        """Start it, the first time."""
        if self._thread is not None:
            return
        # Known before it starts, so that Ctrl-C in between cannot lead to a second one.
        self._thread = threading.Thread(target=self._work, name=f"rear {name}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            # The interpreter is shutting down: closing the worker does it all.
            self._thread = None

    def wake(self) -> None:
        """Have it look again at what there is to do."""
        self._wake.set()

    def hurry(self) -> None:
        """Have it sync at once."""
        self.hurries = True
        self._wake.set()

    def stop(self) -> None:
        """Return when it has ended."""
        self.stopping = True
        self._wake.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        self._worker.run_alone(self._run)

    def _run(self) -> None:
        worker, options = self._worker, self._worker.options
        self._beaten = self._synced = self._storage.uptime()
        while True:
            pair = worker.current_pair
            due = worker.next_due(pair, self._beaten, self._synced)
            self._wake.wait(None if due is None else max(0.0, min(due - self._storage.uptime(), LONGEST_WAIT_SECONDS)))
            self._wake.clear()
            if self.stopping:
                return
            try:
                now = self._storage.uptime()
                if pair is not None and now - max(self._beaten, pair.created) >= options.beat_seconds:
                    self._beaten = now
                    if worker.beat(pair):
                        self._answer_flushes()
                if not worker.tend(now):
                    self._wake.set()
                    continue
                worker.finish(functools.partial(self._takes_sync, now))
            except Exception as error:
                # Whatever it is: without this thread nothing would be synced, beaten or rolled over any more.
                message = "%s: %r; acknowledged members are kept and tried again"
                tell_error(message, worker.layout.base, error, with_traceback=not isinstance(error, OSError))
                self._wake.wait(min(options.sync_interval, LONGEST_WAIT_SECONDS))
            worker.log.tell()

    def _takes_sync(self, now: float) -> bool:
        if not self.hurries and now - self._synced < self._worker.options.sync_interval:
            return False
        self._synced = now
        # Before that sync begins: what comes while it is under way may be much again.
        self.hurries = False
        return True

    def _answer_flushes(self) -> None:
        requests = set(self._storage.names(self._worker.layout.flush_requests))
        if requests - self._answered_flushes:
            self._worker.roll_over()
        self._answered_flushes = requests
