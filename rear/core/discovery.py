"""Which folder counts as a base where nobody names one: a ``.rear`` above an archive says what is on its way to it.

Anybody may make one in a folder like ``/tmp``, for all that lies below. So it counts only when whoever made it could
have replaced the archive with bare hands, or when the user says so; as git has its ``safe.directory``. What does not
count is passed over, and the search goes on upwards.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from rear.core.log import warn
from rear.core.names import STATE
from rear.core.trust import is_private, is_trusted

VARIABLE: Final = "REAR_TRUSTED_BASES"
_FOR_GROUP: Final = stat.S_IWGRP | stat.S_ISVTX
_FOR_ALL: Final = stat.S_IWOTH | stat.S_ISVTX

_named: set[str] = set()
_told: set[str] = set()


def name_base(base: str | os.PathLike[str]) -> None:
    """Have a base count in this process from now on: its user has named it."""
    _named.update((os.path.abspath(base), os.path.realpath(base)))


def counts_as_base(folder: str | os.PathLike[str], place: str | os.PathLike[str]) -> bool:
    """Whether a folder that has a ``.rear`` counts as a base for a place below it; tell once of one that does not.

    Args:
        folder: absolute.
        place: an archive, or a folder, which need not be there; or ``folder`` itself.

    Raises:
        OSError: a folder cannot be looked at.
    """
    base = os.fspath(folder)
    # Of the link itself, if it is one: who made that decides where it leads.
    made = os.lstat(os.path.join(base, STATE))
    if base in _named or base in _allowed():
        return True
    around = os.stat(base)
    is_unmoved = _is_unmoved(made, around)
    if is_unmoved and is_trusted(made):
        return True
    target, target_folder = _status_of(os.fspath(place), around)
    if (is_unmoved and is_trusted(made, around, target, target_folder)) or _can_replace(around, target_folder):
        return True
    if base not in _told:
        _told.add(base)
        why = (
            "is neither you nor owns what lies there"
            if is_unmoved
            else "need not have put it there: others may move it"
        )
        warn(
            "%s belongs to user %d, who %s: it is not taken for a base. If you trust it, name it in %s, or where a "
            "command asks for a base",
            os.path.join(base, STATE), made.st_uid, why, VARIABLE,
        )  # fmt: skip
    return False


def _allowed() -> set[str]:
    paths = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    return {path for named in paths for path in (os.path.abspath(named), os.path.realpath(named))}


def _status_of(place: str, around: os.stat_result) -> tuple[os.stat_result | None, os.stat_result]:
    """Return the status of an archive, if it is there, and of the folder that it is in, or would be made in."""
    found: list[os.stat_result] = []
    while len(found) < 2:
        try:
            found.append(os.stat(place))
        except (FileNotFoundError, NotADirectoryError):
            pass
        if found and stat.S_ISDIR(found[-1].st_mode):
            break
        parent = os.path.dirname(place)
        if parent == place:
            return None, around
        place = parent
    return (found[0] if len(found) > 1 else None), found[-1]


def _is_unmoved(made: os.stat_result, around: os.stat_result) -> bool:
    """Whether the owner of a ``.rear`` has it in that folder: who may write to a folder may also move it elsewhere.

    It stays where it is if nobody else may write to it, or to the folder that it is in; and in a base that a group
    shares, it is the group's.
    """
    is_of_group = made.st_gid == around.st_gid and not (made.st_mode | around.st_mode) & stat.S_IWOTH
    return is_private(made) or is_private(around) or is_of_group


def _can_replace(around: os.stat_result, target_folder: os.stat_result) -> bool:
    """Whether whoever may make a ``.rear`` in a base's folder may rename what is in another folder below it."""
    if target_folder.st_mode & _FOR_ALL == stat.S_IWOTH:
        return True
    if around.st_mode & stat.S_IWOTH or not around.st_mode & stat.S_IWGRP:
        return False
    return around.st_gid == target_folder.st_gid and target_folder.st_mode & _FOR_GROUP == stat.S_IWGRP
