"""Names in columns, as many as fit, and in the colours of ``LS_COLORS``: for terminals."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

_GAP: Final = 2
#: Of more names than this, all columns are of one width: trying out takes too long.
_FITTED_LIMIT: Final = 10_000
#: What GNU ls shows without LS_COLORS.
_DEFAULT_COLORS: Final = "di=01;34:ln=01;36:ex=01;32:*.zip=01;31"
#: Only numbers: the variable may come from elsewhere, and other text could be any command to the terminal.
_CODE: Final = re.compile(r"[0-9]{1,3}(?:;[0-9]{1,3})*")


class Colors:
    """Paints names by what they are."""

    def __init__(self, definition: str) -> None:
        pairs = (item.partition("=") for item in definition.split(":"))
        self._codes = {key: code for key, _, code in pairs if _CODE.fullmatch(code)}

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Colors:
        """Return the colours that the user wants, none with ``NO_COLOR`` or a terminal that shows none."""
        if environment.get("NO_COLOR") or environment.get("TERM", "dumb") == "dumb":
            return cls("")
        return cls(environment.get("LS_COLORS") or _DEFAULT_COLORS)

    def __bool__(self) -> bool:
        return bool(self._codes)

    def paint(self, text: str, name: str, mode: int) -> str:
        """Return ``text`` in the colour of a member of this name and mode."""
        code = self._code(name, mode)
        return f"\x1b[{code}m{text}\x1b[0m" if code else text

    def _code(self, name: str, mode: int) -> str | None:
        if name.endswith("/"):
            return self._codes.get("di")
        if stat.S_ISLNK(mode):
            return self._codes.get("ln")
        if mode & 0o111 and (code := self._codes.get("ex")):
            return code
        # As ls does: the longest suffix that is listed, in whatever case.
        last = name.rpartition("/")[2].lower()
        dots = (position for position, character in enumerate(last) if character == ".")
        return next((code for dot in dots if (code := self._codes.get(f"*{last[dot:]}"))), self._codes.get("fi"))


def display_width(text: str) -> int:
    """Return how many columns of a terminal a printable text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def in_columns(texts: Sequence[str], painted: Sequence[str], *, width: int) -> Iterator[str]:
    """Yield the lines of a list in columns, top to bottom, then left to right; ``painted`` is ``texts`` in colours."""
    widths = [display_width(text) for text in texts]
    rows, column_widths = _fit(widths, width)
    for row in range(rows):
        line = []
        for position, column_width in zip(range(row, len(texts), rows), column_widths, strict=False):
            last = position + rows >= len(texts)
            line.append(painted[position] + ("" if last else " " * (column_width + _GAP - widths[position])))
        yield "".join(line)


def _fit(widths: list[int], width: int) -> tuple[int, list[int]]:
    """Return the least number of rows for which all columns fit, and the widths of the columns."""
    count = len(widths)
    if count > _FITTED_LIMIT:
        widest = max(widths)
        columns = max(1, (width + _GAP) // (widest + _GAP))
        return -(-count // columns), [widest] * columns
    for columns in range(min(count, max(1, (width + _GAP) // (1 + _GAP))), 1, -1):
        rows = -(-count // columns)
        found = [max(widths[start : start + rows]) for start in range(0, count, rows)]
        if sum(found) + _GAP * (len(found) - 1) <= width:
            return rows, found
    return count, [max(widths, default=0)]
