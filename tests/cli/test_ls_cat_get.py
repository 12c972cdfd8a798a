"""The commands that read: ``rear ls``, ``rear cat`` and ``rear get``."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import zoo
from listings import NOW, Result, append, info, write_journal, write_zip

from rear.cli.listing.selection import split
from rear.core.layout import Layout
from rear.core.records import Abort, Close, Pair
from rear.core.text import shown
from rear.errors import ExtractionError, MemberNotFoundError, UsageError, ZipFormatError
from rear.journal.codec import encode_line
from rear.read.patterns import Patterns


@pytest.fixture
def ar(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "ar.zip", "README", "logs/a.txt", "logs/b.txt", "logs/deep/c.txt", "other/a.txt")


# --- arguments and patterns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*", ["a", "b.txt", "c/"], ["a/b", "c/d/"]),
        ("**", ["a", "a/b/c"], []),
        ("*.txt", ["a.txt", ".txt"], ["a.txtx", "d/a.txt"]),
        ("**/*.txt", ["a.txt", "d/a.txt", "d/e/a.txt"], ["a.doc"]),
        ("logs/**/x", ["logs/x", "logs/a/x", "logs/a/b/x"], ["logsx", "logs/ax", "x"]),
        ("logs/**", ["logs/x", "logs/a/x"], ["logsx", "log"]),
        ("a**z", ["az", "a/b/z"], ["a"]),
        ("?", ["a", "ä"], ["", "ab", "/"]),
        ("[ab]c", ["ac", "bc"], ["cc", "[ab]"]),
        ("[!ab]c", ["cc"], ["ac", "/c"]),
        ("[a-c]", ["b"], ["d", "-"]),
        ("[]x]", ["]", "x"], ["a"]),
        ("[!]]", ["x"], ["]"]),
        ("[x", ["[x"], ["x"]),
        ("[\\]", ["\\"], ["x"]),
        ("a[b].txt", ["ab.txt", "a[b].txt"], ["a.txt"]),
        ("logs", ["logs", "logs/", "logs/a", "logs/a/b"], ["logs2", "x/logs"]),
        ("logs/", ["logs/", "logs/a", "logs/a/b"], ["logs2"]),
        ("lo*/", ["logs/a", "lo/a/b"], ["logs"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a\nb*", ["a\nbc"], ["a"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    patterns = Patterns([pattern])
    assert [name for name in matching if not patterns.matches(name)] == []
    assert [name for name in others if patterns.matches(name)] == []


def test_patterns_that_meet_nothing() -> None:
    patterns = Patterns(["a", "b*"])
    assert patterns.matches("a")
    with pytest.raises(MemberNotFoundError, match=r"x\.zip: no member matches 'b\*'"):
        patterns.check("x.zip")
    assert Patterns([]).matches("anything")
    with pytest.raises(UsageError, match="pattern"):
        Patterns(["[z-a]"])


def test_split(ar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split(str(ar)) == (str(ar), "")
    assert split(f"{ar}/logs/a.txt") == (str(ar), "logs/a.txt")
    monkeypatch.chdir(ar.parent)
    assert split("ar.zip/x.zip/y") == ("ar.zip", "x.zip/y")
    assert split("./ar.zip/") == ("./ar.zip", "")
    with pytest.raises(FileNotFoundError):
        split("no.zip/x")
    with pytest.raises(UsageError, match="directory"):
        split(".")


def test_shown() -> None:
    assert shown("plain ä€ name") == "plain ä€ name"
    assert shown("a\x1b[31m\n\x9b") == "a\\x1b[31m\\n\\x9b"
    assert shown("a\\b") == "a\\\\b"
    assert shown("bad\udcff") == "bad\\xff"
    assert shown("\u202egpj") == "\\u202egpj"
    assert shown("\ud800") == "\\ud800"


# --- ls -----------------------------------------------------------------------------------------------------------


def test_ls_of_an_archive(ar: Path) -> None:
    result = Result("ls", ar)
    assert result.status == 0
    assert result.lines == ["README", "logs/a.txt", "logs/b.txt", "logs/deep/c.txt", "other/a.txt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["logs/*.txt"], ["logs/a.txt", "logs/b.txt"]),
        (["README", "other/*"], ["README", "other/a.txt"]),
        (["**/a.txt"], ["logs/a.txt", "other/a.txt"]),
        (["logs/deep"], ["logs/deep/c.txt"]),
    ],
)
def test_ls_with_patterns(arguments: list[str], expected: list[str], ar: Path) -> None:
    assert Result("ls", ar, *arguments).lines == expected
    assert [json.loads(line)["name"] for line in Result("ls", "--json", ar, *arguments).lines] == expected
    assert Result("ls", f"{ar}/{arguments[0]}", *arguments[1:]).lines == expected


def test_ls_of_a_folder_in_an_archive(ar: Path) -> None:
    assert Result("ls", f"{ar}/logs/").lines == ["logs/a.txt", "logs/b.txt", "logs/deep/c.txt"]
    result = Result("ls", ar, "logs/*", "nothing*")
    assert result.lines == ["logs/a.txt", "logs/b.txt"]
    assert result.status == 6
    assert "no member matches 'nothing*'" in result.err


def test_ls_long(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "a.zip",
        (info("d/", stat.S_IFDIR | 0o755), b""),
        (info("d/f", stat.S_IFREG | 0o640), b"x" * 1234),
        (info("l", stat.S_IFLNK | 0o777), b"d/f"),
    )
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW))
    assert Result("ls", "-l", path).lines == [
        f"drwxr-xr-x               0 {when} d/",
        f"-rw-r-----           1,234 {when} d/f",
        f"lrwxrwxrwx               3 {when} l",
    ]


def test_ls_json(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", ("ä\x1b\n", b"data"))
    (line,) = Result("ls", "--json", path).lines
    assert line.isascii()
    member = json.loads(line)
    assert member["name"] == "ä\x1b\n"
    assert (member["size"], member["crc"], member["mode"]) == (4, "adf3f363", "100644")
    assert member["method"] == "stored"
    assert member["mtime"].startswith(time.strftime("%Y-%m-%dT%H:%M", time.localtime(NOW)))


def test_ls_tree(ar: Path) -> None:
    assert Result("ls", "--tree", ar).lines[1:] == [
        "├── README",
        "├── logs/",
        "│   ├── a.txt",
        "│   ├── b.txt",
        "│   └── deep/",
        "│       └── c.txt",
        "└── other/",
        "    └── a.txt",
    ]
    deep = write_zip(ar.parent / "deep.zip", "a/" * 30_000 + "b")
    assert len(Result("ls", "--tree", deep).lines) == 66
    assert Result("ls", "--tree", "--json", ar).status == 2


def test_ls_escapes_what_a_terminal_would_act_on(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", "a\x1b]0;title\x07", "b\nc", "ok")
    for arguments in ([], ["-l"], ["--tree"]):
        out = Result("ls", *arguments, path).out
        assert "\x1b" not in out
        assert "\x07" not in out
        assert "a\\x1b]0;title\\x07" in out
        assert "b\\nc" in out


def test_ls_of_a_base(tmp_path: Path) -> None:
    write_zip(tmp_path / "ar.zip", "a", "b")
    write_zip(tmp_path / "runs/7/ar.ZIP", "c")
    write_zip(tmp_path / ".rear/inbox/h/w-1-1.zip", "hidden")
    (tmp_path / "readme.txt").write_text("no archive")
    (tmp_path / "folder.zip").mkdir()
    os.mkfifo(tmp_path / "pipe.zip")
    result = Result("ls", tmp_path)
    assert result.status == 0
    assert [line.split() for line in result.lines] == [
        ["2", "members", f"{(tmp_path / 'ar.zip').stat().st_size}", "B", "ar.zip"],
        ["1", "members", f"{(tmp_path / 'runs/7/ar.ZIP').stat().st_size}", "B", "runs/7/ar.ZIP"],
    ]
    objects = [json.loads(line) for line in Result("ls", "--json", tmp_path).lines]
    assert [(each["archive"], each["members"]) for each in objects] == [("ar.zip", 2), ("runs/7/ar.ZIP", 1)]
    assert [line.split()[-1] for line in Result("ls", "-l", tmp_path, "runs/**").lines] == ["runs/7/ar.ZIP"]
    assert Result("ls", "--tree", tmp_path).lines[1:] == ["├── ar.zip", "└── runs/", "    └── 7/", "        └── ar.ZIP"]
    (tmp_path / "broken.zip").write_bytes(b"broken")
    result = Result("ls", tmp_path)
    assert result.status == 4
    assert len(result.lines) == 2
    assert "broken.zip" in result.err


def test_ls_of_the_base_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "ar.zip", "a")
    monkeypatch.setenv("REAR_BASE", str(tmp_path))
    assert Result("ls").lines[0].endswith("ar.zip")
    monkeypatch.delenv("REAR_BASE")
    monkeypatch.chdir(tmp_path)
    assert Result("ls").lines[0].endswith("ar.zip")


@pytest.fixture
def busy_base(tmp_path: Path) -> Path:
    layout = Layout(tmp_path)
    write_journal(layout.journal(Pair("host", "w-1", 1)), append(1, "ar.zip", "a\x1b"), append(2, "r/b.zip", "b"))
    write_journal(layout.journal(Pair("host", "w-1", 2)), append(3, "ar.zip", "c"), Abort(3), Close("exit", 1, 100))
    write_journal(layout.journal(Pair("host", "w-1", 3)), append(4, "ar.zip", "logs/d"), Close("exit", 1, 100))
    write_journal(layout.claim_folder("me", Pair("host", "w-2", 1)) / "w-2-1.journal", append(1, "ar.zip", "e"))
    (layout.inbox / "host/readme.txt").write_text("not a journal")
    return tmp_path


def test_ls_pending(busy_base: Path) -> None:
    result = Result("ls", "--pending", busy_base)
    assert result.status == 0
    assert [line.split() for line in result.lines] == [
        ["open", "host", "w-1", "5", "ar.zip/a\\x1b"],
        ["open", "host", "w-1", "5", "r/b.zip/b"],
        ["closed", "host", "w-1", "5", "ar.zip/logs/d"],
        ["claimed", "host", "w-2", "5", "ar.zip/e"],
    ]


@pytest.mark.parametrize(
    ("path", "patterns", "expected"),
    [
        ("", [], ["a\x1b", "b", "logs/d", "e"]),
        ("ar.zip", [], ["a\x1b", "logs/d", "e"]),
        ("r", [], ["b"]),
        ("ar.zip", ["logs/*"], ["logs/d"]),
        ("ar.zip/logs/", [], ["logs/d"]),
        ("none.zip", [], []),
    ],
)
def test_ls_pending_of_a_part(path: str, patterns: list[str], expected: list[str], busy_base: Path) -> None:
    (busy_base / "r").mkdir()
    result = Result("ls", "--pending", "--json", busy_base / path, *patterns)
    assert [json.loads(line)["name"] for line in result.lines] == expected
    if expected == ["b"]:
        assert json.loads(result.lines[0]) == {
            "archive": "r/b.zip", "name": "b", "size": 5, "mtime": json.loads(result.lines[0])["mtime"],
            "host": "host", "worker": "w-1", "rotation": 1, "sequence": 2, "state": "open",
        }  # fmt: skip


def test_ls_pending_with_a_journal_from_the_future(busy_base: Path) -> None:
    path = Layout(busy_base).journal(Pair("host", "w-9", 1))
    path.write_bytes(encode_line({"kind": "open", "format_version": 99}))
    result = Result("ls", "--pending", busy_base)
    assert len(result.lines) == 4
    assert result.status == 4
    assert "w-9-1.journal" in result.err
    assert "99" in result.err


def test_ls_pending_outside_a_base(tmp_path: Path) -> None:
    assert Result("ls", "--pending", tmp_path).status == 0
    assert Result("ls", "--pending", tmp_path / "no.zip").status == 3
    assert Result("ls", "--pending", write_zip(tmp_path / "a.zip", "m")).status == 2


@pytest.mark.parametrize("command", ["ls", "cat", "get"])
def test_bad_archives(command: str, tmp_path: Path) -> None:
    target = ["-C", tmp_path / "out"] if command == "get" else []
    result = Result(command, tmp_path / "no.zip/m", *target)
    assert result.status == 3
    assert "no.zip" in result.err
    (tmp_path / "text.zip").write_bytes(b"just text")
    result = Result(command, tmp_path / "text.zip/m", *target)
    assert result.status == 4
    assert "text.zip" in result.err
    assert result.out == ""


def test_no_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = write_zip(tmp_path / "a.zip", "m")
    path.chmod(0)
    for command in ("ls", "cat", "get"):
        result = Result(command, f"{path}/m")
        assert result.status == 3
        assert "a.zip" in result.err


# --- cat ----------------------------------------------------------------------------------------------------------


def test_cat(ar: Path) -> None:
    result = Result("cat", f"{ar}/README", f"{ar}/logs/a.txt")
    assert (result.status, result.out) == (0, "content of READMEcontent of logs/a.txt")


def test_cat_goes_on_after_an_error(ar: Path) -> None:
    result = Result("cat", f"{ar}/readme", f"{ar}/README", ar, f"{ar}/logs")
    assert result.status == 6
    assert result.out == "content of README"
    assert "did you mean 'README'" in result.err
    assert "no member in it" in result.err


def test_cat_reports_damage(ar: Path) -> None:
    data = bytearray(ar.read_bytes())
    data[40] ^= 0xFF
    ar.write_bytes(data)
    result = Result("cat", f"{ar}/README")
    assert result.status == 4
    assert "README" in result.err


def test_as_real_processes(ar: Path) -> None:
    """Bytes as they are, one clear line for an error, and no complaint when the reader leaves."""
    rear = [sys.executable, "-m", "rear"]
    data = bytes(range(256)) * 5000
    write_zip(ar, ("big", data), *(f"member {number:06}" for number in range(20_000)))
    result = subprocess.run([*rear, "cat", f"{ar}/big"], capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, data, b"")
    result = subprocess.run([*rear, "ls", f"{ar.parent}/no.zip"], capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (3, b"")
    assert result.stderr.count(b"\n") == 1
    assert b"no.zip" in result.stderr
    process = subprocess.Popen([*rear, "ls", ar], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"big\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() in (0, 1, 141)


# --- get ----------------------------------------------------------------------------------------------------------


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
    "../up", "a/../../up", "/abs", "..", "a/..", "C:/x", "c:x", "a\\..\\b", "a//b", "a/./b", "nul\n", "/", "\x1b",
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
    data = bytearray(ar.read_bytes())
    data[offset + 30 + len("logs/a.txt") + 6] ^= 0xFF
    ar.write_bytes(data)
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
