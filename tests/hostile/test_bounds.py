"""What is too large, sparse, or decodes to too much costs time and memory in bounds, and itself alone."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

import pytest
from bases import of_kind, scavenge, write
from forged_bases import DEAD, HOST, LEADER, disk_bytes, faults_of, make_honest, make_sparse, outcome_of
from pairs import dead_worker, write_pair

from rear.core.layout import Layout
from rear.core.liveness import Observations
from rear.core.records import Append, Close, MergedRecord
from rear.core.storage import LOCAL, opened
from rear.errors import JournalError
from rear.events import Damaged, Lost, Merged, Refused
from rear.journal import reader
from rear.journal.codec import encode_record
from rear.journal.reader import read_journal, read_notes, skim_journal
from rear.salvage import info_zip
from rear.scavenger import lost_and_found
from rear.scavenger.leader import Leadership

TERABYTE = 1 << 40


@pytest.fixture
def honest(base: Path) -> dict[str, bytes]:
    return make_honest(base)


def bad_pair(base: Path, rotation: int = 70, *, close: str | None = None) -> tuple[Path, Path]:
    return write_pair(base, rotation, {1: ("bad", b"bad" * 99)}, close=close, worker=DEAD)


def extend(path: Path, size_bytes: int) -> None:
    os.truncate(path, path.stat().st_size + size_bytes)


def check_all(base: Path, honest: dict[str, bytes], *, expected: dict[str, bytes] | None = None) -> None:
    outcome = outcome_of(base, ("status", "fsck -n", "dry run", "scavenge", "fsck"), limit_seconds=60)
    assert outcome.errors == {}
    assert faults_of(base, honest | (expected or {})) == []
    assert outcome.memory_bytes < 150 << 20
    assert disk_bytes(base) < 20 << 20


@pytest.mark.parametrize("close", [None, "exit"])
@pytest.mark.parametrize("suffix", ["journal", "zip", "merged"])
def test_sparse_files_of_a_pair(base: Path, honest: dict[str, bytes], suffix: str, close: str | None) -> None:
    temp, _ = bad_pair(base, close=close)
    path = temp.with_suffix(f".{suffix}")
    path.touch()
    extend(path, 4 * TERABYTE)
    # Of the journal alone nothing is lost by that.
    check_all(base, honest, expected={"ar.zip/bad": b"bad" * 99} if suffix == "journal" else None)


def test_sparse_files_elsewhere(base: Path, honest: dict[str, bytes]) -> None:
    layout = Layout(base)
    places = [layout.observation(topic) for topic in ("workers", "leader", "graveyard")]
    places += [layout.intent("ar.zip", LEADER), layout.reports / "20990101T000000-x.json", base / "sparse.zip"]
    places += [layout.index("ar.zip") / "99.sqlite", layout.inbox / HOST / f"{DEAD}-71.zip"]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_sparse(path, 8 * TERABYTE)
    check_all(base, honest)


def test_holes_are_damage_of_their_length(tmp_path: Path) -> None:
    _, path = bad_pair(tmp_path)
    records = path.read_bytes()
    extend(path, 1 << 30)
    with path.open("ab") as file:
        file.write(b"\n" + records)
    journal = read_journal(path)
    assert list(journal.appends) == [1]
    assert journal.damage[0].start == len(records)
    assert journal.damage[0].length >= 1 << 30
    assert journal.length == path.stat().st_size == skim_journal(path).length


def test_more_members_than_a_pair_has(base: Path, honest: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MEMBERS_LIMIT", 100)
    _, journal = bad_pair(base)
    (append,) = read_journal(journal).appends.values()
    with journal.open("ab") as file:
        file.writelines(encode_record(append._replace(sequence=number)) for number in range(200))
    _, noted = bad_pair(base, 71)
    noted.with_suffix(".merged").write_bytes(encode_record(MergedRecord(tuple(range(101)), "ar.zip", "")))
    with pytest.raises(JournalError, match="more than 100 members"):
        read_notes(noted.with_suffix(".merged"))
    events = scavenge(base)
    told = {event.subject for event in of_kind(events, Refused) if "more than 100 members" in event.reason}
    assert told == {f"{HOST}/{DEAD}-70", f"{HOST}/{DEAD}-71"}
    assert faults_of(base, honest) == []


def test_members_within_members(base: Path, honest: dict[str, bytes]) -> None:
    temp, journal = write_pair(base, 70, {1: ("a", b"a" * 99), 2: ("b", b"b" * 99)}, worker=DEAD)
    records = journal.read_bytes()
    first, second = read_journal(journal).appends.values()
    length = temp.stat().st_size
    overlapping = [Append(*first)._replace(sequence=3 + number, offset=number + 1, length=length - number - 1)
                   for number in range(20)]  # fmt: skip
    journal.write_bytes(records + b"".join(map(encode_record, [*overlapping, Close("exit", 22, length)])))
    events = scavenge(base)
    assert {event.name for event in of_kind(events, Lost)} >= {"a"}
    assert {(base / event.lost_and_found).exists() for event in of_kind(events, Lost)} == {True}
    assert disk_bytes(base / ".rear/lost+found") < 1 << 20
    assert faults_of(base, honest) == []
    assert second.name == "b"


def test_good_ones_are_merged_before_doubtful_ones(base: Path, honest: dict[str, bytes]) -> None:
    for number in range(10, 20):
        bad_pair(base, number)[1].write_bytes(b"garbage\n" * 9)
        (base / ".rear/inbox" / HOST / f"{DEAD}-{number + 10}.journal").touch()
    events = scavenge(base)
    kinds = [type(event) for event in events if isinstance(event, (Merged, Damaged))]
    assert kinds[:2] == [Merged, Merged]
    assert faults_of(base, honest) == []


def test_the_last_term_is_put_aside(base: Path, honest: dict[str, bytes]) -> None:
    layout = Layout(base)
    for number in range(2):
        (layout.terms / str(10**18 - 1)).mkdir()
        (layout.terms / str(10**18 - 2 - number)).touch()
        with Leadership(layout) as leadership:
            leadership.prove()
    scavenge(base)
    assert faults_of(base, honest) == []


def test_observations_are_bounded(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rear.core.liveness._OBSERVATIONS_LIMIT_BYTES", 2_000)
    layout = Layout(base)
    layout.observations.mkdir(parents=True)
    seen = Observations(layout, topic="workers")
    for number in range(100):
        seen.unchanged_seconds(f"host/worker-{number}", "1/2")
    seen.save()
    assert layout.observation("workers").stat().st_size <= 2_000
    monkeypatch.setattr(type(LOCAL), "uptime", lambda self: 10.0**9)
    assert Observations(layout, topic="workers").unchanged_seconds("host/worker-0", "1/2") > 1000
    assert Observations(layout, topic="workers").unchanged_seconds("host/worker-99", "1/2") == 0
    layout.observation("workers").write_bytes(layout.observation("workers").read_bytes() + b" " * 2_000)
    assert Observations(layout, topic="workers").unchanged_seconds("host/worker-0", "1/2") == 0


def test_what_decodes_to_much_is_kept_compressed(
    base: Path, honest: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_and_found, "DECODED_BYTES", 1 << 20)
    temp, _ = write_pair(base, 70, {1: ("bomb", bytes(64 << 20))}, worker=DEAD, method=zipfile.ZIP_DEFLATED)
    data = bytearray(temp.read_bytes())
    data[-1] ^= 1
    temp.write_bytes(data)
    (lost,) = [event for event in scavenge(base) if isinstance(event, Lost) or event.kind == "torn"]
    assert "kept compressed" in lost.reason
    assert disk_bytes(base / ".rear/lost+found") < 1 << 20
    assert faults_of(base, honest) == []


def test_holes_stay_holes_in_lost_and_found(base: Path) -> None:
    make_sparse(base.parent / "sparse", 1 << 40)
    kept = lost_and_found.LostAndFound(base / "kept", base, storage=LOCAL)
    base.mkdir()
    with opened(base.parent / "sparse", LOCAL) as descriptor:
        item = base / kept.put_bytes("x", descriptor, 5, 1 << 40, {})
    assert item.stat().st_size == (1 << 40) - 5
    assert disk_bytes(base) < 1 << 20


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"rear-salvage-{dead_worker()}-x1"
    (left / "rear-0.new").mkdir(parents=True)
    (left / "rear-0.new/fixed.zip").write_bytes(b"large")
    others = [tmp_path / "rear-salvage-x", tmp_path / f"rear-salvage-{dead_worker()}"]
    others[0].mkdir()
    others[1].symlink_to(others[0])
    with info_zip.scratch_folder() as folder:
        assert Path(folder).is_dir()
        with info_zip.scratch_folder():
            # Of a process that lives.
            assert Path(folder).is_dir()
    assert sorted(tmp_path.iterdir()) == sorted(others)
    make_sparse(tmp_path / "sparse.zip", 1 << 40)
    assert info_zip.fix(tmp_path / "sparse.zip", tmp_path) is None
    write(tmp_path / "base", {"ar.zip/a": b"a"})
