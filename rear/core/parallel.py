"""Tasks on an executor: in their order, a bounded number at once, and in this process where the executor fails.

An executor saves time, and nothing depends on it. A task is a function of a module and a small value, and running it
twice does what running it once does. It tells its own errors by value, so whatever a future raises is the executor's
failure: a worker was lost, a pool is broken, a scheduler is gone. Either way the task is then done here, and its error
counts if it occurs here too: another host may have an older view of a file, less space, or fewer codecs.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from rear.core.descent import know_base, known_bases
from rear.core.log import warn
from rear.core.storage import LOCAL, Storage, StrPath
from rear.core.version import __version__

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

PATIENCE_SECONDS = 60.0
"""When no task has come back for so long, the one that is waited for is done here."""
TASK_BYTES: Final = 64 << 20
"""About as many bytes are read or written by one task, and it has at most `TASK_MEMBERS` members."""
TASK_MEMBERS: Final = 5_000
_FEWEST_IN_FLIGHT: Final = 4
_MOST_IN_FLIGHT: Final = 64
_WORKERS_ASSUMED: Final = 16

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Failed(NamedTuple):
    """A task ended with an error of its own."""

    reason: str


class Parallel:
    """Runs tasks on an executor, or in this process when there is none.

    Args:
        executor: any `concurrent.futures.Executor`; it is not shut down here.
        storage: the file system, for the tasks too.
    """

    def __init__(self, executor: Executor | None = None, *, storage: Storage = LOCAL) -> None:
        self._executor = self._given = executor
        self._storage = storage
        workers = int(getattr(executor, "_max_workers", None) or _WORKERS_ASSUMED)
        self._in_flight = min(max(2 * workers, _FEWEST_IN_FLIGHT), _MOST_IN_FLIGHT)
        self._came_back = time.monotonic()
        self._is_silent = False
        self._warned = False

    @property
    def has_executor(self) -> bool:
        """Whether tasks go anywhere else than to this process."""
        return self._executor is not None

    @property
    def is_local(self) -> bool:
        """Whether all tasks are done on this host."""
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

        return self._given is None or isinstance(self._given, (ProcessPoolExecutor, ThreadPoolExecutor))

    def run(
        self,
        function: Callable[[_Task, Storage], _Result],
        tasks: Iterable[_Task],
        *,
        here: Callable[[_Task], _Result] | None = None,
        is_worthwhile: bool = True,
    ) -> Generator[tuple[_Task, _Result], None, None]:
        """Yield each task with its result, in the order of the tasks; tasks are taken as they are needed.

        When the generator is closed, or left by an error, what has not begun is cancelled.

        Args:
            function: of a module; called with a task and the storage.
            tasks: small values that can be pickled.
            here: does a task in this process; by default ``function`` does.
            is_worthwhile: false to do all of it in this process: there is too little of it.

        Raises:
            Exception: what a task raised in this process.
        """
        waiting: deque[tuple[_Task, Future[Any] | None]] = deque()
        # One that has gone silent gets its chances, but shorter ones.
        self._came_back = time.monotonic() - (PATIENCE_SECONDS * 0.99 if self._is_silent else 0.0)
        try:
            for task in tasks:
                waiting.append((task, self._submit(function, task) if is_worthwhile else None))
                if len(waiting) >= self._in_flight or waiting[0][1] is None:
                    yield self._next(waiting, function, here)
            while waiting:
                yield self._next(waiting, function, here)
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()

    def _submit(self, function: Callable[[_Task, Storage], _Result], task: _Task) -> Future[Any] | None:
        if self._executor is None:
            return None
        try:
            return self._executor.submit(attempt, __version__, function, task, known_bases(), self._storage)
        except Exception as error:
            # Shut down or broken, for good.
            self._executor = None
            self._warn(error)
            return None

    def _next(
        self,
        waiting: deque[tuple[_Task, Future[Any] | None]],
        function: Callable[[_Task, Storage], _Result],
        here: Callable[[_Task], _Result] | None,
    ) -> tuple[_Task, _Result]:
        task, future = waiting[0]
        result = Failed("") if future is None else self._result_of(future)
        waiting.popleft()
        if isinstance(result, Failed):
            result = function(task, self._storage) if here is None else here(task)
        return task, result

    def _result_of(self, future: Future[Any]) -> Any:
        """Wait for a result, but not longer than `PATIENCE_SECONDS` after the last one."""
        patience = self._came_back + PATIENCE_SECONDS - time.monotonic()
        try:
            result = future.result(timeout=max(0.0, patience))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            # Those that say "cancelled" are no Exceptions in some executors.
            self._is_silent = not future.done()
            future.cancel()
            self._warn(error)
            return Failed(str(error))
        self._came_back, self._is_silent = time.monotonic(), False
        if isinstance(result, Failed):
            self._warn(result.reason)
        return result

    def _warn(self, error: object) -> None:
        if not self._warned:
            self._warned = True
            told = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
            warn("a task failed on its executor, and this process does what fails there: %s", told)


def attempt(
    version: str,
    function: Callable[[_Task, Storage], _Result],
    task: _Task,
    bases: Iterable[str],
    storage: Storage,
) -> _Result | Failed:
    """Do a task where an executor runs it, and tell its errors by value.

    Another version of rear than the one that made the task may understand it otherwise. Below the bases of its maker no
    link is followed here, either.
    """
    if version != __version__:
        return Failed(f"a worker of the executor has rear {__version__}, the scavenger {version}")
    for base in bases:
        know_base(base)
    try:
        return function(task, storage)
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}")


def local_pool(jobs: int, warm_up: Sequence[str] = ()) -> Executor:
    """Return a pool of processes on this host; they start when there is work, and end with this process.

    They are started anew, not forked: a fork would inherit threads, locks and open files. Programs that call this need
    the usual ``if __name__ == "__main__":``.

    Args:
        jobs: how many processes.
        warm_up: modules that tasks need: imported while a process starts, and while the leader still plans.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    class Pool(ProcessPoolExecutor):
        def submit(self, *task: Any, **options: Any) -> Future[Any]:
            # Here its processes are started, as they are needed.
            with _inherited():
                return super().submit(*task, **options)

    spawn = multiprocessing.get_context("spawn")
    with _inherited():
        return Pool(jobs, mp_context=spawn, initializer=_begin_process, initargs=(tuple(warm_up),))


