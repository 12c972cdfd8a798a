"""``rear put``: names as by cp, streams, what is acknowledged when it fails, and what signals leave."""

from __future__ import annotations

import functools
import os
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bases import members, scavenge
from programs import has_open, rear_command, run_rear, start_rear, wait_for

import rear
from rear.core.layout import Layout
from rear.index.index import Index

MTIME_NS = 1_700_000_000_000_000_000


put = functools.partial(run_rear, "put")


def merged(base: Path, archive: str = "ar.zip") -> dict[str, bytes]:
    scavenge(base)
    return members(base, archive)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base/.rear").mkdir(parents=True)
    return tmp_path / "base"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "out/deep").mkdir(parents=True)
    (folder / "out/empty").mkdir()
    for name in ("a.txt", "b.txt", "out/c.txt", "out/deep/d.txt"):
        (folder / name).write_text(f"content of {name}\n" * 9)
        os.utime(folder / name, ns=(MTIME_NS, MTIME_NS))
    (folder / "out/link").symlink_to("c.txt")
    (folder / "named").symlink_to("a.txt")
    return folder


@pytest.mark.parametrize(
    ("sources", "target", "names"),
    [
        (["a.txt"], "ar.zip/x", {"x"}),
        (["a.txt"], "ar.zip/x/", {"x/a.txt"}),
        (["a.txt"], "ar.zip", {"a.txt"}),
        (["a.txt", "b.txt"], "ar.zip/x", {"x/a.txt", "x/b.txt"}),
        (["-r", "out"], "ar.zip/x", {"x/c.txt", "x/deep/d.txt", "x/link", "x/empty/"}),
        (["-r", "out/"], "ar.zip/x/", {"x/out/c.txt", "x/out/deep/d.txt", "x/out/link", "x/out/empty/"}),
        (["-r", "out/.", "a.txt"], "ar.zip/x", {"x/c.txt", "x/deep/d.txt", "x/link", "x/empty/", "x/a.txt"}),
        (["-r", "out/deep/."], "ar.zip", {"d.txt"}),
        (["named"], "ar.zip/x/", {"x/named"}),
        (["a.txt"], "ar.zip/inner.zip", {"inner.zip"}),
        (["a.txt"], "ar.zip/inner.zip/a", {"inner.zip/a"}),
    ],
)
def test_names_are_those_that_cp_would_give(
    files: Path, base: Path, sources: list[str], target: str, names: set[str]
) -> None:
    done = put(*sources, f"{base}/{target}", cwd=files)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    found = merged(base)
    assert set(found) == names
    for name, data in found.items():
        last = name.rpartition("/")[2]
        if last == "link":
            assert data == b"c.txt"
        elif last.endswith(".txt"):
            assert data.startswith(b"content of ")
            assert last.encode() in data


def test_times_modes_and_metadata_travel_along(files: Path, base: Path) -> None:
    (files / "a.txt").chmod(0o750)
    assert put(files / "a.txt", f"{base}/ar.zip/", "--meta", "run=7", "--meta", "what=a=b").returncode == 0
    merged(base)
    with zipfile.ZipFile(base / "ar.zip") as archive:
        info = archive.getinfo("a.txt")
    assert info.external_attr >> 16 == 0o100750
    assert [row.metadata for row in Index.open(Layout(base), "ar.zip").rows()] == [{"run": "7", "what": "a=b"}]
    assert (files / "a.txt").exists()


def test_a_new_base_has_to_be_named(files: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    done = put(files / "a.txt", fresh / "ar.zip/a")
    assert (done.returncode, fresh.exists()) == (2, False)
    assert "--base" in done.stderr
    assert put(files / "a.txt", "ar.zip/a", "--base", fresh).returncode == 0
    assert put(files / "b.txt", fresh / "ar.zip/b", env=os.environ | {"REAR_BASE": str(fresh)}).returncode == 0
    assert put(files / "b.txt", tmp_path / "ar.zip/b", "--base", fresh).returncode == 2
    assert set(merged(fresh)) == {"a", "b"}


def test_a_base_below_a_folder_that_ends_in_zip(files: Path, tmp_path: Path) -> None:
    base = tmp_path / "all.zip/base"
    (base / ".rear").mkdir(parents=True)
    assert put(files / "a.txt", base / "runs/7/ar.zip/a").returncode == 0
    assert set(merged(base, "runs/7/ar.zip")) == {"a"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["out", "ar.zip/x"], 2, "name -r"),
        (["nothing", "ar.zip/x"], 7, "no such file"),
        (["-", "ar.zip/x/"], 2, "needs a name"),
        (["a.txt", "ar.zip/../x"], 2, "'..'"),
        (["a.txt", ".rear/ar.zip/x"], 2, ".rear"),
        (["a.txt", "plain/x"], 2, "no archive"),
        (["a.txt", "ar.zip/x", "--meta", "novalue"], 2, "key=value"),
        (["a.txt", "ar.zip/x", "--compression", "rar"], 2, "rar"),
    ],
)
def test_wrong_use_archives_nothing(files: Path, base: Path, arguments: list[str], status: int, message: str) -> None:
    done = put(*arguments, "--base", base, cwd=files)
    assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    assert list(base.rglob("*.zip")) == []


def test_what_cannot_be_read_costs_no_other_file_and_those_are_named(files: Path, base: Path) -> None:
    os.mkfifo(files / "pipe")
    os.mkfifo(files / "out/pipe")
    done = put("-r", "a.txt", "pipe", "out", "b.txt", base / "ar.zip", cwd=files)
    assert done.returncode == 7
    lines = done.stderr.splitlines()
    assert [line for line in lines if "a FIFO" in line]
    assert len([line for line in lines if "a FIFO" in line]) == 2
    inside = ["out/c.txt", "out/deep/d.txt", "out/empty/", "out/link"]
    assert lines[-7:] == ["6 files archived before that, and safe:"] + [
        f"  ar.zip/{name}" for name in ("a.txt", *inside, "b.txt")
    ]
    assert set(merged(base)) == {"a.txt", *inside, "b.txt"}


