"""Bases that somebody has forged: a bad thing in any place of ``.rear``, beside pairs that are honest.

A place is a name that rear gives, a kind is what stands there instead of what rear writes. A whole base is forged by a
seed. What comes of it is judged by three things: each honest member is merged once, what lies outside is untouched, and
no command takes much time or memory, or ends with a traceback.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

from bases import write
from pairs import dead_worker, write_pair
from rich.console import Console
from zips import write_zip

import rear
from rear.cli.display.status_page import page
from rear.core.layout import Layout
from rear.core.liveness import this_process
from rear.core.records import LARGEST
from rear.diagnostics.openmetrics import as_text
from rear.diagnostics.status import look_at
from rear.errors import RearError
from rear.fsck.base import fsck
from rear.journal.codec import encode_line
from rear.journal.intent import Begin, write_intent
from rear.zip.directory import locate

HOST: Final = this_process().host
DEAD: Final = dead_worker()
LEADER: Final = f"{HOST}-1999999999-0123456789ab"
DEEP: Final = b"[" * 200_000
#: As deep as a reader without a limit of its own takes it, and deeper than it can write it again.
NESTED: Final = b'{"a":' * 900 + b"1" + b"}" * 900
MEMORY_LIMIT_BYTES: Final = 300 << 20


# --- kinds --------------------------------------------------------------------------------------------------------


def _line(payload: bytes) -> bytes:
    return b"%08x %b\n" % (binascii.crc32(payload), payload)


def make_socket(path: Path) -> None:
    # Paths of sockets are short.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def make_sparse(path: Path, size_bytes: int = 22 << 30) -> None:
    with open(path, "wb") as file:
        file.truncate(size_bytes)


def make_islands(path: Path) -> None:
    """A sparse file with some bytes here and there."""
    with open(path, "wb") as file:
        for number in range(4):
            file.seek(number << 33)
            file.write(b"PK\3\4" + b"island\n")
        file.truncate(1 << 36)


def make_shut(path: Path) -> None:
    path.write_bytes(b"secret")
    path.chmod(0)


def make_full_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_bytes(b"x")
    (path / "1-1-ab-0.journal").write_bytes(b"x")
    (path / "1.sqlite").write_bytes(b"x")


def make_device(path: Path) -> None:
    try:
        # As /dev/zero: whoever reads it never comes to its end.
        os.mknod(path, 0o20644, os.makedev(1, 5))
    except PermissionError:
        path.touch()


_WILD: Final = (
    0, 1, -1, 2**31, 2**32, LARGEST, 2**63, 2**64, 10**300, 1e308, 1e-308, None, True, "", "x", "../../x", "a" * 5000,
    "\0", "\ud800", [], {}, [[]], {"a": 1}, "ar.zip", ".rear/x.zip",
)  # fmt: skip
_KEYS: Final = re.findall(
    r"\w+",
    "format_version host worker rotation cookie pid process_start boot_id pid_namespace uid lease_seconds created_ns "
    "repeats_from time_namespace sequence source source_start source_end offset length archive name method crc "
    "compressed_size size mtime_ns mode metadata first_sequence repeated_size number reason members sequences target "
    "intent leader process old tail_length tail_crc permit pair beat",
)
_RECORDS: Final = re.findall(
    r"\w+", "open append file part abort beat close merged begin moves planned commit leader odd"
)


def wild_records(chance: random.Random | None = None) -> bytes:
    """Return records of all kinds, whole, and with numbers and texts that make no sense."""
    chance = chance or random.Random(0)
    lines = []
    for number in range(60):
        payload: dict[str, Any] = {"kind": _RECORDS[number % len(_RECORDS)]}
        payload.update((key, chance.choice(_WILD)) for key in _KEYS if chance.random() < 0.9)
        with contextlib.suppress(ValueError):
            lines.append(encode_line(payload))
    return b"".join(lines)


_NUMBERS: Final = b'{"clocks":["c"],"seen":{"a":["b",1e308,[[1%b,1]]]}}' % (b"0" * 400)
_REPORT: Final = {
    "version": 1,
    "leader": "x",
    "started_ns": 10**300,
    "finished_ns": -(10**300),
    "refused": 10**300,
    "summary": {"members": "many", "size_bytes": -1e308, "refused": [], "kind": {}, "archives": None},
}


KINDS: Final[dict[str, Callable[[Path], object]]] = {
    "nothing": lambda path: path.touch(),
    "garbage": lambda path: path.write_bytes(random.Random(1).randbytes(5_000)),
    "lines": lambda path: path.write_bytes(b"x\n" * 5_000),
    "zeros": lambda path: path.write_bytes(bytes(70_000)),
    "deep": lambda path: path.write_bytes(DEEP),
    "deep_object": lambda path: path.write_bytes(b'{"seen":{"a":' + DEEP),
    "deep_line": lambda path: path.write_bytes(_line(DEEP)),
    "nested": lambda path: path.write_bytes(NESTED),
    "nested_line": lambda path: path.write_bytes(_line(NESTED)),
    "numbers": lambda path: path.write_bytes(_NUMBERS),
    "report": lambda path: path.write_text(json.dumps(_REPORT)),
    "long_number": lambda path: path.write_bytes(b"1" * 100_000),
    "long_number_line": lambda path: path.write_bytes(_line(b'{"kind":"open","pid":' + b"9" * 100_000 + b"}")),
    "wild": lambda path: path.write_bytes(wild_records()),
    "fifo": os.mkfifo,
    "device": make_device,
    "socket": make_socket,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": Path.mkdir,
    "full_folder": make_full_folder,
    "shut": make_shut,
    "sparse": make_sparse,
    "islands": make_islands,
    "zip": lambda path: write_zip(path, {"x": b"x" * 999, "y": b"y"}),
    "database": lambda path: sqlite3.connect(path).executescript("CREATE TABLE x (y)").close(),
}  # fmt: skip


# --- places -------------------------------------------------------------------------------------------------------

DIGITS: Final = "9" * 255
DIGEST: Final = Layout("/base").intent("ar.zip", LEADER).name
PLACES: Final = (
    f"inbox/{HOST}/{DEAD}-70.journal",
    f"inbox/{HOST}/{DEAD}-71.zip",
    f"inbox/{HOST}/{DEAD}-72.merged",
    f"inbox/{HOST}/{DEAD}-1.journal",
    f"inbox/{HOST}/{DEAD}-2.zip",
    f"inbox/{HOST}/{DEAD}-3.merged",
    f"inbox/{HOST}/7-7-abcdef-999999999.journal",
    f"inbox/{HOST}/{DIGITS}",
    f"inbox/{HOST}/x",
    f"inbox/other/{DEAD}-70.journal",
    f"inbox/other/{DEAD}-71.zip",
    f"inbox/{DIGITS}",
    "inbox/third",
    f"claims/{HOST}-1-ab",
    f"claims/{LEADER}/third",
    f"claims/{LEADER}/{HOST}/{DEAD}-73.journal",
    f"claims/{LEADER}/{HOST}/{DEAD}-74.zip",
    f"claims/{LEADER}/{HOST}/{DEAD}-75.merged",
    f"claims/{LEADER}/{HOST}/{DEAD}-76.rescue",
    f"claims/{DIGITS}",
    "graveyard/third",
    f"graveyard/{HOST}/{DEAD}-77.journal",
    f"graveyard/{HOST}/{DEAD}-78.zip",
    f"graveyard/{HOST}/{DEAD}-79.merged",
    "terms/7", f"terms/{'9' * 18}", f"terms/{DIGITS}", "terms/x", "terms/0", "terms/٣", "terms/²",
    f"intents/{DIGEST}",
    f"intents/{DIGEST.removesuffix('intent')}archive",
    f"intents/{DIGEST.removesuffix('intent')}planning",
    f"intents/{DIGEST.removesuffix('.intent')}-0123456789abcdef.permit",
    "intents/x.intent",
    "intents/x",
    "observations/workers/seen.json",
    "observations/leader/seen.json",
    "observations/graveyard/seen.json",
    "reports/20990101T000000-x-1-0123456789ab.json",
    "reports/x",
    "flush/0123456789abcdef",
    f"flush/{DIGITS}",
    f"lost+found/{time.strftime('%Y-%m-%d')}/x.json",
    "lost+found/x",
    "index/other.zip",
    "index/ar.zip/1.sqlite",
    "index/ar.zip/999999999999999.sqlite",
    f"index/ar.zip/{'9' * 200}.sqlite",
    "index/ar.zip/2-0123456789abcdef.part",
    "index/x.zip",
    "index/y.zip/1.sqlite",
    "index/x",
    "config.toml",
    "x",
)  # fmt: skip
"""A base can do its work whatever stands there."""
PARTS: Final = ("lock", "inbox", "claims", "intents", "terms", "graveyard", "observations", "reports", "flush",
                "lost+found", "index")  # fmt: skip
"""Without some of them nothing can be merged; that is to be said by name."""


def make_honest(base: Path) -> dict[str, bytes]:
    """Make a base with an archive, and pairs that wait; return what all of it holds, by target."""
    write(base, {"ar.zip/there": "there"})
    for _ in rear.scavenge(base):
        pass
    waiting = {f"ar.zip/a{number}": b"honest %d" % number * 50 for number in range(3)}
    waiting |= {f"other.zip/b{number}": b"too %d" % number for number in range(3)}
    write(base, waiting)
    write_pair(base, 0, {1: ("crashed", b"crashed" * 99)}, worker=DEAD.replace("abcdef", "fedcba"))
    return {"ar.zip/there": b"there", "ar.zip/crashed": b"crashed" * 99} | waiting


def put_bad(base: Path, place: str, kind: str) -> bool:
    """Put something bad in a place, of whose pair the rest is good; return whether that could be done."""
    rotation = place.partition(f"{DEAD}-")[2].partition(".")[0]
    if rotation in ("1", "2", "3"):
        write_pair(base, int(rotation), {1: ("bad", b"bad" * 99), 2: ("bad2", b"")}, worker=DEAD)
    path = base / ".rear" / place
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        KINDS[kind](path)
    except (OSError, sqlite3.Error):
        return False
    return True


# --- commands -----------------------------------------------------------------------------------------------------


def run_status(base: Path) -> object:
    seen = look_at(base)
    Console(file=StringIO()).print(page(seen))
    return json.dumps(seen.as_json()), as_text(seen)


def run_sweep(base: Path) -> object:
    folder = base.parent / "swept"
    folder.mkdir(exist_ok=True)
    (folder / "swept").write_bytes(b"swept")
    return list(rear.sweep(folder, into="ar.zip", base=base, wait_seconds=0.1))


LATER: Final = {"ar.zip/later": b"later", "ar.zip/swept": b"swept"}
"""What the commands themselves write."""
COMMANDS: Final[dict[str, Callable[[Path], object]]] = {
    "status": run_status,
    "fsck -n": lambda base: list(fsck(base, report_only=True)),
    "dry run": lambda base: list(rear.scavenge(base, dry_run=True)),
    "write": lambda base: write(base, {"ar.zip/later": b"later"}),
    "scavenge": lambda base: list(rear.scavenge(base)),
    "status after": run_status,
    "sweep": run_sweep,
    "flush": lambda base: list(rear.scavenge(base, flush=True, flush_wait_seconds=0.01)),
    "fsck": lambda base: list(fsck(base)),
    "fsck again": lambda base: list(fsck(base, deep=True)),
}


class Outcome(NamedTuple):
    """What came of some commands, in a process of their own.

    Attributes:
        errors: by command, what ended it; of what is no error of rear's, the traceback.
        seconds: by command, how long it took.
        told: what needs attention, in the words of all commands.
        memory_bytes: how much more memory than before the process had at most.
    """

    errors: dict[str, str]
    seconds: dict[str, float]
    told: list[str]
    memory_bytes: int


def outcome_of(base: Path, commands: tuple[str, ...] = tuple(COMMANDS), *, limit_seconds: int = 60) -> Outcome:
    """Run commands on a base in a fork, which is killed after ``limit_seconds``."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit_seconds)
        os.close(reading)
        before = _most_memory_bytes()
        with open(writing, "w") as out:
            for name in commands:
                print(json.dumps(["begun", name]), file=out, flush=True)
                begin, error, told = time.monotonic(), "", []
                try:
                    result = COMMANDS[name](base)
                    told = [str(event) for event in result if event.severity != "info"] if type(result) is list else []
                except RearError as failure:
                    error = f"{type(failure).__name__}: {failure}"
                except BaseException:
                    error = traceback.format_exc()
                seconds_taken = time.monotonic() - begin
                print(json.dumps(["done", name, error, seconds_taken, told]), file=out, flush=True)
            print(json.dumps(["memory", _most_memory_bytes() - before]), file=out)
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said = [json.loads(line) for line in file]
    _, status = os.waitpid(child, 0)
    done = [one[1:] for one in said if one[0] == "done"]
    errors = {name: error for name, error, _, _ in done if error}
    if status:
        errors[said[-1][1]] = f"Traceback: none; its process ended by status {status}, after {limit_seconds} s at most"
    seconds = {name: seconds_taken for name, _, seconds_taken, _ in done}
    told = [f"{name}: {text}" for name, _, _, texts in done for text in texts]
    return Outcome(errors, seconds, told, next((one[1] for one in said if one[0] == "memory"), 0))


