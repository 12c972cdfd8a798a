"""Files that are flushed before they are closed: what was flushed survives whatever happens to the writer."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fixtures
import pytest
from bases import check_archive, files_below, found_in, of_kind, put, scavenge, unfinished_graves, write
from faults import (
    ERRORS,
    SEED,
    Failing,
    Point,
    Tampered,
    after,
    dying_at,
    fork,
    in_child,
    is_anything,
    is_growing,
    refused,
    some,
    wait,
    while_in_trouble,
)
from power_loss import Powered, run_until
from programs import in_threads, wait_for

import rear
from rear.core.layout import Layout
from rear.core.records import Origin
from rear.core.storage import LOCAL, Storage
from rear.errors import RearError
from rear.events import LeftAlone, Lost, Partial, Torn
from rear.fsck.base import fsck
from rear.index.index import Index
from rear.journal.codec import encode_line
from rear.journal.reader import read_journal
from rear.read.view import open_committed
from rear.worker.flushed_file import PART_LIMIT_BYTES
from rear.zip.codecs import DEFLATED, STORED, STREAM_ENDS, ZSTANDARD, PartCompressor, decode

_random = random.Random(SEED)
LINES = [f"{number} a line of a log, {_random.random()}\n".encode() for number in range(8)]
#: What the flushed files hold, state by state: after each flush, and after the end.
GROWING = [b"".join(LINES[: number + 1]) for number in range(len(LINES))]
CHANGED = [
    b"head: ....\n",
    b"head: ....\n" + LINES[0],
    b"head: done\n" + LINES[0],
    b"head: done\n" + LINES[0] + LINES[1],
]
STATES = {"ar.zip/growing.log": GROWING, "sub/b.zip/changed.bin": CHANGED}
PLAIN = {"ar.zip/plain-1": b"before\n" * 40, "ar.zip/plain-2": b"after\n" * 40}


def work(folder: Path, storage: Storage = LOCAL, *, sync: str = "interval", base: Path | None = None) -> None:
    """Write files of all kinds, and note each state as soon as it is acknowledged."""
    log = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(target: str, state: int) -> None:
        os.write(log, f"{target} {state}\n".encode())

    with rear.rear_fs(base or folder / "base", sync=sync, sync_interval=0.02, spool_size=500, storage=storage) as fs:
        write_plain(fs, "ar.zip/plain-1", note)
        with fs.open("ar.zip/growing.log", "wb") as file:
            for state, line in enumerate(LINES[:-1]):
                file.write(line)
                file.flush()
                note("ar.zip/growing.log", state)
            file.write(LINES[-1])
        note("ar.zip/growing.log", len(LINES) - 1)
        try:
            with fs.open("ar.zip/dropped.log", "wb") as file:
                file.write(b"flushed, and not wanted\n")
                file.flush()
                raise KeyError
        except KeyError:
            note("ar.zip/dropped.log", 0)
        with fs.open("sub/b.zip/changed.bin", "w+b") as file:
            file.write(CHANGED[0])
            file.flush()
            note("sub/b.zip/changed.bin", 0)
            file.write(LINES[0])
            file.flush()
            note("sub/b.zip/changed.bin", 1)
            file.seek(6)
            file.write(b"done")
            file.flush()
            note("sub/b.zip/changed.bin", 2)
            file.seek(0, os.SEEK_END)
            file.write(LINES[1])
        note("sub/b.zip/changed.bin", 3)
        write_plain(fs, "ar.zip/plain-2", note)


def write_plain(fs: rear.RearFs, target: str, note: Callable[[str, int], None]) -> None:
    put(fs, target, PLAIN[target])
    note(target, 0)


folder = fixtures.scratch_work


@pytest.fixture
def base(folder: Path) -> Path:
    return folder / "base"


def renew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def acknowledged(folder: Path) -> dict[str, int]:
    log = folder / "acknowledged"
    lines = log.read_text().splitlines() if log.exists() else []
    return {line.split()[0]: int(line.split()[1]) for line in lines}


def check(folder: Path, base: Path | None = None, *, lost: bool = False) -> None:
    """Scavenge, and assert that each file is there once, in its last acknowledged state or the one that was to come."""
    base = base or folder / "base"
    told = acknowledged(folder)
    if not (base / ".rear").exists():
        assert not told
        return
    events = scavenge(base)
    if not lost:
        assert not of_kind(events, Lost), events
    left = [event for event in events if isinstance(event, LeftAlone) and "no first record" not in event.reason]
    assert not left
    found = found_in(base)
    assert found.keys() <= STATES.keys() | PLAIN.keys() | ({"ar.zip/dropped.log"} - told.keys())
    for target, states in (STATES | {target: [data] for target, data in PLAIN.items()}).items():
        last = told.get(target)
        allowed = states[:1] if last is None else states[last : last + 2]
        assert target in found or last is None, f"{target} is lost"
        assert target not in found or found[target] in allowed, f"{target} {found[target]!r} in state {last}"
    layout = Layout(base)
    for rest in (layout.claims, layout.intents):
        assert files_below(rest) == []
    assert unfinished_graves(base) == []


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sync", ["file", "interval"])
def test_a_writer_is_killed_at_every_operation(folder: Path, sync: str) -> None:
    renew(folder)
    storage = Tampered()
    work(folder, storage, sync=sync)
    check(folder)
    assert found_in(folder / "base") == PLAIN | {target: states[-1] for target, states in STATES.items()}
    count = 0
    for point in some(storage.points, 36):
        renew(folder)
        count += in_child(lambda point=point: work(folder, dying_at(point), sync=sync)) == -signal.SIGKILL
        with after(f"killed at {point}"):
            check(folder)
    assert count > 25


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_the_power_goes_at_every_operation(folder: Path) -> None:
    disk, left = folder / "disk", folder / "left"
    renew(folder)
    disk.mkdir()
    storage = Powered(disk)
    work(folder, storage, sync="file", base=disk / "base")
    for point in some(storage.points, 16):
        for seed in range(2):
            renew(folder)
            disk.mkdir()
            run_until(point, disk, left, lambda storage: work(folder, storage, sync="file", base=disk / "base"), seed)
            with after(f"power lost at {point}, seed {seed}"):
                check(folder, left / "base", lost=True)


def work_in_trouble(folder: Path, storage: Failing, sync: str) -> None:
    """Write a file, and go on whatever fails; what is refused counts as not acknowledged."""
    told = -1
    fs = rear.rear_fs(folder / "base", sync=sync, sync_interval=0.005, storage=storage)
    file = fs.open("ar.zip/growing.log", "wb")
    for state, line in enumerate(LINES):
        file.write(line)
        try:
            if state == len(LINES) - 1:
                storage.healthy = True
                file.flush()
                storage.healthy = False
                told = state
                file.close()
            else:
                file.flush()
            told = state
        except OSError as error:
            assert refused(error), error  # noqa: PT017
            assert str(folder / "base" / "ar.zip") in str(error)  # noqa: PT017
    storage.healthy = True
    # By its own account no longer open, and what was flushed is kept.
    assert told == len(LINES) - 1
    fs.close()
    (folder / "acknowledged").write_text(f"ar.zip/growing.log {told}\n")


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sync", ["file", "interval"])
@pytest.mark.parametrize(("length", "kind"), [(1, is_anything), (4, is_anything), (40, is_growing)])
def test_a_writer_fails_at_every_operation(
    folder: Path, sync: str, length: int, kind: Callable[[Point, str], bool]
) -> None:
    renew(folder)
    storage = Failing(errno.EIO, lambda point, path: False)
    work_in_trouble(folder, storage, sync)
    for point, error in zip(some(storage.points, 14), itertools.cycle(ERRORS)):
        renew(folder)
        failing = Failing(error, while_in_trouble(point, kind, length))
        with after(f"{errno.errorcode[error]} from {point} on"):
            assert in_child(lambda failing=failing: work_in_trouble(folder, failing, sync)) == 0
            check(folder)


def leave_behind(base: Path, name: str = "growing.log", *, states: list[bytes] = GROWING, **options: Any) -> None:
    """Flush a file, and die with more of it written."""

    def write() -> None:
        fs = rear.rear_fs(base, **options)
        file = fs.open(f"ar.zip/{name}", "wb", metadata={"run": 7})
        done = 0
        for state in states:
            file.write(state[done:])
            file.flush()
            done = len(state)
        file.write(b"never flushed")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write) == -signal.SIGKILL


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("partial", ["keep", "drop"])
def test_a_scavenger_is_killed_at_every_operation(folder: Path, base: Path, partial: str) -> None:
    renew(folder)
    template = folder / "template"
    leave_behind(template)
    shutil.copytree(template, base)
    storage = Tampered()
    scavenge(base, storage=storage, partial=partial)
    for point in some(storage.points, 14):
        shutil.rmtree(base)
        shutil.copytree(template, base)
        assert in_child(lambda point=point: scavenge(base, storage=dying_at(point), partial=partial)) == -signal.SIGKILL
        scavenge(base, partial=partial)
        kept = {path.name: path.read_bytes() for path in base.rglob("*.partial")}
        if partial == "keep":
            assert found_in(base) == {"ar.zip/growing.log": GROWING[-1]}, point
            assert not kept
        else:
            assert found_in(base) == {}
            assert list(kept.values()) == [GROWING[-1]], point
        assert files_below(Layout(base).inbox) == files_below(Layout(base).claims) == []


def only_origin(base: Path) -> Origin:
    with open_committed(base / "ar.zip") as archive:
        (entry,) = archive.entries()
        origin = archive.origin(entry)
    assert origin is not None
    return origin


def partials(base: Path, **options: Any) -> list[Partial]:
    return of_kind(scavenge(base, **options), Partial)


@pytest.mark.parametrize("compression", ["deflate", "stored", "zstd"])
def test_a_killed_writer_leaves_a_partial_member(base: Path, compression: str) -> None:
    leave_behind(base, compression=compression)
    (event,) = partials(base)
    assert (event.archive, event.name, event.size_bytes) == ("ar.zip", "growing.log", len(GROWING[-1]))
    origin = only_origin(base)
    assert origin.metadata == {"run": 7, "rear.partial": True}
    row = Index.open(Layout(base), "ar.zip").find(["growing.log"])["growing.log"]
    assert row.metadata == {"run": 7, "rear.partial": True}
    assert (row.source_start, row.source_end, row.size) == (0, len(GROWING[-1]), len(GROWING[-1]))
    report = json.loads(next((base / ".rear" / "reports").glob("*.json")).read_text())
    assert [finding["kind"] for finding in report["findings"]] == ["partial"]
    if compression != "zstd":
        assert found_in(base) == {"ar.zip/growing.log": GROWING[-1]}
        listed = subprocess.run(["unzip", "-p", base / "ar.zip", "growing.log"], capture_output=True, check=True)
        assert listed.stdout == GROWING[-1]
    assert files_below(Layout(base).lost_and_found) == []
    # It is said once, and nothing is left to do.
    assert scavenge(base)[-1].as_json()["members"] == 0
    assert not [event for event in fsck(base, deep=True) if event.severity != "info"]


def test_a_partial_member_is_dropped_to_lost_and_found(base: Path) -> None:
    leave_behind(base)
    (event,) = partials(base, partial="drop")
    assert event.lost_and_found.endswith("growing.log.partial")
    assert (base / event.lost_and_found).read_bytes() == GROWING[-1]
    assert not (base / "ar.zip").exists()


@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_a_closed_file_is_a_member_like_others(base: Path, compression: str) -> None:
    with rear.rear_fs(base, compression=compression) as fs, fs.open("ar.zip/a.log", "wb", metadata={"run": 7}) as file:
        for line in LINES:
            file.write(line)
            file.flush()
    events = scavenge(base, verify=True)
    assert {event.severity for event in events} == {"info"}
    origin = only_origin(base)
    assert origin.metadata == {"run": 7}
    assert found_in(base) == {"ar.zip/a.log": GROWING[-1]}


def test_a_file_is_journaled_as_parts(base: Path) -> None:
    with rear.rear_fs(base) as fs, fs.open("ar.zip/a.log", "w") as file:
        file.flush()
        assert not (base / ".rear").exists(), "nothing was written yet"
        file.write("one\n")
        file.tell()
        assert not (base / ".rear").exists(), "nobody asked for a flush"
        file.flush()
        file.flush()
        file.write("two\n")
        print("three", file=file, flush=True)
        (path,) = (base / ".rear" / "inbox").glob("*/*.journal")
        lines = [json.loads(line[9:]) for line in path.read_bytes().splitlines()]
        assert [line["kind"] for line in lines] == ["open", "file", "part", "part"]
        assert [(line["source_start"], line["source_end"]) for line in lines[2:]] == [(0, 4), (4, 14)]
        assert lines[3]["offset"] == lines[2]["offset"] + lines[2]["length"]
        journal = read_journal(path)
        (pending,) = journal.pending()
        assert pending is journal.flushed
        assert (pending.name, pending.size) == ("a.log", 14)
        # A live writer is left alone, also by who asks for temp archives to be ended.
        before = time.monotonic()
        (left,) = of_kind(scavenge(base, flush=True), LeftAlone)
        assert "has not closed the file" in left.reason
        assert time.monotonic() - before < 10
    assert not partials(base)
    assert found_in(base) == {"ar.zip/a.log": b"one\ntwo\nthree\n"}


def test_text_that_is_only_closed_has_no_pair_of_its_own(base: Path) -> None:
    with rear.rear_fs(base) as fs:
        for number in range(3):
            with fs.open(f"ar.zip/{number}", "w") as file:
                file.write("text")
                file.tell()
                file.seek(0)
                file.truncate(2)
        assert len(list((base / ".rear" / "inbox").glob("*/*.journal"))) == 1


def test_a_file_that_is_given_up_is_dropped_with_its_parts(base: Path) -> None:
    with rear.rear_fs(base) as fs:
        file = fs.open("ar.zip/a.log", "wb")
        file.write(b"flushed")
        file.flush()
        with pytest.raises(KeyError), file:
            raise KeyError
        assert files_below(base / ".rear" / "inbox") == []
    assert not partials(base)
    assert not (base / "ar.zip").exists()


@pytest.mark.parametrize("spool_size", [0, 1 << 20])
def test_what_was_flushed_can_be_changed_and_cut(base: Path, spool_size: int) -> None:
    data = _random.randbytes(3000)
    with rear.rear_fs(base, spool_size=spool_size) as fs, fs.open("ar.zip/a", "w+b") as file:
        expected = io.BytesIO()
        for one in (file, expected):
            one.write(data)
            one.flush()
            one.seek(100)
            assert one.read(10) == data[100:110]
            one.seek(0, os.SEEK_END)
            one.write(b"more")
            one.flush()
        assert len(list((base / ".rear" / "inbox").glob("*/*.journal"))) == 1, "reading changes nothing"
        for one in (file, expected):
            one.seek(2000)
            one.write(b"changed")
            one.truncate()
            one.flush()
            one.seek(10)
            one.write(b"at the start")
        assert len(list((base / ".rear" / "inbox").glob("*/*.journal"))) == 1
    assert not partials(base)
    assert found_in(base) == {"ar.zip/a": expected.getvalue()}


def test_a_file_that_is_emptied_at_last(base: Path) -> None:
    with rear.rear_fs(base) as fs, fs.open("ar.zip/a", "wb") as file:
        file.write(b"flushed")
        file.flush()
        file.truncate(0)
        file.flush()
    assert not partials(base)
    assert found_in(base) == {"ar.zip/a": b""}


def test_many_small_parts_and_large_ones(base: Path) -> None:
    block = _random.randbytes(1 << 20) + bytes(1 << 20)
    large = block * 3 + b"end"
    assert len(large) > PART_LIMIT_BYTES
    leave_behind(base, "large", states=[large, large + b"more"], spool_size=1 << 20)

    def write() -> None:
        fs = rear.rear_fs(base)
        file = fs.open("ar.zip/small", "w")
        for number in range(20_000):
            file.write(f"{number}\n")
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write) == -signal.SIGKILL
    assert len(partials(base)) == 2
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert archive.read("small") == "".join(f"{number}\n" for number in range(20_000)).encode()
        assert archive.read("large") == large + b"more"


def damaged(base: Path, change: Callable[[bytearray], None], suffix: str = ".zip") -> None:
    (path,) = (base / ".rear" / "inbox").glob(f"*/*{suffix}")
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def part_records(base: Path) -> list[dict[str, Any]]:
    (path,) = (base / ".rear" / "inbox").glob("*/*.journal")
    records = [json.loads(line[9:]) for line in path.read_bytes().splitlines()]
    return [record for record in records if record["kind"] == "part"]


@pytest.mark.parametrize("compression", ["deflate", "stored", "zstd"])
@pytest.mark.parametrize("bad", [0, 3, 7])
def test_what_follows_a_damaged_part_goes_to_lost_and_found(base: Path, compression: str, bad: int) -> None:
    leave_behind(base, compression=compression)
    part = part_records(base)[bad]

    def damage(data: bytearray) -> None:
        middle = part["offset"] + part["length"] // 2
        data[middle : middle + 4] = bytes(byte ^ 0x55 for byte in data[middle : middle + 4])

    damaged(base, damage)
    events = scavenge(base)
    (finding,) = of_kind(events, Torn, Lost)
    # The last flush of a process that died was not acknowledged; before it, something was.
    assert isinstance(finding, Torn if bad == 7 else Lost)
    assert (base / finding.lost_and_found).exists()
    kept = [event.size_bytes for event in events if isinstance(event, Partial)]
    assert kept == ([len(GROWING[bad - 1])] if bad else [])
    if bad:
        with open_committed(base / "ar.zip") as archive:
            (entry,) = archive.entries()
            assert b"".join(archive.read(entry)) == GROWING[bad - 1]


def test_damaged_records_of_parts_cost_nothing(base: Path) -> None:
    leave_behind(base)

    def damage(data: bytearray) -> None:
        at = data.index(b'"source_start":%d' % part["source_start"])
        data[at : at + 5] = b"xxxxx"

    part = part_records(base)[3]
    damaged(base, damage, ".journal")
    assert len(partials(base)) == 1
    assert found_in(base) == {"ar.zip/growing.log": GROWING[-1]}


@pytest.mark.parametrize("compression", ["deflate", "stored"])
@pytest.mark.parametrize("damaged_lines", [None, [0], [1], [0, 1], [0, 1, 4, 9]])
@pytest.mark.parametrize("torn", [False, True])
def test_the_local_header_and_the_stream_tell_what_the_journal_does_not(
    base: Path, compression: str, damaged_lines: list[int] | None, torn: bool
) -> None:
    leave_behind(base, compression=compression)
    (path,) = (base / ".rear" / "inbox").glob("*/*.journal")
    last = part_records(base)[-1]
    if damaged_lines is None:
        path.unlink()
    else:
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(b"x" + line[1:] if at in damaged_lines else line for at, line in enumerate(lines)))
    if torn:
        (temp_archive,) = (base / ".rear" / "inbox").glob("*/*.zip")
        os.truncate(temp_archive, last["offset"] + last["length"] // 2)
    (event,) = partials(base)
    whole = GROWING[-1]
    if torn:
        # Where nothing but stored bytes is left, nobody can tell where a part ends.
        is_told = compression == "deflate" or (damaged_lines is not None and 9 not in damaged_lines)
        whole = GROWING[-2] if is_told else whole[: len(GROWING[-2]) + last["length"] // 2]
    assert event.name == "growing.log"
    assert found_in(base) == {"ar.zip/growing.log": whole}
    origin = only_origin(base)
    assert origin.metadata == {"run": 7, "rear.partial": True}
    assert abs(origin.mtime_ns / 1e9 - time.time()) < 100
    assert files_below(base / ".rear" / "inbox") == []


@pytest.mark.parametrize("verify", [False, True])
def test_marks_in_the_content_end_no_part(base: Path, verify: bool) -> None:
    """Noise is stored in blocks, so what looks like the end of a part may be content; journal and tail are lost."""
    noise = random.Random(SEED)
    first = b"header line of text\n" * 500
    second = first + b"".join(noise.randbytes(300) + b"\0\0\xff\xff" for _ in range(10))
    leave_behind(base, "a.bin", states=[first, second])
    (temp_archive,) = (base / ".rear/inbox").glob("*/*.zip")
    temp_archive.with_suffix(".journal").unlink()
    os.truncate(temp_archive, temp_archive.stat().st_size - 700)
    write(base, {"ar.zip/good.txt": "closed\n"})
    events = scavenge(base, verify=verify)
    found = found_in(base)
    assert found["ar.zip/good.txt"] == b"closed\n"
    assert found["ar.zip/a.bin"] == first
    check_archive(base / "ar.zip")
    # What stood behind it is told of, and kept.
    assert [event.name for event in events if isinstance(event, Torn)] == ["a.bin"]
    assert any(name.endswith(".part") for name in files_below(Layout(base).lost_and_found))


def test_the_temp_archive_of_a_flushed_file_is_gone(base: Path) -> None:
    leave_behind(base)
    (path,) = (base / ".rear" / "inbox").glob("*/*.zip")
    path.unlink()
    (lost,) = of_kind(scavenge(base), Lost)
    assert lost.name == "growing.log"
    assert (base / lost.lost_and_found).exists()
    assert files_below(base / ".rear" / "inbox") == []


def test_forged_records_of_parts_harm_nobody(base: Path) -> None:
    leave_behind(base)
    (path,) = (base / ".rear" / "inbox").glob("*/*.journal")
    lines = [json.loads(line[9:]) for line in path.read_bytes().splitlines()]
    forged = [
        {"archive": "../out.zip"}, {"archive": ".rear/x.zip"}, {"name": "../../out"}, {"method": 12},
        {"offset": 1 << 62}, {"offset": 0}, {"repeated_size": 1 << 62}, {"first_sequence": 0},
        {"metadata": {"rear.partial": False}},
    ]  # fmt: skip
    before = {path: path.read_bytes() for path in (base / ".rear" / "inbox").glob("*/*")}
    for change in forged:
        shutil.rmtree(base)
        path.parent.mkdir(parents=True)
        for each, data in before.items():
            each.write_bytes(data)
        path.write_bytes(
            b"".join(encode_line({**line, **change} if line["kind"] == "file" else line) for line in lines)
        )
        for part_change in ({}, {"length": 1 << 62}, {"source_end": 1 << 62}, {"offset": 1}):
            path.write_bytes(path.read_bytes() + (encode_line({**lines[-1], **part_change}) if part_change else b""))
        events = scavenge(base)
        assert not list(base.parent.rglob("out*"))
        assert not (base / ".rear" / "x.zip").exists()
        # Whatever it is taken for, its bytes are somewhere, and it is told.
        kept = [path for path in base.rglob("*") if path.is_file() and LINES[0] in path.read_bytes()]
        left = files_below(base / ".rear" / "inbox") + files_below(Layout(base).lost_and_found)
        assert kept or left or (base / "ar.zip").exists(), change
        assert [event for event in events if event.severity != "info"], change


@pytest.mark.parametrize("members_a_round", [100_000, 1])
def test_of_a_file_in_two_pairs_the_later_counts_once_it_has_all(
    base: Path, folder: Path, members_a_round: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pair fails, and cannot even be removed; its writer dies soon after."""
    monkeypatch.setattr("rear.scavenger.scavenge.MEMBERS_A_ROUND", members_a_round)

    def write(until: str) -> None:
        failing = Failing(errno.EIO, lambda point, path: False)
        fs = rear.rear_fs(base, storage=failing)
        file = fs.open("ar.zip/a.log", "wb")
        file.write(GROWING[3])
        file.flush()
        (first,) = (base / ".rear" / "inbox").glob("*/*.zip")

        def when(point: Point, path: str) -> bool:
            is_second = "-1." in os.path.basename(path)
            if is_second and until == point.operation and path.endswith(".zip"):
                os.kill(os.getpid(), signal.SIGKILL)
            return not is_second and path.startswith(f"{first.parent}/")

        failing.when = when
        file.write(GROWING[4][len(GROWING[3]) :])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    for until, expected in (("never", GROWING[4]), ("write", GROWING[3]), ("sync", GROWING[4])):
        renew(folder)
        assert in_child(lambda until=until: write(until)) == -signal.SIGKILL
        assert len(list((base / ".rear" / "inbox").glob("*/*.journal"))) == 2
        assert len(partials(base)) == 1, until
        assert found_in(base) == {"ar.zip/a.log": expected}, until
        assert files_below(base / ".rear" / "inbox") == []


