"""Links below a base: put there before, or in place of a folder in the middle of a call: what is behind stays."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bases import members, of_kind, put, scavenge, write
from programs import run_rear

import rear
from rear.core import descent
from rear.core.descent import is_folder, status_of, walk
from rear.core.layout import Layout, find_base
from rear.core.openat2 import folder_opener
from rear.core.parallel import Failed, attempt
from rear.core.problems import Problem
from rear.core.storage import LOCAL, Storage
from rear.diagnostics.status import look_at
from rear.errors import BaseError, PathError, RearError
from rear.events import Event, Refused
from rear.fsck.base import fsck

SECRET = b"behind the link"
Snapshot = dict[str, tuple[int, int, bytes]]


def snapshot(folder: Path) -> Snapshot:
    """Names, modes, times and contents of all that is in a folder, and of that itself."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = hashlib.blake2b(path.read_bytes()).digest() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


# --- every operation of the storage, a link at every level, at every moment -----------------------------------------

PLACES = {"state": ".rear/inbox/host", "archives": "runs/7/deep"}


class Tree:
    """A base, and a decoy outside that has the same folders and files in them."""

    def __init__(self, folder: Path, place: str) -> None:
        self.base, self.decoy, self.aside = folder / "base", folder / "decoy", folder / "aside"
        self.place = place
        Layout(self.base)
        for root, data in ((self.base, b"in the base"), (self.decoy, SECRET)):
            (root / place / "empty").mkdir(parents=True)
            (root / place / "file").write_bytes(data)
            (root / place / ("ours" if root == self.base else "theirs")).write_bytes(data)
        self.folder = self.base / place

    @property
    def levels(self) -> list[str]:
        parts = self.place.split("/")
        return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]

    def swap(self, level: str) -> None:
        """Put a link to the decoy in place of a folder."""
        self.aside.mkdir(exist_ok=True)
        (self.base / level).rename(self.aside / "folder")
        (self.base / level).symlink_to(self.decoy / level)


def read_all(storage: Storage, path: Path) -> bytes:
    descriptor = storage.open(path)
    try:
        return storage.read(descriptor, 100, 0)
    finally:
        storage.close(descriptor)


def write_all(storage: Storage, descriptor: int) -> None:
    storage.write(descriptor, [b"written"], 0)
    storage.close(descriptor)


def list_opened(storage: Storage, path: Path) -> list[str]:
    descriptor = storage.open_directory(path)
    try:
        return os.listdir(descriptor)
    finally:
        storage.close(descriptor)


OPERATIONS: dict[str, Callable[[Storage, Path], Any]] = {
    "create": lambda storage, folder: write_all(storage, storage.create(folder / "new")),
    "open": lambda storage, folder: read_all(storage, folder / "file"),
    "open to write": lambda storage, folder: write_all(storage, storage.open(folder / "file", write=True)),
    "open_directory": list_opened,
    "status": lambda storage, folder: storage.status(folder / "file").st_size == len(SECRET) and [SECRET],
    "size_of": lambda storage, folder: storage.size_of(folder / "file") == len(SECRET) and [SECRET],
    "sync_directory": lambda storage, folder: storage.sync_directory(folder),
    "rename": lambda storage, folder: storage.rename(folder / "file", folder / "renamed"),
    "rename away": lambda storage, folder: storage.rename(folder / "file", folder.parents[2] / "taken"),
    "rename into": lambda storage, folder: storage.rename(folder.parents[2] / "root file", folder / "brought"),
    "link": lambda storage, folder: storage.link(folder / "file", folder / "linked"),
    "replace": lambda storage, folder: storage.replace(folder / "file", b"replaced"),
    "unlink": lambda storage, folder: storage.unlink(folder / "file"),
    "remove_directory": lambda storage, folder: storage.remove_directory(folder / "empty"),
    "make_directories": lambda storage, folder: storage.make_directories(folder / "a" / "b"),
    "names": lambda storage, folder: storage.names(folder),
    "look_into": lambda storage, folder: storage.look_into(folder),
    "is_folder": lambda storage, folder: is_folder(folder / "theirs"),
    "walk": lambda storage, folder: [name for _, folders, files in walk(folder) for name in folders + files],
}
#: What takes no path, or gets there by others.
DESCRIPTOR_ONLY = {
    "close", "write", "read", "size", "mode", "next_data", "copy_range", "truncate", "sync", "drop_cache",
    "copy_owner_and_mode", "give", "set_mode", "unlink_at", "remove_directory_at", "try_lock", "uptime",
    "is_mostly_holes", "data_ranges",
}  # fmt: skip


