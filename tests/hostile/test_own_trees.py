"""Trees that rear walks for a user while somebody else swaps their folders; and names that want to be more."""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
import socket
import stat
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from bases import contents, scavenge, write
from programs import run_rear

import rear
from rear.core.layout import Layout
from rear.core.log import warn
from rear.core.storage import LOCAL
from rear.diagnostics.openmetrics import as_text
from rear.diagnostics.status import look_at
from rear.errors import SourceError
from rear.events import SourceLeft
from rear.ingest import sweep as sweeping
from rear.ingest.source_tree import SourceEntry, SourceTree
from rear.worker import pickup as pickups
from rear.worker.pickup import Pickup
from rear.worker.pickup_listing import SourceFile, collect
from rear.zip.codecs import DEFLATED, decode
from rear.zip.payload import Payload, payload_of_source

#: What a walk calls, each a moment at which somebody else may be faster.
CALLS = ("open", "stat", "lstat", "fstat", "listdir", "scandir", "access", "readlink", "unlink", "rmdir")
DECOY = {"x.txt": b"decoy", "deep/y": b"decoy", "deep/z": b"decoy"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path)


def make_tree(folder: Path) -> Path:
    """Make ``tree``, whose folder ``b`` will be swapped, and a decoy that has the same names, and an empty folder."""
    for root, files in (("tree/b", dict.fromkeys(DECOY, b"mine")), ("decoy", DECOY)):
        for name, data in files.items():
            path = folder / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (folder / root / "empty").mkdir()
        (folder / root / "link").symlink_to("nowhere")
    (folder / "tree/a.txt").write_bytes(b"mine")
    return folder / "tree"


def check_decoy(folder: Path, name: str = "decoy") -> None:
    found = {str(path.relative_to(folder / name)): path for path in (folder / name).rglob("*")}
    assert set(found) == {*DECOY, "deep", "empty", "link"}
    assert {path: found[path].read_bytes() for path in DECOY} == DECOY


def swap_for_link(folder: Path) -> None:
    with suppress(FileNotFoundError):
        (folder / "tree/b").rename(folder / "away")
    with suppress(OSError):
        (folder / "tree/b").symlink_to(folder / "decoy")


def swap_for_folder(folder: Path) -> None:
    (folder / "tree/b").rename(folder / "away")
    (folder / "decoy").rename(folder / "tree/b")


def swap_the_root(folder: Path) -> None:
    (folder / "tree").rename(folder / "away")
    (folder / "tree").mkdir()
    (folder / "tree/b").symlink_to(folder / "decoy")


