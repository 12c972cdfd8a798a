"""What the central directory of an archive says, as evidence about the members that a scan meets.

It is asked about one offset after the other. A directory that is damaged somewhere is no evidence any more: a member
that it does not list may be the one whose entry is damaged.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Final

from rear.core.storage import Storage
from rear.errors import UnsupportedError, ZipFormatError
from rear.salvage.local_headers import directory_range, is_header, local_header
from rear.zip.directory import Directory, entries, entry_at, locate, names
from rear.zip.headers import CentralEntry
from rear.zip.structures import CENTRAL, DESCRIPTOR_SIGNATURE, END, END_SIGNATURE, LIMIT_16, LOCAL, LOCAL_SIGNATURE
from rear.zip.window import Window

#: With more entries than this that name no member, the directory is not believed.
_ASTRAY_LIMIT: Final = 100_000
_CONTROL: Final = re.compile(rb"[\0-\x1f\x7f]")
#: How far behind a directory its end record may be looked for, and how many are tried.
_GARBAGE_LIMIT_BYTES: Final = 1 << 20
_END_RECORDS_TRIED: Final = 16
#: Offset and position of an entry in one number: directories are shorter than this.
_POSITION_BITS: Final = 48


class DirectoryEvidence:
    """The entries of a directory, by where their members begin."""

    def __init__(self, descriptor: int, directory: Directory, window: Window, *, storage: Storage) -> None:
        self.directory = directory
        self._descriptor = descriptor
        self._window = window
        self._storage = storage
        self._entries: Iterator[CentralEntry] | None = entries(descriptor, directory, storage=storage)
        self._entry: CentralEntry | None = None
        self._astray: set[bytes] | None = None
        self._is_in_order: bool | None = None
        self.is_believed = True
        try:
            # One damaged length, and every later entry is read from the wrong place.
            deque(names(descriptor, directory, storage=storage), maxlen=0)
        except ZipFormatError:
            self._disbelieve()

    def at(self, offset: int) -> CentralEntry | None:
        """Return the entry of the member that begins at ``offset``; ask with growing offsets."""
        try:
            entry = self._advance(offset)
            if entry is None and self._is_in_order is None:
                # Few programs write entries in another order than that of their members; damage may, too.
                self._is_in_order = self._check_order()
                if not self._is_in_order:
                    self._entries, self._entry = self._sorted(offset), None
                    entry = self._advance(offset)
        except ZipFormatError:
            self._disbelieve()
            return None
        return entry

    def _advance(self, offset: int) -> CentralEntry | None:
        while self._entries is not None:
            entry = self._entry
            if entry is not None:
                position = self.directory.prefix + entry.offset
                if position >= offset:
                    return entry if position == offset else None
            self._entry = next(self._entries, None)
            if self._entry is None:
                self._entries = None
        return None

    def _check_order(self) -> bool:
        before = 0
        for entry in entries(self._descriptor, self.directory, storage=self._storage):
            if entry.offset < before:
                return False
            before = entry.offset
        return True

    def may_miss(self, name: bytes) -> bool:
        """Tell whether a member of that name may be in the archive at an offset that is not listed.

        So it is when the directory is damaged, or lists the name where no such member begins.
        """
        if self.is_believed and self._astray is None:
            try:
                self._astray = self._find_astray()
            except ZipFormatError:
                self._disbelieve()
        return not self.is_believed or self._astray is None or name in self._astray

    def _disbelieve(self) -> None:
        self.is_believed = False
        self._entries = self._entry = self._astray = None

    def _find_astray(self) -> set[bytes]:
        """Return the listed names of which there is no local header where it should be."""
        astray: set[bytes] = set()
        for entry in entries(self._descriptor, self.directory, storage=self._storage):
            if _CONTROL.search(entry.name_bytes):
                raise ZipFormatError("an entry with an impossible name")
            head = self._window.read(self.directory.prefix + entry.offset, LOCAL.size + len(entry.name_bytes))
            if head[:4] != LOCAL_SIGNATURE or head[LOCAL.size :] != entry.name_bytes:
                astray.add(entry.name_bytes)
                if len(astray) > _ASTRAY_LIMIT:
                    raise ZipFormatError("too many entries name no member")
        return astray

    def _sorted(self, start: int) -> Iterator[CentralEntry]:
        """Yield the entries from ``start`` on in the order of their members."""
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


def find_evidence(descriptor: int, window: Window, *, storage: Storage) -> DirectoryEvidence | None:
    """Return what the directory of an archive lists; ``None`` when it has none that describes it.

    Raises:
        UnsupportedError: the file is a volume of a split archive.
    """
    directory: Directory | None
    try:
        directory = locate(descriptor, storage=storage)
    except UnsupportedError:
        _refuse_last_volume(window)
        return None
    except ZipFormatError:
        directory = _locate_before_garbage(descriptor, window, storage)
    if directory is None:
        _refuse_first_volume(window)
        return None
    return DirectoryEvidence(descriptor, directory, window, storage=storage)


class _Cut(Storage):
    """A file as it was before something was appended to it."""

    def __init__(self, storage: Storage, end: int) -> None:
        self._storage = storage
        self._end = end

    def size(self, descriptor: int) -> int:
        return self._end

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        return self._storage.read(descriptor, min(length, max(0, self._end - offset)), offset)


def _tail(window: Window, length: int) -> tuple[int, bytes]:
    start = max(0, window.end - length)
    return start, window.read(start, window.end - start)


def _locate_before_garbage(descriptor: int, window: Window, storage: Storage) -> Directory | None:
    """Return the directory of an archive that something was appended to, where `locate` finds none."""
    tail_start, tail = _tail(window, _GARBAGE_LIMIT_BYTES)
    at = len(tail)
    for _ in range(_END_RECORDS_TRIED):
        at = tail.rfind(END_SIGNATURE, 0, at)
        if at < 0:
            break
        end = tail_start + at + END.size + int.from_bytes(tail[at + 20 : at + 22], "little")
        if LOCAL_SIGNATURE in tail[at:]:
            # Not garbage: another archive.
            break
        if end < window.end:
            try:
                return locate(descriptor, storage=_Cut(storage, end))
            except (UnsupportedError, ZipFormatError):
                continue
    return None


def _refuse_first_volume(window: Window) -> None:
    # The first volume begins with the signature of a descriptor (8.5.4).
    if window.read(0, 8) == DESCRIPTOR_SIGNATURE + LOCAL_SIGNATURE:
        raise UnsupportedError(
            "the first volume of a split archive; join its volumes first (zip -s 0 SPLIT.zip --out WHOLE.zip)",
            "volumes",
        )


def _refuse_last_volume(window: Window) -> None:
    """Refuse a file whose end record counts several volumes, unless its members are in this file all the same."""
    tail_start, tail = _tail(window, END.size + LIMIT_16)
    at = tail.rfind(END_SIGNATURE)
    if at < 0 or len(tail) < at + END.size:
        return
    _, disk, _, _, _, length, offset, _ = END.unpack_from(tail, at)
    # One wrong bit in an end record must not hide an archive.
    if not disk or is_header(window, 0):
        return
    # Something before the archive moves all of it.
    prefix = tail_start + at - length - offset
    first = directory_range(window, prefix + offset).first if prefix >= 0 else None
    if first is not None:
        there = local_header(window, prefix + first.offset)
        if there is not None and there[0].name == first.name_bytes:
            return
    raise UnsupportedError(
        f"volume {disk + 1} of a split archive; join its volumes first (zip -s 0 SPLIT.zip --out WHOLE.zip)",
        "volumes",
    )
