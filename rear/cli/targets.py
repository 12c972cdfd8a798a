"""Which base, and which place in it, a target on the command line means; and metadata."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from rear.core.discovery import name_base
from rear.core.layout import Layout, base_above, find_base
from rear.core.names import check_archive
from rear.core.records import Metadata
from rear.errors import UsageError


class Place(NamedTuple):
    """A base, and ``ar.zip``, ``ar.zip/name`` or ``ar.zip/folder/`` below it."""

    base: str
    path: str


def place_of(target: str, base: str | None) -> Place:
    """Tell base and path of a target apart.

    Args:
        target: with a base a path relative to it, or an absolute one below it; without one any path, and the base is
            the innermost folder above the archive that has a ``.rear``.
        base: the base, which need not exist.

    Raises:
        UsageError: the target names no archive, or one that no base can have; it is not below the base; or nothing
            above it is a base.
    """
    if base is not None:
        name_base(base)
        if not os.path.isabs(target):
            return Place(base, target)
        root = str(Layout(base).base).rstrip("/") + "/"
        if not target.startswith(root):
            raise UsageError(f"{target!r} is not below the base {base!r}")
        return Place(base, target[len(root) :])
    end = 0
    while end < len(target):
        end = target.find("/", end + 1) if "/" in target[end + 1 :] else len(target)
        archive = target[:end]
        if archive.lower().endswith(".zip") and not os.path.isdir(archive):
            found = find_base(archive)
            if found is None:
                _check_in_base(archive)
                # Not the archive's own folder by guess: of two bases, one within the other, nobody scavenges the inner.
                raise UsageError(
                    f"no folder above {archive!r} is a base yet: name the one that is to be it, with --base"
                )
            return Place(str(found[0].base), found[1] + target[end:])
    raise UsageError(f"{target!r} names no archive: no part ends in '.zip', or only folders do")


def _check_in_base(archive: str) -> None:
    """Say why an archive below a base is none of its.

    Raises:
        PathError: no base can have it.
    """
    path = os.path.abspath(archive)
    base = base_above(os.path.dirname(path))
    if base is not None:
        check_archive(os.path.relpath(path, base))


def metadata_of(pairs: Sequence[str]) -> Metadata | None:
    """Return ``key=value`` arguments as metadata; ``None`` when there are none.

    Raises:
        UsageError: one has no ``=`` or no key.
    """
    metadata: Metadata = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--meta {pair!r}: it has to be key=value")
        metadata[key] = value
    return metadata or None
