"""A command as a job: it is run once, and what it prints and the files that it leaves go into an archive.

All of it is spooled in one local folder, as plain files with the names of the members to be: whatever kills this
process, or keeps it from archiving, the folder still holds what there was, and ``rear put`` archives it by hand.
"""

from __future__ import annotations

import io
import json
import os
import selectors
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Final, NamedTuple

from rear.core.escaped_names import member_target
from rear.core.folder_tree import Identity, identity_of
from rear.core.layout import Layout
from rear.core.records import Metadata
from rear.core.source_file import describe_kind
from rear.core.storage import LOCAL
from rear.errors import BaseError, RearError, SourceError
from rear.worker.fs import RearFs

OUTPUT_VARIABLE: Final = "REAR_OUTPUT"
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
_FORWARDED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGXCPU,
)
_PIECE_BYTES: Final = 1 << 16
_DRAIN_SECONDS: Final = 2.0
"""So long after its end the output of processes that a command has left in the background is waited for."""


class JobEnd(NamedTuple):
    """What became of a job.

    ``exit_status`` is the command's, as a shell has it: 128 + n after signal n. ``kept`` is the local folder, if there
    is still something in it.
    """

    exit_status: int
    failures: list[RearError | OSError]
    kept: str | None


class Job:
    """A command to be run once, by the main thread.

    Args:
        command: program and arguments.
        base: directory on the shared file system; made when the first member is archived.
        folder: ``ar.zip/folder`` for the members ``stdout``, ``stderr``, ``output/…`` and, last, ``run.json``.
        output: where the command leaves its files, which are copied; without it a local folder that is emptied.
        metadata: of all members, beside ``exit_status``.
        compression: as for `rear_fs`.
        pass_through: write what the command prints to the own standard output and error as well.
        escape_names: as for `RearFs.pickup`.
        one_file_system: as for `RearFs.pickup`, of the files that the command leaves.

    Raises:
        PathError: ``folder`` is none in an archive.
        UsageError: metadata or compression cannot be used.
        BaseError: the base is no directory, or may not be written.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        base: str,
        folder: str,
        output: str | None = None,
        metadata: Metadata | None = None,
        compression: str | None = None,
        pass_through: bool = True,
        escape_names: bool = False,
        one_file_system: bool = False,
    ) -> None:
        member_target(f"{folder}/run.json", escape=escape_names)
        self._command = list(command)
        self._folder = folder
        self._metadata = metadata or {}
        self._pass_through = pass_through
        self._escape_names = escape_names
        self._one_file_system = one_file_system
        _check_writable(base)
        # Before the command runs for days: what is wrong with these is said here.
        self._fs = RearFs(base, compression=compression)
        self._fs.pickup("/", f"{folder}/run.json", metadata=self._metadata, escape_names=escape_names).discard()
        self._own_output = output is None
        self._failures: list[RearError | OSError] = []
        self._spool = ""
        # A link that the caller names is followed once, before the command runs.
        self._output = output and os.path.realpath(output)
        self._printed: dict[str, Identity] = {}

    def run(self) -> JobEnd:
        """Run the command, archive what it left, and tell how it ended. When this returns, that survives loss of power.

        Signals that ask a process for something go to the command's process group, until it has ended; from then on
        they do not disturb the archiving.

        Raises:
            OSError: the command cannot be started, or there is no local space for its output; nothing is archived.
        """
        self._spool = tempfile.mkdtemp(prefix="rear-run-")
        if self._output is None:
            self._output = f"{self._spool}/output"
        LOCAL.make_directories(self._output)
        started = time.time()
        self._describe(started)
        with _Forwarding() as forwarding:
            try:
                status = self._execute(forwarding)
            except OSError:
                # Of what cannot be started there is nothing to keep.
                self._clear()
                raise
            try:
                self._describe(started, status)
            except OSError as error:
                # The base may have room where the local disk has none.
                self._failures.append(error)
            self._archive(status)
        return JobEnd(status, self._failures, self._spool if os.path.isdir(self._spool) else None)

    def _execute(self, forwarding: _Forwarding) -> int:
        with io.FileIO(f"{self._spool}/stdout", "wb") as stdout, io.FileIO(f"{self._spool}/stderr", "wb") as stderr:
            self._printed = {file.name: identity_of(os.fstat(file.fileno())) for file in (stdout, stderr)}
            process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=os.environ | {OUTPUT_VARIABLE: str(self._output)},
                # Of its own, so that a signal reaches all of its processes, and Ctrl-C only once.
                start_new_session=True,
            )
            forwarding.begin(process.pid)
            assert process.stdout is not None
            assert process.stderr is not None
            with process.stdout, process.stderr:
                sinks = {
                    process.stdout.fileno(): _Sinks(stdout, self._terminal(1)),
                    process.stderr.fileno(): _Sinks(stderr, self._terminal(2)),
                }
                try:
                    _copy(process, sinks)
                except OSError as error:
                    self._failures.append(error)
            # Where it was not copied to its end, a command that goes on printing is ended by SIGPIPE.
            process.wait()
            forwarding.end()
        self._failures += filter(None, (sink.failure for sink in sinks.values()))
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _terminal(self, descriptor: int) -> io.FileIO | None:
        try:
            return io.FileIO(descriptor, "wb", closefd=False) if self._pass_through else None
        except OSError:
            # Closed by the caller: `rear run … >&-`.
            return None

    def _describe(self, started: float, status: int | None = None) -> None:
        description: dict[str, object] = {
            "command": self._command,
            "directory": _current_folder(),
            "host": socket.gethostname(),
            "base": self._fs.base,
            "into": self._folder,
            "started": _utc(started),
        }
        if status is not None:
            description |= {"ended": _utc(time.time()), "exit_status": status}
        with open(f"{self._spool}/run.json", "w", encoding="utf-8") as file:
            json.dump(description, file, ensure_ascii=True, indent=2)
            file.write("\n")

    def _archive(self, status: int) -> None:
        metadata: Metadata = {**self._metadata, "exit_status": str(status)}
        output = str(self._output)
        try:
            with self._fs:
                for name in ("stdout", "stderr"):
                    self._pick_up(f"{self._spool}/{name}", name, metadata)
                if self._has_output(output):
                    self._pick_up(output, "output", metadata, keep=not self._own_output)
                if not self._failures:
                    # Last: who sees it knows that nothing is missing.
                    self._pick_up(f"{self._spool}/run.json", "run.json", metadata)
        except (RearError, OSError) as error:
            self._failures.append(error)
        if not self._failures:
            self._clear(keep_files=True)
            if os.path.lexists(self._spool):
                # Left out of the archive, or written since.
                self._failures.append(SourceError(f"{self._spool} still holds files that were not archived"))

    def _has_output(self, output: str) -> bool:
        """Whether there is something in the folder for the command's files; note a failure if it is none any more."""
        try:
            mode = os.lstat(output).st_mode
            if stat.S_ISDIR(mode):
                with os.scandir(output) as entries:
                    return next(entries, None) is not None
            what = f"is {describe_kind(mode)} now: the command replaced its output folder, and it was not archived"
            self._failures.append(SourceError(f"{output} {what}"))
        except FileNotFoundError:
            self._failures.append(SourceError(f"{output} is gone: the command removed its output folder"))
        except OSError as error:
            self._failures.append(error)
        return False

    def _pick_up(self, source: str, name: str, metadata: Metadata, *, keep: bool = False) -> None:
        try:
            if source in self._printed and identity_of(os.lstat(source)) != self._printed[source]:
                raise SourceError(f"{source} was replaced by the command: what it printed is not there any more")
            self._fs.pickup(
                source,
                f"{self._folder}/{name}",
                metadata=metadata,
                keep=keep,
                on_refused=self._failures.append,
                escape_names=self._escape_names,
                one_file_system=self._one_file_system,
            ).close()
        except (RearError, OSError) as error:
            self._failures.append(error)

    def _clear(self, *, keep_files: bool = False) -> None:
        """Remove the local folder; with ``keep_files`` only if all files have gone by way of the archive."""
        if not keep_files:
            for name in ("stdout", "stderr", "run.json"):
                with suppress(OSError):
                    LOCAL.unlink(f"{self._spool}/{name}")
        for folder in (f"{self._spool}/output", self._spool):
            with suppress(OSError):
                LOCAL.remove_directory(folder)


