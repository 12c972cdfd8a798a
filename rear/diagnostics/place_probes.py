"""Probes of the place that a base is in: its mount, its space, and which names it takes.

What is assumed stands in ``docs/explanation/durability.md`` (A1 to A14).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from rear.diagnostics.findings import Finding, Judge
from rear.diagnostics.mounts import mount_of
from rear.diagnostics.probe_context import ProbeContext

#: A temp archive of the default size, and the same members a second time in the final archive.
FREE_BYTES_WANTED: Final = 2 << 30
FREE_BYTES_NEEDED: Final = 64 << 20
FREE_INODES_WANTED: Final = 10_000
FREE_INODES_NEEDED: Final = 100
#: Longest part of a name: an archive's part of 240 bytes, with its number after it is full (`rear.core.layout`).
NAME_BYTES: Final = 255

# The file system as a whole.

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_FAT: Final = frozenset({"vfat", "msdos"})


def probe_filesystem(context: ProbeContext) -> Finding:
    """What kind of file system this is, and which of its mount options rear feels."""
    judge = Judge("filesystem", "type")
    mount = mount_of(context.folder)
    if mount is None:
        return judge.not_checked("this system does not tell what is mounted where")
    kind, options = mount.kind, mount.options
    seen = f"{kind}, mounted on {mount.point}"
    if kind in _IN_MEMORY:
        effect = "In memory: loss of power costs everything, whatever sync= says (promise 1). Good for trying out."
        return judge.broken(seen, effect, kind)
    effects = list(_nfs_effects(options)) if kind.startswith("nfs") else []
    if kind == "fuse" or kind.startswith("fuse."):
        effects.append(
            "FUSE: what its process has not passed on is lost with that process, as with a loss of power of the host; "
            'sync="file" waits until it has.'
        )
    if kind in _FAT:
        effects.append("No file above 4 GiB: scavenge with --max-size 3G, or merges end with EFBIG and are undone.")
    if kind == "overlay":
        effects.append("The upper layer of a container goes with it: put the base on a volume.")
    if effects:
        return judge.degraded(seen, " ".join(effects), kind)
    return judge.ok(seen, kind)


def _nfs_effects(options: dict[str, str]) -> list[str]:
    effects = []
    if "nolock" in options or options.get("local_lock", "none") in ("all", "posix"):
        effects.append("Locks hold on one host only; who leads is decided by the term and the beat in the lock record.")
    if "soft" in options or "softerr" in options:
        effects.append(
            "soft: a server that does not answer makes writes fail; rear writes their members again to a new pair. "
            "With hard it waits."
        )
    cached = [options[name] for name in ("actimeo", "acdirmax", "acregmax") if options.get(name, "").isdecimal()]
    if cached and max(map(int, cached)) > 60:
        effects.append(
            f"Attributes are remembered for up to {max(map(int, cached))} s: rear decides by listings and renames, "
            "but other hosts' archives look old for as long."
        )
    if "noac" in options:
        effects.append("noac: each look asks the server, so everything is slower; rear does not need it.")
    return effects


def probe_free_space(context: ProbeContext) -> Finding:
    """How many bytes can still be written, as the file system says; quotas are not in that."""
    judge = Judge("free_space", "bytes")
    status = os.statvfs(context.folder)
    free = status.f_bavail * status.f_frsize
    seen = f"{free / (1 << 30):,.1f} GiB free"
    effect = (
        "When it is full, close() raises OSError and a merge is undone; nothing acknowledged is lost. Merging needs "
        "the size of the new members a second time."
    )
    return judge.by_least(free, needed=FREE_BYTES_NEEDED, wanted=FREE_BYTES_WANTED, seen=seen, effect=effect)


def probe_free_inodes(context: ProbeContext) -> Finding:
    """How many files can still be made."""
    judge = Judge("free_inodes", "files")
    status = os.statvfs(context.folder)
    if status.f_files == 0:
        return judge.not_checked("this file system does not count them")
    free = status.f_favail
    seen = f"{free:,} free"
    effect = (
        "Each worker needs two, each merge a few; when there is none left, close() raises OSError and a merge is "
        "undone. Nothing acknowledged is lost."
    )
    return judge.by_least(free, needed=FREE_INODES_NEEDED, wanted=FREE_INODES_WANTED, seen=seen, effect=effect)


def probe_one_filesystem(context: ProbeContext) -> Finding:
    """Whether a file can be renamed from where rear keeps its own to the base (A4)."""
    judge = Judge("one_filesystem")
    source = context.folder / "to-move"
    # Beside the base's archives for an instant; the name is one that the next doctor would recognise.
    target = context.base / f".rear-{context.folder.name.removeprefix('.rear-')}.moved"
    context.write_file(source, b"rear doctor\n", sync=False)
    try:
        context.storage.rename(source, target)
    except OSError as error:
        context.storage.unlink(source)
        if error.errno != errno.EXDEV:
            raise
        return judge.broken(
            "a rename from .rear to the base is refused: EXDEV, another file system",
            "A new archive cannot come to its place: its merge is committed, refused each time, and its files stay in "
            ".rear. Nothing is lost. Make .rear a plain folder of the base.",
        )
    context.storage.unlink(target)
    return judge.ok("a file moves from one folder of the base to another by rename")


# Names.


def probe_name_length(context: ProbeContext) -> Finding:
    """How long a name may be (`rear.core.layout` lets a part of an archive's path have 240 bytes)."""
    judge = Judge("name_length", "bytes")
    folder = context.place(judge.probe)
    length = NAME_BYTES
    while length > 8:
        path = folder / ("n" * length)
        try:
            context.storage.close(context.storage.create(path))
            break
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL):
                raise
            length -= 1
    if length == NAME_BYTES and path.name in context.storage.names(folder):
        return judge.ok(f"{length} bytes", length)
    return judge.broken(
        f"a name may have {length} bytes, not {NAME_BYTES}",
        "Archives with longer names cannot be made: their merges are refused each time, and their files stay in "
        ".rear. Use shorter names.",
        length,
    )


