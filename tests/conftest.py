"""What holds for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkout import ROOT, SUPPORT

# An assertion in there shows its values, too.
pytest.register_assert_rewrite(*({path.stem for path in SUPPORT.glob("*.py")} - {"checkout"}))

# Programs that are started here find this checkout and `tests/support`, wherever they run.
_found = os.environ.get("PYTHONPATH", "").split(os.pathsep)
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(SUPPORT), *map(os.path.abspath, filter(None, _found))])

# A test says itself which base it means.
os.environ.pop("REAR_BASE", None)

# A shell without job control lets what it starts in the background ignore SIGINT and SIGQUIT, and nohup SIGHUP; then
# all programs that are started here would. A handler that does nothing keeps the tests alone from ending.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, lambda *_: None),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Where a base may come to lie."""
    return tmp_path / "base"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for all tests of a file that sync thousands of times."""
    from bases import scratch_folder

    with scratch_folder() as folder:
        yield folder


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for one test that syncs thousands of times."""
    from bases import scratch_folder

    with scratch_folder() as folder:
        yield folder


@pytest.fixture
def traceable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs can be run under strace, and find the same compiled modules each time."""
    from faults import needs_strace

    needs_strace()
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "compiled"))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts the clock of this process forward, by so many seconds each time."""
    from rear.core.storage import Storage

    real, seconds = Storage.uptime, 0.0

    def put_forward(more: float) -> None:
        nonlocal seconds
        seconds += more
        monkeypatch.setattr(Storage, "uptime", lambda self: real(self) + seconds)

    return put_forward
