"""The plan of a merge, for random members: nothing overlaps, nothing is forgotten, nothing is placed twice."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from bases import members, scavenge, write
from hypothesis import given, settings
from hypothesis import strategies as st

from rear.core.names import NAME_LIMIT_BYTES, numbered
from rear.core.records import Append, Open, Pair
from rear.journal.intent import Move
from rear.journal.reader import Journal
from rear.scavenger import plan as plans
from rear.scavenger.claims import ClaimedPair
from rear.scavenger.plan import Candidate, Conflict, Existing, MergePlan, make_plan
from rear.zip.directory import Directory

MODE = stat.S_IFREG | 0o644
NAMES = ("a", "a~1", "a~2", "d/b.txt", "d/b~1.txt", "dir/")
OLD = Directory(10_000, 9_000, 900, 3, 10, b"")


class File(NamedTuple):
    """A file that a worker wrote, and in which of its temp archives it did so: more than one after a failure."""

    worker: int
    name: str
    content: int
    rotations: tuple[int, ...]


class Contents:
    """What an archive has already; members of one name and content number are the same."""

    def __init__(self, taken: dict[str, tuple[int, tuple[str, str, int] | None]]) -> None:
        self.taken = taken

    def find(self, names: Iterable[str]) -> dict[str, Existing]:
        found = {}
        for name in names:
            if name in self.taken:
                content, key = self.taken[name]
                found[name] = Existing(1, content % 2 + 5, True, 100, 200, key or (None, None, None))
        return found


def claimed(worker: int, rotation: int) -> ClaimedPair:
    pair = Pair("host", f"1-{worker}", rotation)
    opened = Open(1, "host", pair.worker, rotation, 7, 1, 1, "boot", "ns", 0, 60.0, 0)
    journal = Journal(opened=opened)
    journal.status = os.stat(os.curdir)
    return ClaimedPair(pair, Path("claims/host"), journal, "closed")


def candidates_of(files: list[File]) -> list[Candidate]:
    """Lay the files out in temp archives, in the order of worker, rotation and sequence number, as a scavenge does."""
    found = []
    for worker in {file.worker: None for file in files}:
        for rotation in range(3):
            pair = claimed(worker, rotation)
            offset = 0
            for sequence, file in enumerate(files):
                if file.worker == worker and rotation in file.rotations:
                    # Two sizes and one CRC: most comparisons have to look at the content itself.
                    size = file.content % 2 + 5
                    length = 50 + size
                    append = Append(
                        sequence, None, 0, size, offset, length, "ar.zip", file.name, 0, 1, size, size, 0, MODE
                    )
                    found.append(Candidate(pair, append))
                    offset += length
    return found


def plan_of(files: list[File], taken: Contents, on_conflict: Conflict, old: Directory | None = OLD) -> MergePlan:
    def content_of(candidate: Candidate) -> int:
        return files[candidate.append.sequence].content

    def same_content(candidate: Candidate, existing: Existing) -> bool:
        if existing.candidate is not None:
            return content_of(existing.candidate) == content_of(candidate)
        content, _ = next(value for name, value in taken.taken.items() if taken.find([name])[name] == existing)
        return content == content_of(candidate)

    return make_plan(
        "ar.zip", old, candidates_of(files), names=taken, same_content=same_content, on_conflict=on_conflict
    )


files = st.lists(
    st.builds(
        File,
        worker=st.integers(0, 1),
        name=st.sampled_from(NAMES),
        content=st.integers(0, 3),
        rotations=st.sets(st.integers(0, 2), min_size=1).map(lambda found: tuple(sorted(found))),
    ),
    max_size=8,
)
archives = st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(4, 7), st.none()), max_size=3)
policies = st.sampled_from(["rename", "first", "last"])


@given(files=files, taken=archives, on_conflict=policies, is_new=st.booleans())
@settings(max_examples=400, deadline=None)
def test_every_candidate_has_one_place(
    files: list[File], taken: dict[str, tuple[int, None]], on_conflict: Conflict, is_new: bool
) -> None:
    plan = plan_of(files, Contents({} if is_new else dict(taken)), on_conflict, None if is_new else OLD)
    candidates = candidates_of(files)
    accounted = [(str(placed.candidate.claimed.pair), placed.candidate.append.sequence) for placed in plan.placements]
    accounted += [(move.pair, move.sequence) for move in plan.duplicates]
    accounted += [(str(aside.candidate.claimed.pair), aside.candidate.append.sequence) for aside in plan.aside]
    assert sorted(accounted) == sorted((str(one.claimed.pair), one.append.sequence) for one in candidates)


@given(files=files, taken=archives, on_conflict=policies, is_new=st.booleans())
@settings(max_examples=400, deadline=None)
def test_places_follow_each_other_without_gap_or_overlap(
    files: list[File], taken: dict[str, tuple[int, None]], on_conflict: Conflict, is_new: bool
) -> None:
    old = None if is_new else OLD
    plan = plan_of(files, Contents({} if is_new else dict(taken)), on_conflict, old)
    position = plan.target_start
    assert position == (old.offset if old else 0)
    for placed in plan.placements:
        assert placed.target_start == position
        position += placed.target_length
    assert position == plan.target_end
    pieces = [(one.target_start, one.length) for one in plan.ranges]
    pieces += [(placed.target_start, len(placed.header)) for placed in plan.placements if placed.header is not None]
    position = plan.target_start
    for start, length in sorted(pieces):
        assert start == position
        position += length
    assert position == plan.target_end
    assert [placed for placed in plan.placements if placed.header is not None] == plan.renamed


@given(files=files, taken=archives, on_conflict=policies)
@settings(max_examples=600, deadline=None)
def test_no_name_and_no_file_is_placed_twice(
    files: list[File], taken: dict[str, tuple[int, None]], on_conflict: Conflict
) -> None:
    plan = plan_of(files, Contents(dict(taken)), on_conflict)
    names = [placed.name for placed in plan.placements]
    assert len(set(names)) == len(names)
    assert not (set(names) & taken.keys()) - {replaced.name for replaced in plan.replaced}
    keys = [placed.candidate.key for placed in plan.placements]
    assert len(set(keys)) == len(keys)


@given(files=files, taken=archives)
@settings(max_examples=400, deadline=None)
def test_renaming_keeps_every_content(files: list[File], taken: dict[str, tuple[int, None]]) -> None:
    plan = plan_of(files, Contents(dict(taken)), "rename")
    assert plan.aside == plan.replaced == []
    kept = {files[placed.candidate.append.sequence].content for placed in plan.placements}
    assert kept >= {file.content for file in files if file.content < 4}


@given(files=files, taken=archives, on_conflict=policies)
@settings(max_examples=400, deadline=None)
def test_a_second_merge_of_the_same_members_adds_nothing(
    files: list[File], taken: dict[str, tuple[int, None]], on_conflict: Conflict
) -> None:
    plan = plan_of(files, Contents(dict(taken)), on_conflict)
    after = Contents(dict(taken))
    for placed in plan.placements:
        after.taken[placed.name] = (files[placed.candidate.append.sequence].content, placed.candidate.key)
    again = plan_of(files, after, on_conflict)
    assert again.placements == [] or on_conflict == "last"


def test_a_file_that_was_renamed_and_written_again_is_the_same_file() -> None:
    """Its worker wrote one name twice, its temp archive failed, and both files went to the next one as well."""
    written = [File(0, "a", 0, (0, 1)), File(0, "a", 1, (0, 1)), File(0, "a", 2, (0, 1))]
    plan = plan_of(written, Contents({}), "rename")
    assert [placed.name for placed in plan.placements] == ["a", "a~1", "a~2"]
    assert len(plan.duplicates) == 3


def test_a_content_that_has_a_number_already_gets_no_other_one(tmp_path: Path) -> None:
    """Not either when another member of that name, in the same merge, has gone past that number."""
    for data in (b"first", b"second"):
        write(tmp_path, {"ar.zip/a": data})
        scavenge(tmp_path)
    for data in (b"third", b"second", b"third", b"first"):
        write(tmp_path, {"ar.zip/a": data})
    scavenge(tmp_path)
    assert members(tmp_path) == {"a": b"first", "a~1": b"second", "a~2": b"third"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "a~3.txt"), ("a", "a~3"), ("d/a.tar.gz", "d/a.tar~3.gz"), (".hidden", ".hidden~3"),
        ("d/.h", "d/.h~3"), ("dir/", "dir~3/"), ("dir.d/", "dir~3.d/"), ("a.", "a~3."), ("d.x/a", "d.x/a~3"),
    ],
)  # fmt: skip
def test_numbers_go_before_the_suffix(name: str, expected: str) -> None:
    assert numbered(name, 3) == expected


@pytest.mark.parametrize("character", ["x", "ä", "\N{GRINNING FACE}"])
@pytest.mark.parametrize("suffix", ["", ".txt", "/", "." + "s" * 65_000])
def test_the_longest_names_are_cut_to_make_room(character: str, suffix: str) -> None:
    room = NAME_LIMIT_BYTES - len(suffix)
    name = character * (room // len(character.encode())) + suffix
    new = numbered(name, 12)
    assert len(name.encode()) > NAME_LIMIT_BYTES - 4
    assert len(new.encode()) <= NAME_LIMIT_BYTES
    assert "~12" in new
    assert new != name


def described(plan: MergePlan) -> list[object]:
    """Return all of a plan, with the names of the pairs instead of the pairs."""
    return [
        [(placed.candidate.claimed.name, placed.candidate.append, *placed[1:]) for placed in plan.placements],
        [(one.claimed.name, *one[1:]) for one in plan.ranges],
        [(one.candidate.append, *one[1:]) for one in plan.aside],
        [placed.name for placed in plan.renamed],
        plan.duplicates, plan.replaced, plan.target_end,
    ]  # fmt: skip


@given(files=files, taken=archives, on_conflict=policies)
@settings(max_examples=200, deadline=None)
def test_the_short_way_gives_the_same_plan(
    files: list[File], taken: dict[str, tuple[int, None]], on_conflict: Conflict
) -> None:
    # Often no name occurs twice, so that nothing has to be resolved.
    different = [file._replace(name=f"{file.name}{number}") for number, file in enumerate(files)]
    for some in (files, different):
        short = plan_of(some, Contents(dict(taken)), on_conflict)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plans, "_are_distinct", lambda candidates: False)
            assert described(plan_of(some, Contents(dict(taken)), on_conflict)) == described(short)
        assert short.moves() == sorted(
            [
                Move(
                    placed.candidate.claimed.name, placed.candidate.append.sequence, placed.name, placed.target_start,
                    placed.target_start + placed.target_length,
                )
                for placed in short.placements
            ]
            + short.duplicates
        )  # fmt: skip
        assert all(type(move) is Move for move in short.moves())


def test_members_without_conflicts_are_not_resolved_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Candidate] = []
    monkeypatch.setattr(plans._Resolver, "take", lambda self, candidate: taken.append(candidate))
    plan = plan_of([File(0, f"{number}", 1, (0,)) for number in range(100)], Contents({}), "rename")
    assert len(plan.placements) == 100
    assert len(plan.ranges) == 1
    assert taken == []
