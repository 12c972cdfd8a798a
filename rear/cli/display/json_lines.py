"""``--json``: one object a line. The first one tells the version of the schema, the last one sums up."""

from __future__ import annotations

import json
import sys
from typing import ClassVar

from rear.cli.display.progress import Progress
from rear.cli.display.summary import summary_of
from rear.core.version import __version__
from rear.events import SCHEMA_VERSION, Event, Severity


class Schema(Event):
    """The first object of ``--json``: what follows, and in which version.

    Attributes:
        schema: ``rear-events``.
        version: of the schema.
        rear: version of the program.
        command: ``scavenge``, ``fsck`` or ``sweep``.
    """

    schema: str
    version: int
    rear: str
    command: str


class Warned(Event):
    """The library told its log of something that it could do without.

    Attributes:
        reason: a sentence.
    """

    severity: ClassVar[Severity] = "warning"
    reason: str


class JsonLines:
    """Prints events on standard output, each as one line of ASCII."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._has_begun = False

    def show(self, event: Event) -> None:
        """Print the next event; before the first one, the schema."""
        if not self._has_begun:
            self._has_begun = True
            self.show(Schema("rear-events", SCHEMA_VERSION, __version__, self._progress.command))
        if sys.stdout is not None:
            # In one piece: print() writes the newline by itself, and Ctrl-C in between would join two lines.
            sys.stdout.write(json.dumps(event.as_json(), ensure_ascii=True) + "\n")
            sys.stdout.flush()

    def warn(self, text: str) -> None:
        """Print what the library told its program's log."""
        self.show(Warned(text))

    def close(self) -> None:
        """Print the summary."""
        self.show(summary_of(self._progress))
