"""A journal made anew from the temp archive: each member's own extra field tells where it came from and belongs.

A journal that is missing, or unreadable from its first record on, is written anew; members that a damaged one does not
name are found in the bytes that none of its records covers. Only members that are whole, and whose extra field passes
its checksum and names the temp archive's own cookie and worker, count.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from rear.core.descent import status_of
from rear.core.liveness import process_of_worker
from rear.core.names import check_archive, check_name
from rear.core.records import Append, Metadata, Open, Origin, PackedMetadata, Pair, Record
from rear.core.storage import FRESH_SUFFIX, PRIVATE_MODE, Storage, created, opened
from rear.errors import PathError, RearError, UnsupportedError
from rear.journal.codec import FORMAT_VERSION, decode_line, decode_record, encode_record
from rear.journal.flushed_parts import records_without_journal
from rear.journal.reader import HELD_LIMIT_BYTES, Journal, read_journal
from rear.salvage.info_zip import fix, scratch_folder
from rear.salvage.scan import scan
from rear.salvage.scan_result import Found, Gap, Nested
from rear.scavenger.claims import ClaimedPair
from rear.scavenger.lost_and_found import LostAndFound, item_name
from rear.scavenger.owners import OwnerBudget
from rear.zip.origin import encode_metadata
from rear.zip.structures import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    END_SIGNATURE,
    ZIP64_END_SIGNATURE,
    ZIP64_LOCATOR_SIGNATURE,
)

_LEASE_SECONDS: Final = 60.0
_DIRECTORY_SIGNATURES: Final = (CENTRAL_SIGNATURE, END_SIGNATURE, ZIP64_END_SIGNATURE, ZIP64_LOCATOR_SIGNATURE)


ZIP_TRIES: Final = 32
ZIP_SECONDS: Final = 600.0
"""So often, and for about so long, `zip -FF` is tried for one user in a scavenge: it may never end."""
HOLES_BYTES: Final = 1 << 30
"""Holes of so many bytes in all are read as zeros: some file systems make them of zeros that were written."""
FINDINGS_LIMIT: Final = 120_000
"""So many members and gaps of one range are held in memory, in some 150 MB: more than 4 MiB of directory have."""


class Unplaced(NamedTuple):
    """Bytes of a temp archive that are no whole member; ``found`` where a local header tells what they were."""

    start: int
    length: int
    reason: str
    found: Found | None = None


def check_holes(descriptor: int, *, storage: Storage) -> None:
    """Refuse a temp archive that is nearly nothing but holes: reading takes for ever, and a merge would fill the disk.

    Raises:
        RearError: so it is.
    """
    if storage.is_mostly_holes(descriptor, HOLES_BYTES):
        raise RearError("its temp archive is a sparse file that is nearly nothing but holes: no worker writes such")


def packed(metadata: Metadata | PackedMetadata | None) -> PackedMetadata | None:
    """Return metadata as they are held in memory."""
    return None if metadata is None else encode_metadata(metadata)


def append_of(found: Found, origin: Origin) -> Append:
    """Return the record that a journal would have of a member."""
    return Append(
        origin.sequence, origin.source, origin.source_start, origin.source_start + found.size, found.offset,
        found.end - found.offset, origin.archive, found.name, found.header.method, found.crc, found.compressed_size,
        found.size, origin.mtime_ns, origin.mode, packed(origin.metadata),
    )  # fmt: skip


def find_unjournaled(claimed: ClaimedPair, descriptor: int, *, storage: Storage) -> Iterator[Append | Unplaced]:
    """Yield the members, and the other bytes, of an open temp archive that no record of its journal covers.

    Raises:
        OSError: the temp archive cannot be read.
    """
    for start, end in _uncovered(claimed.journal, storage.size(descriptor)):
        directory_end = start
        for item in _findings(descriptor, start, end, claimed.opened.cookie, storage):
            if isinstance(item, Found):
                if item.origin is None or item.origin.sequence not in claimed.journal.aborted:
                    yield _member(item, claimed.pair, claimed.journal)
            elif item.kind == "directory":
                directory_end = item.start + item.length
            elif item.start != directory_end or not _is_torn_directory(item, descriptor, storage):
                zeros = "zeros, which a file system leaves of writes that never arrived"
                what = zeros if item.kind == "zeros" else "bytes of no member"
                yield Unplaced(item.start, item.length, f"{what}; no record of the journal covers them")


def _is_torn_directory(gap: Gap, descriptor: int, storage: Storage) -> bool:
    """Whether a central directory breaks off in this gap: its writer was killed, or the disk full (APPNOTE 4.3.12)."""
    if gap.start + gap.length != storage.size(descriptor) or gap.length >= CENTRAL.size + 3 * 0xFFFF:
        return False
    head = storage.read(descriptor, len(CENTRAL_SIGNATURE), gap.start)
    return any(signature.startswith(head) for signature in _DIRECTORY_SIGNATURES)


def rebuild_journal(pair: Pair, folder: Path, lost_and_found: LostAndFound, *, storage: Storage) -> int:
    """Write a journal for a temp archive that has none that can be used.

    The old journal, where there is one, goes to lost+found.

    Returns:
        how many members it names; 0, and no journal was written, when there is no member that can be named.

    Raises:
        OSError: the temp archive cannot be read, or the journal not written.
    """
    owner = owner_of_files(pair, folder, storage=storage)
    named = list(_placeable(folder / f"{pair.stem}.zip", pair, storage))
    rest = _rest_of_journal(pair, folder, lost_and_found, owner, storage)
    appends = {
        sequence: one
        for sequence, one in rest.appends.items()
        if sequence not in rest.aborted and one is not rest.flushed
    }
    cookie = named[0][1].cookie if named else 0
    appends.update((origin.sequence, append_of(item, origin)) for item, origin in named if origin.cookie == cookie)
    records: list[Record] = list(appends.values())
    if not records:
        cookie, records = _records_of_parts(pair, folder, rest, storage)
    if not records:
        return 0
    process = process_of_worker(pair.host, pair.worker)
    opened_record = Open(
        FORMAT_VERSION,
        pair.host,
        pair.worker,
        pair.rotation,
        cookie,
        pid=process.pid if process else 0,
        process_start=process.process_start if process else None,
        boot_id=process.boot_id if process else None,
        pid_namespace=process.pid_namespace if process else None,
        time_namespace=process.time_namespace if process else None,
        # Members of an earlier pair that had failed may be here again: they are looked up one by one.
        uid=owner,
        lease_seconds=_LEASE_SECONDS,
        created_ns=0,
        repeats_from=0,
    )
    lines = [encode_record(opened_record), *map(encode_record, records)]
    storage.replace(folder / f"{pair.stem}.journal", b"".join(lines), PRIVATE_MODE & _mode(pair, folder))
    return len(appends) or 1


def _records_of_parts(pair: Pair, folder: Path, rest: Journal, storage: Storage) -> tuple[int, list[Record]]:
    """Return cookie and records of a file that was flushed, where the pair holds one."""
    present = storage.names(folder)
    path, journal_path = folder / f"{pair.stem}.zip", folder / f"{pair.stem}.journal"
    if path.name not in present or rest.aborted:
        return 0, []
    with opened(path, storage) as descriptor:
        cookie, records = records_without_journal(
            pair, rest.file, None if rest.status is None else journal_path, descriptor, storage=storage
        )
    return cookie, list(records)


def _mode(pair: Pair, folder: Path) -> int:
    """Return the mode of a temp archive: who may not read that is not told what is in it either."""
    with suppress(OSError):
        return status_of(folder / f"{pair.stem}.zip").st_mode
    return 0o600


def owner_of_files(pair: Pair, folder: Path, *, storage: Storage) -> int:
    """Return whose a pair without usable journal is: the owner of its temp archive, from which a journal is made.

    So a journal gives no right to files of whoever makes it.

    Raises:
        OSError: neither temp archive nor journal can be looked at.
    """
    name = f"{pair.stem}.zip"
    return storage.status(folder / (name if name in storage.names(folder) else f"{pair.stem}.journal")).st_uid


def rebuild_by_zip(pair: Pair, folder: Path, lost_and_found: LostAndFound, *, storage: Storage) -> int:
    """Let ``zip -FF`` make a temp archive of one in which the scanner finds no member that can be placed.

    What it makes takes the place of the temp archive, which goes to lost+found, if it holds such members: they pass the
    same checks. Arguments and result are those of `rebuild_journal`.

    Raises:
        UnsupportedError: ``zip`` is not installed.
        OSError: a file cannot be read or written.
    """
    path = folder / f"{pair.stem}.zip"
    if path.name not in storage.names(folder):
        return 0
    with scratch_folder() as scratch:
        fixed = fix(path, scratch, storage=storage)
        if fixed is None or not any(True for _ in _placeable(fixed, pair, storage)):
            return 0
        fresh = folder / f"{path.name}.{secrets.token_hex(6)}{FRESH_SUFFIX}"
        with created(fresh, storage, mode=0o600) as target:
            with opened(path, storage) as old:
                storage.copy_owner_and_mode(old, target)
            with opened(fixed, storage) as source:
                length = storage.size(source)
                storage.copy_range(source, target, source_start=0, target_start=0, length=length)
            storage.sync(target)
    note = {"pair": str(pair), "reason": "no member in it could be placed; zip -FF found some, and they were taken on"}
    # A second name: until the rename it has to be here as well, or a crash would leave it in lost+found alone.
    lost_and_found.put_copy(f"{pair.host}-{pair.stem}.zip", path, note)
    storage.rename(fresh, path)
    storage.sync_directory(folder)
    return rebuild_journal(pair, folder, lost_and_found, storage=storage)


def _rest_of_journal(pair: Pair, folder: Path, lost_and_found: LostAndFound, owner: int, storage: Storage) -> Journal:
    """Return what can still be read of a journal of the owner without its first record, after a copy of it was kept."""
    path = folder / f"{pair.stem}.journal"
    if path.name not in storage.names(folder):
        return Journal()
    journal = read_journal(path, storage=storage)
    # Of another user's, made anew by him or for a temp archive that is not here any more, nothing counts.
    is_owners = journal.status is not None and journal.status.st_uid == owner
    if journal.opened is None or journal.lacks_file or not is_owners:
        with opened(path, storage) as descriptor:
            note = {"pair": str(pair), "reason": "its first records cannot be read; the journal was written anew"}
            lost_and_found.put_bytes(item_name(pair, "journal"), descriptor, 0, storage.size(descriptor), note)
    return journal if is_owners else Journal()


class JournalMaker:
    """Makes journals in one scavenge; of each user, `zip -FF` is tried on so many temp archives, for so long."""

    def __init__(self, lost_and_found: LostAndFound, *, storage: Storage) -> None:
        self._lost_and_found = lost_and_found
        self._storage = storage
        self._tries, self._seconds = OwnerBudget(ZIP_TRIES), OwnerBudget(ZIP_SECONDS)

    def make(self, pair: Pair, folder: Path) -> tuple[int, str]:
        """Write a journal from what a temp archive says; return how many members it names, and what else to say.

        Raises:
            RearError, OSError: that failed.
        """
        members = rebuild_journal(pair, folder, self._lost_and_found, storage=self._storage)
        if members:
            return members, ""
        owner = owner_of_files(pair, folder, storage=self._storage)
        if not self._seconds.takes(owner, 0) or not self._tries.takes(owner, 1):
            return 0, "; zip -FF was not tried on so many"
        begun = self._storage.uptime()
        try:
            return rebuild_by_zip(pair, folder, self._lost_and_found, storage=self._storage), ", by zip -FF neither"
        except UnsupportedError as error:
            return 0, f"; {error}"
        finally:
            self._seconds.spend(owner, self._storage.uptime() - begun)


def _placeable(path: Path, pair: Pair, storage: Storage) -> Iterator[tuple[Found, Origin]]:
    if path.name not in storage.names(path.parent):
        return
    with opened(path, storage) as descriptor:
        check_holes(descriptor, storage=storage)
        for item in _findings(descriptor, 0, storage.size(descriptor), None, storage):
            if isinstance(item, Found) and item.origin is not None and _is_placeable(item, pair):
                yield item, item.origin


def _findings(descriptor: int, start: int, end: int, cookie: int | None, storage: Storage) -> Iterator[Found | Gap]:
    """Yield what a scan finds, without the members of Zips inside; one gap for more than a worker writes."""
    items: list[Found | Gap] = []
    held_bytes = 0
    try:
        for item in scan(descriptor, start=start, end=end, cookie=cookie, storage=storage):
            if isinstance(item, Found) and item.origin is not None and item.origin.metadata is not None:
                item = item._replace(origin=item.origin._replace(metadata=packed(item.origin.metadata)))
                held_bytes += item.header.length
            if len(items) > FINDINGS_LIMIT or held_bytes > HELD_LIMIT_BYTES:
                items = [Gap(start, end - start, "unknown")]
                break
            if isinstance(item, Nested):
                items = [one for one in items if not _is_within(one, item)]
                items.append(Gap(item.start, item.length, "unknown"))
            else:
                items.append(item)
    except UnsupportedError:
        items = [Gap(start, end - start, "unknown")]
    yield from items


def _is_within(item: Found | Gap, nested: Nested) -> bool:
    start = item.offset if isinstance(item, Found) else item.start
    return nested.start <= start < nested.start + nested.length


def _uncovered(journal: Journal, length: int) -> Iterator[tuple[int, int]]:
    position = 0
    for append in sorted(journal.appends.values(), key=lambda append: append.offset):
        if append.offset >= length:
            break
        if position < append.offset:
            yield position, append.offset
        position = max(position, append.offset + append.length)
    if position < length:
        yield position, length


def _member(found: Found, pair: Pair, journal: Journal) -> Append | Unplaced:
    origin = found.origin
    length = found.end - found.offset
    if origin is None or not _is_placeable(found, pair):
        return Unplaced(found.offset, length, found.reason or _why_not_placed(found, pair), found)
    if origin.sequence in journal.appends:
        return Unplaced(
            found.offset, length, f"a second copy of member {origin.sequence}, which the journal names", found
        )
    return append_of(found, origin)


def _is_placeable(found: Found, pair: Pair) -> bool:
    return found.state == "whole" and not _why_not_placed(found, pair)


def _why_not_placed(found: Found, pair: Pair) -> str:
    """Tell why a whole member cannot be placed; nothing when it can."""
    origin = found.origin
    if origin is None:
        return "it has no extra field of rear's that passes its checksum"
    if (origin.host, origin.worker) != (pair.host, pair.worker):
        return f"it belongs to worker {origin.host}/{origin.worker}"
    try:
        check_archive(origin.archive)
        check_name(found.name)
        decode_record(decode_line(encode_record(append_of(found, origin)).removesuffix(b"\n")))
    except PathError as error:
        return str(error)
    except (RearError, ValueError) as error:
        return f"no journal could name it: {error}"
    return ""
