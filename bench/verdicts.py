"""What became of the targets in one run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.results import Result, Run
from bench.targets import TARGETS, Measure, Target


@dataclass(frozen=True)
class Verdict:
    """What became of a target: ``met``, ``missed``, or ``not measured`` with the reason.

    ``by_cpu`` is the same number made of CPU times: on a machine that does other things besides it tells more.
    """

    row: str
    what: str
    status: Literal["met", "missed", "not measured"]
    value: float | None
    sense: str
    limit: float
    unit: str
    reason: str = ""
    by_cpu: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


def judge(run: Run) -> list[Verdict]:
    """Return what became of every target whose row was run."""
    measured = {result.row for result in run.results}
    return [_judge_one(run, target) for target in TARGETS if target.of.row in measured]


def _judge_one(run: Run, target: Target) -> Verdict:
    found: list[tuple[Measure, Result]] = []
    for measure in (target.of, *target.to):
        result = run.find(measure.row, measure.case, measure.contender)
        if result is None or not _values(measure, result):
            reason = f"no {measure.contender} in {measure.row}, {measure.case}"
            return Verdict(
                target.of.row, target.what, "not measured", None, target.sense, target.limit, target.unit, reason
            )
        found.append((measure, result))
    value = _number(target, [_values(measure, result) for measure, result in found]) * target.scale
    is_met = value <= target.limit if target.sense == "at most" else value >= target.limit
    by_cpu = None
    if target.is_cpu_told and {measure.quantity for measure, _ in found} == {"seconds"}:
        by_cpu = _number(target, [result.values("cpu_seconds") for _, result in found]) * target.scale
    return Verdict(
        target.of.row, target.what, "met" if is_met else "missed", value, target.sense, target.limit, target.unit,
        by_cpu=by_cpu,
    )  # fmt: skip


def _values(measure: Measure, result: Result) -> list[float]:
    if measure.quantity is None:
        return [value * result.scale for value in result.values(result.quantity)]
    return result.values(measure.quantity)


def _number(target: Target, values: Sequence[list[float]]) -> float:
    """Make one number of the values of all rounds: contenders of one case are compared round by round."""
    # The slow ones run less often. Of one single round alone, the medians of all tell more.
    is_paired = all(measure.case == target.of.case for measure in target.to) and min(map(len, values)) > 1
    rounds = list(zip(*values, strict=False)) if is_paired else [tuple(map(statistics.median, values))]
    if target.how == "value":
        return statistics.median(values[0])
    if target.how == "difference":
        return statistics.median(of - sum(to) for of, *to in rounds)
    return statistics.median(of / sum(to) for of, *to in rounds)
