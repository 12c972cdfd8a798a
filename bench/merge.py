"""Rows about merging: temp archives become final archives."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from bench.archives import expect_members
from bench.peers import ORIGINAL
from bench.runner import Bench, Command, Contender, Job
from bench.traces import calls, under_strace

PAIRS = 10
METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
COMPRESSION = {"stored": "stored", "deflated": "deflate"}


def make_base(bench: Bench, name: str, **arguments: object) -> Path:
    """Return a base with temp archives, to be copied; made once."""

    def make(folder: Path) -> None:
        bench.do(Job("bench.mergers:make_base", {"folder": str(folder), **arguments}))

    return bench.shared(name, make)


def temp_archives(base: Path) -> list[str]:
    """Return the paths of all temp archives of a base."""
    return sorted(map(str, base.glob(".rear/inbox/*/*.zip")))


def copy_of(base: Path) -> Callable[[Path], None]:
    """Return what puts a copy of a base into the folder of a run."""

    def prepare(folder: Path) -> None:
        shutil.copytree(base, folder / "base")

    return prepare


def rear_merges(base: Path, members: int, *, name: str = "rear", verify: bool = False, jobs: int = 1) -> Contender:
    """Return rear as a contender: one scavenge of a copy of a base, whose ``ar.zip`` has so many members then."""
    return Contender(
        name,
        lambda folder: Job(
            "bench.mergers:merge_with_rear",
            {"folder": str(folder / "base"), "warm": str(folder / "warm"), "verify": verify, "jobs": jobs},
        ),
        role="rear",
        prepare=copy_of(base),
        after=lambda folder: expect_members(folder / "base/ar.zip", members),
    )


def original_merges(bench: Bench, name: str, base: Path, members: int, *, grown: Path | None = None) -> Contender:
    """Return the original as a contender; its temp archives hold the same members."""

    def translated(folder: Path) -> None:
        sources = temp_archives(base)
        translation = Job("bench.original:translate", {"sources": sources, "folder": str(folder)})
        bench.do(Job(translation.function, translation.arguments, python=bench.peer(ORIGINAL).path))

    def prepare(folder: Path) -> None:
        shutil.copytree(bench.shared(f"{name}-original", translated), folder / "base")
        if grown is not None:
            _copy_archive(grown, folder / "base")

    return Contender(
        ORIGINAL,
        lambda folder: Job("bench.original:merge", {"folder": str(folder / "base")}, python=bench.peer(ORIGINAL).path),
        prepare=prepare,
        after=lambda folder: expect_members(folder / "base/ar.zip", members),
        needs=ORIGINAL,
    )


def zipmerge_merges(bench: Bench, base: Path, members: int, *, grown: Path | None = None) -> Contender:
    """Return libzip's ``zipmerge`` as a contender; it starts in a few milliseconds, which are not taken off."""

    def step(folder: Path) -> Command:
        peer = bench.peer("zipmerge")
        return Command([peer.path, str(folder / "ar.zip"), *temp_archives(base)], environment=peer.environment)

    return Contender(
        "zipmerge",
        step,
        prepare=None if grown is None else lambda folder: _copy_archive(grown, folder),
        after=lambda folder: expect_members(folder / "ar.zip", members),
        needs="zipmerge",
    )


def _copy_archive(grown: Path, folder: Path) -> None:
    if (grown / "ar.zip").exists():
        shutil.copyfile(grown / "ar.zip", folder / "ar.zip")


def zipfile_merges(base: Path, members: int, method: str, *, grown: Path | None = None) -> Contender:
    """Return Python's ``zipfile`` as a contender, member by member."""
    return Contender(
        "zipfile read, writestr",
        lambda folder: Job(
            "bench.mergers:merge_with_zipfile",
            {"sources": temp_archives(base), "target": str(folder / "ar.zip"), "method": METHODS[method]},
        ),
        prepare=None if grown is None else lambda folder: _copy_archive(grown, folder),
        after=lambda folder: expect_members(folder / "ar.zip", members),
    )


def bsdtar_merges(bench: Bench, base: Path, method: str) -> Contender:
    """Return ``bsdtar`` as a contender: it reads and writes all members, at zlib's default level."""

    def step(folder: Path) -> Command:
        peer = bench.peer("bsdtar")
        option = f"zip:compression={'store' if method == 'stored' else 'deflate'}"
        sources = [f"@{path}" for path in temp_archives(base)]
        return Command(
            [peer.path, "-cf", str(folder / "ar.zip"), "--format", "zip", "--options", option, *sources],
            environment=peer.environment,
        )

    return Contender("bsdtar", step, needs="bsdtar")


