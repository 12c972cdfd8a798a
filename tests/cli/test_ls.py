"""``rear ls``: in a pipe, and on a terminal beside the real ``ls``."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from checkout import SUPPORT
from listings import NOW, Result, append, info, write_journal, write_zip
from programs import start_rear
from terminal import on_terminal

import rear
from bench import archives
from rear.cli.listing.columns import Colors, display_width, in_columns
from rear.cli.listing.levels import cut
from rear.cli.listing.selection import split
from rear.core.layout import Layout
from rear.core.records import Abort, Close, Pair
from rear.core.text import shown
from rear.errors import MemberNotFoundError, UsageError
from rear.journal.codec import encode_line
from rear.read.patterns import Patterns

PLAIN = {"NO_COLOR": "1", "LC_ALL": "C.UTF-8"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of many lengths of names, sizes and times."""
    folder = tmp_path_factory.mktemp("ls") / "d"
    chance = random.Random(5)
    for number in range(70):
        path = folder / f"{'sub/' * (number % 7 == 0)}{'x' * chance.randrange(1, 28)}{number}.{'txt' * (number % 2)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (number * 37 % 101 + number * 3000))
        os.utime(path, (NOW, NOW + number * 977 % 5003 * 1000))
    return folder


@pytest.fixture(scope="module")
def archive(folder: Path) -> Path:
    subprocess.run(["zip", "-qr", "../ar.zip", "."], cwd=folder, check=True)
    return folder.parent / "ar.zip"


def gnu_ls(*options: str, folder: Path) -> list[str]:
    command = ["ls", "-p", *options, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    return done.stdout.splitlines()


# ---- on a terminal


@pytest.mark.parametrize("columns", [20, 80, 133, 200])
def test_columns_are_those_of_ls(columns: int, folder: Path, archive: Path) -> None:
    shown = on_terminal("rear", "ls", archive, columns=columns, environment=PLAIN)
    assert shown.lines == gnu_ls("-C", "-T0", f"-w{columns}", folder=folder)
    assert shown.status == 0


def test_columns_variable_and_folders(folder: Path, archive: Path) -> None:
    shown = on_terminal("rear", "ls", f"{archive}/sub", columns=200, environment={**PLAIN, "COLUMNS": "50"})
    assert shown.lines == gnu_ls("-C", "-T0", "-w50", folder=folder / "sub")


@pytest.mark.parametrize("options", ["-1", "-1t", "-1S", "-1r", "-1tr", "-1Sr"])
def test_order_is_that_of_ls(options: str, folder: Path, archive: Path) -> None:
    ours, theirs = Result("ls", "-d1", options, archive).lines, gnu_ls(options, folder=folder)
    # A folder has the time and the size of what is in it here, but not there.
    assert [name for name in ours if name != "sub/"] == [name for name in theirs if name != "sub/"]
    assert "sub/" in ours
    if options == "-1tr":
        assert on_terminal("rear", "ls", options, archive, environment=PLAIN).lines == ours


def test_one_level_in_a_long_list(archive: Path, folder: Path) -> None:
    lines = Result("ls", "-l", "-d1", archive).lines
    (sub,) = [line for line in lines if line.endswith(" sub/")]
    below = [path.stat() for path in (folder / "sub").iterdir()]
    newest = max(status.st_mtime for status in [*below, (folder / "sub").stat()])
    expected = f"{sum(status.st_size for status in below):,}", time.strftime("%H:%M:%S", time.localtime(newest))
    assert sub.split()[0] == stat.filemode((folder / "sub").stat().st_mode)
    assert (sub.split()[1], sub.split()[3]) == expected
    assert on_terminal("rear", "ls", "-l", archive).lines == lines
    human = Result("ls", "-lh", "-d1", archive).lines
    assert [line.split()[-1] for line in human] == [line.split()[-1] for line in lines]
    assert any(" KiB " in line for line in human)


def test_recursive_is_what_a_pipe_gets(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
    assert Result("ls", archive).lines == names
    assert on_terminal("rear", "ls", "-R", archive).lines == names
    assert on_terminal("rear", "ls", archive, stdout_to_pipe=True).out.decode().splitlines() == names
    assert Result("ls", "-r", archive).lines == names[::-1]
    with zipfile.ZipFile(archive) as opened:
        by_size = sorted(opened.infolist(), key=lambda member: member.file_size, reverse=True)
    assert sorted(Result("ls", "-S", archive).lines[-20:]) == sorted(member.filename for member in by_size[-20:])
    assert Result("ls", "-S", archive).lines[:20] == [member.filename for member in by_size[:20]]
    assert Result("ls", "-lS", archive, "sub/*").lines[0].endswith(" " + next(
        member.filename for member in by_size if member.filename.startswith("sub/")
    ))  # fmt: skip


def test_patterns_on_a_terminal(archive: Path) -> None:
    names = Result("ls", archive, "sub/*.txt").lines
    shown = on_terminal("rear", "ls", archive, "sub/*.txt", environment=PLAIN)
    assert sorted(" ".join(shown.lines).split()) == sorted(names)
    assert on_terminal("rear", "ls", f"{archive}/none").status == 6
    assert on_terminal("rear", "ls", archive, "none").status == 6


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"d/": "01;34", "run": "01;32", "link": "01;36", "a.zip": "01;31", "b.txt": None}),
        ({"LS_COLORS": "di=4:*.txt=38;5;9:ex=:fi=2"}, {"d/": "4", "run": "2", "b.txt": "38;5;9", "link": None}),
        ({"LS_COLORS": "*.tar.gz=1:*.gz=2:di=\x1b]0;x\x07:*.TXT=3"}, {"t.tar.gz": "1", "d/": None, "b.txt": None}),
        ({"NO_COLOR": "1"}, {"d/": None, "run": None}),
        ({"TERM": "dumb"}, {"d/": None, "run": None}),
    ],
)
def test_colors(environment: dict[str, str], expected: dict[str, str | None], tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "a.zip", "d/x", (info("run", stat.S_IFREG | 0o755), b"#!"), "b.txt", "a.zip", "t.tar.gz",
        (info("link", stat.S_IFLNK | 0o777), b"run"),
    )  # fmt: skip
    screen = on_terminal("rear", "ls", path, environment=environment).screen
    for name, code in expected.items():
        if code is None:
            assert re.search(rf"(^|  ){re.escape(name)}(  |\r)", screen), (name, screen)
        else:
            assert f"\x1b[{code}m{name}\x1b[0m" in screen
    assert "\x1b]" not in screen
    assert "\x1b" not in Result("ls", path).out


