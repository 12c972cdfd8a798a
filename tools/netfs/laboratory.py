"""A server, two hosts and the network between them, in namespaces that end with the process that made them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from netfs.namespaces import PATH, LaboratoryError, Namespaces

HERE: Final = Path(__file__).resolve().parent
#: Where hosts have the share, and the folder by which they hand out logs.
SHARE: Final = "/mnt/share"
OUT: Final = "/mnt/out"
#: Python of hosts' own; what is tested is run by an interpreter of the caller's choice.
PYTHON: Final = "/usr/bin/python3"


def missing(programs: Sequence[str], packages: str) -> str | None:
    """Tell why a laboratory cannot be brought up here, if so."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [program for program in programs if shutil.which(program, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install --no-install-recommends {packages})"
    absent = [path for path in ("/dev/fuse", "/dev/net/tun", "/dev/loop-control", PYTHON) if not os.path.exists(path)]
    return f"{', '.join(absent)} missing" if absent else None


class Command:
    """A command that runs on a host."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self._process = process
        #: The file that its output is appended to.
        self.output = output

    def wait(self, seconds: float) -> int:
        """Return its status when it has ended.

        Raises:
            LaboratoryError: it has not within ``seconds``.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            tail = self.output.read_text(errors="replace")[-2000:] if self.output.exists() else ""
            raise LaboratoryError(f"still running after {seconds:.0f} s: {self.output}\n{tail}") from None

    @property
    def running(self) -> bool:
        """Whether it has not ended, as far as is known here: of a host without power nothing more is heard."""
        return self._process.poll() is None

    def forget(self) -> None:
        """Wait no longer for it."""
        self._process.kill()
        self._process.wait()


