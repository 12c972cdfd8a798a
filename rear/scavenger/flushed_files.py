"""Flushed files whose writers died before they closed them: which of their pairs count, and how far.

The member is *partial*: its metadata say so. See ``rear.worker.flushed_file`` for how its parts come about,
``rear.journal.flushed_parts`` for what is whole of them, ``rear.scavenger.rescue`` for where the member is until it is
merged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Final, Literal

from rear.core.liveness import is_running, process_of
from rear.core.records import Append, File, Pair
from rear.core.storage import Storage, opened
from rear.events import Event, Lost, Partial, Torn
from rear.journal.flushed_parts import Joined, join_parts
from rear.scavenger.claims import ClaimedPair, Claims
from rear.scavenger.lost_and_found import LostAndFound, item_name
from rear.scavenger.plan import Candidate
from rear.scavenger.rescue import Rescue
from rear.zip.codecs import STREAM_ENDS, decode
from rear.zip.member_data import raw_bytes

PartialPolicy = Literal["keep", "drop"]
MAY_COME_BACK: Final = "; its worker cannot be seen, and may still have it: if it comes back, it writes the file again"
"""Ends the reason why a member of a stale pair is torn or lost."""


class FlushedFiles:
    """The parts of all files that the pairs of one round hold."""

    def __init__(
        self,
        batch: Iterable[ClaimedPair],
        claims: Claims,
        lost_and_found: LostAndFound,
        *,
        partial: PartialPolicy,
        storage: Storage,
    ) -> None:
        self._claims = claims
        self._lost_and_found = lost_and_found
        self._partial = partial
        self._storage = storage
        self._joined: dict[Pair, Joined] = {}
        #: A file whose pair had failed has several.
        self._pairs: dict[tuple[str, str, int], list[ClaimedPair]] = {}
        for claimed in batch:
            if claimed.journal.file is not None:
                self._pairs.setdefault(_key(claimed, claimed.journal.file), []).append(claimed)

    def settle(self, flushed: Append, reason: str, rescue: Rescue) -> Iterator[Candidate | Event]:
        """Make a member of what is whole of a file that was flushed, or keep that in lost+found.

        ``flushed`` is the file as far as its journal says that it was flushed, ``reason`` why there is no more of it.

        Raises:
            UnsupportedError: the parts cannot be decoded here.
            OSError: journal or temp archive cannot be read, or something cannot be written.
        """
        claimed, descriptor = rescue.claimed, rescue.source
        joined, bad_parts = self._join(claimed, descriptor)
        elsewhere = self._counts_elsewhere(claimed)
        if elsewhere is not None:
            self._claims.note(claimed, [flushed.sequence], target=elsewhere, intent="")
            return
        if bad_parts:
            yield self._put_bad_parts(claimed, flushed, joined, bad_parts, descriptor)
        if joined is None or descriptor is None:
            return
        told = f"{reason}; what it flushed is kept, {joined.size:,} bytes"
        item = None
        if self._partial == "drop":
            note = {"reason": told, "pair": claimed.name, **joined._asdict()}
            content = _content_of(joined, descriptor, self._storage)
            item = self._lost_and_found.put_content(
                item_name(claimed.pair, joined.sequence, joined.name),
                content,
                note,
                source=descriptor,
            )
            self._claims.note(claimed, [joined.sequence], target=item, intent="")
        else:
            yield rescue.from_parts(joined)
        yield Partial(joined.archive, joined.name, claimed.name, joined.size, told, item)

    def _put_bad_parts(
        self, claimed: ClaimedPair, flushed: Append, joined: Append | None, bad_parts: int, descriptor: int | None
    ) -> Event:
        """Keep what is not whole of a file; all of it when ``joined`` is none."""
        # A process that dies on a host that lives leaves one unfinished flush at most.
        is_torn = bad_parts == 1 and is_running(process_of(claimed.opened)) is False
        size, start = (0, flushed.data_offset) if joined is None else (joined.size, joined.offset + joined.length)
        length = flushed.offset + flushed.length - start
        reason = f"{bad_parts:,} of the parts that were flushed, from byte {size:,} of it on, are not whole"
        if claimed.state == "stale":
            reason += MAY_COME_BACK
        note = {"reason": reason, "pair": claimed.name, **flushed._asdict()}
        item = self._lost_and_found.put_bytes(
            item_name(claimed.pair, flushed.sequence), descriptor, start, length, note
        )
        if joined is None:
            self._claims.note(claimed, [flushed.sequence], target=item, intent="")
        return (Torn if is_torn else Lost)(
            flushed.archive, flushed.name, claimed.name, None, start, length, reason, item
        )

    def _join(self, claimed: ClaimedPair, descriptor: int | None) -> Joined:
        file = claimed.journal.file
        assert file is not None
        if claimed.pair not in self._joined:
            path = claimed.folder / f"{claimed.pair.stem}.journal"
            self._joined[claimed.pair] = join_parts(file, path, descriptor, storage=self._storage)
        return self._joined[claimed.pair]

    def _counts_elsewhere(self, claimed: ClaimedPair) -> str | None:
        """Tell where a file counts instead: a pair has all that an earlier one had, or nothing."""
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
            size = self._join(claimed, descriptor).size
        return size >= file.repeated_size and file.sequence in claimed.journal.appends


def _content_of(append: Append, descriptor: int, storage: Storage) -> Iterator[bytes]:
    data = raw_bytes(descriptor, append.data_offset, append.compressed_size, storage=storage)
    return decode(append.method, itertools.chain(data, [STREAM_ENDS[append.method]]))


def _key(claimed: ClaimedPair, file: File) -> tuple[str, str, int]:
    return claimed.pair.host, claimed.pair.worker, file.first_sequence


def _is_given_up(claimed: ClaimedPair) -> bool:
    file = claimed.journal.file
    return file is not None and file.sequence in claimed.journal.aborted
