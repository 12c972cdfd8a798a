"""Shell completion of what lies inside archives: ``rear cat base/ar.zip/lo<TAB>``.

Outside of archives the shell's own completion of files does better, so nothing is offered there. Names come from
archives, which anybody may have made, and end up on a command line: one with a character that any of the shells could
act on is not offered. A folder that is the only answer is opened at once, so that no space is put behind it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, NamedTuple

from rear.errors import RearError
from rear.read.view import open_committed

ANSWERS_LIMIT: Final = 200
LIMIT_SECONDS: Final = 5.0
"""An archive that takes longer to look through is not completed: half of its names could complete to a wrong one."""
_COMMANDS: Final = frozenset({"ls", "cat", "get", "put", "index"})
_SAFE_NAME: Final = re.compile(r"[\w .,:@%+=/^-]*\Z")
_NAMES_BETWEEN_LOOKS: Final = 50_000


class Answer(NamedTuple):
    """One answer, with the attributes that Typer's completion wants."""

    value: str
    type: str = "plain"
    help: str | None = None


def offer_members(name: str, command: Any) -> None:
    """Have the arguments of a command (as Typer makes it) that reads archives completed by what is in them."""
    if name in _COMMANDS:
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                parameter.shell_complete = partial(_complete, name, parameter.name)


def _complete(command: str, argument: str, ctx: Any, incomplete: str) -> list[Answer]:
    try:
        archive, typed = _inside(incomplete, opens_archive=command == "cat")
        if archive is None and argument == "patterns":
            # `rear ls ar.zip lo<TAB>`: relative to the archive that was named before.
            archive, typed = ctx.params.get("path"), incomplete
        if archive is None or not os.path.isfile(os.path.expanduser(archive)):
            return []
        shown = incomplete[: len(incomplete) - len(typed)]
        shown += "/" if shown and not shown.endswith("/") else ""
        with open_committed(os.path.expanduser(archive)) as opened:
            found = members_below(typed, (name for _, name in opened.names()))
    except (RearError, OSError, ValueError):
        # What is wrong, the command will say.
        return []
    return [Answer(_for_shell(shown + name)) for name in found]


def _inside(incomplete: str, *, opens_archive: bool) -> tuple[str | None, str]:
    """Return the archive that a path leads into, and the rest; ``None`` when it leads into none."""
    position = incomplete.find("/", 1)
    while position >= 0:
        archive = incomplete[:position]
        if os.path.isfile(os.path.expanduser(archive)):
            return archive, incomplete[position + 1 :]
        position = incomplete.find("/", position + 1)
    if opens_archive and os.path.isfile(os.path.expanduser(incomplete)):
        return incomplete, ""
    return None, incomplete


def members_below(typed: str, names: Iterable[str]) -> list[str]:
    """Return the members, and folders with some, that a typed beginning can go on to; folders end in ``/``.

    A folder in which all of them lie is opened. There are no more than `ANSWERS_LIMIT` and a few; whatever is left
    out, the longest common beginning is that of all.
    """
    found: dict[str, None] = {}
    folder = common = None
    deadline = time.monotonic() + LIMIT_SECONDS
    for count, name in enumerate(names):
        if count % _NAMES_BETWEEN_LOOKS == 0 and time.monotonic() > deadline:
            return []
        if not name.startswith(typed) or name == typed or name.endswith("/") or not _SAFE_NAME.match(name):
            continue
        if folder is None or common is None:
            folder, common = name[: name.rfind("/") + 1], name
        elif not name.startswith(folder):
            # All before lie in the old folder, so they share one child of the new one.
            shared = _common([folder, name])
            outer = folder[: shared.rfind("/") + 1]
            found = {folder[: folder.index("/", len(outer)) + 1]: None}
            folder = outer
        end = name.find("/", len(folder))
        child = name if end < 0 else name[: end + 1]
        if not name.startswith(common):
            common = _common([common, name])
            found[child] = None
        elif len(found) < ANSWERS_LIMIT:
            found[child] = None
    return list(found)


def _common(texts: list[str]) -> str:
    # By characters: that is what shells complete.
    return os.path.commonprefix(texts)  # noqa: RUF071


def _for_shell(text: str) -> str:
    """Escape what bash would split; zsh and fish do that themselves, and bash too inside of quotes."""
    if os.environ.get("_REAR_COMPLETE") != "complete_bash":
        return text
    word = os.environ.get("COMP_WORDS", "").rpartition("\n")[2]
    return text if word[:1] in ("'", '"') else re.sub(r"([ ^])", r"\\\1", text)