@contextmanager
def _inherited() -> Iterator[None]:
    """Have what is started in the block import nothing from the current folder, and not hear of Ctrl-C, even before its
    first line: that reaches all processes of a terminal, and what becomes of the tasks is the parent's to say.
    """
    name = "PYTHONSAFEPATH"
    before = os.environ.get(name)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.environ[name] = "1"
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _begin_process(warm_up: Sequence[str] = ()) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for module in warm_up:
        importlib.import_module(module)


def _end_with_parent() -> None:
    """End this process when its parent has: one that was killed cannot tell it to."""
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


SHARED_CHECK_BYTES = 64 << 20
"""From so many bytes on, or so many members, checks are done on the executor; for less, that would not be worth it."""
SHARED_CHECK_MEMBERS = 20_000
_TRAVELLING_BYTES = 2 << 20
"""About as much is sent with one task: records of members with much metadata are long."""
_Item = TypeVar("_Item")


def is_much(size_bytes: int, members: int) -> bool:
    """Whether an executor is worthwhile for a check of so many bytes, of so many members."""
    return size_bytes >= SHARED_CHECK_BYTES or members >= SHARED_CHECK_MEMBERS


def open_same(path: str, inode: int, storage: Storage) -> int:
    """Open a file that another process knows by the number of its inode, too.

    Raises:
        OSError: it cannot be opened, or (``ECANCELED``) is another file.
    """
    storage.names(Path(path).parent)
    descriptor = storage.open(path)
    if os.fstat(descriptor).st_ino != inode:
        storage.close(descriptor)
        raise OSError(errno.ECANCELED, "another file than the one that is to be read", path)
    return descriptor


class Identity(NamedTuple):
    """Which file it is, whatever has its name: the number of its inode, which is used again, and its owner."""

    inode: int
    user: int


def identity_of(status: os.stat_result) -> Identity:
    """Return which file a status is of."""
    return Identity(status.st_ino, status.st_uid)


def open_checked(path: StrPath, identity: Identity | None, storage: Storage) -> int:
    """Open a file by its name, if it is still the one that was checked; ``None``: it was not.

    Who may rename what is in its folder could have put a file there that she may not read, to read the copy of it.

    Raises:
        OSError: it cannot be opened, or (``ECANCELED``) is another file.
    """
    descriptor = storage.open(path)
    if identity is not None and identity_of(os.fstat(descriptor)) != identity:
        storage.close(descriptor)
        raise OSError(errno.ECANCELED, "another file than the one that was checked", os.fspath(path))
    return descriptor


def cut(items: Iterable[_Item], sizes_of: Callable[[_Item], tuple[int, int]]) -> Iterator[tuple[_Item, ...]]:
    """Put items together to tasks.

    Args:
        items: members.
        sizes_of: tells how many bytes of a member are read, and about how many its description travels with.
    """
    batch: list[_Item] = []
    length = travelling = 0
    for item in items:
        batch.append(item)
        read, sent = sizes_of(item)
        length, travelling = length + read, travelling + sent
        if len(batch) >= TASK_MEMBERS or length >= TASK_BYTES or travelling >= _TRAVELLING_BYTES:
            yield tuple(batch)
            batch, length, travelling = [], 0, 0
    if batch:
        yield tuple(batch)
