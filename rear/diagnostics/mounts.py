"""The mount under a path: its type and options, as the kernel tells them in ``/proc/self/mountinfo`` (proc(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from rear.core.storage import StrPath

_MOUNTINFO: Final = "/proc/self/mountinfo"
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo.

    Attributes:
        identity: number of the mount, unique on this host.
        root: the directory of the file system that is mounted; ``/`` unless it is a bind mount.
        point: where it is mounted.
        kind: type of the file system: ``ext4``, ``nfs4``, ``fuse.sshfs``.
        source: the device or export.
        options: of the mount and of the file system, with an empty text for those without a value.
    """

    identity: int
    root: str
    point: str
    kind: str
    source: str
    options: dict[str, str]


def mount_of(path: StrPath, mountinfo: str | None = None) -> Mount | None:
    """Return the mount that a path leads to, ``None`` where the system (or ``mountinfo``, a text like its) has none."""
    real = os.path.realpath(path)
    found = None
    for mount in _mounts(_text() if mountinfo is None else mountinfo):
        # Of several mounts on one point the last one is seen.
        is_above = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        if is_above and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def _text() -> str:
    try:
        with open(_MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _mounts(text: str) -> Iterator[Mount]:
    for line in text.splitlines():
        # Between the sixth field and the dash stand any number of optional fields.
        first, dash, second = line.partition(" - ")
        fields, rest = first.split(" "), second.split(" ")
        if dash and len(fields) >= 6 and len(rest) >= 3 and fields[0].isdecimal():
            root, point = _unescaped(fields[3]), _unescaped(fields[4])
            yield Mount(
                int(fields[0]), root, point, rest[0], _unescaped(rest[1]), _options(fields[5]) | _options(rest[2])
            )


def _options(text: str) -> dict[str, str]:
    pairs = (option.partition("=") for option in text.split(",") if option)
    return {name: _unescaped(value) for name, _, value in pairs}


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
