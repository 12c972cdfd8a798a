"""Text for people: names made safe to show, and counts, sizes and durations in words and back.

Nothing in text from archives and paths that went through `shown` can move a cursor, colour a screen or break a line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from rear.errors import UsageError

# ---- safe to show


def shown(text: str) -> str:
    """Return text with everything escaped that a terminal might act on or cannot show; a backslash is doubled."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape(character) for character in text)


def printable(text: str) -> str:
    """Return a sentence or a cell as it is, unless a terminal might act on something in it: then as `shown` does."""
    return text if text.isprintable() else shown(text)


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        # A byte that is no UTF-8.
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


# ---- told


class Units(NamedTuple):
    """How sizes are told.

    Attributes:
        step: how many of one unit are one of the next.
        limit: from so many of one unit on, the next one is taken.
        names: of the units above bytes, the smallest first.
    """

    step: int
    limit: float
    names: tuple[str, ...]


#: Of what happens: 999.96 kB would be shown as 1000.0 kB.
DECIMAL: Final = Units(1000, 999.95, ("kB", "MB", "GB", "TB", "PB"))
#: Of what is there: archives and members in lists, temp archives, space.
BINARY: Final = Units(1024, 1024, ("KiB", "MiB", "GiB", "TiB"))


def counted(count: int, noun: str) -> str:
    """Return ``1 member``, ``2,000 members``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def size_text(size_bytes: int, units: Units = DECIMAL) -> str:
    """Return a size: ``512 bytes`` or ``35.7 kB``; in `BINARY` units ``512 B`` or ``3.2 MiB``."""
    step, limit, names = units
    if size_bytes < step:
        return counted(size_bytes, "byte") if units is DECIMAL else f"{size_bytes} B"
    value = size_bytes / step
    for name in names:
        if value < limit:
            break
        if name is not names[-1]:
            value /= step
    return f"{value:,.1f} {name}" if units is DECIMAL else f"{value:.1f} {name}"


def seconds_text(seconds: float) -> str:
    """Return how long something took: ``4.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def fine_seconds_text(seconds: float) -> str:
    """Return what was measured, from ``12 µs`` to ``27.3 s``."""
    size = abs(seconds)
    if size < 0.000_95:
        return f"{seconds * 1e6:.0f} µs"
    if size < 0.095:
        return f"{seconds * 1e3:.1f} ms"
    if size < 0.95:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:,.1f} s"


# ---- written by people

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_seconds(text: str, *, zero: bool = False) -> float:
    """Return a duration such as ``30``, ``30s``, ``5m``, ``2h`` or ``1d`` in seconds; ``zero``: it may be 0.

    Raises:
        UsageError: it is none.
    """
    return _parse(text, _SECONDS, "", "duration: write 30s, 5m, 2h or 1d", zero=zero)


def parse_size_bytes(text: str, *, zero: bool = False) -> int:
    """Return a size such as ``1000``, ``500M`` or ``50G`` (powers of 1024) in bytes; ``zero``: it may be 0.

    Raises:
        UsageError: it is none.
    """
    return int(_parse(text, _BYTES, "(?:i?b)?", "size: write 1000, 500M or 50G", zero=zero))


def _parse(text: str, units: Mapping[str, int], after: str, advice: str, *, zero: bool) -> float:
    found = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?)([{''.join(units)}]?){after}", text.strip().lower())
    if found is None or not (zero or float(found[1])):
        raise UsageError(f"{text!r} is no {advice}")
    return float(found[1]) * units[found[2]]
