"""The page of ``rear status``, as people read it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from rear.core.text import BINARY, counted, shown, size_text
from rear.diagnostics.status import BaseStatus, Files, Host, Leader, Pile, Space
from rear.scavenger.report import ReportSummary

HOSTS_SHOWN: Final = 15
"""The busiest hosts; the others are counted."""
INTENTS_SHOWN: Final = 5
_LABEL_WIDTH: Final = 11
_STATES: Final = {
    "live": ("being written", ""),
    "unconfirmed": ("written elsewhere, as far as is known", ""),
    "closed": ("waiting for a scavenge", ""),
    "crashed": ("of crashed workers", "yellow"),
    "stale": ("of workers without a sign of life", "yellow"),
    "claimed": ("taken by a scavenger", ""),
}
_LEADERS: Final = {
    "live": "",
    "unconfirmed": " (cannot be seen from here)",
    "stale": " shows no sign of life",
    "crashed": " is gone, its scavenge was interrupted",
}


def page(status: BaseStatus) -> RenderableType:
    """Return all of a status, to be printed by Rich."""
    heading = Text(shown(status.base), style="bold", overflow="fold")
    if not status.is_used:
        return Group(heading, _row("workers", "none has written here yet"), *_space(status.space))
    # What needs attention first: it is to be seen on a small screen too.
    return Group(
        heading,
        *_attention(status),
        *_workers(status),
        *_backlog(status),
        _row("leader", *_leader(status.leader, status.taken_ns)),
        *_scavenges(status),
        *_intents(status),
        _row("lost+found", _files(status.lost_and_found, "item"), "yellow" if status.lost_and_found.items else ""),
        *([_row("graveyard", _files(status.graveyard, "temp archive"))] if status.graveyard.items else []),
        *_space(status.space),
    )


def _row(label: str, text: str, style: str = "") -> RenderableType:
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=_LABEL_WIDTH, no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(Text(label, style="cyan"), Text(text, style=style))
    return row


def _workers(status: BaseStatus) -> Iterator[RenderableType]:
    if not status.hosts:
        hidden = "none that can be seen" if _is_hidden(status) else "none at work, nothing waits"
        yield _row("workers", hidden)
        return
    busiest = sorted(status.hosts, key=lambda host: (-host.crashed - host.stale, -host.backlog.members, host.host))
    yield _HostTable(busiest[:HOSTS_SHOWN])
    if len(busiest) > HOSTS_SHOWN:
        rest = busiest[HOSTS_SHOWN:]
        workers = sum(host.live + host.unconfirmed for host in rest)
        yield Text(f"… and {len(rest):,} more hosts with {counted(workers, 'worker')}", style="dim")


class _HostTable:
    """A table of hosts with as many columns as the terminal has room for."""

    def __init__(self, hosts: list[Host]) -> None:
        self._hosts = hosts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [column for column in _COLUMNS if options.max_width >= column.least_width]
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("host", min_width=_LABEL_WIDTH, overflow="fold")
        for column in columns:
            table.add_column(column.title, justify="right", no_wrap=True)
        for host in self._hosts:
            table.add_row(Text(shown(host.host)), *[column.cell(host) for column in columns])
        yield table


def _count(count: int, style: str = "") -> Text:
    return Text(f"{count:,}" if count else "-", style=style if count else "dim")


class _HostColumn(NamedTuple):
    """A column about hosts; ``least_width`` is that of a terminal from which on it is shown."""

    title: str
    least_width: int
    cell: Callable[[Host], RenderableType]


_COLUMNS: Final = (
    _HostColumn("live", 0, lambda host: _count(host.live)),
    _HostColumn("elsewhere", 60, lambda host: _count(host.unconfirmed)),
    _HostColumn("silent", 60, lambda host: _count(host.stale, "yellow")),
    _HostColumn("crashed", 0, lambda host: _count(host.crashed, "yellow")),
    _HostColumn("temp archives", 80, lambda host: f"{host.backlog.temp_archives:,}"),
    _HostColumn("members", 0, lambda host: f"{host.backlog.members:,}"),
    _HostColumn("size", 80, lambda host: size_text(host.backlog.size_bytes, BINARY)),
)


def _is_hidden(status: BaseStatus) -> bool:
    """Whether something may wait that this user cannot look at."""
    return bool(status.shut or status.unusable)


def _backlog(status: BaseStatus) -> Iterator[RenderableType]:
    total = status.total
    if not total.temp_archives:
        yield _row("backlog", "none that can be seen" if _is_hidden(status) else "none: all is in final archives")
        return
    age = "" if status.oldest_ns is None else f", the oldest {_age(status.taken_ns - status.oldest_ns)} old"
    yield _row("backlog", f"{_described(total)}{age}")
    for state, pile in status.backlog.items():
        if pile.temp_archives:
            words, style = _STATES[state]
            yield _row("", f"{_described(pile)} {words}", style)
    yield from (_row("", shown(reason)) for reason in status.waiting_reasons)


def _described(pile: Pile) -> str:
    archives = counted(pile.temp_archives, "temp archive")
    return f"{counted(pile.members, 'member')} in {archives}, {size_text(pile.size_bytes, BINARY)}"


def _leader(leader: Leader | None, now_ns: int) -> tuple[str, str]:
    if leader is None:
        return "nobody: no scavenge is running", ""
    since = "" if leader.since_ns is None else f", since {_moment(leader.since_ns)}"
    text = f"process {leader.pid} on {shown(leader.host)}{since}{_LEADERS[leader.state]}"
    return text, "yellow" if leader.state in ("stale", "crashed") else ""


def _scavenges(status: BaseStatus) -> Iterator[RenderableType]:
    if not status.scavenges:
        yield _row("scavenges", "none has merged anything yet")
    for number, summary in enumerate(status.scavenges):
        yield _row("" if number else "scavenges", *_scavenge(summary))


def _scavenge(summary: ReportSummary) -> tuple[str, str]:
    totals = {key: value for key, value in summary.totals.items() if type(value) is int}
    when = _moment(summary.finished_ns)
    if summary.totals.get("kind") == "checked":
        return f"{when}  checked {counted(totals.get('archives', 0), 'archive')}", ""
    words = {"renamed": "renamed", "torn": "torn", "lost": "LOST", "refused": "left as they are"}
    notes = [f"{totals[key]:,} {word}" for key, word in words.items() if totals.get(key)]
    merged = (
        f"{counted(totals.get('members', 0), 'member')} ({size_text(totals.get('size_bytes', 0), BINARY)}) "
        f"into {counted(totals.get('archives', 0), 'archive')}"
    )
    style = "bold red" if totals.get("lost") else "yellow" if totals.get("refused") else ""
    return ", ".join([f"{when}  {merged}", *notes]), style


def _intents(status: BaseStatus) -> Iterator[RenderableType]:
    if status.intents:
        names = ", ".join(shown(archive) for archive in status.intents[:INTENTS_SHOWN])
        more = f" and {len(status.intents) - INTENTS_SHOWN:,} more" if len(status.intents) > INTENTS_SHOWN else ""
        yield _row("merging", names + more)


def _files(files: Files, noun: str) -> str:
    if not files.items and files.is_complete:
        return "empty"
    least = "" if files.is_complete else "more than "
    return f"{least}{counted(files.items, noun)}, {size_text(files.size_bytes, BINARY)}"


def _space(space: Space | None) -> Iterator[RenderableType]:
    if space is not None:
        inodes = "" if space.free_inodes is None else f"; {space.free_inodes:,} of {space.inodes:,} inodes"
        yield _row("free", f"{size_text(space.free_bytes, BINARY)} of {size_text(space.size_bytes, BINARY)}{inodes}")


def _attention(status: BaseStatus) -> Iterator[RenderableType]:
    for number, attention in enumerate(status.attention):
        yield _row("" if number else "attention", shown(attention.detail), "bold yellow")
    for reason in status.unusable_reasons:
        yield _row("", shown(reason), "yellow")
    if not status.attention:
        yield _row("attention", "nothing needs any", "green")


def _moment(ns: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns // 1_000_000_000))
    except (OverflowError, OSError, ValueError):
        # What other hosts wrote may be any number.
        return f"{ns // 1_000_000_000} s after 1970"


def _age(ns: int) -> str:
    seconds = max(0, ns // 1_000_000_000)
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * length:
            return counted(seconds // length, unit)
    return counted(seconds, "second")
