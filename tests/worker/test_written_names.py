"""The names that a worker wrote: none is forgotten, whoever interrupts, and none takes more than some bytes."""

from __future__ import annotations

import random
import sys
import threading
from array import array

import pytest
from programs import in_threads

from rear.worker import written_names
from rear.worker.written_names import WrittenNames


def some_keys(count: int, seed: int = 0) -> list[int]:
    keys = random.Random(seed)
    return [keys.getrandbits(64) - (1 << 63) for _ in range(count)]


def size_bytes(names: WrittenNames) -> int:
    recent = sum(map(sys.getsizeof, (names._recent, *names._recent)))
    return recent + sys.getsizeof(names._arrays) + sum(map(sys.getsizeof, names._arrays))


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 50_000])
def test_it_holds_what_was_added_and_nothing_else(count: int) -> None:
    names, keys = WrittenNames(), some_keys(count)
    extremes = [-(1 << 63), -1, 0, 1, (1 << 63) - 1]
    for key in keys + extremes * (count > 0):
        names.add(key)
        assert key in names
    others = some_keys(2000, seed=1)
    assert all(key in names for key in keys)
    assert not any(key in names for key in others)
    assert all((key in names) is (count > 0) for key in extremes)


def test_a_million_names_take_ten_megabytes() -> None:
    names = WrittenNames()
    for key in some_keys(1_000_000):
        names.add(key)
    assert size_bytes(names) < 12_000_000
    # And to look for one of them reads little.
    assert max(map(len, names._arrays)) < 3 * written_names._NAMES_AN_ARRAY


def test_names_that_are_written_again_and_again_take_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_names, "_RECENT_NAMES", 100)
    names, keys = WrittenNames(), some_keys(5_000)
    for _ in range(40):
        for key in keys:
            names.add(key)
    # Of 200,000; what is there twice is thrown out when the arrays are full.
    assert names._stored <= 8 * len(keys)
    assert len(names._arrays) * written_names._NAMES_AN_ARRAY <= 8 * len(keys)
    assert all(key in names for key in keys)


def test_threads_add_and_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_names, "_RECENT_NAMES", 50)
    names = WrittenNames()
    missed: list[int] = []
    barrier = threading.Barrier(4)

    def add(seed: int) -> None:
        keys = some_keys(20_000, seed)
        barrier.wait(20)
        for number, key in enumerate(keys):
            names.add(key)
            # Right away, and when it has been moved.
            missed.extend(old for old in (key, keys[number // 2]) if old not in names)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        in_threads(add, range(4))
    finally:
        sys.setswitchinterval(interval)
    assert missed == []
    assert all(key in names for seed in range(4) for key in some_keys(20_000, seed))
    assert names._stored > 50_000


@pytest.mark.parametrize("method", ["_move", "_store", "_grow"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_comes_back_from_the_middle_of_it_does_not_wait_nor_get_lost(
    monkeypatch: pytest.MonkeyPatch, method: str, when: str
) -> None:
    """As the collector does when it closes a forgotten file, or a signal handler that writes one."""
    monkeypatch.setattr(written_names, "_RECENT_NAMES", 100)
    names, inner = WrittenNames(), iter(some_keys(50_000, seed=1))
    added: list[int] = []

    def add_some() -> None:
        for _ in range(30):
            added.append(next(inner))
            names.add(added[-1])

    real = getattr(WrittenNames, method)

    def interrupted(self: WrittenNames, *arguments: list[int]) -> None:
        if when == "before":
            add_some()
        real(self, *arguments)
        if when == "after":
            add_some()

    monkeypatch.setattr(WrittenNames, method, interrupted)
    keys = some_keys(2_000)
    for key in keys:
        names.add(key)
        assert all(one in names for one in added[-30:])
    assert len(added) >= 30
    assert all(key in names for key in keys + added)


class Interrupting(array):  # type: ignore[type-arg]
    """Lets Ctrl-C come in the middle of a move."""

    left = 7

    def append(self, key: int) -> None:
        super().append(key)
        Interrupting.left -= 1
        if Interrupting.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_move_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_names, "_RECENT_NAMES", 20)
    monkeypatch.setattr(written_names, "array", Interrupting)
    names, keys = WrittenNames(), some_keys(5_000)
    interrupts = 0
    for number, key in enumerate(keys):
        if number % 100 == 0:
            Interrupting.left = 7 + number % 13
        try:
            names.add(key)
        except KeyboardInterrupt:
            interrupts += 1
            assert all(one in names for one in keys[:number])
    assert interrupts >= 40
    assert all(key in names for key in keys)
    assert names._leaving == ()