def test_move_removes_what_is_safe(files: Path, base: Path) -> None:
    done = put("-r", "--move", "out", "a.txt", base / "ar.zip/x", cwd=files)
    assert done.returncode == 0, done.stderr
    assert not (files / "out").exists()
    assert not (files / "a.txt").exists()
    assert set(merged(base)) == {"x/out/c.txt", "x/out/deep/d.txt", "x/out/link", "x/out/empty/", "x/a.txt"}


def test_a_stream_of_any_size_in_bounded_memory(base: Path) -> None:
    size = 200 << 20
    with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as source:
        # By way of a small process: the peak of a child begins with the memory of its parent at the fork.
        peak = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        put = [sys.executable, "-c", peak, *rear_command("put", "-", base / "ar.zip/zeros")]
        done = subprocess.run(put, stdin=source.stdout, capture_output=True, text=True, check=True)
    assert int(done.stdout) < (140 << 10)
    list(rear.scavenge(base))
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert archive.getinfo("zeros").file_size == size


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stream_that_is_interrupted_is_no_member(base: Path, tmp_path: Path, number: int) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    environment = os.environ | {"TMPDIR": str(spool)}
    process = start_rear("put", "-", base / "ar.zip/partial", stdin=subprocess.PIPE, text=False, env=environment)
    process.stdin.write(os.urandom(9 << 20))  # more than fits into memory, so it is being read
    process.stdin.flush()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert b"Traceback" not in errors
    assert list(spool.iterdir()) == []
    list(rear.scavenge(base))
    assert not (base / "ar.zip").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_acknowledged_stays_when_it_is_stopped(files: Path, base: Path, number: int) -> None:
    with (files / "huge").open("wb") as huge:
        huge.truncate(200 << 30)  # nobody reads that in the time of this test
    process = start_rear("put", "a.txt", "huge", base / "ar.zip", cwd=files, text=False)
    # It opens the second file when the first one is acknowledged.
    wait_for(lambda: has_open(process.pid, files / "huge"), 30)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert b"  ar.zip/a.txt\n" in errors
    assert set(merged(base)) == {"a.txt"}


def test_a_full_disk_ends_it_with_the_names_of_what_is_safe(base: Path, files: Path) -> None:
    limit = 64 << 10
    (files / "big").write_bytes(os.urandom(4 * limit))

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = put("a.txt", "big", "b.txt", base / "ar.zip", cwd=files, preexec_fn=limited)
    assert done.returncode == 3, done.stderr
    assert "ar.zip/a.txt" in done.stderr
    assert "ar.zip/b.txt" not in done.stderr
    assert set(merged(base)) == {"a.txt"}


@pytest.mark.parametrize("mtime_ns", [10**19, -(10**18)])
def test_times_that_no_header_can_hold(mtime_ns: int, base: Path, files: Path, tmp_path: Path) -> None:
    """A file of the year 2286 costs its own time at most, and nothing of the others."""
    for path in (files / "a.txt", files / "out/c.txt"):
        os.utime(path, ns=(mtime_ns, mtime_ns))
    result = put("-r", files / "a.txt", files / "b.txt", files / "out", base / "ar.zip/")
    assert result.returncode == 0, result.stderr
    assert {"a.txt", "b.txt", "out/c.txt", "out/deep/d.txt"} <= merged(base).keys()
    for _ in range(2):
        swept = run_rear("sweep", files, "--into", "swept.zip", "--base", base, "--json")
        assert swept.returncode == 0, swept.stdout + swept.stderr
    assert {"a.txt", "out/c.txt"} <= merged(base, "swept.zip").keys()
    assert "no new" in swept.stdout or '"archived": 0' in swept.stdout, swept.stdout
    os.utime(base / "ar.zip", ns=(mtime_ns, mtime_ns))
    assert run_rear("ls", "--json", base).returncode == 0
    assert run_rear("ls", "-l", base).returncode == 0


@pytest.mark.parametrize("options", [(), ("--move",)])
def test_one_bad_source_costs_itself_alone(options: tuple[str, ...], base: Path, files: Path) -> None:
    os.mkfifo(files / "out/pipe")
    (files / "out/a\\b").write_text("x")
    (files / "out/deep/changed\n").write_text("x")
    (files / "bad\n").write_text("x")
    result = put("-r", *options, files / "bad\n", files / "out", files / "b.txt", base / "ar.zip/")
    assert result.returncode != 0
    for name in ("pipe", "a\\\\b", "changed", "bad"):
        assert name in result.stderr, result.stderr
    assert merged(base).keys() == {"b.txt", "out/c.txt", "out/deep/d.txt", "out/empty/", "out/link"}
    left = {path.name for path in files.rglob("*")} & {"pipe", "a\\b", "changed\n", "bad\n"}
    assert len(left) == 4
    assert (files / "out/c.txt").exists() == (not options)


@pytest.mark.parametrize(
    "arguments", [("put", "FILE", "BASE/ar.zip/a"), ("run", "--base", "BASE", "--into", "ar.zip/x", "--", "true")]
)
def test_absolute_paths_need_no_current_folder(
    arguments: tuple[str, ...], base: Path, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    program = "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    given = [text.replace("FILE", str(files / "a.txt")).replace("BASE", str(base)) for text in arguments]
    command = [sys.executable, "-c", program, str(tmp_path / "gone"), *rear_command(*given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert merged(base)
