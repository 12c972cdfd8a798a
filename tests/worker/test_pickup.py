"""Pickups: all or nothing to begin with, and no source goes before everything is stable."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from rear.errors import PathError, SourceError, UsageError
from rear.worker.pickup import Pickup, SourceFile, collect, remove_source
from rear.zip.codecs import DEFLATED, decode
from rear.zip.payload import Payload, payload_of_source


class Sink:
    """Keeps what it gets; ``settle`` says that all of it is stable."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.files: list[SourceFile] = []
        self.contents: dict[str, bytes] = {}
        self.pending: list[Callable[[], None]] = []
        self.fail_at = fail_at

    def __call__(self, file: SourceFile, payload: Payload, on_stable: Callable[[], None]) -> None:
        if self.fail_at == len(self.files):
            raise OSError(28, "No space left on device")
        self.files.append(file)
        self.contents[file.name] = b"".join(decode(payload.method, payload.chunks()))
        self.pending.append(on_stable)
        payload.close()

    def settle(self) -> None:
        for on_stable in self.pending:
            on_stable()


def pickup(source: str | os.PathLike[str], name: str, sink: Sink, *, success_only: bool = True) -> Pickup:
    return Pickup(source, name, method=DEFLATED, spool_size=1 << 20, success_only=success_only, sink=sink)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "s"
    path.write_bytes(b"x")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "b" / "deep").mkdir(parents=True)
    (root / "empty" / "inner").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"a")
    (root / "b" / "x.txt").write_bytes(b"x" * 5000)
    (root / "b" / "deep" / "ümlaut").write_bytes(b"")
    (root / "link").symlink_to("nowhere/at all")
    (root / "up").symlink_to("..")
    return root


NAMES = ["t/a.txt", "t/b/deep/ümlaut", "t/b/x.txt", "t/empty/inner/", "t/link", "t/up"]


def test_a_file_is_read_on_leaving_and_removed_once_stable(tmp_path: Path) -> None:
    sink = Sink()
    source = tmp_path / "out.h5"
    with pickup(source, "out.h5", sink) as path:
        assert path == str(source)
        source.write_bytes(b"made by others")
        source.chmod(0o600)
        os.utime(source, ns=(7, 7_000_000_007))
    assert sink.contents == {"out.h5": b"made by others"}
    (file,) = sink.files
    assert (file.mtime_ns, file.mode, file.relative) == (7_000_000_007, stat.S_IFREG | 0o600, "")
    assert source.exists()
    sink.settle()
    assert not source.exists()
    assert tmp_path.exists()


def test_a_relative_source_is_fixed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    sink = Sink()
    held = pickup("out", "out", sink)
    (tmp_path / "work" / "out").write_bytes(b"here")
    monkeypatch.chdir(tmp_path)
    held.close()
    held.close()
    assert sink.contents == {"out": b"here"}


def test_an_exception_leaves_the_source(source: Path) -> None:
    sink = Sink()
    with pytest.raises(KeyboardInterrupt), pickup(source, "s", sink):
        raise KeyboardInterrupt
    assert sink.files == []
    with pytest.raises(ZeroDivisionError), pickup(source, "s", sink, success_only=False):
        raise ZeroDivisionError
    assert len(sink.files) == 1
    assert source.exists()


def test_discard(source: Path) -> None:
    sink = Sink()
    held = pickup(source, "s", sink)
    held.discard()
    held.close()
    assert sink.files == []


@pytest.mark.parametrize("source", ["", "a\0b", b""])
def test_what_is_no_path(source: str) -> None:
    with pytest.raises(UsageError):
        pickup(source, "s", Sink())


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no such file"), pickup(tmp_path / "s", "s", Sink()):
        pass


def test_a_tree(tree: Path) -> None:
    sink = Sink()
    with pickup(f"{tree}/", "t", sink):
        pass
    assert [file.name for file in sink.files] == NAMES
    assert [file.relative for file in sink.files] == [name.removeprefix("t/") for name in NAMES]
    assert sink.contents["t/b/x.txt"] == b"x" * 5000
    assert sink.contents["t/link"] == b"nowhere/at all"
    modes = {file.name: file.mode for file in sink.files}
    assert modes["t/link"] == stat.S_IFLNK | 0o777
    assert stat.S_ISDIR(modes["t/empty/inner/"])
    for on_stable in sink.pending[:-1]:
        on_stable()
        on_stable()
    assert [file.name for file in collect(str(tree), "t")] == NAMES
    sink.settle()
    assert not tree.exists()


