"""Names of files that no member can have, escaped on request, and taken back.

A byte that no name can hold (a control character, a backslash, what is no UTF-8) becomes ``%0A``, as in RFC 3986, 2.1,
with two upper-case digits; and so does the ``%`` of a text that would be taken for one of these. Everything else stays,
``%20`` and ``%2F`` too. So no two names become the same, and what is taken back is exactly what was escaped: never a
``/``, a ``.`` or NUL, and no name that leaves a folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from rear.core.names import ARCHIVE_PART, Target, check_name, describe, split_into, split_target
from rear.errors import PathError

_T = TypeVar("_T")
_Given = str | os.PathLike[str]
_BYTE: Final = "0[1-9A-F]|1[0-9A-F]|25|5C|7F|[89A-F][0-9A-F]"
_ESCAPED: Final = re.compile(f"%({_BYTE})")
_UNKEPT: Final = re.compile(rf"[\x01-\x1f\x7f-\x9f\\\udc80-\udcff]|%(?={_BYTE})")


def escape_name(name: str) -> str:
    r"""Return a name that a member can have: ``a%0Ab`` for ``a\nb``; see `unescape_name`.

    Args:
        name: of a file, or a path, as Python has it: a byte that is no UTF-8 is a surrogate.
    """
    return _UNKEPT.sub(_escape, _joined(name))


def unescape_name(name: str) -> str:
    """Return the name of which `escape_name` made this one; a part of which it made none stays as it is."""
    return "/".join(map(_unescape_part, name.split("/"))) if "%" in name else name


def member_name(name: str, *, escape: bool, prefix: str = "") -> str:
    """Return the name of the member that a file becomes.

    Args:
        name: of the file, or its path in a folder.
        escape: escape what no name can hold.
        prefix: what stands before it, and is the name of a member's folder already.

    Raises:
        PathError: it cannot be kept; the message says so when it could be escaped.
    """

    def checked(text: str) -> str:
        check_name(prefix + text)
        return prefix + text

    return _kept(checked, escape_name, name, escape=escape)


def member_target(path: _Given, *, escape: bool) -> Target:
    """Do what `split_target` does; with ``escape``, what is in the archive is escaped. Errors as of `member_name`."""
    return _kept(split_target, escape_path, path, escape=escape)


def member_folder(into: _Given, *, escape: bool) -> Target:
    """Do what `split_into` does; with ``escape``, what is in the archive is escaped. Errors as of `member_name`."""
    return _kept(split_into, escape_path, into, escape=escape)


def pickup_target(path: _Given, *, escape: bool) -> Target:
    """Do what `member_target` does; ``ar.zip/`` is the root of an archive, for what is in a directory."""
    if str(path).endswith("/"):
        with suppress(PathError):
            folder = member_folder(path, escape=escape)
            if not folder.name:
                return folder
    return member_target(path, escape=escape)


def escape_path(path: str) -> str:
    """Return ``ar.zip/name`` with the name escaped; the path of an archive is that of a file, and stays as it is."""
    parts = path.split("/")
    end = next((number for number, part in enumerate(parts, 1) if ARCHIVE_PART.search(part)), len(parts))
    return "/".join([*parts[:end], *map(escape_name, parts[end:])])


def _kept(check: Callable[[str], _T], escaped: Callable[[str], str], given: _Given, *, escape: bool) -> _T:
    text = os.fspath(given)
    if not isinstance(text, str):
        raise PathError(f"{text!r} is not text")
    if escape:
        return check(escaped(text))
    try:
        return check(text)
    except PathError as error:
        try:
            kept = escaped(text)
            check(kept)
        except PathError:
            raise error from None
        raise PathError(f"{error}; --escape-names (Python: escape_names=True) keeps it as {describe(kept)}") from None


def _escape(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape"))


def _unescape_part(part: str) -> str:
    plain = _joined(_ESCAPED.sub(_unescape, part))
    # What only looks escaped, as %C3%A9 does, is the name that its writer gave.
    return plain if escape_name(plain) == part else part


def _unescape(found: re.Match[str]) -> str:
    return bytes.fromhex(found[1]).decode("utf-8", "surrogateescape")


def _joined(text: str) -> str:
    """Return text in which bytes that together are UTF-8 are a character, as in the names of files."""
    try:
        return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # A surrogate that stands for no byte: no file is called so.
        return text
