"""What the central directory of an archive says, as evidence about the members that a scan meets.

It is asked about one offset after the other. A directory that is damaged somewhere is no evidence any more: a member
that it does not list may be the one whose entry is damaged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from rear.directory import Directory, entries, entry_at, names
from rear.errors import ZipFormatError
from rear.storage import Storage
from rear.window import Window
from rear.zipformat import CENTRAL, LOCAL, LOCAL_SIGNATURE, CentralEntry

#: With more entries than this that name no member, the directory is not believed.
_ASTRAY_LIMIT: Final = 100_000
#: Offset and position of an entry in one number: directories are shorter than this.
_POSITION_BITS: Final = 48


class Listing:
    """The entries of a directory, by where their members begin.

    Args:
        descriptor: the open archive.
        directory: where its directory is.
        window: the archive.
        storage: the file system.
    """

    def __init__(self, descriptor: int, directory: Directory, window: Window, *, storage: Storage) -> None:
        self.directory = directory
        self._descriptor = descriptor
        self._window = window
        self._storage = storage
        self._entries: Iterator[CentralEntry] | None = entries(descriptor, directory, storage=storage)
        self._entry: CentralEntry | None = None
        self._astray: set[bytes] | None = None
        self.is_believed = True
        try:
            # One damaged length, and every later entry is read from the wrong place.
            deque(names(descriptor, directory, storage=storage), maxlen=0)
        except ZipFormatError:
            self._disbelieve()

    def at(self, offset: int) -> CentralEntry | None:
        """Return the entry of the member that begins at ``offset``; ask with growing offsets."""
        try:
            while self._entries is not None:
                entry = self._entry
                if entry is not None:
                    position = self.directory.prefix + entry.offset
                    if position >= offset:
                        return entry if position == offset else None
                self._entry = next(self._entries, None)
                if self._entry is None:
                    self._entries = None
                elif entry is not None and self._entry.offset < entry.offset:
                    self._entries = self._sorted(offset)
                    self._entry = None
        except ZipFormatError:
            self._disbelieve()
        return None

    def may_miss(self, name: bytes) -> bool:
        """Tell whether a member of that name may be in the archive at an offset that is not listed.

        So it is when the directory is damaged, or lists the name where no such member begins.
        """
        if self.is_believed and self._astray is None:
            try:
                self._astray = self._find_astray()
            except ZipFormatError:
                self._disbelieve()
        return not self.is_believed or (self._astray is not None and name in self._astray)

    def _disbelieve(self) -> None:
        self.is_believed = False
        self._entries = self._entry = self._astray = None

    def _find_astray(self) -> set[bytes]:
        """Return the listed names of which there is no local header where it should be."""
        astray: set[bytes] = set()
        for entry in entries(self._descriptor, self.directory, storage=self._storage):
            head = self._window.read(self.directory.prefix + entry.offset, LOCAL.size + len(entry.name_bytes))
            if head[:4] != LOCAL_SIGNATURE or head[LOCAL.size :] != entry.name_bytes:
                astray.add(entry.name_bytes)
                if len(astray) > _ASTRAY_LIMIT:
                    raise ZipFormatError("too many entries name no member")
        return astray

    def _sorted(self, start: int) -> Iterator[CentralEntry]:
        """Yield the entries from ``start`` on in the order of their members: few programs write them in another."""
        numbers = []
        for position, _ in names(self._descriptor, self.directory, storage=self._storage):
            entry = entry_at(self._descriptor, self.directory, position, storage=self._storage)
            if self.directory.prefix + entry.offset >= start:
                numbers.append(entry.offset << _POSITION_BITS | position)
        numbers.sort()
        for number in numbers:
            position = number & (1 << _POSITION_BITS) - 1
            if position + CENTRAL.size <= self.directory.length:
                yield entry_at(self._descriptor, self.directory, position, storage=self._storage)
