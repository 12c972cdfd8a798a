"""The scanner against archives from many writers, whole and damaged: none missing, none invented, no wrong byte."""

from __future__ import annotations

import bz2
import io
import os
import random
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from faults import CountsReads
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import run_code
from zips import archive_of
from zoo import CONTENTS, STUB, WRITERS, make, run, tool, write_tree

from rear import rear_fs, rear_open
from rear.core.records import Origin
from rear.errors import UnsupportedError
from rear.salvage.local_headers import local_header
from rear.salvage.scan import scan, scan_in_runs
from rear.salvage.scan_result import Found, Gap, Nested, Run, recovered_content
from rear.zip.codecs import DEFLATED, STORED, ZSTANDARD, compress, crc32
from rear.zip.headers import Member, encode_central_entry, encode_end, encode_local_header
from rear.zip.window import PIECE_BYTES, Window

COOKIE = 0x0123456789ABCDEF
TEXT = b"".join(b"%d is the number of this line\n" % number for number in range(400))
NOISE = random.Random(7).randbytes(6000)


class Scanned:
    """What a scan of some bytes said; checks on the way that each byte was told of once."""

    def __init__(self, data: bytes, **options: Any) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            start = position = options.get("start", 0)
            self.found: list[Found] = []
            self.gaps: list[Gap] = []
            self.nested: list[Nested] = []
            self.content: dict[int, bytes] = {}
            for event in scan(file.fileno(), **options):
                if isinstance(event, Nested):
                    self.nested.append(event)
                    end = event.start + event.length
                    self.found = [one for one in self.found if not event.start <= one.offset < end]
                    continue
                begin = event.offset if isinstance(event, Found) else event.start
                assert begin == position, event
                if isinstance(event, Gap):
                    assert event.length > 0
                    self.gaps.append(event)
                    position += event.length
                    continue
                self._check(event)
                self.found.append(event)
                self.content[event.offset] = b"".join(recovered_content(file.fileno(), event))
                if event.state != "unverified":
                    assert len(self.content[event.offset]) == event.recoverable_bytes
                position = event.end
            assert position == max(start, options.get("end", len(data)))

    @staticmethod
    def _check(one: Found) -> None:
        assert one.offset < one.data_offset <= one.end
        assert one.recoverable_bytes >= 0
        assert (one.state == "whole") == (one.reason == "")
        if one.state == "whole":
            assert one.recoverable_bytes == one.size

    def states(self) -> dict[str, str]:
        return {one.name: one.state for one in self.found}

    def whole(self) -> dict[str, bytes]:
        for one in self.found:
            if one.state == "whole":
                assert crc32(self.content[one.offset]) == one.crc
        return {one.name: self.content[one.offset] for one in self.found if one.state == "whole"}

    def one(self, name: str) -> Found:
        (found,) = [one for one in self.found if one.name == name]
        return found

    def content_of(self, name: str) -> bytes:
        return self.content[self.one(name).offset]


