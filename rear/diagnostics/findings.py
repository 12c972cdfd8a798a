"""What the doctor found, as values: the command line, the JSON stream and the tests only read them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

ProbeStatus = Literal["ok", "degraded", "broken", "not checked"]
Value = float | int | str | None

JSON_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe saw.

    Attributes:
        probe: stable name of the probe.
        status: ``ok``; ``degraded``: rear keeps its promises without it, at the cost that ``effect`` tells;
            ``broken``: a promise of rear does not hold here, or rear cannot work; ``not checked``: ``seen`` says why.
        value: what was measured, ``None`` where there is nothing to measure.
        unit: of ``value``: ``s``, ``bytes``, ``files``, ``races``, …; empty without a value.
        seen: what was seen, for people.
        effect: what rear does about it; for ``ok`` often empty.
    """

    probe: str
    status: ProbeStatus
    value: Value
    unit: str
    seen: str
    effect: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object, with the version of its shape and its kind first."""
        return {"version": JSON_VERSION, "kind": "finding", **asdict(self)}


class Judge(NamedTuple):
    """Makes the findings of one probe; ``unit`` is that of what it measures."""

    probe: str
    unit: str = ""

    def ok(self, seen: str, value: Value = None) -> Finding:
        """Return the finding that the probe saw what rear relies on."""
        return self._finding("ok", seen, "", value)

    def degraded(self, seen: str, effect: str, value: Value = None) -> Finding:
        """Return the finding that rear does without something."""
        return self._finding("degraded", seen, effect, value)

    def broken(self, seen: str, effect: str, value: Value = None) -> Finding:
        """Return the finding that a promise does not hold, or that rear cannot work."""
        return self._finding("broken", seen, effect, value)

    def not_checked(self, why: str, effect: str = "") -> Finding:
        """Return the finding that the probe could not look."""
        return self._finding("not checked", why, effect, None)

    def by_least(self, value: int, *, needed: int, wanted: int, seen: str, effect: str) -> Finding:
        """Return what it means that there is so much of something."""
        if value >= wanted:
            return self.ok(seen, value)
        return self.broken(seen, effect, value) if value < needed else self.degraded(seen, effect, value)

    def _finding(self, status: ProbeStatus, seen: str, effect: str, value: Value) -> Finding:
        return Finding(self.probe, status, value, "" if value is None else self.unit, seen, effect)
