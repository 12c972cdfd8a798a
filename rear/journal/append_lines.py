"""The fast way to read append records, of which nearly all lines of a journal are: many at once, decoded by msgspec.

`rear.journal.codec` says what a record is, and takes a line of any form. Here runs of lines are taken that hold plain
records, as `rear.journal.encoder` writes them: known keys alone, UTF-8. Records with metadata are taken one by one. Of
other lines nothing is said here.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from operator import attrgetter
from typing import Annotated, Any, Final

from rear.core.records import Append, bounds_of
from rear.errors import JournalError
from rear.journal.codec import METADATA_BYTES, decode_json, pack
from rear.zip.codecs import crc32

_BEGIN: Final = b' {"kind":"append",'
_CHECKSUM_LENGTH: Final = 8
_FEW: Final = 4
_TEXTS: Final[dict[str, Any]] = {"source": str | None, "archive": str, "name": str}


def parse_appends(lines: list[bytes]) -> Iterator[tuple[list[bytes], list[Append] | None]]:
    """Yield ``(lines, records)`` of lines without their newlines, in order, in pieces; ``None`` instead of records:
    these are to be read one by one.
    """
    begin = 0
    # Lines of another form divide them into runs.
    others = [
        number
        for number, line in enumerate(lines)
        if not line.startswith(_BEGIN, _CHECKSUM_LENGTH) or b'"metadata":' in line
    ]
    for number in (*others, len(lines)):
        if number > begin:
            run = lines[begin:number]
            yield run, _parse(run) if len(run) >= _FEW else None
        if number < len(lines):
            yield [lines[number]], _parse_with_metadata(lines[number])
        begin = number + 1


def _parse(run: list[bytes]) -> list[Append] | None:
    payloads = [line[_CHECKSUM_LENGTH + 1 :] for line in run]
    try:
        checksums = binascii.unhexlify(b"".join([line[:_CHECKSUM_LENGTH] for line in run]))
        if checksums != struct.pack(f">{len(run)}I", *map(crc32, payloads)):
            return None
        return _append_decoder(has_metadata=False)(payloads)
    except (ValueError, RecursionError):
        # Of msgspec, too: a value of another type or size, another key, no UTF-8, or too deep.
        return None


def _parse_with_metadata(line: bytes) -> list[Append] | None:
    if not line.startswith(_BEGIN, _CHECKSUM_LENGTH):
        return None
    payload = line[_CHECKSUM_LENGTH + 1 :]
    try:
        if int(line[:_CHECKSUM_LENGTH], 16) != crc32(payload):
            return None
        (append,) = _append_decoder(has_metadata=True)([payload])
        raw: Any = append.metadata
        # Numbers and depth in them have to be looked at; and what is not written as rear does it has another length.
        metadata = bytes(raw)
        if len(metadata) > METADATA_BYTES:
            return None
        return [append._replace(metadata=metadata)] if pack(decode_json(metadata.decode())) == metadata else None
    except (ValueError, RecursionError, JournalError):
        return None


@cache
def _append_decoder(*, has_metadata: bool) -> Callable[[Iterable[bytes]], list[Append]]:
    # Not on import: a worker has no use for it.
    import msgspec

    def field(name: str) -> tuple[str, Any, Any]:
        least, most = bounds_of(name)
        if name == "metadata":
            return (name, msgspec.Raw, msgspec.NODEFAULT) if has_metadata else (name, None, None)
        kind = _TEXTS[name] if name in _TEXTS else Annotated[int, msgspec.Meta(ge=least, le=most)]
        return name, kind, None if name == "source" else msgspec.NODEFAULT

    plain_append = msgspec.defstruct(
        "PlainAppend",
        map(field, Append._fields),
        tag_field="kind",
        tag="append",
        forbid_unknown_fields=True,
        kw_only=True,
        gc=False,
    )
    decode = msgspec.json.Decoder(plain_append).decode
    values_of = attrgetter(*Append._fields)
    # A named tuple's own way to make one takes twice as long.
    new_append = partial(tuple.__new__, Append)
    return lambda payloads: list(map(new_append, map(values_of, map(decode, payloads))))
