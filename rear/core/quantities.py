"""Durations and sizes as people write them: ``5m``, ``50G``."""

from __future__ import annotations

import re
from typing import Final

from rear.errors import UsageError

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_seconds(text: str) -> float:
    """Return a duration such as ``30``, ``30s``, ``5m``, ``2h`` or ``1d`` in seconds.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"{text!r} is no duration: write 30s, 5m, 2h or 1d")
    return float(found[1]) * _SECONDS[found[2]]


def parse_size_bytes(text: str) -> int:
    """Return a size such as ``1000``, ``500M`` or ``50G`` (powers of 1024) in bytes.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"{text!r} is no size: write 1000, 500M or 50G")
    return int(float(found[1]) * _BYTES[found[2]])
