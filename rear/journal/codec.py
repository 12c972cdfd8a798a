"""Lines of the journal, the write-ahead log beside a temp archive, made of records and read back.

The worker alone writes the journal. What a scavenger has done with the members it notes in a file of its own beside it
(``.merged``, same format): a worker that was only paused may still write at the end of its journal.

One record a line: the CRC-32 of the payload in eight hexadecimal digits, a space, one JSON object, a newline. The
payload holds the record's kind, so the checksum covers it. Unknown kinds and keys are ignored; a format version from
the future is refused. What becomes of damaged lines, `rear.journal.reader` says. See ``docs/reference/format.md``.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from rear.core.records import (
    LARGEST,
    Abort,
    Append,
    Beat,
    Close,
    File,
    MergedRecord,
    Metadata,
    Open,
    PackedMetadata,
    Part,
    Record,
    bounds_of,
    is_metadata,
    unpacked,
)
from rear.errors import FutureVersionError, JournalError
from rear.zip.codecs import crc32

FORMAT_VERSION: Final = 1
SHORTEST_LINE: Final = 11
"""Bytes of the checksum, a space and an empty object."""
_KINDS: Final[dict[str, type[Any]]] = {
    "open": Open,
    "append": Append,
    "file": File,
    "part": Part,
    "abort": Abort,
    "beat": Beat,
    "close": Close,
    "merged": MergedRecord,
}
METADATA_BYTES: Final = 0xFFFF
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {number:.40} could not be written again")
    return value


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
decode_json = _decoder.decode
_scan_json: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once  # type: ignore[attr-defined]
_encode_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=unpacked
).encode


def encode_line(payload: dict[str, Any]) -> bytes:
    """Return one line: checksum, space, JSON, newline."""
    # surrogateescape: the path of a source may hold bytes that are no UTF-8, and they come back as they were.
    data = _encode_json(payload).encode("utf-8", "surrogateescape")
    return b"%08x %b\n" % (crc32(data), data)


def decode_line(line: bytes) -> dict[str, Any]:
    """Return the payload of one line, given without its newline.

    Raises:
        JournalError: the checksum or the JSON is wrong.
    """
    if len(line) < SHORTEST_LINE or line[8:9] != b" ":
        raise JournalError("not a record")
    try:
        expected = int(line[:8], 16)
    except ValueError:
        raise JournalError("not a record") from None
    data = line[9:]
    if crc32(data) != expected:
        raise JournalError(f"checksum {crc32(data):08x} instead of {expected:08x}")
    try:
        text = data.decode("utf-8", "surrogateescape")
        try:
            # What decode() does besides, looking for white space, takes half of its time.
            payload, end = _scan_json(text, 0)
        except StopIteration:
            payload, end = None, -1
        if end != len(text):
            payload = decode_json(text)
        if b"\\u" in data:
            # A forged escape of half a character could not be written anywhere again.
            _encode_json(payload).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError) as error:
        raise JournalError(f"no JSON: {error}") from None
    if not isinstance(payload, dict):
        raise JournalError("not a JSON object")
    return payload


def encode_record(record: Record) -> bytes:
    """Return a record as one line."""
    fields = zip(record._fields, record, strict=True)
    return encode_line({"kind": _NAMES[type(record)], **{key: value for key, value in fields if value is not None}})


class _Field(NamedTuple):
    key: str
    accepts: Callable[[Any], bool]
    required: bool


def _within(least: int, most: int) -> Callable[[Any], bool]:
    # Exact types: JSON's true is an int to isinstance.
    return lambda value: type(value) is int and least <= value <= most


_is_natural: Final = _within(0, LARGEST)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_naturals(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_natural, value))


_ACCEPTS: Final[dict[str, Callable[[Any], bool]]] = {
    "str": _is_text,
    "float": _is_number,
    "tuple[int, ...]": _are_naturals,
    # How deep it is, `pack` finds out, when it is known not to be too large for that.
    "Metadata": lambda value: isinstance(value, dict),
}


def _schema(kind: type[Any]) -> list[_Field]:
    schema = []
    for name, annotation in kind.__annotations__.items():
        base, _, optional = (annotation if isinstance(annotation, str) else annotation.__forward_arg__).partition(" | ")
        accepts = _within(*bounds_of(name)) if base == "int" else _ACCEPTS[base]
        schema.append(_Field(name, accepts, not optional))
    return schema


_SCHEMAS: Final = {name: _schema(kind) for name, kind in _KINDS.items()}


def _shown(value: object) -> str:
    # What is nested as deep as JSON is read would end the recursion of repr().
    return f"{reprlib.repr(value) if isinstance(value, (dict, list)) else repr(value):.80}"


def decode_record(payload: dict[str, Any]) -> Record | None:
    """Return a payload as a record, or ``None`` for a kind that this version does not know.

    Raises:
        JournalError: a key is missing or has a value of another type.
        FutureVersionError: an ``open`` record of a later format.
    """
    name = payload.get("kind")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(name, str):
        return None
    if kind is Open and _is_natural(payload.get("format_version")) and payload["format_version"] > FORMAT_VERSION:
        raise FutureVersionError(
            f"format version {payload['format_version']}, this rear knows up to {FORMAT_VERSION}: "
            "use the rear that wrote it"
        )
    values = []
    for key, accepts, required in _SCHEMAS[name]:
        value = payload.get(key)
        if not accepts(value) and (required or value is not None):
            raise JournalError(f"{name} record: {key} is {_shown(value)}")
        values.append(value)
    if kind in (Append, File) and values[-1] is not None:
        packed = pack(values[-1])
        if kind is Append:
            values[-1] = packed
    record: Record = kind._make(values)
    if isinstance(record, MergedRecord):
        return record._replace(sequences=tuple(record.sequences))
    return record


def pack(metadata: Metadata) -> PackedMetadata:
    """Return metadata as JSON.

    Raises:
        JournalError: no header could hold them.
    """
    try:
        packed = _encode_json(metadata).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise JournalError(f"its metadata cannot be written: {error}") from None
    if len(packed) > METADATA_BYTES:
        raise JournalError(f"metadata of {len(packed):,} bytes, which no header can hold")
    if not is_metadata(metadata):
        raise JournalError(f"its metadata are {_shown(metadata)}")
    return packed