def test_all_operations_are_tried() -> None:
    methods = {name for name in vars(Storage) if not name.startswith("_")}
    assert methods - DESCRIPTOR_ONLY <= set(OPERATIONS)


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_link_that_is_there(
    tmp_path: Path, place: str, operation: str, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "_open_at_once", folder_opener(descent._PASSING) if at_once else None)
    for number in range(3):
        tree = Tree(tmp_path / str(number), place)
        (tree.base / "root file").write_bytes(b"")
        level = tree.levels[number]
        tree.swap(level)
        before = snapshot(tree.decoy), snapshot(tree.aside)
        refused = []
        if operation == "walk":
            assert list(walk(tree.folder, on_error=refused.append)) == []
        else:
            with pytest.raises(OSError, match="link") as caught:
                OPERATIONS[operation](LOCAL, tree.folder)
            refused.append(caught.value)
        assert refused[0].errno == errno.ELOOP
        # In full, as if it had been called by path.
        assert str(refused[0].filename).startswith(f"{tree.base}/")
        assert (snapshot(tree.decoy), snapshot(tree.aside)) == before


class Swapping:
    """Does something before the call with this number of those of ``os`` that take a path."""

    CALLS = ("open", "stat", "mkdir", "rename", "link", "unlink", "rmdir", "listdir", "scandir")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
        self.left, self.act = number, act
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == -1:
                self.act()
            return call(*arguments, **options)

        return calling

    @property
    def was_reached(self) -> bool:
        return self.left < 0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_link_that_comes_in_the_middle(
    tmp_path: Path, place: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    # Step by step, so that there is something in between.
    monkeypatch.setattr(descent, "_steps", descent._STEPS_ONE_BY_ONE + 1)
    monkeypatch.setattr(descent, "_open_at_once", None)
    for level in range(3):
        for number in range(100):
            tree = Tree(tmp_path / f"{level}-{number}", place)
            (tree.base / "root file").write_bytes(b"")
            before = snapshot(tree.decoy)
            found: Any = None
            with monkeypatch.context() as patch:
                # What swaps calls the same functions, when they are not counted any more.
                swapping = Swapping(patch, number, lambda tree=tree, level=level: tree.swap(tree.levels[level]))
                with suppress(OSError):
                    found = OPERATIONS[operation](LOCAL, tree.folder)
            assert snapshot(tree.decoy) == before, (level, number)
            assert found is None or SECRET not in (found if isinstance(found, (bytes, list)) else []), (level, number)
            assert "theirs" not in (found if isinstance(found, list) else []), (level, number)
            assert found is not True or operation == "link"
            if not swapping.was_reached:
                break
            count += 1
    assert count > 5


def test_no_descriptor_is_left_open(tmp_path: Path, place: str) -> None:
    tree = Tree(tmp_path, place)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for swapped in (False, True):
        if swapped:
            tree.swap(tree.levels[1])
        for operation in OPERATIONS.values():
            with suppress(OSError):
                operation(LOCAL, tree.folder)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_the_name_of_a_base_may_have_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    base = tmp_path / "link"
    write(base, {"ar.zip/a": b"a"})
    scavenge(base)
    assert members(tmp_path / "real") == {"a": b"a"}
    assert LOCAL.names(base) == [".rear", "ar.zip"]
    LOCAL.sync_directory(base)


def test_a_task_in_another_process_is_told_of_the_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, "runs/7/deep")
    tree.swap("runs")
    bases = descent.known_bases()
    monkeypatch.setattr(descent, "_bases", set())
    result = attempt(rear.__version__, _read_in_task, str(tree.folder / "file"), bases, LOCAL)
    assert isinstance(result, Failed)
    assert "link" in result.reason


def _read_in_task(path: str, storage: Storage) -> bytes:
    return read_all(storage, Path(path))


# --- whole commands, with each part of the state as a link to a folder full of what would do harm ------------------

