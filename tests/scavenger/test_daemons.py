"""What runs for long goes on after whatever passes: it says what it could not do, waits, and tries again."""

from __future__ import annotations

import _thread
import contextlib
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bases import check_base, members, scavenge, write
from programs import start_code, start_rear, wait_for

import rear
from rear.core.layout import Layout
from rear.core.storage import Storage
from rear.errors import RearError
from rear.scavenger.leader import Leadership

# Descriptors below this number are open already when a program begins to work.
FEW_DESCRIPTORS = 3


class Daemon:
    """A program of `rear` that runs until it is told to end; what it says goes to a file."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self._errors = errors

    @property
    def said(self) -> str:
        return self._errors.read_text()

    def forget(self) -> None:
        self._errors.write_text("")

    def limit_descriptors(self, count: int) -> None:
        _, most = resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (count, most))

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextlib.contextmanager
def daemon(folder: Path, *arguments: object, code: str | None = None) -> Iterator[Daemon]:
    errors = folder / "said"
    with errors.open("a") as stream:
        options = {"stdout": subprocess.DEVNULL, "stderr": stream, "stdin": subprocess.DEVNULL}
        process = start_rear(*arguments, **options) if code is None else start_code(code, *arguments, **options)
    with process:
        try:
            yield Daemon(process, errors)
            assert process.poll() is not None or "Traceback" not in errors.read_text()
        finally:
            process.kill()


def is_merged(base: Path, name: str) -> bool:
    with contextlib.suppress(OSError, RearError):
        return name in [found.member.name for found in rear.find(base, name)]
    return False


ERRORS = """
import errno, os, sqlite3, sys
import rear
from rear.errors import BaseError, ConfigError, ZipFormatError

passing = [OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "/some/where")
           for name in ("EMFILE", "ENFILE", "ENOTCONN", "EIO", "ESTALE", "ENOSPC", "EDQUOT", "ETIMEDOUT", "EACCES")]
passing += [
    MemoryError(), RuntimeError("can't start new thread"), RecursionError("maximum recursion depth exceeded"),
    sqlite3.OperationalError("disk I/O error"), sqlite3.OperationalError("unable to open database file"),
    BaseError("not seen yet"), ConfigError("half written"), ZipFormatError("old state"), BrokenPipeError("a pool's"),
    KeyError("a fault of rear"), ImportError("no descriptor"), BlockingIOError("no process"), TimeoutError("slow"),
]
real = rear.scavenge
rounds = 0

def scavenge(*arguments, **options):
    global rounds
    rounds += 1
    # The first round shows that the options make sense.
    error = passing.pop(0) if rounds > 1 and passing else None
    if error is None:
        return real(*arguments, **options)
    if rounds % 2:
        raise error
    return fail_later(error, *arguments, **options)

def fail_later(error, *arguments, **options):
    for event in real(*arguments, **options):
        yield event
        raise error

