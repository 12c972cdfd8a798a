"""Merges that were interrupted: undone before their commit, completed after it. Doing it again changes nothing.

An archive on which a leader was working that is not provably dead gets a new inode, so that what that leader writes
to its open file, should it come back, ends in an orphan. So does one to which an executor may still copy.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from rear.core.descent import status_of
from rear.core.layout import check_inside, look_anew, make_in_base
from rear.core.liveness import is_running
from rear.core.storage import Storage, close_read, created, opened
from rear.core.trust import counts_for_archive
from rear.errors import (
    FormatError,
    JournalError,
    PathError,
    RearError,
    UnfinishedIntentError,
    UnsupportedError,
)
from rear.events import Event, LeftAlone, Refused, RolledBack, RolledForward
from rear.index.index import Index
from rear.journal.intent import UNFINISHED_SUFFIX, Intent, intents_of, read_open_intent, void_intent
from rear.scavenger.claims import ClaimedPair, Claims
from rear.scavenger.copy_tasks import intent_stem_of, names_of, withdraw
from rear.scavenger.final_archive import open_final_archive
from rear.scavenger.leader import Leadership
from rear.scavenger.lost_and_found import lost_and_found_of
from rear.scavenger.merge_remains import MergeRemains, copied, is_member, members_from, names_by_place
from rear.scavenger.owners import ALL, Owners, owner_of
from rear.zip import directory as directories


class Recovery:
    """Brings interrupted merges to an end, for one leader.

    The leadership is asked before each step that a deposed leader must not do.
    """

    def __init__(self, leadership: Leadership, claims: Claims, *, owners: Owners = ALL, storage: Storage) -> None:
        self._layout = leadership.layout
        self._leadership = leadership
        self._claims = claims
        self._owners = owners
        self._storage = storage
        self._unreadable: set[str] = set()

    def recover(self, claimed: Mapping[str, ClaimedPair]) -> Iterator[Event]:
        """Undo or complete every merge that has an intent.

        ``claimed`` are the pairs in the claim folder, by name.
        """
        folder = self._layout.intents
        names = self._storage.names(folder)
        # After the listing: what a leader after this one is writing does not count as left behind.
        self._leadership.prove()
        for name in names:
            if name.endswith(".intent"):
                self._leadership.prove()
                try:
                    if not self._owners.takes(folder / name):
                        reason = "this merge is another user's, and is left to that one"
                        yield LeftAlone(f".rear/intents/{name}", reason, "taken")
                    elif not stat.S_ISREG(status_of(folder / name).st_mode):
                        yield self._put_aside(name)
                    else:
                        yield from self._recover_one(folder / name, claimed)
                except (RearError, OSError) as error:
                    if isinstance(error, JournalError):
                        self._unreadable.add(name)
                    # Of the archive as well: as long as that is a link, say, the record of its merge stays.
                    yield Refused(f".rear/intents/{name}", f"this merge can be neither undone nor completed: {error}")
        for name in names:
            stem, _, suffix = name.rpartition(".")
            belongs_to = stem if suffix == "archive" else intent_stem_of(name)
            is_alone = belongs_to is not None and f"{belongs_to}.intent" not in names
            if f".{suffix}" == UNFINISHED_SUFFIX or is_alone:
                try:
                    if self._owners.takes(folder / name):
                        self._remove(folder / name)
                except OSError as error:
                    yield Refused(f".rear/intents/{name}", f"this rest of a merge cannot be removed: {error}")

    def _put_aside(self, name: str) -> Refused:
        """Move away what is called like an intent and is no file: as long as it is there nothing can be merged."""
        reason = "not a regular file, so it is no record of a merge"
        lost_and_found = lost_and_found_of(self._layout, storage=self._storage)
        try:
            item = lost_and_found.put_file(name, self._layout.intents / name, {"subject": name, "reason": reason})
        except OSError as error:
            return Refused(f".rear/intents/{name}", f"{reason}; it cannot be moved away: {error}")
        return Refused(f".rear/intents/{name}", f"{reason}; it was moved to {item}")

    def put_unreadable_aside(self, archive: str) -> Iterator[Refused]:
        """Put aside what cannot be read of merges into an archive that needs none of it: one that is as its index says,
        or that has never been there. Any other one is left to `rear.fsck`.

        Raises:
            RearError, OSError: the archive cannot be used.
        """
        intents = intents_of(self._layout, archive, storage=self._storage) if self._unreadable else []
        unreadable = [path for path in intents if path.name in self._unreadable]
        if not unreadable:
            return
        index = Index.open(self._layout, archive, storage=self._storage)
        with open_final_archive(self._layout, archive, storage=self._storage, write=False) as target:
            if not (
                target.is_mirrored_by(index, storage=self._storage)
                if target.descriptor is not None
                else not index.segments
            ):
                return
        for path in unreadable:
            self._leadership.prove()
            if target.descriptor is not None:
                # Whoever was merging may come back.
                self._renew_inode(target.path, fresh_path(path), None, -1)
            reason = "what a merge noted of it cannot be read; it is as its index says, so nothing has to be undone"
            note = {"archive": archive, "reason": reason}
            item = lost_and_found_of(self._layout, storage=self._storage).put_file(path.name, path, note)
            self.clear(path)
            yield Refused(archive, f"{reason}: that was moved to {item}, and new members are merged")

    def has_unfinished_merge(self, archive: str) -> bool:
        """Whether there is an intent that counts of a merge into an archive."""
        try:
            return bool(intents_of(self._layout, archive, storage=self._storage))
        except PathError:
            return False

    def _recover_one(self, path: Path, claimed: Mapping[str, ClaimedPair]) -> Iterator[Event]:
        # One descriptor for all: who may write to the folder may put another file in its place.
        with _opened_to_void(path, self._storage) as source:
            intent = _read_or_none(source, self._storage)
            if intent is not None:
                self._check_counts(intent, path, source)
            if intent is None or not intent.committed or not self._complete(intent, path, source, claimed):
                yield from self._undo(intent, path, source, claimed)
                return
            for one, sequences in self._arrived(intent, claimed):
                self._claims.note(one, sequences, target=intent.archive, intent=path.stem)
        self.clear(path)
        yield RolledForward(intent.archive)

    def _check_counts(self, intent: Intent, path: Path, source: int) -> None:
        if not path.name.startswith(self._layout.intent(intent.archive).stem):
            raise JournalError("it names another archive")
        status = os.fstat(source)
        if not counts_for_archive(status, path, self._layout.archive(intent.archive)):
            raise JournalError(
                f"user {status.st_uid}, who wrote it, or the group that may write to it, may not replace "
                f"{intent.archive}: it counts for nothing and is left as it is; rear fsck puts it aside"
            )

    def _complete(self, intent: Intent, path: Path, source: int, claimed: Mapping[str, ClaimedPair]) -> bool:
        """Finish a merge after its commit; false when the archive does not hold what was merged: somebody has moved or
        replaced it since.
        """
        target = self._layout.archive(intent.archive)
        check_inside(self._layout, target)
        fresh = fresh_path(path)
        if intent.old is None and fresh.name in self._storage.names(fresh.parent):
            if not self._may_install(intent, fresh, source, claimed) or not self._holds(intent, fresh):
                return False
            check_vacant(self._layout.base, target, storage=self._storage)
            install(fresh, target, storage=self._storage)
        if target.name not in self._storage.names(target.parent) or not self._holds(intent, target):
            return False
        if intent.old is not None and self._may_come_back(intent):
            self._renew_inode(target, fresh, None, source)
        return True

    def _may_install(self, intent: Intent, fresh: Path, source: int, claimed: Mapping[str, ClaimedPair]) -> bool:
        """Whether a new archive was made by who wrote its intent, or given to the writer of its members."""
        status = status_of(fresh)
        writers = {owner_of(claimed[move.pair].journal) for move in intent.moves if move.pair in claimed}
        owners = {os.geteuid(), 0, os.fstat(source).st_uid, *writers}
        return stat.S_ISREG(status.st_mode) and status.st_uid in owners

    def _holds(self, intent: Intent, target: Path) -> bool:
        """Whether an archive has a sound directory that names all members of a merge where they were copied to."""
        with opened(target, self._storage) as descriptor:
            try:
                found = directories.locate(descriptor, storage=self._storage)
                start = intent.old.offset if intent.old is not None else 0
                come = members_from(descriptor, found, start, storage=self._storage)
            except (FormatError, UnsupportedError):
                return False
        return come == names_by_place(copied(intent))

    def _arrived(self, intent: Intent, claimed: Mapping[str, ClaimedPair]) -> Iterator[tuple[ClaimedPair, list[int]]]:
        """Yield which members of the pairs that are here a complete merge has brought, by their local headers there.

        Of what was there before it says nothing: that is found again by its content.
        """
        with opened(self._layout.archive(intent.archive), self._storage) as descriptor:
            for pair, group in groupby(sorted(copied(intent)), itemgetter(0)):
                one = claimed.get(pair)
                if one is not None:
                    appends = one.journal.appends
                    yield (
                        one,
                        [
                            move.sequence
                            for move in group
                            if move.sequence in appends
                            and is_member(
                                descriptor, move.target_start, one, appends[move.sequence], storage=self._storage
                            )
                        ],
                    )

    def _may_come_back(self, intent: Intent) -> bool:
        """Whether the leader that wrote an intent may still write to the archive."""
        process = intent.process
        if process is None or process == self._leadership.process:
            return process is None
        return is_running(process) is not False

    def _undo(
        self, intent: Intent | None, path: Path, source: int, claimed: Mapping[str, ClaimedPair]
    ) -> Iterator[Event]:
        """Bring back the old archive. Does nothing to an archive whose merge had not begun to write."""
        if intent is not None and intent.planned and intent.old is not None:
            target = self._layout.archive(intent.archive)
            check_inside(self._layout, target)
            if not self._is_as_left(intent, target, source, claimed):
                reason = "since a merge into it died, something else has changed or replaced it: it is left as it is"
                item = lost_and_found_of(self._layout, storage=self._storage).put_file(
                    path.name, path, {"archive": intent.archive, "reason": reason}
                )
                self.clear(path)
                yield Refused(
                    intent.archive,
                    f"{reason}; what that merge was to bring is merged anew, and its record, with the directory of "
                    f"before, is in {item}",
                )
                return
            if withdraw(path, storage=self._storage) or self._may_come_back(intent):
                self._renew_inode(target, fresh_path(path), intent, source)
            else:
                with opened(target, self._storage, write=True) as descriptor:
                    self.restore_tail(descriptor, source, intent)
        void_intent(source, storage=self._storage)
        self.clear(path)
        if intent is not None:
            yield RolledBack(intent.archive)

    def _is_as_left(self, intent: Intent, target: Path, source: int, claimed: Mapping[str, ClaimedPair]) -> bool:
        """Whether an archive may be what an unfinished merge left; to bring back the old end of any other one would
        destroy what somebody else has put there.
        """
        look_anew(target, storage=self._storage)
        with opened(target, self._storage) as descriptor:
            remains = MergeRemains(intent, descriptor, source, storage=self._storage)
            return remains.is_untouched() or remains.can_be(claimed)

    def undo_own(self, intent: Intent, path: Path, descriptor: int, source: int) -> None:
        """Bring back the old archive, open as ``descriptor``, from the open intent after a merge of this leader failed.

        Raises:
            RearError, OSError: that failed; doing it again is possible.
        """
        if not withdraw(path, storage=self._storage):
            # Through what is open: names may be those of another leader by now.
            self.restore_tail(descriptor, source, intent)
            return
        self._leadership.prove()
        self._renew_inode(self._layout.archive(intent.archive), fresh_path(path), intent, source)

    def restore_tail(self, descriptor: int, source: int, intent: Intent) -> None:
        """Bring back the end of the old archive from an open intent.

        Raises:
            JournalError: the archive ends before that: it is not the one that was merged into.
            OSError: that failed; doing it again is possible.
        """
        assert intent.old is not None
        if self._storage.size(descriptor) < intent.old.offset:
            raise JournalError(f"{intent.archive} is shorter than it was before the merge")
        self._storage.copy_range(
            source,
            descriptor,
            source_start=intent.tail_start,
            target_start=intent.old.offset,
            length=intent.tail_length,
        )
        self._storage.truncate(descriptor, intent.old.archive_length)
        self._storage.sync(descriptor)

    def _renew_inode(self, target: Path, fresh: Path, undo: Intent | None, intent: int) -> None:
        """Give an archive a new inode: what a leader that comes back writes to its open file ends in an orphan."""
        if fresh.name in self._storage.names(fresh.parent):
            self._remove(fresh)
        look_anew(target, storage=self._storage)
        with opened(target, self._storage) as source, created(fresh, self._storage, mode=0o600) as descriptor:
            self._storage.copy_owner_and_mode(source, descriptor)
            length = undo.old.offset if undo is not None and undo.old is not None else self._storage.size(source)
            self._storage.copy_range(source, descriptor, source_start=0, target_start=0, length=length)
            if undo is not None:
                self.restore_tail(descriptor, intent, undo)
            else:
                self._storage.sync(descriptor)
        install(fresh, target, storage=self._storage)

    def clear(self, path: Path) -> None:
        """Remove an intent whose merge is undone or complete, and what was built for it and not installed."""
        others = (path.with_name(name) for name in names_of(path, storage=self._storage))
        for name in (fresh_path(path), path, *others):
            self._remove(name)
        self._storage.sync_directory(path.parent)

    def _remove(self, path: Path) -> None:
        """Remove a file, if it is there; move away what stands there and is none."""
        try:
            self._storage.unlink(path)
        except FileNotFoundError:
            return
        except OSError:
            if not stat.S_ISDIR(status_of(path).st_mode):
                raise
            note = {"subject": path.name, "reason": "not a file, so it is no part of a merge"}
            lost_and_found_of(self._layout, storage=self._storage).put_file(path.name, path, note)


def fresh_path(intent_path: Path) -> Path:
    """Where a final archive is built that does not exist yet, or gets a new inode."""
    return intent_path.with_suffix(".archive")


@contextmanager
def _opened_to_void(path: Path, storage: Storage) -> Iterator[int]:
    """Open an intent; to be written to, where that may be."""
    try:
        descriptor = storage.open(path, write=True)
    except OSError:
        descriptor = storage.open(path)
    try:
        yield descriptor
    finally:
        close_read(descriptor, storage)


def _read_or_none(source: int, storage: Storage) -> Intent | None:
    """Read an open intent; ``None`` when it was never finished, so its archive is untouched."""
    try:
        return read_open_intent(source, storage=storage)
    except UnfinishedIntentError:
        return None


def check_vacant(base: Path, path: Path, *, storage: Storage) -> None:
    """Make the folder of a new archive, and refuse when somebody else has put a file in its place.

    Raises:
        FileExistsError: there is one.
    """
    make_in_base(base, path.parent, storage=storage)
    if path.name in storage.names(path.parent):
        raise FileExistsError(errno.EEXIST, "somebody else made this archive during the merge", str(path))


def install(fresh: Path, path: Path, *, storage: Storage) -> None:
    """Give a finished new file the name of the final archive."""
    storage.rename(fresh, path)
    storage.sync_directory(path.parent)
