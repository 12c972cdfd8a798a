"""Which rear_fs is current: in nested blocks, threads, tasks, generators, and after the end."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import rear
from rear.core import context
from rear.errors import NoContextError

FUNCTIONS = {"rear_open": rear.rear_open, "rear_pickup": rear.rear_pickup}
ORIGINAL_START = threading.Thread.start


class Fs:
    """Stands in for a rear_fs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


A, B, C = map(Fs, "ABC")


@contextlib.contextmanager
def inside(fs: Fs) -> Iterator[Fs]:
    token = context.enter(fs)
    try:
        yield fs
    finally:
        context.leave(token, fs)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    assert threading.Thread.start is ORIGINAL_START
    with pytest.raises(NoContextError):
        context.current()


def in_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except NoContextError:
            results.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def test_nesting() -> None:
    with inside(A):
        assert context.current() is A
        with inside(B):
            assert context.current() is B
            with inside(A):
                assert context.current() is A
            assert context.current() is B
        assert context.current() is A


def test_outside_is_a_clear_error() -> None:
    with pytest.raises(NoContextError, match=r"with rear_fs\(base\)"):
        context.current()


def test_threads_inherit() -> None:
    assert in_thread(context.current) is None
    with inside(A):
        assert in_thread(context.current) is A
        with inside(B):
            assert in_thread(context.current) is B
            assert in_thread(lambda: in_thread(context.current)) is B
        assert in_thread(context.current) is A
    assert in_thread(context.current) is None


def test_a_thread_may_have_its_own() -> None:
    def run() -> list[Any]:
        seen = [context.current()]
        with inside(B):
            seen += [context.current(), in_thread(context.current)]
        return [*seen, context.current()]

    with inside(A):
        assert in_thread(run) == [A, B, B, A]


def test_a_thread_that_outlives_its_fs_keeps_it() -> None:
    go, result = threading.Event(), []

    def run() -> None:
        go.wait(10)
        result.append(context.current())

    with inside(A):
        with inside(B):
            thread = threading.Thread(target=run)
            thread.start()
        with inside(C):
            go.set()
            thread.join()
    assert result == [B]


def test_threads_with_strange_classes() -> None:
    class Strange(threading.Thread):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return False

        def run(self) -> None:
            self.seen = context.current()

    with inside(A):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(context.current).result() is A
        timer_result: list[Any] = []
        timer = threading.Timer(0, lambda: timer_result.append(context.current()))
        timer.start()
        timer.join()
        assert timer_result == [A]


def test_a_pool_from_before() -> None:
    with ThreadPoolExecutor(1) as pool, inside(A):
        assert pool.submit(context.current).result() is A


def test_tasks_and_to_thread() -> None:
    async def task(fs: Fs) -> None:
        with inside(fs):
            await asyncio.sleep(0)
            assert context.current() is fs
            assert await asyncio.to_thread(context.current) is fs
            await asyncio.sleep(0)

    async def main() -> None:
        with inside(C):
            await asyncio.gather(*map(task, (A, B, A, B)))
            assert context.current() is C

    asyncio.run(main())


def test_a_task_that_outlives_its_fs_keeps_it() -> None:
    async def main() -> None:
        done = asyncio.Event()

        async def late() -> Any:
            await done.wait()
            return context.current()

        with inside(A):
            with inside(B):
                task = asyncio.create_task(late())
            done.set()
            assert await task is B

    asyncio.run(main())


def test_out_of_order() -> None:
    a, b = context.enter(A), context.enter(B)
    context.leave(a, A)
    assert context.current() is B
    context.leave(b, B)
    with pytest.raises(NoContextError):
        context.current()
    a, b, c = context.enter(A), context.enter(B), context.enter(C)
    context.leave(b, B)
    assert context.current() is C
    context.leave(c, C)
    assert context.current() is A
    context.leave(a, A)
    context.leave(a, A)


def test_a_generator_that_is_closed_elsewhere() -> None:
    async def generate() -> AsyncIterator[Any]:
        with inside(B):
            yield context.current()

    async def main() -> None:
        with inside(A):
            generator = generate()
            assert await anext(generator) is B
            assert context.current() is B
            # Another task, so another context, leaves it.
            await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
            assert context.current() is A

    asyncio.run(main())


def test_leaving_in_a_copied_context() -> None:
    token = context.enter(A)
    inner = context.enter(B)

    def leave() -> Any:
        context.leave(inner, B)
        return context.current()

    assert contextvars.copy_context().run(leave) is A
    assert context.current() is A
    assert in_thread(lambda: context.leave(token, A)) is None


def test_someone_else_wraps_start_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    with inside(A):
        ours = threading.Thread.start

        def theirs(self: threading.Thread) -> None:
            calls.append(self)
            ours(self)

        threading.Thread.start = theirs  # type: ignore[method-assign]
    assert threading.Thread.start is theirs
    assert in_thread(context.current) is None
    with inside(B):
        assert in_thread(context.current) is B
        assert len(calls) == 2
        threading.Thread.start = ours  # type: ignore[method-assign]


def test_a_name_of_a_foreign_thread() -> None:
    import _thread

    done = threading.Event()
    seen: list[Any] = []

    def run() -> None:
        try:
            context.current()
        except NoContextError:
            seen.append(None)
        done.set()

    with inside(A):
        _thread.start_new_thread(run, ())
        assert done.wait(10)
    assert seen == [None]


# -- builtins


def test_builtins_are_counted() -> None:
    context.install_builtins(FUNCTIONS)
    context.install_builtins(FUNCTIONS)
    context.remove_builtins()
    assert builtins.__dict__["rear_open"] is rear.rear_open
    assert builtins.__dict__["rear_pickup"] is rear.rear_pickup
    context.remove_builtins()
    assert not hasattr(builtins, "rear_open")
    assert not hasattr(builtins, "rear_pickup")
    context.remove_builtins()


def test_foreign_builtins_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builtins.__dict__, "rear_open", "theirs")
    context.install_builtins(FUNCTIONS)
    assert builtins.__dict__["rear_pickup"] is rear.rear_pickup
    assert builtins.__dict__["rear_open"] != "theirs"
    context.remove_builtins()
    assert builtins.__dict__["rear_open"] == "theirs"
    assert not hasattr(builtins, "rear_pickup")


def test_builtins_that_someone_else_has_replaced_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builtins.__dict__, "rear_open", "before")
    context.install_builtins(FUNCTIONS)
    builtins.__dict__["rear_open"] = "theirs"
    context.remove_builtins()
    assert builtins.__dict__["rear_open"] == "theirs"