@pytest.mark.parametrize(
    ("end", "policy"),
    [("close", "rename"), ("close", "first"), ("kill", "rename"), ("kill", "first"), ("kill", "last"),
     ("lose half", "rename"), ("lose all", "rename"), ("lose all", "last")],
)  # fmt: skip
@pytest.mark.parametrize("is_merged", [False, True])
def test_a_writer_that_was_taken_for_dead_loses_nothing(base: Path, is_merged: bool, policy: str, end: str) -> None:
    """Its pair is taken while it is stopped; what it flushes and closes afterwards is there as a whole, in one member,
    also when it is killed then, or what was not synced is lost with the power.
    """
    ready, go = os.pipe(), os.pipe()

    def write() -> None:
        fs = rear.rear_fs(base, lease_seconds=0.4)
        file = fs.open("ar.zip/a.log", "wb")
        file.write(GROWING[2])
        file.flush()
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        file.write(GROWING[-1][len(GROWING[2]) :])
        file.flush()
        if end == "lose half":
            # Its last flush is not on the disk.
            file.write(b"more")
            file.flush()
        if end != "close":
            os.kill(os.getpid(), signal.SIGKILL)
        file.close()
        fs.close()

    pid = fork(write)
    os.read(ready[0], 1)
    os.kill(pid, signal.SIGSTOP)
    # As a scavenger on another host does that dies soon after.
    for path in list((base / ".rear" / "inbox").glob("*/*")):
        taken = base / ".rear" / "claims" / "another-1-0123456789ab" / path.parent.name
        taken.mkdir(parents=True, exist_ok=True)
        path.rename(taken / path.name)
    if is_merged:
        assert [event.size_bytes for event in partials(base)] == [len(GROWING[2])]
    time.sleep(0.5)
    os.kill(pid, signal.SIGCONT)
    os.write(go[1], b"x")
    assert wait(pid) == (0 if end == "close" else -signal.SIGKILL)
    for path in (base / ".rear" / "inbox").glob("*/*.zip"):
        if end.startswith("lose"):
            header = read_journal(path.with_suffix(".journal")).file.offset
            keep = path.stat().st_size - 3 if end == "lose half" else header + 40
            os.truncate(path, keep)
    is_told = end in ("kill", "lose half") or (end == "lose all" and not is_merged)
    assert len(partials(base, on_conflict=policy)) == is_told
    # The part that found no pair any more may have been written to the one that was taken.
    states = [GROWING[-1]] if end != "lose all" else [GROWING[2]] if is_merged else [GROWING[2], GROWING[-1]]
    assert found_in(base) in [{"ar.zip/a.log": state} for state in states]
    assert ("rear.partial" in (only_origin(base).metadata or {})) == (end != "close")
    assert [event for event in fsck(base, deep=True) if event.severity != "info"] == []
    partials(base)
    assert len(found_in(base)) == 1


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_a_scavenger_is_killed_while_a_partial_member_gives_way(folder: Path, base: Path) -> None:
    """The whole file comes when what was flushed of it is merged: one member at last, wherever the scavenger dies."""
    renew(folder)
    template, ready, go = folder / "template", os.pipe(), os.pipe()

    def write() -> None:
        with rear.rear_fs(template, lease_seconds=0.3) as fs, fs.open("ar.zip/a.log", "wb") as file:
            file.write(GROWING[2])
            file.flush()
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            file.write(GROWING[-1][len(GROWING[2]) :])

    pid = fork(write)
    os.read(ready[0], 1)
    os.kill(pid, signal.SIGSTOP)

    def has_come() -> bool:
        scavenge(template)
        return (template / "ar.zip").exists()

    wait_for(has_come)
    assert found_in(template) == {"ar.zip/a.log": GROWING[2]}
    os.kill(pid, signal.SIGCONT)
    os.write(go[1], b"x")
    assert wait(pid) == 0
    shutil.copytree(template, base)
    storage = Tampered()
    scavenge(base, storage=storage)
    assert found_in(base) == {"ar.zip/a.log": GROWING[-1]}
    for point in some(storage.points, 20):
        shutil.rmtree(base)
        shutil.copytree(template, base)
        assert in_child(lambda point=point: scavenge(base, storage=dying_at(point))) == -signal.SIGKILL
        scavenge(base)
        assert found_in(base) == {"ar.zip/a.log": GROWING[-1]}, point
        assert files_below(base / ".rear" / "inbox") == files_below(base / ".rear" / "claims") == [], point


