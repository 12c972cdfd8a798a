"""The model of bench/scalemodel.py against calls, bytes and segments of rear itself; nothing here is timed."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from checkout import ROOT
from faults import needs_strace

import rear
import rear.scavenger.scavenge
from bench import scale, scalemodel, scaletables
from bench.scalemodel import Calls, Jobs, Knobs, Scavenger
from bench.traces import to_server
from rear.core.layout import Layout
from rear.core.storage import Storage
from rear.events import Merged, RolledOver
from rear.index.index import Index, IndexRow
from rear.journal.reader import read_journal

NAME = "{run:04d}/{pair:06d}/{number:06d}.txt"
NAME_BYTES = len(NAME.format(run=0, pair=0, number=0))
SIZE_BYTES = 100

WORKERS = f"""
import os, sys, types
import rear
base, run, pairs, members, hosts, archives, live = sys.argv[1], *map(int, sys.argv[2:])
left = []
for pair in range(pairs + live):
    os.uname = lambda: types.SimpleNamespace(nodename=f"host{{pair % hosts}}")
    worker = rear.rear_fs(base, compression="stored", sync_interval=1e9, lease_seconds=1e9)
    worker.__enter__()
    for number in range(members):
        name = {NAME!r}.format(run=run, pair=pair, number=number)
        with rear.rear_open(f"ar{{pair % archives}}.zip/{{name}}", "wb") as file:
            file.write(bytes({SIZE_BYTES}))
    if pair < pairs:
        worker.__exit__(None, None, None)
    else:
        left.append(worker)
if live:
    __import__("os")._exit(0)
"""
ROTATIONS = """
import sys, time
import rear
with rear.rear_fs(sys.argv[1], compression="stored", sync_interval=1e9) as worker:
    for rotation in range(int(sys.argv[2])):
        with rear.rear_open(f"ar.zip/{rotation}", "wb") as file:
            file.write(b"x")
        worker._worker.roll_over("rotation")
        while worker._worker._pairs.rolling:
            time.sleep(0.01)
"""
BEATS = """
import sys, time
import rear
with rear.rear_fs(sys.argv[1], lease_seconds=0.4, sync_interval=1e9) as worker:
    with rear.rear_open("ar.zip/a", "wb") as file:
        file.write(b"x")
    pair = worker._worker._pairs.current
    while pair._beats < int(sys.argv[2]):
        time.sleep(0.01)
