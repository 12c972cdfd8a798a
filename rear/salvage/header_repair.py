"""Repairs of damaged local headers: other readings of one are tried until its data has the size and CRC-32 of it.

The readings: what the directory says, one wrong bit in flags, method or lengths, sizes that the data itself shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rear.salvage.local_headers import (
    BOUNDARY_PATTERN,
    Facts,
    descriptor_length,
    facts_of,
    is_boundary,
    is_damaged_boundary,
)
from rear.salvage.scan_result import Claim, Verdict, doubted, intact
from rear.salvage.streams import crc_of
from rear.salvage.whole_member import Wholeness
from rear.zip.codecs import BZIP2, DEFLATE64, DEFLATED, LZMA, METHOD_NAMES, STORED, ZSTANDARD
from rear.zip.headers import CentralEntry, LocalHeader, decode_local_header
from rear.zip.structures import FLAG_DESCRIPTOR, FLAG_ENCRYPTED, LIMIT_16, LOCAL, LOCAL_SIGNATURE
from rear.zip.window import Window

_STREAMS: Final = (DEFLATED, DEFLATE64, BZIP2, LZMA, ZSTANDARD)


class Mending:
    """Finds members whose data is whole although their header, or their descriptor, is damaged."""

    def __init__(self, window: Window, whole: Wholeness) -> None:
        self._window = window
        self._whole = whole

    def mended(self, claim: Claim) -> Verdict | None:
        """Return the verdict on a member whose data is whole although its header, or its descriptor, is damaged."""
        is_readable = not self._whole.why_unreadable(claim.header)
        # What a CRC-32 proves comes first; that a member is empty is proven by what follows alone.
        entry = claim.entry
        is_listed_first = entry is not None and (entry.compressed_size or entry.name_bytes == claim.header.name)
        verdict = self._by_directory(claim) if is_listed_first else None
        verdict = verdict or self._by_flags(claim) or self._by_next_signature(claim) or self._by_lengths(claim)
        if verdict is None and not is_listed_first:
            verdict = self._by_directory(claim)
        if verdict is not None or not is_readable:
            return verdict
        if not claim.has_sizes:
            return None
        if claim.header.method == STORED:
            return self._stored(claim)
        return self._stream(claim)

    def _by_directory(self, claim: Claim) -> Verdict | None:
        entry = claim.entry
        if entry is None or entry.is_encrypted or entry.method not in (STORED, *_STREAMS):
            return None
        facts = facts_of(entry)
        if not self._whole.decodes(claim, entry.method, facts):
            return None
        said = claim.header
        header = said._replace(method=entry.method, flags=entry.flags, **facts._asdict())
        reason = f"its local header says {_describe(said)}; the central directory {_describe(header)}, as is found"
        if header == said and not header.has_descriptor:
            reason = ""
        return self._found(claim, header, reason)

    def _found(self, claim: Claim, header: LocalHeader, reason: str) -> Verdict:
        """Return the verdict on data that fits this header, with the descriptor behind it, if there is one."""
        facts, end = facts_of(header), claim.data_offset + header.compressed_size
        if header.has_descriptor:
            end += descriptor_length(self._window, end, facts)
        return intact(header, facts, end, reason)

    def _by_flags(self, claim: Claim) -> Verdict | None:
        """Try what one wrong bit in flags or method would explain."""
        said = claim.header
        if said.flags & FLAG_ENCRYPTED:
            plain = claim._replace(header=said._replace(flags=said.flags & ~FLAG_ENCRYPTED))
            verdict = self._whole.whole(plain)
            if verdict is not None and verdict.facts.size:
                return doubted(verdict, "its local header says that it is encrypted, but it is not")
        if not any(facts_of(said)) and not said.has_descriptor:
            verdict = self._whole.whole(claim._replace(header=said._replace(flags=said.flags | FLAG_DESCRIPTOR)))
            if verdict is not None:
                return doubted(verdict, "its local header says that it is empty; a data descriptor says otherwise")
        if said.flags & FLAG_ENCRYPTED or (claim.has_sizes and said.size == 0):
            return None
        for method in (STORED, *_STREAMS):
            if (method ^ said.method).bit_count() != 1 or (method == STORED and said.size != said.compressed_size):
                continue
            verdict = self._whole.whole(claim._replace(header=said._replace(method=method)))
            if verdict is not None:
                reason = (
                    f"its local header says compression method {said.method}, but its data is {METHOD_NAMES[method]}"
                )
                return doubted(verdict, reason)
        return None

    def _by_next_signature(self, claim: Claim) -> Verdict | None:
        """Believe a header that says that the member is empty when the next one begins there, damaged as it may be."""
        header = claim.header
        is_empty = not (any(facts_of(header)) or header.has_descriptor)
        if not is_empty or header.flags & FLAG_ENCRYPTED or not claim.is_backed:
            return None
        if not is_damaged_boundary(self._window, claim.end):
            return None
        return intact(header, facts_of(header), claim.end, f"the header that follows it at {claim.end:,} is damaged")

    def _by_lengths(self, claim: Claim) -> Verdict | None:
        """Try what one wrong bit in the length of name or extra area would explain."""
        unreadable = self._whole.why_unreadable(claim.header)
        if unreadable and claim.entry is not None and claim.header.name != claim.entry.name_bytes:
            verdict = self._unreadable_as_listed(claim, claim.entry, unreadable)
            if verdict is not None:
                return verdict
        if unreadable and (not claim.has_sizes or self._whole.has_boundary(claim)):
            return None
        best = None
        for mended in self._other_lengths(claim):
            if self._whole.budget_bytes < 0:
                break
            verdict = None
            entry = claim.entry
            if entry is not None and entry.compressed_size and mended.header.name == entry.name_bytes:
                verdict = self._by_directory(mended)
            if verdict is None and self._may_end_right(claim, mended.data_offset):
                if unreadable and mended.end < self._window.end:
                    verdict = self._whole.unread(mended, unreadable)
                else:
                    verdict = self._whole.whole(mended)
            # Data with the right CRC-32 proves its lengths; of what is empty, the shortest takes nothing from others.
            if verdict is not None and (best is None or verdict.end < best.end):
                best = verdict
            if verdict is not None and verdict.facts.compressed_size:
                break
        if best is None:
            return None
        return doubted(best, "its local header is damaged: the lengths of name or extra area are wrong")

    def _unreadable_as_listed(self, claim: Claim, entry: CentralEntry, unreadable: str) -> Verdict | None:
        """Return the reading that has the name of the directory, if a boundary is where the directory says."""
        for mended in self._other_lengths(claim):
            if mended.header.name == entry.name_bytes:
                header = mended.header._replace(**facts_of(entry)._asdict())
                verdict = self._whole.unread(mended._replace(header=header, is_listed=True), unreadable)
                if verdict is not None:
                    return doubted(verdict, f"its local header is damaged: the lengths are wrong; {unreadable}")
        return None

    def _other_lengths(self, claim: Claim) -> Iterator[Claim]:
        """Yield the claim with one bit of its lengths changed, for each bit with which it may end right."""
        window, entry = self._window, claim.entry
        head = window.read(claim.position, LOCAL.size)
        for bit in range(32):
            lengths = int.from_bytes(head[26:30], "little") ^ 1 << bit
            name_length, length = lengths & LIMIT_16, (lengths & LIMIT_16) + (lengths >> 16)
            start = claim.position + LOCAL.size + length
            is_listed = entry is not None and len(entry.name_bytes) == name_length
            if not name_length or start > window.end or not (is_listed or self._may_end_right(claim, start)):
                continue
            variable = window.read(claim.position + LOCAL.size, length)
            if b"\0" not in variable[:name_length]:
                found = LOCAL_SIGNATURE + head[4:26] + lengths.to_bytes(4, "little") + variable
                yield claim._replace(header=decode_local_header(found))

    def _may_end_right(self, claim: Claim, start: int) -> bool:
        """Tell, before data is read, whether it may begin at ``start``."""
        header = claim.header
        if claim.has_sizes and not header.has_descriptor:
            return is_boundary(self._window, start + header.compressed_size)
        if claim.has_sizes or header.method != STORED:
            return True
        # Of members whose end has to be looked for, only empty ones.
        length = descriptor_length(self._window, start, Facts(0, 0, 0))
        return length > 0 and not header.size and is_boundary(self._window, start + length)

    def _stored(self, claim: Claim) -> Verdict | None:
        said, start = claim.header, claim.data_offset
        sizes = {said.compressed_size, said.size} if said.compressed_size != said.size else set()
        for size in sorted(sizes):
            if self._whole.decodes(claim, STORED, Facts(said.crc, size, size)):
                return self._with_sizes(claim, size, size)
        end = min(claim.end, self._window.end)
        if (claim.end <= end and is_boundary(self._window, claim.end)) or self._whole.budget_bytes < 0:
            return None
        self._whole.budget_bytes -= end - start
        position, crc = start, 0
        for boundary in self._window.matches(BOUNDARY_PATTERN, start, end):
            crc, position = crc_of(self._window, position, boundary, crc), boundary
            if crc == said.crc and boundary > start and is_boundary(self._window, boundary):
                return self._with_sizes(claim, boundary - start, boundary - start)
        if end == self._window.end and crc_of(self._window, position, end, crc) == said.crc and end > start:
            return self._with_sizes(claim, end - start, end - start)
        return None

    def _stream(self, claim: Claim) -> Verdict | None:
        decoded = self._whole.stream(claim)
        if decoded.ended and decoded.crc == claim.header.crc and (decoded.size or not claim.header.size):
            return self._with_sizes(claim, decoded.consumed, decoded.size)
        return None

    def _with_sizes(self, claim: Claim, compressed_size: int, size: int) -> Verdict:
        said = claim.header
        header = said._replace(compressed_size=compressed_size, size=size)
        reason = (
            f"its local header says {said.compressed_size:,} bytes of data for {said.size:,}; "
            f"{compressed_size:,} bytes have the right CRC-32"
        )
        return self._found(claim, header, reason)


def _describe(header: LocalHeader) -> str:
    return (
        f"method {header.method}, {header.compressed_size:,} bytes of data for {header.size:,}, CRC-32 {header.crc:08x}"
    )
