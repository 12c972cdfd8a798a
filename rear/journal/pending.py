"""Members that wait to be merged, by the word of their journals: in the inbox, claimed, or in the graveyard.

Folders are listed and never asked for single files: on NFS a listing alone is up to date. A journal that scavengers
move meanwhile is met where it goes; what is merged meanwhile is not met at all, so that whoever asks whether something
is lost looks here first, and then into the archive. A journal that cannot be read is left to ``rear fsck``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from rear.core.layout import Layout, parse_pair
from rear.core.log import warn
from rear.core.names import is_safe_component
from rear.core.records import Append, Open, Pair
from rear.core.storage import LOCAL, Storage, close_read
from rear.errors import RearError
from rear.journal.check import why_bad
from rear.journal.reader import Journal, read_journal, read_notes
from rear.zip.window import Window

_LISTINGS_LIMIT: Final = 5
"""New pairs come for ever, and none of them is as old as the question."""


class PendingJournal(NamedTuple):
    """The journal of a pair, and where a scavenge has it."""

    pair: Pair
    path: Path
    is_claimed: bool

    def read(self, *, storage: Storage) -> Journal:
        """Read it with what was noted about it; errors are those of `read_journal`."""
        return with_notes(read_journal(self.path, storage=storage), self.path, storage=storage)


class PendingMember(NamedTuple):
    """A member that waits to be merged: its record, the first one of its journal, and its temp archive."""

    append: Append
    opened: Open
    temp_archive: str

    def open(self, storage: Storage) -> int | None:
        """Open its temp archive, if that is still there and all of the member is whole."""
        try:
            descriptor = storage.open(self.temp_archive)
        except FileNotFoundError:
            return None
        try:
            window = Window(descriptor, 0, storage.size(descriptor), storage=storage)
            reason = why_bad(descriptor, self.append, self.opened, window=window, read_data=True, storage=storage)
        except BaseException:
            close_read(descriptor, storage)
            raise
        if reason is None:
            return descriptor
        close_read(descriptor, storage)
        return None


def with_notes(journal: Journal, path: Path, *, storage: Storage) -> Journal:
    """Add to a journal, which was read from ``path``, what scavengers noted beside it.

    Raises:
        RearError, OSError: the notes cannot be used.
    """
    notes = read_notes(path.with_suffix(".merged"), storage=storage)
    journal.merged.update(notes.merged)
    journal.notes_status = notes.status
    return journal


def _warn_shut(error: OSError) -> None:
    warn("%s cannot be looked into: %s; members that wait there are not seen", error.filename, error.strerror)


def pending_journals(
    layout: Layout, *, graveyard: bool = False, on_shut: Callable[[OSError], object] = _warn_shut, storage: Storage
) -> Iterator[PendingJournal]:
    """Yield the journals of the inbox, then those of the claims, to which they move, and then those of the graveyard.

    Some move the other way, or from one claim to another: all is listed again until that shows nothing new.

    Args:
        layout: the base.
        graveyard: those too whose workers count as dead: late members may be in them.
        on_shut: is told of each folder that cannot be listed; it hides nothing but itself.
        storage: the file system.
    """

    def names(folder: Path) -> list[str]:
        try:
            return [name for name in storage.names(folder) if is_safe_component(name)]
        except OSError as error:
            on_shut(error)
            return []

    def journals_in(folder: Path, *, is_claimed: bool) -> Iterator[PendingJournal]:
        for host in names(folder):
            for name in names(folder / host):
                pair = parse_pair(host, name) if name.endswith(".journal") else None
                if pair is not None:
                    yield PendingJournal(pair, folder / host / name, is_claimed)

    def journals() -> Iterator[PendingJournal]:
        yield from journals_in(layout.inbox, is_claimed=False)
        for leader in names(layout.claims):
            yield from journals_in(layout.claims / leader, is_claimed=True)
        if graveyard:
            yield from journals_in(layout.graveyard, is_claimed=False)

    seen: set[PendingJournal] = set()
    for number in range(_LISTINGS_LIMIT):
        before = len(seen)
        for journal in journals():
            if journal not in seen:
                seen.add(journal)
                yield journal
        if number and len(seen) == before:
            return


def pending_members(
    layout: Layout, archive: str, *, graveyard: bool = False, storage: Storage = LOCAL
) -> Iterator[PendingMember]:
    """Yield what waits to be merged into a final archive; nothing of it is checked. See `pending_journals`."""
    for found in pending_journals(layout, graveyard=graveyard, storage=storage):
        try:
            journal = found.read(storage=storage)
        except (RearError, OSError):
            # Taken by a scavenger just now, or unreadable: fsck tells of that.
            continue
        if journal.opened is not None:
            temp_archive = str(found.path.with_suffix(".zip"))
            for append in journal.pending():
                if append.archive == archive:
                    yield PendingMember(append, journal.opened, temp_archive)
