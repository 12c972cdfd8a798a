"""``rear find``: members of all archives of a base, by their names and by where they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from rear.cli.exit import note, report
from rear.cli.listing.member_lines import iso_time_ns, long_line, method_name
from rear.cli.listing.selection import LineWriter
from rear.cli.options import JsonLines, flag, moment, size_bytes, valued
from rear.core.text import shown
from rear.errors import UsageError

if TYPE_CHECKING:
    from rear.read.find import FoundMember, Search


def find(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A base, a folder in it, or an archive.")],
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATTERN]...",
            help="A name, or a pattern for it: with a '/' for all of the name (logs/*.txt), without one for its last "
            "part (*.txt). '*' and '?' match anything but '/', '**' matches that too. Quote patterns. Several: any of "
            "them; none: all members.",
        ),
    ] = None,
    archive: Annotated[str | None, valued("PATTERN", "Only in archives with such a path below BASE.")] = None,
    host: Annotated[str | None, valued("PATTERN", "Only what workers of such a host wrote.")] = None,
    worker: Annotated[str | None, valued("PATTERN", "Only what such a worker wrote.")] = None,
    source: Annotated[str | None, valued("PATTERN", "Only files that were picked up from such a path.")] = None,
    since: Annotated[
        str | None, valued("WHEN", "Only what changed since: 2h or 1d ago, 2026-11-21, 2026-11-21T08:30.")
    ] = None,
    larger: Annotated[str | None, valued("SIZE", "Only members with more bytes: 1000, 500M, 50G.")] = None,
    smaller: Annotated[str | None, valued("SIZE", "Only members with fewer bytes.")] = None,
    meta: Annotated[
        list[str] | None, valued("KEY[=VALUE]", "Only members with such metadata. Repeatable: all of them.")
    ] = None,
    long: Annotated[bool, flag("Show mode, size and local time, too.", "--long", "-l")] = False,
    as_json: JsonLines = False,
    null: Annotated[bool, flag("End exact paths with NUL, for xargs -0; nothing is escaped.", "--null", "-0")] = False,
) -> None:
    """Find members in all archives of a base, by their indexes.

    The paths that it prints are those that rear cat and rear get take. A member that is not merged yet is not found:
    rear ls --pending lists these.

    Example: rear find /nfs/base '*.log' --host 'node1*' --since 1d --meta experiment=e17
    """
    from rear.read.find import find as search

    if null and (long or as_json):
        raise UsageError("--null goes with neither --long nor --json")
    if not os.path.exists(base):
        os.stat(base)
    found = search(
        base,
        patterns or [],
        archive=archive,
        host=host,
        worker=worker,
        source=source,
        changed_since=moment(since),
        larger_bytes=size_bytes(larger, zero=True),
        smaller_bytes=size_bytes(smaller, zero=True),
        metadata=_metadata(meta or []),
    )
    view = _json if as_json else _long_line if long else _line
    if null:
        LineWriter().write_exact(member.path for member in found)
    else:
        with LineWriter() as lines:
            lines.write_all(map(view, found))
    status = _tell_problems(found)
    if status:
        raise typer.Exit(status)


def _metadata(given: list[str]) -> Mapping[str, str | None]:
    wanted: dict[str, str | None] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key:
            raise UsageError(f"--meta {text!r}: write KEY=VALUE, or KEY for any value")
        wanted[key] = value if equals else None
    return wanted


def _line(found: FoundMember) -> str:
    return shown(found.path)


def _long_line(found: FoundMember) -> str:
    member = found.member
    return long_line(member.mode or 0, member.size, (member.mtime_ns or 0) // 1_000_000_000, human=False) + _line(found)


def _json(found: FoundMember) -> str:
    member = found.member
    return json.dumps(
        {
            "archive": found.archive,
            "name": member.name,
            "size": member.size,
            "compressed_size": member.compressed_size,
            "method": method_name(member.method),
            "crc": f"{member.crc:08x}",
            "mode": None if member.mode is None else f"{member.mode:06o}",
            "mtime": iso_time_ns(member.mtime_ns),
            "archived": iso_time_ns(member.archived_ns),
            "host": member.host,
            "worker": member.worker,
            "sequence": member.sequence,
            "source": member.source,
            "source_start": member.source_start,
            "source_end": member.source_end,
            "target_start": member.target_start,
            "target_end": member.target_end,
            "metadata": member.metadata,
        }
    )


def _tell_problems(found: Search) -> int:
    statuses = [report(error) for error in found.errors]
    if found.unindexed:
        first, *others = found.unindexed
        which = f"{first} and {len(others):,} more archives have" if others else f"{first} has"
        note(f"{which} no index that fits: searched the directory instead; rear index --rebuild makes one")
    return next(filter(None, statuses), 0)
