"""Central directories of many writers, and of files that only look as if they had one."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from zips import write_zip

from rear.errors import NotAZipError, UnsupportedError, ZipFormatError
from rear.zip.directory import Directory, entries, entry_at, fingerprint, locate, names
from rear.zip.headers import Member, encode_central_entry, encode_end, encode_local_header
from rear.zip.structures import END, LIMIT_16


class File:
    """A file with these bytes, and its descriptor while the test runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1

    def holds(self, data: bytes) -> int:
        self.path.write_bytes(data)
        return self.opened()

    def opened(self) -> int:
        if self.descriptor < 0:
            self.descriptor = os.open(self.path, os.O_RDONLY)
        return self.descriptor


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path / "file.zip")
    yield made
    if made.descriptor >= 0:
        os.close(made.descriptor)


def a_zip(*contents: tuple[str, bytes], comment: bytes = b"", method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in contents:
            archive.writestr(name, data)
        archive.comment = comment
    return buffer.getvalue()


SMALL = a_zip(("a", b"alpha"), ("b/c", b"beta"), comment=b"remark")


@pytest.mark.parametrize("writer", zoo.WRITERS)
def test_archives_of_many_writers(writer: str, tmp_path: Path, file: File) -> None:
    data = zoo.make(writer, tmp_path).read_bytes()
    descriptor = file.holds(data)
    directory = locate(descriptor)
    with zipfile.ZipFile(file.path) as archive:
        infos = archive.infolist()
        assert directory.comment == archive.comment
        assert directory.offset == archive.start_dir
    assert directory.archive_length == len(data)
    assert directory.entries == len(infos)
    assert directory.prefix == (len(zoo.STUB) if writer == "zip-prefix" else 0)
    found = list(entries(descriptor, directory))
    assert [entry.name for entry in found] == [info.filename for info in infos]
    assert [(e.crc, e.size, e.compressed_size, e.method) for e in found] == [
        (i.CRC, i.file_size, i.compress_size, i.compress_type) for i in infos
    ]
    assert [entry.offset + directory.prefix for entry in found] == [info.header_offset for info in infos]
    located = list(names(descriptor, directory))
    assert [name for _, name in located] == [entry.name for entry in found]
    assert [entry_at(descriptor, directory, position) for position, _ in located] == found


def test_a_copy_of_the_directory_serves_as_well(file: File) -> None:
    descriptor = file.holds(SMALL)
    directory = locate(descriptor)
    expected = list(entries(descriptor, directory))
    text = fingerprint(descriptor, directory)
    file.path.write_bytes(b"xyz" + SMALL[directory.offset :])
    assert list(entries(descriptor, directory, start=3)) == expected
    assert [name for _, name in names(descriptor, directory, start=3)] == ["a", "b/c"]
    assert entry_at(descriptor, directory, 0, start=3) == expected[0]
    assert fingerprint(descriptor, directory, start=3) == text


def test_fingerprint_changes_with_content(file: File) -> None:
    seen = set()
    for data in (SMALL, a_zip(("a", b"alphA"), ("b/c", b"beta"), comment=b"remark"), SMALL[:-1] + b"x", a_zip()):
        seen.add(fingerprint(file.holds(data), locate(file.opened())))
    assert len(seen) == 4


@pytest.mark.parametrize("count", [LIMIT_16 - 1, LIMIT_16, LIMIT_16 + 1])
def test_counts_around_the_limit_of_16_bits(count: int, file: File) -> None:
    member = Member("m", 0, 0, 0, 0, 0, 0o644)
    head, entry = encode_local_header(member, None), encode_central_entry(member, 0)
    end = encode_end(entries=count, directory_length=len(entry) * count, directory_offset=len(head))
    directory = locate(file.holds(head + entry * count + end))
    assert directory.entries == count
    assert sum(1 for _ in entries(file.opened(), directory)) == count


def test_70000_members_of_zipfile(file: File) -> None:
    write_zip(file.path, {f"m{number}": b"" for number in range(70_000)})
    directory = locate(file.opened())
    assert [entry.name for entry in entries(file.opened(), directory)] == [f"m{number}" for number in range(70_000)]


def test_count_modulo_65536_without_zip64(file: File) -> None:
    """macOS and old Java write it."""
    entry = encode_central_entry(Member("m", 0, 0, 0, 0, 0, 0o644), 0)
    count = 70_000
    head = encode_local_header(Member("m", 0, 0, 0, 0, 0, 0o644), None)
    end = END.pack(b"PK\x05\x06", 0, 0, count & LIMIT_16, count & LIMIT_16, len(entry) * count, len(head), 0)
    descriptor = file.holds(head + entry * count + end)
    directory = locate(descriptor)
    assert directory.entries == count
    assert sum(1 for _ in entries(descriptor, directory)) == count
    wrong = END.pack(b"PK\x05\x06", 0, 0, 5, 5, len(entry) * count, len(head), 0)
    with pytest.raises(NotAZipError, match="70,000 entries"):
        locate(file.holds(head + entry * count + wrong))


def test_cut_at_each_length_and_with_junk_behind(file: File) -> None:
    for length in range(len(SMALL)):
        with pytest.raises(NotAZipError):
            locate(file.holds(SMALL[:length]))
    for junk in (b"\0", b"junk", bytes(70_000)):
        with pytest.raises(NotAZipError):
            locate(file.holds(SMALL + junk))


def test_each_flipped_byte_of_the_end_record_but_two(file: File) -> None:
    """Only what nobody needs may be wrong: the comment; a prefix of its own is tried for the offset."""
    directory = locate(file.holds(SMALL))
    end = directory.offset + directory.length
    for position in range(end, end + END.size):
        damaged = bytearray(SMALL)
        damaged[position] ^= 0x01
        try:
            found = locate(file.holds(bytes(damaged)))
            assert len(list(entries(file.opened(), found))) == found.entries
        except (NotAZipError, UnsupportedError, ZipFormatError):
            continue
        pytest.fail(f"byte {position - end} of the end record does not count")


@pytest.mark.parametrize("data", [b"", b"x", b"PK\x05\x06", bytes(22), bytes(100_000), b"PK\x05\x06" * 40_000])
def test_no_zip(data: bytes, file: File) -> None:
    with pytest.raises(NotAZipError):
        locate(file.holds(data))


def test_empty_archive(file: File) -> None:
    directory = locate(file.holds(a_zip()))
    assert directory == Directory(22, 0, 0, 0, 0, b"")
    assert list(entries(file.opened(), directory)) == []
    # Members were there and are gone: the offset is recorded.
    end = encode_end(entries=0, directory_length=0, directory_offset=7)
    assert locate(file.holds(b"garbage" + end)).prefix == 0
    with pytest.raises(NotAZipError, match="empty archive"):
        locate(file.holds(b"garbage" + encode_end(entries=0, directory_length=0, directory_offset=0)))


def test_comment_that_looks_like_an_end_record(file: File) -> None:
    fake = encode_end(entries=1, directory_length=50, directory_offset=0)
    for comment in (fake, fake + b"x", b"x" + fake, a_zip(("inner", b"data")), a_zip()):
        data = a_zip(("outer", b"data"), comment=comment)
        directory = locate(file.holds(data))
        assert directory.comment == comment
        assert [entry.name for entry in entries(file.opened(), directory)] == ["outer"]


@pytest.mark.parametrize(
    ("stub", "inner"),
    [(b"", SMALL), (b"", a_zip()), (b"", zoo.STUB + SMALL), (zoo.STUB, SMALL), (zoo.STUB, a_zip())],
    ids=["zip", "empty", "self-extractor", "zip in self-extractor", "empty in self-extractor"],
)
def test_torn_archive_that_ends_with_a_nested_one(stub: bytes, inner: bytes, file: File) -> None:
    whole = stub + a_zip(("first", b"1" * 100), ("inner.zip", inner), ("last", b"2" * 100))
    inner_end = whole.index(inner) + len(inner)
    assert locate(file.holds(whole)).entries == 3
    for length in range(inner_end - 30, inner_end + 40):
        with pytest.raises(NotAZipError):
            locate(file.holds(whole[:length]))


def test_two_archives_in_one_file_are_none(file: File) -> None:
    with pytest.raises(NotAZipError, match="inside another one"):
        locate(file.holds(SMALL + a_zip(("x", b"y"))))


def test_prefix_needs_the_first_member_where_it_should_be(file: File) -> None:
    assert locate(file.holds(zoo.STUB + SMALL)).prefix == len(zoo.STUB)
    damaged = bytearray(zoo.STUB + SMALL)
    damaged[len(zoo.STUB)] ^= 1
    with pytest.raises(NotAZipError, match="first entry's member"):
        locate(file.holds(bytes(damaged)))


def with_zip64(
    *, extensible: bytes = b"", prefix: bytes = b"", volumes: int = 1, lie: int = 0, needed: int = 45
) -> bytes:
    member = Member("m", 0, 0, 0, 0, 0, 0o644)
    head, entry = encode_local_header(member, None), encode_central_entry(member, 0)
    record = struct.pack(
        "<4sQ2H2I4Q", b"PK\x06\x06", 44 + len(extensible), 45, needed, 0, 0, 1, 1, len(entry), len(head)
    )
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(head) + len(entry) + lie, volumes)
    end = END.pack(b"PK\x05\x06", 0, 0, LIMIT_16, LIMIT_16, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return prefix + head + entry + record + extensible + locator + end


def test_zip64_end_records(file: File) -> None:
    assert locate(file.holds(with_zip64())).entries == 1
    assert locate(file.holds(with_zip64(extensible=b"abcdefgh" * 50))).entries == 1
    assert locate(file.holds(with_zip64(prefix=zoo.STUB))).prefix == len(zoo.STUB)
    for damaged in (with_zip64(lie=1), with_zip64(extensible=bytes(5000))):
        with pytest.raises(NotAZipError):
            locate(file.holds(damaged))
    for unsupported in (
        with_zip64(volumes=3),
        with_zip64(needed=62, extensible=struct.pack("<HQQH", 0, 47, 47, 0x660E)),
        with_zip64(needed=62, extensible=struct.pack("<HQQH", 8, 40, 47, 0)),
    ):
        with pytest.raises(UnsupportedError):
            locate(file.holds(unsupported))
    # A Zip64 end record that contradicts the plain one.
    data = bytearray(with_zip64())
    data[-22 + 8 : -22 + 12] = struct.pack("<2H", 2, 2)
    with pytest.raises(NotAZipError, match="Zip64"):
        locate(file.holds(bytes(data)))


def test_split_archive(tmp_path: Path, file: File) -> None:
    zoo.write_tree(tmp_path / "tree")
    zoo.run(zoo.tool("zip"), "-q0r", "-s", "64k", tmp_path / "split.zip", ".", cwd=tmp_path / "tree")
    with pytest.raises(UnsupportedError, match="split"):
        locate(file.holds((tmp_path / "split.zip").read_bytes()))


def test_masked_directory(file: File) -> None:
    data = bytearray(SMALL)
    directory = locate(file.holds(SMALL))
    data[directory.offset + 9] |= 0x20
    with pytest.raises(UnsupportedError, match="encrypted"):
        locate(file.holds(bytes(data)))


def test_forged_counts_take_no_memory(file: File) -> None:
    for count, length in ((2, 46), (LIMIT_16, 100), (0, 50)):
        with pytest.raises(NotAZipError):
            locate(file.holds(bytes(200) + END.pack(b"PK\x05\x06", 0, 0, count, count, length, 0, 0)))
    huge = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1 << 60, 1 << 60, 1 << 62, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 100, 1)
    end = END.pack(b"PK\x05\x06", 0, 0, LIMIT_16, LIMIT_16, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with pytest.raises(NotAZipError):
        locate(file.holds(bytes(100) + huge + locator + end))


def test_entries_and_end_record_have_to_agree(file: File) -> None:
    descriptor = file.holds(SMALL)
    found = locate(descriptor)
    for wrong in (found.entries + 1, found.entries - 1):
        other = Directory(found.archive_length, found.offset, found.length, wrong, found.prefix, found.comment)
        with pytest.raises(ZipFormatError, match="its end record says"):
            list(entries(descriptor, other))
        with pytest.raises(ZipFormatError, match="its end record says"):
            list(names(descriptor, other))
    for length in range(found.length):
        other = Directory(found.archive_length, found.offset, length, found.entries, found.prefix, found.comment)
        with pytest.raises(ZipFormatError):
            list(entries(descriptor, other))
        with pytest.raises(ZipFormatError):
            list(names(descriptor, other))
    other = Directory(found.archive_length, found.offset, 10_000, 2, 0, b"")
    with pytest.raises(ZipFormatError, match=r"instead of|cut off"):
        list(entries(descriptor, other))
    with pytest.raises(ZipFormatError):
        entry_at(descriptor, found, len(SMALL))


@settings(deadline=None)
@given(data=st.data())
def test_damage_never_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from([SMALL, zoo.STUB + SMALL, with_zip64()])))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    path.write_bytes(damaged)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for entry in entries(descriptor, locate(descriptor)):
            assert isinstance(entry.name, str)
            assert isinstance(entry.mtime_ns, int)
    except (ZipFormatError, UnsupportedError):
        pass
    finally:
        os.close(descriptor)
