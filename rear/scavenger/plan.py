"""What one merge will do, decided before a byte is written: pure, from checked members and what the final archive
holds.

A free name is found here where two members have one, and every target offset is assigned, so the copying can be done in
any order, in parallel, or twice.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, compress, count, groupby, repeat
from operator import add, is_not, itemgetter, ne, or_
from typing import Final, Literal, NamedTuple, Protocol

from rear.core.names import numbered
from rear.core.records import PARTIAL, Append, origin_of, unpacked
from rear.events import Planned
from rear.journal.intent import Move
from rear.scavenger.claims import ClaimedPair
from rear.scavenger.owners import owner_of
from rear.zip.directory import Directory
from rear.zip.headers import Member, encode_local_header, member_of

Conflict = Literal["rename", "first", "last"]
_NAMES_A_LOOKUP = 64
_Key = tuple[str, str, int]


class Candidate(NamedTuple):
    """A whole member of a claimed temp archive that is to be merged."""

    claimed: ClaimedPair
    append: Append

    @property
    def key(self) -> _Key:
        """The identity of the member: the same in each pair in which its worker wrote it again."""
        return self.claimed.pair.host, self.claimed.pair.worker, self.append.sequence

    @property
    def writer(self) -> int:
        """The user whose pair it is in: anybody may write one under the name of another's worker."""
        return owner_of(self.claimed.journal)


_new_candidate: Final = partial(tuple.__new__, Candidate)
_claimed_of: Final = itemgetter(0)
_SEQUENCE: Final = Append._fields.index("sequence")
_offset_of, _length_of, _name_of = (itemgetter(Append._fields.index(key)) for key in ("offset", "length", "name"))


def candidates_of(claimed: ClaimedPair, appends: Iterable[Append]) -> list[Candidate]:
    """Return members of one pair as candidates."""
    return list(map(_new_candidate, zip(repeat(claimed), appends)))


def by_archive(candidates: list[Candidate]) -> dict[str, list[Candidate]]:
    """Group members by the final archive for which they are."""
    archives = [append.archive for _, append in candidates]
    if archives.count(archives[0] if archives else "") == len(archives):
        return {archives[0]: candidates} if archives else {}
    grouped: dict[str, list[Candidate]] = {}
    for archive, candidate in zip(archives, candidates, strict=True):
        grouped.setdefault(archive, []).append(candidate)
    return grouped


@dataclass(frozen=True, slots=True)
class Existing:
    """A member that has the name already: in the final archive, or earlier in the same merge (then ``candidate``)."""

    crc: int
    size: int
    is_plain_file: bool
    target_start: int
    target_end: int
    key: tuple[str | None, str | None, int | None]
    candidate: Candidate | None = None
    #: It was flushed, and its writer was taken for dead before it closed it.
    is_partial: bool = False


class Names(Protocol):
    """Answers which names of a final archive are taken."""

    def find(self, names: Iterable[str], /) -> dict[str, Existing]:
        """Return those of ``names`` that are taken."""


class Placement(NamedTuple):
    """A member that will be copied: under which name, and where."""

    candidate: Candidate
    name: str
    target_start: int
    target_length: int
    header: bytes | None

    @property
    def member(self) -> Member:
        """What the final archive's directory says of it."""
        return member_of(self.candidate.append, self.name)


_new_placement: Final = partial(tuple.__new__, Placement)
_new_move: Final = partial(tuple.__new__, Move)


class RangeCopy(NamedTuple):
    """Bytes of a temp archive that are copied as they are."""

    claimed: ClaimedPair
    source_start: int
    target_start: int
    length: int


class Aside(NamedTuple):
    """A member that the conflict policy does not let in."""

    candidate: Candidate
    name: str
    reason: str


class Replaced(NamedTuple):
    """A member of the final archive that gives way: its directory entry goes, its bytes stay and go to lost+found.

    Not to lost+found when all of it is in the member that takes its place.
    """

    name: str
    existing: Existing
    is_contained: bool = False


