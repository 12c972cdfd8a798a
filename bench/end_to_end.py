"""The row from workers to a verified archive, and its jobs."""

from __future__ import annotations

import subprocess

from bench import data
from bench.archives import expect_members
from bench.job import Stopwatch, fork_workers
from bench.peers import ORIGINAL
from bench.runner import Bench, Contender, Job

WORKERS = 16


def end_to_end(bench: Bench) -> None:
    """Sixteen worker processes write 3,000 files of 4 KiB each; then all is one archive, and every CRC was checked.

    ``rear`` merges with ``--verify``. With plain ``open()``, ``zip -1`` makes the archive and ``unzip -tq`` checks it;
    after the original, which needs workers of different host names for that, ``unzip -tq`` checks, too.
    """
    files_each = bench.size(3_000, 100)
    unzip = [bench.peer("unzip").path, "-tq"] if bench.has("unzip") else []
    arguments = {"workers": WORKERS, "files_each": files_each}
    contenders = [
        Contender(
            "rear",
            lambda folder: Job("bench.end_to_end:with_rear", {"folder": str(folder), **arguments}),
            "rear",
            after=lambda folder: expect_members(folder / "ar.zip", WORKERS * files_each),
        ),
        Contender(
            ORIGINAL,
            lambda folder: Job(
                "bench.original:end_to_end",
                {"folder": str(folder), "unzip": unzip, **arguments},
                python=bench.peer(ORIGINAL).path,
            ),
            after=lambda folder: expect_members(folder / "ar.zip", WORKERS * files_each),
            needs=ORIGINAL,
        ),
        Contender(
            "plain open(), zip, unzip -tq",
            lambda folder: Job(
                "bench.end_to_end:with_plain_files",
                {"folder": str(folder), "zipper": bench.peer("zip").path, "unzip": unzip, **arguments},
            ),
            after=lambda folder: expect_members(folder / "ar.zip", WORKERS * files_each),
            needs="zip",
        ),
    ]
    bench.compare(f"{WORKERS} workers", contenders, rounds=3)


def with_rear(stopwatch: Stopwatch, *, folder: str, workers: int, files_each: int) -> None:
    """Let workers write, then scavenge with ``--verify``."""
    from bench.writers import write_part_with_rear
    from rear import scavenge
    from rear.events import Finished

    files = list(data.small_files(workers * files_each))
    with stopwatch:
        fork_workers(workers, lambda worker: write_part_with_rear(folder, files[worker::workers]))
        stopwatch.lap("written_seconds")
        finished = [event for event in scavenge(folder, verify=True) if isinstance(event, Finished)]
    if finished[0].members != len(files):
        raise RuntimeError(f"{finished[0].members} of {len(files)} members were merged")


def with_plain_files(
    stopwatch: Stopwatch, *, folder: str, workers: int, files_each: int, zipper: str, unzip: list[str]
) -> None:
    """Let workers write files, then pack and check them."""
    from bench.writers import write_part_plainly

    files = list(data.small_files(workers * files_each))
    with stopwatch:
        fork_workers(workers, lambda worker: write_part_plainly(f"{folder}/files", files[worker::workers]))
        stopwatch.lap("written_seconds")
        subprocess.run([zipper, "-rqD1", f"{folder}/ar.zip", "."], cwd=f"{folder}/files", check=True)
        if unzip:
            subprocess.run([*unzip, f"{folder}/ar.zip"], check=True, stdout=subprocess.DEVNULL)
