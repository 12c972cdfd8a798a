"""Damage to the archives of the zoo: at every byte, in every field, and the kinds that network file systems leave.

A `Case` is a damaged archive and what was in it before. A member of which some byte was changed, be it a header's, is
``touched``: a reader may deliver it and say that something is wrong with it. When the only copy of its name was changed
no reader can help it to find it under another name, an ``alias``.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from make_zoo import BZIP2, DEFLATED, LZMA, STORED, ZSTANDARD, Sample, assemble, make, raw_members, sample_of, written

SEED: Final = 20_240_229
HOLE_BYTES: Final = 32
LARGE_HOLE_BYTES: Final = 1 << 20
_LOCAL: Final = {
    "signature": (0, 4), "version": (4, 2), "flags": (6, 2), "method": (8, 2), "time": (10, 2), "date": (12, 2),
    "crc": (14, 4), "compressed size": (18, 4), "size": (22, 4), "name length": (26, 2), "extra length": (28, 2),
}  # fmt: skip
_CENTRAL: Final = {
    "signature": (0, 4), "made by": (4, 2), "version": (6, 2), "flags": (8, 2), "method": (10, 2), "time": (12, 2),
    "date": (14, 2), "crc": (16, 4), "compressed size": (20, 4), "size": (24, 4), "name length": (28, 2),
    "extra length": (30, 2), "comment length": (32, 2), "disk": (34, 2), "internal attributes": (36, 2),
    "external attributes": (38, 4), "offset": (42, 4),
}  # fmt: skip
_END: Final = {
    "signature": (0, 4), "disk": (4, 2), "directory disk": (6, 2), "entries here": (8, 2), "entries": (10, 2),
    "length": (12, 4), "offset": (16, 4), "comment length": (20, 2),
}  # fmt: skip
_ZIP64_END: Final = {
    "signature": (0, 4), "record size": (4, 8), "made by": (12, 2), "version": (14, 2), "disk": (16, 4),
    "directory disk": (20, 4), "entries here": (24, 8), "entries": (32, 8), "length": (40, 8), "offset": (48, 8),
}  # fmt: skip
_ZIP64_LOCATOR: Final = {"signature": (0, 4), "disk": (4, 4), "offset": (8, 8), "disks": (16, 4)}


class Field(NamedTuple):
    """A field of a header; ``structure`` is ``local``, ``descriptor``, ``central`` or ``end``."""

    structure: str
    member: str
    name: str
    start: int
    length: int


@dataclass(frozen=True)
class Case:
    """A damaged archive; ``kind`` is its row in the table."""

    kind: str
    detail: str
    data: bytes
    sample: Sample
    touched: frozenset[str] = field(default=frozenset())
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.sample.name}: {self.kind}, {self.detail}"


# --- where the fields are


def fields(sample: Sample) -> list[Field]:
    """Return the fields of all headers of an intact archive."""
    found: list[Field] = []
    with zipfile.ZipFile(io.BytesIO(sample.data)) as archive:
        position = archive.start_dir
        offsets = [*sorted(info.header_offset for info in archive.infolist()), archive.start_dir]
    for (info, raw), member in zip(raw_members(sample.data), sample.members, strict=True):
        start = info.header_offset
        name_length, extra_length = struct.unpack_from("<2H", sample.data, start + 26)
        found += _fields("local", member.name, start, _LOCAL, (name_length, extra_length))
        tail = start + 30 + name_length + extra_length + len(raw)
        end = next(offset for offset in offsets if offset > start)
        if info.flag_bits & 8 and end > tail:
            found.append(Field("descriptor", member.name, "descriptor", tail, end - tail))
        lengths = struct.unpack_from("<3H", sample.data, position + 28)
        found += _fields("central", member.name, position, _CENTRAL, lengths)
        position += 46 + sum(lengths)
    if sample.data.startswith(b"PK\6\6", position):
        found += _fields("end", "", position, _ZIP64_END, ())
        position += 12 + int.from_bytes(sample.data[position + 4 : position + 12], "little")
        found += _fields("end", "", position, _ZIP64_LOCATOR, ())
        position += 20
    return found + list(_fields("end", "", position, _END, ()))


def _fields(
    structure: str, member: str, start: int, places: Mapping[str, tuple[int, int]], variable: tuple[int, ...]
) -> Iterator[Field]:
    for name, (offset, length) in places.items():
        yield Field(structure, member, name, start + offset, length)
    position = start + {"local": 30, "central": 46}.get(structure, 0)
    for name, length in zip(("name", "extra", "comment"), variable, strict=False):
        if length:
            yield Field(structure, member, name, position, length)
        position += length


def _values(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield what a field is changed into."""
    yield "lowest bit", bytes([value[0] ^ 1]) + value[1:]
    yield "highest bit", value[:-1] + bytes([value[-1] ^ 0x80])
    for change, other in (("zeros", bytes(len(value))), ("ones", b"\xff" * len(value))):
        if other != value:
            yield change, other


