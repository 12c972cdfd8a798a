"""Events for people: lines on standard error while it runs, a summary at the end. ``--json`` for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rear.events import (
    Claimed,
    Copied,
    Damaged,
    Event,
    Finished,
    IndexRebuilt,
    JournalDamaged,
    JournalRebuilt,
    LeftAlone,
    Lost,
    Merged,
    NothingYet,
    Partial,
    Planned,
    Recovered,
    Refused,
    Renamed,
    RolledBack,
    RolledForward,
    RolledOver,
    SetAside,
    Torn,
)
from rear.printable import shown
from rear.problems import Problem

LINES_OF_A_KIND = 20
"""After this many findings of one kind the rest are counted; the JSON report names them all."""


def show(events: Iterable[Event], style: str) -> bool:
    """Show events as they come.

    Args:
        events: of one scavenge.
        style: ``plain``, ``quiet`` (only what needs attention) or ``json`` (all, on standard output).

    Returns:
        whether something was lost, or had to be left as it is.
    """
    needs_attention = False
    if style == "json":
        for event in events:
            print(json.dumps(event.as_json(), ensure_ascii=True), flush=True)
            needs_attention |= _needs_attention(event)
        return needs_attention
    with _Lines(quiet=style == "quiet") as lines:
        for event in events:
            needs_attention |= _needs_attention(event)
            lines.show(event)
    return needs_attention


def _needs_attention(event: Event) -> bool:
    return event.severity == "loss" or isinstance(event, Refused)


class _Lines:
    """Prints events with Rich, which leaves colours out where nobody sees them."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console

        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status = self._console.status("looking around")
        self._shown: dict[str, int] = {}
        self._left_alone: dict[str, int] = {}
        if self._console.is_terminal and not quiet:
            self._status.start()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Also after Ctrl-C: the spinner goes, the cursor comes back, and what was found is said.
        self._status.stop()
        self._count()

    def show(self, event: Event) -> None:
        if isinstance(event, Planned):
            self._status.update(f"{shown(event.archive)}: {_size(event.size_bytes)}")
        if isinstance(event, Copied):
            self._status.update(f"{shown(event.archive)}: {_size(event.copied_bytes)} of {_size(event.size_bytes)}")
            return
        if isinstance(event, LeftAlone):
            self._left_alone[event.reason] = self._left_alone.get(event.reason, 0) + 1
            return
        style, text = _describe(event)
        if not text or (self._quiet and event.severity == "info"):
            return
        kind = event.code if isinstance(event, Problem) else event.kind
        count = self._shown[kind] = self._shown.get(kind, 0) + 1
        if count <= LINES_OF_A_KIND or isinstance(event, Finished):
            self._print(style, text)

    def _print(self, style: str, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(shown(text), style=style))

    def _count(self) -> None:
        for kind, count in self._shown.items():
            if count > LINES_OF_A_KIND:
                self._print("dim", f"… and {count - LINES_OF_A_KIND:,} more of kind {kind}")
        if not self._quiet:
            for reason, count in self._left_alone.items():
                self._print("dim", f"{_counted(count, 'temp archive')} left alone: {reason}")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _size(size: int) -> str:
    from rich.filesize import decimal

    return decimal(size)


