"""A member's data: as it lies in the archive, and decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rear.core.storage import COPY_CHUNK_BYTES, Storage
from rear.errors import ZipFormatError
from rear.zip.codecs import crc32, decode


def _ends_early(missing: int) -> Exception:
    return ZipFormatError(f"the file ends {missing:,} bytes early")


def raw_bytes(
    descriptor: int, start: int, length: int, *, cut: Callable[[int], Exception] = _ends_early, storage: Storage
) -> Iterator[bytes]:
    """Yield a range of a file in pieces.

    Args:
        descriptor: the open file.
        start: where the range begins.
        length: of the range, in bytes.
        cut: makes the error that is raised where the file ends within the range, of the number of missing bytes.
        storage: the file system.

    Raises:
        ZipFormatError: the file ends within the range, and ``cut`` makes no other error of it.
    """
    end = start + length
    while start < end:
        data = storage.read(descriptor, min(COPY_CHUNK_BYTES, end - start), start)
        if not data:
            raise cut(end - start)
        start += len(data)
        yield data


def member_content(
    descriptor: int, data_offset: int, compressed_size: int, method: int, *, storage: Storage
) -> Iterator[bytes]:
    """Yield the plain content of a member.

    Raises:
        ZipFormatError: the data is malformed or ends early.
        UnsupportedError: no codec for its method.
    """
    return decode(method, raw_bytes(descriptor, data_offset, compressed_size, storage=storage))


def has_content(
    descriptor: int, data_offset: int, compressed_size: int, method: int, *, size: int, crc: int, storage: Storage
) -> bool:
    """Whether the data of a member decodes to exactly ``size`` bytes with that CRC-32.

    Raises:
        ZipFormatError: the data is malformed or ends early.
        UnsupportedError: no codec for its method.
    """
    pieces = member_content(descriptor, data_offset, compressed_size, method, storage=storage)
    return size_and_crc(pieces, size) == (size, crc)


def size_and_crc(pieces: Iterable[bytes], limit: int) -> tuple[int, int]:
    """Return length and CRC-32 of plain bytes; of those that are more than ``limit``, as far as they were read."""
    size = crc = 0
    for piece in pieces:
        size += len(piece)
        crc = crc32(piece, crc)
        if size > limit:
            break
    return size, crc
