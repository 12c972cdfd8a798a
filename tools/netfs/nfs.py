"""The Linux NFS client twice, each in a User-Mode Linux host of its own, against NFS-Ganesha.

A host is a whole kernel: its own page cache, attribute cache, NFS state, boot id and clock. Two mounts in network
namespaces of one kernel would share most of that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from netfs.laboratory import HERE, Host, Laboratory, missing, package_version
from netfs.namespaces import LaboratoryError, descendants, wait_until

PACKAGES: Final = "user-mode-linux nfs-ganesha nfs-ganesha-vfs nfs-common iproute2 kmod e2fsprogs"
LEASE_SECONDS: Final = 6
"""NFS lease: after this long without a sign of life the server may forget what a client has open and locked."""
_SERVER: Final = "10.77.7.1"
_CONTROL: Final = "10.77.9.1"
_MEMORY_MB: Final = 256


class NfsHost(Host):
    """A User-Mode Linux with the share mounted."""

    def __init__(self, laboratory: Nfs, name: str, number: int) -> None:
        super().__init__(laboratory, name)
        self._number = number
        self._tap = f"share{name}"
        self._uml: subprocess.Popen[bytes] | None = None
        self._console = laboratory.folder / f"{name}.console"

    @property
    def _address(self) -> str:
        return f"10.77.9.{self._number}:9000"

    def set_up_network(self) -> None:
        """Plug two network cards in: one to the server, one by which it is told what to do, also when cut off."""
        run = self._laboratory.namespaces.run
        for tap, bridge in ((self._tap, "share"), (f"control{self.name}", "control")):
            run("ip", "tuntap", "add", tap, "mode", "tap")
            run("ip", "link", "set", tap, "master", bridge, "up")

    def power_on(self) -> None:
        """Boot it, mount the share."""
        laboratory = self._laboratory
        assert isinstance(laboratory, Nfs)
        run = laboratory.folder / f"uml-{self.name}"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        self._console.unlink(missing_ok=True)
        mac = f"02:00:00:00:{{}}:{self._number:02x}"
        self._uml = laboratory.namespaces.start(
            "linux.uml", f"mem={_MEMORY_MB}M", f"uml_dir={run}", f"umid=rear{self.name}",
            "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", f"init={HERE / 'uml_init.sh'}",
            f"vec0:transport=tap,ifname={self._tap},mac={mac.format('07')},gro=1",
            f"vec1:transport=tap,ifname=control{self.name},mac={mac.format('09')},gro=1",
            "con=null", "con0=null,fd:1", "con1=fd:0,fd:1", "ssl=null",
            f"HOST=rear{self.name}", f"SHARE_IP=10.77.7.{self._number}", f"CONTROL_IP=10.77.9.{self._number}",
            f"SERVER={_SERVER}", f"NFS_OPTIONS={laboratory.mount_options}", f"HERE={HERE}", f"OUT={laboratory.out}",
            log=self._console, environment={"TMPDIR": "/dev/shm" if os.path.isdir("/dev/shm") else str(run)},
        )  # fmt: skip
        wait_until(self._is_ready, 60, f"host {self.name} boots", self._console)

    def _is_ready(self) -> bool:
        assert self._uml is not None
        if self._uml.poll() is not None:
            raise LaboratoryError(f"host {self.name} has ended: {self._console.read_text(errors='replace')[-2000:]}")
        return b"agent: ready" in self._console.read_bytes()

    def _kernel(self) -> int:
        """Process id of the User-Mode Linux, which nsenter started."""
        assert self._uml is not None
        return next(descendants(self._uml.pid))

    def power_off(self) -> None:
        """Take its power away: its page cache is gone."""
        self.forget_commands()
        if self._uml is not None and self._uml.poll() is None:
            # Its processes are in groups of their own.
            for pid in list(descendants(self._uml.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._uml.kill()
            self._uml.wait()

    @property
    def is_off(self) -> bool:
        """Whether it has no power."""
        return self._uml is None or self._uml.poll() is not None

    def freeze(self) -> None:
        """Stop its kernel."""
        os.kill(self._kernel(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let its kernel go on."""
        assert self._uml is not None
        os.kill(self._kernel(), signal.SIGCONT)
        # nsenter stops itself when what it started is stopped.
        os.kill(self._uml.pid, signal.SIGCONT)

    def cut(self) -> None:
        """Unplug it from the server."""
        # Not the card itself: User-Mode Linux gives up on one that fails.
        self._laboratory.namespaces.run("ip", "link", "set", self._tap, "nomaster")

    def join(self) -> None:
        """Plug it in again."""
        self._laboratory.namespaces.run("ip", "link", "set", self._tap, "master", "share")

    def why_no_clock(self) -> str | None:
        """Tell why its clock cannot be set, if so."""
        return None

    def set_clock(self, *, hours_ahead: int) -> None:
        """Set its clock, of this machine's time and so many hours."""
        done = self.run("date", "--set", f"@{time.time() + hours_ahead * 3600:.3f}")
        if done.returncode:
            raise LaboratoryError(f"date --set: {done.stdout}{done.stderr}")


