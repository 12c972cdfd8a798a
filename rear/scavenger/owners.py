"""Whose files a scavenge takes: all that it may, or only those of its own user, and leaves all others as they are."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from rear.core.descent import status_of
from rear.core.layout import PAIR_SUFFIXES
from rear.core.records import Pair
from rear.errors import RearError
from rear.events import LeftAlone
from rear.journal.reader import Journal


class Owners:
    """Whose files a scavenge takes.

    Args:
        owner_only: only those of this user.
    """

    def __init__(self, *, owner_only: bool = False) -> None:
        self._owner_only = owner_only

    def takes(self, path: Path) -> bool:
        """Whether a file may be taken.

        Raises:
            OSError: it cannot be looked at, and that has to be known.
        """
        return not self._owner_only or status_of(path).st_uid == os.geteuid()

    def left(self, pair: Pair, folder: Path) -> LeftAlone | None:
        """Return the event that tells of a pair that is left to its owner; ``None`` of one that may be taken.

        What a scavenger has noted beside it may be another one's.

        Raises:
            OSError: as `takes`.
        """
        for suffix in PAIR_SUFFIXES[:2] if self._owner_only else ():
            with contextlib.suppress(FileNotFoundError):
                if not self.takes(folder / f"{pair.stem}.{suffix}"):
                    return LeftAlone(str(pair), "it belongs to another user, and is left to that one", "taken")
        return None

    def check(self, descriptor: int | None, archive: str) -> None:
        """Refuse a final archive, if it is there, that may not be merged into.

        Raises:
            RearError: it belongs to another user.
        """
        if descriptor is not None and self._owner_only and (owner := os.fstat(descriptor).st_uid) != os.geteuid():
            raise RearError(f"{archive} belongs to user {owner}, and only archives of this one are merged into")


class OwnerBudget:
    """What the pairs of each user may take of something in one scavenge: nobody uses up what is another one's."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._taken: dict[int, float] = {}

    def takes(self, owner: int, amount: float) -> bool:
        """Take so much for a user; false, and nothing is taken, where that is more than is left."""
        taken = self._taken.get(owner, 0.0) + amount
        if taken > self._limit:
            return False
        self._taken[owner] = taken
        return True

    def spend(self, owner: int, amount: float) -> None:
        """Take so much, which has been used already."""
        self._taken[owner] = self._taken.get(owner, 0.0) + amount


def owner_of(journal: Journal) -> int:
    """Return the user whose pair it is: the owner of the journal, or, of one that a scavenger of this user had to write
    anew, the owner of what it was made from.
    """
    assert journal.status is not None
    assert journal.opened is not None
    owner = journal.status.st_uid
    is_rebuilt = journal.opened.created_ns == 0 and owner == os.geteuid()
    return journal.opened.uid if is_rebuilt else owner


ALL = Owners()
"""Takes all that it may."""
