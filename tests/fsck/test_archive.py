"""``rear fsck some.zip`` as users run it: what it prints, what it changes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zoo
from bases import check_archive
from checkout import ROOT
from merges import Base
from programs import run_rear, start_rear, wait_for
from zips import build, contents, cut, directory_offset, member, members_of, offsets, overwrite, write_zip

import rear
from rear.core.problems import CATALOG
from rear.core.storage import StrPath
from rear.errors import UnsupportedError, UsageError
from rear.fsck.archive import check_archive_file

ENVIRONMENT = {**os.environ, "COLUMNS": "200"}


def fsck(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run_rear("fsck", *arguments, env=ENVIRONMENT, cwd=cwd, timeout=100)


def as_json(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    done = fsck("--json", *arguments)
    assert "Traceback" not in done.stderr
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, [found for found in objects if found["kind"] == "problem"]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "good.zip", members_of())


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    path = write_zip(tmp_path / "torn.zip", members_of())
    return cut(path, directory_offset(path) + 10)


def state(path: Path) -> tuple[bytes, int, int]:
    status = path.stat()
    return path.read_bytes(), status.st_mtime_ns, status.st_ino


# ---- report


def test_a_clean_archive(good: Path) -> None:
    before = state(good)
    for options in ([], ["-n"], ["--deep"], ["--in-place"]):
        done = fsck(good, *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{good}: clean\n"
    assert as_json(good) == (0, [])
    quiet = fsck(good, "-q")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert state(good) == before
    assert os.listdir(good.parent) == ["good.zip"]


def test_a_torn_archive_is_only_reported(torn: Path) -> None:
    before = state(torn)
    for options in ([], ["--dry-run"]):
        done = fsck(torn, *options)
        assert done.returncode == 4
        assert "5 whole members were found: archive-directory-damaged, would repair" in done.stderr
        assert done.stdout.startswith(f"{torn}: 1 would be repaired\n")
    assert state(torn) == before
    assert os.listdir(torn.parent) == ["torn.zip"]


def test_json(torn: Path) -> None:
    status, [problem] = as_json(torn)
    assert status == 4
    assert problem["kind"] == "problem"
    assert problem["code"] == "archive-directory-damaged"
    assert problem["outcome"] == "would repair"
    assert problem["severity"] == "warning"
    assert problem["subject"] == str(torn)


def test_members_that_a_torn_archive_has_lost_are_named_beforehand(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", members_of())
    cut(path, offsets(path)["dir/4.txt"] + 80)
    status, problems = as_json(path)
    assert status == 4
    assert [(problem["code"], problem["name"]) for problem in problems] == [
        ("archive-directory-damaged", None),
        ("member-partial", "dir/4.txt"),
    ]


def test_notes_alone_are_clean(tmp_path: Path) -> None:
    path = zoo.make("zip-prefix", tmp_path)
    done = fsck(path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{path}: clean, 1 noted\n")
    assert fsck("-q", path).stderr == ""


def test_deep_finds_damaged_data(good: Path) -> None:
    overwrite(good, 100, b"?")
    assert fsck(good).returncode == 0
    done = fsck("--deep", good)
    assert done.returncode == 4
    assert "LOSS" in done.stderr
    assert "member-data-damaged, left" in done.stderr


def test_what_is_no_zip(tmp_path: Path) -> None:
    for data in (b"", b"text\n" * 1000):
        (tmp_path / "a.zip").write_bytes(data)
        for options in ([], ["--in-place"]):
            status, [problem] = as_json(tmp_path / "a.zip", *options)
            assert (status, problem["code"], problem["outcome"]) == (4, "archive-not-a-zip", "left")
            assert (tmp_path / "a.zip").read_bytes() == data
            assert os.listdir(tmp_path) == ["a.zip"]


def test_it_is_said_when_zip_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.zip").write_bytes(b"text\n" * 1000)
    [problem] = check_archive_file(tmp_path / "a.zip", in_place=True)
    assert problem.code == "archive-not-a-zip"
    assert "zip is not installed" in problem.detail


def test_very_many_problems_are_counted(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zip", [(member(f"../{number}", b""), b"", None, 0) for number in range(100)])
    done = fsck(path)
    assert len(done.stderr.splitlines()) < 30
    assert "80 more of kind member-unsafe-name" in done.stderr
    assert done.stdout.startswith(f"{path}: 100 left\n")
    assert len(done.stdout.splitlines()) < 20
    status, problems = as_json(path)
    assert (status, len(problems)) == (4, 100)


def test_names_cannot_act_on_a_terminal(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zip", [(member("\x1b[2J/../x", b""), b"", None, 0)])
    done = fsck(path)
    for shown in (done.stdout, done.stderr):
        assert "\x1b" not in shown
        assert "\\x1b" in shown


# ---- repair


def test_output(torn: Path) -> None:
    before = state(torn)
    new = torn.parent / "new.zip"
    done = fsck(torn, "--output", new)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{torn}: 1 repaired\n")
    assert contents(new) == members_of()
    check_archive(new)
    assert state(torn) == before
    assert sorted(os.listdir(torn.parent)) == ["new.zip", "torn.zip"]
    assert fsck("--deep", new).returncode == 0


def test_output_of_a_clean_archive_is_a_copy_of_its_members(good: Path) -> None:
    new = good.parent / "new.zip"
    assert fsck(good, "--output", new).returncode == 0
    assert contents(new) == members_of()


@pytest.mark.parametrize("writer", zoo.WRITERS)
def test_in_place(writer: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = zoo.make(writer, tmp_path).rename(folder / "a.zip")
    path.chmod(0o640)
    cut(path, directory_offset(path) + 10)
    before = path.read_bytes()
    assert [problem.outcome for problem in check_archive_file(path, in_place=True)] == ["repaired"]
    assert contents(path) == zoo.CONTENTS
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (folder / "a.zip.damaged").read_bytes() == before
    assert sorted(os.listdir(folder)) == ["a.zip", "a.zip.damaged"]
    assert [problem for problem in check_archive_file(path, deep=True) if problem.outcome != "noted"] == []


def test_in_place_again_keeps_what_was_kept_before(torn: Path) -> None:
    first = torn.read_bytes()
    assert fsck(torn, "--in-place").returncode == 1
    second = cut(torn, directory_offset(torn)).read_bytes()
    assert fsck(torn, "--in-place").returncode == 1
    assert contents(torn) == members_of()
    assert (torn.parent / "torn.zip.damaged").read_bytes() == first
    assert (torn.parent / "torn.zip.damaged-1").read_bytes() == second


def test_in_place_through_a_link(torn: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.zip"
    link.symlink_to(torn)
    assert fsck(link, "--in-place").returncode == 1
    assert link.is_symlink()
    assert contents(torn) == members_of()


def test_what_is_lost_is_kept_beside_the_archive(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", members_of())
    start = offsets(path)["dir/2.txt"]
    cut(path, directory_offset(path))
    overwrite(path, start + 200, b"????")
    status, problems = as_json(path, "--in-place")
    assert status == 4
    [lost] = [problem for problem in problems if problem["severity"] == "loss"]
    assert (lost["name"], lost["offset"], lost["outcome"]) == ("dir/2.txt", start, "left")
    kept = tmp_path / lost["lost_and_found"]
    assert kept.parent == tmp_path / "a.zip.lost+found"
    assert len(kept.read_bytes()) == len(members_of()["dir/2.txt"])
    note = json.loads(kept.with_name(f"{kept.name}.json").read_text())
    assert (note["name"], note["offset"], note["archive"]) == ("dir/2.txt", start, str(path))
    assert set(contents(path)) == set(members_of()) - {"dir/2.txt"}
    assert fsck("--deep", path).returncode == 0


def test_a_header_that_contradicts_the_directory_is_repaired(good: Path) -> None:
    overwrite(good, offsets(good)["dir/2.txt"] + 14, b"\0\0\0\0")
    status, problems = as_json(good, "--in-place")
    assert status == 1
    assert [(problem["code"], problem["outcome"]) for problem in problems] == [("member-header-differs", "repaired")]
    assert contents(good) == members_of()
    assert as_json("--deep", good) == (0, [])


def test_a_directory_entry_that_contradicts_the_data_is_repaired(good: Path) -> None:
    overwrite(good, directory_offset(good) + 16, b"\0\0\0\0")
    status, problems = as_json(good, "--in-place")
    assert status == 1
    assert {(problem["code"], problem["outcome"]) for problem in problems} == {("member-header-differs", "repaired")}
    assert contents(good) == members_of()
    assert as_json("--deep", good) == (0, [])


def test_damaged_data_alone_is_no_reason_to_rebuild(good: Path) -> None:
    overwrite(good, 100, b"?")
    before = state(good)
    status, problems = as_json("--deep", "--in-place", good)
    assert (status, [problem["code"] for problem in problems]) == (4, ["member-data-damaged"])
    assert state(good) == before
    assert os.listdir(good.parent) == ["good.zip"]


def test_an_archive_without_any_whole_member_stays(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a": b"x" * 1000})
    cut(path, 500)
    before = state(path)
    status, problems = as_json(path, "--in-place")
    assert status == 4
    assert [(problem["code"], problem["outcome"]) for problem in problems] == [
        ("archive-directory-damaged", "left"), ("member-partial", "left"),
    ]  # fmt: skip
    assert state(path) == before
    assert (tmp_path / problems[1]["lost_and_found"]).read_bytes() == b"x" * (500 - 31)


def test_a_split_archive(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(200_000))
    zoo.run(zoo.tool("zip"), "-q", "-s", "64k", tmp_path / "a.zip", "noise", cwd=tmp_path)
    for options in ([], ["--in-place"]):
        for volume in ("a.zip", "a.z01"):
            status, problems = as_json(tmp_path / volume, *options)
            assert (status, [problem["code"] for problem in problems]) == (4, ["archive-split"])
    assert len(os.listdir(tmp_path)) == 5


def test_an_archive_that_grows_meanwhile_is_left(torn: Path) -> None:
    class Growing(rear.core.storage.Storage):
        def sync(self, descriptor: int) -> None:
            super().sync(descriptor)
            with open(torn, "ab") as file:
                file.write(b"more")

    before = torn.read_bytes()
    with pytest.raises(rear.RearError, match="changed by another program"):
        list(check_archive_file(torn, in_place=True, storage=Growing()))
    assert torn.read_bytes().startswith(before + b"more")
    assert os.listdir(torn.parent) == ["torn.zip"]


def test_a_codec_that_is_not_there_is_not_taken_for_a_split_archive(
    torn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: object, **__: object) -> None:
        raise UnsupportedError("no codec for compression method 99")

    for module in ("archive", "rebuilt_archive"):
        monkeypatch.setattr(f"rear.fsck.{module}.rebuild", lacks)
    before = state(torn)
    for in_place in (False, True):
        with pytest.raises(UnsupportedError, match="no codec"):
            list(check_archive_file(torn, in_place=in_place))
    assert state(torn) == before
    assert os.listdir(torn.parent) == ["torn.zip"]


def test_an_interrupt_as_the_new_archive_is_made_leaves_nothing(torn: Path) -> None:
    class Interrupted(rear.core.storage.Storage):
        def create(self, path: StrPath, mode: int = 0o666) -> int:
            self.close(super().create(path, mode))
            raise KeyboardInterrupt

    before = state(torn)
    with pytest.raises(KeyboardInterrupt):
        list(check_archive_file(torn, in_place=True, storage=Interrupted()))
    assert state(torn) == before
    assert os.listdir(torn.parent) == ["torn.zip"]


# ---- what is refused


def test_archives_of_a_base_are_repaired_with_it(tmp_path: Path) -> None:
    base = Base(tmp_path, "old", "older")
    path = cut(base.path, directory_offset(base.path))
    assert fsck(path).returncode == 4
    done = fsck(path, "--in-place")
    assert done.returncode == 8
    assert f"rear fsck {tmp_path}" in done.stderr
    # The index and the rest of the base do not know what is written elsewhere, so that is fine.
    assert fsck(path, "--output", tmp_path / "outside.zip").returncode == 1
    (tmp_path / ".rear" / "lost+found").mkdir()
    item = tmp_path / ".rear" / "lost+found" / "item.zip"
    item.write_bytes(path.read_bytes())
    assert fsck(item, "--in-place").returncode == 8


def test_an_archive_that_is_being_merged_into(tmp_path: Path) -> None:
    base = Base(tmp_path, "old", "older")
    base.begin()
    assert fsck(base.path).returncode == 0
    done = fsck(base.path, "--output", tmp_path / "new.zip")
    assert done.returncode == 8
    assert "a merge into" in done.stderr
    assert not (tmp_path / "new.zip").exists()


def test_wrong_use(good: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"kept")
    for arguments, text in (
        ([tmp_path / "no.zip"], "No such file"),
        ([good, "--output", tmp_path / "there"], "exists"),
        ([good, "--output", tmp_path / "no" / "new.zip"], "No such file"),
        ([good, "-n", "--in-place"], "--dry-run writes nothing"),
        ([good, "--in-place", "--output", tmp_path / "new.zip"], "not both"),
        ([good, "--assume-dead", "host"], "is no base"),
        ([tmp_path, "--in-place"], "for one archive"),
        (["/dev/null"], "not a regular file"),
    ):
        done = fsck(*arguments)
        assert done.returncode == 8, done.stderr
        assert text in done.stderr
        assert done.stderr.startswith("rear: ")
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "there").read_bytes() == b"kept"
    with pytest.raises(UsageError):
        check_archive_file(good, output=tmp_path / "new.zip", in_place=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(torn: Path) -> None:
    torn.parent.chmod(0o500)
    try:
        done = fsck(torn, "--in-place")
    finally:
        torn.parent.chmod(0o700)
    assert done.returncode == 8
    assert os.listdir(torn.parent) == ["torn.zip"]


def test_an_interrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(60_000):
            archive.writestr(f"{number}", b"")
    cut(path, directory_offset(path))
    before = state(path)
    process = start_rear("fsck", "--in-place", path, env=ENVIRONMENT, stdout=None)
    wait_for(lambda: len(os.listdir(tmp_path)) > 1, 30)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert state(path) == before
    assert os.listdir(tmp_path) == ["a.zip"]


def test_every_code_of_an_archive_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "reference" / "problems.md").read_text(encoding="utf-8")
    for code, kind in CATALOG.items():
        assert f"`{code}`" in page
        assert kind.meaning.endswith(".")
        assert kind.repair.endswith(".")
