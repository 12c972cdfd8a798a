"""The judgement on one local header and the data behind it: whole, mended, or what is left of it.

What a damaged archive says of itself contradicts itself somewhere, so each statement is weighed against others:

* A CRC-32 that is right over a stretch of data proves the stretch, whatever sizes the header names.
* A stream that ends by itself (all methods but stored) tells its length better than a size field.
* Recorded bounds are believed when a boundary follows them, when a checksum covers the header, or while nothing refutes
  them.
"""

from __future__ import annotations

from rear.salvage.header_repair import Mending
from rear.salvage.local_headers import facts_of, is_boundary
from rear.salvage.nested_archives import Membership
from rear.salvage.partial_member import Fragments
from rear.salvage.scan_result import UNREAD, Claim, Verdict
from rear.salvage.whole_member import Wholeness
from rear.zip.window import Window


class Examiner:
    """Judges one local header after the other."""

    def __init__(self, window: Window, membership: Membership, *, read_data: bool) -> None:
        self._window = window
        self._read_data = read_data
        self._whole = Wholeness(window)
        self._mending = Mending(window, self._whole)
        self._fragments = Fragments(window, self._whole, membership)

    def examine(self, claim: Claim) -> Verdict | None:
        """Return what is to be thought of a member; ``None`` when that is none."""
        if not self._read_data and claim.has_sizes:
            verdict = self._whole.unread(claim, UNREAD)
            if verdict is not None:
                return verdict
        verdict = self._whole.whole(claim)
        if verdict is None and not claim.is_proven:
            verdict = self._mending.mended(claim)
        if verdict is not None:
            return verdict
        return self._fragments.left_of(self._settled(claim), self._whole.why_unreadable(claim.header))

    def proven(self, claim: Claim) -> Verdict | None:
        """Return the verdict on a member if a boundary follows data that has the right CRC-32, else ``None``."""
        header = claim.header
        if not (self._read_data and header.crc and header.compressed_size) or not is_boundary(self._window, claim.end):
            return None
        return self._whole.whole(claim)

    def _settled(self, claim: Claim) -> Claim:
        """Return the claim with the sizes of the central directory, where these are the better ones."""
        entry, header = claim.entry, claim.header
        if entry is None or claim.is_proven:
            return claim
        recorded = header._replace(flags=entry.flags, **facts_of(entry)._asdict())
        listed = claim._replace(header=recorded, is_proven=True, is_listed=True)
        if recorded == header or claim.is_unresolved:
            return listed if listed.end <= self._window.end else claim
        if self._whole.has_boundary(listed):
            return claim if claim.has_sizes and self._whole.has_boundary(claim) else listed
        if claim.has_sizes or listed.end > self._window.end or self._whole.has_descriptor(claim):
            return claim
        return listed
