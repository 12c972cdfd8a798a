"""The check of one archive: nothing about good ones, whoever made them, and each kind of damage by its code."""

from __future__ import annotations

import ast
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zoo
from checkout import REAR
from faults import CountsReads
from merges import Base
from programs import run_code
from zips import ORIGIN, archive_of, build, directory_offset, member, overwrite, write_overlapping, write_zip

import rear
from rear.core.problems import CATALOG, Outcome, Problem, exit_status, outcome_of
from rear.core.records import Origin
from rear.fsck import inspection
from rear.fsck.inspection import inspect
from rear.read.view import open_committed
from rear.salvage import repeated_names
from rear.zip.headers import encode_central_entry, encode_end, encode_local_header
from rear.zip.structures import CENTRAL, LOCAL


def found(path: Path, *, deep: bool = False) -> list[tuple[str, Outcome]]:
    return [(problem.code, problem.outcome) for problem in inspect(path, deep=deep)]


def only(path: Path, *, deep: bool = False) -> Problem:
    [problem] = inspect(path, deep=deep)
    return problem


# ---- nothing to be found


@pytest.mark.parametrize("writer", zoo.WRITERS)
def test_archives_of_other_programs_are_clean(writer: str, tmp_path: Path) -> None:
    path = zoo.make(writer, tmp_path)
    noted = ["archive-prefix"] if "prefix" in writer else []
    for deep in (False, True):
        assert found(path, deep=deep) == [(code, "noted") for code in noted]


def test_what_rear_writes_is_clean(tmp_path: Path) -> None:
    for number in range(2):
        with rear.rear_fs(tmp_path / "base"):
            for other in range(50):
                with rear.rear_open(f"ar.zip/{number}/{other}.txt", "w") as file:
                    file.write("line\n" * other)
        list(rear.scavenge(tmp_path / "base"))
    assert found(tmp_path / "base" / "ar.zip", deep=True) == []


def test_an_empty_archive_is_clean(tmp_path: Path) -> None:
    assert found(write_zip(tmp_path / "a.zip", {}, comment=b"nothing"), deep=True) == []


def test_an_archive_that_is_being_merged_into_is_checked_as_it_was(tmp_path: Path) -> None:
    base = Base(tmp_path, "old", "older")
    base.begin()
    assert found(base.path, deep=True) == []
    base.commit()
    base.end()
    assert found(base.path, deep=True) == []


def test_what_cannot_be_opened_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(inspect(tmp_path / "no.zip"))
    with pytest.raises(OSError, match="not a regular file"):
        list(inspect(tmp_path))


