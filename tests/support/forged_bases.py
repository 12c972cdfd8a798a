"""Bases that somebody has forged: a bad thing in any place of ``.rear``, beside pairs that are honest.

A place is a name that rear gives, a kind is what stands there instead of what rear writes. A whole base is forged by a
seed. What comes of it is judged by three things: each honest member is merged once, what lies outside is untouched, and
no command takes much time or memory, or ends with a traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bases import write
from pairs import dead_worker, write_pair
from zips import write_zip

import rear
from rear.core.layout import Layout
from rear.core.liveness import this_process
from rear.core.records import LARGEST
from rear.diagnostics.status import look_at
from rear.fsck.base import fsck
from rear.journal.codec import encode_line

HOST: Final = this_process().host
DEAD: Final = dead_worker()
LEADER: Final = f"{HOST}-1999999999-0123456789ab"
DEEP: Final = b"[" * 200_000
NESTED: Final = b'{"a":' * 900 + b"1" + b"}" * 900
"""As deep as a reader without a limit of its own takes it, and deeper than it can write it again."""
MEMORY_LIMIT_BYTES: Final = 300 << 20
FOLLOWS_LINKS: Final = True
"""Links in ``.rear`` are still followed in some places, so none are forged that lead to what is there."""


# --- kinds --------------------------------------------------------------------------------------------------------


def _line(payload: bytes) -> bytes:
    import binascii

    return b"%08x %b\n" % (binascii.crc32(payload), payload)


def make_socket(path: Path) -> None:
    # Paths of sockets are short.
    short = f"/tmp/rear-forged-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(short)
    shutil.move(short, path)


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


def wild_records(chance: random.Random | None = None) -> bytes:
    """Records of all kinds, whole, and with numbers and texts that make no sense."""
    chance = chance or random.Random(0)
    wild = [0, 1, -1, 2**31, 2**32, LARGEST, 2**63, 2**64, 10**300, 1e308, 1e-308, None, True, "", "x", "../../x",
            "a" * 5000, "\0", "\ud800", [], {}, [[]], {"a": 1}, "ar.zip", ".rear/x.zip"]  # fmt: skip
    keys = ["format_version", "host", "worker", "rotation", "cookie", "pid", "process_start", "boot_id", "pid_namespace", "uid", "lease_seconds", "created_ns", "repeats_from", "time_namespace", "sequence", "source", "source_start", "source_end", "offset", "length", "archive", "name", "method", "crc", "compressed_size", "size", "mtime_ns", "mode", "metadata", "first_sequence", "repeated_size", "number", "reason", "members", "sequences", "target", "intent", "leader", "process", "old", "tail_length", "tail_crc", "permit", "pair", "beat"]  # fmt: skip
    kinds = ("open", "append", "file", "part", "abort", "beat", "close", "merged", "begin", "moves", "planned",
             "commit", "leader", "odd")  # fmt: skip
    lines = []
    for number in range(60):
        payload: dict[str, Any] = {"kind": kinds[number % len(kinds)]}
        payload.update((key, chance.choice(wild)) for key in keys if chance.random() < 0.9)
        with contextlib.suppress(ValueError):
            lines.append(encode_line(payload))
    return b"".join(lines)


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
    "numbers": lambda path: path.write_bytes(json.dumps({"seen": {"a": ["b", 1e308, [[10**400, 1]]]}, "clocks": ["c"]}).encode()),
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
    f"inbox/{HOST}/{DEAD}-70.zip",
    f"inbox/{HOST}/{DEAD}-70.merged",
    f"inbox/{HOST}/{DEAD}-1.journal",
    f"inbox/{HOST}/{DEAD}-1.zip",
    f"inbox/{HOST}/{DEAD}-1.merged",
    f"inbox/{HOST}/7-7-abcdef-999999999.journal",
    f"inbox/{HOST}/{DIGITS}",
    f"inbox/{HOST}/x",
    f"inbox/other/{DEAD}-70.journal",
    f"inbox/other/{DEAD}-70.zip",
    f"inbox/{DIGITS}",
    "inbox/other",
    f"claims/{LEADER}",
    f"claims/{LEADER}/{HOST}",
    f"claims/{LEADER}/{HOST}/{DEAD}-70.journal",
    f"claims/{LEADER}/{HOST}/{DEAD}-70.zip",
    f"claims/{LEADER}/{HOST}/{DEAD}-70.merged",
    f"claims/{LEADER}/{HOST}/{DEAD}-70.rescue",
    f"claims/{DIGITS}",
    f"graveyard/{HOST}",
    f"graveyard/{HOST}/{DEAD}-70.journal",
    f"graveyard/{HOST}/{DEAD}-70.zip",
    f"graveyard/{HOST}/{DEAD}-70.merged",
    f"graveyard/{HOST}/{DEAD}-1.merged",
    "terms/7", f"terms/{'9' * 18}", f"terms/{DIGITS}", "terms/x", "terms/0", "terms/٣", "terms/²",
    f"intents/{DIGEST}",
    f"intents/{DIGEST.removesuffix('intent')}archive",
    f"intents/{DIGEST.removesuffix('intent')}planning",
    f"intents/{DIGEST.removesuffix('.intent')}-0123456789abcdef.permit",
    "intents/x.intent",
    "intents/x",
    "observations/workers",
    "observations/workers/seen.json",
    "observations/leader/seen.json",
    "observations/graveyard/seen.json",
    "reports/20990101T000000-x-1-0123456789ab.json",
    "reports/x",
    "flush/0123456789abcdef",
    f"flush/{DIGITS}",
    f"lost+found/{time.strftime('%Y-%m-%d')}/x.json",
    "lost+found/x",
    "index/ar.zip",
    "index/ar.zip/1.sqlite",
    "index/ar.zip/999999999999999.sqlite",
    f"index/ar.zip/{'9' * 200}.sqlite",
    "index/ar.zip/2-0123456789abcdef.part",
    "index/x.zip",
    "index/x.zip/1.sqlite",
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
    if place.endswith(f"{DEAD}-1.journal") or place.endswith(f"{DEAD}-1.zip") or place.endswith(f"{DEAD}-1.merged"):
        write_pair(base, 1, {1: ("bad", b"bad" * 99), 2: ("bad2", b"")}, worker=DEAD)
    path = base / ".rear" / place
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        KINDS[kind](path)
    except OSError:
        return False
    return True


# --- commands -----------------------------------------------------------------------------------------------------


def run_status(base: Path) -> object:
    from io import StringIO

    from rich.console import Console

    from rear.cli.display.status_page import page
    from rear.diagnostics.openmetrics import as_text

    seen = look_at(base)
    Console(file=StringIO()).print(page(seen))
    return json.dumps(seen.as_json()), as_text(seen)


def run_write(base: Path) -> object:
    write(base, {"ar.zip/later": b"later"})
    return None


def run_sweep(base: Path) -> object:
    folder = base.parent / "swept"
    folder.mkdir(exist_ok=True)
    (folder / "swept").write_bytes(b"swept")
    return list(rear.sweep(folder, into="ar.zip", base=base, wait_seconds=0.1))


COMMANDS: Final[dict[str, Callable[[Path], object]]] = {
    "status": run_status,
    "fsck -n": lambda base: list(fsck(base, report_only=True)),
    "dry run": lambda base: list(rear.scavenge(base, dry_run=True)),
    "write": run_write,
    "scavenge": lambda base: list(rear.scavenge(base)),
    "status after": run_status,
    "sweep": run_sweep,
    "flush": lambda base: list(rear.scavenge(base, flush=True, flush_wait_seconds=0.01)),
    "fsck": lambda base: list(fsck(base)),
    "fsck again": lambda base: list(fsck(base, deep=True)),
}
