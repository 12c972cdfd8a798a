"""What anybody may have put into a base: nothing outside it is written, read or deleted, and honest work goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bases import check_archive, contents, scavenge, scratch_folder, write
from zips import write_zip

import rear
from rear.core.layout import Layout
from rear.core.liveness import this_process
from rear.core.records import Append, Close, Open, Origin
from rear.errors import RearError
from rear.events import Event
from rear.journal.codec import encode_line, encode_record
from rear.zip.codecs import crc32
from rear.zip.headers import Member, encode_central_entry, encode_end, encode_local_header

HONEST = {"ar.zip/honest.txt": b"an honest file", "other.zip/honest.txt": b"another one"}
SECRET = b"nobody's business " * 100
WORKER = "4711-abc-0123456789abcdef"


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder() as folder:
        (folder / "outside").mkdir()
        (folder / "outside" / "secret.txt").write_bytes(SECRET)
        write_zip(folder / "outside" / "victim.zip", {"inside the victim": SECRET})
        write(folder / "base", HONEST)
        yield folder


class Forgery:
    """A pair that looks like one of a worker that has ended; a test changes one thing about it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        process = this_process()
        self.folder = base / ".rear" / "inbox" / process.host
        self.journal = self.folder / f"{WORKER}-0.journal"
        self.temp_archive = self.folder / f"{WORKER}-0.zip"
        self.opened = Open(
            1, process.host, WORKER, 0, 99, process.pid, 1, process.boot_id, process.pid_namespace, 0, 60.0, 0,
            time_namespace=process.time_namespace,
        )  # fmt: skip
        self.data = b"forged content"
        self.append = Append(
            1, None, 0, len(self.data), 0, 0, "ar.zip", "forged.txt", 0, crc32(self.data), len(self.data),
            len(self.data), 10**18, stat.S_IFREG | 0o644,
        )  # fmt: skip
        self.origin: dict[str, Any] = {}
        self.closed = True

    def write(self, change: Callable[[dict[str, Any]], None] = lambda record: None, *, sparse: int = 0) -> None:
        """Write both files; ``change`` may change the append record as it stands in the journal."""
        append, opened = self.append, self.opened
        member = Member(append.name, 0, append.crc, append.compressed_size, append.size, append.mtime_ns, append.mode)
        values = {
            "cookie": opened.cookie, "sequence": append.sequence, "archive": append.archive, "host": opened.host,
            "worker": opened.worker, "mtime_ns": append.mtime_ns, "mode": append.mode, "metadata": append.metadata,
        }  # fmt: skip
        header = encode_local_header(member, Origin(**{**values, **self.origin}))
        length = len(header) + len(self.data)
        record: dict[str, Any] = {"kind": "append", **append._replace(length=length)._asdict()}
        change(record)
        lines = [encode_record(opened), raw_line(record)]
        entry = encode_central_entry(member, 0)
        end = encode_end(entries=1, directory_length=len(entry), directory_offset=length)
        if self.closed:
            lines.append(encode_record(Close("exit", 1, length + len(entry + end))))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal.write_bytes(b"".join(lines))
        self.temp_archive.write_bytes(header + self.data + entry + end)
        if sparse:
            os.truncate(self.temp_archive, sparse)


def raw_line(record: dict[str, Any]) -> bytes:
    """A line as `encode_line` makes them, of anything that Python's json can write."""
    data = json.dumps(record).encode()
    return b"%08x %b\n" % (crc32(data), data)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            hashlib.blake2b(path.read_bytes()).digest() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def survives(folder: Path, *, honest: bool = True, seconds: float = 10.0) -> list[Event]:
    """Scavenge, twice, and assert that nothing outside was touched and that honest work was done."""
    before = snapshot(folder / "outside")
    begun = time.monotonic()
    events = scavenge(folder / "base") + scavenge(folder / "base")
    assert time.monotonic() - begun < seconds
    assert snapshot(folder / "outside") == before
    assert sorted(path.name for path in folder.iterdir()) == ["base", "outside"]
    for path in (folder / "base").rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert SECRET[:50] not in path.read_bytes(), path
    if honest:
        for target, data in HONEST.items():
            archive, _, name = target.partition("/")
            # Which of two pairs comes first depends on process numbers; the second of one name gets a number.
            names = {name, name.replace(".", "~1.")}
            assert next(found for found, content in contents(folder / "base" / archive) if content == data) in names
            check_archive(folder / "base" / archive)
    return events


