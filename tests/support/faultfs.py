"""A FUSE file system that passes everything on to a folder, and can be told to break one property at a time.

``python faultfs.py ROOT MOUNT RULES [OPTION=VALUE...]`` shows ``ROOT`` at ``MOUNT`` until it is unmounted or killed.
Options go to the mount (``attr_timeout=5``). ``RULES`` is a JSON file that is read again when it changes::

    {"rules": [{"operation": "write", "path": "part of the path", "error": "ENOSPC", "delay_seconds": 0.1,
                "first": 3, "last": 5}],
     "properties": {"case_insensitive": true}}

A rule applies to calls number ``first`` to ``last`` of those that it matches; all its keys but ``operation`` (or ``*``)
may be missing. Properties are those of `DEFAULTS`. Tests use `mounted`, which skips where FUSE or mfusepy is missing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    import mfusepy
except (ImportError, OSError, AttributeError):
    mfusepy = None

DEFAULTS: dict[str, Any] = {
    "case_insensitive": False,
    "clock_offset_seconds": 0,  # added to the times of files
    "exclusive_create": True,  # False: O_EXCL is ignored
    "garbage_in_holes": False,  # zeros are read as something else
    "locks": None,  # "granted to all", "never released"; None: the kernel's own. Only as it was at the mount.
    "name_bytes": 255,
    "refused_characters": "",
    "rename": "atomic",  # "copies": what is in the way goes, pause, link, unlink; "keeps": the old name stays;
    # "denies": it is done, and ENOENT
    "stale_listing_seconds": 0,  # listings are remembered
    "stale_size_seconds": 0,  # sizes, and so what can be read, are remembered
    "unsynced_in_memory": False,  # what was not fsynced is lost when this process is killed
    "wrong_reads": False,
}
PAUSE_SECONDS = 0.02


class FaultyFilesystem(mfusepy.Operations if mfusepy else object):  # type: ignore[misc]
    use_ns = True

    def __init__(self, root: str, rules: str) -> None:
        self.root, self.rules_path = root, rules
        self.mutex = threading.RLock()
        self.counts: dict[str, int] = {}
        self.loaded: tuple[int, dict[str, Any]] = (0, {})
        self.images: dict[str, bytearray] = {}
        self.listings: dict[str, tuple[float, list[str]]] = {}
        self.sizes: dict[str, tuple[float, int]] = {}

    # Rules.

    def rules(self) -> dict[str, Any]:
        with self.mutex:
            with contextlib.suppress(OSError, ValueError):
                stamp = os.stat(self.rules_path).st_mtime_ns
                if stamp != self.loaded[0]:
                    with open(self.rules_path) as file:
                        self.loaded = stamp, json.load(file)
            return self.loaded[1]

    def property(self, name: str) -> Any:
        return self.rules().get("properties", {}).get(name, DEFAULTS[name])

    def meet(self, operation: str, path: str) -> None:
        for rule in self.rules().get("rules", []):
            if rule["operation"] not in (operation, "*") or rule.get("path", "") not in path:
                continue
            with self.mutex:
                key = json.dumps(rule)
                count = self.counts[key] = self.counts.get(key, 0) + 1
            if rule.get("first", 1) <= count <= rule.get("last", count):
                time.sleep(rule.get("delay_seconds", 0))
                if "error" in rule:
                    raise mfusepy.FuseOSError(getattr(errno, rule["error"]))

    def real(self, path: str) -> str:
        name = os.path.basename(path)
        if len(os.fsencode(name)) > self.property("name_bytes"):
            raise mfusepy.FuseOSError(errno.ENAMETOOLONG)
        if not self.property("case_insensitive"):
            return self.root + path
        found = self.root
        for part in filter(None, path.split("/")):
            same = [name for name in os.listdir(found) if name.casefold() == part.casefold()]
            found = os.path.join(found, part if part in same or not same else same[0])
        return found

    def check_name(self, path: str) -> None:
        if set(self.property("refused_characters")) & set(os.path.basename(path)):
            raise mfusepy.FuseOSError(errno.EINVAL)

    # What is not synced yet. An image is the whole file.

    def image(self, real: str) -> bytearray | None:
        if real not in self.images and self.property("unsynced_in_memory"):
            self.images[real] = bytearray(Path(real).read_bytes())
        return self.images.get(real)

    def put_back(self, real: str) -> None:
        image = self.images.pop(real, None)
        if image is not None:
            Path(real).write_bytes(image)

    # Files.

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        self.meet("getattr", path)
        real = self.real(path)
        status = os.lstat(real)
        shift = int(self.property("clock_offset_seconds") * 1e9)
        found = {
            name: getattr(status, name) for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_ino", "st_blocks")
        }
        found |= {f"st_{time}": getattr(status, f"st_{time}_ns") + shift for time in ("atime", "mtime", "ctime")}
        return {**found, "st_size": self.size(real, status.st_size)}

    def size(self, real: str, now: int) -> int:
        image = self.images.get(real)
        size = now if image is None else len(image)
        keep = self.property("stale_size_seconds")
        if keep:
            since, before = self.sizes.get(real, (0.0, 0))
            if time.monotonic() - since < keep:
                return before
            self.sizes[real] = time.monotonic(), size
        return size

    def create(self, path: str, mode: int, flags: int) -> int:
        self.meet("create", path)
        self.check_name(path)
        exclusive = os.O_EXCL if self.property("exclusive_create") and flags & os.O_EXCL else 0
        return os.open(self.real(path), os.O_CREAT | exclusive | os.O_RDWR, mode)

    def open(self, path: str, flags: int) -> int:
        self.meet("open", path)
        return os.open(self.real(path), flags & (os.O_ACCMODE | os.O_NOFOLLOW | os.O_TRUNC))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self.meet("read", path)
        real = self.real(path)
        with self.mutex:
            image = self.images.get(real)
            data = os.pread(fh, size, offset) if image is None else bytes(image[offset : offset + size])
            if self.property("stale_size_seconds"):
                data = data[: max(0, self.size(real, os.fstat(fh).st_size) - offset)]
        if self.property("garbage_in_holes"):
            data = data.replace(bytes(512), b"\xa5" * 512)
        if self.property("wrong_reads") and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        return data

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self.meet("write", path)
        with self.mutex:
            image = self.image(self.real(path))
            if image is None:
                return os.pwrite(fh, data, offset)
            image.extend(bytes(max(0, offset - len(image))))
            image[offset : offset + len(data)] = data
            return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self.meet("truncate", path)
        with self.mutex:
            image = self.image(self.real(path))
            if image is None:
                os.truncate(self.real(path), length)
            else:
                del image[length:]
                image.extend(bytes(length - len(image)))
        return 0

    def flush(self, path: str, fh: int) -> int:
        self.meet("flush", path)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self.meet("fsync", path)
        with self.mutex:
            self.put_back(self.real(path))
        os.fsync(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    # Names.

    def readdir(self, path: str, fh: int) -> list[str]:
        self.meet("readdir", path)
        keep = self.property("stale_listing_seconds")
        since, names = self.listings.get(path, (0.0, []))
        if not keep or time.monotonic() - since >= keep:
            names = [".", "..", *os.listdir(self.real(path))]
            self.listings[path] = time.monotonic(), names
        return names

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self.meet("fsyncdir", path)
        return 0

    def unlink(self, path: str) -> int:
        self.meet("unlink", path)
        real = self.real(path)
        os.unlink(real)
        self.images.pop(real, None)
        return 0

    def rename(self, old: str, new: str) -> int:
        self.meet("rename", old)
        self.check_name(new)
        source, target = self.real(old), self.real(new)
        how = self.property("rename")
        if how in ("copies", "keeps") and not os.path.isdir(source):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
            time.sleep(PAUSE_SECONDS if how == "copies" else 0)
            os.link(source, target)
            if how == "copies":
                os.unlink(source)
            return 0
        with self.mutex:
            os.rename(source, target)
            self.images.pop(target, None)
            if source in self.sizes:
                self.sizes[target] = self.sizes.pop(source)
            if source in self.images:
                self.images[target] = self.images.pop(source)
        if how == "denies":
            raise mfusepy.FuseOSError(errno.ENOENT)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self.meet("mkdir", path)
        self.check_name(path)
        os.mkdir(self.real(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        self.meet("rmdir", path)
        os.rmdir(self.real(path))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self.real(path), mode)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self.real(path), ns=times)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        self.meet("statfs", path)
        status = os.statvfs(self.real(path))
        return {name: getattr(status, name) for name in dir(status) if name.startswith("f_") and name != "f_fsid"}

    def destroy(self, path: str) -> None:
        # An unmount in good order loses nothing.
        for real in list(self.images):
            self.put_back(real)


class FaultyLocks(FaultyFilesystem):
    """With a lock service of its own; without one the kernel locks within one mount."""

    is_taken = False

    def lock(self, path: str, fh: int, command: int, lock: Any) -> int:
        self.meet("lock", path)
        if self.property("locks") == "granted to all":
            return 0
        # struct flock begins with l_type, a short.
        kind = int.from_bytes(mfusepy.ctypes.string_at(lock, 2), sys.byteorder)
        if kind == mfusepy_unlock():
            return 0
        if self.is_taken:
            raise mfusepy.FuseOSError(errno.EAGAIN)
        self.is_taken = True
        return 0


def mfusepy_unlock() -> int:
    import fcntl

    return fcntl.F_UNLCK


# For tests.


def write_rules(path: Path, *rules: dict[str, Any], **properties: Any) -> None:
    """Say what is to break from now on."""
    assert set(properties) <= set(DEFAULTS)
    fresh = path.with_suffix(".fresh")
    fresh.write_text(json.dumps({"rules": rules, "properties": properties}))
    os.rename(fresh, path)


@contextlib.contextmanager
def mounted(
    root: Path, mount: Path, *rules: dict[str, Any], options: tuple[str, ...] = (), **properties: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Show ``root`` at ``mount``; the rules can be changed in ``<mount>.json`` by `write_rules`."""
    if mfusepy is None or not os.path.exists("/dev/fuse") or shutil.which("fusermount3") is None:
        pytest.skip("needs FUSE 3 and mfusepy")
    mount.mkdir(parents=True, exist_ok=True)
    rules_path = mount.with_suffix(".json")
    write_rules(rules_path, *rules, **properties)
    command = [sys.executable, os.path.abspath(__file__), str(root), str(mount), str(rules_path), *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while not os.path.ismount(mount):
            if process.poll() is not None:
                message = process.stderr.read().decode(errors="replace")
                pytest.skip(f"this system lets no one mount with FUSE: {message[-200:]}")
            assert time.monotonic() < deadline, "not mounted"
            time.sleep(0.02)
        yield process
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mount)], capture_output=True, check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def main() -> None:
    root, mount, rules, *options = sys.argv[1:]
    chosen: dict[str, Any] = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0, "direct_io": True}
    for option in options:
        name, _, value = option.partition("=")
        chosen[name] = value or True
    with open(rules) as file:
        wanted = json.load(file)
    has_locks = "locks" in wanted["properties"] or any(rule["operation"] == "lock" for rule in wanted["rules"])
    operations = (FaultyLocks if has_locks else FaultyFilesystem)(root, rules)
    mfusepy.FUSE(operations, mount, foreground=True, **chosen)


if __name__ == "__main__":
    main()
