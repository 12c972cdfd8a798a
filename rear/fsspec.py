"""Archives as an fsspec filesystem: ``pandas.read_csv("rear:///nfs/base/ar.zip/a.csv")``; the extra ``rear[fsspec]``.

After ``rear://`` stands a path as `rear.Path` takes it; it is only read. Writing is for `rear_open`.
"""

from __future__ import annotations

import os
import stat
from typing import IO, Any, ClassVar

from fsspec import AbstractFileSystem
from fsspec.utils import stringify_path

from rear.read.path import Path


class RearFileSystem(AbstractFileSystem):
    """Reads members of archives, and files beside them. Nothing is cached: another listing shows what has come."""

    protocol: ClassVar[str] = "rear"
    root_marker: ClassVar[str] = "/"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = stringify_path(path).removeprefix("rear://")
        return os.path.join(os.getcwd(), text).rstrip("/") or cls.root_marker

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name, size, type (``file``, ``directory``, ``link`` or ``other``), mode and mtime of a member.

        Raises:
            FileNotFoundError: there is none.
        """
        stripped = self._strip_protocol(path)
        return _info(stripped, Path(stripped).stat())

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List a folder, sorted by name; of a file its own entry.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        stripped = self._strip_protocol(path)
        try:
            children = Path(stripped).children()
        except NotADirectoryError:
            entries = [self.info(stripped)]
        else:
            entries = [_info(f"{stripped.rstrip('/')}/{name}", children[name]) for name in sorted(children)]
        return entries if detail else [entry["name"] for entry in entries]

    def modified(self, path: str) -> Any:
        """Return the time of last change, as a ``datetime`` in UTC."""
        import datetime

        return datetime.datetime.fromtimestamp(self.info(path)["mtime"], datetime.UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> IO[bytes]:
        if mode != "rb":
            raise NotImplementedError(f"mode {mode!r}: rear:// only reads; write with rear_open inside a rear_fs")
        return Path(self._strip_protocol(path)).open("rb")


def _info(name: str, status: Any) -> dict[str, Any]:
    mode = status.st_mode
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
    return {
        "name": name,
        "size": status.st_size,
        "type": kinds.get(stat.S_IFMT(mode), "other"),
        "mode": mode,
        "mtime": status.st_mtime,
    }
