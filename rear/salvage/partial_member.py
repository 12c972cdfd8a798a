"""What is left of a damaged member, and where it ends.

Recorded bounds are believed when a boundary follows them, when a checksum covers the header, or while nothing refutes
them. A whole member that lies across a recorded end refutes it. Only where bounds are not believed is a member inside
them a member of this archive.
"""

from __future__ import annotations

import re
from typing import Final

from rear.salvage.local_headers import (
    DIRECTORY_PATTERN,
    LOCAL_PATTERN,
    Facts,
    descriptor_length,
    facts_of,
    is_boundary,
    is_damaged_boundary,
    local_header,
)
from rear.salvage.nested_archives import Membership
from rear.salvage.scan_result import Claim, Verdict, damaged, doubted, intact, unread
from rear.salvage.streams import NOTHING_DECODED, Decoded, crc_of, recovery_cost_bytes, without_zero_tail
from rear.salvage.whole_member import Wholeness
from rear.zip.codecs import STORED, crc32
from rear.zip.structures import DESCRIPTOR_LAYOUTS, DESCRIPTOR_SIGNATURE, LIMIT_32
from rear.zip.window import Window

#: Of a torn member so many zeros may be missing that its CRC-32 proves them.
_MISSING_ZEROS_LIMIT_BYTES: Final = 1 << 20
_DESCRIPTOR_PATTERN: Final = re.compile(DESCRIPTOR_SIGNATURE)