class Extent(NamedTuple):
    """Bytes that belong to a member: header, data and descriptor, or its entry in the directory."""

    member: str
    start: int
    stop: int
    #: Without the bytes of another one that matter to it.
    own_stop: int = 0


def extents(sample: Sample) -> list[Extent]:
    """Return what belongs to whom in an intact archive."""
    found: dict[tuple[str, bool], Extent] = {}
    raw_lengths = {member.name: len(member.raw) for member in sample.members}
    for place in fields(sample):
        if place.structure == "end":
            continue
        key = place.member, place.structure == "central"
        stop = place.start + place.length
        old = found.get(key, Extent(place.member, place.start, stop))
        found[key] = Extent(place.member, min(old.start, place.start), max(old.stop, stop))
    for (member, central), extent in found.items():
        if central:
            continue
        header = max(
            place.start + place.length
            for place in fields(sample)
            if place.member == member and place.structure == "local"
        )
        stop = max(extent.stop, header + raw_lengths[member])
        # No CRC speaks for a member without data: that it is one is seen by the header that follows.
        found[member, central] = Extent(member, extent.start, stop if raw_lengths[member] else stop + 30, stop)
    return list(found.values())


def _touched(owners: list[Extent], start: int, stop: int) -> frozenset[str]:
    return frozenset(extent.member for extent in owners if extent.start < stop and start < extent.stop)


def has_own_bytes(case: Case, member: str) -> bool:
    """Tell whether header, data and descriptor of a member stand in a damaged archive as they did."""
    return all(
        case.data[extent.start : extent.own_stop] == case.sample.data[extent.start : extent.own_stop]
        for extent in extents(case.sample)
        if extent.member == member and extent.start < case.sample.directory
    )


# --- the same damage everywhere


def systematic(sample: Sample) -> Iterator[Case]:
    """Yield every truncation, every hole, every flipped byte and every changed field of a small archive."""
    data, end = sample.data, sample.directory
    # What stands before the first member is the same byte for thousands of positions.
    begin = max(0, min(info.header_offset for info, _ in raw_members(data)) - 2 * HOLE_BYTES)
    places, owners = fields(sample), extents(sample)
    # That the directory is gone is no reason to doubt a member.
    bodies = [extent for extent in owners if extent.start < end]
    for length in range(begin, len(data)):
        touched = _touched(bodies, length, len(data))
        yield Case("truncated at every byte", f"{length} bytes", data[:length], sample, touched)
    for position in range(begin, len(data)):
        hole = data[:position] + bytes(len(data[position : position + HOLE_BYTES])) + data[position + HOLE_BYTES :]
        touched = _touched(owners, position, position + HOLE_BYTES)
        detail = f"at {position}"
        if hole != data:
            yield Case(f"hole of {HOLE_BYTES} zeros at every byte", detail, hole, sample, touched)
        if position < end:
            yield Case(
                f"hole of {HOLE_BYTES} zeros at every byte, without directory", detail, hole[:end], sample, touched
            )
        bit = 1 << position % 8
        flipped = data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]
        detail = f"bit {bit:#04x} of byte {position}"
        yield Case("one bit flipped, in every byte", detail, flipped, sample, _touched(owners, position, position + 1))
        if position < end:
            touched = _touched(bodies, position, position + 1)
            aliases = _aliases(flipped, places, position)
            yield Case("one bit flipped, without directory", detail, flipped[:end], sample, touched, aliases)
    for place in places:
        yield from _changed_fields(sample, place, places, owners)


