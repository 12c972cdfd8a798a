"""Brings up a laboratory and obeys standard input: ``python tools/netfs nfs``.

``A …`` and ``B …`` run a command on a host (``A ls -l /mnt/share``); ``freeze A``, ``thaw A``, ``power_off A``,
``power_on A``, ``cut A``, ``join A``, ``kill_server``, ``start_server``, ``fill BYTES`` (that stay free) and
``make_room`` do what they say. It all ends with the input.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from netfs.gluster import Gluster
from netfs.laboratory import Laboratory
from netfs.namespaces import LaboratoryError
from netfs.nfs import Nfs

KINDS: Final[dict[str, type[Laboratory]]] = {"nfs": Nfs, "gluster": Gluster}
_TO_HOSTS: Final = ("freeze", "thaw", "power_off", "power_on", "cut", "join")
_TO_SERVER: Final = ("kill_server", "start_server", "make_room")


def obey(laboratory: Laboratory, line: str) -> None:
    """Carry out one line of input.

    Raises:
        LaboratoryError: that is no command, or it failed.
    """
    words = shlex.split(line)
    hosts = {host.name: host for host in laboratory.hosts}
    match words:
        case []:
            pass
        case [name, *argv] if name in hosts and argv:
            done = hosts[name].run(*argv, seconds=600)
            print(done.stdout, end="")
            print(f"[status {done.returncode}]")
        case [action, name] if action in _TO_HOSTS and name in hosts:
            getattr(hosts[name], action)()
        case [action] if action in _TO_SERVER:
            getattr(laboratory, action)()
        case ["fill", size] if size.isdecimal():
            laboratory.fill(leave_bytes=int(size))
        case _:
            raise LaboratoryError(f"no such command\n{__doc__}")


def main() -> int:
    """Run; return the exit status."""
    if len(sys.argv) != 2 or sys.argv[1] not in KINDS:
        print(f"usage: python tools/netfs {'|'.join(KINDS)}\n\n{__doc__}", file=sys.stderr)
        return 2
    kind = KINDS[sys.argv[1]]
    reason = kind.why_not()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    with kind() as laboratory:
        print(f"{laboratory.versions()}\nlogs in {laboratory.folder}; the share on the server: {laboratory.share}")
        for line in sys.stdin:
            try:
                obey(laboratory, line)
            except LaboratoryError as error:
                print(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
