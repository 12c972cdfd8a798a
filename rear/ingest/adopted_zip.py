"""A Zip that is adopted: its members, where each of them belongs, and what became of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from rear.core.escaped_names import member_name, member_target
from rear.core.layout import Layout, check_owner, state_above
from rear.core.names import Target, undotted
from rear.core.source_file import describe_kind, stamp_of
from rear.core.storage import Storage
from rear.errors import PathError, SourceError, UsageError
from rear.events import Adopted, Refused
from rear.index.index import IndexRow
from rear.ingest.held_members import HeldMember
from rear.ingest.zip_payload import OpenZip, mode_of
from rear.scavenger.rollover import rolled_over_from
from rear.zip.headers import CentralEntry


class AdoptedMember(NamedTuple):
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
class AdoptedZip:
    """A Zip that is adopted, and, if it had to be salvaged, the copy below ``TMPDIR`` that has a directory."""

    name: str
    salvaged: str | None = None
    opened: OpenZip | None = None
    #: Those that are copied or there already, and not yet looked up in what is committed.
    members: list[AdoptedMember] = field(default_factory=list)
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

    def refuse(self, reason: str, member: str | None = None) -> Refused:
        """Count something that keeps the Zip from being removed, and return the event that tells of it."""
        self.refused += 1
        return Refused(self.name if member is None else f"{self.name}/{member}", reason)

    def count_merged(self, held: Mapping[AdoptedMember, HeldMember]) -> None:
        """Count those members that were copied and are committed now."""
        for member in self.members:
            if member in held and member.position in self.copied:
                self.archived += 1
                self.size_bytes += member.size

    def end(self, *, is_deleted: bool) -> Adopted:
        """Return the event that tells all there is to say of it."""
        return Adopted(
            self.name,
            archived=self.archived,
            size_bytes=self.size_bytes,
            there_already=self.there_already,
            pending=self.pending,
            refused=self.refused,
            is_salvaged=self.salvaged is not None,
            is_deleted=is_deleted,
        )

    def remove(self, *, storage: Storage) -> None:
        """Remove the Zip, if it is still what was read.

        Raises:
            SourceError: it has changed.
            OSError: it cannot be removed.
        """
        assert self.opened is not None
        if stamp_of(self.name, os.lstat(self.name))[:5] != self.opened.stamp[:5]:
            raise SourceError("it has changed since it was read")
        storage.unlink(self.name)


class MemberTargets:
    """Says where members of Zips belong.

    Args:
        layout: the base.
        into: archive and prefix for all of them; ``None`` if their own names say it, as ``ar.zip/name``.
        escape_names: escape what no name of ours can hold.
        storage: the file system.
    """

    def __init__(self, layout: Layout, into: Target | None, *, escape_names: bool = False, storage: Storage) -> None:
        self._layout = layout
        self._into = into
        self._escape_names = escape_names
        self._storage = storage

    def check_source(self, name: str) -> None:
        """Refuse what is no file, or rear's own. A FIFO would wait for a writer when it is opened.

        Raises:
            UsageError: it is such a thing.
            OSError: it cannot be looked at.
        """
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(f"it is {describe_kind(mode)}: name Zip files")
        if (base := state_above(os.path.realpath(name))) is not None:
            raise UsageError(f"it belongs to rear itself: rear scavenge {base} merges it")

    def is_mere_folder(self, entry: CentralEntry) -> bool:
        """Whether an entry is the folder of a final archive, or the root of one: nothing that has to be kept."""
        if entry.is_directory and not undotted(entry.name.rstrip("/")):
            return True
        above = entry.name.rstrip("/").lower().split("/")[:-1]
        return self._into is None and entry.is_directory and not any(part.endswith(".zip") for part in above)

    def member_of(self, source: AdoptedZip, position: int, entry: CentralEntry) -> AdoptedMember:
        """Return where a member belongs.

        Raises:
            RearError: nowhere.
        """
        mode = mode_of(entry)
        if stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            raise UsageError("it is a device, a FIFO or a socket")
        name, escape = undotted(entry.name), self._escape_names
        if self._into is None:
            slash = "/" * entry.is_directory
            target = member_target(name.removesuffix(slash) if slash else name, escape=escape)
            target = target._replace(name=member_name(slash, escape=False, prefix=target.name))
        else:
            target = Target(self._into.archive, member_name(name, escape=escape, prefix=self._into.name))
        if target.archive not in source.archives:
            self._check_apart(source, target.archive)
            source.archives.add(target.archive)
        return AdoptedMember(position, target, entry.crc, entry.size, mode)

    def _check_apart(self, source: AdoptedZip, archive: str) -> None:
        # Those that count as rolled over hold "what is there already": a source must never be its own proof.
        try:
            check_owner(self._layout, self._layout.archive(archive))
            for name in (archive, *rolled_over_from(self._layout, archive, storage=self._storage)):
                with suppress(FileNotFoundError):
                    status = os.stat(self._layout.archive(name))
                    if source.opened is not None and (status.st_dev, status.st_ino) == source.opened.stamp[1:3]:
                        also = "" if name == archive else f", which counts as rolled over from {archive}"
                        raise UsageError(f"this Zip is {name} itself{also}")
        except OSError as error:
            raise PathError(f"{archive} cannot be looked at: {error.strerror}") from None
