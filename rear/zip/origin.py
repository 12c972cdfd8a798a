"""rear's own extra field: of each member, where it came from and where it belongs.

It stands in the local header alone, the last of its fields, so that a temp archive whose journal is lost can still be
placed and a scanner can tell our members from those of a Zip inside a Zip: see ``docs/reference/format.md``.
"""

from __future__ import annotations

import json
import struct
from typing import Final

from rear.core.records import Metadata, Origin, PackedMetadata, is_metadata
from rear.errors import ZipFormatError
from rear.zip.codecs import crc32
from rear.zip.structures import EXTRA_HEADER, LOCAL, ORIGIN, ORIGIN_NUMBERS

ORIGIN_VERSION: Final = 1
ORIGIN_HEAD: Final = struct.Struct("<BI")  # version, check
_ORIGIN_FIXED: Final = struct.Struct(f"{ORIGIN_NUMBERS.format}Q4H")


def encode_metadata(metadata: Metadata | PackedMetadata | None) -> bytes:
    """Return metadata as it stands in the extra field: compact JSON in UTF-8, nothing for none.

    Raises:
        ZipFormatError: half a character is in it, as only a forged record or header brings it.
    """
    if metadata is None:
        return b""
    if isinstance(metadata, bytes):
        return metadata
    try:
        return json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ZipFormatError(f"its metadata is no text in UTF-8: {error}") from None


def encode_origin(origin: Origin, limit: int) -> bytes:
    archive, host, worker = origin.archive.encode(), origin.host.encode(), origin.worker.encode()
    source = b"" if origin.source is None else origin.source.encode("utf-8", "surrogateescape")
    metadata = encode_metadata(origin.metadata)
    length = _ORIGIN_FIXED.size + len(archive) + len(host) + len(worker) + len(metadata)
    if length + len(source) > limit:
        source = b""
    numbers = origin.cookie, origin.sequence, origin.mtime_ns, origin.mode, origin.source_start
    fixed = _ORIGIN_FIXED.pack(*numbers, len(archive), len(host), len(worker), len(source))
    return b"".join((fixed, archive, host, worker, source, metadata))


def origin_constants(archive: str, host: str, worker: str) -> tuple[bytes, bytes]:
    """Return what precedes the check of an origin field and what follows the mode in it: without source or metadata."""
    texts = [text.encode() for text in (archive, host, worker)]
    tail = struct.pack("<Q4H", 0, *map(len, texts), 0) + b"".join(texts)
    length = ORIGIN_HEAD.size + ORIGIN_NUMBERS.size + len(tail)
    return EXTRA_HEADER.pack(ORIGIN, length) + bytes([ORIGIN_VERSION]), tail


def _checked_origin(header: bytes, extra_length: int) -> tuple[int, int] | None:
    """Return begin and end of rear's own field, behind its checksum, when that is right for it and for the header."""
    start, end = len(header) - extra_length, len(header)
    if start < LOCAL.size:
        return None
    while start + EXTRA_HEADER.size <= end:
        identifier, length = EXTRA_HEADER.unpack_from(header, start)
        data = start + EXTRA_HEADER.size
        following = data + length
        if following > end:
            return None
        if identifier == ORIGIN and length >= ORIGIN_HEAD.size + _ORIGIN_FIXED.size:
            version, check = ORIGIN_HEAD.unpack_from(header, data)
            tail = data + ORIGIN_HEAD.size
            is_right = version == ORIGIN_VERSION and crc32(header[tail:following], crc32(header[:start])) == check
            return (tail, following) if is_right else None
        start = following
    return None


def check_origin(header: bytes, extra_length: int) -> tuple[int, int] | None:
    """Return cookie and mode from a local header that passes the checksum of rear's own field.

    ``None`` when there is no such field, or what it says makes no sense: exactly where `decode_origin` has none.

    Args:
        header: the local header, whole, nothing after it.
        extra_length: what it says is the length of its extra area.
    """
    found = _checked_origin(header, extra_length)
    if found is None:
        return None
    start, end = found
    cookie, _, _, mode, _, *lengths = _ORIGIN_FIXED.unpack_from(header, start)
    # The texts fill the field to its end, unless there is metadata, which has to be read to know.
    if start + _ORIGIN_FIXED.size + sum(lengths) != end and decode_origin(header) is None:
        return None
    return cookie, mode


def decode_origin(header: bytes) -> Origin | None:
    """Return what rear's own field says in the local header ``header`` (whole, nothing after it).

    ``None`` when there is none, its version is unknown, or header and field do not pass the field's checksum.
    """
    found = _checked_origin(header, int.from_bytes(header[28:30], "little"))
    if found is None:
        return None
    position, end = found
    cookie, sequence, mtime_ns, mode, source_start, *lengths = _ORIGIN_FIXED.unpack_from(header, position)
    position += _ORIGIN_FIXED.size
    texts = []
    for length in lengths:
        texts.append(header[position : position + length].decode("utf-8", "surrogateescape") if length else "")
        position += length
    if position > end:
        return None
    archive, host, worker, source = texts
    try:
        metadata = json.loads(header[position:end]) if position < end else None
    except (ValueError, RecursionError):
        return None
    if metadata is not None and not is_metadata(metadata):
        return None
    return Origin(cookie, sequence, archive, host, worker, mtime_ns, mode, source or None, source_start, metadata)