class Nfs(Laboratory):
    """Two hosts with the Linux NFS client.

    Args:
        folder: see `Laboratory`.
        mount_options: of the NFS mount.
        size_bytes: see `Laboratory`.
    """

    title = "NFS 4.1"

    def __init__(
        self, folder: Path | None = None, *, mount_options: str = "vers=4.1,proto=tcp", size_bytes: int = 512 << 20
    ) -> None:
        super().__init__(folder, size_bytes=size_bytes)
        self.mount_options = mount_options
        self._hosts = NfsHost(self, "A", 12), NfsHost(self, "B", 13)
        self._server: subprocess.Popen[bytes] | None = None

    @staticmethod
    def why_not() -> str | None:
        """Tell why it cannot be brought up here, if so."""
        return missing(["linux.uml", "ganesha.nfsd", "mount.nfs4", "ip", "insmod", "mkfs.ext4", "nsenter"], PACKAGES)

    @property
    def hosts(self) -> tuple[NfsHost, NfsHost]:
        """A and B."""
        return self._hosts

    def versions(self) -> str:
        """Return what runs here, with versions."""
        kernel = self.a.run("uname", "-r").stdout.strip()
        mount = self.a.run("grep", " nfs4 ", "/proc/mounts").stdout.split()
        return f"Linux {kernel} (User-Mode Linux), NFS-Ganesha {package_version('nfs-ganesha')}, {mount[3]}"

    def _set_up_network(self) -> None:
        self.make_bridge("share", _SERVER)
        self.make_bridge("control", _CONTROL)
        for host in self.hosts:
            host.set_up_network()
        state = self.folder / "ganesha"
        state.mkdir()
        (self.folder / "ganesha.conf").write_text(
            f"""NFS_CORE_PARAM {{
    Protocols = 4; NFS_Port = 2049; Bind_addr = {_SERVER}; Enable_NLM = false; Enable_RQUOTA = false;
}}
NFSV4 {{
    Lease_Lifetime = {LEASE_SECONDS}; Grace_Period = 3; RecoveryBackend = fs; RecoveryRoot = "{state}";
    Delegations = false;
}}
EXPORT {{
    Export_Id = 1; Path = "{self._exported}"; Pseudo = "/exported"; Access_Type = RW; Squash = No_root_squash;
    Protocols = 4; SecType = sys; FSAL {{ Name = VFS; }}
}}
"""
        )

    def start_server(self) -> None:
        """Start NFS-Ganesha, or start it again; it waits for clients to reclaim what they have open by itself."""
        log = self.folder / "ganesha.log"
        self._server = self.namespaces.start(
            "ganesha.nfsd", "-F", "-f", str(self.folder / "ganesha.conf"), "-L", str(log),
            "-p", str(self.folder / "ganesha.pid"), log=log,
        )  # fmt: skip
        wait_until(lambda: self.namespaces.listens(2049), 20, "NFS-Ganesha starts", log)

    def kill_server(self) -> None:
        """Kill NFS-Ganesha with SIGKILL."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        wait_until(lambda: not self.namespaces.listens(2049), 10, "NFS-Ganesha ends")