def test_a_log_whose_writer_is_stopped_twice_and_then_killed_is_one_member(base: Path) -> None:
    """Scavengers take what it flushed each time, as its lease has ended; what comes after that joins it."""
    ready, go = os.pipe(), os.pipe()
    pieces = [one[len(before) :] for before, one in itertools.pairwise([b"", *GROWING])][:6]

    def write() -> None:
        fs = rear.rear_fs(base, lease_seconds=0.3, sync_interval=0.05)
        file = fs.open("ar.zip/a.log", "wb")
        for piece in pieces:
            file.write(piece)
            file.flush()
            os.write(ready[1], b"x")
            os.read(go[0], 1)

    pid = fork(write)
    for number in range(len(pieces)):
        os.read(ready[0], 1)
        if number in (1, 3):
            os.kill(pid, signal.SIGSTOP)
            expected = b"".join(pieces[: number + 1])

            def has_come(expected: bytes = expected) -> bool:
                scavenge(base)
                return (base / "ar.zip").exists() and found_in(base) == {"ar.zip/a.log": expected}

            wait_for(has_come)
            os.kill(pid, signal.SIGCONT)
        if number < len(pieces) - 1:
            os.write(go[1], b"x")
    os.kill(pid, signal.SIGKILL)
    assert wait(pid) == -signal.SIGKILL
    scavenge(base)
    assert found_in(base) == {"ar.zip/a.log": b"".join(pieces)}
    assert files_below(base / ".rear" / "inbox") == files_below(base / ".rear" / "lost+found") == []


