"""Compression methods of the Zip format (APPNOTE 4.4.5) and the CRC-32 (4.4.7). No other module knows a compressor.

Deflate and the CRC come from ISA-L, several times faster than zlib at about its first level.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, cast

from isal import igzip_lib, isal_zlib

from rear.errors import RearError, UnsupportedError, UsageError, ZipFormatError

STORED: Final = 0
DEFLATED: Final = 8
DEFLATE64: Final = 9
BZIP2: Final = 12
LZMA: Final = 14
ZSTANDARD: Final = 93

METHOD_NAMES: Final = {
    STORED: "stored",
    DEFLATED: "deflate",
    DEFLATE64: "deflate64",
    BZIP2: "bzip2",
    LZMA: "lzma",
    ZSTANDARD: "zstd",
}
_WRITABLE: Final = {"stored": STORED, "deflate": DEFLATED, "zstd": ZSTANDARD}
PIECE_BYTES: Final = 1 << 20
"""Decoders hand out about this much at a time."""
LZMA_DICTIONARY_LIMIT_BYTES: Final = 256 << 20
"""A forged header must not make us take gigabytes: `xz -9e` uses 64 MiB."""
_DEFLATE64_FEED_BYTES: Final = 1 << 10  # its decoder knows no output limit, and can expand 30,000 times
_ZSTANDARD_FEED_BYTES: Final = 1 << 9  # four bytes may stand for 128 KiB
_DEFLATE_LEVEL: Final = 1
_ZSTANDARD_LEVEL: Final = 3

crc32 = isal_zlib.crc32
#: The stubs call this exception class an instance.
_ISAL_ERROR: Final = cast(type[Exception], isal_zlib.error)


class Compressor(Protocol):
    """Turns plain bytes into one raw stream of a method."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Return what is ready of the compressed stream."""

    def flush(self) -> bytes:
        """End the stream and return the rest of it."""


def method_of(name: str) -> int:
    """Return the number of the method that users call ``stored``, ``deflate`` or ``zstd``.

    Raises:
        UsageError: another name.
        UnsupportedError: zstd without the extra that brings it.
    """
    try:
        method = _WRITABLE[name]
    except (KeyError, TypeError):
        raise UsageError(f"compression {name!r} is none of {', '.join(map(repr, _WRITABLE))}") from None
    if method == ZSTANDARD:
        _zstandard()
    return method


def compress(data: bytes | memoryview, method: int) -> bytes:
    """Return ``data`` as one raw stream of ``method``."""
    if method == DEFLATED:
        return igzip_lib.compress(data, _DEFLATE_LEVEL, igzip_lib.COMP_DEFLATE)
    stream = compressor(method)
    return stream.compress(data) + stream.flush()


def compressor(method: int) -> Compressor:
    """Return a compressor for a stream of unknown length.

    Raises:
        UnsupportedError: rear does not write this method.
    """
    if method == DEFLATED:
        return isal_zlib.compressobj(_DEFLATE_LEVEL, wbits=-isal_zlib.MAX_WBITS)
    if method == ZSTANDARD:
        stream: Compressor = _zstandard().ZstdCompressor(level=_ZSTANDARD_LEVEL).compressobj()
        return stream
    raise UnsupportedError(f"rear does not write compression method {method} ({METHOD_NAMES.get(method, 'unknown')})")


STREAM_ENDS: Final = {STORED: b"", DEFLATED: b"\x03\x00", ZSTANDARD: b"\x01\x00\x00"}
"""What ends a stream that `PartCompressor` has begun, after any of its parts: an empty last block (RFC 1951, 3.2.3;
RFC 8878, 3.1.1.2)."""


class PartCompressor:
    """Compresses a stream in parts, each of which ends at a byte and decodes as soon as those before it are there.

    Args:
        method: one of `STREAM_ENDS`.

    Raises:
        UnsupportedError: rear does not write this method.
    """

    def __init__(self, method: int) -> None:
        self._stream: Any = None if method == STORED else compressor(method)
        self._mode = isal_zlib.Z_SYNC_FLUSH
        if method == ZSTANDARD:
            self._mode = _zstandard().COMPRESSOBJ_FLUSH_BLOCK

    def compress(self, data: bytes) -> bytes:
        """Return the next part of the stream."""
        if self._stream is None:
            return data
        part: bytes = self._stream.compress(data) + self._stream.flush(self._mode)
        return part


