"""The one seam to the file system and the clock: nothing else writes, syncs, renames, locks or deletes below a base.

Tests replace it to fail, stop or lose power at any operation, so keep it small. Every method raises ``OSError`` as the
operating system does, with the path where there is one. Plain POSIX calls only: ``RENAME_NOREPLACE``, ``O_TMPFILE``
and links are missing on FUSE file systems. Below a base no path leads through a link: ``ELOOP`` (see `descent`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeGuard

from rear.core import permissions
from rear.core.descent import StrPath as StrPath
from rear.core.descent import in_folder, is_folder, open_folder, status_of

COPY_CHUNK_BYTES: Final = 1 << 20
FRESH_SUFFIX: Final = ".new"
"""What a file is called that is written as a whole and gets its name then."""
#: One copy_file_range call asks for at most this much, so that an interrupt is noticed on a slow server.
RANGE_CHUNK_BYTES: Final = 1 << 30

#: What copy_file_range says where it cannot be used (other file system, old kernel, FUSE), not where copying failed.
_NO_COPY_RANGE: Final = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EPERM, errno.ETXTBSY}
)
_NO_LINK: Final = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV})
_NO_DIRECTORY_SYNC: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF})


def is_failure(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error is of the operating system; what a signal handler raises, ``TimeoutError("...")``, is not."""
    return isinstance(error, OSError) and error.errno is not None


