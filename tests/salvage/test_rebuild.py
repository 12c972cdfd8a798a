"""New archives out of damaged ones: real damage to archives of many writers, and other programs judge what came out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import stat
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import zoo
from bases import check_archive, scratch_folder
from faults import CountsReads, Failing, Point, RecordProperty, dying_at, in_child, some
from faults import Tampered as TamperedStorage
from power_loss import OFF, run_until
from power_loss import Powered as PoweredStorage
from zips import (
    ORIGIN,
    archive_of,
    build,
    contents,
    cut,
    directory_offset,
    many_members,
    member,
    members_of,
    offsets,
    overwrite,
    stored,
    write_overlapping,
    write_zip,
)

from rear.core.problems import Problem
from rear.core.storage import LOCAL, Storage
from rear.errors import UnsupportedError
from rear.fsck.archive import check_archive_file
from rear.fsck.inspection import inspect
from rear.read.view import open_committed
from rear.salvage import info_zip
from rear.salvage.local_headers import Facts
from rear.salvage.rebuild import Rebuilt, _Writer, rebuild
from rear.salvage.rebuilt_headers import (
    encode_entry,
    header_of_entry,
    make_central_entry,
    make_local_header,
    naming_of,
)
from rear.salvage.rebuilt_names import KnownMember, RebuiltNames
from rear.salvage.scan import _Scan
from rear.zip.headers import (
    CentralEntry,
    Member,
    decode_central_entry,
    decode_local_header,
    encode_central_entry,
    encode_local_header,
)
from rear.zip.origin import decode_origin
from rear.zip.structures import LIMIT_32
from rear.zip.structures import LOCAL as LOCAL_HEADER
from rear.zip.structures import ORIGIN as ORIGIN_FIELD


class Aside:
    """Keeps in memory what a rebuild puts aside."""

    def __init__(self) -> None:
        self.items: dict[str, bytes] = {}
        self.notes: dict[str, dict[str, Any]] = {}

    def put_bytes(self, name: str, descriptor: int | None, start: int, length: int, note: dict[str, Any]) -> str:
        assert descriptor is not None
        self.items[name] = os.pread(descriptor, length, start)
        self.notes[name] = dict(note)
        return name

    def takes_decoded(self, size: int, compressed_size: int) -> bool:
        return True

    def put_content(self, name: str, content: Any, note: dict[str, Any]) -> str:
        self.items[f"{name}.partial"] = b"".join(content)
        self.notes[f"{name}.partial"] = dict(note)
        return f"{name}.partial"


class Outcome:
    """What came of one rebuild."""

    def __init__(self, source: Path, target: Path, **options: Any) -> None:
        self.path = target
        self.aside = Aside()
        self.problems: list[Problem] = []
        descriptors = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        steps = rebuild(descriptors[0], target=descriptors[1], keep_aside=self.aside, subject="ar.zip", **options)
        while True:
            try:
                self.problems.append(next(steps))
            except StopIteration as end:
                self.rebuilt: Rebuilt = end.value
                break
        for descriptor in descriptors:
            os.close(descriptor)

    @property
    def codes(self) -> list[str]:
        return sorted(problem.code for problem in self.problems)

    def contents(self, writer: str = "") -> dict[str, bytes]:
        """Content by name, after other programs have accepted the archive, as far as they know the method."""
        if "lzma" in writer:
            # Info-ZIP's unzip has no LZMA.
            zoo.run(zoo.tool("7z"), "t", self.path)
        elif "zstd" in writer:
            zoo.run(zoo.tool("bsdtar"), "-tf", self.path)
        else:
            check_archive(self.path)
        assert [problem for problem in inspect(self.path, deep=True) if problem.outcome != "noted"] == []
        return contents(self.path)


# ---- the directory is gone


@pytest.mark.parametrize("writer", zoo.WRITERS)
def test_archives_of_many_writers_without_their_directory(writer: str, tmp_path: Path) -> None:
    path = zoo.make(writer, tmp_path)
    cut(path, directory_offset(path))
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents(writer) == zoo.CONTENTS
    assert outcome.rebuilt.written.size_bytes == outcome.path.stat().st_size
    assert outcome.codes == []
    if "prefix" in writer:
        # The program of a self-extractor stays in front.
        assert outcome.path.read_bytes().startswith(zoo.STUB)


def attributes(entry: CentralEntry) -> tuple[object, ...]:
    return entry.made_by, entry.external_attributes, entry.comment, entry.dos_date, entry.dos_time, entry.mtime_ns


@pytest.mark.parametrize("writer", zoo.WRITERS)
def test_archives_of_many_writers_with_half_of_their_directory(writer: str, tmp_path: Path) -> None:
    path = zoo.make(writer, tmp_path)
    with open_committed(path) as archive:
        before = {entry.name: entry for entry in archive.entries()}
        start, length = archive.directory.offset, archive.directory.length
    cut(path, start + length // 2)
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents(writer) == zoo.CONTENTS
    with open_committed(outcome.path) as archive:
        kept = [entry for entry in archive.entries() if attributes(entry) == attributes(before[entry.name])]
    assert kept, "nothing of the directory was used"


def test_what_rear_wrote_keeps_mode_and_origin(tmp_path: Path) -> None:
    import rear

    (tmp_path / "tool.sh").write_text("#!/bin/sh\n")
    (tmp_path / "tool.sh").chmod(0o750)
    with rear.rear_fs(tmp_path / "base"):
        with rear.rear_open("ar.zip/a.txt", "w", metadata={"run": 7}) as file:
            file.write("text")
        with rear.rear_pickup(tmp_path / "tool.sh", "ar.zip/tool.sh"):
            pass
    list(rear.scavenge(tmp_path / "base"))
    path = tmp_path / "base" / "ar.zip"
    cut(path, directory_offset(path))
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents() == {"a.txt": b"text", "tool.sh": b"#!/bin/sh\n"}
    with open_committed(outcome.path) as archive:
        entry = archive.find("tool.sh")
        assert entry.mode == stat.S_IFREG | 0o750
        origin = archive.origin(archive.find("a.txt"))
        assert origin.metadata == {"run": 7}


def test_attributes_and_comments_come_from_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"of the archive"
        for name, mode in (("a", 0o600), ("b", 0o755)):
            info = zipfile.ZipInfo(name, (2020, 1, 2, 3, 4, 6))
            info.external_attr = (stat.S_IFREG | mode) << 16
            info.comment = f"of {name}".encode()
            archive.writestr(info, name)
    # The first entry is damaged, the rest can be read.
    overwrite(path, directory_offset(path), b"XX")
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents() == {"a": b"a", "b": b"b"}
    with zipfile.ZipFile(outcome.path) as archive:
        assert archive.comment == b"of the archive"
        assert [info.comment for info in archive.infolist()] == [b"", b"of b"]
        assert [info.external_attr >> 16 for info in archive.infolist()] == [0o100644, 0o100755]
        assert {info.date_time for info in archive.infolist()} == {(2020, 1, 2, 3, 4, 6)}


def test_garbage_before_and_between_members(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", members_of(3))
    data = path.read_bytes()[: directory_offset(path)]
    second = offsets(path)["dir/1.txt"]
    noise = random.Random(1).randbytes(777)
    path.write_bytes(noise + data[:second] + bytes(5000) + noise + data[second:])
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents() == members_of(3)
    assert outcome.codes == ["bytes-unplaced", "bytes-unplaced"]
    assert sorted(outcome.aside.items.values()) == [noise, noise]
    assert {problem.outcome for problem in outcome.problems} == {"left"}
    assert all(note["archive"] == "ar.zip" for note in outcome.aside.notes.values())


def test_a_zip_inside_a_zip_stays_a_member(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"inside": b"not a member"}).read_bytes()
    path = write_zip(tmp_path / "a.zip", {"first": b"1", "inner.zip": inner, "last": b"2"})
    cut(path, directory_offset(path))
    assert set(Outcome(path, tmp_path / "new.zip").contents()) == {"first", "inner.zip", "last"}


def test_encrypted_members_are_copied_as_they_are(tmp_path: Path) -> None:
    zoo.write_tree(tmp_path / "tree")
    path = tmp_path / "e.zip"
    zoo.run(zoo.tool("zip"), "-qr", "-P", "secret", path, ".", cwd=tmp_path / "tree")
    cut(path, directory_offset(path))
    outcome = Outcome(path, tmp_path / "new.zip")
    with zipfile.ZipFile(outcome.path) as archive:
        for name, data in zoo.CONTENTS.items():
            assert archive.read(name, b"secret") == data


def test_more_members_than_an_end_record_can_count(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    count = 70_000
    with open(path, "wb") as file:
        for number in range(count):
            file.write(encode_local_header(member(f"{number}", b"1"), ORIGIN) + b"1")
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.rebuilt.members == count
    check_archive(outcome.path)
    with zipfile.ZipFile(outcome.path) as archive:
        assert len(archive.namelist()) == count


def test_a_hole_of_five_gigabytes(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", members_of(2))
    body = path.read_bytes()[: directory_offset(path)]
    second = offsets(path)["dir/1.txt"]
    with open(path, "wb") as file:
        file.write(body[:second])
        file.seek(5 << 30)
        file.write(body[second:])
    begin = time.monotonic()
    outcome = Outcome(path, tmp_path / "new.zip")
    assert time.monotonic() - begin < 60
    assert outcome.contents() == members_of(2)
    assert outcome.codes == []


# ---- members are damaged


def test_damaged_members_are_kept_aside(tmp_path: Path) -> None:
    content = {name: random.Random(name).randbytes(20_000) + b"text " * 5_000 for name in ("a", "dir/b", "c")}
    path = tmp_path / "a.zip"
    write_zip(path, content, zipfile.ZIP_DEFLATED)
    second = offsets(path)["dir/b"]
    overwrite(path, second + 10_000, bytes(64))
    original = path.read_bytes()
    cut(path, directory_offset(path))
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents() == {name: content[name] for name in ("a", "c")}
    [problem] = [problem for problem in outcome.problems if problem.code == "member-partial"]
    assert (problem.name, problem.offset, problem.outcome, problem.severity) == ("dir/b", second, "left", "loss")
    assert problem.length is not None
    assert problem.lost_and_found is not None
    partial = outcome.aside.items[problem.lost_and_found]
    assert len(partial) > 1_000
    assert content["dir/b"].startswith(partial[:5_000])
    raw = outcome.aside.items[problem.lost_and_found.removesuffix(".partial")]
    assert raw == original[second : second + problem.length]
    note = outcome.aside.notes[problem.lost_and_found]
    assert (note["name"], note["offset"], note["recovered_bytes"]) == ("dir/b", second, len(partial))


def test_a_torn_last_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", members_of(3))
    cut(path, offsets(path)["dir/2.txt"] + 100)
    outcome = Outcome(path, tmp_path / "new.zip")
    expected = members_of(3)
    torn = expected.pop("dir/2.txt")
    assert outcome.contents() == expected
    [problem] = outcome.problems
    assert problem.name == "dir/2.txt"
    assert problem.lost_and_found is not None
    kept = outcome.aside.items[problem.lost_and_found]
    assert torn.startswith(kept)
    assert kept


@pytest.mark.parametrize("position", [0, 2, 3, 8, 14, 18, 22])
def test_a_flipped_bit_in_a_header_that_the_directory_makes_good(position: int, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", members_of(3))
    second = offsets(path)["dir/1.txt"]
    byte = path.read_bytes()[second + position]
    overwrite(path, second + position, bytes([byte ^ 4]))
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents() == members_of(3)
    assert {problem.outcome for problem in outcome.problems} <= {"repaired", "noted"}


def test_a_header_full_of_zeros_is_made_again_from_the_directory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", members_of(3))
    overwrite(path, offsets(path)["dir/1.txt"], bytes(LOCAL_HEADER.size + 5))
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents() == members_of(3)
    [problem] = [problem for problem in outcome.problems if problem.outcome == "repaired"]
    assert (problem.code, problem.name) == ("member-header-missing", "dir/1.txt")


def test_a_member_that_the_directory_alone_knows_is_lost(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", members_of(3))
    start = offsets(path)["dir/1.txt"]
    overwrite(path, start, bytes(200))
    outcome = Outcome(path, tmp_path / "new.zip")
    assert set(outcome.contents()) == {"dir/0.txt", "dir/2.txt"}
    lost = [problem for problem in outcome.problems if problem.severity == "loss"]
    assert [(problem.name, problem.offset) for problem in lost] == [("dir/1.txt", start)]


def test_a_name_that_was_damaged_comes_from_the_directory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", members_of(3))
    overwrite(path, offsets(path)["dir/1.txt"] + LOCAL_HEADER.size, b"\xc3\x28")
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents() == members_of(3)
    [problem] = outcome.problems
    assert (problem.code, problem.outcome, problem.name) == ("member-header-differs", "repaired", "dir/1.txt")


def test_a_name_that_was_damaged_comes_from_the_index(tmp_path: Path) -> None:
    data = members_of(3)
    path = build(tmp_path / "a.zip", [(member(name, data[name]), data[name], ORIGIN, 0) for name in data])
    start = offsets(path)["dir/1.txt"]
    cut(path, directory_offset(path))
    overwrite(path, start + LOCAL_HEADER.size, b"X")
    whole = member("dir/1.txt", data["dir/1.txt"])

    def known(offset: int) -> KnownMember | None:
        return KnownMember(whole.name, whole.crc, whole.size) if offset == start else None

    outcome = Outcome(path, tmp_path / "new.zip", known=known)
    assert outcome.contents() == data
    assert outcome.codes == ["member-header-differs"]


def test_overlapping_members(tmp_path: Path) -> None:
    inner, _ = write_overlapping(tmp_path / "a.zip")
    outcome = Outcome(tmp_path / "a.zip", tmp_path / "new.zip")
    # Both are there, each with bytes of its own.
    assert outcome.contents() == {"outer": inner, "inner": b"data"}


# ---- names


def test_of_members_of_one_name_none_is_dropped(tmp_path: Path) -> None:
    values = [("a.txt", b"first"), ("a.txt", b"second"), ("b", b"-"), ("a.txt", b"third"), ("a~1.txt", b"taken")]
    path = build(tmp_path / "a.zip", [(member(name, data), data, None, 0) for name, data in values])
    torn = tmp_path / "torn.zip"
    torn.write_bytes(path.read_bytes()[: directory_offset(path)])
    outcome = Outcome(torn, tmp_path / "new.zip")
    found = outcome.contents()
    assert found["a.txt"] == b"third"
    assert found["a~1.txt"] == b"taken"
    assert sorted(found.values()) == sorted(data for _, data in values)
    assert outcome.codes == ["member-duplicate-name"] * 2


def test_the_member_that_the_directory_showed_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    body, entries = b"", []
    for data in (b"shown", b"hidden"):
        entries.append(encode_central_entry(member("a", data), len(body)))
        body += encode_local_header(member("a", data), None) + data
    # The last entry of a name counts: here it is that of the first member.
    path.write_bytes(archive_of(body, *reversed(entries)))
    assert Outcome(path, tmp_path / "new.zip").contents() == {"a": b"shown", "a~1": b"hidden"}


def test_the_member_that_the_index_knows_keeps_its_name(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zip", [(member("a", data), data, ORIGIN, 0) for data in (b"known", b"later")])
    cut(path, directory_offset(path))
    first = member("a", b"known")

    def known(offset: int) -> KnownMember | None:
        return KnownMember("a", first.crc, first.size) if offset == 0 else None

    outcome = Outcome(path, tmp_path / "new.zip", known=known)
    assert outcome.contents() == {"a": b"known", "a~1": b"later"}
    with open_committed(outcome.path) as archive:
        # A renamed member of ours still says where it came from.
        assert archive.origin(archive.find("a~1")) == ORIGIN


def test_names_that_escape_are_kept(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zip", [(member("../up", b"1"), b"1", None, 0)])
    cut(path, directory_offset(path))
    outcome = Outcome(path, tmp_path / "new.zip")
    with open_committed(outcome.path) as archive:
        assert [entry.name for entry in archive.entries()] == ["../up"]


def test_names_of_items_lead_nowhere(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zip", [(member("../../etc/\x1b[2Jx", b"12345"), b"12345", None, 0)])
    cut(path, directory_offset(path) - 2)
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.aside.items
    for name in outcome.aside.items:
        assert "/" not in name
        assert name.isprintable()
        assert not name.startswith(".")


def test_an_entry_that_stands_twice_brings_its_member_back_once(tmp_path: Path) -> None:
    data = members_of(3)
    body, entries = b"", []
    for name in data:
        entries += [encode_central_entry(member(name, data[name]), len(body))] * (2 if name == "dir/1.txt" else 1)
        body += encode_local_header(member(name, data[name]), None) + data[name]
    path = tmp_path / "a.zip"
    path.write_bytes(archive_of(body, *entries))
    overwrite(path, offsets(path)["dir/1.txt"], bytes(LOCAL_HEADER.size))
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents() == data
    assert outcome.rebuilt.members == 3


def test_forged_entries_do_not_have_the_same_bytes_read_for_ever(tmp_path: Path) -> None:
    whole = member("good", b"good")
    body = encode_local_header(whole, None) + b"good" + bytes(1 << 20)
    forged = member("forged", b"")._replace(compressed_size=1 << 19, size=1 << 19, crc=1)
    entries = [encode_central_entry(whole, 0), *(encode_central_entry(forged, 100 + n) for n in range(2_000))]
    path = tmp_path / "a.zip"
    path.write_bytes(archive_of(body, *entries))
    storage = CountsReads()
    outcome = Outcome(path, tmp_path / "new.zip", storage=storage)
    assert outcome.contents() == {"good": b"good"}
    assert outcome.rebuilt.damaged == 2_000
    assert sum(storage.lengths) < 40 << 20


def test_a_header_that_only_says_that_its_member_is_empty_is_not_believed(tmp_path: Path) -> None:
    data = members_of(3)
    path = build(tmp_path / "a.zip", [(member(name, data[name]), data[name], None, 0) for name in data])
    start = offsets(path)["dir/1.txt"]
    overwrite(path, start + 14, bytes(12))
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents() == data
    assert "repaired" in {problem.outcome for problem in outcome.problems}


def test_a_whole_member_keeps_its_name_before_one_whose_header_is_damaged(tmp_path: Path) -> None:
    values = [("a", b"good"), ("x", b"damaged header")]
    path = build(tmp_path / "a.zip", [(member(name, data), data, ORIGIN, 0) for name, data in values])
    start = offsets(path)["x"]
    cut(path, directory_offset(path))
    overwrite(path, start + LOCAL_HEADER.size, b"a")
    outcome = Outcome(path, tmp_path / "new.zip")
    assert outcome.contents() == {"a": b"good", "a~1": b"damaged header"}


class _Counting(CountsReads):
    """Counts what is written and copied, too."""

    writes = copies = 0

    def write(self, descriptor: int, parts: Any, offset: int) -> None:
        self.writes += 1
        super().write(descriptor, parts, offset)

    def copy_range(self, source: int, target: int, **where: Any) -> None:
        self.copies += 1
        super().copy_range(source, target, **where)


@pytest.mark.parametrize("writer", ["zipfile", "zip", "rear"])
@pytest.mark.parametrize("damage", ["none", "garbage before", "a member", "a name twice"])
def test_many_at_once_is_the_same_as_one_by_one(
    writer: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = many_members(writer, tmp_path)
    if damage == "garbage before":
        data = b"garbage" * 100 + data
    elif damage == "a member":
        # In data, so that no header is the worse for it.
        place = data.index(b"d/3/311.txt d/3")
        data = data[:place] + b"D" + data[place + 1 :]
    elif damage == "a name twice":
        data += stored("d/3/311.txt", b"another one", ORIGIN if writer == "rear" else None)
    source = tmp_path / "source.zip"
    source.write_bytes(data)
    taken: list[int] = []
    take_run = _Writer._take_run
    monkeypatch.setattr(_Writer, "_take_run", lambda self, run: taken.append(run.members) or take_run(self, run))
    fast = Outcome(source, tmp_path / "fast.zip")
    assert sum(taken) > 350 or damage == "a name twice"
    monkeypatch.setattr(RebuiltNames, "is_simple", False)
    slow = Outcome(source, tmp_path / "slow.zip")
    assert fast.path.read_bytes() == slow.path.read_bytes()
    assert (fast.problems, fast.rebuilt[:2]) == (slow.problems, slow.rebuilt[:2])
    assert fast.rebuilt.damaged == (damage == "a member")
    assert len(fast.contents(writer)) >= 400


@pytest.mark.parametrize("writer", ["zipfile", "zip", "rear"])
def test_many_at_once_is_the_same_whatever_is_damaged(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, chance = many_members(writer, tmp_path), random.Random(f"at once {writer}")
    source, told = tmp_path / "source.zip", 0
    for number in range(8):
        data = damaged(original, chance)
        source.write_bytes(damaged(data, chance) if number % 2 else data)
        fast = Outcome(source, tmp_path / f"fast{number}.zip")
        with monkeypatch.context() as patch:
            # One member at a time, in the scan and in the rebuild.
            patch.setattr(_Scan, "_plain_run", lambda self, position: None)
            patch.setattr(RebuiltNames, "is_simple", False)
            slow = Outcome(source, tmp_path / f"slow{number}.zip")
        assert (fast.problems, fast.rebuilt[:2]) == (slow.problems, slow.rebuilt[:2])
        assert fast.path.read_bytes() == slow.path.read_bytes()
        told += len(fast.problems)
    assert told


def forged(name: str, data: bytes) -> bytes:
    """Return a member of ours whose origin field passes its checksum, and says nonsense."""
    made = stored(name, data, ORIGIN._replace(metadata={"key": "value"}))
    header = made[: len(made) - len(data)]
    field = header.index(ORIGIN_FIELD.to_bytes(2, "little"), LOCAL_HEADER.size + len(name))
    # Behind identifier, length, version and checksum comes what the checksum covers, with the metadata at its end.
    tail = header[field + 9 :].replace(b'{"key"', b'{{key"')
    check = zlib.crc32(header[:field] + tail).to_bytes(4, "little")
    return header[: field + 5] + check + tail + data


@pytest.mark.parametrize("place", [0, 20, 39])
def test_an_origin_that_makes_no_sense_is_told_by_either_way(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [stored(f"{number}.txt", b"%d" % number, ORIGIN._replace(sequence=number)) for number in range(40)]
    members[place] = forged(f"{place}.txt", b"%d" % place)
    source = tmp_path / "source.zip"
    source.write_bytes(b"".join(members))
    fast = Outcome(source, tmp_path / "fast.zip")
    monkeypatch.setattr(RebuiltNames, "is_simple", False)
    slow = Outcome(source, tmp_path / "slow.zip")
    assert fast.problems == slow.problems
    assert [(problem.code, problem.name) for problem in fast.problems] == [("member-header-differs", f"{place}.txt")]
    assert fast.path.read_bytes() == slow.path.read_bytes()
    assert len(fast.contents()) == 40


def test_a_million_members_would_be_read_and_copied_once(tmp_path: Path) -> None:
    count = 30_000
    source = tmp_path / "source.zip"
    source.write_bytes(b"".join(stored(f"{number}.txt", b"%099d" % number, None) for number in range(count)))
    size, storage = source.stat().st_size, _Counting()
    outcome = Outcome(source, tmp_path / "target.zip", storage=storage)
    assert outcome.rebuilt.members == count
    assert sum(storage.lengths) < 1.1 * size + (1 << 20)
    assert len(storage.lengths) < 60
    assert storage.copies == 1
    assert storage.writes < 20
    assert len(outcome.contents()) == count


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return an archive with some random damage."""
    changed = bytearray(data)
    start = chance.randrange(len(data))
    match chance.randrange(6):
        case 0:
            return data[:start]
        case 1:
            for _ in range(chance.randint(1, 4)):
                changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 2:
            end = min(len(data), start + chance.choice([4, 30, 100, 1000]))
            changed[start:end] = bytes(end - start)
        case 3:
            changed[start:start] = chance.randbytes(chance.randint(1, 300))
        case 4:
            del changed[start : start + chance.randint(1, 300)]
        case _:
            changed[start:start] = data[chance.randrange(len(data)) :][: chance.randint(1, 2000)]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_damaged_no_wrong_byte_comes_out(seed: int) -> None:
    chance = random.Random(seed)
    content = {"empty": b"", "text": b"hello\n", "dir/noise": chance.randbytes(900), "dir/numbers": b"1 2 3 4 5\n" * 60}
    with scratch_folder() as folder:
        path, new = folder / "a.zip", folder / "new.zip"
        ours = [(member(name, data), data, ORIGIN, 0) for name, data in content.items()]
        goods = [build(path, ours).read_bytes()]
        for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
            with zipfile.ZipFile(path, "w", method) as archive:
                for name, data in content.items():
                    archive.writestr(zipfile.ZipInfo(name), data, method)
            goods.append(path.read_bytes())
        for _ in range(60):
            data = damaged(chance.choice(goods), chance)
            path.write_bytes(data)
            problems = list(check_archive_file(path, output=new))
            assert path.read_bytes() == data
            assert "refused" not in {problem.code for problem in problems}
            if new.exists():
                assert {problem.outcome for problem in inspect(new, deep=True)} <= {"noted", "left"}
                for name, found in contents(new).items():
                    assert found in content.values(), "bytes that nobody ever stored"
                    assert content.get(name, found) == found, "another member's bytes"
                new.unlink()