@pytest.mark.crash
def test_ctrl_c_at_every_operation_of_a_flush(folder: Path, base: Path) -> None:
    """What interrupts a flush leaves a file that can be flushed, and closed, again."""

    def write(storage: Tampered, wanted: Point | None = None) -> None:
        fs = rear.rear_fs(base, storage=storage, sync_interval=3600)
        file = fs.open("ar.zip/growing.log", "wb")
        for state in range(4):
            file.write(LINES[state])
            for _ in range(2):
                try:
                    file.flush()
                    break
                except KeyboardInterrupt:
                    continue
            (folder / "acknowledged").write_text(f"ar.zip/growing.log {state}\n")
        if wanted is not None and wanted.number % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        file.write(b"".join(LINES[4:]))
        try:
            file.close()
        except KeyboardInterrupt:
            assert file.closed
        else:
            (folder / "acknowledged").write_text(f"ar.zip/growing.log {len(LINES) - 1}\n")
        fs.close()

    renew(folder)
    storage = Tampered()
    write(storage)
    check(folder)
    for point in some(storage.points, 20):
        renew(folder)
        done = []

        def act(found: Point, path: str, point: Point = point, done: list[int] = done) -> None:
            if found[::2] == point[::2] and not done and threading.current_thread() is threading.main_thread():
                done.append(1)
                raise KeyboardInterrupt

        assert in_child(lambda point=point, act=act: write(Tampered(act), point)) in (0, -signal.SIGKILL)
        events = scavenge(base)
        assert not of_kind(events, Lost), point
        found = found_in(base)["ar.zip/growing.log"]
        last = acknowledged(folder)["ar.zip/growing.log"]
        assert GROWING[-1].startswith(found), point
        assert len(found) >= len(GROWING[last]), point


