"""Members until they are proven: kept in memory, or in their spool files, for a second try elsewhere; and their proof.

A member is *proven* when a sync that began after it has succeeded on a pair that was still this worker's own. One whose
pair has failed or was lost is *homeless* until it is written to another one.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from rear.core.log import LaterLog
from rear.core.storage import is_failure
from rear.errors import RearError
from rear.worker.pair_writer import Item, PairWriter

if TYPE_CHECKING:
    from rear.worker.pairs import Pairs

RETAINED_LIMIT_BYTES = 32 << 20
"""More than this is not kept for a second try: the append that exceeds it waits for a sync."""
HURRY_BYTES = RETAINED_LIMIT_BYTES // 2
"""With so much kept the background thread syncs at once, so that appends seldom have to wait."""
_ITEM_BYTES = 1 << 10
"""What a kept member takes besides its bytes, about: a million empty files must not fill the memory."""


class Retained:
    """The members of one worker that are not proven yet, in the order in which they were written.

    Who calls holds the worker's lock.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.bytes = 0
        #: Proven since they were last asked for, with a source that waits for it.
        self._stable: deque[Item] = deque()

    def forget_parent(self) -> None:
        """In a child of ``fork``: keep nothing; in place, as `Pairs.forget_parent`."""
        self.items, self.bytes, self._stable = [], 0, deque()

    def keep(self, item: Item) -> None:
        """Keep a member that has just been written."""
        self.items.append(item)
        self.bytes += item.payload.compressed_size + _ITEM_BYTES

    def keep_again(self, items: list[Item]) -> None:
        """Keep members that were proven in a pair which turned out to be lost; they are homeless."""
        kept = {item.sequence for item in self.items}
        for item in items:
            if item.sequence not in kept:
                self.keep(item)
        self.items.sort(key=lambda item: item.sequence)

    def let_go(self, item: Item) -> None:
        """Keep a member no longer, whatever has become of it."""
        if item in self.items:
            self.items.remove(item)
            self.bytes -= item.payload.compressed_size + _ITEM_BYTES

    def of(self, pair: PairWriter | None) -> list[Item]:
        """Return the members that stand in a pair; of ``None`` those that are homeless."""
        return [item for item in self.items if item.pair is pair]

    def make_homeless(self, pair: PairWriter) -> None:
        """Let the members of a pair that cannot be relied on any more need another place."""
        for item in self.items:
            if item.pair is pair:
                item.pair = None

    def prove(self, pair: PairWriter, items: list[Item]) -> None:
        """Let go of those of the members that stand in a pair: a sync that began after them has succeeded."""
        proven = [item for item in items if item.pair is pair]
        if not proven:
            return
        pair.needed = True
        for item in proven:
            # An exception may have come in the middle of this before.
            if not item.proven:
                if item.on_stable is not None:
                    self._stable.append(item)
                item.proven = True
        count = len(proven)
        freed = sum(item.payload.compressed_size for item in proven) + count * _ITEM_BYTES
        if len(self.items) >= count and self.items[0] is proven[0] and self.items[count - 1] is proven[-1]:
            # Both are in the order of the members: these are the first ones, as nearly always.
            self.items = self.items[count:]
        else:
            sequences = {item.sequence for item in proven}
            self.items = [item for item in self.items if item.sequence not in sequences]
        self.bytes -= freed
        for item in proven:
            if item.on_stable is None and item.payload.data is None:
                item.payload.close()

    def take_stable(self) -> Item | None:
        """Return the next one of those that are proven, and have a source that waits for it."""
        return self._stable.popleft() if self._stable else None


class Prover:
    """Brings the members of one worker to stable storage, and ends the pairs that have rolled over.

    One sync, close or read-back at a time, by `lock`, which is taken before the worker's lock; that one is held for
    moments only.
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
        while True:
            with self._worker_lock:
                unproven = [item for item in self._retained.items if item.sequence <= sequence]
            if not unproven:
                return
            # Members that lost their pair, then the current pair.
            self.sync_until(next((item for item in unproven if item.pair is None), unproven[-1]))

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

    def _sync_pair(self, pair: PairWriter, *, is_last: bool = False) -> None:
        """Sync a pair and prove what it held before; a pair that fails or is no longer ours is replaced.

        At the last time it is looked whether it is ours in any case: a scavenger may have taken this process for dead.

        Raises:
            OSError: its members found no place in a new pair either.
        """
        with self._worker_lock:
            items = self._retained.of(pair)
        try:
            pair.sync()
        except OSError as error:
            if not is_failure(error):
                raise
            with self._worker_lock:
                # Otherwise another thread has found it lost meanwhile, and has seen to its members.
                if not pair.released:
                    self._pairs.give_up(pair, error)
                    self._pairs.renew()
            return
        with self._worker_lock:
            if (is_last or pair.is_doubtful()) and not pair.confirm():
                self._pairs.lose(pair)
                self._pairs.renew()
            self._retained.prove(pair, items)

    def _tell_stable(self) -> None:
        """Read back what sources were waiting for, and tell them; before the pair is closed."""
        # One by one: after an exception that a signal handler raised, the others are told after the next sync.
        while (item := self._retained.take_stable()) is not None:
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
            if not isinstance(error, RearError) and not is_failure(error):
                # What a signal handler raised is for whoever called.
                raise

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
            self._sync_pair(pair, is_last=True)
            self._tell_stable()
            with self._worker_lock:
                if not self._pairs.is_rolling(pair):
                    continue
            try:
                pair.close(reason)
            except OSError as error:
                if not is_failure(error):
                    raise
                # All its members are proven; a scavenger takes it over once this process is gone.
                self._log.warn("%s stays unfinished until this process has ended: %s", pair.path, error)
                pair.release()
            with self._worker_lock:
                self._pairs.forget_rolling(pair)
