"""Many append records of a journal at once: their lines as the worker writes them, taken apart by one expression.

`rear.journal` says what a record is, and takes a line of any form. Here a block of lines is read, a fraction of the
time each, of those that have the very form that `rear.encoder` gives them.
"""

from __future__ import annotations

import binascii
import re
import struct
from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import chain, repeat
from typing import Final

from rear.codecs import crc32
from rear.records import Append

LARGEST: Final = 0x7FFFFFFFFFFFFFFF
"""Largest number in a record."""
# JSON's own forms alone: no zero before a number, no raw control character and here no escape in a text.
_NUMBER: Final = rb"(0|[1-9][0-9]{0,18})"
_SIGNED: Final = rb"(0|-?[1-9][0-9]{0,18})"
_TEXT: Final = rb'[^"\\\x00-\x1f]'
_SOURCE: Final = rb'(?:"source":"(%b+)",)?' % _TEXT
_QUOTED: Final = rb'"(%b*)"' % _TEXT


_FORM: Final = (
    rb'\{"kind":"append","sequence":%b,%b"source_start":0,"source_end":%b,"offset":%b,"length":%b,"archive":%b,"name":%b,'
    rb'"method":%b,"crc":%b,"compressed_size":%b,"size":%b,"mtime_ns":%b,"mode":%b\}'
)


@cache
def _line() -> re.Pattern[bytes]:
    # Not on import: a worker has no use for it.
    numbers = [_NUMBER] * 4
    payload = _FORM % (_NUMBER, _SOURCE, *numbers[:3], _QUOTED, _QUOTED, *numbers, _SIGNED, _NUMBER)
    return re.compile(rb"(?:([0-9a-f]{8}) (%b)|[^\n]*)\n" % payload)


_CHECKSUM_AND_BREAKS: Final = len(b"01234567 \n")
_FEW: Final = 4
_new_append: Final = partial(tuple.__new__, Append)
_Found = tuple[bytes, ...]


def parse_appends(block: bytes) -> Iterator[tuple[int, list[Append] | None]]:
    """Yield ``(length, records)`` of a block of whole lines, from its begin to its end; ``None`` instead of records:
    these bytes are to be read line by line.
    """
    found: list[_Found] = _line().findall(block)
    begin = position = 0
    # Lines of another form divide the block into runs.
    for number in chain([number for number, groups in enumerate(found) if not groups[0]], (len(found),)):
        length = 0
        if number > begin:
            columns = tuple(zip(*found[begin:number], strict=True))
            length = sum(map(len, columns[1])) + (number - begin) * _CHECKSUM_AND_BREAKS
            yield length, _parse(columns) if number - begin >= _FEW else None
        position, begin = position + length, number + 1
        if number < len(found):
            length = block.index(b"\n", position) + 1 - position
            yield length, None
            position += length


def _parse(columns: tuple[_Found, ...]) -> list[Append] | None:
    (
        checksums, payloads, sequences, sources, source_ends, offsets, lengths, archives, names, methods, crcs,
        compressed_sizes, sizes, mtimes, modes,
    ) = columns  # fmt: skip
    if binascii.unhexlify(b"".join(checksums)) != struct.pack(f">{len(payloads)}I", *map(crc32, payloads)):
        return None
    sequence, source_end, offset, length, compressed_size, size, crc, mtime_ns = (
        list(map(int, column))
        for column in (sequences, source_ends, offsets, lengths, compressed_sizes, sizes, crcs, mtimes)
    )
    method, mode = {text: int(text) for text in set(methods)}, {text: int(text) for text in set(modes)}
    if (
        max(map(max, (sequence, source_end, offset, length, compressed_size, size, mtime_ns))) > LARGEST
        or min(mtime_ns) < -LARGEST
        or max(max(crc), max(mode.values())) > 0xFFFFFFFF
        or max(method.values()) > 0xFFFF
    ):
        return None
    archive = {text: _decoded(text) for text in set(archives)}
    source: Iterable[str | None] = repeat(None)
    if any(sources):
        source = [_decoded(text) if text else None for text in sources]
    fields = zip(
        sequence, source, repeat(0), source_end, offset, length, map(archive.__getitem__, archives),
        map(_decoded, names), map(method.__getitem__, methods), crc, compressed_size, size, mtime_ns,
        map(mode.__getitem__, modes), repeat(None),
    )  # fmt: skip
    return list(map(_new_append, fields))


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