def test_a_signal_handler_in_the_middle_of_a_flush_is_told(base: Path) -> None:
    told: list[RearError] = []

    def act(point: Point, path: str) -> None:
        if point.half and not told:
            with pytest.raises(RearError, match="interrupted a flush") as error:
                file.flush()
            told.append(error.value)

    with rear.rear_fs(base, storage=Tampered(act)) as fs, fs.open("ar.zip/a.log", "wb") as file:
        file.write(b"flushed")
        file.flush()
        assert told
    assert found_in_after(base) == {"ar.zip/a.log": b"flushed"}


def test_a_live_writer_beats_and_syncs_in_the_background(base: Path) -> None:
    storage = Tampered()
    with rear.rear_fs(base, lease_seconds=0.4, sync_interval=0.05, storage=storage) as fs:
        file = fs.open("ar.zip/a.log", "wb")
        file.write(b"flushed")
        file.flush()
        begun = len(storage.points)
        (path,) = (base / ".rear" / "inbox").glob("*/*.journal")
        wait_for(lambda: read_journal(path).beats >= 3)
        assert [point for point in storage.points[begun:] if point.operation == "sync"]
        fs.sync()
        file.close()
    assert found_in_after(base) == {"ar.zip/a.log": b"flushed"}


def found_in_after(base: Path) -> dict[str, bytes]:
    scavenge(base)
    return found_in(base)


