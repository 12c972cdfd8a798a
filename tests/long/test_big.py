"""Large members, large archives, many members: memory stays small, and other software reads what comes out."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from programs import run_code

import rear
from rear import rear_fs

BIG = bool(os.environ.get("REAR_BIG"))
MIB = 1 << 20

MEASURE = """
import os, resource, sys
from rear import rear_fs, rear_open, rear_pickup
base, size, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
MIB = 1 << 20
text = (b"%08d a line of a log file that is much like the others\\n" * (MIB // 50))[:MIB]
noise = os.urandom(MIB)
piece = {"text": text, "noise": noise, "pickup": noise}[kind]
with rear_fs(base, sync_interval=0.2) as fs:
    with rear_open("ar.zip/small", "w") as file:
        file.write("small")
    fs.sync()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind == "pickup":
        with rear_pickup(base + ".source", "ar.zip/big"), open(base + ".source", "wb") as file:
            for _ in range(size // MIB):
                file.write(piece)
    else:
        with rear_open("ar.zip/big", "wb") as file:
            for _ in range(size // MIB):
                file.write(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def run(code: str, *arguments: object) -> str:
    done = run_code(code, *arguments, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scavenge(base: Path) -> None:
    for event in rear.scavenge(base):
        assert event.severity == "info", event


def check_with_other_tools(path: Path, *members: str) -> None:
    for command in (["unzip", "-tqq", str(path), *members], ["7z", "t", str(path), *members]):
        if shutil.which(command[0]) is not None:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    needed = (20 << 30) if BIG else (3 << 30)
    if shutil.disk_usage(tmp_path).free < needed:
        pytest.skip(f"less than {needed >> 30} GiB free")
    return tmp_path / "base"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["text", "noise", "pickup"])
def test_a_big_member_costs_little_memory(base: Path, kind: str) -> None:
    size = (5 << 30) if BIG else 600 * MIB if kind == "text" else 200 * MIB
    used_kib = int(run(MEASURE, base, size, kind))
    assert used_kib < 64 * 1024
    assert not Path(f"{base}.source").exists()
    scavenge(base)
    with zipfile.ZipFile(base / "ar.zip") as archive:
        info = archive.getinfo("big")
        assert info.file_size == size
        with archive.open("big") as file:
            length = 0
            # The end of the member is where its CRC is compared.
            while data := file.read(MIB):
                length += len(data)
        assert length == size
        assert archive.read("small") == b"small"
    if BIG:
        check_with_other_tools(base / "ar.zip")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_member_of_more_than_four_gibibytes(base: Path) -> None:
    """It shrinks to little, so that only its length is large; the member after it is found as well."""
    size = (4 << 30) + 5 * MIB
    with rear_fs(base) as fs:
        # The spool is a sparse file.
        with fs.open("ar.zip/zeros", "wb") as file:
            file.write(b"begin")
            file.truncate(size - 3)
            file.seek(0, os.SEEK_END)
            file.write(b"end")
        with fs.open("ar.zip/after", "wb") as file:
            file.write(b"after")
    scavenge(base)
    with zipfile.ZipFile(base / "ar.zip") as archive:
        info = archive.getinfo("zeros")
        assert info.file_size == size
        assert info.compress_size < 64 * MIB
        assert archive.read("after") == b"after"
    # Decompressing it all takes them half a minute.
    check_with_other_tools(base / "ar.zip", *([] if BIG else ["after"]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not BIG, reason="writes 10 GiB: set REAR_BIG=1")
def test_an_archive_of_more_than_four_gibibytes(base: Path) -> None:
    noise = [os.urandom(64 * MIB) for _ in range(3)]
    with rear_fs(base, spool_size=128 * MIB) as fs:
        for number in range(70):
            with fs.open(f"ar.zip/{number}", "wb") as file:
                file.write(noise[number % 3])
        fs.sync()
    assert len(list(base.glob(".rear/inbox/*/*.zip"))) >= 4
    scavenge(base)
    assert (base / "ar.zip").stat().st_size > 4 << 30
    check_with_other_tools(base / "ar.zip")
    with zipfile.ZipFile(base / "ar.zip") as archive:
        for number in (0, 64, 69):
            assert archive.read(str(number)) == noise[number % 3]


@pytest.mark.slow
def test_more_members_than_sixteen_bits_count(base: Path) -> None:
    count = 70_000
    with rear_fs(base) as fs:
        for number in range(count):
            with fs.open(f"ar.zip/{number:x}", "wb") as file:
                file.write(b"%d" % number)
    (temp_archive,) = base.glob(".rear/inbox/*/*.zip")
    with zipfile.ZipFile(temp_archive) as archive:
        assert len(archive.namelist()) == count
    scavenge(base)
    with rear_fs(base) as fs:
        fs.open("ar.zip/one more", "wb").close()
    scavenge(base)
    check_with_other_tools(base / "ar.zip")
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(names) == count + 1
        assert set(names) == {f"{number:x}" for number in range(count)} | {"one more"}
        assert all(archive.read(f"{number:x}") == b"%d" % number for number in range(0, count, 97))


def test_memory_does_not_grow_with_the_number_of_files(base: Path) -> None:
    code = """
import resource, sys
from rear import rear_fs
with rear_fs(sys.argv[1], sync_interval=0.05, rotation_size=1 << 20) as fs:
    def write(count):
        for number in range(count):
            with fs.open(f"ar.zip/{write.number}", "wb") as file:
                file.write(b"x" * 1000)
            write.number += 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write.number = 0
    first = write(5_000)
    print(write(30_000) - first)
"""
    # Names are remembered for mode x: about a hundred bytes each.
    assert int(run(code, base)) < 12 * 1024