class Pipe(io.RawIOBase):
    """What `zipfile` writes data descriptors to, because it cannot seek."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._target.write(data)


def member(
    name: str, plain: bytes, method: int = STORED, *, sequence: int | None = None, cookie: int = COOKIE
) -> tuple[bytes, bytes]:
    """Return local header with data, and directory entry without offset."""
    data = plain if method == STORED else compress(plain, method)
    facts = Member(name, method, crc32(plain), len(data), len(plain), 1_700_000_000_000_000_000, 0o100644)
    origin = None
    if sequence is not None:
        origin = Origin(cookie, sequence, "ar.zip", "node7", "w", 1_700_000_000_000_000_000, 0o100644)
    return encode_local_header(facts, origin) + data, encode_central_entry(facts, 0)


def described(name: str, plain: bytes, method: int, layout: str) -> bytes:
    """Return a member with data descriptor; ``layout`` is ``32``, ``64``, ``bare32`` or ``bare64``."""
    data = plain if method == STORED else compress(plain, method)
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 8, method, 0, 0x21, 0, 0, 0, len(name), 0) + name.encode()
    numbers = struct.pack("<IQQ" if layout.endswith("64") else "<3I", crc32(plain), len(data), len(plain))
    return head + data + (b"" if layout.startswith("bare") else b"PK\7\x08") + numbers


def members(count: int, method: int = STORED, *, own: bool = False) -> tuple[list[bytes], dict[str, bytes]]:
    parts, plain = [], {}
    for number in range(count):
        name = f"d/{number}.txt"
        plain[name] = b"%d " % number + (TEXT if number % 3 else NOISE)[: 100 + number % 7 * 50]
        parts.append(member(name, plain[name], method, sequence=number if own else None)[0])
    return parts, plain


def with_directory(parts: list[bytes], comment: bytes = b"") -> bytes:
    """Return an archive of whole members."""
    data, entries = b"".join(parts), []
    for one in Scanned(data).found:
        facts = Member(one.name, one.header.method, one.crc, one.compressed_size, one.size, 0, 0)
        entries.append(encode_central_entry(facts, one.offset))
    assert len(entries) == len(parts)
    return archive_of(data, *entries, comment=comment)


def directory_start(data: bytes) -> int:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.start_dir


# Whole archives


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "without-directory"])
def test_every_member_of_every_writer_is_found(writer: str, cut: bool, tmp_path: Path) -> None:
    data = make(writer, tmp_path).read_bytes()
    if cut:
        data = data[: directory_start(data)]
    scanned = Scanned(data)
    assert set(scanned.states().values()) == {"whole"}
    files = {name: plain for name, plain in scanned.whole().items() if not name.endswith("/")}
    assert files == CONTENTS
    kinds = [gap.kind for gap in scanned.gaps]
    assert kinds == (["unknown"] if "prefix" in writer else []) + ([] if cut else ["directory"])


def test_members_of_a_worker_and_of_a_closed_temp_archive(tmp_path: Path) -> None:
    with rear_fs(tmp_path / "base", compression="deflate"):
        for name, plain in CONTENTS.items():
            with rear_open(f"ar.zip/{name}", "wb") as file:
                file.write(plain)
    (path,) = (tmp_path / "base").rglob("inbox/*/*.zip")
    data = path.read_bytes()
    scanned = Scanned(data)
    assert scanned.whole() == CONTENTS
    origin = scanned.found[0].origin
    assert origin is not None
    assert {one.origin.archive for one in scanned.found if one.origin} == {"ar.zip"}
    assert Scanned(data, cookie=origin.cookie).whole() == CONTENTS
    # With another cookie none of it is a member.
    assert Scanned(data, cookie=origin.cookie ^ 1).found == []


@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("layout", ["32", "64", "bare32", "bare64"])
def test_data_descriptors(method: int, layout: str) -> None:
    plain = {"a": TEXT, "empty": b"", "PK": b"PK\3\4PK\7\x08PK\1\2" * 50, "last": NOISE}
    data = b"".join(described(name, content, method, layout) for name, content in plain.items())
    scanned = Scanned(data)
    assert scanned.whole() == plain
    assert scanned.gaps == []
    # The torn last one is told apart, and what decodes of it is its begin.
    torn = Scanned(data[:-60])
    assert {name: state for name, state in torn.states().items() if state == "whole"}.keys() == {"a", "empty", "PK"}
    assert NOISE.startswith(torn.content_of("last"))
    assert torn.one("last").recoverable_bytes > len(NOISE) - 100


def test_names_and_directories() -> None:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("früh/", b"")
            archive.writestr("früh/日本.txt", b"x")
        data = file.getvalue()
    cp437 = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0x21, crc32(b"y"), 1, 1, 5, 0) + b"\x81ber!" + b"y"
    assert Scanned(data[: directory_start(data)] + cp437).whole() == {
        "früh/": b"",
        "früh/日本.txt": b"x",
        "über!": b"y",
    }


def test_a_stored_zip_is_one_member() -> None:
    inner = with_directory(members(20)[0])
    data = member("a", b"1")[0] + member("inner.zip", inner)[0] + member("b", b"2")[0]
    assert Scanned(data).whole() == {"a": b"1", "inner.zip": inner, "b": b"2"}


def test_zip64_headers() -> None:
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0x21, crc32(TEXT), 0xFFFFFFFF, 0xFFFFFFFF, 1, 20)
    first = head + b"a" + struct.pack("<2HQQ", 1, 16, len(TEXT), len(TEXT)) + TEXT
    assert Scanned(first + member("b", NOISE)[0]).whole() == {"a": TEXT, "b": NOISE}


def test_encrypted_members_are_kept_as_they_are(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    target = tmp_path / "e.zip"
    run(tool("zip"), "-qr", "-P", "secret", target, ".", cwd=tmp_path / "tree")
    data = target.read_bytes()
    for part in (data, data[: directory_start(data)]):
        scanned = Scanned(part)
        found = {one.name: one for one in scanned.found if not one.name.endswith("/")}
        assert found.keys() == CONTENTS.keys()
        for name, one in found.items():
            assert one.state == "unverified"
            assert "encrypted" in one.reason
            with zipfile.ZipFile(target) as archive:
                info = archive.getinfo(name)
            assert (one.compressed_size, one.size, one.crc) == (info.compress_size, info.file_size, info.CRC)
            assert scanned.content[one.offset] == part[one.data_offset : one.data_offset + one.compressed_size]


def test_a_method_without_codec_says_so(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    target = tmp_path / "p.zip"
    run(tool("7z"), "a", "-bd", "-mm=PPMd", target, "logs", cwd=tmp_path / "tree")
    states = Scanned(target.read_bytes()).found
    assert [one.reason for one in states if one.header.method == 98] == ["no codec for compression method 98 (PPMd)"]
    assert {one.state for one in states if one.header.method == 98} == {"unverified"}


def test_deflate64_leaves_zipfile_alone(tmp_path: Path) -> None:
    """After the import of its decoder zipfile would write stored bytes under method 9."""
    path = make("7z-deflate64", tmp_path)
    program = (
        "import io, os, sys, zipfile\nfrom rear.salvage.scan import scan\n"
        "found = list(scan(os.open(sys.argv[1], os.O_RDONLY)))\n"
        "assert any(one.header.method == 9 and one.state == 'whole' for one in found[:-1])\n"
        "try:\n    zipfile.ZipFile(io.BytesIO(), 'w', compression=9)\n"
        "except NotImplementedError:\n    print('refused')\n"
    )
    done = run_code(program, path, check=True)
    assert done.stdout == "refused\n"


def test_split_archives_are_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("noise").write_bytes(random.Random(2).randbytes(200_000))
    run(tool("zip"), "-q", "-s", "64k", "s.zip", "noise", cwd=tmp_path)
    for name in ("s.z01", "s.zip"):
        with pytest.raises(UnsupportedError, match="split"):
            Scanned(tmp_path.joinpath(name).read_bytes())


def test_without_reading_data() -> None:
    parts, plain = members(30, DEFLATED)
    for data in (b"".join(parts), with_directory(parts)):
        scanned = Scanned(data, read_data=False)
        assert set(scanned.states().values()) == {"unverified"}
        assert {one.name for one in scanned.found} == set(plain)
        assert [one.size for one in scanned.found] == [len(content) for content in plain.values()]
        assert {one.recoverable_bytes for one in scanned.found} == {0}


def test_a_range() -> None:
    parts, plain = members(9)
    start, end = len(b"".join(parts[:2])), len(b"".join(parts[:5]))
    scanned = Scanned(b"".join(parts), start=start, end=end)
    assert list(scanned.whole()) == list(plain)[2:5]


# Damage


@pytest.mark.parametrize("method", [STORED, DEFLATED, ZSTANDARD])
def test_torn_at_every_length_of_the_last_member(method: int) -> None:
    first, last = member("first", NOISE[:300])[0], member("last", TEXT[:700], method)[0]
    for length in range(len(first), len(first + last)):
        scanned = Scanned((first + last)[:length])
        assert scanned.whole() == {"first": NOISE[:300]}
        for one in scanned.found[1:]:
            assert one.state in ("partial", "lost")
            assert TEXT[:700].startswith(scanned.content[one.offset])
            assert len(scanned.content[one.offset]) == one.recoverable_bytes


@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("directory", [False, True])
def test_holes_of_zeros(method: int, directory: bool) -> None:
    parts, plain = members(300, method)
    data = bytearray(with_directory(parts) if directory else b"".join(parts))
    # Half of the data of one member is left.
    start, end = len(b"".join(parts[:101])) - 40, len(data) // 2
    data[start:end] = bytes(end - start)
    position, kept = 0, {}
    for name, part in zip(plain, parts, strict=True):
        if position + len(part) <= start or position >= end:
            kept[name] = plain[name]
        position += len(part)
    scanned = Scanned(bytes(data))
    assert scanned.whole() == kept
    assert any(gap.kind == "zeros" and gap.length > (end - start) // 2 for gap in scanned.gaps)
    cut = scanned.one(next(name for name in plain if name not in kept))
    assert cut.state in ("partial", "lost")


def test_garbage_before_between_and_after() -> None:
    parts, plain = members(3)
    noise = [random.Random(seed).randbytes(5000) for seed in range(4)]
    data = b"".join(piece for pair in zip(noise, [*parts, b""], strict=True) for piece in pair)
    scanned = Scanned(data)
    assert scanned.whole() == plain
    assert [(gap.length, gap.kind) for gap in scanned.gaps] == [(5000, "unknown")] * 4


def test_truncated_and_wrong_directories() -> None:
    parts, plain = members(40)
    data = with_directory(parts)
    start = len(b"".join(parts))
    for length in range(start, len(data), 97):
        assert Scanned(data[:length]).whole() == plain
    other = with_directory([member(f"other/{number}", b"1")[0] for number in range(40)])
    assert Scanned(b"".join(parts) + other[-(len(data) - start) :]).whole() == plain


def test_what_a_valid_directory_does_not_list_is_no_member() -> None:
    parts, plain = members(6)
    data, hidden = with_directory(parts), member("deleted", b"gone")[0]
    start = len(b"".join(parts))
    end = data[start:-22] + encode_end(
        entries=6, directory_length=len(data) - start - 22, directory_offset=start + len(hidden)
    )
    scanned = Scanned(data[:start] + hidden + end)
    assert scanned.whole() == plain
    assert (scanned.gaps[0].kind, scanned.gaps[0].length) == ("unknown", len(hidden))


@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("field", [18, 22], ids=["compressed-size", "size"])
@pytest.mark.parametrize("bit", [0, 3, 9, 14, 20, 31])
def test_a_flipped_size_loses_nobody(method: int, field: int, bit: int) -> None:
    parts, plain = members(20, method)
    head = bytearray(parts[7])
    head[field + bit // 8] ^= 1 << bit % 8
    scanned = Scanned(b"".join([*parts[:7], bytes(head), *parts[8:]]))
    assert scanned.whole() == {name: content for name, content in plain.items() if name != "d/7.txt"}
    assert scanned.one("d/7.txt").state == "unverified"
    assert scanned.content_of("d/7.txt") == plain["d/7.txt"]


@pytest.mark.parametrize("own", [False, True], ids=["foreign", "rear"])
def test_any_flipped_bit_of_a_header_costs_that_member_at_most(own: bool) -> None:
    parts, plain = members(4, DEFLATED, own=own)
    length = len(parts[2]) - len(compress(plain["d/2.txt"], DEFLATED))
    others = {name: content for name, content in plain.items() if name != "d/2.txt"}
    for position in range(length):
        head = bytearray(parts[2])
        head[position] ^= 1 << position % 8
        data = b"".join([*parts[:2], bytes(head), parts[3]])
        for options in ({"cookie": COOKIE}, {}) if own else ({},):
            whole = Scanned(data, **options).whole()
            assert others.items() <= whole.items(), position
            for name in whole.keys() - others.keys():
                # Without a checksum a changed name is a name.
                assert not own
                assert whole[name] == plain["d/2.txt"]


def test_our_own_checksum_tells_of_a_flipped_name() -> None:
    parts, plain = members(3, own=True)
    data = b"".join(parts).replace(b"d/1.txt", b"d/q.txt", 1)
    for options in ({"cookie": COOKIE}, {}):
        scanned = Scanned(data, **options)
        found = scanned.one("d/q.txt")
        assert (found.state, found.recoverable_bytes, found.origin) == ("unverified", found.size, None)
        assert "checksum" in found.reason
        assert scanned.content[found.offset] == plain["d/1.txt"]


def test_a_directory_tells_of_a_flipped_name() -> None:
    parts, _ = members(3)
    scanned = Scanned(with_directory(parts).replace(b"d/1.txt", b"d/q.txt", 1))
    assert scanned.states() == {"d/0.txt": "whole", "d/1.txt": "unverified", "d/2.txt": "whole"}
    assert "d/q.txt" in scanned.one("d/1.txt").reason


def test_flipped_bits_in_data_say_how_far_it_decodes() -> None:
    plain = TEXT * 10
    first = bytearray(member("a", plain, DEFLATED)[0])
    first[len(first) * 2 // 3] ^= 0xFF
    scanned = Scanned(bytes(first) + member("b", NOISE)[0])
    found = scanned.one("a")
    assert found.state == "partial"
    assert len(plain) // 3 < found.recoverable_bytes <= len(plain)
    assert scanned.content_of("a")[: len(plain) // 3] == plain[: len(plain) // 3]
    assert scanned.whole() == {"b": NOISE}


# Zips inside Zips


@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_a_zip_that_a_hole_has_opened(method: int) -> None:
    inner, _ = members(60, method)
    before, plain = members(5, method, own=True)
    archive = member("inner.zip", with_directory(inner), sequence=9)[0]
    last = member("last", b"z", sequence=10)[0]
    data = bytearray(b"".join([*before, archive, last]))
    start = len(b"".join(before))
    data[start : start + 300] = bytes(300)
    expected = {**plain, "last": b"z"}
    assert Scanned(bytes(data), cookie=COOKIE).whole() == expected
    assert Scanned(bytes(data)).whole() == expected


def test_a_foreign_zip_that_a_hole_has_opened_is_known_by_its_own_directory() -> None:
    inner, _ = members(60)
    parts = [member("a", b"1")[0], member("inner.zip", with_directory(inner))[0], member("b", b"2")[0]]
    data = bytearray(b"".join(parts))
    # The header goes, and so it does with the first inner member.
    for hole in (20, 150):
        start = len(parts[0])
        data[start : start + hole] = bytes(hole)
        scanned = Scanned(bytes(data))
        assert scanned.whole() == {"a": b"1", "b": b"2"}
        (nested,) = scanned.nested
        assert nested.start + nested.length == len(parts[0] + parts[1])


def test_a_torn_zip_at_the_torn_tail_has_no_members_of_ours() -> None:
    inner = with_directory(members(60)[0])
    for own in (False, True):
        archive = member("inner.zip", inner, sequence=1 if own else None)[0]
        data = member("a", b"1", sequence=0 if own else None)[0] + archive[: len(archive) // 2]
        scanned = Scanned(data)
        assert scanned.states() == {"a": "whole", "inner.zip": "partial"}
        assert inner.startswith(scanned.content_of("inner.zip"))


def test_two_archives_one_after_the_other_are_not_nested() -> None:
    first, second = member("a", b"1")[0], member("b", b"2")[0]
    scanned = Scanned(with_directory([first]) + with_directory([second]))
    assert scanned.whole() == {"a": b"1", "b": b"2"}
    assert scanned.nested == []


def test_a_self_extractor_is_not_nested(tmp_path: Path) -> None:
    data = STUB + make("zipfile", tmp_path).read_bytes()
    scanned = Scanned(data[:-22] + b"\0" + data[-21:])
    assert scanned.whole() == CONTENTS
    assert scanned.nested == []


# Hostile input


def counted(data: bytes, **options: Any) -> tuple[CountsReads, Scanned]:
    storage = CountsReads()
    return storage, Scanned(data, storage=storage, **options)


def test_a_length_that_only_the_zip64_field_has_is_no_bound_without_it() -> None:
    """A zeroed Zip64 field leaves 0xFFFFFFFF: taken literally, the member would swallow all that follow."""
    name = b"a.bin"
    for plain, method in ((b"", STORED), (NOISE, STORED), (TEXT, DEFLATED)):
        data = plain if method == STORED else compress(plain, method)
        head = struct.pack(
            "<4s5H3I2H", b"PK\3\4", 45, 0, method, 0, 0x21, crc32(plain), 0xFFFFFFFF, 0xFFFFFFFF, len(name), 20
        )
        other = member("b.txt", TEXT)[0]
        intact = head + name + struct.pack("<HHQQ", 1, 16, len(plain), len(data)) + data + other
        assert Scanned(intact).whole() == {"a.bin": plain, "b.txt": TEXT}
        damaged = head + name + bytes(20) + data + other
        scanned = Scanned(damaged)
        assert scanned.whole() == {"b.txt": TEXT}
        found = scanned.one("a.bin")
        assert (found.size, found.end) == (len(plain), len(damaged) - len(other))
        assert found.state == "unverified"
        assert scanned.content_of("a.bin") == plain
        # Its data is damaged as well: what is left of it ends where the next member begins.
        if data:
            middle = len(head) + len(name) + 20 + len(data) // 2
            scanned = Scanned(damaged[:middle] + bytes([damaged[middle] ^ 0x55]) + damaged[middle + 1 :])
            assert scanned.whole() == {"b.txt": TEXT}
            found = scanned.one("a.bin")
            assert found.state == "partial"
            assert found.recoverable_bytes <= found.size <= len(plain)
            assert found.end == len(damaged) - len(other)
            assert "does not tell the length" in found.reason


def test_an_encrypted_member_without_a_length_ends_where_the_next_begins() -> None:
    """AE-2 stores no CRC-32: 0 does not make it empty."""
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 51, 1, 99, 0, 0x21, 0, 0xFFFFFFFF, 0xFFFFFFFF, 5, 20)
    first = head + b"a.bin" + bytes(20) + NOISE
    scanned = Scanned(first + member("b.txt", TEXT)[0])
    assert scanned.whole() == {"b.txt": TEXT}
    found = scanned.one("a.bin")
    assert (found.state, found.end, found.compressed_size) == ("unverified", len(first), len(NOISE))
    assert "does not tell the length" in found.reason
    assert scanned.content_of("a.bin") == NOISE


@pytest.mark.parametrize("layout", ["32", "64"])
def test_a_torn_descriptor_behind_whole_data(layout: str) -> None:
    """The stream ends by itself where a descriptor with its CRC-32 begins, whatever is left of the sizes."""
    whole = described("a.txt", TEXT, DEFLATED, layout)
    sizes = len(whole) - (16 if layout == "64" else 8)
    for kept in range(sizes, len(whole)):
        for data in (whole[:kept], whole[:kept] + bytes(len(whole) - kept)):
            scanned = Scanned(data)
            assert scanned.states() == {"a.txt": "whole" if data == whole else "unverified"}, kept
            assert scanned.content_of("a.txt") == TEXT


def test_a_bare_descriptor_before_a_damaged_directory_entry() -> None:
    archive = with_directory([described("a.bin", NOISE, STORED, "bare32"), described("b.txt", TEXT, STORED, "bare32")])
    entry = archive.index(b"PK\1\2")
    damaged = archive[: entry + 8] + b"\xff\xff" + archive[entry + 10 :]
    assert Scanned(damaged).whole() == {"a.bin": NOISE, "b.txt": TEXT}


def test_properties_that_no_lzma_decoder_takes() -> None:
    """Each flipped bit of version, properties and dictionary size: damage, never another exception."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.txt", TEXT)
        archive.writestr("b.txt", NOISE)
    data = file.getvalue()
    start = 30 + len("a.txt")
    for bit in range(9 * 8):
        changed = bytearray(data)
        changed[start + bit // 8] ^= 1 << bit % 8
        for cut in (None, data.index(b"PK\1\2")):
            scanned = Scanned(bytes(changed[:cut]))
            assert scanned.content_of("b.txt") == NOISE
            assert scanned.one("b.txt").state == "whole"
            content = scanned.content_of("a.txt")
            assert scanned.one("a.txt").state in ("partial", "lost") or content == TEXT, bit


@pytest.mark.parametrize("padding", [b"\0" * 9000, b"garbage" * 50])
def test_a_directory_with_something_behind_it_is_evidence(padding: bytes) -> None:
    """Programs that write to a pipe pad their output to a block."""
    parts, _ = members(5)
    archive = with_directory(parts) + padding
    flipped = archive.replace(b"d/2.txt", b"d/3.txt", 1)
    scanned = Scanned(flipped)
    assert sorted(scanned.states()) == [f"d/{number}.txt" for number in range(5)]
    assert scanned.one("d/2.txt").state == "unverified"
    assert "central directory 'd/2.txt'" in scanned.one("d/2.txt").reason


@pytest.mark.parametrize("method", [DEFLATED, ZSTANDARD, zipfile.ZIP_BZIP2])
def test_a_stream_tells_its_length_when_header_and_crc_are_damaged(method: int) -> None:
    """CRC-32 and compressed size are wrong: the data that decodes is delivered, and as much as was promised."""
    plain = TEXT[:900]
    one = member("a.txt", plain, method)[0] if method != zipfile.ZIP_BZIP2 else _bzipped("a.txt", plain)
    other = member("b.txt", NOISE)[0]
    for compressed_size in (0, 7, len(one), 0x7FFFFFFF):
        changed = one[:14] + struct.pack("<II", 539, compressed_size) + one[22:]
        scanned = Scanned(changed + other)
        found = scanned.one("a.txt")
        assert (found.state, found.recoverable_bytes, found.end) == ("partial", len(plain), len(one)), compressed_size
        assert scanned.content_of("a.txt") == plain
        assert scanned.whole() == {"b.txt": NOISE}


def _bzipped(name: str, plain: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr(name, plain)
    return file.getvalue().partition(b"PK\1\2")[0]


def stream_member(name: str, plain: bytes, method: int, data: bytes) -> bytes:
    facts = Member(name, method, crc32(plain), len(data), len(plain), 1_700_000_000_000_000_000, 0o100644)
    return encode_local_header(facts, None) + data


def flipped_bit(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 0x80 >> bit % 8
    return bytes(changed)


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_block_checksum_inside_a_bzip2_stream_costs_nothing(blocks: int) -> None:
    """bz2 keeps a block to itself whose checksum is wrong; all of it comes out, and nobody calls it whole."""
    plain = random.Random(3).randbytes(90_000 * blocks)
    data = bz2.compress(plain, 1)
    other = member("b.txt", NOISE)[0]
    bits = "".join(f"{byte:08b}" for byte in data)
    magic = f"{0x314159265359:048b}"
    places = [match.start() + 48 for match in re.finditer(magic, bits)]
    assert len(places) == blocks
    for place in places:
        for bit in (place, place + 13, place + 31):
            scanned = Scanned(stream_member("a", plain, zipfile.ZIP_BZIP2, flipped_bit(data, bit)) + other)
            found = scanned.one("a")
            assert (found.state, found.recoverable_bytes) == ("partial", len(plain)), bit
            assert "right CRC-32" in found.reason
            assert scanned.content_of("a") == plain
            assert scanned.whole() == {"b.txt": NOISE}
    # A wrong bit in the data of a block is no wrong checksum.
    scanned = Scanned(stream_member("a", plain, zipfile.ZIP_BZIP2, flipped_bit(data, places[-1] + 90_000)) + other)
    assert scanned.one("a").state == "partial"
    assert scanned.one("a").recoverable_bytes < len(plain)
    assert scanned.content_of("a")[: 90_000 * (blocks - 1)] == plain[: 90_000 * (blocks - 1)]


@pytest.mark.parametrize("size", [200, 60_000, 300_000])
@pytest.mark.parametrize("is_sized", [True, False], ids=["one-shot", "streamed"])
def test_a_wrong_size_inside_a_zstandard_frame_costs_nothing(size: int, is_sized: bool) -> None:
    zstandard = pytest.importorskip("zstandard")
    plain = (TEXT * 30)[:size]
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    if is_sized:
        data = compressor.compress(plain)
    else:
        # With a window of its own, and the size in its header all the same.
        stream = zstandard.ZstdCompressor(level=1).compressobj(size=len(plain))
        data = b"".join(stream.compress(plain[at : at + 1000]) for at in range(0, size, 1000)) + stream.flush()
    for bit in (5 * 8, 5 * 8 + 7, 6 * 8 + 2) if size > 255 else (5 * 8, 5 * 8 + 7):
        scanned = Scanned(stream_member("a", plain, ZSTANDARD, flipped_bit(data, bit)))
        assert scanned.one("a").state == "partial"
        assert scanned.content_of("a") == plain, bit


def test_a_damaged_descriptor_with_the_right_crc_proves_the_data() -> None:
    for layout, length in (("32", 16), ("64", 24)):
        one, other = described("a", NOISE, STORED, layout), member("b.txt", TEXT)[0]
        last = member("c.txt", TEXT)[0]
        damaged = one[: -length + 12] + bytes(length - 12)
        scanned = Scanned(damaged + bytes(20) + other[20:] + last)
        assert scanned.states()["a"] == "unverified"
        assert scanned.content_of("a") == NOISE
        assert scanned.whole()["c.txt"] == TEXT
        # Data that is not as it was is not proven by it.
        scanned = Scanned(flipped_bit(damaged, 400 * 8) + bytes(20) + other[20:] + last)
        assert scanned.states()["a"] == "partial"


def test_an_empty_member_does_not_swallow_the_next_whose_header_is_damaged() -> None:
    empty, one = described("empty", b"", STORED, "32"), described("a", NOISE, STORED, "32")
    last = member("c.txt", TEXT)[0]
    for damaged in (one[:9] + b"\x40" + one[10:], one[:6] + b"\xff\xff" + one[8:]):
        scanned = Scanned(empty + damaged + last)
        assert scanned.states() == {"empty": "unverified", "a": "unverified", "c.txt": "whole"}
        assert scanned.content_of("a") == NOISE


def test_one_pass_in_large_pieces() -> None:
    parts, plain = members(20_000)
    data = b"".join(parts)
    storage, scanned = counted(data)
    assert len(scanned.found) == len(plain)
    # Recovering the content has read all once more, a call each.
    assert len(storage.lengths) < len(data) // PIECE_BYTES * 2 + 10
    assert max(storage.lengths) <= PIECE_BYTES


def fake_headers(count: int, size: int, method: int = STORED) -> bytes:
    return b"".join(
        struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, method, 0, 0x21, number, size, size, 4, 0) + b"fake"
        for number in range(count)
    )


@pytest.mark.parametrize("name", ["a\0", "\xff", "a\1"], ids=["nul", "latin", "control"])
@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_odd_members_in_a_row_are_looked_at_once(name: str, method: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends a run of plain members must not have the members behind it looked at again and again."""
    calls = 0

    def counting(data: Any, crc: int = 0) -> int:
        nonlocal calls
        calls += 1
        return crc32(data, crc)

    monkeypatch.setattr("rear.salvage.scan.crc32", counting)
    count = 3000
    data = compress(TEXT, method) if method else TEXT[:50]
    plain = TEXT if method else TEXT[:50]
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, method, 0, 0x21, crc32(plain), len(data), len(plain), 9, 0)
    parts = [head + f"{name}{number}".encode("latin-1").ljust(9, b"x") + data for number in range(count)]
    with tempfile.TemporaryFile() as file:
        file.write(member("a.txt", TEXT)[0] + b"".join(parts))
        file.flush()
        assert sum(1 for _ in scan(file.fileno())) >= 1
    assert calls <= 2 * count


def test_plain_members_come_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0

    def counting(window: Window, position: int) -> Any:
        nonlocal looked_at
        looked_at += 1
        return local_header(window, position)

    monkeypatch.setattr("rear.salvage.scan.local_header", counting)
    for method in (STORED, DEFLATED):
        for own in (False, True):
            parts, plain = members(20_000, method, own=own)
            looked_at = 0
            with tempfile.TemporaryFile() as file:
                file.write(b"".join(parts))
                file.flush()
                items = list(scan_in_runs(file.fileno()))
                assert sum(len(item.rows) if isinstance(item, Run) else 1 for item in items) == len(plain)
                assert looked_at < 10
                assert len(items) < 20
                whole = [one for item in items for one in (item.members() if isinstance(item, Run) else [item])]
                assert whole == list(scan(file.fileno()))
                assert all((one.origin is not None) == own for one in whole)


def fast_and_general(data: bytes, **how: Any) -> tuple[list[Any], list[Any]]:
    """Return what a scan yields, many members at a time and one by one."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        fast = list(scan(file.fileno(), **how))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rear.salvage.scan._Scan._plain_run", lambda self, position: None)
            return fast, list(scan(file.fileno(), **how))


ORDINARY = (b"", b"payload " * 9, bytes(range(256)), bytes(700))
ODD = ("header", "data", "name", "length", "junk", "cut", "nothing")


@given(
    members=st.lists(
        st.tuples(st.sampled_from(ORDINARY), st.sampled_from((0, 8)), st.sampled_from(ODD), st.integers(0, 2**20)),
        min_size=1,
        max_size=8,
    ),
    read_data=st.booleans(),
    has_directory=st.booleans(),
)
@settings(deadline=None)
def test_many_at_a_time_are_found_as_one_by_one(
    members: list[tuple[bytes, int, str, int]], read_data: bool, has_directory: bool
) -> None:
    buffer = io.BytesIO()
    ends = []
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, (content, method, odd, _) in enumerate(members):
            info = zipfile.ZipInfo(("folder/" if not content else "") + f"{number}" + ("é\1" if odd == "name" else ""))
            info.compress_type = method
            info.extra = b"UT\5\0\1abcd" if number % 3 else b""
            archive.writestr(info, content)
            ends.append(buffer.tell())
    data = buffer.getvalue() if has_directory else buffer.getvalue()[: ends[-1]]
    parts, start = [], 0
    for (_, _, odd, place), end in zip(members, ends, strict=True):
        part = bytearray(data[start:end])
        if odd in ("header", "length", "data"):
            low, high = {"header": (0, 30), "length": (14, 30), "data": (30, len(part))}[odd]
            part[low + place % (high - low)] ^= 1 << place % 8
        elif odd == "cut":
            del part[len(part) - place % 20 :]
        elif odd == "junk":
            part += b"PK\3\4" + place.to_bytes(3, "little")
        parts.append(bytes(part))
        start = end
    fast, general = fast_and_general(b"".join([*parts, data[start:]]), read_data=read_data)
    assert fast == general


def test_a_hundred_thousand_fake_headers_in_a_payload() -> None:
    payload = fake_headers(100_000, 1000)
    storage, scanned = counted(member("a", payload)[0] + member("b", b"2")[0])
    assert scanned.whole() == {"a": payload, "b": b"2"}
    assert sum(storage.lengths) < 4 * len(payload)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("size", [1000, 1 << 20, 2**31])
def test_fake_headers_that_overlap_cost_linear_time(method: int, size: int) -> None:
    data = fake_headers(10_000, size, method)
    storage, scanned = counted(b"garbage" + data + member("real", b"r" * 100)[0])
    assert not [one for one in scanned.found if one.state == "whole" and one.name != "real"]
    assert sum(storage.lengths) < 67 << 20


@pytest.mark.timeout(60)
def test_forged_sizes() -> None:
    for size in (2**63, 2**64 - 1, 2**62):
        head = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 8, 0, 0x21, 1, 0xFFFFFFFF, 0xFFFFFFFF, 1, 20)
        forged = head + b"a" + struct.pack("<2HQQ", 1, 16, size, size) + compress(TEXT, DEFLATED)
        scanned = Scanned(forged + member("b", NOISE)[0])
        assert scanned.whole() == {"b": NOISE}


@pytest.mark.timeout(60)
def test_a_bomb_takes_no_memory() -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(stream.compress(bytes(1 << 20)) for _ in range(256)) + stream.flush()
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0x21, 1, len(bomb), 1000, 4, 0) + b"bomb"
    program = (
        "import sys, tempfile\nfrom rear.salvage.scan import scan\n"
        "with tempfile.TemporaryFile() as file:\n    file.write(sys.stdin.buffer.read()); file.flush()\n"
        "    print([one.state for one in scan(file.fileno())])\n"
        # Not ru_maxrss: a child has that of its parent at the fork.
        "(peak,) = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "print(int(peak) // 1024, file=sys.stderr)\n"
    )
    done = run_code(program, input=head + bomb + member("b", b"2")[0], text=False, check=True)
    assert done.stdout == b"['partial', 'whole']\n"
    assert int(done.stderr) < 150


@pytest.mark.timeout(60)
def test_large_sparse_files_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "w+b") as file:
        file.write(member("a", b"1")[0])
        file.seek(1 << 40)
        file.write(member("b", b"2")[0])
        file.flush()
        storage = CountsReads()
        events = list(scan(file.fileno(), storage=storage))
    assert [one.name for one in events if isinstance(one, Found)] == ["a", "b"]
    if os.stat(path).st_blocks < 1000:
        assert sum(storage.lengths) < 64 << 20


