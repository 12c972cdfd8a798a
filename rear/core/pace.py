"""How often progress is told: seldom enough to cost nothing, often enough for people."""

from __future__ import annotations

import time
from typing import Final

_SECONDS: Final = 0.2


class Pace:
    """Says when the next word on progress is due."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _SECONDS

    def is_due(self) -> bool:
        """Whether enough time has passed since this was last true."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _SECONDS
        return True
