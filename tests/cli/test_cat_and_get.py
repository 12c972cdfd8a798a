"""``rear cat`` and ``rear get`` as people use them; what they refuse stands in test_ls_cat_get.py."""

from __future__ import annotations

import random
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from listings import Result, info, write_zip
from programs import run_rear, start_rear
from terminal import on_terminal

REAR = [sys.executable, "-m", "rear"]


@pytest.fixture
def ar(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "ar.zip", "README", "logs/a.txt", "logs/b.txt", "logs/[x].txt", "logs/deep/c.txt", "d/")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.9 GB of zeros in 0.9 MB: long enough to look at a bar."""
    path = tmp_path_factory.mktemp("large") / "large.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(3):
            with archive.open(f"zeros-{number}", "w") as member:
                for _ in range(300):
                    member.write(bytes(1_000_000))
    return path


# ---- cat


def test_cat_of_several_patterns_and_archives(ar: Path) -> None:
    other = write_zip(ar.parent / "other.zip", "x")
    result = Result("cat", f"{ar}/logs/*.txt", f"{other}/x", f"{ar}/README", f"{ar}/README")
    assert result.out == "".join(
        f"content of {name}" for name in ("logs/a.txt", "logs/b.txt", "logs/[x].txt", "x", "README", "README")
    )
    # A name is a name, whatever it looks like.
    assert Result("cat", f"{ar}/logs/[x].txt").out == "content of logs/[x].txt"
    assert Result("cat", f"{ar}/logs/[ab].txt").out == "content of logs/a.txtcontent of logs/b.txt"
    result = Result("cat", f"{ar}/none*", f"{ar}/d/", f"{ar.parent}/gone.zip/x", f"{ar}/README")
    assert (result.out, result.status, result.err.count("\n")) == ("content of README", 6, 3)


def test_cat_of_standard_input(ar: Path) -> None:
    arguments = [f"{ar}/README", "-", f"{ar}/logs/a.txt"]
    done = run_rear("cat", *arguments, input=b"\xff between \n", text=False, check=True)
    assert done.stdout == b"content of README\xff between \ncontent of logs/a.txt"


def test_cat_passes_on_what_comes_at_once() -> None:
    process = start_rear("cat", "-", stdin=subprocess.PIPE, stderr=None, text=False)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"a line\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"a line\n"
    process.communicate()
    assert process.returncode == 0


def test_cat_of_many_members_reads_the_directory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rear.zip.archive import Archive

    path = write_zip(tmp_path / "a.zip", *(f"m{number}" for number in range(300)))
    opened: list[str] = []
    real = Archive.names

    def counted(self: Archive) -> object:
        opened.append(self.path)
        return real(self)

    monkeypatch.setattr(Archive, "names", counted)
    result = Result("cat", *(f"{path}/m{number}" for number in range(300)))
    assert result.out == "".join(f"content of m{number}" for number in range(300))
    assert len(opened) == 1


def test_cat_into_a_closed_pipe(large: Path) -> None:
    command = f"{sys.executable} -m rear cat {large}/zeros-0 {large}/zeros-1 | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"\0" * 10 + b"141\n", b"")


# ---- get


def test_get_tells_how_far_it_is(large: Path, tmp_path: Path) -> None:
    # At once, however fast this machine is.
    program = "from rear.cli import main, progress; progress._QUIET_SECONDS = 0; main()"
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


def test_modes_and_the_umask(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "a.zip", (info("d/", stat.S_IFDIR | 0o775), b""), (info("d/open", stat.S_IFREG | 0o666), b""),
        (info("d/set", stat.S_IFREG | 0o6751), b""), "made/x",
    )  # fmt: skip
    command = f"umask 027; {sys.executable} -m rear get {path} -C {tmp_path}/out"
    subprocess.run(["sh", "-c", command], check=True)
    found = {
        name: oct(stat.S_IMODE((tmp_path / "out" / name).stat().st_mode)) for name in ("d", "d/open", "d/set", "made")
    }
    assert found == {"d": "0o775", "d/open": "0o666", "d/set": "0o751", "made": "0o750"}


def test_strip(ar: Path, tmp_path: Path) -> None:
    assert Result("get", f"{ar}/logs", "--strip", "1", "-C", tmp_path / "out").status == 0
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
