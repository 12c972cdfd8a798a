"""Jobs that merge, and those that make what is merged."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import rear
from bench import archives, data
from bench.job import Stopwatch
from bench.readers import started_pool
from rear.events import Finished, IndexRebuilt, Merged, Planned

_PIECE_BYTES = 1 << 20


def make_base(
    stopwatch: Stopwatch, *, folder: str, pairs: int, members: int, compression: str,
    size_bytes: int = data.SMALL_BYTES, finals: int = 1, prefix: str = "new",
) -> None:  # fmt: skip
    """Write ``pairs`` temp archives of ``members`` each, for one final archive or by turns for several."""
    if size_bytes > 1 << 20:
        # Generated one by one: as many as there are would not fit into memory.
        files = ((f"{number:07d}.bin", data.noise(size_bytes, number % 4)) for number in range(pairs * members))
    else:
        files = ((name, content) for name, content in data.small_files(pairs * members, size_bytes=size_bytes))
    with stopwatch:
        for _ in range(pairs):
            with rear.rear_fs(folder, compression=compression):
                for number, (name, content) in zip(range(members), files, strict=False):
                    final = "ar.zip" if finals == 1 else f"ar-{number % finals}.zip"
                    with rear.rear_open(f"{final}/{prefix}/{name}", "wb") as file:
                        file.write(content)


def make_grown_base(stopwatch: Stopwatch, *, folder: str, existing: int, compression: str) -> None:
    """Make a base whose final archive has so many tiny members already, with its index."""
    base = Path(folder)
    base.mkdir(exist_ok=True)
    if existing > 1:
        files = ((f"old/{name}", content) for name, content in data.small_files(existing - 1, size_bytes=64))
        archives.write(base / "ar.zip", files)
    with stopwatch:
        if existing:
            # The first merge makes the index of an archive that comes from elsewhere.
            with rear.rear_fs(folder, compression=compression), rear.rear_open("ar.zip/last", "wb") as file:
                file.write(b"x")
            for _ in rear.scavenge(folder):
                pass
            archives.expect_members(base / "ar.zip", existing)


def merge_with_rear(stopwatch: Stopwatch, *, folder: str, warm: str, verify: bool = False, jobs: int = 1) -> None:
    """Scavenge once; before that, a base of one member is scavenged, so that all modules are there.

    ``committed_seconds`` is when the first final archive was complete and committed: what comes after it is the index,
    the notes in the journals, and the removal of the temp archives.
    """
    with rear.rear_fs(warm, compression="stored"), rear.rear_open("ar.zip/warm", "wb") as file:
        file.write(b"x")
    for _ in rear.scavenge(warm, verify=verify):
        pass
    is_first, ranges, finished = True, 0, None
    with started_pool(jobs) as executor, stopwatch:
        for event in rear.scavenge(folder, verify=verify, executor=executor):
            if isinstance(event, Merged) and is_first:
                stopwatch.lap("committed_seconds")
                is_first = False
            elif isinstance(event, Planned):
                ranges += event.ranges
            elif isinstance(event, IndexRebuilt):
                raise RuntimeError(f"the index of {event.archive} did not match: {event.reason}")
            elif isinstance(event, Finished):
                finished = event
    stopwatch.count_children()
    if finished is None or finished.lost or finished.refused or finished.left_alone:
        raise RuntimeError(f"not everything was merged: {finished}")
    stopwatch.note("ranges", ranges)


def merge_with_zipfile(stopwatch: Stopwatch, *, sources: list[str], target: str, method: int) -> None:
    """Read and write member by member, at zlib's fastest level; appends where the target exists."""
    with stopwatch, zipfile.ZipFile(target, "a", method, compresslevel=1) as merged:
        for source in sources:
            with zipfile.ZipFile(source) as archive:
                for member in archive.infolist():
                    merged.writestr(member, archive.read(member), method, 1)


def concatenate(stopwatch: Stopwatch, *, sources: list[str], target: str, sync: bool) -> None:
    """``cat`` of all sources: the bytes alone, no Zip. What a merge by copying can reach."""
    with stopwatch:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        child = os.posix_spawnp(
            "cat", ["cat", *sources], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, descriptor, 1)]
        )
        if os.waitpid(child, 0)[1]:
            sys.exit("cat failed")
        if sync:
            os.fsync(descriptor)
        os.close(descriptor)


def copy_directory(stopwatch: Stopwatch, *, archive: str, target: str) -> None:
    """Copy the bytes of a central directory once."""
    offset, length, _ = archives.directory_range(Path(archive))
    with stopwatch, open(archive, "rb", buffering=0) as source, open(target, "wb", buffering=0) as copy:
        source.seek(offset)
        while length > 0:
            length -= copy.write(source.read(min(length, _PIECE_BYTES)))
