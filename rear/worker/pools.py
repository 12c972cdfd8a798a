"""``rear_fs`` in the processes of a pool: one for each of them, open as long as it lives.

    from concurrent.futures import ProcessPoolExecutor
    from rear.worker.pools import open_in_process

    with ProcessPoolExecutor(initializer=open_in_process, initargs=("/nfs/base",)) as pool:
        pool.map(simulate, range(1000))  # which calls rear_open

The same for `multiprocessing.Pool`, joblib, and whatever else begins a process by calling a function.
"""

from __future__ import annotations

from typing import Any

from rear.core.context import enter_process, leave_process
from rear.core.storage import StrPath
from rear.worker.fs import RearFs


def open_in_process(base: StrPath, options: dict[str, Any] | None = None) -> None:
    """Open a ``rear_fs`` for the rest of this process: `rear_open` and `rear_pickup` use it in all threads.

    It is closed when the process ends in good order; of one that is killed, a scavenger saves what it had
    acknowledged, as ever. Calling it again for another base makes that one the current one.

    Args:
        base: directory on the shared file system.
        options: of `rear.rear_fs`, by name.

    Raises:
        UsageError: an option has a value that cannot be used.
        BaseError: the base is there, but is no directory.
    """
    fs = RearFs(base, **(options or {}))
    # Innermost also where the parent, from which this process was forked, had one open.
    fs.__enter__()
    enter_process(fs)


def begin(base: StrPath, options: dict[str, Any]) -> RearFs:
    """Open a ``rear_fs`` for all threads of this process, until `end`."""
    fs = RearFs(base, **options)
    enter_process(fs)
    return fs


def end(fs: RearFs) -> None:
    """Take a ``rear_fs`` away again, and close it.

    Raises:
        NotArchivedError: acknowledged files could not be brought to stable storage; it names them.
        OSError: a file that was still open could not be archived.
    """
    leave_process(fs)
    fs.close()
