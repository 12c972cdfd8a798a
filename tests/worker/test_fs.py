"""rear_fs in one process: options, names, metadata, Ctrl-C, ends of all kinds, asyncio and trio."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import gc
import json
import linecache
import math
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
from bases import journals, members
from checkout import REAR, ROOT
from faults import Failing, is_one_of
from programs import in_threads, run_code, start_code

import rear
from rear import rear_fs, rear_open, rear_pickup
from rear.core.layout import Layout
from rear.core.records import unpacked
from rear.core.storage import Storage, StrPath
from rear.errors import BaseError, NoContextError, NotArchivedError, PathError, RearError, SourceError, UsageError
from rear.index.index import Index
from rear.worker import written_names
from rear.zip.headers import decode_local_header, local_header_length
from rear.zip.origin import decode_origin
from rear.zip.structures import LOCAL


def pending(base: Path) -> list[str]:
    """What was acknowledged and is not merged yet."""
    return sorted(f"{append.archive}/{append.name}" for journal in journals(base) for append in journal.pending())


def scavenge(base: Path) -> dict[str, bytes]:
    """Merge, and return what is in ar.zip then."""
    events = list(rear.scavenge(base, verify=True))
    assert [event for event in events if event.severity != "info"] == []
    return members(base)


def run(code: str, *, status: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    done = run_code(code, **options)
    assert status is None or done.returncode == status, done.stderr
    return done


# -- options


@pytest.mark.parametrize(
    "options",
    [
        {"rotation_span": 0},
        {"rotation_span": -1.0},
        {"rotation_span": math.nan},
        {"rotation_span": "5m"},
        {"rotation_span": True},
        {"rotation_size": 0},
        {"sync": "never"},
        {"sync_interval": 0},
        {"lease_seconds": 0},
        {"lease_seconds": math.inf},
        {"spool_size": -1},
        {"compression": "deflated"},
        {"compression": ["deflate"]},
    ],
    ids=repr,
)
def test_bad_options(base: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=name):
        rear_fs(base, **options)
    assert not base.exists()


@pytest.mark.parametrize("bad", ["", "a\0b"])
def test_bad_base(bad: str) -> None:
    with pytest.raises(UsageError, match="base"):
        rear_fs(bad)


@pytest.mark.parametrize(
    "options",
    [
        {"rotation_span": math.inf, "rotation_size": math.inf, "sync_interval": math.inf, "lease_seconds": 1e300},
        {"rotation_span": 1, "rotation_size": 1, "spool_size": 0},
        {"compression": "stored"},
        {"compression": "deflate", "sync": "file"},
        {"compression": "zstd"},
    ],
    ids=repr,
)
def test_good_options(base: Path, options: dict[str, Any]) -> None:
    if options.get("compression") == "zstd":
        pytest.importorskip("zstandard")
    with rear_fs(os.fspath(base), **options) as fs:
        for number in range(3):
            with rear_open(f"ar.zip/{number}", "w") as file:
                file.write("text " * 1000)
        fs.sync()
        assert fs.base == str(base)
    assert pending(base) == ["ar.zip/0", "ar.zip/1", "ar.zip/2"]
    assert {len(journal.pending()) for journal in journals(base)} <= {1, 3}
    assert all(journal.closed for journal in journals(base))


def test_a_relative_base_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with rear_fs("base"):
        monkeypatch.chdir(tmp_path / "elsewhere")
        rear_open("ar.zip/a").close()
    assert pending(tmp_path / "base") == ["ar.zip/a"]


def test_a_base_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(BaseError, match="not a directory"):
        rear_fs(file)
    with rear_fs(file / "below"):
        member = rear_open("ar.zip/a")
        with pytest.raises(NotADirectoryError, match=r"ar\.zip/a"):
            member.close()
    assert file.read_text() == "mine"


def test_a_base_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents:
        if not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 0o111)
    code = f"""
import os
from rear import rear_fs, rear_open
# Once before: the interpreter itself may be where the other user cannot read.
with rear_fs({str(tmp_path / "other")!r}):
    rear_open("ar.zip/a").close()
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
with rear_fs({str(tmp_path / "locked" / "base")!r}):
    file = rear_open("ar.zip/a/b.txt")
    try:
        file.close()
    except PermissionError as error:
        print(error)
