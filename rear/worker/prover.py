"""Bringing members to stable storage: syncs of pairs, what is proven by them, and the end of pairs that rolled over.

One sync, close or read-back at a time, by `Prover.lock`, which is taken before the worker's lock; that one is held for
moments only.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

from rear.core.log import LaterLog
from rear.errors import RearError
from rear.worker.pair_writer import Item, PairWriter
from rear.worker.pairs import Pairs
from rear.worker.retained import Retained


class Prover:
    """Proves the members of one worker.

    Args:
        lock: the worker's.
        pairs: where members are.
        retained: members that are not proven yet.
        log: told of what fails.
    """

    def __init__(self, lock: AbstractContextManager[bool], pairs: Pairs, retained: Retained, log: LaterLog) -> None:
        self.lock = threading.RLock()
        self._worker_lock = lock
        self._pairs = pairs
        self._retained = retained
        self._log = log

    def sync_up_to(self, sequence: int) -> None:
        """Return when all members up to a number are proven.

        Raises:
            OSError: that is not possible now.
        """
        while unproven := self._kept_up_to(sequence):
            # Members that lost their pair, then the current pair.
            self.sync_until(next((item for item in unproven if item.pair is None), unproven[-1]))

    def _kept_up_to(self, sequence: int) -> list[Item]:
        with self._worker_lock:
            return self._retained.up_to(sequence)

    def sync_last(self) -> None:
        """Return when the last member of now is proven."""
        with self._worker_lock:
            last = self._retained.items[-1] if self._retained.items else None
        if last is not None:
            self.sync_until(last)

    def sync_until(self, item: Item) -> None:
        """Return when a member is proven; many threads share one sync."""
        with self.lock:
            # Another thread may give it up meanwhile.
            if not item.proven and (pair := item.pair) is not None:
                self._sync_pair(pair)
            with self._worker_lock:
                if not item.proven and item.pair is None:
                    self._pairs.renew()
            self._tell_stable()

    def _sync_pair(self, pair: PairWriter) -> None:
        """Sync a pair and prove what it held before; a pair that fails or is no longer ours is replaced.

        Raises:
            OSError: its members found no place in a new pair either.
        """
        with self._worker_lock:
            items = self._retained.of(pair)
        try:
            pair.sync()
        except OSError as error:
            with self._worker_lock:
                # Otherwise another thread has found it lost meanwhile, and has seen to its members.
                if not pair.released:
                    self._pairs.give_up(pair, error)
                    self._pairs.renew()
            return
        with self._worker_lock:
            if pair.is_doubtful() and not pair.confirm():
                self._pairs.lose(pair)
                self._pairs.renew()
            self._retained.prove(pair, items)

    def _tell_stable(self) -> None:
        """Read back what sources were waiting for, and tell them; before the pair is closed."""
        with self._worker_lock:
            stable = self._retained.take_stable()
        for item in stable:
            self.tell(item)
            item.payload.close()

    def tell(self, item: Item) -> None:
        """Read a member back, and tell its source that it is on stable storage."""
        try:
            if item.pair is None or item.on_stable is None or not item.pair.holds(item):
                raise RearError("the archived bytes are not those that were read")
            item.on_stable()
        except Exception as error:
            self._log.tell_error("%s stays in place: %s", item.source, error)

    def finish_rolling(self) -> None:
        """Sync and close pairs that have rolled over.

        Raises:
            OSError: members of one of them found no place.
        """
        while True:
            with self._worker_lock:
                if not self._pairs.rolling:
                    return
                pair, reason = self._pairs.rolling[0]
            self._sync_pair(pair)
            self._tell_stable()
            with self._worker_lock:
                if not self._pairs.is_rolling(pair):
                    continue
            try:
                pair.close(reason)
            except OSError as error:
                # All its members are proven; a scavenger takes it over once this process is gone.
                self._log.warn("%s stays unfinished until this process has ended: %s", pair.path, error)
                pair.release()
            with self._worker_lock:
                self._pairs.forget_rolling(pair)
