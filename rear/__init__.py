"""rear: many processes write many small files; what arrives on the shared file system is a few ordinary Zip archives.

    from rear import rear_fs, rear_open

    with rear_fs("/nfs/base"):
        with rear_open("ar.zip/logs/a.txt", "w") as file:
            file.write("hello")

``rear.scavenge(base)`` merges what the workers wrote into the final archives. Importing this package is light: what
is in it is imported when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rear.core.escaped_names import escape_name, unescape_name
    from rear.core.version import __version__
    from rear.errors import RearError
    from rear.ingest.adopt import adopt
    from rear.ingest.sweep import sweep
    from rear.read.find import FoundMember, Search, find
    from rear.read.members import open_archive
    from rear.read.path import Path
    from rear.scavenger.daemon import scavengerd
    from rear.scavenger.scavenge import scavenge
    from rear.worker.fs import RearFs, rear_fs, rear_open, rear_pickup
    from rear.worker.pools import open_in_process

_WHERE = {
    "FoundMember": "rear.read.find",
    "Path": "rear.read.path",
    "RearError": "rear.errors",
    "RearFs": "rear.worker.fs",
    "Search": "rear.read.find",
    "__version__": "rear.core.version",
    "adopt": "rear.ingest.adopt",
    "escape_name": "rear.core.escaped_names",
    "find": "rear.read.find",
    "open_archive": "rear.read.members",
    "open_in_process": "rear.worker.pools",
    "rear_fs": "rear.worker.fs",
    "rear_open": "rear.worker.fs",
    "rear_pickup": "rear.worker.fs",
    "scavenge": "rear.scavenger.scavenge",
    "scavengerd": "rear.scavenger.daemon",
    "sweep": "rear.ingest.sweep",
    "unescape_name": "rear.core.escaped_names",
}
"""Where each name is. They are imported when they are first used, the commands' entry before any of them."""

__all__ = [
    "FoundMember", "Path", "RearError", "RearFs", "Search", "__version__", "adopt", "escape_name", "find",
    "open_archive", "open_in_process", "rear_fs", "rear_open", "rear_pickup", "scavenge", "scavengerd", "sweep",
    "unescape_name",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rear' has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return found
