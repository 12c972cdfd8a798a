"""Which ``rear_fs`` is the innermost one of the running context.

A context variable knows it, so tasks are right by themselves. A thread begins with an empty context: while any
``rear_fs`` is entered, `threading.Thread.start` therefore notes on each new thread which one was current where it was
started. The threads of a pool count as started where the pool needed them first.

A thread or task that outlives the ``rear_fs`` it began in keeps that one, and gets its error that it is closed. It
never gets the next outer one, which may be another base.
"""

from __future__ import annotations

import builtins
import functools
import os
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from typing import Any, Final, NamedTuple

from rear.errors import NoContextError

_INHERITED: Final = "_rear_context"


class _Level:
    """One entering of a ``rear_fs``."""

    __slots__ = ("fs", "left", "outer", "token")

    def __init__(self, fs: Any, outer: _Level | None) -> None:
        self.fs = fs
        self.outer = outer
        self.left = False
        self.token: Token[_Level | None] | None = None

    def step_out(self) -> bool:
        """Make the next outer level current, if this one was entered in this very context and not in one copied."""
        if self.token is None:
            return False
        try:
            _level.reset(self.token)
        except (ValueError, RuntimeError):
            return False
        self.token = None
        return True


class _Start(NamedTuple):
    original: Callable[[threading.Thread], None]
    wrapped: Callable[[threading.Thread], None]


_level: Final[ContextVar[_Level | None]] = ContextVar("rear_fs", default=None)
_lock = threading.Lock()
#: All that were entered and not left: counted so, because an exception may come between entering and counting.
_entered: Final[set[_Level]] = set()
_start: _Start | None = None
_installed = 0
_builtins_before: dict[str, Any] = {}
_builtins_ours: dict[str, Any] = {}
_of_process: list[Any] = []


def _renew_lock() -> None:
    # Another thread of the parent may have held it during the fork.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def current() -> Any:
    """Return the innermost ``rear_fs`` of the running context; it is closed when this thread or task has outlived it.

    Raises:
        NoContextError: there is none.
    """
    level = _level.get()
    while level is not None and level.left:
        if not level.step_out():
            return level.fs
        level = _level.get()
    if level is None:
        level = threading.current_thread().__dict__.get(_INHERITED)
        if level is None:
            if _of_process:
                return _of_process[-1]
            raise NoContextError(
                "no rear_fs is open here: call rear_open and rear_pickup inside `with rear_fs(base):`, or in a thread"
                " that was started inside it, or use the methods open and pickup of a rear_fs"
            )
    return level.fs


def enter_process(fs: Any) -> None:
    """Make ``fs`` current wherever no other one is: in threads that others have started, too."""
    _of_process.append(fs)


def leave_process(fs: Any) -> None:
    """Undo one `enter_process`."""
    if fs in _of_process:
        _of_process.remove(fs)


def entered() -> object:
    """Return the token of the innermost `enter` of the running context, or ``None``."""
    return _level.get()


def enter(fs: Any) -> object:
    """Make ``fs`` the innermost one and return a token for `leave`."""
    level = _Level(fs, _level.get())
    level.token = _level.set(level)
    _entered.add(level)
    _watch_threads()
    return level


def leave(token: object, fs: Any) -> None:
    """Undo one `enter`, in any order, thread or task: generators are closed wherever the collector pleases.

    After an exception that came in the middle of it it can be called again.
    """
    assert isinstance(token, _Level)
    assert token.fs is fs
    token.left = True
    if _level.get() is token and not token.step_out():
        # Left in a copy of the context in which it was entered.
        outer = token.outer
        while outer is not None and outer.left:
            outer = outer.outer
        _level.set(outer)
    _entered.discard(token)
    _watch_threads()


def has_left(token: object) -> bool:
    """Whether `leave` was called for it."""
    return isinstance(token, _Level) and token.left


def _watch_threads() -> None:
    global _start
    with _lock:
        if _entered:
            original = threading.Thread.start
            # An exception may have come in the middle of this, here or below.
            if _start is None or original is _start.original:
                _start = _Start(original, _wrap(original))
                threading.Thread.start = _start.wrapped  # type: ignore[method-assign, assignment]
        elif _start is not None and threading.Thread.start is _start.wrapped:
            threading.Thread.start = _start.original  # type: ignore[method-assign, assignment]
            # Otherwise someone else has wrapped it since: ours stays below theirs, does nothing, and is used again.
            _start = None


def _wrap(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    @functools.wraps(original)
    def start(self: threading.Thread) -> None:
        if _entered:
            level = _level.get() or threading.current_thread().__dict__.get(_INHERITED)
            if level is not None:
                self.__dict__[_INHERITED] = level
        original(self)

    return start


def install_builtins(functions: Mapping[str, object]) -> None:
    """Make functions builtins, by name, until `remove_builtins` was called as often as this; those of the first call
    count.
    """
    global _installed
    with _lock:
        _installed += 1
        if _installed == 1:
            for name, function in functions.items():
                if name in builtins.__dict__:
                    _builtins_before[name] = builtins.__dict__[name]
                _builtins_ours[name] = builtins.__dict__[name] = function


def remove_builtins() -> None:
    """At the last call, put back what was there before; what someone else has put there since stays."""
    global _installed
    with _lock:
        if _installed == 0:
            return
        _installed -= 1
        if _installed:
            return
        for name, function in _builtins_ours.items():
            if builtins.__dict__.get(name) is function:
                if name in _builtins_before:
                    builtins.__dict__[name] = _builtins_before[name]
                else:
                    del builtins.__dict__[name]
        _builtins_ours.clear()
        _builtins_before.clear()
