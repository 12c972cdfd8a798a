"""Whose word counts: what a file of a base says may cost its own writers, never others.

Owners, groups and modes alone decide, of open files and folders where that matters. The rules, and why, stand in
``docs/explanation/security.md``.
An ACL that lets others write shows in the bits of the group.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from rear.core.descent import status_of


def is_private(status: os.stat_result) -> bool:
    """Whether nobody but its owner may write to a file or folder."""
    return not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def is_own_word(status: os.stat_result) -> bool:
    """Whether a private file says what its owner's processes wrote: what rear keeps of others' bytes is read-only."""
    return is_private(status) and bool(status.st_mode & stat.S_IWUSR)


def is_trusted(owned: os.stat_result, *others: os.stat_result | None) -> bool:
    """Whether a file belongs to the caller, root, or the owner of one of ``others``, as far as these are there."""
    return owned.st_uid in {os.geteuid(), 0, *(other.st_uid for other in others if other is not None)}


def counts_for(
    evidence: os.stat_result,
    around: os.stat_result,
    target: os.stat_result | None,
    target_folder: os.stat_result,
) -> bool:
    """Whether everybody who could have written a file, or folder, could have replaced another one with bare hands.

    Args:
        evidence: status of what makes rear change something.
        around: of the folder that it is in.
        target: of what would be changed; ``None`` where it is not there.
        target_folder: of the folder that this is in: who may write there may replace what is in it.
    """
    if _is_open_to(target_folder, stat.S_IWOTH):
        return True
    if evidence.st_mode & stat.S_IWOTH or not evidence.st_mode & stat.S_IWUSR:
        return False
    is_of_group = evidence.st_gid == target_folder.st_gid and _is_open_to(target_folder, stat.S_IWGRP)
    if evidence.st_mode & stat.S_IWGRP and not is_of_group:
        return False
    # Nobody gives a file to a group that he is not in, except by making it in a folder of that group.
    return is_trusted(evidence, target, target_folder) or (is_of_group and not around.st_mode & stat.S_IWOTH)


def counts_for_archive(evidence: os.stat_result, path: Path, archive: Path) -> bool:
    """Whether everybody who could have written a file could have replaced a final archive: see `counts_for`.

    Args:
        evidence: status of the open file.
        path: of the file.
        archive: path of the archive, which need not be there.

    Raises:
        OSError: one of them cannot be looked at.
    """
    target = folder = None
    with suppress(FileNotFoundError):
        target = status_of(archive)
    # The folder of a new archive may still have to be made.
    for above in archive.parents:
        with suppress(FileNotFoundError):
            folder = status_of(above, follow=True)
            break
    return folder is not None and counts_for(evidence, status_of(path.parent), target, folder)


def _is_open_to(folder: os.stat_result, bit: int) -> bool:
    return bool(folder.st_mode & bit) and not folder.st_mode & stat.S_ISVTX
