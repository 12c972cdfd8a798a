"""Rows about workers: many small files, and a few large ones."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.peers import ORIGINAL
from bench.results import Role
from bench.runner import Bench, Contender, Job


def _writer(name: str, function: str, role: Role = "peer", **arguments: Any) -> Contender:
    return Contender(
        name, lambda folder: Job(f"bench.writers:{function}", {"folder": str(folder), **arguments}), role=role
    )


def _with_sizes(contender: Contender) -> Contender:
    """Let the sizes of archives be noted, and of the compressed data in them: headers differ by what they tell."""

    def look(folder: Path) -> dict[str, float]:
        archive_bytes = data_bytes = 0
        for path in folder.rglob("*.zip"):
            archive_bytes += path.stat().st_size
            with zipfile.ZipFile(path) as archive:
                data_bytes += sum(member.compress_size for member in archive.infolist())
        return {"archive_bytes": archive_bytes, "data_bytes": data_bytes}

    return replace(contender, after=look)


def ingest(bench: Bench) -> None:
    """One worker writes 50,000 files of 4 KiB: text and noise by turns, into 256 folders.

    Times are from opening the archive to closing it. ``acknowledged``: until the last file was closed; what rear does
    after that is its last fsync. Of the others only "two bare writes, fsync" waits for the disk.
    """
    count = bench.size(50_000, 2_000)
    small: dict[str, Any] = {"kind": "small", "count": count}
    plain = _writer("plain open()", "write_plain_files", **small)

    def original(name: str) -> Contender:
        return Contender(
            name,
            lambda folder: Job(
                "bench.original:write", {"folder": str(folder), "count": count}, python=bench.peer(ORIGINAL).path
            ),
            needs=ORIGINAL,
        )

    stored = zipfile.ZIP_STORED
    bench.compare(
        "stored",
        [
            _writer("rear", "write_with_rear", "rear", compression="stored", **small),
            original(ORIGINAL),
            plain,
            _writer("zipfile", "write_with_zipfile", method=stored, level=1, **small),
            _writer("tarfile", "write_with_tarfile", **small),
            _writer("two bare writes", "write_bare", "limit", sync=False, **small),
            _writer("two bare writes, fsync", "write_bare", "limit", sync=True, **small),
        ],
        unit="µs a file",
        scale=1e6 / count,
    )
    deflated = zipfile.ZIP_DEFLATED
    bench.compare(
        "deflated",
        [
            _with_sizes(_writer("rear", "write_with_rear", "rear", compression="deflate", **small)),
            _with_sizes(_writer("zipfile level 1", "write_with_zipfile", method=deflated, level=1, **small)),
            _with_sizes(_writer("zipfile level 6", "write_with_zipfile", method=deflated, level=6, **small)),
        ],
        unit="µs a file",
        scale=1e6 / count,
        rounds=3,
    )


def ingest_large(bench: Bench) -> None:
    """One worker writes logs of 5 MB, or noise of 100 MB: ``zipfile`` each as a whole, the others by 1 MiB."""
    for case, kind, count in [
        ("logs of 5 MB", "log", bench.size(20, 2)),
        ("noise of 100 MB", "noise", bench.size(3, 1)),
    ]:
        large: dict[str, Any] = {"kind": kind, "count": count}
        contenders = [_writer("rear, deflate", "write_with_rear", "rear", compression="deflate", **large)]
        contenders += [
            _writer("rear, stored", "write_with_rear", "rear", compression="stored", **large),
            _writer("zipfile level 1", "write_with_zipfile", method=zipfile.ZIP_DEFLATED, level=1, **large),
            _writer("zipfile stored", "write_with_zipfile", method=zipfile.ZIP_STORED, level=1, **large),
            _writer("plain open()", "write_plain_files", **large),
        ]
        bench.compare(case, contenders, rounds=3)


def ingest_parallel(bench: Bench) -> None:
    """20,000 files of 4 KiB by 1, 4 and 16 threads of one process, and by two processes; stored.

    The original takes no part: its ``rear_open`` is not made for threads, and two of its workers that start on one host
    in the same second write to the same file.
    """
    count = bench.size(20_000, 500)
    cases: list[tuple[str, str, dict[str, Any]]] = [
        (f"{threads} thread{'s' * (threads > 1)}", "write_with_threads", {"threads": threads}) for threads in (1, 4, 16)
    ]
    cases.append(("2 processes", "write_with_processes", {"processes": 2}))
    for case, function, how in cases:
        bench.compare(
            case,
            [
                _writer("rear", function, "rear", writer="rear", count=count, **how),
                _writer("plain open()", function, writer="plain", count=count, **how),
            ],
            unit="µs a file",
            scale=1e6 / count,
            rounds=3,
        )
