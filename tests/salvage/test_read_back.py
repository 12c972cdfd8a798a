"""A rebuilt archive with any byte that was not meant: noticed before it replaces anything."""

from __future__ import annotations

import itertools
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zoo
from faults import CountsReads
from zips import ORIGIN, directory_offset, flip, stored, write_zip

from rear.core.storage import Storage
from rear.fsck.archive import check_archive_file


class Flipping(Storage):
    """One byte of each new file is another one than was written or copied."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.flipped = 0

    def _flip(self, descriptor: int, start: int, length: int) -> None:
        if start <= self.position < start + length:
            byte = os.pread(descriptor, 1, self.position)[0]
            os.pwrite(descriptor, bytes([byte ^ 0x10]), self.position)
            self.flipped += 1

    def write(self, descriptor: int, buffers: Any, offset: int) -> int:
        length = super().write(descriptor, buffers, offset)
        self._flip(descriptor, offset, length)
        return length

    def copy_range(self, source: int, target: int, *, source_start: int, target_start: int, length: int) -> None:
        super().copy_range(source, target, source_start=source_start, target_start=target_start, length=length)
        self._flip(target, target_start, length)


def plain(folder: Path) -> bytes:
    return b"".join(stored(f"{number}.txt", b"%04d" % number * 5, None) for number in range(20))


def ours(folder: Path) -> bytes:
    return b"".join(
        stored(f"{number}.txt", b"%04d" % number * 5, ORIGIN._replace(sequence=number)) for number in range(6)
    )


def encrypted(folder: Path) -> bytes:
    """Return members that nobody can decode here, between others."""
    (folder / "secret.txt").write_bytes(b"secret " * 9)
    zoo.run(zoo.tool("zip"), "-q", "-P", "secret", folder / "e.zip", "secret.txt", cwd=folder)
    made = folder / "e.zip"
    return stored("1.txt", b"first", None) + made.read_bytes()[: directory_offset(made)]


def with_descriptors(folder: Path) -> bytes:
    """Return what a program writes that cannot seek."""
    with open(folder / "d.zip", "wb") as file:
        process = subprocess.run(["python3", "-c", _TO_PIPE], stdout=subprocess.PIPE, check=True)
        file.write(process.stdout)
    return (folder / "d.zip").read_bytes()[: directory_offset(folder / "d.zip")]


_TO_PIPE = """
import sys, zipfile
class Out:
    def write(self, data): return sys.stdout.buffer.write(data)
    def flush(self): sys.stdout.buffer.flush()
with zipfile.ZipFile(Out(), "w", zipfile.ZIP_DEFLATED) as archive:
    for number in range(5):
        archive.writestr(f"{number}.txt", b"line %d " % number * 20)
"""


def with_directory(folder: Path) -> bytes:
    """Return an archive whose directory contradicts a header, which is made anew."""
    lines = {f"{number}.txt": b"line %d " % number * 20 for number in range(6)}
    flip(write_zip(folder / "w.zip", lines, zipfile.ZIP_DEFLATED), 14, 0xFF)
    return (folder / "w.zip").read_bytes()


@pytest.mark.parametrize("make", [plain, ours, encrypted, with_descriptors, with_directory])
def test_any_wrong_byte_of_the_new_archive_is_noticed(make: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "source.zip", tmp_path / "target.zip"
    source.write_bytes(make(tmp_path))
    before = sorted(os.listdir(tmp_path))
    assert all(problem.code != "refused" for problem in check_archive_file(source, output=target))
    size, right = target.stat().st_size, target.read_bytes()
    target.unlink()
    step = max(1, size // 150)
    for position in itertools.chain(range(0, size, step), range(size - 22, size)):
        storage = Flipping(position)
        problems = list(check_archive_file(source, output=target, storage=storage))
        assert storage.flipped, position
        assert [problem.code for problem in problems if problem.code == "refused"] == ["refused"], position
        assert sorted(os.listdir(tmp_path)) == before, position
    assert all(problem.code != "refused" for problem in check_archive_file(source, output=target))
    assert target.read_bytes() == right


def test_a_file_that_is_too_long_or_too_short_is_noticed(tmp_path: Path) -> None:
    source, target = tmp_path / "source.zip", tmp_path / "target.zip"
    source.write_bytes(plain(tmp_path))
    for change in (-1, 1):

        class Resized(Storage):
            def sync(self, descriptor: int, change: int = change) -> None:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size + change)

        problems = list(check_archive_file(source, output=target, storage=Resized()))
        assert "refused" in [problem.code for problem in problems]
        assert not target.exists()


def test_bytes_that_change_between_scan_and_copy_are_noticed(tmp_path: Path) -> None:
    """The CRC-32 is that of the bytes that were judged, so a source that has another content by then does not count."""
    source, target = tmp_path / "source.zip", tmp_path / "target.zip"
    source.write_bytes(plain(tmp_path))
    stamp = source.stat()

    class Changing(Storage):
        def copy_range(self, old: int, new: int, **where: int) -> None:
            data = bytearray(source.read_bytes())
            data[45] ^= 1
            with open(source, "r+b") as file:
                file.write(data)
            os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
            super().copy_range(old, new, **where)

    problems = list(check_archive_file(source, output=target, storage=Changing()))
    assert "refused" in [problem.code for problem in problems]
    assert not target.exists()


def test_the_new_archive_is_read_once(tmp_path: Path) -> None:
    source, target = tmp_path / "source.zip", tmp_path / "target.zip"
    source.write_bytes(b"".join(stored(f"{number}.txt", b"%0999d" % number, None) for number in range(20_000)))
    storage = CountsReads()
    list(check_archive_file(source, output=target, storage=storage))
    sizes = source.stat().st_size + target.stat().st_size
    assert sum(storage.lengths) < 1.1 * sizes + (4 << 20)
    assert len(storage.lengths) < 150
