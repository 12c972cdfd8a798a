"""Probes of what becomes of bytes: read back, copied, brought to stable storage, and the times that files get.

They go through `rear.core.storage.Storage`, as everything does, except where that hides what is to be found out:
whether ``copy_file_range`` or the ``fsync`` of a directory was refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import statistics
import time
from typing import Final

from rear.core.storage import created, opened
from rear.core.text import fine_seconds_text
from rear.diagnostics.findings import Finding, Judge
from rear.diagnostics.probe_context import ProbeContext, error_name

SYNC_ROUNDS: Final = 30
SYNC_BYTES: Final = 4096
#: The default ``sync_interval``.
SLOW_SYNC_SECONDS: Final = 1.0
SLOW_MEDIAN_SECONDS: Final = 0.1
#: FAT keeps times in steps of two seconds.
CLOCK_SECONDS: Final = 5.0
_COPY_BYTES: Final = 3 * (1 << 20) + 12_345
_HOLE_BYTES: Final = 1 << 20
#: ``_IOW(0x94, 9, int)``, linux/fs.h.
_FICLONE: Final = 0x40049409
#: Where `Storage.copy_range` goes on by itself.
_NO_COPY: Final = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EPERM, errno.ETXTBSY}
)


def probe_append_and_read_back(context: ProbeContext) -> Finding:
    """Bytes at offsets, holes, ends, cuts: as another descriptor and another process read them."""
    judge = Judge("append_and_read_back")
    path = context.place(judge.probe) / "file"
    storage = context.storage
    pieces = [os.urandom(100), os.urandom(5000), os.urandom(70_001)]
    expected = b"".join(pieces) * 3
    wrong = []
    with created(path, storage) as descriptor, opened(path, storage) as reader:
        position = 0
        for _ in range(3):
            position += storage.write(descriptor, pieces, position)
        if storage.read(reader, len(expected), 0) != expected:
            wrong.append("another descriptor reads other bytes than were written")
        if storage.read(reader, 10, len(expected) + 1000) != b"":
            wrong.append("there are bytes behind the end")
        storage.sync(descriptor)
        wrong += _read_elsewhere(context, expected)
        storage.write(descriptor, [b"end"], len(expected) + _HOLE_BYTES)
        if storage.read(reader, _HOLE_BYTES + 10, len(expected)) != bytes(_HOLE_BYTES) + b"end":
            wrong.append("a hole does not read as zeros")
        storage.truncate(descriptor, 1000)
        storage.truncate(descriptor, 2000)
        if storage.read(reader, 10_000, 0) != expected[:1000] + bytes(1000):
            wrong.append("a file that is cut and extended does not end in zeros")
    if wrong:
        return judge.broken(
            "; ".join(wrong),
            "Members would be other bytes than were acknowledged (promises 1 and 2). rear compares CRCs of crashed "
            "workers' members, and of all with --verify: what differs is reported as lost. Use no base here.",
        )
    return judge.ok(f"{len(expected):,} bytes, a hole, a cut and the end, through two descriptors and two processes")


def _read_elsewhere(context: ProbeContext, expected: bytes) -> list[str]:
    for process in (context.near[0], context.far[-1]):
        reply = process.ask("read", "append_and_read_back", name="file", offset=0, length=len(expected))
        if bytes.fromhex(reply["data"]) != expected:
            where = "the other mount" if process is not context.near[0] and context.has_peer else "another process"
            return [f"{where} reads other bytes than were written and synced"]
    return []


def probe_copy_file_range(context: ProbeContext) -> Finding:
    """Whether the kernel or the server copies ranges between files."""
    judge = Judge("copy_file_range")
    folder = context.place(judge.probe)
    data = os.urandom(_COPY_BYTES)
    context.write_file(folder / "source", data, sync=False)
    slow = "rear reads and writes the ranges itself: merges bring every byte through this host."
    with opened(folder / "source", context.storage) as source, created(folder / "target", context.storage) as target:
        begun, copied = time.perf_counter(), 0
        try:
            while copied < _COPY_BYTES:
                count = os.copy_file_range(source, target, _COPY_BYTES - copied, copied, copied)
                if count == 0:
                    break
                copied += count
        except AttributeError:
            return judge.degraded("this Python has no copy_file_range", slow)
        except OSError as error:
            said = f"refused: {error_name(error.errno)}"
            if error.errno in _NO_COPY:
                return judge.degraded(said, slow)
            return judge.broken(said, "Each merge ends with this error, is undone and refused; nothing is lost.")
        took = time.perf_counter() - begun
        if context.storage.read(target, _COPY_BYTES, 0) != data[:copied]:
            return judge.broken(
                "it copies other bytes than there are",
                "Merged members would be wrong. Scavenge with --verify: it reads merged bytes back before the commit.",
            )
        if copied < _COPY_BYTES:
            return judge.degraded(f"it stops after {copied:,} of {_COPY_BYTES:,} bytes and says so", slow)
    return judge.ok(f"{_COPY_BYTES:,} bytes copied by the kernel or the server, in {fine_seconds_text(took)}")


def probe_reflink(context: ProbeContext) -> Finding:
    """Whether files can share their bytes (``FICLONE``). rear does not ask for it; the kernel may do it by itself."""
    judge = Judge("reflink")
    folder = context.place(judge.probe)
    data = os.urandom(1 << 16)
    context.write_file(folder / "source", data)
    with opened(folder / "source", context.storage) as source, created(folder / "target", context.storage) as target:
        try:
            fcntl.ioctl(target, _FICLONE, source)
            is_same = context.storage.read(target, len(data) + 1, 0) == data
        except OSError as error:
            return judge.ok(f"not to be had ({error_name(error.errno)}), not needed")
    if not is_same:
        return judge.broken("a clone has other bytes than its source", "Do not trust copies on this file system.")
    return judge.ok("files can share their bytes; rear does not need it")


# Stable storage.


def probe_fsync(context: ProbeContext) -> Finding:
    """How long it takes until a small append is on stable storage, as far as the file system says (A2)."""
    judge = Judge("fsync", "s")
    took = []
    with created(context.place(judge.probe) / "file", context.storage) as descriptor:
        for number in range(SYNC_ROUNDS):
            context.storage.write(descriptor, [os.urandom(SYNC_BYTES)], number * SYNC_BYTES)
            begun = time.perf_counter()
            context.storage.sync(descriptor)
            took.append(time.perf_counter() - begun)
    median, worst = statistics.median(took), max(took)
    seen = f"median {fine_seconds_text(median)}, worst {fine_seconds_text(worst)} of {SYNC_ROUNDS} appends of 4 KiB"
    if median <= SLOW_MEDIAN_SECONDS and worst <= SLOW_SYNC_SECONDS:
        return judge.ok(seen, median)
    effects = ['sync="file" waits that long with each close().'] * (median > SLOW_MEDIAN_SECONDS)
    if worst > SLOW_SYNC_SECONDS:
        effects.append("Power loss costs what was closed in that time too, beside sync_interval.")
    return judge.degraded(seen, " ".join(effects), median)


def probe_directory_fsync(context: ProbeContext) -> Finding:
    """Whether the name of a new file can be brought to stable storage (A7)."""
    judge = Judge("directory_fsync", "s")
    folder = context.place(judge.probe)
    took = []
    for number in range(10):
        context.storage.close(context.storage.create(folder / str(number)))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            begun = time.perf_counter()
            os.fsync(descriptor)
            took.append(time.perf_counter() - begun)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF):
                raise
            return judge.broken(
                f"refused: {error_name(error.errno)}",
                "rear goes on without: power loss can cost the names of files that were made just before it, and so "
                'a whole pair, also with sync="file" (promise 1).',
            )
        finally:
            os.close(descriptor)
    median = statistics.median(took)
    return judge.ok(f"median {fine_seconds_text(median)} after a new file", median)


def probe_clock(context: ProbeContext) -> Finding:
    """How far the times that files get are from this host's clock. No decision in rear depends on it (A13)."""
    judge = Judge("clock", "s")
    folder = context.place(judge.probe)
    samples = []
    for number in range(5):
        before = time.time_ns()
        with created(folder / str(number), context.storage) as descriptor:
            stamp = os.fstat(descriptor).st_mtime_ns
        after = time.time_ns()
        samples.append((after - before, stamp - (before + after) // 2))
    # The shortest way there and back says it best.
    offset = min(samples)[1] / 1e9
    seen = f"new files are {fine_seconds_text(abs(offset))} {'ahead of' if offset > 0 else 'behind'} this host's clock"
    effect = "No decision in rear depends on it; times in listings, indexes and reports come from different clocks."
    if abs(offset) > CLOCK_SECONDS:
        return judge.degraded(seen, effect, offset)
    return judge.ok(seen, offset)


DATA_PROBES: Final = (
    probe_append_and_read_back,
    probe_copy_file_range,
    probe_reflink,
    probe_fsync,
    probe_directory_fsync,
    probe_clock,
)
