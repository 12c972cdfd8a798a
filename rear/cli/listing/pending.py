"""``rear ls --pending``: members on their way to an archive, and who wrote them."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from rear.cli.exit import report
from rear.cli.listing.member_lines import iso_time_ns
from rear.cli.listing.selection import LineWriter
from rear.core.layout import Layout, find_base
from rear.core.names import STATE
from rear.core.records import Append, Pair
from rear.core.storage import LOCAL
from rear.core.text import shown
from rear.errors import FormatError, RearError, UsageError
from rear.journal.pending import pending_journals
from rear.read.archive_tree import VANISHED
from rear.read.patterns import Patterns


class _Scope(NamedTuple):
    """What ``--pending`` looks at: a base, and in it one archive or all below a folder; nothing without a base."""

    layout: Layout | None
    archive: str | None
    below: str
    member: str

    def contains(self, archive: str) -> bool:
        return archive == self.archive if self.archive is not None else archive.startswith(self.below)


def _scope(path: str) -> _Scope:
    if os.path.isdir(path):
        found = find_base(os.path.join(path, "any.zip"))
        return _Scope(found[0], None, found[1].removesuffix("any.zip"), "") if found else _Scope(None, None, "", "")
    # The archive need not exist yet, so its end is where '.zip' is.
    end = path.lower().find(".zip/") + 4 if ".zip/" in path.lower() else len(path)
    archive, member = path[:end], path[end + 1 :]
    found = find_base(archive)
    if found is None:
        os.stat(archive)
        raise UsageError(f"{archive!r} belongs to no base: no directory above it has a {STATE!r}")
    return _Scope(found[0], found[1], "", member)


def list_pending(lines: LineWriter, path: str, patterns: list[str], *, as_json: bool) -> int:
    """Write the members that wait for a scavenger, of a base or a part of it; return the exit status."""
    scope = _scope(path)
    wanted = Patterns([*filter(None, [scope.member]), *patterns])
    seen: set[Pair] = set()
    status = 0

    def tell(error: RearError | OSError) -> None:
        nonlocal status
        lines.flush()
        status = report(error)

    for found in pending_journals(scope.layout, on_shut=tell, storage=LOCAL) if scope.layout else ():
        if found.pair in seen:
            continue
        try:
            journal = found.read(storage=LOCAL)
        except FormatError as error:
            tell(type(error)(f"{found.path}: {error}"))
            continue
        except OSError as error:
            # Claimed or merged just now: claims are listed after the inbox.
            if error.errno not in VANISHED:
                tell(error)
            continue
        seen.add(found.pair)
        state = "claimed" if found.is_claimed else "closed" if journal.closed else "open"
        line = _json if as_json else _line
        for member in journal.pending():
            if scope.contains(member.archive) and wanted.matches(member.name):
                lines.write(line(member, found.pair, state))
    return status


def _line(member: Append, pair: Pair, state: str) -> str:
    target = shown(f"{member.archive}/{member.name}")
    return f"{state:<7} {pair.host} {pair.worker} {member.size:>15,} {target}"


def _json(member: Append, pair: Pair, state: str) -> str:
    about = {
        "archive": member.archive,
        "name": member.name,
        "size": member.size,
        "mtime": iso_time_ns(member.mtime_ns),
        **pair._asdict(),
        "sequence": member.sequence,
        "state": state,
    }
    return json.dumps(about)
