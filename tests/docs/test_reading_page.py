"""docs/how-to/read.md against the program: JSON objects have the documented keys and types, and the examples run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, SUPPORT
from listings import Result, append, write_journal
from programs import run_code

import rear
from rear.core.layout import Layout
from rear.core.records import Pair

PAGE = (ROOT / "docs" / "how-to" / "read.md").read_text(encoding="utf-8")
TYPES = {
    "text": str, "integer": int, "boolean": bool, "object": dict, "array": list, "null": type(None),
}  # fmt: skip


def documented(table: str) -> dict[str, set[type]]:
    section = PAGE.partition(f"<!-- json: {table} -->")[2].partition("<!--")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([a-z ]+) \|", section, re.MULTILINE)
    return {key: {TYPES[name] for name in kinds.split(" or ")} for key, kinds in rows}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "picked.csv").write_text("1,2\n")
    with rear.rear_fs(folder / "base"):
        with rear.rear_open("ar.zip/a.csv", "w", metadata={"experiment": "e17"}) as file:
            file.write("x")
        with rear.rear_pickup(folder / "picked.csv", "ar.zip/d/picked.csv"):
            pass
    list(rear.scavenge(folder / "base"))
    subprocess.run(["zip", "-q", folder / "base/ar.zip", "terminal.py"], cwd=SUPPORT, check=True)
    write_journal(Layout(folder / "base").journal(Pair("host", "w-1", 1)), append(1, "ar.zip", "waits"))
    return folder / "base"


@pytest.mark.parametrize(
    ("table", "command", "optional"),
    [
        ("members", ["ls", "--json", "{base}/ar.zip"], {"metadata"}),
        ("members", ["ls", "--json", "--meta", "{base}/ar.zip"], set()),
        ("archives", ["ls", "--json", "{base}"], set()),
        ("pending", ["ls", "--json", "--pending", "{base}"], set()),
        ("found", ["find", "--json", "{base}"], set()),
        ("index", ["index", "--json", "{base}/ar.zip"], set()),
    ],
)
def test_json_is_as_documented(table: str, command: list[str], optional: set[str], base: Path) -> None:
    kinds = {key: types for key, types in documented(table).items() if key not in optional}
    assert kinds
    result = Result(*(part.format(base=base) for part in command))
    objects: list[dict[str, Any]] = [json.loads(line) for line in result.lines]
    assert objects
    for each in objects:
        assert list(each) == list(kinds)
        assert {key: type(value) for key, value in each.items() if type(value) not in kinds[key]} == {}
    segments = re.search(r"`segments` \| array \| of objects, the oldest first: (.*?), as in", PAGE)
    assert segments is not None
    for each in objects:
        for segment in each.get("segments", []):
            assert list(segment) == re.findall(r"`(\w+)`", segments[1])


def test_the_pipe_of_the_page(base: Path, tmp_path: Path) -> None:
    (command,) = re.findall(r"```sh\n(.*?)\n```", PAGE, re.DOTALL)
    (tmp_path / "rear").write_text(f'#!/bin/sh\nexec {sys.executable} -m rear "$@"\n')
    (tmp_path / "rear").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = f"set -o pipefail; {command.replace('/nfs/base', str(base))}"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "all.csv").read_text() == "x1,2\n"


def test_the_python_of_the_page(base: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (host,) = {found.member.host for found in rear.find(base, "a.csv")}
    code = code.replace("/nfs/base", str(base)).replace("node1*", f"{str(host)[:2]}*")
    done = run_code(code, check=True)
    assert done.stdout.splitlines()[0] == f"{base}/ar.zip/a.csv 1 None"
    # `zip` added a member, so the index does not mirror the archive any more.
    assert done.stdout.splitlines()[-1] == f"['{base}/ar.zip'] []"
