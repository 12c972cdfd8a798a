"""An adoption: members of other Zips go into final archives, and then the Zips may go.

They are temp archives of the original program, or any other Zips. An adoption is a worker and a scavenger in one, like
a sweep: members are checked, copied to temp archives, and merged. A Zip goes only when each of its members, read back
from the archive as it is committed, is byte for byte what the Zip holds. Whenever it stops, the next one goes on from
what is in the archives by then.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from hashlib import blake2b
from typing import Final

from rear.core.escaped_names import member_folder
from rear.core.layout import Layout
from rear.core.problems import CATALOG
from rear.core.records import unpacked
from rear.core.storage import LOCAL, Storage, StrPath, created, opened
from rear.errors import NotAZipError, RearError, SourceError
from rear.events import Collected, Event, Refused
from rear.ingest.adopted_zip import AdoptedMember, AdoptedZip, MemberTargets
from rear.ingest.held_members import CommittedArchives, HeldMember, Members
from rear.ingest.merging import Merging, base_to_fill, check_seconds
from rear.ingest.zip_payload import OpenZip, payload_of_member
from rear.read.view import open_committed
from rear.salvage.rebuild import rebuild
from rear.scavenger.options import options_for
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


def adopt(
    sources: Iterable[StrPath],
    *,
    base: StrPath,
    into: StrPath | None = None,
    delete: bool = False,
    wait_seconds: float = 60.0,
    escape_names: bool = False,
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
        escape_names: archive what no name of rear's can hold (a control character, a backslash, a byte that is no
            UTF-8) as ``%0A``, in ``into`` too: see `rear.escape_name`.
        storage: the file system.

    Raises:
        PathError: ``into`` names no archive, or leaves the base.
        UsageError: ``wait_seconds`` is no number of seconds.
        BaseError: the base is no directory.
        NotArchivedError: members could not be brought to stable storage; all Zips are in place.
        OSError: the base cannot be written.
    """
    check_seconds("wait_seconds", wait_seconds)
    layout = base_to_fill(base)
    target = None if into is None else member_folder(into, escape=escape_names)
    names = [os.path.abspath(os.fsdecode(source)) for source in sources]
    targets = MemberTargets(layout, target, escape_names=escape_names, storage=storage)
    return _Adoption(layout, targets, delete, wait_seconds, storage).events(names)