rear.scavenge = scavenge
from rear.cli import main
sys.argv = ["rear", "scavenge", sys.argv[1], "--every", "0.01s", "--quiet"]
main()
"""


def test_a_scavenger_goes_on_after_whatever_goes_wrong_in_a_round(base: Path) -> None:
    base.mkdir()
    with daemon(base.parent, base, code=ERRORS) as program:
        wait_for(lambda: "slow" in program.said)
        write(base, {"ar.zip/a": "a"})
        wait_for(lambda: is_merged(base, "a"))
        said = program.said
        assert program.end() == 1
    assert len(said.splitlines()) == said.count("it is tried again in 0.01 s") == 22, said
    for words in ("Too many open files", "MemoryError", "start new thread", "RecursionError", "unable to open database",
                  "not seen yet", "half written", "KeyError: 'a fault of rear'"):  # fmt: skip
        assert words in said


def test_what_no_later_round_could_do_better_ends_it(base: Path) -> None:
    base.mkdir()
    for arguments, status in ((["--on-conflict", "sometimes"], 2), (["--jobs", "2", "--dask", "tcp://h:1"], 2)):
        with daemon(base.parent, "scavenge", base, "--every", "1h", *arguments) as program:
            assert program.process.wait(20) == status
    write(base, {"ar.zip/a": "a"})
    with start_rear("scavenge", base, "--every", "1h", "--json") as process:
        process.stdout.close()
        # Nobody reads what it says, and never will.
        assert process.wait(20) == 141
        process.stderr.close()


def test_a_scavenger_without_descriptors(base: Path) -> None:
    write(base, {"ar.zip/a": "a"})
    with daemon(base.parent, "scavenge", base, "--every", "0.1s", "--quiet") as program:
        wait_for(lambda: is_merged(base, "a"))
        program.limit_descriptors(FEW_DESCRIPTORS)
        wait_for(lambda: "Too many open files" in program.said)
        write(base, {"ar.zip/b": "b"})
        program.forget()
        wait_for(lambda: "Too many open files" in program.said)
        assert not is_merged(base, "b")
        program.limit_descriptors(1024)
        wait_for(lambda: is_merged(base, "b"))
        assert program.end() == 1
    # It may have been stopped in the middle of a round.
    scavenge(base)
    check_base(base, {"ar.zip/a": b"a", "ar.zip/b": b"b"})


def test_a_scavenger_whose_first_rounds_have_no_descriptors(base: Path) -> None:
    """Then not even the modules that it needs can be imported."""
    write(base, {"ar.zip/a": "a"})
    code = """if True:
        import resource, sys
        import rear.cli.app, rear.cli.commands.scavenge as command
        begun, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        tries = []
        once = command._Runs.once
        def limited(*arguments):
            tries.append(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3 if len(tries) < 5 else begun, most))
            return once(*arguments)
        command._Runs.once = limited
        from rear.cli import main
        sys.argv = ["rear", "scavenge", sys.argv[1], "--every", "0.02s", "--quiet"]
        main()
    """
    with daemon(base.parent, base, code=code) as program:
        wait_for(lambda: is_merged(base, "a"))
        assert program.end() == 1
        assert program.said.count("it is tried again") == 4


def test_a_scavenger_whose_base_is_not_there_yet_goes_and_comes_back(base: Path) -> None:
    aside = base.with_name("aside")
    with daemon(base.parent, "scavenge", base, "--every", "0.05s", "--quiet") as program:
        wait_for(lambda: "does not exist" in program.said)
        write(base, {"ar.zip/a": "a"})
        wait_for(lambda: is_merged(base, "a"))
        program.forget()
        base.rename(aside)
        wait_for(lambda: "does not exist" in program.said)
        base.write_text("a file in its place")
        wait_for(lambda: "is not a directory" in program.said)
        base.unlink()
        aside.rename(base)
        write(base, {"ar.zip/b": "b"})
        wait_for(lambda: is_merged(base, "b"))
        assert program.end() == 1
    # It may have been stopped in the middle of a round.
    scavenge(base)
    check_base(base, {"ar.zip/a": b"a", "ar.zip/b": b"b"})


def test_scavengerd_whose_base_goes_and_comes_back(base: Path) -> None:
    aside = base.with_name("aside")
    scavenger = rear.scavengerd(base, every=0.05)
    scavenger.__enter__()
    write(base, {"ar.zip/a": "a"})
    wait_for(lambda: is_merged(base, "a"))
    base.rename(aside)
    wait_for(lambda: b"does not exist" in b"".join(scavenger._errors))
    aside.rename(base)
    write(base, {"ar.zip/b": "b"})
    wait_for(lambda: is_merged(base, "b"))
    with pytest.raises(RearError, match="does not exist"):
        scavenger.close()
    check_base(base, {"ar.zip/a": b"a", "ar.zip/b": b"b"})


def test_a_watch_goes_on(base: Path) -> None:
    aside = base.with_name("aside")
    write(base, {"ar.zip/a": "a"})
    metrics = base.with_name("metrics")
    with daemon(base.parent, "status", base, "--watch", "--every", "0.05s", "--openmetrics", metrics) as program:
        wait_for(metrics.exists)
        base.rename(aside)
        wait_for(lambda: "does not exist" in program.said)
        aside.rename(base)
        metrics.unlink()
        wait_for(metrics.exists)
        program.end()


def test_a_leader_without_a_thread_for_its_beat_tries_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.mkdir()

    def refuse(*arguments: object) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
        leadership = Leadership(Layout(base))
    with leadership:
        assert not leadership._thread.has_started
        leadership.prove()
        wait_for(lambda: leadership._thread.is_running)


# ---- a worker

WRITES_WITHOUT_DESCRIPTORS = """if True:
    import os, resource, sys, time
    import rear

    base, sync = sys.argv[1:]
    fs = rear.rear_fs(base, sync=sync, sync_interval=0.02, rotation_span=0.2, lease_seconds=0.4)
    kept = []

    def write(*names):
        for name in names:
            try:
                with fs.open(f"ar.zip/{name}", "w") as file:
                    file.write(name * 1000)
            except OSError as error:
                print("refused", name, error.strerror, file=sys.stderr)
            else:
                kept.append(name)

    log = fs.open("ar.zip/log", "w")
    log.write("one,")
    log.flush()
    write("first")
    begun, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for turn in range(3):
        # For so long that it has to beat, to sync, to roll over, and to look whether its pairs are its own.
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            write(f"during{turn}-{len(kept)}")
            time.sleep(0.05)
        assert fs._worker._background.is_alive
        resource.setrlimit(resource.RLIMIT_NOFILE, (begun, most))
        write(f"after{turn}")
        log.write(f"{turn},")
        log.flush()
    log.close()
    fs.close()
    assert "after0" in kept and "after2" in kept
    print(*kept, "log")
