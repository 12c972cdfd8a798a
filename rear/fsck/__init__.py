"""A whole base checked and put right; one archive checked and written anew.

*base* is ``rear fsck BASE``: a scavenge, whose events become problems (*event_problems*), with checks between its
steps: *unfinished_work* of those that are gone, *inspection* of each archive (*member_ranges*; *inspection_tasks* on an
executor), *reindex*, *strays* that belong to nothing. *archive* is ``rear fsck some.zip``; *restore* brings a damaged
archive of a base back; both write a *rebuilt_archive*.

Imports every room above it but worker. ``rear.fsck`` hands out `fsck` and `Problem` to users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rear.core.problems import Problem
    from rear.fsck.base import fsck

__all__ = ["Problem", "fsck"]


def __getattr__(name: str) -> Any:
    if name == "fsck":
        from rear.fsck.base import fsck

        return fsck
    if name == "Problem":
        from rear.core.problems import Problem

        return Problem
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
