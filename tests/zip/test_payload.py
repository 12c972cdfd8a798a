"""Payloads: what they hold is what went in, however often it is asked for."""

from __future__ import annotations

import os
import random
import resource
import socket
import stat
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rear.errors import SourceError
from rear.zip import payload as payload_module
from rear.zip.codecs import DEFLATED, METHOD_NAMES, STORED, ZSTANDARD, compress, crc32, decode
from rear.zip.payload import Payload, payload_of_bytes, payload_of_file, payload_of_source

METHODS = [STORED, DEFLATED, ZSTANDARD]
TEXT = b"".join(b"line %d of a log that shrinks well\n" % number for number in range(30_000))
NOISE = random.Random(1).randbytes(1 << 20)


def check(payload: Payload, plain: bytes) -> None:
    """Assert all that a payload promises, twice: a worker may have to append it again."""
    for _ in range(2):
        compressed = b"".join(payload.chunks())
        assert len(compressed) == payload.compressed_size
        assert b"".join(decode(payload.method, [compressed] if compressed else [])) == plain
    assert payload.size == len(plain)
    assert payload.crc == zlib.crc32(plain)
    assert payload.compressed_size <= payload.size
    if payload.data is not None:
        assert payload.data == compressed


def spool(data: bytes) -> BinaryIO:
    file = cast(BinaryIO, tempfile.TemporaryFile())
    file.write(data)
    return file


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES.get)
@pytest.mark.parametrize(
    "plain", [b"", b"x", b"a" * 31, b"a" * 32, TEXT[:4096], NOISE[:4096], TEXT, NOISE, NOISE[:70_000] + TEXT]
)
def test_bytes_of_all_kinds(plain: bytes, method: int) -> None:
    payload = payload_of_bytes(plain, method)
    check(payload, plain)
    if plain in (TEXT, TEXT[:4096]):
        assert payload.method == method
    if plain in (b"", b"x", NOISE):
        assert payload.method == STORED


@given(st.binary(max_size=200), st.integers(0, 40), st.sampled_from(METHODS))
def test_any_bytes(piece: bytes, times: int, method: int) -> None:
    plain = piece * times
    check(payload_of_bytes(plain, method), plain)


def test_a_buffer_may_change_afterwards() -> None:
    buffer = bytearray(NOISE[:1000])
    payload = payload_of_bytes(memoryview(buffer), STORED)
    buffer[:] = bytes(1000)
    check(payload, NOISE[:1000])


def test_noise_is_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def measure(data: bytes, method: int) -> bytes:
        lengths.append(len(data))
        return compress(data, method)

    monkeypatch.setattr(payload_module, "compress", measure)
    payload_of_bytes(NOISE * 8, DEFLATED)
    assert sum(lengths) <= len(NOISE * 8) // 16


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES.get)
@pytest.mark.parametrize("spool_size", [0, 100, 1 << 30])
@pytest.mark.parametrize("plain", [b"", b"x", TEXT[:4096], TEXT, NOISE, TEXT + NOISE, NOISE[:5000]])
def test_spooled_files(plain: bytes, spool_size: int, method: int) -> None:
    with spool(plain) as file:
        payload = payload_of_file(file, len(plain), method, spool_size)
    check(payload, plain)
    if plain == TEXT and method != STORED:
        assert payload.method == method
        assert (payload.data is not None) == (spool_size == 1 << 30)
    payload.close()
    payload.close()


def test_a_spool_of_which_only_the_samples_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "_samples_shrink", lambda *_: True)
    with spool(NOISE) as file:
        payload = payload_of_file(file, len(NOISE), DEFLATED, 100)
    assert payload.method == STORED
    check(payload, NOISE)
    payload.close()


def test_a_full_local_disk_means_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(payload_module, "open_spool", fail)
    with spool(TEXT) as file:
        payload = payload_of_file(file, len(TEXT), DEFLATED, 10)
    assert payload.method == STORED
    check(payload, TEXT)
    payload.close()


def test_a_spool_that_is_too_short_is_an_error() -> None:
    with spool(TEXT) as file, pytest.raises(OSError, match="spool ended"):
        payload_of_file(file, len(TEXT) + 1, DEFLATED, 10)


