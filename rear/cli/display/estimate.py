"""How fast it goes, and how long the rest will take: from how long each step has taken so far."""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

_RATE_SECONDS: Final = 10.0
_SAMPLE_SECONDS: Final = 0.2
_FEWEST_SECONDS: Final = 0.5
#: Of a scavenge. Clearing takes next to nothing.
STEP_OF: Final[dict[str | None, str]] = {
    **dict.fromkeys(("waiting", "flushing", "recovering", "claiming"), "claim"),
    "checking": "check",
    **dict.fromkeys(("planning", "copying", "syncing", "verifying", "indexing"), "merge"),
    "clearing": "clear",
}


class Estimate:
    """Notes how long each step takes, and how many bytes are done at what time."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._samples: deque[tuple[float, int]] = deque()

    def spend(self, phase: str | None, seconds: float) -> None:
        """Add time that a phase has taken."""
        step = STEP_OF.get(phase, "other")
        self._seconds[step] = self._seconds.get(step, 0.0) + seconds

    def sample(self, now: float, done_bytes: int) -> None:
        """Note how many bytes are done by now."""
        if self._samples and now - self._samples[-1][0] < _SAMPLE_SECONDS:
            return
        self._samples.append((now, done_bytes))
        while len(self._samples) > 2 and self._samples[0][0] < now - _RATE_SECONDS:
            self._samples.popleft()

    @property
    def bytes_a_second(self) -> float | None:
        """Rate of the last seconds."""
        if len(self._samples) < 2:
            return None
        (begin, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - begin)

    def seconds_left(
        self, done: Counter[str], remaining: dict[str, int], *, phase: str | None, more_seconds: float
    ) -> float | None:
        """Return how long the rest will take, if all goes on as it did; ``None`` while nobody can know.

        Each step has a unit of its own. The phase has gone on for ``more_seconds`` since `spend` was told last.
        """
        now = STEP_OF.get(phase, "other")
        total = 0.0
        for step, rest in remaining.items():
            seconds = self._seconds.get(step, 0.0) + (more_seconds if step == now else 0.0)
            if step == "merge" and seconds < _FEWEST_SECONDS:
                return None
            if rest > 0:
                if not done[step]:
                    return None
                total += rest * seconds / done[step]
        return total