#: Each is allowed in the path of an archive (`rear.core.names.check_archive`).
_ODD_NAMES: Final = (
    "colon:", "star*", "question?", 'quote"', "less<", "more>", "bar|", "dot.", "space ", " space", "percent%41",
    "größe", "測定", "😀",
)  # fmt: skip


def probe_names(context: ProbeContext) -> Finding:
    """Whether names come back as they were given."""
    judge = Judge("names")
    folder = context.place(judge.probe)
    refused = []
    for odd in _ODD_NAMES:
        try:
            context.storage.close(context.storage.create(folder / odd))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            refused.append(odd)
    listed = set(context.storage.names(folder))
    changed = [odd for odd in _ODD_NAMES if odd not in listed and odd not in refused]
    if not refused and not changed:
        return judge.ok(f"{len(_ODD_NAMES)} unusual names come back as they were given")
    parts = [f"refused: {' '.join(map(ascii, refused))}"] * bool(refused)
    parts += [f"changed: {' '.join(map(ascii, changed))}"] * bool(changed)
    return judge.broken(
        "; ".join(parts),
        "Archives with such characters in their path cannot be made or found again: their merges are refused, and "
        "their files stay in .rear. Names of members may have them: these are inside the Zip.",
    )


def probe_name_case(context: ProbeContext) -> Finding:
    """Whether names that differ in case, or in the Unicode form of a letter, are two names."""
    judge = Judge("name_case")
    folder = context.place(judge.probe)
    same = []
    for first, second, what in (("Ar.zip", "ar.zip", "case"), ("\u00e9.zip", "e\u0301.zip", "Unicode form")):
        context.storage.close(context.storage.create(folder / first))
        try:
            context.storage.close(context.storage.create(folder / second))
        except FileExistsError:
            same.append(what)
    if not same:
        return judge.ok("names that differ in case or Unicode form are two names")
    return judge.broken(
        f"names that differ in {' and '.join(same)} alone are one name",
        "Two archives whose paths differ in no more than that are one file, and rear does not know: give archives "
        "names that differ in more.",
    )


PLACE_PROBES: Final = (
    probe_filesystem,
    probe_free_space,
    probe_free_inodes,
    probe_one_filesystem,
    probe_name_length,
    probe_names,
    probe_name_case,
)
