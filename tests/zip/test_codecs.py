"""Codecs: every stream whole, in single bytes, cut at each length, and with junk behind it."""

from __future__ import annotations

import bz2
import lzma
import random
import struct
import zipfile
import zlib
from collections.abc import Iterable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from programs import run_code
from zoo import needs_deflate64

from rear.errors import UnsupportedError, UsageError, ZipFormatError
from rear.zip import codecs
from rear.zip.codecs import BZIP2, DEFLATE64, DEFLATED, LZMA, PIECE_BYTES, STORED, ZSTANDARD, decode

PLAIN = b"".join(b"line %d\n" % (number % 37) for number in range(60)) + random.Random(2).randbytes(40)


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def zip_lzma(data: bytes) -> bytes:
    # The .lzma format without its size field is what APPNOTE 5.8.8 asks for, behind a head of its own.
    stream = lzma.compress(data, lzma.FORMAT_ALONE, preset=1)
    return struct.pack("<BBH", 9, 20, 5) + stream[:5] + stream[13:]


STREAMS = {
    DEFLATED: raw_deflate(PLAIN),
    # Deflate64 differs in matches of over 257 bytes and distances of over 32 KiB; this has neither.
    DEFLATE64: raw_deflate(PLAIN),
    BZIP2: bz2.compress(PLAIN),
    LZMA: zip_lzma(PLAIN),
    ZSTANDARD: zstandard.compress(PLAIN),
}
STRICT = [DEFLATED, DEFLATE64, BZIP2]


@pytest.fixture(autouse=True)
def codec(request: pytest.FixtureRequest) -> None:
    callspec = getattr(request.node, "callspec", None)
    if "deflate64" in request.node.name or (callspec and callspec.params.get("method") == DEFLATE64):
        needs_deflate64()


def plain_of(method: int, chunks: Iterable[bytes]) -> bytes:
    return b"".join(decode(method, chunks))


@pytest.mark.parametrize("method", STREAMS)
def test_whole(method: int) -> None:
    assert plain_of(method, [STREAMS[method]]) == PLAIN


@pytest.mark.parametrize("method", STREAMS)
def test_byte_by_byte(method: int) -> None:
    assert plain_of(method, (bytes([byte]) for byte in STREAMS[method])) == PLAIN


@pytest.mark.parametrize("method", STREAMS)
def test_cut_at_each_length(method: int) -> None:
    """A cut stream is an error, or (Zstandard, LZMA) gives less than all: the CRC then tells."""
    stream = STREAMS[method]
    for length in range(len(stream)):
        try:
            plain = plain_of(method, [stream[:length]] if length else [])
        except ZipFormatError:
            continue
        assert method not in STRICT, length
        assert PLAIN.startswith(plain)
        if plain == PLAIN:
            # Only a checksum or an end mark is missing.
            assert length >= len(stream) - 8


@pytest.mark.parametrize("method", [DEFLATED, BZIP2, LZMA])
@pytest.mark.parametrize("junk", [b"\0", b"junk", b"PK\x03\x04" * 400])
def test_junk_behind_the_stream(method: int, junk: bytes) -> None:
    for chunks in ([STREAMS[method] + junk], [STREAMS[method], junk]):
        with pytest.raises(ZipFormatError):
            plain_of(method, chunks)


@pytest.mark.parametrize("method", [ZSTANDARD, DEFLATE64])
@pytest.mark.parametrize("junk", [b"\0", b"junk", b"PK\x03\x04" * 400])
def test_junk_that_a_decoder_does_not_tell_of_adds_no_output(method: int, junk: bytes) -> None:
    try:
        assert plain_of(method, [STREAMS[method] + junk]) == PLAIN
    except ZipFormatError:
        pass


def test_junk_behind_deflate64_is_noticed_in_the_next_chunk() -> None:
    with pytest.raises(ZipFormatError, match="follow"):
        plain_of(DEFLATE64, [STREAMS[DEFLATE64], b"junk"])


@pytest.mark.parametrize("method", STREAMS)
@given(data=st.data())
def test_random_damage_is_an_error_or_other_bytes(method: int, data: st.DataObject) -> None:
    stream = bytearray(STREAMS[method])
    position = data.draw(st.integers(0, len(stream) - 1))
    stream[position] ^= data.draw(st.integers(1, 255))
    try:
        plain_of(method, [bytes(stream)])
    except (ZipFormatError, UnsupportedError):
        pass


