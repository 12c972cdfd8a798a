"""The doctor: does a file system keep what rear relies on, and what does rear do where it does not?

`examine` works in a new folder of its own, below ``.rear`` where there is one, and removes it again. What is assumed of
a file system, and why, stands in ``docs/explanation/durability.md``; the probes are described in
``docs/how-to/try-a-filesystem.md``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

from rear.core.layout import Layout
from rear.core.liveness import is_running, process_of_worker, this_process, worker_name
from rear.core.storage import LOCAL, Storage, StrPath
from rear.diagnostics.data_probes import DATA_PROBES
from rear.diagnostics.findings import Finding, Judge
from rear.diagnostics.mounts import mount_of
from rear.diagnostics.place_probes import PLACE_PROBES
from rear.diagnostics.probe_context import ProbeContext, error_name
from rear.diagnostics.probe_process import NoAnswerError, ProbeProcess
from rear.diagnostics.race_probes import RACE_PROBES
from rear.diagnostics.visibility_probes import VISIBILITY_PROBES
from rear.errors import BaseError, UsageError

Probe = Callable[[ProbeContext], Finding | list[Finding]]

PROBES: Final[dict[str, Probe]] = {
    probe.__name__.removeprefix("probe_"): probe
    for probe in (*PLACE_PROBES, *RACE_PROBES, *DATA_PROBES, *VISIBILITY_PROBES)
}
"""By name, that of the function without ``probe_``, in the order in which they run. ``visibility`` has several
findings; ``leftovers`` and ``peer`` come before them all where there is something to say."""

VISIBILITY_LIMIT_SECONDS: Final = 60.0
_PEER_SECONDS: Final = 10.0
_PREFIX: Final = ".rear-doctor-"
_MOVED: Final = ".moved"
_PROCESSES: Final = 2
_DEEPEST: Final = 4
#: With one of these nothing can be found out: the command ends with the error.
_CANNOT_RUN: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def examine(
    base: StrPath,
    *,
    peer: StrPath | None = None,
    visibility_limit_seconds: float = VISIBILITY_LIMIT_SECONDS,
    progress: Callable[[str], None] = lambda probe: None,
    storage: Storage = LOCAL,
) -> Generator[Finding, None, None]:
    """Try what rear relies on in a folder of its own below ``base``, and yield what is found.

    Close the iterator, or exhaust it: that removes the folder.

    Args:
        base: directory on the file system in question; it need not have been used by rear.
        peer: the same directory through another mount, or that other mount. Half of the processes then work there.
        visibility_limit_seconds: how long to wait for what the other mount has to show.
        progress: called with the name of each probe before it begins.
        storage: the file system.

    Raises:
        BaseError: there is no such directory.
        UsageError: ``peer`` does not show the same directory, or is no other mount.
        OSError: the directory cannot be written to.
    """
    layout = Layout(base)
    if not os.path.isdir(layout.base):
        what = "is not a directory" if os.path.lexists(layout.base) else "does not exist"
        raise BaseError(f"{layout.base} {what}: name the directory that the workers are to write to")
    if peer is not None and not os.path.isdir(peer):
        raise UsageError(f"--peer {os.fspath(peer)} is not a directory: name the base, as another mount shows it")
    process = this_process()
    name = f"{_PREFIX}{worker_name(process, secrets.token_hex(6))}.{process.host}"
    parent = layout.state if os.path.isdir(layout.state) else layout.base
    context = ProbeContext(layout.base, parent / name, storage, limit_seconds=visibility_limit_seconds)
    return _examine(layout, context, peer, progress)


def _examine(
    layout: Layout, context: ProbeContext, peer: StrPath | None, progress: Callable[[str], None]
) -> Generator[Finding, None, None]:
    yield from _remove_leftovers(layout, context.storage)
    try:
        _make_folder(context)
        far = os.fspath(context.folder)
        if peer is not None:
            progress("peer")
            far = _find_peer(context, os.path.abspath(peer))
            context.has_peer = True
            yield _describe_peer(context, far)
        for _ in range(_PROCESSES):
            context.near.append(ProbeProcess(context.folder))
            context.far.append(ProbeProcess(far))
        for probe in PROBES:
            progress(probe)
            yield from _run(probe, context)
    finally:
        context.end_processes()
        _remove(context.folder)
        _remove(layout.base / f"{context.folder.name}{_MOVED}")


def _make_folder(context: ProbeContext) -> None:
    try:
        context.storage.make_directories(context.folder, sync=False)
    except OSError as error:
        if error.errno == errno.ENOSPC and os.statvfs(context.base).f_favail == 0:
            raise OSError(errno.ENOSPC, "no inode is left for a new file", os.fspath(context.folder)) from None
        raise


def _run(name: str, context: ProbeContext) -> list[Finding]:
    try:
        found = PROBES[name](context)
    except OSError as error:
        if error.errno in _CANNOT_RUN:
            raise
        context.renew_processes()
        where = f" at {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
        seen = f"{error_name(error.errno)}{where}: {error.strerror}"
        effect = "rear meets this error here too: close() raises it, a merge is undone and refused."
        return [Judge(name).broken(seen, effect)]
    except NoAnswerError as error:
        context.renew_processes()
        return [Judge(name).broken(str(error), "rear would hang like this here.")]
    return found if isinstance(found, list) else [found]


# The other mount.


def _find_peer(context: ProbeContext, peer: str) -> str:
    """Return the path of the new folder through the other mount.

    Raises:
        UsageError: there is none.
    """
    mount, other = mount_of(context.base), mount_of(peer)
    if mount is not None and other is not None and mount.identity == other.identity:
        raise UsageError(
            f"--peer {peer} is on the same mount as {context.base} ({mount.point}): mount the same export a second time"
        )
    relative = context.folder.relative_to(context.base)
    candidates = [os.path.join(peer, relative)]
    if mount is not None:
        # Its mount point was given, not the directory below it.
        below = os.path.relpath(os.path.realpath(context.base), mount.point)
        candidates.append(os.path.normpath(os.path.join(peer, below, relative)))
    token = secrets.token_hex(8)
    context.storage.close(context.storage.create(context.folder / token))
    deadline = time.monotonic() + _PEER_SECONDS
    while True:
        for candidate in candidates:
            with contextlib.suppress(OSError):
                # Looked for in its parent first: other mounts may remember for long that a name was not there.
                is_listed = context.folder.name in os.listdir(os.path.dirname(candidate))
                if is_listed and token in os.listdir(candidate):
                    return candidate
        known = [path for path in candidates if os.path.isdir(os.path.dirname(path))]
        if not known or time.monotonic() > deadline or not _may_be_late(peer):
            raise UsageError(
                f"--peer {peer} does not show {context.base}: a folder made there does not appear in it. Name the same "
                "directory as another mount shows it"
            )
        time.sleep(0.1)


def _may_be_late(peer: str) -> bool:
    """Whether a listing may be old: on a local file system it is not, and there is nothing to wait for."""
    mount = mount_of(peer)
    return mount is None or mount.kind not in ("ext4", "xfs", "btrfs", "tmpfs", "ext3", "ext2", "zfs", "f2fs", "vfat")


def _describe_peer(context: ProbeContext, far: str) -> Finding:
    mount = mount_of(far)
    where = f"{mount.kind} on {mount.point}" if mount is not None else far
    judge = Judge("peer")
    if os.stat(far).st_dev == os.stat(context.folder).st_dev:
        return judge.not_checked(
            f"{where} shows the same folder, from the same cache of this host (same device number)",
            "What follows tells little of other hosts: mount the export a second time with a cache of its own (NFS: "
            "nosharecache).",
        )
    return judge.ok(f"{where} shows the same folder, through a mount of its own")


# The folder, and what killed doctors left.


def _remove_leftovers(layout: Layout, storage: Storage) -> Iterator[Finding]:
    """Remove folders of doctors that were killed on this host; name those of which that cannot be known."""
    judge = Judge("leftovers", "folders")
    removed, unknown, kept = 0, [], []
    for parent in (layout.base, layout.state):
        for name in storage.names(parent) if os.path.isdir(parent) else ():
            if not name.startswith(_PREFIX):
                continue
            worker, _, host = name.removeprefix(_PREFIX).removesuffix(_MOVED).partition(".")
            process = process_of_worker(host, worker)
            running = None if process is None else is_running(process)
            where = os.path.relpath(parent / name, layout.base)
            if running is None:
                unknown.append(where)
            elif not running:
                try:
                    _remove(parent / name)
                    removed += 1
                except OSError as error:
                    kept.append(f"{where} ({error.strerror})")
    if unknown or kept:
        said = [f"another host or another boot left {', '.join(sorted(unknown)[:3])}"] * bool(unknown)
        said += [f"cannot remove {', '.join(sorted(kept)[:3])}"] * bool(kept)
        effect = "rear does not look into these folders. Remove them by hand when no doctor runs there."
        yield judge.degraded("; ".join(said), effect, len(unknown) + len(kept))
    elif removed:
        yield judge.ok("removed what a doctor that was killed had left", removed)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, without following links; what is gone is fine."""
    for attempt in range(5):
        try:
            descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _remove_at(path.name, descriptor, _DEEPEST)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return
        except OSError as error:
            # A second process that was killed may still be at work; NFS keeps a name for what it has open.
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY, errno.EEXIST, errno.ESTALE) or attempt == 4:
                raise
            time.sleep(0.1 * (attempt + 1))
        else:
            return


def _remove_at(name: str, parent: int, depth: int) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for inner in os.listdir(descriptor) if depth else ():
            with contextlib.suppress(FileNotFoundError):
                _remove_at(inner, descriptor, depth - 1)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=parent)
