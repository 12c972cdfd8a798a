"""Merges that belong to a sweep or an adoption: a scavenge of the base, and the wait until the archives have it all.

What a scavenge has to say of itself is left out. Where another scavenger leads, or another sweep is still writing, a
pause follows, and another look; all pauses together take no longer than the caller allows.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator
from typing import Final

from rear.core.discovery import name_base
from rear.core.layout import Layout
from rear.core.storage import Storage, StrPath
from rear.errors import BaseError, NotLeaderError, UsageError
from rear.events import Event, Finished, LeftAlone, NothingYet, Refused, Started, Waiting
from rear.scavenger.options import ScavengeOptions
from rear.scavenger.scavenge import scavenge

_FIRST_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 5.0


def base_to_fill(base: StrPath) -> Layout:
    """Return the layout of a base that need not exist.

    Raises:
        BaseError: something else has its path.
    """
    layout = Layout(base)
    if os.path.lexists(layout.base) and not os.path.isdir(layout.base):
        raise BaseError(f"{layout.base} is not a directory: it cannot be a base")
    name_base(layout.base)
    return layout


def check_seconds(name: str, value: object) -> None:
    """Refuse what is no span of time; ``name`` is what the caller knows it by.

    Raises:
        UsageError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UsageError(f"{name} is {value!r}: it has to be a number of seconds, 0 or more")


class Merging:
    """Scavenges one base, as often as that is asked for.

    Args:
        layout: the base.
        options: ``verify``, ``on_conflict``, ``max_size`` and ``max_members`` of each scavenge.
        wait_seconds: how long to wait for others, all in all.
        storage: the file system.
    """

    def __init__(self, layout: Layout, options: ScavengeOptions, wait_seconds: float, *, storage: Storage) -> None:
        self._layout = layout
        self._options = options
        self._wait_left = wait_seconds
        self._storage = storage
        self._told: set[Event] = set()
        self._has_told_to_wait = False

    def once(self) -> Generator[Event, None, str]:
        """Scavenge; say nothing of begin and end, and what is refused only once.

        Returns:
            who leads instead of this process; ``""`` if nobody does.
        """
        if not os.path.isdir(self._layout.state):
            return ""
        options = self._options
        events = scavenge(
            self._layout.base,
            verify=options.verify,
            on_conflict=options.on_conflict,
            max_size=options.max_size,
            max_members=options.max_members,
            storage=self._storage,
        )
        try:
            yield from filter(self._is_worth_telling, events)
        except NotLeaderError as error:
            return error.situation
        return ""

    def until(self, look: Callable[[str], str], *, tell_each_pause: bool = False) -> Generator[Event, None, str]:
        """Scavenge and look what came of it, again and again while there is something to wait for, and time.

        Args:
            look: is told who else leads, or ``""`` if this process scavenged; returns what is to be waited for, or
                ``""`` if nothing is.
            tell_each_pause: say before each pause that it waits, not only before the first of all.

        Returns:
            what ``look`` has said last.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            reason = look((yield from self.once()))
            if not reason or self._wait_left <= 0:
                return reason
            if tell_each_pause or not self._has_told_to_wait:
                self._has_told_to_wait = True
                yield Waiting(reason, self._wait_left)
            pause = min(pause, self._wait_left)
            self._wait_left -= pause
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    def _is_worth_telling(self, event: Event) -> bool:
        if isinstance(event, Refused):
            is_new = event not in self._told
            self._told.add(event)
            return is_new
        is_empty_end = isinstance(event, Finished) and event.report is None
        return not is_empty_end and not isinstance(event, (Started, NothingYet, LeftAlone))