def _most_memory_bytes() -> int:
    # Not ru_maxrss: a fork begins with that of its parent.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


# --- the judge ----------------------------------------------------------------------------------------------------


def faults_of(base: Path, honest: dict[str, bytes]) -> list[str]:
    """Return what is wrong with the honest members of a base: missing, there twice, or not what was written."""
    found: dict[str, list[bytes]] = {}
    for archive in sorted({target.partition("/")[0] for target in honest}):
        if (base / archive).exists():
            with zipfile.ZipFile(base / archive) as opened:
                for entry in opened.infolist():
                    found.setdefault(f"{archive}/{entry.filename}", []).append(opened.read(entry))
    return [
        f"{target} is there {len(found.get(target, []))} times" + (", and changed" if found.get(target) else "")
        for target, data in honest.items()
        if found.get(target) != [data]
    ]


def picture_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return what a tree holds: of each name mode, time of change and content."""
    return {
        str(path.relative_to(folder)): (
            (status := path.lstat()).st_mode,
            status.st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def disk_bytes(folder: Path) -> int:
    """Return how much room a tree takes."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


# --- whole bases, by a seed ---------------------------------------------------------------------------------------


def make_decoy(folder: Path) -> None:
    """Make a tree outside of all bases, with files that have the names of rear's own."""
    for name in ("a", "7-7-abcdef-3.journal", "7-7-abcdef-3.zip", "1.sqlite", "1", f"{HOST}/7-7-abcdef-4.journal"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"decoy " + name.encode())


