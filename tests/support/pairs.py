"""Pairs of workers that are gone, written at will, and what came of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rear.core.layout import Layout
from rear.core.liveness import Process, this_process, worker_name
from rear.core.names import Target
from rear.core.records import Open, Pair
from rear.core.storage import LOCAL
from rear.journal.codec import FORMAT_VERSION
from rear.worker.pair_writer import Item, PairWriter
from rear.zip.payload import payload_of_bytes

GONE = 2_000_000_000
MTIME_NS = 1_700_000_000 * 10**9


def write_pair(
    base: Path, rotation: int, members: dict[int, tuple[str, bytes]], *, close: str | None = None,
    repeats_from: int | None = None, worker: str = "7-7-abcdef", sources: dict[int, Path] | None = None,
    method: int = 0,
) -> tuple[Path, Path]:  # fmt: skip
    """Write a pair of a worker that is gone; return its temp archive and journal."""
    here = this_process()
    process = here._replace(pid=GONE, process_start=1)
    pair = Pair(here.host, worker, rotation)
    opened = open_record(process, pair, cookie=rotation + 1, repeats_from=repeats_from)
    writer = PairWriter(Layout(base), pair, opened, storage=LOCAL)
    for sequence, (name, content) in members.items():
        target = Target("ar.zip", name)
        writer.append(
            Item(
                sequence,
                target,
                payload_of_bytes(content, method),
                mtime_ns=MTIME_NS,
                mode=0o100644,
                source=str(sources[sequence]) if sources and sequence in sources else None,
                metadata=None,
                on_stable=None,
            )
        )
    if close is None:
        writer.release()
    else:
        writer.close(close)
    return writer.path, writer.journal_path


def open_record(process: Process, pair: Pair, *, cookie: int, uid: int = 0, repeats_from: int | None = None) -> Open:
    """Return the first record of the journal of a pair."""
    who = (process.pid, process.process_start, process.boot_id, process.pid_namespace, uid)
    return Open(FORMAT_VERSION, *pair, cookie, *who, 60.0, MTIME_NS, repeats_from, process.time_namespace)


def see_nobody(monkeypatch: pytest.MonkeyPatch, running: bool | None = None) -> None:
    """All workers are on hosts that cannot be seen from here; or what is seen of them is said by ``running``."""
    for name in (
        "rear.core.liveness",
        "rear.scavenger.claims",
        "rear.scavenger.recovery",
        "rear.scavenger.pair_check",
        "rear.scavenger.leader",
    ):
        monkeypatch.setattr(f"{name}.is_running", lambda process: running)


def dead_worker() -> str:
    """Return the name of a worker of this host that has ended."""
    here = this_process()
    return worker_name(here._replace(pid=1_999_999_999, process_start=1), "abcdef")
