"""The write-ahead log beside a temp archive: codec, writer, reader.

The worker alone writes the journal. What a scavenger has done with the members it notes in a file of its own beside it
(``.merged``, same format): a worker that was only paused may still write at the end of its journal.

One record a line: the CRC-32 of the payload in eight hexadecimal digits, a space, one JSON object, a newline. The
payload holds the record's kind, so the checksum covers it. A reader goes on after the next newline when a line is
damaged. A last line without newline is *torn*: its writer died there, and that is normal; any other line that fails
its checksum is *damage*, reported in bytes. Unknown kinds and keys are ignored; a format version from the future is
refused. See ``docs/format.md``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from rear.core.records import Abort, Append, Beat, Close, File, Merged, Open, Part, Record, is_metadata
from rear.errors import FutureVersionError, JournalError
from rear.journal.append_lines import LARGEST
from rear.zip.codecs import crc32

FORMAT_VERSION: Final = 1
_KINDS: Final[dict[str, type[Any]]] = {
    "open": Open, "append": Append, "file": File, "part": Part, "abort": Abort, "beat": Beat, "close": Close,
    "merged": Merged,
}  # fmt: skip
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {number:.40} could not be written again")
    return value


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
_decode_json = _decoder.decode
_scan_json: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once  # type: ignore[attr-defined]
_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode


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
    if len(line) < 11 or line[8:9] != b" ":
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
            payload = _decode_json(text)
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


# Exact types: JSON's true is an int to isinstance.
def _integer(value: Any) -> bool:
    return type(value) is int and -LARGEST <= value <= LARGEST


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _short(limit: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 <= value <= limit


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(map(_natural, value))


_ACCEPTS: Final = {
    "int": _natural, "str": _text, "float": _number, "tuple[int, ...]": _naturals, "Metadata": is_metadata,
}  # fmt: skip
_SIGNED: Final = {"mtime_ns", "created_ns"}
#: What has to fit into a header of a Zip file.
_SHORT: Final = {"mode": 0xFFFFFFFF, "crc": 0xFFFFFFFF, "method": 0xFFFF}


def _schema(kind: type[Any]) -> list[_Field]:
    schema = []
    for name, annotation in kind.__annotations__.items():
        base, _, optional = (annotation if isinstance(annotation, str) else annotation.__forward_arg__).partition(" | ")
        accepts = _integer if name in _SIGNED else _short(_SHORT[name]) if name in _SHORT else _ACCEPTS[base]
        schema.append(_Field(name, accepts, not optional))
    return schema


_SCHEMAS: Final = {name: _schema(kind) for name, kind in _KINDS.items()}

#: Types of the fields of nearly all append records: one comparison instead of a check of each.
_PLAIN_APPENDS: Final = tuple(
    tuple(
        (source if name == "source" else type(None) if name == "metadata" else str)
        if name in ("source", "metadata", "archive", "name")
        else int
        for name in Append._fields
    )
    for source in (type(None), str)
)


def _plain_append(payload: dict[str, Any]) -> Append | None:
    """Return an append record without metadata whose values are as they have to be; ``None``: look closer."""
    values = tuple(map(payload.get, Append._fields))
    if tuple(map(type, values)) not in _PLAIN_APPENDS:
        return None
    record = Append._make(values)
    (
        sequence, _, source_start, source_end, offset, length, _, _, method, crc, compressed_size, size, mtime_ns, mode,
        _,
    ) = record  # fmt: skip
    if (
        min(sequence, source_start, source_end, offset, length, method, crc, compressed_size, size, mode) >= 0
        and max(sequence, source_start, source_end, offset, length, compressed_size, size) <= LARGEST
        and method <= 0xFFFF
        and max(crc, mode) <= 0xFFFFFFFF
        and -LARGEST <= mtime_ns <= LARGEST
    ):
        return record
    return None


def decode_record(payload: dict[str, Any]) -> Record | None:
    """Return a payload as a record, or ``None`` for a kind that this version does not know.

    Raises:
        JournalError: a key is missing or has a value of another type.
        FutureVersionError: an ``open`` record of a later format.
    """
    name = payload.get("kind")
    if name == "append" and (plain := _plain_append(payload)) is not None:
        return plain
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(name, str):
        return None
    if kind is Open and _natural(payload.get("format_version")) and payload["format_version"] > FORMAT_VERSION:
        raise FutureVersionError(
            f"format version {payload['format_version']}, this rear knows up to {FORMAT_VERSION}: "
            "use the rear that wrote it"
        )
    values = []
    for key, accepts, required in _SCHEMAS[name]:
        value = payload.get(key)
        if not accepts(value) and (required or value is not None):
            raise JournalError(f"{name} record: {key} is {value!r:.80}")
        values.append(value)
    record: Record = kind._make(values)
    if isinstance(record, Merged):
        return record._replace(sequences=tuple(record.sequences))
    return record