def test_threads_flush_one_file_and_a_child_of_fork_none(base: Path) -> None:
    with rear.rear_fs(base) as fs:
        file = fs.open("ar.zip/a.log", "wb")

        def write(number: int) -> None:
            for line in range(50):
                file.write(f"{number} {line}\n".encode())
                file.flush()

        in_threads(write, range(4))

        def child() -> None:
            with pytest.raises(RearError, match="belongs to the parent"):
                file.flush()
            with fs.open("ar.zip/child.log", "wb") as own:
                own.write(b"of the child")
                own.flush()
            fs.close()

        assert in_child(child) == 0
        file.close()
    found = found_in_after(base)
    lines = sorted(f"{number} {line}" for number in range(4) for line in range(50))
    assert sorted(found["ar.zip/a.log"].decode().splitlines()) == lines
    assert found["ar.zip/child.log"] == b"of the child"


@pytest.mark.parametrize("method", [STORED, DEFLATED, ZSTANDARD])
def test_parts_of_a_stream_decode_with_its_end(method: int) -> None:
    pieces = [b"x", b"some text " * 500, _random.randbytes(70_000), bytes(200_000)]
    compressor = PartCompressor(method)
    parts: list[bytes] = []
    for count, piece in enumerate(pieces, 1):
        parts.append(compressor.compress(piece))
        assert b"".join(decode(method, iter([*parts, STREAM_ENDS[method]]))) == b"".join(pieces[:count])


