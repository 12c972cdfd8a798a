"""Durations and sizes as people write them: ``5m``, ``50G``."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import typer

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def seconds(text: str) -> float:
    """Return a duration such as ``30``, ``30s``, ``5m``, ``2h`` or ``1d`` in seconds."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise typer.BadParameter(f"{text!r} is no duration: write 30s, 5m, 2h or 1d")
    return float(found[1]) * _SECONDS[found[2]]


def moment(text: str) -> datetime:
    """Return a time such as ``2h`` (ago), ``2026-11-21`` or ``2026-11-21T08:30``; local unless it has an offset."""
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        pass
    try:
        return datetime.now() - timedelta(seconds=seconds(text))
    except (typer.BadParameter, OverflowError):
        raise typer.BadParameter(f"{text!r} is no time: write 2h or 1d (ago), 2026-11-21 or 2026-11-21T08:30") from None


def size_bytes(text: str) -> int:
    """Return a size such as ``1000``, ``500M`` or ``50G`` (powers of 1024) in bytes."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise typer.BadParameter(f"{text!r} is no size: write 1000, 500M or 50G")
    return int(float(found[1]) * _BYTES[found[2]])


def human_bytes(size: int) -> str:
    """Return a size for people: ``3.2 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