# ---- headers


def test_entries_at_the_limits_of_32_bits() -> None:
    whole = Member("a", 0, 1, LIMIT_32, LIMIT_32 + 5, 10**18, 0o100644)
    header = encode_local_header(whole, None)
    facts = Facts(whole.crc, whole.compressed_size, whole.size)
    entry = make_central_entry(header, decode_local_header(header), naming_of("a"), facts, None)
    for offset in (0, LIMIT_32 - 1, LIMIT_32, 1 << 40):
        decoded, _ = decode_central_entry(encode_entry(entry, offset))
        assert (decoded.compressed_size, decoded.size, decoded.offset) == (whole.compressed_size, whole.size, offset)
    small = entry._replace(compressed_size=1, size=1)
    assert decode_central_entry(encode_entry(small, 1 << 33))[0].offset == 1 << 33
    renamed = make_local_header(header, decode_local_header(header), naming_of("b"), facts)
    for new in (header_of_entry(entry), renamed):
        local = decode_local_header(new)
        assert (local.crc, local.compressed_size, local.size) == facts


def test_a_new_header_of_ours_passes_its_checksum() -> None:
    whole = member("a", b"data")
    header = encode_local_header(whole, ORIGIN)
    new = make_local_header(
        header, decode_local_header(header), naming_of("ü"), Facts(whole.crc, whole.compressed_size, whole.size)
    )
    assert decode_origin(new) == ORIGIN
    assert decode_local_header(new).name == "ü".encode()