"""
    (tmp_path / "locked").mkdir(mode=0o555)
    printed = run(code).stdout
    assert "Permission denied" in printed
    assert printed.strip().endswith("/locked/base/ar.zip/a/b.txt'")
    assert list((tmp_path / "locked").iterdir()) == []


def test_who_writes_nothing_creates_nothing(base: Path) -> None:
    threads = threading.active_count()
    with rear_fs(base) as fs:
        fs.sync()
        with pytest.raises(ZeroDivisionError), rear_open("ar.zip/a", "w") as file:  # noqa: PT012
            file.write("half")
            raise ZeroDivisionError
        with pytest.raises(SourceError), fs.pickup(base / "missing", "ar.zip/b"):
            pass
        assert threading.active_count() == threads
    rear_fs(base)
    assert not base.exists()


def test_the_base_is_made_by_the_first_file(tmp_path: Path) -> None:
    base = tmp_path / "a" / "b" / "c"
    with rear_fs(base):
        file = rear_open("ar.zip/x")
        assert not (tmp_path / "a").exists()
        file.close()
        assert base.is_dir()


@pytest.mark.parametrize(
    "path",
    ["", "/etc/ar.zip/a", "../ar.zip/a", "ar.zip/../a", "ar.zip", "a.txt", "ar.zip//a", "ar.zip/a\\b", "ar.zip/a\0"],
)
def test_bad_paths(base: Path, path: str) -> None:
    with rear_fs(base) as fs:
        with pytest.raises(PathError):
            rear_open(path)
        with pytest.raises(PathError):
            fs.pickup("/etc/passwd", path)
    assert not base.exists()


@pytest.mark.parametrize("last", ["", ".", "..", "a\\b", "a\0", "a\x1f", "\ud800", "a/", "/a", "a//b", "x" * 70_000])
def test_bad_paths_in_a_folder_that_was_seen_before(base: Path, last: str) -> None:
    with rear_fs(base):
        rear_open("ar.zip/seen/a").close()
        with pytest.raises(PathError) as seen:
            rear_open(f"ar.zip/seen/{last}")
        with pytest.raises(PathError) as other:
            rear_open(f"ar.zip/else/{last}")
    assert str(seen.value).replace("seen", "else") == str(other.value)
    assert pending(base) == ["ar.zip/seen/a"]


def test_names_in_a_folder_that_was_seen_before(base: Path) -> None:
    names = ["a", ".hidden", "ü", "b.zip", "b.zip/c", "sub/d", "e f", "%d", "a" * 5_000, "…" * 2_000]
    with rear_fs(base):
        for _ in range(2):
            for folder in ("", "folder/", "földer/"):
                for name in names:
                    rear_open(f"ar.zip/{folder}{name}", "wb").close()
        rear_open(Path("ar.zip/folder/path"), "wb").close()
    expected = [f"ar.zip/{folder}{name}" for folder in ("", "folder/", "földer/") for name in names]
    assert sorted(pending(base)) == sorted([*expected * 2, "ar.zip/folder/path"])


@pytest.mark.parametrize("modes", [("wb", "xb"), ("xb", "wb"), ("w+b", "w")])
def test_two_open_files_of_one_name(base: Path, modes: tuple[str, str]) -> None:
    first, second = modes
    with rear_fs(base) as fs:
        files = [rear_open("ar.zip/a", first)]
        if "x" in second:
            with pytest.raises(FileExistsError):
                rear_open("ar.zip/a", second)
        else:
            files.append(rear_open("ar.zip/a", second))
        assert len(fs._files._open) == len(files)
        files[0].close()
        assert len(fs._files._open) == len(files) - 1
        with pytest.raises(FileExistsError):
            rear_open("ar.zip/a", "x")
        # The other one is closed at the end.
    assert pending(base) == ["ar.zip/a"] * len(files)
    assert all(file.closed for file in files)


# -- nesting, threads, builtins


def test_the_innermost_one_is_used(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    with rear_fs(a) as outer, rear_fs(b):
        rear_open("ar.zip/in b").close()
        outer.open("ar.zip/in a").close()
        late = outer.open("ar.zip/late")
    late_error = pytest.raises(RearError, match="closed")
    del late
    with late_error, rear_fs(a) as again:
        again.close()
        again.open("ar.zip/x")
    assert pending(a) == ["ar.zip/in a", "ar.zip/late"]
    assert pending(b) == ["ar.zip/in b"]
    with pytest.raises(NoContextError):
        rear_open("ar.zip/a")
    with pytest.raises(NoContextError):
        rear_pickup("a", "ar.zip/a")


def test_one_that_is_entered_twice_is_closed_by_the_outer_end(base: Path) -> None:
    with rear_fs(base) as fs:
        with fs:
            rear_open("ar.zip/a").close()
        rear_open("ar.zip/b").close()
    assert pending(base) == ["ar.zip/a", "ar.zip/b"]


def test_threads_started_inside(base: Path) -> None:
    def work(number: int) -> None:
        for count in range(50):
            with rear_open(f"ar.zip/{number}/{count}", "w") as file:
                file.write(f"{number} {count} " * 20)

    with rear_fs(base, rotation_size=5_000):
        in_threads(work, range(8))
    assert len(journals(base)) > 3
    found = scavenge(base)
    assert found == {f"{n}/{c}": (f"{n} {c} " * 20).encode() for n in range(8) for c in range(50)}


def test_builtins_come_and_go(base: Path) -> None:
    with rear_fs(base, install_builtins=True) as fs:
        with builtins.rear_open("ar.zip/a", "w") as file:  # type: ignore[attr-defined]
            file.write("a")
        with fs:
            pass
        assert builtins.rear_pickup is rear_pickup  # type: ignore[attr-defined]
    assert not hasattr(builtins, "rear_open")
    assert not hasattr(builtins, "rear_pickup")
    with rear_fs(base):
        assert not hasattr(builtins, "rear_open")
    with pytest.raises(RearError, match="closed"):
        fs.__enter__()
    assert not hasattr(builtins, "rear_open")


# -- mode x


def test_x_refuses_what_this_worker_wrote(base: Path) -> None:
    (base.parent / "source").write_text("s")
    with rear_fs(base) as fs:
        rear_open("ar.zip/w", "w").close()
        with fs.pickup(base.parent / "source", "ar.zip/p"):
            pass
        for name in "wp":
            with pytest.raises(FileExistsError, match=f"ar.zip/{name}"):
                rear_open(f"ar.zip/{name}", "x")
        rear_open("ar.zip/w", "w").close()
        with rear_open("ar.zip/x", "x"), pytest.raises(FileExistsError):
            rear_open("ar.zip/x", "xb")
        with pytest.raises(FileExistsError):
            rear_open("ar.zip/x", "x+")
        rear_open("other.zip/x", "x").close()


def test_a_name_that_was_not_archived_is_free_again(base: Path) -> None:
    with rear_fs(base):
        rear_open("ar.zip/kept").close()
        for name in ("a", "kept"):
            with contextlib.suppress(KeyError), rear_open(f"ar.zip/{name}", "w"):
                raise KeyError
        rear_open("ar.zip/a", "x").close()
        with pytest.raises(FileExistsError):
            rear_open("ar.zip/kept", "x")
        with pytest.raises(LookupError):
            rear_open("ar.zip/b", "w", encoding="nonsense")
        rear_open("ar.zip/b", "x").close()


def test_a_name_is_free_again_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with rear_fs(tmp_path / "file" / "base"):
        for _ in range(2):
            with pytest.raises(NotADirectoryError):
                rear_open("ar.zip/a", "x").close()


def test_x_knows_names_of_long_ago(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_names, "_RECENT_NAMES", 7)
    with rear_fs(base) as fs:
        for number in range(300):
            rear_open(f"ar.zip/{number}", "x" if number % 2 else "w").close()
            # Written a second time, and given up a second time: the first one stays.
            if number % 3 == 0:
                rear_open(f"ar.zip/{number}", "w").close()
            with contextlib.suppress(KeyError), rear_open(f"ar.zip/{number}", "w"):
                raise KeyError
            with contextlib.suppress(KeyError), rear_open(f"ar.zip/given up {number}", "x"):
                raise KeyError
        assert fs._files._open == {}
        assert len(fs._files._written._recent) <= 7
        for number in range(300):
            with pytest.raises(FileExistsError):
                rear_open(f"ar.zip/{number}", "x")
            with rear_open(f"ar.zip/given up {number}", "x"), pytest.raises(FileExistsError):
                rear_open(f"ar.zip/given up {number}", "x")
        assert fs._files._open == {}


@pytest.mark.parametrize("recent", [3, 4096])
def test_of_many_threads_one_gets_a_name(base: Path, monkeypatch: pytest.MonkeyPatch, recent: int) -> None:
    monkeypatch.setattr(written_names, "_RECENT_NAMES", recent)
    won: list[int] = []
    barrier = threading.Barrier(4)

    def race() -> None:
        for name in range(50):
            barrier.wait(20)
            with contextlib.suppress(FileExistsError):
                rear_open(f"ar.zip/{name}", "x").close()
                won.append(name)

    with rear_fs(base):
        in_threads(lambda _: race(), range(4))
    assert sorted(won) == list(range(50))


# -- metadata


def test_metadata_arrives_everywhere(base: Path) -> None:
    given = {"run": 7, "ok": True, "nothing": None, "text": "ü☃𝄞\n\0", "list": [1.5, {"a": []}], "": {}}
    with rear_fs(base) as fs:
        metadata = json.loads(json.dumps(given))
        file = fs.open("ar.zip/a", "w", metadata=metadata)
        metadata["list"].append("changed afterwards")
        file.close()
        fs.open("ar.zip/b", metadata={}).close()
        fs.open("ar.zip/c").close()
    (journal,) = journals(base)
    assert [unpacked(append.metadata) for append in journal.pending()] == [given, {}, None]
    (temp_archive,) = (base / ".rear").glob("inbox/*/*.zip")
    assert origin_metadata(temp_archive) == {"a": given, "b": {}, "c": None}
    scavenge(base)
    assert origin_metadata(base / "ar.zip") == {"a": given, "b": {}, "c": None}
    index = Index.open(Layout(base), "ar.zip")
    assert {row.name: row.metadata for row in index.rows()} == {"a": given, "b": {}, "c": None}


def origin_metadata(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            start = info.header_offset
            length = local_header_length(data[start : start + LOCAL.size])
            origin = decode_origin(data[start : start + length])
            assert origin is not None
            assert decode_local_header(data, start).name.decode() == info.filename
            found[info.filename] = origin.metadata
    return found


@pytest.mark.parametrize(
    "metadata",
    [[], "text", 3, {"a": object()}, {"a": math.nan}, {"a": {1, 2}}, {"a": b"x"}, {(1, 2): 3}, {"a": "\ud800"}],
    ids=["list", "text", "number", "object", "nan", "set", "bytes", "tuple", "surrogate"],
)
def test_bad_metadata(base: Path, metadata: Any) -> None:
    with rear_fs(base) as fs, pytest.raises(UsageError, match="metadata"):
        fs.open("ar.zip/a", metadata=metadata)
    assert not base.exists()


def test_metadata_in_circles(base: Path) -> None:
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    deep: dict[str, Any] = {}
    for _ in range(10_000):
        deep = {"": deep}
    with rear_fs(base) as fs:
        for metadata in (circle, deep):
            with pytest.raises(UsageError, match="metadata"):
                fs.open("ar.zip/a", metadata=metadata)


def test_the_limit_of_metadata(base: Path) -> None:
    most = {"k": "☃" * ((60 * 1024 - 9) // 3) + "x"}
    assert len(json.dumps(most, ensure_ascii=False, separators=(",", ":")).encode()) == 60 * 1024
    archive = "/".join(["d" * 200] * 4) + "/" + "e" * 200 + ".zip"
    with rear_fs(base) as fs:
        with pytest.raises(UsageError, match="61,441 bytes as JSON, 61,440 at most"):
            fs.open("ar.zip/a", metadata={"k": most["k"] + "x"})
        # All limits at once: the longest archive path and member name, too.
        fs.open(f"{archive}/{'n' * 65_535}", metadata=most).close()
        fs.open("ar.zip/a", metadata=most).close()
    assert scavenge(base) == {"a": b""}
    assert origin_metadata(base / "ar.zip") == {"a": most}
    with zipfile.ZipFile(base / archive) as opened:
        assert opened.namelist() == ["n" * 65_535]


# -- success_only and Ctrl-C


@pytest.mark.parametrize("success_only", [True, False])
def test_success_only(base: Path, success_only: bool) -> None:
    source = base.parent / "source"
    source.write_text("s")
    with rear_fs(base, success_only=success_only):
        with pytest.raises(KeyError), rear_open("ar.zip/text", "w") as file:  # noqa: PT012
            file.write("half")
            raise KeyError
        with pytest.raises(KeyError), rear_open("ar.zip/binary", "wb") as file:  # noqa: PT012
            file.write(b"half")
            raise KeyError
        with pytest.raises(KeyError), rear_pickup(source, "ar.zip/pickup"):
            raise KeyError
        rear_open("ar.zip/good").close()
    assert source.exists() == success_only
    expected = {"good": b""} if success_only else {"good": b"", "text": b"half", "binary": b"half", "pickup": b"s"}
    assert scavenge(base) == expected


@pytest.mark.parametrize("sync", ["interval", "file"])
def test_ctrl_c(base: Path, sync: str) -> None:
    code = f"""
