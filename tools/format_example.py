"""Prints the example of docs/reference/format.md, byte by byte: a pair of the worker's own code, with fixed values.

    python tools/format_example.py

``tools/generate_docs.py`` puts the text into the page, and a test compares the two.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from rear.core.layout import Layout
from rear.core.names import Target
from rear.core.records import Open, Pair
from rear.core.storage import Storage
from rear.journal.codec import FORMAT_VERSION
from rear.worker.pair_writer import Item, PairWriter
from rear.zip.codecs import STORED
from rear.zip.headers import decode_local_header
from rear.zip.origin import decode_origin
from rear.zip.payload import payload_of_bytes
from rear.zip.structures import CENTRAL, END

SECOND_NS: Final = 1_000_000_000
CREATED_NS: Final = 1_767_225_600 * SECOND_NS  # 2026-01-01 00:00:00 UTC
PAIR: Final = Pair("node7", "4711-2b67-0123456789abcdef", 0)
OPEN: Final = Open(
    format_version=FORMAT_VERSION, host=PAIR.host, worker=PAIR.worker, rotation=PAIR.rotation,
    cookie=0x1122334455667701, pid=4711, process_start=11111, boot_id="00000000-1111-2222-3333-444444444444",
    pid_namespace="pid:[4026531836]", uid=1000, lease_seconds=60.0, created_ns=CREATED_NS,
)  # fmt: skip
_BYTES_A_LINE: Final = 16
_TEXT_COLUMN: Final = 8 + 3 * _BYTES_A_LINE + 1


class Field(NamedTuple):
    """Some bytes and what they mean; ``kind`` says how their value is shown."""

    length: int
    meaning: str
    kind: str = "number"


def write_pair(base: str) -> tuple[bytes, bytes]:
    """Write one member, a beat and the end as a worker does; return the journal and the temp archive."""
    layout = Layout(base)
    pair = PairWriter(layout, PAIR, OPEN, storage=Storage())
    item = Item(
        1, Target("ar.zip", "a.txt"), payload_of_bytes(b"hello\n", STORED),
        mtime_ns=CREATED_NS + 5 * SECOND_NS, mode=0o100644, source=None, metadata={"run": 7}, on_stable=None,
    )  # fmt: skip
    pair.append(item)
    pair.beat()
    pair.close("exit")
    return layout.journal(PAIR).read_bytes(), layout.temp_archive(PAIR).read_bytes()


def _shown(data: bytes, kind: str) -> str:
    number = int.from_bytes(data, "little")
    shown: dict[str, Callable[[], str]] = {
        "number": lambda: f"{number}",
        "signed": lambda: f"{int.from_bytes(data, 'little', signed=True)}",
        "hex": lambda: f"0x{number:0{2 * len(data)}x}",
        "octal": lambda: f"0o{number:o}",
        "text": lambda: f'"{data.decode()}"' if data else "empty",
        "signature": lambda: f'"{data[:2].decode()}" {data[2]} {data[3]}',
        "time": lambda: f"{number >> 11:02}:{number >> 5 & 63:02}:{(number & 31) * 2:02}",
        "date": lambda: f"{(number >> 9) + 1980}-{number >> 5 & 15:02}-{number & 31:02}",
        "none": lambda: "",
    }
    return shown[kind]()


def _local_header(header: bytes) -> Iterator[Field]:
    name_length, extra_length = struct.unpack_from("<2H", header, 26)
    yield Field(4, "local header signature", "signature")
    yield Field(2, "version needed to extract")
    yield Field(2, "flags")
    yield Field(2, "method (0: stored)")
    yield Field(2, "time", "time")
    yield Field(2, "date", "date")
    yield Field(4, "CRC-32 of the plain bytes", "hex")
    yield Field(4, "compressed size")
    yield Field(4, "size")
    yield Field(2, "length of the name")
    yield Field(2, "length of the extra area")
    yield Field(name_length, "name", "text")
    yield from _timestamp()
    yield from _origin(header[len(header) - extra_length + 9 :])


def _timestamp() -> Iterator[Field]:
    yield Field(2, "extra field: extended timestamp", "hex")
    yield Field(2, "length of its data")
    yield Field(1, "which times: 1, of change")
    yield Field(4, "seconds since 1970, UTC", "signed")


def _origin(field: bytes) -> Iterator[Field]:
    lengths = struct.unpack_from("<4H", field, 45)
    yield Field(2, 'extra field: origin, "re"', "hex")
    yield Field(2, "length of its data")
    yield Field(1, "version of the field")
    yield Field(4, "check: CRC-32 of this header without 2c to 34", "hex")
    yield Field(8, "cookie of the temp archive", "hex")
    yield Field(8, "sequence number")
    yield Field(8, "mtime_ns", "signed")
    yield Field(4, "mode", "octal")
    yield Field(8, "source_start")
    for name in ("archive", "host", "worker", "source"):
        yield Field(2, f"length of {name}")
    for length, name in zip(lengths, ("archive", "host", "worker", "source"), strict=True):
        if length:
            yield Field(length, name, "text")
    metadata_length = int.from_bytes(field[2:4], "little") - 49 - sum(lengths)
    if metadata_length:
        yield Field(metadata_length, "metadata, to the end of the field", "text")


def _central_entry(entry: bytes) -> Iterator[Field]:
    (name_length,) = struct.unpack_from("<H", entry, 28)
    yield Field(4, "directory entry signature", "signature")
    yield Field(2, "made by: 3 (Unix) * 256 + 63")
    yield Field(2, "version needed to extract")
    yield Field(2, "flags")
    yield Field(2, "method")
    yield Field(2, "time", "time")
    yield Field(2, "date", "date")
    yield Field(4, "CRC-32", "hex")
    yield Field(4, "compressed size")
    yield Field(4, "size")
    yield Field(2, "length of the name")
    yield Field(2, "length of the extra area")
    yield Field(2, "length of the comment")
    yield Field(2, "volume")
    yield Field(2, "internal attributes")
    yield Field(4, "external attributes: st_mode * 65536", "hex")
    yield Field(4, "offset of the local header")
    yield Field(name_length, "name", "text")
    yield from _timestamp()


def _end() -> Iterator[Field]:
    yield Field(4, "end record signature", "signature")
    yield Field(2, "this volume")
    yield Field(2, "volume of the directory")
    yield Field(2, "entries on this volume")
    yield Field(2, "entries")
    yield Field(4, "length of the directory")
    yield Field(4, "offset of the directory")
    yield Field(2, "length of the comment")


def _annotate(data: bytes, position: int, fields: Iterator[Field]) -> Iterator[str]:
    for field in fields:
        piece = data[position : position + field.length]
        value = _shown(piece, field.kind)
        meaning = f"{field.meaning}: {value}" if value else field.meaning
        for start in range(0, len(piece), _BYTES_A_LINE):
            line = f"{position + start:06x}  {piece[start : start + _BYTES_A_LINE].hex(' ')}"
            yield f"{line:<{_TEXT_COLUMN}} {meaning}" if start == 0 else line
        position += field.length


def example() -> str:
    """Return the example as Markdown: the journal, then the temp archive."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"  # the time in a Zip header is local time
    time.tzset()
    try:
        with tempfile.TemporaryDirectory(prefix="rear-format-") as base:
            journal, archive = write_pair(str(Path(base)))
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()
    header = decode_local_header(archive)
    origin = decode_origin(archive[: header.length])
    assert origin is not None
    assert (origin.cookie, origin.metadata) == (OPEN.cookie, {"run": 7})
    data_end = header.length + header.compressed_size
    directory_end = len(archive) - END.size
    assert directory_end - data_end == CENTRAL.size + len(header.name) + 9
    parts = [
        f"`{PAIR.stem}.journal`, {len(journal)} bytes:",
        "```text\n" + journal.decode().rstrip("\n") + "\n```",
        f"`{PAIR.stem}.zip`, {len(archive)} bytes. The local header, {header.length} bytes:",
        _block(_annotate(archive, 0, _local_header(archive[: header.length]))),
        f"The data; with its header this is the range of {data_end} bytes that a merge copies:",
        _block(_annotate(archive, header.length, iter([Field(header.compressed_size, "content", "none")]))),
        "The central directory, written when the temp archive is closed:",
        _block(_annotate(archive, data_end, _central_entry(archive[data_end:directory_end]))),
        "The end of central directory record:",
        _block(_annotate(archive, directory_end, _end())),
    ]
    return "\n\n".join(parts) + "\n"


def _block(lines: Iterator[str]) -> str:
    return "```text\n" + "\n".join(lines) + "\n```"


if __name__ == "__main__":
    print(example(), end="")
