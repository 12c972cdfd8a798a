"""Zip structures as bytes: what is encoded comes back, others read it, and damage is noticed."""

from __future__ import annotations

import io
import stat
import struct
import time
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rear.core.records import Origin
from rear.errors import ZipFormatError
from rear.zip.extra_fields import decode_name, dos_to_ns, extra_fields, times_of_second
from rear.zip.headers import (
    CentralEntry,
    Member,
    decode_central_entry,
    decode_local_header,
    encode_central_entry,
    encode_end,
    encode_local_header,
)
from rear.zip.origin import decode_origin
from rear.zip.structures import CENTRAL, END, FLAG_UTF8, LIMIT_32, LOCAL, TIMESTAMP, UNICODE_PATH, ZIP64

MEMBER = Member("logs/a.txt", 0, zlib.crc32(b"hello"), 5, 5, 1_700_000_000_123_456_789, 0o100640)
ORIGIN = Origin(
    0x1234567890ABCDEF, 7, "runs/7/ar.zip", "node-1", "node-1-1a2b-3c", MEMBER.mtime_ns, 0o100640, "/scratch/a", 99,
    {"k": [1]},
)  # fmt: skip

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
sizes = st.one_of(st.integers(0, 1000), st.integers(LIMIT_32 - 2, LIMIT_32 + 2), st.integers(0, 1 << 62))
members = st.builds(
    Member,
    name=names,
    method=st.sampled_from([0, 8, 93]),
    crc=st.integers(0, LIMIT_32),
    compressed_size=sizes,
    size=sizes,
    mtime_ns=st.integers(-(1 << 62), 1 << 62),
    mode=st.integers(0, 0xFFFF),
)
origins = st.builds(
    Origin,
    cookie=st.integers(0, (1 << 64) - 1),
    sequence=st.integers(0, (1 << 64) - 1),
    archive=names,
    host=names,
    worker=names,
    mtime_ns=st.integers(-(1 << 63), (1 << 63) - 1),
    mode=st.integers(0, LIMIT_32),
    source=st.none() | names,
    source_start=st.integers(0, 1 << 62),
    metadata=st.none() | st.dictionaries(names, st.integers() | names, max_size=3),
)


@given(members, st.none() | origins)
def test_local_header_comes_back(member: Member, origin: Origin | None) -> None:
    data = encode_local_header(member, origin)
    header = decode_local_header(b"junk" + data + b"PK\x03\x04 what follows", 4)
    assert header.length == len(data)
    assert header.name.decode() == member.name
    assert header[1:5] == (member.method, member.crc, member.compressed_size, member.size)
    assert not header.has_descriptor
    assert decode_origin(data) == origin


@given(members, st.integers(0, 1 << 62) | st.integers(LIMIT_32 - 1, LIMIT_32 + 1))
def test_central_entry_comes_back(member: Member, offset: int) -> None:
    data = encode_central_entry(member, offset)
    entry, end = decode_central_entry(b"junk" + data + b"PK\x01\x02", 4)
    assert end == 4 + len(data)
    assert (entry.name, entry.method, entry.crc) == (member.name, member.method, member.crc)
    assert (entry.compressed_size, entry.size, entry.offset) == (member.compressed_size, member.size, offset)
    assert entry.mode == member.mode
    assert not entry.is_encrypted
    if -(1 << 31) <= member.mtime_ns // 10**9 < 1 << 31:
        assert entry.mtime_ns == member.mtime_ns // 10**9 * 10**9


def test_cut_at_each_length() -> None:
    local, central = encode_local_header(MEMBER, ORIGIN), encode_central_entry(MEMBER, 3)
    for length in range(len(local)):
        with pytest.raises(ZipFormatError):
            decode_local_header(local[:length])
        assert decode_origin(local[:length]) is None
    for length in range(len(central)):
        with pytest.raises(ZipFormatError):
            decode_central_entry(central[:length])


def test_any_flipped_byte_costs_the_origin() -> None:
    data = encode_local_header(MEMBER, ORIGIN)
    assert decode_origin(data) == ORIGIN
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x41
        assert decode_origin(bytes(damaged)) is None, position


def test_origin_of_what_follows_other_bytes_is_none() -> None:
    data = encode_local_header(MEMBER, ORIGIN)
    assert decode_origin(data + b"x") is None
    assert decode_origin(b"") is None


@given(st.binary(max_size=300))
def test_junk_never_raises_anything_else(data: bytes) -> None:
    list(extra_fields(data))
    for signature in (b"PK\x03\x04", b"PK\x01\x02", b""):
        for decode in (decode_local_header, decode_central_entry):
            try:
                decode(signature + data)
            except ZipFormatError:
                pass
        decode_origin(signature + data)
    decode_name(data, 0, data)


def test_source_is_left_out_where_it_does_not_fit() -> None:
    big = Origin(1, 2, "a.zip", "h", "w", 0, 0o644, "/s" * 4000, 0, {"k": "v" * 59_000})
    decoded = decode_origin(encode_local_header(MEMBER, big))
    assert decoded.source is None
    assert decoded.metadata == big.metadata
    with pytest.raises(ZipFormatError, match="65,535"):
        encode_local_header(MEMBER, Origin(1, 2, "a.zip", "h", "w", 0, 0o644, None, 0, {"k": "v" * 66_000}))


