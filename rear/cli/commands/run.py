"""``rear run``: a command whose output goes into an archive."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rear.cli.exit import report, say
from rear.cli.options import BaseOption, Compression, EscapeNames, Meta, OneFileSystem, flag, valued
from rear.cli.targets import metadata_of


def run(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="The command, and its arguments.")],
    into: Annotated[str, valued("ARCHIVE/FOLDER", "The final archive, relative to the base, and a folder.")],
    base: BaseOption = ".",
    output: Annotated[
        str | None,
        valued(
            "DIR",
            "Where the command leaves its files: they are copied, and stay. Without it in $REAR_OUTPUT, a local "
            "folder whose files are moved.",
        ),
    ] = None,
    meta: Meta = None,
    compression: Compression = None,
    escape_names: EscapeNames = False,
    one_file_system: OneFileSystem = False,
    quiet: Annotated[bool, flag("Do not show what the command prints; archive it alone.", "--quiet", "-q")] = False,
) -> None:
    """Run a command and archive what it prints, as stdout and stderr, and the files that it leaves, below output/.

    The last member is run.json: command, times, exit status. Signals are passed on to the command. The exit status is
    that of the command, 128 + n after signal n; if archiving alone failed, one of rear's.

    Example: rear run --base /nfs/base --into ar.zip/jobs/7 -- ./simulate --seed 7
    """
    from rear.ingest.job import NOT_EXECUTABLE, NOT_FOUND, Job

    job = Job(
        command,
        base=base,
        folder=into.rstrip("/"),
        output=output,
        metadata=metadata_of(meta or []),
        compression=compression,
        pass_through=not quiet,
        escape_names=escape_names,
        one_file_system=one_file_system,
    )
    sys.stdout.flush()
    try:
        ended = job.run()
    except (FileNotFoundError, PermissionError) as error:
        if error.filename != command[0]:
            raise
        report(error)
        raise typer.Exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE) from None
    status = 0
    for failure in ended.failures:
        status = report(failure) or status
    if ended.kept is not None:
        say(f"rear: what could not be archived is in {ended.kept}: put it there by hand")
    if ended.exit_status or status:
        raise typer.Exit(ended.exit_status or status)
