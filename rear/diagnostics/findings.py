"""What the doctor found, as values: the command line, the JSON stream and the tests only read them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

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


def ok(probe: str, seen: str, *, value: Value = None, unit: str = "", effect: str = "") -> Finding:
    """Return the finding that a probe saw what rear relies on."""
    return Finding(probe, "ok", value, unit, seen, effect)


def degraded(probe: str, seen: str, effect: str, *, value: Value = None, unit: str = "") -> Finding:
    """Return the finding that rear does without something."""
    return Finding(probe, "degraded", value, unit, seen, effect)


def broken(probe: str, seen: str, effect: str, *, value: Value = None, unit: str = "") -> Finding:
    """Return the finding that a promise does not hold, or that rear cannot work."""
    return Finding(probe, "broken", value, unit, seen, effect)


def not_checked(probe: str, why: str, effect: str = "") -> Finding:
    """Return the finding that a probe could not look."""
    return Finding(probe, "not checked", None, "", why, effect)
