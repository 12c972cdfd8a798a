"""Finds the members of a Zip by their local headers, without a central directory.

One pass from the begin to the end, in pieces: where a member ends the next one is expected, and where none is there the
next plausible local header is looked for. *member_check* judges each; *local_headers* says what is plausible.

A Zip inside a member whose own header is damaged looks like a part of the archive: *nested_archives* tells such members
from those of the archive. Where it cannot, directory and end record of the inner Zip do, once the scan comes to them:
then `Nested` takes back what was found.
"""

from __future__ import annotations

import re
import struct
from collections import deque
from collections.abc import Generator, Iterator
from typing import Final

from rear.core.storage import LOCAL as LOCAL_STORAGE
from rear.core.storage import Storage
from rear.salvage.directory_evidence import find_evidence
from rear.salvage.local_headers import (
    BOUNDARY_PATTERN,
    DirectoryRange,
    directory_range,
    flipped_signature,
    is_boundary,
    is_header,
    local_header,
)
from rear.salvage.member_check import Examiner
from rear.salvage.nested_archives import Belongs, Membership
from rear.salvage.scan_result import UNREAD, Claim, Found, Gap, Kind, Nested, Row, Run, State, Verdict
from rear.zip.codecs import DEFLATED, STORED, crc32, inflate
from rear.zip.extra_fields import decode_name
from rear.zip.structures import FLAG_UTF8, LOCAL, LOCAL_HEAD, LOCAL_LIMIT_BYTES, LOCAL_SIGNATURE, NEWEST_VERSION
from rear.zip.window import PIECE_BYTES, Window

#: Zeros that are fewer are part of what is around them.
_ZERO_RUN: Final = re.compile(rb"\0{64,}")
_ZEROS: Final = bytes(PIECE_BYTES)
_CONTROL: Final = re.compile(rb"[\0-\x1f\x7f]|^$")
#: All but the bits for UTF-8 and for the effort of compression (4.4.4).
_UNUSUAL_FLAGS: Final = 0xFFFF & ~(FLAG_UTF8 | 0x06)
_USUAL_METHODS: Final = (STORED, DEFLATED)
_PLAIN_SIZE_BYTES: Final = 1 << 24
#: Of a local header, all that stands before time and date, then CRC-32, sizes and lengths.
_SIZES: Final = struct.Struct("<10s4x3I2H")
#: So many members are in memory at a time.
_RUN_LIMIT: Final = 1 << 13
_KINDS_LIMIT: Final = 1 << 10
#: Gaps that are remembered to recognise a Zip that begins in or behind one of them.
_GAPS_KEPT: Final = 10_000


def scan(
    descriptor: int,
    *,
    start: int = 0,
    end: int | None = None,
    cookie: int | None = None,
    read_data: bool = True,
    storage: Storage = LOCAL_STORAGE,
) -> Iterator[Found | Gap | Nested]:
    """Yield what stands in ``[start, end)`` of an open file, in order: each byte is in one `Found` or one `Gap`.

    Memory is bounded, and time grows with the length of the range, whatever stands in it.

    Args:
        descriptor: the open file.
        start: where to begin, in bytes from the start of the file.
        end: where to stop; the end of the file by default.
        cookie: that of the temp archive, from its journal: only members that carry it are members then.
        read_data: decode data whose bounds are beyond doubt, and compare its CRC-32. Else it is ``unverified``.
        storage: the file system.

    Raises:
        UnsupportedError: the file is a volume of a split archive.
        OSError: it cannot be read.
    """
    size = storage.size(descriptor)
    end = size if end is None else min(end, size)
    window = Window(descriptor, min(start, end), end, storage=storage)
    evidence = find_evidence(descriptor, window, storage=storage) if start == 0 and end == size else None
    for item in _Scan(window, Membership(cookie, evidence), read_data=read_data).run():
        if isinstance(item, Run):
            yield from item.members()
        else:
            yield item


def scan_in_runs(descriptor: int, *, storage: Storage = LOCAL_STORAGE) -> Iterator[Run | Found | Gap | Nested]:
    """Like `scan` of a whole file, with most whole members in a `Run` each some thousand: for who has a million.

    What is raised is the same.
    """
    window = Window(descriptor, 0, storage.size(descriptor), storage=storage)
    evidence = find_evidence(descriptor, window, storage=storage)
    return _Scan(window, Membership(None, evidence), read_data=True).run()


