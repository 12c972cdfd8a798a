"""The JSON report that a scavenge or a check leaves in the base, when it did something or found something."""

from __future__ import annotations

import json
import time
from typing import Any, Final

from rear.events import Event, Merged, Refused
from rear.layout import Layout
from rear.storage import Storage

VERSION: Final = 1


def report_refused(error: OSError) -> Refused:
    """Return the event that tells of a report that could not be written: everything else was done."""
    return Refused(
        ".rear/reports", f"the report could not be written: {error}; what it would say is what was said here"
    )


class Report:
    """Collects what is worth keeping: which archives grew, and all that is more than information."""

    def __init__(self) -> None:
        self._archives: set[str] = set()
        self._findings: list[dict[str, Any]] = []
        self._started_ns = time.time_ns()

    def add(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, Merged):
            self._archives.add(event.archive)
        elif event.severity != "info":
            self._findings.append(event.as_json())

    def write(self, layout: Layout, leader: str, summary: dict[str, Any], *, storage: Storage) -> str | None:
        """Write the report, if there is anything to report, and return its path relative to the base.

        Raises:
            OSError: it cannot be written.
        """
        if not self._archives and not self._findings:
            return None
        path = layout.reports / f"{time.strftime('%Y%m%dT%H%M%S')}-{leader}.json"
        report = {
            "version": VERSION, "leader": leader, "started_ns": self._started_ns, "finished_ns": time.time_ns(),
            "summary": summary, "archives": sorted(self._archives), "findings": self._findings,
        }  # fmt: skip
        storage.make_directories(layout.reports)
        storage.replace(path, json.dumps(report, indent=1).encode() + b"\n")
        return path.relative_to(layout.base).as_posix()
