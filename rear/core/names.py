"""What names may be: targets that users write, members, archives, and the names that rear itself gives.

Each is checked before it becomes a path, so that no name leaves the base.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from rear.errors import PathError

STATE = ".rear"
NAME_LIMIT_BYTES = 65_535
"""Longest member name: the length field of a local header has 16 bits (APPNOTE 4.4.10)."""
NUMBER_BYTES = 15
"""Room in what users call an archive for the number that it gets when it is full: ``ar-12.zip``."""
ARCHIVE_LIMIT_BYTES = 1_024 + NUMBER_BYTES
"""Longest path of a final archive: it has to fit, with up to 60 KiB of metadata, into one 64 KiB extra area."""
COMPONENT_LIMIT_BYTES = 255
"""Longest part of an archive's path: file systems stop there."""
_BACKSLASH_OR_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")
#: Names that need no closer look: no control character or backslash, no empty part, none that begins with a dot.
_PLAIN_NAME = re.compile(r"(?:[!-\-0-\[\]-~][ -.0-\[\]-~]*/)*[!-\-0-\[\]-~][ -.0-\[\]-~]*")
_PLAIN_PART = re.compile(r"[!-\-0-\[\]-~][ -.0-\[\]-~]*")
_PLAIN_NAME_LIMIT_BYTES = 4096
_KNOWN_FOLDERS_LIMIT = 2_000
#: Of ASCII: without that ``ı`` and ``İ`` would be the ``i`` of ``.zip`` here, and nowhere else.
ARCHIVE_PART = re.compile(r"\.zip\Z", re.IGNORECASE | re.ASCII)
#: NFS, macOS, FUSE, SMB, AFS, NetApp, Windows and file managers leave such in any folder.
_LITTER = re.compile(
    r"\.(nfs|fuse_hidden|smbdelete|__afs)[0-9A-Za-z]+|\._.*|\.(DS_Store|directory|snapshots?|zfs|Trash.*|hidden)"
    r"|Thumbs\.db|desktop\.ini",
    re.DOTALL,
)
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")


class Target(NamedTuple):
    """Where a member belongs: path of the final archive relative to the base, and the member's name in it."""

    archive: str
    name: str


def describe(path: str) -> str:
    """Return a path or name for a message, shortened in its middle where it is long."""
    shown = path if len(path) <= 120 else f"{path[:80]}…{path[-30:]}"
    return repr(shown)


def check_relative_path(path: str) -> list[str]:
    """Return the parts of a relative POSIX path, or say what is wrong with it.

    Raises:
        PathError: the path is empty or absolute, has an empty part, ``.`` or ``..``, a backslash, NUL or another
            control character, or text that UTF-8 cannot encode.
    """
    if not path:
        raise PathError("the path is empty")
    if path[0] == "/":
        raise PathError(f"{describe(path)} is absolute: paths are relative to the base")
    found = _BACKSLASH_OR_CONTROL.search(path)
    if found:
        character = found.group()
        if character == "\\":
            raise PathError(f"{describe(path)} has a backslash: parts are separated by '/'")
        if "\ud800" <= character <= "\udfff":
            raise PathError(f"{describe(path)} cannot be encoded in UTF-8")
        name = "NUL" if character == "\0" else f"control character U+{ord(character):04X}"
        raise PathError(f"{describe(path)} has a {name} at position {found.start()}")
    parts = path.split("/")
    for part in parts:
        if part == "":
            raise PathError(f"{describe(path)} has an empty part ('//' or a '/' at its end)")
        if part in (".", ".."):
            raise PathError(f"{describe(path)} has a part {part!r}: name the place itself")
    return parts


def split_target(path: str | os.PathLike[str]) -> Target:
    """Split ``runs/7/ar.zip/logs/a.txt`` after the shortest leading path that ends in ``.zip`` (any case).

    Raises:
        PathError: no part ends in ``.zip``, nothing follows it, or the path cannot be kept; it says which.
    """
    if type(path) is str:
        folder, _, last = path.rpartition("/")
        known = _known_folders.get(folder)
        if known is not None and _is_plain_part(last) and len(path) <= _PLAIN_NAME_LIMIT_BYTES:
            archive, prefix = known
            return _new_tuple(Target, (archive, prefix + last))
    text = os.fspath(path)
    if not isinstance(text, str):
        raise PathError(f"{text!r} is not text")
    parts = check_relative_path(text)
    position = next((number for number, part in enumerate(parts) if ARCHIVE_PART.search(part)), None)
    if position is None:
        raise PathError(f"{describe(text)} names no archive: no part ends in '.zip'")
    archive, name = "/".join(parts[: position + 1]), "/".join(parts[position + 1 :])
    if not name:
        raise PathError(f"{describe(text)} names an archive, but no member in it")
    check_archive(archive, NUMBER_BYTES)
    _check_name_length(name)
    if len(text) <= _PLAIN_NAME_LIMIT_BYTES:
        if len(_known_folders) >= _KNOWN_FOLDERS_LIMIT:
            _known_folders.clear()
        last_length = len(parts[-1])
        _known_folders[text[: -last_length - 1]] = archive, name[:-last_length]
    return Target(archive, name)


