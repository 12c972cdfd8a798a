"""Info-ZIP's ``zip -FF``, for what the scanner finds nothing in. It runs bounded in time and output, without a shell.

``zip -FF`` may never end, and fill a disk meanwhile, when header signatures stand inside data; and it may deliver
wrong bytes. So its limits are set by a small program that then becomes ``zip`` (setting them between fork and exec is
not safe in a process with threads), and whoever calls this checks what comes out.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from rear.core.liveness import is_running, process_of_worker, this_process, worker_name
from rear.core.storage import LOCAL, Storage, StrPath, created, opened
from rear.errors import UnsupportedError

TIME_LIMIT_SECONDS: Final = 600
#: A fixed archive is about as large as the damaged one: directory and headers may be new.
_OUTPUT_FACTOR: Final = 1.25
_OUTPUT_EXTRA_BYTES: Final = 16 << 20
_PROGRAM: Final = "zip"
_SCRATCH_PREFIX: Final = "rear-salvage-"
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


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Yield a folder for `fix`, outside of all bases; what killed processes of this user have left of theirs goes."""
    here, around = this_process(), tempfile.gettempdir()
    for name in os.listdir(around):
        # The name of a worker tells of which process it is, and a random part follows.
        worker = name.removeprefix(_SCRATCH_PREFIX).rpartition("-")[0]
        owner = process_of_worker(here.host, worker) if name.startswith(_SCRATCH_PREFIX) else None
        if owner is not None and is_running(owner) is False and _is_own(os.path.join(around, name)):
            _remove(Path(around, name))
    with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH_PREFIX}{worker_name(here, '0')}-") as folder:
        yield folder


def _remove(folder: Path) -> None:
    for inner, folders, files in os.walk(folder, topdown=False):
        with suppress(OSError):
            for name in files:
                LOCAL.unlink(Path(inner, name))
            for name in folders:
                LOCAL.remove_directory(Path(inner, name))
    with suppress(OSError):
        LOCAL.remove_directory(folder)


def _is_own(folder: str) -> bool:
    with suppress(OSError):
        status = os.lstat(folder)
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return False


def fix(
    path: StrPath, folder: StrPath, *, seconds: float = TIME_LIMIT_SECONDS, storage: Storage = LOCAL
) -> Path | None:
    """Let ``zip -FF`` make an archive from a damaged one, in at most ``seconds``.

    The result is made in ``folder``; all else there is removed again. A sparse file, most of which is holes, was
    written by no worker and no archiver, and zip would read all of its zeros: of that nothing is made.

    Returns:
        path of the result, which is the caller's to check and to remove; ``None`` when there is none.

    Raises:
        UnsupportedError: ``zip`` is not installed.
        OSError: there is no room for the result (``ENOSPC``), or the file cannot be read.
    """
    # A folder of its own: a zip that is killed leaves temporary files of its own.
    # Nobody else may put a link there, or look into it, also where a group shares the folder that it is in.
    workspace = Path(tempfile.mkdtemp(prefix="rear-", suffix=".new", dir=folder))
    try:
        with opened(path, storage) as source:
            size = storage.size(source)
            if storage.is_mostly_holes(source, _OUTPUT_EXTRA_BYTES):
                return None
            limit = int(size * _OUTPUT_FACTOR) + _OUTPUT_EXTRA_BYTES
            _check_room(workspace, limit)
            _name_source(source, size, workspace / "damaged.zip", storage)
            status = _run([_PROGRAM, "-FF", "damaged.zip", "--out", "fixed.zip"], workspace, limit, seconds, source)
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


def _check_room(folder: Path, needed_bytes: int) -> None:
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < needed_bytes:
        raise OSError(errno.ENOSPC, f"zip -FF may need {needed_bytes:,} bytes there (TMPDIR)", os.fspath(folder))


def _name_source(source: int, size: int, path: Path, storage: Storage) -> None:
    """Give an open file a name for ``zip``, which only reads it; a copy where the system has no names for open files.

    By the descriptor: another file may have the archive's own name by now.
    """
    of_descriptor = f"/proc/self/fd/{source}"
    if os.path.exists(of_descriptor):
        os.symlink(of_descriptor, path)
        return
    with created(path, storage) as target:
        storage.copy_range(source, target, source_start=0, target_start=0, length=size)


def _run(command: list[str], folder: Path, limit: int, seconds: float, source: int) -> int | None:
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
            pass_fds=[source],
        ).returncode
    except subprocess.TimeoutExpired:
        return None
