"""What a scan of a whole archive finds, kept in arrays: members that can be copied, damaged ones, ranges of neither.

Memory: some fifty bytes a member. What is to be told of damaged members is spooled to local disk.
"""

from __future__ import annotations

import pickle
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import IO, Final, NamedTuple

from rear.core.storage import Storage
from rear.errors import RearError
from rear.salvage.damaged_directory import DirectoryRemains
from rear.salvage.local_headers import Facts
from rear.salvage.rebuilt_headers import encode_plain_entries, plain_names
from rear.salvage.scan import scan_in_runs
from rear.salvage.scan_result import Found, Gap, Nested, Run
from rear.zip import directory as directories
from rear.zip.codecs import crc32
from rear.zip.directory import Directory
from rear.zip.headers import LocalHeader, decode_local_header, local_header_length
from rear.zip.structures import END, END_SIGNATURE, FLAG_ENCRYPTED, LIMIT_16, LOCAL, LOCAL_SIGNATURE
from rear.zip.window import FIRST_BYTES, Window

GAPS_KEPT: Final = 1_000
"""So many ranges without member are kept one by one; of more, the old archive is the only copy."""
_DAMAGED: Final = frozenset({"partial", "lost"})


def _is_doubtful(found: Found) -> bool:
    """Whether the header of an unverified member is damaged, and not its data merely unreadable here."""
    is_decoded = found.recoverable_bytes == found.size and not found.header.flags & FLAG_ENCRYPTED
    as_it_stands = len(found.header_bytes) == found.header.length and found.header_bytes[:4] == LOCAL_SIGNATURE
    return is_decoded or not as_it_stands


class PlainRun(NamedTuple):
    """Members about which there is no question: a range of numbers, and where their entries are spooled.

    ``crc`` is the CRC-32 of all of their bytes, as the scan had them in memory; ``last_entry`` where the last entry is.
    """

    first: int
    members: int
    entries_start: int
    entries_length: int
    last_entry: int
    crc: int


