"""A scavenge works in rounds, so that memory stays bounded: what it reads once in each, and what they must not miss."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bases import check_base, members, of_kind, scavenge, write
from pairs import GONE, MTIME_NS, open_record, see_nobody, write_pair
from zips import flip

import rear
import rear.scavenger.scavenge
from rear.core.layout import Layout
from rear.core.liveness import this_process
from rear.core.names import Target
from rear.core.records import Append, Pair
from rear.core.storage import LOCAL, Storage
from rear.events import Cleared, Damaged, Event, Lost, Merged, Recovered, Refused, Torn
from rear.index.index import Index
from rear.journal.reader import read_journal
from rear.scavenger.claims import ClaimedPair
from rear.scavenger.pair_check import PairCheck
from rear.worker.pair_writer import Item, PairWriter
from rear.zip.payload import payload_of_bytes


def content(name: str) -> bytes:
    return f"{name}\n".encode() * 20


def alarms(events: list[Event]) -> list[Event]:
    return of_kind(events, Refused, Lost, Torn, Damaged)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The pairs of each round."""
    found: list[list[str]] = []
    real = PairCheck.__init__

    def noted(self: PairCheck, layout: Any, claims: Any, lost_and_found: Any, batch: Any, **options: Any) -> None:
        found.append([claimed.name for claimed in batch])
        real(self, layout, claims, lost_and_found, batch, **options)

    monkeypatch.setattr(PairCheck, "__init__", noted)
    return found


