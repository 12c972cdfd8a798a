"""``rear get``: what it writes, and what it refuses to write."""

from __future__ import annotations

import os
import random
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import zoo
from listings import NOW, Result, info, write_zip
from terminal import on_terminal
from zips import flip

from rear.errors import ExtractionError, ZipFormatError
from rear.read.view import open_committed
from rear.zip.extraction import Extraction

REAR = [sys.executable, "-m", "rear"]


def tree(folder: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("writer", ["zip", "7z-deflate64", "bsdtar", "zipfile-stream"])
def test_get_all(writer: str, tmp_path: Path) -> None:
    path = zoo.make(writer, tmp_path)
    result = Result("get", path, "-C", tmp_path / "out/new")
    assert (result.status, result.out, result.err) == (0, "", "")
    assert tree(tmp_path / "out/new") == zoo.CONTENTS


def test_get_some(ar: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert Result("get", f"{ar}/logs/*.txt", f"{ar}/README", "-C", out).status == 0
    assert list(tree(out)) == ["README", "logs/a.txt", "logs/b.txt"]
    assert Result("get", f"{ar}/logs/deep", "--strip", "1", "-C", out).status == 0
    assert "deep/c.txt" in tree(out)
    result = Result("get", f"{ar}/none", f"{ar}/other/", "-C", out)
    assert result.status == 6
    assert "other/a.txt" in tree(out)


def test_get_keeps_modes_and_times(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "a.zip",
        (info("d/", stat.S_IFDIR | 0o750, NOW + 10), b""),
        (info("d/run", stat.S_IFREG | 0o6755), b"#!"),
        (info("d/secret", stat.S_IFREG | 0o600), b"x"),
        (info("link", stat.S_IFLNK | 0o777), b"d/run"),
        (info("none", 0), b""),
    )
    out = tmp_path / "out"
    assert Result("get", path, "-C", out).err == ""
    modes = {name: stat.S_IMODE((out / name).stat().st_mode) for name in ("d", "d/run", "d/secret")}
    assert modes == {"d": 0o750, "d/run": 0o755, "d/secret": 0o600}
    assert os.stat(out / "d/run").st_mtime == NOW
    assert os.lstat(out / "link").st_mtime == NOW
    assert os.stat(out / "d").st_mtime == NOW + 10
    assert (out / "none").exists()


def test_get_overwrites_only_when_told(ar: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    outside = tmp_path / "outside"
    outside.write_text("keep me")
    (out / "README").write_text("mine")
    (out / "logs").mkdir(mode=0o700)
    (out / "logs/a.txt").symlink_to(outside)
    (out / "other").write_text("in the way")
    result = Result("get", ar, "-C", out)
    assert result.status == 8
    assert result.err.count("\n") == 3
    assert "--force" in result.err
    assert (out / "README").read_text() == "mine"
    assert (out / "logs/deep/c.txt").exists()
    result = Result("get", ar, "-C", out, "--force")
    assert result.status == 8
    assert "'other/a.txt'" in result.err
    assert (out / "README").read_text() == "content of README"
    assert not (out / "logs/a.txt").is_symlink()
    assert outside.read_text() == "keep me"
    assert stat.S_IMODE((out / "logs").stat().st_mode) == 0o700
    (out / "README").unlink()
    (out / "README").mkdir()
    assert "directory is in its place" in Result("get", f"{ar}/README", "-C", out, "--force").err
    assert not list(out.rglob(".rear-*"))


UNSAFE = [
    "../up", "a/../../up", "/abs", "..", "a/..", "C:\\x", "a\\..\\b", "a//b", "a/./b", "nul\n", "/", "\x1b",
]  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_get_refuses_unsafe_names(name: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "zip/a.zip", name, "good")
    result = Result("get", path, "-C", tmp_path / "zip/out")
    assert result.status == 8
    assert "unsafe name" in result.err
    assert "\x1b" not in result.err
    assert tree(tmp_path / "zip/out") == {"good": b"content of good"}
    assert sorted(os.listdir(tmp_path)) == ["zip"]
    assert sorted(os.listdir(tmp_path / "zip")) == ["a.zip", "out"]


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    return info(name, stat.S_IFLNK | 0o777), target.encode()


@pytest.mark.parametrize(
    ("name", "target", "allowed"),
    [
        ("l", "good", True),
        ("a/b/l", "../../good", True),
        ("a/l", "../a/x", True),
        ("l", ".", True),
        ("l", "missing/later", True),
        ("l", "../outside", False),
        ("a/l", "../../outside", False),
        ("l", "/etc/passwd", False),
        ("l", "a/../../x", False),
        ("l", "a/..", False),
        ("l", "", False),
        ("l", "x" * 5000, False),
        ("l", "x\0y", False),
    ],
)
def test_get_of_symbolic_links(name: str, target: str, allowed: bool, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", link(name, target), "good")
    result = Result("get", path, "-C", tmp_path / "out")
    assert result.status == (0 if allowed else 8)
    expected = {"good": b"content of good", **({name: target} if allowed else {})}
    assert tree(tmp_path / "out") == expected


def test_get_never_writes_through_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").symlink_to(outside)
    path = write_zip(
        tmp_path / "a.zip",
        "old/x",
        link("new", "sub"),
        "sub/y",
        "new/z",
        link("old/l", "x"),
        (info("old/", 0o40777), b""),
    )
    for options in ([], ["--force"]):
        result = Result("get", path, "-C", out, *options)
        assert result.status == 8
        assert "symbolic link" in result.err
    assert os.listdir(outside) == []
    assert sorted(tree(out)) == ["new", "old", "sub/y"]
    assert stat.S_IMODE(outside.stat().st_mode) != 0o777


def test_get_reports_damage_and_goes_on(ar: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(ar) as archive:
        offset = archive.getinfo("logs/a.txt").header_offset
    flip(ar, offset + 30 + len("logs/a.txt") + 6, 0xFF)
    result = Result("get", ar, "-C", tmp_path / "out")
    assert result.status == ZipFormatError.exit_status
    assert "logs/a.txt" in result.err
    assert sorted(tree(tmp_path / "out")) == ["README", "logs/b.txt", "logs/deep/c.txt", "other/a.txt"]


def test_get_of_two_members_of_one_name(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = write_zip(tmp_path / "a.zip", ("m", b"first"), ("m", b"second"), ("./n", b"n"))
    result = Result("get", path, "-C", tmp_path / "out")
    assert result.status == ExtractionError.exit_status
    assert tree(tmp_path / "out") == {"m": b"first", "n": b"n"}


def test_get_where_links_are_not_to_be_had(ar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On FUSE file systems, for example."""
    import errno

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "out"
    assert Result("get", ar, "-C", out).status == 0
    assert len(tree(out)) == 5
    assert Result("get", ar, "-C", out).status == 8


def test_get_gives_up_on_a_full_disk(ar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    result = Result("get", ar, "-C", tmp_path / "out")
    assert result.status == 3
    assert "No space left" in result.err
    assert tree(tmp_path / "out") == {}


def test_get_into_a_place_that_is_no_directory(ar: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert Result("get", ar, "-C", tmp_path / "file").status == 3


def test_get_tells_how_far_it_is(large: Path, tmp_path: Path) -> None:
    # At once, however fast this machine is.
    program = "from rear.cli import byte_progress, main; byte_progress._QUIET_SECONDS = 0; main()"
    shown = on_terminal(sys.executable, "-c", program, "get", large, "-C", tmp_path / "out", columns=100)
    assert shown.status == 0
    assert re.search(r"rear get .*/858\.3 MiB", shown.screen)
    # Nothing is left of it: the last line is erased, and the cursor is there again.
    assert shown.screen.rstrip().endswith("\x1b[2K")
    assert shown.screen.rindex("\x1b[?25h") > shown.screen.rindex("\x1b[?25l")
    assert sorted(path.stat().st_size for path in (tmp_path / "out").iterdir()) == [300_000_000] * 3


def test_get_is_quiet_elsewhere(large: Path, tmp_path: Path) -> None:
    shown = on_terminal("rear", "get", f"{large}/zeros-[01]", "-C", tmp_path / "1", environment={"TERM": "dumb"})
    assert (shown.status, shown.screen) == (0, "")
    command = [*REAR, "get", f"{large}/zeros-[01]", "-C", tmp_path / "2"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    small = write_zip(tmp_path / "small.zip", "x")
    assert on_terminal("rear", "get", small, "-C", tmp_path / "3").screen == ""


def test_control_c_leaves_whole_files_and_a_clean_terminal(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = on_terminal("rear", "get", large, "-C", out, interrupt_after_seconds=0.8, interrupt_once_open=large)
    assert "Traceback" not in shown.screen
    if shown.status:
        assert shown.status == 130
        assert "interrupted" in shown.screen
    if "\x1b[?25l" in shown.screen:
        assert shown.screen.rindex("\x1b[?25h") > shown.screen.rindex("\x1b[?25l")
    assert {path.stat().st_size for path in out.iterdir()} <= {300_000_000}


def test_errors_above_the_bar(large: Path, tmp_path: Path) -> None:
    (tmp_path / "zeros-2").write_text("mine")
    shown = on_terminal("rear", "get", large, "-C", tmp_path, columns=200)
    assert shown.status == 8
    assert "there is a file of that name already" in shown.screen
    assert (tmp_path / "zeros-2").read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("", {"d": "0o750", "d/open": "0o640", "d/set": "0o750", "made": "0o750"}),
        ("-p", {"d": "0o775", "d/open": "0o666", "d/set": "0o751", "made": "0o750"}),
    ],
)
def test_modes_and_the_umask(tmp_path: Path, option: str, expected: dict[str, str]) -> None:
    path = write_zip(
        tmp_path / "a.zip", (info("d/", stat.S_IFDIR | 0o775), b""), (info("d/open", stat.S_IFREG | 0o666), b""),
        (info("d/set", stat.S_IFREG | 0o6751), b""), "made/x",
    )  # fmt: skip
    command = f"umask 027; {sys.executable} -m rear get {option} {path} -C {tmp_path}/out"
    subprocess.run(["sh", "-c", command], check=True)
    found = {
        name: oct(stat.S_IMODE((tmp_path / "out" / name).stat().st_mode)) for name in ("d", "d/open", "d/set", "made")
    }
    assert found == expected


def test_strip(odd: Path, tmp_path: Path) -> None:
    assert Result("get", f"{odd}/logs", "--strip", "1", "-C", tmp_path / "out").status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["[x].txt", "a.txt", "b.txt", "deep"]


def test_archives_that_share_a_folder_which_may_not_be_written_to(tmp_path: Path) -> None:
    """A folder gets its mode when all is there."""
    for number in range(2):
        write_zip(tmp_path / f"{number}.zip", (info("d/", stat.S_IFDIR | 0o555), b""), f"d/{number}")
    (tmp_path / "out").mkdir(mode=0o777)
    tmp_path.chmod(0o755)
    result = Result("get", tmp_path / "0.zip", tmp_path / "1.zip", "-C", tmp_path / "out")
    assert result.status == 0
    assert stat.S_IMODE((tmp_path / "out/d").stat().st_mode) == 0o555
    assert sorted(path.name for path in (tmp_path / "out/d").iterdir()) == ["0", "1"]


def test_what_find_finds_get_takes(tmp_path: Path) -> None:
    chance = random.Random(3)
    names = [f"{chance.randrange(5)}/{number}.txt" for number in range(50)]
    (tmp_path / "base/.rear").mkdir(parents=True)
    write_zip(tmp_path / "base/ar.zip", *names)
    command = f"{' '.join(REAR)} find -0 {tmp_path}/base '3/*' | xargs -0 {' '.join(REAR)} get -C {tmp_path}/out"
    subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, check=True)
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.txt"))
    assert found == sorted(name for name in names if name.startswith("3/"))


def test_modes_and_times_may_be_refused(ar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FAT, CIFS and mounts of object stores."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    with open_committed(ar) as archive, Extraction(tmp_path / "out") as extraction:
        for entry in archive.entries():
            extraction.extract(archive, entry)
    assert tree(tmp_path / "out")["logs/a.txt"]
