"""A base with work for a scavenger that is killed: written, renewed, checked."""

from __future__ import annotations

import os
import signal
import zipfile
from pathlib import Path

from bases import check_base, of_kind, put, scavenge
from faults import Point, Tampered, in_child
from zips import write_zip

import rear
from rear.events import Lost

FOREIGN = {"theirs.txt": b"made by zipfile\n" * 50, "twice.txt": b"theirs came first", "stored.bin": bytes(range(256))}
COMMENT = b"an archive comment, to be kept"
EXPECTED = {f"ar.zip/{name}": data for name, data in FOREIGN.items()}
EXPECTED |= {f"ar.zip/one/{number}.txt": f"one {number}\n".encode() * number * 40 for number in range(6)}
EXPECTED |= {f"sub/new.zip/two/{number}.bin": os.urandom(700) for number in range(5)}
EXPECTED |= {f"ar.zip/two/{number}.txt": f"two {number}".encode() for number in range(3)}
#: The name is taken by another member, so a worker's file of that name gets a number.
EXPECTED |= {"ar.zip/twice~1.txt": b"ours came second"}
#: Two workers write the same file: one copy is kept.
EXPECTED |= {"ar.zip/same.txt": b"the same from both" * 20}


def write_one(base: Path) -> None:
    with rear.rear_fs(base) as fs:
        for target, data in EXPECTED.items():
            if "/one/" in target or target.endswith("same.txt"):
                put(fs, target, data)


def write_two(base: Path) -> None:
    """Write the rest, and die in the middle of one more file."""
    storage = Tampered()
    with rear.rear_fs(base, storage=storage) as fs:
        for target, data in EXPECTED.items():
            if "/two/" in target or target.endswith("same.txt"):
                put(fs, target, data)
        put(fs, "ar.zip/twice.txt", EXPECTED["ar.zip/twice~1.txt"])

        def die(point: Point, path: str) -> None:
            if point.half and path.endswith(".zip"):
                os.kill(os.getpid(), signal.SIGKILL)

        storage.act = die
        put(fs, "ar.zip/torn.txt", os.urandom(3000))


def make_base(base: Path) -> Path:
    base.mkdir()
    write_zip(base / "ar.zip", FOREIGN, zipfile.ZIP_DEFLATED, comment=COMMENT)
    assert in_child(lambda: write_one(base)) == 0
    assert in_child(lambda: write_two(base)) == -signal.SIGKILL
    return base


def check(base: Path) -> None:
    check_base(base, EXPECTED, lost_and_found=True)
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert archive.comment == COMMENT
        assert archive.namelist()[: len(FOREIGN)] == list(FOREIGN)


def recover(base: Path) -> None:
    """Scavenge once more: nothing is said to be lost, and all is there."""
    assert not of_kind(scavenge(base), Lost)
    check(base)
