"""The end of a scavenge, a check or a sweep: aligned lines that read well in a message, and an object for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from rear.cli.display.progress import Progress
from rear.cli.display.screen_rows import FindingRow
from rear.core.text import counted, seconds_text, size_text
from rear.events import Checked, Event, Swept

_ARCHIVES_LISTED: Final = 10
_NOTHING: Final = "nothing: no temp archive of an ended worker waits"
_LOUD: Final = frozenset({"LOST", "DAMAGED", "LOSS", "refused", "left"})
_NOUNS: Final = {
    "renamed": ("member", "another one had the name: both are kept"),
    "set aside": ("member", "by the conflict policy; in lost+found"),
    "torn": ("member", "not acknowledged when the worker died; in lost+found"),
    "partial": ("member", "flushed, not closed: its writer died"),
    "LOST": ("member", "what there is of it is in lost+found"),
    "DAMAGED": ("temp archive", "kept as a whole in lost+found"),
    "recovered": ("member", "that journal or temp archive alone would have lost"),
    "re-archived from source": ("member", "whose archived bytes were no good"),
    "journal damaged": ("journal", "no member is missing"),
    "journal rebuilt": ("journal", "from what the members say themselves"),
    "undone": ("merge", "that had died before its commit"),
    "completed": ("merge", "that had died after its commit"),
    "rolled over": ("archive", "full, and renamed"),
    "warning": ("warning", ""),
    "refused": ("thing", "not touched"),
    "LOSS": ("problem", "bytes are gone for good"),
    "left": ("problem", "not repaired"),
    "would repair": ("problem", "not repaired yet"),
    "repaired": ("problem", ""),
    "noted": ("thing", "worth knowing; nothing is wrong"),
}
#: What was found, in the order of the summary.
_ORDER: Final = {label: number for number, label in enumerate(_NOUNS)}


class Line(NamedTuple):
    """A line of a summary: a word that it begins with, or none; the rest; and a style of Rich."""

    head: str
    text: str
    style: str = ""


def summary_lines(progress: Progress, *, lists_all: bool) -> Iterator[Line]:
    """Yield the summary; it lists findings of all kinds, or only what needs attention: the others have been told."""
    yield Line("", _title(progress), "bold")
    yield from _amounts(progress)
    for label in sorted(progress.found, key=lambda label: _ORDER.get(label, len(_ORDER))):
        yield from _found(progress, label, lists_all or label in _LOUD)
    for common, count in progress.left_alone.items():
        noun = "file" if progress.command == "sweep" else "temp archive"
        yield Line("left alone", f"{counted(count, noun)}: {progress.reasons[common]}")
    report = getattr(progress.end, "report", None)
    if report:
        yield Line("report", report)
    yield from (Line("next", text) for text in _advice(progress))


def _title(progress: Progress) -> str:
    took, subject = seconds_text(progress.last - progress.started), progress.subject
    if progress.failure is not None:
        return f"{subject}: {progress.failure} after {took}"
    if progress.command == "fsck":
        return f"{subject}: {_verdict(progress)}"
    if progress.command == "sweep":
        return f"{subject}: would be swept" if progress.is_dry_run else f"{subject}: swept in {took}"
    if progress.is_dry_run:
        return f"{subject}: what a scavenge would do now"
    leader = f" by {progress.leader}" if progress.leader else ""
    return f"{subject}: scavenged in {took}{leader}"


def _verdict(progress: Progress) -> str:
    words = (("repaired", "repaired"), ("would repair", "would be repaired"), ("left", "left"), ("noted", "noted"))
    counts = progress.outcomes
    parts = [f"{counts[outcome]:,} {word}" for outcome, word in words if counts[outcome]]  # type: ignore[index]
    if not counts.keys() - {"noted"}:
        parts.insert(0, "clean")
    return ", ".join(parts)


def _amounts(progress: Progress) -> Iterator[Line]:
    end = progress.end
    if isinstance(end, Checked):
        yield Line("checked", f"{counted(end.archives, 'archive')} with {counted(end.members, 'member')}")
    if isinstance(end, Swept):
        done = "would archive" if progress.is_dry_run else "archived"
        yield Line(done, f"{counted(end.archived, 'file')}, {size_text(end.size_bytes)}, in {end.archive}")
        counts = {
            "were there already": end.there_already,
            "were deleted": end.deleted,
            "are not merged yet": end.pending,
        }
        yield from (Line("", f"{counted(count, 'file')} {what}") for what, count in counts.items() if count)
    elif progress.is_dry_run and progress.command == "scavenge":
        yield Line("would merge", _planned(progress))
        yield from _archives(progress)
    elif progress.merged_members or progress.command == "scavenge":
        yield Line("merged", _merged(progress))
        yield from _archives(progress)
    for state, (pairs, members) in progress.ended.items():
        if state != "closed" and progress.command != "fsck":
            yield Line(state, f"{counted(pairs, 'worker')}: {counted(members, 'member')} checked one by one")
    if progress.duplicates:
        yield Line("", f"{counted(progress.duplicates, 'member')} there already, with the same content")


def _merged(progress: Progress) -> str:
    if not progress.merged_members:
        return "nothing new" if progress.known_members else _NOTHING
    return _into(progress.merged_members, progress.merged_bytes, progress.merged_archives)


def _planned(progress: Progress) -> str:
    count = sum(line.state == "would be merged" for line in progress.archives.values()) + progress.archives.more
    return _into(progress.planned_members, progress.planned_bytes, count) if count else _NOTHING


def _into(members: int, size_bytes: int, archives: int) -> str:
    return f"{counted(members, 'member')} ({size_text(size_bytes)}) into {counted(archives, 'archive')}"


def _archives(progress: Progress) -> Iterator[Line]:
    """Yield the archives that got most, as an aligned table."""
    lines = [line for line in progress.archives.values() if line.members or line.state == "would be merged"]
    if len(lines) + progress.archives.more < 2:
        return
    lines.sort(key=lambda line: -(line.size_bytes or line.coming_bytes))
    rows = []
    for line in lines[:_ARCHIVES_LISTED]:
        now = "" if line.archive_size_bytes is None else f"now {size_text(line.archive_size_bytes)}"
        members = counted(line.members or line.coming_members, "member")
        rows.append((line.archive, members, size_text(line.size_bytes or line.coming_bytes), now))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, members, size, now in rows:
        yield Line("", f"{name:{widths[0]}}  {members:>{widths[1]}}  {size:>{widths[2]}}  {now}".rstrip())
    more = len(lines) - len(rows) + progress.archives.more
    if more:
        yield Line("", f"… and {counted(more, 'more archive')}")


def _found(progress: Progress, label: str, is_listed: bool) -> Iterator[Line]:
    count, (noun, remark) = progress.found[label], _NOUNS.get(label, ("finding", ""))
    listed: list[FindingRow] = progress.listed[label] if is_listed else []
    style = "bold red" if label in _LOUD else ""
    yield Line(label, counted(count, noun) + (f", {remark}" if remark else ""), style)
    for finding in listed:
        yield Line("", f"- {finding.text}", style)
    if listed and count > len(listed):
        yield Line("", f"… and {count - len(listed):,} more", style)


def _advice(progress: Progress) -> Iterator[str]:
    found = progress.found
    if progress.failure is not None:
        yield "nothing is lost; run it again to go on"
    elif progress.command == "fsck":
        if found["would repair"]:
            yield "without -n, rear fsck repairs it; one archive alone with --output or --in-place"
        if progress.outcomes["left"]:
            yield "docs/reference/problems.md tells what each code means, and what can be done"
    elif progress.is_dry_run:
        if progress.planned_members or progress.collected_files:
            yield "without --dry-run it is done"
    elif found["refused"]:
        yield "mend what stands there, and run it again"
    if found["LOST"] or found["DAMAGED"] or found["LOSS"]:
        yield "look at .rear/lost+found: what there is of them is kept there; rear fsck checks the whole base"


class Summary(Event):
    """The last object of ``--json``, also after an error or Ctrl-C: what all events add up to.

    Attributes:
        command: ``scavenge``, ``fsck`` or ``sweep``.
        subject: the base, archive or folder, as it was named.
        dry_run: nothing was changed.
        status: ``done``, ``interrupted`` or ``failed``.
        error: why it failed.
        seconds: how long it took.
        needs_attention: bytes were lost, or something was left as it is.
        members: merged into final archives.
        size_bytes: of these, local headers included.
        archives: how many final archives they went to.
        found: how many findings, by kind of event or code of a problem.
        outcomes: how many problems, by what became of them.
        report: path of the report, relative to the base.
    """

    command: str
    subject: str
    dry_run: bool
    status: str
    error: str | None
    seconds: float
    needs_attention: bool
    members: int
    size_bytes: int
    archives: int
    found: dict[str, int]
    outcomes: dict[str, int]
    report: str | None


def summary_of(progress: Progress) -> Summary:
    """Return what all events add up to."""
    return Summary(
        command=progress.command,
        subject=progress.subject,
        dry_run=progress.is_dry_run,
        status=progress.failure or "done",
        error=progress.error,
        seconds=round(progress.last - progress.started, 3),
        needs_attention=progress.needs_attention,
        members=progress.merged_members,
        size_bytes=progress.merged_bytes,
        archives=progress.merged_archives,
        found=dict(progress.kinds),
        outcomes={str(outcome): count for outcome, count in progress.outcomes.items()},
        report=getattr(progress.end, "report", None),
    )