@dataclass(slots=True)
class MergePlan:
    """One merge into one final archive."""

    archive: str
    old: Directory | None
    placements: list[Placement]
    ranges: list[RangeCopy]
    duplicates: list[Move]
    aside: list[Aside]
    replaced: list[Replaced]
    renamed: list[Placement]
    target_end: int

    @property
    def target_start(self) -> int:
        """Where the first new byte goes: where the old directory began."""
        return self.old.offset if self.old else 0

    @property
    def prefix(self) -> int:
        """What recorded offsets count from."""
        return self.old.prefix if self.old else 0

    @property
    def size_bytes(self) -> int:
        """Bytes that will be added before the directory."""
        return self.target_end - self.target_start

    def moves(self) -> list[Move]:
        """What the intent has to say, by temp archive."""
        moves = [
            (claimed.name, append[_SEQUENCE], name, start, start + length)
            for (claimed, append), name, start, length, _ in self.placements
        ]
        return sorted([*map(_new_move, moves), *self.duplicates])


def make_plan(
    archive: str,
    old: Directory | None,
    candidates: list[Candidate],
    *,
    names: Names,
    same_content: Callable[[Candidate, Existing], bool],
    on_conflict: Conflict,
    begins_alike: Callable[[Candidate, Existing], bool] = lambda candidate, existing: False,
    is_copy: Callable[[Candidate, Existing], bool] | None = None,
    may_replace: Callable[[Candidate], bool] = lambda candidate: False,
) -> MergePlan:
    """Decide names and offsets of a merge.

    Args:
        archive: the final archive, relative to the base.
        old: where its directory is; ``None`` when it does not exist yet.
        candidates: whole members for it; of one worker in the order of their sequence numbers.
        names: which names the archive has.
        same_content: compares a candidate with a member of equal size and CRC, byte by byte.
        on_conflict: policy for members of one name and different content.
        begins_alike: compares a candidate with a member as far as the shorter one goes, byte by byte.
        is_copy: compares it with a member of the same identity; ``same_content`` if it is not given.
        may_replace: whether who wrote a candidate could replace the archive with bare hands.
    """
    plan = MergePlan(archive, old, [], [], [], [], [], [], old.offset if old else 0)
    resolver = _Resolver(plan, names, same_content, begins_alike, is_copy or same_content, may_replace, on_conflict)
    wanted = dict(zip([append.name for _, append in candidates], candidates, strict=True))
    resolver.ask(wanted)
    if len(wanted) == len(candidates) and not resolver.known and _are_distinct(candidates):
        # Nearly always: no two of one name, and none of a name that is taken.
        resolver.accepted = wanted
    else:
        for candidate in candidates:
            resolver.take(candidate)
    _assign_offsets(plan, resolver.accepted)
    plan.duplicates = [
        Move(candidate.claimed.name, candidate.append.sequence, name, 0, 0) for candidate, name in resolver.duplicates
    ]
    return plan


def sequences_of(candidates: Iterable[Candidate]) -> list[tuple[ClaimedPair, list[int]]]:
    """Return the sequence numbers of members by the pair that holds them."""
    sequences: dict[str, tuple[ClaimedPair, list[int]]] = {}
    for claimed, group in groupby(candidates, _claimed_of):
        sequences.setdefault(claimed.name, (claimed, []))[1].extend([append.sequence for _, append in group])
    return list(sequences.values())


def _are_distinct(candidates: list[Candidate]) -> bool:
    """Whether no two candidates are one member, from two pairs of its worker."""
    by_worker: dict[tuple[str, str], list[int]] = {}
    for claimed, sequences in sequences_of(candidates):
        by_worker.setdefault((claimed.pair.host, claimed.pair.worker), []).extend(sequences)
    return all(len(set(sequences)) == len(sequences) for sequences in by_worker.values())


