"""Members whose local header is gone or wrong: their data, found where the old directory makes one look for it.

Size and CRC-32 of the entry decide whether it is theirs.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from rear.errors import RearError
from rear.zip.headers import CentralEntry
from rear.zip.member_data import has_content
from rear.zip.structures import LOCAL

if TYPE_CHECKING:
    from rear.salvage.inventory import Inventory

_TRIALS: Final = 8


class Headerless(NamedTuple):
    """A member that gets a new local header, made of its directory entry."""

    entry: CentralEntry
    data_start: int


class HeaderlessSearch:
    """Looks for the data of members of one archive; at most ``limit`` are ``found``: each takes memory."""

    def __init__(self, inventory: Inventory, limit: int) -> None:
        self.found: list[Headerless] = []
        self._inventory = inventory
        self._limit = limit
        #: Forged entries must not have the same bytes decoded a million times.
        self._budget = _TRIALS * inventory.size

    def find(self, position: int, entry: CentralEntry, *likely: int) -> bool:
        """Look for the data of the member that an entry tells of; add it to ``found`` and say whether it is there.

        It may begin where its header says, if there is one; or end where the next member begins; or begin behind a
        header of the usual length: without extra fields, or with those of the directory. ``likely`` comes first.
        """
        if len(self.found) >= self._limit:
            return False
        offsets, directory = self._inventory.offsets, self._inventory.directory
        following = bisect_right(offsets, position)
        end = self._inventory.size if directory is None else directory.offset
        if following < len(offsets):
            end = offsets[following]
        usual = position + LOCAL.size + len(entry.name_bytes)
        for start in dict.fromkeys((*likely, end - entry.compressed_size, usual, usual + len(entry.extra))):
            least = position + LOCAL.size
            if not least <= start or start + entry.compressed_size > end:
                continue
            self._budget -= entry.compressed_size
            if self._budget < 0:
                break
            if self._fits(start, entry):
                self.found.append(Headerless(entry, start))
                return True
        return False

    def _fits(self, start: int, entry: CentralEntry) -> bool:
        if entry.is_encrypted:
            return False
        try:
            data = start, entry.compressed_size, entry.method
            descriptor, storage = self._inventory.descriptor, self._inventory.storage
            return has_content(descriptor, *data, size=entry.size, crc=entry.crc, storage=storage)
        except RearError:
            return False
