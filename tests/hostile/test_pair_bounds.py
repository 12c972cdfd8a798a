"""What the pairs of one user cost in memory and work is bounded, and no user's scavenge shuts out another's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bases import members, of_kind, scavenge, write
from forged_bases import DEAD, HOST, MEMORY_LIMIT_BYTES, faults_of, make_honest, outcome_of
from pairs import dead_worker, write_pair

import rear
from rear.core.layout import Layout
from rear.core.liveness import this_process
from rear.core.records import Append, MergedRecord, unpacked
from rear.errors import JournalError
from rear.events import JournalRebuilt, Recovered, Refused
from rear.index.index import Index
from rear.journal import reader
from rear.journal.codec import decode_line, encode_line, encode_record
from rear.journal.reader import read_journal, read_notes
from rear.scavenger import pair_check, worker_pairs
from rear.scavenger.owners import OwnerBudget


def records_of(journal: Path) -> tuple[bytes, Append]:
    first = journal.read_bytes().split(b"\n")[0] + b"\n"
    (append,) = read_journal(journal).appends.values()
    return first, append


def test_metadata_of_a_journal_stay_in_memory_as_json(base: Path) -> None:
    honest = make_honest(base)
    _, journal = write_pair(base, 70, {1: ("bad", b"bad" * 99)}, worker=DEAD)
    first, append = records_of(journal)
    large = [append._replace(sequence=number, metadata={"k": [{}] * 200_000}) for number in range(2)]
    fitting = [append._replace(sequence=10 + number, metadata={"k": [{}] * 20_000}) for number in range(220)]
    journal.write_bytes(first + b"".join(map(encode_record, [*large, *fitting])))
    outcome = outcome_of(base, ("scavenge",), limit_seconds=60)
    assert outcome.errors == {}
    assert outcome.memory_bytes < MEMORY_LIMIT_BYTES
    assert faults_of(base, honest) == []


def test_metadata_as_large_as_a_header_takes_them(base: Path) -> None:
    metadata = {"text": "x" * 61_000, "umlaut": "ü", "numbers": [1.5, -3, None]}
    with rear.rear_fs(base) as fs, fs.open("ar.zip/a", "wb", metadata=metadata) as file:
        file.write(b"a")
    (journal,) = (base / ".rear/inbox").glob("*/*.journal")
    (append,) = read_journal(journal).appends.values()
    assert isinstance(append.metadata, bytes)
    assert unpacked(append.metadata) == metadata
    scavenge(base)
    assert [row.metadata for row in Index.open(Layout(base), "ar.zip").rows()] == [metadata]


@pytest.mark.parametrize("text", ["x" * 2_000, "\U0001f600" + "x" * 500], ids=["plain", "wide"])
def test_texts_of_a_journal_are_bounded(base: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = make_honest(base)
    _, journal = write_pair(base, 70, {1: ("bad", b"bad" * 99)}, worker=DEAD)
    first, append = records_of(journal)
    many = [append._replace(sequence=number, name=f"{number}{text}") for number in range(1_000)]
    journal.write_bytes(first + b"".join(map(encode_record, many)))
    with pytest.raises(JournalError, match="more names"):
        read_journal(journal, held_bytes=1 << 20)
    assert len(read_journal(journal).appends) == 1_000
    assert 1 << 20 < read_journal(journal).held_bytes < 4 << 20
    _, beside = write_pair(base, 71, {1: ("bad", b"bad" * 99)}, worker=DEAD)
    noted = beside.with_suffix(".merged")
    noted.write_bytes(b"".join(encode_record(MergedRecord((number,), text, "")) for number in range(2_000)))
    monkeypatch.setattr(reader, "_NOTES_HELD_BYTES", 1 << 20)
    with pytest.raises(JournalError, match="more names"):
        read_notes(noted)
    told = {event.subject for event in of_kind(scavenge(base), Refused)}
    assert f"{HOST}/{DEAD}-71" in told
    assert faults_of(base, honest) == []


def test_notes_that_repeat_numbers_are_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "x.merged"
    path.write_bytes(encode_record(MergedRecord(tuple(range(5_000)), "ar.zip", "")) * 100)
    with pytest.raises(JournalError, match="more names"):
        read_notes(path)


def test_damage_between_records_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    beat = encode_line({"kind": "beat", "number": 1})
    path.write_bytes((beat + b"no record at all\n") * (reader.BAD_LINES_LIMIT + 500))
    journal = read_journal(path)
    assert len(journal.damage) <= reader.BAD_LINES_LIMIT + 1
    assert journal.length == path.stat().st_size


def test_files_of_a_worker_are_read_once_a_round(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    graveyard = base / ".rear/graveyard" / HOST
    graveyard.mkdir(parents=True)
    for number in range(8):
        temp, _ = write_pair(base, number, {number: (f"x{number}", b"x")}, close="exit", worker=DEAD)
        temp.write_bytes(b"")
        write_pair(base, 30 + number, {50 + number: (f"r{number}", b"r")}, close="exit", worker=DEAD, repeats_from=0)
        note = MergedRecord((50 + number,), f".rear/lost+found/x{number}", "", "")
        (graveyard / f"{DEAD}-{10 + number}.merged").write_bytes(encode_record(note))
        _, journal = write_pair(base, 40 + number, {100 + number: ("y", b"y")}, worker=DEAD)
        first, rest = journal.read_bytes().split(b"\n", 1)
        opened = decode_line(first) | this_process()._asdict() | {"kind": "open"}
        journal.write_bytes(encode_line(opened) + rest)

    def counted(function):  # type: ignore[no-untyped-def]
        def read(*args, **named):  # type: ignore[no-untyped-def]
            loads.append(function.__name__)
            return function(*args, **named)

        return read

    monkeypatch.setattr(worker_pairs, "load_journal", counted(worker_pairs.load_journal))
    monkeypatch.setattr(worker_pairs, "read_notes", counted(worker_pairs.read_notes))
    events = scavenge(base)
    # Pairs in good order, and others, are of rounds of their own.
    assert 0 < loads.count("read_notes") <= 3 * 8
    assert loads.count("load_journal") <= 3 * 24
    assert {event.name for event in of_kind(events, Recovered)} >= {f"r{number}" for number in range(8)}


def test_what_decodes_to_too_much_waits(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = make_honest(base)
    monkeypatch.setattr(pair_check, "DECODED_BYTES", 1 << 20)
    monkeypatch.setattr("rear.scavenger.scavenge.DECODED_BYTES", 1 << 20)
    write_pair(base, 70, {1: ("zeros", bytes(8 << 20))}, worker=DEAD, method=8)
    told = of_kind(scavenge(base), Refused)
    assert [event.subject for event in told] == [f"{HOST}/{DEAD}-70"]
    assert "--verify" in told[0].reason
    assert faults_of(base, honest) == []
    scavenge(base, verify=True)
    assert faults_of(base, honest | {"ar.zip/zeros": bytes(8 << 20)}) == []


def test_a_budget_is_of_one_user() -> None:
    budget = OwnerBudget(10)
    assert budget.takes(1, 8)
    assert not budget.takes(1, 3)
    assert budget.takes(1, 2)
    assert budget.takes(2, 10)
    budget.spend(2, 5)
    assert not budget.takes(2, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_journal_that_another_user_had_to_make_anew(base: Path) -> None:
    bob, service = 47_002, 47_003
    temp, journal = write_pair(base, 0, {1: ("x", b"bob's x"), 2: ("y", b"y")}, worker=dead_worker())
    journal.unlink()
    os.chown(temp, bob, bob)
    steps = rear.scavenge(base)
    assert any(isinstance(event, JournalRebuilt) for event in steps)
    # It dies there; another one had another owner.
    steps.close()  # type: ignore[attr-defined]
    (made,) = (base / ".rear/claims").glob("*/*/*.journal")
    os.chown(made, service, service)
    events = scavenge(base)
    assert [event.code for event in of_kind(events, JournalRebuilt)] == ["made-by-another"]
    assert of_kind(events, Refused) == []
    assert members(base) == {"x": b"bob's x", "y": b"y"}


def test_a_source_below_a_link_of_the_base(base: Path) -> None:
    write(base, {"ar.zip/a": b"a"})
    (base / "runs").mkdir()
    (base / "runs/x").write_text("x")
    (base / "latest").symlink_to("runs")
    with rear.rear_fs(base) as fs, fs.pickup(base / "latest/x", "ar.zip/p"):
        pass
    assert not (base / "runs/x").exists()
    scavenge(base)
    assert members(base) == {"a": b"a", "p": b"x"}