@pytest.mark.parametrize("signature", [b"", b"PK\x07\x08"])
@pytest.mark.parametrize("layout", ["<3I", "<IQQ"])
def test_data_descriptors_are_no_gaps(signature: bytes, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    data = b"some data"
    body, entries = b"", []
    for name in ("a", "b", "c"):
        whole = member(name, data)
        header = bytearray(encode_local_header(whole._replace(crc=0, compressed_size=0, size=0), None))
        header[6] |= 8
        entry = bytearray(encode_central_entry(whole, len(body)))
        entry[8] |= 8
        entries.append(entry)
        body += header + data + signature + struct.pack(layout, whole.crc, len(data), len(data))
    path.write_bytes(archive_of(body, *entries))
    assert found(path, deep=True) == []


# ---- the directory


@pytest.mark.parametrize("kept", [-1, -22, -60, 40])
def test_a_torn_archive(kept: int, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a": b"1" * 1000, "b": b"2"})
    path.write_bytes(path.read_bytes()[:kept])
    problem = only(path)
    assert (problem.code, problem.outcome, problem.subject) == ("archive-directory-damaged", "would repair", str(path))
    assert problem.needs_rebuild


def test_a_damaged_entry_in_the_middle_of_the_directory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", dict.fromkeys("abc", b"data"))
    overwrite(path, directory_offset(path) + CENTRAL.size + 1, b"XXXX")
    assert "archive-directory-damaged" in dict(found(path))


def test_another_number_of_entries_than_the_end_record_says(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", dict.fromkeys("abc", b"data"))
    size = path.stat().st_size
    overwrite(path, size - 14, struct.pack("<2H", 2, 2))
    problem = only(path)
    assert problem.code == "archive-directory-damaged"
    assert "3 entries, its end record says 2" in problem.detail


def test_a_volume_of_a_split_archive(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(random.Random(1).randbytes(200_000))
    zoo.run(zoo.tool("zip"), "-q", "-s", "64k", tmp_path / "a.zip", "noise", cwd=tmp_path)
    problem = only(tmp_path / "a.zip")
    assert (problem.code, problem.outcome) == ("archive-split", "left")


def test_an_encrypted_directory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a": b"data"})
    overwrite(path, directory_offset(path) + 8, struct.pack("<H", 1 << 13))
    problem = only(path)
    assert (problem.code, problem.outcome) == ("archive-unsupported", "left")


# ---- where members are


def test_gaps_are_noted_and_zeros_told_apart(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zip", [(member("a", b"1"), b"1", None, 0), (member("b", b"2"), b"2", None, 5000)])
    with open_committed(path) as archive:
        _, second = archive.entries()
    problem = only(path)
    assert (problem.code, problem.outcome) == ("archive-gap", "noted")
    assert (problem.offset, problem.length) == (second.offset - 5000, 5000)
    assert "5,000 zeros between members" in problem.detail
    overwrite(path, second.offset - 10, b"x")
    assert "5,000 bytes that belong to no member" in only(path).detail


def test_bytes_behind_the_last_member_are_noted(tmp_path: Path) -> None:
    data = encode_local_header(member("a", b"1"), None) + b"1" + b"trailing"
    (tmp_path / "a.zip").write_bytes(archive_of(data, encode_central_entry(member("a", b"1"), 0)))
    problem = only(tmp_path / "a.zip")
    assert (problem.code, problem.outcome, problem.length) == ("archive-gap", "noted", 8)
    assert "before the directory" in problem.detail


def test_no_local_header_where_the_directory_says(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a": b"1" * 100, "b": b"2" * 100})
    overwrite(path, 0, b"XX")
    problems = {problem.code: problem for problem in inspect(path, deep=True)}
    assert list(problems) == ["member-header-missing", "archive-prefix"]
    assert problems["member-header-missing"].name == "a"
    assert problems["member-header-missing"].offset == 0


def test_an_entry_that_leads_out_of_the_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a": b"1", "b": b"2"})
    overwrite(path, directory_offset(path) + CENTRAL.size + 1 + 42, struct.pack("<I", 1 << 31))
    [first, *_] = inspect(path)
    assert (first.code, first.name, first.offset) == ("member-header-missing", "b", 1 << 31)


@pytest.mark.parametrize(
    ("position", "data", "text"),
    [
        (6, b"\x01", "encryption flag 1 in the local header, 0 in the directory"),
        (8, b"\x08", "method 8 in the local header, 0 in the directory"),
        (14, b"\0\0\0\0", "CRC-32 0 in the local header"),
        (18, b"\x01", "compressed size 1 in the local header, 100 in the directory"),
        (22, b"\x01", "size 1 in the local header, 100 in the directory"),
        (30, b"X", "name b'X' in the local header, b'a' in the directory"),
    ],
)
def test_a_local_header_that_contradicts_the_directory(position: int, data: bytes, text: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a": b"1" * 100, "b": b"2" * 100})
    overwrite(path, position, data)
    for deep in (False, True):
        problem = only(path, deep=deep)
        assert (problem.code, problem.outcome, problem.name) == ("member-header-differs", "would repair", "a")
        assert text in problem.detail
        assert str(path) not in problem.detail


def test_a_member_that_reaches_into_the_directory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a": b"1" * 100})
    start = directory_offset(path)
    for position in (18, start + 20):
        overwrite(path, position, struct.pack("<2I", 200, 200))
    problem = only(path, deep=True)
    assert (problem.code, problem.outcome, problem.name) == ("member-overlap", "would repair", "a")


def test_members_that_overlap(tmp_path: Path) -> None:
    _, offset = write_overlapping(tmp_path / "a.zip")
    problem = only(tmp_path / "a.zip", deep=True)
    assert (problem.code, problem.name, problem.offset) == ("member-overlap", "inner", offset)
    assert "within the member at 0" in problem.detail


def test_members_in_another_order_than_the_directory_do_not_overlap(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    body, entries = b"", []
    for number in range(100):
        one = member(f"m{number}", b"x" * number)
        entries.append(encode_central_entry(one, len(body)))
        body += encode_local_header(one, None) + b"x" * number
    random.Random(3).shuffle(entries)
    path.write_bytes(archive_of(body, *entries))
    assert found(path, deep=True) == []


def test_very_many_overlaps_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "DETAILED_LIMIT", 10)
    one = member("a", b"data")
    body = encode_local_header(one, None) + b"data"
    (tmp_path / "a.zip").write_bytes(archive_of(body, *[encode_central_entry(one, 0)] * 50))
    overlaps = [problem for problem in inspect(tmp_path / "a.zip") if problem.code == "member-overlap"]
    assert len(overlaps) == 11
    assert any("39 more members" in problem.detail for problem in overlaps)


def test_members_that_share_their_data_do_not_cost_its_size_each(tmp_path: Path) -> None:
    one = member("a", bytes(1 << 20))
    body = encode_local_header(one, None) + bytes(1 << 20)
    (tmp_path / "a.zip").write_bytes(archive_of(body, *[encode_central_entry(one, 0)] * 1_000))
    storage = CountsReads()
    codes = {problem.code for problem in inspect(tmp_path / "a.zip", deep=True, storage=storage)}
    assert "member-overlap" in codes
    assert sum(storage.lengths) < 30 << 20


# ---- names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("/etc/passwd", "absolute"), ("../up", "'..'"), ("a/../../b", "'..'"), ("C:\\x", "drive"),
        ("\\\\server\\x", "absolute"), ("a\\..\\..\\b", "'..'"),
    ],
)  # fmt: skip
def test_names_that_escape(name: str, text: str, tmp_path: Path) -> None:
    problem = only(build(tmp_path / "a.zip", [(member(name, b"1"), b"1", None, 0)]))
    assert (problem.code, problem.outcome, problem.name) == ("member-unsafe-name", "left", name)
    assert text in problem.detail


def test_nul_in_a_name(tmp_path: Path) -> None:
    problem = only(build(tmp_path / "a.zip", [(member("a\0b", b"1"), b"1", None, 0)]))
    assert (problem.code, problem.outcome) == ("member-unsafe-name", "left")


@pytest.mark.parametrize("name", ["dir\\file.txt", "a//b", "tab\there", "C:/x"])
def test_unusual_names_are_noted(name: str, tmp_path: Path) -> None:
    problem = only(build(tmp_path / "a.zip", [(member(name, b"1"), b"1", None, 0)]))
    assert (problem.code, problem.outcome) == ("member-unsafe-name", "noted")


@pytest.mark.parametrize("name", ["./a", "a:b", "..a", "a..", "dir/", "ü/日本.txt"])
def test_names_that_are_all_right(name: str, tmp_path: Path) -> None:
    data = b"" if name.endswith("/") else b"1"
    assert found(build(tmp_path / "a.zip", [(member(name, data), data, None, 0)])) == []


@pytest.mark.parametrize(("origin", "outcome"), [(None, "noted"), (ORIGIN, "would repair")])
def test_a_name_that_occurs_twice(origin: Origin | None, outcome: str, tmp_path: Path) -> None:
    members = [(member(name, data), data, origin, 0) for name, data in (("a", b"1"), ("b", b"2"), ("a", b"33"))]
    path = build(tmp_path / "a.zip", members)
    problem = only(path)
    assert (problem.code, problem.outcome, problem.name) == ("member-duplicate-name", outcome, "a")
    assert problem.offset == 0
    with open_committed(path) as archive:
        assert f"at {archive.find('a').offset:,} hides it" in problem.detail


def test_many_names_of_which_few_occur_twice(tmp_path: Path) -> None:
    names = [f"{number % 99_990}" for number in range(100_000)]
    members = [(member(name, b""), b"", None, 0) for name in names]
    body, directory = bytearray(), bytearray()
    for one, _, _, _ in members:
        directory += encode_central_entry(one, len(body))
        body += encode_local_header(one, None)
    end = encode_end(entries=len(names), directory_length=len(directory), directory_offset=len(body))
    (tmp_path / "a.zip").write_bytes(body + directory + end)
    assert sorted(str(problem.name) for problem in inspect(tmp_path / "a.zip")) == sorted(map(str, range(10)))


# ---- data


def test_damaged_data_is_found_with_deep_alone(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a": b"1" * 100, "b": b"2" * 100, "c": b"3"})
    overwrite(path, LOCAL.size + 1 + 50, b"?")
    assert found(path) == []
    problem = only(path, deep=True)
    assert (problem.code, problem.outcome, problem.severity) == ("member-data-damaged", "left", "loss")
    assert (problem.name, problem.offset) == ("a", 0)
    assert problem.detail.startswith("CRC-32")


@pytest.mark.parametrize("writer", ["zipfile", "zipfile-bzip2", "zipfile-lzma", "7z-deflate64", "zip-stream"])
def test_damaged_streams(writer: str, tmp_path: Path) -> None:
    path = zoo.make(writer, tmp_path)
    with open_committed(path) as archive:
        entry = archive.find("logs/noise.bin")
        position = entry.offset + archive.local_header(entry).length + 30_000
    overwrite(path, position, bytes(8))
    problem = only(path, deep=True)
    assert (problem.code, problem.name) == ("member-data-damaged", "logs/noise.bin")


def test_encrypted_members_are_noted(tmp_path: Path) -> None:
    zoo.write_tree(tmp_path / "tree")
    zoo.run(zoo.tool("zip"), "-qr", "-P", "secret", tmp_path / "e.zip", ".", cwd=tmp_path / "tree")
    assert found(tmp_path / "e.zip") == []
    assert set(found(tmp_path / "e.zip", deep=True)) == {("member-unverifiable", "noted")}


def test_members_without_codec_are_noted(tmp_path: Path) -> None:
    zoo.write_tree(tmp_path / "tree")
    zoo.run(zoo.tool("7z"), "a", "-bd", "-mm=PPMd", tmp_path / "p.zip", "logs", cwd=tmp_path / "tree")
    assert set(found(tmp_path / "p.zip", deep=True)) == {("member-unverifiable", "noted")}


# ---- cost


def test_small_members_cost_no_system_call_each(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {f"m{number}": b"x" * 200 for number in range(5_000)})
    for deep in (False, True):
        storage = CountsReads()
        assert list(inspect(path, deep=deep, storage=storage)) == []
        assert len(storage.lengths) < 60


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux alone tells the most memory ever taken")
def test_memory_stays_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    header = encode_local_header(member("12345678", b""), None)
    count = 200_000
    with open(path, "wb") as file:
        directory = bytearray()
        for number in range(count):
            one = member(f"{number:08}", b"")
            directory += encode_central_entry(one, number * len(header))
            file.write(encode_local_header(one, None))
        length = count * len(header)
        file.write(directory + encode_end(entries=count, directory_length=len(directory), directory_offset=length))
    code = (
        "from rear.fsck.inspection import inspect\n"
        f"print(len(list(inspect({str(path)!r}, deep=True))))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    problems, peak_kib = map(int, run_code(code, check=True, timeout=100).stdout.split())
    assert problems == 0
    # An interpreter takes 20 MB, the directory in memory 14, and three numbers a member 5.
    assert peak_kib < 70 << 10


# ---- problems as values


def sources() -> list[Path]:
    return sorted(REAR.rglob("*.py"))


def test_every_code_in_the_source_is_in_the_catalog() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = ast.unparse(node.func).rpartition(".")[2]
                if called in ("Problem", "_problem", "_about"):
                    assert node.args[0].value in CATALOG, f"{path}:{node.lineno}"


def test_a_problem_needs_a_code_of_the_catalog() -> None:
    with pytest.raises(ValueError, match="no-such-code"):
        Problem("no-such-code", "a.zip", "", "noted")


def test_severities() -> None:
    def severity(code: str, outcome: Outcome) -> str:
        return Problem(code, "a.zip", "", outcome).severity

    assert severity("member-lost", "left") == "loss"
    assert severity("member-lost", "noted") == "info"
    assert severity("archive-split", "left") == "warning"
    assert severity("member-header-differs", "repaired") == "warning"
    assert Problem("archive-gap", "a.zip", "", "noted").as_json()["kind"] == "problem"


def test_exit_statuses() -> None:
    assert exit_status([]) == exit_status([None, "noted"]) == 0
    assert exit_status(["noted", "repaired"]) == 1
    assert exit_status(["repaired", "left"]) == exit_status(["would repair"]) == 4
    assert outcome_of(rear.events.Renamed("ar.zip", "a", "a~1", "pair")) is None
    assert outcome_of(rear.events.Refused("ar.zip", "why")) == "left"
    assert outcome_of(rear.events.NothingYet("base")) is None


@pytest.mark.parametrize("change", [lambda data: data[:-7], lambda data: b"", lambda data: data[::-1]])
def test_no_exception_for_what_is_no_archive(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a": b"data"})
    path.write_bytes(change(path.read_bytes()))
    assert [code for code, _ in found(path)] == ["archive-directory-damaged"]


def test_no_exception_wherever_a_byte_is_changed(tmp_path: Path) -> None:
    path = build(
        tmp_path / "a.zip",
        [(member(name, b"data"), b"data", origin, 3) for name, origin in (("a", None), ("b/", ORIGIN), ("ü", None))],
    )
    good = path.read_bytes()
    for position in range(len(good)):
        for value in {0, 0xFF, good[position] ^ 1}:
            path.write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
            for problem in inspect(path, deep=True):
                assert problem.as_json()


def test_names_are_seen_again_in_a_set_and_in_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_names, "_HASHES_LIMIT", 50)
    for count in (10, 1_000):
        seen = repeated_names.SeenNames(count)
        for number in range(200):
            seen.add(str(number))
        assert all(seen.contains(str(number)) for number in range(200))
        assert sum(seen.contains(str(number)) for number in range(200, 400)) < 20
        seen.add("7")
        seen.add("199")
        assert {hash("7"), hash("199")} <= seen.perhaps_twice


def test_small_whole_members_are_read_once(tmp_path: Path) -> None:
    """Header and data of each in one pass, by reads of up to 1 MiB."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3_000):
            archive.writestr(f"{number}.bin", bytes([number % 256]) * 3_000 + os.urandom(1_000))
    storage = CountsReads()
    assert list(inspection.inspect(path, deep=True, storage=storage)) == []
    assert sum(storage.lengths) < 1.2 * path.stat().st_size
    assert len(storage.lengths) < 30
