"""Whose word counts, by owners, groups and modes alone."""

import os
import stat

import pytest

from rear.core.trust import counts_for, is_private, is_trusted

ME, ALICE, BOB, OWN, PROJ = os.geteuid(), 47_001, 47_002, 47_003, 47_100


def status(user: int, group: int, mode: int, *, kind: int = stat.S_IFREG) -> os.stat_result:
    return os.stat_result((kind | mode, 0, 0, 1, user, group, 0, 0, 0, 0))


def folder(user: int, group: int, mode: int) -> os.stat_result:
    return status(user, group, mode, kind=stat.S_IFDIR)


def test_private_is_what_its_owner_alone_may_write() -> None:
    assert is_private(status(ALICE, OWN, 0o644))
    assert not is_private(status(ALICE, OWN, 0o664))
    assert not is_private(status(ALICE, OWN, 0o646))


def test_trusted_are_the_caller_root_and_the_owners_named() -> None:
    assert is_trusted(status(ME, OWN, 0o644))
    assert is_trusted(status(0, OWN, 0o644))
    assert not is_trusted(status(ALICE, OWN, 0o644))
    assert not is_trusted(status(ALICE, OWN, 0o644), status(BOB, OWN, 0o644), None)
    assert is_trusted(status(ALICE, OWN, 0o644), None, status(ALICE, OWN, 0o644))


SHARED, OF_ALICE, FOR_ALL = folder(0, PROJ, 0o2775), folder(ALICE, PROJ, 0o755), folder(0, OWN, 0o777)


@pytest.mark.parametrize(
    ("evidence", "around", "target_folder", "counts"),
    [
        # In a folder of the group, what one of the group wrote counts; also what all of it could have.
        (status(BOB, PROJ, 0o644), SHARED, SHARED, True),
        (status(BOB, PROJ, 0o664), SHARED, SHARED, True),
        # Not what others could have.
        (status(BOB, PROJ, 0o666), SHARED, SHARED, False),
        (status(BOB, OWN, 0o644), SHARED, SHARED, False),
        # A folder that is open to all with setgid gives its group to files of anybody.
        (status(BOB, PROJ, 0o644), folder(0, PROJ, 0o2777), SHARED, False),
        # In a folder of one user, hers alone, and root's.
        (status(BOB, PROJ, 0o644), SHARED, OF_ALICE, False),
        (status(ALICE, PROJ, 0o644), SHARED, OF_ALICE, True),
        (status(0, PROJ, 0o644), SHARED, OF_ALICE, True),
        (status(ME, PROJ, 0o644), SHARED, OF_ALICE, True),
        (status(ALICE, PROJ, 0o664), SHARED, OF_ALICE, False),
        (status(ME, PROJ, 0o664), SHARED, OF_ALICE, False),
        # Where everybody may do everything, everybody's word counts; not where others may only add.
        (status(BOB, OWN, 0o666), FOR_ALL, FOR_ALL, True),
        (status(BOB, OWN, 0o644), FOR_ALL, folder(0, OWN, 0o1777), False),
        (status(BOB, PROJ, 0o644), SHARED, folder(0, PROJ, 0o3775), False),
    ],
)
def test_evidence_counts_when_all_who_could_have_written_it_could_have_done_it(
    evidence: os.stat_result, around: os.stat_result, target_folder: os.stat_result, counts: bool
) -> None:
    assert counts_for(evidence, around, None, target_folder) is counts


def test_who_owns_a_file_may_say_what_becomes_of_it() -> None:
    mine = status(BOB, OWN, 0o644)
    assert counts_for(mine, SHARED, status(BOB, OWN, 0o644), OF_ALICE)
    assert not counts_for(mine, SHARED, status(ALICE, OWN, 0o644), OF_ALICE)
