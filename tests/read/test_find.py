"""``rear find`` and `rear.find`: by the index and without it, the same members are found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from listings import Result, write_zip
from programs import rear_command, run_rear

import rear
from rear.core.layout import Layout
from rear.errors import UsageError
from rear.index.index import Index, IndexRow
from rear.read.find import NamePattern
from rear.read.patterns import coarse_glob, translate
from rear.read.view import open_committed

NAMES = [
    "README", "a.txt", "logs/", "logs/a.txt", "logs/b.txt", "logs/deep/a.txt", "logs/deep/c[1].txt", "x/y/z",
    "ä/ö.txt", "100%_done", "q'uote\"s", "back\\slash", "ctrl\x1b[31m\n", "bad\udcff.txt", "other/logs", "A.TXT",
]  # fmt: skip
NOW_NS = 1_700_000_000_000_000_000


def paths(result: Result) -> list[str]:
    return [json.loads(line)["name"] for line in result.lines]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base with one archive of strange names, made by a foreign writer, and an index with origins for all of it."""
    base = tmp_path / "base"
    Layout(base).indexes.mkdir(parents=True)
    path = write_zip(
        base / "runs/7/ar.zip", *(("bad?.txt", b"content of bad") if "bad" in name else name for name in NAMES)
    )
    # The name that is no UTF-8 gets its byte now, in the local header and the directory.
    path.write_bytes(path.read_bytes().replace(b"bad?.txt", b"bad\xff.txt"))
    index_all(base, "runs/7/ar.zip")
    return base


def index_all(base: Path, archive: str) -> list[IndexRow]:
    with open_committed(base / archive) as opened:
        rows = [
            IndexRow(
                entry.name, f"/scratch/{number}/{entry.name}" if number % 2 else None, 0, entry.size, entry.offset,
                entry.offset + 1, NOW_NS, entry.size, entry.compressed_size, entry.method, entry.crc,
                NOW_NS + number * 1_000_000_000, 0o100644, f"node{number % 3}", f"node-{number}", number,
                {"run": number, "name": f"n{number % 4}", "flag": number % 2 == 0} if number > 3 else None,
            )
            for number, entry in enumerate(opened.entries())
        ]  # fmt: skip
        Index.open(Layout(base), archive).rebuild(rows, opened.fingerprint)
    return rows


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.txt", ["a.txt", "logs/a.txt", "logs/deep/a.txt"]),
        ("logs/a.txt", ["logs/a.txt"]),
        ("*.txt", [name for name in NAMES if name.endswith(".txt")]),
        ("logs/*.txt", ["logs/a.txt", "logs/b.txt"]),
        ("logs/**", ["logs/a.txt", "logs/b.txt", "logs/deep/a.txt", "logs/deep/c[1].txt"]),
        ("**/a.txt", ["a.txt", "logs/a.txt", "logs/deep/a.txt"]),
        ("logs", ["logs/", "other/logs"]),
        ("logs/", ["logs/", "other/logs"]),
        ("[ab].txt", ["a.txt", "logs/a.txt", "logs/b.txt", "logs/deep/a.txt"]),
        ("c[1].txt", ["logs/deep/c[1].txt"]),
        ("?.txt", ["a.txt", "logs/a.txt", "logs/b.txt", "logs/deep/a.txt", "ä/ö.txt"]),
        ("100%*", ["100%_done"]),
        ("q'uote\"s", ["q'uote\"s"]),
        ("ctrl*", ["ctrl\x1b[31m\n"]),
        ("back\\*", ["back\\slash"]),
        ("x/y", []),
        ("a_txt", []),
        ("**", NAMES),
    ],
)
def test_patterns_with_an_index_and_without(pattern: str, expected: list[str], base: Path) -> None:
    with open_committed(base / "runs/7/ar.zip") as archive:
        actual = {entry.name for entry in archive.entries()}
    # CP437 has a character for every byte.
    expected = [name if name in actual else "bad\xa0.txt" for name in expected]
    result = Result("find", base, pattern, "--json")
    assert (paths(result), result.err, result.status) == (expected, "", 0)
    shutil.rmtree(Layout(base).indexes)
    result = Result("find", base, pattern, "--json")
    assert (paths(result), result.status) == (expected, 0)
    assert result.err.count("\n") == 1
    assert f"{base}/runs/7/ar.zip has no index" in result.err


