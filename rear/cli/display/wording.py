"""Events in words: one sentence each, how loud it is, and one word for what was found."""

from __future__ import annotations

from typing import Final

from rear import events
from rear.core.problems import Problem
from rear.core.text import counted, size_text

_GONE: Final = {"crashed": "is gone", "stale": "shows no sign of life"}
_STYLES: Final = {"info": "dim", "warning": "yellow", "loss": "bold red"}
_LABELS: Final[dict[type[events.Event], str]] = {
    events.Renamed: "renamed",
    events.SetAside: "set aside",
    events.Torn: "torn",
    events.Partial: "partial",
    events.Lost: "LOST",
    events.Damaged: "DAMAGED",
    events.JournalDamaged: "journal damaged",
    events.JournalRebuilt: "journal rebuilt",
    events.Refused: "refused",
    events.RolledBack: "undone",
    events.RolledForward: "completed",
    events.RolledOver: "rolled over",
    events.Narrowed: "narrowed",
}


def label_of(event: events.Event) -> str | None:
    """Return one word, or two, for a finding; ``None`` for what is normal work."""
    if isinstance(event, Problem):
        return event.outcome if event.severity != "loss" else "LOSS"
    if isinstance(event, events.Recovered):
        return "recovered" if event.source is None else "re-archived from source"
    return _LABELS.get(type(event))


def style_of(event: events.Event) -> str:
    """Return how loud an event is, as a style of Rich."""
    match event:
        case events.Merged():
            return "green"
        case events.Refused():
            return "red"
        case events.RolledOver() | events.Narrowed() | events.NothingYet():
            return ""
        case events.Claimed():
            return "dim" if event.state == "closed" else "yellow"
        case _:
            return _STYLES[event.severity]


def describe(event: events.Event) -> str:
    """Return a sentence for people, not yet made safe to show; nothing for what tells of progress alone."""
    match event:
        case events.NothingYet():
            return f"{event.base}: no worker has written here yet, nothing to do"
        case events.Claimed(state="closed"):
            return f"{event.pair}: {_amount(event.members, event.size_bytes)}"
        case events.Claimed():
            members = counted(event.members, "member")
            return f"{event.pair}: its worker {_GONE[event.state]}; {members} to be checked one by one"
        case events.Planned():
            return _describe_plan(event)
        case events.Merged():
            size = size_text(event.archive_size_bytes)
            return f"{event.archive}: {counted(event.members, 'member')} merged, the archive has {size}"
        case events.RolledBack():
            return f"{event.archive}: a merge that had died before its commit was undone"
        case events.RolledForward():
            return f"{event.archive}: a merge that had died after its commit was completed"
        case events.RolledOver():
            return f"{event.archive}: full, renamed {event.renamed_to}"
        case events.Narrowed():
            return f"{event.archive}: mode {event.mode}, was {event.mode_before}: {event.pair} is open to no more"
        case events.IndexRebuilt():
            return f"{event.archive}: index of {counted(event.members, 'member')} made again: {event.reason}"
        case events.Collected():
            return f"{event.source} → {event.archive}/{event.name}, {size_text(event.size_bytes)}"
        case events.Waiting():
            return f"waiting for {event.wait_seconds:.0f} s at most: {event.reason}"
        case Problem():
            return _describe_problem(event)
        case events.Renamed():
            return f"{event.archive}: another {event.name} was there, both are kept: {event.new_name}"
        case events.SetAside():
            return f"{event.archive}: {event.name} is in {event.lost_and_found}: {event.reason}"
        case events.Torn():
            return (
                f"{event.archive}: {event.name} was being written when its worker died, and was not acknowledged: "
                f"{event.reason}; kept as {event.lost_and_found}"
            )
        case events.Partial():
            kept = f", in {event.lost_and_found}" if event.lost_and_found else ""
            return f"{event.archive}: {event.name} is partial: {event.reason}{kept}"
        case events.Lost():
            place = f"{event.pair} bytes {event.offset:,} to {event.offset + event.length:,}"
            return (
                f"LOST {event.archive}: {event.name} (source {event.source or 'none'}, {place}): {event.reason}; "
                f"what there is: {event.lost_and_found}"
            )
        case events.Damaged():
            place = f"bytes {event.start:,} to {event.start + event.length:,}"
            return f"DAMAGED {event.pair}, {place}: {event.reason}; kept whole as {event.lost_and_found}"
        case events.Recovered():
            return f"{event.archive}: {event.name} recovered: {event.reason}"
        case events.JournalRebuilt():
            members = counted(event.members, "member")
            return f"{event.pair}: {event.reason}; {members} named by the temp archive itself"
        case events.JournalDamaged():
            return f"{event.pair}: {counted(event.length, 'byte')} of its journal unreadable: {event.reason}"
        case events.Refused():
            return f"{event.subject}: {event.reason}"
    return ""


def _amount(members: int, size_bytes: int) -> str:
    return f"{counted(members, 'member')}, {size_text(size_bytes)}"


def _describe_plan(event: events.Planned) -> str:
    notes = [f"{event.renamed:,} renamed"] * (event.renamed > 0)
    notes += [f"{event.duplicates:,} there already"] * (event.duplicates > 0)
    extra = f" ({', '.join(notes)})" if notes else ""
    return f"{event.archive}: {_amount(event.members, event.size_bytes)} to come{extra}"


def _describe_problem(event: Problem) -> str:
    member = f"{event.name}: " if event.name is not None else ""
    place = ""
    if event.offset is not None:
        place = f" (at byte {event.offset:,})"
        if event.length:
            place = f" (bytes {event.offset:,} to {event.offset + event.length:,})"
    kept = f"; kept as {event.lost_and_found}" if event.lost_and_found is not None else ""
    loss = "LOSS " if event.severity == "loss" else ""
    return f"{loss}{event.subject}: {member}{event.detail}{place}: {event.code}, {event.outcome}{kept}"
