"""What a scan of a Zip tells: claims of local headers, the verdict on each, members and gaps, and members' content."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from rear.core.records import Origin
from rear.core.storage import LOCAL as LOCAL_STORAGE
from rear.core.storage import Storage
from rear.errors import UnsupportedError, ZipFormatError
from rear.salvage.local_headers import Facts
from rear.salvage.streams import recoverable_pieces
from rear.zip.codecs import STORED, StreamDecoder
from rear.zip.extra_fields import decode_name
from rear.zip.headers import CentralEntry, LocalHeader
from rear.zip.origin import decode_origin
from rear.zip.structures import FLAG_ENCRYPTED, LIMIT_32, LOCAL
from rear.zip.window import Window

State = Literal["whole", "unverified", "partial", "lost"]
Kind = Literal["zeros", "directory", "unknown"]
Row = tuple[int, int, int, int, int, int]
"""Where header and data begin in a piece of the file; CRC-32, compressed size, plain size, length of the name."""

UNREAD: Final = "its data was not read"
_ODD_METHOD_NAMES: Final = {1: "shrink", 6: "implode", 95: "xz", 97: "WavPack", 98: "PPMd", 99: "AES"}
_FLAGS_AND_METHOD: Final = struct.Struct("<2H")


class Verdict(NamedTuple):
    """What is to be thought of a member; ``header`` is what its local header must have said before it was damaged."""

    header: LocalHeader
    facts: Facts
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
    def is_backed(self) -> bool:
        """Whether its place or the directory speaks for it."""
        return self.is_expected or self.entry is not None

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


def intact(header: LocalHeader, facts: Facts, end: int, reason: str = "") -> Verdict:
    """Return the verdict on a member whose data is whole; with a reason, its header or its descriptor is not."""
    return Verdict(header, facts, end, "unverified" if reason else "whole", reason, facts.size)


def damaged(header: LocalHeader, facts: Facts, end: int, reason: str, recoverable_bytes: int) -> Verdict:
    """Return the verdict on a member of which nothing decodes, or the first ``recoverable_bytes``."""
    return Verdict(header, facts, end, "partial" if recoverable_bytes else "lost", reason, recoverable_bytes)


def unread(header: LocalHeader, facts: Facts, end: int, reason: str) -> Verdict:
    """Return the verdict on a member whose data was not, or cannot be, decoded here."""
    return Verdict(header, facts, end, "unverified", reason, 0)


def doubted(verdict: Verdict, reason: str) -> Verdict:
    """Return the verdict with a reason why header and data are not as they were written."""
    return verdict._replace(state="unverified", reason=reason)


class Found(NamedTuple):
    """A member found by its local header; positions count from the start of the file.

    Attributes:
        offset: where its local header begins.
        header: the local header, Zip64 applied; a field that was found to be damaged has the value that fits the data,
            and ``reason`` tells of it.
        header_bytes: the local header as it stands in the file, with name and extra area.
        name: its name as text.
        crc: CRC-32 of the plain data, from the header or the data descriptor.
        compressed_size: bytes of data, as recorded or as found; of a damaged member, what is there.
        size: plain size in bytes, as recorded or as found.
        end: first byte after data and data descriptor.
        state: ``whole``: data, size and CRC-32 are right, and the header says the same. ``unverified``: the data cannot
            be decoded here, or was not; or it is whole, but the header is damaged, so that the name may be wrong as
            well (then ``recoverable_bytes`` is ``size``). ``partial``: some of it decodes. ``lost``: nothing does.
        reason: empty when whole, else what was expected and what was found.
        recoverable_bytes: plain bytes that decode. Where damage is in the middle of stored data, nobody can tell where:
            all bytes that are there count. More than are there when the file ends early and the CRC-32 proves that
            nothing but zeros is missing.
        origin: what rear's own field in the header says.
    """

    offset: int
    header: LocalHeader
    header_bytes: bytes
    name: str
    crc: int
    compressed_size: int
    size: int
    end: int
    state: State
    reason: str
    recoverable_bytes: int
    origin: Origin | None

    @property
    def data_offset(self) -> int:
        """Where the data begins."""
        return self.offset + self.header.length


class Run(NamedTuple):
    """Members that follow each other without a gap and about which there is no question, many in few objects.

    Attributes:
        base: where ``data`` begins in the file.
        data: a piece of the file with all of their headers and data.
        rows: of each member, see `Row`.
        names: of each member, as bytes; without NUL.
        modes: of members whose header passes the checksum of rear's own field, by its place in ``data``.
        end: first byte behind the last one, in the file.
        state: ``whole``, or ``unverified`` where data was not to be read.
        reason: empty when whole.
    """

    base: int
    data: bytes
    rows: list[Row]
    names: list[bytes]
    modes: dict[int, int]
    end: int
    state: State
    reason: str

    def members(self) -> Iterator[Found]:
        """Yield them one by one."""
        base, data, new = self.base, self.data, tuple.__new__
        state, reason, modes = self.state, self.reason, self.modes
        is_read = state == "whole"
        for (at, start, crc, compressed_size, size, name_length), name in zip(self.rows, self.names, strict=True):
            flags, method = _FLAGS_AND_METHOD.unpack_from(data, at + 6)
            extra = data[at + LOCAL.size + name_length : start]
            header = new(LocalHeader, (flags, method, crc, compressed_size, size, name, extra, start - at))
            text = name.decode("ascii") if name.isascii() else decode_name(name, flags, extra)
            header_bytes = data[at:start]
            origin = decode_origin(header_bytes) if at in modes else None
            end, whole = base + start + compressed_size, size if is_read else 0
            fields = (
                base + at,
                header,
                header_bytes,
                text,
                crc,
                compressed_size,
                size,
                end,
                state,
                reason,
                whole,
                origin,
            )
            yield new(Found, fields)


@dataclass(frozen=True, slots=True)
class Gap:
    """A range that belongs to no member."""

    start: int
    length: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Nested:
    """What was found so far in a range are members of a Zip inside this one, whose own header is damaged."""

    start: int
    length: int


def recovered_content(descriptor: int, found: Found, *, storage: Storage = LOCAL_STORAGE) -> Iterator[bytes]:
    """Yield the plain bytes of a member that decode.

    All of a whole member, and of one whose data is whole under a damaged header; the first ``recoverable_bytes`` of a
    partial one; nothing of a lost one. Of a member that cannot be decoded here, or was not, the data as it stands in
    the file.

    Raises:
        OSError: the file cannot be read.
    """
    start, method = found.data_offset, found.header.method
    end = start + found.compressed_size
    window = Window(descriptor, start, end, storage=storage)
    is_decoded = found.recoverable_bytes == found.size and not why_unreadable(found.header)
    is_raw = found.state == "unverified" and not is_decoded
    if is_raw or method == STORED:
        length = found.compressed_size if is_raw else found.recoverable_bytes
        for piece in window.pieces(start, start + length):
            yield bytes(piece)
        if length > found.compressed_size:
            # The file ends within the member; its CRC-32 proves that zeros are missing.
            yield bytes(length - found.compressed_size)
        return
    missing = found.recoverable_bytes
    try:
        while missing > 0:
            consumed = 0
            for plain, consumed, _ in recoverable_pieces(window, method, start, end):  # noqa: B007
                if plain and missing > 0:
                    yield plain[:missing]
                    missing -= min(missing, len(plain))
                if missing <= 0:
                    return
            # Zstandard data may be several frames.
            if not consumed:
                return
            start += consumed
    except ZipFormatError:
        return
