"""A base that is damaged in each way that fsck finds."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

from bases import write
from faults import Point, dying_when, in_child
from pairs import dead_worker, write_pair
from zips import cut, directory_offset, flip

import rear
from rear.events import Checked, Event
from rear.fsck.base import fsck

FILES = {f"logs/{number}.txt": f"line {number}\n".encode() * (number * 50 + 1) for number in range(12)}
FILES |= {"random.bin": hashlib.shake_128(b"x").digest(20_000), "empty": b"", "umlaut ä/ß.txt": b"sz"}
EXPECTED = {f"ar.zip/{name}": data for name, data in FILES.items()} | {"sub/other.zip/one": b"1" * 500}


def write_files(base: Path) -> None:
    write(base, EXPECTED)


def check(base: Path, **options: object) -> list[Event]:
    events = list(fsck(base, **options))  # type: ignore[arg-type]
    assert isinstance(events[-1], Checked)
    return events


def kill_scavenger_when(base: Path, is_wanted: Callable[[Point, str], bool]) -> None:
    assert in_child(lambda: list(rear.scavenge(base, storage=dying_when(is_wanted)))) == -signal.SIGKILL


def cut_end_record(base: Path) -> str:
    os.truncate(base / "ar.zip", (base / "ar.zip").stat().st_size - 10)
    return "archive-directory-damaged"


def remove_directory(base: Path) -> str:
    cut(base / "ar.zip", directory_offset(base / "ar.zip"))
    return "archive-directory-damaged"


def flip_directory_entry(base: Path) -> str:
    flip(base / "ar.zip", directory_offset(base / "ar.zip") + 48)
    return "member-header-differs"


def flip_entry_signature(base: Path) -> str:
    data = (base / "ar.zip").read_bytes()
    flip(base / "ar.zip", data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4))
    return "archive-directory-damaged"


def flip_local_name(base: Path) -> str:
    flip(base / "ar.zip", 32)
    return "member-header-differs"


def remove_index(base: Path) -> str:
    shutil.rmtree(base / ".rear/index/ar.zip")
    return "index-missing"


def damage_index(base: Path) -> str:
    (segment,) = (base / ".rear/index/ar.zip").iterdir()
    data = bytearray(segment.read_bytes())
    data[4096:8192] = os.urandom(4096)
    segment.write_bytes(data)
    return "index-damaged"


def outdate_index(base: Path) -> str:
    with zipfile.ZipFile(base / "ar.zip", "a") as archive:
        archive.writestr("by zipfile", b"theirs")
    return "index-outdated"


def leave_fresh_file(base: Path) -> str:
    (base / ".rear/reports/x.json.0123456789ab.new").parent.mkdir(exist_ok=True)
    (base / ".rear/reports/x.json.0123456789ab.new").write_bytes(b"{")
    return "stray-temporary"


def leave_flush_request(base: Path) -> str:
    (base / ".rear/flush").mkdir(exist_ok=True)
    (base / ".rear/flush/0123").write_bytes(b"")
    return "stray-temporary"


def lose_journal(base: Path) -> str:
    _, journal = write_pair(base, 0, {1: ("late", b"late")}, worker=dead_worker())
    journal.unlink()
    return "journal-missing"


def damage_journal(base: Path) -> str:
    _, journal = write_pair(base, 0, {1: ("late", b"late")}, worker=dead_worker())
    flip(journal, 40)
    return "journal-damaged"


def crash_worker(base: Path) -> str:
    write_pair(base, 0, {1: ("late", b"late")})
    return "worker-crashed"


def interrupt_merge(base: Path) -> str:
    write_pair(base, 0, {1: ("late", b"late")}, close="exit")
    kill_scavenger_when(base, lambda point, path: point.operation == "copy_range" and path.endswith("ar.zip"))
    return "unfinished-merge"


def interrupt_merge_and_damage_intent(base: Path) -> str:
    interrupt_merge(base)
    (intent,) = (base / ".rear/intents").glob("*.intent")
    flip(intent, 20)
    return "intent-unreadable"


DAMAGE: list[Callable[[Path], str]] = [
    cut_end_record, remove_directory, flip_directory_entry, flip_entry_signature, flip_local_name, remove_index,
    damage_index, outdate_index, leave_fresh_file, leave_flush_request, lose_journal, damage_journal, crash_worker,
    interrupt_merge, interrupt_merge_and_damage_intent,
]  # fmt: skip
LATE = {"ar.zip/late": b"late"}
ADDED = {
    lose_journal: LATE, damage_journal: LATE, crash_worker: LATE, interrupt_merge: LATE,
    interrupt_merge_and_damage_intent: LATE, outdate_index: {"ar.zip/by zipfile": b"theirs"},
}  # fmt: skip


def expected_after(damage: Callable[[Path], str]) -> dict[str, bytes]:
    return EXPECTED | ADDED.get(damage, {})