def forge_notes(base: Path, chance: random.Random) -> None:
    """Note of pairs that wait that all of their members are merged."""
    for journal in (base / ".rear/inbox").glob("*/*.journal"):
        note = {
            "kind": "merged",
            "sequences": list(range(20)),
            "target": chance.choice(["ar.zip", "other.zip", "x.zip"]),
        }
        # Never into what is there: it may be a FIFO, which blocks, or a link.
        with contextlib.suppress(OSError), open(journal.with_suffix(".merged"), "xb") as file:
            file.write(encode_line({**note, "intent": DIGEST.partition(".")[0]}))


def forge_intent(base: Path) -> None:
    """Have a merge into a sound archive be undone that never was: the archive was empty before."""
    empty = base.parent / "empty.zip"
    with zipfile.ZipFile(empty, "w"):
        pass
    with open(empty, "rb") as file, contextlib.suppress(OSError):
        begin = Begin("ar.zip", LEADER, locate(file.fileno()), this_process())
        path = Layout(base).intent("ar.zip", LEADER)
        writer = write_intent(path, begin, [], archive_descriptor=file.fileno())
        writer.close()


def forge(base: Path, chance: random.Random, decoy: Path) -> Counter[str]:
    """Put bad things in random places of a base, of random kinds; return how many of each."""
    genuine = [path for path in sorted((base / ".rear").rglob("*")) if path.is_file() and path.name != "lock"]
    contents = [path.read_bytes() for path in genuine]
    kept = {str(path) for path in genuine}
    made: Counter[str] = Counter()

    def spoiled(path: Path) -> None:
        """A real file in a wrong place, as it is, cut, changed, or mixed with another one."""
        data = bytearray(chance.choice(contents))
        match chance.randrange(4):
            case 0:
                del data[chance.randrange(len(data) + 1) :]
            case 1:
                for _ in range(chance.randrange(1, 9)):
                    if data:
                        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 2:
                data += chance.choice(contents)
        path.write_bytes(data)

    kinds: dict[str, Callable[[Path], object]] = {
        **KINDS,
        "wild": lambda path: path.write_bytes(wild_records(chance)),
        "spoiled": spoiled,
        "sparse": lambda path: make_sparse(path, chance.choice([1 << 20, 1 << 31, 100 << 30, 8 << 40])),
        "link_to_file": lambda path: path.symlink_to(decoy / "a"),
        "link_to_folder": lambda path: path.symlink_to(decoy),
    }
    names = sorted(kinds) + ["spoiled", "wild"] * 6
    for _ in range(chance.randrange(5, 60)):
        place = chance.choice(PLACES)
        if place == "config.toml" and chance.random() < 0.9:
            # What makes no sense there is refused by name, before anything is done.
            continue
        if f"{DEAD}-7" in place and chance.random() < 0.7:
            stem, _, suffix = place.rpartition(".")
            place = f"{stem[:-1]}{chance.randrange(4)}.{suffix}"
        path, kind = base / ".rear" / place, chance.choice(names)
        if str(path) in kept or os.path.lexists(path):
            continue
        with contextlib.suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            kinds[kind](path)
            made[kind] += 1
    if chance.random() < 0.5:
        forge_notes(base, chance)
        made["notes of honest pairs"] += 1
    if chance.random() < 0.5:
        forge_intent(base)
        made["intent of an honest archive"] += 1
    if chance.random() < 0.3:
        folder = base / ".rear/inbox" / HOST
        for number in range(chance.randrange(300)):
            kinds[chance.choice(["nothing", "lines"])](folder / f"{DEAD}-{1000 + number}.journal")
            made["many"] += 1
    return made