def cat_copies(base: Path, *, sync: bool) -> Contender:
    """Return the limit: the bytes of the temp archives."""
    return Contender(
        "cat, fsync" if sync else "cat",
        lambda folder: Job(
            "bench.mergers:concatenate",
            {"sources": temp_archives(base), "target": str(folder / "bytes"), "sync": sync},
        ),
        role="limit",
    )


def merge(bench: Bench) -> None:
    """Ten temp archives of 5,000 members of 4 KiB each become one final archive.

    rear checks for double names, writes the index, and brings everything to stable storage before it removes a temp
    archive; of the others only "cat, fsync" waits for the disk.
    """
    members = bench.size(5_000, 300)
    for method, compression in COMPRESSION.items():
        name = f"merge-{method}"
        base = make_base(bench, name, pairs=PAIRS, members=members, compression=compression)
        total = PAIRS * members
        bench.compare(
            method,
            [
                rear_merges(base, total),
                original_merges(bench, name, base, total),
                zipmerge_merges(bench, base, total),
                zipfile_merges(base, total, method),
                bsdtar_merges(bench, base, method),
                cat_copies(base, sync=False),
                cat_copies(base, sync=True),
            ],
        )
        bench.forget(f"{name}-original")


def merge_large(bench: Bench) -> None:
    """Ten temp archives of five members of 10 MB each, stored, become one final archive.

    The traced run counts the calls of ``copy_file_range``: one for each range of the plan, so that an NFS server can do
    the copying.
    """
    members = bench.size(5, 1)
    total = PAIRS * members
    base = make_base(bench, "merge-large", pairs=PAIRS, members=members, compression="stored", size_bytes=10_000_000)
    bench.compare(
        "large members",
        [
            rear_merges(base, total),
            zipmerge_merges(bench, base, total),
            cat_copies(base, sync=False),
            cat_copies(base, sync=True),
        ],
    )
    bench.compare(
        "calls",
        [_traced_copies(bench, rear_merges(base, total))],
        quantity="copy_calls",
        unit="calls of copy_file_range",
        rounds=1,
    )
    bench.forget("merge-large")


def _traced_copies(bench: Bench, contender: Contender) -> Contender:
    def step(folder: Path) -> Job:
        job = contender.step(folder)
        assert isinstance(job, Job)
        return under_strace(bench, job, folder / "trace", "copy_file_range")

    def count(folder: Path) -> Mapping[str, float]:
        # Temp archives are copied from there; the index is copied as well, but not of members.
        claimed = folder / "base/.rear/claims"
        return {"copy_calls": sum(name == "copy_file_range" for name in calls(folder / "trace", claimed))}

    return replace(contender, step=step, after=count, needs="strace")


def merge_interleaved(bench: Bench) -> None:
    """Members of ten temp archives go by turns to eight final archives, so that no two of them are one range.

    ``zipmerge`` and ``bsdtar`` cannot tell which member goes where, and take no part.
    """
    members, finals = bench.size(5_000, 400), 8

    def check(folder: Path) -> None:
        for number in range(finals):
            expect_members(folder / f"base/ar-{number}.zip", PAIRS * members // finals)

    for method, compression in COMPRESSION.items():
        name = f"interleaved-{method}"
        base = make_base(bench, name, pairs=PAIRS, members=members, compression=compression, finals=finals)
        rear = replace(rear_merges(base, 0), after=check)
        bench.compare(method, [rear, cat_copies(base, sync=False), cat_copies(base, sync=True)])
        bench.forget(name)


def verify(bench: Bench) -> None:
    """The merge of the row ``merge``, with ``--verify``: every member is read and checked before, every byte after."""
    members = bench.size(5_000, 300)
    for method, compression in COMPRESSION.items():
        base = make_base(bench, f"merge-{method}", pairs=PAIRS, members=members, compression=compression)
        total = PAIRS * members
        bench.compare(
            method,
            [
                rear_merges(base, total, name="rear --verify", verify=True),
                rear_merges(base, total, name="rear --verify --jobs 2", verify=True, jobs=2),
                rear_merges(base, total, name="rear"),
            ],
        )
