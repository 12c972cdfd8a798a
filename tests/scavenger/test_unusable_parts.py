"""What rear keeps in ``.rear`` and cannot use costs itself alone: what is shut, a file there, a link to nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bases import check_base, members, scavenge, write
from programs import run_code
from users import ALICE, BOB, Users, base_of_mode, users

import rear
from rear.core.layout import Layout
from rear.core.problems import Problem
from rear.diagnostics.status import look_at
from rear.errors import BaseError
from rear.events import Event, Refused
from rear.fsck.base import fsck
from rear.scavenger import archived_members

NAMES = [path.name for path in Layout("/base").parts]
ESSENTIAL = [path.name for path in Layout("/base").essential]


@pytest.fixture(scope="module")
def people() -> Iterator[Users]:
    with users() as people:
        yield people


def put_a_file(path: Path) -> None:
    path.write_text("somebody's")


def put_a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def put_a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def put_a_folder(path: Path) -> None:
    path.mkdir()


def kinds_of(name: str) -> list[Callable[[Path], None]]:
    own = put_a_folder if name == "lock" else put_a_file
    return [own, put_a_link_to_nothing, *([put_a_link_to_itself] if name in ("lock", "inbox", "index") else [])]


CASES = [pytest.param(name, put, id=f"{name}-{put.__name__}") for name in NAMES for put in kinds_of(name)]


def subjects(events: list[Event]) -> list[str]:
    return [event.subject for event in events if isinstance(event, (Refused, Problem)) and event.severity != "info"]


@pytest.mark.parametrize(("name", "put"), CASES)
def test_something_else_in_its_place(base: Path, name: str, put: Callable[[Path], None]) -> None:
    write(base, {"ar.zip/a": "a"})
    scavenge(base)
    write(base, {"ar.zip/b": "b", "other.zip/b": "b"})
    part, aside = base / ".rear" / name, base.parent / "aside"
    if os.path.lexists(part):
        part.rename(aside)
    put(part)
    subject = f".rear/{name}"
    for look in (fsck(base, report_only=True), rear.scavenge(base, dry_run=True)):
        assert subject in subjects(list(look))
    seen = look_at(base)
    assert any(shut.startswith(f"{subject}: ") for shut in seen.shut)
    assert "shut" in [attention.code for attention in seen.attention]
    for command in (rear.scavenge, fsck):
        if name in ESSENTIAL:
            with pytest.raises(BaseError, match=r"move it elsewhere|remove it.*nothing is lost") as caught:
                list(command(base))
            assert str(part) in str(caught.value)
        else:
            assert subject in subjects(list(command(base)))
    if name not in ESSENTIAL:
        # The rest was merged.
        assert members(base) == {"a": b"a", "b": b"b"}
        write(base, {"ar.zip/c": "c"})
        assert subject in subjects(scavenge(base))
        assert "refused" in [attention.code for attention in look_at(base).attention] or name == "reports"
    else:
        (part.rmdir if part.is_dir() and not part.is_symlink() else part.unlink)()
        if aside.exists():
            aside.rename(part)
        write(base, {"ar.zip/c": "c"})
    if os.path.lexists(part) and name not in ESSENTIAL:
        part.unlink()
        if aside.exists():
            aside.rename(part)
    scavenge(base)
    check_base(base, {"ar.zip/a": b"a", "ar.zip/b": b"b", "other.zip/b": b"b", "ar.zip/c": b"c"})
    # An index that could not be written is made when it is needed.
    assert {event.code for event in fsck(base) if event.severity != "info"} <= {"index-outdated", "index-missing"}
    scavenge(base)
    assert look_at(base).attention == ()


PLACES = ["inbox/host", "graveyard/host", "claims/leader-1-0123456789ab", "claims/leader-1-0123456789ab/host"]


@pytest.mark.parametrize("put", [put_a_file, put_a_link_to_nothing])
@pytest.mark.parametrize("place", PLACES)
def test_something_else_in_place_of_a_folder_of_pairs(base: Path, place: str, put: Callable[[Path], None]) -> None:
    write(base, {"ar.zip/a": "a"})
    path = base / ".rear" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path)
    for _ in range(2):
        assert f".rear/{place}" in subjects(scavenge(base))
    assert members(base) == {"a": b"a"}
    assert "refused" in [attention.code for attention in look_at(base).attention]
    if place.startswith("inbox"):
        assert "unusable_files" in [attention.code for attention in look_at(base).attention]
    assert f".rear/{place}" in subjects(list(fsck(base)))
    path.unlink()
    scavenge(base)
    assert look_at(base).attention == ()


# The last ones can be listed, and nothing in them can be got at.
@pytest.mark.parametrize(("name", "mode"), [(name, 0) for name in NAMES] + [("claims", 0o440), ("graveyard", 0o440)])
def test_one_that_is_shut(people: Users, name: str, mode: int) -> None:
    with base_of_mode(0o2775) as base:
        people.write(BOB, base, "ar.zip/a-")
        assert people.rear(BOB, "scavenge", base).status == 0
        people.write(ALICE, base, "ar.zip/b-")
        part = base / ".rear" / name
        if name != "lock":
            part.mkdir(exist_ok=True)
            part.chmod(mode)
        else:
            part.chmod(0)
        usual = 0o660 if name == "lock" else 0o2775
        for command in (["fsck", "-n"], ["scavenge", "--dry-run"], ["scavenge"], ["fsck"], ["scavenge"], ["status"]):
            done = people.rear(BOB, *command, base)
            assert "Traceback" not in done.errors
            assert done.status != 0, command
            assert f".rear/{name}" in done.output + done.errors, command
            if command == ["scavenge"] and name in ESSENTIAL:
                assert done.status == 3
                [line] = done.errors.splitlines()
                assert "nothing is lost" in line
        if name not in ESSENTIAL:
            assert "b-2.txt" in members(base)
        part.chmod(usual)
        people.write(BOB, base, "ar.zip/c-")
        done = people.rear(BOB, "scavenge", base)
        assert done.status == 0, done.output + done.errors
        check_base(base, {f"ar.zip/{who}-{number}.txt": f"ar.zip/{who}-{number}".encode()
                          for who in "abc" for number in range(3)})  # fmt: skip
        assert people.rear(BOB, "fsck", base).status == 0
        assert "nothing needs any" in people.rear(BOB, "status", base).output


@pytest.mark.parametrize("put", [put_a_file, put_a_link_to_nothing])
def test_something_else_in_place_of_all_of_it(base: Path, put: Callable[[Path], None]) -> None:
    base.mkdir()
    put(base / ".rear")
    for look in (rear.scavenge, fsck):
        with pytest.raises(BaseError, match=r"\.rear is a (file|link)"):
            list(look(base))
    with pytest.raises(BaseError, match=r"\.rear is a (file|link)"):
        look_at(base)


def test_a_scavenge_keeps_its_lock_to_the_end(base: Path) -> None:
    """Closing any descriptor of a file gives back the POSIX lock that its process has on it."""
    write(base, {"ar.zip/a": b"a"})
    taken = set()
    for _ in rear.scavenge(base):
        program = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        taken.add(run_code(program, base / ".rear/lock").returncode == 0)
    assert taken == {False}


def unreadable(layout: Layout, archive: str, **_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), archive)


KILLED = """
import os, sys, rear
fs = rear.rear_fs(sys.argv[1])
fs.open("ar.zip/a", "wb").close()
fs.sync()
os._exit(0)
"""


@pytest.mark.parametrize("shut", [False, True])
def test_a_second_copy_is_recognised_also_without_an_index(
    base: Path, shut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first copy stands in an archive that was renamed when it was full."""
    run_code(KILLED, base, check=True)
    kept = {path: path.read_bytes() for path in (base / ".rear/inbox").glob("*/*.*")}
    assert len(kept) == 2
    scavenge(base)
    assert members(base) == {"a": b""}
    (base / "ar.zip").rename(base / "ar-0.zip")
    shutil.rmtree(base / ".rear/index")
    shutil.rmtree(base / ".rear/graveyard")
    if shut:
        put_a_file(base / ".rear/index")
    for path, data in kept.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    write(base, {"ar.zip/b": b"b"})
    # What cannot be found out now is not guessed.
    with monkeypatch.context() as patch:
        patch.setattr(archived_members, "open_final_archive", unreadable)
        assert [event.severity for event in scavenge(base) if isinstance(event, Refused)][-1] == "warning"
    assert members(base) == {"b": b"b"}
    scavenge(base)
    assert not [*(base / ".rear/inbox").glob("*/*.*")]
    assert (members(base, "ar-0.zip"), members(base)) == ({"a": b""}, {"b": b"b"})