def test_the_forgery_itself_is_well_made(folder: Path) -> None:
    Forgery(folder / "base").write()
    survives(folder)
    assert ("forged.txt", b"forged content") in contents(folder / "base" / "ar.zip")


NUMBERS = (-1, -(1 << 63), 1, 31, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 200, 1.5, 1e999, True, "1", [], {})
FIELDS = (
    "offset", "length", "size", "compressed_size", "crc", "method", "mtime_ns", "mode", "sequence",
    "source_start", "source_end",
)  # fmt: skip


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("field", FIELDS)
def test_numbers(folder: Path, field: str, closed: bool) -> None:
    for number, value in enumerate(NUMBERS):
        forgery = Forgery(folder / "base")
        forgery.append = forgery.append._replace(sequence=number + 1, name=f"forged {number}")
        worker = f"4711-abc-0123456789abcde{number:x}"
        forgery.opened = forgery.opened._replace(worker=worker)
        forgery.journal = forgery.folder / f"{worker}-0.journal"
        forgery.temp_archive = forgery.folder / f"{worker}-0.zip"
        forgery.closed = closed
        forgery.write(lambda record, value=value: record.update({field: value}))
    survives(folder)


def test_a_number_that_makes_a_renamed_member_impossible(folder: Path) -> None:
    """Members of one name get new local headers: what stands in the journal has to fit into one."""
    for field, value in [("mode", 1 << 40), ("mtime_ns", -(1 << 63)), ("metadata", {"a": "b" * 100_000})]:
        forgery = Forgery(folder / "base")
        forgery.append = forgery.append._replace(name="honest.txt")
        forgery.write(lambda record, field=field, value=value: record.update({field: value}))
        survives(folder)
        shutil.rmtree(folder / "base" / ".rear" / "lost+found", ignore_errors=True)


ARCHIVES = (
    "../outside/victim.zip", "/tmp/x.zip", "a/../../outside/victim.zip", ".rear/inbox/x.zip", ".REAR/x.zip",
    ".rear/../x.zip", "./x.zip", "a//x.zip", "", "x", "x.zip/", "a.zip/b.zip", "a\\b.zip", "a\0.zip", "a\n.zip",
    "link/victim.zip", "link/new.zip", "evil.zip", "folder.zip", "pipe.zip", "state/x.zip", "ar.zip/x.zip",
    "honest.txt/x.zip", "x" * 250 + ".zip", "y/" * 600 + "x.zip", "\udcff.zip",
)  # fmt: skip