class _Sinks:
    """Where one stream of a command goes: its spool file, and the own standard output or error."""

    def __init__(self, spool: io.FileIO, terminal: io.FileIO | None) -> None:
        self._spool = spool
        self._terminal = terminal
        self.failure: OSError | None = None

    def write(self, data: bytes) -> None:
        if self.failure is None:
            try:
                # Were this a file of `rear_open`, here would be the place to flush it now and then.
                _write_all(self._spool, data)
            except OSError as error:
                # The job goes on, and what came before is archived.
                self.failure = OSError(error.errno, error.strerror, self._spool.name)
        if self._terminal is not None:
            try:
                _write_all(self._terminal, data)
            except OSError:
                # Whoever looked on has gone.
                self._terminal = None


def _write_all(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _copy(process: subprocess.Popen[bytes], sinks: dict[int, _Sinks]) -> None:
    """Copy what a command prints until it has ended, and all of that is copied."""
    ended, at_end = os.pipe()

    def wait() -> None:
        process.wait()
        os.close(at_end)

    waiter = threading.Thread(target=wait, daemon=True)
    deadline: float | None = None
    with selectors.DefaultSelector() as selector, os.fdopen(ended, "rb", 0):
        waiter.start()
        for descriptor in (*sinks, ended):
            selector.register(descriptor, selectors.EVENT_READ)
        is_open = set(sinks)
        while is_open or deadline is None:
            if deadline is not None and time.monotonic() > deadline:
                break
            for key, _ in selector.select(None if deadline is None else max(0.0, deadline - time.monotonic())):
                data = os.read(key.fd, _PIECE_BYTES)
                if data:
                    sinks[key.fd].write(data)
                    continue
                selector.unregister(key.fd)
                is_open.discard(key.fd)
                if key.fd == ended:
                    deadline = time.monotonic() + _DRAIN_SECONDS
        waiter.join()


class _Forwarding:
    """Hands signals on to a command's process group: those that came before it began, too, and none after its end."""

    def __init__(self) -> None:
        self._group: int | None = None
        self._early: list[int] = []
        self._is_over = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> _Forwarding:
        for number in _FORWARDED:
            # What the caller has ignored, as `nohup` does, is ignored by the command as well.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._forward)
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            self._before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._pause)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self, group: int) -> None:
        self._group = group
        for number in self._early:
            self._send(number)

    def end(self) -> None:
        self._is_over = True

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if self._group is None:
            self._early.append(number)
        else:
            self._send(number)

    def _pause(self, number: int, frame: FrameType | None) -> None:
        # In a session of its own the command does not hear of Ctrl-Z.
        self._send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        if self._group is not None and not self._is_over:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)


def _check_writable(base: str) -> None:
    """Refuse a base that cannot be written before a command runs in vain.

    Raises:
        BaseError: it may not be written, or may not be made.
    """
    folder = str(Layout(base).base)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise BaseError(f"{folder} cannot be written, so nothing could be archived in {base}; the command was not run")


def _current_folder() -> str | None:
    """Return the current folder, if it still exists."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _utc(seconds: float) -> str:
    whole, part = divmod(round(seconds * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{part:03}Z"
