"""``rear ls``: the archives of a base, the members of an archive, and what is still on its way there."""

from __future__ import annotations

import errno
import functools
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from rear.archive import Archive, directory_of
from rear.cli.outcome import report
from rear.cli.selection import PATTERN_HELP, Lines, positions, split
from rear.codecs import METHOD_NAMES
from rear.errors import FutureVersionError, RearError, UsageError
from rear.journal import Journal, read_journal, read_notes
from rear.layout import STATE, Layout, find_base, parse_pair
from rear.patterns import Patterns
from rear.printable import shown
from rear.records import Pair
from rear.storage import LOCAL
from rear.zipformat import CentralEntry

#: Deeper parts of a name share a line: a forged name can have 32,768.
_TREE_DEPTH: Final = 64
_VANISHED: Final = frozenset({errno.ENOENT, errno.ESTALE})

_encode_json = json.JSONEncoder(separators=(", ", ": ")).encode


def ls(
    path: Annotated[
        str,
        typer.Argument(
            metavar="[PATH]", envvar="REAR_BASE", help="A base or a directory in it, an archive, or ARCHIVE/MEMBER."
        ),
    ] = ".",
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="[PATTERN]...", help=f"Show only what matches. {PATTERN_HELP}")
    ] = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="Show mode, size and local time too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Print a tree of directories.")] = False,
    pending: Annotated[
        bool, typer.Option("--pending", help="Show the members that are not merged yet, and who wrote them.")
    ] = False,
) -> None:
    """List the archives of a base, or the members of a Zip file.

    During a merge the archive is shown as it was before. Control characters in names are shown escaped.

    Example: rear ls -l /nfs/base/ar.zip 'logs/*.txt'
    """
    if tree and (as_json or long or pending):
        raise UsageError("--tree goes with none of --json, --long and --pending")
    with Lines() as lines:
        if pending:
            status = _list_pending(lines, path, patterns or [], as_json=as_json)
        elif os.path.isdir(path):
            status = _list_archives(lines, path, Patterns(patterns or []), long=long, as_json=as_json, tree=tree)
        else:
            selection = split(path)
            wanted = Patterns([*filter(None, [selection.member]), *(patterns or [])])
            status = _list_members(lines, selection.archive, wanted, long=long, as_json=as_json, tree=tree)
    if status:
        raise typer.Exit(status)


def _list_members(lines: Lines, path: str, patterns: Patterns, *, long: bool, as_json: bool, tree: bool) -> int:
    with Archive.open(path) as archive:
        if tree:
            _write_tree(lines, path, filter(patterns.matches, map(itemgetter(1), archive.names())))
        elif long or as_json:
            entries = map(archive.entry_at, positions(archive, patterns)) if patterns else archive.entries()
            if as_json:
                lines.write_all(map(_as_json, entries))
            else:
                lines.write_escaped(map(_as_long_line, entries))
        else:
            names = map(itemgetter(1), archive.names())
            lines.write_escaped(filter(patterns.matches, names) if patterns else names)
    lines.flush()
    patterns.check(path)
    return 0


def _as_long_line(entry: CentralEntry) -> str:
    mode = entry.mode or (stat.S_IFDIR if entry.is_directory else 0)
    return f"{_mode_text(mode)} {entry.size:>15,} {_local_time(entry.mtime_ns // 1_000_000_000)} {entry.name}"


def _as_json(entry: CentralEntry) -> str:
    # Put together by hand: that halves the time for a million members. Only the name needs escapes.
    method = METHOD_NAMES.get(entry.method, str(entry.method))
    return (
        f'{{"name": {encode_basestring_ascii(entry.name)}, "size": {entry.size}, '
        f'"compressed_size": {entry.compressed_size}, "method": "{method}", "crc": "{entry.crc:08x}", '
        f'"mode": "{entry.mode:06o}", "mtime": "{_iso_time(entry.mtime_ns // 1_000_000_000)}", '
        f'"encrypted": {"true" if entry.is_encrypted else "false"}, "offset": {entry.offset}}}'
    )


_mode_text = functools.lru_cache(maxsize=1024)(stat.filemode)