class _Adoption:
    """The steps of one adoption."""

    def __init__(
        self, layout: Layout, targets: MemberTargets, delete: bool, wait_seconds: float, storage: Storage
    ) -> None:
        self._layout = layout
        self._targets = targets
        self._delete = delete
        self._storage = storage
        options = options_for(layout, verify=True, storage=storage)
        self._merging = Merging(layout, options, wait_seconds, storage=storage)
        #: Those of which something is not settled yet.
        self._open: list[AdoptedZip] = []
        self._copies = _Copies(layout, storage)

    def events(self, names: list[str]) -> Iterator[Event]:
        # What an earlier adoption had copied when it died is merged first, so that it is not copied again.
        yield from self._merging.once()
        with tempfile.TemporaryDirectory(prefix="rear-adopt-") as scratch, closing(self._copies):
            for number, name in enumerate(dict.fromkeys(names)):
                source = AdoptedZip(name)
                self._open.append(source)
                for event in self._guarded(source, os.path.join(scratch, f"{number}.zip")):
                    if event is None:
                        yield from self._settle()
                    else:
                        yield event
                source.is_read = True
                if self._copies.are_many or len(self._open) >= BATCH_ZIPS:
                    yield from self._settle()
            yield from self._settle()

    def _guarded(self, source: AdoptedZip, scratch: str) -> Iterator[Event | None]:
        """Read one Zip; what is wrong with it costs no other one."""
        try:
            yield from self._collect(source, scratch)
        except RearError as error:
            yield source.refuse(f"{error}; left as it is")
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            if cause.filename not in (None, source.name, source.path):
                # The base cannot be written: further Zips would fare no better.
                raise
            yield source.refuse(f"it cannot be read: {cause.strerror}; left as it is")

    # ---- one Zip to temp archives

    def _collect(self, source: AdoptedZip, scratch: str) -> Iterator[Event | None]:
        """Copy what is new in a Zip; ``None`` asks to settle what was copied so far."""
        self._targets.check_source(source.name)
        source.opened = content = OpenZip(source.name, storage=self._storage)
        if not content.stamp.size:
            return
        with ExitStack() as stack:
            try:
                archive = stack.enter_context(open_committed(source.name, storage=self._storage))
            except NotAZipError:
                yield from self._salvage(source, scratch)
                archive = stack.enter_context(open_committed(source.path, storage=self._storage))
                content = OpenZip(source.path, storage=self._storage)
            batch: list[tuple[AdoptedMember, CentralEntry]] = []
            for position, _ in archive.names():
                entry = archive.entry_at(position)
                if self._targets.is_mere_folder(entry):
                    continue
                try:
                    member = self._targets.member_of(source, position, entry)
                    verify(archive, entry)
                except RearError as error:
                    yield source.refuse(f"it is not adopted: {error}", entry.name)
                    continue
                batch.append((member, entry))
                self._copies.expect(entry)
                if self._copies.are_many:
                    yield from self._copy(source, archive, content, batch)
                    yield None
                    batch = []
            yield from self._copy(source, archive, content, batch)
            source.opened.check_unchanged()

    def _salvage(self, source: AdoptedZip, path: str) -> Iterator[Event]:
        """Write what is whole in a Zip without directory to another one, which has one."""
        with opened(source.name, self._storage) as descriptor, created(path, self._storage) as target:
            for problem in rebuild(
                descriptor, target=target, keep_aside=None, subject=source.name, storage=self._storage
            ):
                # The beginning of a header that was cut off tells of a member, too.
                if CATALOG[problem.code].is_loss or problem.code == "bytes-unplaced":
                    yield source.refuse(f"damaged: {problem.detail}; the Zip stays", problem.name)
            if not self._storage.size(target):
                raise RearError("it is no Zip file: it has neither a directory nor a member")
        source.salvaged = path

    def _copy(
        self, source: AdoptedZip, zipped: Archive, content: OpenZip, batch: list[tuple[AdoptedMember, CentralEntry]]
    ) -> Iterator[Event]:
        """Copy those members to temp archives that no final archive has."""
        held, shut = self._find(member for member, _ in batch)
        for archive, reason in shut.items():
            yield source.refuse(f"its members for {archive} are not adopted: {reason}")
        for member, entry in batch:
            if member.target.archive in shut:
                continue
            if member in held:
                source.there_already += 1
                source.members.append(member)
                continue
            label = f"{source.name}/{entry.name}"
            self._copies.add(member, zipped, entry, content, label)
            source.copied.add(member.position)
            source.members.append(member)
            yield Collected(label, member.target.archive, member.target.name, entry.size)

    # ---- to the final archives

    def _find(self, members: Iterable[AdoptedMember]) -> tuple[dict[AdoptedMember, HeldMember], dict[str, str]]:
        """Return where members are that are committed: under their name, or one that a merge gave them.

        And of which archives that cannot be found out, and why.
        """
        by_archive: dict[str, dict[AdoptedMember, str]] = {}
        for member in members:
            by_archive.setdefault(member.target.archive, {})[member] = member.target.name
        held: dict[AdoptedMember, HeldMember] = {}
        shut: dict[str, str] = {}
        for archive, names in by_archive.items():
            try:
                held |= self._committed(archive).find_named(names, AdoptedMember.is_in)
            except (RearError, OSError) as error:
                shut[archive] = str(error)
        return held, shut

    def _committed(self, archive: str) -> CommittedArchives:
        return CommittedArchives(self._layout, archive, storage=self._storage)

    def _settle(self) -> Iterator[Event]:
        """Have all merged that is copied, and end with those Zips that are read to their end."""
        self._copies.close()
        members = {member for source in self._open for member in source.members}
        reason, (held, shut) = "", self._find(members)

        def look(situation: str) -> str:
            nonlocal held, shut
            held, shut = self._find(members)
            return situation if len(held) < len(members) else ""

        if len(held) < len(members):
            reason = yield from self._merging.until(look, tell_each_pause=True)
        for source in self._open:
            yield from self._settle_one(source, held, reason or "; ".join(shut.values()))
        self._open = [source for source in self._open if not source.is_read]

    def _settle_one(self, source: AdoptedZip, held: dict[AdoptedMember, HeldMember], reason: str) -> Iterator[Event]:
        missing = sum(member not in held for member in source.members)
        source.count_merged(held)
        if missing and reason:
            source.pending += missing
            text = f"{missing:,} members are kept in temp archives, but not merged yet: {reason}; run it again later"
            yield Refused(source.name, text)
        elif missing:
            text = f"{missing:,} members were copied, but are not in their archives: see lost+found; the Zip stays"
            yield source.refuse(text)
        elif self._delete and source.members:
            yield from self._read_back(source, held)
        source.members, source.copied = [], set()
        if source.is_read:
            is_deleted = False
            if self._delete and not source.refused and not source.pending:
                try:
                    source.remove(storage=self._storage)
                    is_deleted = True
                except OSError as error:
                    yield source.refuse(f"all is committed, but it cannot be removed: {error.strerror}")
                except SourceError as error:
                    yield source.refuse(f"{error}; left as it is")
            yield source.end(is_deleted=is_deleted)
            if source.salvaged is not None:
                self._storage.unlink(source.salvaged)

    def _read_back(self, source: AdoptedZip, held: dict[AdoptedMember, HeldMember]) -> Iterator[Event]:
        """Compare the members of a Zip, byte for byte, with what is committed."""
        by_archive: dict[str, list[AdoptedMember]] = {}
        for member in source.members:
            by_archive.setdefault(held[member].archive, []).append(member)
        for name, members in by_archive.items():
            try:
                with self._committed(name).open_durable(name) as archive, open_committed(source.path) as zipped:
                    found = Members(archive, [held[member].row for member in members], storage=self._storage)
                    for member in members:
                        entry = found.entry(held[member].row)
                        if _digest(archive, entry) != _digest(zipped, zipped.entry_at(member.position)):
                            yield source.refuse(f"its bytes are not those of {entry.name} in {name}; the Zip stays")
            except (RearError, OSError) as error:
                yield source.refuse(f"it cannot be read back: {error}; the Zip stays")


