"""A member's bytes, compressed and checked, ready to be appended any number of times.

A worker keeps a payload until its member is proven on stable storage, because a temp archive that fails is written
again. Small payloads are held in memory; large ones in a local file without a name, or, for a picked-up file that does
not shrink, nowhere but in that file itself, which is then read again and has to be the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final, Protocol

from rear.core.source_file import SourceStamp, open_source, source_pieces, verify_unchanged, with_path
from rear.core.storage import LOCAL, Storage
from rear.errors import SourceError
from rear.zip.codecs import PIECE_BYTES, STORED, Compressor, compress, compressor, crc32

SMALLEST_COMPRESSED_BYTES: Final = 32
"""Shorter members are stored: there is nothing to gain."""
_READ_BYTES: Final = 1 << 18
_SAMPLE_BYTES: Final = 1 << 12
_NOISE_FROM_BYTES: Final = 1 << 10
_SAMPLED_FROM_BYTES: Final = 1 << 16
"""Longer data is compressed only when samples of it shrink."""


class Payload:
    """A member's bytes in memory, and what all payloads have in common.

    Attributes:
        method: compression method (APPNOTE 4.4.5).
        crc: CRC-32 of the plain bytes.
        compressed_size: how many bytes `chunks` yields.
        size: length of the plain bytes.
        data: the compressed bytes, when they are held in memory.
    """

    __slots__ = ("compressed_size", "crc", "data", "method", "size")

    def __init__(self, method: int, crc: int, compressed_size: int, size: int, data: bytes | None = None) -> None:
        self.method = method
        self.crc = crc
        self.compressed_size = compressed_size
        self.size = size
        self.data = data

    def chunks(self) -> Iterator[bytes]:
        """Yield the compressed bytes in pieces of bounded length; can be called again, also while another one runs.

        Raises:
            SourceError: the source of a pickup is read again and is not what it was. Some bytes were yielded already
                then: they must not become a member.
            OSError: the source or the spool cannot be read.
        """
        if self.data:
            yield self.data

    def close(self) -> None:
        """Free the spool file, if there is one. Idempotent; `chunks` must not be used any more."""


class _SpooledPayload(Payload):
    """Held in a local file without a name. It is read at offsets: the file position is shared with forked children."""

    __slots__ = ("_spool",)

    def __init__(self, method: int, crc: int, compressed_size: int, size: int, spool: _FileDescriptor) -> None:
        super().__init__(method, crc, compressed_size, size)
        self._spool = spool

    def chunks(self) -> Iterator[bytes]:
        return _spool_pieces(self._spool.number, self.compressed_size, PIECE_BYTES)

    def close(self) -> None:
        self._spool.close()


class _SourcePayload(Payload):
    """Held nowhere but in the picked-up file."""

    __slots__ = ("_stamp",)

    def __init__(self, crc: int, stamp: SourceStamp) -> None:
        super().__init__(STORED, crc, stamp.size, stamp.size)
        self._stamp = stamp

    def chunks(self) -> Iterator[bytes]:
        # By its path again: device and inode tell whether that leads elsewhere by now.
        descriptor, stamp = open_source(self._stamp.path, expected=self._stamp)
        try:
            crc = 0
            for piece in source_pieces(descriptor, stamp, PIECE_BYTES):
                crc = crc32(piece, crc)
                yield piece
            verify_unchanged(descriptor, stamp)
        finally:
            os.close(descriptor)
        if crc != self.crc:
            raise SourceError(f"{stamp.path} has other content than before: CRC {crc:08x}, was {self.crc:08x}")


class Ranges(Protocol):
    """A file that payloads are read from."""

    def pieces(self, start: int, length: int, /) -> Iterator[bytes]:
        """Yield the bytes of a range in pieces of bounded length."""


class SharedFile:
    """A file that payloads are read from, open until the last of them is gone."""

    def __init__(self, descriptor: int, storage: Storage) -> None:
        self._owned = _FileDescriptor(os.dup(descriptor))
        self._storage = storage

    def pieces(self, start: int, length: int) -> Iterator[bytes]:
        """Yield the bytes of a range in pieces of bounded length.

        Raises:
            OSError: it cannot be read, or ends before.
        """
        return _spool_pieces(self._owned.number, length, PIECE_BYTES, start=start, storage=self._storage)


class RangePayload(Payload):
    """Held nowhere but in a range of a file, compressed as it is to be written."""

    __slots__ = ("_file", "_start")

    def __init__(self, file: Ranges, start: int, method: int, crc: int, compressed_size: int, size: int) -> None:
        super().__init__(method, crc, compressed_size, size)
        self._file: Ranges | None = file
        self._start = start

    def chunks(self) -> Iterator[bytes]:
        if self._file is not None:
            yield from self._file.pieces(self._start, self.compressed_size)

    def close(self) -> None:
        self._file = None


class _FileDescriptor:
    """Owns a file descriptor."""

    #: Until it has one: an exception may come first.
    number = -1

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    # No ResourceWarning: a forked child drops its parent's payloads, and that is no mistake of anyone.
    __del__ = close


def open_spool(directory: str | None = None) -> int:
    """Return the descriptor of a new local file without a name, by default where ``tempfile`` puts its files."""
    import tempfile

    with tempfile.TemporaryFile(buffering=0, prefix="rear-", dir=directory) as file:
        return os.dup(file.fileno())


def _spool_pieces(
    descriptor: int, size: int, piece_size: int, *, start: int = 0, storage: Storage = LOCAL
) -> Iterator[bytes]:
    position = 0
    while position < size:
        piece = storage.read(descriptor, min(piece_size, size - position), start + position)
        if not piece:
            raise OSError(errno.EIO, f"the local spool ended after {position:,} of {size:,} bytes")
        yield piece
        position += len(piece)


def payload_of_bytes(data: bytes | bytearray | memoryview, method: int) -> Payload:
    """Return ``data`` as a payload, stored when ``method`` does not make it smaller."""
    if type(data) is not bytes:
        data = bytes(data)
    size = len(data)
    if (
        method != STORED
        and size >= SMALLEST_COMPRESSED_BYTES
        and (
            not _is_noise(data)
            if size < _SAMPLED_FROM_BYTES
            else _samples_shrink(lambda count, start: data[start : start + count], size, method)
        )
    ):
        compressed = compress(data, method)
        compressed_size = len(compressed)
        if compressed_size < size:
            return Payload(method, crc32(data), compressed_size, size, compressed)
    return Payload(STORED, crc32(data), size, size, data)


def payload_of_file(file: BinaryIO, size: int, method: int, spool_size: int, directory: str | None = None) -> Payload:
    """Return the first ``size`` bytes of a spool file as a payload, without holding them in memory.

    Args:
        file: an open file with a descriptor. It may be closed afterwards, but not changed: what does not shrink stays
            in it.
        size: its length in bytes.
        method: compression method; ``STORED`` where it gains nothing.
        spool_size: up to this many compressed bytes are held in memory, more in another spool file.
        directory: where that file goes; see `open_spool`.

    Raises:
        OSError: the file cannot be read, or is shorter than ``size``.
    """
    file.flush()
    plain = _FileDescriptor(os.dup(file.fileno()))
    try:
        squeezer = _squeezer(plain.number, size, method, spool_size, directory)
        crc, payload = _squeeze(_spool_pieces(plain.number, size, _READ_BYTES), squeezer, method)
    except BaseException:
        plain.close()
        raise
    if payload is None:
        return _SpooledPayload(STORED, crc, size, size, plain)
    plain.close()
    return payload


def payload_of_source(
    path: str,
    method: int,
    spool_size: int,
    directory: str | None = None,
    *,
    folder: int | None = None,
    expected: SourceStamp | None = None,
) -> tuple[Payload, SourceStamp]:
    """Read a picked-up file once and return its payload, and the state of the file that this is.

    Args:
        path: the file, which must not be reached by a symbolic link as the last part.
        method: compression method; ``STORED`` where it gains nothing.
        spool_size: up to this many compressed bytes are held in memory, more in a spool file.
        directory: where that file goes; see `open_spool`.
        folder: open folder in which the file is looked up by the last part of its path.
        expected: which file it has to be, and in which state.

    Raises:
        SourceError: there is no such file, it is not a regular one or not the expected one, or it changed while it was
            read.
        OSError: it cannot be read.
    """
    descriptor, stamp = open_source(path, folder=folder, expected=expected)
    try:
        if stamp.size <= min(spool_size, PIECE_BYTES):
            payload = payload_of_bytes(b"".join(source_pieces(descriptor, stamp, PIECE_BYTES)), method)
        else:
            payload = _read_source(descriptor, stamp, method, spool_size, directory)
        try:
            verify_unchanged(descriptor, stamp, folder=folder)
        except BaseException:
            payload.close()
            raise
        return payload, stamp
    finally:
        os.close(descriptor)


def _read_source(descriptor: int, stamp: SourceStamp, method: int, spool_size: int, directory: str | None) -> Payload:
    try:
        squeezer = _squeezer(descriptor, stamp.size, method, spool_size, directory)
    except OSError as error:
        raise with_path(error, stamp.path) from error
    crc, payload = _squeeze(source_pieces(descriptor, stamp, _READ_BYTES), squeezer, method)
    return _SourcePayload(crc, stamp) if payload is None else payload


def _squeeze(pieces: Iterable[bytes], squeezer: _Squeezer | None, method: int) -> tuple[int, Payload | None]:
    """Read plain bytes once; return their CRC-32, and their payload if compression makes them smaller."""
    crc = 0
    for piece in pieces:
        crc = crc32(piece, crc)
        if squeezer is not None and not squeezer.feed(piece):
            squeezer = None
    return crc, None if squeezer is None else squeezer.payload(method, crc)


def _is_noise(data: bytes) -> bool:
    """Whether short data is as random as can be: to find that out by compressing it takes longer than to compress text.

    Told by how many different bytes there are: neither too few, as in text, nor too many, as where they count up.
    """
    size = len(data)
    if size < _NOISE_FROM_BYTES or not 86 <= len(set(data[:128])) <= 116:
        return False
    at = size >> 1
    # The second sample sees that of a floating point number some bytes are always the same. And it may repeat itself.
    return 215 <= len(set(data[at : at + 512])) <= 234 and data.count(data[at : at + 16]) == 1


def _samples_shrink(read: Callable[[int, int], bytes], size: int, method: int) -> bool:
    count = max(4, min(64, size >> 16))
    stride = (size - _SAMPLE_BYTES) // (count - 1)
    sample = b"".join([read(_SAMPLE_BYTES, position * stride) for position in range(count)])
    return len(compress(sample, method)) < len(sample) - (len(sample) >> 6)


def _squeezer(descriptor: int, size: int, method: int, spool_size: int, directory: str | None) -> _Squeezer | None:
    if method == STORED or size < SMALLEST_COMPRESSED_BYTES:
        return None
    if size < _SAMPLED_FROM_BYTES or _samples_shrink(
        lambda count, start: os.pread(descriptor, count, start), size, method
    ):
        return _Squeezer(compressor(method), size, spool_size, directory)
    return None


class _Squeezer:
    """Compresses into memory, beyond ``spool_size`` into a spool file, and gives up when that is not worth while."""

    def __init__(self, stream: Compressor, size: int, spool_size: int, directory: str | None) -> None:
        self._stream = stream
        self._size = size
        self._spool_size = spool_size
        self._directory = directory
        self._parts: list[bytes] = []
        self._length = 0
        self._spool: _FileDescriptor | None = None

    def feed(self, piece: bytes) -> bool:
        """Take the next plain bytes; ``False``: given up, and everything is freed."""
        return self._keep(self._stream.compress(piece))

    def payload(self, method: int, crc: int) -> Payload | None:
        """End the stream and return the payload, or ``None`` when it is not smaller than the plain bytes."""
        if not self._keep(self._stream.flush()):
            return None
        if self._spool is not None:
            return _SpooledPayload(method, crc, self._length, self._size, self._spool)
        return Payload(method, crc, self._length, self._size, b"".join(self._parts))

    def _keep(self, data: bytes) -> bool:
        if self._length + len(data) < self._size:
            try:
                self._write(data)
                return True
            except OSError:
                # The local disk is full: the member can still be stored from where its plain bytes are.
                pass
        self._parts.clear()
        if self._spool is not None:
            self._spool.close()
        return False

    def _write(self, data: bytes) -> None:
        if self._spool is None:
            self._parts.append(data)
            if self._length + len(data) > self._spool_size:
                self._spool = _FileDescriptor(open_spool(self._directory))
                _write_parts(self._spool.number, self._parts)
                self._parts.clear()
        else:
            LOCAL.write(self._spool.number, [data], self._length)
        self._length += len(data)


def _write_parts(descriptor: int, parts: Iterable[bytes]) -> None:
    # One by one: a single call takes no more than IOV_MAX buffers.
    position = 0
    for part in parts:
        if part:
            position += LOCAL.write(descriptor, [part], position)