@pytest.mark.parametrize("comment", [b"", b"a comment", b"x" * 65_535])
@pytest.mark.parametrize("name", ["a.txt", "ä/€.txt", "x" * 1000])
def test_zipfile_reads_it(name: str, comment: bytes) -> None:
    member = MEMBER._replace(name=name)
    head, entry = encode_local_header(member, ORIGIN), encode_central_entry(member, 0)
    end = encode_end(entries=1, directory_length=len(entry), directory_offset=len(head) + 5, comment=comment)
    with zipfile.ZipFile(io.BytesIO(head + b"hello" + entry + end)) as archive:
        assert archive.namelist() == [name]
        assert archive.read(name) == b"hello"
        assert archive.comment == comment
        info = archive.getinfo(name)
        assert stat.S_IMODE(info.external_attr >> 16) == 0o640
        assert info.date_time[:5] == time.localtime(member.mtime_ns // 10**9)[:5]


def test_zip64_end_records() -> None:
    small = encode_end(entries=65_534, directory_length=10, directory_offset=10)
    assert len(small) == END.size
    for values in ((65_535, 10, 10), (1, LIMIT_32, 10), (1, 10, LIMIT_32), (70_000, 1 << 33, 1 << 40)):
        entries, length, offset = values
        data = encode_end(entries=entries, directory_length=length, directory_offset=offset, comment=b"c")
        assert len(data) == 56 + 20 + 22 + 1
        assert struct.unpack_from("<QQQ", data, 32) == values
        assert struct.unpack_from("<Q", data, 56 + 8) == (offset + length,)


def test_structures_have_the_lengths_of_the_appnote() -> None:
    assert (LOCAL.size, CENTRAL.size, END.size) == (30, 46, 22)


def _entry(name: bytes, flags: int = 0, extra: bytes = b"", made_by: int = 3 << 8, attributes: int = 0) -> CentralEntry:
    return CentralEntry(made_by, flags, 0, 0, 0x21, 0, 0, 0, attributes, 0, name, extra, b"")


def test_names() -> None:
    assert _entry(b"caf\x82").name == "café"
    assert _entry("café".encode(), FLAG_UTF8).name == "café"
    # Info-ZIP on Unix leaves the flag out; what is UTF-8 is read as such.
    assert _entry("café".encode()).name == "café"
    assert _entry(b"bad\xff", FLAG_UTF8).name == "bad\udcff"
    path = b"\x01" + zlib.crc32(b"caf\x82").to_bytes(4, "little") + "cafe\u0301".encode()
    field = struct.pack("<2H", UNICODE_PATH, len(path)) + path
    assert _entry(b"caf\x82", extra=field).name == "cafe\u0301"
    assert _entry(b"other\x82", extra=field).name == "otheré"


def test_modes() -> None:
    assert _entry(b"a", attributes=0o100755 << 16).mode == 0o100755
    assert _entry(b"a", attributes=0o100755 << 16, made_by=0).mode == 0
    assert _entry(b"a/").is_directory


def test_times() -> None:
    assert times_of_second(0)[0] == struct.pack("<2H", 0, 0x21)
    for moment in ((1980, 1, 1, 0, 0, 0), (2024, 2, 29, 23, 59, 58), (2107, 12, 31, 12, 0, 0)):
        second = int(time.mktime((*moment, 0, 0, -1)))
        clock, date = struct.unpack("<2H", times_of_second(second)[0])
        assert dos_to_ns(date, clock) == second * 10**9
    for second in (-(1 << 80), 1 << 80):
        assert times_of_second(second)[1] == b""
    assert dos_to_ns(0, 0) <= dos_to_ns(0x21, 0)
    field = struct.pack("<2HBi", TIMESTAMP, 5, 1, -5)
    assert _entry(b"a", extra=field).mtime_ns == -5 * 10**9
    other = struct.pack("<2H2s", 0x1234, 2, b"ab")
    assert _entry(b"a", extra=other + field).mtime_ns == -5 * 10**9
    # A timestamp field that gives no time of change.
    assert _entry(b"a", extra=struct.pack("<2HBi", TIMESTAMP, 5, 2, -5)).mtime_ns == dos_to_ns(0x21, 0)


def test_zip64_field_that_is_too_short_is_not_read_beyond() -> None:
    data = bytearray(
        encode_central_entry(MEMBER._replace(size=LIMIT_32 + 5, compressed_size=LIMIT_32 + 5), LIMIT_32 + 9)
    )
    entry, _ = decode_central_entry(bytes(data))
    assert (entry.size, entry.offset) == (LIMIT_32 + 5, LIMIT_32 + 9)
    position = data.index(struct.pack("<2H", ZIP64, 24))
    data[position + 2] = 8
    entry, _ = decode_central_entry(bytes(data))
    assert (entry.size, entry.compressed_size, entry.offset) == (LIMIT_32 + 5, LIMIT_32, LIMIT_32)
