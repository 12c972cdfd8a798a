"""A real program on a pseudo-terminal."""

from __future__ import annotations

import errno
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

from programs import has_open


class Shown(NamedTuple):
    """What a program left: its exit status, what reached the terminal, and what it wrote to a pipe besides."""

    status: int
    screen: str
    out: bytes

    @property
    def lines(self) -> list[str]:
        return self.screen.replace("\r\n", "\n").splitlines()


def on_terminal(
    *command: str | Path,
    columns: int = 80,
    rows: int = 24,
    environment: dict[str, str] | None = None,
    stdout_to_pipe: bool = False,
    interrupt_after_seconds: float | None = None,
    interrupt_once_open: Path | None = None,
    timeout_seconds: float = 60,
) -> Shown:
    """Run a program whose standard output and error are a terminal of this size; Ctrl-C comes from the terminal.

    Args:
        command: the program; ``rear`` means the one of this checkout.
        columns: width of the terminal.
        rows: its height.
        environment: what is different from the environment of the tests, which has no colours or widths here.
        stdout_to_pipe: only standard error is the terminal.
        interrupt_after_seconds: then Ctrl-C is typed.
        interrupt_once_open: that time counts from when the program has opened this file.
        timeout_seconds: how long the program may take.
    """
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "LS_COLORS", "COLUMNS", "LINES")}
    program, *arguments = map(str, command)
    start = [sys.executable, "-m", "rear"] if program == "rear" else [program]
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (rows, columns))
    process = subprocess.Popen(
        [*start, *arguments], stdin=slave, stdout=subprocess.PIPE if stdout_to_pipe else slave, stderr=slave,
        env={**kept, "TERM": "xterm-256color", **(environment or {})},
        preexec_fn=_take_terminal,
    )  # fmt: skip
    os.close(slave)
    begun, screen = time.monotonic(), bytearray()
    os.set_blocking(master, False)
    out = b""
    try:
        if stdout_to_pipe:
            out = process.stdout.read()
            process.stdout.close()
        while True:
            try:
                data = os.read(master, 65536)
            except BlockingIOError:
                data = b""
                time.sleep(0.005)
            except OSError as error:
                # Linux says so when the last process has closed the terminal.
                if error.errno != errno.EIO:
                    raise
                break
            screen += data
            if interrupt_once_open is not None and has_open(process.pid, interrupt_once_open):
                begun, interrupt_once_open = time.monotonic(), None
            passed = time.monotonic() - begun
            if (
                interrupt_once_open is None
                and interrupt_after_seconds is not None
                and passed >= interrupt_after_seconds
            ):
                os.write(master, b"\x03")
                interrupt_after_seconds = None
            if passed > timeout_seconds:
                process.send_signal(signal.SIGKILL)
                raise AssertionError(f"{command} takes longer than {timeout_seconds} s: {bytes(screen)!r}")
    finally:
        os.close(master)
        status = process.wait()
    return Shown(status, screen.decode("utf-8", "replace"), out)


def _take_terminal() -> None:
    os.setsid()
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
