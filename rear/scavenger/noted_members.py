"""Members that notes call done with: found anew before anything is removed on the word of a note.

What is in its archive no more, or never was, waits again, and is merged again. So a note that is wrong costs time.
"""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from rear.core.descent import status_of
from rear.core.layout import Layout
from rear.core.records import Append, MergedRecord
from rear.core.storage import Storage, opened
from rear.errors import PathError, RearError
from rear.events import Recovered
from rear.scavenger.archived_members import Looked, look_up, member_of_pair
from rear.scavenger.claims import ClaimedPair
from rear.scavenger.notes import counts_alone
from rear.scavenger.plan import Candidate

_NOTE_LIMIT_BYTES: Final = 1 << 20
_IN_NO_ARCHIVE: Final = "it was noted as merged, and is in no archive: it is merged again"


class NotedMembers:
    """What notes say of the pairs of one round.

    Attributes:
        unknown: pairs of which it cannot be found out now, and why.
    """

    def __init__(self, layout: Layout, batch: list[ClaimedPair], *, storage: Storage) -> None:
        self.unknown: dict[str, RearError | OSError] = {}
        self._layout = layout
        self._batch = [claimed for claimed in batch if claimed.unproven]
        self._storage = storage

    def prove(self) -> Iterator[Recovered]:
        """Look all of them up; what is not proven waits again. Yields what is merged again, although it was noted."""
        by_archive: dict[str, list[Candidate]] = {}
        for claimed in self._batch:
            for sequence in sorted(claimed.unproven):
                append = claimed.journal.appends.get(sequence)
                if append is None:
                    # A damaged journal does not tell of it: if a scan does, it is looked up like any other.
                    claimed.journal.merged.pop(sequence, None)
                elif claimed.journal.merged[sequence].target.startswith(self._kept_in()):
                    self._settle(claimed, sequence, self._is_kept(claimed, append))
                else:
                    by_archive.setdefault(append.archive, []).append(Candidate(claimed, append))
        for archive, candidates in by_archive.items():
            try:
                looked = self._look_up(archive, candidates)
            except (RearError, OSError) as error:
                self.unknown.update({one.claimed.name: error for one in candidates})
                continue
            for one in candidates:
                is_there = member_of_pair(one) in looked.found or self._counts_alone(one, looked)
                self._settle(one.claimed, one.append.sequence, is_there)
                # Where the name is taken, the plan tells what becomes of it.
                if not is_there and one.append.name not in looked.names:
                    yield Recovered(archive, one.append.name, one.claimed.name, _IN_NO_ARCHIVE)

    def _look_up(self, archive: str, candidates: list[Candidate]) -> Looked:
        try:
            return look_up(
                self._layout, archive, candidates, thoroughly=True, counts=_is_believed, storage=self._storage
            )
        except PathError:
            return Looked(set(), set(), True)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            return Looked(set(), set(), False)

    def _settle(self, claimed: ClaimedPair, sequence: int, is_proven: bool) -> None:
        if is_proven:
            claimed.unproven.discard(sequence)
        else:
            del claimed.journal.merged[sequence]

    def _counts_alone(self, one: Candidate, looked: Looked) -> bool:
        """Whether a note counts although its member is not found.

        Its user has moved the archive away, with or without another one in its place by now; or a later member took its
        place. Or it is a file that went on in another pair, under another number, or was given up by its writer.
        """
        noted = one.claimed.journal.merged[one.append.sequence]
        is_elsewhere = noted.target != one.append.archive
        if is_elsewhere and noted.target.casefold().endswith(".zip"):
            # No scavenger writes that.
            return False
        is_file = is_elsewhere and one.claimed.journal.file is not None
        is_enough = is_file or not looked.is_there or (not is_elsewhere and self._tells_of_a_merge(noted))
        return is_enough and _is_believed(one)

    def _tells_of_a_merge(self, noted: MergedRecord) -> bool:
        """Whether a note names the record of a merge into its archive: it was written after the commit of that."""
        with suppress(PathError):
            return noted.intent.startswith(f"{self._layout.intent(noted.target).stem}-")
        return False

    # ---- in lost+found

    def _kept_in(self) -> str:
        return f"{self._layout.lost_and_found.relative_to(self._layout.base).as_posix()}/"

    def _is_kept(self, claimed: ClaimedPair, append: Append) -> bool:
        """Whether the item in lost+found is there to which a note leads, and says that it is of this member."""
        target = claimed.journal.merged[append.sequence].target
        if ".." in target.split("/") or not counts_alone(claimed.journal, append.sequence, claimed.name):
            return False
        item = self._layout.base / target
        with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            if not stat.S_ISREG(status_of(item).st_mode):
                return False
            is_content = item.suffix.startswith(".partial")
            note = item.with_name(f"{item.name}.json") if is_content else item.with_suffix(".json")
            with opened(note, self._storage) as descriptor:
                told = json.loads(self._storage.read(descriptor, _NOTE_LIMIT_BYTES, 0))
            return (told["sequence"], told["name"]) == (append.sequence, append.name)
        return False


def _is_believed(one: Candidate) -> bool:
    """Whether what is noted of a member counts by itself."""
    return counts_alone(one.claimed.journal, one.append.sequence, one.claimed.name)
