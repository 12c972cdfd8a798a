"""Repairs of the checks that bzip2 and Zstandard keep inside a stream: a decoder hands out nothing where one is wrong.

The CRC-32 of the Zip says afterwards whether the data is right. Both checks can be made anew:

* bzip2 has a CRC-32 a block and one of all of these behind the last: any one of them follows from the others.
* a Zstandard frame need not say how large its content is (RFC 8878, 3.1.1.1.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rear.zip.codecs import BZIP2, ZSTANDARD

METHODS_WITH_CHECKS: Final = frozenset({BZIP2, ZSTANDARD})
STREAM_LIMIT_BYTES: Final = 1 << 22
"""Longer streams are taken up to here: all of one is in memory."""

_BLOCK_MAGIC: Final = bytes.fromhex("314159265359")
_END_MAGIC: Final = bytes.fromhex("177245385090")
_MAGIC_BITS: Final = 48
_CRC_MASK: Final = 0xFFFFFFFF
_CRC_BITS: Final = 32
_BLOCKS_LIMIT: Final = 64

_FRAME_MAGIC: Final = bytes.fromhex("28b52ffd")
#: Bits of the frame header descriptor that stay: reserved ones, content checksum, dictionary.
_KEPT_DESCRIPTOR_BITS: Final = 0x1F
_SINGLE_SEGMENT: Final = 1 << 5
_WINDOW_8_MIB: Final = 13 << 3
_DICTIONARY_LENGTHS: Final = (0, 1, 2, 4)
_SIZE_LENGTHS: Final = (0, 2, 4, 8)


def with_other_checks(method: int, data: bytes) -> Iterator[bytes]:
    """Yield a damaged stream with one of its own checks repaired, in each way that is possible.

    ``data`` begins with the stream, is at most `STREAM_LIMIT_BYTES` long, and may hold more behind it.
    """
    if method == BZIP2:
        yield from _bzip2(data)
    elif method == ZSTANDARD:
        yield from _zstandard(data)


def _bzip2(data: bytes) -> Iterator[bytes]:
    """Yield the stream with one block's CRC as it follows from all others, for each block."""
    if not data.startswith(_BLOCK_MAGIC, 4):
        return
    bits, length = int.from_bytes(data, "big"), len(data) * 8
    end = min(_positions(bits, length, _END_MAGIC), default=length)
    blocks = sorted(at for at in _positions(bits, length, _BLOCK_MAGIC) if at < end)
    if end + _MAGIC_BITS + _CRC_BITS > length or len(blocks) > _BLOCKS_LIMIT:
        return

    def crc_at(position: int) -> int:
        return bits >> (length - position - _MAGIC_BITS - _CRC_BITS) & _CRC_MASK

    crcs, combined = [crc_at(at) for at in blocks], 0
    for crc in crcs:
        combined = _rotated(combined, 1) ^ crc
    wrong = combined ^ crc_at(end)
    for number, at in enumerate(blocks):
        # Each block that follows has turned the sum by one bit.
        difference = _rotated(wrong, -(len(blocks) - 1 - number) % _CRC_BITS)
        repaired = bits ^ difference << (length - at - _MAGIC_BITS - _CRC_BITS)
        if difference:
            yield repaired.to_bytes(len(data), "big")


def _positions(bits: int, length: int, magic: bytes) -> Iterator[int]:
    """Yield where ``magic`` begins, in bits: blocks end anywhere within a byte."""
    for shift in range(8):
        shifted = (bits >> shift).to_bytes(length // 8, "big")
        at = shifted.find(magic)
        while at >= 0:
            if 8 * at >= shift:
                yield 8 * at - shift
            at = shifted.find(magic, at + 1)


def _rotated(value: int, count: int) -> int:
    count %= _CRC_BITS
    return (value << count | value >> (_CRC_BITS - count)) & _CRC_MASK


def _zstandard(data: bytes) -> Iterator[bytes]:
    """Yield the frame without the size of its content."""
    if len(data) < 6 or not data.startswith(_FRAME_MAGIC):
        return
    descriptor = data[4]
    is_single = bool(descriptor & _SINGLE_SEGMENT)
    size_length = _SIZE_LENGTHS[descriptor >> 6] or int(is_single)
    if not size_length:
        return
    # A single segment has no window of its own: its size is that of the content.
    window, dictionary = (bytes([_WINDOW_8_MIB]), 5) if is_single else (data[5:6], 6)
    size = dictionary + _DICTIONARY_LENGTHS[descriptor & 3]
    head = data[:4] + bytes([descriptor & _KEPT_DESCRIPTOR_BITS]) + window + data[dictionary:size]
    yield head + data[size + size_length :]
