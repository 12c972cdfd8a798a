"""How far the data of a member decodes, and where its stream ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from rear.codecs import DEFLATED, LZMA, STORED, ZSTANDARD, StreamDecoder, crc32, inflate
from rear.errors import UnsupportedError, ZipFormatError
from rear.window import Window

#: A zero-filled end this long is taken for what a dead host left, not for data.
ZERO_TAIL_BYTES: Final = 512
#: Deflated members up to this size are decoded in one go.
_AT_ONCE_BYTES: Final = 1 << 16
_AT_ONCE_LIMIT_BYTES: Final = 1 << 24


class Decoded(NamedTuple):
    """What a range of bytes decodes to."""

    #: Plain bytes, as far as they decode.
    size: int
    crc: int
    #: Bytes of the range up to the end of the stream, or to where it is damaged.
    consumed: int
    #: The stream has an end, and it was reached.
    ended: bool
    reason: str


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
    produced = 0

    def rest(plain: bytes) -> bytes:
        return plain[max(0, skip - (produced - len(plain))) :]

    for chunk in _chunks(window, start, position, stream.feed_bytes):
        for plain in stream.decode(chunk):
            produced += len(plain)
    for byte in bytes(window.read(position, length)):
        position += 1
        for plain in stream.decode(bytes((byte,))):
            produced += len(plain)
            if produced > skip:
                yield rest(plain), position - start, False
        if stream.ended:
            yield b"", position - start, True
            return


def decode_stream(window: Window, method: int, start: int, end: int, *, limit: int | None = None) -> Decoded:
    """Decode a compressed stream that begins at ``start``, to its end, to damage, or to ``end``.

    Args:
        window: the file.
        method: compression method, not stored.
        start: where the data begins.
        end: where it has to have ended.
        limit: stop when more than this many plain bytes came out.
    """
    size = crc = consumed = 0
    ended = False
    try:
        for plain, consumed, ended in stream_pieces(window, method, start, end):  # noqa: B007
            if limit is not None and size + len(plain) > limit:
                return Decoded(limit, crc, consumed, False, f"the data expands to more than {limit:,} bytes")
            crc = crc32(plain, crc)
            size += len(plain)
    except (ZipFormatError, UnsupportedError) as error:
        return Decoded(size, crc, consumed, False, str(error))
    reason = "" if ended else f"the data ends after {end - start:,} bytes, in the middle of its stream"
    return Decoded(size, crc, consumed if ended else end - start, ended, reason)
