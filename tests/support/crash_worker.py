"""A worker that is killed: what it writes, and what must be left of it."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

from bases import check_base, scavenge
from faults import SEED

import rear
from rear.core.storage import LOCAL, Storage
from rear.events import Lost

# The same in each process that writes.
_random = random.Random(SEED)
FILES = {
    "ar.zip/empty": b"",
    "ar.zip/small.txt": b"a few words\n" * 9,
    "sub/other.zip/random.bin": _random.randbytes(5_000),
    "ar.zip/spooled.bin": _random.randbytes(70_000),
    "ar.zip/spooled and small.txt": b"0123456789" * 9_000,
    "sub/other.zip/last.txt": b"the last one",
}
PICKED_UP = {"one.bin": _random.randbytes(30_000), "two.txt": b"picked up\n" * 100}
ALL = FILES | {f"ar.zip/picked/{name}": data for name, data in PICKED_UP.items()}
WRITE = [
    sys.executable, "-c",
    "import sys; from pathlib import Path; from crash_worker import work; work(Path(sys.argv[1]), 'file')",
]  # fmt: skip


def work(folder: Path, sync: str, storage: Storage = LOCAL, *, base: Path | None = None) -> None:
    """Write all files, and note the target of each as soon as it is acknowledged, outside of what can fail."""
    log = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with rear.rear_fs(
        base or folder / "base", sync=sync, sync_interval=0.02, rotation_size=40_000, spool_size=16_384, storage=storage
    ) as fs:
        for target, data in FILES.items():
            with fs.open(target, "wb") as file:
                for start in range(0, len(data), 10_000):
                    file.write(data[start : start + 10_000])
            os.write(log, f"{target}\n".encode())
            if target == "ar.zip/small.txt":
                with fs.pickup(folder / "picked", "ar.zip/picked"):
                    pass
                os.write(log, "".join(f"ar.zip/picked/{name}\n" for name in PICKED_UP).encode())


def renew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "picked").mkdir(parents=True)
    for name, data in PICKED_UP.items():
        (folder / "picked" / name).write_bytes(data)


def check(folder: Path) -> None:
    log = folder / "acknowledged"
    acknowledged = log.read_text().splitlines() if log.exists() else []
    if (folder / "base").exists():
        events = scavenge(folder / "base")
        assert not [event for event in events if isinstance(event, Lost)]
        check_base(
            folder / "base", {target: ALL[target] for target in acknowledged}, perhaps=ALL,
            lost_and_found=True, leftovers=True,
        )  # fmt: skip
        only_empty_pairs_are_left(folder / "base")
    for name, data in PICKED_UP.items():
        source = folder / "picked" / name
        if source.exists():
            assert source.read_bytes() == data
        else:
            assert f"ar.zip/picked/{name}" in acknowledged


def only_empty_pairs_are_left(base: Path) -> None:
    """Of a worker that dies before its first record is written, empty files may stay."""
    for path in (base / ".rear" / "inbox").rglob("*"):
        if path.is_file():
            assert path.suffix in (".journal", ".zip")
            assert path.stat().st_size == 0 or path.suffix == ".journal", path
            assert b"\n" not in path.read_bytes()