def decode(method: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the plain bytes of a member in pieces of at most about `PIECE_BYTES`, however far its data expands.

    Args:
        method: compression method (APPNOTE 4.4.5).
        chunks: the member's compressed data, in order and nothing else.

    Raises:
        ZipFormatError: the stream is malformed, ends early, or is followed by other bytes. Zstandard and LZMA streams
            that end early may pass, and so may a few bytes after a Deflate64 or Zstandard stream, whose decoders do not
            tell: whoever decodes compares size and CRC.
        UnsupportedError: no codec for the method is installed.
    """
    if method == STORED:
        return iter(chunks)
    if method == ZSTANDARD:
        return _decode_zstandard(chunks)
    if method == DEFLATE64:
        return _decode_deflate64(chunks)
    if method in (DEFLATED, BZIP2, LZMA):
        return _decode_incrementally(method, chunks)
    raise UnsupportedError(f"no codec for compression method {method} ({METHOD_NAMES.get(method, 'unknown')})")


class _Decompressor(Protocol):
    # bz2, lzma and ISA-L agree on these.
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _decompressor(method: int, head: bytes) -> tuple[_Decompressor, bytes]:
    if method == DEFLATED:
        return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE), head
    if method == BZIP2:
        import bz2

        return bz2.BZ2Decompressor(), head
    import lzma

    # APPNOTE 5.8.8: two bytes of version, two of properties length, the properties, the raw stream.
    length = int.from_bytes(head[2:4], "little")
    if length != 5 or len(head) < 4 + length:
        raise ZipFormatError(f"LZMA properties of {length} bytes instead of 5")
    # Properties as in the .lzma format: (pb * 5 + lp) * 9 + lc, then the dictionary size.
    packed = head[4]
    if packed >= 9 * 5 * 5:
        raise ZipFormatError(f"impossible LZMA properties {packed:#x}")
    # Few streams need as much as they announce, and a damaged field announces anything.
    dictionary_bytes = min(max(int.from_bytes(head[5:9], "little"), 4096), LZMA_DICTIONARY_LIMIT_BYTES)
    lzma_filter = {
        "id": lzma.FILTER_LZMA1,
        "lc": packed % 9,
        "lp": packed // 9 % 5,
        "pb": packed // 45,
        "dict_size": dictionary_bytes,
    }
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[lzma_filter]), head[9:]


def _lzma_failure(head: bytes, error: Exception) -> RearError:
    """Return what is to be raised for a stream that does not decode."""
    announced = int.from_bytes(head[5:9], "little")
    if announced > LZMA_DICTIONARY_LIMIT_BYTES:
        return UnsupportedError(
            f"an LZMA dictionary of {announced:,} bytes is announced, {LZMA_DICTIONARY_LIMIT_BYTES:,} are not enough "
            "or the data is damaged"
        )
    return ZipFormatError(f"malformed lzma stream: {error}")


def _decode_incrementally(method: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    source = iter(chunks)
    head = b""
    while len(head) < 9:
        chunk = next(source, b"")
        if not chunk:
            break
        head += chunk
    try:
        stream, data = _decompressor(method, head)
        while True:
            plain = stream.decompress(data, PIECE_BYTES)
            data = b""
            if plain:
                yield plain
            if stream.eof:
                break
            if stream.needs_input:
                data = next(source, b"")
                if not data:
                    # A raw LZMA stream need not carry an end mark (APPNOTE 4.4.4, bit 1): size and CRC decide.
                    if method == LZMA:
                        return
                    raise ZipFormatError(f"the {METHOD_NAMES[method]} stream ends early")
            elif not plain:
                raise ZipFormatError(f"the {METHOD_NAMES[method]} stream makes no progress")
    except (_ISAL_ERROR, OSError, ValueError, EOFError) as error:
        if isinstance(error, ZipFormatError):
            raise
        raise ZipFormatError(f"malformed {METHOD_NAMES[method]} stream: {error}") from error
    except Exception as error:
        # lzma.LZMAError derives from Exception alone, and lzma is not imported unless it is needed.
        if type(error).__name__ != "LZMAError":
            raise
        raise _lzma_failure(head, error) from error
    if stream.unused_data or next(source, b""):
        raise ZipFormatError(f"bytes follow the end of the {METHOD_NAMES[method]} stream")


class StreamDecoder:
    """Decodes one stream that ends by itself, wherever that is, and keeps what came before damage.

    A stored member is no such stream. An LZMA stream without end mark never ends.

    Args:
        method: compression method (APPNOTE 4.4.5).

    Raises:
        UnsupportedError: no codec for the method is installed.
    """

    def __init__(self, method: int) -> None:
        self._method = method
        self._head = b""
        self._stream: Any = None
        #: Feed at most this much at a time: some decoders know no limit of output.
        self.feed_bytes = {DEFLATE64: _DEFLATE64_FEED_BYTES, ZSTANDARD: _ZSTANDARD_FEED_BYTES}.get(method, 1 << 14)
        self.ended = False
        #: How many bytes of the last input follow the end of the stream; ``None`` when the decoder does not tell.
        self.unused_bytes: int | None = 0
        if method == ZSTANDARD:
            self._stream = _zstandard().ZstdDecompressor().decompressobj()
        elif method == DEFLATE64:
            self._stream = _deflate64().Deflate64()
        elif method not in (DEFLATED, BZIP2, LZMA):
            raise UnsupportedError(f"no codec for compression method {method} ({METHOD_NAMES.get(method, 'unknown')})")

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes of the stream decode to.

        Raises:
            ZipFormatError: the stream is malformed, or needs a larger LZMA dictionary than we give it.
        """
        if self._stream is None:
            data = self._head + data
            if self._method == LZMA and len(data) < 9:
                self._head = data
                return
            with _format_errors(self._method):
                self._stream, data = _decompressor(self._method, data)
        with _format_errors(self._method):
            if self._method in (ZSTANDARD, DEFLATE64):
                plain = self._stream.decompress(data)
                self.ended = self._stream.eof
                self.unused_bytes = len(self._stream.unused_data) if self._method == ZSTANDARD else None
                if plain:
                    yield plain
                return
            while True:
                plain = self._stream.decompress(data, PIECE_BYTES)
                data = b""
                if plain:
                    yield plain
                self.ended = self._stream.eof
                if self.ended or self._stream.needs_input or not plain:
                    break
            self.unused_bytes = len(self._stream.unused_data) if self.ended else 0


def inflate(data: bytes | memoryview, size: int) -> bytes | None:
    """Return the plain bytes of a raw deflate stream that fills ``data`` and has ``size`` of them, else ``None``."""
    stream = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE)
    try:
        plain: bytes = stream.decompress(data, size + 1)
    except _ISAL_ERROR:
        return None
    return plain if stream.eof and len(plain) == size and not stream.unused_data else None


