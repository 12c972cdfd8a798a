"""``rear cat``: members to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Annotated, Final

import typer

from rear.cli.exit import report
from rear.cli.listing.selection import selected, split
from rear.cli.standard_streams import read_input
from rear.errors import RearError, UsageError
from rear.read.patterns import Patterns, has_wildcard
from rear.read.view import open_committed
from rear.zip.archive import Archive
from rear.zip.headers import CentralEntry

_PIECE_BYTES: Final = 1 << 20


def cat(
    members: Annotated[
        list[str],
        typer.Argument(
            metavar="ARCHIVE/MEMBER...",
            help="Members, each after the path of its archive, by name or pattern; '-' is standard input.",
        ),
    ],
) -> None:
    """Write members to standard output, byte for byte.

    Size and CRC-32 are checked while a member is written: of a damaged one all comes that can be read, then the error.

    Example: rear cat /nfs/base/ar.zip/logs/a.txt
    """
    failures: list[int] = []
    # Members of one archive that follow each other are looked up at once: a directory may have a million entries.
    for path, arguments in groupby(members, _archive_of):
        with _told(failures):
            _cat(path, list(arguments), failures)
    sys.stdout.buffer.flush()
    if failures:
        raise typer.Exit(failures[0])


@contextmanager
def _told(failures: list[int]) -> Iterator[None]:
    """Report an error, note its exit status, and go on after it; not when nobody reads any more."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (RearError, OSError) as error:
        sys.stdout.buffer.flush()
        failures.append(report(error))


def _archive_of(argument: str) -> str | None:
    """Return the archive of an argument; ``None`` when it has none, which is told when its turn comes."""
    try:
        return None if argument == "-" else split(argument).archive
    except (RearError, OSError):
        return None


def _cat(path: str | None, arguments: list[str], failures: list[int]) -> None:
    if path is None:
        for argument in arguments:
            with _told(failures):
                if argument != "-":
                    split(argument)
                _copy_input()
        return
    with open_committed(path) as archive:
        names = {split(argument).member for argument in arguments}
        # The last one of each name.
        known = {name: position for position, name in archive.names() if name in names}
        for argument in arguments:
            with _told(failures):
                for entry in _entries(archive, argument, known):
                    with _told(failures):
                        for data in archive.read(entry):
                            sys.stdout.buffer.write(data)


def _copy_input() -> None:
    # As it comes, and not when a buffer is full: `tail -f log | rear cat - | …` is to show lines when they are there.
    while data := read_input(_PIECE_BYTES):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _entries(archive: Archive, argument: str, known: dict[str, int]) -> Iterator[CentralEntry]:
    name = split(argument).member
    if not name:
        raise UsageError(f"{argument!r} names an archive, but no member in it")
    if name in known or not has_wildcard(name):
        entry = archive.entry_at(known[name]) if name in known else archive.find(name)
        if entry.is_directory:
            raise UsageError(f"{argument!r} is a directory")
        yield entry
        return
    patterns = Patterns([name])
    yield from (entry for entry in selected(archive, patterns) if not entry.is_directory)
    patterns.check(archive.path)
