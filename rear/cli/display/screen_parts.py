"""What stands on the live screen, as lines of exactly so many cells: made of a `Progress`, no terminal involved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from rear.cli.display.cells import Column, row, shortened
from rear.cli.display.progress import Progress
from rear.cli.display.screen_rows import ArchiveLine, PairLine
from rear.core.text import size_text

if TYPE_CHECKING:
    from rich.text import Text

_WIDE: Final = 64
"""From so many cells on, there is room for all columns."""
_VERY_WIDE: Final = 100
_ASCII: Final = str.maketrans("…→━─·", "~>=-|")
_PHASES: Final = {
    "waiting": "waiting for a sign of life of what cannot be seen from here",
    "flushing": "waiting until live workers have ended their temp archives",
    "recovering": "recovering merges that died",
    "claiming": "claiming temp archives",
    "checking": "checking",
    "planning": "planning",
    "copying": "copying to",
    "syncing": "syncing",
    "verifying": "verifying",
    "indexing": "indexing",
    "clearing": "clearing merged temp archives",
    "inspecting": "checking",
    "reading": "reading",
    "rebuilding": "rebuilding",
    "comparing": "comparing the index of",
    "tidying": "looking for what lies about",
}
_PAIR_STYLES: Final = {
    "quarantined": "bold red",
    "refused": "red",
    "crashed": "yellow",
    "stale": "yellow",
    "closed": "",
    "waits": "dim",
    "live": "green",
}
_BUSY: Final = "bold cyan"

Section = Callable[[Progress, int, int], "list[Text]"]
Cells = list[tuple[str, str]]
Line = TypeVar("Line", ArchiveLine, PairLine)


def frame(progress: Progress, now: float, *, width: int, height: int, is_ascii: bool = False) -> list[Text]:
    """Return the lines of the screen, from the top; ``now`` is of the clock that the events came with."""
    head = _head(progress, now, width)[: max(height, 0)]
    sections: list[tuple[int, Section]] = []
    if progress.archives:
        sections.append((len(progress.archives) + progress.archives.more, _archives))
    if progress.pairs:
        sections.append((len(progress.pairs) + sum(progress.pairs.more.values()), _pairs))
    if progress.findings:
        sections.append((sum(progress.found.values()), _findings))
    lines = head
    # A blank line, a heading and a row each; with less room, findings stay longest.
    for least in (_pairs, _archives, _findings):
        if height - len(head) < 3 * len(sections):
            sections = [(need, section) for need, section in sections if section is not least]
    shares = share(height - len(head) - 2 * len(sections), [need for need, _ in sections])
    for (_, section), rows in zip(sections, shares, strict=True):
        lines += [_text("", width), *section(progress, width, rows)]
    for line in lines:
        line.truncate(width)
    return [_in_ascii(line) for line in lines] if is_ascii else lines


def share(available: int, needs: Sequence[int]) -> list[int]:
    """Share lines out: nobody gets more than needed, and what one leaves goes to the others."""
    shares = [0] * len(needs)
    hungry = [number for number, need in enumerate(needs) if need]
    while available > 0 and hungry:
        part = max(available // len(hungry), 1)
        for number in hungry[:available]:
            given = min(part, needs[number] - shares[number])
            shares[number] += given
            available -= given
        hungry = [number for number in hungry if shares[number] < needs[number]]
    return shares


def _in_ascii(line: Text) -> Text:
    line.plain = line.plain.translate(_ASCII).encode("ascii", "replace").decode()
    return line


def _text(text: str, width: int, style: str = "") -> Text:
    from rich.text import Text

    return Text(shortened(text, width), style=style, no_wrap=True, end="", overflow="crop")


# ---- head


def _head(progress: Progress, now: float, width: int) -> list[Text]:
    elapsed = clock_text(now - progress.started)
    title = [(f"rear {progress.command} {progress.subject}", "bold"), (elapsed, "")]
    lines = [row(title, [Column("", 0), Column("", len(elapsed), True)], width)]
    leader = f"{progress.leader} leads" if progress.leader else "nothing is changed" * progress.is_dry_run
    if leader:
        lines.append(_text(leader, width, "dim"))
    lines += [_text(_phase(progress), width, "cyan"), _bar(progress, now, width)]
    amounts = _amounts(progress, width)
    return [*lines, _text(amounts, width)] if amounts else lines


def _phase(progress: Progress) -> str:
    if progress.phase is None:
        return "looking around"
    words = _PHASES[progress.phase]
    return f"{words} {progress.phase_subject}" if progress.phase_subject else words


def clock_text(seconds: float) -> str:
    """Return ``0:07``, ``12:34``, ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(progress: Progress, now: float, width: int) -> Text:
    from rich.text import Text

    fraction, seconds = progress.fraction, progress.seconds_left(now)
    percent = "" if fraction is None else f"{int(fraction * 100):3} %"
    left = "" if seconds is None else f"{clock_text(seconds)} left"
    words = "  ".join(filter(None, (percent, left)))
    room = max(min(width - len(words) - 2, 60), 0)
    filled = int((fraction or 0.0) * room)
    line = Text("━" * filled, style="green", no_wrap=True, end="", overflow="crop")
    line.append("─" * (room - filled), "dim")
    line.append(f"  {words}")
    line.truncate(width)
    return line


