"""Is a member whole, and if not, what is left of it: the judgement on one local header and the data behind it.

What a damaged archive says of itself contradicts itself somewhere, so each statement is weighed against others:

* A CRC-32 that is right over a stretch of data proves the stretch, whatever sizes the header names.
* A stream that ends by itself (all methods but stored) tells its length better than a size field.
* Recorded bounds are believed when a boundary follows them, when a checksum covers the header, or while nothing refutes
  them. A whole member that lies across a recorded end refutes it.
* Only where bounds are not believed is a member inside them a member of this archive.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from rear.codecs import BZIP2, DEFLATE64, DEFLATED, LZMA, METHOD_NAMES, STORED, ZSTANDARD, StreamDecoder, crc32
from rear.descriptors import DescriptorSearch
from rear.errors import UnsupportedError
from rear.localheaders import (
    BOUNDARY_PATTERN,
    DESCRIPTOR_LAYOUTS,
    DESCRIPTOR_SIGNATURE,
    LOCAL_PATTERN,
    Belonging,
    descriptor_length,
    is_boundary,
    local_header,
)
from rear.streams import Decoded, crc_of, decode_stream, decodes_to, without_zero_tail
from rear.window import Window
from rear.zipformat import (
    FLAG_ENCRYPTED,
    LIMIT_16,
    LOCAL,
    LOCAL_SIGNATURE,
    CentralEntry,
    LocalHeader,
    decode_local_header,
)

State = Literal["whole", "unverified", "partial", "lost"]
BelongsTo = Callable[[int, LocalHeader, bytes], Belonging]

_DIRECTORY_PATTERN: Final = re.compile(rb"PK(?:\x01\x02|\x05\x06|\x06\x06)")
UNREAD: Final = "its data was not read"
#: Data of members that turn out not to be whole is read this often at most, on the average over the archive.
_READ_AGAIN_LIMIT: Final = 8
_READ_AGAIN_BYTES: Final = 64 << 20
_SMALL_BYTES: Final = 1 << 16
_STREAMS: Final = (DEFLATED, DEFLATE64, BZIP2, LZMA, ZSTANDARD)
_ODD_METHOD_NAMES: Final = {
    1: "shrink",
    6: "implode",
    95: "xz",
    97: "WavPack",
    98: "PPMd",
    99: "AES",
}


class Verdict(NamedTuple):
    """What is to be thought of a member; ``header`` is what its local header must have said before it was damaged."""

    header: LocalHeader
    crc: int
    compressed_size: int
    size: int
    end: int
    state: State
    reason: str
    recoverable_bytes: int


class Claim(NamedTuple):
    """A local header that may be one, and what speaks for it."""

    position: int
    header: LocalHeader
    #: A checksum covers the header: all of it is as it was written.
    is_proven: bool
    #: It stands where a header has to stand.
    is_expected: bool
    #: Its entry in the directory of this archive.
    entry: CentralEntry | None
    #: The sizes in ``header`` are those of the entry.
    is_listed: bool = False

    @property
    def data_offset(self) -> int:
        """Where the data begins."""
        return self.position + self.header.length

    @property
    def has_sizes(self) -> bool:
        """Whether the header tells how long the data is."""
        header = self.header
        # Some software writes sizes here, but the CRC-32 into the descriptor alone.
        return not header.has_descriptor or self.is_listed or bool(header.crc and header.compressed_size)

    @property
    def end(self) -> int:
        """Where the data ends as recorded."""
        return self.data_offset + self.header.compressed_size


def why_unreadable(header: LocalHeader) -> str:
    """Tell why the data of a member cannot be decoded here; nothing when it can."""
    if header.flags & FLAG_ENCRYPTED:
        return "its data is encrypted, so that its CRC-32 cannot be checked"
    if header.method == STORED:
        return ""
    try:
        StreamDecoder(header.method)
    except UnsupportedError as error:
        name = _ODD_METHOD_NAMES.get(header.method)
        return f"no codec for compression method {header.method} ({name})" if name else str(error)
    return ""


class Examiner:
    """Judges one local header after the other.

    Args:
        window: the archive.
        read_data: decode data whose bounds are beyond doubt.
        belongs: tells whether a local header is one of this archive, as far as can be told from itself.
    """

    def __init__(self, window: Window, *, read_data: bool, belongs: BelongsTo) -> None:
        self._window = window
        self._read_data = read_data
        self._belongs = belongs
        self._search = DescriptorSearch(window)
        self._budget = (window.end - window.start) * _READ_AGAIN_LIMIT + _READ_AGAIN_BYTES
        self._unreadable: dict[int, str] = {}

    def examine(self, claim: Claim) -> Verdict | None:
        """Return what is to be thought of a member; ``None`` when that is none."""
        if not self._read_data and claim.has_sizes:
            verdict = self._unread(claim, UNREAD)
            if verdict is not None:
                return verdict
        verdict = self.whole(claim)
        if verdict is not None:
            return verdict
        reason = self.why_unreadable(claim.header)
        if not claim.is_proven:
            verdict = self._mended(claim)
            if verdict is not None:
                return verdict
        claim = self._settled(claim)
        if reason:
            return self._closed(claim, reason)
        if claim.has_sizes:
            return self._damaged(claim)
        return self._damaged_with_descriptor(claim)

    def _settled(self, claim: Claim) -> Claim:
        """Return the claim with the sizes of the central directory, where these are the better ones."""
        entry, header = claim.entry, claim.header
        if entry is None or claim.is_proven:
            return claim
        recorded = header._replace(
            flags=entry.flags, crc=entry.crc, compressed_size=entry.compressed_size, size=entry.size
        )
        listed = claim._replace(header=recorded, is_proven=True, is_listed=True)
        if not claim.has_sizes or recorded == header:
            return listed if listed.end <= self._window.end else claim
        is_better = self._has_boundary(listed) and not self._has_boundary(claim)
        return listed if is_better else claim

    def _has_boundary(self, claim: Claim) -> bool:
        """Tell whether a boundary, or the right descriptor, follows the recorded end."""
        if is_boundary(self._window, claim.end):
            return True
        header = claim.header
        length = descriptor_length(
            self._window, claim.end, crc=header.crc, compressed_size=header.compressed_size, size=header.size
        )
        return length > 0 and header.compressed_size > 0

    def why_unreadable(self, header: LocalHeader) -> str:
        """Like the function of that name, quick for many members."""
        key = header.method << 1 | header.flags & FLAG_ENCRYPTED
        reason = self._unreadable.get(key)
        if reason is None:
            reason = self._unreadable[key] = why_unreadable(header)
        return reason

    def whole(self, claim: Claim) -> Verdict | None:
        """Return the verdict on a member that is all right, else ``None``."""
        header, window = claim.header, self._window
        if self.why_unreadable(header):
            return None
        if not claim.has_sizes:
            return self._whole_with_descriptor(claim)
        end = claim.end
        if end > window.end:
            return None
        if not (header.compressed_size or header.size or header.crc):
            # All zeros would also be what a lost descriptor flag leaves.
            if not claim.is_proven and not is_boundary(window, end):
                return None
        elif not self._decodes(claim, header.method, end, header.size, header.crc):
            return None
        if not header.has_descriptor:
            return _verdict(claim, header.crc, header.compressed_size, header.size, end)
        length = descriptor_length(
            window, end, crc=header.crc, compressed_size=header.compressed_size, size=header.size
        )
        reason = "" if length else f"no data descriptor at {end:,}, where its flags announce one"
        return _verdict(claim, header.crc, header.compressed_size, header.size, end + length, reason)

    def _decodes(self, claim: Claim, method: int, end: int, size: int, crc: int) -> bool:
        length = end - claim.data_offset
        if end > self._window.end or length < 0 or (length == 0 and not is_boundary(self._window, end)):
            return False
        if self._budget < 0 and length > _SMALL_BYTES and not is_boundary(self._window, end):
            return False
        try:
            if decodes_to(self._window, method, claim.data_offset, end, size=size, crc=crc):
                return True
        except UnsupportedError:
            pass
        self._budget -= length
        return False

    def _whole_with_descriptor(self, claim: Claim) -> Verdict | None:
        start, entry = claim.data_offset, claim.entry
        if entry is not None and self._decodes(
            claim, claim.header.method, start + entry.compressed_size, entry.size, entry.crc
        ):
            end = start + entry.compressed_size
            length = descriptor_length(
                self._window, end, crc=entry.crc, compressed_size=entry.compressed_size, size=entry.size
            )
            reason = "" if length else f"no data descriptor at {end:,}, where its flags announce one"
            return _verdict(claim, entry.crc, entry.compressed_size, entry.size, end + length, reason)
        if claim.header.method == STORED:
            return self._stored_with_descriptor(claim)
        decoded = self._stream(claim)
        if decoded.ended:
            end = start + decoded.consumed
            length = descriptor_length(
                self._window, end, crc=decoded.crc, compressed_size=decoded.consumed, size=decoded.size
            )
            if length:
                self._budget += decoded.consumed
                return _verdict(claim, decoded.crc, decoded.consumed, decoded.size, end + length)
        return None

    def _stored_with_descriptor(self, claim: Claim) -> Verdict | None:
        """Find the descriptor that has the right distance, and whose CRC-32 is that of the bytes before it."""
        position, crc = claim.data_offset, 0
        for found in self._search.candidates(claim.data_offset):
            if found.size != found.compressed_size or found.position < position:
                continue
            if self._budget < 0 and found.position - position > _SMALL_BYTES:
                return None
            self._budget -= found.position - position
            crc = crc_of(self._window, position, found.position, crc)
            position = found.position
            if crc == found.crc and (found.size or found.followed):
                self._budget += found.size
                return _verdict(claim, crc, found.size, found.size, found.end)
        return None

    def _unread(self, claim: Claim, reason: str) -> Verdict | None:
        """Return the verdict on a member whose data is not read: its bounds have to be beyond doubt."""
        header = claim.header
        end = claim.end
        if header.has_descriptor:
            end += descriptor_length(
                self._window, end, crc=header.crc, compressed_size=header.compressed_size, size=header.size
            )
        if end > self._window.end or not (claim.is_proven or is_boundary(self._window, end)):
            return None
        if header.method == STORED and header.size != header.compressed_size and not header.flags & FLAG_ENCRYPTED:
            return None
        if not header.compressed_size and header.size:
            return None
        return Verdict(header, header.crc, header.compressed_size, header.size, end, "unverified", reason, 0)

    # What else could the header have said?

    def _mended(self, claim: Claim) -> Verdict | None:
        """Return the verdict on a member whose data is whole although its header, or its descriptor, is damaged."""
        is_readable = not self.why_unreadable(claim.header)
        verdict = self._mended_lengths(claim)
        verdict = verdict or self._mended_by_directory(claim) or self._mended_by_flags(claim)
        if verdict is not None or not is_readable:
            return verdict
        if not claim.has_sizes:
            return None
        if claim.header.method == STORED:
            return self._mended_stored(claim)
        return self._mended_stream(claim)

    def _mended_by_directory(self, claim: Claim) -> Verdict | None:
        entry = claim.entry
        if entry is None or entry.is_encrypted or entry.method not in (STORED, *_STREAMS):
            return None
        end = claim.data_offset + entry.compressed_size
        if not self._decodes(claim, entry.method, end, entry.size, entry.crc):
            return None
        said = claim.header
        header = said._replace(
            method=entry.method, flags=entry.flags, crc=entry.crc, compressed_size=entry.compressed_size,
            size=entry.size,
        )  # fmt: skip
        if header.has_descriptor:
            end += descriptor_length(
                self._window, end, crc=entry.crc, compressed_size=entry.compressed_size, size=entry.size
            )
        reason = f"its local header says {_describe(said)}; the central directory {_describe(header)}, as is found"
        if header == said and not header.has_descriptor:
            reason = ""
        return _verdict(claim._replace(header=header), entry.crc, entry.compressed_size, entry.size, end, reason)

    def _mended_by_flags(self, claim: Claim) -> Verdict | None:
        """Try what one wrong bit in flags or method would explain."""
        said = claim.header
        if said.flags & FLAG_ENCRYPTED:
            plain = claim._replace(header=said._replace(flags=said.flags & ~FLAG_ENCRYPTED))
            verdict = self.whole(plain)
            if verdict is not None and verdict.size:
                return _but(verdict, "its local header says that it is encrypted, but it is not")
        if not (said.compressed_size or said.size or said.crc) and not said.has_descriptor:
            verdict = self.whole(claim._replace(header=said._replace(flags=said.flags | 1 << 3)))
            if verdict is not None:
                return _but(verdict, "its local header says that it is empty; a data descriptor says otherwise")
        if said.flags & FLAG_ENCRYPTED or (claim.has_sizes and said.size == 0):
            return None
        for method in (STORED, *_STREAMS):
            if (method ^ said.method).bit_count() != 1 or (method == STORED and said.size != said.compressed_size):
                continue
            verdict = self.whole(claim._replace(header=said._replace(method=method)))
            if verdict is not None:
                name = METHOD_NAMES[method]
                return _but(verdict, f"its local header says compression method {said.method}, but its data is {name}")
        return None

    def _mended_lengths(self, claim: Claim) -> Verdict | None:
        """Try what one wrong bit in the length of name or extra area would explain."""
        window = self._window
        head = window.read(claim.position, LOCAL.size)
        unreadable = self.why_unreadable(claim.header)
        if unreadable and (not claim.has_sizes or self._has_boundary(claim)):
            return None

        def is_empty(start: int) -> bool:
            length = descriptor_length(window, start, crc=0, compressed_size=0, size=0)
            return length > 0 and not claim.header.size and is_boundary(window, start + length)

        for bit in range(32):
            lengths = int.from_bytes(head[26:30], "little") ^ 1 << bit
            length = LOCAL.size + (lengths & LIMIT_16) + (lengths >> 16)
            start = claim.position + length
            if not lengths & LIMIT_16 or start > self._window.end or self._budget < 0:
                continue
            if claim.has_sizes and not claim.header.has_descriptor:
                if not is_boundary(self._window, start + claim.header.compressed_size):
                    continue
            elif not claim.has_sizes and claim.header.method == STORED and not is_empty(start):
                # Of members whose end has to be looked for, only empty ones.
                continue
            found = LOCAL_SIGNATURE + head[4:26] + lengths.to_bytes(4, "little")
            found += self._window.read(claim.position + LOCAL.size, length - LOCAL.size)
            mended = claim._replace(header=decode_local_header(found))
            if unreadable and mended.end < window.end:
                verdict = self._unread(mended, unreadable)
            else:
                verdict = self.whole(mended)
            if verdict is not None and b"\0" not in mended.header.name:
                return _but(verdict, "its local header is damaged: the lengths of name or extra area are wrong")
        return None

    def _mended_stored(self, claim: Claim) -> Verdict | None:
        said, start = claim.header, claim.data_offset
        sizes = {said.compressed_size, said.size} if said.compressed_size != said.size else set()
        for size in sorted(sizes):
            if self._decodes(claim, STORED, start + size, size, said.crc):
                return self._with_sizes(claim, size, size)
        end = min(claim.end, self._window.end)
        if (claim.end <= end and is_boundary(self._window, claim.end)) or self._budget < 0:
            return None
        self._budget -= end - start
        position, crc = start, 0
        for boundary in self._window.matches(BOUNDARY_PATTERN, start, end):
            crc, position = crc_of(self._window, position, boundary, crc), boundary
            if crc == said.crc and boundary > start and is_boundary(self._window, boundary):
                return self._with_sizes(claim, boundary - start, boundary - start)
        if end == self._window.end and crc_of(self._window, position, end, crc) == said.crc and end > start:
            return self._with_sizes(claim, end - start, end - start)
        return None

    def _mended_stream(self, claim: Claim) -> Verdict | None:
        decoded = self._stream(claim)
        if decoded.ended and decoded.crc == claim.header.crc and (decoded.size or not claim.header.size):
            return self._with_sizes(claim, decoded.consumed, decoded.size)
        return None

    def _stream(self, claim: Claim) -> Decoded:
        """Decode from where the data begins to where its stream ends, whatever the header says of its length."""
        end = self._window.end
        if self._budget < 0:
            end = min(end, claim.data_offset + _SMALL_BYTES)
        decoded = decode_stream(self._window, claim.header.method, claim.data_offset, end)
        self._budget -= decoded.consumed
        return decoded

    def _with_sizes(self, claim: Claim, compressed_size: int, size: int) -> Verdict:
        said = claim.header
        header = said._replace(compressed_size=compressed_size, size=size)
        end = claim.data_offset + compressed_size
        if header.has_descriptor:
            end += descriptor_length(self._window, end, crc=said.crc, compressed_size=compressed_size, size=size)
        reason = (
            f"its local header says {said.compressed_size:,} bytes of data for {said.size:,}; "
            f"{compressed_size:,} bytes have the right CRC-32"
        )
        return _verdict(claim._replace(header=header), said.crc, compressed_size, size, end, reason)

    # What is left?

    def _damaged(self, claim: Claim) -> Verdict | None:
        header, start, limit = claim.header, claim.data_offset, self._window.end
        if header.method == STORED:
            consumed = 0
        else:
            decoded = self._stream(claim)
            consumed = decoded.consumed
        end = self._extent(claim, claim.end, consumed)
        if end is None:
            return None
        data_end = min(end, claim.end)
        if header.method == STORED:
            recoverable = without_zero_tail(self._window, start, data_end)
            found_crc = crc_of(self._window, start, data_end)
            reason = f"CRC-32 {found_crc:08x} instead of {header.crc:08x}"
        else:
            recoverable = min(decoded.size, header.size)
            reason = decoded.reason or (
                f"{decoded.size:,} bytes with CRC-32 {decoded.crc:08x} instead of {header.size:,} with {header.crc:08x}"
            )
        if not (header.compressed_size or header.size):
            reason = f"nothing at {start:,} shows that it is empty"
        elif claim.end > limit and end == limit:
            reason = f"its data should end at {claim.end:,}, the file ends at {limit:,}"
        elif end < claim.end:
            reason = f"its data should end at {claim.end:,}, but the next member begins at {end:,}; {reason}"
        believed = (
            claim.is_proven or claim.is_expected or claim.entry is not None or is_boundary(self._window, end)
            or (header.size == header.compressed_size if header.method == STORED else recoverable > 0)
        )  # fmt: skip
        if not believed:
            return None
        state: State = "partial" if recoverable else "lost"
        if not (header.compressed_size or header.size):
            state = "unverified"
        return Verdict(header, header.crc, data_end - start, header.size, end, state, reason, recoverable)

    def _extent(self, claim: Claim, recorded: int, consumed: int) -> int | None:
        """Return where a damaged member ends whose data should end at ``recorded``."""
        limit = self._window.end
        end = min(recorded, limit)
        if claim.header.has_descriptor and recorded <= limit:
            header = claim.header
            end += descriptor_length(
                self._window, end, crc=header.crc, compressed_size=header.compressed_size, size=header.size
            )
        if claim.is_proven or (recorded <= limit and is_boundary(self._window, end)):
            return end
        is_consistent = claim.header.method == STORED and claim.header.size == claim.header.compressed_size
        first, crosses = self._inner(claim.data_offset + consumed, end, stop=not claim.is_expected)
        if first is not None and (crosses or not claim.is_expected or (recorded > limit and not is_consistent)):
            return first
        return end

    def _inner(self, start: int, end: int, *, stop: bool, empty: bool = False) -> tuple[int | None, bool]:
        """Look for whole members in a range; return where the first begins, and whether one goes on past the end.

        Args:
            start: where to begin.
            end: end of the range.
            stop: the first one is enough.
            empty: one without data counts, too.
        """
        if self._budget < 0:
            return None, False
        self._budget -= end - start
        first, position = None, start
        for at in self._window.matches(LOCAL_PATTERN, start, end):
            if at < position:
                continue
            found = local_header(self._window, at)
            if found is None or found[2]:
                continue
            belonging = self._belongs(at, found[0], found[1])
            if belonging == "yes":
                return (at if first is None else first), True
            if belonging == "no":
                continue
            inner = Claim(at, found[0], False, False, None)
            reason = self.why_unreadable(inner.header)
            verdict = self._bounded(inner, reason) if reason else self.whole(inner)
            if verdict is None or (verdict.state != "whole" and not reason):
                continue
            if not (verdict.compressed_size or empty):
                continue
            first = at if first is None else first
            position = verdict.end
            if stop or position > end:
                return first, position > end
        return first, False

    def _damaged_with_descriptor(self, claim: Claim) -> Verdict | None:
        """Judge a member whose sizes stand behind its data, which is damaged."""
        header, start = claim.header, claim.data_offset
        decoded = Decoded(0, 0, 0, False, "") if header.method == STORED else self._stream(claim)
        for found in self._search.candidates(start):
            if not found.followed or found.position < start + decoded.consumed:
                continue
            if header.method == STORED and found.size != found.compressed_size:
                continue
            if header.method == STORED:
                recoverable = without_zero_tail(self._window, start, found.position)
                crc = crc_of(self._window, start, found.position)
            else:
                recoverable, crc = min(decoded.size, found.size), decoded.crc
            reason = decoded.reason or f"CRC-32 {crc:08x} instead of {found.crc:08x} in its data descriptor"
            state: State = "partial" if recoverable else "lost"
            return Verdict(
                header, found.crc, found.compressed_size, found.size, found.end, state, reason, recoverable
            )  # fmt: skip
        if not (claim.is_expected or claim.entry is not None or decoded.size):
            return None
        if header.method == STORED:
            return self._stored_without_descriptor(claim)
        if decoded.ended:
            data_end = start + decoded.consumed
            end, proven = self._damaged_descriptor(data_end, decoded.crc)
            reason = f"no data descriptor at {data_end:,} that fits its data, whose CRC-32 is {decoded.crc:08x}"
            state = "unverified" if proven else "partial"
            return Verdict(
                header, decoded.crc, decoded.consumed, decoded.size, end, state, reason, decoded.size
            )  # fmt: skip
        end = self._next_boundary(start + decoded.consumed)
        reason = decoded.reason or "no data descriptor fits its data"
        state = "partial" if decoded.size else "lost"
        size = header.size or decoded.size
        return Verdict(header, decoded.crc, end - start, size, end, state, reason, min(size, decoded.size))

    def _damaged_descriptor(self, position: int, crc: int) -> tuple[int, bool]:
        """Return where a damaged descriptor at ``position`` ends, and whether it says the CRC-32 that is expected."""
        end, proven = position, False
        for signature, layout in DESCRIPTOR_LAYOUTS:
            values = self._window.read(position, len(signature) + layout.size)
            if len(values) < len(signature) + layout.size:
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
                    size = position - start
                    reason = "its data descriptor has the right CRC-32, but wrong sizes or a wrong signature"
                    return Verdict(header, crc, size, size, end, "unverified", reason, size)
                if signature and values.startswith(signature):
                    data_end = position
            if data_end == end:
                tail = self._window.read(max(start, end - 24), min(24, end - start))
                torn = tail.rfind(DESCRIPTOR_SIGNATURE)
                data_end = end if torn < 0 else end - len(tail) + torn
        recoverable = without_zero_tail(self._window, start, data_end)
        crc = crc_of(self._window, start, data_end)
        reason = f"no data descriptor fits its data, whose CRC-32 is {crc:08x}"
        state: State = "partial" if recoverable else "lost"
        return Verdict(header, crc, data_end - start, max(header.size, recoverable), end, state, reason, recoverable)

    def _closed(self, claim: Claim, reason: str) -> Verdict | None:
        """Judge a member whose data cannot be decoded here: only its bounds count."""
        header, start, limit = claim.header, claim.data_offset, self._window.end
        verdict = self._bounded(claim, reason)
        if verdict is not None:
            return verdict
        if claim.has_sizes:
            if not (claim.is_proven or claim.is_expected or claim.entry is not None):
                return None
            end = self._extent(claim, claim.end, 0)
            if end is None:
                return None
            if claim.end <= end:
                return Verdict(
                    header, header.crc, header.compressed_size, header.size, end, "unverified",
                    f"{reason}; nothing recognisable follows it at {end:,}", 0,
                )  # fmt: skip
            what = f"the file ends at {limit:,}" if end == limit else f"the next member begins at {end:,}"
            reason = f"its data should end at {claim.end:,}, {what}; {reason}"
            return Verdict(header, header.crc, end - start, header.size, end, "lost", reason, 0)
        if not (claim.is_expected or claim.entry is not None):
            return None
        end = self._next_boundary(start)
        reason = f"no data descriptor tells where its data ends; {reason}"
        return Verdict(header, header.crc, end - start, header.size, end, "lost", reason, 0)

    def _bounded(self, claim: Claim, reason: str) -> Verdict | None:
        """Return the verdict on a member of which nothing but the bounds can be known, if these are beyond doubt."""
        if claim.has_sizes:
            return self._unread(claim, reason)
        best = None
        for found in self._search.candidates(claim.data_offset):
            if found.followed and (found.compressed_size or not found.size):
                best = found
                break
            # A signature and the right distance are evidence enough when the next header is damaged.
            best = best or (found if found.compressed_size else None)
        if best is None:
            return None
        return Verdict(
            claim.header, best.crc, best.compressed_size, best.size, best.end, "unverified", reason, 0
        )  # fmt: skip

    def _next_boundary(self, start: int) -> int:
        """Return where a member has to have ended that goes on at ``start``, and of which no length is known."""
        first, _ = self._inner(start, self._window.end, stop=True, empty=True)
        end = self._window.end if first is None else first
        for at in self._window.matches(_DIRECTORY_PATTERN, start, end):
            if is_boundary(self._window, at):
                return at
        return end


def _verdict(claim: Claim, crc: int, compressed_size: int, size: int, end: int, reason: str = "") -> Verdict:
    state: State = "unverified" if reason else "whole"
    return Verdict(claim.header, crc, compressed_size, size, end, state, reason, size)


def _but(verdict: Verdict, reason: str) -> Verdict:
    return verdict._replace(state="unverified", reason=reason)


def _describe(header: LocalHeader) -> str:
    return (
        f"method {header.method}, {header.compressed_size:,} bytes of data for {header.size:,}, CRC-32 {header.crc:08x}"
    )


__all__ = ["Belonging", "Claim", "Examiner", "State", "Verdict", "crc32", "why_unreadable"]
