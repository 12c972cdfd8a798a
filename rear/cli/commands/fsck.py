"""``rear fsck``: check a base or one archive, and repair it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from rear.cli.executors import Dask, Executors, Jobs
from rear.cli.exit import report
from rear.cli.options import AssumeDead, Json, Plain, Quiet, base_argument, flag, style_of, valued
from rear.errors import RearError, UsageError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rear.events import Event


def fsck(
    path: Annotated[str, base_argument("A base, or one archive anywhere.", "[PATH]")] = ".",
    dry_run: Annotated[
        bool, flag("Only report. For one archive that is so without --in-place.", "--dry-run", "-n")
    ] = False,
    deep: Annotated[bool, flag("Read every member, and check its size and CRC-32.", "--deep")] = False,
    output: Annotated[str | None, valued("FILE", "One archive: write it anew as FILE, which must not exist.")] = None,
    in_place: Annotated[
        bool, flag("One archive: rebuild it if need be, and keep the old one as .damaged.", "--in-place")
    ] = False,
    assume_dead: AssumeDead = None,
    jobs: Jobs = None,
    dask: Dask = None,
    plain: Plain = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a base or one archive, and repair what can be repaired without losing anything.

    Exit status: 0 clean, 1 all repaired, 4 something is left, 8 could not run. docs/reference/problems.md explains
    every problem.

    Example: rear fsck --deep /nfs/base

    Example: rear fsck --output mended.zip damaged.zip
    """
    from rear.cli.display.follow import follow
    from rear.core.problems import COULD_NOT_RUN, exit_status

    style = style_of(plain=plain, json=json, quiet=quiet)
    try:
        with Executors(path, jobs, dask).open() as executor:
            events = _events(path, dry_run, deep, output, in_place, assume_dead or [], executor)
            with closing(events):  # type: ignore[type-var]
                progress = follow(events, style, command="fsck", subject=path, dry_run=dry_run)
            status = exit_status(progress.outcomes)
    except BrokenPipeError:
        raise
    except (RearError, OSError) as error:
        report(error)
        status = COULD_NOT_RUN
    raise typer.Exit(status)


def _events(
    path: str,
    dry_run: bool,
    deep: bool,
    output: str | None,
    in_place: bool,
    assume_dead: list[str],
    executor: Executor | None,
) -> Iterator[Event]:
    if os.path.isdir(path):
        if output is not None or in_place:
            raise UsageError(f"{path} is a base: --output and --in-place are for one archive")
        from rear.fsck.base import fsck as check_base

        return check_base(path, report_only=dry_run, deep=deep, assume_dead=assume_dead, executor=executor)
    if assume_dead:
        raise UsageError(f"{path} is no base: --assume-dead is for one")
    if dry_run and (output is not None or in_place):
        raise UsageError("--dry-run writes nothing: leave out --output and --in-place")
    from rear.fsck.archive import check_archive_steps

    return check_archive_steps(path, deep=deep, output=output, in_place=in_place, executor=executor)