@pytest.mark.parametrize("archive", ARCHIVES, ids=range(len(ARCHIVES)))
def test_paths_of_archives(folder: Path, archive: str) -> None:
    base = folder / "base"
    (base / "link").symlink_to(folder / "outside")
    (base / "evil.zip").symlink_to(folder / "outside" / "victim.zip")
    (base / "folder.zip").mkdir()
    (base / "state").symlink_to(".rear")
    os.mkfifo(base / "pipe.zip")
    forgery = Forgery(base)
    forgery.origin = {"archive": archive}
    if "\udcff" not in archive:
        forgery.write(lambda record: record.update(archive=archive))
        survives(folder)
    assert not (base / ".rear" / "x.zip").exists()
    (base / "pipe.zip").unlink()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "", ".", "a//b", "a\\b", "a\0b", "a\x1bb", "\ud800", "x" * 70_000, "a/./b"]
)
def test_names_of_members(folder: Path, name: str) -> None:
    forgery = Forgery(folder / "base")
    forgery.write(lambda record: record.update(name=name))
    survives(folder)
    # What is no valid record at all leaves the member to its own local header, which names it well.
    placed = ["forged.txt"] if name == "\ud800" else []
    assert sorted(found for found, _ in contents(folder / "base" / "ar.zip")) == [*placed, "honest.txt"]


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 1 << 62}, {"pid": 0}, {"process_start": 1 << 62}, {"lease_seconds": 1e999}, {"lease_seconds": -1.0},
        {"lease_seconds": float("nan")}, {"host": "../../outside"}, {"worker": "1-2-other"}, {"rotation": 5},
        {"cookie": 1 << 62}, {"boot_id": "x" * 1000}, {"pid_namespace": None, "boot_id": None},
    ],
)  # fmt: skip
@pytest.mark.parametrize("closed", [True, False])
def test_first_records(folder: Path, changes: dict[str, Any], closed: bool) -> None:
    forgery = Forgery(folder / "base")
    forgery.closed = closed
    forgery.write()
    lines = forgery.journal.read_bytes().splitlines(keepends=True)
    lines[0] = raw_line({"kind": "open", **forgery.opened._asdict(), **changes})
    forgery.journal.write_bytes(b"".join(lines))
    survives(folder)


def test_a_journal_of_a_future_version_is_left_untouched(folder: Path) -> None:
    forgery = Forgery(folder / "base")
    forgery.opened = forgery.opened._replace(format_version=2)
    forgery.write()
    before = forgery.journal.read_bytes(), forgery.temp_archive.read_bytes()
    events = survives(folder)
    assert (forgery.journal.read_bytes(), forgery.temp_archive.read_bytes()) == before
    reasons = [event.as_json().get("reason", "") for event in events if event.kind == "refused"]
    # One event in each of the two scavenges.
    assert ["version 2" in reason for reason in reasons] == [True, True]


@pytest.mark.parametrize("suffix", ["zip", "journal", "merged"])
@pytest.mark.parametrize("kind", ["fifo", "link", "dangling", "folder", "directory link"])
def test_files_of_pairs_that_are_none(folder: Path, suffix: str, kind: str) -> None:
    forgery = Forgery(folder / "base")
    forgery.write()
    path = forgery.journal.with_suffix(f".{suffix}")
    path.unlink(missing_ok=True)
    make_odd(path, kind, folder)
    survives(folder)


