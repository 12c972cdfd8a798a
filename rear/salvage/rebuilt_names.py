"""What members of a rebuilt archive are called, where header, old directory and index contradict each other.

A name is that of the local header when rear's own checksum covers it, else that of the index, of the old directory, of
the local header. Of several members of one name, the one that counted keeps it, and the others get a number.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

from rear.core.names import numbered
from rear.salvage.local_headers import Facts
from rear.salvage.rebuilt_headers import Naming, is_consistent, naming_of
from rear.salvage.repeated_names import SeenNames
from rear.zip.extra_fields import extra_fields
from rear.zip.headers import CentralEntry, LocalHeader
from rear.zip.origin import decode_origin
from rear.zip.structures import FLAG_UTF8, ORIGIN

if TYPE_CHECKING:
    from rear.salvage.inventory import Inventory

_SET_LIMIT: Final = 1 << 19


class KnownMember(NamedTuple):
    """What an index says of the member at some offset."""

    name: str
    crc: int
    size: int


Known = Callable[[int], KnownMember | None]
"""Returns what an index says of the member at an offset of the old archive."""


class Resolved(NamedTuple):
    """A member as it goes into the new archive; ``contradiction`` says what was wrong with its header, if anything."""

    header: bytes
    local: LocalHeader
    naming: Naming
    old: CentralEntry | None
    contradiction: str


class Renaming(NamedTuple):
    """A member that gets another name; ``new_name`` is ``None`` where there are too many."""

    number: int
    name: str
    new_name: str | None


class RebuiltNames:
    """Says what the members of an inventory are called; at most ``limit`` get other names: each takes memory."""

    def __init__(self, inventory: Inventory, known: Known | None, limit: int) -> None:
        self._inventory = inventory
        self._known = known
        self._limit = limit
        self._renamed: dict[int, str] = {}

    @property
    def is_simple(self) -> bool:
        """Whether nothing but the local headers says what members are called, and none has another name now."""
        return self._known is None and not len(self._inventory.remains) and not self._renamed

    def old_entry(self, offset: int, name: bytes, facts: Facts) -> CentralEntry | None:
        """Return the old directory entry of a member, if there is one that speaks of it."""
        found = None
        for entry in self._inventory.remains.find(offset):
            if entry.name_bytes == name:
                return entry
            if (entry.crc, entry.size) == (facts.crc, facts.size):
                found = entry
        return found

    def resolve(self, number: int) -> Resolved:
        """Return a member as it goes into the new archive."""
        inventory = self._inventory
        header, local, contradiction = inventory.header(number)
        offset, facts = inventory.offsets[number], inventory.facts(number)
        old = self.old_entry(offset, local.name, facts)
        naming = Naming(local.name, bool(local.flags & FLAG_UTF8))
        better = self._better_naming(offset, facts, old)
        if (better is None or better.name != local.name) and decode_origin(header) is None:
            if better is not None:
                contradiction = contradiction or f"name {local.name!r:.200} in the local header"
                naming = better
            elif any(identifier == ORIGIN for identifier, _ in extra_fields(local.extra)):
                contradiction = "the local header does not pass its checksum, so its name may be damaged"
        if not contradiction and not is_consistent(local, naming, facts):
            contradiction = "sizes or CRC-32 in the local header do not fit the data"
        if number in self._renamed:
            naming = naming_of(self._renamed[number])
        return Resolved(header, local, naming, old, contradiction)

    def _better_naming(self, offset: int, facts: Facts, old: CentralEntry | None) -> Naming | None:
        known = self._known(offset) if self._known is not None else None
        if known is not None and (known.crc, known.size) == (facts.crc, facts.size):
            return naming_of(known.name)
        return None if old is None else Naming(old.name_bytes, bool(old.flags & FLAG_UTF8))

    def _name(self, number: int) -> str:
        resolved = self.resolve(number)
        return resolved.naming.text(resolved.local.extra)

    def settle(self, others: Collection[str], skipped: Collection[int]) -> Iterator[Renaming]:
        """Give other names to members whose name occurs twice, and yield them.

        ``others`` are names of further members of the new archive, which keep them; ``skipped`` members are not in it.
        """
        inventory = self._inventory
        if self.is_simple and not others and _are_all_different(inventory.name_hashes):
            return
        seen, keys = SeenNames(len(inventory) + len(others)), array("q")
        for number in range(len(inventory)):
            name = self._name(number)
            keys.append(hash(name))
            seen.add(name)
        for name in others:
            seen.add(name)
            seen.perhaps_twice.add(hash(name))
        if not seen.perhaps_twice:
            return
        groups: dict[str, list[int]] = {}
        for number, key in enumerate(keys):
            if key in seen.perhaps_twice and number not in skipped:
                name = self._name(number)
                # Directories may be there as often as they like.
                if inventory.sizes[number] or not name.endswith("/"):
                    groups.setdefault(name, []).append(number)
        for name, numbers in groups.items():
            keeps = -1 if name in others else max(numbers, key=lambda number: self._claim(number, name))
            yield from self._rename(name, [number for number in numbers if number != keeps], seen)

    def _claim(self, number: int, name: str) -> tuple[bool, bool, int, int]:
        """Return what makes a member the one that counts, to be compared with others of its name."""
        inventory, offset = self._inventory, self._inventory.offsets[number]
        known = self._known(offset) if self._known is not None else None
        is_known = known is not None and known.name == name
        return is_known, not inventory.is_doubtful(number), inventory.remains.rank(offset), number

    def _rename(self, name: str, numbers: list[int], seen: SeenNames) -> Iterator[Renaming]:
        # What is no UTF-8 stays in the name that is kept, but no new name is made of it.
        stem, further = name.encode("utf-8", "replace").decode(), count(1)
        for number in numbers:
            if len(self._renamed) >= self._limit:
                yield Renaming(number, name, None)
                continue
            # What only may be taken counts as taken.
            new_name = next(new for new in (numbered(stem, n) for n in further) if not seen.contains(new))
            seen.add(new_name)
            self._renamed[number] = new_name
            yield Renaming(number, name, new_name)


def _are_all_different(numbers: array[int]) -> bool:
    """Tell whether no number occurs twice; a part of them is in a set at a time."""
    mask = (1 << (len(numbers) // _SET_LIMIT).bit_length()) - 1
    for part in range(mask + 1):
        chosen = [number for number in numbers if number & mask == part] if mask else numbers
        if len(set(chosen)) < len(chosen):
            return False
    return True
