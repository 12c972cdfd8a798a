"""The index of one archive beside the archive itself: does it mirror it, and a new one in its place."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rear.core.layout import Layout, find_base
from rear.core.names import STATE
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import UsageError
from rear.index.index import Index, rows_of
from rear.index.segment import Segment
from rear.read.view import open_committed, state_of
from rear.scavenger.leader import Leadership


class IndexState(NamedTuple):
    """How an index and its archive fit together.

    Attributes:
        archive: path of the archive relative to the base.
        folder: of the segments.
        state: ``"current"`` when it mirrors the archive, ``"outdated"``, ``"damaged"`` or ``"missing"``.
        members: how many members the archive has.
        indexed: how many of them the index knows.
        fingerprint: of the archive's central directory now.
        segments: those that count, oldest first.
        problems: what else lies in the folder and should not.
    """

    archive: str
    folder: Path
    state: str
    members: int
    indexed: int
    fingerprint: str
    segments: list[Segment]
    problems: list[str]


def index_state(path: StrPath, *, storage: Storage = LOCAL) -> IndexState:
    """Look at the index of an archive; its rows are not read.

    Raises:
        UsageError: the archive belongs to no base.
        NotAZipError, UnsupportedError, OSError: as of `rear.read.view.open_committed`.
    """
    layout, archive = _place(path)
    directory, fingerprint = state_of(path, storage=storage)
    index = Index.open(layout, archive, storage=storage)
    if index.matches(fingerprint, directory.entries):
        state = "current"
    elif index.segments:
        state = "outdated"
    else:
        state = "damaged" if index.problems else "missing"
    return IndexState(
        archive,
        layout.index(archive),
        state,
        members=directory.entries,
        indexed=index.count,
        fingerprint=fingerprint,
        segments=index.segments,
        problems=index.problems,
    )


def reindex(path: StrPath, *, storage: Storage = LOCAL) -> int:
    """Make the index of an archive anew from the archive, and return how many members it has.

    When members were merged stands in no archive: a new index does not know it.

    Raises:
        UsageError: the archive belongs to no base.
        NotLeaderError: a scavenger is at work in the base; nothing was changed.
        NotAZipError, UnsupportedError, OSError: the index is as it was.
    """
    layout, archive = _place(path)
    with Leadership(layout, storage=storage), open_committed(path, storage=storage) as opened:
        Index.open(layout, archive, storage=storage).rebuild(rows_of(opened), opened.fingerprint)
        return opened.directory.entries


def _place(path: StrPath) -> tuple[Layout, str]:
    found = find_base(path)
    if found is None:
        raise UsageError(f"{str(path)!r} belongs to no base, so it has no index: no directory above it has a {STATE!r}")
    return found
