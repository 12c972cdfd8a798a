"""Garbage collections are off in the steps of a merge, and nowhere else."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

import rear
from rear.collector import uncollected


def steps(seen: list[object], *, fails: bool = False) -> Generator[int, None, None]:
    try:
        for number in range(3):
            seen.append(gc.isenabled())
            if fails and number == 2:
                raise OSError("no")
            yield number
    finally:
        seen.append("ended")


def test_steps_run_without_and_others_with() -> None:
    seen: list[object] = []
    for number in uncollected(steps(seen)):
        assert gc.isenabled()
        assert number < 3
    assert seen == [False, False, False, "ended"]
    assert gc.isenabled()


def test_an_error_or_an_early_end_leaves_it_on() -> None:
    seen: list[object] = []
    with pytest.raises(OSError, match="no"):
        list(uncollected(steps(seen, fails=True)))
    assert gc.isenabled()
    given = uncollected(steps(seen))
    next(given)
    given.close()  # type: ignore[attr-defined]
    assert seen[-1] == "ended"
    assert gc.isenabled()


def test_who_has_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        assert list(uncollected(steps([]))) == [0, 1, 2]
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_scavenge_merges_without(tmp_path: Path) -> None:
    with rear.rear_fs(tmp_path), rear.rear_open("ar.zip/a", "wb") as file:
        file.write(b"x")
    merging: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None:
            if frame.f_globals["__name__"] in ("rear.merge", "rear.plan", "rear.claims"):
                merging.append(frame.f_code.co_qualname)
            frame = frame.f_back

    threshold = gc.get_threshold()
    gc.set_threshold(20)
    gc.callbacks.append(note)
    try:
        kinds = []
        for event in rear.scavenge(tmp_path):
            kinds.append(event.kind)
            if event.kind == "started":
                # Before it, and at the end, pairs and intents of before are looked for.
                merging.clear()
        assert "merged" in kinds
        assert [name for name in merging if name.startswith(("Merger", "make_plan", "Claims.claim"))] == []
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*threshold)