class _Resolver:
    """Decides under which name each candidate goes, if at all."""

    def __init__(
        self,
        plan: MergePlan,
        names: Names,
        same_content: Callable[[Candidate, Existing], bool],
        begins_alike: Callable[[Candidate, Existing], bool],
        is_copy: Callable[[Candidate, Existing], bool],
        may_replace: Callable[[Candidate], bool],
        on_conflict: Conflict,
    ) -> None:
        #: A candidate stands for what it will be: most are never asked for.
        self.known: dict[str, Existing | Candidate] = {}
        self.accepted: dict[str, Candidate] = {}
        self.duplicates: list[tuple[Candidate, str]] = []
        self._plan = plan
        self._names = names
        self._same_content = same_content
        self._begins_alike = begins_alike
        self._is_copy = is_copy
        self._may_replace = may_replace
        self._on_conflict = on_conflict
        #: By name: the number to go on with, and who has those before it, by CRC-32 and size.
        self._next_number: dict[str, int] = {}
        self._numbered: dict[str, dict[tuple[int, int], list[str]]] = {}
        self._asked: set[str] = set()
        #: By identity and name as it was written, which second copies share, as they do their writer: the name it got.
        self._placed: dict[tuple[_Key, str], str] = {}

    def ask(self, names: Iterable[str]) -> None:
        """Find out which names the archive has."""
        new = [name for name in names if name not in self._asked]
        self._asked.update(new)
        self.known.update(self._names.find(new))

    def take(self, candidate: Candidate) -> None:
        name = candidate.append.name
        placed = self._placed.get((candidate.key, name))
        first = self._find(placed) if placed is not None else None
        if placed is not None and first is not None and self._is_copy_of_one(candidate, first):
            # Its temp archive had failed, and it is in a later one too; the first copy may have got another name.
            self.duplicates.append((candidate, placed))
            return
        existing = self._find(name)
        if existing is None:
            self._accept(candidate, name)
        elif self._takes_up(candidate, name, existing):
            return
        elif self._is_same(candidate, existing):
            self.duplicates.append((candidate, name))
        elif self._on_conflict == "first":
            self._plan.aside.append(Aside(candidate, name, "another member has that name, and the first one is kept"))
        elif self._on_conflict == "last" and not _is_later(existing, candidate):
            self._replace(candidate, name, existing)
        elif self._on_conflict == "last":
            self._plan.aside.append(
                Aside(candidate, name, "its worker wrote that name again later, and the last one is kept")
            )
        else:
            self._rename(candidate, name)

    def _takes_up(self, candidate: Candidate, name: str, existing: Existing) -> bool:
        """Make one member of a file whose writer came back after it was taken for dead, where that is proven."""
        if not _is_of_one_file(existing, candidate) or not self._begins_alike(candidate, existing):
            return False
        append = candidate.append
        is_partial = (unpacked(append.metadata) or {}).get(PARTIAL) is True
        if is_partial and append.size <= existing.size:
            # The file went on in a later pair, which was merged before; or what came later was lost with the power.
            self.duplicates.append((candidate, name))
        elif existing.is_partial and append.size >= existing.size and self._may_replace(candidate):
            self._plan.replaced.append(Replaced(name, existing, is_contained=True))
            self._accept(candidate, name)
        else:
            # It was cut, and closed; or somebody else says that it is his file, and goes on with it as he likes.
            return False
        return True

    def _find(self, name: str) -> Existing | None:
        existing = self.known.get(name)
        if not isinstance(existing, Candidate):
            return existing
        append = existing.append
        return Existing(
            append.crc,
            append.size,
            stat.S_ISREG(append.mode),
            append.offset,
            append.offset + append.length,
            existing.key,
            existing,
        )

    def _accept(self, candidate: Candidate, name: str) -> None:
        self.accepted[name] = self.known[name] = candidate
        self._placed[candidate.key, candidate.append.name] = name

    def _is_same(self, candidate: Candidate, existing: Existing) -> bool:
        if existing.key == candidate.key and self._is_copy_of_one(candidate, existing):
            return True
        append = candidate.append
        if (existing.crc, existing.size, existing.is_plain_file) != (
            append.crc,
            append.size,
            stat.S_ISREG(append.mode),
        ):
            return False
        return self._same_content(candidate, existing)

    def _is_copy_of_one(self, candidate: Candidate, existing: Existing) -> bool:
        return _may_be_of(existing, candidate.writer) and self._is_copy(candidate, existing)

    def _replace(self, candidate: Candidate, name: str, existing: Existing) -> None:
        if existing.candidate is not None:
            del self.accepted[name]
            del self._placed[existing.candidate.key, existing.candidate.append.name]
            self._plan.aside.append(
                Aside(existing.candidate, name, "a later member has that name, and the last one is kept")
            )
        else:
            self._plan.replaced.append(Replaced(name, existing))
        self._accept(candidate, name)

    def _rename(self, candidate: Candidate, name: str) -> None:
        append, numbered_before = candidate.append, self._numbered.setdefault(name, {})
        for new_name in numbered_before.get((append.crc, append.size), ()):
            existing = self._find(new_name)
            if existing is not None and self._is_same(candidate, existing):
                self.duplicates.append((candidate, new_name))
                return
        for number in count(self._next_number.get(name, 1)):
            new_name = numbered(name, number)
            if new_name not in self._asked:
                self.ask(numbered(name, further) for further in range(number, number + _NAMES_A_LOOKUP))
            existing = self._find(new_name)
            self._next_number[name] = number + 1
            seen = existing if existing is not None else append
            numbered_before.setdefault((seen.crc, seen.size), []).append(new_name)
            if existing is None:
                self._accept(candidate, new_name)
                return
            if self._is_same(candidate, existing):
                self.duplicates.append((candidate, new_name))
                return
        raise AssertionError("numbers do not end")


