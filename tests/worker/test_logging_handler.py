"""`rear.logging.RearHandler`: what was logged is in the archive, whatever becomes of the process."""

from __future__ import annotations

import gc
import logging
import logging.config
import os
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fixtures
import pytest
from bases import check_archive, scavenge
from faults import fork, in_child, wait
from programs import run_code

import rear
from rear.errors import PathError, UsageError
from rear.events import Partial
from rear.logging import RearHandler

base = fixtures.scratch_base


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger without other handlers; those that a test adds are closed."""
    logger = logging.Logger("test")
    yield logger
    for handler in logger.handlers:
        handler.close()


def logs(base: Path, archive: str = "logs.zip") -> dict[str, str]:
    """Scavenge, and return the text of all members, which `unzip` finds whole."""
    partial = {event.name for event in scavenge(base) if isinstance(event, Partial)}
    if not (base / archive).exists():
        return {}
    check_archive(base / archive)
    with zipfile.ZipFile(base / archive) as file:
        return {f"{name} partial" if name in partial else name: file.read(name).decode() for name in file.namelist()}


def run(code: str, base: Path) -> int:
    """Run a program and return how it ended."""
    return run_code(code, base, capture_output=False).returncode


CONFIGURED = """
import logging, logging.config, os, signal, sys
logging.config.dictConfig({
    "version": 1,
    "formatters": {"short": {"format": "%(levelname)s %(message)s"}},
    "handlers": {"archive": {
        "class": "rear.logging.RearHandler", "path": "logs.zip/a.log", "base": sys.argv[1], "formatter": "short",
        "level": "INFO",
    }},
    "root": {"level": "DEBUG", "handlers": ["archive"]},
})
logging.debug("left out")
for number in range(100):
    logging.info("record %d", number)
"""
EXPECTED = "".join(f"INFO record {number}\n" for number in range(100))


def test_a_killed_program_has_all_that_it_logged(base: Path) -> None:
    assert run(f"{CONFIGURED}\nos.kill(os.getpid(), signal.SIGKILL)", base) == -signal.SIGKILL
    assert logs(base) == {"a.log partial": EXPECTED}


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise SystemExit", "logging.shutdown()"])
def test_a_program_that_ends_has_a_complete_log(base: Path, end: str) -> None:
    assert run(f"{CONFIGURED}\n{end}", base) in (0, 3)
    assert logs(base) == {"a.log": EXPECTED}


def test_one_member_for_each_process(base: Path, log: logging.Logger) -> None:
    log.addHandler(RearHandler("logs.zip/{host}/{pid}-{time}.log", base=base))
    log.warning("of the parent")

    def child(last: int) -> None:
        log.warning("of a child")
        if last:
            os.kill(os.getpid(), last)
        logging.shutdown([lambda: log.handlers[0]])  # type: ignore[list-item]

    killed, ended = fork(lambda: child(signal.SIGKILL)), fork(lambda: child(0))
    assert (wait(killed), wait(ended)) == (-signal.SIGKILL, 0)
    log.warning("and again")
    log.handlers[0].close()
    found = logs(base)
    by_pid = {name.rpartition("/")[2].partition("-")[0]: text for name, text in found.items()}
    assert by_pid == {
        str(os.getpid()): "of the parent\nand again\n", str(killed): "of a child\n", str(ended): "of a child\n",
    }  # fmt: skip
    assert [name.endswith("partial") for name in found] == [f"/{killed}-" in name for name in found]


def test_records_below_the_level_are_flushed_a_little_later(base: Path) -> None:
    def child(pause_seconds: float) -> None:
        log = logging.Logger("test")
        handler = RearHandler("logs.zip/a.log", base=base, flush_level="ERROR", flush_seconds=0.2)
        log.addHandler(handler)
        log.info("flushed with the next")
        log.error("flushed at once")
        log.info("flushed later")
        time.sleep(pause_seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: child(0)) == -signal.SIGKILL
    assert logs(base) == {"a.log partial": "flushed with the next\nflushed at once\n"}
    assert in_child(lambda: child(1.5)) == -signal.SIGKILL
    assert logs(base)["a~1.log"] == "flushed with the next\nflushed at once\nflushed later\n"


def test_inside_a_rear_fs_it_uses_that_one(base: Path, log: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    with rear.rear_fs(base):
        log.addHandler(RearHandler("logs.zip/a.log", metadata={"run": 7}))
        thread = threading.Thread(target=lambda: log.info("from a thread: %s", "ä \ud800"))
        thread.start()
        thread.join()
    assert logs(base) == {"a.log": "from a thread: ä \\ud800\n"}
    log.info("too late")
    assert "the log logs.zip/a.log is closed" in capfd.readouterr().err
    log.handlers[0].close()


def test_a_rear_fs_that_is_given_or_comes_later(base: Path, log: logging.Logger) -> None:
    later = RearHandler("logs.zip/later.log")
    fs = rear.rear_fs(base)
    given = RearHandler("logs.zip/given.log", fs=fs)
    for handler in (later, given):
        log.addHandler(handler)
    with fs:
        log.info("hello")
        for handler in (later, given):
            handler.close()
            handler.close()
    assert logs(base) == {"later.log": "hello\n", "given.log": "hello\n"}


def test_threads_log_while_the_file_system_fails(base: Path) -> None:
    """rear's own warnings, which the root logger gets too, do not come back to the file that they are about."""
    code = """
import errno, logging, sys, threading
from faults import Failing
import rear
from rear.logging import RearHandler
failing = Failing(errno.EIO, lambda point, path: point.operation in ("write", "sync") and point.number % 7 == 3)
fs = rear.rear_fs(sys.argv[1], storage=failing, sync_interval=0.001)
logging.basicConfig(level="INFO", format="%(message)s", handlers=[RearHandler("logs.zip/a.log", fs=fs)])
def work(number):
    for line in range(100):
        logging.info("%d %d", number, line)
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert failing.failed
failing.healthy = True
logging.shutdown()
fs.close()
"""
    done = run_code(code, base)
    assert done.returncode == 0, done.stderr
    found = logs(base)
    assert list(found) == ["a.log"]
    expected = [f"{number} {line}" for number in range(4) for line in range(100)]
    assert sorted(found["a.log"].splitlines()) == sorted(expected)


def test_wrong_use_is_told_when_the_handler_is_made(base: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"path": "no-archive.log"}, PathError, "names no archive"),
        ({"path": "logs.zip/../{pid}"}, PathError, "has a part"),
        ({"path": "logs.zip/{user}"}, UsageError, "cannot be filled in"),
        ({"path": "logs.zip/a", "flush_seconds": 0}, UsageError, "flush_seconds"),
        ({"path": "logs.zip/a", "flush_level": "LOUD"}, UsageError, "flush_level"),
        ({"path": "logs.zip/a", "base": base, "fs": rear.rear_fs(base)}, UsageError, "not both"),
        ({"path": "logs.zip/a", "encoding": "klingon"}, LookupError, "klingon"),
    ]
    for arguments, kind, message in wrong:
        with pytest.raises(kind, match=message):
            RearHandler(**arguments)
    gc.collect()


def test_a_handler_that_never_logs_leaves_nothing(base: Path) -> None:
    RearHandler("logs.zip/a.log", base=base).close()
    assert not base.exists()
