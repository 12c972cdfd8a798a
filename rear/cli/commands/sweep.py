"""``rear sweep``: files that others left in a folder, into a final archive."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from rear.cli.exit import ATTENTION
from rear.cli.options import (
    BaseOption,
    EscapeNames,
    Json,
    OneFileSystem,
    Plain,
    Quiet,
    flag,
    seconds,
    size_bytes,
    style_of,
    valued,
)
from rear.read.patterns import Patterns


def sweep(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The folder; what is below it is swept.")],
    into: Annotated[str, valued("ARCHIVE[/PREFIX]", "The final archive, relative to the base, and a folder in it.")],
    base: BaseOption = ".",
    older_than: Annotated[
        str | None,
        valued(
            "DURATION", "Leave files that changed less than this long ago (30s, 5m, 2h): they may still be written."
        ),
    ] = None,
    delete: Annotated[
        bool, flag("Remove each file once its bytes are read back from the committed archive.", "--delete")
    ] = False,
    include: Annotated[
        list[str] | None, valued("PATTERN", "Only files that match, by their path below DIR. Repeatable.")
    ] = None,
    exclude: Annotated[list[str] | None, valued("PATTERN", "Not files that match. Repeatable.")] = None,
    wait: Annotated[str, valued("DURATION", "How long to wait, all in all, while other scavengers merge.")] = "60s",
    verify: Annotated[
        bool | None, flag("Check every member before the merge, and the merged bytes after it.", "--verify/--no-verify")
    ] = None,
    max_size: Annotated[str | None, valued("SIZE", "As for rear scavenge.")] = None,
    max_members: Annotated[int | None, valued("N", "As for rear scavenge.", min=1)] = None,
    escape_names: EscapeNames = False,
    one_file_system: OneFileSystem = False,
    dry_run: Annotated[bool, flag("Show what would be archived; change nothing.", "--dry-run", "-n")] = False,
    plain: Plain = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Archive the files below a folder that have no record in the archive's index yet.

    A file is known by its path, size and mtime. Running it again archives only what is new or has changed; what a
    crash left in a spool or scratch folder finds its way in like this. Patterns are those of rear ls.

    Example: rear sweep /scratch/spool --into runs/7/ar.zip/spool --base /nfs/base --older-than 10m --delete
    """
    import rear
    from rear.cli.display.follow import follow

    included, excluded = Patterns(include or []), Patterns(exclude or [])

    def select(relative: str) -> bool:
        return included.matches(relative) and not (excluded and excluded.matches(relative))

    style = style_of(plain=plain, json=json, quiet=quiet)
    with closing(
        rear.sweep(  # type: ignore[type-var]
            directory,
            into,
            base=base,
            older_than_seconds=0.0 if older_than is None else seconds(older_than, zero=True),
            delete=delete,
            dry_run=dry_run,
            wait_seconds=seconds(wait, zero=True),
            select=select if include or exclude else None,
            verify=verify,
            max_size=size_bytes(max_size),
            max_members=max_members,
            escape_names=escape_names,
            one_file_system=one_file_system,
        )
    ) as events:
        progress = follow(events, style, command="sweep", subject=directory, dry_run=dry_run)
    if progress.needs_attention:
        raise typer.Exit(ATTENTION)