class Fragments:
    """Judges members that are not whole."""

    def __init__(self, window: Window, whole: Wholeness, membership: Membership) -> None:
        self._window = window
        self._whole = whole
        self._membership = membership

    def left_of(self, claim: Claim, reason: str) -> Verdict | None:
        """Return the verdict on a member that is not whole; ``None`` when it is none.

        ``reason`` says why its data cannot be decoded here, and is empty where it can.
        """
        if claim.has_sizes and claim.is_unresolved:
            return self._unresolved(claim, reason)
        if reason:
            return self._closed(claim, reason)
        if claim.has_sizes:
            return self._damaged(claim)
        return self._damaged_with_descriptor(claim)

    def _unresolved(self, claim: Claim, reason: str) -> Verdict | None:
        """Judge a member whose Zip64 field, which has the length of its data, is damaged."""
        said, start = claim.header, claim.data_offset
        if not (claim.is_proven or claim.is_backed):
            return None
        if not said.crc and not reason:
            compressed_size = size = 0
        elif said.method == STORED or reason:
            compressed_size = self._next_boundary(start) - start
            size = compressed_size if said.method == STORED or said.size == LIMIT_32 else said.size
        else:
            decoded = self._whole.stream(claim)
            end = start + decoded.consumed
            compressed_size = (end if decoded.ended else self._next_boundary(end)) - start
            size = decoded.size
        found = claim._replace(header=said._replace(compressed_size=compressed_size, size=size))
        verdict = self._closed(found, reason) if reason else self._damaged(found)
        if verdict is None:
            return None
        return verdict._replace(reason=f"its local header does not tell the length of its data; {verdict.reason}")

    def _damaged(self, claim: Claim) -> Verdict | None:
        header, start, limit = claim.header, claim.data_offset, self._window.end
        decoded = NOTHING_DECODED if header.method == STORED else self._whole.stream(claim)
        if self._is_stream_better(claim, decoded):
            header = header._replace(compressed_size=decoded.consumed)
            claim = claim._replace(header=header)
        end = self._extent(claim, claim.end, decoded.consumed)
        if end is None:
            return None
        data_end, torn = min(end, claim.end), ""
        if header.method == STORED:
            recoverable = without_zero_tail(self._window, start, data_end)
            found_crc = crc_of(self._window, start, data_end)
            reason = f"CRC-32 {found_crc:08x} instead of {header.crc:08x}"
            missing = claim.end - data_end if end == limit else 0
            if 0 < missing <= _MISSING_ZEROS_LIMIT_BYTES and crc32(bytes(missing), found_crc) == header.crc:
                recoverable, torn = header.compressed_size, "; with zeros up to there its CRC-32 is right"
        else:
            decoded = self._up_to(claim, decoded, data_end)
            recoverable = min(decoded.size, header.size)
            reason = decoded.reason
            if reason and (decoded.size, decoded.crc) == (header.size, header.crc) and header.size:
                reason += "; all of its data has the right CRC-32, so a checksum or size inside its stream is damaged"
            reason = reason or (
                f"{decoded.size:,} bytes with CRC-32 {decoded.crc:08x} instead of {header.size:,} with {header.crc:08x}"
            )
        if not (header.compressed_size or header.size):
            reason = f"nothing at {start:,} shows that it is empty"
        elif claim.end > limit and end == limit:
            reason = f"its data should end at {claim.end:,}, the file ends at {limit:,}{torn}"
        elif end < claim.end:
            reason = f"its data should end at {claim.end:,}, but the next member begins at {end:,}; {reason}"
        believed = (
            claim.is_proven
            or claim.is_backed
            or is_boundary(self._window, end)
            or (header.size == header.compressed_size if header.method == STORED else recoverable > 0)
        )
        if not believed:
            return None
        verdict = damaged(header, Facts(header.crc, data_end - start, header.size), end, reason, recoverable)
        return verdict if header.compressed_size or header.size else doubted(verdict, reason)

    def _up_to(self, claim: Claim, decoded: Decoded, end: int) -> Decoded:
        """Return what decodes up to ``end``: what came from behind its data is not its own."""
        keeps_back = recovery_cost_bytes(claim.header.method, 1) > 0 and not decoded.ended
        if claim.data_offset + decoded.consumed <= end and not keeps_back:
            return decoded
        return self._whole.stream(claim, end)

    def _is_stream_better(self, claim: Claim, decoded: Decoded) -> bool:
        """Tell whether the end of its stream tells the length of a damaged member better than its header does."""
        if claim.is_proven or not (decoded.ended and decoded.size) or self._whole.has_boundary(claim):
            return False
        if decoded.size == claim.header.size:
            return True
        is_possible = decoded.size < claim.header.size or not claim.header.size
        return is_possible and is_boundary(self._window, claim.data_offset + decoded.consumed)

    def _damaged_with_descriptor(self, claim: Claim) -> Verdict | None:
        """Judge a member whose sizes stand behind its data, which is damaged."""
        header, start = claim.header, claim.data_offset
        decoded = NOTHING_DECODED if header.method == STORED else self._whole.stream(claim)
        for found in self._whole.search.candidates(start):
            facts = found.facts
            if not found.followed or (header.method == STORED and facts.size != facts.compressed_size):
                continue
            is_crossed = found.position < start + decoded.consumed
            if is_crossed and self._up_to(claim, decoded, found.position).size < facts.size:
                continue
            if header.method == STORED:
                recoverable = without_zero_tail(self._window, start, found.position)
                crc = crc_of(self._window, start, found.position)
            elif decoded.ended and decoded.facts[:2] == facts[:2]:
                reason = f"its data descriptor says {facts.size:,} bytes; {decoded.size:,} have the right CRC-32"
                return intact(header, decoded.facts, found.end, reason)
            else:
                decoded = self._up_to(claim, decoded, found.position)
                recoverable, crc = min(decoded.size, facts.size), decoded.crc
            reason = decoded.reason or f"CRC-32 {crc:08x} instead of {facts.crc:08x} in its data descriptor"
            return damaged(header, facts, found.end, reason, recoverable)
        if not (claim.is_backed or decoded.size):
            return None
        if header.method == STORED:
            return self._stored_without_descriptor(claim)
        if decoded.ended:
            data_end = start + decoded.consumed
            end, proven = self._damaged_descriptor(data_end, decoded.crc)
            reason = f"no data descriptor at {data_end:,} that fits its data, whose CRC-32 is {decoded.crc:08x}"
            return Verdict(header, decoded.facts, end, "unverified" if proven else "partial", reason, decoded.size)
        end = self._next_boundary(start + decoded.consumed)
        decoded = self._up_to(claim, decoded, end)
        reason = decoded.reason or "no data descriptor fits its data"
        size = header.size or decoded.size
        return damaged(header, Facts(decoded.crc, end - start, size), end, reason, min(size, decoded.size))

    def _damaged_descriptor(self, position: int, crc: int) -> tuple[int, bool]:
        """Return where a damaged descriptor at ``position`` ends, and whether it says the CRC-32 that is expected."""
        end, proven = position, False
        for signature, layout in DESCRIPTOR_LAYOUTS:
            values = self._window.read(position, len(signature) + layout.size)
            if len(values) < len(signature) + layout.size:
                if signature and values.startswith(signature + crc.to_bytes(4, "little")):
                    # Torn at the end of the file.
                    end, proven = self._window.end, True
                continue
            if values[len(signature) : len(signature) + 4] == crc.to_bytes(4, "little"):
                proven = True
            elif not signature or not values.startswith(signature):
                continue
            if end == position or is_boundary(self._window, position + len(values)):
                end = position + len(values)
        return end, proven

    def _stored_without_descriptor(self, claim: Claim) -> Verdict:
        """Judge a stored member whose descriptor is damaged or missing: what is behind the next boundary is not its."""
        header, start = claim.header, claim.data_offset
        end = self._next_boundary(start)
        verdict = self._by_descriptor_crc(claim, end)
        if verdict is not None:
            return verdict
        data_end = start + header.compressed_size if header.compressed_size else end
        if not header.compressed_size or data_end > end:
            data_end = end
            for signature, layout in DESCRIPTOR_LAYOUTS:
                position = end - len(signature) - layout.size
                values = self._window.read(position, len(signature) + layout.size)
                if position < start:
                    continue
                crc = crc_of(self._window, start, position)
                if values[len(signature) : len(signature) + 4] == crc.to_bytes(4, "little"):
                    reason = "its data descriptor has the right CRC-32, but wrong sizes or a wrong signature"
                    return intact(header, Facts(crc, position - start, position - start), end, reason)
                if signature and values.startswith(signature):
                    data_end = position
            if data_end == end:
                tail = self._window.read(max(start, end - 24), min(24, end - start))
                torn = tail.rfind(DESCRIPTOR_SIGNATURE)
                if torn < 0 and end == self._window.end:
                    # One letter may well be data.
                    torn = next((len(tail) - n for n in (3, 2) if tail.endswith(DESCRIPTOR_SIGNATURE[:n])), -1)
                data_end = end if torn < 0 else end - len(tail) + torn
        recoverable = without_zero_tail(self._window, start, data_end)
        crc = crc_of(self._window, start, data_end)
        reason = f"no data descriptor fits its data, whose CRC-32 is {crc:08x}"
        facts = Facts(crc, data_end - start, max(header.size, recoverable))
        return damaged(header, facts, end, reason, recoverable)

    def _by_descriptor_crc(self, claim: Claim, limit: int) -> Verdict | None:
        """Find the first descriptor up to ``limit`` that says the CRC-32 of all data before it, whatever its sizes."""
        window, position, crc = self._window, claim.data_offset, 0
        for at in window.matches(_DESCRIPTOR_PATTERN, position, limit):
            crc, position = crc_of(window, position, at, crc), at
            size = at - claim.data_offset
            if window.read(at + 4, 4) != crc.to_bytes(4, "little"):
                continue
            ends = [at + 4 + layout.size for signature, layout in DESCRIPTOR_LAYOUTS[1::-1] if signature]
            end = next((end for end in ends if is_damaged_boundary(window, end)), min(ends[0], limit))
            # What is empty has no checksum: all of its descriptor has to be right.
            if not size and any(window.read(at + 8, end - at - 8)):
                continue
            reason = "its data descriptor has the right CRC-32, but is damaged, or the header behind it is"
            return intact(claim.header, Facts(crc, size, size), end, reason)
        return None

    def _closed(self, claim: Claim, reason: str) -> Verdict | None:
        """Judge a member whose data cannot be decoded here: only its bounds count."""
        header, start, limit = claim.header, claim.data_offset, self._window.end
        verdict = self._whole.bounded(claim, reason)
        if verdict is not None:
            return verdict
        if claim.has_sizes:
            if not (claim.is_proven or claim.is_backed):
                return None
            end = self._extent(claim, claim.end, 0)
            if end is None:
                return None
            if claim.end <= end:
                return unread(header, facts_of(header), end, f"{reason}; nothing recognisable follows it at {end:,}")
            what = f"the file ends at {limit:,}" if end == limit else f"the next member begins at {end:,}"
            reason = f"its data should end at {claim.end:,}, {what}; {reason}"
            return damaged(header, Facts(header.crc, end - start, header.size), end, reason, 0)
        if not claim.is_backed:
            return None
        end = self._next_boundary(start)
        reason = f"no data descriptor tells where its data ends; {reason}"
        return damaged(header, Facts(header.crc, end - start, header.size), end, reason, 0)

    def _extent(self, claim: Claim, recorded: int, consumed: int) -> int | None:
        """Return where a damaged member ends whose data should end at ``recorded``."""
        limit = self._window.end
        end = min(recorded, limit)
        if claim.header.has_descriptor and recorded <= limit:
            end += descriptor_length(self._window, end, facts_of(claim.header))
        if claim.is_proven or (recorded <= limit and is_boundary(self._window, end)):
            return end
        is_consistent = claim.header.method == STORED and claim.header.size == claim.header.compressed_size
        is_refuted = recorded > limit and not is_consistent
        first, crosses = self._inner(claim.data_offset + consumed, end, stop=not claim.is_expected, empty=is_refuted)
        if first is not None and (crosses or not claim.is_expected or is_refuted):
            return first
        return end

    def _inner(self, start: int, end: int, *, stop: bool, empty: bool = False) -> tuple[int | None, bool]:
        """Look for whole members in a range; return where the first begins, and whether one goes on past the end.

        With ``stop`` the first one is enough; with ``empty`` one without data counts, too.
        """
        if self._whole.budget_bytes < 0:
            return None, False
        self._whole.budget_bytes -= end - start
        first, position = None, start
        for at in self._window.matches(LOCAL_PATTERN, start, end):
            if at < position:
                continue
            found = local_header(self._window, at)
            if found is None or found[2]:
                continue
            answer = self._membership.of(found[0], found[1]).answer
            if answer == "yes":
                return (at if first is None else first), True
            if answer == "no":
                continue
            inner = Claim(at, found[0], False, False, None)
            reason = self._whole.why_unreadable(inner.header)
            verdict = self._whole.bounded(inner, reason) if reason else self._whole.whole(inner)
            if verdict is None or (verdict.state != "whole" and not reason):
                continue
            if not (verdict.facts.compressed_size or empty):
                continue
            first = at if first is None else first
            position = verdict.end
            if stop or position > end:
                return first, position > end
        return first, False

    def _next_boundary(self, start: int) -> int:
        """Return where a member has to have ended that goes on at ``start``, and of which no length is known."""
        first, _ = self._inner(start, self._window.end, stop=True, empty=True)
        end = self._window.end if first is None else first
        for at in self._window.matches(DIRECTORY_PATTERN, start, end):
            if is_boundary(self._window, at):
                return at
        return end
