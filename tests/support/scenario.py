"""States that pages of the documentation begin with: ``scenario.py STATE BASE ARCHIVE``. Processes really die here.

States: ``written`` (200 members, merged), ``killed`` (a worker with 200 members, dead),
``killed-unjournaled`` (its journal is gone as well), ``elsewhere``, ``elsewhere-again`` (a worker of node7,
whose host cannot be seen), ``half-merged`` (the scavenger died while it copied), ``damaged`` (the archive has
wrong bytes and lost its end), ``torn`` (a Zip of another program, cut off).
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import types
import zipfile
from pathlib import Path

import rear
from rear.core.storage import Storage


def write(base: Path, archive: str, first: int, count: int) -> None:
    for number in range(first, first + count):
        with rear.rear_open(f"{archive}/logs/{number}.txt", "w") as file:
            file.write(f"line {number}\n" * 200)


def killed(base: Path, archive: str, first: int = 1_000, count: int = 200) -> None:
    """A worker that dies without closing anything."""
    pid = os.fork()
    if pid == 0:
        with rear.rear_fs(base):
            write(base, archive, first, count)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


class _DyingWhileCopying(Storage):
    """Is killed when it has copied half of a range into a final archive."""

    def copy_range(self, source: int, target: int, *, source_start: int, target_start: int, length: int) -> None:
        if "/.rear/" in os.readlink(f"/proc/self/fd/{target}"):
            super().copy_range(source, target, source_start=source_start, target_start=target_start, length=length)
            return
        super().copy_range(source, target, source_start=source_start, target_start=target_start, length=length // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def main(state: str, base: Path, archive: str) -> None:
    if state == "written":
        with rear.rear_fs(base):
            write(base, archive, 0, 200)
        list(rear.scavenge(base))
    elif state in ("killed", "killed-unjournaled"):
        killed(base, archive)
        if state == "killed-unjournaled":
            for journal in base.glob(".rear/inbox/*/*.journal"):
                journal.unlink()
    elif state.startswith("elsewhere"):
        nodename = os.uname().nodename
        os.uname = lambda: types.SimpleNamespace(nodename="node7")  # type: ignore[assignment,return-value]
        killed(base, archive, 3_000 if state == "elsewhere" else 4_000, 40)
        assert nodename != "node7"
    elif state == "half-merged":
        killed(base, archive, 2_000, 100)
        pid = os.fork()
        if pid == 0:
            list(rear.scavenge(base, storage=_DyingWhileCopying()))
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    elif state == "torn":
        with zipfile.ZipFile(base / archive, "w", zipfile.ZIP_DEFLATED) as file:
            for number in range(200):
                file.writestr(zipfile.ZipInfo(f"logs/{number:03}.txt"), f"line {number}\n" * 200)
        os.truncate(base / archive, 10_000)
    elif state == "damaged":
        path = base / archive
        with zipfile.ZipFile(path) as archive_file:
            member = archive_file.getinfo("logs/50.txt")
        with path.open("r+b") as file:
            file.seek(member.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            file.seek(member.header_offset + 30 + name + extra + member.compress_size // 2)
            file.write(b"\0\xff\0\xff\0\xff")
            file.truncate(path.stat().st_size - 4_000)
    else:
        sys.exit(f"no such state: {state}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
