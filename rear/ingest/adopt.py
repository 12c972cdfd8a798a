"""Members of other Zips into final archives: temp archives of the original program, and any other Zip.

An adoption is a worker and a scavenger in one, like a sweep: members are checked, copied to temp archives, and merged.
A Zip goes only when each of its members, read back from the archive as it is committed, is byte for byte what the Zip
holds. Whenever it stops, the next one goes on from what is in the archives by then.
"""

from __future__ import annotations

import itertools
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, NamedTuple

from rear.core.layout import Layout
from rear.core.names import Target, check_name, split_into, split_target
from rear.core.problems import CATALOG
from rear.core.records import Metadata
from rear.core.source_file import describe_kind, stamp_of
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import BaseError, NotAZipError, NotLeaderError, RearError, SourceError, UsageError
from rear.events import Adopted, Collected, Event, Refused, Waiting
from rear.index.index import IndexRow
from rear.ingest.committed import CommittedArchives, Held, Members
from rear.ingest.merging import Merging
from rear.ingest.zip_payload import OpenZip, mode_of, payload_of_member
from rear.read.view import open_committed
from rear.salvage.rebuild import rebuild
from rear.scavenger.options import options_for
from rear.scavenger.rollover import rolled_over_from
from rear.worker.worker import Worker
from rear.zip.archive import Archive
from rear.zip.headers import CentralEntry
from rear.zip.member_ends import verify

BATCH_MEMBERS: Final = 100_000
"""So many members are copied, merged and read back at once."""
BATCH_BYTES: Final = 16 << 30
"""Or members of so many bytes: an adoption needs this much room for temp archives."""
BATCH_ZIPS: Final = 250
"""Or so many Zips: each is open meanwhile."""
_SOURCE_LIMIT_BYTES: Final = 4096
_FIRST_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 5.0


class _Member(NamedTuple):
    """A member of a Zip, by its position in the directory, and where it belongs."""

    position: int
    target: Target
    crc: int
    size: int
    mode: int

    def is_in(self, row: IndexRow) -> bool:
        """Whether a row of an index tells of such a member; its bytes are compared before anything is removed."""
        kind = (row.mode or 0) >> 12 or stat.S_IFREG >> 12
        return (row.crc, row.size, kind) == (self.crc, self.size, self.mode >> 12)


@dataclass(slots=True)
class _Source:
    """A Zip that is adopted, and, if it had to be salvaged, the copy below ``TMPDIR`` that has a directory."""

    name: str
    salvaged: str | None = None
    opened: OpenZip | None = None
    #: Those that are copied or there already, and not yet looked up in what is committed.
    members: list[_Member] = field(default_factory=list)
    copied: set[int] = field(default_factory=set)
    #: Final archives that it has members for.
    archives: set[str] = field(default_factory=set)
    is_read: bool = False
    archived: int = 0
    size_bytes: int = 0
    there_already: int = 0
    pending: int = 0
    refused: int = 0

    @property
    def path(self) -> str:
        """Where its members are read."""
        return self.salvaged or self.name


def adopt(
    sources: Iterable[StrPath],
    *,
    base: StrPath,
    into: StrPath | None = None,
    delete: bool = False,
    wait_seconds: float = 60.0,
    storage: Storage = LOCAL,
) -> Iterator[Event]:
    """Bring members of Zips into final archives, and yield what happens.

    Every member is decoded and checked before it is copied, and again before it is merged. A Zip without a directory is
    salvaged first. Members that are in the archive under their name, or under one that a merge gave them, are not
    copied again. Nothing happens before the first event is asked for; of each Zip the last one is `Adopted`; what
    needs attention comes as `Refused`.

    Args:
        sources: the Zips.
        base: directory on the shared file system; made when the first member is copied.
        into: ``ar.zip`` or ``ar.zip/prefix``, relative to the base; without it members say themselves where they
            belong, by names like ``ar.zip/name``, as in temp archives of the original program.
        delete: remove each Zip of which all is committed and was read back.
        wait_seconds: how long to wait, all in all, for another scavenger.
        storage: the file system.

    Raises:
        PathError: ``into`` names no archive, or leaves the base.
        UsageError: ``wait_seconds`` is no number of seconds.
        BaseError: the base is no directory.
        NotArchivedError: members could not be brought to stable storage; all Zips are in place.
        OSError: the base cannot be written.
    """
    if isinstance(wait_seconds, bool) or not 0 <= wait_seconds < float("inf"):
        raise UsageError(f"wait_seconds is {wait_seconds!r}: it has to be a number of seconds, 0 or more")
    layout = Layout(base)
    if os.path.lexists(layout.base) and not os.path.isdir(layout.base):
        raise BaseError(f"{layout.base} is not a directory: it cannot be a base")
    target = None if into is None else split_into(into)
    names = [os.path.abspath(os.fsdecode(source)) for source in sources]
    return _Adoption(layout, target, delete, wait_seconds, storage).events(names)


