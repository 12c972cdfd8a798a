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


ALL = Owners()
"""Takes all that it may."""