# ---- zip -FF


def test_zip_fixes_a_copy(tmp_path: Path) -> None:
    zoo.tool("zip")
    path = write_zip(tmp_path / "a.zip", members_of(3))
    cut(path, directory_offset(path))
    before = path.read_bytes()
    fixed = info_zip.fix(path, tmp_path)
    assert fixed is not None
    assert contents(fixed) == members_of(3)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted(["a.zip", fixed.name])


def test_zip_finds_nothing_in_noise(tmp_path: Path) -> None:
    zoo.tool("zip")
    (tmp_path / "a.zip").write_bytes(random.Random(1).randbytes(100_000))
    fixed = info_zip.fix(tmp_path / "a.zip", tmp_path)
    assert fixed is None or contents(fixed) == {}


def test_zip_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    script = bin_folder / "zip"
    script.write_text("#!/bin/sh\nwhile :; do head -c 1000000 /dev/zero; done > fixed.zip\nexec sleep 100\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setattr(info_zip, "_OUTPUT_EXTRA_BYTES", 3 << 20)
    (tmp_path / "a.zip").write_bytes(b"x" * 1000)
    begin = time.monotonic()
    fixed = info_zip.fix(tmp_path / "a.zip", tmp_path, seconds=2)
    assert time.monotonic() - begin < 20
    assert fixed is None or fixed.stat().st_size <= (3 << 20) + 2000


def test_without_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    (tmp_path / "a.zip").write_bytes(b"x" * 1000)
    with pytest.raises(UnsupportedError, match="zip is not installed"):
        info_zip.fix(tmp_path / "a.zip", tmp_path)
    assert os.listdir(tmp_path) == ["a.zip"]


def test_what_zip_finds_is_checked_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write_zip(tmp_path / "good", members_of(2))
    path = tmp_path / "a.zip"

    def fake(source: str, folder: str, *, storage: Storage) -> Path:
        fixed = Path(folder) / "fixed.zip"
        shutil.copy(good, fixed)
        return fixed

    monkeypatch.setattr(info_zip, "fix", fake)
    for damage, code in ((None, "archive-repaired-by-zip"), (50, "archive-not-a-zip")):
        path.write_bytes(b"noise" * 1000)
        if damage is not None:
            good.write_bytes(b"noise again" * 100)
        problems = list(check_archive_file(path, in_place=True))
        assert [problem.code for problem in problems] == [code]
        if damage is None:
            assert contents(path) == members_of(2)
            assert (tmp_path / "a.zip.damaged").read_bytes() == b"noise" * 1000
        else:
            assert path.read_bytes() == b"noise" * 1000


# ---- the write order


class _Linking(TamperedStorage):
    """Counts hard links as well."""

    def link(self, source: Any, target: Any) -> bool:
        self._begin("link", source)
        return super().link(source, target)


def damaged_archive(folder: Path) -> bytes:
    """Write an archive with a damaged member and without directory; return its bytes."""
    path = build(folder / "a.zip", [(member(name, data), data, None, 0) for name, data in members_of(4).items()])
    third = offsets(path)["dir/2.txt"]
    cut(path, directory_offset(path))
    overwrite(path, third + 100, b"????")
    return path.read_bytes()


def expected_members() -> dict[str, bytes]:
    expected = members_of(4)
    del expected["dir/2.txt"]
    return expected


def check_state(folder: Path, before: bytes) -> bool:
    """Assert that the old archive is there, under one name or another; return whether the new one is in its place."""
    path = folder / "a.zip"
    if path.read_bytes() == before:
        return False
    assert contents(path) == expected_members()
    check_archive(path)
    assert any(other.read_bytes() == before for other in folder.glob("a.zip.damaged*"))
    kept = [json.loads(note.read_text())["name"] for note in folder.glob("a.zip.lost+found*/*.partial.json")]
    assert kept == ["dir/2.txt"] * len(kept)
    assert kept
    return True


@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_any_point_leaves_no_less_than_before(links: bool, record_property: RecordProperty) -> None:
    with scratch_folder() as folder:

        def run(storage: Storage) -> None:
            if not links:
                storage.link = lambda source, target: False  # type: ignore[method-assign]
            list(check_archive_file(folder / "a.zip", in_place=True, storage=storage))

        def renew() -> bytes:
            shutil.rmtree(folder)
            folder.mkdir()
            return damaged_archive(folder)

        before = renew()
        storage = _Linking()
        run(storage)
        assert check_state(folder, before)
        published = 0
        points = some(storage.points, 40)
        for point in points:
            renew()

            def die(point: Point = point) -> None:
                tampered = dying_at(point)
                linking = _Linking(tampered.act)
                run(linking)

            assert in_child(die) != 0
            published += check_state(folder, before)
            # A second run goes through whatever the first one left.
            if (folder / "a.zip").read_bytes() == before:
                run(LOCAL if links else Storage())
                assert check_state(folder, before)
        assert published < len(points)
        record_property("crash_points", len(points))


class _Powered(PoweredStorage):
    """Knows hard links: a second name of the same file."""

    def link(self, source: Any, target: Any) -> bool:
        self._begin("link", source)
        if not super().link(source, target):
            return False
        self._change("", str(target), self.entries[str(source)])
        return True


@pytest.mark.crash
def test_the_power_goes_at_any_point(record_property: RecordProperty) -> None:
    with scratch_folder() as folder:
        disk, left = folder / "disk", folder / "left"

        def renew() -> bytes:
            for path in (disk, left):
                shutil.rmtree(path, ignore_errors=True)
            disk.mkdir()
            return damaged_archive(disk)

        def repair(storage: Storage) -> None:
            list(check_archive_file(disk / "a.zip", in_place=True, storage=storage))

        before = renew()
        storage = _Powered(disk)
        repair(storage)
        points = some(storage.points, 40)
        for point in points:
            for seed in range(4):
                renew()
                assert run_until(point, disk, left, repair, seed, _Powered) == OFF
                check_state(left, before)
        record_property("crash_points", len(points) * 4)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_operation_changes_nothing(error: int) -> None:
    with scratch_folder() as folder:
        before = damaged_archive(folder)
        storage = _Linking()
        list(check_archive_file(folder / "a.zip", in_place=True, storage=storage))
        for point in storage.points:
            if point.half:
                continue
            shutil.rmtree(folder)
            folder.mkdir()
            damaged_archive(folder)
            failing = Failing(error, lambda found, path, point=point: found.number == point.number)  # type: ignore[misc]
            linking = _Linking(failing.act)
            with contextlib.suppress(OSError):
                list(check_archive_file(folder / "a.zip", in_place=True, storage=linking))
            assert failing.failed
            check_state(folder, before)
            assert list(folder.glob("*.new")) == [], point
