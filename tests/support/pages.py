"""Tables and blocks of the documentation, as text."""

from __future__ import annotations

import re

from checkout import ROOT


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def between(text: str, begin: str, end: str) -> str:
    assert begin in text, f"the mark {begin} is gone"
    assert end in text, f"the mark {end} is gone"
    return text.partition(begin)[2].partition(end)[0]


def rows(text: str) -> list[list[str]]:
    """Cells of the rows of all tables, without heads."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if set("".join(cells)) <= set("-"):
            found.pop()
        else:
            found.append(cells)
    return found


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
