"""How far the data of a member decodes, and where its stream ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from rear.errors import UnsupportedError, ZipFormatError
from rear.salvage.local_headers import Facts
from rear.salvage.stream_checks import METHODS_WITH_CHECKS, STREAM_LIMIT_BYTES, with_other_checks
from rear.zip.codecs import DEFLATE64, DEFLATED, LZMA, STORED, ZSTANDARD, StreamDecoder, crc32, inflate
from rear.zip.window import Window

#: A zero-filled end this long is taken for what a dead host left, not for data.
ZERO_TAIL_BYTES: Final = 512
#: Deflated members up to this size are decoded in one go.
_AT_ONCE_BYTES: Final = 1 << 16
_AT_ONCE_LIMIT_BYTES: Final = 1 << 24
#: What a damaged Deflate64 stream may take that is decoded a symbol at a time, and how much slower that is.
_INFLATE64_BYTES: Final = 1 << 18
_INFLATE64_COST: Final = 32


class Decoded(NamedTuple):
    """What a range of bytes decodes to."""

    #: Plain bytes, as far as they decode.
    size: int
    #: Of these.
    crc: int
    #: Bytes of the range up to the end of the stream, or to where it is damaged.
    consumed: int
    #: The stream has an end, and it was reached.
    ended: bool
    reason: str

    @property
    def facts(self) -> Facts:
        """Sizes and CRC-32, as found."""
        return Facts(self.crc, self.consumed, self.size)


NOTHING_DECODED: Final = Decoded(0, 0, 0, False, "")


def crc_of(window: Window, start: int, end: int, crc: int = 0) -> int:
    """Return the CRC-32 of a range of bytes."""
    for piece in window.pieces(start, end):
        crc = crc32(piece, crc)
    return crc


def without_zero_tail(window: Window, start: int, end: int) -> int:
    """Return how many bytes of a range come before the zeros at its end, if these are many."""
    used = position = 0
    for piece in window.pieces(start, end):
        kept = len(bytes(piece).rstrip(b"\0"))
        if kept:
            used = position + kept
        position += len(piece)
    return used if position - used >= ZERO_TAIL_BYTES else position


def decodes_to(window: Window, method: int, start: int, end: int, *, size: int, crc: int) -> bool:
    """Tell whether a range is the whole data of a member with that plain size and CRC-32, and nothing more.

    Raises:
        UnsupportedError: no codec for the method, or it needs too much memory.
    """
    length = end - start
    if method == STORED:
        return length == size and crc_of(window, start, end) == crc
    if method == DEFLATED and length <= _AT_ONCE_BYTES and size <= _AT_ONCE_LIMIT_BYTES:
        piece = next(window.pieces(start, end), None)
        if piece is not None and len(piece) == length:
            plain = inflate(piece, size)
            return plain is not None and crc32(plain) == crc
    position = start
    found_size = found_crc = 0
    # Zstandard data may be several frames (RFC 8878, 3.1); other streams have one end.
    while position < end or position == start:
        found_end = position
        try:
            for plain, consumed, ended in stream_pieces(window, method, position, end):
                found_size += len(plain)
                found_crc = crc32(plain, found_crc)
                if found_size > size:
                    return False
                if ended:
                    found_end = position + consumed
        except ZipFormatError:
            return False
        if found_end == position:
            # Without an end mark (4.4.4, bit 1) size and CRC decide.
            return method == LZMA and (found_size, found_crc) == (size, crc)
        position = found_end
        if method != ZSTANDARD:
            break
    return position == end and (found_size, found_crc) == (size, crc)


def stream_pieces(window: Window, method: int, start: int, end: int) -> Iterator[tuple[bytes, int, bool]]:
    """Yield plain bytes of a compressed stream with the bytes consumed so far and whether it has ended.

    Every byte is handed out that decodes before the end or the damage: where something is met in the middle of a
    chunk of input, that chunk is decoded again byte by byte.

    Raises:
        ZipFormatError: damage, after all that comes before it.
        UnsupportedError: no codec for the method.
    """
    stream = StreamDecoder(method)
    position, produced = start, 0
    for chunk in _chunks(window, start, end, stream.feed_bytes):
        before = produced
        try:
            for plain in stream.decode(chunk):
                produced += len(plain)
                if stream.ended and stream.unused_bytes is None:
                    continue
                yield plain, position + len(chunk) - start, False
        except ZipFormatError:
            yield from _byte_by_byte(window, method, start, position, len(chunk), produced)
            raise
        if stream.ended:
            if stream.unused_bytes is None:
                yield from _byte_by_byte(window, method, start, position, len(chunk), before)
                return
            yield b"", position + len(chunk) - stream.unused_bytes - start, True
            return
        position += len(chunk)


def _chunks(window: Window, start: int, end: int, length: int) -> Iterator[bytes]:
    for piece in window.pieces(start, end):
        for at in range(0, len(piece), length):
            yield bytes(piece[at : at + length])


def _byte_by_byte(
    window: Window, method: int, start: int, position: int, length: int, skip: int
) -> Iterator[tuple[bytes, int, bool]]:
    """Decode again up to ``position``, then ``length`` bytes singly; leave out the first ``skip`` plain bytes."""
    stream = StreamDecoder(method)
    before = (stream.decode(chunk) for chunk in _chunks(window, start, position, stream.feed_bytes))
    produced = sum(len(plain) for pieces in before for plain in pieces)
    for byte in bytes(window.read(position, length)):
        position += 1
        for plain in stream.decode(bytes((byte,))):
            produced += len(plain)
            if produced > skip:
                yield plain[max(0, skip - (produced - len(plain))) :], position - start, False
        if stream.ended:
            yield b"", position - start, True
            return


def recoverable_pieces(window: Window, method: int, start: int, end: int) -> Iterator[tuple[bytes, int, bool]]:
    """Like `stream_pieces`, with what decoders keep to themselves of a damaged or torn stream.

    That is what stands in a block, or a frame, whose own check is damaged, and the last 64 KiB of Deflate64.

    Raises:
        ZipFormatError: damage, or a damaged check, after all that can be had.
        UnsupportedError: no codec for the method.
    """
    produced = consumed = 0
    try:
        for plain, consumed, ended in stream_pieces(window, method, start, end):
            produced += len(plain)
            yield plain, consumed, ended
            if ended:
                return
    except ZipFormatError:
        for plain in _kept_back(window, method, start, end, produced):
            yield plain, consumed, False
        raise
    for plain in _kept_back(window, method, start, end, produced):
        yield plain, consumed, False


def recovery_cost_bytes(method: int, length: int) -> int:
    """Return what it costs to get at what a decoder keeps back, in bytes that are read in the same time."""
    if method == DEFLATE64:
        return _INFLATE64_COST * min(length, _INFLATE64_BYTES)
    return min(length, STREAM_LIMIT_BYTES) if method in METHODS_WITH_CHECKS else 0


def _kept_back(window: Window, method: int, start: int, end: int, produced: int) -> Iterator[bytes]:
    if method in METHODS_WITH_CHECKS:
        yield from _behind_checks(method, window.read(start, min(end - start, STREAM_LIMIT_BYTES)), produced)
    elif method == DEFLATE64:
        from rear.salvage.inflate64 import inflate64

        plain = inflate64(window.read(start, min(end - start, _INFLATE64_BYTES)), _AT_ONCE_LIMIT_BYTES)
        if len(plain) > produced:
            yield plain[produced:]


def _behind_checks(method: int, data: bytes, skip: int) -> Iterator[bytes]:
    """Yield the plain bytes behind the first ``skip`` ones, from the first repair that brings any."""
    for repaired in with_other_checks(method, data):
        stream, produced = StreamDecoder(method), 0
        try:
            for at in range(0, len(repaired), stream.feed_bytes):
                for plain in stream.decode(repaired[at : at + stream.feed_bytes]):
                    produced += len(plain)
                    if produced > skip:
                        yield plain[max(0, skip - (produced - len(plain))) :]
                if stream.ended:
                    break
        except ZipFormatError:
            pass
        if produced > skip:
            return


def decode_stream(window: Window, method: int, start: int, end: int, *, trust_checks: bool) -> Decoded:
    """Decode a compressed stream that begins at ``start``, to its end, to damage, or to ``end``.

    With ``trust_checks``, stop where a check fails that the stream itself carries; else go on, if that can be done.
    """
    size = crc = consumed = 0
    ended = False
    pieces = stream_pieces if trust_checks else recoverable_pieces
    try:
        for plain, consumed, ended in pieces(window, method, start, end):  # noqa: B007
            crc = crc32(plain, crc)
            size += len(plain)
    except (ZipFormatError, UnsupportedError) as error:
        return Decoded(size, crc, consumed, False, str(error))
    reason = "" if ended else f"the data ends after {end - start:,} bytes, in the middle of its stream"
    return Decoded(size, crc, consumed if ended else end - start, ended, reason)
