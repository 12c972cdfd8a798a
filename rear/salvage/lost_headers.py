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
    """Looks for the data of members of one archive.

    Args:
        survey: what a scan has found.
        limit: so many members are found at most: each takes memory.
    """

    def __init__(self, survey: Inventory, limit: int) -> None:
        self.found: list[Headerless] = []
        self._survey = survey
        self._limit = limit
        #: Forged entries must not have the same bytes decoded a million times.
        self._budget = _TRIALS * survey.size

    def find(self, position: int, entry: CentralEntry, *likely: int) -> bool:
        """Look for the data of the member that an entry tells of; add it to ``found`` and say whether it is there.

        It may begin where its header says, if there is one; or end where the next member begins; or begin behind a
        header of the usual length: without extra fields, or with those of the directory.

        Args:
            position: where its local header has to be.
            entry: the entry.
            likely: where its data may begin, first of all.
        """
        if len(self.found) >= self._limit:
            return False
        offsets = self._survey.offsets
        following = bisect_right(offsets, position)
        end = offsets[following] if following < len(offsets) else self._directory_start()
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

    def _directory_start(self) -> int:
        return self._survey.directory.offset if self._survey.directory is not None else self._survey.size

    def _fits(self, start: int, entry: CentralEntry) -> bool:
        if entry.is_encrypted:
            return False
        try:
            return has_content(
                self._survey.descriptor,
                start,
                entry.compressed_size,
                entry.method,
                size=entry.size,
                crc=entry.crc,
                storage=self._survey.storage,
            )
        except RearError:
            return False