@given(st.text("ab/.*?[]!x"), st.text("ab/.*[]x", min_size=1))
def test_sql_never_loses_what_a_pattern_means(pattern: str, name: str) -> None:
    import re
    import sqlite3

    try:
        meant = NamePattern(pattern or "a")
    except UsageError:
        return
    condition, parameters = meant.condition("name")
    connection = sqlite3.connect(":memory:")
    narrowed = connection.execute(f"SELECT 1 FROM (SELECT ? AS name) WHERE {condition}", [name, *parameters]).fetchall()
    connection.close()
    if meant.matches(name):
        assert narrowed
    if re.compile(translate(pattern), re.DOTALL).fullmatch(name):
        assert sqlite_glob(coarse_glob(pattern), name)


def sqlite_glob(glob: str, text: str) -> bool:
    import sqlite3

    connection = sqlite3.connect(":memory:")
    (found,) = connection.execute("SELECT ? GLOB ?", (text, glob)).fetchone()
    connection.close()
    return bool(found)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--host", "node1"], [1, 4, 7, 10, 13]),
        (["--host", "node[12]", "--worker", "node-1*"], [1, 10, 11, 13, 14]),
        (["--worker", "node-5"], [5]),
        (["--source", "/scratch/3/**"], [3]),
        (["--source", "a.txt"], [1, 3, 5]),
        (["--meta", "run=7"], [7]),
        (["--meta", "run"], list(range(4, 16))),
        (["--meta", "name=n1", "--meta", "flag=false"], [5, 9, 13]),
        (["--meta", "name=n"], []),
        (["--since", "2023-11-14T22:13:30+00:00"], [10, 11, 12, 13, 14, 15]),
        (["--since", "1970-01-01", "--host", "node0"], [0, 3, 6, 9, 12, 15]),
        (["--since", "1d"], []),
        (["--larger", "25"], [12]),
        (["--smaller", "17"], [0, 1, 7]),
        (["--larger", "16", "--smaller", "18"], [15]),
        (["--archive", "runs/**", "--worker", "node-0"], [0]),
        (["--archive", "ar.zip", "--worker", "node-0"], [0]),
        (["--archive", "other.zip"], []),
    ],
)
def test_by_where_it_came_from(options: list[str], numbers: list[int], base: Path) -> None:
    rows = list(Index.open(Layout(base), "runs/7/ar.zip").rows())
    if "--larger" in options or "--smaller" in options:
        large = int(options[options.index("--larger") + 1]) if "--larger" in options else -1
        small = int(options[options.index("--smaller") + 1]) if "--smaller" in options else 1 << 60
        numbers = [number for number, row in enumerate(rows) if large < row.size < small]
        assert 0 < len(numbers) < len(rows)
    result = Result("find", base, *options, "--json")
    assert (paths(result), result.status) == ([rows[number].name for number in numbers], 0)


@pytest.mark.parametrize(
    "options",
    [
        ["--meta", "=x"],
        ["--since", "yesterday"],
        ["--since", "0001-01-01"],
        ["--larger", "big"],
        ["[z-a]"],
        ["-0", "-l"],
    ],
)
def test_what_cannot_be_meant(options: list[str], base: Path) -> None:
    result = Result("find", base, *options)
    assert (result.status, result.out) == (2, "")
    assert "Traceback" not in result.err


def test_what_is_printed_can_be_read_again(base: Path) -> None:
    plain = Result("find", base, "logs/*.txt").lines
    assert plain == [f"{base}/runs/7/ar.zip/logs/a.txt", f"{base}/runs/7/ar.zip/logs/b.txt"]
    assert Result("cat", *plain).out == "content of logs/a.txtcontent of logs/b.txt"
    (long,) = Result("find", "-l", base, "README").lines
    assert long.split()[0] == "-rw-r--r--"
    assert long.endswith("/ar.zip/README")
    (escaped,) = Result("find", base, "ctrl*").lines
    assert escaped.endswith("ctrl\\x1b[31m\\n")
    # All of them, exactly, through a pipe into another program.
    exact = run_rear("find", "-0", base, "*", "--larger", "1", text=False, check=True).stdout
    found = exact.split(b"\0")[:-1]
    assert len(found) == len(NAMES)
    again = subprocess.run(
        ["xargs", "-0", *rear_command("cat")], input=b"\0".join(path for path in found if path[-1:] != b"/"),
        capture_output=True, check=True,
    )  # fmt: skip
    assert again.stdout.count(b"content of ") == len(NAMES) - 1


def test_very_many_patterns(base: Path) -> None:
    found = rear.find(base, [*(f"none-{number}" for number in range(2_000)), "README"])
    assert [member.member.name for member in found] == ["README"]
    assert (found.unindexed, found.errors) == ([], [])