# ---- found by review


def test_each_flush_is_synced_within_the_interval(base: Path) -> None:
    synced = threading.Semaphore(0)

    class Counting(Storage):
        def sync(self, descriptor: int) -> None:
            super().sync(descriptor)
            synced.release()

    with rear.rear_fs(base, storage=Counting(), sync_interval=0.05) as fs, fs.open("ar.zip/a.log", "wb") as file:
        for number in range(3):
            while synced.acquire(blocking=False):
                pass
            file.write(b"line %d\n" % number)
            file.flush()
            # Without a word to it the background thread would sleep until the next beat, 15 s later.
            assert synced.acquire(timeout=5), number
            # Journal and temp archive.
            assert synced.acquire(timeout=5), number
            time.sleep(0.2)


def test_ctrl_c_while_changes_are_looked_for_forgets_none(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rear.worker.flushed_file.crc32

    def interrupted(*arguments: Any) -> int:
        monkeypatch.setattr("rear.worker.flushed_file.crc32", real)
        raise KeyboardInterrupt

    with (
        rear.rear_fs(base, success_only=False) as fs,
        contextlib.suppress(KeyboardInterrupt),
        fs.open("ar.zip/a", "wb") as file,
    ):
        file.write(b"OLDHEADER....")
        file.flush()
        file.seek(0)
        file.write(b"NEWHEADER")
        monkeypatch.setattr("rear.worker.flushed_file.crc32", interrupted)
        file.flush()
    assert found_in_after(base) == {"ar.zip/a": b"NEWHEADER...."}


def test_a_file_that_was_flushed_and_emptied_syncs(base: Path) -> None:
    with rear.rear_fs(base) as fs, fs.open("ar.zip/a", "wb") as file:
        file.write(bytes(100))
        file.flush()
        file.seek(0)
        file.truncate()
        file.flush()
        fs.sync()
        file.write(b"new")
    assert found_in_after(base) == {"ar.zip/a": b"new"}


def test_a_flush_counts_while_another_thread_asks_for_the_position(base: Path) -> None:
    """And after it, whichever of two such threads ends first, and though threads get the numbers of others."""
    with rear.rear_fs(base) as fs, fs.open("ar.zip/a", "w") as file:
        member: Any = file.buffer
        for number in range(1, 4):
            entered, may_leave = threading.Event(), threading.Event()

            def ask(entered: threading.Event = entered, may_leave: threading.Event = may_leave) -> None:
                member.quietly(lambda: (entered.set(), may_leave.wait(20)))

            file.write("kept")
            threads = [threading.Thread(target=ask) for _ in range(2)]
            for thread in threads:
                thread.start()
            assert entered.wait(20)
            file.flush()
            assert len(part_records(base)) == 2 * number - 1
            may_leave.set()
            in_threads(lambda _: file.tell(), range(8))
            for thread in threads:
                thread.join()
            file.write("too")
            file.flush()
            assert len(part_records(base)) == 2 * number


def test_nothing_is_logged_with_a_lock_held(base: Path) -> None:
    """A handler of that log may be waiting for the lock, with a lock of its own that logging waits for."""
    held: list[bool] = []
    failing = Failing(errno.EIO, lambda point, path: False)

    class Looking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            worker: Any = fs._worker
            held.append(worker._lock._is_owned() or any(parts._lock._is_owned() for parts in worker._flushed))

    logger, handler = logging.getLogger("rear"), Looking()
    logger.addHandler(handler)
    try:
        with rear.rear_fs(base, storage=failing, sync_interval=3600) as fs, fs.open("ar.zip/a", "wb") as file:
            file.write(b"flushed")
            file.flush()
            put(fs, "ar.zip/b", b"closed")
            bad = {"sync": 2}

            def when(point: Point, path: str) -> bool:
                if point.operation == "sync" and bad["sync"]:
                    bad["sync"] -= 1
                    return True
                return False

            failing.when = when
            # Both errors may meet the same call; what it could not do the next one does.
            with contextlib.suppress(OSError):
                fs.sync()
            failing.when = lambda point, path: False
            fs.sync()
    finally:
        logger.removeHandler(handler)
    assert held
    assert not any(held)
    assert found_in_after(base) == {"ar.zip/a": b"flushed", "ar.zip/b": b"closed"}


def test_a_failed_block_drops_no_file_that_was_flushed(base: Path) -> None:
    """A log that another thread writes, in a block of its own that has not ended."""
    with contextlib.suppress(ZeroDivisionError), rear.rear_fs(base) as fs:
        log, half, done = (fs.open(f"ar.zip/{name}", "w").__enter__() for name in ("log", "half", "done"))
        log.write("kept")
        log.flush()
        half.write("not asked for")
        done.close()
        raise ZeroDivisionError
    log.close()
    done.close()
    with pytest.raises(RearError, match="half was not archived"):
        half.close()
    scavenge(base)
    assert found_in(base) == {"ar.zip/log": b"kept", "ar.zip/done": b""}
