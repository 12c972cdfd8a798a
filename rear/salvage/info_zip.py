"""Info-ZIP's ``zip -FF``, for what the scanner finds nothing in. It runs bounded in time and output, without a shell.

``zip -FF`` may never end, and fill a disk meanwhile, when header signatures stand inside data; and it may deliver
wrong bytes. So its limits are set by a small program that then becomes ``zip`` (setting them between fork and exec is
not safe in a process with threads), and whoever calls this checks what comes out.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from rear.core.storage import LOCAL, Storage, StrPath, close_read
from rear.errors import UnsupportedError

TIME_LIMIT_SECONDS: Final = 600
#: A fixed archive is about as large as the damaged one: directory and headers may be new.
_OUTPUT_FACTOR: Final = 1.25
_OUTPUT_EXTRA_BYTES: Final = 16 << 20
_PROGRAM: Final = "zip"
#: Without an end record it asks whether this is a single-disk archive (split ones do not come here); with -q it then
#: finds nothing.
_ANSWER: Final = b"y\n"
_LAUNCHER: Final = """
import os, resource, signal, sys
size, seconds, *command = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.umask(0o077)
try:
    os.execvp(command[0], command)
except FileNotFoundError:
    sys.exit(127)
"""
_NOT_FOUND: Final = 127


def fix(
    path: StrPath, folder: StrPath, *, seconds: float = TIME_LIMIT_SECONDS, storage: Storage = LOCAL
) -> Path | None:
    """Let ``zip -FF`` make an archive from a copy of a damaged one, in at most ``seconds``.

    Copy and result are made in ``folder``, and all but the result is removed again.

    Returns:
        path of the result, which is the caller's to check and to remove; ``None`` when there is none.

    Raises:
        UnsupportedError: ``zip`` is not installed.
        OSError: the copy could not be made.
    """
    # A folder of its own: a zip that is killed leaves temporary files of its own.
    # Nobody else may put a link there, or look into it, also where a group shares the folder that it is in.
    workspace = Path(tempfile.mkdtemp(prefix="rear-", suffix=".new", dir=folder))
    try:
        limit = int(_copy(path, workspace / "damaged.zip", storage) * _OUTPUT_FACTOR) + _OUTPUT_EXTRA_BYTES
        status = _run([_PROGRAM, "-FF", "damaged.zip", "--out", "fixed.zip"], workspace, limit, seconds)
        if status == _NOT_FOUND:
            raise UnsupportedError("zip is not installed, so zip -FF could not be tried", "program")
        if "fixed.zip" not in storage.names(workspace):
            return None
        result = workspace.with_suffix(".zip")
        storage.rename(workspace / "fixed.zip", result)
        return result
    finally:
        for name in storage.names(workspace):
            storage.unlink(workspace / name)
        storage.remove_directory(workspace)


def _run(command: list[str], folder: Path, limit: int, seconds: float) -> int | None:
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(limit), str(math.ceil(seconds))]
    try:
        # Its status tells little: it is not 0 for many archives that it fixes, and 0 for some that it does not.
        return subprocess.run(
            [*launcher, *command],
            cwd=folder,
            input=_ANSWER,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return None


def _copy(path: StrPath, copy: Path, storage: Storage) -> int:
    source = storage.open(path)
    try:
        target = storage.create(copy, 0o600)
        try:
            size = storage.size(source)
            storage.copy_range(source, target, source_start=0, target_start=0, length=size)
        finally:
            storage.close(target)
    finally:
        close_read(source, storage)
    return size
