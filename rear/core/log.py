"""The program's log, under the name ``rear``: what a worker tells it.

``logging`` is imported with the first message: most programs never see one, and it would be a tenth of ``import rear``.
"""

from __future__ import annotations

import time
from typing import Final


def warn(message: str, *values: object) -> None:
    """Log a warning; the values go into the message as ``%`` puts them."""
    import logging

    logging.getLogger("rear").warning(message, *values)


def tell_error(message: str, *values: object, with_traceback: bool = False) -> None:
    """Log an error, with the traceback of the exception that is being handled if asked to."""
    import logging

    logging.getLogger("rear").error(message, *values, exc_info=with_traceback)


class LaterLog:
    """Messages that wait until no lock is held: a handler of that log may be waiting for one of ours."""

    def __init__(self) -> None:
        #: Whether each is an error, the message, its values.
        self.waiting: list[tuple[bool, str, tuple[object, ...]]] = []

    def warn(self, message: str, *values: object) -> None:
        """Have a warning told later."""
        self.waiting.append((False, message, values))

    def tell_error(self, message: str, *values: object) -> None:
        """Have an error told later."""
        self.waiting.append((True, message, values))

    def tell(self) -> None:
        """Log what has been waiting."""
        while self.waiting:
            is_error, message, values = self.waiting.pop(0)
            (tell_error if is_error else warn)(message, *values)


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
