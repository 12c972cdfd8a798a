"""The index by which a merge knows what its final archive has: the archive's own, brought up to date before, or one
that is made of its directory for the moment.
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import ExitStack
from typing import Final

from rear.core.layout import Layout
from rear.core.log import warn
from rear.core.storage import Storage
from rear.errors import IndexFormatError
from rear.events import Event, IndexFault, IndexRebuilt
from rear.index.index import Index, rows_of
from rear.index.scratch_index import scratch_index
from rear.read.view import open_committed
from rear.scavenger.final_archive import FinalArchive

#: What an index says whose folder is shut, or no folder.
_SHUT: Final = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.EROFS)


def open_index(layout: Layout, archive: str, *, storage: Storage) -> Index:
    """Open the index of an archive; one whose folder is shut is an empty one.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return Index.open(layout, archive, storage=storage)
    except OSError as error:
        if error.errno not in _SHUT:
            raise
        return Index(layout, archive, storage=storage)


def is_older(target: FinalArchive, index: Index, *, storage: Storage) -> bool:
    """Whether an archive, as this host sees it, is older than its index."""
    try:
        return not target.is_mirrored_by(index, storage=storage) and target.is_older_than(index)
    except IndexFormatError:
        # It is made again, and knows no better then.
        return False


def bring_up_to_date(
    index: Index, target: FinalArchive, stack: ExitStack, *, storage: Storage
) -> Generator[Event, None, Index]:
    """Return an index that mirrors an archive: the given one, if need be made anew; see `rebuild`."""
    if target.is_mirrored_by(index, storage=storage):
        return index
    if index.segments:
        return (yield from rebuild(index, target, "it did not match the archive", "outdated", stack, storage=storage))
    reason = index.problems[0] if index.problems else "there was none"
    return (yield from rebuild(index, target, reason, "missing", stack, storage=storage))


def rebuild(
    index: Index, target: FinalArchive, reason: str, code: IndexFault, stack: ExitStack, *, storage: Storage
) -> Generator[Event, None, Index]:
    """Return the index, made anew; or, where its folder is shut, another one for as long as ``stack``."""
    with open_committed(target.path, storage=storage) as archive:
        entries = archive.directory.entries
        try:
            index.rebuild(rows_of(archive), archive.fingerprint)
        except OSError as error:
            if error.errno not in _SHUT:
                raise
            warn("the index of %s could not be made: %s", target.archive, error)
        if not index.matches(archive.fingerprint, entries):
            # It may also have been moved away meanwhile; and to a merge an empty one says that all names are free.
            return stack.enter_context(scratch_index(target.archive, archive))
    yield IndexRebuilt(target.archive, entries, reason, code)
    return index
