"""Who may cost whom what: settings, planted bases, modes, users who leave each other alone; with real other users."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bases import of_kind, write
from programs import run_rear
from users import ALICE, BOB, GROUP, Users, base_of_mode, users

import rear
from rear.core import config, discovery
from rear.core.config import SETTINGS, Config
from rear.core.discovery import name_base
from rear.core.layout import Layout, base_above, check_owner, find_base, state_above
from rear.core.storage import LOCAL, opened
from rear.errors import ConfigError
from rear.events import LeftAlone, Narrowed, Refused
from rear.fsck.archive import check_archive_file
from rear.fsck.base import fsck
from rear.scavenger.final_archive import too_open
from rear.scavenger.lost_and_found import LostAndFound, lost_and_found_of

MALLORY = BOB
CAROL = 47_003
ACL = "system.posix_acl_access"

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")


@pytest.fixture(scope="module")
def people() -> Iterator[Users]:
    with users() as people:
        yield people


@pytest.fixture(autouse=True)
def as_a_new_process() -> None:
    """Nothing is named or told yet."""
    discovery._named.clear()
    discovery._told.clear()
    config._told.clear()


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder that all users can get to."""
    folder = Path(tempfile.mkdtemp(prefix="rear-rights-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def made(path: Path, user: int, mode: int, *, group: int | None = None) -> Path:
    """A folder of a user."""
    path.mkdir()
    os.chown(path, user, user if group is None else group)
    path.chmod(mode)
    return path


def file_of(path: Path, user: int, mode: int, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.chown(path, user, user)
    path.chmod(mode)
    return path


def names_in(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        return sorted(opened.namelist())


# ---- settings of a file that others may have written


@pytest.mark.parametrize("command", [["scavenge"], ["fsck"], ["fsck", "-n"], ["scavenge", "--dry-run"], ["config"]])
def test_a_base_names_no_program_to_connect_to(tmp_path: Path, command: list[str]) -> None:
    write(tmp_path, {"ar.zip/a": "a"})
    (tmp_path / ".rear/config.toml").write_text('[scavenger]\ndask = "tcp://127.0.0.1:9"\n')
    done = run_rear(*command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dask is ignored: only REAR_DASK or --dask") == 1


def test_nor_does_it_for_a_worker_or_in_python(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".rear").mkdir()
    (tmp_path / ".rear/config.toml").write_text('[scavenger]\ndask = "tcp://127.0.0.1:9"\n')
    with caplog.at_level(logging.WARNING):
        write(tmp_path, {"ar.zip/a": "a"})
        assert list(rear.scavenge(tmp_path))[-1].members == 1  # type: ignore[attr-defined]
    assert caplog.text.count("dask is ignored") == 1
    assert Config(Layout(tmp_path)).resolve("scavenger", {})["dask"] is None
    named = Config(Layout(tmp_path), environment={"REAR_DASK": "tcp://x:1"}).resolve("scavenger", {})
    assert named["dask"] == "tcp://x:1"


LINES = """
[worker]
sync = "file"
lease_seconds = 1
rotation_size = 1
[scavenger]
verify = true
on_conflict = "last"
partial = "drop"
max_members = 1
archive_mode = "0666"
jobs = 64
"""
HARMLESS = {"sync", "verify"}


@only_root
@pytest.mark.parametrize(
    ("owner", "mode", "is_followed"),
    [(0, 0o644, True), (ALICE, 0o644, True), (ALICE, 0o664, False), (0, 0o646, False), (MALLORY, 0o600, False)],
)
def test_what_costs_others_counts_from_a_private_file_of_somebody_who_may(
    top: Path, owner: int, mode: int, is_followed: bool
) -> None:
    base = made(top / "base", ALICE, 0o2775, group=GROUP)
    path = file_of(base / ".rear/config.toml", owner, mode, LINES.encode())
    found = Config(Layout(base))
    from_file = {value.setting.name for value in found.values() if value.source.startswith(str(path))}
    said = {setting.name for setting in SETTINGS if f"{setting.name} =" in LINES}
    assert from_file == (said if is_followed else HARMLESS)
    assert len(found.ignored) == (0 if is_followed else len(said - HARMLESS))
    assert all(str(path) in line for line in found.ignored)


@only_root
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("no [TOML"),
        lambda path: path.write_text('[worker]\nsync = "flie"\n'),
        lambda path: path.write_bytes(b"x" * 100_000),
        lambda path: path.write_bytes(b"\xff"),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
    ],
)
def test_a_strangers_file_that_makes_no_sense_stops_nobody(top: Path, spoil: Callable[[Path], object]) -> None:
    base = made(top / "base", ALICE, 0o2775, group=GROUP)
    path = file_of(base / ".rear/config.toml", MALLORY, 0o644)
    spoil(path)
    os.lchown(path, ALICE, ALICE)
    with pytest.raises((ConfigError, OSError)):
        Config(Layout(base)).values()
    os.lchown(path, MALLORY, MALLORY)
    found = Config(Layout(base))
    assert {value.source for value in found.values()} == {"default"}
    assert len(found.ignored) == 1
    write(base, {"ar.zip/a": "a"})
    assert list(rear.scavenge(base))[-1].members == 1  # type: ignore[attr-defined]


@only_root
def test_a_strangers_file_that_is_shut_stops_nobody(people: Users) -> None:
    with base_of_mode(0o2775) as base:
        people.write(ALICE, base, "ar.zip/a-")
        file_of(base / ".rear/config.toml", MALLORY, 0)
        done = people.rear(ALICE, "scavenge", base)
        assert done.status == 0, done.errors
        assert "config.toml: all of it is ignored" in done.errors


@pytest.mark.parametrize("value", ["640", "0640", "0600", "0666"])
def test_a_mode_of_archives_is_octal_text(tmp_path: Path, value: str) -> None:
    found = Config(Layout(tmp_path), environment={"REAR_ARCHIVE_MODE": value}).resolve("scavenger", {})
    assert int(found["archive_mode"], 8) == int(value, 8)


@pytest.mark.parametrize("value", ["0777", "0040", "rw", "64", "4640", "0o640", "-640"])
def test_other_modes_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError):
        Config(Layout(tmp_path), environment={"REAR_ARCHIVE_MODE": value}).values()


# ---- planted bases


@only_root
def test_a_base_that_anybody_could_plant_is_passed_over(top: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(top / "tmp", 0, 0o1777)
    planted = made(top / "tmp/.rear", MALLORY, 0o755)
    folder = made(top / "tmp/x", ALICE, 0o755)
    archive = file_of(folder / "ar.zip", ALICE, 0o644)
    with caplog.at_level(logging.WARNING):
        for place in (archive, folder / "new.zip", folder / "no/folder/new.zip", top / "tmp/ar.zip"):
            assert find_base(place) is None
            assert base_above(str(place)) is None
    assert caplog.text.count(str(planted)) == 1
    assert "REAR_TRUSTED_BASES" in caplog.text
    # It stops no merge of the base that it lies in, and what is in it is kept from all sweeps.
    check_owner(Layout(top), archive)
    assert state_above(str(planted / "inbox")) == str(top / "tmp")


@only_root
def test_the_search_goes_on_upwards(top: Path) -> None:
    made(top / ".rear", 0, 0o755)
    made(top / "tmp", 0, 0o1777)
    made(top / "tmp/.rear", MALLORY, 0o755)
    found = find_base(top / "tmp/ar.zip")
    assert found is not None
    assert (found[0].base, found[1]) == (top, "tmp/ar.zip")


@only_root
@pytest.mark.parametrize(
    ("base", "state", "folder", "archive", "is_one"),
    [
        # Made by the PI, first used by Alice, merged by Carol, read by another one.
        ((CAROL, GROUP, 0o2775), (ALICE, GROUP, 0o2775), (CAROL, GROUP, 0o2775), CAROL, True),
        ((CAROL, GROUP, 0o2775), (ALICE, GROUP, 0o2775), (CAROL, GROUP, 0o2775), None, True),
        ((0, GROUP, 0o775), (ALICE, GROUP, 0o2775), (0, GROUP, 0o3775), CAROL, False),
        ((0, GROUP, 0o775), (ALICE, GROUP, 0o2775), (0, 0, 0o775), CAROL, False),
        ((0, GROUP, 0o775), (ALICE, GROUP, 0o2775), (0, GROUP, 0o755), CAROL, False),
        ((0, GROUP, 0o1777), (ALICE, GROUP, 0o755), (0, GROUP, 0o2775), CAROL, False),
        ((0, 0, 0o1777), (ALICE, 0, 0o755), (0, 0, 0o777), CAROL, True),
        ((0, 0, 0o1777), (ALICE, 0, 0o755), (0, 0, 0o755), ALICE, True),
        ((0, 0, 0o1777), (ALICE, 0, 0o755), (ALICE, 0, 0o755), CAROL, True),
        ((ALICE, 0, 0o755), (ALICE, 0, 0o755), (CAROL, 0, 0o755), CAROL, True),
        ((0, 0, 0o1777), (0, 0, 0o755), (CAROL, 0, 0o755), CAROL, True),
    ],
)
def test_a_base_counts_when_its_maker_could_have_replaced_the_archive(
    top: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: tuple[int, int, int],
    state: tuple[int, int, int],
    folder: tuple[int, int, int],
    archive: int | None,
    is_one: bool,
) -> None:
    for path, (user, group, mode) in ((top / "b", base), (top / "b/.rear", state), (top / "b/runs", folder)):
        made(path, user, mode, group=group)
    place = top / "b/runs/ar.zip"
    if archive is not None:
        file_of(place, archive, 0o644)
    assert (find_base(place) is not None) == is_one
    monkeypatch.setenv("REAR_TRUSTED_BASES", f"/nowhere{os.pathsep}{top / 'b'}")
    assert find_base(place) is not None


@only_root
def test_a_base_that_its_user_names_counts(top: Path) -> None:
    made(top / "b", 0, 0o1777)
    made(top / "b/.rear", ALICE, 0o777)
    made(top / "b/.rear/inbox", ALICE, 0o777)
    assert find_base(top / "b/ar.zip") is None
    name_base(top / "b")
    assert find_base(top / "b/ar.zip") is not None
    discovery._named.clear()
    with rear.rear_fs(top / "b") as fs, fs.open("ar.zip/a", "w") as file:
        file.write("a")
    assert rear.Path(top / "b/ar.zip/a").read_text() == "a"
    discovery._named.clear()
    assert list(rear.scavenge(top / "b"))[-1].members == 1  # type: ignore[attr-defined]
    discovery._named.clear()
    assert run_rear("put", "--base", top / "b", __file__, "ar.zip/b").returncode == 0
    assert run_rear("put", __file__, top / "b/ar.zip/c").returncode == 2


# ---- modes of final archives


@only_root
@pytest.mark.parametrize(("before", "umask", "after"), [
    (0o644, 0o077, 0o600), (0o666, 0o077, 0o600), (0o640, 0o077, 0o600), (0o644, 0o027, 0o640), (0o644, 0o022, 0o644),
    (0o600, 0o022, 0o600),
])  # fmt: skip
def test_an_archive_is_narrowed_for_what_its_owner_puts_into_it(
    people: Users, before: int, umask: int, after: int
) -> None:
    with base_of_mode(0o755, user=ALICE, group=ALICE) as base:
        people.write(ALICE, base, "ar.zip/a-")
        assert list(rear.scavenge(base))[-1].members == 3  # type: ignore[attr-defined]
        archive = base / "ar.zip"
        archive.chmod(before)
        people.write(ALICE, base, "ar.zip/b-", umask=umask)
        events = list(rear.scavenge(base))
        assert (mode_of(archive), archive.stat().st_uid, len(names_in(archive))) == (after, ALICE, 6)
        told = [(f"{before:04o}", f"{after:04o}")] if before != after else []
        assert [(event.mode_before, event.mode) for event in of_kind(events, Narrowed)] == told
        segments = list((base / ".rear/index/ar.zip").iterdir())
        assert {(mode_of(path), path.stat().st_uid) for path in segments} == {(after, ALICE)}


@only_root
def test_a_pair_that_an_archive_of_another_user_would_open_waits(
    people: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    with base_of_mode(0o755, user=ALICE, group=ALICE) as base:
        people.write(ALICE, base, "ar.zip/a-", umask=0o077)
        people.write(ALICE, base, "own.zip/a-", umask=0o077)
        for _ in range(2):
            with zipfile.ZipFile(base / "ar.zip", "w") as other:
                other.writestr("theirs", "x")
            os.chown(base / "ar.zip", BOB, BOB)
            (base / "ar.zip").chmod(0o644)
            events = list(rear.scavenge(base))
            [refused] = of_kind(events, Refused)
            assert "archive_mode" in refused.reason
            assert "0644" in refused.reason
            assert names_in(base / "ar.zip") == ["theirs"]
        assert mode_of(base / "own.zip") == 0o600
        monkeypatch.setenv("REAR_ARCHIVE_MODE", "0644")
        assert not of_kind(list(rear.scavenge(base)), Refused)
        assert len(names_in(base / "ar.zip")) == 4
        people.write(ALICE, base, "new.zip/a-", umask=0o077)
        list(rear.scavenge(base))
        assert mode_of(base / "new.zip") == 0o644


@only_root
def test_whoever_follows_a_full_archive_is_no_more_open(people: Users) -> None:
    with base_of_mode(0o755, user=ALICE, group=ALICE) as base:
        people.write(ALICE, base, "ar.zip/a-")
        list(rear.scavenge(base, max_members=3))
        (base / "ar.zip").chmod(0o600)
        people.write(ALICE, base, "ar.zip/b-")
        list(rear.scavenge(base, max_members=3))
        assert mode_of(base / "ar-0.zip") == mode_of(base / "ar.zip") == 0o600


def status(user: int, group: int, mode: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, user, group, 0, 0, 0, 0))


@pytest.mark.parametrize(("archive", "pair", "sharing", "bits"), [
    ((1, 1, 0o640), (1, 2, 0o640), None, 0o040),
    ((1, 1, 0o664), (1, 2, 0o644), None, 0),
    ((1, 9, 0o660), (2, 9, 0o640), 9, 0),
    ((1, 9, 0o660), (2, 9, 0o600), 9, 0),
    ((1, 9, 0o664), (2, 9, 0o640), 9, 0o004),
    ((1, 8, 0o660), (2, 9, 0o640), 9, 0o460),
    ((1, 1, 0o600), (2, 2, 0o600), None, 0o400),
    ((1, 1, 0o600), (2, 2, 0o644), None, 0),
    ((0, 0, 0o600), (2, 2, 0o600), None, 0),
])  # fmt: skip
def test_who_may_read_an_archive_and_not_what_goes_into_it(
    archive: tuple[int, int, int], pair: tuple[int, int, int], sharing: int | None, bits: int
) -> None:
    assert too_open(status(*archive), status(*pair), sharing=sharing, mode=None) == bits
    assert too_open(status(*archive), status(*pair), sharing=sharing, mode=0o666) == 0


# ---- what is made of other files


def acl(user: int) -> bytes:
    """One that lets a user read what the group may not."""
    entries = [(1, 6, 0xFFFFFFFF), (2, 4, user), (4, 0, 0xFFFFFFFF), (0x10, 4, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def set_attribute(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"no {name} here: {error.strerror}")


def damaged_archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"m{number}", "x" * 100)
    data = path.read_bytes()
    path.write_bytes(data[: data.rfind(b"PK\5\6")])
    return path


@only_root
@pytest.mark.parametrize("has_acl", [False, True])
@pytest.mark.parametrize("way", ["in place", "output"])
def test_a_rebuild_keeps_owner_group_mode_acl_and_attributes(top: Path, way: str, has_acl: bool) -> None:
    path = damaged_archive(top / "ar.zip")
    os.chown(path, ALICE, GROUP)
    path.chmod(0o640)
    set_attribute(path, "user.project", b"rear")
    if has_acl:
        set_attribute(path, ACL, acl(BOB))
    target = path if way == "in place" else top / "mended.zip"
    list(check_archive_file(path, **({"in_place": True} if way == "in place" else {"output": target})))
    assert len(names_in(target)) == 3
    assert (mode_of(target), target.stat().st_uid, target.stat().st_gid) == (0o640, ALICE, GROUP)
    assert os.getxattr(target, "user.project") == b"rear"
    assert (os.getxattr(target, ACL) == acl(BOB)) if has_acl else (ACL not in os.listxattr(target))


@only_root
def test_without_its_acl_or_group_the_groups_bits_go(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = file_of(top / "source", ALICE, 0o640), file_of(top / "target", 0, 0o600)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError

    with opened(source, LOCAL) as one, opened(target, LOCAL, write=True) as other:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fchown", refuse)
            LOCAL.copy_owner_and_mode(one, other)
            assert mode_of(target) == 0o600
        LOCAL.copy_owner_and_mode(one, other)
        assert (mode_of(target), target.stat().st_uid) == (0o640, ALICE)
        set_attribute(source, ACL, acl(BOB))
        with monkeypatch.context() as patch:
            patch.setattr(os, "setxattr", refuse)
            LOCAL.copy_owner_and_mode(one, other)
            assert mode_of(target) == 0o600
        # What a target has from the default of its folder goes.
        os.removexattr(source, ACL)
        os.setxattr(target, ACL, acl(BOB))
        LOCAL.copy_owner_and_mode(one, other)
        assert ACL not in os.listxattr(target)


@only_root
@pytest.mark.parametrize("sharing", [0o755, 0o2775])
def test_what_goes_to_lost_and_found_is_its_writers_and_nobody_may_move_it(top: Path, sharing: int) -> None:
    base = made(top / "base", 0, sharing, group=GROUP)
    (base / ".rear").mkdir()
    source = file_of(top / "source", ALICE, 0o600, b"secret")
    lost_and_found = lost_and_found_of(Layout(base), storage=LOCAL)
    with opened(source, LOCAL) as descriptor:
        items = [lost_and_found.put_bytes("a", descriptor, 0, 6, {"reason": "x"})]
        items.append(lost_and_found.put_content("b", [b"secret"], {"reason": "y"}, source=descriptor))
    for item in items:
        for path in (base / item, *(base / item).parent.glob("*.json")):
            assert (mode_of(path), path.stat().st_uid) == (0o400, ALICE), path
        assert not mode_of((base / item).parent) & 0o022


@only_root
def test_a_folder_of_another_user_is_not_used_for_what_is_lost(top: Path) -> None:
    base = made(top / "base", 0, 0o2775, group=GROUP)
    today = time.strftime("%Y-%m-%d")
    (base / ".rear/lost+found").mkdir(parents=True)
    made(base / ".rear/lost+found" / today, MALLORY, 0o777)
    assert lost_and_found_of(Layout(base), storage=LOCAL).put_bytes("a", None, 0, 0, {}) == (
        f".rear/lost+found/{today}-uid0/a.json"
    )
    os.chown(base / f".rear/lost+found/{today}-uid0", MALLORY, MALLORY)
    third = Path(lost_and_found_of(Layout(base), storage=LOCAL).put_bytes("a", None, 0, 0, {}))
    assert third.parent.name.startswith(f"{today}-uid0-")
    # Put in its place after it was looked at.
    folder = base / ".rear/lost+found/late"
    kept = LostAndFound(folder, base, storage=LOCAL)
    made(folder, MALLORY, 0o777)
    with pytest.raises(PermissionError):
        kept.put_bytes("a", None, 0, 0, {})
    told = [event for event in fsck(base, report_only=True) if getattr(event, "code", "") == "lost-and-found-items"]
    assert [event.detail.split()[0] for event in told] == ["2"]  # type: ignore[attr-defined]


# ---- users who leave each other alone


#: By what is in them, and the lock, those who scavenge a base tell each other of it.
SHARED = frozenset({".rear", "terms", "leader", "workers", "graveyard"})


def state_of(base: Path, user: int) -> set[tuple[str, int, int]]:
    """Where the files of a user are, each with its number and last change."""
    found = (path for path in base.rglob("*") if path.is_file() and path.lstat().st_uid == user)
    return {
        (str(path), path.lstat().st_ino, path.lstat().st_mtime_ns) for path in found if path.parent.name not in SHARED
    }


@only_root
def test_owner_only_takes_what_is_the_callers_alone(people: Users) -> None:
    with base_of_mode(0o2775) as base:
        people.write(ALICE, base, "alice.zip/a-")
        people.write(BOB, base, "bob.zip/b-")
        [journal] = [path for path in base.glob(".rear/inbox/*/*.journal") if path.stat().st_uid == BOB]
        dead = base / ".rear/claims/dead-leader" / journal.parent.name
        dead.mkdir(parents=True)
        for path in journal.parent.glob(f"{journal.stem}.*"):
            path.rename(dead / path.name)
        people.write(BOB, base, "bob.zip/c-")
        intents = base / ".rear/intents"
        intents.mkdir(exist_ok=True)
        file_of(intents / ("0" * 32 + "-x.intent"), BOB, 0o644, b"unfinished")
        file_of(intents / ("1" * 32 + "-x.archive"), BOB, 0o644, b"a rest")
        for folder in (intents, dead.parent, dead, *(base / ".rear").iterdir()):
            os.chown(folder, -1, GROUP)
            folder.chmod(folder.stat().st_mode | 0o020)
        before = state_of(base, BOB)
        for command in (["scavenge", "--owner-only", "--dry-run"], ["scavenge", "--owner-only"]):
            done = people.rear(ALICE, *command, base)
            assert done.status == 0, done.output + done.errors
            assert state_of(base, BOB) == before
        assert len(names_in(base / "alice.zip")) == 3
        assert not (base / "bob.zip").exists()
        for path in intents.iterdir():
            path.unlink()
        assert people.rear(BOB, "scavenge", "--owner-only", base).status == 0
        assert len(names_in(base / "bob.zip")) == 6


@only_root
def test_owner_only_writes_to_no_archive_of_others_and_tells_why_it_leaves_a_pair(people: Users) -> None:
    with base_of_mode(0o2775) as base:
        people.write(BOB, base, "ar.zip/b-")
        people.rear(BOB, "scavenge", base)
        people.write(ALICE, base, "ar.zip/a-")
        before = state_of(base, BOB)
        done = people.rear(ALICE, "scavenge", "--owner-only", base)
        assert done.status == 1
        assert f"ar.zip belongs to user {BOB}" in done.errors
        assert state_of(base, BOB) == before
        events = list(rear.scavenge(base, owner_only=True))
        assert [event.code for event in of_kind(events, LeftAlone)] == ["taken"]
        assert not of_kind(events, Refused)
        with rear.scavengerd(base, owner_only=True):
            pass
        assert people.rear(BOB, "scavenge", base).status == 0
        assert len(names_in(base / "ar.zip")) == 6