class Inventory:
    """What a scan has found, in arrays: members that can be copied, and ranges that belong to none.

    Damaged members are spooled; ``damaged`` counts them.
    """

    def __init__(self, descriptor: int, spool: IO[bytes], entries: IO[bytes], storage: Storage) -> None:
        self.descriptor = descriptor
        self.storage = storage
        self.size = storage.size(descriptor)
        self.offsets = array("Q")
        self.ends = array("Q")
        self.crcs = array("I")
        self.compressed_sizes = array("Q")
        self.sizes = array("Q")
        #: Hashes of the names in the local headers.
        self.name_hashes = array("q")
        self._columns = self.offsets, self.ends, self.crcs, self.compressed_sizes, self.sizes, self.name_hashes
        self.damaged = 0
        self.damaged_offsets = array("Q")
        self.gaps: list[tuple[int, int]] = []
        self.further_gaps = self.further_gap_bytes = 0
        self.remains = DirectoryRemains(descriptor, storage=storage)
        self.directory: Directory | None = None
        self._spool = spool
        self._entries = entries
        self._plain = [array("Q") for _ in PlainRun._fields]
        #: Where in the spool members stand whose data is whole, but whose header is damaged; by offset.
        self._doubtful: dict[int, int] = {}
        self._directory_ranges: list[tuple[int, int]] = []
        self._nested: list[tuple[int, int]] = []
        self._ahead = Window(descriptor, 0, self.size, first_bytes=FIRST_BYTES, storage=storage)

    def __len__(self) -> int:
        return len(self.offsets)

    def run(self) -> None:
        """Scan the whole file."""
        try:
            self.directory = directories.locate(self.descriptor, storage=self.storage)
        except RearError:
            self.directory = None
        for item in scan_in_runs(self.descriptor, storage=self.storage):
            if isinstance(item, Run):
                self._add_run(item)
            elif isinstance(item, Found):
                self._add(item)
            elif isinstance(item, Gap):
                self._add_gap(item)
            else:
                self._retract(item)
        self._read_remains()

    def _add(self, found: Found) -> None:
        if found.state == "unverified" and not found.size and found.crc and not found.header.flags & FLAG_ENCRYPTED:
            # Of nothing, the CRC-32 is 0.
            found = found._replace(state="lost")
        if found.state in _DAMAGED:
            pickle.dump(found, self._spool, pickle.HIGHEST_PROTOCOL)
            self.damaged += 1
            self.damaged_offsets.append(found.offset)
            return
        if found.state == "unverified" and _is_doubtful(found):
            self._doubtful[found.offset] = self._spool.tell()
            pickle.dump(found, self._spool, pickle.HIGHEST_PROTOCOL)
        values = found.offset, found.end, found.crc, found.compressed_size, found.size, hash(found.name)
        for numbers, value in zip(self._columns, values, strict=True):
            numbers.append(value)

    def _add_run(self, run: Run) -> None:
        first, base = len(self.offsets), run.base
        rows = run.rows
        offsets = array("Q", [base + row[0] for row in rows])
        self.offsets.extend(offsets)
        self.ends.extend(offsets[1:])
        self.ends.append(run.end)
        self.crcs.extend(array("I", [row[2] for row in rows]))
        self.compressed_sizes.extend(array("Q", [row[3] for row in rows]))
        self.sizes.extend(array("Q", [row[4] for row in rows]))
        self.name_hashes.extend(array("q", map(hash, plain_names(run))))
        entries = encode_plain_entries(run)
        if entries is not None:
            crc = crc32(memoryview(run.data)[rows[0][0] : run.end - base])
            plain = PlainRun(first, len(rows), self._entries.tell(), len(entries.data), entries.last, crc)
            for numbers, value in zip(self._plain, plain, strict=True):
                numbers.append(value)
            self._entries.write(entries.data)

    def plain_runs(self) -> Iterator[PlainRun]:
        """Yield the runs of members about which there is no question, in order."""
        return map(PlainRun._make, zip(*self._plain, strict=True))

    def plain_entries(self, run: PlainRun) -> bytes:
        """Return the directory entries of a run, with the offsets that its members have here."""
        self._entries.seek(run.entries_start)
        return self._entries.read(run.entries_length)

    def _add_gap(self, gap: Gap) -> None:
        if gap.kind == "directory":
            self._directory_ranges.append((gap.start, gap.length))
        elif gap.kind == "unknown":
            self._add_unknown(gap.start, gap.length)

    def _add_unknown(self, start: int, length: int) -> None:
        if self.gaps and sum(self.gaps[-1]) == start:
            self.gaps[-1] = self.gaps[-1][0], self.gaps[-1][1] + length
        elif len(self.gaps) < GAPS_KEPT:
            self.gaps.append((start, length))
        else:
            self.further_gaps += 1
            self.further_gap_bytes += length

    def _retract(self, nested: Nested) -> None:
        """Take back what was found in a range: it is what is left of a member that was a Zip itself."""
        end = nested.start + nested.length
        while len(self.offsets) and self.offsets[-1] >= nested.start:
            self._doubtful.pop(self.offsets[-1], None)
            for numbers in self._columns:
                numbers.pop()
        while self._plain[0] and self._plain[0][-1] + self._plain[1][-1] > len(self.offsets):
            # Of a run that began before, the rest is looked at one by one.
            for numbers in self._plain:
                numbers.pop()
        while len(self.damaged_offsets) and self.damaged_offsets[-1] >= nested.start:
            self.damaged_offsets.pop()
            self.damaged -= 1
        self.gaps = [gap for gap in self.gaps if sum(gap) <= nested.start or gap[0] >= end]
        self._directory_ranges = [part for part in self._directory_ranges if sum(part) <= nested.start]
        self._nested.append((nested.start, end))
        self._add_unknown(nested.start, nested.length)

    def damaged_members(self) -> Iterator[Found]:
        """Yield the members that are not whole."""
        position = 0
        while True:
            self._spool.seek(position)
            try:
                found: Found = pickle.load(self._spool)
            except EOFError:
                return
            position = self._spool.tell()
            if found.state not in _DAMAGED:
                continue
            number = bisect_right(self._nested, (found.offset, self.size)) - 1
            if number < 0 or found.offset >= self._nested[number][1]:
                yield found

    def _read_remains(self) -> None:
        prefix = None if self.directory is None else self.directory.prefix
        if self.directory is not None:
            self._directory_ranges = [(self.directory.offset, self.directory.length)]
        for start, length in self._directory_ranges:
            self.remains.read(start, length)
        first = min([*self.offsets[:1], *self.damaged_offsets[:1]], default=0)
        self.remains.settle(self._name_at, prefix=prefix, first=first)

    def _name_at(self, position: int) -> bytes | None:
        number = self.number_at(position)
        return None if number is None else self.header(number)[1].name

    def number_at(self, position: int) -> int | None:
        """Return the number of the member whose local header is at ``position``."""
        number = bisect_right(self.offsets, position) - 1
        return number if number >= 0 and self.offsets[number] == position else None

    def header(self, number: int) -> tuple[bytes, LocalHeader, str]:
        """Return the local header of a member as bytes and as values, with what is wrong with it.

        Of a damaged one, the values are as the scan mended them.
        """
        position = self.offsets[number]
        if position in self._doubtful:
            self._spool.seek(self._doubtful[position])
            found: Found = pickle.load(self._spool)
            # Where nothing but the signature was damaged, rear's checksum shows that the rest is right.
            return LOCAL_SIGNATURE + found.header_bytes[4:], found.header, found.reason
        length = local_header_length(self._ahead.read_on(position, LOCAL.size))
        data = self._ahead.read_on(position, length)
        return data, decode_local_header(data), ""

    def is_doubtful(self, number: int) -> bool:
        """Whether a member's header is damaged, so that its name may be wrong."""
        return self.offsets[number] in self._doubtful

    def doubtful_empty_members(self) -> list[int]:
        """Return the members of which nothing but a damaged header says that they are empty."""
        numbers = (self.number_at(offset) for offset in self._doubtful)
        return [number for number in numbers if number is not None and not self.sizes[number]]

    def facts(self, number: int) -> Facts:
        """Return sizes and CRC-32 of a member, as its data has them."""
        return Facts(self.crcs[number], self.compressed_sizes[number], self.sizes[number])

    def comment(self) -> bytes:
        """Return the archive comment, as far as there is an end record whose comment ends with the file (4.3.16)."""
        if self.directory is not None:
            return self.directory.comment
        start = max(0, self.size - END.size - LIMIT_16)
        tail = self.storage.read(self.descriptor, self.size - start, start)
        position = tail.rfind(END_SIGNATURE)
        while position >= 0:
            comment = tail[position + END.size :]
            if len(comment) == int.from_bytes(tail[position + END.size - 2 : position + END.size], "little"):
                return comment
            position = tail.rfind(END_SIGNATURE, 0, position + len(END_SIGNATURE) - 1)
        return b""