class Storage:
    """The local view of a file system, shared or not."""

    def create(self, path: StrPath, mode: int = 0o666) -> int:
        """Create a new file to read and write; fail if the name exists (``O_EXCL``); return its descriptor.

        ``mode`` without the umask's bits; in a base that a group shares, with those of its group bits all the same.
        """
        with in_folder(path) as (name, folder):
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=folder)
        permissions.share(path, descriptor, mode)
        return descriptor

    def open(self, path: StrPath, *, write: bool = False, directory: int | None = None) -> int:
        """Open an existing regular file and return its descriptor; by its name in an open directory, if one is given.

        A symbolic link as the last part is refused (``ELOOP``), as is what is no regular file (``EINVAL``): names in
        a shared folder may have been laid out by anybody, and a FIFO would block for ever.
        """
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        if directory is None:
            with in_folder(path) as (name, folder):
                descriptor = os.open(name, flags, dir_fd=folder)
        else:
            descriptor = os.open(path, flags, dir_fd=directory)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return descriptor

    def open_directory(self, path: StrPath, *, directory: int | None = None, to_pass: bool = False) -> int:
        """Open a directory, by its name in another open one if that is given; symbolic links are refused.

        ``to_pass``: only to get at what is in it, so that it may be one that cannot be listed (mode 0711).
        """
        return open_folder(path, directory=directory, to_pass=to_pass)

    def status(self, path: StrPath) -> os.stat_result:
        """Return the status of what has a name; a link is not followed."""
        return status_of(path)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def write(self, descriptor: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        """Write all buffers at ``offset``, in one call unless the file system takes only part; return the length."""
        total = 0
        for buffer in buffers:
            total += len(buffer)
        written = os.pwritev(descriptor, buffers, offset)
        while written < total:
            rest = memoryview(b"".join(buffers))[written:]
            written += os.pwrite(descriptor, rest, offset + written)
        return total

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        """Read ``length`` bytes at ``offset``; fewer only at the end of the file."""
        data = os.pread(descriptor, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        missing = length - len(data)
        while missing and data:
            data = os.pread(descriptor, missing, offset + length - missing)
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def size(self, descriptor: int) -> int:
        """Return the size of an open file in bytes."""
        return os.fstat(descriptor).st_size

    def mode(self, descriptor: int) -> int:
        """Return the permission bits of an open file, as far as a new copy of its content may have them."""
        return os.fstat(descriptor).st_mode & 0o666

    def next_data(self, descriptor: int, offset: int) -> int:
        """Return where data begins at or after ``offset``, past a hole of a sparse file; ``offset`` where none tells.

        The end of the file when nothing but a hole follows.
        """
        try:
            return os.lseek(descriptor, offset, os.SEEK_DATA)
        except AttributeError:
            return offset
        except OSError as error:
            return self.size(descriptor) if error.errno == errno.ENXIO else offset

    def data_ranges(self, descriptor: int, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield begin and end of what is data in a range of an open file; holes of a sparse file are left out."""
        end = min(start + length, self.size(descriptor))
        while (start := min(self.next_data(descriptor, start), end)) < end:
            try:
                hole = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
            except (AttributeError, OSError):
                hole = end
            yield start, hole
            start = hole

    def is_mostly_holes(self, descriptor: int, least_bytes: int) -> bool:
        """Whether an open file has more than so many bytes of holes, and of data not even a sixteenth of that.

        Nothing that rear writes looks so; one call makes a file of terabytes, and who copies it fills the disk.
        """
        size = self.size(descriptor)
        if size <= least_bytes:
            return False
        data_bytes = sum(end - start for start, end in self.data_ranges(descriptor, 0, size))
        return size - data_bytes > max(least_bytes, 16 * data_bytes)

    def size_of(self, path: StrPath) -> int:
        """Return the size of a regular file in bytes."""
        with opened(path, self) as descriptor:
            return self.size(descriptor)

    def copy_range(self, source: int, target: int, *, source_start: int, target_start: int, length: int) -> None:
        """Copy ``length`` bytes between two open files, inside the kernel or the server where that is possible.

        Running it again gives the same result.

        Raises:
            OSError: the copy failed, or (``EIO``) the source ended early.
        """
        copied = self._copy_in_kernel(source, target, source_start, target_start, length)
        while copied < length:
            data = os.pread(source, min(COPY_CHUNK_BYTES, length - copied), source_start + copied)
            if not data:
                raise OSError(errno.EIO, f"the source ended {length - copied:,} bytes early")
            self.write(target, [data], target_start + copied)
            copied += len(data)

    @staticmethod
    def _copy_in_kernel(source: int, target: int, source_start: int, target_start: int, length: int) -> int:
        copied = 0
        if not hasattr(os, "copy_file_range"):
            return copied
        while copied < length:
            try:
                count = min(RANGE_CHUNK_BYTES, length - copied)
                count = os.copy_file_range(source, target, count, source_start + copied, target_start + copied)
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
                break
            # Zero is the end of the source, or a file system (procfs, some FUSE) that copies nothing and says so.
            if count == 0:
                break
            copied += count
        return copied

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut or extend an open file to ``length`` bytes."""
        os.ftruncate(descriptor, length)

    def sync(self, descriptor: int) -> None:
        """Bring data and size of an open file to stable storage. An error is final: what was written may be gone."""
        if descriptor < 0:
            # Closed by another thread: here alone Python has a ValueError for that.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        os.fsync(descriptor)

    def drop_cache(self, descriptor: int) -> None:
        """Have an open file that is synced read anew, from the server or the disk, where the system knows how to."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync_directory(self, path: StrPath) -> None:
        """Bring the names in a directory to stable storage, where the file system knows how to."""
        descriptor = open_folder(path, follow=True)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_SYNC:
                raise
        finally:
            os.close(descriptor)

    def rename(self, source: StrPath, target: StrPath) -> None:
        """Rename a file; one of several processes that rename the same file wins, the others get ``ENOENT``."""
        with in_folder(source) as (old, there), in_folder(target) as (new, here):
            try:
                os.rename(old, new, src_dir_fd=there, dst_dir_fd=here)
            except OSError as error:
                error.filename, error.filename2 = os.fspath(source), os.fspath(target)
                raise

    def link(self, source: StrPath, target: StrPath) -> bool:
        """Give a file a second name; ``False`` where the file system knows no links."""
        try:
            with in_folder(source) as (old, there), in_folder(target) as (new, here):
                os.link(old, new, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise
        return True

    def copy_owner_and_mode(self, source: int, target: int) -> None:
        """Give an open file the permissions of another one, ACL and extended attributes too, as far as that is allowed.

        Where its ACL or its group cannot be given, the bits of the group are not given either. Call it before the first
        byte is written to a file that was made for its owner alone: who could open it by then could read on.
        """
        permissions.copy(source, target)

    def give(self, descriptor: int, user: int, group: int) -> None:
        """Give an open file to a user and a group, as far as that is allowed: root may, others only to their groups."""
        permissions.give(descriptor, user, group)

    def set_mode(self, descriptor: int, mode: int) -> None:
        """Set the permission bits of an open file, whatever the umask."""
        os.fchmod(descriptor, mode)

    def replace(self, path: StrPath, data: bytes, mode: int = 0o666) -> None:
        """Write a small file as a whole: readers see the old one or the new one, also after a loss of power."""
        fresh = f"{os.fspath(path)}.{os.urandom(6).hex()}{FRESH_SUFFIX}"
        with created(fresh, self, mode=mode) as descriptor:
            self.write(descriptor, [data], 0)
            self.sync(descriptor)
        try:
            self.rename(fresh, path)
        except OSError:
            with suppress(OSError):
                self.unlink(fresh)
            raise
        self.sync_directory(os.path.dirname(fresh))

    def unlink(self, path: StrPath) -> None:
        """Remove a file's name."""
        with in_folder(path) as (name, folder):
            os.unlink(name, dir_fd=folder)

    def unlink_at(self, directory: int, name: str) -> None:
        """Remove a file's name from an open directory, wherever that may have been moved."""
        os.unlink(name, dir_fd=directory)

    def remove_directory(self, path: StrPath) -> None:
        """Remove an empty directory."""
        with in_folder(path) as (name, folder):
            os.rmdir(name, dir_fd=folder)

    def remove_directory_at(self, directory: int, name: str) -> None:
        """Remove an empty directory by its name in an open one."""
        os.rmdir(name, dir_fd=directory)

    def make_directories(self, path: StrPath, *, sync: bool = True) -> None:
        """Make a directory and its parents, and bring each new name to stable storage; shared as the base is."""
        folder = Path(path)
        missing = []
        while not is_folder(folder):
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            try:
                mode = permissions.mode_to_make(folder)
                with in_folder(folder) as (name, parent):
                    os.mkdir(name, mode, dir_fd=parent)
            except FileExistsError:
                # Another process made it first; or it is a file, and then the same error as for what is below it.
                if not is_folder(folder):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(folder)) from None
            else:
                permissions.share_directory(folder)
            if sync:
                self.sync_directory(folder.parent)

    def names(self, path: StrPath) -> list[str]:
        """Return the sorted names in a directory, none when it does not exist: unlike ``stat``, NFS is honest here.

        A file has none either: whoever puts one among the folders of a base must not stop all scavenges.
        """
        try:
            descriptor = open_folder(path, follow=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return sorted(os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def look_into(self, path: StrPath) -> None:
        """Make sure that there is a directory whose names, and what they stand for, can be got at.

        Raises:
            OSError: there is none, or it is shut.
        """
        # By the name in it: a mode that lets nobody in, only list, would be met at the first file alone.
        descriptor = open_folder(path, follow=True)
        try:
            os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor))
            with os.scandir(descriptor) as entries:
                next(entries, None)
        except OSError as error:
            error.filename = os.fspath(path)
            raise
        finally:
            os.close(descriptor)

    def try_lock(self, descriptor: int) -> bool:
        """Take the POSIX lock of an open file without waiting; ``False`` when another process has it.

        A hint that saves time, nothing more: some mounts lock nothing across hosts, and an NFS server may keep a dead
        lock.
        """
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                return True
            raise
        return True

    def uptime(self) -> float:
        """Return seconds of a clock that no one sets and that goes on while the machine sleeps."""
        return time.clock_gettime(_UPTIME_CLOCK)


# CLOCK_BOOTTIME also counts a suspended virtual machine; macOS's CLOCK_MONOTONIC does that by itself.
_UPTIME_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

LOCAL: Final = Storage()
PRIVATE_MODE: Final = 0o644
"""Of files on whose word rear acts: others of the group read them, rename them and remove them, and write none."""


@contextmanager
def opened(path: StrPath, storage: Storage, *, write: bool = False) -> Iterator[int]:
    """Open a file and close it at the end of the block."""
    descriptor = storage.open(path, write=write)
    try:
        yield descriptor
    finally:
        if write:
            storage.close(descriptor)
        else:
            close_read(descriptor, storage)


def close_read(descriptor: int, storage: Storage) -> None:
    """Close a file that was only read: what has become of it meanwhile (``ESTALE``) is no error of that."""
    with suppress(OSError):
        storage.close(descriptor)


@contextmanager
def created(path: StrPath, storage: Storage, *, mode: int = 0o666) -> Iterator[int]:
    """Make a new file, which must not exist, and close it at the end of the block."""
    descriptor = storage.create(path, mode)
    try:
        yield descriptor
    finally:
        storage.close(descriptor)
