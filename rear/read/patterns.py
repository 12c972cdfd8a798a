"""Patterns for names, as the shell has them.

``*`` and ``?`` match anything but ``/``, ``**`` matches that too, ``[a-z]`` one character of a set. A name without
these selects the member of that name, or all members below it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rear.errors import MemberNotFoundError, UsageError

_WILDCARD: Final = re.compile(r"\*\*/|\*\*+|\*|\?|\[")
_SET: Final = re.compile(r"\[[!^]?.[^\]]*\]", re.DOTALL)


def has_wildcard(pattern: str) -> bool:
    """Whether a pattern could match another text than itself."""
    return _WILDCARD.search(pattern) is not None


def coarse_glob(pattern: str) -> str:
    """Return a pattern of SQLite's ``GLOB`` that matches all that this one matches, itself too, and maybe more."""
    text = _SET.sub("*", pattern).replace("[", "?")
    return re.sub(r"\*+", "*", text.replace("**/", "*"))


def translate(pattern: str, *, negations: str = "!^") -> str:
    """Return a pattern as a regular expression for the whole text; with ``re.DOTALL``.

    Args:
        pattern: what is translated.
        negations: one of these characters at the begin of a set means all but what is in it.
    """
    parts, position = [], 0
    while found := _WILDCARD.search(pattern, position):
        parts.append(re.escape(pattern[position : found.start()]))
        position = found.end()
        wildcard = found.group()
        if wildcard == "[":
            # As in fnmatch: a bracket right after the opening one belongs to the set, and one without end is itself.
            end = pattern.find("]", position + (2 if pattern.startswith(tuple(negations), position) else 1))
            if end < 0:
                parts.append(r"\[")
                continue
            members, position = pattern[position:end], end + 1
            negated = members[0] in negations
            escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", members[negated:])
            parts.append(f"(?!/)[{'^' if negated else ''}{escaped}]")
        elif wildcard == "**/":
            at_start = found.start() == 0 or pattern[found.start() - 1] == "/"
            parts.append("(?:.*/)?" if at_start else ".*/")
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(wildcard, ".*"))
    return "".join(parts) + re.escape(pattern[position:])


class Patterns:
    """Decides which members are meant, and remembers which patterns met none.

    Args:
        patterns: what the user gave; none selects all members.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._unmatched = {pattern: self._compile(pattern) for pattern in patterns}
        self._compiled = list(self._unmatched.items())

    @staticmethod
    def _compile(pattern: str) -> re.Pattern[str]:
        below = "/.*" if pattern.endswith("/") else "/?" if has_wildcard(pattern) else "(?:/.*)?"
        try:
            return re.compile(translate(pattern.rstrip("/")) + below, re.DOTALL)
        except re.error as error:
            raise UsageError(f"pattern {pattern!r}: {error}") from None

    def __bool__(self) -> bool:
        return bool(self._compiled)

    def matches(self, name: str) -> bool:
        """Whether a member is selected: by its literal name, or by a pattern."""
        if not self._compiled:
            return True
        selected = False
        for pattern, compiled in self._compiled:
            if name == pattern or compiled.fullmatch(name):
                self._unmatched.pop(pattern, None)
                selected = True
        return selected

    def check(self, archive: str) -> None:
        """Complain of patterns that met no member.

        Raises:
            MemberNotFoundError: names the first of them.
        """
        for pattern in self._unmatched:
            raise MemberNotFoundError(f"{archive}: no member matches {pattern!r}")
