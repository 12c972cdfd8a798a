"""Times contenders in turns (A B C A B C …), so that a drift of the machine meets all of them alike."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Contender:
    """One way to do the job. ``run`` gets an empty folder, and returns the seconds that the job itself took."""

    name: str
    run: Callable[[Path], float]


@dataclass(frozen=True)
class Row:
    """Contenders for one job; the first is the one that the others are compared with."""

    name: str
    unit: str
    units_per_second: float
    """Factor from the seconds of one run to ``unit``."""
    contenders: list[Contender]


@dataclass
class Result:
    """What one contender took, in the unit of its row, run by run."""

    row: str
    contender: str
    unit: str
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def measure(row: Row, rounds: int, scratch: Path) -> list[Result]:
    """Run every contender of the row ``rounds`` times."""
    results = [Result(row.name, contender.name, row.unit) for contender in row.contenders]
    for _ in range(rounds):
        for contender, result in zip(row.contenders, results, strict=True):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                os.sync()  # nobody pays for what the one before left unwritten
                result.samples.append(contender.run(Path(folder)) * row.units_per_second)
    return results
