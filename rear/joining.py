"""Files that were flushed, and whose writers died: which of their pairs count, and how far.

The member is *partial*: its metadata say so. See ``rear.parts`` for how its parts come about, ``rear.partstreams`` for
what is whole of them, ``rear.rescue`` for where the member is until it is merged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Literal

from rear.check import raw_bytes
from rear.claims import ClaimedPair
from rear.codecs import STREAM_ENDS, decode
from rear.contents import opened
from rear.partstreams import Joined, join_parts
from rear.records import Append, File, Pair
from rear.storage import Storage

PartialPolicy = Literal["keep", "drop"]


class Joining:
    """The parts of all files that the pairs of one round hold.

    Args:
        batch: the pairs.
        storage: the file system.
    """

    def __init__(self, batch: Iterable[ClaimedPair], *, storage: Storage) -> None:
        self._storage = storage
        self._joined: dict[Pair, Joined] = {}
        #: A file whose pair had failed has several.
        self._pairs: dict[tuple[str, str, int], list[ClaimedPair]] = {}
        for claimed in batch:
            if claimed.journal.file is not None:
                self._pairs.setdefault(_key(claimed, claimed.journal.file), []).append(claimed)

    def join(self, claimed: ClaimedPair, descriptor: int | None) -> Joined:
        """Read all parts of a pair and return what is whole from the beginning.

        Args:
            claimed: a pair of one file.
            descriptor: its open temp archive, if there is one.

        Raises:
            UnsupportedError: the parts cannot be decoded here.
            OSError: journal or temp archive cannot be read.
        """
        if claimed.pair not in self._joined:
            self._joined[claimed.pair] = _join(claimed, descriptor, self._storage)
        return self._joined[claimed.pair]

    def counts_elsewhere(self, claimed: ClaimedPair) -> str | None:
        """Tell where a file that was joined counts instead: a pair has all that an earlier one had, or nothing.

        Raises:
            UnsupportedError, OSError: as `join`.
        """
        file = claimed.journal.file
        assert file is not None
        others = self._pairs.get(_key(claimed, file), [])
        if any(self._takes_over(other) for other in others if other.pair.rotation > claimed.pair.rotation):
            return "a later temp archive"
        has_earlier = any(other.pair.rotation < claimed.pair.rotation and not _is_given_up(other) for other in others)
        return "an earlier temp archive" if has_earlier and not self._takes_over(claimed) else None

    def _takes_over(self, claimed: ClaimedPair) -> bool:
        file = claimed.journal.file
        assert file is not None
        if _is_given_up(claimed):
            # What its writer gave up there he gave up altogether.
            return True
        with ExitStack() as stack:
            descriptor = None
            if claimed.temp_archive.name in self._storage.names(claimed.folder):
                descriptor = stack.enter_context(opened(claimed.temp_archive, self._storage))
            size = self.join(claimed, descriptor).size
        return size >= file.repeated_size and file.sequence in claimed.journal.appends


def content_of(append: Append, descriptor: int, *, storage: Storage) -> Iterator[bytes]:
    """Yield the plain content of a joined file.

    Raises:
        FormatError: the temp archive changed meanwhile.
        OSError: it cannot be read.
    """
    data = raw_bytes(descriptor, append.data_offset, append.compressed_size, storage=storage)
    return decode(append.method, itertools.chain(data, [STREAM_ENDS[append.method]]))


def _key(claimed: ClaimedPair, file: File) -> tuple[str, str, int]:
    return claimed.pair.host, claimed.pair.worker, file.first_sequence


def _is_given_up(claimed: ClaimedPair) -> bool:
    file = claimed.journal.file
    return file is not None and file.sequence in claimed.journal.aborted


def _join(claimed: ClaimedPair, descriptor: int | None, storage: Storage) -> Joined:
    file = claimed.journal.file
    assert file is not None
    return join_parts(file, claimed.folder / f"{claimed.pair.stem}.journal", descriptor, storage=storage)
