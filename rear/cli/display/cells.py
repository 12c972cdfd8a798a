"""Text in the cells of a terminal: names shortened in the middle, and rows of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rear.core.text import shown

if TYPE_CHECKING:
    from rich.text import Text

ELLIPSIS = "…"


class Column(NamedTuple):
    """A column of a table, ``width`` cells wide, or 0 for what the others leave; numbers stand at the right."""

    title: str
    width: int
    is_number: bool = False


def shortened(text: str, width: int) -> str:
    """Return text made safe to show, its middle left out where it has more than ``width`` cells.

    Wide characters take two cells, combining ones none.
    """
    from rich.cells import cell_len

    # Of a name of a megabyte, nobody sees the middle.
    text = shown(text if len(text) <= 8 * width + 16 else f"{text[: 4 * width + 8]}{text[-4 * width - 8 :]}")
    if cell_len(text) <= width:
        return text
    if width < 3:
        return ELLIPSIS[:width]
    head = tail = ""
    room = width - 1
    left, right = (room + 1) // 2, room // 2
    for character in text:
        left -= cell_len(character)
        if left < 0:
            break
        head += character
    for character in reversed(text):
        right -= cell_len(character)
        if right < 0:
            break
        tail = character + tail
    while tail and not cell_len(tail[0]):
        # A combining character would sit on the ellipsis.
        tail = tail[1:]
    return f"{head}{ELLIPSIS}{tail}"


def aligned(text: str, width: int, *, is_number: bool = False) -> str:
    """Return text shortened or padded to exactly ``width`` cells; numbers stand at the right."""
    from rich.cells import cell_len

    text = shortened(text, width)
    padding = " " * (width - cell_len(text))
    return padding + text if is_number else text + padding


def row(cells: Sequence[tuple[str, str]], columns: Sequence[Column], width: int) -> Text:
    """Return one row of a table, at most ``width`` cells wide; ``cells`` are text and style by column.

    Between columns is a gap of two cells.
    """
    from rich.text import Text

    line = Text(no_wrap=True, end="", overflow="crop")
    fixed = sum(column.width for column in columns) + 2 * (len(columns) - 1)
    for (text, style), column in zip(cells, columns, strict=True):
        cell_width = column.width or max(width - fixed, 1)
        line.append(aligned(text, cell_width, is_number=column.is_number), style)
        line.append("  ")
    line.right_crop(2)
    return line
