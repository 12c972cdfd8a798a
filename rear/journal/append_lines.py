"""Many append records of a journal at once: their lines as the worker writes them, taken apart by one expression.

`rear.journal.codec` says what a record is, and takes a line of any form. Here a block of lines is read, a fraction of the
time each, of those that have the very form that `rear.journal.encoder` gives them.
"""

from __future__ import annotations

import binascii
import json
import re
import struct
from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import chain, repeat
from typing import Final

from rear.core.records import Append
from rear.zip.codecs import crc32

LARGEST: Final = 0x7FFFFFFFFFFFFFFF
"""Largest number in a record."""
# No raw control character and here no escape in a text. Numbers are JSON's in the end: it refuses a zero before them.
_TEXT: Final = rb'[^"\\\x00-\x1f]'
_KEYS: Final = bytes(range(ord("a"), ord("z") + 1)) + b'_":'
"""What is deleted of ``"offset":5,"length":7``, so that the numbers are left."""


@cache
def _line() -> re.Pattern[bytes]:
    # Not on import: a worker has no use for it.
    before_source = rb'("sequence":[0-9]+)'
    source = rb'(?:,"source":"(%b+)")?' % _TEXT
    before_texts = rb'("source_start":[0-9]+,"source_end":[0-9]+,"offset":[0-9]+,"length":[0-9]+)'
    texts = rb'"archive":"(%b*)","name":"(%b*)"' % (_TEXT, _TEXT)
    after_texts = (
        rb'("method":[0-9]+,"crc":[0-9]+,"compressed_size":[0-9]+,"size":[0-9]+,"mtime_ns":-?[0-9]+,"mode":[0-9]+)'
    )
    parts = (before_source + source, before_texts, texts, after_texts)
    return re.compile(rb'(?:([0-9a-f]{8}) (\{"kind":"append",%b\})|[^\n]*)\n' % b",".join(parts))


_CHECKSUM_AND_BREAKS: Final = len(b"01234567 \n")
_FEW: Final = 4
_RARE_FIELDS: Final = len(Append._fields) - Append._fields.index("mode") - 1
"""How many fields these lines do not have."""
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
    checksums, payloads, numbers_1, sources, numbers_2, archives, names, numbers_3 = columns
    if binascii.unhexlify(b"".join(checksums)) != struct.pack(f">{len(payloads)}I", *map(crc32, payloads)):
        return None
    try:
        sequence = _numbers(numbers_1)
        middle, last = _numbers(numbers_2), _numbers(numbers_3)
    except ValueError:
        return None
    source_start, source_end, offset, length = (middle[start::4] for start in range(4))
    method, crc, compressed_size, size, mtime_ns, mode = (last[start::6] for start in range(6))
    if (
        max(max(sequence), max(middle), max(compressed_size), max(size), max(mtime_ns), -min(mtime_ns)) > LARGEST
        or max(max(crc), max(mode)) > 0xFFFFFFFF
        or max(method) > 0xFFFF
    ):
        return None
    archive = {text: _decoded(text) for text in set(archives)}
    source: Iterable[str | None] = repeat(None)
    if any(sources):
        source = [_decoded(text) if text else None for text in sources]
    fields = zip(
        sequence, source, source_start, source_end, offset, length, map(archive.__getitem__, archives),
        map(_decoded, names), method, crc, compressed_size, size, mtime_ns, mode, *[repeat(None)] * _RARE_FIELDS,
        strict=False,
    )  # fmt: skip
    return list(map(_new_append, fields))


def _numbers(texts: _Found) -> list[int]:
    """Return all numbers of keys and numbers.

    Raises:
        ValueError: one is none of JSON.
    """
    found: list[int] = json.loads(b"[%b]" % b",".join(texts).translate(None, _KEYS))
    return found


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
