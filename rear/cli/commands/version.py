"""``rear --version``: what a report of a problem has to say."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from rear.core.version import __version__

_PACKAGES: Final = ("isal", "msgspec", "zipfile-deflate64", "sqlite-utils", "rich", "typer", "zstandard", "distributed")
_EXTRAS: Final = {"zipfile-deflate64": "deflate64", "zstandard": "zstd", "distributed": "dask"}
"""What an extra of rear brings; the others are always there."""


def lines() -> Iterator[str]:
    """Yield the version, and then those of all that it stands on."""
    from rear.index import segment
    from rear.journal import codec, intent

    yield f"rear {__version__}"
    found = {
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "SQLite": segment.SQLITE_VERSION,
        **{name: _installed(name) for name in _PACKAGES},
        "journal format": str(codec.FORMAT_VERSION),
        "intent format": str(intent.FORMAT_VERSION),
        "index schema": str(segment.SCHEMA_VERSION),
    }
    yield from (f"{name:<17} {text}" for name, text in found.items())


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        extra = _EXTRAS.get(name)
        return f"not installed: pip install 'rear[{extra}]'" if extra else "not installed"
