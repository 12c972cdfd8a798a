"""Adopting Zips: the original program's, torn ones, any other; what is refused, and when a Zip may go."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bases import check_base, members, of_kind
from faults import SEED
from programs import rear_command, run_rear

import rear
from rear.core.layout import Layout
from rear.errors import PathError, UsageError
from rear.events import Adopted, Collected, Event, Refused, Waiting
from rear.index.index import Index
from rear.ingest import adopt as adoption
from rear.scavenger.leader import Leadership

RANDOM = random.Random(SEED)
TEXT = b"many small lines\n" * 400
NOISE = RANDOM.randbytes(200_000)
DATE = (2024, 5, 6, 7, 8, 10)


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, level: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method, compresslevel=level if method == zipfile.ZIP_DEFLATED else None) as zipped:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, DATE)
            info.external_attr = 0o100640 << 16
            zipped.writestr(info, data, method)
    return path


def without_directory(path: Path) -> Path:
    """Cut a Zip as a crash of its writer does: its members are there, its directory never was."""
    with zipfile.ZipFile(path) as zipped:
        start = zipped.start_dir
    os.truncate(path, start)
    return path


def adopt(*sources: Path, base: Path, **options: Any) -> list[Event]:
    return list(rear.adopt(sources, base=base, **options))


run = functools.partial(run_rear, "adopt")


# ---- what is adopted


def test_temp_archives_of_the_original_program(base: Path) -> None:
    inbox = base / "inbox"
    first = write_zip(inbox / "host1-260101_000000.zip", {"ar.zip/a.txt": TEXT, "runs/7/ar.zip/deep/b.bin": NOISE})
    crashed = without_directory(write_zip(inbox / "host2-260101_000001.zip", {"ar.zip/c": b"c", "ar.zip/d": TEXT}))
    empty = inbox / "host3-260101_000002.zip"
    empty.write_bytes(b"")
    done = run(first, crashed, empty, base, "--delete")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert members(base) == {"a.txt": TEXT, "c": b"c", "d": TEXT}
    assert members(base, "runs/7/ar.zip") == {"deep/b.bin": NOISE}
    assert list(inbox.iterdir()) == []
    check_base(base, {"ar.zip/a.txt": TEXT, "ar.zip/c": b"c", "ar.zip/d": TEXT, "runs/7/ar.zip/deep/b.bin": NOISE})
    with zipfile.ZipFile(base / "ar.zip") as archive:
        info = archive.getinfo("a.txt")
    assert (info.external_attr >> 16, info.date_time) == (0o100640, DATE)


def test_a_second_time_nothing_is_new(base: Path, tmp_path: Path) -> None:
    zipped = write_zip(tmp_path / "old.zip", {"ar.zip/a": TEXT, "ar.zip/b": NOISE})
    [told] = of_kind(adopt(zipped, base=base), Adopted)
    assert (told.archived, told.there_already, told.is_deleted) == (2, 0, False)
    before = (base / "ar.zip").read_bytes()
    shutil.copy(zipped, tmp_path / "copy.zip")
    events = adopt(zipped, tmp_path / "copy.zip", base=base)
    assert [(told.archived, told.there_already) for told in of_kind(events, Adopted)] == [(0, 2), (0, 2)]
    assert of_kind(events, Collected) == []
    assert (base / "ar.zip").read_bytes() == before
    write_zip(zipped, {"ar.zip/a": TEXT, "ar.zip/new": b"new"})
    [told] = of_kind(adopt(zipped, base=base, delete=True), Adopted)
    assert (told.archived, told.there_already, told.is_deleted) == (1, 1, True)
    assert set(members(base)) == {"a", "b", "new"}


def test_any_zip_below_a_prefix_with_directories_and_links(base: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep/empty").mkdir(parents=True)
    (tree / "deep/file").write_bytes(TEXT)
    (tree / "link").symlink_to("deep/file")
    subprocess.run(["zip", "-qry", tmp_path / "tree.zip", "."], cwd=tree, check=True)
    done = run(tmp_path / "tree.zip", base, "--into", "x/ar.zip/results")
    assert done.returncode == 0, done.stderr
    found = members(base, "x/ar.zip")
    assert found["results/deep/file"] == TEXT
    assert found["results/link"] == b"deep/file"
    assert "results/deep/empty/" in found
    out = tmp_path / "out"
    run_rear("get", "-C", out, base / "x/ar.zip", check=True)
    assert (out / "results/link").is_symlink()
    assert (out / "results/deep/empty").is_dir()
    assert (out / "results/deep/file").stat().st_mtime == (tree / "deep/file").stat().st_mtime // 1


@pytest.mark.parametrize("size", [len(TEXT), 3_000_000])
def test_what_is_deflated_is_not_compressed_anew(base: Path, tmp_path: Path, size: int) -> None:
    data = bytes(RANDOM.choices(b"abcdefgh \n", k=size))
    zipped = write_zip(tmp_path / "old.zip", {"ar.zip/a": data, "ar.zip/stored": NOISE})
    adopt(zipped, base=base)
    assert members(base) == {"a": data, "stored": NOISE}
    with zipfile.ZipFile(zipped) as old, zipfile.ZipFile(base / "ar.zip") as new:
        a, b = old.getinfo("ar.zip/a"), new.getinfo("a")
        # Other compressors do not end up with the same bytes.
        assert raw(zipped, a) == raw(base / "ar.zip", b)


def raw(path: Path, info: zipfile.ZipInfo) -> bytes:
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
        file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), os.SEEK_CUR)
        return file.read(info.compress_size)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_methods_become_deflate(base: Path, tmp_path: Path, method: int) -> None:
    adopt(write_zip(tmp_path / "old.zip", {"ar.zip/a": TEXT}, method), base=base)
    assert members(base) == {"a": TEXT}
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert archive.getinfo("a").compress_type == zipfile.ZIP_DEFLATED


def test_streamed_zips_with_data_descriptors(base: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    with (tmp_path / "stream.zip").open("wb") as file:
        # Into a pipe: it cannot go back to fill in sizes.
        zipper = subprocess.Popen(["zip", "-q", "-", "a.txt"], cwd=tmp_path, stdout=subprocess.PIPE)
        shutil.copyfileobj(zipper.stdout, file)
        zipper.stdout.close()
        assert zipper.wait(30) == 0
    adopt(tmp_path / "stream.zip", base=base, into="ar.zip")
    assert members(base) == {"a.txt": TEXT}


def test_archives_of_rear_keep_metadata_and_nanoseconds(base: Path, tmp_path: Path) -> None:
    with rear.rear_fs(tmp_path / "other") as fs, fs.open("ar.zip/a", "w", metadata={"run": 7}) as file:
        file.write("x")
    list(rear.scavenge(tmp_path / "other"))
    adopt(tmp_path / "other/ar.zip", base=base, into="all.zip/other")
    [old] = Index.open(Layout(tmp_path / "other"), "ar.zip").rows()
    [new] = Index.open(Layout(base), "all.zip").rows()
    assert (new.name, new.metadata, new.mtime_ns) == ("other/a", {"run": 7}, old.mtime_ns)
    assert new.source == f"{tmp_path}/other/ar.zip/a"


def test_other_content_of_the_same_name_is_kept_beside_it_and_recognised(base: Path, tmp_path: Path) -> None:
    first = write_zip(tmp_path / "1.zip", {"ar.zip/a.txt": b"one"})
    second = write_zip(tmp_path / "2.zip", {"ar.zip/a.txt": b"two"})
    adopt(first, second, base=base)
    assert members(base) == {"a.txt": b"one", "a~1.txt": b"two"}
    told = of_kind(adopt(second, first, base=base, delete=True), Adopted)
    assert [(one.archived, one.there_already, one.is_deleted) for one in told] == [(0, 1, True)] * 2
    assert members(base) == {"a.txt": b"one", "a~1.txt": b"two"}


def test_archives_that_were_full_and_lost_indexes_count_too(base: Path, tmp_path: Path) -> None:
    zipped = write_zip(tmp_path / "old.zip", {f"ar.zip/{number}": b"%d" % number for number in range(3)})
    adopt(zipped, base=base)
    with rear.rear_fs(base) as fs, fs.open("ar.zip/more", "w"):
        pass
    list(rear.scavenge(base, max_members=3))
    assert set(members(base)) == {"more"}
    shutil.rmtree(base / ".rear/index")
    [told] = of_kind(adopt(zipped, base=base, delete=True), Adopted)
    assert (told.archived, told.there_already, told.is_deleted) == (0, 3, True)


# ---- torn and hostile


def test_a_zip_torn_anywhere_gives_all_that_is_whole(tmp_path: Path) -> None:
    data = {f"ar.zip/{number}": RANDOM.randbytes(number * 40) for number in range(12)}
    whole = write_zip(tmp_path / "whole.zip", data)
    with zipfile.ZipFile(whole) as zipped:
        infos = zipped.infolist()
        ends = [info.header_offset for info in infos[1:]] + [zipped.start_dir]
    # Also in the middle of a header, which is no member yet.
    for length in [ends[1] + 6, *sorted(RANDOM.sample(range(31, ends[-1]), 12))]:
        base = tmp_path / f"base{length}"
        torn = tmp_path / "torn.zip"
        torn.write_bytes(whole.read_bytes()[:length])
        events = adopt(torn, base=base, delete=True)
        expected = {
            info.filename.removeprefix("ar.zip/"): data[info.filename]
            for info, end in zip(infos, ends, strict=True) if end <= length
        }  # fmt: skip
        assert members(base) == expected
        [told] = of_kind(events, Adopted)
        is_clean = length in ends
        assert (told.is_salvaged, told.is_deleted, bool(told.refused)) == (True, is_clean, not is_clean)
        assert torn.exists() is not is_clean


def test_damaged_encrypted_and_escaping_members_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    zipped = write_zip(
        tmp_path / "old.zip",
        {
            "ar.zip/good": TEXT, "ar.zip/../../etc/passwd": b"x", "/ar.zip/absolute": b"x", "nowhere": b"x",
            ".rear/ar.zip/x": b"x", "ar.zip/damaged": b"0123456789" * 3, "ar.zip/also good": NOISE,
        },
        zipfile.ZIP_STORED,
    )  # fmt: skip
    data = zipped.read_bytes()
    zipped.write_bytes(data.replace(b"0123456789", b"0123x56789", 1))
    (tmp_path / "secret").write_bytes(b"secret")
    subprocess.run(["zip", "-qP", "word", tmp_path / "secret.zip", "secret"], cwd=tmp_path, check=True)
    done = run(zipped, tmp_path / "secret.zip", base, "--delete")
    assert done.returncode == 1
    refused = [line for line in done.stderr.splitlines() if "not adopted" in line]
    for name in ("etc/passwd", "absolute", "nowhere", ".rear/ar.zip/x", "damaged"):
        assert [line for line in refused if name in line], name
    assert members(base) == {"good": TEXT, "also good": NOISE}
    events = adopt(tmp_path / "secret.zip", base=base, into="ar.zip", delete=True)
    [said] = of_kind(events, Refused)
    assert said.subject.endswith("secret.zip/secret")
    assert "encrypted" in said.reason
    assert zipped.exists()
    assert (tmp_path / "secret.zip").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "old.zip", "secret", "secret.zip"]


def test_what_is_no_zip_costs_no_other(base: Path, tmp_path: Path) -> None:
    good = write_zip(tmp_path / "good.zip", {"ar.zip/a": b"a"})
    (tmp_path / "text.zip").write_bytes(TEXT)
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "looks like one.zip").write_bytes(b"PK\x03\x04" + TEXT)
    os.mkfifo(tmp_path / "fifo.zip")
    bad = [tmp_path / name for name in ("text.zip", "looks like one.zip", "folder.zip", "missing.zip", "fifo.zip")]
    events = adopt(*bad, good, base=base, delete=True)
    assert [event.subject for event in of_kind(events, Refused)] == [str(path) for path in bad]
    assert members(base) == {"a": b"a"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base", "fifo.zip", "folder.zip", "looks like one.zip", "text.zip",
    ]  # fmt: skip


def test_no_archive_is_adopted_into_itself(base: Path, tmp_path: Path) -> None:
    adopt(write_zip(tmp_path / "old.zip", {"ar.zip/a": b"a"}), base=base)
    events = adopt(base / "ar.zip", base=base, into="ar.zip", delete=True)
    assert "itself" in of_kind(events, Refused)[0].reason
    os.link(base / "ar.zip", tmp_path / "link.zip")
    assert "itself" in of_kind(adopt(tmp_path / "link.zip", base=base, into="ar.zip", delete=True), Refused)[0].reason
    assert members(base) == {"a": b"a"}
    with rear.rear_fs(base) as fs:
        with fs.open("ar.zip/b", "w"):
            pass
        [temp] = (base / ".rear/inbox").rglob("*.zip")
        for taker in (base, tmp_path / "another base"):
            assert "rear itself" in of_kind(adopt(temp, base=taker, into="c.zip", delete=True), Refused)[0].reason
        assert temp.exists()


def test_wrong_use(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PathError):
        rear.adopt([], base=base, into="nothing")
    with pytest.raises(UsageError):
        rear.adopt([], base=base, wait_seconds=-1)
    (tmp_path / "file").write_bytes(b"")
    assert run(tmp_path / "x.zip", tmp_path / "file").returncode == 3


# ---- when a Zip goes


def test_a_zip_that_changed_meanwhile_stays(base: Path, tmp_path: Path) -> None:
    zipped = write_zip(tmp_path / "old.zip", {"ar.zip/a": b"a"})
    for event in (events := rear.adopt([zipped], base=base, delete=True)):
        if isinstance(event, Collected):
            write_zip(zipped, {"ar.zip/a": b"a", "ar.zip/later": b"later"})
            break
    left = list(events)
    assert (of_kind(left, Adopted)[0].is_deleted, bool(of_kind(left, Refused))) == (False, True)
    [told] = of_kind(adopt(zipped, base=base, delete=True), Adopted)
    assert (told.archived, told.there_already, told.is_deleted) == (1, 1, True)


def test_while_another_scavenger_leads_nothing_is_deleted(base: Path, tmp_path: Path) -> None:
    zipped = write_zip(tmp_path / "old.zip", {"ar.zip/a": b"a"})
    (base / ".rear").mkdir(parents=True)
    with Leadership(Layout(base)):
        events = adopt(zipped, base=base, delete=True, wait_seconds=0.3)
    [told] = of_kind(events, Adopted)
    assert (told.pending, told.archived, told.is_deleted) == (1, 0, False)
    assert of_kind(events, Waiting)
    [told] = of_kind(adopt(zipped, base=base, delete=True), Adopted)
    assert (told.there_already, told.is_deleted) == (1, True)
    assert members(base) == {"a": b"a"}


def test_batches(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "BATCH_MEMBERS", 3)
    data = {f"ar.zip/{number}": b"%d" % number for number in range(10)}
    zips = [write_zip(tmp_path / f"{number}.zip", data) for number in range(2)]
    told = of_kind(adopt(*zips, base=base, delete=True), Adopted)
    assert [(one.archived, one.there_already, one.is_deleted) for one in told] == [(10, 0, True), (0, 10, True)]
    assert members(base) == {name.removeprefix("ar.zip/"): value for name, value in data.items()}


def test_killed_at_any_moment_all_is_there_once_in_the_end(base: Path, tmp_path: Path) -> None:
    data = [{f"ar.zip/{zip_}/{number}": RANDOM.randbytes(3_000) for number in range(40)} for zip_ in range(4)]
    zips = [write_zip(tmp_path / f"{number}.zip", one) for number, one in enumerate(data)]
    command = rear_command("adopt", *zips, base, "--delete", "--json")
    for delay in (0.0, 0.02, 0.05, 0.1):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        for number, path in enumerate(zips):
            if not path.exists():
                assert members(base).items() >= {name[7:]: value for name, value in data[number].items()}.items()
    left = [path for path in zips if path.exists()]
    if left:
        done = run(*left, base, "--delete", "--json")
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["kind"] for line in done.stdout.splitlines()][-2:] == ["adopted", "summary"]
    assert not [path for path in zips if path.exists()]
    check_base(base, {name: value for one in data for name, value in one.items()})


@pytest.mark.parametrize("has_archive", [False, True])
def test_an_archive_that_counts_as_rolled_over_is_not_its_own_proof(base: Path, has_archive: bool) -> None:
    """Beside ``ar.zip``, ``ar-1.zip`` is where members of it may be: what is found there may be nowhere else."""
    if has_archive:
        write_zip(base / "ar.zip", {"b.txt": b"other"})
    sources = [write_zip(base / f"ar-{number}.zip", {f"{number}.txt": b"only copy"}) for number in (1, 2)]
    events = adopt(*sources, base=base, into="ar.zip", delete=True)
    assert all(source.exists() for source in sources)
    assert len(of_kind(events, Refused)) == 2
    assert all("counts as rolled over" in event.reason for event in of_kind(events, Refused))
    moved = [source.rename(base.parent / source.name) for source in sources]
    assert not of_kind(adopt(*moved, base=base, into="ar.zip", delete=True), Refused)
    assert not any(source.exists() for source in moved)
    assert {"1.txt": b"only copy", "2.txt": b"only copy"}.items() <= members(base).items()
