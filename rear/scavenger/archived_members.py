"""Members of pairs, found anew in their final archives: listed there, with a local header that says whose they are.

An index says where to look, and proves nothing: the local header there does, the directory that lists it, and the
content. A header alone is soon forged, with size and CRC-32: other bytes are to be had in any pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from rear.core.layout import Layout
from rear.core.names import is_named_for
from rear.core.storage import Storage, opened
from rear.errors import IndexFormatError, UnsupportedError
from rear.index.index import Index, OriginKey
from rear.scavenger.final_archive import Comparison, FinalArchive, open_final_archive
from rear.scavenger.merge_remains import header_at, is_member
from rear.scavenger.plan import Candidate, Existing
from rear.scavenger.rollover import MAY_BE_BEHIND, rolled_over_from
from rear.zip import directory as directories
from rear.zip.origin import decode_origin

MemberOfPair = tuple[str, int]
"""A member by its pair and sequence number."""
_Counts = Callable[[Candidate], bool]
_COMPARED_WITH: Final = 8
"""With so many that say to be the same member one is compared: nobody else may make that be work without end."""


class Looked(NamedTuple):
    """What was found in a final archive, and those that were rolled over from it.

    Attributes:
        found: the members that are there.
        names: which of the names looked for are taken, by whomever.
        is_there: whether the archive itself is there.
    """

    found: set[MemberOfPair]
    names: set[str]
    is_there: bool


def look_up(
    layout: Layout,
    archive: str,
    wanted: Iterable[Candidate],
    *,
    thoroughly: bool,
    counts: _Counts = lambda candidate: False,
    storage: Storage,
) -> Looked:
    """Look members up in their archive.

    Args:
        layout: the base.
        archive: path of the archive, relative to the base.
        wanted: members of any pairs.
        thoroughly: read all local headers when some are not where the index says; else only without an index.
        counts: for which of them a local header is enough; of all others the content has to be the same.
        storage: the file system.

    Raises:
        RearError: an archive is no Zip, or no path of one.
        OSError: an archive cannot be read now.
    """
    looked = Looked(set(), set(), False)
    missing = list(wanted)
    for number, name in enumerate((archive, *rolled_over_from(layout, archive, storage=storage))):
        if not missing:
            break
        index, starts = _starts_in(layout, name, {one.key for one in missing}, storage)
        is_settled = number >= MAY_BE_BEHIND
        if is_settled and starts is not None and not starts and not thoroughly:
            # Nearly always: what a crashed worker left has never been merged.
            continue
        with open_final_archive(layout, name, storage=storage, write=False) as target:
            if target.descriptor is None:
                continue
            looked = looked._replace(is_there=looked.is_there or name == archive)
            if index is not None and not is_settled and not target.is_mirrored_by(index, storage=storage):
                starts = None
            before = len(looked.found)
            search = _Search(target, missing, counts, looked.found, storage)
            search.by_index(starts or {})
            if starts is None or (thoroughly and search.is_unfinished()):
                search.by_headers(looked.names)
            if len(looked.found) > before:
                # Who wrote them may have died before he synced: what is removed on the strength of this must be kept.
                storage.sync(target.descriptor)
                storage.sync_directory(target.path.parent)
        missing = [one for one in missing if member_of_pair(one) not in looked.found]
    return looked


def member_of_pair(candidate: Candidate) -> MemberOfPair:
    """Return by what a member of a pair is told from all others, whatever it says of itself."""
    return candidate.claimed.name, candidate.append.sequence


def _starts_in(
    layout: Layout, archive: str, keys: set[OriginKey], storage: Storage
) -> tuple[Index | None, dict[OriginKey, int] | None]:
    """Return an index, and where it says that members begin; ``None`` where there is none of use."""
    try:
        index = Index.open(layout, archive, storage=storage)
        if index.segments:
            return index, {key: row.target_start for key, row in index.find_origins(keys).items()}
    except (IndexFormatError, OSError):
        pass
    return None, None


class _Search:
    """Members looked for in one archive; what is found there is added to ``found``."""

    def __init__(
        self,
        target: FinalArchive,
        wanted: list[Candidate],
        counts: _Counts,
        found: set[MemberOfPair],
        storage: Storage,
    ) -> None:
        self._target = target
        self._wanted: dict[OriginKey, list[Candidate]] = {}
        for one in wanted:
            self._wanted.setdefault(one.key, []).append(one)
        self._counts = counts
        self._found = found
        self._compare = Comparison(target, storage)
        self._compared: Counter[MemberOfPair] = Counter()
        self._storage = storage

    def is_unfinished(self) -> bool:
        """Whether some are not found."""
        return any(member_of_pair(one) not in self._found for group in self._wanted.values() for one in group)

    def by_index(self, starts: Mapping[OriginKey, int]) -> None:
        """Find those that are where the index says, and that the directory lists there."""
        there: dict[int, list[Candidate]] = {}
        for key, start in starts.items():
            there.setdefault(start, []).extend(one for one in self._wanted[key] if self._is_at(start, one))
        if any(there.values()):
            for start, name in self._listed():
                self._take(there.get(start, ()), start, name)

    def by_headers(self, names: set[str]) -> None:
        """Find those of which any listed local header says that it is theirs; add to ``names`` what is taken."""
        assert self._target.descriptor is not None
        wanted = {one.append.name for group in self._wanted.values() for one in group}
        for start, name in self._listed():
            if name in wanted:
                names.add(name)
            header, data = header_at(self._target.descriptor, start, storage=self._storage)
            origin = decode_origin(data) if header is not None else None
            if origin is not None:
                there = self._wanted.get((origin.host, origin.worker, origin.sequence), ())
                self._take([one for one in there if self._is_at(start, one)], start, name)

    def _listed(self) -> Iterator[tuple[int, str]]:
        assert self._target.descriptor is not None
        assert self._target.directory is not None
        directory = self._target.directory
        for entry in directories.entries(self._target.descriptor, directory, storage=self._storage):
            yield entry.offset + directory.prefix, entry.name

    def _is_at(self, start: int, one: Candidate) -> bool:
        assert self._target.descriptor is not None
        return is_member(self._target.descriptor, start, one.claimed, one.append, storage=self._storage)

    def _take(self, there: Iterable[Candidate], start: int, name: str) -> None:
        for one in there:
            member = member_of_pair(one)
            if member in self._found or not is_named_for(name, one.append.name):
                continue
            if self._counts(one) or self._is_copy(one, start):
                self._found.add(member)

    def _is_copy(self, one: Candidate, start: int) -> bool:
        member, append = member_of_pair(one), one.append
        self._compared[member] += 1
        if self._compared[member] > _COMPARED_WITH:
            return False
        try:
            with suppress(FileNotFoundError), opened(one.claimed.temp_archive, self._storage):
                pass
        except OSError:
            # That pair alone is refused, and no other one that waits for this archive.
            return False
        with suppress(UnsupportedError):
            return self._compare.is_copy(one, Existing(append.crc, append.size, True, start, start, one.key))
        return False
