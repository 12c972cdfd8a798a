"""GlusterFS, mounted twice: each host has network, process ids, name and boot id of its own, and a client.

The two hosts share one kernel, but what matters is in the client, a process of user space: GlusterFS goes through
FUSE without a page cache for what is being written.
"""

from __future__ import annotations

import glob
import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Final

from netfs.laboratory import HERE, OUT, PYTHON, SHARE, Host, Laboratory, missing, package_version
from netfs.namespaces import Namespaces, processes_in, wait_until

PACKAGES: Final = "glusterfs-server glusterfs-client attr iproute2 e2fsprogs"
PING_TIMEOUT_SECONDS: Final = 10
"""After this long without an answer of the server the client gives up on it (42 by default)."""
_SERVER: Final = "10.77.8.1"
_PORT: Final = 25000
#: Preloaded, it gives a program another time of day.
_FAKE_CLOCK: Final = "/usr/lib/*/faketime/libfaketimeMT.so.1"

#: The server gives up on a silent client, and on its locks, after seconds instead of minutes.
_BRICK: Final = """volume posix
  type storage/posix
  option directory {folder}
  option volume-id {volume}
end-volume
volume locks
  type features/locks
  subvolumes posix
end-volume
volume threads
  type performance/io-threads
  subvolumes locks
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.address-family inet
  option transport.socket.bind-address {server}
  option transport.socket.listen-port {port}
  option transport.socket.keepalive-time 4
  option transport.socket.keepalive-interval 1
  option transport.socket.keepalive-count 3
  option transport.tcp-user-timeout 6
  option auth.addr.threads.allow *
  subvolumes threads
end-volume
"""
#: What a client of a volume with default options has, from the server up.
_CLIENT: Final = """volume client
  type protocol/client
  option transport-type tcp
  option transport.address-family inet
  option remote-host {server}
  option remote-port {port}
  option remote-subvolume threads
  option ping-timeout {ping}
end-volume
volume utime
  type features/utime
  subvolumes client
end-volume
volume write-behind
  type performance/write-behind
  subvolumes utime
end-volume
volume open-behind
  type performance/open-behind
  subvolumes write-behind
end-volume
volume quick-read
  type performance/quick-read
  subvolumes open-behind
end-volume
volume md-cache
  type performance/md-cache
  subvolumes quick-read
end-volume
"""


