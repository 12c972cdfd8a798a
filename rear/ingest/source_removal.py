"""Removing files whose bytes are in a final archive.

A file goes only if its member, read back from the archive as it is committed, decodes to exactly the bytes that the
file has now, and if it is still that file, unchanged, right before it is removed. Everything else is left and said.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping
from typing import Final

from rear.core.storage import Storage
from rear.errors import RearError, SourceError
from rear.events import Event, Refused, SourceDeleted, SourceLeft
from rear.ingest.held_members import HeldMember, Members, SourceIndex
from rear.ingest.source_tree import SourceEntry, SourceTree

CHANGED: Final = "changed while it was swept"
_CLOCK_TICK_SECONDS: Final = 0.05
"""Two changes within one tick of a file system's clock leave the same mtime; kernels tick every 1 to 10 ms."""
_WHOLE_SECONDS: Final = 2.0
"""The same where mtimes are whole seconds (ext3, HFS+), or even ones (FAT)."""
_NOT_ALLOWED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY})


def remove(
    held: Mapping[SourceEntry, HeldMember], index: SourceIndex, tree: SourceTree, *, storage: Storage
) -> Iterator[Event]:
    """Remove files that are archived, and say of each what came of it; of one that has gone, nothing.

    Args:
        held: where the bytes of each file are by the index's word, which is not taken for it.
        index: opens these archives.
        tree: the folder that the files are in.
        storage: the file system.
    """
    by_archive: dict[str, list[SourceEntry]] = {}
    for source, place in held.items():
        by_archive.setdefault(place.archive, []).append(source)
    for name, sources in by_archive.items():
        sources.sort(key=lambda source: held[source].row.target_start)
        try:
            with index.open_durable(name) as archive:
                members = Members(archive, [held[source].row for source in sources], storage=storage)
                for source in sources:
                    event = _remove(source, held[source], members, tree)
                    if event is not None:
                        yield event
        except (RearError, OSError) as error:
            yield Refused(name, f"{error}; the files that were archived here stay where they are")


def _remove(source: SourceEntry, held: HeldMember, members: Members, tree: SourceTree) -> Event | None:
    try:
        _settle(source)
        is_same = members.has(held.row, source, tree)
        if is_same:
            tree.unlink(source)
    except FileNotFoundError:
        # Another sweep, or its owner, was faster.
        return None
    except SourceError:
        return SourceLeft(source.path, CHANGED)
    except RearError as error:
        return Refused(source.path, f"its bytes cannot be read back: {error}; left in place")
    except OSError as error:
        what = "is archived, but cannot be removed" if error.errno in _NOT_ALLOWED else "cannot be compared"
        return Refused(source.path, f"it {what}: {error.strerror}; left in place")
    if not is_same:
        return Refused(
            source.path,
            f"its bytes are not those of {held.row.name} in {held.archive}, although size and time are; left in place: "
            "touch it, and the next sweep archives it as well",
        )
    return SourceDeleted(source.path, held.archive, held.row.name, source.stamp.size)


def _settle(source: SourceEntry) -> None:
    """Wait until another change of the file would give it another mtime."""
    mtime_ns = source.stamp.mtime_ns
    tick = _WHOLE_SECONDS if mtime_ns % 1_000_000_000 == 0 else _CLOCK_TICK_SECONDS
    age = time.time() - mtime_ns / 1e9
    if 0 <= age < tick:
        time.sleep(tick - age)
