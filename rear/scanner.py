"""Finds the members of a Zip by their local headers, without a central directory.

One pass from the begin to the end, in pieces: where a member ends the next one is expected, and where none is there the
next plausible local header is looked for. `rear.verdict` judges each; `rear.localheaders` says what is plausible.

A Zip inside a member whose own header is damaged looks like a part of the archive: `rear.belonging` tells such members
from those of the archive. Where it cannot, directory and end record of the inner Zip do, once the scan comes to them:
then `Nested` takes back what was found.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from rear.belonging import Membership
from rear.codecs import STORED
from rear.directory import Directory, locate
from rear.errors import UnsupportedError, ZipFormatError
from rear.listing import Listing
from rear.localheaders import (
    DESCRIPTOR_SIGNATURE,
    HEADER_LIMIT_BYTES,
    DirectoryRange,
    directory_range,
    flipped_signature,
    local_header,
)
from rear.records import Origin
from rear.storage import LOCAL, Storage
from rear.streams import stream_pieces
from rear.verdict import Claim, Examiner, State, Verdict, why_unreadable
from rear.window import PIECE_BYTES, Window
from rear.zipformat import END, END_SIGNATURE, FLAG_UTF8, LOCAL_SIGNATURE, CentralEntry, LocalHeader, decode_name

Kind = Literal["zeros", "directory", "unknown"]

_SIGNATURES: Final = re.compile(rb"PK(?:\x03\x04|\x01\x02|\x05\x06|\x06\x06)")
#: Zeros that are fewer are part of what is around them.
_ZERO_RUN: Final = re.compile(rb"\0{64,}")
_ZEROS: Final = bytes(PIECE_BYTES)
_CONTROL: Final = re.compile(rb"[\0-\x1f\x7f]|^$")
#: How far behind a directory its end record may be looked for, and how many are tried.
_GARBAGE_LIMIT_BYTES: Final = 1 << 20
_END_RECORDS_TRIED: Final = 16
#: Gaps that are remembered to recognise a Zip that begins in or behind one of them.
_GAPS_KEPT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Found:
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
            all bytes that are there count.
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


def scan(
    descriptor: int,
    *,
    start: int = 0,
    end: int | None = None,
    cookie: int | None = None,
    read_data: bool = True,
    storage: Storage = LOCAL,
) -> Iterator[Found | Gap | Nested]:
    """Yield what stands in ``[start, end)`` of an open file, in order: each byte is in one `Found` or one `Gap`.

    Memory is bounded, and time grows with the length of the range, whatever stands in it.

    Args:
        descriptor: the open file.
        start: where to begin, in bytes from the start of the file.
        end: where to stop; the end of the file by default.
        cookie: that of the temp archive, from its journal: only members that carry it are members then.
        read_data: decode the data of members whose bounds are beyond doubt, and compare their CRC-32. Otherwise they
            are ``unverified``.
        storage: the file system.

    Raises:
        UnsupportedError: the file is a volume of a split archive.
        OSError: it cannot be read.
    """
    size = storage.size(descriptor)
    end = size if end is None else min(end, size)
    window = Window(descriptor, min(start, end), end, storage=storage)
    listing = None
    if start == 0 and end == size:
        listing = _listing(descriptor, window, storage)
        if listing is None:
            _refuse_first_volume(window)
    return _Scan(window, cookie, read_data, listing).run()


def _listing(descriptor: int, window: Window, storage: Storage) -> Listing | None:
    try:
        directory = locate(descriptor, storage=storage)
    except UnsupportedError:
        _refuse_last_volume(window)
        return None
    except ZipFormatError:
        found = _locate_before_garbage(descriptor, window, storage)
        if found is None:
            return None
        directory = found
    return Listing(descriptor, directory, window, storage=storage)


class _Cut(Storage):
    """A file as it was before something was appended to it."""

    def __init__(self, storage: Storage, end: int) -> None:
        self._storage = storage
        self._end = end

    def size(self, descriptor: int) -> int:
        return self._end

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        return self._storage.read(descriptor, min(length, max(0, self._end - offset)), offset)


def _locate_before_garbage(descriptor: int, window: Window, storage: Storage) -> Directory | None:
    """Return the directory of an archive that something was appended to, where `locate` finds none."""
    tail_start = max(0, window.end - _GARBAGE_LIMIT_BYTES)
    tail = window.read(tail_start, window.end - tail_start)
    at = len(tail)
    for _ in range(_END_RECORDS_TRIED):
        at = tail.rfind(END_SIGNATURE, 0, at)
        if at < 0:
            break
        end = tail_start + at + END.size + int.from_bytes(tail[at + 20 : at + 22], "little")
        if end < window.end:
            try:
                return locate(descriptor, storage=_Cut(storage, end))
            except (UnsupportedError, ZipFormatError):
                continue
    return None


def _refuse_first_volume(window: Window) -> None:
    # The first volume begins with the signature of a descriptor (8.5.4).
    if window.read(0, 8) == DESCRIPTOR_SIGNATURE + LOCAL_SIGNATURE:
        raise UnsupportedError(
            "the first volume of a split archive; join its volumes first (zip -s 0 SPLIT.zip --out WHOLE.zip)"
        )


def _refuse_last_volume(window: Window) -> None:
    """Refuse a file whose end record counts several volumes, unless its members are in this file all the same."""
    tail_start = max(0, window.end - END.size - 0xFFFF)
    tail = window.read(tail_start, window.end - tail_start)
    at = tail.rfind(END_SIGNATURE)
    if at < 0 or len(tail) < at + END.size:
        return
    _, disk, _, _, _, length, offset, _ = END.unpack_from(tail, at)
    # One wrong bit in an end record must not hide an archive.
    if not disk or _is_expected_header(window, 0):
        return
    first = directory_range(window, tail_start + at - length).first if length <= tail_start + at else None
    if first is not None and offset == tail_start + at - length:
        there = local_header(window, first.offset)
        if there is not None and there[0].name == first.name_bytes:
            return
    raise UnsupportedError(
        f"volume {disk + 1} of a split archive; join its volumes first (zip -s 0 SPLIT.zip --out WHOLE.zip)"
    )


def _is_expected_header(window: Window, position: int) -> bool:
    there = local_header(window, position)
    return there is not None and not there[2]


class _Scan:
    """One run of the scanner."""

    def __init__(self, window: Window, cookie: int | None, read_data: bool, listing: Listing | None) -> None:
        self._window = window
        self._listing = listing
        self._membership = Membership(cookie, listing)
        self._examiner = Examiner(window, read_data=read_data, belongs=self._membership.is_inside)
        #: Where the last member ended: there the next one has to begin.
        self._expected = window.start
        self._first_offset: int | None = None
        self._gap: Gap | None = None
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_GAPS_KEPT)

    def run(self) -> Iterator[Found | Gap | Nested]:
        """Yield everything."""
        window, position = self._window, self._window.start
        while position < window.end:
            window.load(position, HEADER_LIMIT_BYTES)
            found = self._member(position)
            if found is None:
                position = yield from self._skip(position)
                continue
            if self._gap is not None:
                yield from self._flush_gap()
            if self._first_offset is None:
                self._first_offset = position
                self._membership.learn(found.origin)
            yield found
            position = self._expected = found.end
        yield from self._flush_gap()

    def _member(self, position: int) -> Found | None:
        is_expected = position == self._expected
        entry = self._membership.entry_at(position)
        there = local_header(self._window, position)
        if there is not None:
            header, header_bytes, oddity = there
        elif is_expected or entry is not None:
            flipped = flipped_signature(self._window, position)
            if flipped is None:
                return None
            header, header_bytes = flipped
            oddity = f"its signature is {header_bytes[:4]!r} instead of {LOCAL_SIGNATURE!r}"
        else:
            return None
        if oddity and not (is_expected or entry is not None):
            return None
        answer, origin, entry, doubt = self._membership.of(header, header_bytes, entry=entry, is_expected=is_expected)
        if answer == "no":
            return None
        verdict = self._examiner.examine(Claim(position, header, origin is not None, is_expected, entry))
        if verdict is None or verdict.end > self._window.end:
            return None
        if oddity:
            # A header that says impossible things counts only where the data proves the rest of it.
            if not verdict.recoverable_bytes or verdict.recoverable_bytes != verdict.size:
                return None
            doubt = doubt or f"its local header is damaged: {oddity}"
            if entry is None:
                verdict = verdict._replace(state="partial")
        if verdict.header.length != len(header_bytes):
            header_bytes = self._window.read(position, verdict.header.length)
        return _found(position, header_bytes, verdict, doubt, origin, entry)

    def _skip(self, position: int) -> Generator[Found | Gap | Nested, None, int]:
        """Go on to where the next member or directory may begin; return that position."""
        window = self._window
        data, at = window.data, position - window.base
        if at >= len(data):
            # The file has become shorter.
            yield from self._extend_gap(position, window.end, "unknown")
            return window.end
        match = _SIGNATURES.search(data, at)
        if match is not None and match.start() == at:
            if data[at : at + 4] != LOCAL_SIGNATURE:
                found = directory_range(window, position)
                if found.end > position:
                    yield from self._extend_gap(position, found.end, "directory")
                    yield from self._nested(found)
                    return found.end
            match = _SIGNATURES.search(data, at + 1)
        if match is not None:
            stop = match.start()
        else:
            # A signature may begin in the last bytes.
            stop = len(data) if window.base + len(data) >= window.end else max(at + 1, len(data) - 3)
        yield from self._classify(data, at, stop)
        position = window.base + stop
        if match is None and not any(data[-64:]):
            beyond = window.next_data(position)
            if beyond > position:
                yield from self._extend_gap(position, beyond, "zeros")
                position = beyond
        return position

    def _classify(self, data: bytes, at: int, stop: int) -> Iterator[Gap]:
        base = self._window.base
        if data[at : at + 64] == _ZEROS[:64] and stop - at <= len(_ZEROS) and data[at:stop] == _ZEROS[: stop - at]:
            yield from self._extend_gap(base + at, base + stop, "zeros")
            return
        for match in _ZERO_RUN.finditer(data, at, stop):
            yield from self._extend_gap(base + at, base + match.start(), "unknown")
            yield from self._extend_gap(base + match.start(), base + match.end(), "zeros")
            at = match.end()
        yield from self._extend_gap(base + at, base + stop, "unknown")

    def _extend_gap(self, start: int, end: int, kind: Kind) -> Iterator[Gap]:
        if end <= start:
            return
        gap = self._gap
        if gap is not None and gap.kind == kind and gap.start + gap.length == start:
            self._gap = Gap(gap.start, end - gap.start, kind)
            return
        yield from self._flush_gap()
        self._gap = Gap(start, end - start, kind)

    def _flush_gap(self) -> Iterator[Gap]:
        gap, self._gap = self._gap, None
        if gap is None:
            return
        if gap.kind != "directory":
            start, end = gap.start, gap.start + gap.length
            if self._gaps and self._gaps[-1][1] == start:
                start, _ = self._gaps.pop()
            self._gaps.append((start, end))
        yield gap

    def _nested(self, found: DirectoryRange) -> Iterator[Gap | Nested]:
        """Tell when a directory shows that what it describes begins behind damage, and not where the archive does."""
        if found.recorded is None or found.first is None or self._listing is not None:
            return
        _, length, offset = found.recorded
        base = found.start - offset
        if found.start + length != found.records or base <= self._window.start:
            return
        # The header of the member that it stood in has been before it, in a gap.
        if not any(start < base <= end for start, end in self._gaps):
            return
        first = local_header(self._window, base + found.first.offset)
        if first is not None and first[0].name != found.first.name_bytes:
            return
        has_member_before = self._first_offset is not None and self._first_offset < base
        # What begins in front of a Zip and has no members may be a self-extractor's program.
        if has_member_before or _is_expected_header(self._window, found.end):
            yield from self._flush_gap()
            yield Nested(base, found.end - base)


def _found(
    position: int, header_bytes: bytes, verdict: Verdict, doubt: str, origin: Origin | None, entry: CentralEntry | None
) -> Found:
    header, crc, compressed_size, size, end, state, reason, recoverable_bytes = verdict
    if doubt:
        reason = f"{reason}; {doubt}" if reason else doubt
        state = "unverified" if state == "whole" else state
        if entry is not None and origin is None and _is_better_name(entry.name_bytes, header.name):
            header = header._replace(
                name=entry.name_bytes, flags=header.flags & ~FLAG_UTF8 | entry.flags & FLAG_UTF8
            )  # fmt: skip
    return Found(
        position, header, header_bytes, decode_name(header.name, header.flags, header.extra), crc, compressed_size,
        size, end, state, reason, recoverable_bytes, origin,
    )  # fmt: skip


def _is_better_name(listed: bytes, found: bytes) -> bool:
    """Tell whether the name in the directory is to be preferred to another one in the local header.

    Nothing tells which of the two is damaged, save that damage may leave what no name has.
    """
    return not _CONTROL.search(listed) or _CONTROL.search(found) is not None


def recovered_content(descriptor: int, found: Found, *, storage: Storage = LOCAL) -> Iterator[bytes]:
    """Yield the plain bytes of a member that decode.

    All of a whole member, and of one whose data is whole under a damaged header; the first ``recoverable_bytes`` of a
    partial one; nothing of a lost one. Of a member that cannot be decoded here, or was not, the data as it stands in
    the file.

    Args:
        descriptor: the open file.
        found: what `scan` said about the member.
        storage: the file system.

    Raises:
        OSError: the file cannot be read.
    """
    start, method = found.data_offset, found.header.method
    end = start + found.compressed_size
    window = Window(descriptor, start, end, storage=storage)
    is_raw = found.state == "unverified" and (
        found.recoverable_bytes != found.size or why_unreadable(found.header) != ""
    )
    if is_raw or method == STORED:
        length = found.compressed_size if is_raw else found.recoverable_bytes
        for piece in window.pieces(start, start + length):
            yield bytes(piece)
        return
    missing = found.recoverable_bytes
    try:
        while missing > 0:
            consumed = 0
            for plain, consumed, _ in stream_pieces(window, method, start, end):  # noqa: B007
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