def test_an_archive_and_a_folder_are_places_too(base: Path, tmp_path: Path) -> None:
    write_zip(base / "top.zip", "a.txt")
    foreign = write_zip(tmp_path / "elsewhere/x.zip", "a.txt")
    count = len([name for name in NAMES if name.endswith("a.txt")])
    assert len(Result("find", base, "a.txt").lines) == count + 1
    assert len(Result("find", base / "runs", "a.txt").lines) == count
    assert len(Result("find", base / "runs/7/ar.zip", "a.txt").lines) == count
    assert Result("find", foreign, "a.txt").lines == [f"{foreign}/a.txt"]
    assert Result("find", tmp_path / "elsewhere", "a.txt").lines == [f"{foreign}/a.txt"]
    assert Result("find", tmp_path / "nowhere", "a.txt").status == 3
    assert Result("find", base / "none.zip", "a.txt").status == 3


def test_damage_costs_no_more_than_it_hits(base: Path) -> None:
    write_zip(base / "a.zip", "a.txt")
    (base / "b.zip").write_bytes(b"no archive")
    segment = next(Layout(base).index("runs/7/ar.zip").iterdir())
    data = bytearray(segment.read_bytes())
    # Beyond the first page: found only when the rows are read.
    data[4096 + 8 :] = os.urandom(len(data) - 4096 - 8)
    segment.write_bytes(data)
    result = Result("find", base, "a.txt")
    assert [line.removeprefix(f"{base}/") for line in result.lines] == [
        "a.zip/a.txt", "runs/7/ar.zip/a.txt", "runs/7/ar.zip/logs/a.txt", "runs/7/ar.zip/logs/deep/a.txt",
    ]  # fmt: skip
    assert result.status == 4
    assert "b.zip" in result.err
    assert f"{base}/a.zip and 1 more archives have no index" in result.err


def test_an_index_that_breaks_off_is_finished_from_the_directory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections.abc import Iterator, Sequence

    from rear.errors import IndexFormatError

    real = Index.select

    def breaks_off(self: Index, condition: str, parameters: Sequence[str | int]) -> Iterator[IndexRow]:
        for count, row in enumerate(real(self, condition, parameters)):
            if count == 5:
                raise IndexFormatError("torn")
            yield row

    monkeypatch.setattr(Index, "select", breaks_off)
    found = rear.find(base)
    names = [member.member.name for member in found]
    with open_committed(base / "runs/7/ar.zip") as archive:
        assert names == [entry.name for entry in archive.entries()]
    assert found.unindexed == [f"{base}/runs/7/ar.zip"]


def test_what_workers_wrote(tmp_path: Path) -> None:
    """The whole way: metadata, sources and replaced members, over several segments."""
    picked = tmp_path / "result.h5"
    picked.write_bytes(b"x" * 2000)
    with rear.rear_fs(tmp_path / "base"), rear.rear_open("ar.zip/a", "w", metadata={"run": 7, "who": "ä"}) as file:
        file.write("one")
    list(rear.scavenge(tmp_path / "base"))
    before = datetime.now(UTC)
    with rear.rear_fs(tmp_path / "base"):
        with rear.rear_pickup(picked, "ar.zip/b/result.h5"):
            pass
        with rear.rear_open("ar.zip/a", "w") as file:
            file.write("another")
    list(rear.scavenge(tmp_path / "base", on_conflict="last"))
    base = tmp_path / "base"
    by_source = list(rear.find(base, source=str(picked)))
    assert [found.path for found in by_source] == [f"{base}/ar.zip/b/result.h5"]
    assert (by_source[0].member.source, by_source[0].member.size) == (str(picked), 2000)
    assert [found.member.size for found in rear.find(base, "a")] == [7]
    assert [found.member.name for found in rear.find(base, "a", changed_since=before)] == ["a"]
    assert list(rear.find(base, metadata={"run": "7"})) == []
    host = by_source[0].member.host
    assert host is not None
    assert len(list(rear.find(base, ["a", "*.h5"], host=host))) == 2
    assert list(rear.find(base, "nothing")) == []


def test_more_than_nothing(tmp_path: Path) -> None:
    (tmp_path / ".rear").mkdir()
    write_zip(tmp_path / "ar.zip", ("empty", b""), ("full", b"x"))
    assert [found.member.name for found in rear.find(tmp_path, larger_bytes=0)] == ["full"]
    assert Result("find", tmp_path, "--larger", "0").lines == [f"{tmp_path}/ar.zip/full"]
