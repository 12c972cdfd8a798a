"""The archives below a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from rear.core.names import STATE
from rear.core.storage import LOCAL, StrPath, opened

_APPLE_DOUBLE: Final = (b"\0\5\x16\7", b"\0\5\x16\0")
VANISHED: Final = frozenset({errno.ENOENT, errno.ESTALE})
"""Errors of what was there a moment ago."""


class ArchiveTree:
    """Yields the relative paths of the ``.zip`` files below a folder, in order; what rear keeps for itself is left out.

    Args:
        folder: where they are looked for.
        any_kind: also links to nothing and what else of that name is no directory.

    Attributes:
        errors: folders below it that could not be read; complete once all is yielded.

    Raises (while it yields):
        OSError: the folder itself cannot be read.
    """

    def __init__(self, folder: StrPath, *, any_kind: bool = False) -> None:
        self._folder = os.fspath(folder)
        self._any_kind = any_kind
        self.errors: list[OSError] = []

    def __iter__(self) -> Iterator[str]:
        stack = [iter(self._scan(""))]
        while stack:
            for name, is_directory in stack[-1]:
                if is_directory:
                    try:
                        stack.append(iter(self._scan(f"{name}/")))
                    except OSError as error:
                        if error.errno not in VANISHED:
                            self.errors.append(error)
                    break
                yield name
            else:
                stack.pop()

    def _scan(self, relative: str) -> list[tuple[str, bool]]:
        found = []
        with os.scandir(os.path.join(self._folder, relative)) as items:
            for item in items:
                is_directory = item.is_dir(follow_symlinks=False)
                if is_directory and item.name != STATE:
                    found.append((f"{relative}{item.name}", True))
                elif item.name.lower().endswith(".zip") and self._is_wanted(item) and not _is_apple_double(item):
                    found.append((f"{relative}{item.name}", False))
        return sorted(found)

    def _is_wanted(self, item: os.DirEntry[str]) -> bool:
        try:
            return not item.is_dir() if self._any_kind else item.is_file()
        except OSError as error:
            # A link that leads to itself, or to where nobody may look, hides nothing but itself.
            if not self._any_kind:
                self.errors.append(OSError(error.errno, error.strerror, item.path))
            return self._any_kind


def _is_apple_double(item: os.DirEntry[str]) -> bool:
    """Whether a file is what macOS keeps beside ``ar.zip`` as ``._ar.zip`` where attributes have no other place."""
    if not item.name.startswith("._") or not item.is_file(follow_symlinks=False):
        return False
    try:
        with opened(item.path, LOCAL) as descriptor:
            head = LOCAL.read(descriptor, 4, 0)
    except OSError:
        return False
    folder, _, name = item.path.rpartition("/")
    return head in _APPLE_DOUBLE or (head[:2] != b"PK" and os.path.lexists(f"{folder}/{name[2:]}"))
