"""What a worker tells its program's log, under the name ``rear``.

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
