"""rear: many processes write many small files; what arrives on the shared file system is a few ordinary Zip archives.

    from rear import rear_fs, rear_open

    with rear_fs("/nfs/base"):
        with rear_open("ar.zip/logs/a.txt", "w") as file:
            file.write("hello")

``rear.scavenge(base)`` merges what the workers wrote into the final archives. Importing this package is light: what
only a scavenger needs is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rear.core.version import __version__
from rear.errors import RearError
from rear.worker.fs import RearFs, rear_fs, rear_open, rear_pickup

if TYPE_CHECKING:
    from rear.ingest.adopt import adopt
    from rear.ingest.sweep import sweep
    from rear.read.find import find
    from rear.read.members import open_archive
    from rear.read.path import Path
    from rear.scavenger.daemon import scavengerd
    from rear.scavenger.scavenge import scavenge

__all__ = [
    "Path", "RearError", "RearFs", "__version__", "adopt", "find", "open_archive", "rear_fs", "rear_open",
    "rear_pickup", "scavenge", "scavengerd", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "adopt":
        from rear.ingest.adopt import adopt

        return adopt
    if name == "Path":
        from rear.read.path import Path

        return Path
    if name == "open_archive":
        from rear.read.members import open_archive

        return open_archive
    if name == "scavenge":
        from rear.scavenger.scavenge import scavenge

        return scavenge
    if name == "scavengerd":
        from rear.scavenger.daemon import scavengerd

        return scavengerd
    if name == "find":
        from rear.read.find import find

        return find
    if name == "sweep":
        from rear.ingest.sweep import sweep

        return sweep
    raise AttributeError(f"module 'rear' has no attribute {name!r}")