STATE_PARTS = [
    ".", "terms", "intents", "claims", "claims/LEADER", "claims/LEADER/HOST", "inbox", "inbox/HOST", "graveyard",
    "graveyard/HOST", "index", "index/ar.zip", "lost+found", "lost+found/DATE", "reports", "observations",
    "observations/workers", "flush", "lock", "config.toml", "inbox/HOST/PAIR.zip", "inbox/HOST/PAIR.journal",
]  # fmt: skip
#: A scavenge tells of these when it needs them.
TOLD_WHEN_NEEDED = ("index/ar.zip", "lost+found/DATE", "observations/workers")
ESSENTIAL = (".", "terms", "intents", "claims", "inbox", "lock")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in which each part holds what rear would read, move or remove; PAIR and HOST say which names."""
    base = tmp_path_factory.mktemp("template") / "base"
    write(base, {"ar.zip/old": b"old"})
    scavenge(base)
    write(base, {"ar.zip/claimed": b"claimed"})
    state = base / ".rear"
    (host,) = (state / "inbox").iterdir()
    claims = state / "claims" / "4711-1-0123456789ab" / host.name
    claims.mkdir(parents=True)
    shutil.copytree(host, state / "graveyard" / host.name)
    for path in host.iterdir():
        path.rename(claims / path.name)
    write(base, {"ar.zip/new": b"new", "other.zip/new": b"new"})
    for folder, name in {
        "lost+found/2026-01-01": "item.part", "flush": "request", "reports": "20260101T000000-1.json",
        "observations/workers": "seen.json", "intents": "0123456789abcdef0123456789abcdef-x.intent",
    }.items():  # fmt: skip
        (state / folder).mkdir(parents=True, exist_ok=True)
        (state / folder / name).write_text("{}")
    (state / "config.toml").write_text("")
    return base


def put_link(base: Path, part: str) -> Path:
    """Move a part of the state elsewhere, and put a link to it in its place; return where it is now."""
    state = base / ".rear"
    (host,) = (path.name for path in (state / "inbox").iterdir())
    (journal,) = (state / "inbox" / host).glob("*.journal")
    for placeholder, name in {
        "LEADER": "4711-1-0123456789ab", "HOST": host, "DATE": "2026-01-01", "PAIR": journal.stem,
    }.items():  # fmt: skip
        part = part.replace(placeholder, name)
    path, decoy = state / part, base.parent / "decoy"
    decoy.mkdir()
    path.rename(decoy / "part")
    path.symlink_to(decoy / "part")
    return decoy


def sweep_into(base: Path) -> Iterator[Event]:
    source = base.parent / "source"
    source.mkdir(exist_ok=True)
    (source / "file").write_text("swept")
    return rear.sweep(source, into="ar.zip/swept", base=base)


def look_only(base: Path) -> Iterator[Event]:
    look_at(base)
    return iter(())


def writing(base: Path) -> Iterator[Event]:
    write(base, {"ar.zip/later": b"later"})
    return iter(())


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "scavenge": rear.scavenge, "dry run": lambda base: rear.scavenge(base, dry_run=True),
    "flush": lambda base: rear.scavenge(base, flush=True, flush_wait_seconds=0.1), "fsck": fsck,
    "report": lambda base: fsck(base, report_only=True), "status": look_only,
    "sweep": sweep_into, "write": writing,
}  # fmt: skip


@pytest.mark.parametrize("part", STATE_PARTS)
def test_nothing_behind_a_link_in_the_state_is_touched(template: Path, tmp_path: Path, part: str) -> None:
    for command, run in COMMANDS.items():
        folder = tmp_path / command
        base = folder / "base"
        shutil.copytree(template, base, symlinks=True)
        decoy = put_link(base, part)
        before = snapshot(decoy)
        events: list[Any] = []
        error: Exception | None = None
        try:
            events = list(run(base))
        except (RearError, OSError) as caught:
            error = caught
        assert snapshot(decoy) == before, command
        if command not in ("scavenge", "fsck"):
            continue
        if part in ESSENTIAL:
            assert isinstance(error, BaseError), (command, error)
            assert "is a link" in str(error)
            continue
        told = " ".join(f"{one.subject} {one}" for one in events if isinstance(one, (Refused, Problem)))
        if part == "config.toml":
            assert "config.toml" in str(error)
        elif command == "fsck" or part not in TOLD_WHEN_NEEDED:
            assert error is None
            assert "link" in told, (command, told)


@pytest.mark.parametrize("part", ["inbox", "flush", "inbox/HOST", "graveyard"])
def test_commands_tell_of_a_link_by_name(template: Path, tmp_path: Path, part: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(template, base)
    put_link(base, part)
    for command in ("scavenge", "fsck", "status"):
        done = run_rear(command, base)
        assert "Traceback" not in done.stderr
        assert done.returncode != 0
        assert "link" in done.stdout + done.stderr, command
        assert part.split("/")[0] in done.stdout + done.stderr


# --- archives ---------------------------------------------------------------------------------------------------------


def test_an_archive_has_one_name_whatever_link_a_user_names_it_by(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "runs/7").mkdir(parents=True)
    (base / "latest").symlink_to("runs/7")
    write(base, {"latest/ar.zip/a": b"a", "runs/7/ar.zip/b": b"b"})
    with rear.rear_fs(base) as fs:
        put(fs, "latest/ar.zip/c", b"c")
        fs.sync()
        with fs.open("latest/ar.zip/c", "rb") as file:
            assert file.read() == b"c"
    assert of_kind(scavenge(base), Refused) == []
    assert members(base, "runs/7/ar.zip") == {"a": b"a", "b": b"b", "c": b"c"}
    assert not (base / ".rear/index/latest").exists()
    found = find_base(base / "latest/ar.zip")
    assert found is not None
    assert found[1] == "runs/7/ar.zip"
    source = tmp_path / "source"
    source.mkdir()
    (source / "d").write_text("d")
    assert not of_kind(list(rear.sweep(source, into="latest/ar.zip", base=base)), Refused)
    done = run_rear("put", source / "d", f"{base}/latest/ar.zip/e")
    assert done.returncode == 0, done.stderr
    scavenge(base)
    assert members(base, "runs/7/ar.zip") == {"a": b"a", "b": b"b", "c": b"c", "d": b"d", "e": b"d"}
    listed = run_rear("ls", base / "latest/ar.zip")
    assert sorted(listed.stdout.split()) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("inside", [True, False])
def test_a_scavenger_follows_no_link_to_an_archive(tmp_path: Path, inside: bool) -> None:
    """The folder was one when the members were written."""
    base = tmp_path / "base"
    write(base, {"runs/ar.zip/a": b"a", "ar.zip/b": b"b"})
    elsewhere = (base if inside else tmp_path) / "elsewhere"
    write(tmp_path / "other", {"ar.zip/x": b"x"})
    scavenge(tmp_path / "other")
    shutil.rmtree(tmp_path / "other/.rear")
    (tmp_path / "other").rename(elsewhere)
    shutil.rmtree(base / "runs", ignore_errors=True)
    (base / "runs").symlink_to(elsewhere)
    before = snapshot(elsewhere)
    for _ in range(2):
        (refused,) = of_kind(scavenge(base), Refused)
        assert refused.subject == "runs/ar.zip"
        assert "link" in refused.reason
        assert snapshot(elsewhere) == before
    assert members(base) == {"b": b"b"}
    (base / "runs").unlink()
    assert of_kind(scavenge(base), Refused) == []
    assert members(base, "runs/ar.zip") == {"a": b"a"}


def test_a_state_that_is_a_link_makes_no_base(tmp_path: Path) -> None:
    write(tmp_path / "real", {"ar.zip/a": b"a"})
    scavenge(tmp_path / "real")
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / ".rear").symlink_to(tmp_path / "real/.rear")
    assert find_base(planted / "ar.zip") is None
    with pytest.raises((BaseError, PathError, OSError), match="link"):
        write(planted, {"ar.zip/b": b"b"})


@pytest.mark.parametrize("name", ["file", "folder"])
def test_the_status_of_a_link_is_its_own(tmp_path: Path, name: str) -> None:
    Layout(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(name)
    assert os.path.samestat(status_of(tmp_path / "link", follow=True), (tmp_path / "link").lstat())
    with pytest.raises(OSError, match="link"):
        is_folder(tmp_path / "link")