def test_names_that_a_terminal_would_act_on(tmp_path: Path) -> None:
    names = ["a\x1b]0;title\x07", "b\nc", "\x9b31m", "rtl\u202egpj", "wide 漢字", "e\u0301", "back\\slash"]
    path = write_zip(tmp_path / "base/a.zip", *names)
    (tmp_path / "base/.rear").mkdir()
    for arguments in (["ls"], ["ls", "-l"], ["ls", "-R"], ["ls", "--tree"], ["find"], ["index", "--csv"]):
        shown = on_terminal("rear", *arguments, path, environment=PLAIN).screen
        without = shown.replace("\r\n", "")
        assert re.search("[\x00-\x1f\x7f-\x9f\u202e]", without) is None, arguments
    for names_as_given in ("ls", "-0"), ("find", "-0"):
        out = on_terminal("rear", *names_as_given, path, stdout_to_pipe=True).out
        prefix = f"{path}/".encode() if names_as_given[0] == "find" else b""
        assert out == b"".join(prefix + name.encode() + b"\0" for name in names)


def test_a_base_on_a_terminal(tmp_path: Path) -> None:
    for number in range(3):
        write_zip(tmp_path / f"runs/{number}/ar.zip", "a", "b")
    write_zip(tmp_path / "top.zip", "a")
    assert on_terminal("rear", "ls", tmp_path, environment=PLAIN).lines == ["runs/  top.zip"]
    runs, top = on_terminal("rear", "ls", "-lh", tmp_path).lines
    assert runs.split()[:2] == ["6", "members"]
    assert runs.split()[-1] == "runs/"
    assert top.split()[:2] == ["1", "members"]
    assert [line.split()[-1] for line in Result("ls", "-S", tmp_path).lines][-1] == "top.zip"
    assert Result("ls", "-0", tmp_path, "runs/**").out.split("\0")[:2] == ["runs/0/ar.zip", "runs/1/ar.zip"]
    assert Result("ls", "--tree", "-d", "2", tmp_path).lines[1:] == [
        "├── runs/", "│   ├── 0/", "│   ├── 1/", "│   └── 2/", "└── top.zip",
    ]  # fmt: skip


