"""The benchmark itself: that it runs, what it writes down, and who is missing. Nothing here is about time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import archives, data
from bench.__main__ import main
from bench.peers import ORIGINAL, PROGRAMS, Peers
from bench.report import page
from bench.results import Result, Run, read
from bench.rows import ROWS, description
from bench.runner import ROOT, Bench, Command, Contender, Job
from bench.targets import TARGETS, Measure, Target
from bench.verdicts import judge


def bench_command(tmp_path: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    environment = os.environ | ({} if path is None else {"PATH": path})
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments, "--quick", "--no-download", "--scratch", str(scratch),
         "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "output")],
        capture_output=True, text=True, env=environment, timeout=100, check=False,
    )  # fmt: skip


@pytest.fixture
def run() -> Run:
    return Run({"processor": "one"}, {"quick": True, "rounds": None})


def test_a_row_runs_and_a_missing_peer_is_named_and_skipped(tmp_path: Path) -> None:
    # With this PATH there is no program at all.
    done = bench_command(tmp_path, "start", "--rounds", "1", path="/nonexistent")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "output/results.json").read_text())
    assert content["schema"] == 1
    assert content["peers"] == {}
    assert set(content["missing"]) == {ORIGINAL, "zip"}
    assert "not installed" in content["missing"]["zip"]
    assert "without zip: not installed" in done.stdout
    measured = {(result["case"], result["contender"]) for result in content["results"]}
    assert {("import", "import rear"), ("import", "bare interpreter"), ("command", "rear --help")} <= measured
    for result in content["results"]:
        (sample,) = result["samples"]
        assert {"seconds", "cpu_seconds", "peak_bytes", "process_seconds"} <= sample.keys()
        assert all(value > 0 for value in sample.values())
    assert {verdict["status"] for verdict in content["targets"]} <= {"met", "missed"}
    assert len(content["targets"]) == sum(target.of.row == "start" for target in TARGETS)
    assert list((tmp_path / "scratch").iterdir()) == []
    again = read(tmp_path / "output/results.json")
    assert [result.median() for result in again.results] == [Result(**result).median() for result in content["results"]]


def test_a_merge_is_measured_and_its_result_is_looked_at(tmp_path: Path, run: Run) -> None:
    scratch, told = tmp_path / "scratch", []
    scratch.mkdir()
    peers = Peers(tmp_path / "cache", is_download_allowed=False)
    from bench.merge import PAIRS, cat_copies, make_base, rear_merges

    with Bench(run, peers, scratch, is_quick=True, rounds=2, tell=told.append) as bench:
        bench.row = "merge"
        base = make_base(bench, "few", pairs=PAIRS, members=3, compression="deflate")
        contenders = [rear_merges(base, 30), rear_merges(base, 31, name="wrong"), cat_copies(base, sync=False)]
        bench.compare("few", contenders)
    right, wrong, cat = run.results
    assert len(right.samples) == 2
    assert right.samples[0]["ranges"] == PAIRS
    assert 0 < right.samples[0]["committed_seconds"] <= right.samples[0]["seconds"]
    assert wrong.samples == []
    assert wrong.failure == "ar.zip has 30 members instead of 31"
    assert told == ["  wrong failed: ar.zip has 30 members instead of 31"]
    assert len(cat.samples) == 2


def test_a_contender_that_fails_is_named_and_stops_nobody(tmp_path: Path, run: Run) -> None:
    contenders = [
        Contender("refuses", lambda folder: Command([sys.executable, "-c", "raise SystemExit('no')"])),
        Contender("missing", lambda folder: Command([str(tmp_path / "missing")])),
        Contender("job", lambda folder: Job("bench.mergers:concatenate", {"sources": ["/missing"], "target": "x"})),
        Contender("works", lambda folder: Command(["true"])),
    ]
    with Bench(run, Peers(tmp_path), tmp_path, is_quick=True, rounds=2, tell=lambda line: None) as bench:
        bench.compare("case", contenders)
    *failed, works = run.results
    assert [result.samples for result in failed] == [[], [], []]
    assert failed[0].failure == "status 1: no"
    assert "missing" in str(failed[1].failure)
    assert str(failed[2].failure).startswith("status 1: TypeError")
    assert works.failure is None
    assert len(works.samples) == 2


def test_a_row_whose_data_cannot_be_made_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: Bench) -> None:
        """Needs what is not there."""
        bench.do(Command([sys.executable, "-c", "raise SystemExit('no data')"]))

    def works(bench: Bench) -> None:
        """Runs a program."""
        bench.compare("case", [Contender("true", lambda folder: Command(["true"]))])

    rows = {"broken": broken, "works": works}
    monkeypatch.setattr("bench.__main__.ROWS", rows)
    arguments = ["--no-download", "--rounds", "1", "--scratch", str(tmp_path), "--output", str(tmp_path / "output")]
    assert main(arguments) == 1
    run = read(tmp_path / "output/results.json")
    assert run.failures == {"broken": "status 1: no data"}
    assert [result.row for result in run.results] == ["works"]
    assert "failed: broken: status 1: no data" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output"]


def test_cpu_time_and_memory_are_those_of_the_contender(tmp_path: Path, run: Run) -> None:
    busy = "import os, time\nwhile sum(os.times()[:2]) < 0.2: pass\nlarge = b'x' * 100_000_000"
    contenders = [
        Contender("busy", lambda folder: Command([sys.executable, "-c", busy])),
        Contender("idle", lambda folder: Command([sys.executable, "-c", "pass"])),
    ]
    with Bench(run, Peers(tmp_path), tmp_path, is_quick=True, rounds=1, tell=lambda line: None) as bench:
        large = bytearray(os.urandom(50_000_000))  # of the benchmark itself, and so nobody's
        bench.compare("case", contenders)
        del large
    is_busy, is_idle = (result.samples[0] for result in run.results)
    assert is_busy["cpu_seconds"] >= 0.2
    assert is_busy["peak_bytes"] > 100_000_000
    assert is_idle["peak_bytes"] < 40_000_000


@pytest.mark.parametrize("count", [1, 70_000])
@pytest.mark.parametrize("method", [archives.STORED, archives.DEFLATED])
def test_archives_that_are_made_for_it_are_zips(tmp_path: Path, count: int, method: int) -> None:
    path = tmp_path / "ar.zip"
    archives.write(path, data.small_files(count, size_bytes=40), method=method)
    archives.expect_members(path, count)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [name for name, _ in data.small_files(count, size_bytes=40)]
        name, content = list(data.small_files(count, size_bytes=40))[-1]
        assert archive.read(name) == content
        assert archive.getinfo(name).compress_type == method
        start: int = archive.start_dir
        assert (start, count) == archives.directory_range(path)[::2]
    with pytest.raises(ValueError, match="instead of"):
        archives.expect_members(path, count + 1)


def test_data_is_always_the_same() -> None:
    again = subprocess.run(
        [sys.executable, "-c", "from bench import data; import zlib; print(zlib.crc32(b''.join(data.contents(1000))))"],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=True,
    )  # fmt: skip
    import zlib

    assert int(again.stdout) == zlib.crc32(b"".join(data.contents(1000)))


def result(case: str, contender: str, *seconds: float, **more: Any) -> Result:
    samples = [{"seconds": value, "cpu_seconds": value * 2, "peak_bytes": 1e6} for value in seconds]
    return Result("merge", case, contender, "rear", samples=samples, **more)


def test_ratios_are_made_round_by_round(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    of, to = Measure("merge", "a", "rear"), Measure("merge", "a", "cat")
    other = Measure("merge", "b", "cat")
    ratio = Target("ratio", of, (to,), 3)
    targets = (
        ratio, replace(ratio, limit=2), replace(ratio, sense="at least"), replace(ratio, to=(to, other)),
        replace(ratio, how="difference"), replace(ratio, how="value", to=()),
        replace(ratio, to=(replace(other, contender="nobody"),)), replace(ratio, of=replace(of, row="ls")),
    )  # fmt: skip
    monkeypatch.setattr("bench.verdicts.TARGETS", targets)
    # The machine was ten times slower in the third round; the slow one took part in three.
    run.results = [result("a", "rear", 3, 3, 20, 9), result("a", "cat", 1, 1, 10), result("b", "cat", 2, 2, 2)]
    verdicts = judge(run)
    assert [verdict.value for verdict in verdicts] == [3, 3, 3, 2, 2, 6, None]
    assert [verdict.status for verdict in verdicts] == ["met", "missed", "met", "met", "met", "missed", "not measured"]
    assert verdicts[0].by_cpu == 3
    assert verdicts[6].reason == "no nobody in merge, b"


def test_every_target_is_about_a_row_that_there_is() -> None:
    assert {measure.row for target in TARGETS for measure in (target.of, *target.to)} <= set(ROWS)
    assert len({target.what for target in TARGETS}) == len(TARGETS)
    for name in ROWS:
        assert len(description(name)[0]) > 40


def test_the_page_has_a_block_for_every_row(run: Run) -> None:
    text = (ROOT / "docs/explanation/performance.md").read_text()
    for name in (*ROWS, "machine", "targets"):
        assert text.count(f"<!-- begin: bench {name} -->\n") == 1
    run.results = [result("a <b> | c", "rear", 1, 2, 4)]
    made = page(text, run, "images")
    assert "| a &lt;b> \\| c: s, 3 rounds | median |" in made
    assert "| rear | 2.00 | 1.00 … 4.00 | 4.00 s | 1 MB | 1.00 × |  |" in made
    assert "![merge](images/merge.svg)" in made
    assert page(made, run, "images") == made


def test_no_such_row_and_no_such_file(tmp_path: Path) -> None:
    done = bench_command(tmp_path, "nothing")
    assert done.returncode == 2
    assert "no such row: nothing" in done.stderr
    broken = tmp_path / "broken.json"
    broken.write_text('{"schema": 99}')
    for path, reason in ((tmp_path / "missing.json", "No such file"), (broken, "run it again")):
        done = subprocess.run(
            [sys.executable, "-m", "bench", "report", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert reason in done.stderr
        assert "Traceback" not in done.stderr


def test_all_peers_are_named_when_nothing_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    peers = Peers(tmp_path / "cache", is_download_allowed=False)
    names = [program.name for program in PROGRAMS]
    peers.look_for([*names, ORIGINAL])
    assert peers.found == {}
    assert set(peers.missing) == {*names, ORIGINAL}
    assert not (tmp_path / "cache").exists()