class Verdict(NamedTuple):
    """What came of one forged base."""

    faults: list[str]
    made: Counter[str]
    seconds: float
    memory_bytes: int


def try_seed(folder: Path, template: Path, honest: dict[str, bytes], seed: int, *, limit_seconds: int = 60) -> Verdict:
    """Forge a base by a seed, run all commands on it, and judge what came of it."""
    base, decoy = folder / "base", folder / "decoy"
    for path in (base, decoy, folder / "swept"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(template, base)
    make_decoy(decoy)
    made, before = forge(base, random.Random(seed), decoy), picture_of(decoy)
    outcome = outcome_of(base, limit_seconds=limit_seconds)
    faults = [f"{name}: {error}" for name, error in outcome.errors.items() if not _is_of_the_configuration(error)]
    expected = honest | {target: data for target, data in LATER.items() if not outcome.errors}
    if "scavenge" not in outcome.errors:
        faults += faults_of(base, expected)
    if picture_of(decoy) != before:
        faults.append("the decoy was touched")
    if outcome.memory_bytes > MEMORY_LIMIT_BYTES:
        faults.append(f"it took {outcome.memory_bytes:,} bytes of memory")
    if disk_bytes(folder) > 64 << 20:
        faults.append(f"it took {disk_bytes(folder):,} bytes of disk")
    if faults:
        # What a seed alone does not bring back: processes, times, the order of folders.
        faults += [f"told by {text}" for text in outcome.told]
    return Verdict(faults, made, sum(outcome.seconds.values()), outcome.memory_bytes)


def _is_of_the_configuration(error: str) -> bool:
    # What nobody can make sense of is refused before anything is written, by name; of a stranger it is ignored.
    return error.startswith("ConfigError: ") or error.rstrip().endswith("/.rear/config.toml'")


def seeds_for(seconds: float, first: int) -> Iterator[int]:
    """Yield seeds for so long."""
    end, seed = time.monotonic() + seconds, first
    while time.monotonic() < end:
        yield seed
        seed += 1
