"""The background thread of a worker: it syncs, beats, rolls over and answers flush requests, each when it is time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from rear.core.storage import Storage
from rear.core.threads import Bell, HelperThread

if TYPE_CHECKING:
    from rear.worker.pair_writer import PairWriter
    from rear.worker.worker import Worker

LONGEST_WAIT_SECONDS: Final = 3600.0


class BackgroundThread:
    """A thread that looks after one worker; it starts with the first member, and ends only when it is stopped."""

    def __init__(self, worker: Worker, *, storage: Storage) -> None:
        #: It is to end, with the turn that it is in.
        self.stopping = False
        #: Much is kept in memory: it is to sync at once.
        self.hurries = False
        self._worker = worker
        self._storage = storage
        self._name = ""
        self._thread = HelperThread(self._work)
        self._bell = Bell()
        self._beaten = self._synced = 0.0
        self._answered_flushes: set[str] = set()
        self._identity = 0

    @property
    def is_current(self) -> bool:
        """Whether this is the thread that asks."""
        return self._identity == threading.get_ident()

    @property
    def has_started(self) -> bool:
        """Whether there is a thread."""
        return self._thread.has_started

    @property
    def is_alive(self) -> bool:
        """Whether it is running."""
        return self._thread.is_running

    def start(self, name: str) -> None:
        """Start it, the first time."""
        self._name = name
        self._thread.start(f"rear {name}")

    def wake(self) -> None:
        """Have it look again at what there is to do."""
        if self._name and not (self._thread.has_started or self.stopping):
            # There were too many threads when it should have started.
            self._thread.start(f"rear {self._name}")
        self._bell.ring()

    def hurry(self) -> None:
        """Have it sync at once."""
        self.hurries = True
        self.wake()

    def stop(self) -> None:
        """Return when it has ended."""
        self.stopping = True
        self._bell.ring()
        self._thread.join()

    def _work(self) -> None:
        self._identity = threading.get_ident()
        try:
            while not self.stopping:
                self._try(self._run)
            self._worker.log.tell()
        finally:
            # The next thread may get the same number.
            self._identity = 0

    def _run(self) -> None:
        worker = self._worker
        self._beaten = self._synced = self._storage.uptime()
        # Looked at each time before it waits: an error's pause may have taken the ring.
        while not self.stopping:
            pair = worker.current_pair
            due = worker.next_due(pair, self._beaten, self._synced)
            self._bell.wait(None if due is None else min(due - self._storage.uptime(), LONGEST_WAIT_SECONDS))
            self._take_turn(pair)

    def _take_turn(self, pair: PairWriter | None) -> None:
        if self.stopping:
            return
        now = self._storage.uptime()
        # Each by itself: one that fails must not keep the others from being done.
        self._try(functools.partial(self._beat, pair, now))
        self._try(functools.partial(self._tend, now))
        self._worker.log.tell()

    def _beat(self, pair: PairWriter | None, now: float) -> None:
        if pair is None or now - max(self._beaten, pair.created) < self._worker.options.beat_seconds:
            return
        self._beaten = now
        if self._worker.beat(pair):
            self._answer_flushes()

    def _tend(self, now: float) -> None:
        if self._worker.tend(now):
            self._worker.finish(functools.partial(self._takes_sync, now))
        else:
            self._bell.ring()

    def _try(self, step: Callable[[], None]) -> None:
        """Do a step; whatever goes wrong is told, at the latest when the worker is closed, and tried again later."""
        try:
            step()
        except BaseException as error:
            # Without memory even that fails: nothing would be synced, beaten or rolled over if this thread ended.
            with suppress(BaseException):
                self._worker.log.tell_error(
                    "%s: %r; acknowledged members are kept and tried again", self._worker.layout.base, error,
                    traceback_of=None if isinstance(error, OSError) else error,
                )  # fmt: skip
            with suppress(BaseException):
                self._bell.wait(min(self._worker.options.sync_interval, self._worker.options.beat_seconds))

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
