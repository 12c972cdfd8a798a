"""Namespaces of this machine that end, with all that is in them, when the process that made them ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"


class LaboratoryError(Exception):
    """Something in the laboratory does not work; the message holds the last lines of the log that tells why."""


def wait_until(condition: Callable[[], object], seconds: float, what: str, log: Path | None = None) -> None:
    """Return when a condition holds.

    Raises:
        LaboratoryError: it did not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:] if log is not None and log.exists() else ""
            raise LaboratoryError(f"{what}: not within {seconds:.0f} s\n{tail}")
        time.sleep(0.05)


class Namespaces:
    """A set of new namespaces, and a process that keeps them; when it ends, all in them ends, mounts included.

    Args:
        kinds: options of unshare(1) for further namespaces.
        within: command that runs another one in the namespaces around these.
        init: program of the first process. The default ends when this process has ended, however that happens.
        log: its output.
    """

    def __init__(
        self,
        *,
        kinds: Sequence[str] = (),
        within: Sequence[str] = (),
        init: Sequence[str] = ("cat",),
        log: Path | None = None,
    ) -> None:
        command = [
            *within, "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            "--propagation", "private", *kinds, *init,
        ]  # fmt: skip
        self._started: list[subprocess.Popen[bytes]] = []
        with open(log or os.devnull, "ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
                env={"PATH": PATH, "LANG": "C.UTF-8"},
            )  # fmt: skip
        try:
            wait_until(self._find_init, 10, "namespaces", log)
        except BaseException:
            self.close()
            raise

    def _find_init(self) -> bool:
        # With ``within`` there are more processes in between: the one that is looked for is the first of a new
        # namespace, and has gone on to its own program.
        pid = self._process.pid
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
            status = Path(f"/proc/{pid}/status").read_text()
            name, numbers = status.split("\n", 1)[0], status.partition("NSpid:")[2].partition("\n")[0].split()
            if numbers[-1] == "1" and not name.endswith("unshare"):
                self.pid = pid
                return True
        if self._process.poll() is not None:
            raise LaboratoryError("namespaces: unshare has ended")
        return False

    @property
    def enter(self) -> list[str]:
        """The beginning of a command that runs the rest of it in here."""
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--uts", "--"]

    @property
    def root(self) -> Path:
        """The root folder as seen in here."""
        return Path(f"/proc/{self.pid}/root")

    def run(self, *argv: str) -> str:
        """Run a short command in here and return what it printed.

        Raises:
            LaboratoryError: it failed.
        """
        done = subprocess.run(
            [*self.enter, *argv], capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": PATH, "LANG": "C.UTF-8"},
        )  # fmt: skip
        if done.returncode:
            raise LaboratoryError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def start(self, *argv: str, log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a long-running program in here."""
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [*self.enter, *argv], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={"PATH": PATH, "LANG": "C.UTF-8", **(environment or {})},
            )  # fmt: skip
        self._started.append(process)
        return process

    def listens(self, port: int) -> bool:
        """Whether something in here listens on a TCP port."""
        lines = [
            line.split()
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/{self.pid}/net/{name}").read_text().splitlines()[1:]
        ]
        return any(fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in lines)

    @property
    def ended(self) -> bool:
        """Whether nothing runs in here any more."""
        return self._process.poll() is not None

    def resume(self) -> None:
        """Let go on what nsenter began: it stops itself when what it started is stopped."""
        for process in (self._process, *self._started):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End everything in here. Does nothing the second time."""
        for process in (self._process, *self._started):
            if process.stdin is not None:
                process.stdin.close()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def descendants(pid: int) -> Iterator[int]:
    """Yield the children of a process, and theirs."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield child
        with contextlib.suppress(FileNotFoundError):
            yield from descendants(child)


def processes_in(pid: int) -> Iterator[int]:
    """Yield the processes of the pid namespace whose first process is ``pid``, as seen from here."""
    wanted = os.readlink(f"/proc/{pid}/ns/pid")
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/ns/pid") == wanted:
                yield int(name)