def _describe(event: Event) -> tuple[str, str]:
    match event:
        case NothingYet():
            return "", f"{event.base}: no worker has written here yet, nothing to do"
        case Claimed(state="closed"):
            return "dim", f"{event.pair}: {_counted(event.members, 'member')}, {_size(event.size_bytes)}"
        case Claimed():
            return (
                "yellow",
                f"{event.pair}: its worker {_GONE[event.state]}; "
                f"{_counted(event.members, 'member')} to be checked one by one",
            )
        case Planned():
            notes = [f"{event.renamed:,} renamed"] * (event.renamed > 0) + [f"{event.duplicates:,} there already"] * (
                event.duplicates > 0
            )
            extra = f" ({', '.join(notes)})" if notes else ""
            return (
                "dim",
                f"{event.archive}: {_counted(event.members, 'member')}, {_size(event.size_bytes)} to come{extra}",
            )
        case Merged():
            return (
                "green",
                f"{event.archive}: {_counted(event.members, 'member')} merged, "
                f"the archive has {_size(event.archive_size_bytes)}",
            )
        case Renamed():
            return "yellow", f"{event.archive}: another {event.name} was there, both are kept: {event.new_name}"
        case SetAside():
            return "yellow", f"{event.archive}: {event.name} is in {event.lost_and_found}: {event.reason}"
        case Torn():
            return "yellow", (
                f"{event.archive}: {event.name} was being written when its worker died, and was not acknowledged: "
                f"{event.reason}; "
                f"kept as {event.lost_and_found}"
            )
        case Partial():
            return "yellow", (
                f"{event.archive}: {event.name} is partial: {event.reason}"
                + (f", in {event.lost_and_found}" if event.lost_and_found else "")
            )
        case Lost():
            return "bold red", (
                f"LOST {event.archive}: {event.name} "
                f"(source {event.source or 'none'}, {event.pair} bytes {event.offset:,} to "
                f"{event.offset + event.length:,}): {event.reason}; what there is: {event.lost_and_found}"
            )
        case Damaged():
            return "bold red", (
                f"DAMAGED {event.pair}, bytes {event.start:,} to "
                f"{event.start + event.length:,}: {event.reason}; "
                f"kept whole as {event.lost_and_found}"
            )
        case Recovered():
            return "yellow", f"{event.archive}: {event.name} recovered: {event.reason}"
        case JournalRebuilt():
            return (
                "yellow",
                f"{event.pair}: {event.reason}; {_counted(event.members, 'member')} named by the temp archive itself",
            )
        case JournalDamaged():
            return "yellow", f"{event.pair}: {_counted(event.length, 'byte')} of its journal unreadable: {event.reason}"
        case Refused():
            return "red", f"{event.subject}: {event.reason}"
        case RolledBack():
            return "yellow", f"{event.archive}: a merge that had died before its commit was undone"
        case RolledForward():
            return "yellow", f"{event.archive}: a merge that had died after its commit was completed"
        case RolledOver():
            return "", f"{event.archive}: full, renamed {event.renamed_to}"
        case IndexRebuilt():
            return "dim", f"{event.archive}: index of {_counted(event.members, 'member')} made again: {event.reason}"
        case Problem():
            return _describe_problem(event)
        case Finished():
            return _describe_end(event)
    return "", ""


_GONE = {"crashed": "is gone", "stale": "shows no sign of life"}


def _describe_problem(event: Problem) -> tuple[str, str]:
    style = {"info": "dim", "warning": "yellow", "loss": "bold red"}[event.severity]
    member = f"{event.name}: " if event.name is not None else ""
    place = ""
    if event.offset is not None:
        place = f" (at byte {event.offset:,})"
        if event.length:
            place = f" (bytes {event.offset:,} to {event.offset + event.length:,})"
    kept = f"; kept as {event.lost_and_found}" if event.lost_and_found is not None else ""
    loss = "LOSS " if event.severity == "loss" else ""
    return style, f"{loss}{event.subject}: {member}{event.detail}{place}: {event.code}, {event.outcome}{kept}"


def _describe_end(event: Finished) -> tuple[str, str]:
    parts = [
        f"{_counted(event.members, 'member')} ({_size(event.size_bytes)}) merged into "
        f"{_counted(event.archives, 'archive')}"
    ]
    counts = {
        "renamed": event.renamed, "there already": event.duplicates, "torn": event.torn, "LOST": event.lost,
        "left as they are": event.refused,
    }  # fmt: skip
    parts += [f"{count:,} {what}" for what, count in counts.items() if count]
    report = f"; report: {event.report}" if event.report else ""
    return "bold red" if event.lost else "bold", ", ".join(parts) + report
