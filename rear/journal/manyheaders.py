"""Local headers and directory entries of many members at once, from what journals say of them.

`rear.zip.headers` says what these bytes are. Here those of plain members are made a fraction of the time each, column by
column: of files with an ASCII name below 4 GiB, without source or metadata, last changed when the timestamp field can
tell. Nearly all are; whoever gets ``None`` makes them one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from rear.core.names import are_plain_names
from rear.core.records import Append, Open
from rear.zip.codecs import crc32
from rear.zip.extra_fields import times_of_second
from rear.zip.headers import central_constants, local_constants
from rear.zip.origin import origin_constants
from rear.zip.structures import LIMIT_32

_SIZES: Final = struct.Struct("<3I2H").pack  # 4.3.7, from the CRC-32 on
_ORIGIN_NUMBERS: Final = struct.Struct("<QqI")
_NUMBER: Final = struct.Struct("<I").pack
_CHECK_BYTES: Final = 4
#: Of a record, what most members have not.
_RARE_FIELDS: Final = slice(Append._fields.index("mode") + 1, None)


class Columns(NamedTuple):
    """What journals say of many plain members, field by field."""

    appends: Sequence[Append]
    sequences: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    archives: tuple[str, ...]
    names: list[bytes]
    methods: tuple[int, ...]
    crcs: tuple[int, ...]
    compressed_sizes: tuple[int, ...]
    sizes: tuple[int, ...]
    mtimes_ns: tuple[int, ...]
    modes: tuple[int, ...]
    #: Time and date in MS-DOS format, and the extended timestamp field.
    times: list[tuple[bytes, bytes]]


def columns_of(appends: Sequence[Append]) -> Columns | None:
    """Return members by columns; ``None`` unless all of them are plain, and their names as they have to be."""
    if not appends:
        return None
    fields: tuple[tuple[Any, ...], ...] = tuple(zip(*appends, strict=True))
    (
        sequences, sources, source_starts, _, offsets, lengths, archives, names, methods, crcs, compressed_sizes, sizes,
        mtimes_ns, modes,
    ) = fields[: _RARE_FIELDS.start]  # fmt: skip
    seconds = [mtime_ns // 1_000_000_000 for mtime_ns in mtimes_ns]
    times = {second: times_of_second(second) for second in set(seconds)}
    if (
        any(len(column) != column.count(None) for column in (sources, *fields[_RARE_FIELDS]))
        or any(source_starts)
        or max(max(sizes), max(compressed_sizes)) >= LIMIT_32
        or not all(timestamp for _, timestamp in times.values())
        or not are_plain_names(names)
    ):
        return None
    return Columns(
        appends, sequences, offsets, lengths, archives, [name.encode() for name in names], methods, crcs,
        compressed_sizes, sizes, mtimes_ns, modes, [times[second] for second in seconds],
    )  # fmt: skip


def local_headers(columns: Columns, opened: Open) -> list[bytes] | None:
    """Return the local headers of the members of one temp archive, as its worker writes them.

    Args:
        columns: the members.
        opened: the first record of the journal; ``None`` is returned where its numbers fit into no header.
    """
    constants = {method: local_constants(method, True) for method in set(columns.methods)}
    origins = {archive: origin_constants(archive, opened.host, opened.worker) for archive in set(columns.archives)}
    try:
        cookie = opened.cookie.to_bytes(8, "little")
        _, timestamp = columns.times[0]
        same = len(timestamp) + _CHECK_BYTES + len(cookie) + _ORIGIN_NUMBERS.size
        extra_lengths = {archive: same + len(head) + len(tail) for archive, (head, tail) in origins.items()}
        heads = [
            b"".join((
                constants[method], dos, _SIZES(crc, compressed_size, size, len(name), extra_lengths[archive]), name,
                timestamp,
            ))
            for method, (dos, timestamp), crc, compressed_size, size, name, archive in zip(
                columns.methods, columns.times, columns.crcs, columns.compressed_sizes, columns.sizes, columns.names,
                columns.archives, strict=True,
            )
        ]  # fmt: skip
        numbers = map(_ORIGIN_NUMBERS.pack, columns.sequences, columns.mtimes_ns, columns.modes)
        headers = []
        for head, number, archive in zip(heads, numbers, columns.archives, strict=True):
            before, after = origins[archive]
            tail = b"".join((cookie, number, after))
            headers.append(b"".join((head, before, _NUMBER(crc32(tail, crc32(head))), tail)))
    except (struct.error, OverflowError):
        # Forged numbers and texts that no header can hold.
        return None
    return headers


def central_entries(columns: Columns, offsets: Sequence[int]) -> list[bytes] | None:
    """Return the directory entries of members whose local headers begin at ``offsets``, as the format counts them;
    ``None`` where one needs more than 32 bits.
    """
    if max(offsets) >= LIMIT_32:
        return None
    _, timestamp = columns.times[0]
    kinds = zip(columns.methods, columns.modes, strict=True)
    constants = {kind: central_constants(kind[0], True, kind[1], len(timestamp)) for kind in set(kinds)}
    entries = []
    for method, mode, (dos, timestamp), crc, compressed_size, size, name, offset in zip(
        columns.methods, columns.modes, columns.times, columns.crcs, columns.compressed_sizes, columns.sizes,
        columns.names, offsets, strict=True,
    ):  # fmt: skip
        first, second = constants[method, mode]
        sizes = _ENTRY_SIZES(crc, compressed_size, size, len(name))
        entries.append(b"".join((first, dos, sizes, second, _NUMBER(offset), name, timestamp)))
    return entries


_ENTRY_SIZES: Final = struct.Struct("<3IH").pack  # 4.3.12