def _amounts(progress: Progress, width: int) -> str:
    """Return how much is done of what; on a narrow screen the beginning of it."""
    about = "about " if progress.is_guess else ""
    parts = []
    if progress.known_bytes:
        parts.append(f"{size_text(progress.done_bytes)} of {about}{size_text(progress.expected_bytes)}")
        rate = progress.bytes_a_second
        if rate:
            parts.append(f"{size_text(round(rate))}/s")
        parts.append(f"{progress.merged_members:,} of {about}{progress.expected_members:,} members")
    if progress.expected_pairs:
        parts.append(f"{progress.cleared_pairs:,} of {progress.expected_pairs:,} temp archives")
    elif progress.phase_total:
        parts.append(f"{progress.phase_done:,} of {progress.phase_total:,}")
    if progress.collected_files:
        parts.append(f"{progress.collected_files:,} files collected, {size_text(progress.collected_bytes)}")
    while len(parts) > 1 and len(" · ".join(parts)) > width:
        parts.pop()
    return " · ".join(parts)


# ---- sections


def _archives(progress: Progress, width: int, rows: int) -> list[Text]:
    is_wide = width >= _WIDE
    columns = [Column("FINAL ARCHIVE", 0), Column("MEMBERS", 11, True)]
    columns += [Column("BYTES IN", 9, True), Column("SIZE", 9, True)] * is_wide
    columns.append(Column("STATE", 14 if is_wide else 12))

    def cells(line: ArchiveLine) -> Cells:
        members = line.members or line.coming_members
        amount = line.size_bytes + (line.copied_bytes or line.coming_bytes * progress.is_dry_run)
        size = "" if line.archive_size_bytes is None else size_text(line.archive_size_bytes)
        numbers = [f"{members:,}" if members else ""] + [size_text(amount) if amount else "", size] * is_wide
        state = (_archive_state(line), _archive_style(line))
        return [(line.archive, ""), *((number, "") for number in numbers), state]

    def is_first(line: ArchiveLine) -> bool:
        return line.is_busy or line.state == "refused"

    # Those at work and refused, then the ones that were at work last.
    lines = list(progress.archives.values())
    first = sorted(filter(is_first, lines), key=lambda line: (not line.is_busy, line.state != "refused"))
    rest = [line for line in reversed(lines) if not is_first(line)]
    return _Table(columns, width, rows).lines(first + rest, cells, Counter(merged=progress.archives.more))


def _archive_state(line: ArchiveLine) -> str:
    if line.state == "copying" and line.coming_bytes:
        return f"copying {100 * line.copied_bytes // line.coming_bytes} %"
    return line.state


def _archive_style(line: ArchiveLine) -> str:
    if line.is_busy:
        return _BUSY
    return {"refused": "red", "damaged": "bold red", "undone": "yellow", "merged": "green"}.get(line.state, "")


def _pairs(progress: Progress, width: int, rows: int) -> list[Text]:
    state = 38 if width >= _VERY_WIDE else 28 if width >= _WIDE else 18
    numbers = [Column("MEMBERS", 9, True)] * (width >= _WIDE) + [Column("BYTES", 9, True)] * (width >= _VERY_WIDE)
    free = width - state - sum(column.width + 2 for column in numbers) - 4
    columns = [Column("HOST", max(free // 3, 4)), Column("TEMP ARCHIVE", max(free - free // 3, 4))]
    columns += [*numbers, Column("STATE", 0)]

    def cells(line: PairLine) -> Cells:
        host, _, worker = line.pair.rpartition("/")
        amounts = (f"{line.members:,}" if line.members else "", size_text(line.size_bytes) if line.size_bytes else "")
        state = (pair_state(line), _BUSY if line.is_busy else _PAIR_STYLES[line.state])
        return [(host, ""), (worker, ""), *((amount, "") for amount in amounts[: len(numbers)]), state]

    ordered = sorted(progress.pairs.values(), key=lambda line: line.rank)
    return _Table(columns, width, rows).lines(ordered, cells, progress.pairs.more)


class _Table(NamedTuple):
    """A table of at most so many rows below its titles, the last of which counts the others."""

    columns: Sequence[Column]
    width: int
    rows: int

    def lines(self, ordered: Sequence[Line], cells: Callable[[Line], Cells], more: Counter[str]) -> list[Text]:
        """Return the lines of a table: a row for each, the most important first, and ``more`` beside them by state."""
        total = len(ordered) + sum(more.values())
        shown = _shown(total, self.rows)
        lines = [row([(column.title, "dim") for column in self.columns], self.columns, self.width)]
        lines += [row(cells(line), self.columns, self.width) for line in ordered[:shown]]
        if self.rows > 1 and total > shown:
            states = Counter(line.state for line in ordered[shown:]) + more
            words = ", ".join(f"{number:,} {state}" for state, number in states.most_common() if state)
            text = f"… and {total - shown:,} more" + (f": {words}" if words else "")
            lines.append(_text(text, self.width, "dim"))
        return lines


def pair_state(line: PairLine) -> str:
    """Return what is done with a temp archive, in words."""
    if line.state not in ("crashed", "stale"):
        return "checking" if line.is_busy and line.state == "closed" else line.state
    if line.is_busy:
        return f"{line.state} → salvaging {line.checked:,} of {line.members:,}"
    return f"{line.state} → salvaged {line.members - line.bad:,} of {line.members:,}"


def _findings(progress: Progress, width: int, rows: int) -> list[Text]:
    counts = ", ".join(f"{count:,} {label}" for label, count in progress.found.most_common())
    lines = [_text(f"FOUND: {counts}", width, "dim")]
    total = sum(progress.found.values())
    shown = _shown(total, rows)
    for finding in list(progress.findings)[::-1][:shown]:
        text = finding.text if finding.text.startswith(finding.label) else f"{finding.label}: {finding.text}"
        lines.append(_text(text, width, finding.style.replace("dim", "")))
    if rows > 1 and total > shown:
        lines.append(_text(f"… and {total - shown:,} before", width, "dim"))
    return lines


def _shown(total: int, rows: int) -> int:
    """Return how many rows are shown; the last one counts the others, where there are more rows than one."""
    return rows if total <= rows or rows <= 1 else rows - 1