# ---- pieces


def test_cut() -> None:
    assert [cut(name, 1) for name in ("a", "a/", "a/b", "a/b/")] == ["a", "a/", "a/", "a/"]
    assert [cut(name, 2) for name in ("a", "a/", "a/b", "a/b/", "a/b/c", "/x/y")] == [
        "a", "a/", "a/b", "a/b/", "a/b/", "/x/",
    ]  # fmt: skip


def test_columns_of_very_many_names_take_no_long() -> None:
    names = [f"{number}" for number in range(200_000)]
    begun = time.process_time()
    lines = list(in_columns(names, names, width=80))
    assert time.process_time() - begun < 5
    assert len(lines) == 20_000
    assert max(map(len, lines)) <= 80
    assert list(in_columns([], [], width=80)) == []
    assert list(in_columns(["x" * 100], ["x" * 100], width=80)) == ["x" * 100]


def test_wide_names_keep_columns_straight() -> None:
    assert [display_width(text) for text in ("abc", "漢字", "é", "e\u0301")] == [3, 4, 1, 1]
    assert list(in_columns(["漢字", "b", "c", "d"], ["漢字", "b", "c", "d"], width=8)) == ["漢字  c", "b     d"]
    assert not Colors("")


# ---- options, metadata, JSON


@pytest.mark.parametrize(
    "options",
    [
        ["--tree", "-l"], ["--tree", "--json"], ["--json", "-t"], ["-0", "-l"], ["-0", "--json"], ["--pending", "-S"],
        ["-R", "-d1"], ["--json", "-d1"], ["--tree", "--meta"], ["--pending", "-0"],
    ],
)  # fmt: skip
def test_options_that_contradict_each_other(options: list[str], archive: Path) -> None:
    result = Result("ls", *options, archive)
    assert (result.status, result.out) == (2, "")
    assert "goes not with" in result.err


def test_metadata_on_request(tmp_path: Path) -> None:
    with rear.rear_fs(tmp_path):
        for name, metadata in (("a", {"who": "ä\x1b", "n": 1}), ("b", None)):
            with rear.rear_open(f"ar.zip/{name}", "w", metadata=metadata) as file:
                file.write("x")
    list(rear.scavenge(tmp_path))
    subprocess.run(["zip", "-q", tmp_path / "ar.zip", "terminal.py"], cwd=SUPPORT, check=True)
    first, second, third = Result("ls", "--meta", tmp_path / "ar.zip").lines
    assert first.endswith(' a  {"who": "ä\\\\u001b", "n": 1}')
    assert second.endswith(" b")
    assert third.endswith(" terminal.py")
    objects = [json.loads(line) for line in Result("ls", "--json", "--meta", tmp_path / "ar.zip").lines]
    assert [each["metadata"] for each in objects] == [{"who": "ä\x1b", "n": 1}, None, None]
    assert "metadata" not in json.loads(Result("ls", "--json", tmp_path / "ar.zip").lines[0])


def test_times_of_other_centuries(tmp_path: Path) -> None:
    seconds = {"old": 315_532_800, "future": 4_350_000_000, "before": -2_000_000_000}
    with rear.rear_fs(tmp_path / "base"):
        for name, second in seconds.items():
            picked = tmp_path / name
            picked.write_text("x")
            os.utime(picked, (0, second))
            with rear.rear_pickup(picked, f"ar.zip/{name}"):
                pass
    list(rear.scavenge(tmp_path / "base"))
    path = tmp_path / "base/ar.zip"
    # What a Zip entry cannot say (before 1901 and after 2038), rear's own field does: the index has it, and get.
    assert [line.split()[2][:4] for line in Result("find", "-l", path).lines] == ["1980", "2107", "1906"]
    assert [json.loads(line)["mtime"][:4] for line in Result("find", "--json", path).lines] == ["1980", "2107", "1906"]
    assert [line.split()[-1] for line in Result("ls", "-lt", path).lines][-1] == "before"
    assert Result("get", path, "-C", tmp_path / "out").status == 0
    assert {name: int((tmp_path / "out" / name).stat().st_mtime) for name in seconds} == seconds
    # A date that is none: month 0, day 0, and the 31st of February 2107.
    data = bytearray(write_zip(tmp_path / "bad.zip", "a", "b").read_bytes())
    for number, date in enumerate((b"\0\0", b"\x5f\xff")):
        position = -1
        for _ in range(number + 1):
            position = data.index(b"PK\x01\x02", position + 1)
        data[position + 14 : position + 16] = date
    (tmp_path / "bad.zip").write_bytes(data)
    for options in (["-l"], ["--json"], ["-lt"]):
        assert Result("ls", *options, tmp_path / "bad.zip").status == 0


