"""Which segments count: the folders of indexes are the group's, so anybody may have laid one there, or moved it there.

A wrong one would have a merge write a name twice, or leave out what is there under another name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rear.core.trust import counts_for_archive, is_own_word, is_trusted
from rear.index.segment import Segment


def why_not_believed(segment: Segment, archive: Path, names: Iterable[str]) -> str | None:
    """Tell why a segment says nothing of an archive; ``None`` when it does.

    It has to be of somebody who could have made the archive say the same: the caller, root, its owner, or the group
    that may write to its folder. And another archive's was written in good faith of what a stranger has made.

    Args:
        segment: the segment.
        archive: path of the archive.
        names: those that the archive has, or had when its index was moved along.
    """
    if not any(_is_name_of(name, segment.archive) for name in names):
        return f"it was made for {segment.archive!r:.300}"
    status = segment.status
    if is_own_word(status) and is_trusted(status):
        return None
    try:
        if counts_for_archive(status, segment.path, archive):
            return None
    except OSError as error:
        return f"who could have written it cannot be found out: {error}"
    return f"user {status.st_uid}, or who else may write it, could not have written the archive"


def _is_name_of(archive: str, made_for: str) -> bool:
    """Whether an archive of which a segment was made can have a name by now: when it is full, it gets a number."""
    stem, _, suffix = made_for.rpartition(".")
    numbered = rf"{re.escape(stem)}(-[0-9]+)+\.{re.escape(suffix)}"
    return archive == made_for or re.fullmatch(numbered, archive) is not None
