"""The pairs of one worker: the one that takes the next member, those that have rolled over, those that have failed.

What is kept because it is not proven finds its way to another pair here. Who calls holds the worker's lock.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from rear.core.log import LaterLog
from rear.errors import SourceError
from rear.worker.failed_pairs import FailedPairs
from rear.worker.pair_maker import PairMaker
from rear.worker.pair_writer import Item, PairWriter
from rear.worker.retained import Retained


class Pairs:
    """Which pair takes a member.

    Args:
        maker: makes them.
        retained: members that are kept until they are proven.
        log: told of what fails.
        on_begin: called when there is a new pair to be looked after.
        on_end: called when there is one to be closed.
    """

    def __init__(
        self,
        maker: PairMaker,
        retained: Retained,
        log: LaterLog,
        *,
        on_begin: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.current: PairWriter | None = None
        #: To be synced and closed, and why.
        self.rolling: list[tuple[PairWriter, str]] = []
        self.failed = FailedPairs(log)
        self._maker = maker
        self._retained = retained
        self._log = log
        self._on_begin = on_begin
        self._on_end = on_end

    def __iter__(self) -> Iterator[PairWriter]:
        """All of them."""
        if self.current is not None:
            yield self.current
        yield from self.failed.pairs
        for pair, _ in self.rolling:
            yield pair

    def place(self, item: Item) -> None:
        """Append a member to the current pair, or else to a new one.

        Raises:
            OSError: neither took it.
            SourceError: its source changed meanwhile.
        """
        if self.current is not None:
            try:
                self.current.append(item)
                return
            except OSError as error:
                self.give_up(self.current, error, item)
        self.renew(item)

    def renew(self, item: Item | None = None) -> None:
        """Begin a new pair with all that has no place, and ``item``.

        Raises:
            OSError: that failed as well. What was acknowledged stays kept, and is tried again with the next member.
        """
        homeless = self._retained.of(None)
        if item is None and not homeless:
            self.failed.settle([])
            return
        self.roll_over("rotation")
        repeated: list[Item] = []
        tried = [*homeless, *([item] if item and self.failed.pairs else [])]
        first = min((one.sequence for one in tried), default=None)
        # Current from now on, so that it is beaten while its first member, perhaps of gigabytes, is written.
        pair = self.current = self._maker.make(PairWriter, first)
        try:
            self._on_begin()
            repeated += (kept for kept in homeless if self._repeat(pair, kept))
            if repeated:
                pair.sync()
                if not pair.is_owned():
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(pair.path))
            self.failed.settle(repeated)
            self._retained.prove(pair, repeated)
            if item is not None:
                pair.append(item)
        except OSError as error:
            self.give_up(pair, error, item)
            if not any(kept.proven for kept in repeated):
                self.failed.keep_attempt(pair)
            raise

    def _repeat(self, pair: PairWriter, kept: Item) -> bool:
        try:
            pair.append(kept)
        except SourceError as error:
            # A pickup whose source has changed since.
            self._log.tell_error("%s/%s could not be written again: %s", *kept.target, error)
            self.failed.keep_only_copy()
            self._retained.let_go(kept)
            kept.payload.close()
            return False
        return True

    def give_up(self, pair: PairWriter, error: OSError, item: Item | None = None) -> None:
        """Never again write a member to this pair or sync it: its members that are not proven need another place."""
        self._log.warn("%s: %s; its members that are not yet synced go to a new temp archive", pair.path, error)
        self._abandon(pair)
        if pair.members == 0:
            pair.remove()
        else:
            self.failed.add(pair, item)

    def lose(self, pair: PairWriter) -> None:
        """Leave a pair to the scavenger that took it while this process was paused, and write nothing to it."""
        self._log.warn("%s was taken over while this process was paused; going on in a new temp archive", pair.path)
        self._abandon(pair)
        pair.release()

    def _abandon(self, pair: PairWriter) -> None:
        if pair is self.current:
            self.current = None
        self.forget_rolling(pair)
        self._retained.make_homeless(pair)

    def roll_over(self, reason: str) -> None:
        """Let the current pair be closed."""
        if self.current is not None:
            self.rolling.append((self.current, reason))
            self.current = None
            self._on_end()

    def is_rolling(self, pair: PairWriter) -> bool:
        """Whether a pair has rolled over, and is still to be closed."""
        return any(rolling is pair for rolling, _ in self.rolling)

    def forget_rolling(self, pair: PairWriter) -> None:
        """Forget a pair that is closed, or of no use any more."""
        self.rolling = [(rolling, reason) for rolling, reason in self.rolling if rolling is not pair]
