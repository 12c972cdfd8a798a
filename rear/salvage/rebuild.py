"""Builds a new archive from the members that a damaged one still has, found by their local headers.

Whole members are copied byte for byte, neighbours as one range; a new central directory follows. What is not whole does
not get into the new archive: what decodes of it, its raw bytes, and bytes that belong to no member are handed to
whoever keeps them. Where an archive is, and what becomes of the old one, is decided elsewhere: here are two open files.

Which of two statements counts: sizes and CRC-32 are those that fit the data; for names see *rebuilt_names*. Names that
lead out of a directory are kept: a name is part of what was archived, and every reader has to mind it anyway.

Memory: some fifty bytes a member; the new directory is spooled to local disk. What is plain (*rebuilt_headers*) is
neither read again nor looked at one by one.
"""

from __future__ import annotations

import re
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator
from typing import IO, Any, Final, NamedTuple, Protocol

from rear.core.problems import Outcome, Problem
from rear.core.storage import COPY_CHUNK_BYTES, LOCAL, Storage
from rear.salvage.inventory import Inventory, PlainRun
from rear.salvage.local_headers import Facts, facts_of
from rear.salvage.lost_headers import Headerless, HeaderlessSearch
from rear.salvage.read_back import Written
from rear.salvage.rebuilt_headers import (
    Naming,
    encode_entry,
    header_of_entry,
    is_consistent,
    keeps_descriptor,
    make_central_entry,
    make_local_header,
    moved_entries,
)
from rear.salvage.rebuilt_names import Known, RebuiltNames
from rear.salvage.scan_result import Found, recovered_content
from rear.zip.headers import CentralEntry, decode_local_header, encode_end
from rear.zip.structures import FLAG_UTF8, LIMIT_32

MADE_ANEW_LIMIT: Final = 100_000
"""So many members whose local headers are gone, or whose names occur twice, are brought back: each takes memory."""
_STUB: Final = re.compile(rb"MZ|#!|\x7fELF")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._+=@%, ~-]")
_ITEM_LIMIT: Final = 160


class KeepAside(Protocol):
    """Takes what does not get into the new archive; `rear.scavenger.lost_and_found.LostAndFound` is one."""

    def put_bytes(self, name: str, descriptor: int | None, start: int, length: int, note: dict[str, Any]) -> str:
        """Keep a range of an open file with a note; return where."""

    def put_content(self, name: str, content: Iterable[bytes], note: dict[str, Any]) -> str:
        """Keep plain bytes as ``<name>.partial`` with a note; return where."""


class Rebuilt(NamedTuple):
    """What came of a rebuild: members of the new archive, damaged ones that are not in it, and what was written."""

    members: int
    damaged: int
    written: Written


def rebuild(
    descriptor: int,
    *,
    target: int | None,
    keep_aside: KeepAside | None,
    subject: str,
    known: Known | None = None,
    item_prefix: str = "",
    storage: Storage = LOCAL,
) -> Generator[Problem, None, Rebuilt]:
    """Write a new archive of all members that the old one still has; yield what is not as it should be.

    Nothing that is yielded is certain before the caller has synced the new archive and put it in its place.
    Where there is neither directory nor member, nothing is written or kept aside.

    Args:
        descriptor: the damaged archive, open; it is only read.
        target: an empty file, open for writing; ``None`` to write nothing and only tell: what would be ``repaired``
            then has the outcome ``would repair``.
        keep_aside: takes what does not get into the new archive.
        subject: what problems call the archive.
        known: what an index says of its members.
        item_prefix: what names of items given to ``keep_aside`` begin with.
        storage: the file system.

    Raises:
        UnsupportedError: the archive is split into volumes.
        OSError: one of the files cannot be read or written.
    """
    with (
        tempfile.TemporaryFile(prefix="rear-") as spool,
        tempfile.TemporaryFile(prefix="rear-") as plain_entries,
        tempfile.TemporaryFile(prefix="rear-") as entries,
    ):
        inventory = Inventory(descriptor, spool, plain_entries, storage)
        inventory.run()
        if not len(inventory) and not inventory.damaged and inventory.directory is None:
            return Rebuilt(0, 0, Written())
        writer = _Writer(inventory, target, keep_aside, subject, known, item_prefix, entries)
        yield from writer.run()
        return Rebuilt(writer.members, writer.damaged, writer.written)


