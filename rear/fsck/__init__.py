"""A whole base checked and put right; one archive checked and written anew.

*base* is ``rear fsck BASE``: a scavenge with checks between its steps; *inspection* looks at one archive that has its
directory (*inspection_tasks* on an executor), *strays* at what belongs to nothing, *reindex* at an index. *archive* is
``rear fsck some.zip``; *restore* brings a damaged archive of a base back.

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
