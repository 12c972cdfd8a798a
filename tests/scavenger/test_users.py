"""Several users share a base: what rear makes is the group's, and what one of them shuts costs only that."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bases import check_archive, write
from users import ALICE, BOB, GROUP, UMASKS, Users, base_of_mode, users

import rear
from rear.core.layout import Layout
from rear.core.names import is_litter
from rear.diagnostics.status import look_at
from rear.fsck.base import fsck
from rear.scavenger.leader import Leadership


@pytest.fixture(scope="module")
def people() -> Iterator[Users]:
    with users() as people:
        yield people


def all_below(folder: Path) -> Iterator[Path]:
    for inner, folders, files in os.walk(folder):
        yield from (Path(inner, name) for name in folders + files)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names_in(archive: Path) -> list[str]:
    check_archive(archive)
    with zipfile.ZipFile(archive) as opened:
        assert all(opened.read(name).decode() in (name.removesuffix(".txt"), f"ar.zip/{name[:-4]}")
                   for name in opened.namelist())  # fmt: skip
        return sorted(opened.namelist())


def files(*prefixes: str, count: int = 3) -> list[str]:
    return sorted(f"{prefix}{number}.txt" for prefix in prefixes for number in range(count))


@pytest.mark.parametrize("umask", UMASKS)
@pytest.mark.parametrize("mode", [0o2775, 0o2770, 0o775])
def test_a_shared_base_works_whatever_the_umask(people: Users, mode: int, umask: int) -> None:
    with base_of_mode(mode) as base:
        prefixes = []
        for number, scavenger in enumerate((BOB, ALICE, 0)):
            for user, name in ((ALICE, "a"), (BOB, "b")):
                people.write(user, base, f"ar.zip/{name}{number}-", umask=umask)
                people.write(user, base, f"runs/{number}/ar.zip/{name}-", umask=umask)
                prefixes.append(f"{name}{number}-")
            done = people.rear(scavenger, "scavenge", base, umask=umask)
            assert done.status == 0, done.errors
        for path in all_below(base):
            wanted = 0o2070 if path.is_dir() else 0o060
            assert mode_of(path) & wanted == wanted, f"{path} {mode_of(path):o}"
            assert path.stat().st_gid == GROUP, path
            assert not mode_of(path) & 0o002 & ~(0o777 & ~umask), path
        for user in (ALICE, BOB):
            for arguments in (["fsck", "-n"], ["fsck"], ["fsck", "--deep"]):
                done = people.rear(user, *arguments, base, umask=umask)
                assert done.status == 0, done.output + done.errors
        assert names_in(base / "ar.zip") == files(*prefixes)
        assert "nothing needs any" in people.rear(ALICE, "status", base).output


@pytest.mark.parametrize("mode", [0o700, 0o755])
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_private_base_stays_private(people: Users, mode: int, umask: int) -> None:
    with base_of_mode(mode, user=ALICE) as base:
        people.write(ALICE, base, "ar.zip/a-", umask=umask)
        assert people.rear(ALICE, "scavenge", base, umask=umask).status == 0
        people.write(ALICE, base, "more/ar.zip/a-", umask=umask)
        assert people.rear(ALICE, "scavenge", base, umask=umask).status == 0
        for path in all_below(base):
            assert not mode_of(path) & umask, f"{path} {mode_of(path):o}"


def test_what_was_private_in_the_inbox_is_not_readable_for_all_in_the_archive(people: Users) -> None:
    with base_of_mode(0o755, user=ALICE) as base:
        people.write(ALICE, base, "ar.zip/a-", umask=0o077)
        assert people.rear(0, "scavenge", base, umask=0o022).status == 0
        archive = base / "ar.zip"
        assert (mode_of(archive), archive.stat().st_uid) == (0o600, ALICE)
        people.write(ALICE, base, "other.zip/a-", umask=0o027)
        assert people.rear(0, "scavenge", base, umask=0o022).status == 0
        other = base / "other.zip"
        assert (mode_of(other), other.stat().st_uid, other.stat().st_gid) == (0o640, ALICE, ALICE)


def test_an_archive_of_several_users_is_as_private_as_the_most_private_of_them(people: Users) -> None:
    with base_of_mode(0o1777) as base:
        (base / ".rear/inbox").mkdir(parents=True)
        for folder in (base / ".rear", base / ".rear/inbox"):
            folder.chmod(0o777)
        people.write(ALICE, base, "ar.zip/a-", umask=0o077)
        people.write(BOB, base, "ar.zip/b-", umask=0o022)
        assert people.rear(0, "scavenge", base, umask=0o022).status == 0
        assert (mode_of(base / "ar.zip"), (base / "ar.zip").stat().st_uid) == (0o600, 0)
        people.write(BOB, base, "bob.zip/b-", umask=0o022)
        assert people.rear(0, "scavenge", base, umask=0o022).status == 0
        assert (mode_of(base / "bob.zip"), (base / "bob.zip").stat().st_uid) == (0o644, BOB)


# ---- what one user shuts


def pair_of(base: Path, user: int) -> Path:
    [journal] = [path for path in base.glob(".rear/inbox/*/*.journal") if path.stat().st_uid == user]
    return journal


def shut_journal(journal: Path) -> Callable[[], object]:
    journal.chmod(0)
    return lambda: journal.chmod(0o660)


def shut_temp_archive(journal: Path) -> Callable[[], object]:
    archive = journal.with_suffix(".zip")
    archive.chmod(0)
    return lambda: archive.chmod(0o660)


def shut_both(journal: Path) -> Callable[[], object]:
    both = shut_journal(journal), shut_temp_archive(journal)
    return lambda: [open_again() for open_again in both]


def damage_nothing_but_put_a_folder_for_the_notes(journal: Path) -> Callable[[], object]:
    notes = journal.with_suffix(".merged")
    notes.mkdir(mode=0o700)
    return notes.rmdir


def put_a_folder_for_the_temp_archive(journal: Path) -> Callable[[], object]:
    archive, aside = journal.with_suffix(".zip"), journal.parents[3] / "aside"
    archive.rename(aside)
    archive.mkdir(mode=0o700)

    def mend() -> None:
        archive.rmdir()
        aside.rename(archive)

    return mend


def put_a_folder_for_the_journal(journal: Path) -> Callable[[], object]:
    aside = journal.parents[3] / "aside"
    journal.rename(aside)
    journal.mkdir(mode=0o700)

    def mend() -> None:
        journal.rmdir()
        aside.rename(journal)

    return mend


def name_of(journal: Path) -> str:
    return f"{journal.parent.name}/{journal.stem}"


SHUT = [shut_journal, shut_temp_archive, shut_both, damage_nothing_but_put_a_folder_for_the_notes,
        put_a_folder_for_the_temp_archive, put_a_folder_for_the_journal]  # fmt: skip


@pytest.mark.parametrize("shut", SHUT, ids=lambda shut: shut.__name__)
@pytest.mark.parametrize("command", [["scavenge"], ["fsck"]], ids=" ".join)
def test_a_pair_that_is_shut_costs_itself_alone(
    people: Users, shut: Callable[[Path], Callable[[], object]], command: list[str]
) -> None:
    with base_of_mode(0o2775) as base:
        people.write(ALICE, base, "ar.zip/a-")
        people.write(BOB, base, "ar.zip/b-")
        journal = pair_of(base, ALICE)
        mend = shut(journal)
        looked = people.rear(BOB, "fsck", "-n", base)
        assert "Traceback" not in looked.errors
        assert looked.status not in (0, 70)
        for _ in range(2):
            done = people.rear(BOB, *command, base)
            assert "Traceback" not in done.errors
            assert done.status in (1, 4), done
            assert journal.stem in done.output + done.errors
            assert names_in(base / "ar.zip") == files("b-")
        seen = people.rear(BOB, "status", base)
        assert seen.status == 1, seen.errors
        assert "attention" in seen.output
        people.write(BOB, base, "ar.zip/c-")
        assert people.rear(BOB, *command, base).status in (1, 4)
        assert names_in(base / "ar.zip") == files("b-", "c-")
        mend()
        done = people.rear(BOB, "scavenge", base)
        assert done.status == 0, done.output + done.errors
        assert names_in(base / "ar.zip") == files("a-", "b-", "c-")
        assert "nothing needs any" in people.rear(BOB, "status", base).output


@pytest.mark.parametrize("where", ["inbox", "claims", "graveyard"])
def test_a_folder_that_is_shut_costs_itself_alone(people: Users, where: str) -> None:
    with base_of_mode(0o2775) as base:
        people.write(BOB, base, "ar.zip/b-")
        shut = base / ".rear" / where / ("shut" if where != "claims" else "some-leader/shut")
        shut.mkdir(parents=True)
        (shut / "1-0-0-0.journal").touch()
        for folder in (shut.parent.parent, shut.parent, shut):
            folder.chmod(0o2775 if folder != shut else 0)
        for command in (["fsck", "-n"], ["scavenge"], ["scavenge", "--dry-run"], ["fsck"]):
            done = people.rear(BOB, *command, base)
            assert "Traceback" not in done.errors
            # What is told of the inbox, always; of the rest, when it matters.
            if where == "inbox" or command == ["scavenge"] or (where, command) == ("claims", ["fsck", "-n"]):
                assert shut.relative_to(base).as_posix() in done.output + done.errors
        assert names_in(base / "ar.zip") == files("b-")
        assert people.rear(BOB, "status", base).status == 1
        assert people.rear(BOB, "status", base, "--json").status == 1


def test_a_user_whose_host_folder_another_one_has_shut_gets_one_of_her_own(people: Users) -> None:
    with base_of_mode(0o2775) as base:
        people.write(ALICE, base, "ar.zip/a-")
        [folder] = (base / ".rear/inbox").iterdir()
        folder.chmod(0o755)
        people.write(BOB, base, "ar.zip/b-")
        done = people.rear(BOB, "scavenge", base)
        assert done.status == 1
        assert names_in(base / "ar.zip") == files("b-")
        folder.chmod(0)
        people.write(BOB, base, "ar.zip/c-")
        assert people.rear(BOB, "scavenge", base).status == 1
        assert names_in(base / "ar.zip") == files("b-", "c-")
        seen = people.rear(BOB, "status", base)
        assert folder.name in seen.output
        folder.chmod(0o2775)
        assert people.rear(BOB, "scavenge", base).status == 0
        assert names_in(base / "ar.zip") == files("a-", "b-", "c-")


def test_an_archive_that_is_shut_costs_its_own_members_alone(people: Users) -> None:
    with base_of_mode(0o2775) as base:
        (base / "shut.zip").write_bytes(b"")
        (base / "shut.zip").chmod(0)
        people.write(ALICE, base, "shut.zip/a-")
        people.write(ALICE, base, "ar.zip/a-")
        done = people.rear(BOB, "scavenge", base)
        assert done.status == 1
        assert "shut.zip" in done.errors
        assert names_in(base / "ar.zip") == files("a-")


@pytest.mark.parametrize("name", ["reports", "lost+found", "graveyard", "intents", "flush", "terms", "index"])
def test_status_tells_what_it_may_not_look_at(people: Users, name: str) -> None:
    with base_of_mode(0o2775) as base:
        people.write(ALICE, base, "ar.zip/a-")
        (base / ".rear" / name).mkdir(exist_ok=True)
        (base / ".rear" / name).chmod(0)
        seen = people.rear(BOB, "status", base)
        assert (seen.status, seen.errors) == (1, "")
        assert f".rear/{name}: " in seen.output
        for command in (["fsck", "-n"], ["scavenge"], ["fsck"]):
            assert "Traceback" not in people.rear(BOB, *command, base).errors


# ---- without other users


def test_a_state_that_is_shut_is_named_and_nothing_is_said_of_what_is_in_it(people: Users) -> None:
    with base_of_mode(0o2775) as base:
        people.write(ALICE, base, "ar.zip/a-")
        (base / ".rear").chmod(0o700)
        done = people.rear(BOB, "scavenge", base)
        assert (done.status, done.errors.count("\n")) == (3, 1)
        assert f"{base}/.rear: Permission denied" in done.errors
        seen = people.rear(BOB, "status", base)
        assert seen.status == 1
        assert "this user may not look into it" in " ".join(seen.output.split())
        assert "nothing waits" not in seen.output
        assert "all is in final archives" not in seen.output


def test_status_tells_of_what_a_check_has_left_and_not_once_it_is_mended(tmp_path: Path) -> None:
    write(tmp_path, {"ar.zip/a": "a"})
    stray = tmp_path / ".rear/inbox/host/stray"
    stray.parent.mkdir()
    stray.touch()
    list(fsck(tmp_path))
    assert "refused" in [attention.code for attention in look_at(tmp_path).attention]
    stray.unlink()
    list(rear.scavenge(tmp_path))
    assert [attention.code for attention in look_at(tmp_path).attention] == []


LITTER = [".nfs000000000001f5b80000002a", ".DS_Store", "._ar.zip", ".fuse_hidden0000001500000001", "Thumbs.db"]


@pytest.mark.parametrize("name", LITTER)
def test_what_systems_leave_in_any_folder_is_no_finding(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"ar.zip/a": "a"})
    [host] = (tmp_path / ".rear/inbox").iterdir()
    list(rear.scavenge(tmp_path))
    host.mkdir(exist_ok=True)
    for folder in (host, host.parent, tmp_path / ".rear", tmp_path / ".rear/intents", tmp_path / ".rear/terms"):
        (folder / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert list(rear.scavenge(tmp_path))[-1].refused == 0  # type: ignore[attr-defined]
    assert not [event for event in fsck(tmp_path) if event.severity != "info"]
    assert look_at(tmp_path).attention == ()


def test_no_name_that_rear_gives_is_litter() -> None:
    assert not any(map(is_litter, ["node7", "1-0-0-0.journal", "ar.zip", ".nfs", "inbox", ".rear"]))


@pytest.mark.parametrize("content", [b"\0\5\x16\7\0\2\0\0Mac OS X        ", b"\0" * 4096])
def test_what_macos_keeps_beside_an_archive_is_none(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, {"ar.zip/a": "a"})
    list(rear.scavenge(tmp_path))
    (tmp_path / "._ar.zip").write_bytes(content)
    search = rear.find(tmp_path, "*")
    assert [found.member.name for found in search] == ["a"]
    assert search.errors == []
    assert not [event for event in fsck(tmp_path) if event.severity != "info"]


def test_an_archive_whose_name_begins_like_that_is_one(tmp_path: Path) -> None:
    write(tmp_path, {"._ar.zip/a": "a", "ar.zip/b": "b"})
    list(rear.scavenge(tmp_path))
    assert sorted(found.member.name for found in rear.find(tmp_path, "*")) == ["a", "b"]


@pytest.mark.parametrize("name", ["7", "9" * 255, "12x", "٣"])
def test_a_folder_or_a_number_of_nobody_in_terms_stops_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"ar.zip/a": "a"})
    (tmp_path / ".rear/terms").mkdir()
    (tmp_path / ".rear/terms" / name).mkdir()
    for _ in range(2):
        with Leadership(Layout(tmp_path)) as leadership:
            leadership.prove()
    assert list(rear.scavenge(tmp_path))[-1].members == 1  # type: ignore[attr-defined]
