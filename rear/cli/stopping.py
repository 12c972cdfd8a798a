"""A request to stop that a signal handler may make."""

from __future__ import annotations

from queue import Empty, SimpleQueue


class StopRequest:
    """Like a `threading.Event`, whose ``set`` may wait for ever for the ``wait`` that a signal has interrupted."""

    def __init__(self) -> None:
        self._is_set = False
        # The one queue whose `put` may be called in a signal handler.
        self._queue: SimpleQueue[None] = SimpleQueue()

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
