"""What was measured, as values, and as the JSON that a run leaves behind."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

SCHEMA: Final = 1
Role = Literal["rear", "peer", "limit"]


@dataclass
class Result:
    """What one contender took for one case of a row, run by run.

    Args:
        row: name of the row.
        case: what the contenders of the row had to do.
        contender: who did it.
        role: ``"rear"``, ``"peer"``, or ``"limit"``: what the machine does at best.
        quantity: which of the sampled values counts.
        unit: what it is shown in.
        scale: factor from the sampled value to the unit.
        x: how large the job was, where the row shows how cost grows.
        samples: one mapping a run: ``seconds`` and ``cpu_seconds`` of the job, ``peak_bytes`` of its process,
            ``process_seconds`` from start to exit, and whatever else was noted.
        failure: why there are no (more) samples.
    """

    row: str
    case: str
    contender: str
    role: Role
    quantity: str = "seconds"
    unit: str = "s"
    scale: float = 1.0
    x: float | None = None
    samples: list[dict[str, float]] = field(default_factory=list)
    failure: str | None = None

    def values(self, quantity: str) -> list[float]:
        """Return the sampled values of one quantity, unscaled."""
        return [sample[quantity] for sample in self.samples if quantity in sample]

    def median(self, quantity: str | None = None) -> float | None:
        """Return the median of a quantity, by default of the one that counts, unscaled; ``None`` without samples."""
        values = self.values(quantity or self.quantity)
        return statistics.median(values) if values else None


@dataclass
class Run:
    """All that one run has measured, and where.

    Args:
        machine: processor, memory, kernel, filesystem, versions.
        options: what the run was asked to do.
        peers: versions of peers by name.
        missing: reasons by the name of the peer, or by ``row: contender``.
        results: in the order of measurement.
        failures: why (the rest of) a row could not be measured, by its name.
        seconds: how long the whole run took.
    """

    machine: dict[str, Any]
    options: dict[str, Any]
    peers: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def find(self, row: str, case: str, contender: str) -> Result | None:
        """Return one result, if there is such a one with samples."""
        for result in self.results:
            if (result.row, result.case, result.contender) == (row, case, contender) and result.samples:
                return result
        return None

    def rows(self) -> dict[str, dict[str, list[Result]]]:
        """Return results by row and case."""
        rows: dict[str, dict[str, list[Result]]] = {}
        for result in self.results:
            rows.setdefault(result.row, {}).setdefault(result.case, []).append(result)
        return rows

    def write(self, path: Path, targets: list[Mapping[str, Any]]) -> None:
        """Write all of it as JSON, together with what became of the targets."""
        content = {"schema": SCHEMA, **asdict(self), "targets": targets}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> Run:
    """Read what `Run.write` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else, or of another version.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no result of this version of the benchmark: run it again")
    try:
        results = [Result(**result) for result in content["results"]]
        others = ("machine", "options", "peers", "missing", "failures", "seconds")
        return Run(results=results, **{name: content[name] for name in others})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