import os, signal, sys, time
from rear import rear_fs, rear_open
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with rear_fs({str(base)!r}, sync={sync!r}):
        with rear_open("ar.zip/before", "w") as file:
            file.write("done")
        with rear_open("ar.zip/during", "w") as file:
            file.write("half")
            print("ready", flush=True)
            time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
"""
    with start_code(code) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == "interrupted\n"
        assert child.wait(30) == -signal.SIGINT
    assert pending(base) == ["ar.zip/before"]
    assert all(journal.closed for journal in journals(base))
    assert scavenge(base) == {"before": b"done"}


class Interrupting(Storage):
    """Raises KeyboardInterrupt at one of its operations, before or after it is done."""

    def __init__(self, at: int, after: bool) -> None:
        self.at = at
        self.after = after
        self.count = 0
        self.thread = threading.get_ident()

    def _meet(self, after: bool) -> None:
        if threading.get_ident() == self.thread and after == self.after:
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt

    def create(self, path: StrPath, mode: int = 0o644) -> int:
        self._meet(False)
        descriptor = super().create(path, mode)
        self._meet(True)
        return descriptor

    def write(self, descriptor: int, buffers: Any, offset: int) -> int:
        self._meet(False)
        written = super().write(descriptor, buffers, offset)
        self._meet(True)
        return written

    def sync(self, descriptor: int) -> None:
        self._meet(False)
        super().sync(descriptor)
        self._meet(True)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("sync", ["interval", "file"])
def test_ctrl_c_at_every_operation(tmp_path: Path, sync: str, after: bool) -> None:
    """Who is told of an interrupt finds nothing archived; the files before and after it are there."""
    at = 0
    while True:
        at += 1
        base = tmp_path / f"base {at}"
        source = tmp_path / "source"
        source.write_bytes(b"source")
        storage = Interrupting(at, after)
        acknowledged: dict[str, bytes] = {}
        interrupted = []
        fs = rear_fs(base, sync=sync, sync_interval=100.0, storage=storage)
        for name in ("a", "b", "c"):
            try:
                with fs.open(f"ar.zip/{name}", "wb") as file:
                    file.write(name.encode() * 100)
                acknowledged[name] = name.encode() * 100
            except KeyboardInterrupt:
                interrupted.append(name)
        try:
            fs.pickup(source, "ar.zip/p").close()
            acknowledged["p"] = b"source"
        except KeyboardInterrupt:
            interrupted.append("p")
            assert source.exists()
        try:
            fs.close()
        except KeyboardInterrupt:
            fs.close()
        if storage.count < at:
            break
        assert len(interrupted) <= 1
        events = list(rear.scavenge(base))
        assert [event for event in events if event.severity != "info"] == []
        with zipfile.ZipFile(base / "ar.zip") as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        assert found == acknowledged
        assert ("p" in acknowledged) is not source.exists()
    assert at > 10


def test_ctrl_c_between_any_two_lines(tmp_path: Path) -> None:
    """Wherever it comes in a worker: closing still ends the temp archive, and who was told of it finds nothing."""
    files = {"fs", "member_file", "text_member_file", "spool_file", "pickup", "__init__"}
    own = {str(path) for path in (REAR / "worker").glob("*.py") if path.stem not in files}
    own |= {str(REAR / "journal" / "writer.py"), str(REAR / "core" / "storage.py")}
    line = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal line
        if frame.f_code.co_filename in own and event == "line":
            line += 1
            # Python looks for signals after calls: none comes between the last call of a block and its end.
            source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            if line >= at and not source.startswith("with "):
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    at = 1
    while True:
        base = tmp_path / f"base {at}"
        acknowledged = set()
        line = 0
        fs = rear_fs(base, sync="file" if at % 2 else "interval", sync_interval=100.0)
        for name in "ab":
            with contextlib.suppress(KeyboardInterrupt), fs.open(f"ar.zip/{name}", "w") as file:
                file.write(name)
                sys.settrace(trace)
                try:
                    file.close()
                finally:
                    sys.settrace(None)
                acknowledged.add(name)
        if line < at:
            break
        fs.close()
        assert not fs._worker._is_inside()
        # Between making a pair and noting it there is a step in which it can be lost: empty, and with its process.
        assert all(journal.closed or not journal.appends for journal in journals(base))
        assert set(pending(base)) <= {f"ar.zip/{name}" for name in "ab"}
        assert {f"ar.zip/{name}" for name in acknowledged} <= set(pending(base))
        at += 1
    fs.close()
    assert at > 250


# -- ends


def test_use_after_close(base: Path) -> None:
    with rear_fs(base) as fs:
        rear_open("ar.zip/a").close()
    assert pending(base) == ["ar.zip/a"]
    source = base.parent / "source"
    source.write_text("s")
    for use in (lambda: fs.open("ar.zip/b"), fs.pickup(source, "ar.zip/b").close, fs.__enter__):
        with pytest.raises(RearError, match="closed"):
            use()
    fs.close()
    fs.sync()
    assert source.exists()
    assert pending(base) == ["ar.zip/a"]


def test_closing_archives_open_files(base: Path) -> None:
    with rear_fs(base) as fs:
        text, binary = rear_open("ar.zip/text", "w"), rear_open("ar.zip/binary", "wb")
        text.write("text")
        binary.write(b"binary")
    assert text.closed
    assert binary.closed
    fs.close()
    text.close()
    assert scavenge(base) == {"text": b"text", "binary": b"binary"}


def test_one_file_that_fails_keeps_nothing_else_from_being_closed(base: Path) -> None:
    storage = Failing(errno.ENOSPC, is_one_of("create", "write"), healthy=True)
    others = set(threading.enumerate())
    fs = rear_fs(base, storage=storage)
    fs.open("ar.zip/good").close()
    fs.sync()
    files = [fs.open(f"ar.zip/{number}") for number in range(3)]
    storage.healthy = False
    with pytest.raises(OSError, match="No space left"):
        fs.close()
    storage.healthy = True
    assert all(file.closed for file in files)
    assert not [thread for thread in {*threading.enumerate()} - others if thread.name.startswith("rear ")]
    assert pending(base) == ["ar.zip/good"]


def test_loss_on_leaving_is_told_and_tried_again(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = Failing(errno.EIO, is_one_of("sync"))
    fs = rear_fs(base, storage=storage, sync_interval=60)
    with pytest.raises(NotArchivedError, match=r"ar\.zip/lost\?") as caught, fs:
        rear_open("ar.zip/lost?").close()
    assert "Input/output error" in str(caught.value)
    storage.healthy = True
    fs.close()
    assert scavenge(base) == {"lost?": b""}


def test_what_the_block_raised_is_what_comes_out(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    fs = rear_fs(base, storage=Failing(errno.EIO, is_one_of("sync")), sync_interval=60)
    with pytest.raises(KeyboardInterrupt) as caught, fs:  # noqa: PT012
        rear_open("ar.zip/lost?").close()
        raise KeyboardInterrupt
    assert any("ar.zip/lost?" in note for note in caught.value.__notes__)
    assert "ar.zip/lost?" in caplog.text
    # Nothing is left to try when the interpreter ends.
    fs._worker._retained.items.clear()
    fs._worker._pairs.failed.clear()
    fs.close()


def test_files_that_are_forgotten(base: Path) -> None:
    with rear_fs(base), pytest.warns(ResourceWarning, match="unclosed file 'ar.zip/a'"):  # noqa: PT031
        file = rear_open("ar.zip/a", "w")
        file.write("forgotten")
        del file
        gc.collect()
    assert scavenge(base) == {"a": b"forgotten"}


@pytest.mark.parametrize("sync", ["interval", "file"])
@pytest.mark.parametrize("where", ["_journal_lock", "data", "sync"])
def test_the_collector_closes_a_file_in_the_middle_of_another(base: Path, where: str, sync: str) -> None:
    """It may come at any instant, in any thread: also where the locks are held."""
    forgotten: list[Any] = []
    seen: set[bool] = set()
    me = threading.get_ident()

    class Collecting(Storage):
        def _collect(self) -> None:
            while forgotten:
                forgotten.pop().close()
                seen.add(threading.get_ident() == me)

        def write(self, descriptor: int, buffers: Any, offset: int) -> int:
            if where == ("data" if len(buffers) == 2 else "_journal_lock"):
                self._collect()
            written = super().write(descriptor, buffers, offset)
            self._collect()
            return written

        def sync(self, descriptor: int) -> None:
            if where == "sync":
                self._collect()
            super().sync(descriptor)

    expected = {}
    with rear_fs(base, storage=Collecting(), sync=sync, sync_interval=0.01, lease_seconds=0.05) as fs:
        for number in range(60):
            if number % 3 == 0:
                file = fs.open(f"ar.zip/forgotten/{number}", "wb")
                file.write(b"forgotten" * number)
                expected[f"forgotten/{number}"] = b"forgotten" * number
                forgotten.append(file)
            with fs.open(f"ar.zip/{number}", "wb") as file:
                file.write(b"%d" % number * 100)
            expected[f"{number}"] = b"%d" % number * 100
            time.sleep(0.002)
    assert seen
    assert scavenge(base) == expected


def test_a_signal_handler_may_write(base: Path) -> None:
    names = []

    def handler(*_: object) -> None:
        names.append(f"handler/{len(names)}")
        with rear_open(f"ar.zip/{names[-1]}", "w") as file:
            file.write("from a handler")
        # Not periodic: on a busy machine handlers would interrupt handlers without end.
        signal.setitimer(signal.ITIMER_REAL, 0.005)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with rear_fs(base, sync="file"):
            signal.setitimer(signal.ITIMER_REAL, 0.005)
            count = 0
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and len(names) <= 20:
                rear_open(f"ar.zip/{count}", "w").close()
                count += 1
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(names) > 5
    found = scavenge(base)
    assert {name for name in found if name.startswith("handler")} == set(names)
    assert len(found) == len(names) + count


def test_a_signal_handler_that_would_wait_for_itself_is_told(base: Path) -> None:
    told = []

    class Closing(Storage):
        def write(self, descriptor: int, buffers: Any, offset: int) -> int:
            if not told:
                with pytest.raises(RearError, match="signal handler") as caught:
                    fs.close()
                told.append(caught.value)
            return super().write(descriptor, buffers, offset)

    with rear_fs(base, storage=Closing()) as fs:
        rear_open("ar.zip/a").close()
    assert told
    assert scavenge(base) == {"a": b""}


# -- asyncio and trio


def in_asyncio(function: Callable[[], Any]) -> Any:
    return asyncio.run(function())


BACKENDS = pytest.mark.parametrize("run_async", [in_asyncio, trio.run], ids=["asyncio", "trio"])


def no_context() -> bool:
    try:
        rear_open("ar.zip/x")
    except NoContextError:
        return True
    return False


@BACKENDS
def test_async_with(base: Path, run_async: Callable[[Any], Any]) -> None:
    async def main() -> None:
        async with rear_fs(base) as fs:
            with rear_open("ar.zip/a", "w") as file:
                file.write("a")
            async with fs:
                pass
            rear_open("ar.zip/b").close()
        assert no_context()

    run_async(main)
    assert scavenge(base) == {"a": b"a", "b": b""}


@BACKENDS
def test_errors_come_out_of_async_with(base: Path, run_async: Callable[[Any], Any]) -> None:
    async def main() -> None:
        async with rear_fs(base):
            rear_open("ar.zip/a").close()
            with rear_open("ar.zip/b"):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_async(main)
    assert scavenge(base) == {"a": b""}


def test_a_task_that_is_cancelled(base: Path) -> None:
    async def task() -> None:
        async with rear_fs(base):
            rear_open("ar.zip/kept").close()
            with rear_open("ar.zip/half", "w") as file:
                file.write("half")
                await asyncio.sleep(60)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task(), 0.2)
        assert all(journal.closed for journal in journals(base))

    asyncio.run(main())
    assert scavenge(base) == {"kept": b""}


def test_a_trio_scope_that_is_cancelled(base: Path) -> None:
    async def main() -> None:
        with trio.move_on_after(0.2):
            async with rear_fs(base):
                rear_open("ar.zip/kept").close()
                with rear_open("ar.zip/half", "w") as file:
                    file.write("half")
                    await trio.sleep(60)
        assert all(journal.closed for journal in journals(base))

    trio.run(main)
    assert scavenge(base) == {"kept": b""}


def test_asyncio_tasks_with_contexts_of_their_own(tmp_path: Path) -> None:
    async def work(name: str) -> None:
        async with rear_fs(tmp_path / name):
            for number in range(20):
                with rear_open(f"ar.zip/{number}", "w") as file:
                    await asyncio.sleep(0)
                    file.write(name)

    async def main() -> None:
        await asyncio.gather(*(work(name) for name in "abcdefgh"))

    asyncio.run(main())
    for name in "abcdefgh":
        assert scavenge(tmp_path / name) == {str(number): name.encode() for number in range(20)}


@BACKENDS
def test_tasks_that_share_one(base: Path, run_async: Callable[[Any], Any]) -> None:
    """Each enters and leaves it; who leaves first must not take it from the other."""
    import anyio

    async def main() -> None:
        fs = rear_fs(base)
        first_left = anyio.Event()
        second_entered = anyio.Event()

        async def first() -> None:
            async with fs:
                await second_entered.wait()
                rear_open("ar.zip/first").close()
            assert no_context()
            first_left.set()

        async def second() -> None:
            async with fs:
                second_entered.set()
                await first_left.wait()
                rear_open("ar.zip/second").close()
            assert no_context()

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.sleep(0.05)
            group.start_soon(second)

    run_async(main)
    assert scavenge(base) == {"first": b"", "second": b""}


@BACKENDS
def test_worker_threads_of_the_event_loop(base: Path, run_async: Callable[[Any], Any]) -> None:
    import anyio

    async def main() -> None:
        def work() -> None:
            with rear_open("ar.zip/thread", "w") as file:
                file.write("t")

        async with rear_fs(base):
            await anyio.to_thread.run_sync(work)

    run_async(main)
    assert scavenge(base) == {"thread": b"t"}


def test_generators_that_hold_one(base: Path) -> None:
    def generate() -> Iterator[int]:
        with rear_fs(base):
            for number in range(3):
                rear_open(f"ar.zip/{number}").close()
                yield number

    generator = generate()
    next(generator)
    generator.close()
    assert no_context()
    assert scavenge(base) == {"0": b""}


def test_no_signal_is_swallowed_when_files_are_collected(base: Path) -> None:
    """Python ignores what a handler raises in a ``__del__``, so none of ours may run for a file that has ended."""
    entered = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT / "rear")):
            entered.append(frame.f_code.co_qualname)

    with rear_fs(base, spool_size=10) as fs:
        for mode in ("w", "wb"):
            for size in (1, 1000):
                files = [fs.open(f"ar.zip/{mode}/{size}", mode), fs.open("ar.zip/discarded", mode)]
                for file in files:
                    file.write("x" * size if mode == "w" else b"x" * size)
                files[0].close()
                files[1].discard()  # type: ignore[attr-defined]
                assert "Ended" not in repr(files)
                del file
                sys.setprofile(profile)
                files.clear()
                sys.setprofile(None)
    assert entered == []


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_file_leaves_no_cycle_for_the_collector(base: Path, mode: str) -> None:
    with rear_fs(base) as fs:
        gc.collect()
        gc.disable()
        try:
            for number in range(500):
                with fs.open(f"ar.zip/{number}", mode):
                    pass
            fs.sync()
            # Threads that other tests have left may leave something, too.
            assert gc.collect() < 400
        finally:
            gc.enable()
