"""Exceptions at any line of the public calls, by a tracer, by signal handlers and by other threads.

Whatever was acknowledged is there once, and a write that returned is there once; what was interrupted is there as a
whole or not at all. No lock stays taken: closing ends, in another thread too. No member is there that nobody wrote.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import linecache
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import fixtures
import pytest
from bases import scavenge
from faults import SEED, Failing, is_one_of
from programs import run_code, wait_for

import rear
from rear.core import context
from rear.worker.pair_writer import Item
from rear.worker.retained import Prover

base = fixtures.scratch_base

PIECES = [bytes([65 + number]) * 40 for number in range(6)]
PACKAGE = str(Path(rear.__file__).parent)


class Interrupt(Exception):
    """What a signal handler of a program raises."""


class Run:
    """What one run has been told."""

    def __init__(self, base: Path, number: int) -> None:
        self.base = base
        self.number = number
        self.where = ""
        self.systems: list[rear.RearFs] = []
        #: By member the pieces whose writes have returned, and the one that may be there.
        self.written: dict[str, list[bytes]] = {}
        self.acknowledged: set[str] = set()
        self.options: dict[str, Any] = {"sync_interval": 1000.0}

    def write(self, fs: rear.RearFs, name: str, mode: str, *, goes_on: bool = False, flushes: bool = False) -> None:
        """Write a file piece by piece; one that ``goes_on`` catches what a write raises, and writes the next piece."""
        name = f"{self.number}/{name}"
        with fs.open(f"ar.zip/{name}", mode) as file:
            pieces = self.written.setdefault(name, [])
            for piece in PIECES:
                try:
                    file.write(piece if "b" in mode else piece.decode())
                    pieces.append(piece)
                    if flushes:
                        file.flush()
                except (Interrupt, TimeoutError):
                    if not goes_on:
                        raise
        self.acknowledged.add(name)


def written(run: Run, mode: str, **how: Any) -> None:
    run.options |= {"spool_size": 100} if how.pop("spooled", False) else {}
    fs = rear.rear_fs(run.base, **run.options)
    run.systems.append(fs)
    with fs:
        run.write(fs, "a", mode, **how)
        run.write(fs, "b", mode)


def discarded(run: Run) -> None:
    fs = rear.rear_fs(run.base, **run.options)
    run.systems.append(fs)
    with fs, contextlib.suppress(ZeroDivisionError), fs.open(f"ar.zip/{run.number}/discarded", "w") as file:
        file.write("half of it")
        raise ZeroDivisionError


def picked_up(run: Run) -> None:
    source = run.base.parent / f"source-{run.number}"
    source.write_bytes(PIECES[0])
    run.written[f"{run.number}/p"] = [PIECES[0]]
    fs = rear.rear_fs(run.base, sync="file")
    run.systems.append(fs)
    with fs, fs.pickup(source, f"ar.zip/{run.number}/p"):
        pass
    run.acknowledged.add(f"{run.number}/p")


def opened(run: Run) -> None:
    """Nothing is written: a file that could not be opened is no member."""
    fs = rear.rear_fs(run.base, **run.options)
    run.systems.append(fs)
    with fs:
        file = rear.rear_open(f"ar.zip/{run.number}/opened", "wb")
        sys.settrace(None)
        file.close()
    run.acknowledged.add(f"{run.number}/opened")


CALLS: dict[str, Callable[[Run], None]] = {
    "binary": lambda run: written(run, "wb"),
    "binary goes on": lambda run: written(run, "wb", goes_on=True),
    "text": lambda run: written(run, "w"),
    "text goes on": lambda run: written(run, "w", goes_on=True),
    "spooled": lambda run: written(run, "wb", spooled=True),
    "spooled goes on": lambda run: written(run, "wb", goes_on=True, spooled=True),
    "spooled text goes on": lambda run: written(run, "w", goes_on=True, spooled=True),
    "flushed": lambda run: written(run, "wb", flushes=True),
    "flushed text goes on": lambda run: written(run, "w", flushes=True, goes_on=True),
    "discarded": discarded,
    "picked up": picked_up,
    "opened": opened,
}


@pytest.fixture(autouse=True)
def no_context_stays() -> Iterator[None]:
    yield
    # Where an exception comes as a block is left, before its first line, the rear_fs stays entered.
    context._entered.clear()
    context._watch_threads()


def interrupted(run: Run, call: Callable[[Run], None], error: type[Exception], before: set[tuple[str, int]]) -> bool:
    """Raise at the next line that is not among those of before; return whether there was one."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and (code.co_filename, frame.f_lineno) not in before:
            before.add((code.co_filename, frame.f_lineno))
            source = linecache.getline(code.co_filename, frame.f_lineno).lstrip()
            # Python looks for signals after calls: none comes between the last call of a block and its end. And whether
            # a block was entered or left when an exception comes at the beginning of that, nobody can know.
            if not source.startswith(("with ", "try:")) and code.co_name not in ("__enter__", "__exit__"):
                sys.settrace(None)
                run.where = f"{code.co_filename}:{frame.f_lineno}"
                raise error("too late")
        return trace

    def run_it() -> None:
        sys.settrace(trace)
        try:
            call(run)
        finally:
            sys.settrace(None)

    with contextlib.suppress(error):
        contextvars.copy_context().run(run_it)
    return bool(run.where)


