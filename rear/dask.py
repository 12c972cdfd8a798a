"""rear and Dask: a ``rear_fs`` on each worker of a cluster, and clusters that check and copy for a scavenger.

    from distributed import Client
    from rear import rear_open
    from rear.dask import RearPlugin

    def simulate(number):
        with rear_open(f"runs.zip/{number}.txt", "w") as file:
            file.write(...)

    client = Client("tcp://host:8786")
    client.register_plugin(RearPlugin("/nfs/base"))
    client.gather(client.map(simulate, range(1000)))

Needs the extra ``rear[dask]``.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from typing import Any, Final

from rear.core.storage import StrPath
from rear.errors import UnsupportedError
from rear.worker.fs import RearFs
from rear.worker.pools import begin, end

try:
    from distributed import Client, Security, WorkerPlugin, rpc
except ImportError as error:
    raise UnsupportedError(f"Dask is not usable here ({error}): pip install 'rear[dask]'", "program") from None

CONNECT_SECONDS: Final = 10.0


class RearPlugin(WorkerPlugin):
    """Opens a ``rear_fs`` on each Dask worker, also on those that come later; closes it when the worker ends.

    Inside tasks, `rear_open` and `rear_pickup` use it. What a worker leaves that is killed, a scavenger saves.

    Args:
        base: directory on the shared file system, by its path on the workers.
        options: of `rear.rear_fs`.
    """

    def __init__(self, base: StrPath, **options: Any) -> None:
        self.name = f"rear-{os.fspath(base)!r}"
        self._base = os.fspath(base)
        self._options = options
        self._fs: RearFs | None = None

    def setup(self, worker: Any) -> None:
        """Open it, when the plugin comes to a worker.

        Raises:
            UsageError: an option has a value that cannot be used.
            BaseError: the base is there, but is no directory.
        """
        self._fs = begin(self._base, self._options)

    async def teardown(self, worker: Any) -> None:
        """Close it, when the worker ends or the plugin is taken away.

        Raises:
            NotArchivedError: acknowledged files could not be brought to stable storage; it names them.
        """
        import anyio

        fs, self._fs = self._fs, None
        if fs is not None:
            # Waits for syncs: not in the event loop.
            await anyio.to_thread.run_sync(end, fs)


@contextmanager
def connected(address: str) -> Iterator[Executor]:
    """Connect to a Dask scheduler, and yield an executor for `rear.scavenge` and ``rear fsck``.

    Args:
        address: such as ``tcp://host:8786``.

    Raises:
        ConnectionError: no scheduler answers there.
    """
    import anyio

    with _silent():
        try:
            # A client would wait for more than a minute where something else listens.
            anyio.run(_greet, address)
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="rear")
        except Exception as error:
            # Whatever half an answer, or one of another program, makes of Dask's own code.
            reason = str(error) or f"nothing within {CONNECT_SECONDS:.0f} s"
            raise ConnectionError(errno.ECONNREFUSED, f"no Dask scheduler answers: {reason}", address) from None
        try:
            # Not pure: the same task twice is done twice.
            yield client.get_executor(pure=False)
        finally:
            # What it had to do is done; a scheduler that has gone meanwhile is no failure of that.
            with suppress(Exception):
                client.close(timeout=CONNECT_SECONDS)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep tracebacks of Dask's own from the terminal: what they are about is told, or done without the cluster."""
    logger = logging.getLogger("distributed")
    handlers, logger.handlers = logger.handlers, [logging.NullHandler()]
    try:
        yield
    finally:
        logger.handlers = handlers


async def _greet(address: str) -> None:
    """Make sure that a scheduler answers; `OSError` when something else does, or nothing."""
    import anyio

    with anyio.fail_after(CONNECT_SECONDS):
        arguments = Security().get_connection_args("client")
        async with rpc(address, connection_args=arguments) as scheduler:
            identity = await scheduler.identity()
    if not isinstance(identity, dict) or identity.get("type") != "Scheduler":
        raise ConnectionError("something else is there")