@pytest.mark.parametrize("method", STREAMS)
@given(junk=st.binary(max_size=200))
def test_junk_never_raises_anything_else(method: int, junk: bytes) -> None:
    try:
        plain_of(method, [junk])
    except (ZipFormatError, UnsupportedError):
        pass


@pytest.mark.parametrize("method", [DEFLATED, BZIP2, LZMA, ZSTANDARD, DEFLATE64])
def test_pieces_stay_small_however_far_data_expands(method: int) -> None:
    zeros = bytes(24 << 20)
    stream = {
        DEFLATED: raw_deflate, DEFLATE64: raw_deflate, BZIP2: bz2.compress, LZMA: zip_lzma,
        ZSTANDARD: zstandard.compress,
    }[method](zeros)  # fmt: skip
    if method == DEFLATE64:
        # Its long matches are written differently; only the bound counts here.
        stream = raw_deflate(random.Random(3).randbytes(3 << 20))
    total = 0
    for piece in decode(method, [stream[start : start + 65536] for start in range(0, len(stream), 65536)]):
        assert len(piece) <= 2 * PIECE_BYTES
        total += len(piece)
    assert total == (3 << 20 if method == DEFLATE64 else len(zeros))


@pytest.mark.parametrize("name", ["stored", "deflate", "zstd"])
@given(plain=st.binary(max_size=2000))
def test_what_is_compressed_comes_back(name: str, plain: bytes) -> None:
    method = codecs.method_of(name)
    if method == STORED:
        assert plain_of(method, [plain]) == plain
        return
    assert plain_of(method, [codecs.compress(plain, method)]) == plain
    stream = codecs.compressor(method)
    parts = [stream.compress(plain[:7]), stream.compress(memoryview(plain)[7:]), stream.flush()]
    assert plain_of(method, [part for part in parts if part]) == plain
    if method == DEFLATED:
        assert zlib.decompress(b"".join(parts), -15) == plain


def test_lzma_head_is_checked() -> None:
    stream = zip_lzma(PLAIN)
    with pytest.raises(ZipFormatError, match="properties"):
        plain_of(LZMA, [stream[:2] + b"\x06" + stream[3:]])
    with pytest.raises(ZipFormatError, match="impossible"):
        plain_of(LZMA, [stream[:4] + b"\xff" + stream[5:]])
    # What a stream announces is not what it needs.
    announced = stream[:5] + b"\xff\xff\xff\xff" + stream[9:]
    assert plain_of(LZMA, [announced]) == PLAIN
    with pytest.raises(UnsupportedError, match="dictionary of 4,294,967,295 bytes"):
        plain_of(LZMA, [announced[:30] + b"\xff" * 30])


def test_unknown_methods() -> None:
    for method in (1, 6, 98, 99, 65535):
        with pytest.raises(UnsupportedError, match=str(method)):
            decode(method, [])
        with pytest.raises(UnsupportedError, match=str(method)):
            codecs.compressor(method)
    for name in ("bzip2", "DEFLATE", "", None, ["deflate"]):
        with pytest.raises(UsageError, match="compression"):
            codecs.method_of(name)  # type: ignore[arg-type]


def test_crc_is_that_of_zlib() -> None:
    assert codecs.crc32(PLAIN) == zlib.crc32(PLAIN)
    assert codecs.crc32(PLAIN[9:], codecs.crc32(PLAIN[:9])) == zlib.crc32(PLAIN)


def test_deflate64_leaves_zipfile_alone() -> None:
    """The import of its decoder makes zipfile write stored bytes under method 9; that patch is taken back."""
    program = (
        "import io, zipfile\n"
        "from rear.zip.codecs import decode\n"
        f"assert b''.join(decode(9, [{STREAMS[DEFLATE64]!r}]))\n"
        "try:\n"
        "    zipfile.ZipFile(io.BytesIO(), 'w', compression=9)\n"
        "except NotImplementedError:\n"
        "    print('refused')\n"
    )
    result = run_code(program, check=True)
    assert result.stdout == "refused\n"
    assert zipfile.ZIP_DEFLATED == DEFLATED
