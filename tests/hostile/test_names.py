"""Names of members: which are good is the same for whoever writes, checks, lists, reads and extracts them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bases import members, scavenge, write
from listings import Result, info, write_zip
from programs import run_rear

import rear
from rear.errors import PathError
from rear.fsck.base import fsck

LONG = "/".join(["n" * 254] * 256)
LONG = f"{'n' * (65_535 - len(LONG) - 1)}/{LONG}"

GOOD = [
    # Drives, devices, and other things of other systems.
    "q:/x", "r:", "s:t", "con", "nul.txt", "COM1", "trailing.", "trailing ", "dots..", "...", "..a",
    "a:b:c", "::$DATA",
    # What a shell may take for something else.
    "~", "~root/x", "-rf", "--", "--help", "-", " leading", "  ", "a;b|c&d<e>f", "$HOME", "a\"b'c`d`", "#a", "!x",
    "[c]", "a*?", "x/*", "**",
    # Letters.
    "\u202eevil.txt", "\u2066x", "a\u200bb", "a\u2028b", "\u00e9.txt", "e\u0301.txt", "\u00df", "\U0001f389", "\ufeffx",
    # Names that rear gives, and that archives have.
    "x~1.txt", "x.txt", "x~1~1", ".rear/x", ".rear-0.part", "b.zip/x", "ar.zip/ar.zip", "z.zip", ".hidden",
    "._x", "x.partial", "%0A", "%2e%2e/x", "%2F", "100%",
    # Long and deep ones.
    "y" * 255, "d/" * 300 + "x", "\u00e9" * 127, LONG,
]  # fmt: skip

BAD = [
    "/abs", "a//b", "../x", "a/../b", "a/..", "./x", "a/./b", ".", "..", "a\\b", "C:\\x", "..\\x", "a\nb", "\x1b[31m",
    "\x7f", "\x85", "a\0b", "\udcff", "\ud800", "x" * 65_536, "\u00e9" * 32_768,
]  # fmt: skip

#: Paths of archives, with a member.
BAD_TARGETS = [
    "ar.z\u0131p/x", "ar.Z\u0130P/x", "x/x", ".rear/ar.zip/x", ".REAR/ar.zip/x", "sub/.rear/ar.zip/x",
    "sub/.Rear/a/ar.zip/x", "folder.zip/x", "folder.zip/ar.zip/x", "file/ar.zip/x", "file/deep/ar.zip/x",
    "link/ar.zip/x", "pipe.zip/x", "dangling.zip/x", "n" * 241 + ".zip/x", "n/" * 600 + "ar.zip/x",
    "a\\b.zip/x", "a\n.zip/x", "../ar.zip/x", "/ar.zip/x",
]  # fmt: skip


def data_of(name: str) -> bytes:
    return f"content of {name[:100]} of {len(name)}".encode("utf-8", "backslashreplace")


def read_below(folder: Path, name: str) -> bytes:
    """Read a file whose path may be too long for one call."""
    with contextlib.ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        for part in name.split("/"):
            descriptor = os.open(part, os.O_RDONLY, dir_fd=descriptor)
            stack.callback(os.close, descriptor)
        return os.read(descriptor, 1 << 16)


def written_by_open(base: Path, work: Path, targets: list[str]) -> list[str]:
    taken = []
    with rear.rear_fs(base) as fs:
        for target in targets:
            with contextlib.suppress(PathError), fs.open(target, "wb") as file:
                file.write(data_of(target))
                taken.append(target)
    return taken


def written_by_pickup(base: Path, work: Path, targets: list[str]) -> list[str]:
    taken = []
    with rear.rear_fs(base) as fs:
        for target in targets:
            (work / "file").write_bytes(data_of(target))
            with contextlib.suppress(PathError):
                fs.pickup(work / "file", target, keep=True).close()
                taken.append(target)
    return taken


def written_by_put(base: Path, work: Path, targets: list[str]) -> list[str]:
    taken = []
    for target in targets:
        (work / "file").write_bytes(data_of(target))
        result = Result("put", work / "file", f"{base}/{target}")
        assert result.status in (0, 2), result.err
        taken += [target] * (result.status == 0)
    return taken


def written_by_path(base: Path, work: Path, targets: list[str]) -> list[str]:
    taken = []
    with rear.rear_fs(base):
        for target in targets:
            with contextlib.suppress(PathError):
                rear.Path(f"{base}/{target}").write_bytes(data_of(target))
                taken.append(target)
    return taken


WRITERS = [written_by_open, written_by_pickup, written_by_put]


@pytest.mark.parametrize("writer", [*WRITERS, written_by_path])
def test_good_names(writer: Callable[[Path, Path, list[str]], list[str]], base: Path, tmp_path: Path) -> None:
    targets = [f"ar.zip/{name}" for name in GOOD]
    (base / ".rear").mkdir(parents=True)
    assert writer(base, tmp_path, targets) == targets
    assert not [event for event in scavenge(base) if event.severity != "info"]
    assert run_rear("fsck", "--deep", base).returncode == 0
    archive = base / "ar.zip"
    with zipfile.ZipFile(archive) as opened:
        assert sorted(opened.namelist()) == sorted(GOOD)
    assert sorted(Result("ls", "-0", archive).out.split("\0")[:-1]) == sorted(GOOD)
    extracted = Result("get", archive, "-C", tmp_path / "out")
    assert (extracted.status, extracted.err) == (0, "")
    reader = rear.open_archive(archive)
    for name in GOOD:
        data = data_of(f"ar.zip/{name}")
        assert read_below(tmp_path / "out", name) == data
        assert reader.read(name) == data
        assert Result("cat", f"{archive}/{name}").out.encode() == data
        assert rear.Path(f"{archive}/{name}").read_bytes() == data
        assert [found.member.name for found in rear.find(base, name) if found.member.name == name] == [name]
    found = Result("find", "-0", base).out.split("\0")[:-1]
    assert sorted(found) == sorted(f"{archive}/{name}" for name in GOOD)
    reader.close()


def odd_base(base: Path) -> None:
    (base / ".rear").mkdir(parents=True)
    (base / "folder.zip").mkdir()
    (base / "file").write_bytes(b"")
    (base.parent / "elsewhere").mkdir()
    (base / "link").symlink_to(base.parent / "elsewhere")
    os.mkfifo(base / "pipe.zip")
    (base / "dangling.zip").symlink_to("nothing.zip")


@pytest.mark.parametrize("writer", WRITERS)
def test_bad_names(writer: Callable[[Path, Path, list[str]], list[str]], base: Path, tmp_path: Path) -> None:
    """What no scavenger could merge is refused before it is acknowledged, by whichever way it comes."""
    odd_base(base)
    targets = [f"ar.zip/{name}" for name in BAD]
    if writer is written_by_put:
        # As by cp, a target may be an absolute path, and lie in a folder that is no base.
        targets += [target for target in BAD_TARGETS if target[0] not in "./"]
    else:
        targets += BAD_TARGETS
    assert writer(base, tmp_path, targets) == []
    assert not scavenge(base)[-1].as_json().get("members")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not [path for path in base.rglob("*.zip") if path.is_file()]


def test_put_says_what_is_wrong_with_an_archive(base: Path, tmp_path: Path) -> None:
    odd_base(base)
    (tmp_path / "file").write_bytes(b"x")
    for target, reason in {
        "n" * 241 + ".zip/x": "longer than 240 bytes", "sub/.rear/ar.zip/x": "'.rear'", "a\\b.zip/x": "backslash",
        "folder.zip/x": "only folders", "link/ar.zip/x": "outside of the base", "pipe.zip/x": "FIFO",
        "file/ar.zip/x": "is a file",
    }.items():  # fmt: skip
        result = Result("put", tmp_path / "file", f"{base}/{target}")
        assert result.status == 2, target
        assert reason in result.err, result.err


def test_names_that_are_too_long_for_this_file_system(base: Path, tmp_path: Path) -> None:
    """They are good names elsewhere: told one by one, and the rest is extracted."""
    write(
        base,
        {f"ar.zip/{'z' * 256}": b"long", "ar.zip/a/b": b"below", f"ar.zip/a/{'y' * 60_000}": b"y", "ar.zip/c": b"c"},
    )
    scavenge(base)
    result = Result("get", base / "ar.zip", "-C", tmp_path / "out")
    assert result.status
    assert result.err.count("File name too long") == 2
    assert len(result.err) < 3_000
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "c"]
    assert Result("cat", f"{base}/ar.zip/{'z' * 256}").out == "long"


ARCHIVES = [
    "-rf/ar.zip", "~/ar.zip", " /ar.zip", ".zip", ".hidden/.ar.zip", "._ar.zip", ".nfs0001.zip", "con.zip", "q:/ar.zip",
    "AR.ZIP", "ar.zip", "ar-1.zip", "a:b.zip", "\u202e.zip", "e\u0301.zip", "%0A.zip", "lost+found/ar.zip",
    ".DS_Store/ar.zip", "ar.zip.zip", "a.zip~/ar.zip", "x*[c].zip", "n" * 236 + ".zip", "d/" * 508 + "ar.zip",
]  # fmt: skip


def test_good_paths_of_archives(base: Path, tmp_path: Path) -> None:
    """They are merged, found by their index, and clean, also where a path is longer than SQLite takes."""
    for round_number in range(2):
        write(base, {f"{archive}/{round_number}": archive.encode() for archive in ARCHIVES})
        assert not [event for event in scavenge(base) if event.severity != "info"]
    done = run_rear("fsck", base)
    assert (done.returncode, "clean" in done.stderr + done.stdout) == (0, True), done.stderr
    found = rear.find(base, "1")
    assert sorted(member.archive for member in found) == sorted(f"{base}/{archive}" for archive in ARCHIVES)
    assert (found.unindexed, found.errors) == ([], [])
    (tmp_path / "file").write_bytes(b"x")
    for archive in ARCHIVES:
        assert Result("cat", f"{base}/{archive}/1").out.encode() == archive.encode()
        assert Result("put", tmp_path / "file", f"{base}/{archive}/put").status == 0
    shutil.rmtree(base / "d", ignore_errors=True)


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_name_whose_folder_is_a_file(names: tuple[str, str], base: Path, tmp_path: Path) -> None:
    """Both are kept and read; a folder has place for one of the two at a time."""
    for name in names:
        write(base, {f"ar.zip/{name}": name.encode()})
    scavenge(base)
    assert run_rear("fsck", base).returncode == 0
    assert members(base) == {name: name.encode() for name in names}
    for name in names:
        assert rear.Path(f"{base}/ar.zip/{name}").read_bytes() == name.encode()
        assert Result("cat", f"{base}/ar.zip/{name}").out == name
    result = Result("get", base / "ar.zip", "-C", tmp_path / "out")
    assert result.status == 8
    assert "'a" in result.err
    first = Result("get", f"{base}/ar.zip/a/b", "-C", tmp_path / "other")
    assert (first.status, (tmp_path / "other/a/b").read_text()) == (0, "a/b")


def test_what_get_takes_adopt_takes(base: Path, tmp_path: Path) -> None:
    names = ["./", "./a", "./deep/", "./deep/b", "q:/x", "con", "-rf", "~"]
    path = write_zip(tmp_path / "other.zip", *names)
    assert Result("get", path, "-C", tmp_path / "out").status == 0
    done = run_rear("adopt", path, base, "--into", "ar.zip", "--delete")
    assert done.returncode == 0, done.stderr
    assert not path.exists()
    assert members(base).keys() == {"a", "deep/", "deep/b", "q:/x", "con", "-rf", "~"}
    path = write_zip(tmp_path / "again.zip", "./ar.zip/c", "ar.zip/d")
    assert run_rear("adopt", path, base).returncode == 0
    assert {"c", "d"} < members(base).keys()


# --- names that no member can have, escaped -------------------------------------------------------------------------

ODD_NAMES = [
    b"%0A", b"%0a", b"%250A", b"%%0A", b"%2F", b"%2E%2E", b"%00", b"%C3%A9", "\u00e9".encode(), "e\u0301".encode(),
    b"\xc3\n\xa9", b"\xe2\x82", b"\n", b"..\n", b"\\", b"..\\..\\x", b"C:\\x", b" ", b"-rf\n", b"a~1.txt\n",
    b"\xff" * 80, "\x85".encode(), "\u2028".encode(), b"x.zip\n", b"100%",
]  # fmt: skip


def make_tree(folder: Path) -> Path:
    """Make a tree in which each byte that a name may hold stands at the begin, in the middle, and at the end of one."""
    root = os.fsencode(folder)
    every = [byte for byte in range(1, 256) if byte != ord("/")]
    names = {bytes([byte]) for byte in every} | {b"end%c" % byte for byte in every} | set(ODD_NAMES)
    names |= {b"m%sm" % bytes(every[start : start + 60]) for start in range(0, len(every), 30)}
    names.remove(b".")
    os.makedirs(root)
    for number, name in enumerate(sorted(names)):
        path = os.path.join(root, name)
        with open(path, "wb") as file:
            file.write(name * 3)
        os.chmod(path, 0o640 if number % 2 else 0o644)
        os.utime(path, ns=(10**18 + number, 10**18 + number))
    below = os.path.join(root, b"fol\nder", b"b\\ack", b"%0A", b"\xff%5C")
    os.makedirs(below)
    os.makedirs(os.path.join(root, b"fol\nder", b"emp\tty%0A\n"))
    for name in (b"deep\n", b"%0A\x7f"):
        with open(os.path.join(below, name), "wb") as file:
            file.write(name)
    return folder


def tree(folder: Path) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    root = os.fsencode(folder)
    for place, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            status = os.lstat(path)
            relative = os.path.relpath(path, root)
            if stat.S_ISDIR(status.st_mode):
                found[relative] = None
            elif stat.S_ISLNK(status.st_mode):
                found[relative] = os.readlink(path)
            else:
                with open(path, "rb") as file:
                    found[relative] = file.read(), status.st_mode, status.st_mtime_ns
    return found


def put(base: Path, source: Path) -> Any:
    return run_rear("put", "-r", "--escape-names", f"{source}/.", f"{base}/ar.zip/top/")


def put_into_the_root(base: Path, source: Path) -> Any:
    return run_rear("put", "-r", "--escape-names", f"{source}/.", f"{base}/ar.zip")


def move(base: Path, source: Path) -> Any:
    return run_rear("put", "-r", "--move", "--escape-names", source, f"{base}/ar.zip/top")


def sweep(base: Path, source: Path) -> Any:
    return run_rear("sweep", source, "--into", "ar.zip/top", "--base", base, "--delete", "--escape-names")


def job(base: Path, source: Path) -> Any:
    return run_rear(
        "run", "--base", base, "--into", "ar.zip/j", "--escape-names", "--output", source, "--", "true"
    )  # fmt: skip


def moved_job(base: Path, source: Path) -> Any:
    program = f"cp -a {source}/. $REAR_OUTPUT"
    return run_rear("run", "--base", base, "--into", "ar.zip/j", "--escape-names", "--", "sh", "-c", program)


def pickup(base: Path, source: Path) -> None:
    with rear.rear_fs(base), rear.rear_pickup(source, "ar.zip/top", escape_names=True):
        pass


@pytest.mark.parametrize("way", [put, put_into_the_root, move, sweep, job, moved_job, pickup])
def test_there_and_back(way: Callable[[Path, Path], Any], base: Path, tmp_path: Path) -> None:
    (base / ".rear").mkdir(parents=True)
    source = make_tree(tmp_path / "source")
    if way is not sweep:
        # Links and empty folders are none of a sweep's business.
        os.symlink(b"\xff\n", os.path.join(os.fsencode(source), b"fol\nder", b"li\nnk\\"))
        os.symlink(b"%0A", os.path.join(os.fsencode(source), b"fol\nder", b"%0Alink"))
    else:
        os.rmdir(os.path.join(os.fsencode(source), b"fol\nder", b"emp\tty%0A\n"))
    before = tree(source)
    done = way(base, source)
    if done is not None:
        assert (done.returncode, done.stderr if way is not sweep else "") == (0, "") or "archived in" in done.stderr, (
            done.stderr
        )
    left = tree(source) if source.exists() else {}
    gone = {path for path, what in before.items() if what is not None} - left.keys()
    assert bool(gone) == (way in (move, sweep, pickup))
    assert not gone or not [path for path, what in left.items() if what is not None]
    scavenge(base)
    assert run_rear("fsck", "--deep", base).returncode == 0
    names = members(base).keys()
    assert not [name for name in names if "\n" in name or "\\" in name]
    selected = "j/output" if way in (job, moved_job) else "" if way is put_into_the_root else "top"
    result = Result(
        "get", f"{base}/ar.zip/{selected}".rstrip("/"), "-C", tmp_path / "out", "--unescape-names",
        "--strip", str(len(selected.split("/")) if selected else 0),
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted({path.split(b"/")[0] for path in before})
    assert tree(tmp_path / "out") == before
    # As they are stored, without the option.
    plain = Result("get", base / "ar.zip", "-C", tmp_path / "plain")
    assert (plain.status, plain.err) == (0, "")


def test_again_and_again(base: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a\n.txt", "a%0A.txt", "b\\", "\udcff"):
        (source / name).write_text(name.encode("utf-8", "backslashreplace").decode())
    (base / ".rear").mkdir(parents=True)
    names = {"a%0A.txt", "a%250A.txt", "b%5C", "%FF"}
    told = run_rear("sweep", source, "--into", "ar.zip", "--base", base, "--escape-names", "-n", "--json")
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert {line["name"] for line in lines if line["kind"] == "collected"} == names, told.stdout
    assert not (base / "ar.zip").exists()
    for _ in range(2):
        assert put_into_the_root(base, source).returncode == 0
        scavenge(base)
        swept = run_rear("sweep", source, "--into", "ar.zip", "--base", base, "--escape-names", "--json")
        assert swept.returncode == 0, swept.stdout + swept.stderr
        assert members(base).keys() == names
    # One that has changed is another member, whose name is taken back as well.
    (source / "a\n.txt").write_text("changed")
    swept = run_rear("sweep", source, "--into", "ar.zip", "--base", base, "--escape-names", "--delete")
    assert swept.returncode == 0, swept.stderr
    assert os.listdir(source) == []
    assert members(base).keys() == {*names, "a%0A~1.txt"}
    assert Result("get", base / "ar.zip", "-C", tmp_path / "out", "--unescape-names").status == 0
    assert (tmp_path / "out/a\n~1.txt").read_text() == "changed"
    assert (tmp_path / "out/a%0A.txt").read_text() == "a%0A.txt"


def test_targets_are_escaped_too(base: Path, tmp_path: Path) -> None:
    (base / ".rear").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    for target, options in {"a\nb": {}, "s\n": {"input": "x"}, "%0A": {}}.items():
        source = "-" if options else tmp_path / "file"
        done = run_rear("put", "--escape-names", source, f"{base}/ar.zip/{target}", **options)
        assert done.returncode == 0, done.stderr
    done = run_rear("run", "--escape-names", "--base", base, "--into", "ar.zip/j\\1", "-q", "--", "true")
    assert done.returncode == 0, done.stderr
    done = run_rear("sweep", "--escape-names", tmp_path, "--into", "swept.zip/s\n", "--base", base)
    assert done.returncode == 0, done.stderr
    scavenge(base)
    assert members(base).keys() == {
        "a%0Ab",
        "s%0A",
        "%250A",
        *(f"j%5C1/{name}" for name in ("run.json", "stderr", "stdout")),
    }
    assert "s%0A/file" in members(base, "swept.zip")


def test_without_the_option_each_way_tells_of_it(base: Path, tmp_path: Path) -> None:
    (base / ".rear").mkdir(parents=True)
    source = tmp_path / "source"
    source.mkdir()
    (source / "a\\b").write_text("x")
    (source / "good").write_text("x")
    foreign = write_zip(tmp_path / "foreign.zip", "a\nb", "good")
    for arguments in (
        ["put", "-r", source, base / "ar.zip"],
        ["put", "-r", source, base / "ar.zip/"],
        ["put", source / "a\\b", base / "ar.zip/"],
        ["put", source / "good", base / "ar.zip/a\\b"],
        ["sweep", source, "--into", "ar.zip", "--base", base],
        ["run", "--base", base, "--into", "ar.zip/j", "--output", source, "--", "true"],
        ["run", "--base", base, "--into", "ar.zip/j\\", "--", "true"],
        ["adopt", foreign, base, "--into", "ar.zip"],
    ):
        done = run_rear(*arguments)
        assert done.returncode, arguments
        assert "--escape-names" in done.stderr, (arguments, done.stderr)
    with rear.rear_fs(base) as fs, pytest.raises(PathError, match="escape_names=True"):
        fs.pickup(source, "ar.zip/x").close()


def test_adopted_names(base: Path, tmp_path: Path) -> None:
    latin = info("na\u00efve")
    foreign = write_zip(tmp_path / "foreign.zip", "a\nb", "c\\d", "%0A", "plain", (latin, b"x"))
    done = run_rear("adopt", foreign, base, "--into", "ar.zip/f", "--escape-names", "--delete")
    assert done.returncode == 0, done.stderr
    assert not foreign.exists()
    assert members(base).keys() == {f"f/{name}" for name in ("a%0Ab", "c%5Cd", "%250A", "plain", "na\u00efve")}
    again = write_zip(tmp_path / "again.zip", "ar.zip/a\nb", "ar.zip/d\\/")
    done = run_rear("adopt", again, base, "--escape-names")
    assert done.returncode == 0, done.stderr
    assert {"a%0Ab", "d%5C/"} < members(base).keys()


def test_no_name_that_is_taken_back_leaves_the_folder(tmp_path: Path) -> None:
    names = ["%2E%2E/x", "%2F%2Fetc", "..%2Fx", "%2E", "%00", "%2e%2e", "%C0%AE%C0%AE/x", "%C0%AF", "%5C..%5Cx", "%0A"]
    path = write_zip(tmp_path / "zip/a.zip", *names)
    result = Result("get", path, "-C", tmp_path / "zip/out", "--unescape-names")
    assert (result.status, result.err) == (0, "")
    assert sorted(os.listdir(tmp_path / "zip")) == ["a.zip", "out"]
    taken_back = {b"\xc0\xae\xc0\xae", b"\xc0\xaf", b"\\..\\x", b"\n"}
    assert set(os.listdir(os.fsencode(tmp_path / "zip/out"))) == taken_back | {
        os.fsencode(name.split("/")[0])
        for name in names
        if name not in ("%C0%AE%C0%AE/x", "%C0%AF", "%5C..%5Cx", "%0A")
    }
    shutil.rmtree(tmp_path / "zip")


def test_the_longest_name_has_room_for_the_number_of_a_full_archive(base: Path) -> None:
    stem = "n" * 236
    for run in range(3):
        with rear.rear_fs(base) as fs:
            for number in range(2):
                fs.open(f"{stem}.zip/{run}/{number}", "w").close()
        assert [event for event in rear.scavenge(base, max_members=2) if event.severity != "info"] == []
    assert sorted(path.name for path in base.glob("*.zip")) == [f"{stem}-0.zip", f"{stem}-1.zip", f"{stem}.zip"]
    checked = list(fsck(base, deep=True))[-1]
    assert (checked.archives, checked.members) == (3, 6)