"""
SCAVENGE = "import sys, rear; list(rear.scavenge(sys.argv[1]))"

NAMING = ("open", "openat", "stat", "lstat", "newfstatat", "statx", "access", "readlink", "mkdir", "rename", "unlink",
          "unlinkat", "rmdir", "truncate", "ftruncate")  # fmt: skip


def write(
    base: Path, *, run: int = 0, pairs: int = 1, members: int = 1, hosts: int = 1, archives: int = 1, live: int = 0
) -> None:
    """Let real workers write; the live ones are never closed, and nobody can see whether hosts of these names live."""
    arguments = map(str, (base, run, pairs, members, hosts, archives, live))
    subprocess.run([sys.executable, "-c", WORKERS, *arguments], check=True, timeout=60, cwd=ROOT)


def traced(program: str, base: Path, *arguments: object) -> Calls:
    """Run a program and count its calls that concern the base, as the model does."""
    log = base.parent / "strace"
    command = ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", "trace=%file,close,ftruncate,fsync"]
    subprocess.run(
        [*command, sys.executable, "-c", program, str(base), *map(str, arguments)], check=True, timeout=60, cwd=ROOT
    )
    names = closes = syncs = 0
    for line in to_server(log.read_text(errors="replace").splitlines()):
        found = re.match(r"[0-9]+ +(\w+)\(", line)
        # fstat is newfstatat of a descriptor: answered by the client.
        if found is None or str(base) not in line or re.search(r'newfstatat\([0-9]+<[^>]*>, ""', line):
            continue
        names += found[1] in NAMING
        closes += found[1] == "close"
        syncs += found[1] == "fsync"
    return Calls(names, closes, syncs)


def assert_covers(model: Calls, counted: Calls, *, least: float = 0.7) -> None:
    """Rear calls at most a tenth more than the model says; when it has become much better, the model is renewed."""
    for name in Calls._fields:
        expected, found = getattr(model, name), getattr(counted, name)
        is_covered = least * expected - 1 <= found <= 1.1 * expected
        assert is_covered, f"{name}: {found} counted, {expected} in bench/scalemodel.py"


# ---- calls


@pytest.mark.parametrize(("program", "model"), [(ROTATIONS, scalemodel.ROTATION), (BEATS, scalemodel.BEAT)])
def test_calls_of_a_worker(tmp_path: Path, program: str, model: Calls) -> None:
    needs_strace()
    few, many = (traced(program, tmp_path / str(number), number) for number in (2, 12))
    slope = Calls(*((more - less) / 10 for less, more in zip(few, many, strict=True)))
    # Beats go on while the program looks how many there were; and on a busy machine a late one lists its folder.
    slack = Calls(0.4, 0.4, 0.4) if program is BEATS else Calls()
    assert_covers(scalemodel.total([model, slack]), slope, least=0.6)


@pytest.mark.parametrize(
    ("pairs", "hosts", "archives", "live"),
    [(1, 1, 1, 0), (12, 1, 1, 0), (12, 12, 1, 0), (12, 1, 12, 0), (2, 2, 1, 24), (24, 4, 3, 8)],
)
def test_calls_of_a_scavenge(tmp_path: Path, pairs: int, hosts: int, archives: int, live: int) -> None:
    needs_strace()
    base = tmp_path / "base"
    jobs = Jobs(hosts, 0, workers_a_host=1, archives=archives)
    model = Scavenger(jobs, Knobs(), scalemodel.LOCAL)
    for run in range(2):
        # The second time the archives exist, and the live pairs of the first are there as well.
        write(base, run=run, pairs=pairs, members=5, hosts=hosts, archives=archives, live=live)
        found = len(list((base / ".rear" / "inbox").glob("*/*.journal")))
        counted = traced(SCAVENGE, base)
        predicted = model.scavenge(begun_seconds=0, pairs=pairs, members=5 * pairs, live=found - pairs)
        # A base, and a scavenge that sees live pairs for the first time, makes some folders once.
        once = Calls(22, 12, 10) if run == 0 else Calls(4, 2, 2)
        assert_covers(scalemodel.total([predicted.calls, once]), counted, least=0.6)


def test_the_inbox_keeps_a_folder_for_each_host(tmp_path: Path) -> None:
    write(tmp_path, pairs=6, hosts=3)
    list(rear.scavenge(tmp_path))
    assert [len(list(folder.iterdir())) for folder in (tmp_path / ".rear" / "inbox").iterdir()] == [0, 0, 0]


# ---- bytes


class CopiedBytes(Storage):
    """Adds up what is copied from file to file."""

    def __init__(self) -> None:
        self.length = 0

    def copy_range(self, source: int, target: int, *, source_start: int, target_start: int, length: int) -> None:
        self.length += length
        super().copy_range(source, target, source_start=source_start, target_start=target_start, length=length)


def test_bytes_of_a_member(tmp_path: Path) -> None:
    write(tmp_path, members=2_000)
    (path,) = (tmp_path / ".rear" / "inbox").glob("*/*.journal")
    journal = read_journal(path)
    assert journal.closed is not None
    members_end = max(append.offset + append.length for append in journal.appends.values())
    list(rear.scavenge(tmp_path))
    (segment,) = (tmp_path / ".rear" / "index" / "ar0.zip").iterdir()
    counted = {
        scalemodel.JOURNAL_RECORD_BYTES: journal.length / 2_000 - NAME_BYTES,
        scalemodel.LOCAL_HEADER_BYTES: members_end / 2_000 - SIZE_BYTES - NAME_BYTES,
        scalemodel.DIRECTORY_ENTRY_BYTES: (journal.closed.length - members_end) / 2_000 - NAME_BYTES,
        scalemodel.INDEX_ROW_BYTES: segment.stat().st_size / 2_000 - 2 * NAME_BYTES,
    }
    for model, found in counted.items():
        # The longer ones hold names of host and worker, and numbers that grow.
        assert found == pytest.approx(model, abs=1 if model < 100 else 12)


def test_directory_bytes_that_merges_move(tmp_path: Path) -> None:
    members, merges = 150, 6
    model = scalemodel.Archive(Jobs(1, 0, size_bytes=SIZE_BYTES, name_bytes=NAME_BYTES))
    storage, others = CopiedBytes(), 0
    for run in range(merges):
        write(tmp_path, run=run, members=members)
        events = list(rear.scavenge(tmp_path, storage=storage))
        (newest,) = (tmp_path / ".rear" / "index" / "ar0.zip").iterdir()
        others += newest.stat().st_size + sum(event.size_bytes for event in events if isinstance(event, Merged))
        model.merge(members)
    new_entries = merges * members * (scalemodel.DIRECTORY_ENTRY_BYTES + NAME_BYTES)
    # The intent keeps the end record, too, and a directory that grows is never moved in one piece more than twice.
    assert storage.length - others + new_entries == model.directory_bytes_moved + 22 * (merges - 1)


# ---- what rear decides


def test_segments_of_an_index(tmp_path: Path) -> None:
    index, model = Index(Layout(tmp_path), "ar.zip"), scalemodel.Archive(Jobs(1, 0))
    sizes = random.Random(4).choices([10, 700, 3_000, 4_097, 9_000], k=25)
    for number, size in enumerate(sizes):
        rows = (
            IndexRow(f"{number}/{row}", None, None, None, 0, 1, None, 1, 1, 0, 0, None, None, None, None, None)
            for row in range(size)
        )
        assert index.publish(rows, f"{number}", previous=f"{number - 1}" if number else None)
        model.merge(size)
        assert [segment.members for segment in index.segments] == model.segments
    assert 1 < len(model.segments) < 8
    assert model.index_rows_taken_over < sum(sizes) * 4


@pytest.mark.parametrize(("members_a_round", "max_members"), [(40, None), (40, 60), (25, 35), (1_000, 7)])
def test_rounds_and_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members_a_round: int, max_members: int | None
) -> None:
    monkeypatch.setattr(rear.scavenger.scavenge, "MEMBERS_A_ROUND", members_a_round)
    monkeypatch.setattr(scalemodel, "MEMBERS_A_ROUND", members_a_round)
    write(tmp_path, pairs=20, members=5)
    events = list(rear.scavenge(tmp_path, max_members=max_members))
    model = Scavenger(Jobs(20, 0, workers_a_host=20), Knobs(max_members=max_members), scalemodel.LOCAL)
    model.scavenge(begun_seconds=0, pairs=20, members=100, live=0)
    assert model.archive.merges == sum(isinstance(event, Merged) for event in events)
    assert model.archive.full == sum(isinstance(event, RolledOver) for event in events)


# ---- the simulation

JOBS = Jobs(1_000, 10**7, files_a_second=0.5)


@pytest.mark.parametrize("knobs", [Knobs(), scaletables.TUNED, Knobs(rotation_span=1.0), Knobs(max_members=12_345)])
def test_all_is_merged_once(knobs: Knobs) -> None:
    outcome = scalemodel.simulate(JOBS, knobs)
    assert sum(one.members for one in outcome.scavenges) == JOBS.members
    assert outcome.archive.members + outcome.archive.full * (knobs.max_members or 0) == JOBS.members
    pairs = sum(one.pairs for one in outcome.scavenges)
    assert pairs == scalemodel.ended_pairs(JOBS, knobs, outcome.written_seconds)
    begins = [one.begun_seconds for one in outcome.scavenges]
    assert begins == sorted(begins)


def test_a_scavenger_that_costs_nothing_finds_one_span_of_pairs() -> None:
    free = scalemodel.Machine(*[0.0] * 2, float("inf"), *[0.0] * 7)
    knobs = Knobs()
    outcome = scalemodel.simulate(JOBS, knobs, free)
    # Those being written, those of one interval, and at the end of all workers those that end together.
    assert outcome.inbox_pairs <= JOBS.workers * (2 + knobs.every_seconds / scalemodel.pair_seconds(JOBS, knobs))
    assert outcome.behind_seconds <= knobs.every_seconds


def test_pairs_that_have_ended_never_grow_fewer_and_rotations_are_spread() -> None:
    for knobs in (Knobs(), scaletables.TUNED, Knobs(rotation_size=50_000)):
        pair = scalemodel.lifetime(JOBS, knobs)
        assert pair.longest_seconds <= knobs.rotation_span
        ended = [scalemodel.ended_pairs(JOBS, knobs, seconds) for seconds in range(0, 25_000, 7)]
        assert ended == sorted(ended)
        # In the long run as many as the mean length says, half a pair of each worker being written.
        seconds = 0.9 * JOBS.members / JOBS.workers / JOBS.files_a_second
        expected = seconds / pair.mean_seconds - 0.5
        assert scalemodel.ended_pairs(JOBS, knobs, seconds) / JOBS.workers == pytest.approx(expected, abs=0.55)
    # 1,000 workers that began together end their first pair in no less than a quarter of the span.
    assert scalemodel.rotations_a_second(JOBS, Knobs()) == pytest.approx(JOBS.workers / 75)


def test_each_knob_bounds_what_it_is_for() -> None:
    def metadata(**knobs: float) -> float:
        return scalemodel.worker_calls(JOBS, replace(Knobs(), **knobs)).metadata

    def syncs(**knobs: float) -> float:
        return scalemodel.worker_calls(JOBS, replace(Knobs(), **knobs)).syncs

    assert metadata(rotation_span=3600.0) < metadata() < metadata(rotation_span=60.0)
    assert metadata(lease_seconds=600.0) < metadata()
    assert syncs(sync_interval=60.0) < syncs()
    moved = []
    for members in (10**6, 10**7):
        archive = scalemodel.Archive(JOBS, max_members=100_000)
        for _ in range(members // 100_000):
            archive.merge(100_000)
        moved.append(archive.directory_bytes_moved / members)
    assert moved[0] == pytest.approx(moved[1])


def test_the_page_shows_what_the_model_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "explanation" / "scale.md").read_text(encoding="utf-8")
    copy = tmp_path / "scale.md"
    copy.write_text(page, encoding="utf-8")
    scale.main(["--write", str(copy)])
    assert copy.read_text(encoding="utf-8") == page, (
        "run python -m bench.scale --write docs/explanation/scale.md, and read the text around the tables"
    )
