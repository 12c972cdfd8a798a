"""A forged ``.rear``: each bad thing costs itself alone, whatever it is and wherever it stands."""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from pathlib import Path

import pytest
from bases import scratch_folder
from forged_bases import (
    KINDS,
    LATER,
    MEMORY_LIMIT_BYTES,
    PARTS,
    PLACES,
    disk_bytes,
    faults_of,
    make_honest,
    outcome_of,
    put_bad,
    seeds_for,
    try_seed,
)

SECONDS = float(os.environ.get("REAR_FORGED_SECONDS", "0"))
SEED = int(os.environ.get("REAR_FORGED_SEED", "1"))
SLICE = (1, 2, 3, 5)


@pytest.fixture(scope="module")
def template(folder: Path) -> tuple[Path, dict[str, bytes]]:
    base = folder / "template"
    return base, make_honest(base)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_things_in_all_places(template: tuple[Path, dict[str, bytes]], scratch: Path, kind: str) -> None:
    """Of each kind one stands in each place at once."""
    base, honest = scratch / "base", template[1]
    shutil.copytree(template[0], base)
    places = [place for place in PLACES if place != "config.toml" and put_bad(base, place, kind)]
    assert len(places) > 30
    outcome = outcome_of(base, limit_seconds=100)
    assert outcome.errors == {}
    assert faults_of(base, honest | LATER) == []
    assert outcome.memory_bytes < MEMORY_LIMIT_BYTES // 2
    assert disk_bytes(scratch) < 32 << 20


PART_KINDS = ("fifo", "socket", "loop", "folder")


@pytest.mark.parametrize("part", PARTS)
def test_something_else_in_place_of_a_part(template: tuple[Path, dict[str, bytes]], scratch: Path, part: str) -> None:
    """Without some nothing can be merged, and that is said by name; what is there goes, and all is merged."""
    honest, reports = template[1], ("reports", "flush", "lost+found", "observations", "graveyard", "index")
    for kind in PART_KINDS:
        base = scratch / kind / "base"
        shutil.copytree(template[0], base)
        path, aside = base / ".rear" / part, scratch / kind / "aside"
        if path.exists():
            path.rename(aside)
        KINDS[kind](path)
        is_usable = part != "lock" and stat.S_ISDIR(path.lstat().st_mode)
        outcome = outcome_of(base, ("status", "fsck -n", "dry run", "scavenge"), limit_seconds=30)
        told = {name: error for name, error in outcome.errors.items() if not error.startswith("BaseError: ")}
        assert told == {}, kind
        assert all(f".rear/{part} " in error for error in outcome.errors.values()), outcome.errors
        assert not outcome.errors or not (is_usable or part in reports), (kind, outcome.errors)
        if not is_usable:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            if aside.exists():
                aside.rename(path)
        if part != "inbox" or not is_usable:
            assert outcome_of(base, ("scavenge",)).errors == {}
            assert faults_of(base, honest) == [], kind


def test_forged_bases(template: tuple[Path, dict[str, bytes]], scratch: Path) -> None:
    for seed in SLICE:
        verdict = try_seed(scratch, *template, seed)
        assert verdict.faults == [], seed
        assert sum(verdict.made.values())


@pytest.mark.slow
@pytest.mark.timeout(int(SECONDS) + 300)
@pytest.mark.skipif(not SECONDS, reason="nox -s forged")
def test_forged_bases_for_a_while(template: tuple[Path, dict[str, bytes]]) -> None:
    counts: Counter[str] = Counter()
    most_bytes, slowest, bad = 0, 0.0, []
    with scratch_folder() as folder:
        for seed in seeds_for(SECONDS, SEED):
            verdict = try_seed(folder, *template, seed)
            counts += verdict.made
            counts["bases"] += 1
            most_bytes, slowest = max(most_bytes, verdict.memory_bytes), max(slowest, verdict.seconds)
            if verdict.faults:
                bad.append(seed)
                print(f"seed {seed}:", *verdict.faults, sep="\n")
    print(f"{dict(counts)}; at most {slowest:.1f} s and {most_bytes >> 20} MiB a base")
    assert not bad, "REAR_FORGED_SEED and REAR_FORGED_SECONDS=1 repeat one"