def _is_of_one_file(existing: Existing, candidate: Candidate) -> bool:
    """Whether ``existing`` is what was flushed of this very file before its writer, taken for dead, came back; or what
    he made of it then, and ``candidate`` what was flushed.
    """
    file, (host, worker, sequence) = candidate.claimed.journal.file, existing.key
    if file is None or file.sequence != candidate.append.sequence or sequence is None:
        return False
    if not _may_be_of(existing, candidate.writer):
        return False
    # A file gets a new number with each new pair.
    is_earlier = existing.is_partial and file.first_sequence <= sequence <= file.sequence
    return (host, worker) == candidate.key[:2] and (is_earlier or sequence > file.sequence)


def _may_be_of(existing: Existing, writer: int) -> bool:
    """Whether a user may have written what has the name: of what is in the archive, nobody can tell any more."""
    return existing.candidate is None or existing.candidate.writer == writer


def _is_later(existing: Existing, candidate: Candidate) -> bool:
    """Whether one worker wrote ``existing`` after ``candidate``, which comes late from a pair that had failed."""
    host, worker, sequence = existing.key
    return (host, worker) == candidate.key[:2] and sequence is not None and sequence > candidate.append.sequence


def _assign_offsets(plan: MergePlan, accepted: dict[str, Candidate]) -> None:
    """Lay the members out one after the other; neighbours that need no new header become one range."""
    candidates, names = list(accepted.values()), tuple(accepted)
    claimed, appends = list(map(itemgetter(0), candidates)), list(map(itemgetter(1), candidates))
    sources, lengths = list(map(_offset_of, appends)), list(map(_length_of, appends))
    source_ends = list(map(add, sources, lengths))
    headers: dict[int, bytes] = {}
    for number in compress(range(len(names)), map(ne, names, map(_name_of, appends))):
        headers[number] = header = _header(candidates[number], names[number])
        append = appends[number]
        sources[number], lengths[number] = append.data_offset, len(header) + append.compressed_size
    starts = list(accumulate(lengths, initial=plan.target_end))
    plan.target_end = starts.pop()
    new_headers = map(headers.get, range(len(names))) if headers else [None] * len(names)
    plan.placements = list(map(_new_placement, zip(candidates, names, starts, lengths, new_headers, strict=True)))
    plan.renamed = [plan.placements[number] for number in headers]
    # Ranges follow each other without a gap where no header comes between them. Under "last" a name moves to the
    # candidate that came last: the order of the temp archives makes the ranges long.
    is_other = map(or_, map(is_not, claimed[1:], claimed), map(ne, sources[1:], source_ends))
    firsts = sorted({*range(min(1, len(names))), *headers, *compress(count(1), is_other)})
    for first, end in zip(firsts, [*firsts[1:], len(names)], strict=False):
        source = sources[first]
        target = starts[first] + len(headers.get(first, b""))
        plan.ranges.append(RangeCopy(claimed[first], source, target, source_ends[end - 1] - source))


def _header(candidate: Candidate, name: str) -> bytes:
    append, opened = candidate.append, candidate.claimed.opened
    return encode_local_header(member_of(append, name), origin_of(opened, append))


def planned(plan: MergePlan) -> Planned:
    """Return the event that tells of a plan."""
    return Planned(
        plan.archive, len(plan.placements), plan.size_bytes, len(plan.renamed), len(plan.duplicates), len(plan.ranges)
    )
