"""Pairs that took an error, which stay until what they alone held is proven elsewhere.

What such a pair says after a failed sync cannot be relied on; the members that were proven in it before that can. Who
calls holds the worker's lock.
"""

from __future__ import annotations

import contextlib

from rear.core.log import LaterLog
from rear.worker.pair_writer import Item, PairWriter


class FailedPairs:
    """The failed pairs of one worker.

    Args:
        log: told of those that cannot be ended now.
    """

    def __init__(self, log: LaterLog) -> None:
        self.pairs: list[PairWriter] = []
        #: The last one that held mere repetitions.
        self._attempt: PairWriter | None = None
        self._log = log

    def add(self, pair: PairWriter, item: Item | None) -> None:
        """Keep a pair that has failed, with ``item`` if that was the member that it took then."""
        if item is not None:
            with contextlib.suppress(OSError):
                # Without this record a scavenger finds the bytes torn, or the same member in a later pair.
                pair.abort([item.sequence])
        self.pairs.append(pair)

    def keep_attempt(self, pair: PairWriter) -> None:
        """Keep one failed pair of mere repetitions, not one for each try: memory has them all too."""
        if pair not in self.pairs:
            return
        if self._attempt in self.pairs and not self._attempt.holds_only_copy:
            self.pairs.remove(self._attempt)
            self._attempt.remove()
        self._attempt = pair

    def keep_only_copy(self) -> None:
        """Remember that a member cannot be written again: its copy in one of them is all there is, and stays valid."""
        for pair in self.pairs:
            pair.needed = pair.holds_only_copy = True

    def settle(self, repeated: list[Item]) -> None:
        """Close them: their proven members count, those that were repeated elsewhere do not."""
        failed, self.pairs = self.pairs, []
        for pair in failed:
            if not pair.needed:
                # What it held is proven elsewhere, and what it says after a failed sync cannot be relied on.
                pair.remove()
                continue
            try:
                if not pair.is_owned():
                    # Nobody has beaten it since it failed. Who took it knows all that this could tell.
                    pair.release()
                    continue
                if not pair.holds_only_copy:
                    pair.cut_back()
                pair.abort([item.sequence for item in repeated])
                pair.close("poisoned")
            except OSError as error:
                self._log.warn("%s cannot be ended now: %s", pair.path, error)
                self.pairs.append(pair)