class _Writer:
    """Writes the new archive of an inventory."""

    def __init__(
        self,
        inventory: Inventory,
        target: int | None,
        keep_aside: KeepAside | None,
        subject: str,
        known: Known | None,
        item_prefix: str,
        entries: IO[bytes],
    ) -> None:
        self.members = self.damaged = self.position = 0
        self._inventory = inventory
        self._storage = inventory.storage
        self._source = inventory.descriptor
        self._target = target
        self._keep_aside = None if target is None else keep_aside
        self._subject = subject
        self._names = RebuiltNames(inventory, known, MADE_ANEW_LIMIT)
        self._headerless = HeaderlessSearch(inventory, MADE_ANEW_LIMIT)
        self._item_prefix = item_prefix
        self._entries = entries
        self._range = (0, 0)
        self.written = Written()
        self._skipped: set[int] = set()

    @property
    def _done(self) -> Outcome:
        return "would repair" if self._target is None else "repaired"

    def run(self) -> Iterator[Problem]:
        yield from self._tell_damaged()
        yield from self._look_for_missing()
        yield from self._tell_gaps()
        yield from self._settle_names()
        self._copy(0, self._stub_length())
        following = 0
        for run in self._plain_runs():
            yield from self._take_all(range(following, run.first))
            following = run.first + run.members
            yield from self._take_run(run)
        yield from self._take_all(range(following, len(self._inventory)))
        for found in self._headerless.found:
            self._take_headerless(found)
        self._flush()
        self._write_directory()

    # ---- what does not get into the new archive

    def _tell_damaged(self) -> Iterator[Problem]:
        for found in self._inventory.damaged_members():
            facts = Facts(found.crc, found.compressed_size, found.size)
            entry = self._names.old_entry(found.offset, found.header.name, facts)
            if entry is None and self._inventory.remains.is_trusted:
                entry = next(self._inventory.remains.find(found.offset), None)
            name = found.name if entry is None else entry.name
            if entry is not None and self._headerless.find(found.offset, entry, found.data_offset):
                detail = "its data fits its directory entry, and a new local header was made"
                yield Problem("member-header-differs", self._subject, detail, self._done, found.offset, None, name)
                continue
            self.damaged += 1
            yield self._tell_one(found, name)

    def _tell_one(self, found: Found, name: str) -> Problem:
        code, detail, kept = "member-lost", found.reason, None
        length = found.end - found.offset
        if found.recoverable_bytes:
            code = "member-partial"
            detail = f"{found.reason}; the first {found.recoverable_bytes:,} of {found.size:,} bytes decode"
        if self._keep_aside is not None:
            item, note = self._item(name, found.offset), self._note(found.offset, length, found.reason, name)
            kept = self._keep_aside.put_bytes(item, self._source, found.offset, length, note)
            if found.recoverable_bytes:
                content = recovered_content(self._source, found, storage=self._storage)
                note["recovered_bytes"] = found.recoverable_bytes
                kept = self._keep_aside.put_content(item, content, note)
        return Problem(code, self._subject, detail, "left", found.offset, length, name, kept)

    def _note(self, start: int, length: int, reason: str, name: str | None = None) -> dict[str, Any]:
        about = {} if name is None else {"name": name}
        return {"archive": self._subject, **about, "offset": start, "length": length, "reason": reason}

    def _item(self, name: str, offset: int) -> str:
        flat = _UNSAFE.sub("_", name)[-_ITEM_LIMIT:].lstrip(".-") or "member"
        return f"{self._item_prefix}{flat}-{offset}"

    def _tell_gaps(self) -> Iterator[Problem]:
        """Keep bytes that belong to no member. Without a directory, one may have been a member: nobody can tell."""
        outcome: Outcome = "noted" if self._inventory.directory is not None else "left"
        gaps = self._inventory.gaps[1:] if self._stub_length() else self._inventory.gaps
        taken = array("Q", sorted(found.data_start for found in self._headerless.found))
        detail = "bytes that belong to no member"
        for start, length in gaps:
            if bisect_left(taken, start) < bisect_left(taken, start + length):
                # A member was found in it after all.
                continue
            kept = None
            if self._keep_aside is not None:
                note = self._note(start, length, detail)
                kept = self._keep_aside.put_bytes(self._item("bytes", start), self._source, start, length, note)
            yield Problem("bytes-unplaced", self._subject, detail, outcome, start, length, None, kept)
        if self._inventory.further_gaps:
            detail = (
                f"{self._inventory.further_gap_bytes:,} bytes in {self._inventory.further_gaps:,} more places belong "
                "to no member; they are in the old archive alone"
            )
            yield Problem("bytes-unplaced", self._subject, detail, outcome)

    def _stub_length(self) -> int:
        """Return the length of the program before the first member of a self-extracting archive, 0 without one."""
        inventory = self._inventory
        if not inventory.gaps or inventory.gaps[0][0] or not _STUB.match(self._storage.read(self._source, 4, 0)):
            return 0
        return inventory.gaps[0][1]

    # ---- members that only the old directory knows

    def _look_for_missing(self) -> Iterator[Problem]:
        """Look for the data of members that only seem empty, as the directory knows better, or have no local header."""
        inventory = self._inventory
        if not inventory.remains.is_trusted:
            return
        for number in inventory.doubtful_empty_members():
            offset = inventory.offsets[number]
            entry = next(inventory.remains.find(offset), None)
            if entry is not None and entry.size:
                self._skipped.add(number)
                yield self._restore(offset, entry)
        told = set(inventory.damaged_offsets)
        for position, number in inventory.remains.all():
            if position in told or inventory.number_at(position) is not None:
                continue
            told.add(position)
            yield self._restore(position, inventory.remains.entry(number))

    def _restore(self, position: int, entry: CentralEntry) -> Problem:
        """Find the data of a member that has no good local header; tell whether it is there."""
        if self._headerless.find(position, entry):
            detail = "its local header was gone; its data fits its directory entry, and a new header was made"
            return Problem("member-header-missing", self._subject, detail, self._done, position, None, entry.name)
        self.damaged += 1
        detail = f"the old directory tells of it, but neither its header nor its data is at {position:,}"
        return Problem("member-lost", self._subject, detail, "left", position, entry.compressed_size, entry.name)

    # ---- writing

    def _settle_names(self) -> Iterator[Problem]:
        others = {found.entry.name for found in self._headerless.found}
        for number, name, new_name in self._names.settle(others, self._skipped):
            offset, outcome = self._inventory.offsets[number], self._done
            detail = f"another member of this name counts; this one is called {new_name!r:.200} now"
            if new_name is None:
                detail, outcome = "another member of this name counts; too many have to get other names", "left"
            yield Problem("member-duplicate-name", self._subject, detail, outcome, offset, None, name)

    def _plain_runs(self) -> Iterable[PlainRun]:
        """Return what can be taken without a look at each member."""
        return self._inventory.plain_runs() if self._names.is_simple and not self._skipped else ()

    def _take_run(self, run: PlainRun) -> Iterable[Problem]:
        inventory, last = self._inventory, run.first + run.members - 1
        start, end, target = inventory.offsets[run.first], inventory.ends[last], self._next_position()
        if target + end - start > LIMIT_32:
            return self._take_all(range(run.first, last + 1))
        self._copy(start, end - start, run.crc)
        self.members += run.members
        if self._target is not None:
            self.written.note_entries(run.entries_length, run.members, run.last_entry)
            self._entries.write(moved_entries(inventory.plain_entries(run), run.members, target - start))
        return ()

    def _take_all(self, numbers: range) -> Iterator[Problem]:
        for number in numbers:
            if number not in self._skipped:
                yield from self._take(number)

    def _take(self, number: int) -> Iterator[Problem]:
        inventory = self._inventory
        resolved, facts = self._names.resolve(number), inventory.facts(number)
        offset, end = inventory.offsets[number], inventory.ends[number]
        at = self._next_position()
        header = resolved.header
        if not resolved.contradiction and is_consistent(resolved.local, resolved.naming, facts):
            self._copy(offset, end - offset)
        else:
            header = make_local_header(header, resolved.local, resolved.naming, facts)
            self._write(header)
            data_start = offset + resolved.local.length
            data_end = end if keeps_descriptor(resolved.local) else data_start + facts.compressed_size
            self._copy(data_start, data_end - data_start)
        local = decode_local_header(header)
        self._add_entry(make_central_entry(header, local, resolved.naming, facts, resolved.old), at)
        if resolved.contradiction:
            name, detail = resolved.naming.text(local.extra), resolved.contradiction
            yield Problem("member-header-differs", self._subject, detail, self._done, offset, None, name)

    def _take_headerless(self, found: Headerless) -> None:
        entry = found.entry
        facts = facts_of(entry)
        naming = Naming(entry.name_bytes, bool(entry.flags & FLAG_UTF8))
        header = header_of_entry(entry)
        at = self._next_position()
        self._write(header)
        self._copy(found.data_start, entry.compressed_size)
        self._add_entry(make_central_entry(header, decode_local_header(header), naming, facts, entry), at)

    def _next_position(self) -> int:
        return self.position + self._range[1]

    def _copy(self, start: int, length: int, crc: int | None = None) -> None:
        """Copy a range of the old archive behind what is there already, together with its neighbours."""
        if self._target is not None:
            self.written.note_copy(start, length, crc)
        begin, so_far = self._range
        if so_far and begin + so_far == start:
            self._range = begin, so_far + length
            return
        self._flush()
        self._range = start, length

    def _flush(self) -> None:
        start, length = self._range
        self._range = 0, 0
        if self._target is not None and length:
            self._storage.copy_range(
                self._source, self._target, source_start=start, target_start=self.position, length=length
            )
        self.position += length

    def _write(self, data: bytes) -> None:
        self._flush()
        if self._target is not None:
            self.written.note_bytes(data)
            self._storage.write(self._target, [data], self.position)
        self.position += len(data)

    def _add_entry(self, entry: CentralEntry, offset: int) -> None:
        self.members += 1
        if self._target is not None:
            encoded = encode_entry(entry, offset)
            self.written.note_entry(len(encoded))
            self._entries.write(encoded)

    def _write_directory(self) -> None:
        offset = self.position
        self._entries.seek(0)
        while data := self._entries.read(COPY_CHUNK_BYTES):
            self._write(data)
        length, comment = self.position - offset, self._inventory.comment()
        self._write(encode_end(entries=self.members, directory_length=length, directory_offset=offset, comment=comment))
