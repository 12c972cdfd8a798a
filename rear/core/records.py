"""Values that pass between the modules: what a journal says, what a member is, where bytes go.

All are immutable named tuples: a worker makes a record for each file, and dataclasses would make ``import rear`` slow.
``source`` is where bytes come from and ``target`` where they go; offsets and lengths are in bytes,
times in nanoseconds since the Unix epoch.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

Metadata = dict[str, Any]
PackedMetadata = bytes
"""Metadata as JSON: so a record that was read holds them, because as objects they take up to 25 times as much."""
METADATA_DEPTH_LIMIT: Final = 64
"""Metadata nests this deep at most, in what is written and in what is read: who compares or copies it recurses."""


def is_metadata(value: object) -> bool:
    """Whether a value can be a member's metadata: a dict that does not nest too deep."""
    if not isinstance(value, dict):
        return False
    level: list[object] = list(value.values())
    for _ in range(METADATA_DEPTH_LIMIT):
        nested = [one for one in level if isinstance(one, (dict, list))]
        if not nested:
            return True
        level = [inner for one in nested for inner in (one.values() if isinstance(one, dict) else one)]
    return False


def unpacked(metadata: Metadata | PackedMetadata | None) -> Metadata | None:
    """Return metadata as objects."""
    if not isinstance(metadata, bytes):
        return metadata
    objects: Metadata = json.loads(metadata)
    return objects


LARGEST: Final = 0x7FFFFFFFFFFFFFFF
"""Largest number in a record."""
_BOUNDS: Final = {
    "created_ns": (-LARGEST, LARGEST),
    "mtime_ns": (-LARGEST, LARGEST),
    # What has to fit into a header of a Zip file.
    "crc": (0, 0xFFFFFFFF),
    "mode": (0, 0xFFFFFFFF),
    "method": (0, 0xFFFF),
}


def recorded_time_ns(time_ns: int) -> int:
    """Return the nearest time that a record and a header can hold: files may claim to be of the year 2446 and later."""
    return max(-LARGEST, min(time_ns, LARGEST))


def bounds_of(field: str) -> tuple[int, int]:
    """Return the smallest and the largest number that a field of a record may have."""
    return _BOUNDS.get(field, (0, LARGEST))


class Open(NamedTuple):
    """First record of a journal: who writes, and which temp archive."""

    format_version: int
    host: str
    worker: str
    rotation: int
    cookie: int
    pid: int
    process_start: int | None
    boot_id: str | None
    pid_namespace: str | None
    uid: int
    lease_seconds: float
    created_ns: int
    #: Sequence number of the first member that is written here again because an earlier pair of this worker
    #: failed or was lost. ``None``: nothing here can be in another pair.
    repeats_from: int | None = None
    time_namespace: str | None = None


class Append(NamedTuple):
    """One member is about to be written at ``offset`` of the temp archive: ``length`` bytes, local header included."""

    sequence: int
    source: str | None
    source_start: int
    source_end: int
    offset: int
    length: int
    archive: str
    name: str
    method: int
    crc: int
    compressed_size: int
    size: int
    mtime_ns: int
    mode: int
    metadata: Metadata | PackedMetadata | None = None

    @property
    def data_offset(self) -> int:
        """Where the member's compressed data begins in the temp archive."""
        return self.offset + self.length - self.compressed_size


class File(NamedTuple):
    """This pair holds one file alone, which is flushed before it is closed; its parts follow from ``offset`` on."""

    sequence: int
    #: The number that the file had in its first pair, when later ones have all of it again; see `Part`.
    first_sequence: int
    #: The pair counts instead of earlier ones of the file once it holds so many bytes of it.
    repeated_size: int
    archive: str
    name: str
    method: int
    offset: int
    mode: int
    metadata: Metadata | None = None


class Part(NamedTuple):
    """A file was flushed: ``length`` bytes at ``offset`` of the temp archive continue its compressed stream."""

    source_start: int
    source_end: int
    offset: int
    length: int
    #: CRC-32 of all of the file up to ``source_end``: parts that lost their records cost nothing then.
    crc: int
    mtime_ns: int


PARTIAL: Final = "rear.partial"
"""Key in the metadata of a member whose writer died before it closed the file."""


def partial_of(file: File, part: Part) -> Append:
    """Return the record of a file as far as it was flushed, without the end of its stream."""
    length = part.offset + part.length
    return Append(
        sequence=file.sequence,
        source=None,
        source_start=0,
        source_end=part.source_end,
        offset=0,
        length=length,
        archive=file.archive,
        name=file.name,
        method=file.method,
        crc=part.crc,
        compressed_size=max(0, length - file.offset),
        size=part.source_end,
        mtime_ns=part.mtime_ns,
        mode=file.mode,
        metadata={**(file.metadata or {}), PARTIAL: True},
    )


class Abort(NamedTuple):
    """The member of that sequence number was not acknowledged from this pair: its bytes here do not count."""

    sequence: int


class Beat(NamedTuple):
    """The worker was alive when it wrote this; ``number`` grows by one each time."""

    number: int


class Close(NamedTuple):
    """Last record of the worker: nothing follows. ``reason`` is ``rotation``, ``flush``, ``exit``, ``poisoned`` or
    ``complete``, of the pair of one file.
    """

    reason: str
    members: int
    length: int


class MergedRecord(NamedTuple):
    """Written by a scavenger: those members are in ``target`` (a final archive, or a file in lost+found)."""

    sequences: tuple[int, ...]
    target: str
    intent: str
    #: Of which pair; older ones do not say it.
    pair: str | None = None


Record = Open | Append | File | Part | Abort | Beat | Close | MergedRecord


class Origin(NamedTuple):
    """What rear's own extra field in a local header says of a member: where it came from and where it belongs."""

    cookie: int
    sequence: int
    archive: str
    host: str
    worker: str
    mtime_ns: int
    mode: int
    source: str | None = None
    source_start: int = 0
    metadata: Metadata | PackedMetadata | None = None


def origin_of(opened: Open, append: Append) -> Origin:
    """Return what the local header of a journaled member says."""
    return Origin(
        opened.cookie,
        append.sequence,
        append.archive,
        opened.host,
        opened.worker,
        append.mtime_ns,
        append.mode,
        append.source,
        append.source_start,
        append.metadata,
    )


class Pair(NamedTuple):
    """A temp archive and its journal, by the host, worker and rotation that their names carry."""

    host: str
    worker: str
    rotation: int

    @property
    def stem(self) -> str:
        """File name without ``.zip`` or ``.journal``."""
        return f"{self.worker}-{self.rotation}"

    def __str__(self) -> str:
        return f"{self.host}/{self.stem}"