def test_a_tree_into_the_root_of_an_archive(tree: Path) -> None:
    assert [file.name for file in collect(str(tree))] == [name.removeprefix("t/") for name in NAMES]


@pytest.mark.parametrize(("name", "expected"), [("t", ["t/"]), ("", [])])
def test_an_empty_directory(tmp_path: Path, name: str, expected: list[str]) -> None:
    source = tmp_path / "empty"
    source.mkdir()
    sink = Sink()
    pickup(source, name, sink).close()
    assert [file.name for file in sink.files] == expected
    sink.settle()
    assert not source.exists()


@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_one_special_file_stops_all(tree: Path, kind: str) -> None:
    bad = tree / "b" / "zzz"
    if kind == "FIFO":
        os.mkfifo(bad)
    else:
        try:
            os.mknod(bad, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("this user makes no devices")
    sink = Sink()
    with pytest.raises(SourceError, match=f"zzz is a .*{kind}"), pickup(tree, "t", sink):
        pass
    assert sink.files == []
    assert bad.exists()


def test_a_link_as_the_source(tree: Path) -> None:
    for source in (tree / "up", f"{tree}/up/"):
        with pytest.raises(SourceError, match="symbolic link"):
            pickup(source, "t", Sink()).close()


def test_a_name_that_cannot_be_kept_stops_all(tree: Path) -> None:
    (tree / "z\\z").write_bytes(b"")
    sink = Sink()
    with pytest.raises(PathError, match="backslash"):
        pickup(tree, "t", sink).close()
    assert sink.files == []


def test_an_unreadable_file_stops_all(tree: Path) -> None:
    (tree / "b" / "x.txt").chmod(0)
    if os.access(tree / "b" / "x.txt", os.R_OK):
        pytest.skip("this user may read everything")
    sink = Sink()
    with pytest.raises(PermissionError):
        pickup(tree, "t", sink).close()
    assert sink.files == []


def test_a_failure_in_the_middle_removes_nothing(tree: Path) -> None:
    sink = Sink(fail_at=3)
    with pytest.raises(OSError, match="No space"):
        pickup(tree, "t", sink).close()
    sink.settle()
    assert [file.name for file in collect(str(tree), "t")] == NAMES


def test_what_came_or_changed_since_stays(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    pickup(tree, "t", sink).close()
    (tree / "a.txt").write_bytes(b"new content")
    (tree / "b" / "new").mkdir()
    with caplog.at_level(logging.WARNING, "rear"):
        sink.settle()
    assert "a.txt has changed since it was archived" in caplog.text
    assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*")) == ["a.txt", "b", "b/new"]


def test_remove_source_removes_what_was_archived_alone(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, stamp = payload_of_source(str(source), DEFLATED, 100)
    source.rename(tmp_path / "away")
    assert not remove_source(stamp)
    source.write_bytes(b"x")
    assert not remove_source(stamp)
    assert source.exists()
    (tmp_path / "away").replace(source)
    source.chmod(0o600)
    assert remove_source(stamp)
    assert not source.exists()


def test_a_deep_tree_needs_no_deep_stack(tmp_path: Path) -> None:
    folder = f"{tmp_path}/deep"
    os.mkdir(folder)
    for _ in range(1200):
        folder += "/d"
        os.mkdir(folder)
    Path(folder, "f").write_bytes(b"x")
    sink = Sink()
    pickup(tmp_path / "deep", "t", sink).close()
    sink.settle()
    assert len(sink.files) == 1
    assert os.listdir(tmp_path) == []


def test_a_forked_child_leaves_the_source_alone(source: Path) -> None:
    sink = Sink()
    held = pickup(source, "s", sink)
    child = os.fork()
    if child == 0:
        held.close()
        os._exit(len(sink.files))
    assert os.waitpid(child, 0)[1] == 0
    held.close()
    assert len(sink.files) == 1
