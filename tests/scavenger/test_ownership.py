"""Which base owns an archive, what an undo proves first, and that nothing is put in the place of something else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
from bases import check_base, found_in, members, of_kind, put, scavenge, write
from faults import Tampered, dying_at, in_child
from programs import run_rear

import rear
from rear.errors import PathError, SourceError
from rear.events import Refused, SetAside


@pytest.fixture
def outer(tmp_path: Path) -> Path:
    return tmp_path / "outer"


def test_the_nearest_base_owns_an_archive(outer: Path) -> None:
    write(outer / "job1", {"ar.zip/inner": b"inner"})
    os.symlink("job1", outer / "link")
    with rear.rear_fs(outer) as fs:
        put(fs, "ar.zip/outer", b"outer")
        put(fs, "job2/ar.zip/outer", b"outer")
        for target in ("job1/ar.zip/a", "job1/deeper/ar.zip/a", "link/ar.zip/a"):
            with pytest.raises(PathError, match=r"belongs to the base .*job1"):
                fs.open(target, "w")
            with pytest.raises(PathError, match=r"belongs to the base .*job1"):
                fs.pickup(outer / "ar.zip", target)
    elsewhere = outer.parent / "elsewhere"
    elsewhere.mkdir()
    os.symlink(elsewhere, outer / "away")
    os.symlink(outer / ".rear", outer / "state")
    with rear.rear_fs(outer) as fs:
        for target, what in (("away/ar.zip/a", "is outside of the base"), ("state/ar.zip/a", "keeps for itself")):
            with pytest.raises(PathError, match=what):
                fs.open(target, "w")
    with pytest.raises(PathError, match="belongs to the base"):
        rear.sweep(outer.parent, into="job1/ar.zip", base=outer)
    (outer.parent / "file").write_text("x")
    done = run_rear("put", outer.parent / "file", f"{outer}/job1/ar.zip/file")
    assert done.returncode == 0, done.stderr
    scavenge(outer)
    scavenge(outer / "job1")
    assert {name for name in found_in(outer) if name.startswith("job1/")} == {"job1/ar.zip/inner", "job1/ar.zip/file"}
    assert members(outer) == {"outer": b"outer"}


def test_members_for_an_archive_that_got_another_owner_are_refused_and_kept(outer: Path) -> None:
    write(outer, {"job1/ar.zip/early": b"early", "ar.zip/outer": b"outer"})
    write(outer / "job1", {"ar.zip/inner": b"inner"})
    scavenge(outer / "job1")
    (refused,) = of_kind(scavenge(outer), Refused)
    assert refused.subject == "job1/ar.zip"
    assert "belongs to the base" in refused.reason
    assert members(outer) == {"outer": b"outer"}
    assert members(outer / "job1") == {"inner": b"inner"}
    # What it waits for is there again.
    shutil.rmtree(outer / "job1" / ".rear")
    scavenge(outer)
    assert members(outer / "job1") == {"inner": b"inner", "early": b"early"}


def test_an_outer_fsck_leaves_the_archives_of_an_inner_base_alone(outer: Path) -> None:
    write(outer / "job1", {"ar.zip/inner": b"inner"})
    scavenge(outer / "job1")
    write(outer, {"ar.zip/outer": b"outer"})
    scavenge(outer)
    archive = outer / "job1" / "ar.zip"
    archive.write_bytes(archive.read_bytes()[:-10])
    damaged = archive.read_bytes()
    run_rear("fsck", outer)
    assert archive.read_bytes() == damaged


# --- an undo proves what it undoes ----------------------------------------------------------------------------------


def other_program(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr("by another program", "kept")


def restored(archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("by another program", "kept")
        out.writestr("more of it", os.urandom(3000))


@pytest.mark.crash
@pytest.mark.parametrize("change", [other_program, restored])
def test_what_came_after_a_dead_merge_is_not_undone(base: Path, tmp_path: Path, change: object) -> None:
    template = tmp_path / "template"
    write(template, {f"ar.zip/old {number}": os.urandom(500) for number in range(3)})
    scavenge(template)
    new = {f"ar.zip/new {number}": os.urandom(2000) for number in range(3)}
    write(template, new)
    shutil.copytree(template, base)
    storage = Tampered()
    scavenge(base, storage=storage)
    seen = 0
    for point in storage.points[::3]:
        shutil.rmtree(base)
        shutil.copytree(template, base)
        assert in_child(lambda point=point: scavenge(base, storage=dying_at(point))) == -signal.SIGKILL
        if not list((base / ".rear" / "intents").glob("*.intent")) or list((base / ".rear").rglob("*.merged")):
            # Not begun, or done: there is nothing to undo.
            continue
        try:
            change(base / "ar.zip")  # type: ignore[operator]
        except zipfile.BadZipFile:
            # In the middle of a merge nobody can add to it.
            continue
        before = set(zipfile.ZipFile(base / "ar.zip").namelist())
        events = scavenge(base)
        if change is other_program and "old 0" not in before:
            # It took what is there for no Zip, and added one: the directory of before is kept.
            assert len(list((base / ".rear" / "lost+found").rglob("*.intent"))) == 1
            continue
        seen += "changed or replaced" in str(of_kind(events, Refused))
        assert members(base)["by another program"] == b"kept", point
        # Accepts an archive that is older than its index.
        run_rear("fsck", base)
        scavenge(base)
        assert before | {name.partition("/")[2] for name in new} <= set(members(base)), point
    assert seen


def test_two_scavengers_of_bases_in_each_other(outer: Path) -> None:
    """The outer one had begun to merge into an archive that belongs to an inner base since."""
    write(outer, {"job1/ar.zip/outer old": b"old" * 1000})
    scavenge(outer)
    write(outer, {"job1/ar.zip/outer new": b"new" * 1000})
    storage = Tampered()
    renewed = outer.parent / "template"
    shutil.copytree(outer, renewed)
    scavenge(outer, storage=storage)
    for point in storage.points[::4]:
        shutil.rmtree(outer)
        shutil.copytree(renewed, outer)
        assert in_child(lambda point=point: scavenge(outer, storage=dying_at(point))) == -signal.SIGKILL
        write(outer / "job1", {"ar.zip/inner": b"inner" * 1000})
        scavenge(outer / "job1")
        merged = "inner" in str(found_in_or_none(outer))
        scavenge(outer)
        scavenge(outer / "job1")
        scavenge(outer)
        found = found_in(outer)
        assert found["job1/ar.zip/outer old"] == b"old" * 1000
        assert found["job1/ar.zip/inner"] == b"inner" * 1000, (point, merged)
        # It is merged, or waits by name.
        refused = of_kind(scavenge(outer), Refused)
        assert "job1/ar.zip/outer new" in found or [one.subject for one in refused] == ["job1/ar.zip"], point


def found_in_or_none(base: Path) -> dict[str, bytes] | None:
    with contextlib.suppress(zipfile.BadZipFile, AssertionError):
        return found_in(base)
    return None


# --- pickups --------------------------------------------------------------------------------------------------------


def test_a_pickup_leaves_bases_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "folder").mkdir(parents=True)
    (scratch / "folder" / "file").write_text("file")
    base, other = scratch / "base", scratch / "folder" / "other"
    write(base, {"ar.zip/a": b"a"})
    scavenge(base)
    write(other, {"ar.zip/b": b"b"})
    live = rear.rear_fs(base)
    put(live, "ar.zip/live", b"live")
    with rear.rear_fs(base) as fs, fs.pickup(scratch, "old.zip/x"):
        pass
    assert caplog.text.count("is a base of rear: it is left out") == 2
    live.close()
    scavenge(base)
    scavenge(other)
    check_base(base, {"ar.zip/a": b"a", "ar.zip/live": b"live", "old.zip/x/folder/file": b"file"})
    assert members(other) == {"b": b"b"}
    done = run_rear("put", "-r", "--move", scratch, f"{base}/old.zip/y")
    assert (base / "ar.zip").exists()
    assert done.returncode == 0, done.stderr


def test_what_rear_keeps_for_itself_is_no_source(base: Path) -> None:
    write(base, {"ar.zip/a": b"a"})
    (pair,) = (base / ".rear" / "inbox").glob("*/*.zip")
    with rear.rear_fs(base) as fs:
        for source in (pair, pair.parent, base / ".rear", base):
            with pytest.raises(SourceError, match="rear"):
                fs.pickup(source, "old.zip/x").close()
    scavenge(base)
    with rear.rear_fs(base) as fs:
        with pytest.raises(SourceError, match="final archive"):
            fs.pickup(base / "ar.zip", "old.zip/x").close()
        # A copy robs nobody.
        fs.pickup(base / "ar.zip", "old.zip/x", keep=True).close()
    scavenge(base)
    assert members(base) == {"a": b"a"}
    assert set(members(base, "old.zip")) == {"x"}


# --- a name that is taken -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["999999999", "1000000000", "99999999999999999999"])
def test_a_full_archive_takes_no_name_that_is_there(base: Path, number: str) -> None:
    base.mkdir()
    with zipfile.ZipFile(base / f"ar-{number}.zip", "w") as out:
        out.writestr("before", "before")
    for name in "abc":
        write(base, {f"ar.zip/{name}": name.encode()})
        scavenge(base, max_members=1)
    found = found_in(base)
    assert sorted(found.values()) == [b"a", b"b", b"before", b"c"]


def test_each_member_that_gave_way_is_kept(base: Path) -> None:
    (base).mkdir()
    kept = set()
    for archive in ("one.zip", "two.zip"):
        with zipfile.ZipFile(base / archive, "w") as out:
            out.writestr("a", f"first of {archive}")
        for turn in range(3):
            write(base, {f"{archive}/a": f"{turn} of {archive}".encode()})
            events = scavenge(base, on_conflict="last")
            kept |= {event.lost_and_found for event in of_kind(events, SetAside)}
        # A new archive of that name, with a member at the same place.
        (base / archive).unlink()
        shutil.rmtree(base / ".rear" / "index" / archive)
        with zipfile.ZipFile(base / archive, "w") as out:
            out.writestr("a", f"again of {archive}")
        write(base, {f"{archive}/a": f"4 of {archive}".encode()})
        kept |= {event.lost_and_found for event in of_kind(scavenge(base, on_conflict="last"), SetAside)}
    assert len(kept) == 8
    contents = {(base / item).read_bytes() for item in kept}
    assert len(contents) == 8
    notes = [json.loads(path.read_text()) for path in (base / ".rear" / "lost+found").rglob("*.json")]
    assert len(notes) == 8