def is_whole(data: bytes | memoryview, method: int, size: int, crc: int) -> bool:
    """Whether the data of a small member is beyond doubt what it should be; false, too, where `decode` has to tell.

    Args:
        data: all of the compressed data.
        method: compression method.
        size: length of the plain bytes.
        crc: their CRC-32.
    """
    if method == DEFLATED:
        plain = inflate(data, size)
        return plain is not None and crc32(plain) == crc
    return method == STORED and len(data) == size and crc32(data) == crc


@contextmanager
def _format_errors(method: int) -> Iterator[None]:
    """Turn what decoders raise into `ZipFormatError`."""
    try:
        yield
    except RearError:
        raise
    except Exception as error:
        # LZMAError and ZstdError derive from Exception alone, and their modules are imported only when needed.
        known = isinstance(error, (_ISAL_ERROR, OSError, ValueError, EOFError))
        if not known and type(error).__name__ not in ("LZMAError", "ZstdError"):
            raise
        raise ZipFormatError(f"malformed {METHOD_NAMES[method]} stream: {error}") from error


def _decode_deflate64(chunks: Iterable[bytes]) -> Iterator[bytes]:
    stream = _deflate64().Deflate64()
    for chunk in chunks:
        for start in range(0, len(chunk), _DEFLATE64_FEED_BYTES):
            if stream.eof:
                raise ZipFormatError("bytes follow the end of the deflate64 stream")
            try:
                plain = stream.decompress(chunk[start : start + _DEFLATE64_FEED_BYTES])
            except ValueError as error:
                raise ZipFormatError(f"malformed deflate64 stream: {error}") from error
            if plain:
                yield plain
    if not stream.eof:
        raise ZipFormatError("the deflate64 stream ends early")


def _decode_zstandard(chunks: Iterable[bytes]) -> Iterator[bytes]:
    module = _zstandard()
    reader = module.ZstdDecompressor().stream_reader(_ChunkFile(chunks), read_across_frames=True)
    try:
        while plain := reader.read(PIECE_BYTES):
            yield plain
    except module.ZstdError as error:
        raise ZipFormatError(f"malformed zstd stream: {error}") from error


class _ChunkFile(io.RawIOBase):
    """Lets a reader pull from an iterable of byte strings."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UnsupportedError("zstd needs the extra: pip install 'rear[zstd]'") from None
    return zstandard


def _deflate64() -> Any:
    # Importing zipfile_deflate64 makes the standard zipfile *write* stored bytes under method 9: take that patch back.
    import sys
    import zipfile

    if "zipfile_deflate64" in sys.modules:
        from zipfile_deflate64 import deflate64

        return deflate64
    check = zipfile._check_compression  # type: ignore[attr-defined]
    try:
        from zipfile_deflate64 import deflate64
    except ImportError:
        raise UnsupportedError("deflate64 needs the extra: pip install 'rear[deflate64]'") from None
    finally:
        zipfile._check_compression = check  # type: ignore[attr-defined]
    return deflate64