@contextmanager
def acting(at: int, act: Callable[[], object]) -> Iterator[list[int]]:
    """Do something once, right before the call of that number; the list holds how many there were."""
    count = [0]
    patch = pytest.MonkeyPatch()

    def hooked(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                act()
            return original(*arguments, **options)

        # `os.access in os.supports_effective_ids`, and the like.
        for supported in (os.supports_dir_fd, os.supports_fd, os.supports_effective_ids, os.supports_follow_symlinks):
            if original in supported:
                supported.add(call)
        return call

    for name in CALLS:
        patch.setattr(os, name, hooked(getattr(os, name)))
    try:
        yield count
    finally:
        patch.undo()


class Sink:
    """Keeps the content of what is picked up; all of it is stable when `settle` is called."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.pending: list[Callable[[], None]] = []

    def __call__(self, file: SourceFile, payload: Payload, on_stable: Callable[[], None] | None) -> None:
        if stat.S_ISREG(file.mode):
            self.contents[file.name] = b"".join(decode(payload.method, payload.chunks()))
        if on_stable is not None:
            self.pending.append(on_stable)
        payload.close()


def move(source: Path, sink: Sink, refused: list[Exception]) -> None:
    with suppress(SourceError, OSError):
        Pickup(
            source, "t", method=DEFLATED, spool_size=1 << 20, success_only=True, sink=sink, on_refused=refused.append
        ).close()
        for on_stable in sink.pending:
            on_stable()


def at_every_call(tmp_path: Path, run: Callable[[Path], None], act: Callable[[Path], None]) -> Iterator[Path]:
    """Run with a swap right before each call in turn; yield each folder in which that was done."""
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        make_tree(folder)
        with acting(number, lambda folder=folder: act(folder)) as count:  # type: ignore[misc]
            run(folder)
        if count[0] < number:
            assert number > 40
            return
        yield folder
        shutil.rmtree(folder)


# ---- swapped


@pytest.mark.parametrize("act", [swap_for_link, swap_the_root])
def test_a_moved_tree_is_swapped_at_any_call(tmp_path: Path, act: Callable[[Path], None]) -> None:
    sinks: list[Sink] = []

    def run(folder: Path) -> None:
        sinks.append(Sink())
        move(folder / "tree", sinks[-1], [])

    for folder in at_every_call(tmp_path, run, act):
        check_decoy(folder)
        assert b"decoy" not in sinks[-1].contents.values()


def test_a_moved_file_whose_folder_is_swapped_at_any_call(tmp_path: Path) -> None:
    def run(folder: Path) -> None:
        move(folder / "tree/b/x.txt", Sink(), [])

    number = 0
    for number in range(1, 60):
        folder = tmp_path / str(number)
        folder.mkdir()
        make_tree(folder)
        with acting(number, lambda folder=folder: swap_for_link(folder)) as count:  # type: ignore[misc]
            run(folder)
        if count[0] < number:
            break
        # Before it was first looked at, what the user named leads there.
        if (folder / "away/x.txt").exists() or (folder / "decoy/x.txt").exists():
            assert len(list((folder / "decoy").rglob("*"))) >= len(DECOY) + 2
    assert number > 5


@pytest.mark.parametrize("act", [swap_for_link, swap_for_folder, swap_the_root])
@pytest.mark.parametrize("keep", [True, False])
def test_a_folder_is_swapped_after_the_listing(
    tmp_path: Path, tree: Path, act: Callable[[Path], None], keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect_and_act(*arguments: Any, **options: Any) -> list[SourceFile]:
        files = collect(*arguments, **options)
        act(tmp_path)
        return files

    monkeypatch.setattr(pickups, "collect", collect_and_act)
    refused: list[Exception] = []
    with suppress(SourceError), rear.rear_fs(tmp_path / "base") as fs:
        fs.pickup(tree, "ar.zip/t", keep=keep, on_refused=refused.append).close()
    scavenge(tmp_path / "base")
    check_decoy(tmp_path, "tree/b" if act is swap_for_folder else "decoy")
    archive = tmp_path / "base/ar.zip"
    assert b"decoy" not in dict(contents(archive) if archive.exists() else {}).values()
    assert all("removed or replaced" in str(error) for error in refused)
    assert refused or act is swap_the_root


def test_a_folder_is_swapped_before_the_removal(tmp_path: Path, tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    Pickup(tree, "t", method=DEFLATED, spool_size=1 << 20, success_only=True, sink=sink).close()
    swap_for_folder(tmp_path)
    for on_stable in sink.pending:
        on_stable()
    check_decoy(tmp_path, "tree/b")
    assert "x.txt has changed since it was archived: it is left in place" in caplog.text
    assert not (tree / "a.txt").exists()


def test_a_swept_tree_is_swapped_at_any_call(tmp_path: Path) -> None:
    def run(folder: Path) -> None:
        layout = Layout(tmp_path / "base")
        with SourceTree(folder / "tree", layout, storage=LOCAL) as tree:
            found = [entry for entry in tree.walk() if isinstance(entry, SourceEntry)]
            for entry in found:
                with suppress(SourceError, OSError), tree.opened(entry) as descriptor:
                    assert os.pread(descriptor, 10, 0) == b"mine"
                with suppress(SourceError, OSError):
                    tree.folder_of(entry)
                    tree.unlink(entry)

    for folder in at_every_call(tmp_path, run, swap_for_link):
        check_decoy(folder)


def test_a_folder_is_swapped_between_the_listing_and_the_reading_of_a_sweep(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act_and_read(*arguments: Any, **options: Any) -> Any:
        swap_for_link(tmp_path)
        return payload_of_source(*arguments, **options)

    monkeypatch.setattr(sweeping, "payload_of_source", act_and_read)
    events = list(rear.sweep(tree, "ar.zip", base=tmp_path / "base", delete=True))
    check_decoy(tmp_path)
    assert b"decoy" not in dict(contents(tmp_path / "base/ar.zip")).values()
    assert {event.source for event in events if isinstance(event, SourceLeft)} >= {f"{tree}/b/deep/y"}


def test_a_folder_that_only_lets_pass_holds_sources(tmp_path: Path, tree: Path) -> None:
    tree.chmod(0o311)
    refused: list[Exception] = []
    try:
        sink = Sink()
        move(tree / "b", sink, refused)
    finally:
        tree.chmod(0o755)
    assert set(sink.contents) == {"t/x.txt", "t/deep/y", "t/deep/z"}
    assert not (tree / "b").exists()


def test_thousands_of_pickups_hold_no_folder_open(tmp_path: Path, tree: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    sinks = []
    for _ in range(50):
        sinks.append(Sink())
        Pickup(tree / "a.txt", "a", method=DEFLATED, spool_size=1 << 20, success_only=True, sink=sinks[-1]).close()
    assert len(os.listdir("/dev/fd")) == before


# ---- mounts


@pytest.fixture
def mounted(tree: Path) -> Iterator[Path]:
    """A file system of its own in the tree, where one can be mounted."""
    place = tree / "b/empty"
    if subprocess.run(["mount", "-t", "tmpfs", "none", place], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (place / "elsewhere").write_bytes(b"elsewhere")
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("option", [(), ("--one-file-system",)])
@pytest.mark.parametrize("command", ["put", "sweep", "run"])
def test_mounts_are_crossed_unless_asked_not_to(
    tmp_path: Path, tree: Path, mounted: Path, command: str, option: tuple[str, ...]
) -> None:
    base = tmp_path / "base"
    arguments: dict[str, list[object]] = {
        "put": [*option, "-r", tree, f"{base}/ar.zip/x/", "--base", "/"],
        "sweep": [*option, tree, "--into", "ar.zip/x", "--base", base],
        "run": [*option, "--output", tree, "--into", "ar.zip/x", "--base", base, "--", "true"],
    }
    if command == "put":
        arguments["put"] = [*option, "-r", tree, "ar.zip/x/", "--base", base]
    done = run_rear(command, *arguments[command])
    assert done.returncode == 0, done.stderr
    scavenge(base)
    names = {name.rpartition("/")[2] for name, _ in contents(base / "ar.zip")}
    assert ("elsewhere" in names) is not bool(option)
    assert "y" in names
    if option:
        told = "left alone  1 " if command == "sweep" else "on another file system"
        assert told in done.stdout + done.stderr


# ---- get


@pytest.mark.parametrize(("options", "mode"), [((), 0o755), (("-p",), 0o777)])
def test_get_heeds_the_umask(tmp_path: Path, options: tuple[str, ...], mode: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, bits in (
            ("d/", stat.S_IFDIR | 0o7777),
            ("d/f", stat.S_IFREG | 0o7777),
            ("e/f", stat.S_IFREG | 0o666),
        ):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, bits << 16
            archive.writestr(info, b"")
    before = os.umask(0o022)
    try:
        assert run_rear("get", *options, tmp_path / "a.zip", "-C", tmp_path / "out").returncode == 0
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in ("d", "d/f", "e", "e/f")}
    assert modes == {"d": mode, "d/f": mode, "e": 0o755, "e/f": mode & 0o666}


# ---- names that want to be more


@pytest.mark.parametrize("start", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"])
def test_no_cell_of_the_index_is_a_formula(tmp_path: Path, start: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(start, b"")
        archive.writestr("a\x1b[31m-1", b"")
    safe = run_rear("index", "--csv", tmp_path / "a.zip").stdout
    raw = run_rear("index", "--csv-raw", tmp_path / "a.zip").stdout
    cells = [cell for row in csv.reader(io.StringIO(safe, newline="")) for cell in row]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r＝"))]
    assert any(cell.startswith((f"'{start[0]}", "'\\")) for cell in cells)
    assert "\x1b" not in safe
    assert "a\\x1b[31m-1" in cells
    if "\r" not in start:
        # A pipe that is read as text makes a line end of that.
        names = {row["name"] for row in csv.DictReader(io.StringIO(raw, newline=""))}
        assert names == {start, "a\x1b[31m-1"}


def test_labels_of_metrics(tmp_path: Path) -> None:
    base = tmp_path / 'b"\\\n\x1b[31m\x9b'
    write(base, {"ar.zip/a": b""})
    host = base / ".rear/inbox/h\x1b[2J"
    host.mkdir()
    (host / "w-0.journal").write_bytes(b"")
    text = as_text(look_at(base))
    assert not [character for character in text if not character.isprintable() and character != "\n"]
    assert all(line.startswith(("rear_", "# ")) for line in text.splitlines())
    assert 'b\\"\\\\\\n\\\\x1b[31m\\\\x9b"' in text or 'b\\"\\\\\\\\' in text


def test_names_in_the_log_are_escaped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn("%s was archived", "a\x1b[31m\nERROR root")
    assert caplog.messages == ["a\\x1b[31m\\nERROR root was archived"]
    source = tmp_path / "tree"
    (source / "nested\x1b[31m/.rear").mkdir(parents=True)
    (source / "a").write_bytes(b"")
    done = run_rear("put", "-r", source, "ar.zip/x/", "--base", tmp_path / "base")
    assert done.returncode == 0
    assert "nested\\x1b[31m is a base of rear" in done.stderr
    assert "\x1b" not in done.stderr


# ---- a journal's end


@pytest.mark.parametrize("garbage", [b"x" * (3 << 20), bytes(3 << 20), b"\xff\n" * (3 << 19), b"y" * (7 << 20) + b"\n"])
def test_garbage_at_the_end_of_a_journal_is_told(tmp_path: Path, garbage: bytes) -> None:
    child = os.fork()
    if child == 0:
        write(tmp_path / "base", {"ar.zip/a": b"mine"})
        os._exit(0)
    os.waitpid(child, 0)
    (journal,) = (tmp_path / "base/.rear/inbox").glob("*/*.journal")
    with journal.open("ab") as file:
        file.write(garbage)
    done = run_rear("scavenge", tmp_path / "base")
    assert "of its journal unreadable" in done.stderr
    assert contents(tmp_path / "base/ar.zip") == [("a", b"mine")]


# ---- half a scheduler


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.0 400 \x1b[31m\r\n\r\n", b"\x11\0\0\0\0\0\0\0" + b"\1\0\0\0\0\0\0\0" * 2 + b"\xc1", None]
)
def test_what_is_no_scheduler_is_told_in_a_line(
    answer: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("distributed")
    import rear.dask

    monkeypatch.setattr(rear.dask, "CONNECT_SECONDS", 0.5)
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with ExitStack() as held:
                while not is_over.is_set():
                    connection = held.enter_context(server.accept()[0])
                    if answer is not None:
                        with suppress(OSError):
                            connection.sendall(answer)
                        connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        place = server.getsockname()
        try:
            with (
                pytest.raises(ConnectionError, match="no Dask scheduler answers"),
                rear.dask.connected(f"tcp://127.0.0.1:{place[1]}"),
            ):
                pass
        finally:
            is_over.set()
            socket.create_connection(place).close()
            thread.join()
    assert "Traceback" not in capfd.readouterr().err
    assert not any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("distributed").handlers)