def make_odd(path: Path, kind: str, folder: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(folder / "outside" / "secret.txt")
    elif kind == "directory link":
        path.symlink_to(folder / "outside")
    else:
        path.symlink_to(folder / "outside" / "nothing")


@pytest.mark.parametrize("kind", ["fifo", "link", "dangling", "folder", "directory link"])
@pytest.mark.parametrize("name", ["lock", "intents", "observations/workers/x", "claims/leader", "graveyard/host"])
def test_odd_files_in_the_state(folder: Path, name: str, kind: str) -> None:
    path = folder / "base" / ".rear" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make_odd(path, kind, folder)
    before = snapshot(folder / "outside")
    try:
        survives(folder)
    except (OSError, RearError):
        assert name in ("lock", "intents", "claims/leader", "graveyard/host")
    assert snapshot(folder / "outside") == before


def test_a_temp_archive_that_is_a_hard_link_to_what_is_not_ours(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving files away takes root")
    forgery = Forgery(folder / "base")
    forgery.write(lambda record: record.update(offset=0, length=len(SECRET), compressed_size=len(SECRET) - 100))
    forgery.temp_archive.unlink()
    os.link(folder / "outside" / "secret.txt", forgery.temp_archive)
    os.chown(forgery.journal, 12345, -1)
    before = snapshot(folder / "outside")
    scavenge(folder / "base")
    assert snapshot(folder / "outside") == before
    # Of its journal, which counts for nothing, the text is kept; of the other file nothing is copied.
    kept = [path for path in (folder / "base/.rear/lost+found").rglob("*") if path.is_file()]
    assert not [path for path in kept if path.stat().st_nlink == 1 and SECRET in path.read_bytes()]
    assert SECRET not in b"".join(path.read_bytes() for path in (folder / "base").glob("*.zip"))


def old_directory(**changes: Any) -> dict[str, Any]:
    return {"archive_length": 100, "offset": 50, "length": 28, "entries": 1, "prefix": 0, "comment": "", **changes}


INTENTS: list[dict[str, Any]] = [
    {"archive": "../outside/victim.zip"}, {"archive": "link/victim.zip"}, {"archive": "evil.zip"}, {"archive": 5},
    {"archive": ".rear/lock.zip"}, {"archive": "missing.zip"}, {"format_version": 2}, {"format_version": "x"},
    {"old": old_directory(offset=-1)}, {"old": old_directory(offset=1 << 62, archive_length=(1 << 62) + 50)},
    {"old": old_directory(offset=1e999)}, {"old": old_directory(comment="x")}, {"old": []}, {"old": None},
    {"tail_length": 1 << 62}, {"tail_length": -5}, {"tail_crc": 5}, {"leader": {}}, {"process": {"pid": "x"}},
    {"kind": "x"},
]  # fmt: skip


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("change", INTENTS, ids=range(len(INTENTS)))
def test_intents(folder: Path, change: dict[str, Any], committed: bool) -> None:
    base = folder / "base"
    (base / "link").symlink_to(folder / "outside")
    (base / "evil.zip").symlink_to(folder / "outside" / "victim.zip")
    tail = bytes(50)
    begin = {
        "kind": "begin", "format_version": 1, "archive": "third.zip", "leader": "me", "tail_length": len(tail),
        "tail_crc": crc32(tail), "old": old_directory(), **change,
    }  # fmt: skip
    moves = {"kind": "moves", "pair": "host/x-0", "members": [[1, "a", 0, 5]]}
    data = raw_line(begin) + tail + raw_line(moves) + encode_line({"kind": "planned"})
    if committed:
        data += encode_line({"kind": "commit"})
    layout = Layout(base)
    layout.intents.mkdir(parents=True)
    for archive in (begin["archive"], "third.zip"):
        try:
            layout.intent(archive, "me").write_bytes(data)
            layout.intent(archive, "me").with_suffix(".archive").symlink_to(folder / "outside" / "secret.txt")
        except (RearError, TypeError, AttributeError, FileExistsError):
            continue
    survives(folder)


@pytest.mark.parametrize(
    "record",
    [
        {"pair": [], "members": []}, {"pair": "x", "members": 5}, {"pair": "x", "members": [[]]}, {},
        {"pair": "x", "members": [["1", 2, 3, 4]]}, {"pair": {}, "members": [[1, "a", 2, 3]]},
    ],
)  # fmt: skip
def test_moves_of_intents(folder: Path, record: dict[str, Any]) -> None:
    base = folder / "base"
    begin = {
        "kind": "begin", "format_version": 1, "archive": "ar.zip", "leader": "me", "tail_length": 0, "tail_crc": 0,
        "old": None,
    }  # fmt: skip
    records = [begin, {"kind": "moves", **record}, {"kind": "planned"}, {"kind": "commit"}]
    layout = Layout(base)
    layout.intents.mkdir(parents=True)
    layout.intent("ar.zip", "me").write_bytes(b"".join(map(raw_line, records)))
    survives(folder)


@pytest.mark.parametrize(
    "record",
    [
        b"", b"x" * 1024, b"\0" * 1024, raw_line({"leader": "x"}),
        raw_line({"leader": "x", "lease_seconds": "y", "pid": -1}),
        raw_line({"leader": [], "beat": {}, "lease_seconds": 1e999, **this_process()._asdict(), "pid": 1 << 70}),
        raw_line({"leader": "x", **this_process()._asdict(), "pid": "1", "host": 7}),
    ],
)  # fmt: skip
def test_owner_records(folder: Path, record: bytes) -> None:
    (folder / "base" / ".rear" / "lock").write_bytes(record)
    before = snapshot(folder / "outside")
    try:
        scavenge(folder / "base")
    except RearError as error:
        # An owner that cannot be seen is waited for, and not for ever.
        assert "takes over in" in str(error)  # noqa: PT017
        assert "inf" not in str(error)  # noqa: PT017
    assert snapshot(folder / "outside") == before


def test_what_is_no_zip_is_left_as_it_is(folder: Path) -> None:
    path = folder / "base" / "ar.zip"
    path.write_bytes(b"no Zip file at all\n" * 100)
    before = path.read_bytes()
    events = scavenge(folder / "base") + scavenge(folder / "base")
    assert path.read_bytes() == before
    assert [event.as_json()["subject"] for event in events if event.kind == "refused"] == ["ar.zip", "ar.zip"]
    assert contents(folder / "base" / "other.zip") == [("honest.txt", b"another one")]
    assert len(list((folder / "base" / ".rear" / "inbox").rglob("*.journal"))) == 1
    path.unlink()
    survives(folder)


@pytest.mark.parametrize("filler", [b"\n", b"x\n", b"00000000 {}\n", b"\0", b"x"])
def test_long_garbage_in_a_journal(folder: Path, filler: bytes) -> None:
    forgery = Forgery(folder / "base")
    forgery.write()
    forgery.journal.write_bytes(forgery.journal.read_bytes() + filler * ((4 << 20) // len(filler)))
    survives(folder, seconds=30)


def test_names_in_the_inbox_that_rear_does_not_give(folder: Path) -> None:
    inbox = folder / "base" / ".rear" / "inbox"
    host = next(inbox.iterdir())
    not_utf8 = os.fsdecode(b"\xff-1-0.zip")
    for name in ("x", "..journal", "a\nb.journal", "-.zip", "1-2-3.journal.zip", "é-1.journal", not_utf8):
        (host / name).write_bytes(b"?")
    for name in ("..x", "a b", os.fsdecode(b"\xff\xfe")):
        (inbox / name).mkdir()
    survives(folder)
    json.dumps([event.as_json() for event in survives(folder)])


@pytest.mark.parametrize("depth", [64, 65, 900])
def test_metadata_that_nests_deep(folder: Path, depth: int) -> None:
    base = folder / "base"
    forgery = Forgery(base)
    metadata: dict[str, Any] = {}
    for _ in range(depth - 1):
        metadata = {"a": metadata}
    forgery.write(lambda record: record.update(metadata=metadata))
    survives(folder)
    with rear.rear_fs(folder / "other") as fs:
        if depth > 64:
            with pytest.raises(rear.errors.UsageError, match="levels deep"):
                fs.open("ar.zip/a", "w", metadata=metadata)
        else:
            fs.open("ar.zip/a", "w", metadata=metadata).close()


@pytest.mark.parametrize("folder", ["inbox", "claims", "graveyard", "intents", "observations", "lost+found"])
def test_a_file_among_the_folders_of_a_base_stops_nothing(tmp_path: Path, folder: str) -> None:
    write(tmp_path, {"ar.zip/a.txt": "kept\n"})
    place = Layout(tmp_path).state / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "plain").write_bytes(b"")
    events = scavenge(tmp_path)
    assert [event.archive for event in events if event.kind == "merged"] == ["ar.zip"]
    assert contents(tmp_path / "ar.zip") == [("a.txt", b"kept\n")]
    assert (place / "plain").exists() or folder != "inbox"
