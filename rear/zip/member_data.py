"""A member's data: as it lies in the archive, and decoded."""

from __future__ import annotations

from collections.abc import Iterator

from rear.core.storage import COPY_CHUNK_BYTES, Storage
from rear.errors import ZipFormatError
from rear.zip.codecs import decode


def raw_bytes(descriptor: int, start: int, length: int, *, storage: Storage) -> Iterator[bytes]:
    """Yield a range of a file in pieces.

    Raises:
        ZipFormatError: the file ends within it.
    """
    end = start + length
    while start < end:
        data = storage.read(descriptor, min(COPY_CHUNK_BYTES, end - start), start)
        if not data:
            raise ZipFormatError(f"the file ends {end - start:,} bytes early")
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
