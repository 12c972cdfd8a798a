"""Deflate64 a symbol at a time: what a torn or damaged stream still holds.

The compiled decoder keeps up to 64 KiB to itself until the stream ends, so that of a small torn member nothing would
be left. This one is slow and gives out all. It differs from Deflate (RFC 1951) in three symbols: a length of up to
65,538 bytes, and distances of up to 64 KiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_LENGTH_BASES: Final = (
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 3,
)  # fmt: skip
_LENGTH_BITS: Final = (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 16)
_DISTANCE_BASES: Final = (
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145,
    8193, 12289, 16385, 24577, 32769, 49153,
)  # fmt: skip
_CODE_LENGTH_ORDER: Final = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
_FIXED_LENGTHS: Final = (8,) * 144 + (9,) * 112 + (7,) * 24 + (8,) * 8
_FIXED_DISTANCES: Final = (5,) * 32
_END_OF_BLOCK: Final = 256
_LONGEST_CODE_BITS: Final = 15

#: Symbols by length and value of their code.
_Code = dict[tuple[int, int], int]


class _DamagedError(Exception):
    """The stream ends, or says what it cannot mean."""


class _Bits:
    """The bits of a stream, lowest first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._held = self._held_count = 0

    def take(self, count: int) -> int:
        """Return the next bits as a number."""
        while self._held_count < count:
            if self._position >= len(self._data):
                raise _DamagedError
            self._held |= self._data[self._position] << self._held_count
            self._held_count += 8
            self._position += 1
        value = self._held & (1 << count) - 1
        self._held >>= count
        self._held_count -= count
        return value

    def symbol(self, code: _Code) -> int:
        """Return the next symbol of a Huffman code, whose bits come highest first."""
        value = 0
        for length in range(1, _LONGEST_CODE_BITS + 1):
            value = value << 1 | self.take(1)
            found = code.get((length, value))
            if found is not None:
                return found
        raise _DamagedError

    def stored(self) -> tuple[int, bytes]:
        """Return how long a stored block says it is, and what there is of it."""
        self._held = self._held_count = 0
        length = self.take(16)
        if self.take(16) != length ^ 0xFFFF:
            raise _DamagedError
        data = self._data[self._position : self._position + length]
        self._position += len(data)
        return length, data


def _code(lengths: Sequence[int]) -> _Code:
    """Return the canonical code of these lengths (RFC 1951, 3.2.2)."""
    code: _Code = {}
    value = 0
    for length in range(1, _LONGEST_CODE_BITS + 1):
        for symbol, its_length in enumerate(lengths):
            if its_length == length:
                code[length, value] = symbol
                value += 1
        value <<= 1
    return code


def _dynamic_codes(bits: _Bits) -> tuple[_Code, _Code]:
    """Read the codes of a block (RFC 1951, 3.2.7)."""
    literals, distances, count = bits.take(5) + 257, bits.take(5) + 1, bits.take(4) + 4
    lengths = [0] * len(_CODE_LENGTH_ORDER)
    for place in _CODE_LENGTH_ORDER[:count]:
        lengths[place] = bits.take(3)
    code = _code(lengths)
    lengths = []
    while len(lengths) < literals + distances:
        symbol = bits.symbol(code)
        if symbol < 16:
            lengths.append(symbol)
        elif symbol == 16:
            lengths += lengths[-1:] * (3 + bits.take(2))
        else:
            lengths += [0] * (3 + bits.take(3) if symbol == 17 else 11 + bits.take(7))
    return _code(lengths[:literals]), _code(lengths[literals : literals + distances])


def inflate64(data: bytes, limit: int) -> bytes:
    """Return what the begin of a raw Deflate64 stream decodes to, up to its end, damage, or the end of ``data``.

    It stops when ``limit`` bytes came out; what follows the stream does no harm.
    """
    bits, plain = _Bits(data), bytearray()
    try:
        is_last = 0
        while not is_last and len(plain) < limit:
            is_last, kind = bits.take(1), bits.take(2)
            if kind == 0:
                length, stored = bits.stored()
                plain += stored
                if len(stored) < length:
                    break
            elif kind == 1:
                _block(bits, _code(_FIXED_LENGTHS), _code(_FIXED_DISTANCES), plain, limit)
            elif kind == 2:
                _block(bits, *_dynamic_codes(bits), plain, limit)
            else:
                break
    except _DamagedError:
        pass
    return bytes(plain[:limit])


def _block(bits: _Bits, literals: _Code, distances: _Code, plain: bytearray, limit: int) -> None:
    while len(plain) < limit:
        symbol = bits.symbol(literals)
        if symbol == _END_OF_BLOCK:
            return
        if symbol < _END_OF_BLOCK:
            plain.append(symbol)
            continue
        if symbol - 257 >= len(_LENGTH_BASES):
            raise _DamagedError
        length = _LENGTH_BASES[symbol - 257] + bits.take(_LENGTH_BITS[symbol - 257])
        symbol = bits.symbol(distances)
        distance = _DISTANCE_BASES[symbol] + bits.take(max(0, symbol // 2 - 1))
        if distance > len(plain):
            raise _DamagedError
        copied = plain[-distance : len(plain) - distance + length]
        plain += (copied * (length // len(copied) + 1))[:length]