class _Scan:
    """One run of the scanner."""

    def __init__(self, window: Window, membership: Membership, *, read_data: bool) -> None:
        self._window = window
        self._membership = membership
        self._read_data = read_data
        self._examiner = Examiner(window, membership, read_data=read_data)
        #: Where the last member ended: there the next one has to begin.
        self._expected = window.start
        self._first_offset: int | None = None
        self._methods = _PlainMethods()
        self._gap: Gap | None = None
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_GAPS_KEPT)

    def run(self) -> Iterator[Run | Found | Gap | Nested]:
        """Yield everything."""
        window, position = self._window, self._window.start
        while position < window.end:
            window.load(position, LOCAL_LIMIT_BYTES)
            if position == self._expected and self._first_offset is not None:
                run = self._plain_run(position)
                if run is not None:
                    yield run
                    position = self._expected = run.end
                    continue
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

    def _plain_run(self, position: int) -> Run | None:
        """Return the next members as long as all is right with them and they are in memory; ``None`` when none is.

        Nearly all members are of that kind. `_member` answers the questions that the others raise, in ten times the
        time.
        """
        window, membership, read_data, methods = self._window, self._membership, self._read_data, self._methods
        data, base, view = window.data, window.base, memoryview(window.data)
        unpack, length, at = _SIZES.unpack_from, len(data), position - base
        last, kind_bytes, size_limit = length - LOCAL.size, LOCAL_HEAD.size, _PLAIN_SIZE_BYTES
        has_evidence = membership.has_evidence
        rows: list[Row] = []
        names: list[bytes] = []
        modes: dict[int, int] = {}
        for _ in range(_RUN_LIMIT):
            if at > last:
                break
            kind, crc, compressed_size, size, name_length, extra_length = unpack(data, at)
            method = methods.get(kind)
            if method is None:
                method = methods[kind]
            name_end = at + 30 + name_length
            start = name_end + extra_length
            end = start + compressed_size
            if method < 0 or end > length or not name_length or size > size_limit:
                break
            if not compressed_size or not read_data:
                if (size or crc) if not compressed_size else (method == STORED and compressed_size != size):
                    break
                if methods.get(data[end : end + kind_bytes], -1) < 0 and not is_boundary(window, base + end):
                    break
            elif method == STORED:
                if compressed_size != size or crc32(view[start:end]) != crc:
                    break
            else:
                plain = inflate(view[start:end], size)
                if plain is None or crc32(plain) != crc:
                    break
            name = data[at + 30 : name_end]
            if b"\0" in name:
                break
            if extra_length or has_evidence:
                is_clear, mode = membership.is_clear(base + at, name, data[name_end:start], data[at:start])
                if not is_clear:
                    break
                if mode is not None:
                    modes[at] = mode
            rows.append((at, start, crc, compressed_size, size, name_length))
            names.append(name)
            at = end
        if not rows:
            return None
        state: State = "whole" if read_data else "unverified"
        return Run(base, data, rows, names, modes, base + at, state, "" if read_data else UNREAD)

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
        belongs = self._membership.of(header, header_bytes, entry=entry, is_expected=is_expected)
        if belongs.answer == "no":
            return None
        claim = Claim(position, header, belongs.origin is not None, is_expected, belongs.entry)
        verdict = self._examiner.proven(claim) if oddity and not claim.is_backed else self._examiner.examine(claim)
        if verdict is None or verdict.end > self._window.end:
            return None
        if oddity:
            # A header that says impossible things counts only where its data proves the rest of it, its bounds do, or
            # the directory, as long as it tells where its data begins.
            entry, is_whole = belongs.entry, verdict.state in ("whole", "unverified") and verdict.facts.compressed_size
            if not is_whole and (entry is None or len(entry.name_bytes) != len(verdict.header.name)):
                return None
            belongs = belongs._replace(doubt=belongs.doubt or f"its local header is damaged: {oddity}")
            if entry is None and _CONTROL.search(verdict.header.name):
                verdict = verdict._replace(state="partial")
        if verdict.header.length != len(header_bytes):
            header_bytes = self._window.read(position, verdict.header.length)
        return _found(position, header_bytes, verdict, belongs)

    def _skip(self, position: int) -> Generator[Found | Gap | Nested, None, int]:
        """Go on to where the next member or directory may begin; return that position."""
        window = self._window
        data, at = window.data, position - window.base
        if at >= len(data):
            # The file has become shorter.
            yield from self._extend_gap(position, window.end, "unknown")
            return window.end
        match = BOUNDARY_PATTERN.search(data, at)
        if match is not None and match.start() == at:
            if data[at : at + 4] != LOCAL_SIGNATURE:
                found = directory_range(window, position)
                if found.end > position:
                    yield from self._extend_gap(position, found.end, "directory")
                    yield from self._nested(found)
                    return found.end
            match = BOUNDARY_PATTERN.search(data, at + 1)
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
        if found.recorded is None or found.first is None or self._membership.evidence is not None:
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
        if has_member_before or is_header(self._window, found.end):
            yield from self._flush_gap()
            yield Nested(base, found.end - base)


class _PlainMethods(dict[bytes, int]):
    """The methods of headers by their first bytes, -1 when there is anything unusual about them."""

    def __missing__(self, kind: bytes) -> int:
        if len(self) >= _KINDS_LIMIT:
            self.clear()
        signature, needed, flags, method = LOCAL_HEAD.unpack(kind)
        is_plain = signature == LOCAL_SIGNATURE and needed <= NEWEST_VERSION and not flags & _UNUSUAL_FLAGS
        found = self[kind] = int(method) if is_plain and method in _USUAL_METHODS else -1
        return found


def _found(position: int, header_bytes: bytes, verdict: Verdict, belongs: Belongs) -> Found:
    header, facts, end, state, reason, recoverable = verdict
    _, origin, entry, doubt = belongs
    if doubt:
        reason = f"{reason}; {doubt}" if reason else doubt
        state = "unverified" if state == "whole" else state
        if entry is not None and origin is None and _is_better_name(entry.name_bytes, header.name):
            header = header._replace(name=entry.name_bytes, flags=header.flags & ~FLAG_UTF8 | entry.flags & FLAG_UTF8)
    name = decode_name(header.name, header.flags, header.extra)
    return Found(position, header, header_bytes, name, *facts, end, state, reason, recoverable, origin)


def _is_better_name(listed: bytes, found: bytes) -> bool:
    """Tell whether the name in the directory is to be preferred to another one in the local header.

    Nothing tells which of the two is damaged, save that damage may leave what no name has.
    """
    return not _CONTROL.search(listed) or _CONTROL.search(found) is not None
