"""What waits is met wherever scavengers move it meanwhile."""

from __future__ import annotations

from pathlib import Path

import fixtures
import pytest
from bases import write

from rear.core.layout import Layout
from rear.core.storage import Storage, StrPath
from rear.journal.pending import pending_members

base = fixtures.made_base


@pytest.mark.parametrize(
    ("before", "after"),
    [("inbox", "claims/a"), ("claims/a", "claims/b"), ("claims/b", "claims/a"), ("claims/a", "inbox")],
)
@pytest.mark.parametrize("is_read", [False, True])
def test_a_pair_that_moves_while_folders_are_listed(base: Path, before: str, after: str, is_read: bool) -> None:
    write(base, {"ar.zip/a": b"a", "ar.zip/b": b"b"})
    state = Layout(base).state
    (pair,) = (state / "inbox").iterdir()
    for folder in ("claims/a", "claims/b"):
        (state / folder).mkdir(parents=True)

    def move(old: str, new: str) -> None:
        if (state / old / pair.name).exists():
            (state / old / pair.name).rename(state / new / pair.name)

    class Moving(Storage):
        """Where a folder has been listed, pairs are moved there, once; or moved away when a journal is read."""

        has_moved = False

        def names(self, path: StrPath) -> list[str]:
            found = super().names(path)
            trigger = state / (before if is_read else after)
            if not self.has_moved and Path(path) in (trigger, trigger / pair.name):
                self.has_moved = True
                move(before, after)
            return found

    move("inbox", before)
    storage = Moving()
    found = {member.append.name for member in pending_members(Layout(base), "ar.zip", storage=storage)}
    assert storage.has_moved
    assert found == {"a", "b"}
