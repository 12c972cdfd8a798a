"""One bad thing costs itself alone: among good ones it is told by name, the good ones are done, the status says so.

Tried of each kind: garbage, nothing, cut off, a folder, a FIFO, a socket, links to themselves and to nothing, what may
not be read, what has another time than any clock.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from bases import members, write
from programs import run_rear
from zips import write_zip

import rear
from rear.core.layout import Layout

GOOD = ("a", "m", "z")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_socket(path: Path) -> None:
    # Paths of sockets are short.
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("/tmp/rear-test-socket")
    shutil.move("/tmp/rear-test-socket", path)


def make_shut(path: Path) -> None:
    path.write_bytes(b"secret")
    path.chmod(0)


def make_time(path: Path) -> None:
    """A Zip with times that no clock has, in its members and as its own."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, ticks in enumerate((0, 1, 1 << 62, (1 << 64) - 1)):
            times = struct.pack("<HHQQQ", 1, 24, ticks, ticks, ticks)
            info = zipfile.ZipInfo(f"odd-{number}")
            info.extra = struct.pack("<HHI", 0x000A, 4 + len(times), 0) + times
            archive.writestr(info, b"odd")
    os.utime(path, ns=(1 << 62, 1 << 62))


#: How a bad thing is made.
BAD: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"garbage" * 999), "nothing": lambda path: path.touch(),
    "cut": lambda path: path.write_bytes(write_zip(path, {"x": b"cut" * 99}).read_bytes()[:-9]),
    "fifo": os.mkfifo, "loop": make_loop, "dangling": lambda path: path.symlink_to("nowhere"), "socket": make_socket,
    "folder": Path.mkdir, "shut": make_shut, "time": make_time,
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    write(base, {f"{archive}.zip/{name}": f"{archive} {name}" for archive in GOOD for name in ("x", "y")})
    list(rear.scavenge(base))
    return base


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it as root that may not overrule modes, if this is root."""
    command = [sys.executable, "-m", "rear", *map(str, arguments)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=cwd)
    assert "Traceback" not in done.stderr
    return done


def test_archives_of_a_base(base: Path, tmp_path: Path) -> None:
    for kind, make in BAD.items():
        make(base / f"b-{kind}.zip")
    told = {"garbage", "nothing", "cut", "loop", "shut"}
    for command in ("ls", "find"):
        done = run(command, base)
        shown = done.stdout
        assert [f"{archive}.zip" in shown for archive in (*GOOD, "b-time")] == [True] * 4
        assert {kind for kind in BAD if f"b-{kind}.zip" in done.stderr} - {"time"} == told, done.stderr
        assert done.returncode in (3, 4)
    for options in (["-n"], [], []):
        done = run("fsck", *options, "--json", base)
        assert {kind for kind in BAD if f'"b-{kind}.zip"' in done.stdout} >= told | {"fifo", "dangling", "socket"}
        for kind in ("fifo", "loop", "dangling", "socket", "shut"):
            lines = [line for line in done.stdout.splitlines() if f'"b-{kind}.zip"' in line and '"problem"' in line]
            assert len(lines) == 1, lines
        assert done.returncode == 4
    arguments = [base / f"{name}.zip" for name in ("a", *(f"b-{kind}" for kind in BAD), "none", "z")]
    got = run("get", "-C", tmp_path / "out", "--strip", "0", *arguments)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"x", "y", "odd-3"}
    read = run("cat", *(f"{path}/x" for path in arguments))
    assert (read.stdout[:3], read.stdout[-3:]) == ("a x", "z x")
    for done in (got, read):
        assert done.returncode
        for kind in {*BAD} - {"time", "nothing", "cut"}:
            assert f"b-{kind}.zip" in done.stderr, kind
        assert "none.zip" in done.stderr


def damage(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


def test_indexes_of_a_base(base: Path) -> None:
    kinds: dict[str, Callable[[Path], object]] = BAD | {
        "text": lambda path: damage(path, "UPDATE members SET source = CAST(x'ff41' AS TEXT)"),
        "deep": lambda path: damage(path, f"UPDATE members SET metadata = '{'[' * 100_000}'"),
        "other": lambda path: damage(path, "DROP TABLE members"),
        "number": lambda path: damage(path, "UPDATE members SET size = 'much', mtime_ns = 1e300"),
    }
    write(base, {f"{kind}.zip/x": kind for kind in kinds})
    list(rear.scavenge(base))
    for kind, make in kinds.items():
        (segment,) = Layout(base).index(f"{kind}.zip").glob("*.sqlite")
        if kind in BAD:
            segment.unlink()
        make(segment)
    for options in ([], ["-l"], ["--source", "*"], ["--meta", "key"], ["--json"]):
        done = run("find", base, "x", *options)
        if options in ([], ["-l"], ["--json"]):
            assert all(f"{name}.zip" in done.stdout for name in (*GOOD, *kinds)), done.stderr
        assert done.returncode == 0, done.stderr
    done = run("fsck", base)
    assert done.returncode == 1, done.stdout
    assert run("fsck", "-n", base).returncode == 0


def test_pairs_hosts_and_claims_of_a_base(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(base, {"ar.zip/a": "waits", "ar.zip/b": "too"})
    layout = Layout(base)
    host = next(layout.inbox.iterdir())
    (journal,) = host.glob("*.journal")
    layout.claims.mkdir(exist_ok=True)
    for number, (kind, make) in enumerate(BAD.items(), 100):
        make(host / f"{journal.stem.rpartition('-')[0]}-{number}.journal")
        make(layout.inbox / f"a-{kind}")
        make(layout.claims / f"a-{kind}")
    (layout.inbox / "a-shut").unlink()
    (layout.inbox / "a-shut").mkdir(mode=0)
    done = run("ls", "--pending", base)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["ar.zip/a", "ar.zip/b"]
    assert done.returncode in (3, 4)
    assert all(word in done.stderr for word in ("a-loop", "a-shut", "-103.journal", "-108.journal")), done.stderr
    status = run("status", base)
    assert status.returncode == 1
    assert "a-loop" in status.stdout
    with caplog.at_level(logging.WARNING, "rear"):
        path = rear.Path(base / "ar.zip")
        assert sorted(item.name for item in path.iterdir()) == ["a", "b"]
        assert (path / "a").read_text() == "waits"
        with rear.rear_fs(base) as fs, fs.open("ar.zip/b", "r") as file:
            assert file.read() == "too"
    assert "a-loop cannot be looked into" in caplog.text
    assert run("scavenge", base).returncode == 1
    assert members(base) == {"a": b"waits", "b": b"too"}


def test_zips_that_are_adopted(base: Path, tmp_path: Path) -> None:
    zips = tmp_path / "zips"
    zips.mkdir()
    for name in GOOD:
        write_zip(zips / f"{name}.zip", {name: b"adopted"})
    for kind, make in BAD.items():
        make(zips / f"b-{kind}.zip")
    done = run("adopt", *sorted(zips.iterdir()), zips / "none.zip", base, "--into", "new.zip")
    assert done.returncode == 1
    assert set(members(base, "new.zip")) >= {*GOOD, "odd-0", "odd-3"}
    for kind in {*BAD} - {"time", "nothing", "cut"}:
        assert f"b-{kind}.zip: " in done.stderr, kind
    assert "none.zip" in done.stderr


def test_archives_that_are_adopted_into(base: Path, tmp_path: Path) -> None:
    """A temp archive of the original program has members for many."""
    kinds = {*BAD} - {"time", "dangling"}
    for kind in kinds:
        BAD[kind](base / f"b-{kind}.zip")
    names = ("a", *(f"b-{kind}" for kind in sorted(kinds)), "z")
    source = write_zip(tmp_path / "many.zip", {f"{name}.zip/new": b"new" for name in names})
    done = run("adopt", source, write_zip(tmp_path / "other.zip", {"m.zip/new": b"new"}), base, "--delete")
    assert done.returncode == 1
    for name in GOOD:
        assert members(base, f"{name}.zip")["new"] == b"new"
    assert source.exists()
    assert not (tmp_path / "other.zip").exists()
    for kind in kinds:
        assert f"b-{kind}.zip" in done.stderr, kind


def test_sources_that_are_put_or_swept(base: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    for name in GOOD:
        (spool / name).write_text(name)
    for kind, make in BAD.items():
        make(spool / f"b-{kind}")
    os.utime(spool / "m", ns=(-(1 << 62), -(1 << 62)))
    named = [path for path in sorted(spool.iterdir()) if path.name != "b-folder"]
    done = run("put", *named, spool / "none", f"{base}/put.zip/")
    assert done.returncode
    for kind in ("fifo", "loop", "dangling", "socket", "shut"):
        assert f"b-{kind}" in done.stderr, kind
    assert "none" in done.stderr
    swept = run("sweep", spool, "--into", "swept.zip", "--base", base)
    assert swept.returncode == 1
    assert "b-shut" in swept.stderr
    job = run("run", "--base", base, "--into", "run.zip/job", "--output", spool, "--", "true")
    assert job.returncode == 7 or job.returncode == 3
    run("scavenge", base)
    for archive, prefix in (("put.zip", ""), ("swept.zip", ""), ("run.zip", "job/output/")):
        assert {f"{prefix}{name}" for name in (*GOOD, "b-garbage", "b-time")} <= set(members(base, archive)), archive


def test_nothing_waits_for_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.zip")
    for command in ("ls", "find", "cat", "get", "index", "fsck", f"fsck --deep --output {tmp_path}/new.zip"):
        done = run_rear(*command.split(), tmp_path / "x.zip", timeout=30)
        assert done.returncode
        assert len(done.stderr.splitlines()) == 1, done.stderr
