"""A FUSE filesystem that passes everything on to a folder, and lets each metadata request wait, as a far server would.

``python -m bench.slowfs ROOT MOUNT DELAY_SECONDS`` shows ``ROOT`` at ``MOUNT`` until it is unmounted. What waits is
what an NFS client asks its server for by name or about a file: look-ups and attributes, opening, creating, removing,
renaming, making and listing folders, and ``fsync``. Reading, writing and closing do not wait: clients read ahead and
write behind. Attributes and names are kept for a second by the kernel, as by an NFS client.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import mfusepy

_CACHED_SECONDS = 1.0
_STATUS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_ino", "st_blocks", "st_size")


class SlowFilesystem(mfusepy.Operations):  # type: ignore[misc]
    use_ns = True

    def __init__(self, root: str, delay_seconds: float) -> None:
        self._root = root
        self._delay_seconds = delay_seconds

    def _real(self, path: str) -> str:
        """Wait as for a server, and return the path behind the one that was asked for."""
        if self._delay_seconds:
            time.sleep(self._delay_seconds)
        return self._root + path

    # Metadata: these wait.

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        # Attributes of a file that is made or opened come with the answer to that.
        status = os.lstat(self._real(path) if fh is None else self._root + path)
        times = {f"st_{name}": getattr(status, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}
        return {**{name: getattr(status, name) for name in _STATUS}, **times}

    def create(self, path: str, mode: int, flags: int) -> int:
        return os.open(self._real(path), os.O_CREAT | (flags & os.O_EXCL) | os.O_RDWR, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), flags & (os.O_ACCMODE | os.O_NOFOLLOW | os.O_TRUNC))

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._real(path))]

    def unlink(self, path: str) -> int:
        os.unlink(self._real(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._real(old), self._root + new)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._real(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._real(path))
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._real(path), length)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._real(path), mode)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        if times is None:
            os.utime(self._real(path))
        else:
            os.utime(self._real(path), ns=times)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._real(path)
        os.fsync(fh)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._real(path)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(self._real(path))
        return {name: getattr(status, name) for name in dir(status) if name.startswith("f_") and name != "f_fsid"}

    # Data: these do not.

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def flush(self, path: str, fh: int) -> int:
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0


def main() -> None:
    root, mount, delay_seconds = sys.argv[1:]
    kept = {f"{what}_timeout": _CACHED_SECONDS for what in ("attr", "entry")}
    mfusepy.FUSE(SlowFilesystem(root, float(delay_seconds)), mount, foreground=True, **kept)


if __name__ == "__main__":
    main()
