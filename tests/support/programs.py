"""Programs in a process of their own: `rear`, or some code. What `conftest.py` sets lets them find this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from checkout import ROOT


def rear_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rear", *map(str, arguments)]


def run_rear(*arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run ``rear``, however it ends, and return what it printed; options are those of `subprocess.run`."""
    return _run(rear_command(*arguments), options)


def run_code(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program in Python like `run_rear`."""
    return _run([sys.executable, "-c", code, *map(str, arguments)], options)


def _run(command: list[str], options: dict[str, Any]) -> subprocess.CompletedProcess[Any]:
    usual: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False}
    return subprocess.run(command, **(usual | options))


def start_rear(*arguments: object, **options: Any) -> subprocess.Popen[Any]:
    """Start ``rear`` with pipes for what it prints; options are those of `subprocess.Popen`."""
    return start(rear_command(*arguments), **options)


def start_code(code: str, *arguments: object, **options: Any) -> subprocess.Popen[Any]:
    return start([sys.executable, "-c", code, *map(str, arguments)], **options)


def start(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    return subprocess.Popen(command, **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options))


def fresh(code: str) -> str:
    """Return what code prints in a new interpreter, without what the environment's ``.pth`` files import."""
    search = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    code = f"import sys; sys.path[:0] = {search!r}\n{code}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Return when something has come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def has_open(process: int, path: Path) -> bool:
    """Tell whether a process has a file open at this moment."""
    folder = Path(f"/proc/{process}/fd")
    try:
        return any(os.path.samefile(link, path) for link in folder.iterdir() if link.exists())
    except OSError:
        return False


def in_threads(function: Callable[[Any], object], arguments: Iterable[object]) -> None:
    """Call a function for each argument at once, in a thread of its own, and return when all have returned."""
    threads = [threading.Thread(target=function, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
