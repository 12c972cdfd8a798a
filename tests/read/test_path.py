"""`rear.Path` beside `pathlib.Path` on the same tree, and where it goes through archives and to what waits."""

from __future__ import annotations

import os
import pathlib
import stat
import zipfile

import pytest
from zips import write_zip

import rear
from rear import Path, rear_fs
from rear.errors import NoContextError, UsageError

FILES = {
    "README": b"read me", "logs/a.txt": b"a", "logs/b.log": b"bb", "logs/deep/c.txt": b"ccc", "logs/[x].txt": b"x",
    "data/one.csv": b"1,2\n3,4\n", "data/.hidden.csv": b"", "z.zip": b"no archive",
}  # fmt: skip
PATTERNS = [
    "*", "*.txt", "**/*.txt", "logs/*", "logs/**/*.txt", "*/*.csv", "lo?s", "[a-l]*", "[!a-l]*", "logs/[[]x].txt",
    "nothing*", "logs", "logs/deep/c.txt", "**/deep", "[", "*[",
]  # fmt: skip


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    for name, data in FILES.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "tree"


@pytest.fixture
def archive(tmp_path: pathlib.Path, tree: pathlib.Path) -> Path:
    with zipfile.ZipFile(tmp_path / "ar.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in FILES:
            zipped.write(tree / name, name)
    return Path(tmp_path / "ar.zip")


def relative(paths: object, root: pathlib.PurePath) -> set[str]:
    return {str(path.relative_to(root)) for path in paths}  # type: ignore[attr-defined]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_those_of_pathlib(archive: Path, tree: pathlib.Path, pattern: str) -> None:
    expected = relative(tree.glob(pattern), tree)
    assert relative(archive.glob(pattern), archive) == expected
    assert relative(Path(tree).glob(pattern), tree) >= {name for name in expected if "/." not in f"/{name}"}
    if pattern.startswith("*."):
        assert relative(archive.rglob(pattern), archive) == relative(tree.rglob(pattern), tree)


@pytest.mark.parametrize(
    "name", ["", "README", "logs", "logs/deep", "logs/deep/c.txt", "nothing", "README/below", "z.zip"]
)
def test_questions_are_answered_as_for_files(archive: Path, tree: pathlib.Path, name: str) -> None:
    path, plain = archive / name, tree / name
    assert (path.exists(), path.is_file(), path.is_dir()) == (plain.exists(), plain.is_file(), plain.is_dir())
    if plain.is_dir():
        assert relative(path.iterdir(), archive) == relative(plain.iterdir(), tree)
        with pytest.raises(IsADirectoryError if not name else (IsADirectoryError, FileNotFoundError)):
            path.open()
    elif plain.is_file():
        assert path.stat().st_size == plain.stat().st_size
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
        assert abs(path.stat().st_mtime - plain.stat().st_mtime) < 2
        assert path.read_bytes() == plain.read_bytes()
        assert path.read_text() == plain.read_text()
        with pytest.raises(NotADirectoryError):
            list(path.iterdir())
    else:
        with pytest.raises(FileNotFoundError):
            path.read_bytes()
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            list(path.iterdir())
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            path.stat()


def test_it_is_a_pure_path(archive: Path) -> None:
    path = archive / "logs" / "a.txt"
    assert isinstance(path, Path)
    assert isinstance(path.parent, Path)
    assert (path.name, path.suffix, path.stem, str(path.relative_to(archive))) == ("a.txt", ".txt", "a", "logs/a.txt")
    assert path.with_suffix(".log").name == "a.log"
    assert os.fspath(path) == f"{archive}/logs/a.txt"
    assert {path: 1}[Path(str(path))] == 1


def test_names_that_lead_elsewhere_are_not_followed(tmp_path: pathlib.Path) -> None:
    names = ("/etc/passwd", "../up", "a/../../b", "a//b", "good")
    root = Path(write_zip(tmp_path / "evil.zip", dict.fromkeys(names, b"x")))
    assert [path.name for path in root.iterdir()] == ["good"]
    assert [str(path) for path in root.rglob("*")] == [f"{root}/good"]


def test_outside_of_archives_it_reads_files_and_folders(tree: pathlib.Path, archive: Path) -> None:
    assert Path(tree / "README").read_text() == "read me"
    assert relative(Path(tree).iterdir(), tree) == relative(tree.iterdir(), tree)
    assert archive in list(archive.parent.iterdir())


def test_in_a_base_what_waits_is_there_too(tmp_path: pathlib.Path) -> None:
    root = Path(tmp_path / "base/runs/ar.zip")
    with rear_fs(tmp_path / "base"):
        assert (root / "logs/a.txt").write_text("ä\n") == 2
        (root / "b.bin").write_bytes(b"b")
        assert (root / "logs/a.txt").read_text() == "ä\n"
        assert (root / "logs/a.txt").stat().st_size == 3
        assert [path.name for path in root.iterdir()] == ["b.bin", "logs"]
        assert (root / "logs").is_dir()
        assert root.is_dir()
    list(rear.scavenge(tmp_path / "base"))
    assert [str(path.relative_to(root)) for path in root.rglob("*")] == ["b.bin", "logs", "logs/a.txt"]
    assert (root / "logs/a.txt").read_text() == "ä\n"


def test_writing_needs_the_rear_fs_of_its_base(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NoContextError):
        Path(tmp_path / "base/ar.zip/a").write_text("x")
    with rear_fs(tmp_path / "base"), pytest.raises(UsageError, match="not below"):
        Path(tmp_path / "other/ar.zip/a").write_text("x")
    assert not (tmp_path / "other").exists()
