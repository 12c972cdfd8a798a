"""A host that sees an old state of a file, as GlusterFS shows it for a second: nothing is merged over what is there."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from bases import check_base, members, of_kind, scavenge, write
from pairs import see_nobody

import rear
import rear.scavenger.merge
from rear.core.layout import Layout
from rear.core.liveness import Observations
from rear.core.problems import Problem
from rear.core.storage import Storage
from rear.events import Merged, Refused
from rear.fsck.base import fsck
from rear.read.view import directory_of, open_committed
from rear.scavenger.leader import Leadership

EXPECTED = {f"ar.zip/{name}": f"{name}\n".encode() * 400 for name in ("one", "two", "three")}


class Stale(Storage):
    """Shows a file as it was when this was made, until its folder is listed, or for some seconds.

    Args:
        path: the file.
        seconds: for so long, whatever is listed; ``None``: until its folder is listed.
    """

    def __init__(self, path: Path, seconds: float | None = None) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.until = None if seconds is None else time.monotonic() + seconds
        self.is_stale = True
        self.times_seen = 0
        self._old: dict[int, bytes] = {}

    def names(self, path: Any) -> list[str]:
        if self.until is None and Path(path) == self.path.parent:
            self.is_stale = False
        return super().names(path)

    def open(self, path: Any, **options: Any) -> int:
        descriptor = super().open(path, **options)
        if self.until is not None and time.monotonic() > self.until:
            self.is_stale = False
        self._old.pop(descriptor, None)
        if self.is_stale and Path(path) == self.path:
            self._old[descriptor] = self.data
            self.times_seen += 1
        return descriptor

    def close(self, descriptor: int) -> None:
        self._old.pop(descriptor, None)
        super().close(descriptor)

    def size(self, descriptor: int) -> int:
        return len(self._old[descriptor]) if descriptor in self._old else super().size(descriptor)

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        if descriptor in self._old:
            return self._old[descriptor][offset : offset + length]
        return super().read(descriptor, length, offset)


def write_one(base: Path, name: str) -> None:
    with rear.rear_fs(base) as fs, fs.open(f"ar.zip/{name}", "wb") as file:
        file.write(EXPECTED[f"ar.zip/{name}"])


@pytest.fixture
def other_host(tmp_path: Path) -> Any:
    """Two merges; the second was by another host, and this one still sees what the first one made."""
    write_one(tmp_path, "one")
    scavenge(tmp_path)
    snapshot = tmp_path.parent / f"{tmp_path.name}.zip"
    snapshot.write_bytes((tmp_path / "ar.zip").read_bytes())
    write_one(tmp_path, "two")
    scavenge(tmp_path)
    write_one(tmp_path, "three")

    def make(seconds: float | None) -> Stale:
        storage = Stale(tmp_path / "ar.zip", seconds)
        storage.data = snapshot.read_bytes()
        return storage

    return make


def test_a_listing_shows_what_is_there(tmp_path: Path, other_host: Any) -> None:
    scavenge(tmp_path, storage=other_host(None))
    check_base(tmp_path, EXPECTED)


def test_the_index_shows_that_the_view_is_old(tmp_path: Path, other_host: Any) -> None:
    storage = other_host(1.0)
    events = scavenge(tmp_path, storage=storage)
    assert storage.times_seen > 1
    assert of_kind(events, Merged)
    check_base(tmp_path, EXPECTED)


def test_a_view_that_stays_old_is_not_merged_into(
    tmp_path: Path, other_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rear.scavenger.merge, "_STALE_SECONDS", 0.5)
    before = (tmp_path / "ar.zip").read_bytes()
    (refused,) = of_kind(scavenge(tmp_path, storage=other_host(60.0)), Refused)
    assert "shorter than its index says" in str(refused)
    assert (tmp_path / "ar.zip").read_bytes() == before
    scavenge(tmp_path)
    check_base(tmp_path, EXPECTED)


def test_an_older_copy_that_somebody_put_there_is_accepted_by_fsck(
    tmp_path: Path, other_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rear.scavenger.merge, "_STALE_SECONDS", 0.1)
    (tmp_path / "ar.zip").write_bytes(other_host(None).data)
    assert len(of_kind(scavenge(tmp_path), Refused)) == 1
    codes = {event.code for event in fsck(tmp_path) if isinstance(event, Problem)}
    assert "index-outdated" in codes
    scavenge(tmp_path)
    check_base(tmp_path, {target: data for target, data in EXPECTED.items() if "two" not in target})


def test_an_archive_that_is_replaced_while_the_merge_is_planned(tmp_path: Path, other_host: Any) -> None:
    path = tmp_path / "ar.zip"

    class Replaced(Storage):
        def create(self, name: Any, mode: int = 0o666) -> int:
            if str(name).endswith(".planning"):
                path.with_suffix(".other").write_bytes(path.read_bytes())
                os.replace(path.with_suffix(".other"), path)
            return super().create(name, mode)

    before = path.read_bytes()
    (refused,) = of_kind(scavenge(tmp_path, storage=Replaced()), Refused)
    assert "changed by somebody else" in str(refused)
    assert path.read_bytes() == before
    scavenge(tmp_path)
    check_base(tmp_path, EXPECTED)


class Vanishing(Storage):
    """GlusterFS: a file that was replaced while it was read cannot even be closed without an error."""

    def close(self, descriptor: int) -> None:
        is_read = os.path.lexists(f"/proc/self/fd/{descriptor}") and ".zip" in os.readlink(
            f"/proc/self/fd/{descriptor}"
        )
        super().close(descriptor)
        if is_read:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_an_archive_that_was_replaced_while_it_was_read_is_read(base: Path) -> None:
    write(base, {"ar.zip/a": b"a"})
    scavenge(base)
    with open_committed(base / "ar.zip", storage=Vanishing()) as archive:
        assert [name for _, name in archive.names()] == ["a"]
    assert directory_of(base / "ar.zip", storage=Vanishing()).entries == 1


@pytest.mark.parametrize("part", ["base", ".rear"])
def test_a_base_that_was_once_seen_missing_is_not_missing(
    base: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS says so for half a minute, until the folder is listed."""
    write(base, {"ar.zip/a": b"a"})
    missing = str(base if part == "base" else base / ".rear")
    hidden = {missing}
    stat, listdir = os.stat, os.listdir

    def whole(path: Any, folder: int | None) -> str:
        if isinstance(path, int):
            return os.readlink(f"/proc/self/fd/{path}")
        return os.fspath(path) if folder is None else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)

    def stale_stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if not isinstance(path, int) and whole(path, options.get("dir_fd")) in hidden:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return stat(path, *arguments, **options)

    def fresh_listdir(path: Any = ".") -> list[Any]:
        if whole(path, None) == os.path.dirname(missing):
            hidden.clear()
        return listdir(path)

    monkeypatch.setattr(os, "stat", stale_stat)
    monkeypatch.setattr(os, "listdir", fresh_listdir)
    scavenge(base)
    assert (base / "ar.zip").exists()
    monkeypatch.undo()
    assert members(base) == {"a": b"a"}


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_check_beside_a_scavenger_elsewhere_takes_it_for_alive(
    base: Path, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    write(base, {"ar.zip/a": b"a"})
    scavenge(base)
    see_nobody(monkeypatch)
    elsewhere = Leadership(Layout(base))
    try:
        (base / ".rear" / "intents" / "0-elsewhere.planning").touch()
        (problem,) = [one for one in fsck(base, report_only=True) if getattr(one, "code", "") == "unfinished-merge"]
        assert problem.outcome == "noted"
        if is_silent:
            observations = Observations(Layout(base), topic="leader")
            observations.unchanged_seconds(elsewhere.name, "0")
            seen = observations._seen[elsewhere.name]
            observations._seen[elsewhere.name] = seen._replace(seconds=61.0)
            observations.save()
            (problem,) = [one for one in fsck(base, report_only=True) if getattr(one, "code", "") == "unfinished-merge"]
            assert problem.outcome == "would repair"
    finally:
        elsewhere.release()
