"""``rear index``, and the queries that docs/reference/index-schema.md shows: each is run."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import sqlite_utils.cli
from bases import write
from checkout import ROOT
from click.testing import CliRunner
from listings import Result, write_zip
from programs import run_code, run_rear

import rear
from rear.core.layout import Layout
from rear.index.index import Index
from rear.index.segment import IndexRow
from rear.scavenger.leader import Leadership

PAGE = (ROOT / "docs" / "reference" / "index-schema.md").read_text(encoding="utf-8")
ARCHIVE = "runs/7/ar.zip"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Three merges, so that the newest segment is ``3.sqlite``."""
    base, picked = tmp_path / "base", tmp_path / "scratch/result.h5"
    picked.parent.mkdir()
    picked.write_bytes(b"result" * 500)
    for number in range(3):
        with rear.rear_fs(base):
            with rear.rear_open(
                f"{ARCHIVE}/logs/{number}.txt", "w", metadata={"experiment": f"e{number + 15}"}
            ) as file:
                file.write("the same")
            if number == 1:
                with rear.rear_pickup(picked, f"{ARCHIVE}/result.h5"):
                    pass
        list(rear.scavenge(base))
    return base


def test_what_it_shows(base: Path) -> None:
    result = Result("index", base / ARCHIVE)
    assert (result.status, result.err) == (0, "")
    assert result.lines[:3] == [
        "archive  runs/7/ar.zip, 4 members",
        "index    mirrors the archive",
        f"folder   {base}/.rear/index/runs/7/ar.zip",
    ]
    assert result.lines[4].split()[:3] == ["3.sqlite", "4", "0"]
    (line,) = Result("index", "--json", base / ARCHIVE).lines
    state = json.loads(line)
    (segment,) = state.pop("segments")
    assert state == {
        "archive": ARCHIVE, "folder": f"{base}/.rear/index/runs/7/ar.zip", "state": "current", "members": 4,
        "indexed": 4, "fingerprint": segment["fingerprint"], "problems": [],
    }  # fmt: skip
    assert segment["size"] == (Path(state["folder"]) / segment["file"]).stat().st_size
    assert set(segment) == {"file", "number", "id", "rows", "removed", "size", "written", "fingerprint"}


@pytest.mark.parametrize("damage", ["missing", "damaged", "outdated"])
def test_rebuild(damage: str, base: Path) -> None:
    folder = Layout(base).index(ARCHIVE)
    if damage == "missing":
        shutil.rmtree(folder)
    elif damage == "damaged":
        (folder / "3.sqlite").write_bytes(b"SQLite format 3\0 not at all")
    else:
        subprocess.run(["zip", "-q", base / ARCHIVE, __file__], check=True)
    members = 5 if damage == "outdated" else 4
    result = Result("index", "--json", base / ARCHIVE)
    assert (json.loads(result.out)["state"], result.status) == (damage, 0)
    assert f"{damage}" in Result("index", base / ARCHIVE).out or damage != "damaged"
    without = Result("index", "--csv", base / ARCHIVE)
    assert "no index that fits" in without.err
    result = Result("index", "--rebuild", base / ARCHIVE)
    assert (result.status, result.out) == (0, "")
    assert f"{members} members" in result.err
    assert json.loads(Result("index", "--json", base / ARCHIVE).out)["state"] == "current"
    again = Result("index", "--csv", base / ARCHIVE)
    assert (again.out, again.err) == (without.out, "")
    # And the next merge goes on from it.
    write(base, {f"{ARCHIVE}/new": "x"})
    events = list(rear.scavenge(base))
    assert [event.kind for event in events if event.kind == "index_rebuilt"] == []
    assert json.loads(Result("index", "--json", base / ARCHIVE).out)["members"] == members + 1


def test_rebuild_beside_a_scavenger(base: Path) -> None:
    before = sorted(os.listdir(Layout(base).index(ARCHIVE)))
    with Leadership(Layout(base)):
        done = run_rear("index", "--rebuild", base / ARCHIVE)
    assert done.returncode == 1
    assert "is being scavenged by" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(Layout(base).index(ARCHIVE))) == before


def test_csv_has_the_rows_of_the_table(base: Path) -> None:
    table = list(csv.DictReader(io.StringIO(Result("index", "--csv", base / ARCHIVE).out)))
    rows = list(Index.open(Layout(base), ARCHIVE).rows())
    assert [row["name"] for row in table] == [row.name for row in rows]
    for shown, row in zip(table, rows, strict=True):
        metadata = shown.pop("metadata")
        assert (json.loads(metadata) if metadata else None) == row.metadata
        assert shown == {
            name: "" if value is None else str(value)
            for name, value in zip(IndexRow._fields, row, strict=True)
            if name != "metadata"
        }


def test_what_has_no_index(base: Path, tmp_path: Path) -> None:
    foreign = write_zip(tmp_path / "foreign.zip", "a")
    for options in ([], ["--json"], ["--rebuild"]):
        result = Result("index", foreign, *options)
        assert (result.status, result.out) == (2, "")
        assert "belongs to no base" in result.err
    assert Result("index", "--csv", foreign).out.count("\n") == 2
    assert Result("index", base).status == 2
    assert Result("index", f"{base}/{ARCHIVE}/logs").status == 2
    assert Result("index", base / "none.zip").status == 3
    assert Result("index", "--csv", "--json", base / ARCHIVE).status == 2


def test_the_queries_of_the_documentation(base: Path, tmp_path: Path) -> None:
    commands = re.findall(r"^\$ (.*)$", "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)), re.MULTILINE)
    assert len(commands) >= 9
    answers = []
    for command in commands:
        command = command.replace("/nfs/base", str(base)).replace("/tmp/members", str(tmp_path / "members"))
        command = command.replace("/scratch", str(tmp_path / "scratch")).replace("'e17'", "'e16'")
        program, *arguments = shlex.split(command)
        if program == "sqlite-utils":
            # In this process: its start alone takes a second.
            done = CliRunner().invoke(sqlite_utils.cli.cli, arguments)
            status, out = done.exit_code, done.output
        elif program == "rear":
            status, out = Result(*arguments).status, Result(*arguments).out
        else:
            status, out = subprocess.run(command, shell=True, check=False).returncode, "copied"
        assert status == 0, (command, out)
        assert out.strip() not in ("", "[]"), command
        answers.append(out)
    assert any("logs/1.txt" in answer and '"experiment": "e16"' in answer for answer in answers)
    assert any("logs/0.txt, logs/1.txt, logs/2.txt" in answer for answer in answers)


def test_the_python_of_the_documentation(base: Path, tmp_path: Path) -> None:
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    first = first.replace('"e17"', '"e16"')
    done = run_code(first, check=True, cwd=Layout(base).index(ARCHIVE))
    assert "'members': 4" in done.stdout
    assert "logs/1.txt None" in done.stdout
    done = run_code(second.replace("/nfs/base", str(base)), check=True)
    assert done.stdout.startswith("4 []\n")
    assert "result.h5" in done.stdout