#


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


# ---- in a pipe


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


# ---- bad luck


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "many.zip"
    archives.write(path, ((f"folder {number % 9}/member {number:07}", b"") for number in range(200_000)))
    return path


def test_a_reader_that_leaves(many: Path) -> None:
    for arguments in (["ls"], ["ls", "-0"], ["find"], ["index", "--csv"]):
        command = f"{sys.executable} -m rear {' '.join(arguments)} {many} | head -c 100 >&2; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout == "141\n", arguments
        assert "Traceback" not in done.stderr
        assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("command", "after_seconds"), [(["ls", "-lR"], 0.0), (["ls", "-S"], 0.3), (["find"], 0.1), (["find", "-0"], 0.5)]
)
def test_control_c(command: list[str], after_seconds: float, many: Path) -> None:
    shown = on_terminal("rear", *command, many, interrupt_after_seconds=after_seconds, interrupt_once_open=many)
    assert shown.status in (130, 0), shown.screen[-2000:]
    assert "Traceback" not in shown.screen
    assert ("interrupted" in shown.screen) is (shown.status == 130)


def test_places_that_are_not_there(tmp_path: Path) -> None:
    for arguments in (["ls"], ["ls", "--pending"], ["find"], ["cat"], ["get"], ["index"]):
        result = Result(*arguments, tmp_path / "gone/ar.zip/x")
        assert (result.status, result.err.count("\n")) == (3, 1)
        assert "gone" in result.err


def test_closed_streams(archive: Path) -> None:
    told = b"rear: standard output: Bad file descriptor\n"
    for closed, status, error in ((">&-", 3, told), ("2>&-", 0, b""), (">&- 2>&-", 3, b""), ("<&-", 0, b"")):
        command = f"{sys.executable} -m rear ls {archive} {closed}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
        assert (done.returncode, done.stderr, bool(done.stdout)) == (status, error, status == 0)


def test_a_terminal_that_disappears(many: Path) -> None:
    master, slave = pty.openpty()
    process = start_rear("ls", "-lR", many, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    assert os.read(master, 100).startswith(b"-rw")
    os.close(master)
    # It is no session leader with a controlling terminal, so no SIGHUP comes: each write fails.
    assert process.wait(timeout=60) == 3


def test_what_may_not_be_read(tmp_path: Path) -> None:
    base = tmp_path / "base"
    for name in ("a.zip", "closed.zip", "sub/b.zip", "shut/c.zip"):
        write_zip(base / name, f"in {name}".replace("/", "-"))
    (base / ".rear/index").mkdir(parents=True)
    (base / "closed.zip").chmod(0)
    (base / "shut").chmod(0)
    (base / ".rear").chmod(0)
    try:
        command = [sys.executable, "-m", "rear"]
        if os.geteuid() == 0:
            # Root, but without the right to overrule modes.
            command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
        results = [
            subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
            for arguments in (["ls", base], ["find", base], ["ls", f"{base}/closed.zip"])
        ]
    finally:
        (base / "shut").chmod(0o755)
        (base / ".rear").chmod(0o755)
    listed, found, refused = results
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["a.zip", "sub/b.zip"]
    assert found.stdout.splitlines() == [f"{base}/a.zip/in a.zip", f"{base}/sub/b.zip/in sub-b.zip"]
    assert (listed.returncode, found.returncode, refused.returncode) == (3, 3, 3)
    for place in ("closed.zip", "shut"):
        assert place in listed.stderr
        assert place in found.stderr
    assert listed.stderr.count("\n") == 2
    assert refused.stderr.count("\n") == 1
    assert "Permission denied" in refused.stderr


def test_a_link_to_itself_hides_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "loop.zip").symlink_to("loop.zip")
    write_zip(tmp_path / "ar.zip", "a")
    result = Result("ls", "-R", tmp_path)
    assert "ar.zip" in result.out, result.err
    assert "loop.zip" in result.err
