"""``rear cat``: members to standard output."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rear.archive import Archive
from rear.cli.outcome import report
from rear.cli.selection import split
from rear.errors import RearError, UsageError


def cat(
    members: Annotated[
        list[str], typer.Argument(metavar="ARCHIVE/MEMBER...", help="Members, each after the path of its archive.")
    ],
) -> None:
    """Write members to standard output, byte for byte.

    Size and CRC-32 are checked while a member is written: of a damaged one all comes that can be read, then the error.

    Example: rear cat /nfs/base/ar.zip/logs/a.txt
    """
    status = 0
    for argument in members:
        try:
            _cat(argument)
        except BrokenPipeError:
            raise
        except (RearError, OSError) as error:
            sys.stdout.buffer.flush()
            failed = report(error)
            status = status or failed
    sys.stdout.buffer.flush()
    if status:
        raise typer.Exit(status)


def _cat(argument: str) -> None:
    selection = split(argument)
    if not selection.member:
        raise UsageError(f"{argument!r} names an archive, but no member in it")
    with Archive.open(selection.archive) as archive:
        entry = archive.find(selection.member)
        if entry.is_directory:
            raise UsageError(f"{argument!r} is a directory")
        for data in archive.read(entry):
            sys.stdout.buffer.write(data)