def test_members_larger_than_a_piece() -> None:
    large = random.Random(4).randbytes(3 * PIECE_BYTES + 17)
    plain = {"a": large, "b": b"2", "c": large[::-1]}
    parts = [member("a", large)[0], member("b", b"2")[0], member("c", large[::-1], DEFLATED)[0]]
    assert Scanned(b"".join(parts)).whole() == plain
    streamed = io.BytesIO()
    with zipfile.ZipFile(Pipe(streamed), "w") as archive:
        for name, content in plain.items():
            archive.writestr(name, content)
    assert Scanned(streamed.getvalue()[:-22]).whole() == plain


@given(st.binary(max_size=600))
def test_arbitrary_bytes(data: bytes) -> None:
    try:
        Scanned(data)
        Scanned(data, cookie=COOKIE, read_data=False)
    except UnsupportedError:
        assert b"PK" in data


def archives() -> Iterator[tuple[bytes, dict[str, bytes]]]:
    for own in (False, True):
        for method in (STORED, DEFLATED, ZSTANDARD):
            parts, plain = members(5, method, own=own)
            yield b"".join(parts), plain
            yield with_directory(parts), plain
    plain = {"a": TEXT[:400], "b": NOISE[:200], "c": b""}
    for layout in ("32", "bare64"):
        for method in (STORED, DEFLATED):
            yield b"".join(described(name, content, method, layout) for name, content in plain.items()), plain


ARCHIVES = list(archives())


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ARCHIVES), st.data())
def test_a_damaged_archive_yields_no_whole_member_that_was_not_there(
    archive: tuple[bytes, dict[str, bytes]], draw: st.DataObject
) -> None:
    data, plain = bytearray(archive[0]), archive[1]
    for _ in range(draw.draw(st.integers(1, 3))):
        start = draw.draw(st.integers(0, len(data) - 1))
        kind = draw.draw(st.sampled_from(["flip", "zeros", "cut", "insert", "noise"]))
        length = draw.draw(st.integers(1, 200))
        if kind == "flip":
            data[start] ^= 1 << length % 8
        elif kind == "zeros":
            data[start : start + length] = bytes(len(data[start : start + length]))
        elif kind == "cut":
            del data[start : start + length]
        elif kind == "insert":
            data[start:start] = random.Random(length).randbytes(length)
        else:
            data[start : start + length] = random.Random(length).randbytes(len(data[start : start + length]))
        if not data:
            return
    try:
        whole = Scanned(bytes(data)).whole()
    except UnsupportedError:
        return
    contents = set(plain.values())
    for name, content in whole.items():
        assert plain.get(name) == content or content in contents
