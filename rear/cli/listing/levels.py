"""Members and archives as `ls` shows files: one level, where what lies deeper is a folder."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from rear.cli.exit import report
from rear.cli.listing.member_lines import mode_of
from rear.core.records import unpacked
from rear.errors import MemberNotFoundError, RearError, ZipFormatError
from rear.read.archive_tree import ArchiveTree
from rear.read.patterns import Patterns
from rear.read.view import directory_of
from rear.zip.archive import Archive
from rear.zip.headers import CentralEntry

FOLDER_MODE: Final = stat.S_IFDIR | 0o755
#: Of more names, nobody sees which are executable or links, and to look each one up would take longer than all else.
_MODES_LIMIT: Final = 10_000


class Item(NamedTuple):
    """One name in a list.

    Attributes:
        name: as it is shown, before anything is escaped; a folder's ends in ``/``.
        mode: Unix ``st_mode``.
        size: in bytes; of a folder, of all that is below it.
        second: of the last change; of a folder, the newest below it.
        members: of an archive, or of all archives in a folder; ``None`` of what is in an archive.
        about: more about it, in a line.
    """

    name: str
    mode: int
    size: int
    second: int
    members: int | None = None
    about: str = ""


def cut(name: str, depth: int) -> str:
    """Return the first ``depth`` parts of a name; with a ``/`` when there are more."""
    parts = name.split("/", depth)
    return name if len(parts) <= depth else "/".join(parts[:depth]) + "/"


def collapse(items: Iterable[Item], depth: int) -> list[Item]:
    """Return each item at most ``depth`` levels deep; those deeper as the folders that they are in, added up."""
    found: list[Item] = []
    folders: dict[str, Item] = {}
    for item in items:
        name = cut(item.name, depth)
        if not name.endswith("/"):
            found.append(item)
            continue
        known = folders.get(name)
        if known is None:
            # A folder's own entry has its mode; it may come first or never.
            folders[name] = item if name == item.name else item._replace(name=name, mode=FOLDER_MODE, about="")
        else:
            folders[name] = Item(
                name,
                item.mode if name == item.name else known.mode,
                known.size + item.size,
                max(known.second, item.second),
                None if known.members is None else known.members + (item.members or 0),
                known.about,
            )
    return found + list(folders.values())


def item_of(entry: CentralEntry, name: str | None = None, about: str = "") -> Item:
    """Return a member as an item."""
    return Item(
        entry.name if name is None else name, mode_of(entry), entry.size, entry.mtime_ns // 1_000_000_000, None, about
    )


def metadata_of(archive: Archive, entry: CentralEntry) -> dict[str, object] | None:
    """Return the metadata that a member's writer gave it; ``None`` too where its local header cannot be read."""
    try:
        origin = archive.origin(entry)
    except ZipFormatError:
        return None
    return None if origin is None else unpacked(origin.metadata)


def about_of(archive: Archive, entry: CentralEntry) -> str:
    """Return a member's metadata for a line."""
    metadata = metadata_of(archive, entry)
    return "" if metadata is None else json.dumps(metadata, ensure_ascii=False)


def names_below(archive: Archive, folder: str, depth: int) -> list[Item]:
    """Return the names in one folder of an archive, or of the member of that name; without sizes and times.

    Raises:
        MemberNotFoundError: there is neither.
    """
    prefix = _prefix(folder)
    skip, found = len(prefix), {}
    for position, name in archive.names():
        if name.startswith(prefix):
            if len(name) > skip:
                found[cut(name[skip:], depth)] = position
        elif name == folder:
            found[name] = position
    if not found and folder:
        raise MemberNotFoundError(f"{archive.path}: no member matches {folder!r}")
    has_modes = len(found) <= _MODES_LIMIT
    return [
        Item(name, mode_of(archive.entry_at(position)) if has_modes and name[-1] != "/" else 0, 0, 0)
        for name, position in found.items()
    ]


def _prefix(folder: str) -> str:
    return f"{folder.rstrip('/')}/" if folder else ""


def members_below(archive: Archive, folder: str, depth: int, *, with_metadata: bool) -> list[Item]:
    """Return what is in one folder of an archive, or the member of that name.

    Raises:
        MemberNotFoundError: there is neither.
    """
    prefix = _prefix(folder)
    exact: list[Item] = []

    def below() -> Iterable[Item]:
        for entry in archive.entries():
            name = entry.name
            is_below = name.startswith(prefix)
            if is_below or name == folder:
                about = about_of(archive, entry) if with_metadata else ""
                if is_below and len(name) > len(prefix):
                    yield item_of(entry, name[len(prefix) :], about)
                else:
                    exact.append(item_of(entry, about=about))

    found = collapse(below(), depth)
    if not found and not exact and folder:
        raise MemberNotFoundError(f"{archive.path}: no member matches {folder!r}")
    # An entry for the folder itself is no member of it, unless it is a file of that name.
    return found + [item for item in exact if not item.name.endswith("/")]


class ArchiveItems:
    """Yields the archives below a folder as items, by their relative paths; what cannot be read is reported.

    With ``counted`` each is opened, to know how many members it has. After that ``status`` is the exit status.
    """

    def __init__(self, folder: str, patterns: Patterns, *, counted: bool) -> None:
        self._folder = folder
        self._patterns = patterns
        self._counted = counted
        self.status = 0

    def __iter__(self) -> Iterator[Item]:
        tree = ArchiveTree(self._folder)
        for name in filter(self._patterns.matches, tree):
            path = os.path.join(self._folder, name)
            try:
                status = os.stat(path)
                directory = directory_of(path) if self._counted else None
            except FileNotFoundError:
                # Its first merge is under way, or it was renamed just now.
                continue
            except (RearError, OSError) as error:
                sys.stdout.flush()
                self.status = report(error)
                continue
            size = status.st_size if directory is None else directory.archive_length
            yield Item(name, status.st_mode, size, int(status.st_mtime), directory.entries if directory else None)
        for failure in tree.errors:
            self.status = report(failure)