class _Adoption:
    """The steps of one adoption."""

    def __init__(
        self, layout: Layout, into: Target | None, delete: bool, wait_seconds: float, storage: Storage
    ) -> None:
        self._layout = layout
        self._into = into
        self._delete = delete
        self._wait_left = wait_seconds
        self._storage = storage
        self._merging = Merging(layout, options_for(layout, verify=True, storage=storage), storage=storage)
        self._scratch = ""
        self._numbers = itertools.count()
        #: Those of which something is not settled yet.
        self._open: list[_Source] = []
        self._worker: Worker | None = None
        self._members = self._size_bytes = 0

    def events(self, names: list[str]) -> Iterator[Event]:
        # What an earlier adoption had copied when it died is merged first, so that it is not copied again.
        with suppress(NotLeaderError):
            yield from self._merging.events()
        with tempfile.TemporaryDirectory(prefix="rear-adopt-") as self._scratch:
            try:
                for name in dict.fromkeys(names):
                    source = _Source(name)
                    self._open.append(source)
                    for event in self._guarded(source):
                        if event is None:
                            yield from self._settle()
                        else:
                            yield event
                    source.is_read = True
                    if self._is_full() or len(self._open) >= BATCH_ZIPS:
                        yield from self._settle()
                yield from self._settle()
            finally:
                self._close_worker()

    def _guarded(self, source: _Source) -> Iterator[Event | None]:
        """Read one Zip; what is wrong with it costs no other one."""
        try:
            yield from self._collect(source)
        except RearError as error:
            yield self._refuse(source, f"{error}; left as it is")
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            if cause.filename not in (None, source.name, source.path):
                # The base cannot be written: further Zips would fare no better.
                raise
            yield self._refuse(source, f"it cannot be read: {cause.strerror}; left as it is")

    def _refuse(self, source: _Source, reason: str, member: str | None = None) -> Refused:
        source.refused += 1
        return Refused(source.name if member is None else f"{source.name}/{member}", reason)

    # ---- one Zip to temp archives

    def _collect(self, source: _Source) -> Iterator[Event | None]:
        """Copy what is new in a Zip; ``None`` asks to settle what was copied so far."""
        # Before it is opened: a FIFO would wait for a writer.
        mode = os.stat(source.name).st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(f"it is {describe_kind(mode)}: name Zip files")
        if os.path.realpath(source.name).startswith(os.path.realpath(self._layout.state) + "/"):
            raise UsageError("it belongs to rear itself: rear scavenge merges it")
        source.opened = content = OpenZip(source.name, storage=self._storage)
        if not content.stamp.size:
            return
        with ExitStack() as stack:
            try:
                archive = stack.enter_context(open_committed(source.name, storage=self._storage))
            except NotAZipError:
                yield from self._salvage(source)
                archive = stack.enter_context(open_committed(source.path, storage=self._storage))
                content = OpenZip(source.path, storage=self._storage)
            batch: list[tuple[_Member, CentralEntry]] = []
            for position, _ in archive.names():
                entry = archive.entry_at(position)
                if self._is_mere_folder(entry):
                    continue
                try:
                    member = self._member_of(source, position, entry)
                    verify(archive, entry)
                except RearError as error:
                    yield self._refuse(source, f"it is not adopted: {error}", entry.name)
                    continue
                batch.append((member, entry))
                self._members += 1
                self._size_bytes += entry.compressed_size
                if self._is_full():
                    yield from self._copy(source, archive, content, batch)
                    yield None
                    batch = []
            yield from self._copy(source, archive, content, batch)
            source.opened.check_unchanged()

    def _salvage(self, source: _Source) -> Iterator[Event]:
        """Write what is whole in a Zip without directory to another one, which has one."""
        path = os.path.join(self._scratch, f"{next(self._numbers)}.zip")
        with ExitStack() as stack:
            descriptor = self._storage.open(source.name)
            stack.callback(self._storage.close, descriptor)
            target = self._storage.create(path)
            stack.callback(self._storage.close, target)
            for problem in rebuild(
                descriptor, target=target, keep_aside=None, subject=source.name, storage=self._storage
            ):
                if CATALOG[problem.code].is_loss:
                    yield self._refuse(source, f"damaged: {problem.detail}; the Zip stays", problem.name)
            if not self._storage.size(target):
                raise RearError("it is no Zip file: it has neither a directory nor a member")
        source.salvaged = path

    def _is_mere_folder(self, entry: CentralEntry) -> bool:
        """Whether an entry is the folder of a final archive, or the root of one: nothing that has to be kept."""
        above = entry.name.rstrip("/").lower().split("/")[:-1]
        return self._into is None and entry.is_directory and not any(part.endswith(".zip") for part in above)

    def _member_of(self, source: _Source, position: int, entry: CentralEntry) -> _Member:
        """Return where a member belongs.

        Raises:
            RearError: nowhere.
        """
        mode = mode_of(entry)
        if stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            raise UsageError("it is a device, a FIFO or a socket")
        slash = "/" * entry.is_directory
        if self._into is None:
            target = split_target(entry.name.removesuffix(slash) if slash else entry.name)
            target = target._replace(name=target.name + slash)
        else:
            target = Target(self._into.archive, self._into.name + entry.name)
        check_name(target.name)
        if target.archive not in source.archives:
            self._check_apart(source, target.archive)
            source.archives.add(target.archive)
        return _Member(position, target, entry.crc, entry.size, mode)

    def _check_apart(self, source: _Source, archive: str) -> None:
        # Those that count as rolled over hold "what is there already": a source must never be its own proof.
        for name in (archive, *rolled_over_from(self._layout, archive, storage=self._storage)):
            with suppress(FileNotFoundError):
                status = os.stat(self._layout.archive(name))
                if source.opened is not None and (status.st_dev, status.st_ino) == source.opened.stamp[1:3]:
                    also = "" if name == archive else f", which counts as rolled over from {archive}"
                    raise UsageError(f"this Zip is {name} itself{also}")

    def _copy(
        self, source: _Source, archive: Archive, content: OpenZip, batch: list[tuple[_Member, CentralEntry]]
    ) -> Iterator[Event]:
        """Copy those members to temp archives that no final archive has."""
        held = self._find(member for member, _ in batch)
        for member, entry in batch:
            if member in held:
                source.there_already += 1
                source.members.append(member)
                continue
            origin = archive.origin(entry)
            metadata: Metadata | None = None if origin is None else origin.metadata
            label = f"{source.name}/{entry.name}"
            self._begin_worker().append(
                member.target, payload_of_member(archive, entry, content),
                mtime_ns=entry.mtime_ns if origin is None else origin.mtime_ns, mode=member.mode,
                source=label if len(label.encode(errors="replace")) <= _SOURCE_LIMIT_BYTES else None,
                metadata=metadata,
            )  # fmt: skip
            source.copied.add(member.position)
            source.members.append(member)
            yield Collected(label, member.target.archive, member.target.name, entry.size)

    def _begin_worker(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._layout, storage=self._storage)
        return self._worker

    def _close_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _is_full(self) -> bool:
        return self._members >= BATCH_MEMBERS or self._size_bytes >= BATCH_BYTES

    # ---- to the final archives

    def _find(self, members: Iterable[_Member]) -> dict[_Member, Held]:
        """Return where members are that are committed: under their name, or one that a merge gave them."""
        by_archive: dict[str, list[_Member]] = {}
        for member in members:
            by_archive.setdefault(member.target.archive, []).append(member)
        held: dict[_Member, Held] = {}
        for name, wanted in by_archive.items():
            names = {member: member.target.name for member in wanted}
            held |= self._committed(name).find_named(names, _Member.is_in)
        return held

    def _committed(self, archive: str) -> CommittedArchives:
        return CommittedArchives(self._layout, archive, storage=self._storage)

    def _settle(self) -> Iterator[Event]:
        """Have all merged that is copied, and end with those Zips that are read to their end."""
        self._close_worker()
        members = [member for source in self._open for member in source.members]
        reason, held = "", self._find(members)
        pause = _FIRST_PAUSE_SECONDS
        while len(held) < len(set(members)):
            reason = ""
            try:
                yield from self._merging.events()
            except NotLeaderError as error:
                reason = error.situation
            held = self._find(members)
            if len(held) == len(set(members)) or not reason or self._wait_left <= 0:
                break
            yield Waiting(reason, self._wait_left)
            pause = min(pause, self._wait_left)
            self._wait_left -= pause
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
        for source in self._open:
            yield from self._settle_one(source, held, reason)
        self._open = [source for source in self._open if not source.is_read]
        self._members = self._size_bytes = 0

    def _settle_one(self, source: _Source, held: dict[_Member, Held], reason: str) -> Iterator[Event]:
        missing = [member for member in source.members if member not in held]
        for member in source.members:
            if member in held and member.position in source.copied:
                source.archived += 1
                source.size_bytes += member.size
        if missing and reason:
            source.pending += len(missing)
            text = (
                f"{len(missing):,} members are kept in temp archives, but not merged yet: {reason}; run it again later"
            )
            yield Refused(source.name, text)
        elif missing:
            text = f"{len(missing):,} members were copied, but are not in their archives: see lost+found; the Zip stays"
            yield self._refuse(source, text)
        elif self._delete and source.members:
            yield from self._read_back(source, held)
        source.members, source.copied = [], set()
        if source.is_read:
            is_deleted = False
            if self._delete and not source.refused and not source.pending:
                try:
                    self._remove(source)
                    is_deleted = True
                except OSError as error:
                    yield self._refuse(source, f"all is committed, but it cannot be removed: {error.strerror}")
                except SourceError as error:
                    yield self._refuse(source, f"{error}; left as it is")
            yield Adopted(
                source.name, source.archived, source.size_bytes, source.there_already, source.pending, source.refused,
                source.salvaged is not None, is_deleted,
            )  # fmt: skip
            if source.salvaged is not None:
                self._storage.unlink(source.salvaged)

    def _read_back(self, source: _Source, held: dict[_Member, Held]) -> Iterator[Event]:
        """Compare the members of a Zip, byte for byte, with what is committed."""
        by_archive: dict[str, list[_Member]] = {}
        for member in source.members:
            by_archive.setdefault(held[member].archive, []).append(member)
        for name, members in by_archive.items():
            try:
                with self._committed(name).open_durable(name) as archive, open_committed(source.path) as zipped:
                    found = Members(archive, [held[member].row for member in members], storage=self._storage)
                    for member in members:
                        entry = found.entry(held[member].row)
                        if _digest(archive, entry) != _digest(zipped, zipped.entry_at(member.position)):
                            yield self._refuse(
                                source, f"its bytes are not those of {entry.name} in {name}; the Zip stays"
                            )
            except (RearError, OSError) as error:
                yield self._refuse(source, f"it cannot be read back: {error}; the Zip stays")

    def _remove(self, source: _Source) -> None:
        assert source.opened is not None
        if stamp_of(source.name, os.lstat(source.name))[:5] != source.opened.stamp[:5]:
            raise SourceError("it has changed since it was read")
        self._storage.unlink(source.name)


def _digest(archive: Archive, entry: CentralEntry) -> bytes:
    digest = blake2b()
    for piece in archive.read(entry):
        digest.update(piece)
    return digest.digest()
