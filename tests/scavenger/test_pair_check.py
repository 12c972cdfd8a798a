"""What a scavenge makes of pairs that are not in good order: torn, damaged, doubled, without their codec."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bases import members, of_kind, put, scavenge
from pairs import GONE, see_nobody, write_pair
from programs import run_code, run_rear, start_rear

import rear
from rear.core.liveness import this_process, worker_name
from rear.core.records import Abort
from rear.core.storage import LOCAL
from rear.errors import NotLeaderError
from rear.events import Claimed, Damaged, JournalDamaged, LeftAlone, Lost, Recovered, Refused, Torn
from rear.journal.codec import encode_line, encode_record
from rear.journal.reader import read_journal
from rear.journal.writer import JournalWriter
from rear.read.view import open_committed
from rear.worker.fs import rear_fs
from rear.zip.codecs import crc32


@pytest.mark.parametrize("close", [None, "exit"])
@pytest.mark.parametrize(
    ("kind", "forged"),
    [
        ("append", {"metadata": {"note": "\udc80"}}),
        ("append", {"metadata": {"\udc80": 1}}),
        ("append", {"name": "\udc80"}),
        ("append", {"archive": "\udc80.zip"}),
        ("append", {"source": "\udc80"}),
        ("open", {"boot_id": "\udc80"}),
    ],
)
def test_a_record_with_half_a_character_harms_its_own_pair_alone(
    tmp_path: Path, close: str | None, kind: str, forged: dict[str, object]
) -> None:
    _, journal = write_pair(tmp_path, 0, {1: ("a", b"a" * 50)}, close=close)
    write_pair(tmp_path, 1, {2: ("b", b"b" * 50)}, close="exit")
    lines = []
    for line in journal.read_bytes().splitlines():
        payload = json.loads(line[9:])
        if payload["kind"] == kind:
            # As ASCII, with an escape: the half stands for a byte that is no UTF-8, and so passes as text.
            data = json.dumps(payload | forged).encode()
            line = b"%08x %b" % (crc32(data), data)
        lines.append(line + b"\n")
    journal.write_bytes(b"".join(lines))
    events = scavenge(tmp_path)
    assert members(tmp_path)["b"] == b"b" * 50
    if "metadata" in forged:
        # No header could hold that: the record is damage, and the member is placed by its own header.
        assert of_kind(events, Refused) == []
        assert members(tmp_path) == {"a": b"a" * 50, "b": b"b" * 50}
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"a" * 50 in data for data in kept)


def test_torn_last_member_is_named_and_kept_and_no_loss(tmp_path: Path) -> None:
    temp, _ = write_pair(tmp_path, 0, {1: ("a", b"a" * 100), 2: ("b", b"b" * 100)})
    os.truncate(temp, temp.stat().st_size - 10)
    events = scavenge(tmp_path)
    (torn,) = of_kind(events, Torn)
    assert (torn.name, of_kind(events, Lost)) == ("b", [])
    kept = (tmp_path / torn.lost_and_found).read_bytes()
    assert kept.endswith(b"b" * 90)
    assert members(tmp_path) == {"a": b"a" * 100}
    assert not temp.exists()


def test_damaged_member_in_the_middle_is_a_loss_by_name(tmp_path: Path) -> None:
    temp, _ = write_pair(tmp_path, 0, {1: ("a", b"a" * 100), 2: ("b", b"b" * 100), 3: ("c", b"c" * 100)})
    data = temp.read_bytes().replace(b"b" * 100, b"b" * 50 + b"X" + b"b" * 49)
    temp.write_bytes(data)
    (lost,) = of_kind(scavenge(tmp_path), Lost)
    assert lost.name == "b"
    assert "CRC-32" in lost.reason
    assert members(tmp_path) == {"a": b"a" * 100, "c": b"c" * 100}
    assert scavenge(tmp_path)[-1].as_json()["lost"] == 0


def test_missing_temp_archive_is_a_loss_by_name(tmp_path: Path) -> None:
    temp, _ = write_pair(tmp_path, 0, {1: ("a", b"a"), 2: ("b", b"b")}, close="exit")
    temp.unlink()
    assert [event.as_json()["name"] for event in of_kind(scavenge(tmp_path), Lost)] == ["a", "b"]


def test_member_whose_record_is_damaged_is_placed_by_its_extra_field(tmp_path: Path) -> None:
    temp, journal = write_pair(tmp_path, 0, {1: ("a", b"a" * 50), 2: ("b", b"b" * 50), 3: ("c", b"c" * 50)})
    lines = journal.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"name":"b"', b'"name":"x"')
    journal.write_bytes(b"\n".join(lines))
    events = scavenge(tmp_path)
    assert of_kind(events, Damaged) == []
    (damaged,) = of_kind(events, JournalDamaged)
    assert damaged.length == len(lines[2]) + 1
    assert members(tmp_path) == {"a": b"a" * 50, "b": b"b" * 50, "c": b"c" * 50}
    assert not temp.exists()


def test_damaged_journal_that_may_have_named_another_member_keeps_the_whole_pair(tmp_path: Path) -> None:
    temp, journal = write_pair(tmp_path, 0, {1: ("a", b"a" * 50), 2: ("b", b"b" * 50), 3: ("c", b"c" * 50)})
    data = temp.read_bytes()
    appends = read_journal(journal).appends
    temp.write_bytes(data[: appends[2].offset] + bytes(appends[2].length) + data[appends[3].offset :])
    lines = journal.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"name":"b"', b'"name":"x"')
    journal.write_bytes(b"\n".join(lines))
    original = temp.read_bytes()
    damaged = of_kind(scavenge(tmp_path), Damaged)
    hole, record = damaged
    assert isinstance(hole, Damaged)
    assert isinstance(record, Damaged)
    assert (tmp_path / hole.lost_and_found).read_bytes() == original
    assert (hole.start, hole.length) == (appends[2].offset, appends[2].length)
    assert record.start == len(lines[0]) + len(lines[1]) + 2
    assert members(tmp_path) == {"a": b"a" * 50, "c": b"c" * 50}


def test_damaged_first_record_of_a_worker_that_nobody_knows_is_not_touched_at_once(tmp_path: Path) -> None:
    temp, journal = write_pair(tmp_path, 0, {1: ("a", b"a")}, close="exit")
    journal.write_bytes(journal.read_bytes().replace(b'"uid":0', b'"uid":1'))
    before = temp.read_bytes(), journal.read_bytes()
    assert "first record" in str(of_kind(scavenge(tmp_path), LeftAlone)[0])
    assert (temp.read_bytes(), journal.read_bytes()) == before


@pytest.mark.parametrize("here", [True, False])
def test_worker_that_died_before_its_first_record_left_nothing(tmp_path: Path, here: bool) -> None:
    process = this_process()._replace(pid=GONE)
    if not here:
        process = process._replace(boot_id="another boot")
    temp, journal = write_pair(tmp_path, 0, {}, worker=worker_name(process, "abcdef"))
    os.truncate(journal, 20)
    # Of another boot, or of a process that cannot be seen, nobody knows.
    assert len(of_kind(scavenge(tmp_path), LeftAlone)) == (0 if here else 1)
    assert (temp.exists(), journal.exists()) == (not here, not here)


def test_members_after_the_last_journaled_one_are_placed_by_their_extra_field(tmp_path: Path) -> None:
    temp, journal = write_pair(tmp_path, 0, {1: ("a", b"a" * 50), 2: ("b", b"b" * 50)})
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]))
    assert [event.name for event in of_kind(scavenge(tmp_path), Recovered)] == ["b"]
    assert members(tmp_path) == {"a": b"a" * 50, "b": b"b" * 50}
    assert not temp.exists()


def test_death_while_writing_its_own_directory_is_no_finding(tmp_path: Path) -> None:
    _, journal = write_pair(tmp_path, 0, {1: ("a", b"a" * 50)}, close="exit")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert b'"kind":"close"' in lines[-1]
    journal.write_bytes(b"".join(lines[:-1]))
    events = scavenge(tmp_path)
    assert [event for event in events if event.severity != "info"] == []
    assert members(tmp_path) == {"a": b"a" * 50}


@pytest.mark.parametrize("cap", [None, 2])
def test_second_copy_in_a_later_pair_is_merged_once(tmp_path: Path, cap: int | None) -> None:
    write_pair(tmp_path, 0, {1: ("a", b"one"), 2: ("b", b"two")})
    write_pair(tmp_path, 1, {2: ("b", b"two"), 3: ("c", b"three")}, close="exit", repeats_from=2)
    scavenge(tmp_path, max_members=cap)
    found = members(tmp_path)
    if cap:
        found |= members(tmp_path, "ar-0.zip")
        assert len(members(tmp_path, "ar-0.zip")) == 2
    assert found == {"a": b"one", "b": b"two", "c": b"three"}


def test_second_copy_that_comes_after_a_roll_over_is_merged_once(tmp_path: Path) -> None:
    write_pair(tmp_path, 0, {1: ("a", b"one"), 2: ("b", b"two")})
    scavenge(tmp_path, max_members=2)
    write_pair(tmp_path, 0, {9: ("x", b"other")}, close="exit", worker="8-8-abcdef")
    scavenge(tmp_path, max_members=2)
    assert members(tmp_path, "ar-0.zip") == {"a": b"one", "b": b"two"}
    write_pair(tmp_path, 1, {2: ("b", b"two"), 3: ("c", b"three")}, close="exit", repeats_from=2)
    scavenge(tmp_path, max_members=2)
    assert members(tmp_path) == {"x": b"other", "c": b"three"}


def test_torn_copy_of_a_member_that_was_written_again_is_no_loss(tmp_path: Path) -> None:
    temp, _ = write_pair(tmp_path, 0, {1: ("a", b"one"), 2: ("b", b"two")})
    os.truncate(temp, temp.stat().st_size - 1)
    write_pair(tmp_path, 1, {2: ("b", b"two")}, close="exit", repeats_from=2)
    events = scavenge(tmp_path)
    assert [event for event in events if event.severity != "info"] == []
    assert members(tmp_path) == {"a": b"one", "b": b"two"}


def test_aborted_member_does_not_count(tmp_path: Path) -> None:
    _, journal = write_pair(tmp_path, 0, {1: ("a", b"one"), 2: ("b", b"two")})
    writer = JournalWriter(LOCAL.open(journal, write=True), journal.stat().st_size)
    writer.append(Abort(2))
    writer.close()
    scavenge(tmp_path)
    assert members(tmp_path) == {"a": b"one"}


def test_member_whose_codec_is_missing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zstandard")
    with rear_fs(tmp_path, compression="zstd") as fs, fs.open("ar.zip/a") as file:
        file.write("a" * 1000)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "zstandard", None)
        events = scavenge(tmp_path, verify=True)
        assert "zstd" in str(of_kind(events, Refused)[0])
        assert not (tmp_path / "ar.zip").exists()
    scavenge(tmp_path, verify=True)
    with open_committed(tmp_path / "ar.zip") as archive:
        assert b"".join(archive.read(archive.find("a"))) == b"a" * 1000


def test_pair_of_a_host_that_cannot_be_seen_waits_for_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None]
) -> None:
    _, journal = write_pair(tmp_path, 0, {1: ("a", b"one")})
    see_nobody(monkeypatch)
    assert "cannot be seen" in str(of_kind(scavenge(tmp_path), LeftAlone)[0])
    later(61)
    scavenge(tmp_path)
    assert members(tmp_path) == {"a": b"one"}
    # It may come back, so it waits in the graveyard; a late record there is merged as well.
    (buried,) = (tmp_path / ".rear/graveyard").rglob("*.journal")
    assert not journal.exists()
    assert read_journal(buried).appends.keys() == {1}
    for _ in range(2):
        later(10_000)
        scavenge(tmp_path)
    assert not buried.exists()


def test_late_member_of_a_buried_pair_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None]
) -> None:
    write_pair(tmp_path, 0, {1: ("a", b"one"), 2: ("b", b"two")})
    (journal,) = (tmp_path / ".rear/inbox").rglob("*.journal")
    whole = journal.read_bytes()
    late = whole.splitlines(keepends=True)[-1]
    assert encode_record(read_journal(journal).appends[2]) == late
    journal.write_bytes(whole[: -len(late)])
    temp = journal.with_suffix(".zip")
    content = temp.read_bytes()
    os.truncate(temp, read_journal(journal).appends[1].length)
    see_nobody(monkeypatch)
    for seconds in (0, 61):
        later(seconds)
        scavenge(tmp_path)
    assert members(tmp_path) == {"a": b"one"}
    (buried,) = (tmp_path / ".rear/graveyard").rglob("*.journal")
    buried.write_bytes(whole)
    buried.with_suffix(".zip").write_bytes(content)
    scavenge(tmp_path)
    assert members(tmp_path) == {"a": b"one", "b": b"two"}


@pytest.mark.parametrize("by", ["host", "worker", "pair"])
def test_worker_that_somebody_knows_to_be_dead_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    _, journal = write_pair(tmp_path, 0, {1: ("a", b"one")})
    opened = read_journal(journal).opened
    assert opened is not None
    see_nobody(monkeypatch)
    name = {"host": opened.host, "worker": opened.worker, "pair": f"{opened.host}/{opened.worker}"}[by]
    assert of_kind(scavenge(tmp_path), LeftAlone)
    assert of_kind(scavenge(tmp_path, dry_run=True, assume_dead=[name]), Claimed)
    scavenge(tmp_path, assume_dead=[name])
    assert members(tmp_path) == {"a": b"one"}
    # Who asserts it may be wrong: the pair waits in the graveyard all the same.
    assert [path.name for path in (tmp_path / ".rear/graveyard").rglob("*.journal")] == [journal.name]


def test_worker_that_is_seen_to_live_is_not_taken_for_dead(tmp_path: Path) -> None:
    with rear.rear_fs(tmp_path) as fs:
        put(fs, "ar.zip/a", "one")
        here = this_process().host
        assert "lives" in str(of_kind(scavenge(tmp_path, assume_dead=[here]), LeftAlone)[0])
        (refused,) = of_kind(scavenge(tmp_path, assume_dead=["nodw7"]), Refused)
        assert "nodw7" in str(refused)
    scavenge(tmp_path)
    assert members(tmp_path) == {"a": b"one"}


def test_leader_that_somebody_knows_to_be_dead_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path, 0, {1: ("a", b"one")})
    lock = tmp_path / ".rear/lock"
    record = {"kind": "leader", "leader": "node7-12-ab", "beat": 3, "lease_seconds": 60.0, "host": "node7", "pid": 12}
    lock.write_bytes(encode_line(record).ljust(1024))
    with pytest.raises(NotLeaderError, match="takes over in"):
        scavenge(tmp_path, assume_dead=["node8"])
    scavenge(tmp_path, assume_dead=["node7"])
    assert members(tmp_path) == {"a": b"one"}


def test_scavenge_command_ends_with_a_status_that_tells(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_rear("scavenge", tmp_path, *arguments, stdin=subprocess.DEVNULL)

    empty = run()
    assert (empty.returncode, "no worker has written here yet" in empty.stderr) == (0, True)
    assert list(tmp_path.iterdir()) == []
    write_pair(tmp_path, 0, {1: ("a", b"one")}, close="exit")
    assert run("--dry-run").returncode == 0
    assert not (tmp_path / "ar.zip").exists()
    assert "1 member, " in run("--dry-run").stderr
    assert run("--json").stdout.splitlines()[-2].startswith('{"kind": "finished"')
    (tmp_path / "no.zip").write_text("no Zip at all")
    with rear_fs(tmp_path) as fs:
        fs.open("no.zip/x").close()
    refused = run("--quiet")
    assert (refused.returncode, "no.zip" in refused.stderr) == (1, True)
    assert (tmp_path / "no.zip").read_text() == "no Zip at all"
    assert "no.zip/x" in run_rear("ls", "--pending", tmp_path, check=True).stdout
    assert run("--on-conflict", "sometimes").returncode == 2
    assert run("--every", "never").returncode == 2


def test_repeating_scavenge_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    write_pair(tmp_path, 0, {1: ("a", b"one")}, close="exit")
    process = start_rear("scavenge", tmp_path, "--every", "1h", stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    for line in process.stdout:
        if "merged  1 member" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    process.stdout.close()
    assert (process.wait(20), "Traceback" in rest) == (0, False)
    assert members(tmp_path) == {"a": b"one"}


def test_older_name_of_the_command(tmp_path: Path) -> None:
    write_pair(tmp_path, 0, {1: ("a", b"one")}, close="exit")
    run_code("from rear.cli import scavenger_main; scavenger_main()", "-d", tmp_path, check=True)
    assert members(tmp_path) == {"a": b"one"}
