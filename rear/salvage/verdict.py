"""What a local header claims, and what is to be thought of the member."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from rear.errors import UnsupportedError
from rear.zip.codecs import STORED, StreamDecoder
from rear.zip.headers import CentralEntry, LocalHeader
from rear.zip.structures import FLAG_ENCRYPTED, LIMIT_32

State = Literal["whole", "unverified", "partial", "lost"]

UNREAD: Final = "its data was not read"
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
        if not header.has_descriptor or self.is_listed:
            return True
        # Some software writes sizes here, but the CRC-32 into the descriptor alone.
        return bool(header.crc and header.compressed_size) and not self.is_unresolved

    @property
    def is_unresolved(self) -> bool:
        """Whether the compressed size is the mark for one in the Zip64 field (4.4.8), and that field has none."""
        header = self.header
        return header.compressed_size == LIMIT_32 and LIMIT_32.to_bytes(8, "little") not in header.extra

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


def intact(claim: Claim, crc: int, compressed_size: int, size: int, end: int, reason: str = "") -> Verdict:
    """Return the verdict on a member whose data is whole; with a reason, its header or its descriptor is not."""
    state: State = "unverified" if reason else "whole"
    return Verdict(claim.header, crc, compressed_size, size, end, state, reason, size)


def doubted(verdict: Verdict, reason: str) -> Verdict:
    """Return the verdict with a reason why header and data are not as they were written."""
    return verdict._replace(state="unverified", reason=reason)
