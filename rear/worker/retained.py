"""Members that are kept until they are proven: in memory, or in their spool files, for a second try elsewhere.

A member is *proven* when a sync that began after it has succeeded on a pair that was still this worker's own. One whose
pair has failed or was lost is *homeless* until it is written to another one. Who calls holds the worker's lock.
"""

from __future__ import annotations

from rear.worker.pair_writer import Item, PairWriter

RETAINED_LIMIT_BYTES = 32 << 20
"""More than this is not kept for a second try: the append that exceeds it waits for a sync."""
HURRY_BYTES = RETAINED_LIMIT_BYTES // 2
"""With so much kept the background thread syncs at once, so that appends seldom have to wait."""
_ITEM_BYTES = 1 << 10
"""What a kept member takes besides its bytes, about: a million empty files must not fill the memory."""


class Retained:
    """The members of one worker that are not proven yet, in the order in which they were written."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.bytes = 0
        #: Proven since they were last asked for, with a source that waits for it.
        self._stable: list[Item] = []

    def keep(self, item: Item) -> None:
        """Keep a member that has just been written."""
        self.items.append(item)
        self.bytes += item.payload.compressed_size + _ITEM_BYTES

    def let_go(self, item: Item) -> None:
        """Keep a member no longer, whatever has become of it."""
        if item in self.items:
            self.items.remove(item)
            self.bytes -= item.payload.compressed_size + _ITEM_BYTES

    def of(self, pair: PairWriter | None) -> list[Item]:
        """Return the members that stand in a pair; of ``None`` those that are homeless."""
        return [item for item in self.items if item.pair is pair]

    def up_to(self, sequence: int) -> list[Item]:
        """Return the members with a number that is not greater."""
        return [item for item in self.items if item.sequence <= sequence]

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
        count = len(proven)
        if len(self.items) >= count and self.items[0] is proven[0] and self.items[count - 1] is proven[-1]:
            # Both are in the order of the members: these are the first ones, as nearly always.
            self.items = self.items[count:]
        else:
            sequences = {item.sequence for item in proven}
            self.items = [item for item in self.items if item.sequence not in sequences]
        pair.needed = True
        for item in proven:
            item.proven = True
            payload = item.payload
            self.bytes -= payload.compressed_size + _ITEM_BYTES
            if item.on_stable is not None:
                self._stable.append(item)
            elif payload.data is None:
                payload.close()

    def take_stable(self) -> list[Item]:
        """Return what has been proven since the last call, and has a source that waits for it."""
        stable, self._stable = self._stable, []
        return stable