@functools.lru_cache(maxsize=1024)
def _local_time(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


@functools.lru_cache(maxsize=1024)
def _iso_time(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).astimezone().isoformat()


def _write_tree(lines: Lines, root: str, names: Iterable[str]) -> None:
    top: dict[str, Any] = {}
    for name in names:
        *folders, last = name.removesuffix("/").split("/", _TREE_DEPTH)
        folder = top
        for part in folders:
            # A file and a directory of one name can both be in a Zip.
            folder = folder.setdefault(f"{part}/", {})
        folder.setdefault(f"{last}/" if name.endswith("/") else last, {})
    lines.write(shown(root))
    fork, last_fork, pipe = ("├── ", "└── ", "│   ") if lines.can_show("├└│─") else ("|-- ", "`-- ", "|   ")
    stack = [("", iter(sorted(top.items())), len(top))]
    while stack:
        indent, children, left = stack.pop()
        for label, below in children:
            left -= 1
            lines.write(f"{indent}{fork if left else last_fork}{shown(label)}")
            if below:
                stack.append((indent, children, left))
                stack.append((indent + (pipe if left else "    "), iter(sorted(below.items())), len(below)))
                break


def _list_archives(lines: Lines, folder: str, patterns: Patterns, *, long: bool, as_json: bool, tree: bool) -> int:
    found = _Archives(folder)
    if tree:
        _write_tree(lines, folder, filter(patterns.matches, found))
    else:
        for archive in filter(patterns.matches, found):
            path = os.path.join(folder, archive)
            try:
                directory = directory_of(path)
                second = int(os.stat(path).st_mtime)
            except FileNotFoundError:
                # Its first merge is under way, or it was renamed just now.
                continue
            except (RearError, OSError) as error:
                lines.flush()
                found.status = report(error)
                continue
            members, size = directory.entries, directory.archive_length
            if as_json:
                about = {"archive": archive, "members": members, "size": size, "mtime": _iso_time(second)}
                lines.write(_encode_json(about))
            elif long:
                lines.write(f"{members:>12,} members {size:>18,} {_local_time(second)} {shown(archive)}")
            else:
                lines.write(f"{members:>12,} members {_human_size(size):>10} {shown(archive)}")
    lines.flush()
    patterns.check(folder)
    return found.status


class _Archives:
    """Yields the archives below a folder by their relative paths; ``status`` is not 0 when a folder is unreadable."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.status = 0

    def __iter__(self) -> Iterator[str]:
        stack = [iter(self._scan(""))]
        while stack:
            for name, is_directory in stack[-1]:
                if is_directory:
                    try:
                        stack.append(iter(self._scan(f"{name}/")))
                    except OSError as error:
                        if error.errno not in _VANISHED:
                            self.status = report(error)
                    break
                yield name
            else:
                stack.pop()

    def _scan(self, relative: str) -> list[tuple[str, bool]]:
        found = []
        with os.scandir(os.path.join(self._folder, relative)) as items:
            for item in items:
                is_directory = item.is_dir(follow_symlinks=False)
                if is_directory and item.name != STATE:
                    found.append((f"{relative}{item.name}", True))
                elif item.name.lower().endswith(".zip") and item.is_file():
                    found.append((f"{relative}{item.name}", False))
        return sorted(found)


def _human_size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


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


def _list_pending(lines: Lines, path: str, patterns: list[str], *, as_json: bool) -> int:
    scope = _scope(path)
    wanted = Patterns([*filter(None, [scope.member]), *patterns])
    seen: set[Pair] = set()
    status = 0
    for pair, journal_path, is_claimed in _journals(scope.layout) if scope.layout else ():
        if pair in seen:
            continue
        try:
            journal = read_journal(journal_path)
            journal.merged.update(read_notes(os.path.splitext(journal_path)[0] + ".merged").merged)
        except FutureVersionError as error:
            status = report(FutureVersionError(f"{journal_path}: {error}"))
            continue
        except OSError as error:
            # Claimed or merged just now: claims are listed after the inbox.
            if error.errno not in _VANISHED:
                status = report(error)
            continue
        seen.add(pair)
        state = "claimed" if is_claimed else "closed" if journal.closed else "open"
        _write_pending(lines, scope, wanted, pair, journal, state, as_json=as_json)
    return status


def _write_pending(
    lines: Lines, scope: _Scope, wanted: Patterns, pair: Pair, journal: Journal, state: str, *, as_json: bool
) -> None:
    for member in journal.pending():
        if not scope.contains(member.archive) or not wanted.matches(member.name):
            continue
        if as_json:
            about = {
                "archive": member.archive, "name": member.name, "size": member.size,
                "mtime": _iso_time(member.mtime_ns // 1_000_000_000), "host": pair.host, "worker": pair.worker,
                "rotation": pair.rotation, "sequence": member.sequence, "state": state,
            }  # fmt: skip
            lines.write(_encode_json(about))
        else:
            target = shown(f"{member.archive}/{member.name}")
            lines.write(f"{state:<7} {pair.host} {pair.worker} {member.size:>15,} {target}")


def _journals(layout: Layout) -> Iterator[tuple[Pair, str, bool]]:
    """Yield the journals of the inbox, and then those of the claims, to which they move."""
    folders = [(layout.inbox / host, host, False) for host in LOCAL.names(layout.inbox)]
    yield from _journals_in(folders)
    leaders = LOCAL.names(layout.claims)
    yield from _journals_in(
        [
            (layout.claims / leader / host, host, True)
            for leader in leaders
            for host in LOCAL.names(layout.claims / leader)
        ]
    )


def _journals_in(folders: list[tuple[Path, str, bool]]) -> Iterator[tuple[Pair, str, bool]]:
    for folder, host, is_claimed in folders:
        for name in LOCAL.names(folder):
            pair = parse_pair(host, name)
            if pair is not None and name.endswith(".journal"):
                yield pair, os.path.join(folder, name), is_claimed
