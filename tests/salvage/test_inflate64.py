"""Deflate64 a symbol at a time: what other decoders say of whole streams, and all there is of damaged ones."""

from __future__ import annotations

import random
import shutil
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zoo import needs_deflate64

from rear.salvage.inflate64 import inflate64
from rear.zip.codecs import DEFLATE64, decode

LIMIT = 1 << 22
WORDS = b"".join(b"%d some words, " % (number * 7919 % 1009) for number in range(900))


def raw_deflate(plain: bytes, level: int, strategy: int) -> bytes:
    """Return a stream that means the same in Deflate and Deflate64: no match of 258 bytes."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
    return stream.compress(plain) + stream.flush()


STREAMS = {
    "stored": (raw_deflate(WORDS, 0, zlib.Z_DEFAULT_STRATEGY), WORDS),
    "fixed": (raw_deflate(WORDS[:300], 9, zlib.Z_FIXED), WORDS[:300]),
    "dynamic": (raw_deflate(WORDS, 9, zlib.Z_DEFAULT_STRATEGY), WORDS),
    "empty": (raw_deflate(b"", 9, zlib.Z_DEFAULT_STRATEGY), b""),
}


def seven_zip(path: Path, plain: bytes) -> bytes:
    program = shutil.which("7z") or shutil.which("7zz")
    if program is None:
        pytest.skip("7z is not installed")
    source = path / "source"
    source.write_bytes(plain)
    archive = path / "archive.zip"
    subprocess.run([program, "a", "-bd", "-mm=Deflate64", archive, source], stdout=subprocess.DEVNULL, check=True)
    with zipfile.ZipFile(archive) as found:
        (info,) = found.infolist()
    assert info.compress_type == DEFLATE64
    start = info.header_offset + 30 + len(info.filename)
    return archive.read_bytes()[start : start + info.compress_size]


@pytest.mark.parametrize("kind", STREAMS)
def test_whole_and_with_junk_behind_it(kind: str) -> None:
    data, plain = STREAMS[kind]
    assert inflate64(data, LIMIT) == plain
    assert inflate64(data + b"junk", LIMIT) == plain
    assert inflate64(data, 17) == plain[:17]


@pytest.mark.parametrize("kind", STREAMS)
def test_cut_at_each_length(kind: str) -> None:
    """What comes out only grows, and is right; of a whole stream but its last byte, nearly all."""
    data, plain = STREAMS[kind]
    before = 0
    for length in range(0, len(data), max(1, len(data) // 200)):
        found = inflate64(data[:length], LIMIT)
        assert plain.startswith(found)
        assert len(found) >= before
        before = len(found)
    assert len(inflate64(data[:-1], LIMIT)) >= len(plain) - 8


def test_long_matches_and_distances_of_7z(tmp_path: Path) -> None:
    noise = random.Random(6).randbytes(50_000)
    plain = noise + bytes(5_000) + noise + bytes(200_000) + WORDS * 20
    data = seven_zip(tmp_path, plain)
    assert len(data) < 2 * len(noise)
    assert inflate64(data, LIMIT) == plain
    found = inflate64(data[: len(data) // 2], LIMIT)
    assert plain.startswith(found)
    needs_deflate64()
    # The compiled decoder agrees, and keeps back what does not fill its window.
    assert b"".join(decode(DEFLATE64, [data])) == plain


@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    assert len(inflate64(data, 1 << 16)) <= 1 << 16


def test_a_bomb_stops_at_the_limit() -> None:
    # One block of fixed codes, a zero, then matches of 65,538 bytes at distance 1.
    bits = [1, 1, 0, *(int(bit) for bit in "00110000")]
    match = [int(bit) for bit in "11000101"] + [1] * 16 + [0] * 5
    bits += match * 2000
    data = bytes(sum(bit << place for place, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))
    assert inflate64(data, 1 << 20) == bytes(1 << 20)
