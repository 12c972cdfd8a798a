"""The program's log, under the name ``rear``: what a worker tells it.

``logging`` is imported with the first message: most programs never see one, and it would be a tenth of ``import rear``.
"""

from __future__ import annotations

import time
from typing import Final


class LaterLog:
    """Messages that wait until no lock is held: a handler of that log may be waiting for one of ours.

    What cannot be told even then, because no file of ``logging`` can be opened, waits for the next time.
    """

    def __init__(self) -> None:
        #: The text of each, whether it is an error, and an exception whose traceback is to be told; each text once.
        self.waiting: list[tuple[str, bool, BaseException | None]] = []

    def warn(self, message: str, *values: object) -> None:
        """Have a warning told later; the values go into the message as ``%`` puts them."""
        self._add(message % values, False, None)

    def tell_error(self, message: str, *values: object, traceback_of: BaseException | None = None) -> None:
        """Have an error told later, with the traceback of an exception if one is given."""
        self._add(message % values, True, traceback_of)

    def _add(self, text: str, is_error: bool, error: BaseException | None) -> None:
        if not text.isprintable():
            # Names in it may be anybody's, and whoever reads a log does so on a terminal, line by line.
            from rear.core.text import shown

            text = shown(text)
        # What fails again and again while nothing can be told is kept once.
        if not any(text == waiting for waiting, _, _ in self.waiting):
            self.waiting.append((text, is_error, error))

    def tell(self) -> None:
        """Log what has been waiting."""
        if not self.waiting:
            return
        try:
            import logging
        except (OSError, ImportError, MemoryError):
            return
        while self.waiting:
            try:
                text, is_error, error = self.waiting.pop(0)
            except IndexError:
                # Another thread was faster.
                return
            logging.getLogger("rear").log(logging.ERROR if is_error else logging.WARNING, "%s", text, exc_info=error)


_log: Final = LaterLog()


def warn(message: str, *values: object) -> None:
    """Log a warning; the values go into the message as ``%`` puts them."""
    _log.warn(message, *values)
    _log.tell()


def tell_error(message: str, *values: object) -> None:
    """Log an error."""
    _log.tell_error(message, *values)
    _log.tell()


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
