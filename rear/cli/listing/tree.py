"""Names as a tree of directories."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from rear.cli.listing.levels import cut
from rear.cli.listing.selection import LineWriter
from rear.core.text import shown

#: Deeper parts of a name share a line: a forged name can have 32,768.
_DEPTH_LIMIT: Final = 64


def write_tree(lines: LineWriter, root: str, names: Iterable[str], depth: int | None) -> None:
    """Write a tree of names below ``root``, ``depth`` levels of it or all."""
    top: dict[str, Any] = {}
    for name in names if depth is None else (cut(name, depth) for name in names):
        *folders, last = name.removesuffix("/").split("/", _DEPTH_LIMIT)
        folder = top
        for part in folders:
            # A file and a directory of one name can both be in a Zip.
            folder = folder.setdefault(f"{part}/", {})
        folder.setdefault(f"{last}/" if name.endswith("/") else last, {})
    lines.write(shown(root))
    fork, last_fork, pipe = ("├── ", "└── ", "│   ") if lines.can_show("├└│─") else ("|-- ", "`-- ", "|   ")
    stack = [("", iter(sorted(top.items())), len(top))]
    while stack:
        indent, children, left = stack.pop()
        for label, below in children:
            left -= 1
            lines.write(f"{indent}{fork if left else last_fork}{shown(label)}")
            if below:
                stack.append((indent, children, left))
                stack.append((indent + (pipe if left else "    "), iter(sorted(below.items())), len(below)))
                break