# ---- what a round reads once


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often all rows of an index were read, by archive."""
    found: Counter[str] = Counter()
    real = Index.find_origins

    def counted(self: Index, keys: Any) -> Any:
        found[self.archive] += 1
        return real(self, keys)

    monkeypatch.setattr(Index, "find_origins", counted)
    return found


def write_crashed(base: Path, workers: int, count: int, *, run: int = 0) -> dict[str, bytes]:
    acknowledged = {}
    for worker in range(workers):
        names = [f"{run}/{worker}/{number}" for number in range(count)]
        write_pair(
            base, 0, {number: (name, content(name)) for number, name in enumerate(names, 1)},
            worker=f"7-{run}-{worker:06x}",
        )  # fmt: skip
        acknowledged |= {f"ar.zip/{name}": content(name) for name in names}
    return acknowledged


@pytest.mark.parametrize("workers", [1, 2, 15])
def test_an_index_is_read_once_a_round_however_many_workers_crashed(
    tmp_path: Path, readings: Counter[str], workers: int
) -> None:
    acknowledged = write_crashed(tmp_path, 1, 3)
    assert alarms(scavenge(tmp_path)) == []
    readings.clear()
    acknowledged |= write_crashed(tmp_path, workers, 3, run=1)
    assert alarms(scavenge(tmp_path)) == []
    assert readings == {"ar.zip": 1}
    check_base(tmp_path, acknowledged)


def test_renamed_archives_are_read_once_a_round_each(tmp_path: Path, readings: Counter[str]) -> None:
    for run in range(3):
        write_crashed(tmp_path, 1, 4, run=run)
        scavenge(tmp_path, max_members=4)
    assert len(list(tmp_path.glob("ar*.zip"))) == 3
    readings.clear()
    write_crashed(tmp_path, 6, 4, run=3)
    assert alarms(scavenge(tmp_path, max_members=4)) == []
    assert readings == {"ar.zip": 1, "ar-0.zip": 1, "ar-1.zip": 1}


@pytest.mark.parametrize(
    ("limit", "value", "rounds"), [("MEMBERS_A_ROUND", 6, [2, 2, 2, 1]), ("BYTES_A_ROUND", 1, [1] * 7)]
)
def test_each_round_reads_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readings: Counter[str], batches: list[list[str]], limit: str,
    value: int, rounds: list[int],
) -> None:  # fmt: skip
    """What one round has merged the next one has to know."""
    monkeypatch.setattr(rear.scavenger.scavenge, limit, value)
    acknowledged = write_crashed(tmp_path, 7, 3)
    assert alarms(scavenge(tmp_path)) == []
    assert [len(batch) for batch in batches] == rounds
    # For the first one there is no index yet.
    assert readings == {"ar.zip": len(rounds) - 1}
    check_base(tmp_path, acknowledged)


@pytest.mark.parametrize("members_a_round", [1, 6, 1000])
def test_members_that_were_merged_before_are_told_from_others_pair_by_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members_a_round: int
) -> None:
    """The notes were lost after the merge; and some pairs hold members that were not merged."""
    monkeypatch.setattr(rear.scavenger.scavenge, "MEMBERS_A_ROUND", members_a_round)
    base, copy = tmp_path / "base", tmp_path / "copy"
    acknowledged = write_crashed(base, 8, 3)
    shutil.copytree(base / ".rear/inbox", copy, copy_function=shutil.copy2)
    assert alarms(scavenge(base)) == []
    before = (base / "ar.zip").read_bytes()
    shutil.copytree(copy, base / ".rear/inbox", dirs_exist_ok=True)
    acknowledged |= write_crashed(base, 4, 3, run=1)
    events = scavenge(base)
    assert alarms(events) == []
    assert sum(event.members for event in events if isinstance(event, Merged)) == 12
    assert len(of_kind(events, Cleared)) == 12
    assert (base / "ar.zip").read_bytes()[: len(before) // 2] == before[: len(before) // 2]
    check_base(base, acknowledged)


def test_an_unjournaled_member_that_was_merged_before_is_found_in_the_index_as_well(tmp_path: Path) -> None:
    """It is known only when its own pair is looked through, after the index was read for the others; and its archive
    has another name by now, so that there is no second member of its name to be seen.
    """
    base, copy = tmp_path / "base", tmp_path / "copy"
    acknowledged = write_crashed(base, 4, 3)
    for journal in sorted((base / ".rear/inbox").glob("*/*.journal")):
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:-1]))
    shutil.copytree(base / ".rear/inbox", copy, copy_function=shutil.copy2)
    assert len(of_kind(scavenge(base, max_members=12), Recovered)) == 4
    others = write_crashed(base, 2, 3, run=1)
    assert alarms(scavenge(base, max_members=12)) == []
    shutil.copytree(copy, base / ".rear/inbox", dirs_exist_ok=True)
    events = scavenge(base, max_members=12)
    assert alarms(events) == []
    assert len(of_kind(events, Recovered)) == 4
    renamed = {target.replace("ar.zip", "ar-0.zip"): data for target, data in acknowledged.items()}
    check_base(base, renamed | others)


# ---- temp archives are opened without a listing of all pairs of their host


class Seeing(Storage):
    """A client that denies each temp archive, or shows it shorter than it is, until its folder is listed.

    Args:
        cut: by how much; ``None``: it denies it.
    """

    def __init__(self, cut: int | None) -> None:
        self.cut = cut
        self.listed: Counter[str] = Counter()
        self.deceived = 0
        self._short: set[int] = set()

    def names(self, path: Any) -> list[str]:
        self.listed[os.fspath(path)] += 1
        return super().names(path)

    def open(self, path: Any, **options: Any) -> int:
        folder, name = os.path.split(os.fspath(path))
        is_deceived = "claims" in folder and name.endswith(".zip") and not self.listed[folder] and self.cut != 0
        self.deceived += is_deceived
        if is_deceived and self.cut is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
        descriptor = super().open(path, **options)
        self._short.discard(descriptor)
        if is_deceived:
            self._short.add(descriptor)
        return descriptor

    def size(self, descriptor: int) -> int:
        return super().size(descriptor) - (self.cut or 0 if descriptor in self._short else 0)

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        return super().read(descriptor, max(0, min(length, self.size(descriptor) - offset)), offset)


@pytest.mark.parametrize("cut", [None, 1, 22, 300, 0])
@pytest.mark.parametrize("close", ["exit", "poisoned", None])
def test_a_temp_archive_that_looks_shorter_or_missing_is_looked_at_again(
    tmp_path: Path, cut: int | None, close: str | None
) -> None:
    write_pair(tmp_path, 0, {number: (str(number), content(str(number))) for number in range(1, 9)}, close=close)
    storage = Seeing(cut)
    assert alarms(scavenge(tmp_path, storage=storage)) == []
    # A pair that was not ended in good order is listed first: nothing tells how long it has to be.
    assert storage.deceived == (close == "exit" and cut != 0)
    check_base(tmp_path, {f"ar.zip/{number}": content(str(number)) for number in range(1, 9)})


def test_a_claim_folder_is_listed_a_few_times_however_many_closed_pairs_it_has(tmp_path: Path) -> None:
    for worker in range(10):
        write_pair(tmp_path, 0, {1: (str(worker), b"x")}, close="exit", worker=f"7-7-{worker:06x}")
    storage = Seeing(0)
    assert alarms(scavenge(tmp_path, storage=storage)) == []
    folders = [path for path in storage.listed if "/claims/" in path and os.path.basename(path) == this_process().host]
    (count,) = {storage.listed[path] for path in folders}
    # For the first note, which tells who was deposed, and then once a second; and at the end.
    assert 1 <= count <= 4


# ---- the graveyard, in rounds


class Thawed:
    """Workers of hosts that nobody sees; what they write later goes to where their files are by then."""

    def __init__(self, base: Path, workers: int) -> None:
        here = this_process()
        process = here._replace(pid=GONE, process_start=1)
        self.acknowledged: dict[str, bytes] = {}
        self._sequence = 0
        self._writers = []
        for worker in range(workers):
            pair = Pair(here.host, f"7-7-{worker:06x}", 0)
            opened = open_record(process, pair, cookie=worker + 1, uid=os.getuid())
            self._writers.append(PairWriter(Layout(base), pair, opened, storage=LOCAL))

    def write(self, count: int, only: int | None = None) -> None:
        """Append so many members to each pair, or to one of them."""
        for number, writer in enumerate(self._writers):
            if only not in (None, number):
                continue
            for _ in range(count):
                self._sequence += 1
                name = f"{number}/{self._sequence}"
                payload = payload_of_bytes(content(name), 0)
                writer.append(
                    Item(self._sequence, Target("ar.zip", name), payload, MTIME_NS, 0o100644, None, None, None)
                )
                self.acknowledged[name] = content(name)

    def end(self) -> None:
        for writer in self._writers:
            writer.release()


def buried(base: Path) -> list[Path]:
    return sorted((base / ".rear/graveyard").glob("*/*.journal"))


@pytest.mark.parametrize("is_left", [False, True], ids=["to its end", "left in the middle"])
def test_a_graveyard_is_worked_off_in_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: list[list[str]], later: Callable[[float], None],
    is_left: bool,
) -> None:  # fmt: skip
    see_nobody(monkeypatch)
    workers = Thawed(tmp_path, 12)
    workers.write(3)
    assert not (tmp_path / "ar.zip").exists()
    scavenge(tmp_path)
    later(61)
    assert alarms(scavenge(tmp_path)) == []
    assert len(buried(tmp_path)) == 12
    assert members(tmp_path) == workers.acknowledged
    # They come back, and had not looked yet.
    workers.write(2)
    monkeypatch.setattr(rear.scavenger.scavenge, "MEMBERS_A_ROUND", 10)
    batches.clear()
    if is_left:
        for event in rear.scavenge(tmp_path):
            if isinstance(event, Merged):
                break
        assert len(batches) == 1
    for _ in range(4):
        assert alarms(scavenge(tmp_path)) == []
    # Five members in each pair, so two pairs make a round.
    assert {len(batch) for batch in batches} == {2}
    if not is_left:
        assert sorted(pair for batch in batches for pair in batch) == sorted(
            {pair for batch in batches for pair in batch}
        )
    assert all(read_journal(path).damage == [] for path in buried(tmp_path))
    assert len(buried(tmp_path)) == 12
    assert members(tmp_path) == workers.acknowledged
    batches.clear()
    later(601)
    assert alarms(scavenge(tmp_path)) == []
    assert buried(tmp_path) == []
    assert {len(batch) for batch in batches} == {2}
    for _ in range(2):
        assert alarms(scavenge(tmp_path)) == []
    workers.end()
    check_base(tmp_path, {f"ar.zip/{name}": data for name, data in workers.acknowledged.items()})


def test_a_graveyard_keeps_its_time_when_a_scavenge_dies_in_its_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None]
) -> None:
    see_nobody(monkeypatch)
    workers = Thawed(tmp_path, 5)
    workers.write(1)
    for _ in range(2):
        scavenge(tmp_path)
        later(61)
    workers.write(1, only=0)
    monkeypatch.setattr(rear.scavenger.scavenge, "MEMBERS_A_ROUND", 1)
    events = rear.scavenge(tmp_path)
    assert any(isinstance(event, Merged) for event in events)
    events.close()  # type: ignore[attr-defined]
    later(601)
    assert alarms(scavenge(tmp_path)) == []
    # That one had seen all of them, also the one that it was just merging.
    assert buried(tmp_path) == []
    workers.end()
    assert members(tmp_path) == workers.acknowledged


# ---- a worker's pairs in different rounds


@pytest.mark.parametrize("where", ["claims/dead", "inbox", "graveyard"])
def test_a_member_that_waits_for_a_later_round_is_not_told_of_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: list[list[str]], where: str
) -> None:
    """The pair that failed lacks its last members; the one with the same members comes in the next round."""
    monkeypatch.setattr(rear.scavenger.scavenge, "MEMBERS_A_ROUND", 1)
    names = {1: ("a", content("a")), 2: ("b", content("b")), 3: ("c", content("c"))}
    temp, _ = write_pair(tmp_path, 0, names)
    os.truncate(temp, 200)
    write_pair(tmp_path, 1, {2: names[2], 3: names[3]}, close="exit", repeats_from=2)
    if where != "inbox":
        (tmp_path / ".rear" / where).mkdir(parents=True)
        (host,) = (tmp_path / ".rear/inbox").iterdir()
        host.rename(tmp_path / ".rear" / where / host.name)
    assert read_journal(next((tmp_path / ".rear").rglob("*-0.journal"))).pending()
    assert alarms(scavenge(tmp_path)) == []
    assert [len(batch) for batch in batches] == [1, 1]
    for _ in range(2):
        assert alarms(scavenge(tmp_path)) == []
    check_base(tmp_path, {f"ar.zip/{name}": data for name, data in names.values()})


def test_bytes_that_can_be_saved_are_not_given_up_for_a_copy_that_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None]
) -> None:
    """The later pair has the member by name only: its bytes went to lost+found before."""
    temp, _ = write_pair(tmp_path, 1, {2: ("b", content("b"))}, repeats_from=2)
    os.truncate(temp, temp.stat().st_size - 10)
    see_nobody(monkeypatch)
    for seconds in (0, 61):
        later(seconds)
        events = scavenge(tmp_path)
    assert [event.name for event in of_kind(events, Lost)] == ["b"]
    assert len(buried(tmp_path)) == 1
    # The pair before has all of its data, behind a local header that is damaged.
    temp, _ = write_pair(tmp_path, 0, {1: ("a", content("a")), 2: ("b", content("b"))}, close="poisoned")
    flip(temp, temp.read_bytes().index(b"PK\3\4", 1) + 14, 0xFF)
    events = scavenge(tmp_path)
    assert alarms(events) == []
    assert "b" in [event.name for event in of_kind(events, Recovered)]
    assert members(tmp_path) == {name: content(name) for name in "ab"}


def test_nothing_of_a_round_waits_for_the_garbage_collector(base: Path) -> None:
    """Errors on the way (notes that are not there, say) must not keep the objects of those whom they pass."""
    for number in range(3):
        write(base, {f"ar.zip/{number}/{name}": b"x" for name in "abc"})
    gc.collect()
    gc.disable()
    try:
        before = {id(one) for one in gc.get_objects()}
        scavenge(base)
        left = (one for one in gc.get_objects() if id(one) not in before)
        assert [one for one in left if isinstance(one, (Append, ClaimedPair, OSError))] == []
    finally:
        gc.enable()
