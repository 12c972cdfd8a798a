"""What the events of a scavenge mean for a check of the base: which of them are problems, and what became of each."""

from __future__ import annotations

from collections.abc import Iterator

from rear.core.problems import Problem
from rear.errors import NotLeaderError, RearError
from rear.events import (
    Claimed,
    Damaged,
    Event,
    IndexRebuilt,
    JournalDamaged,
    JournalRebuilt,
    LeftAlone,
    Lost,
    Partial,
    Recovered,
    Refused,
    RolledBack,
    RolledForward,
    Torn,
)


def problem_of(event: Event) -> Problem | None:
    """Return what an event of a scavenge means for a check; ``None`` where it tells of normal work."""
    match event:
        case RolledBack():
            detail = "it had not committed: the archive is as before, its members are merged anew"
            return Problem("unfinished-merge", event.archive, detail, "repaired")
        case RolledForward():
            return Problem("unfinished-merge", event.archive, "it had committed, and is complete now", "repaired")
        case Claimed(state="crashed" | "stale"):
            detail = f"its worker is gone; {event.members:,} members were checked one by one"
            return Problem("worker-crashed", event.pair, detail, "repaired")
        case JournalRebuilt():
            code = "journal-missing" if event.code == "missing" else "journal-damaged"
            detail = f"{event.reason}; {event.members:,} members are named by the temp archive itself"
            return Problem(code, event.pair, detail, "repaired")
        case JournalDamaged():
            return Problem("journal-damaged", event.pair, event.reason, "repaired", length=event.length)
        case Recovered():
            return Problem("member-recovered", event.archive, event.reason, "repaired", name=event.name)
        case Partial():
            detail, item = f"{event.reason} (in {event.pair})", event.lost_and_found
            return Problem("member-not-closed", event.archive, detail, "repaired", name=event.name, lost_and_found=item)
        case IndexRebuilt():
            code = "index-missing" if event.code == "missing" else "index-outdated"
            return Problem(code, event.archive, f"made again of {event.members:,} members", "repaired")
        case Torn() | Lost():
            detail = f"{event.reason} (in {event.pair}, source {event.source or 'none'})"
            rest = (event.offset, event.length, event.name, event.lost_and_found)
            if isinstance(event, Torn):
                return Problem("member-torn", event.archive, detail, "repaired", *rest)
            return Problem("member-lost", event.archive, detail, "left", *rest)
        case Damaged():
            start, length, item = event.start, event.length, event.lost_and_found
            return Problem("bytes-unplaced", event.pair, event.reason, "left", start, length, lost_and_found=item)
        case LeftAlone() if event.fault is not None and event.wait_seconds is not None:
            return Problem("temp-archive-waits", event.pair, event.reason, "noted")
        case Refused():
            return Problem("refused", event.subject, event.reason, "left")
    return None


def guarded(subject: str, events: Iterator[Event]) -> Iterator[Event]:
    """Let one thing that cannot be worked on not stop the others: it is told as ``refused``.

    Raises:
        NotLeaderError: another scavenger has taken over.
    """
    try:
        yield from events
    except NotLeaderError:
        raise
    except (RearError, OSError) as error:
        yield Problem("refused", subject, str(error), "left")
