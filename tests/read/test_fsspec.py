"""``rear://`` through fsspec: what fsspec itself, and pandas, make of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from bases import put
from checkout import ROOT
from programs import run_code

import rear

fsspec = pytest.importorskip("fsspec")

CSV = "a,b\n1,2\n3,4\n"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fsspec.register_implementation("rear", "rear.fsspec.RearFileSystem", clobber=True)
    with rear.rear_fs(tmp_path / "base") as fs:
        for name in ("a.csv", "deep/b.csv", "deep/er/c.txt"):
            put(fs, f"ar.zip/{name}", CSV)
    list(rear.scavenge(tmp_path / "base"))
    return tmp_path / "base"


def test_the_entry_point_names_the_class() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["fsspec.specs"]
    module, _, name = points["rear"].partition(":")
    code = f"import {module}; print({module}.{name}.protocol)"
    done = run_code(code, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("rear\n", "")


def test_files_open_and_seek(base: Path) -> None:
    with fsspec.open(f"rear://{base}/ar.zip/deep/b.csv", "r") as file:
        assert file.read() == CSV
    with fsspec.open(f"rear://{base}/ar.zip/deep/b.csv", "rb") as file:
        file.seek(-4, 2)
        assert file.read() == b"3,4\n"[-4:]
    with pytest.raises(FileNotFoundError):
        fsspec.open(f"rear://{base}/ar.zip/nothing").open()
    with pytest.raises(NotImplementedError, match="rear_open"):
        fsspec.open(f"rear://{base}/ar.zip/new", "wb").open()


def test_listings(base: Path) -> None:
    fs = fsspec.filesystem("rear")
    root = f"{base}/ar.zip"
    assert fs.ls(f"rear://{root}", detail=False) == [f"{root}/a.csv", f"{root}/deep"]
    assert [entry["type"] for entry in fs.ls(root)] == ["file", "directory"]
    assert fs.find(root) == [f"{root}/a.csv", f"{root}/deep/b.csv", f"{root}/deep/er/c.txt"]
    assert fs.glob(f"{root}/**/*.csv") == [f"{root}/a.csv", f"{root}/deep/b.csv"]
    assert (fs.exists(f"{root}/deep"), fs.isdir(f"{root}/deep"), fs.isfile(f"{root}/a.csv")) == (True, True, True)
    assert not fs.exists(f"{root}/nothing")
    assert fs.size(f"{root}/a.csv") == len(CSV)
    assert fs.cat(f"{root}/a.csv") == CSV.encode()
    assert fs.cat_file(f"{root}/a.csv", start=4, end=7) == CSV.encode()[4:7]
    assert fs.modified(f"{root}/a.csv").timestamp() == pytest.approx((base / "ar.zip").stat().st_mtime, abs=60)
    assert root in fs.ls(str(base), detail=False)


def test_copies_to_local_files(base: Path, tmp_path: Path) -> None:
    fs = fsspec.filesystem("rear")
    fs.get(f"{base}/ar.zip/deep", str(tmp_path / "out"), recursive=True)
    assert (tmp_path / "out/er/c.txt").read_text() == CSV


def test_what_waits_is_listed_and_read(base: Path) -> None:
    fs = fsspec.filesystem("rear")
    with rear.rear_fs(base) as writer:
        with writer.open("ar.zip/new.csv", "w") as file:
            file.write(CSV)
        assert f"{base}/ar.zip/new.csv" in fs.ls(f"{base}/ar.zip", detail=False)
        assert fs.cat(f"{base}/ar.zip/new.csv") == CSV.encode()


def test_pandas_reads_it(base: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(f"rear://{base}/ar.zip/a.csv")
    assert frame.to_csv(index=False) == CSV
