"""Durations and sizes as people write them: ``5m``, ``50G``."""

from __future__ import annotations

from datetime import datetime, timedelta

import typer

from rear.core.quantities import parse_seconds, parse_size_bytes
from rear.errors import UsageError


def seconds(text: str) -> float:
    """Return a duration such as ``30``, ``30s``, ``5m``, ``2h`` or ``1d`` in seconds."""
    try:
        return parse_seconds(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


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
    try:
        return parse_size_bytes(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def human_bytes(size: int) -> str:
    """Return a size for people: ``3.2 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
