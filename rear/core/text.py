"""Text from archives and paths, made safe to show: nothing in it can move a cursor, colour a screen or break a line."""

from __future__ import annotations


def shown(text: str) -> str:
    """Return text with everything escaped that a terminal might act on or cannot show; a backslash is doubled."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape(character) for character in text)


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        # A byte that is no UTF-8.
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
