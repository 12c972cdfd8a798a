"""``rear get``: members to files."""

from __future__ import annotations

import errno
from typing import Annotated, Final

import typer

from rear.cli.byte_progress import ByteProgress
from rear.cli.exit import report
from rear.cli.listing.selection import PATTERN_HELP, selected, split
from rear.cli.options import flag, valued
from rear.errors import RearError
from rear.read.patterns import Patterns
from rear.read.view import open_committed
from rear.zip.extraction import Extraction

#: After these, further members would fare no better.
_HOPELESS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def get(
    members: Annotated[
        list[str],
        typer.Argument(
            metavar="ARCHIVE[/MEMBER]...", help=f"Archives, or members of them by name or pattern. {PATTERN_HELP}"
        ),
    ],
    directory: Annotated[
        str, valued("DIR", "Write below this directory; made if it is missing.", "--directory", "-C")
    ] = ".",
    force: Annotated[bool, flag("Replace files that exist.", "--force")] = False,
    strip: Annotated[int, valued("N", "Leave out N leading parts of names.", min=0)] = 0,
    preserve_permissions: Annotated[
        bool, flag("Give all the permission bits that files had, whatever the umask.", "--preserve-permissions", "-p")
    ] = False,
    unescape_names: Annotated[
        bool,
        flag("Give files the names that --escape-names escaped: %0A is a line end again.", "--unescape-names"),
    ] = False,
) -> None:
    """Extract members below a directory, and never outside it.

    Files get the times and permissions that they had, less the umask; never set-user-id, set-group-id or sticky. A
    member that would leave the directory, is damaged, or whose place is taken is reported, and the rest extracted.

    Example: rear get -C out --strip 1 /nfs/base/ar.zip/logs '/nfs/base/ar.zip/*.csv'
    """
    wanted: dict[str, list[str] | None] = {}
    status = 0
    for argument in members:
        try:
            selection = split(argument)
        except (RearError, OSError) as error:
            status = report(error)
            continue
        patterns = wanted.setdefault(selection.archive, [])
        if not selection.member:
            wanted[selection.archive] = None
        elif patterns is not None:
            patterns.append(selection.member)
    if not wanted:
        raise typer.Exit(status)
    with (
        ByteProgress("rear get", lambda: sum(_size(path, names) for path, names in wanted.items())) as progress,
        Extraction(
            directory,
            force=force,
            strip=strip,
            keep_modes=preserve_permissions,
            unescape_names=unescape_names,
            on_written=progress.advance,
        ) as extraction,
    ):
        for path, names in wanted.items():
            try:
                status = _get(path, Patterns(names or []), extraction) or status
            except (RearError, OSError) as error:
                if isinstance(error, OSError) and error.errno in _HOPELESS:
                    raise
                status = report(error)
    if status:
        raise typer.Exit(status)


def _size(path: str, names: list[str] | None) -> int:
    """Return how many bytes are to be written; what cannot be known is told of when its turn comes."""
    try:
        with open_committed(path) as archive:
            return sum(entry.size for entry in selected(archive, Patterns(names or [])))
    except (RearError, OSError):
        return 0


def _get(path: str, patterns: Patterns, extraction: Extraction) -> int:
    status = 0
    with open_committed(path) as archive:
        for entry in selected(archive, patterns):
            try:
                extraction.extract(archive, entry)
            except RearError as error:
                status = report(error)
            except OSError as error:
                named = OSError(error.errno, error.strerror, f"{path}/{entry.name:.300}")
                if error.errno in _HOPELESS:
                    raise named from None
                status = report(named)
        patterns.check(path)
    return status