def _changed_fields(sample: Sample, place: Field, places: list[Field], owners: list[Extent]) -> Iterator[Case]:
    data, stop = sample.data, place.start + place.length
    row = {
        "local": "field of a local header changed", "descriptor": "data descriptor changed",
        "central": "field of the directory changed", "end": "field of an end record changed",
    }[place.structure]  # fmt: skip
    for change, value in _values(data[place.start : stop]):
        changed = data[: place.start] + value + data[stop:]
        detail = f"{place.structure} {place.name} of {place.member!r}: {change}"
        touched = _touched(owners, place.start, stop)
        yield Case(row, detail, changed, sample, touched)
        if place.structure in ("local", "descriptor"):
            aliases = _aliases(changed, places, place.start)
            without = changed[: sample.directory]
            yield Case(f"{row}, without directory", detail, without, sample, touched, aliases)


def _aliases(data: bytes, places: list[Field], position: int) -> dict[str, str]:
    """Return the names under which the member with a damaged header is now to be found, without a directory."""
    for place in places:
        hit = place.structure == "local" and place.start <= position < place.start + place.length
        if hit and place.name in ("name", "flags", "extra"):
            name = next(other for other in places if other[:3] == ("local", place.member, "name"))
            changed = data[name.start : name.start + name.length]
            return {text: place.member for text in _readings(changed) if text != place.member}
    return {}


def _readings(name: bytes) -> Iterator[str]:
    yield name.decode("utf-8", "surrogateescape")
    yield name.decode("cp437")


# --- damage as it was met, in archives of many members


def _contents(count: int) -> dict[str, bytes]:
    generator = random.Random(SEED)
    contents = {"empty": b"", "folder/": b""}
    for number in range(count):
        lines = b"".join(b"%06d value %08x\n" % (line, generator.getrandbits(32)) for line in range(170))
        contents[f"run/{number:05}.log"] = lines[:4096]
    return contents


