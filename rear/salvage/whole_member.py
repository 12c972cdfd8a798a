"""Is all of a member there? Its local header and the data behind it, compared.

Data is read again for each way to read a damaged header. What that may cost has a limit, so that a forged archive takes
a time that grows with its length.
"""

from __future__ import annotations

from typing import Final

from rear.errors import UnsupportedError
from rear.salvage.data_descriptors import DescriptorSearch
from rear.salvage.local_headers import Facts, descriptor_length, facts_of, is_boundary
from rear.salvage.scan_result import Claim, Verdict, intact, unread, why_unreadable
from rear.salvage.streams import Decoded, crc_of, decode_stream, decodes_to, recovery_cost_bytes
from rear.zip.codecs import STORED
from rear.zip.headers import LocalHeader
from rear.zip.structures import FLAG_ENCRYPTED
from rear.zip.window import Window

#: Data of members that turn out not to be whole is read this often at most, on the average over the archive.
_READ_AGAIN_LIMIT: Final = 8
_READ_AGAIN_BYTES: Final = 64 << 20
_SMALL_BYTES: Final = 1 << 16


class Wholeness:
    """Tells of one local header after the other whether the member is whole.

    Attributes:
        budget_bytes: what may still be read again; below 0, nothing large is.
        search: finds data descriptors.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self.search = DescriptorSearch(window)
        self.budget_bytes = (window.end - window.start) * _READ_AGAIN_LIMIT + _READ_AGAIN_BYTES
        self._unreadable: dict[int, str] = {}

    def why_unreadable(self, header: LocalHeader) -> str:
        """Like the function of that name, quick for many members."""
        key = header.method << 1 | header.flags & FLAG_ENCRYPTED
        reason = self._unreadable.get(key)
        if reason is None:
            reason = self._unreadable[key] = why_unreadable(header)
        return reason

    def whole(self, claim: Claim) -> Verdict | None:
        """Return the verdict on a member that is all right, else ``None``."""
        header, window, facts = claim.header, self._window, facts_of(claim.header)
        if self.why_unreadable(header):
            return None
        if not claim.has_sizes:
            return self._whole_with_descriptor(claim)
        end = claim.end
        if end > window.end:
            return None
        if not any(facts):
            # All zeros would also be what a lost descriptor flag leaves.
            if not claim.is_proven and not is_boundary(window, end):
                return None
        elif not self.decodes(claim, header.method, facts):
            return None
        return self._with_descriptor(claim, facts) if header.has_descriptor else intact(header, facts, end)

    def _with_descriptor(self, claim: Claim, facts: Facts) -> Verdict:
        """Return the verdict on whole data that a descriptor ought to follow."""
        end = claim.data_offset + facts.compressed_size
        length = descriptor_length(self._window, end, facts)
        reason = "" if length else f"no data descriptor at {end:,}, where its flags announce one"
        return intact(claim.header, facts, end + length, reason)

    def decodes(self, claim: Claim, method: int, facts: Facts) -> bool:
        """Tell whether all data of that size decodes to that plain size and CRC-32."""
        length = facts.compressed_size
        end = claim.data_offset + length
        if end > self._window.end or (length == 0 and not is_boundary(self._window, end)):
            return False
        if self.budget_bytes < 0 and length > _SMALL_BYTES and not is_boundary(self._window, end):
            return False
        try:
            if decodes_to(self._window, method, claim.data_offset, end, size=facts.size, crc=facts.crc):
                return True
        except UnsupportedError:
            pass
        self.budget_bytes -= length
        return False

    def _whole_with_descriptor(self, claim: Claim) -> Verdict | None:
        entry = claim.entry
        if entry is not None and self.decodes(claim, claim.header.method, facts_of(entry)):
            return self._with_descriptor(claim, facts_of(entry))
        if claim.header.method == STORED:
            return self._stored_with_descriptor(claim)
        decoded = self.stream(claim)
        if decoded.ended:
            end = claim.data_offset + decoded.consumed
            length = descriptor_length(self._window, end, decoded.facts)
            if length:
                self.budget_bytes += decoded.consumed
                return intact(claim.header, decoded.facts, end + length)
        return None

    def _stored_with_descriptor(self, claim: Claim) -> Verdict | None:
        """Find the descriptor that has the right distance, and whose CRC-32 is that of the bytes before it."""
        position, crc = claim.data_offset, 0
        for found in self.search.candidates(claim.data_offset):
            facts = found.facts
            if facts.size != facts.compressed_size or found.position < position:
                continue
            if self.budget_bytes < 0 and found.position - position > _SMALL_BYTES:
                return None
            self.budget_bytes -= found.position - position
            crc = crc_of(self._window, position, found.position, crc)
            position = found.position
            if crc == facts.crc and (facts.size or found.followed):
                self.budget_bytes += facts.size
                return intact(claim.header, facts, found.end)
        return None

    def stream(self, claim: Claim, end: int | None = None) -> Decoded:
        """Decode from where the data begins to where its stream ends, whatever the header says of its length.

        Where ``end`` says that it has to have ended there, what decoders keep back is looked for, too.
        """
        start, limit = claim.data_offset, self._window.end if end is None else end
        recovers = end is not None and self.budget_bytes >= 0
        if self.budget_bytes < 0:
            limit = min(limit, start + _SMALL_BYTES)
        decoded = decode_stream(self._window, claim.header.method, start, limit, trust_checks=not recovers)
        self.budget_bytes -= decoded.consumed
        if recovers and not decoded.ended:
            self.budget_bytes -= recovery_cost_bytes(claim.header.method, limit - start)
        return decoded

    def unread(self, claim: Claim, reason: str) -> Verdict | None:
        """Return the verdict on a member whose data is not read: its bounds have to be beyond doubt."""
        header = claim.header
        end = claim.end
        if header.has_descriptor:
            end += descriptor_length(self._window, end, facts_of(header))
        if end > self._window.end or not (claim.is_proven or is_boundary(self._window, end)):
            return None
        if header.method == STORED and header.size != header.compressed_size and not header.flags & FLAG_ENCRYPTED:
            return None
        if not header.compressed_size and header.size:
            return None
        return unread(header, facts_of(header), end, reason)

    def bounded(self, claim: Claim, reason: str) -> Verdict | None:
        """Return the verdict on a member of which nothing but the bounds can be known, if these are beyond doubt."""
        header = claim.header
        if claim.has_sizes:
            verdict = self.unread(claim, reason)
            if verdict is not None or not header.has_descriptor:
                return verdict
        best = None
        for found in self.search.candidates(claim.data_offset):
            if found.followed and (found.facts.compressed_size or not found.facts.size):
                best = found
                break
            # The right distance is evidence enough when the next header is damaged.
            if found.facts.compressed_size and (best is None or (found.marked and not best.marked)):
                best = found
        if best is None:
            return None
        if claim.has_sizes and best.facts.compressed_size != header.compressed_size:
            said = f"its local header says {header.compressed_size:,} bytes of data"
            reason = f"{said}, its data descriptor {best.facts.compressed_size:,}; {reason}"
            header = header._replace(**best.facts._asdict())
        return unread(header, best.facts, best.end, reason)

    def has_boundary(self, claim: Claim) -> bool:
        """Tell whether a boundary, or the right descriptor, follows the recorded end."""
        if is_boundary(self._window, claim.end):
            return True
        facts = facts_of(claim.header)
        return facts.compressed_size > 0 and descriptor_length(self._window, claim.end, facts) > 0

    def has_descriptor(self, claim: Claim) -> bool:
        """Tell whether a descriptor with the right distance, and a boundary behind it, follow the data."""
        return any(
            found.followed and found.facts.compressed_size for found in self.search.candidates(claim.data_offset)
        )