"""


@pytest.mark.parametrize("sync", ["interval", "file"])
def test_a_worker_without_descriptors(base: Path, sync: str) -> None:
    base.mkdir()
    with start_code(WRITES_WITHOUT_DESCRIPTORS, base, sync) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Too many open files" in errors
    events = scavenge(base)
    assert [event for event in events if event.severity == "loss"] == [], errors
    found = members(base)
    kept = output.split()
    assert {name: found[name].decode() for name in kept} == {
        name: "one,0,1,2," if name == "log" else name * 1000 for name in kept
    }


class Breaking(Storage):
    """Raises an error in the threads that it is told to, a number of times, at some operations."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.times = 0
        self.raised = 0

    def _meet(self) -> None:
        if self.times:
            self.times -= 1
            self.raised += 1
            raise self.error

    def sync(self, descriptor: int) -> None:
        self._meet()
        super().sync(descriptor)

    def names(self, path: object) -> list[str]:
        self._meet()
        return super().names(path)  # type: ignore[arg-type]

    def uptime(self) -> float:
        self._meet()
        return super().uptime()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't start new thread"), RecursionError(), KeyError("x"), SystemExit(1)],
    ids=repr,
)  # fmt: skip
def test_the_background_thread_goes_on_after_whatever_goes_wrong(
    base: Path, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Breaking(error)
    fs = rear.rear_fs(base, storage=storage, sync_interval=0.01, lease_seconds=0.1)
    with fs.open("ar.zip/a", "w") as file:
        file.write("a")
    wait_for(lambda: not fs._worker._retained.items)
    storage.times = 5
    wait_for(lambda: storage.raised == 5)
    assert fs._worker._background.is_alive
    with fs.open("ar.zip/b", "w") as file:
        file.write("b")
    wait_for(lambda: not fs._worker._retained.items)
    fs.close()
    assert type(error).__name__ in caplog.text
    scavenge(base)
    check_base(base, {"ar.zip/a": b"a", "ar.zip/b": b"b"})
