"""Sweeping a folder: what is archived, what is deleted and when, what is left alone, and who is in the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import fixtures
import pytest
from bases import check_base, members, of_kind, scavenge, write
from faults import SEED, fork, wait
from programs import rear_command, run_code, run_rear, start_rear, wait_for
from zips import flip

import rear
from rear.core.layout import Layout
from rear.core.names import Target, split_into
from rear.core.storage import Storage
from rear.errors import BaseError, PathError, UsageError
from rear.events import Collected, Event, Merged, Refused, Renamed, SourceDeleted, SourceLeft, Swept, Waiting
from rear.index.index import Index
from rear.ingest import sweep as sweeper
from rear.ingest.held_members import SourceIndex
from rear.read.view import open_committed
from rear.scavenger.leader import Leadership
from rear.worker.worker import Worker
from rear.zip.payload import payload_of_source

FILES = {
    "a.txt": b"first\n" * 20, "empty": b"", "sub/b.txt": b"second\n" * 2_000, "sub/deep/c.bin": bytes(range(256)) * 40,
    "sub/random.bin": random.Random(SEED).randbytes(70_000), "other/same.txt": b"first\n" * 20,
}  # fmt: skip
MTIME_NS = 1_700_000_000_123_456_789


def fill(folder: Path, files: dict[str, bytes] = FILES) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, ns=(MTIME_NS, MTIME_NS))


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    fill(tmp_path / "spool")
    return tmp_path / "spool"


base = fixtures.made_base


def sweep(folder: Path, base: Path, into: str = "ar.zip/spool", **options: Any) -> list[Event]:
    return list(rear.sweep(folder, into, base=base, **options))


def sweep_what_is_known(folder: Path, base: Path) -> list[Event]:
    """Sweep files that are all in the archive already: they go, and none is archived again."""
    events = sweep(folder, base, delete=True)
    assert of_kind(events, Collected) == []
    assert files_in(folder) == {}
    return events


def run(*arguments: object, environment: dict[str, str] | None = None, **options: Any) -> CompletedProcess[str]:
    """Run the real command."""
    return run_rear("sweep", *arguments, env=os.environ | (environment or {}), **options)


def json_of(done: CompletedProcess[str]) -> dict[str, Any]:
    """Return the last event of a command that was run with ``--json``; behind it stands the summary alone."""
    event, summary = map(json.loads, done.stdout.splitlines()[-2:])
    assert (event["kind"], summary["kind"]) == ("swept", "summary")
    found: dict[str, Any] = event
    return found


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def expected(files: dict[str, bytes] = FILES, prefix: str = "spool/") -> dict[str, bytes]:
    return {prefix + name: data for name, data in files.items()}


# ---- archiving


def test_a_sweep_archives_all_files_and_the_next_one_only_what_is_new(spool: Path, base: Path) -> None:
    os.chmod(spool / "a.txt", 0o640)
    done = run(spool, "--into", "ar.zip/spool", "--base", base, "--json")
    assert done.returncode == 0, done.stderr
    assert json_of(done) == {
        "kind": "swept", "severity": "info", "directory": str(spool), "archive": "ar.zip", "files": len(FILES),
        "archived": len(FILES), "size_bytes": sum(map(len, FILES.values())), "there_already": 0, "deleted": 0,
        "pending": 0, "left_alone": 0, "refused": 0,
    }  # fmt: skip
    assert members(base) == expected()
    assert files_in(spool) == FILES
    with open_committed(base / "ar.zip") as archive:
        entry = archive.find("spool/a.txt")
        origin = archive.origin(entry)
        assert (origin.source, origin.mtime_ns, origin.mode) == (str(spool / "a.txt"), MTIME_NS, 0o100640)
        assert entry.mode == 0o100640

    fill(spool, {"sub/new.txt": b"new"})
    done = run(spool, "--into", "ar.zip/spool/", "--base", base, "--json")
    assert done.returncode == 0, done.stderr
    last = json_of(done)
    assert (last["archived"], last["there_already"], last["size_bytes"]) == (1, len(FILES), 3)
    assert members(base) == expected(FILES | {"sub/new.txt": b"new"})
    before = (base / "ar.zip").read_bytes()
    assert json_of(run(spool, "--into", "ar.zip/spool", "--base", base, "--json"))["archived"] == 0
    assert (base / "ar.zip").read_bytes() == before


def test_a_whole_archive_as_target_and_the_base_from_the_environment(spool: Path, base: Path) -> None:
    done = run("spool", "--into", "runs/ar.zip", cwd=spool.parent, environment={"REAR_BASE": str(base)})
    assert done.returncode == 0, done.stderr
    assert f"{len(FILES)} files" in done.stdout
    assert members(base, "runs/ar.zip") == expected(prefix="")


def test_the_base_is_made_with_the_first_file(spool: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert of_kind(sweep(empty, tmp_path / "new"), Swept)[0].files == 0
    assert not (tmp_path / "new").exists()
    sweep(spool, tmp_path / "new")
    assert members(tmp_path / "new") == expected()


def test_a_file_that_has_changed_is_archived_beside_the_old_one(spool: Path, base: Path) -> None:
    sweep(spool, base)
    (spool / "a.txt").write_bytes(b"changed")
    events = sweep(spool, base)
    assert [event.source for event in of_kind(events, Collected)] == [str(spool / "a.txt")]
    assert [(event.name, event.new_name) for event in of_kind(events, Renamed)] == [("spool/a.txt", "spool/a~1.txt")]
    assert members(base) == expected() | {"spool/a~1.txt": b"changed"}
    assert of_kind(sweep(spool, base), Collected) == []
    assert len(of_kind(sweep(spool, base, delete=True), SourceDeleted)) == len(FILES)
    assert members(base) == expected() | {"spool/a~1.txt": b"changed"}


def test_a_file_that_was_only_touched_is_not_archived_again(spool: Path, base: Path) -> None:
    sweep(spool, base)
    (spool / "a.txt").write_bytes(b"changed")
    sweep(spool, base)
    for path in (spool / "a.txt", spool / "empty", spool / "sub/b.txt"):
        os.utime(path, ns=(MTIME_NS + 5, MTIME_NS + 5))
    events = sweep_what_is_known(spool, base)
    by_name = {Path(event.source).name: event.name for event in of_kind(events, SourceDeleted)}
    assert by_name["a.txt"] == "spool/a~1.txt"


def test_the_index_finds_sources_by_path_size_and_mtime(spool: Path, base: Path) -> None:
    sweep(spool, base)
    index = Index.open(Layout(base), "ar.zip")
    key = (str(spool / "sub/b.txt"), len(FILES["sub/b.txt"]), MTIME_NS)
    others = [(key[0], key[1] + 1, key[2]), (key[0], key[1], key[2] + 1), (f"{key[0]}x", *key[1:])]
    found = index.find_sources([key, *others, ("\udcff", -1, 1 << 62)])
    assert set(found) == {key}
    assert (found[key].name, found[key].source_start, found[key].source_end) == ("spool/sub/b.txt", 0, key[1])


def test_a_folder_whose_name_is_no_utf8(tmp_path: Path, base: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/sp\xffool"))
    fill(folder)
    assert (
        run(os.fsencode(folder).decode("utf-8", "surrogateescape"), "--into", "ar.zip", "--base", base).returncode == 0
    )
    assert of_kind(sweep(folder, base, "ar.zip"), Collected) == []
    assert len(of_kind(sweep(folder, base, "ar.zip", delete=True), SourceDeleted)) == len(FILES)
    assert members(base) == expected(prefix="")


def test_many_batches(spool: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{number % 7}/{number}.txt": b"%d" % number * number for number in range(100)}
    fill(spool, files)
    monkeypatch.setattr(sweeper, "BATCH_FILES", 9)
    monkeypatch.setattr(sweeper, "BATCH_BYTES", 1_500)
    events = sweep(spool, base, delete=True)
    assert len(of_kind(events, Merged)) > 10
    assert len(of_kind(events, SourceDeleted)) == len(files) + len(FILES)
    assert files_in(spool) == {}
    assert members(base) == expected(FILES | files)


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path, base: Path) -> None:
    """A child that sweeps 6,000 files in batches of 500 peaks no higher than with 1,000 files, but for some slack."""
    peaks = []
    for count in (1_000, 6_000):
        folder = tmp_path / f"spool{count}"
        fill(folder, {f"{number % 30}/{number}": b"x" * 50 for number in range(count)})
        code = (
            "import resource, sys, rear; from rear.ingest import sweep; sweep.BATCH_FILES = 500\n"
            "for _ in rear.sweep(sys.argv[1], f'{sys.argv[2]}.zip', base=sys.argv[3], delete=True): pass\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        peaks.append(int(run_code(code, folder, count, base, check=True).stdout))
        assert files_in(folder) == {}
    # 5,000 files more may cost 0.6 KiB each at most (directory and index of the archive among it), in KiB here.
    assert peaks[1] - peaks[0] < 3_000


def test_patterns(spool: Path, base: Path) -> None:
    done = run(
        spool, "--into", "ar.zip", "--base", base, "--include", "sub", "--include", "*.txt", "--exclude", "**/*.bin"
    )
    assert done.returncode == 0, done.stderr
    assert set(members(base)) == {"a.txt", "sub/b.txt"}


def test_a_dry_run_changes_nothing(spool: Path, base: Path, tmp_path: Path) -> None:
    done = run(spool, "--into", "ar.zip", "--base", tmp_path / "none", "--dry-run", "--delete")
    assert done.returncode == 0
    assert f"{len(FILES)} files" in done.stdout
    assert "→ ar.zip/sub/deep/c.bin" in done.stderr
    assert not (tmp_path / "none").exists()
    sweep(spool, base)
    fill(spool, {"new": b"new"})
    before = files_in(tmp_path)
    events = sweep(spool, base, dry_run=True, delete=True)
    assert [event.name for event in of_kind(events, Collected)] == ["spool/new"]
    assert files_in(tmp_path) == before


def test_quiet_says_nothing_when_all_is_well(spool: Path, base: Path) -> None:
    done = run(spool, "--into", "ar.zip", "--base", base, "--delete", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- what is left alone


def test_other_things_than_files_are_left_alone(
    spool: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    fill(outside, {"precious.txt": b"not yours"})
    (spool / "link").symlink_to(outside / "precious.txt")
    (spool / "folder").symlink_to(outside)
    (spool / "nothing").mkdir()
    os.mkfifo(spool / "fifo")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        monkeypatch.chdir(spool)
        listener.bind("socket")
        done = run(spool, "--into", "ar.zip", "--base", base, "--delete", "--json")
    assert done.returncode == 0, done.stderr
    assert json_of(done)["left_alone"] == 4
    assert members(base) == expected(prefix="")
    assert sorted(os.listdir(spool)) == ["fifo", "folder", "link", "nothing", "other", "socket", "sub"]
    assert files_in(outside) == {"precious.txt": b"not yours"}


def test_names_that_cannot_be_members_are_reported_and_the_others_go_on(spool: Path, base: Path) -> None:
    odd = [b"new\nline", b"bell\x07", b"latin\xe9", b"back\\slash"]
    for name in odd:
        (spool / os.fsdecode(name)).write_bytes(b"odd")
    done = run(spool, "--into", "ar.zip", "--base", base, "--delete")
    assert done.returncode == 1
    for shown in (r"new\nline", r"bell\x07", r"latin\xe9", r"back\\slash"):
        assert shown in done.stderr
    assert "\x07" not in done.stderr
    assert members(base) == expected(prefix="")
    assert sorted(files_in(spool)) == sorted(map(os.fsdecode, odd))


def test_young_files_are_left_for_later(spool: Path, base: Path) -> None:
    (spool / "young.txt").write_bytes(b"still being written")
    done = run(spool, "--into", "ar.zip", "--base", base, "--older-than", "1h", "--delete", "--json")
    assert done.returncode == 0
    assert (json_of(done)["left_alone"], json_of(done)["deleted"]) == (1, len(FILES))
    assert files_in(spool) == {"young.txt": b"still being written"}
    os.utime(spool / "young.txt", (time.time() - 3_700,) * 2)
    assert run(spool, "--into", "ar.zip", "--base", base, "--older-than", "1h", "--delete").returncode == 0
    assert files_in(spool) == {}
    assert members(base)["young.txt"] == b"still being written"


def test_a_base_below_the_folder_is_not_swept(spool: Path) -> None:
    mine, other = spool / "base", spool / "sub/others base"
    for base in (mine, other):
        write(base, {"kept.zip/a": "kept"})
    scavenge(other)
    (mine / "plain.txt").write_text("in the base")
    before = files_in(other)
    done = run(spool, "--into", "ar.zip", "--base", mine, "--delete", "--json")
    assert done.returncode == 0, done.stderr
    assert json_of(done)["left_alone"] == 2
    assert members(mine) == expected(prefix="")
    assert members(mine, "kept.zip") == {"a": b"kept"}
    assert (mine / "plain.txt").exists()
    assert files_in(other) == before


def test_a_folder_in_the_base_is_swept_without_archives(base: Path) -> None:
    fill(base / "runs/7", {"a.txt": b"a", "old.ZIP": b"may be an archive"})
    write(base, {"runs/7/ar.zip/x": "x"})
    scavenge(base)
    done = run(base / "runs", "--into", "runs/7/ar.zip", "--base", base, "--delete", "--json")
    assert done.returncode == 0, done.stderr
    assert json_of(done)["left_alone"] == 2
    assert members(base, "runs/7/ar.zip") == {"x": b"x", "7/a.txt": b"a"}
    assert (base / "runs/7/old.ZIP").exists()


def test_a_base_is_not_swept(spool: Path, base: Path, tmp_path: Path) -> None:
    sweep(spool, base)
    (tmp_path / "alias").symlink_to(base)
    for folder in (base, tmp_path / "alias", base / ".rear", base / ".rear/reports", tmp_path / "alias/.rear/inbox"):
        if folder.exists():
            with pytest.raises(UsageError):
                sweep(folder, base)
            with pytest.raises(UsageError):
                sweep(folder, tmp_path / "another base")
    done = run(base, "--into", "ar.zip", "--base", tmp_path / "another")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_arguments_that_cannot_be_used(spool: Path, base: Path, tmp_path: Path) -> None:
    for into in ("", "/", "ar", "ar.zip/../x", "/ar.zip", ".rear/ar.zip", "ar.zip/x\ny", "ar.zip//x", "a//b.zip"):
        with pytest.raises(PathError):
            sweep(spool, base, into)
        assert run(spool, "--into", into, "--base", base).returncode == 2
    for options in ({"older_than_seconds": -1}, {"wait_seconds": float("nan")}, {"max_members": 0}):
        with pytest.raises(UsageError):
            sweep(spool, base, **options)
    with pytest.raises(BaseError):
        sweep(spool, spool / "a.txt")
    for missing in (tmp_path / "missing", spool / "a.txt"):
        done = run(missing, "--into", "ar.zip", "--base", base)
        assert done.returncode == 3
        assert "Traceback" not in done.stderr
    assert files_in(base) == {}


def test_how_a_target_is_split() -> None:
    assert split_into("ar.zip") == split_into("ar.zip/") == Target("ar.zip", "")
    assert split_into("a/B.ZIP/c/d/") == Target("a/B.ZIP", "c/d/")
    assert split_into("a.zip/b.zip") == Target("a.zip", "b.zip/")


def test_what_may_not_be_read_is_reported_and_the_others_go_on(spool: Path, base: Path) -> None:
    (spool / "a.txt").chmod(0)
    if os.access(spool / "a.txt", os.R_OK):
        pytest.skip("root may read everything")
    (spool / "sub").chmod(0)
    (spool / "other").chmod(0o555)
    try:
        events = sweep(spool, base, delete=True)
        assert sorted(event.subject for event in of_kind(events, Refused)) == [
            str(spool / "a.txt"), str(spool / "other/same.txt"), str(spool / "sub"),
        ]  # fmt: skip
        assert set(members(base)) == {"spool/empty", "spool/other/same.txt"}
    finally:
        (spool / "sub").chmod(0o755)
        (spool / "other").chmod(0o755)
    assert set(os.listdir(spool)) == {"a.txt", "sub", "other"}


def test_a_tree_that_is_deeper_than_any_path(spool: Path, base: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(spool)
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        Path("unreachable").write_bytes(b"x")
    finally:
        os.chdir(here)
    events = sweep(spool, base, delete=True)
    assert [event.subject.endswith("d" * 200) for event in of_kind(events, Refused)] == [True]
    assert members(base) == expected()


# ---- deleting


def test_delete_removes_files_whose_bytes_are_committed(spool: Path, base: Path) -> None:
    done = run(spool, "--into", "ar.zip/spool", "--base", base, "--delete", "--json")
    assert done.returncode == 0, done.stderr
    assert json_of(done)["deleted"] == len(FILES)
    assert files_in(spool) == {}
    assert (spool / "sub/deep").is_dir()
    assert members(base) == expected()


def test_what_was_archived_without_delete_is_deleted_later_without_archiving_it_again(spool: Path, base: Path) -> None:
    sweep(spool, base)
    before = (base / "ar.zip").read_bytes()
    events = sweep(spool, base, delete=True)
    assert of_kind(events, Collected) == []
    assert sorted(event.name for event in of_kind(events, SourceDeleted)) == sorted(expected())
    assert files_in(spool) == {}
    assert (base / "ar.zip").read_bytes() == before


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_bytes(b"F" * path.stat().st_size)
    os.utime(fresh, ns=(MTIME_NS, MTIME_NS))
    fresh.rename(path)


def overwrite_and_hide_it(path: Path) -> None:
    """What ``rsync --inplace --times`` does to a file of the same length."""
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes(byte ^ 1 for byte in data))
    os.utime(path, ns=(MTIME_NS, MTIME_NS))


def become_a_link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("change", [grow, replace, overwrite_and_hide_it, become_a_link])
def test_a_file_that_changes_after_it_was_archived_is_not_deleted(
    spool: Path, base: Path, change: Callable[[Path], None]
) -> None:
    events = []
    for event in rear.sweep(spool, "ar.zip/spool", base=base, delete=True):
        events.append(event)
        if isinstance(event, Merged):
            change(spool / "a.txt")
    assert (spool / "a.txt").exists()
    assert len(of_kind(events, SourceDeleted)) == len(FILES) - 1
    assert members(base) == expected()
    refusals = of_kind(events, Refused)
    assert bool(refusals) == (change is overwrite_and_hide_it), refusals
    data = (spool / "a.txt").read_bytes()
    events = sweep(spool, base, delete=True)
    if change in (grow, replace):
        # A later sweep takes what it has become; one that hides its change is kept for a person to look at.
        wanted = change is grow
        assert ((spool / "a.txt").exists(), data in members(base).values()) == (not wanted, wanted)


class Meddling(Storage):
    """Calls a function right before a file of a folder is closed; it was compared then, and is unlinked next."""

    def __init__(self, name: str, meddle: Callable[[], None]) -> None:
        self.name = name
        self.meddle: Callable[[], None] | None = meddle

    def open(self, path: Any, *, write: bool = False, directory: int | None = None) -> int:
        descriptor = super().open(path, write=write, directory=directory)
        self.compared = descriptor if path == self.name and directory is not None else -1
        return descriptor

    def close(self, descriptor: int) -> None:
        if descriptor == getattr(self, "compared", -1) and self.meddle is not None:
            meddle, self.meddle = self.meddle, None
            meddle()
        super().close(descriptor)


@pytest.mark.parametrize("change", [grow, replace, become_a_link])
def test_a_file_that_changes_after_it_was_compared_is_not_deleted(
    spool: Path, base: Path, change: Callable[[Path], None]
) -> None:
    path = spool / "sub/b.txt"
    storage = Meddling("b.txt", lambda: change(path))
    events = sweep(spool, base, delete=True, storage=storage)
    if change is replace:
        assert path.read_bytes() == b"F" * len(FILES["sub/b.txt"])
    assert storage.meddle is None
    assert path.exists()
    assert [event.source for event in of_kind(events, SourceLeft)] == [str(path)]
    assert members(base) == expected()


def test_a_folder_that_is_swapped_for_a_link_leads_nowhere(spool: Path, base: Path, tmp_path: Path) -> None:
    """The same file stands in another folder: no file there is deleted in place of the one that was archived."""
    victim = tmp_path / "victim"
    fill(victim, {"b.txt": FILES["sub/b.txt"], "random.bin": b"x", "deep/c.bin": b"y"})
    before = files_in(victim)
    events = []
    for event in rear.sweep(spool, "ar.zip/spool", base=base, delete=True):
        events.append(event)
        if isinstance(event, Merged):
            (spool / "sub").rename(tmp_path / "away")
            (spool / "sub").symlink_to(victim)
    assert files_in(victim) == before
    assert len(files_in(tmp_path / "away")) == 3
    assert len(of_kind(events, SourceDeleted)) == 3


def test_a_folder_that_is_swapped_for_a_link_before_it_is_read_is_not_archived(
    spool: Path, base: Path, tmp_path: Path
) -> None:
    """A root's sweep of a user's folder must not bring files of others into an archive."""
    secret = tmp_path / "secret"
    fill(secret, {"b.txt": FILES["sub/b.txt"]})
    is_swapped = False

    def swap(relative: str) -> bool:
        nonlocal is_swapped
        if relative.endswith("random.bin") and not is_swapped:
            is_swapped = True
            (spool / "sub").rename(tmp_path / "away")
            (spool / "sub").symlink_to(secret)
        return True

    events = sweep(spool, base, delete=True, select=swap)
    assert is_swapped
    assert set(members(base)) == {"spool/a.txt", "spool/empty", "spool/other/same.txt"}
    assert str(spool / "sub/b.txt") in [event.source for event in of_kind(events, SourceLeft)]
    assert files_in(secret) == {"b.txt": FILES["sub/b.txt"]}


def test_a_member_that_cannot_be_read_back_keeps_its_source(spool: Path, base: Path) -> None:
    sweep(spool, base)
    position = (base / "ar.zip").read_bytes().index(FILES["sub/random.bin"][:50])
    flip(base / "ar.zip", position + 1_000)
    done = run(spool, "--into", "ar.zip/spool", "--base", base, "--delete")
    assert done.returncode == 1
    assert "random.bin" in done.stderr
    assert files_in(spool) == {"sub/random.bin": FILES["sub/random.bin"]}


def test_an_archive_that_is_gone_is_written_again(spool: Path, base: Path) -> None:
    """Its index tells of members that are nowhere: no word of it counts."""
    sweep(spool, base)
    (base / "ar.zip").unlink()
    events = sweep(spool, base, delete=True)
    assert len(of_kind(events, Collected)) == len(FILES)
    assert members(base) == expected()
    assert files_in(spool) == {}


def test_a_lost_index_is_no_reason_to_archive_again(spool: Path, base: Path) -> None:
    sweep(spool, base)
    shutil.rmtree(base / ".rear/index")
    sweep_what_is_known(spool, base)


def test_a_commit_that_may_not_be_on_stable_storage_is_no_reason_to_delete(spool: Path, base: Path) -> None:
    """Without a word of the index, an intent that is still there may be of a commit that power loss takes back."""
    sweep(spool, base)
    shutil.rmtree(base / ".rear/index")
    intent = Layout(base).intent("ar.zip", "somebody")
    intent.parent.mkdir(exist_ok=True)
    intent.write_bytes(b"cannot be read\n")
    events = sweep(spool, base, delete=True)
    assert of_kind(events, SourceDeleted) == []
    assert "ar.zip" in [event.subject for event in of_kind(events, Refused)]
    assert files_in(spool) == FILES
    intent.unlink()
    assert len(of_kind(sweep(spool, base, delete=True), SourceDeleted)) == len(FILES)


def test_an_archive_that_another_program_has_changed(spool: Path, base: Path) -> None:
    sweep(spool, base)
    with zipfile.ZipFile(base / "ar.zip", "a") as archive:
        archive.writestr("theirs.txt", "added by another program")
    fill(spool, {"theirs.txt": b"ours"})
    events = sweep(spool, base, "ar.zip", delete=True)
    assert [event.name for event in of_kind(events, Collected)] == ["theirs.txt"]
    assert files_in(spool) == {}
    assert members(base) == expected() | {"theirs.txt": b"added by another program", "theirs~1.txt": b"ours"}


def test_files_in_rolled_over_archives_are_known(spool: Path, base: Path) -> None:
    sweep(spool, base, max_members=4)
    fill(spool, {"more": b"more"})
    sweep(spool, base, max_members=2)
    assert (base / "ar-1.zip").exists()
    shutil.rmtree(base / ".rear/index/ar-0.zip")
    sweep_what_is_known(spool, base)
    found: dict[str, bytes] = {}
    for path in sorted(base.glob("*.zip")):
        inside = members(base, path.name)
        assert not found.keys() & inside.keys()
        found |= inside
    assert found == expected(FILES | {"more": b"more"})


def test_a_file_that_may_not_be_removed_is_reported_and_the_others_go_on(spool: Path, base: Path) -> None:
    class Guarded(Storage):
        def unlink_at(self, directory: int, name: str) -> None:
            if name == "a.txt":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
            super().unlink_at(directory, name)

    events = sweep(spool, base, delete=True, storage=Guarded())
    assert [event.subject for event in of_kind(events, Refused)] == [str(spool / "a.txt")]
    assert set(files_in(spool)) == {"a.txt"}


def test_a_file_that_vanishes_is_nobodys_business(spool: Path, base: Path) -> None:
    def vanish(relative: str) -> bool:
        if relative == "sub/b.txt":
            (spool / relative).unlink()
        return True

    events = sweep(spool, base, delete=True, select=vanish)
    assert of_kind(events, Refused) == []
    assert of_kind(events, SourceLeft) == []
    assert files_in(spool) == {}


# ---- others


def collect_by_hand(base: Path, spool: Path) -> Worker:
    """Do what a sweep does up to the merge, and return the worker, which is still open."""
    worker = Worker(Layout(base))
    for name in FILES:
        payload, stamp = payload_of_source(str(spool / name), 8, 1 << 20)
        worker.append(
            Target("ar.zip", f"spool/{name}"),
            payload,
            mtime_ns=stamp.mtime_ns,
            mode=stamp.mode,
            source=str(spool / name),
        )
    return worker


def test_what_is_in_a_temp_archive_is_not_archived_again(spool: Path, base: Path) -> None:
    worker = collect_by_hand(base, spool)
    events = sweep(spool, base, delete=True, wait_seconds=0.3)
    assert of_kind(events, Collected) == []
    assert of_kind(events, Waiting) != []
    assert of_kind(events, Swept)[0].pending == len(FILES)
    assert [event.subject for event in of_kind(events, Refused)] == ["ar.zip"]
    assert files_in(spool) == FILES
    worker.close()
    sweep_what_is_known(spool, base)
    check_base(base, {f"ar.zip/{name}": data for name, data in expected().items()})


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("look", ["pending", "find"])
def test_what_is_merged_while_a_sweep_looks_is_not_archived_again(
    spool: Path, base: Path, monkeypatch: pytest.MonkeyPatch, look: str, moment: str
) -> None:
    worker = collect_by_hand(base, spool)
    original = getattr(SourceIndex, look)

    def merge() -> None:
        if (base / "ar-0.zip").exists():
            return
        worker.close()
        scavenge(base, max_members=len(FILES))
        write(base, {"ar.zip/more": b"more"})
        scavenge(base, max_members=len(FILES))

    def looked(*arguments: Any) -> Any:
        if moment == "before":
            merge()
        found = original(*arguments)
        merge()
        return found

    monkeypatch.setattr(SourceIndex, look, looked)
    events = sweep(spool, base, delete=True, wait_seconds=20)
    assert of_kind(events, Collected) == []
    assert of_kind(events, Refused) == []
    assert files_in(spool) == {}
    assert members(base, "ar-0.zip") == expected()
    assert members(base) == {"more": b"more"}


def test_a_sweep_that_was_killed_before_the_merge_is_gone_on_with(spool: Path, base: Path) -> None:
    def die() -> None:
        collect_by_hand(base, spool)
        os.kill(os.getpid(), signal.SIGKILL)

    assert wait(fork(die)) == -signal.SIGKILL
    sweep_what_is_known(spool, base)
    check_base(base, {f"ar.zip/{name}": data for name, data in expected().items()})


def test_a_sweep_waits_for_another_scavenger(spool: Path, base: Path) -> None:
    arguments = [spool, "--into", "ar.zip/spool", "--base", base, "--delete", "--wait", "60s"]
    with Leadership(Layout(base)):
        process = start_rear("sweep", *arguments, stdout=None)
        assert any("waiting for 60 s at most" in line for line in process.stderr)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0, rest
    assert files_in(spool) == {}
    assert members(base) == expected()


def test_a_sweep_does_not_wait_for_ever_and_keeps_what_is_not_committed(spool: Path, base: Path) -> None:
    with Leadership(Layout(base)):
        done = run(spool, "--into", "ar.zip/spool", "--base", base, "--delete", "--wait", "0")
        assert done.returncode == 1
        assert "being scavenged by process" in done.stderr
        assert files_in(spool) == FILES
        assert not (base / "ar.zip").exists()
    sweep_what_is_known(spool, base)
    assert members(base) == expected()


@pytest.mark.parametrize("round_", range(3))
def test_two_sweeps_of_one_folder_at_the_same_time(spool: Path, base: Path, round_: int) -> None:
    fill(spool, {f"{number % 5}/{number}.txt": b"%d\n" % number * 30 for number in range(300)})
    wanted = files_in(spool)
    pids = [
        fork(lambda: sys.exit(len(of_kind(sweep(spool, base, delete=True, wait_seconds=30), Refused))))
        for _ in range(2 + round_ % 2)
    ]
    assert [wait(pid) for pid in pids] == [0] * len(pids)
    assert files_in(spool) == {}
    check_base(base, {f"ar.zip/{name}": data for name, data in expected(wanted).items()})


def test_an_interrupt_loses_nothing(spool: Path, base: Path) -> None:
    fill(spool, {f"{number}.txt": b"%d\n" % number * 300 for number in range(3_000)})
    wanted = files_in(spool)
    command = rear_command("sweep", spool, "--into", "ar.zip/spool", "--base", base, "--delete", "--json")
    for number, delay in enumerate((0.0, 0.1, 0.3, 0.6)):
        out = base.parent / f"out{number}"
        with (
            out.open("wb") as stream,
            subprocess.Popen(command, stdout=stream, stderr=subprocess.PIPE, text=True) as process,
        ):
            wait_for(lambda out=out: out.stat().st_size or process.poll() is not None)
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        # While Python ends it listens to no signal any more: all is done and said by then.
        is_done = json.loads(out.read_text().splitlines()[-1]).get("status") == "done"
        assert process.returncode in ((0, 130, -signal.SIGINT) if is_done else (0, 130)), errors
        assert "Traceback" not in errors
    assert run(*command[4:]).returncode == 0
    assert files_in(spool) == {}
    check_base(base, {f"ar.zip/{name}": data for name, data in expected(wanted).items()})
