"""``--json``: one object a line. The first one tells the version of the schema, the last one sums up."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from rear._version import __version__
from rear.events import SCHEMA_VERSION, Event
from rear.progress import Progress
from rear.summary import summary_object

SCHEMA: Final = "rear-events"


class JsonLines:
    """Prints events on standard output, each as one line of ASCII."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        _print(
            {
                "kind": "schema", "severity": "info", "schema": SCHEMA, "version": SCHEMA_VERSION,
                "rear": __version__, "command": progress.command,
            }
        )  # fmt: skip

    def show(self, event: Event) -> None:
        """Print the next event."""
        _print(event.as_json())

    def warn(self, text: str) -> None:
        """Print what the library told its program's log."""
        _print({"kind": "warning", "severity": "warning", "reason": text})

    def close(self) -> None:
        """Print the summary."""
        _print(summary_object(self._progress))


def _print(found: dict[str, Any]) -> None:
    if sys.stdout is not None:
        print(json.dumps(found, ensure_ascii=True), flush=True)
