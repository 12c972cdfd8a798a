"""`scavengerd`: a scavenger in a process of its own, for as long as a block runs."""

from __future__ import annotations

import os
import subprocess
from types import TracebackType
from typing import Any, Self

from rear.core.python import python_command
from rear.core.storage import StrPath
from rear.core.threads import HelperThread
from rear.errors import BaseError, RearError, UsageError

_ERROR_LINES = 20


class scavengerd:
    """Keep scavenging a base in a subprocess while the block runs; once more at its end.

    Use it as ``with`` or ``async with`` (asyncio and trio). Put it *around* the workers' ``rear_fs``: then the final
    archives are complete when the block has ended. The subprocess ends with this process, however that ends.

    Args:
        base: directory on the shared file system; made when it is missing, as workers do.
        every: seconds between two scavenges.
        verify: as for `rear.scavenge`.
        on_conflict: as for `rear.scavenge`.
        max_size: as for `rear.scavenge`.
        max_members: as for `rear.scavenge`.
        jobs: processes that check and copy, where there is much of it.
        dask: address of a Dask scheduler whose workers do that instead: ``tcp://host:8786``.
        owner_only: as for `rear.scavenge`.

    Raises:
        UsageError: an option has a value that cannot be used.
        BaseError: the base cannot be a directory.

    On leaving, `RearError`: a scavenge failed or had a loss to report; the message holds what it said.
    """

    def __init__(
        self,
        base: StrPath,
        every: float = 60.0,
        *,
        verify: bool | None = None,
        on_conflict: str | None = None,
        max_size: int | None = None,
        max_members: int | None = None,
        jobs: int | None = None,
        dask: str | None = None,
        owner_only: bool = False,
    ) -> None:
        if not every > 0:
            raise UsageError(f"every is {every!r}: it has to be a number of seconds greater than 0")
        if jobs is not None and jobs < 1:
            raise UsageError(f"jobs is {jobs!r}: it has to be a number of processes, 1 or more")
        self._base = os.path.abspath(base)
        self._every = every
        self._options = ["--quiet", *["--owner-only"] * owner_only]
        if verify is not None:
            self._options.append("--verify" if verify else "--no-verify")
        for option, value in (
            ("--on-conflict", on_conflict),
            ("--max-size", max_size),
            ("--max-members", max_members),
            ("--jobs", jobs),
            ("--dask", dask),
        ):
            self._options += [] if value is None else [option, str(value)]
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: list[bytes] = []
        self._reader: HelperThread | None = None

    def _command(self, *more: str) -> list[str]:
        return python_command("rear", "scavenge", self._base, *self._options, *more)

    def __enter__(self) -> Self:
        try:
            os.makedirs(self._base, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BaseError(f"{self._base} is not a directory: it cannot be a base") from None
        process = self._process = subprocess.Popen(
            self._command("--every", f"{self._every}", "--until-eof"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = HelperThread(lambda: self._read_errors(process))
        self._reader.start("rear scavengerd")
        return self

    def _read_errors(self, process: subprocess.Popen[bytes]) -> None:
        # Read all the time, lest the scavenger waits for a full pipe; keep the last lines.
        assert process.stderr is not None
        for line in process.stderr:
            self._errors = [*self._errors, line][-_ERROR_LINES:]

    def close(self) -> None:
        """Stop the subprocess, and scavenge a last time.

        Raises:
            RearError: a scavenge failed or had a loss to report.
        """
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        status = process.wait()
        if self._reader is not None:
            self._reader.join()
        if process.stderr is not None:
            process.stderr.close()
        last = subprocess.run(self._command(), stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if status or last.returncode:
            said = b"".join([*self._errors, last.stderr]).decode(errors="replace").strip()
            raise RearError(f"the scavenger of {self._base} ended with status {status or last.returncode}: {said}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RearError as failure:
            # The error of the block is the one to see; this one goes along as a note.
            if error is None:
                raise
            error.add_note(str(failure))

    async def __aenter__(self) -> Self:
        import anyio

        return await anyio.to_thread.run_sync(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import anyio

        def leave() -> Any:
            return self.__exit__(kind, error, trace)

        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(leave)