def is_plain_name(name: str) -> bool:
    """Whether there is nothing at all to be said about a name: most are of printable ASCII, and short."""
    return len(name) <= _PLAIN_NAME_LIMIT_BYTES and _PLAIN_NAME.fullmatch(name) is not None


def split_into(into: str | os.PathLike[str]) -> Target:
    """Return the archive of ``ar.zip`` or ``ar.zip/prefix``, and ``""`` or ``"prefix/"``; it may end in ``/``.

    Raises:
        PathError: see `split_target`.
    """
    text = os.fspath(into).removesuffix("/")
    *folders, last = text.lower().split("/")
    if last.endswith(".zip") and not any(folder.endswith(".zip") for folder in folders):
        check_archive(text, NUMBER_BYTES)
        return Target(text, "")
    archive, name = split_target(text)
    return Target(archive, f"{name}/")


def check_name(name: str) -> None:
    """Check a member's name; a directory's may end in ``/``.

    Raises:
        PathError: see `check_relative_path`; or the name is longer than 65,535 bytes in UTF-8.
    """
    if is_plain_name(name):
        return
    check_relative_path(name.removesuffix("/"))
    _check_name_length(name)


def undotted(name: str) -> str:
    """Return a name without the ``./`` that bsdtar writes before names; of the folder itself nothing is left."""
    while name.startswith("./"):
        name = name[2:]
    return "" if name == "." else name


def are_plain_names(names: Sequence[str]) -> bool:
    """Whether names need no closer look by `check_name`, as nearly all; many are looked at as if they were one path."""
    path = "/".join(names)
    return (
        path.isascii()
        and path.isprintable()
        and "\\" not in path
        and "//" not in path
        and "/." not in path
        and path[:1] not in ("", "/", ".")
        and path[-1] != "/"
        and max(map(len, names)) <= _PLAIN_NAME_LIMIT_BYTES
    )


def _check_name_length(name: str) -> None:
    if len(name) * 4 > NAME_LIMIT_BYTES and len(name.encode()) > NAME_LIMIT_BYTES:
        raise PathError(f"the member name {describe(name)} is longer than {NAME_LIMIT_BYTES:,} bytes in UTF-8")


@lru_cache(maxsize=1024)  # a worker writes a million files into a few archives
def check_archive(archive: str, room_bytes: int = 0) -> None:
    """Check the path of a final archive, relative to the base, which leaves so much room for a longer one.

    Raises:
        PathError: see `check_relative_path`; or the path is reserved, too long, or names no ``.zip``.
    """
    parts = check_relative_path(archive)
    if not ARCHIVE_PART.search(parts[-1]) or any(ARCHIVE_PART.search(part) for part in parts[:-1]):
        raise PathError(f"{describe(archive)} is not the path of an archive: its last part alone has to end in '.zip'")
    # At any depth: the folder around it would be a base of its own.
    if any(part.casefold() == STATE for part in parts):
        raise PathError(f"{describe(archive)} has a part {STATE!r}, which rear keeps for itself")
    if len(archive.encode()) > (limit := ARCHIVE_LIMIT_BYTES - room_bytes):
        raise PathError(f"the archive's path {describe(archive)} is longer than {limit:,} bytes")
    for part in parts:
        if len(part.encode()) > (limit := COMPONENT_LIMIT_BYTES - room_bytes):
            raise PathError(f"the part {describe(part)} of an archive's path is longer than {limit} bytes")


_known_folders: dict[str, tuple[str, str]] = {}
"""Folders of targets that `split_target` has found right, with the archive and the beginning of the names in it."""
_is_plain_part = _PLAIN_PART.fullmatch
#: A named tuple's own way to make one takes twice as long.
_new_tuple = tuple.__new__


def host_folder(host: str) -> str:
    """Return ``host`` as a folder name: letters, digits, ``.``, ``_`` and ``-``, never hidden and never empty."""
    text = unicodedata.normalize("NFKD", host)
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:128]
    return cleaned if _WORD.match(cleaned) else f"host_{cleaned.lstrip('.-')}"[:128]


def is_safe_component(name: str) -> bool:
    """Whether ``name`` is a host folder, a leader or another name that rear itself gives."""
    return _WORD.match(name) is not None


def is_litter(name: str) -> bool:
    """Whether a name among rear's own is what a system leaves in any folder: of no meaning, and no finding."""
    return _LITTER.fullmatch(name) is not None


def numbered(name: str, number: int) -> str:
    """Return ``dir/a~1.txt`` for ``dir/a.txt`` and 1; a name that would become too long loses its end."""
    found = re.search(r"(?<=[^/])(\.[^./]*)?(/?)\Z", name)
    at = found.start() if found else len(name)
    head, tail = name[:at], f"~{number}{name[at:]}"
    if len(name) * 4 + len(tail) > NAME_LIMIT_BYTES:
        room = NAME_LIMIT_BYTES - len(tail.encode())
        if room < 0:
            head, tail = name.removesuffix("/"), f"~{number}{'/' if name.endswith('/') else ''}"
            room = NAME_LIMIT_BYTES - len(tail.encode())
        head = head.encode()[:room].decode(errors="ignore")
    return head + tail


def is_named_for(name: str, original: str) -> bool:
    """Whether a name is ``original``, or what `numbered` makes of it."""
    if name == original:
        return True
    return any(numbered(original, int(found[1])) == name for found in re.finditer(r"~([0-9]{1,9})", name))