class _Copies:
    """Members that are copied to temp archives of this process, from one time that all is merged to the next."""

    def __init__(self, layout: Layout, storage: Storage) -> None:
        self._layout = layout
        self._storage = storage
        self._worker: Worker | None = None
        self._members = self._size_bytes = 0

    @property
    def are_many(self) -> bool:
        """Whether it is time to have them merged."""
        return self._members >= BATCH_MEMBERS or self._size_bytes >= BATCH_BYTES

    def expect(self, entry: CentralEntry) -> None:
        """Count a member that is to be copied, unless it is there already."""
        self._members += 1
        self._size_bytes += entry.compressed_size

    def add(self, member: AdoptedMember, archive: Archive, entry: CentralEntry, content: OpenZip, label: str) -> None:
        """Copy one member; ``label`` says where it comes from.

        Raises:
            RearError, OSError: it was not copied.
        """
        if self._worker is None:
            self._worker = Worker(self._layout, storage=self._storage)
        self._worker.check_place(member.target.archive)
        origin = archive.origin(entry)
        self._worker.append(
            member.target,
            payload_of_member(archive, entry, content),
            mtime_ns=entry.mtime_ns if origin is None else origin.mtime_ns,
            mode=member.mode,
            source=label if len(label.encode(errors="replace")) <= _SOURCE_LIMIT_BYTES else None,
            metadata=None if origin is None else unpacked(origin.metadata),
        )

    def close(self) -> None:
        """Bring what is copied to stable storage, so that it can be merged.

        Raises:
            NotArchivedError, OSError: as for `RearFs.close`.
        """
        self._members = self._size_bytes = 0
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()


def _digest(archive: Archive, entry: CentralEntry) -> bytes:
    digest = blake2b()
    for piece in archive.read(entry):
        digest.update(piece)
    return digest.digest()
