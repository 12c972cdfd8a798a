"""Executors that help, do nothing, do things twice or die, and a base for them to work on."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import bases
import pytest
from bases import check_base, of_kind, put, scavenge
from faults import in_child
from zips import write_zip

import rear
from rear.core import parallel
from rear.core.storage import Storage
from rear.events import Lost, Refused
from rear.fsck import inspection_tasks
from rear.scavenger import copy_tasks, merge
from rear.scavenger.copy_tasks import CopyTask

BLOCK = 4096


class Here(Executor):
    """Does each task at once, in this thread."""

    def __init__(self, change: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda arguments: arguments) -> None:
        self.submitted = 0
        self.tasks: list[Any] = []
        self.copies: list[CopyTask] = []
        self._change = change

    def note(self, *arguments: Any) -> None:
        self.submitted += 1
        self.tasks.append(arguments[2])
        if isinstance(arguments[2], CopyTask):
            self.copies.append(with_kept_sources(arguments[2]))

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        self.note(*arguments)
        future: Future[Any] = Future()
        try:
            future.set_result(function(*self._change(arguments)))
        except BaseException as error:
            # Those that end the run are the leader's in these tests.
            if not isinstance(error, Exception):
                raise
            future.set_exception(error)
        return future


def with_kept_sources(task: CopyTask) -> CopyTask:
    """Return the same copy from files that stay, as if a late task had them open already."""
    folder = Path(task.permit).parents[2].with_name("kept")
    folder.mkdir(exist_ok=True)
    pieces = []
    for piece in task.pieces:
        if isinstance(piece.source, str):
            kept = folder / os.path.basename(piece.source)
            if not kept.exists():
                os.link(piece.source, kept)
            piece = piece._replace(source=os.fspath(kept))
        pieces.append(piece)
    return task._replace(pieces=tuple(pieces))


class Hopeless(Executor):
    """Does nothing, and says so in one of several ways."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
        self.submitted = 0

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        self.submitted += 1
        future: Future[Any] = Future()
        if isinstance(self.error, RuntimeError):
            raise self.error
        if self.error is not None:
            future.set_exception(self.error)
        return future


class Substituting(ProcessPoolExecutor):
    """A local pool whose tasks get another storage."""

    def __init__(self, storage: Storage, jobs: int = 2) -> None:
        super().__init__(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=parallel._begin_process)
        self._substitute = storage

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        return super().submit(function, *arguments[:-1], self._substitute)


class Killing(Storage):
    """Kills its process in the middle of the first copy, or of the first read of a large file, there is."""

    def __init__(self, marker: Path, operation: str, victim: int | None = None) -> None:
        self.marker = os.fspath(marker)
        self.operation = operation
        self.victim = victim

    def _kill(self) -> None:
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(self.victim or os.getpid(), signal.SIGKILL)

    def copy_range(self, source: int, target: int, *, source_start: int, target_start: int, length: int) -> None:
        half = length // 2
        super().copy_range(source, target, source_start=source_start, target_start=target_start, length=half)
        if self.operation == "copy_range":
            self._kill()
        super().copy_range(
            source, target, source_start=source_start + half, target_start=target_start + half, length=length - half
        )

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        if self.operation == "read" and offset > 0:
            self._kill()
        return super().read(descriptor, length, offset)


# ---- bases


def content(number: int) -> bytes:
    return random.Random(number).randbytes(number * 977 % 9000)


EXPECTED = {f"ar.zip/one/{number}.bin": content(number) for number in range(40)}
EXPECTED |= {f"sub/new.zip/two/{number}.bin": content(100 + number) for number in range(40)}
EXPECTED |= {"ar.zip/theirs.txt": b"made by zipfile\n" * 50, "ar.zip/twice.txt": b"theirs came first"}
#: These get a number, and so a header of their own between the ranges.
EXPECTED |= {"ar.zip/twice~1.txt": b"ours came second" * 100}


def write(base: Path, *, crash: bool = False) -> None:
    with rear.rear_fs(base, compression="stored") as fs:
        for target, data in EXPECTED.items():
            if "theirs" not in target and target != "ar.zip/twice.txt":
                put(fs, target.replace("~1", ""), data)
        if crash:
            os.kill(os.getpid(), signal.SIGKILL)


def make_base(base: Path, *, crash: bool = False) -> Path:
    base.mkdir()
    write_zip(base / "ar.zip", {name: EXPECTED[f"ar.zip/{name}"] for name in ("theirs.txt", "twice.txt")})
    assert in_child(lambda: write(base, crash=crash)) == (-signal.SIGKILL if crash else 0)
    return base


def renew(base: Path, template: str = "template") -> Path:
    """Make a base anew from the one beside it, which is made when it is needed first; in ``crashed`` a worker died."""
    made = base.parent / template
    if not made.exists():
        make_base(made, crash=template == "crashed")
    return bases.renew(base, made)


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything worth an executor, and tasks small."""
    monkeypatch.setattr(merge, "SHARED_COPY_BYTES", 1)
    monkeypatch.setattr(parallel, "SHARED_CHECK_BYTES", 1)
    monkeypatch.setattr(inspection_tasks, "LOCAL_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(parallel, "TASK_BYTES", 4 * BLOCK)
    monkeypatch.setattr(copy_tasks, "TASK_BYTES", 4 * BLOCK)
    monkeypatch.setattr(copy_tasks, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(copy_tasks, "WITHDRAWAL_SECONDS", 0.3)


def check(base: Path) -> None:
    check_base(base, EXPECTED)


def recover(base: Path) -> None:
    """Scavenge once more: nothing is said to be lost or refused, and all is there."""
    assert not of_kind(scavenge(base), Lost, Refused)
    check(base)
