"""The row that counts operations on the filesystem under ``strace``: what a metadata server feels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.data import SMALL_BYTES
from bench.peers import ORIGINAL
from bench.results import Role
from bench.runner import Bench, Contender, Job
from bench.traces import calls, under_strace

FILES_A_ROTATION = 1_000
#: What a member of these rows takes beside its content; a rotation is told by bytes.
_HEADER_BYTES = 160
#: By name, with and without a descriptor of the folder, or of an open file: each may go to the server.
METADATA = frozenset({
    "access", "chmod", "chown", "creat", "faccessat", "faccessat2", "fallocate", "fchmod", "fchmodat", "fchown",
    "fchownat", "fstat", "ftruncate", "getdents", "getdents64", "lchown", "link", "linkat", "lstat", "mkdir", "mkdirat",
    "mknod", "mknodat", "newfstatat", "open", "openat", "openat2", "readlink", "readlinkat", "rename", "renameat",
    "renameat2", "rmdir", "stat", "statfs", "statx", "symlink", "symlinkat", "truncate", "unlink", "unlinkat", "utime",
    "utimensat", "utimes",
})  # fmt: skip
SYNCS = frozenset({"fsync", "fdatasync", "sync_file_range", "syncfs"})


def operations(bench: Bench) -> None:
    """System calls and metadata operations a file, traced, for files of 4 KiB and a rotation each 1,000 of them.

    Counted is what touches the base: opening, making, removing, renaming, linking, listing, ``stat`` and ``fstat`` are
    metadata operations; reading, writing, closing and ``fsync`` are not. All is counted from the first folder to the
    last close, in ten rotations.
    """
    count = FILES_A_ROTATION * bench.size(10, 3)
    contenders = [
        _traced(
            bench,
            "rear",
            "bench.writers:write_rotating",
            "rear",
            count=count,
            rotation_bytes=FILES_A_ROTATION * (SMALL_BYTES + _HEADER_BYTES),
        ),
        _traced(bench, "plain open()", "bench.writers:write_plain_files", kind="small", count=count),
        _traced(bench, "zipfile", "bench.writers:write_with_zipfile", kind="small", count=count, method=0, level=1),
        _traced(bench, ORIGINAL, "bench.original:write", count=count),
    ]
    bench.compare(
        "metadata operations",
        contenders,
        quantity="metadata_operations",
        unit="a file",
        scale=1 / count,
        rounds=1,
    )


def _traced(bench: Bench, name: str, function: str, role: Role = "peer", **arguments: Any) -> Contender:
    count = arguments["count"]

    def step(folder: Path) -> Job:
        base = folder / "base"
        base.mkdir()
        job = Job(function, {"folder": str(base), **arguments})
        if name == ORIGINAL:
            job = replace(job, python=bench.peer(ORIGINAL).path)
        return under_strace(bench, job, folder / "trace", "%file,%desc")

    def look(folder: Path) -> Mapping[str, float]:
        names = list(calls(folder / "trace", folder / "base"))
        return {
            "metadata_operations": sum(name in METADATA for name in names),
            "system_calls_a_file": len(names) / count,
            "syncs": sum(name in SYNCS for name in names),
        }

    needs = ("strace", ORIGINAL) if name == ORIGINAL else "strace"
    return Contender(name, step, role, after=look, needs=needs)