def _torn(name: str, kind: str, intact: bytes, contents: Mapping[str, bytes]) -> Case:
    """Return an archive whose writer died in the middle of its last member, before any directory."""
    sample = sample_of(name, intact, contents)
    *_, (info, raw) = raw_members(intact)
    return Case(f"torn: {kind}", "in the last member", intact[: info.header_offset + 30 + len(raw) // 2], sample)


def _torn_kinds(count: int) -> Iterator[Case]:
    contents = _contents(count)
    for method, label in ((DEFLATED, "deflated"), (STORED, "stored")):
        members = written(contents, method)
        for descriptor, kind in (("signature", "data descriptors"), ("bare", "data descriptors without signature")):
            row = f"{kind}, {label}"
            yield _torn(row, row, assemble(members, descriptor=descriptor), contents)
        yield _torn(label, f"{label}", assemble(members), contents)
        yield _torn(label, f"Zip64, {label}", assemble(members, zip64=True), contents)
    for method, label in ((BZIP2, "bzip2"), (LZMA, "LZMA"), (ZSTANDARD, "zstd")):
        # Our LZMA streams carry an end mark (4.4.4, bit 1).
        flags = 1 << 1 if method == LZMA else 0
        yield _torn(label, label, assemble(written(contents, method), flags=flags), contents)
    accented = {name.replace("run/", "régime/"): content for name, content in contents.items()}
    yield _torn("cp437", "names in CP437", assemble(written(accented, DEFLATED, "cp437")), accented)
    yield _torn("utf8", "names in UTF-8", assemble(written(accented, DEFLATED), flags=1 << 11), accented)


def _torn_programs(count: int) -> Iterator[Callable[[], Case]]:
    contents = _contents(count)
    for writer, kind in (
        ("7z-deflate64", "Deflate64 by 7z"), ("zip-encrypted", "encrypted by zip"), ("7z-aes", "AES by 7z"),
        ("jar", "jar"), ("bsdtar-pipe", "bsdtar into a pipe"), ("rear-temp", "temp archive of rear"),
    ):  # fmt: skip
        yield lambda writer=writer, kind=kind: _torn(writer, kind, make(writer, contents), contents)  # type: ignore[misc]


def _holes(count: int) -> Iterator[Case]:
    contents = _contents(max(count, LARGE_HOLE_BYTES // 2048))
    # Deflated to a third.
    more = _contents(max(count, LARGE_HOLE_BYTES // 512))
    for kind, intact, members in (
        ("stored", assemble(written(contents, STORED)), contents),
        ("deflated", assemble(written(more, DEFLATED)), more),
        ("temp archive of rear", make("rear-temp-stored", contents), contents),
    ):
        sample = sample_of("rear-temp" if "rear" in kind else kind, intact, members)
        start = sample.directory // 3 + 1234
        stop = start + LARGE_HOLE_BYTES
        damaged = intact[:start] + bytes(stop - start) + intact[stop : sample.directory]
        yield Case(f"hole of 1 MB, {kind}", f"zeros from {start:,} to {stop:,}", damaged, sample)


def _flips(count: int) -> Iterator[Case]:
    contents = _contents(count)
    for method, label in ((STORED, "stored"), (DEFLATED, "deflated")):
        intact = assemble(written(contents, method))
        sample = sample_of(label, intact, contents)
        info, raw = list(raw_members(intact))[count * 2 // 5]
        for change in (1 << 12, 1 << 4, 1 << 30):
            damaged = bytearray(intact[: sample.directory])
            size = int.from_bytes(damaged[info.header_offset + 18 : info.header_offset + 22], "little")
            damaged[info.header_offset + 18 : info.header_offset + 22] = (size ^ change).to_bytes(4, "little")
            yield Case(f"flipped size field, {label}", f"{size} into {size ^ change}", bytes(damaged), sample)
        damaged = bytearray(intact[: sample.directory])
        for offset in (len(raw) // 2, len(raw) // 2 + 3):
            damaged[info.header_offset + 60 + offset] ^= 0x55
        yield Case(f"flipped bits in the data, {label}", f"of {info.filename}", bytes(damaged), sample)
        garbage = random.Random(SEED).randbytes(5_000)
        yield Case(
            f"garbage before the first member, {label}", "5,000 bytes", garbage + intact[: sample.directory], sample
        )


def _signatures(count: int) -> Iterator[Case]:
    contents = _contents(count)
    generator = random.Random(SEED)
    # After one of them zip -FF asks for another volume until the disk is full.
    one = generator.randbytes(3000) + b"PK\5\6" + generator.randbytes(3000)
    many = b"".join(b"PK\5\6" + generator.randbytes(generator.randrange(40)) for _ in range(400))
    fakes = b"".join(
        struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, generator.choice((0, 8)), 0, 0x21, generator.getrandbits(32),
                    generator.randrange(2000), generator.randrange(2000), 8, 0) + b"fake/%03d" % number
        for number in range(1000)
    )  # fmt: skip
    for kind, data in (
        ("an end signature inside data", one),
        ("many end signatures inside data", many),
        ("local headers inside data", fakes),
    ):
        keep = max(1, count - 10)
        with_signatures = dict(list(contents.items())[:keep]) | {"signatures.bin": data}
        with_signatures |= dict(list(contents.items())[keep:])
        yield _torn(kind, kind, assemble(written(with_signatures, STORED)), with_signatures)


def _nested(count: int) -> Iterator[Case]:
    contents = _contents(count)
    inner_contents = {f"inner/{name}": content for name, content in _contents(count // 2).items()}
    inner = assemble(written(inner_contents, STORED))
    names = list(contents)
    for place, kind in (
        (len(names) - 1, "nested Zip near the torn tail"),
        (len(names) // 2, "hole opens a nested Zip"),
    ):
        around = {name: contents[name] for name in names[:place]}
        around |= {"inner.zip": inner} | {name: contents[name] for name in names[place:]}
        for label, intact in (("", assemble(written(around, STORED))), ("rear-temp", make("rear-temp-stored", around))):
            row = f"{kind}, temp archive of rear" if label else kind
            if kind.startswith("nested"):
                yield _torn(label or "stored", row, intact, around)
                continue
            sample = sample_of(label or "stored", intact, around)
            info = next(info for info, _ in raw_members(intact) if info.filename == "inner.zip")
            stop = info.header_offset + 200
            damaged = intact[: info.header_offset - 60] + bytes(260) + intact[stop : sample.directory]
            yield Case(row, f"zeros up to {stop:,}", damaged, sample)


def scenarios(count: int) -> Iterator[Callable[[], Case]]:
    """Yield makers of damaged archives of about ``count`` members; each may raise ``MissingProgramError``."""
    for group in (_torn_kinds, _holes, _flips, _signatures, _nested):
        for case in group(count):
            yield lambda case=case: case  # type: ignore[misc]
    yield from _torn_programs(count)