def test_spools_have_no_name_and_are_closed(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with spool(TEXT) as file:
        payload = payload_of_file(file, len(TEXT), DEFLATED, 10, str(tmp_path))
    assert os.listdir(tmp_path) == []
    check(payload, TEXT)
    payload.close()
    if before is not None:
        assert set(os.listdir("/proc/self/fd")) == before


def test_a_large_file_takes_little_memory() -> None:
    size = 512 << 20
    with spool(b"") as file:
        file.truncate(size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for method in (DEFLATED, STORED):
            payload = payload_of_file(file, size, method, 1 << 20)
            assert sum(map(len, payload.chunks())) == payload.compressed_size
            payload.close()
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 << 10


# -- picked-up files


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES.get)
@pytest.mark.parametrize("spool_size", [0, 100, 8 << 20])
@pytest.mark.parametrize("plain", [b"", b"x", TEXT[:4096], TEXT, NOISE, NOISE + NOISE + b"end"])
def test_sources(tmp_path: Path, plain: bytes, spool_size: int, method: int) -> None:
    path = tmp_path / "source"
    path.write_bytes(plain)
    os.chmod(path, 0o640)
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    payload, stamp = payload_of_source(str(path), method, spool_size)
    check(payload, plain)
    status = path.stat()
    assert stamp[1:] == (status.st_dev, status.st_ino, len(plain), status.st_mtime_ns, stat.S_IFREG | 0o640)
    payload.close()


@pytest.mark.parametrize("kind", ["missing", "below a file", "symbolic link", "directory", "FIFO", "socket", "device"])
def test_what_is_no_source(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    match kind:
        case "below a file":
            path.write_bytes(b"")
            path = path / "x"
        case "symbolic link":
            (tmp_path / "target").write_bytes(b"x")
            path.symlink_to("target")
        case "directory":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        case "device":
            path = Path("/dev/null")
    with pytest.raises(
        SourceError, match="there is no such file" if kind in ("missing", "below a file") else kind
    ) as error:
        payload_of_source(str(path), DEFLATED, 100)
    assert str(path) in str(error.value)


def test_an_unreadable_source_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(PermissionError) as error:
        payload_of_source(str(path), DEFLATED, 100)
    assert error.value.filename == str(path)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _touch(path: Path) -> None:
    os.utime(path, ns=(5, 5))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)


def _cut(path: Path) -> None:
    os.truncate(path, 10)


CHANGES: dict[str, Callable[[Path], object]] = {
    "grow": _grow,
    "cut": _cut,
    "touch": _touch,
    "replace": _replace,
    "remove": os.unlink,
}


@pytest.mark.parametrize("size", [5000, 3 << 20])
@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=METHOD_NAMES.get)
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, method: int, size: int
) -> None:
    path = tmp_path / "s"
    path.write_bytes((TEXT * 4)[:size])
    changed = False

    def hook(data: bytes, value: int = 0) -> int:
        nonlocal changed
        if not changed:
            changed = True
            CHANGES[change](path)
        return crc32(data, value)

    monkeypatch.setattr(payload_module, "crc32", hook)
    with pytest.raises(SourceError, match=str(path)):
        payload_of_source(str(path), method, 1 << 20)


@pytest.mark.parametrize("change", [*CHANGES, "same size and time"])
def test_a_stored_source_that_changes_before_it_is_read_again(tmp_path: Path, change: str) -> None:
    path = tmp_path / "s"
    path.write_bytes(NOISE * 2)
    payload, stamp = payload_of_source(str(path), DEFLATED, 1 << 20)
    check(payload, NOISE * 2)
    if change == "same size and time":
        with path.open("r+b") as file:
            file.write(b"other")
        os.utime(path, ns=(stamp.mtime_ns, stamp.mtime_ns))
    else:
        CHANGES[change](path)
    with pytest.raises(SourceError, match=str(path)):
        b"".join(payload.chunks())


@pytest.mark.parametrize(
    "data",
    [bytes(range(256)) * 8, bytes(range(256)) * 2 + b"x" * 3000, os.urandom(256) + b"line\n" * 500,
     b"".join(struct.pack("<d", 1 + n / 977) for n in range(500)), os.urandom(700) * 5],
    ids=["ramp", "ramp, then text", "noise, then text", "doubles", "repeated"],
)  # fmt: skip
def test_what_shrinks_is_not_taken_for_noise(data: bytes) -> None:
    assert payload_of_bytes(data, DEFLATED).method == DEFLATED


def test_short_noise_is_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed: list[bytes] = []
    real = compress

    def counted(data: bytes, method: int) -> bytes:
        compressed.append(data)
        return real(data, method)

    monkeypatch.setattr(payload_module, "compress", counted)
    generator = random.Random(7)
    for _ in range(200):
        assert payload_of_bytes(generator.randbytes(4096), DEFLATED).method == STORED
    assert len(compressed) < 40
