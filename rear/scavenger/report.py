"""What a scavenge did: its totals, and the JSON report that it leaves in the base, as a check does."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Final, NamedTuple

from rear.core.layout import Layout, make_in_base
from rear.core.problems import Problem
from rear.core.storage import Storage, opened
from rear.events import Event, Finished, Merged, Planned, Refused

VERSION: Final = 1
_IN_ONE_SECOND: Final = 4
_HEAD_BYTES: Final = 64 << 10
_AFTER_SUMMARY: Final = b',\n "archives"'


def report_refused(error: OSError) -> Refused:
    """Return the event that tells of a report that could not be written: everything else was done."""
    return Refused(
        ".rear/reports", f"the report could not be written: {error}; what it would say is what was said here"
    )


class Report:
    """Collects what is worth keeping: which archives grew, and all that is more than information."""

    def __init__(self) -> None:
        self._archives: set[str] = set()
        #: As they are written: they may be as many as members of forged journals.
        self._findings: list[bytes] = []
        self._refused = 0
        self._started_ns = time.time_ns()

    def add(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, Merged):
            self._archives.add(event.archive)
        elif event.severity != "info":
            comma = b",\n  " if self._findings else b"\n  "
            self._findings.append(comma + json.dumps(event.as_json()).encode())
            self._refused += isinstance(event, Refused) or (isinstance(event, Problem) and event.outcome == "left")

    def write(self, layout: Layout, leader: str, summary: dict[str, Any], *, storage: Storage) -> str | None:
        """Write the report, if there is anything to report, and return its path relative to the base.

        Raises:
            OSError: it cannot be written.
        """
        if not self._archives and not self._findings:
            # What was refused before, and is mended now, is to stand nowhere any more.
            last = next(last_summaries(layout, 1, storage=storage), None)
            if last is None or not last.refused:
                return None
        path = layout.reports / f"{time.strftime('%Y%m%dT%H%M%S')}-{leader}.json"
        report = {
            "version": VERSION,
            "leader": leader,
            "started_ns": self._started_ns,
            "finished_ns": time.time_ns(),
            "refused": self._refused,
            "summary": summary,
            "archives": sorted(self._archives),
        }
        make_in_base(layout.base, layout.reports, storage=storage)
        head = json.dumps(report, indent=1).encode().removesuffix(b"\n}")
        # Put together once: of many findings each copy counts.
        storage.replace(path, b"".join([head, b',\n "findings": [', *self._findings, b"]\n}\n"]))
        return path.relative_to(layout.base).as_posix()


class Totals:
    """Adds the events of a scavenge up."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._archives: set[str] = set()
        self._members = self._size_bytes = self._duplicates = 0

    def add(self, event: Event) -> None:
        self._counts[event.kind] += 1
        if isinstance(event, Merged):
            self._archives.add(event.archive)
            self._members += event.members
            self._size_bytes += event.size_bytes
        elif isinstance(event, Planned):
            self._duplicates += event.duplicates

    def summary(self, report: str | None = None) -> Finished:
        """Return the totals so far."""
        counts = self._counts
        return Finished(
            members=self._members,
            size_bytes=self._size_bytes,
            archives=len(self._archives),
            renamed=counts["renamed"],
            duplicates=self._duplicates,
            torn=counts["torn"],
            lost=counts["lost"] + counts["damaged"],
            refused=counts["refused"],
            left_alone=counts["left_alone"],
            report=report,
        )


class ReportSummary(NamedTuple):
    """The head of a report: who did something when, and the totals, the event ``finished`` or ``checked``.

    ``refused`` is how much was left as found, by a scavenge or a check.
    """

    name: str
    leader: str
    started_ns: int
    finished_ns: int
    totals: dict[str, Any]
    refused: int


def last_summaries(layout: Layout, count: int, *, storage: Storage) -> Iterator[ReportSummary]:
    """Yield the heads of the last reports, the newest first; what cannot be read is passed over.

    Raises:
        OSError: their folder cannot be read.
    """
    names = [name for name in storage.names(layout.reports) if name.endswith(".json")]
    # Names tell the second: of several in one, the end of each decides.
    newest = sorted(names, reverse=True)[: count + _IN_ONE_SECOND]
    summaries = filter(None, (_read_summary(layout, name, storage) for name in newest))
    yield from sorted(summaries, key=attrgetter("finished_ns"), reverse=True)[:count]


def _read_summary(layout: Layout, name: str, storage: Storage) -> ReportSummary | None:
    try:
        with opened(layout.reports / name, storage) as descriptor:
            head = storage.read(descriptor, _HEAD_BYTES, 0)
    except OSError:
        return None
    try:
        # The findings behind it may be many; no string holds a newline that is not escaped.
        report = json.loads(head.partition(_AFTER_SUMMARY)[0] + b"}")
        leader, totals = report["leader"], report["summary"]
        started_ns, finished_ns = report["started_ns"], report["finished_ns"]
        refused = report.get("refused", totals.get("refused", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(leader, str) or not isinstance(totals, dict):
        return None
    if any(type(number) is not int for number in (started_ns, finished_ns, refused)):
        return None
    return ReportSummary(name, leader, started_ns, finished_ns, totals, refused)
