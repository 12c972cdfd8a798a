"""An index that is made of an archive for the moment, where its own one is missing, damaged or shut."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from rear.core.layout import Layout
from rear.index.index import Index, rows_of
from rear.zip.archive import Archive


@contextmanager
def scratch_index(name: str, archive: Archive) -> Iterator[Index]:
    """Make an index on local disk, which is gone at the end of the block.

    Args:
        name: path of the archive, relative to its base.
        archive: the archive, open.

    Raises:
        ZipFormatError: its directory is damaged.
        OSError: there is no room for it.
    """
    with tempfile.TemporaryDirectory(prefix="rear-index-") as folder:
        index = Index(Layout(folder), name)
        index.rebuild(rows_of(archive), archive.fingerprint)
        yield index
