"""``rear cat``: members as bytes, by name and pattern."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from listings import Result, write_zip
from programs import run_rear, start_rear
from zips import flip


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
    flip(ar, 40, 0xFF)
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
    assert process.stdout.readline() == b"big\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() in (0, 1, 141)


def test_cat_of_several_patterns_and_archives(odd: Path) -> None:
    other = write_zip(odd.parent / "other.zip", "x")
    result = Result("cat", f"{odd}/logs/*.txt", f"{other}/x", f"{odd}/README", f"{odd}/README")
    assert result.out == "".join(
        f"content of {name}" for name in ("logs/a.txt", "logs/b.txt", "logs/[x].txt", "x", "README", "README")
    )
    # A name is a name, whatever it looks like.
    assert Result("cat", f"{odd}/logs/[x].txt").out == "content of logs/[x].txt"
    assert Result("cat", f"{odd}/logs/[ab].txt").out == "content of logs/a.txtcontent of logs/b.txt"
    result = Result("cat", f"{odd}/none*", f"{odd}/d/", f"{odd.parent}/gone.zip/x", f"{odd}/README")
    assert (result.out, result.status, result.err.count("\n")) == ("content of README", 6, 3)


def test_cat_of_standard_input(odd: Path) -> None:
    arguments = [f"{odd}/README", "-", f"{odd}/logs/a.txt"]
    done = run_rear("cat", *arguments, input=b"\xff between \n", text=False, check=True)
    assert done.stdout == b"content of README\xff between \ncontent of logs/a.txt"


def test_cat_passes_on_what_comes_at_once() -> None:
    process = start_rear("cat", "-", stdin=subprocess.PIPE, stderr=None, text=False)
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
