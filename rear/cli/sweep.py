"""``rear sweep``: files that others left in a folder, into a final archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from rear.cli.outcome import ATTENTION
from rear.cli.quantities import human_bytes, seconds, size_bytes
from rear.cli.selection import Patterns
from rear.printable import shown

if TYPE_CHECKING:
    from rear.events import Event, Swept


def sweep(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The folder; what is below it is swept.")],
    into: Annotated[
        str,
        typer.Option(
            "--into", metavar="ARCHIVE[/PREFIX]", help="The final archive, relative to the base, and a folder in it."
        ),
    ],
    base: Annotated[
        str, typer.Option(envvar="REAR_BASE", help="The base.", metavar="BASE", show_default="the current folder")
    ] = ".",
    older_than: Annotated[
        str | None,
        typer.Option(
            help="Leave files that changed less than this long ago (30s, 5m, 2h): they may still be written.",
            metavar="DURATION",
            show_default=False,
        ),
    ] = None,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="Remove each file once its bytes are read back from the committed archive."),
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Only files that match, by their path below DIR. Repeatable.", metavar="PATTERN"),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Not files that match. Repeatable.", metavar="PATTERN")
    ] = None,
    wait: Annotated[
        str, typer.Option(help="How long to wait, all in all, while other scavengers merge.", metavar="DURATION")
    ] = "60s",
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify", help="Check every member before the merge, and the merged bytes after it."
        ),
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="As for rear scavenge.", metavar="SIZE", show_default=False)
    ] = None,
    max_members: Annotated[
        int | None, typer.Option(help="As for rear scavenge.", min=1, metavar="N", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would be archived; change nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what needs attention.")] = False,
) -> None:
    """Archive the files below a folder that have no record in the archive's index yet.

    A file is known by its path, size and mtime. Running it again archives only what is new or has changed; what a
    crash left in a spool or scratch folder finds its way in like this. Patterns are those of rear ls.

    Example: rear sweep /scratch/spool --into runs/7/ar.zip/spool --base /nfs/base --older-than 10m --delete
    """
    import rear
    from rear.tui import show

    included, excluded = Patterns(include or []), Patterns(exclude or [])

    def select(relative: str) -> bool:
        return included.matches(relative) and not (excluded and excluded.matches(relative))

    style = "json" if json else "quiet" if quiet else "plain"
    with closing(
        rear.sweep(  # type: ignore[type-var]
            directory, into, base=base, older_than_seconds=0.0 if older_than is None else seconds(older_than),
            delete=delete, dry_run=dry_run, wait_seconds=seconds(wait), select=select if include or exclude else None,
            verify=verify, max_size=None if max_size is None else size_bytes(max_size), max_members=max_members,
        )
    ) as events:  # fmt: skip
        needs_attention = show(events if json else _told(events, dry_run=dry_run, quiet=quiet), style)
    if needs_attention:
        raise typer.Exit(ATTENTION)


def _told(events: Iterator[Event], *, dry_run: bool, quiet: bool) -> Iterator[Event]:
    """Pass events on, and tell in words of those of a sweep."""
    from rear.events import Collected, SourceLeft, Swept, Waiting

    left_alone: Counter[str] = Counter()
    for event in events:
        match event:
            case SourceLeft():
                left_alone[event.reason] += 1
            case Collected() if dry_run and not quiet:
                _say(f"{event.source} would become {event.name}, {human_bytes(event.size_bytes)}")
            case Waiting() if not quiet:
                _say(f"waiting for {event.wait_seconds:.0f} s at most: {event.reason}")
            case Swept() if not quiet:
                for reason, count in left_alone.items():
                    _say(f"{_files(count)} left alone: {reason}")
                _say(_summary(event, dry_run=dry_run))
        yield event


def _summary(event: Swept, *, dry_run: bool) -> str:
    counts = {
        "there already": event.there_already, "deleted": event.deleted, "not merged yet": event.pending,
        "left alone": event.left_alone, "in need of attention": event.refused,
    }  # fmt: skip
    parts = [
        f"{event.directory}: {_files(event.archived)} ({human_bytes(event.size_bytes)}) "
        f"{'would be archived' if dry_run else 'archived'} in {event.archive}"
    ]
    return ", ".join([*parts, *(f"{count:,} {what}" for what, count in counts.items() if count)])


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def _say(line: str) -> None:
    typer.echo(shown(line), err=True)