class Host(ABC):
    """One of the two hosts."""

    def __init__(self, laboratory: Laboratory, name: str) -> None:
        self.name = name
        self._laboratory = laboratory
        self._commands: list[Command] = []
        #: Of all its commands.
        self.environment: dict[str, str] = {}

    @property
    @abstractmethod
    def _address(self) -> str:
        """Of its agent."""

    @abstractmethod
    def power_on(self) -> None:
        """Boot it, mount the share."""

    @abstractmethod
    def power_off(self) -> None:
        """Take its power away: what it had not yet sent to the server is gone. Does nothing the second time."""

    @property
    @abstractmethod
    def is_off(self) -> bool:
        """Whether it has no power."""

    @abstractmethod
    def freeze(self) -> None:
        """Stop it all at once, as a suspended virtual machine is."""

    @abstractmethod
    def thaw(self) -> None:
        """Let it go on, as if nothing had happened."""

    @abstractmethod
    def why_no_clock(self) -> str | None:
        """Tell why its clock cannot be set, if so."""

    @abstractmethod
    def set_clock(self, *, hours_ahead: int) -> None:
        """Set its clock, of this machine's time and so many hours."""

    @abstractmethod
    def cut(self) -> None:
        """Unplug it from the server."""

    @abstractmethod
    def join(self) -> None:
        """Plug it in again."""

    def _client(self, argv: Sequence[str], environment: Mapping[str, str], output: str | None) -> list[str]:
        request = json.dumps(
            {"argv": argv, "environment": {"PATH": PATH, **self.environment, **environment}, "output": output}
        )
        return [*self._laboratory.namespaces.enter, PYTHON, str(HERE / "control.py"), self._address, request]

    def run(
        self, *argv: str, seconds: float = 30.0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end, and return its status and output."""
        return subprocess.run(
            self._client(argv, environment or {}, None),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    def start(self, *argv: str, output: str, environment: Mapping[str, str] | None = None) -> Command:
        """Start a command on the host; its output is appended to ``output`` in the folder that hosts share."""
        process = subprocess.Popen(
            self._client(argv, environment or {}, f"{OUT}/{output}"),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        command = Command(process, self._laboratory.out / output)
        self._commands.append(command)
        return command

    def forget_commands(self) -> None:
        """Wait for none of its commands any longer."""
        for command in self._commands:
            command.forget()
        self._commands.clear()


class Laboratory(ABC):
    """A server with a share and two hosts; use it as a context manager.

    Args:
        folder: for state and logs; a new temporary one by default, removed at the end.
        size_bytes: of the disk that the share is on.
    """

    #: Name for people, e.g. ``"NFS 4.1"``.
    title: str

    def __init__(self, folder: Path | None = None, *, size_bytes: int = 512 << 20) -> None:
        self._stack = contextlib.ExitStack()
        self._size_bytes = size_bytes
        if folder is None:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rear-netfs-")))
        self.folder = folder
        #: Folder of this machine that hosts have at `OUT`: a way out that does not need the share.
        self.out = folder / "out"
        self._disk = folder / "disk"
        self._exported = self._disk / "exported"

    @staticmethod
    @abstractmethod
    def why_not() -> str | None:
        """Tell why it cannot be brought up here, if so."""

    @property
    @abstractmethod
    def hosts(self) -> tuple[Host, Host]:
        """A and B."""

    @abstractmethod
    def start_server(self) -> None:
        """Start the server, or start it again."""

    @abstractmethod
    def kill_server(self) -> None:
        """Kill the server with SIGKILL."""

    @abstractmethod
    def versions(self) -> str:
        """Return what runs here, with versions."""

    @property
    def a(self) -> Host:
        """Host A."""
        return self.hosts[0]

    @property
    def b(self) -> Host:
        """Host B."""
        return self.hosts[1]

    @property
    def share(self) -> Path:
        """The share as the server has it, from outside of the laboratory."""
        return self.namespaces.root / self._exported.relative_to("/")

    def __enter__(self) -> Self:
        try:
            self._up()
        except BaseException:
            self.close()
            raise
        return self

    def _up(self) -> None:
        self.out.mkdir(parents=True)
        self._disk.mkdir()
        self.namespaces = Namespaces(kinds=["--uts"], log=self.folder / "namespaces.log")
        self._stack.callback(self.namespaces.close)
        image = self.folder / "disk.img"
        with open(image, "wb") as file:
            file.truncate(self._size_bytes)
        self.namespaces.run("mkfs.ext4", "-q", "-m0", str(image))
        self.namespaces.run("mount", "-o", "loop", str(image), str(self._disk))
        self.namespaces.run("mkdir", str(self._exported))
        self.namespaces.run("ip", "link", "set", "lo", "up")
        self._set_up_network()
        self.start_server()
        for host in self.hosts:
            host.power_on()

    @abstractmethod
    def _set_up_network(self) -> None:
        """Make the network, before the server."""

    def make_bridge(self, name: str, address: str) -> None:
        """Make a network of the laboratory with an address of its own."""
        run = self.namespaces.run
        run("ip", "link", "add", name, "type", "bridge")
        run("ip", "addr", "add", f"{address}/24", "dev", name)
        run("ip", "link", "set", name, "up")

    def fill(self, *, leave_bytes: int) -> None:
        """Fill the server's disk up to a few bytes."""
        state = os.statvfs(self.share)
        length = state.f_bavail * state.f_frsize - leave_bytes
        self.namespaces.run("fallocate", "-l", str(length), str(self._disk / "ballast"))

    def make_room(self) -> None:
        """Undo `fill`."""
        self.namespaces.run("rm", "-f", str(self._disk / "ballast"))

    def close(self) -> None:
        """End everything, and remove what it left."""
        for host in self.hosts:
            host.power_off()
        self._stack.close()
        (self.folder / "disk.img").unlink(missing_ok=True)

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def package_version(package: str) -> str:
    """Return the version of an installed Debian package."""
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Version}", package], capture_output=True, text=True, check=False
    )
    return done.stdout or "unknown"
