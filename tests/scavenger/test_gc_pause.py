"""While members are merged, there are hardly any garbage collections; before and afterwards they are as always."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from bases import write

import rear
from rear.scavenger.gc_pause import OBJECTS, seldom_collected


@pytest.fixture(autouse=True)
def threshold() -> Iterator[tuple[int, int, int]]:
    """The threshold before a test, which sees it again afterwards."""
    before = gc.get_threshold()
    yield before
    assert gc.get_threshold() == before


def steps(seen: list[object], *, fails: bool = False) -> Generator[int, None, None]:
    try:
        for number in range(3):
            seen.append(gc.get_threshold()[0])
            if fails and number == 2:
                raise OSError("no")
            yield number
    finally:
        seen.append("ended")


def test_collections_are_seldom_until_the_end() -> None:
    seen: list[object] = []
    assert list(seldom_collected(steps(seen))) == [0, 1, 2]
    assert seen == [OBJECTS, OBJECTS, OBJECTS, "ended"]


def test_an_error_or_an_early_end_leaves_all_as_it_was(threshold: tuple[int, int, int]) -> None:
    seen: list[object] = []
    with pytest.raises(OSError, match="no"):
        list(seldom_collected(steps(seen, fails=True)))
    assert gc.get_threshold() == threshold
    given = seldom_collected(steps(seen))
    next(given)
    given.close()
    assert seen[-1] == "ended"


def test_who_has_none_has_none(threshold: tuple[int, int, int]) -> None:
    gc.set_threshold(0)
    try:
        seen: list[object] = []
        assert list(seldom_collected(steps(seen))) == [0, 1, 2]
        assert seen[0] == 0
    finally:
        gc.set_threshold(*threshold)


def test_a_scavenge_merges_so(tmp_path: Path, threshold: tuple[int, int, int]) -> None:
    write(tmp_path, {"ar.zip/a": b"x"})
    thresholds = {event.kind: gc.get_threshold()[0] for event in rear.scavenge(tmp_path)}
    assert thresholds["started"] == threshold[0]
    assert thresholds["merged"] == thresholds["cleared"] == OBJECTS
    assert thresholds["finished"] == threshold[0]


def test_two_at_once_leave_what_was_there_before() -> None:
    before = gc.get_threshold()

    def steps() -> Generator[int, None, None]:
        yield from range(2)

    first, second = seldom_collected(steps()), seldom_collected(steps())
    assert next(first) == next(second) == 0
    assert list(first) == [1]
    assert gc.get_threshold()[0] == max(before[0], OBJECTS)
    assert list(second) == [1]
    assert gc.get_threshold() == before