class GlusterHost(Host):
    """Namespaces with the share mounted by a client of their own."""

    def __init__(self, laboratory: Gluster, name: str, number: int) -> None:
        super().__init__(laboratory, name)
        self._number = number
        self._link = f"share{name}"
        self._socket = laboratory.folder / f"{name}.socket"
        self._namespaces: Namespaces | None = None

    @property
    def _address(self) -> str:
        return str(self._socket)

    def power_on(self) -> None:
        """Make its namespaces, mount the share."""
        laboratory = self._laboratory
        self._socket.unlink(missing_ok=True)
        log = laboratory.folder / f"{self.name}.agent"
        self._namespaces = namespaces = Namespaces(
            kinds=["--uts"], within=laboratory.namespaces.enter,
            init=[PYTHON, str(HERE / "agent.py"), str(self._socket)], log=log,
        )  # fmt: skip
        run = namespaces.run
        run("hostname", f"rear{self.name}")
        boot_id = laboratory.folder / f"{self.name}.boot_id"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        run("mount", "--bind", str(boot_id), "/proc/sys/kernel/random/boot_id")
        laboratory.namespaces.run(
            "ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(self._pid_there())
        )
        laboratory.namespaces.run("ip", "link", "set", self._link, "master", "share", "up")
        for command in (["addr", "add", f"10.77.8.{self._number}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            run("ip", *command)
        run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
        run("mkdir", SHARE, OUT)
        run("mount", "--bind", str(laboratory.out), OUT)
        client_log = laboratory.folder / f"{self.name}.client"
        namespaces.start(
            "glusterfs", "--no-daemon", "-f", str(laboratory.folder / "client.vol"), "-l", str(client_log), SHARE,
            log=log, environment=self.environment,
        )  # fmt: skip
        mounts = Path(f"/proc/{namespaces.pid}/mounts")
        wait_until(lambda: f" {SHARE} fuse.glusterfs " in mounts.read_text(), 20, "GlusterFS is mounted", client_log)
        wait_until(lambda: self.run("ls", SHARE).returncode == 0, 20, "GlusterFS answers", client_log)

    def _pid_there(self) -> int:
        """Number of its first process in the laboratory around it."""
        assert self._namespaces is not None
        status = Path(f"/proc/{self._namespaces.pid}/status").read_text()
        return int(status.partition("NSpid:")[2].partition("\n")[0].split()[-2])

    def power_off(self) -> None:
        """Kill all of it at once, the client included."""
        self.forget_commands()
        if self._namespaces is not None:
            self._namespaces.close()

    @property
    def is_off(self) -> bool:
        """Whether it has no power."""
        return self._namespaces is None or self._namespaces.ended

    def freeze(self) -> None:
        """Stop all its processes; its network does not answer either."""
        self.cut()
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let its processes go on."""
        assert self._namespaces is not None
        self.join()
        self._signal_all(signal.SIGCONT)
        self._namespaces.resume()

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._namespaces is not None
        done: set[int] = set()
        # Again until there is none left that was started meanwhile.
        while fresh := set(processes_in(self._namespaces.pid)) - done:
            for pid in fresh:
                os.kill(pid, number)
            done |= fresh

    def why_no_clock(self) -> str | None:
        """Tell why its clock cannot be set, if so."""
        return None if glob.glob(_FAKE_CLOCK) else "libfaketime not installed (Debian: apt-get install faketime)"

    def set_clock(self, *, hours_ahead: int) -> None:
        """Start it anew with another clock, in the client and in all commands: this machine's, and so many hours."""
        self.power_off()
        self.environment.clear()
        if hours_ahead:
            self.environment["LD_PRELOAD"] = glob.glob(_FAKE_CLOCK)[0]
            self.environment["FAKETIME"] = f"{hours_ahead:+}h"
            self.environment["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"
        self.power_on()

    def cut(self) -> None:
        """Unplug it from the server."""
        self._laboratory.namespaces.run("ip", "link", "set", self._link, "down")

    def join(self) -> None:
        """Plug it in again."""
        self._laboratory.namespaces.run("ip", "link", "set", self._link, "up")


class Gluster(Laboratory):
    """Two hosts with GlusterFS: one brick, no glusterd."""

    title = "GlusterFS"

    def __init__(self, folder: Path | None = None, *, size_bytes: int = 512 << 20) -> None:
        super().__init__(folder, size_bytes=size_bytes)
        self._hosts = GlusterHost(self, "A", 12), GlusterHost(self, "B", 13)
        self._server: subprocess.Popen[bytes] | None = None

    @staticmethod
    def why_not() -> str | None:
        """Tell why it cannot be brought up here, if so."""
        return missing(["glusterfsd", "glusterfs", "setfattr", "ip", "mkfs.ext4", "nsenter"], PACKAGES)

    @property
    def hosts(self) -> tuple[GlusterHost, GlusterHost]:
        """A and B."""
        return self._hosts

    def versions(self) -> str:
        """Return what runs here, with versions."""
        return f"GlusterFS {package_version('glusterfs-server')}, one brick on ext4, Linux {os.uname().release}"

    def _set_up_network(self) -> None:
        self.make_bridge("share", _SERVER)
        volume = uuid.uuid4()
        self.namespaces.run(
            "setfattr", "-n", "trusted.glusterfs.volume-id", "-v", f"0x{volume.hex}", str(self._exported)
        )
        (self.folder / "brick.vol").write_text(
            _BRICK.format(folder=self._exported, volume=volume, server=_SERVER, port=_PORT)
        )
        (self.folder / "client.vol").write_text(_CLIENT.format(server=_SERVER, port=_PORT, ping=PING_TIMEOUT_SECONDS))

    def start_server(self) -> None:
        """Start the brick, or start it again."""
        log = self.folder / "brick.log"
        self._server = self.namespaces.start(
            "glusterfsd", "--no-daemon", "-f", str(self.folder / "brick.vol"), "-l", str(log),
            "-p", str(self.folder / "brick.pid"), log=log,
        )  # fmt: skip
        wait_until(lambda: self.namespaces.listens(_PORT), 20, "the brick starts", log)

    def kill_server(self) -> None:
        """Kill the brick with SIGKILL."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        wait_until(lambda: not self.namespaces.listens(_PORT), 10, "the brick ends")
