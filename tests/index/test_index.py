from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zips import build, directory_offset, member, overwrite, write_zip

import rear.index.index
import rear.index.segment_writer
from rear.core.layout import Layout
from rear.core.records import Origin
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import IndexFormatError, PathError
from rear.index.index import Index, IndexRow, rows_of
from rear.index.segment import APPLICATION_ID, SCHEMA_VERSION, parse_segment_name
from rear.read.view import open_committed

ARCHIVE = "runs/7/ar.zip"


def make_row(name: str, start: int, **others: Any) -> IndexRow:
    row = IndexRow(
        name, None, 0, 5, start, start + 50, 1_700_000_000_000_000_000, 5, 7, 8, 0xFFFFFFFF, -1, 0o644,
        "node17", "node17-42-1a2b", start,
    )  # fmt: skip
    return row._replace(**others)


def make_rows(start: int, stop: int) -> list[IndexRow]:
    return [make_row(f"logs/{number:06d}.txt", number * 50) for number in range(start, stop)]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "base")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compact as if a handful of rows were many."""
    monkeypatch.setattr(rear.index.index, "SMALL_MEMBERS", 2)


def filled(layout: Layout, *stops: int) -> Index:
    """Return an index of rows up to each number, published one after the other as f1, f2, …"""
    index, start = Index.open(layout, ARCHIVE), 0
    for number, stop in enumerate(stops, 1):
        assert index.publish(make_rows(start, stop), f"f{number}", previous=f"f{number - 1}" if start else None)
        start = stop
    return index


def files(layout: Layout, archive: str = ARCHIVE) -> list[str]:
    return LOCAL.names(layout.index(archive))


def assert_state(index: Index, fingerprint: str, rows: Sequence[IndexRow]) -> None:
    assert index.matches(fingerprint, len(rows))
    assert index.count == len(rows)
    assert list(index.rows()) == list(rows)
    assert index.find([row.name for row in rows]) == {row.name: row for row in rows}


# ---- what goes in comes out


def test_a_missing_index_is_empty(layout: Layout) -> None:
    index = Index.open(layout, ARCHIVE)
    assert (index.count, index.fingerprint, index.problems) == (0, None, [])
    assert not index.matches("any", 0)
    assert index.find(["a"]) == {}
    assert index.find_origins([("h", "w", 1)]) == {}
    assert list(index.rows()) == []
    assert not layout.base.exists()


def test_rows_come_back_as_they_were(layout: Layout) -> None:
    rows = [
        make_row("it's \"quoted\"; DROP TABLE members; --", 0),
        make_row("Überprüfung/naïve/日本語/🙂.txt", 50, source="/scratch/Überprüfung"),
        make_row("b\udcff\udc80d.txt", 100, source="/scratch/\udcfe", host="ho\udcffst"),
        make_row("b\xffd.txt", 150),
        make_row("%_[a-z]*?", 200, metadata={"a": [1, None, {"ß": "\udcff"}], "b": "🙂"}),
        make_row("nul\0inside", 250, metadata={}),
        make_row("foreign", 300, source_start=None, source_end=None, target_end=None, archived_ns=None, mtime_ns=None,
                 mode=None, host=None, worker=None, sequence=None),
        make_row("x" * 65_535, 350, metadata={"k": "ÿ" * 60_000}),
        make_row("big", (1 << 63) - 51, size=(1 << 63) - 1, sequence=(1 << 63) - 1),
    ]  # fmt: skip
    assert Index.open(layout, ARCHIVE).publish(rows, "f1", previous=None)
    index = Index.open(layout, ARCHIVE)
    assert index.problems == []
    assert_state(index, "f1", rows)
    for row in rows:
        assert index.find([row.name]) == {row.name: row}
    assert index.find(["b\udcff\udc80d.tx", "bÿd.txt ", "\ud800"]) == {}
    assert index.find_origins([("ho\udcffst", "node17-42-1a2b", 100), ("host", "node17-42-1a2b", 100)]) == {
        ("ho\udcffst", "node17-42-1a2b", 100): rows[2]
    }


numbers = st.none() | st.integers(-(1 << 63), (1 << 63) - 1) | st.sampled_from([0, 1, -1])
naturals = st.integers(0, (1 << 63) - 1) | st.sampled_from([0, 1])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    same=st.fixed_dictionaries({"source": st.sampled_from([None, "/a", "/ü"]), "mode": numbers, "size": naturals}),
    varying=st.lists(st.fixed_dictionaries({"crc": naturals, "sequence": numbers, "mtime_ns": numbers}), min_size=1),
    metadata=st.sampled_from([None, None, {"a": 1}]),
)
def test_what_is_the_same_in_all_rows_comes_back_as_well(
    layout: Layout, same: dict[str, Any], varying: list[dict[str, Any]], metadata: dict[str, Any] | None
) -> None:
    rows = [make_row(f"{number}", number * 50, **same, **values) for number, values in enumerate(varying)]
    rows.append(rows[-1]._replace(name="last", metadata=metadata))
    index = Index(layout, ARCHIVE)
    index.rebuild(rows, "f")
    assert list(index.rows()) == rows


def test_a_row_that_cannot_be_stored_changes_nothing(layout: Layout) -> None:
    index = filled(layout, 3)
    for row in (make_row("a", 1 << 63), make_row("a", 200, metadata={"k": "x" * (2 << 20)})):
        assert not index.publish([row], "f2", previous="f1")
        assert index.problems
        with pytest.raises(IndexFormatError):
            index.rebuild([row], "f2")
    assert files(layout) == ["1.sqlite"]
    assert_state(Index.open(layout, ARCHIVE), "f1", make_rows(0, 3))


def test_an_error_of_the_rows_changes_nothing(layout: Layout) -> None:
    def broken() -> Iterator[IndexRow]:
        yield from make_rows(3, 6)
        raise KeyError("mine")

    index = filled(layout, 3)
    with pytest.raises(KeyError, match="mine"):
        index.publish(broken(), "f2", previous="f1")
    assert files(layout) == ["1.sqlite"]
    assert_state(Index.open(layout, ARCHIVE), "f1", make_rows(0, 3))


def test_archive_paths_are_checked(layout: Layout) -> None:
    for archive in ("../ar.zip", "/ar.zip", "ar", ".rear/ar.zip"):
        with pytest.raises(PathError):
            Index.open(layout, archive)


def test_a_base_of_any_name(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "a?b#c%41 ü\udcff" / "base")
    filled(layout, 3)
    assert_state(Index.open(layout, ARCHIVE), "f1", make_rows(0, 3))


# ---- fingerprints and repetition


def test_publish_is_idempotent(layout: Layout, tiny: None) -> None:
    previous, rows = None, []
    for merge in range(8):
        rows += make_rows(merge * 5, merge * 5 + 5)
        for _ in range(4):
            index = Index.open(layout, ARCHIVE)
            assert index.publish(make_rows(merge * 5, merge * 5 + 5), f"f{merge}", previous=previous)
            assert_state(index, f"f{merge}", rows)
        previous = f"f{merge}"
    assert not index.matches("f7", len(rows) + 1)
    assert not index.matches("f6", len(rows))


def test_an_index_of_another_state_is_not_added_to(layout: Layout) -> None:
    index = Index.open(layout, ARCHIVE)
    assert not index.publish(make_rows(0, 3), "f2", previous="f1")
    assert files(layout) == []
    index.publish(make_rows(0, 3), "f1", previous=None)
    assert not index.publish(make_rows(6, 9), "f3", previous="f2")
    assert_state(index, "f1", make_rows(0, 3))


def test_a_new_archive_begins_a_new_index(layout: Layout) -> None:
    index = filled(layout, 3)
    index.publish(make_rows(50, 52), "g1", previous=None)
    assert_state(Index.open(layout, ARCHIVE), "g1", make_rows(50, 52))
    assert files(layout) == ["2.sqlite"]


def test_rebuild_replaces_all(layout: Layout, tiny: None) -> None:
    index = filled(layout, 30, 35)
    assert len(files(layout)) == 2
    for _ in range(4):
        index.rebuild(iter(make_rows(0, 40)), "f3")
        assert_state(Index.open(layout, ARCHIVE), "f3", make_rows(0, 40))
        assert len(files(layout)) == 1


# ---- names that occur twice, rows that are replaced


def test_the_last_row_of_a_name_wins(layout: Layout, tiny: None) -> None:
    index = Index.open(layout, ARCHIVE)
    rows = [make_row("a", 0), make_row("b", 50), make_row("a", 100), *make_rows(10, 30)]
    index.publish(rows, "f1", previous=None)
    assert index.find(["a", "b"]) == {"a": rows[2], "b": rows[1]}
    more = [make_row("b", 5000)]
    index.publish(more, "f2", previous="f1")
    assert len(index.segments) == 2
    assert index.find(["b", "b"]) == {"b": more[0]}
    assert list(index.rows()) == rows + more
    assert index.matches("f2", len(rows) + 1)


def test_removed_rows_are_gone_before_and_after_compaction(layout: Layout, tiny: None) -> None:
    index = Index.open(layout, ARCHIVE)
    rows = make_rows(0, 100)
    index.publish(rows, "f0", previous=None)
    for merge in range(1, 60):
        # Each merge replaces one row of the first segment and the row that the merge before added.
        old = rows[0]
        gone = [(old.name, old.target_start)]
        if merge > 1:
            gone.append((rows[-1].name, rows[-1].target_start))
            rows.pop()
        rows.pop(0)
        rows.append(make_row(old.name, 100_000 + merge * 50))
        assert index.publish([rows[-1]], f"f{merge}", previous=f"f{merge - 1}", removed=gone)
        assert index.matches(f"f{merge}", len(rows))
        assert list(index.rows()) == rows
        assert index.find([old.name]) == {old.name: rows[-1]}
        assert index.find_origins([(str(old.host), str(old.worker), old.sequence or 0)]) == {}
    assert_state(Index.open(layout, ARCHIVE), "f59", rows)
    assert index.find(["logs/000003.txt"]) == {}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    merges=st.lists(
        st.tuples(st.lists(st.sampled_from("abcdefgh"), max_size=12), st.integers(0, 3), st.integers(0, 1 << 30)),
        max_size=8,
    )
)
def test_any_history_gives_the_same_as_a_list(
    merges: list[tuple[list[str], int, int]], tmp_path_factory: pytest.TempPathFactory, tiny: None
) -> None:
    layout = Layout(tmp_path_factory.mktemp("base"))
    index, rows, previous, start = Index.open(layout, ARCHIVE), list[IndexRow](), None, 0
    for number, (names, gone, choice) in enumerate(merges):
        removed = [rows.pop((choice + step) % len(rows)) for step in range(gone) if previous is not None and rows]
        new = [make_row(name, start + position * 50) for position, name in enumerate(names)]
        start += len(new) * 50
        rows += new
        keys = [(row.name, row.target_start) for row in removed]
        assert index.publish(new, f"f{number}", previous=previous, removed=keys)
        previous = f"f{number}"
        reopened = Index.open(layout, ARCHIVE)
        assert reopened.matches(previous, len(rows))
        assert list(reopened.rows()) == rows
        assert reopened.find("abcdefgh") == {row.name: row for row in rows}
        origins = {(str(row.host), str(row.worker), row.sequence or 0): row for row in rows}
        assert reopened.find_origins(origins) == origins


# ---- compaction


def test_segments_stay_few(layout: Layout, tiny: None) -> None:
    index, previous, start, most = Index.open(layout, ARCHIVE), None, 0, 0
    for merge in range(60):
        # Slowly shrinking merges would never be compacted if equal sizes were the rule.
        count = 120 - merge if merge < 40 else 3
        assert index.publish(make_rows(start, start + count), f"f{merge}", previous=previous)
        start, previous, most = start + count, f"f{merge}", max(most, len(index.segments))
        assert files(layout) == sorted(segment.path.name for segment in index.segments)
    assert 3 <= most <= 10
    assert_state(Index.open(layout, ARCHIVE), "f59", make_rows(0, start))


def test_numbers_are_never_used_again(layout: Layout) -> None:
    index, seen = Index.open(layout, ARCHIVE), set[str]()
    for merge in range(6):
        index.publish(make_rows(merge, merge + 1), f"f{merge}", previous=f"f{merge - 1}" if merge else None)
        assert not seen & set(files(layout))
        seen |= set(files(layout))
    folder = layout.index(ARCHIVE)
    (folder / "90-0123456789abcdef.part").write_bytes(b"left by a writer that died")
    (folder / "80.sqlite").write_bytes(b"damaged")
    (folder / "notes.txt").write_bytes(b"of a human")
    index.publish(make_rows(6, 7), "f6", previous="f5")
    assert files(layout) == ["91.sqlite", "notes.txt"]
    assert_state(Index.open(layout, ARCHIVE), "f6", make_rows(0, 7))


def test_a_segment_of_a_deposed_writer_does_not_fit_in(layout: Layout, tiny: None, tmp_path: Path) -> None:
    index = filled(layout, 20)
    shutil.copytree(layout.base, tmp_path / "other")
    index.publish(make_rows(20, 26), "f2", previous="f1")
    index.publish(make_rows(26, 28), "f3", previous="f2")
    assert files(layout) == ["1.sqlite", "2.sqlite", "3.sqlite"]
    deposed = Layout(tmp_path / "other")
    Index.open(deposed, ARCHIVE).publish(make_rows(40, 46), "x2", previous="f1")
    os.replace(deposed.index(ARCHIVE) / "2.sqlite", layout.index(ARCHIVE) / "2.sqlite")
    index = Index.open(layout, ARCHIVE)
    assert any("another segment" in problem for problem in index.problems)
    assert not index.matches("f3", 28)
    # What is left is the deposed writer's own state, which is a whole one.
    assert_state(index, "x2", make_rows(0, 20) + make_rows(40, 46))


@pytest.mark.parametrize("question", ["find", "find_origins", "rows"])
def test_a_reader_goes_on_with_newer_segments(layout: Layout, question: str) -> None:
    writer = Index.open(layout, ARCHIVE)
    writer.publish(make_rows(0, 10), "f1", previous=None)
    reader = Index.open(layout, ARCHIVE)
    writer.publish(make_rows(10, 20), "f2", previous="f1")
    assert files(layout) == ["2.sqlite"]
    rows = make_rows(0, 20)
    match question:
        case "find":
            assert reader.find(row.name for row in rows) == {row.name: row for row in rows}
        case "find_origins":
            assert len(reader.find_origins((str(row.host), str(row.worker), row.sequence or 0) for row in rows)) == 20
        case _:
            assert list(reader.rows()) == rows


def test_a_vanished_index_is_not_an_empty_one(layout: Layout) -> None:
    filled(layout, 10)
    reader = Index.open(layout, ARCHIVE)
    shutil.rmtree(layout.base)
    with pytest.raises(OSError, match="unable to open"):
        reader.find(["logs/000001.txt"])


def test_readers_and_a_writer_at_once(layout: Layout, tiny: None) -> None:
    index, failures, done = Index.open(layout, ARCHIVE), list[BaseException](), threading.Event()
    index.publish(make_rows(0, 10), "f0", previous=None)
    reads = [0, 0]

    def read(slot: int) -> None:
        try:
            while not done.is_set() or reads[slot] < 3:
                reader = Index.open(layout, ARCHIVE)
                least = reader.count
                assert least >= 10
                assert reader.find(["logs/000000.txt", f"logs/{least - 1:06d}.txt", "none"]).keys() == {
                    "logs/000000.txt", f"logs/{least - 1:06d}.txt",
                }  # fmt: skip
                seen = [row.target_start for row in reader.rows()]
                assert len(seen) >= least
                assert seen == list(range(0, len(seen) * 50, 50))
                reads[slot] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(slot,)) for slot in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 1.0
    merge = 0
    while time.monotonic() < deadline:
        merge += 1
        assert index.publish(make_rows(merge * 10, merge * 10 + 10), f"f{merge}", previous=f"f{merge - 1}")
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert merge > 5


def test_rows_outlive_compaction(layout: Layout) -> None:
    index = filled(layout, 2_000)
    rows = Index.open(layout, ARCHIVE).rows()
    first = next(rows)
    index.publish(make_rows(2_000, 2_010), "f2", previous="f1")
    assert [first, *rows] == make_rows(0, 2_000)


def test_many_names_at_once(layout: Layout) -> None:
    index = Index.open(layout, ARCHIVE)
    index.rebuild((make_row(f"logs/{number:07d}.txt", number * 50) for number in range(200_000)), "f1")
    index.publish(make_rows(0, 5), "f2", previous="f1")
    assert len(index.segments) == 2
    names = [f"logs/{number * 2:07d}.txt" for number in range(200_000)]
    found = index.find(names)
    assert len(found) == 100_000
    assert found["logs/0199998.txt"].target_start == 199_998 * 50
    keys = [("node17", "node17-42-1a2b", number * 50) for number in range(0, 400_000, 1_000)]
    assert len(index.find_origins(keys)) == 200


# ---- damage and forgery


def two_segments(layout: Layout) -> None:
    filled(layout, 600, 700)
    assert files(layout) == ["1.sqlite", "2.sqlite"]


@pytest.mark.parametrize("name", ["1.sqlite", "2.sqlite"])
def test_a_segment_cut_at_any_length_is_as_if_absent(layout: Layout, tiny: None, name: str) -> None:
    two_segments(layout)
    path = layout.index(ARCHIVE) / name
    whole = path.read_bytes()
    step = max(1, len(whole) // 12)
    for length in [0, 1, 15, 16, 99, 100, 512, 4095, 4096, *range(step, len(whole), step), len(whole) - 1]:
        path.write_bytes(whole[:length])
        index = Index.open(layout, ARCHIVE)
        assert any(name in problem for problem in index.problems), length
        assert not index.matches("f2", 700)
        assert index.matches("f1", 600) == (name == "2.sqlite")
    path.write_bytes(whole + b"\0")
    assert not Index.open(layout, ARCHIVE).matches("f2", 700)
    index.rebuild(make_rows(0, 700), "f2")
    assert_state(Index.open(layout, ARCHIVE), "f2", make_rows(0, 700))
    assert len(files(layout)) == 1


def test_flipped_bytes_give_an_error_or_an_answer(layout: Layout, tiny: None) -> None:
    two_segments(layout)
    path = layout.index(ARCHIVE) / "1.sqlite"
    whole = path.read_bytes()
    positions = [*range(108), *range(108, len(whole), len(whole) // 150)]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 0x81 if position % 2 else 0xFF
        path.write_bytes(damaged)
        index = Index.open(layout, ARCHIVE)
        for question in (
            lambda index: list(index.rows()),
            lambda index: index.find([row.name for row in make_rows(0, 20)]),
            lambda index: index.find_origins([("node17", "node17-42-1a2b", 50)]),
        ):
            try:
                question(index)
            except (IndexFormatError, OSError):
                pass
    path.write_bytes(whole)
    assert_state(Index.open(layout, ARCHIVE), "f2", make_rows(0, 700))


def forge(path: Path, script: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()


@pytest.mark.parametrize(
    "script",
    [
        "DROP TABLE removed",
        "DROP TABLE members; CREATE VIEW members AS SELECT 1 AS name",
        "ALTER TABLE members ADD COLUMN other TEXT",
        "CREATE TABLE other (a)",
        "CREATE TRIGGER t AFTER INSERT ON members BEGIN DELETE FROM members; END",
        "CREATE VIEW v AS SELECT 1",
        "DELETE FROM segment",
        "INSERT INTO segment SELECT * FROM segment",
        "UPDATE segment SET number = 7",
        "UPDATE segment SET members = -1",
        "UPDATE segment SET members = 'many'",
        "UPDATE segment SET fingerprint = x'ff'",
        "UPDATE segment SET archive = CAST(x'ff' AS TEXT)",
        "UPDATE segment SET id = 'other'",
        "INSERT INTO below VALUES (1, 'x')",
        "INSERT INTO below VALUES ('x', 2)",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 7",
        "PRAGMA journal_mode = WAL; UPDATE segment SET number = 7",
    ],
)
def test_a_forged_segment_is_as_if_absent(layout: Layout, tiny: None, script: str) -> None:
    two_segments(layout)
    forge(layout.index(ARCHIVE) / "1.sqlite", script)
    index = Index.open(layout, ARCHIVE)
    assert index.problems
    assert index.fingerprint != "f2"


@pytest.mark.parametrize(
    "script",
    [
        "UPDATE members SET size = 'many' WHERE rowid = 3",
        "UPDATE members SET target_start = 1.5 WHERE rowid = 3",
        "UPDATE members SET metadata = '{' WHERE rowid = 3",
        "UPDATE members SET metadata = '[1]' WHERE rowid = 3",
        f"UPDATE members SET metadata = '{'[' * 100_000}' WHERE rowid = 3",
        "UPDATE members SET metadata = 5.5 WHERE rowid = 3",
        "UPDATE members SET source = CAST(x'ff' AS TEXT) WHERE rowid = 3",
        "UPDATE members SET source = zeroblob(2000000) WHERE rowid = 3",
        "UPDATE segment SET members = 10",
    ],
)
def test_forged_rows_are_an_error(layout: Layout, tiny: None, script: str) -> None:
    two_segments(layout)
    path = layout.index(ARCHIVE) / "1.sqlite"
    forge(path, script)
    index = Index.open(layout, ARCHIVE)
    with pytest.raises(IndexFormatError, match=r"1\.sqlite"):
        list(index.rows())
    assert index.matches("f2", 700) or "members = 10" in script
    if "size = 'many'" in script:
        assert index.find(["logs/000700.txt", "logs/000600.txt"]).keys() == {"logs/000600.txt"}
    # Compaction either takes the rows as they are or refuses.
    index.publish(make_rows(700, 1_500), "f3", previous="f2")


def test_wrong_counts_are_found_when_segments_are_taken_in(layout: Layout) -> None:
    index = filled(layout, 10)
    for members in (9, 11):
        forge(layout.index(ARCHIVE) / "1.sqlite", f"UPDATE segment SET members = {members}")
        index = Index.open(layout, ARCHIVE)
        assert not index.matches("f1", 10)
        assert not index.publish(make_rows(10, 20), "f2", previous="f1")
        assert "rows" in index.problems[-1]
    assert files(layout) == ["1.sqlite"]


def test_what_is_no_regular_file_is_not_opened(layout: Layout, tmp_path: Path) -> None:
    folder = layout.index(ARCHIVE)
    index = filled(layout, 3)
    shutil.copy(folder / "1.sqlite", tmp_path / "5.sqlite")
    os.mkfifo(folder / "3.sqlite")
    (folder / "4.sqlite").mkdir()
    (folder / "5.sqlite").symlink_to(tmp_path / "5.sqlite")
    index = Index.open(layout, ARCHIVE)
    assert_state(index, "f1", make_rows(0, 3))
    assert len(index.problems) == 3
    assert index.publish(make_rows(3, 6), "f2", previous="f1")
    assert files(layout) == ["4.sqlite", "6.sqlite"]
    assert (tmp_path / "5.sqlite").exists()


def test_a_segment_of_a_newer_rear_is_left_alone(layout: Layout) -> None:
    folder = layout.index(ARCHIVE)
    index = filled(layout, 3)
    forge(folder / "1.sqlite", f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    index = Index.open(layout, ARCHIVE)
    assert index.count == 0
    assert "schema version 2" in index.problems[0]
    index.rebuild(make_rows(0, 3), "f1")
    assert files(layout) == ["1.sqlite", "2.sqlite"]
    assert_state(index, "f1", make_rows(0, 3))


def test_segment_names() -> None:
    assert parse_segment_name("17.sqlite") == 17
    for name in ("017.sqlite", "0.sqlite", "-1.sqlite", "1.SQLITE", ".sqlite", "1", "1.sqlite.sqlite", "١.sqlite",
                 f"{'9' * 5000}.sqlite", "1_0.sqlite", "1-ab.part"):  # fmt: skip
        assert parse_segment_name(name) is None


def test_the_schema_is_the_documented_one(layout: Layout) -> None:
    filled(layout, 3)
    connection = sqlite3.connect(layout.index(ARCHIVE) / "1.sqlite")
    try:
        tables = {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        connection.close()
    text = (ROOT / "docs" / "reference" / "index-schema.md").read_text()
    for table, columns in tables.items():
        _, found, section = text.partition(f"## Table `{table}`\n")
        assert found, table
        rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
        assert [line.split("`")[1] for line in rows] == columns


# ---- crashes


class Dead(BaseException):
    """The process was killed."""


def each_stop(
    folder: Path, before: Callable[[Layout], None], work: Callable[[Layout, Storage], object], *, at_least: int = 1
) -> Iterator[tuple[int, Layout]]:
    """Yield the number of each operation of some work, with a base to do it in that is as it was before."""
    before(Layout(folder / "template"))
    counter = Fragile()
    work(Layout(shutil.copytree(folder / "template", folder / "counted")), counter)
    assert counter.count >= at_least
    for stop in range(1, counter.count + 1):
        yield stop, Layout(shutil.copytree(folder / "template", folder / str(stop)))


class Fragile(Storage):
    """Counts operations, and fails at one of them: before it, or for a copy in the middle of it."""

    def __init__(self, stop: int = 0, error: BaseException | None = None) -> None:
        self.count = 0
        self.stop = stop
        self.error = error if error is not None else Dead()
        self.paths: dict[int, Path] = {}
        self.unsynced: set[Path] = set()
        self.undo: list[tuple[Path, Callable[[], object]]] = []

    def step(self) -> None:
        self.count += 1
        if self.count == self.stop or (isinstance(self.error, Dead) and 0 < self.stop < self.count):
            raise self.error

    def changed(self, path: Path, undo: Callable[[], object]) -> None:
        self.undo.append((path.parent, undo))

    def lose_power(self, *, names: bool) -> None:
        """Forget what was not synced: data, and if ``names``, what happened in directories."""
        for path in self.unsynced:
            os.truncate(path, path.stat().st_size // 2)
        for _, undo in reversed(self.undo if names else []):
            undo()

    def create(self, path: StrPath, mode: int = 0o644) -> int:
        self.step()
        descriptor = super().create(path, mode)
        self.paths[descriptor] = Path(path)
        self.unsynced.add(Path(path))
        self.changed(Path(path), Path(path).unlink)
        return descriptor

    def copy_range(self, source: int, target: int, *, source_start: int, target_start: int, length: int) -> None:
        try:
            self.step()
        except BaseException:
            length //= 2
            super().copy_range(source, target, source_start=source_start, target_start=target_start, length=length)
            raise
        super().copy_range(source, target, source_start=source_start, target_start=target_start, length=length)

    def sync(self, descriptor: int) -> None:
        self.step()
        super().sync(descriptor)
        self.unsynced.discard(self.paths[descriptor])

    def sync_directory(self, path: StrPath) -> None:
        self.step()
        super().sync_directory(path)
        self.undo = [(folder, undo) for folder, undo in self.undo if folder != Path(path)]

    def rename(self, source: StrPath, target: StrPath) -> None:
        self.step()
        super().rename(source, target)
        source, target = Path(source), Path(target)
        if source in self.unsynced:
            self.unsynced.remove(source)
            self.unsynced.add(target)
        self.changed(target, lambda: os.rename(target, source))

    def unlink(self, path: StrPath) -> None:
        self.step()
        path = Path(path)
        content = path.read_bytes() if path.exists() else b""
        super().unlink(path)
        self.unsynced.discard(path)
        self.changed(path, lambda: path.write_bytes(content))

    def remove_directory(self, path: StrPath) -> None:
        self.step()
        super().remove_directory(path)
        self.changed(Path(path), Path(path).mkdir)

    def make_directories(self, path: StrPath, *, sync: bool = True) -> None:
        self.step()
        super().make_directories(path, sync=sync)


OLD = make_rows(0, 40)
NEW = [*make_rows(3, 40), *make_rows(50, 70)]


def prepare(layout: Layout) -> None:
    index = Index.open(layout, ARCHIVE)
    index.publish(OLD[:30], "o1", previous=None)
    index.publish(OLD[30:36], "o2", previous="o1")
    index.publish(OLD[36:], "old", previous="o2")
    assert_state(index, "old", OLD)
    assert len(index.segments) == 2


def prepare_damaged(layout: Layout) -> None:
    prepare(layout)
    (layout.index(ARCHIVE) / "9.sqlite").write_bytes(b"damaged")
    (layout.index(ARCHIVE) / "1-abc.part").write_bytes(b"left over")


def publish_small(layout: Layout, storage: Storage) -> None:
    removed = [(row.name, row.target_start) for row in OLD[:3]]
    index = Index.open(layout, ARCHIVE, storage=storage)
    assert index.publish(NEW[37:40], "n1", previous="old", removed=removed) or index.fingerprint == "new"
    assert index.publish(NEW[40:], "new", previous="n1")


def publish_first(layout: Layout, storage: Storage) -> None:
    Index.open(layout, ARCHIVE, storage=storage).publish(NEW, "new", previous=None)


def publish_large(layout: Layout, storage: Storage) -> None:
    removed = [(row.name, row.target_start) for row in OLD[:3]]
    assert Index.open(layout, ARCHIVE, storage=storage).publish(NEW[37:], "new", previous="old", removed=removed)


def rebuild(layout: Layout, storage: Storage) -> None:
    Index.open(layout, ARCHIVE, storage=storage).rebuild(NEW, "new")


def nothing(layout: Layout) -> None:
    layout.base.mkdir()


@pytest.mark.crash
@pytest.mark.parametrize("failure", ["error", "killed", "data lost", "data and names lost"])
@pytest.mark.parametrize(
    ("before", "work"),
    [
        (nothing, publish_first),
        (prepare, publish_small),
        (prepare, publish_large),
        (prepare, rebuild),
        (prepare_damaged, publish_large),
        (prepare_damaged, rebuild),
    ],
)
def test_a_crash_leaves_the_old_or_the_new_index(
    tmp_path: Path, tiny: None, before: Callable[[Layout], None], work: Callable[[Layout, Storage], None], failure: str
) -> None:
    for stop, layout in each_stop(tmp_path, before, work, at_least=6):
        storage = Fragile(stop, OSError(errno.EIO, "broken") if failure == "error" else Dead())
        try:
            work(layout, storage)
        except (Dead, OSError):
            pass
        if failure.endswith("lost"):
            storage.lose_power(names=failure == "data and names lost")
        index = Index.open(layout, ARCHIVE)
        old = {"old": OLD, "n1": NEW[:40], None: []}
        rows = NEW if index.fingerprint == "new" else old[index.fingerprint]
        assert index.count == len(rows)
        assert list(index.rows()) == rows
        assert index.fingerprint is not None or before is nothing
        for _ in range(4):
            work(layout, LOCAL)
            index = Index.open(layout, ARCHIVE)
            assert index.matches("new", len(NEW))
            assert index.problems == []
            assert files(layout) == sorted(segment.path.name for segment in index.segments)
        assert_state(index, "new", NEW)


def test_an_error_leaves_no_temporary_file(layout: Layout) -> None:
    filled(layout, 3)
    for stop in range(1, 5):
        storage = Fragile(stop, OSError(errno.ENOSPC, "full"))
        with pytest.raises(OSError, match="full"):
            Index.open(layout, ARCHIVE, storage=storage).publish(make_rows(3, 6), "f2", previous="f1")
        assert files(layout) == ["1.sqlite"]


def test_what_cannot_be_removed_waits(layout: Layout) -> None:
    filled(layout, 3)
    index = Index.open(layout, ARCHIVE, storage=Fragile(6, OSError(errno.EACCES, "no")))
    assert index.publish(make_rows(3, 6), "f2", previous="f1")
    assert files(layout) == ["1.sqlite", "2.sqlite"]
    assert "not removed" in index.problems[-1]
    index.publish(make_rows(3, 6), "f2", previous="f1")
    assert files(layout) == ["2.sqlite"]


def test_no_room_on_local_disk(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    original = rear.index.segment_writer.SegmentWriter._create_tables

    def limited(self: rear.index.segment_writer.SegmentWriter) -> None:
        original(self)
        self._connection.execute("PRAGMA max_page_count = 10")

    monkeypatch.setattr(rear.index.segment_writer.SegmentWriter, "_create_tables", limited)
    index = Index.open(layout, ARCHIVE)
    with pytest.raises(OSError, match="No space left") as caught:
        index.publish(make_rows(0, 5_000), "f1", previous=None)
    assert caught.value.errno == errno.ENOSPC
    assert files(layout) == []


# ---- roll over and removal


def roll_over(layout: Layout, storage: Storage) -> None:
    Index.open(layout, ARCHIVE, storage=storage).rename("runs/7/ar-0.zip")


def remove(layout: Layout, storage: Storage) -> None:
    Index.open(layout, ARCHIVE, storage=storage).remove()


def prepare_both(layout: Layout) -> None:
    prepare(layout)
    index = Index.open(layout, "runs/7/ar-0.zip")
    index.publish(make_rows(0, 3), "stale", previous=None)


@pytest.mark.crash
@pytest.mark.parametrize("before", [prepare, prepare_both])
@pytest.mark.parametrize("failure", [Dead(), OSError(errno.EIO, "broken")], ids=["killed", "error"])
def test_rename_at_any_crash(
    tmp_path: Path, tiny: None, before: Callable[[Layout], None], failure: BaseException
) -> None:
    for stop, layout in each_stop(tmp_path, before, roll_over):
        try:
            roll_over(layout, Fragile(stop, failure))
        except (Dead, OSError):
            pass
        states = {Index.open(layout, archive).fingerprint for archive in (ARCHIVE, "runs/7/ar-0.zip")}
        assert states <= {"old", "stale", None}
        assert "old" in states
        for _ in range(4):
            roll_over(layout, LOCAL)
            assert_state(Index.open(layout, "runs/7/ar-0.zip"), "old", OLD)
            assert files(layout) == []
        target = Index.open(layout, "runs/7/ar-0.zip")
        assert target.publish(NEW[37:], "new", previous="old")
        assert target.count == 60


def test_rename_returns_the_index_of_the_new_name(layout: Layout) -> None:
    index = filled(layout, 3)
    renamed = index.rename("other/folder/b.zip")
    assert_state(renamed, "f1", make_rows(0, 3))
    assert (index.count, renamed.archive) == (0, "other/folder/b.zip")
    index.publish(make_rows(3, 4), "g1", previous=None)
    assert_state(renamed, "f1", make_rows(0, 3))
    with pytest.raises(PathError):
        index.rename("../b.zip")


@pytest.mark.crash
def test_remove_at_any_crash(tmp_path: Path, tiny: None) -> None:
    for stop, layout in each_stop(tmp_path, prepare_damaged, remove):
        with pytest.raises(Dead):
            remove(layout, Fragile(stop))
        index = Index.open(layout, ARCHIVE)
        assert (index.fingerprint, index.count) in {("old", 40), (None, 0)}
        for _ in range(2):
            remove(layout, LOCAL)
            assert not layout.index(ARCHIVE).exists()
            assert Index.open(layout, ARCHIVE).count == 0


# ---- rows of an archive


def test_rows_of_a_foreign_archive(layout: Layout) -> None:
    path = layout.archive("b.zip")
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a.txt", b"a" * 100)
        target.writestr("ü.txt", b"b")
        target.mkdir("folder")
    with open_committed(path) as archive:
        rows = list(rows_of(archive))
        index = Index.open(layout, "b.zip")
        index.rebuild(rows_of(archive), archive.fingerprint)
        assert index.matches(archive.fingerprint, archive.directory.entries)
    assert [row.name for row in rows] == ["a.txt", "ü.txt", "folder/"]
    assert [row.size for row in rows] == [100, 1, 0]
    assert [row.target_end for row in rows] == [rows[1].target_start, rows[2].target_start, archive.directory.offset]
    assert {(row.source, row.host, row.worker, row.sequence, row.archived_ns) for row in rows} == {(None,) * 5}
    assert_state(Index.open(layout, "b.zip"), str(index.fingerprint), rows)


def test_rows_of_an_archive_of_rear(layout: Layout) -> None:
    metadata = {"experiment": "ü"}
    origins = [
        Origin(7, 1, "b.zip", "node17", "node17-42-1a2b", 1_700_000_000_123_456_789, 0o100640),
        Origin(7, 2, "b.zip", "node17", "node17-42-1a2b", -5, 0o100755, "/scratch/\udcff", 10, metadata),
        # What a forger could write: each number at its limit.
        Origin(7, (1 << 64) - 1, "b.zip", "h", "w", 0, 0, "/s", (1 << 64) - 1),
    ]
    path = layout.archive("b.zip")
    path.parent.mkdir(parents=True)
    facts = [
        member(f"{number}.txt", b"x" * number)._replace(mtime_ns=origin.mtime_ns, mode=origin.mode)
        for number, origin in enumerate(origins)
    ]
    build(path, [(facts[number], b"x" * number, origin, 0) for number, origin in enumerate(origins)])
    with open_committed(path) as archive:
        rows = list(rows_of(archive))
        index = Index.open(layout, "b.zip")
        index.rebuild(rows_of(archive), archive.fingerprint)
    assert_state(Index.open(layout, "b.zip"), str(index.fingerprint), rows)
    assert [row.target_start for row in rows[1:]] == [row.target_end for row in rows[:-1]]
    assert rows[-1].target_end == directory_offset(path)
    assert rows[1] == IndexRow(
        "1.txt", "/scratch/\udcff", 10, 11, rows[0].target_end or 0, rows[1].target_end, None, 1, 1, 0,
        zlib.crc32(b"x"), -5, 0o100755, "node17", "node17-42-1a2b", 2, metadata,
    )  # fmt: skip
    assert rows[0].mtime_ns == 1_700_000_000_123_456_789
    assert index.find_origins([("node17", "node17-42-1a2b", 2)]) == {("node17", "node17-42-1a2b", 2): rows[1]}
    assert (rows[2].sequence, rows[2].source_end) == ((1 << 63) - 1,) * 2


def test_a_foreign_member_without_local_header_has_a_row(layout: Layout) -> None:
    path = layout.archive("b.zip")
    path.parent.mkdir(parents=True)
    overwrite(write_zip(path, {"a.txt": b"a" * 100, "b.txt": b"b" * 100}), 0, b"XXXX")
    with open_committed(path) as archive:
        rows = list(rows_of(archive))
    assert [(row.name, row.target_end is None) for row in rows] == [("a.txt", True), ("b.txt", False)]


def test_a_private_file_needs_no_locks(tmp_path: Path) -> None:
    """Folders for temporary files may lie on file systems that have none; here somebody else holds the lock."""
    path = tmp_path / "new.sqlite"
    program = (
        "import fcntl, sys; f = open(sys.argv[1], 'wb'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        with rear.index.segment_writer.SegmentWriter(path):
            pass
        holder.communicate(b"\n")
    assert path.stat().st_size
