"""The rows that an index has of a whole archive, read from the archive itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rear.errors import ZipFormatError
from rear.index.segment import INTEGER_LIMIT, IndexRow

if TYPE_CHECKING:
    from rear.zip.archive import Archive
    from rear.zip.headers import CentralEntry


def rows_of(archive: Archive, entries: Iterable[CentralEntry] | None = None) -> Iterator[IndexRow]:
    """Yield the rows of a whole archive, whoever made it, for `Index.rebuild`; or those of some of its entries.

    Raises:
        ZipFormatError: its central directory is damaged.
    """
    for entry in archive.entries() if entries is None else entries:
        origin, end = None, None
        start = min(archive.directory.prefix + entry.offset, INTEGER_LIMIT)
        try:
            origin = archive.origin(entry)
            end = min(start + archive.local_header(entry).length + entry.compressed_size, INTEGER_LIMIT)
        except ZipFormatError:
            # The name is taken all the same.
            pass
        size, compressed_size = min(entry.size, INTEGER_LIMIT), min(entry.compressed_size, INTEGER_LIMIT)
        where = (start, end, None, size, compressed_size, entry.method, entry.crc)
        if origin is None:
            source: tuple[str | int | None, ...] = (None, None, None)
            rest: tuple[Any, ...] = (entry.mtime_ns, entry.mode or None, None, None, None, None)
        else:
            source_start = min(origin.source_start, INTEGER_LIMIT - size)
            source = (origin.source, source_start, source_start + size)
            sequence, metadata = min(origin.sequence, INTEGER_LIMIT), origin.metadata
            rest = (origin.mtime_ns, origin.mode, origin.host, origin.worker, sequence)
            rest = (*rest, metadata if isinstance(metadata, dict) else None)
        yield IndexRow._make((entry.name, *source, *where, *rest))