def close_elsewhere(run: Run) -> None:
    """Close in another thread, which any lock that stayed taken holds up."""

    def close() -> None:
        for fs in run.systems:
            fs.close()
        ended.append(True)

    ended: list[bool] = []
    thread = threading.Thread(target=close, daemon=True)
    thread.start()
    thread.join(20)
    assert ended, f"closing does not end after an exception at {run.where}"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("name", "error"),
    [(name, Interrupt) for name in CALLS]
    + [(name, TimeoutError) for name in ("binary", "spooled", "flushed", "opened", "picked up", "discarded")],
)
def test_an_exception_at_every_line(base: Path, name: str, error: type[Exception]) -> None:
    base.mkdir()
    runs: list[Run] = []
    before: set[tuple[str, int]] = set()
    while not runs or runs[-1].where:
        runs.append(run := Run(base, len(runs) + 1))
        interrupted(run, CALLS[name], error, before)
        close_elsewhere(run)
    assert len(runs) > 60
    check(base, runs)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("mode", ["w", "wb", "w+b"])
@pytest.mark.parametrize("method", ["__enter__", "__exit__"])
@pytest.mark.parametrize("error", [Interrupt, TimeoutError])
@pytest.mark.parametrize("fails", [True, False], ids=["failed", "ended"])
def test_an_exception_before_a_block_is_entered_or_left(
    base: Path, mode: str, method: str, error: type[Exception], fails: bool
) -> None:
    """Before the first line of the method: the file of a block that had failed is no member, nor is an empty one."""
    places: list[str] = []

    def trace(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if frame.f_code.co_name == method and file.startswith(PACKAGE) and file.endswith("member_file.py"):
            places.append(file)
            raise error

    base.mkdir()
    with contextlib.suppress(error, ZeroDivisionError), rear.rear_fs(base) as fs, fs.open("ar.zip/a", mode) as file:
        file.write(b"half" if "b" in mode else "half")
        sys.settrace(trace)
        if method == "__enter__":
            with fs.open("ar.zip/b", mode):
                pass
        if fails:
            raise ZeroDivisionError
    sys.settrace(None)
    assert len(places) == 1
    scavenge(base)
    assert not (base / "ar.zip").exists()


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_file_that_its_rear_fs_has_dropped_is_not_acknowledged(base: Path, mode: str) -> None:
    """By a thread that goes on after the block of the ``rear_fs`` has failed."""
    base.mkdir()
    with contextlib.suppress(ZeroDivisionError), rear.rear_fs(base) as fs:
        whole, half, failed = (fs.open(f"ar.zip/{name}", mode) for name in ("whole", "half", "failed"))
        for file in (whole, half, failed):
            file.write("text" if mode == "w" else b"text")
        half.__enter__()
        failed.__enter__()
        raise ZeroDivisionError
    whole.close()
    with pytest.raises(rear.RearError, match="half was not archived: the block of its rear_fs had failed"):
        half.__exit__(None, None, None)
    failed.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    for file in (whole, half, failed):
        assert file.closed
        with pytest.raises(ValueError, match="closed"):
            file.write("text" if mode == "w" else b"text")
    assert [event for event in scavenge(base) if event.severity != "info"] == []
    assert zipfile.ZipFile(base / "ar.zip").namelist() == ["whole"]


def check(base: Path, runs: list[Run]) -> None:
    for _ in range(2):
        assert [event for event in scavenge(base) if event.severity != "info"] == []
    names, found = list[str](), dict[str, bytes]()
    if (base / "ar.zip").exists():
        with zipfile.ZipFile(base / "ar.zip") as archive:
            names = archive.namelist()
            found = {name: archive.read(name) for name in names}
    assert len(names) == len(found)
    for run in runs:
        own = {name for name in found if name.startswith(f"{run.number}/")}
        assert own <= {*run.written, *run.acknowledged}, f"members that nobody wrote: {run.where}"
        assert run.acknowledged <= set(found), f"acknowledged, and not there: {run.where}"
        for name, pieces in run.written.items():
            if name not in found:
                continue
            content = found[name]
            assert is_made_of(content, pieces), (run.where, name, content, pieces)


def is_made_of(content: bytes, pieces: list[bytes]) -> bool:
    """Whether all pieces are there once and in order, and of the one that was interrupted all or nothing."""
    whole = b"".join(pieces)
    if content == whole:
        return True
    missing = [piece for piece in PIECES if piece not in pieces]
    return any(sorted([*pieces, piece]) == sorted(_split(content)) for piece in missing)


def _split(content: bytes) -> list[bytes]:
    return [content[start : start + 40] for start in range(0, len(content), 40)]


PROGRAM = """
import random, signal, sys, rear
base, log, seed = sys.argv[1:]
chance = random.Random(int(seed))

class Timeout(Exception):
    pass

def late(*_):
    raise Timeout

signal.signal(signal.SIGALRM, late)
fs = rear.rear_fs(base, sync_interval=0.001, spool_size=300)
acknowledged = open(log, "a")
for number in range(600):
    pieces = []
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.001))
        with fs.open(f"ar.zip/{number}", chance.choice(["w", "wb"])) as file:
            for piece in range(8):
                try:
                    data = f"{number}-{piece};" * 9
                    file.write(data if file.mode == "w" else data.encode())
                    pieces.append(piece)
                except Timeout:
                    pass
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Timeout:
        continue
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(number, *pieces, file=acknowledged, flush=True)
fs.close()
print("closed")
"""


@pytest.mark.parametrize("seed", range(SEED, SEED + 2))
def test_alarms_at_random(base: Path, seed: int) -> None:
    base.mkdir()
    log = base.parent / "log"
    log.touch()
    done = run_code(PROGRAM, base, log, seed)
    assert done.stdout == "closed\n", done.stderr
    scavenge(base)
    acknowledged = {number: pieces for number, *pieces in map(str.split, log.read_text().splitlines())}
    assert len(acknowledged) > 50
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert len(archive.namelist()) == len(set(archive.namelist()))
        for number, pieces in acknowledged.items():
            found = archive.read(number).decode().split(";")[:-1]
            kept = [one.split("-")[1] for one in found]
            assert all(one.startswith(f"{number}-") for one in found)
            assert kept == sorted(kept)
            assert all(kept.count(piece) == (9 if piece in kept else 0) for piece in "01234567")
            assert set(pieces) <= set(kept)


FROM_ANOTHER_THREAD = """
import ctypes, faulthandler, itertools, logging, os, random, sys, threading, time, warnings
import rear
from rear.logging import RearHandler

base, log, seed, seconds = sys.argv[1:]
faulthandler.dump_traceback_later(40, exit=True)
warnings.simplefilter("ignore")
sys.unraisablehook = lambda unraisable: None
threading.excepthook = lambda arguments: None
chance = random.Random(int(seed))
numbers = itertools.count(1)
log = os.open(log, os.O_WRONLY | os.O_APPEND)
is_over = False

class Stop(Exception):
    pass

def written(fs, number, flushes=False):
    pieces = []
    with fs.open(f"ar.zip/{number}", chance.choice(["w", "wb"])) as file:
        for piece in range(8):
            try:
                data = f"{number}-{piece};" * 9
                file.write(data if file.mode == "w" else data.encode())
                pieces.append(piece)
                if flushes:
                    file.flush()
            except Stop:
                pass
    os.write(log, f"{number} {' '.join(map(str, pieces))}\\n".encode())

def flushed(fs, number):
    written(fs, number, flushes=True)

def opened(fs, number):
    inner = rear.rear_fs(base, sync=chance.choice(["file", "interval"]), spool_size=300)
    systems.append(inner)
    with inner:
        written(inner, number)

def picked_up(fs, number):
    source = f"{base}-source-{number}"
    with open(source, "w") as file:
        file.write("".join(f"{number}-{piece};" * 9 for piece in range(8)))
    sources.append(number)
    with fs.pickup(source, f"ar.zip/{number}"):
        pass
    os.write(log, f"{number} 0 1 2 3 4 5 6 7\\n".encode())

def logged(fs, number):
    logger.info("%d", number)

def work():
    while not is_over:
        try:
            chance.choice([written, written, flushed, opened, picked_up, logged])(fs, next(numbers))
        except Stop:
            pass

fs = rear.rear_fs(base, sync_interval=0.001, spool_size=300)
systems, sources = [fs], []
logger = logging.Logger("test")
handler = RearHandler("logs.zip/log", fs=fs, flush_level="ERROR", flush_seconds=0.01)
logger.addHandler(handler)
logging.raiseExceptions = False
worker = None
end = time.monotonic() + float(seconds)
while time.monotonic() < end:
    if worker is None or not worker.is_alive():
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
    time.sleep(chance.uniform(0.0001, 0.003))
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(Stop))
is_over = True
worker.join()
handler.close()
for system in systems:
    system.close()
print("closed", *sources)
"""


@pytest.mark.parametrize("seed", range(SEED, SEED + 2))
def test_exceptions_from_another_thread(base: Path, seed: int) -> None:
    """As a thread of a notebook or a server is told to stop: they come at any line, in the middle of a lock too."""
    base.mkdir()
    log = base.parent / "log"
    log.touch()
    done = run_code(FROM_ANOTHER_THREAD, base, log, seed, 3)
    told, *sources = done.stdout.split()
    assert told == "closed", done.stderr
    for _ in range(2):
        # What was flushed is kept where the end of the file was interrupted; what an interrupted flush left of a file
        # that went on in another pair is put aside.
        told = {"partial", "set_aside"}
        found = [event for event in scavenge(base) if event.severity != "info" and event.kind not in told]
        assert found == [], str(found)
    acknowledged = {number: pieces for number, *pieces in map(str.split, log.read_text().splitlines())}
    assert len(acknowledged) > 50
    with zipfile.ZipFile(base / "ar.zip") as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        content = {name: archive.read(name).decode().split(";")[:-1] for name in names}
    for number, pieces in acknowledged.items():
        assert set(pieces) <= {one.split("-")[1] for one in content[number]}
    for number, parts in content.items():
        kept = [one.split("-")[1] for one in parts]
        assert all(one.startswith(f"{number}-") for one in parts)
        assert kept == sorted(kept)
        assert all(kept.count(piece) in (0, 9) for piece in "01234567")
    for number in sources:
        source = Path(f"{base}-source-{number}")
        assert source.exists() or len(content[number]) == 72, "a source was removed that is not archived"


def test_the_background_thread_goes_on_where_not_even_a_message_can_be_logged(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a descriptor `logging` cannot be imported, which happens with the first message."""
    storage = Failing(errno.EMFILE, is_one_of("names", "create", "sync"))
    fs = rear.rear_fs(base, storage=storage, sync_interval=0.01, lease_seconds=0.1)
    storage.healthy = True
    with fs.open("ar.zip/a", "w") as file:
        file.write("kept")
    storage.healthy = False
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "logging", None)
        wait_for(lambda: fs._worker.log.waiting)
        assert fs._worker._background.is_alive
    storage.healthy = True
    fs.close()
    assert "Too many open files" in caplog.text
    assert [event for event in scavenge(base) if event.severity != "info"] == []
    assert zipfile.ZipFile(base / "ar.zip").read("a") == b"kept"


def test_a_source_that_is_gone_is_not_taken_back(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler picks a file up in the middle of rear, and another exception comes as its source has been removed."""

    def tell(self: Prover, item: Item) -> None:
        real(self, item)
        raise Interrupt

    real = Prover.tell
    monkeypatch.setattr(Prover, "tell", tell)
    source = base.parent / "source"
    source.write_bytes(b"the only copy")
    with rear.rear_fs(base, lease_seconds=0.3) as fs:
        with fs._worker._lock, pytest.raises(Interrupt):
            fs.pickup(source, "ar.zip/a").close()
        assert not source.exists()

        def is_merged() -> bool:
            scavenge(base)
            return (base / "ar.zip").exists()

        wait_for(is_merged)
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert archive.read("a") == b"the only copy"
