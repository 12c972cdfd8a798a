"""Who may read and write what rear makes: what the base's folder says, and of a file that is made anew as before."""

from __future__ import annotations

import os
import stat
from contextlib import AbstractContextManager, suppress
from typing import Final

from rear.core.descent import StrPath, open_folder, status_of
from rear.core.names import STATE
from rear.core.trust import is_private

_ACL: Final = "system.posix_acl_access"
_STATE_PART: Final = f"/{STATE}/"
_JUST_MADE: Final = stat.S_ISVTX | 0o755
"""Of a folder that is to be shared: there is no other one that is sticky, and that nobody else may write to."""
_FOR_ALL: Final = stat.S_ISVTX | stat.S_IWOTH


def is_shared(path: StrPath) -> bool:
    """Whether a group shares the base, or else the folder, in which a file or folder is made: what its group may do
    there it may do with the file.
    """
    try:
        return _shares(_status_around(path))
    except OSError:
        return False


def _status_around(path: StrPath) -> os.stat_result:
    """Return the status of the base's folder, of all that is below ``.rear``; else of the folder that it is in."""
    text = os.fspath(path)
    return status_of(text.rpartition(_STATE_PART)[0] or os.path.dirname(text) or ".", follow=True)


def _shares(around: os.stat_result) -> bool:
    return bool(around.st_mode & stat.S_IWGRP) and around.st_mode & _FOR_ALL != _FOR_ALL


def share(path: StrPath, descriptor: int, asked: int) -> None:
    """Open what was just made to the group that shares the base, whatever the umask; as ``git init --shared`` does.

    Only as far as it was asked for: what is private stays so. The mode of a folder that its group may not write is left
    to the umask, as is that of one for all, like ``/tmp``.
    """
    with _where_refused():
        around = _status_around(path)
        if not _shares(around):
            return
        made = os.fstat(descriptor)
        if made.st_gid != around.st_gid:
            # Bits that are meant for one group must not open it to another: no group, no bits.
            os.fchown(descriptor, -1, around.st_gid)
        is_folder = stat.S_ISDIR(made.st_mode)
        mode = stat.S_IMODE(made.st_mode) | around.st_mode & asked & stat.S_IRWXG
        mode |= stat.S_ISGID if is_folder else 0
        if mode != stat.S_IMODE(made.st_mode):
            os.fchmod(descriptor, mode)


def _copy_attributes(source: int, target: int) -> bool:
    """Copy the POSIX ACL and the user's extended attributes; return whether the target has the ACL of the source."""
    if not hasattr(os, "listxattr"):
        return True
    try:
        names = os.listxattr(source)
    except OSError:
        return True
    has_acl = _ACL not in names
    if has_acl:
        # One that the target has from its folder.
        with suppress(OSError):
            os.removexattr(target, _ACL)
    for name in names:
        if name == _ACL or name.startswith("user."):
            with suppress(OSError):
                os.setxattr(target, name, os.getxattr(source, name))
                has_acl |= name == _ACL
    return has_acl


def mode_to_make(folder: StrPath) -> int:
    """Return the mode with which to make a folder, before `share_directory`."""
    return _JUST_MADE if is_shared(folder) else 0o777


def share_directory(folder: StrPath) -> None:
    """Open a folder that this user has just made to the group that shares the base."""
    with _where_refused():
        # Not by its name: whoever may write there may have put a link in its place, or a folder of her own.
        descriptor = open_folder(folder)
        try:
            status = os.fstat(descriptor)
            is_just_made = bool(status.st_mode & stat.S_ISVTX) and is_private(status)
            # Or another folder of this user, who keeps it for himself: she may rename it, and not look into it. Where
            # no folder is made sticky, an empty one has nothing to be looked at.
            if status.st_uid != os.geteuid() or not (is_just_made or not os.listdir(descriptor)):
                return
            if is_just_made:
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~stat.S_ISVTX)
            share(folder, descriptor, stat.S_IRWXG)
        finally:
            os.close(descriptor)


def copy(source: int, target: int) -> None:
    """Give an open file the permissions of another one: see `rear.core.storage.Storage.copy_owner_and_mode`."""
    status = os.fstat(source)
    give(target, status.st_uid, status.st_gid)
    mode = stat.S_IMODE(status.st_mode)
    if not _copy_attributes(source, target) or os.fstat(target).st_gid != status.st_gid:
        # What one group was allowed is not another one's; and of an ACL these bits are all that it allows anybody.
        mode &= ~stat.S_IRWXG
    with _where_refused():
        os.fchmod(target, mode)


def give(descriptor: int, user: int, group: int) -> None:
    """Give an open file to a user and a group, as far as that is allowed."""
    now = os.fstat(descriptor)
    if now.st_gid != group:
        with _where_refused():
            os.fchown(descriptor, -1, group)
    if now.st_uid != user:
        with _where_refused():
            os.fchown(descriptor, user, -1)


def _where_refused() -> AbstractContextManager[None]:
    """Go on where a mount, or this user's rights, refuse to change an owner or a mode."""
    return suppress(OSError)
