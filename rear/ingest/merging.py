"""Scavenges that belong to something larger: what they have to say of themselves is left out."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rear.core.layout import Layout
from rear.core.storage import Storage
from rear.events import Event, Finished, LeftAlone, NothingYet, Refused, Started
from rear.scavenger.options import ScavengeOptions
from rear.scavenger.scavenge import scavenge


class Merging:
    """Scavenges one base, as often as that is asked for.

    Args:
        layout: the base.
        options: ``verify``, ``on_conflict``, ``max_size`` and ``max_members`` of each scavenge.
        storage: the file system.
    """

    def __init__(self, layout: Layout, options: ScavengeOptions, *, storage: Storage) -> None:
        self._layout = layout
        self._options = options
        self._storage = storage
        self._told: set[Event] = set()

    def events(self) -> Iterator[Event]:
        """Scavenge; say nothing of begin and end, and what is refused only once.

        Raises:
            NotLeaderError: another scavenger leads.
        """
        if not os.path.isdir(self._layout.state):
            return
        options = self._options
        for event in scavenge(
            self._layout.base,
            verify=options.verify, on_conflict=options.on_conflict, max_size=options.max_size,
            max_members=options.max_members, storage=self._storage,
        ):  # fmt: skip
            if isinstance(event, Refused):
                if event in self._told:
                    continue
                self._told.add(event)
            is_empty_end = isinstance(event, Finished) and event.report is None
            if not isinstance(event, (Started, NothingYet, LeftAlone)) and not is_empty_end:
                yield event
