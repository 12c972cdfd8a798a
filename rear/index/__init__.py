"""Which member is where in an archive, and where it came from.

*index* is the list of immutable segments of one archive; *segment* describes one SQLite file, *segment_writer* makes it
on local disk, *segment_reader* asks it. An index is derived data: losing it loses nothing.

Imports core and zip; the only room that knows SQLite. ``rear.index`` hands out `Index` and `IndexRow` to users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rear.index.index import Index
    from rear.index.segment import IndexRow

__all__ = ["Index", "IndexRow"]


def __getattr__(name: str) -> Any:
    if name == "Index":
        from rear.index.index import Index

        return Index
    if name == "IndexRow":
        from rear.index.segment import IndexRow

        return IndexRow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
