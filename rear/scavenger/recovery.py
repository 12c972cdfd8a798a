"""Merges that were interrupted: undone before their commit, completed after it. Doing it again changes nothing.

An archive on which a leader was working that is not provably dead gets a new inode, so that what that leader writes
to its open file, should it come back, ends in an orphan. So does one to which an executor may still copy.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

from rear.core.layout import check_inside, look_anew, make_in_base
from rear.core.liveness import is_running
from rear.core.storage import Storage, created, opened
from rear.errors import (
    FormatError,
    JournalError,
    NotAZipError,
    RearError,
    UnfinishedIntentError,
    UnsupportedError,
    ZipFormatError,
)
from rear.events import Event, Refused, RolledBack, RolledForward
from rear.journal.intent import UNFINISHED_SUFFIX, Intent, read_intent
from rear.scavenger.claims import ClaimedPair, Claims
from rear.scavenger.copy_tasks import intent_stem_of, names_of, withdraw
from rear.scavenger.leader import Leadership
from rear.scavenger.lost_and_found import lost_and_found_of
from rear.zip import directory as directories
from rear.zip.directory import Directory

#: What opening says of a link, a FIFO, a folder or a socket.
_NO_FILE = frozenset({errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO, errno.ENODEV})


class Recovery:
    """Brings interrupted merges to an end, for one leader.

    The leadership is asked before each step that a deposed leader must not do.
    """

    def __init__(self, leadership: Leadership, claims: Claims, *, storage: Storage) -> None:
        self._layout = leadership.layout
        self._leadership = leadership
        self._claims = claims
        self._storage = storage

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
                    yield from self._recover_one(folder / name, claimed)
                except (RearError, OSError) as error:
                    is_other = isinstance(error, OSError) and error.errno in _NO_FILE
                    yield (
                        self._put_aside(name)
                        if is_other
                        else Refused(
                            f".rear/intents/{name}", f"this merge can be neither undone nor completed: {error}"
                        )
                    )
        for name in names:
            stem, _, suffix = name.rpartition(".")
            belongs_to = stem if suffix == "archive" else intent_stem_of(name)
            is_alone = belongs_to is not None and f"{belongs_to}.intent" not in names
            if f".{suffix}" == UNFINISHED_SUFFIX or is_alone:
                try:
                    self._storage.unlink(folder / name)
                except FileNotFoundError:
                    continue
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

    def _recover_one(self, path: Path, claimed: Mapping[str, ClaimedPair]) -> Iterator[Event]:
        intent = read_intent_or_none(path, self._storage)
        if intent is not None and not path.name.startswith(self._layout.intent(intent.archive).stem):
            raise JournalError("it names another archive")
        if intent is None or not intent.committed or not self._complete(intent, path):
            yield from self._undo(intent, path)
            return
        moved: dict[str, list[int]] = {}
        for move in intent.moves:
            moved.setdefault(move.pair, []).append(move.sequence)
        for pair, sequences in moved.items():
            if pair in claimed:
                self._claims.note(claimed[pair], sequences, target=intent.archive, intent=path.stem)
        self.clear(path)
        yield RolledForward(intent.archive)

    def _complete(self, intent: Intent, path: Path) -> bool:
        """Finish a merge after its commit; false when the archive does not hold what was merged: somebody has moved or
        replaced it since.
        """
        target = self._layout.archive(intent.archive)
        check_inside(self._layout, target)
        fresh = fresh_path(path)
        if intent.old is None and fresh.name in self._storage.names(fresh.parent):
            check_vacant(self._layout.base, target, storage=self._storage)
            install(fresh, target, storage=self._storage)
        if target.name not in self._storage.names(target.parent) or not self._holds(intent, target):
            return False
        if intent.old is not None and self._may_come_back(intent):
            self._renew_inode(target, fresh, None, path)
        return True

    def _holds(self, intent: Intent, target: Path) -> bool:
        """Whether an archive has a sound directory that names all members of a merge where they were copied to."""
        with opened(target, self._storage) as descriptor:
            try:
                found = directories.locate(descriptor, storage=self._storage)
                come = self._members_from(descriptor, found, intent.old.offset if intent.old is not None else 0)
            except (FormatError, UnsupportedError):
                return False
        return come == _copied(intent)

    def _members_from(self, descriptor: int, directory: Directory, start: int) -> dict[int, str]:
        """Return the names of the members of an archive that begin at ``start`` or behind it, by offset."""
        return {
            entry.offset + directory.prefix: entry.name
            for entry in directories.entries(descriptor, directory, storage=self._storage)
            if entry.offset + directory.prefix >= start
        }

    def _may_come_back(self, intent: Intent) -> bool:
        """Whether the leader that wrote an intent may still write to the archive."""
        process = intent.process
        if process is None or process == self._leadership.process:
            return process is None
        return is_running(process) is not False

    def _undo(self, intent: Intent | None, path: Path) -> Iterator[Event]:
        """Bring back the old archive. Does nothing to an archive whose merge had not begun to write."""
        if intent is not None and intent.planned and intent.old is not None:
            target = self._layout.archive(intent.archive)
            check_inside(self._layout, target)
            if not self._is_as_left(intent, target):
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
                self._renew_inode(target, fresh_path(path), intent, path)
            else:
                with opened(target, self._storage, write=True) as descriptor, opened(path, self._storage) as source:
                    self.restore_tail(descriptor, source, intent)
        self.clear(path)
        if intent is not None:
            yield RolledBack(intent.archive)

    def _is_as_left(self, intent: Intent, target: Path) -> bool:
        """Whether an archive may be what an unfinished merge left: old, without a sound directory, or with that of the
        merge.

        To bring back the old end of any other one would destroy what somebody else has put there.
        """
        old = intent.old
        assert old is not None
        look_anew(target, storage=self._storage)
        with opened(target, self._storage) as descriptor:
            try:
                found = directories.locate(descriptor, storage=self._storage)
            except (NotAZipError, UnsupportedError):
                return True
            if (found.offset, found.archive_length) == (old.offset, old.archive_length):
                return True
            try:
                return self._members_from(descriptor, found, old.offset) == _copied(intent)
            except ZipFormatError:
                # Half of it is on disk, after a loss of power.
                return True

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
        self._renew_inode(self._layout.archive(intent.archive), fresh_path(path), intent, path)

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

    def _renew_inode(self, target: Path, fresh: Path, undo: Intent | None, path: Path) -> None:
        """Give an archive a new inode: what a leader that comes back writes to its open file ends in an orphan."""
        if fresh.name in self._storage.names(fresh.parent):
            self._storage.unlink(fresh)
        look_anew(target, storage=self._storage)
        with opened(target, self._storage) as source, created(fresh, self._storage) as descriptor:
            length = undo.old.offset if undo is not None and undo.old is not None else self._storage.size(source)
            self._storage.copy_range(source, descriptor, source_start=0, target_start=0, length=length)
            self._storage.copy_owner_and_mode(source, descriptor)
            if undo is not None:
                with opened(path, self._storage) as kept:
                    self.restore_tail(descriptor, kept, undo)
            else:
                self._storage.sync(descriptor)
        install(fresh, target, storage=self._storage)

    def clear(self, path: Path) -> None:
        """Remove an intent whose merge is undone or complete, and what was built for it and not installed."""
        others = (path.with_name(name) for name in names_of(path, storage=self._storage))
        for name in (fresh_path(path), path, *others):
            with contextlib.suppress(FileNotFoundError):
                self._storage.unlink(name)
        self._storage.sync_directory(path.parent)


def _copied(intent: Intent) -> dict[int, str]:
    return {move.target_start: move.name for move in intent.moves if move.target_end > move.target_start}


def fresh_path(intent_path: Path) -> Path:
    """Where a final archive is built that does not exist yet, or gets a new inode."""
    return intent_path.with_suffix(".archive")


def read_intent_or_none(path: Path, storage: Storage) -> Intent | None:
    """Read an intent; ``None`` when it was never finished, so its archive is untouched."""
    try:
        return read_intent(path, storage=storage)
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
