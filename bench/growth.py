"""The row about final archives that have many members already."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.merge import original_merges, rear_merges, zipfile_merges, zipmerge_merges
from bench.runner import Bench, Contender, Job


def merge_growth(bench: Bench) -> None:
    """5,000 members of 4 KiB are merged into a final archive that has 0, 100,000, 500,000 or 1,000,000 tiny ones.

    The limit is one copy of the bytes of its central directory, which a merge has to write anew behind the members.
    """
    for existing in [0, 100_000, 500_000, 1_000_000] if not bench.is_quick else [0, 5_000, 20_000]:
        _merge_into(bench, existing, bench.size(5_000, 500))


def _merge_into(bench: Bench, existing: int, members: int) -> None:
    def make_grown(folder: Path) -> None:
        arguments = {"folder": str(folder), "existing": existing, "compression": "stored"}
        bench.do(Job("bench.mergers:make_grown_base", arguments))

    grown = bench.shared(f"grown-{existing}", make_grown)

    def make_base(folder: Path) -> None:
        shutil.copytree(grown, folder, dirs_exist_ok=True)
        arguments = {"folder": str(folder), "pairs": 1, "members": members, "compression": "stored"}
        bench.do(Job("bench.mergers:make_base", arguments))

    name = f"growth-{existing}"
    base, total = bench.shared(name, make_base), existing + members
    contenders = [
        rear_merges(base, total),
        original_merges(bench, name, base, total, grown=grown),
        zipmerge_merges(bench, base, total, grown=grown),
        zipfile_merges(base, total, "stored", grown=grown),
    ]
    if existing:
        contenders.append(_copy_of_directory(grown))
    bench.compare(f"{existing:,}", contenders, x=existing, rounds=5)
    for shared in (name, f"{name}-original", f"grown-{existing}"):
        bench.forget(shared)


def _copy_of_directory(grown: Path) -> Contender:
    return Contender(
        "copy of the directory",
        lambda folder: Job(
            "bench.mergers:copy_directory", {"archive": str(grown / "ar.zip"), "target": str(folder / "directory")}
        ),
        role="limit",
    )
