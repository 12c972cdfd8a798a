"""A file system of its own for the base of a soak test, so that it can be full."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

DISK_BYTES = 8 << 30


class Disk:
    """A file system of its own for the base, which can be full: ext4 in a file. Root alone may mount it."""

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "disk"
        self._image = folder / "disk.ext4"
        self._filler = self.mount / "filler"
        self.mount.mkdir()
        self.is_own = self._make()

    def _make(self) -> bool:
        if os.geteuid() != 0 or not all(map(shutil.which, ("mkfs.ext4", "mount", "umount"))):
            return False
        with open(self._image, "wb") as image:
            image.truncate(DISK_BYTES)
        commands = [
            ["mkfs.ext4", "-q", "-m", "0", "-F", str(self._image)],
            ["mount", "-o", "loop", str(self._image), str(self.mount)],
        ]
        return all(subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in commands)

    def fill(self, rest_bytes: int) -> None:
        """Leave so much room and no more."""
        with open(self._filler, "wb") as file:
            while True:
                room = os.statvfs(self.mount).f_bavail * os.statvfs(self.mount).f_frsize - rest_bytes
                if room < 1 << 16:
                    return
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), room)
                except OSError:
                    return

    @property
    def is_crowded(self) -> bool:
        """Whether less than half of it is free: nothing could be merged any more if that went on."""
        space = os.statvfs(self.mount)
        return self.is_own and space.f_bavail < space.f_blocks / 2

    def free(self) -> None:
        """Make room again."""
        self._filler.unlink(missing_ok=True)

    def close(self, keep_in: Path | None) -> None:
        """Unmount; keep a copy of what is on the disk."""
        self.free()
        if keep_in is not None:
            shutil.copytree(self.mount / "base", keep_in, symlinks=True)
        if not self.is_own:
            return
        subprocess.run(["umount", "-l", str(self.mount)], check=False)
        self._image.unlink()
