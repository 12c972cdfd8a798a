"""``rear ls``: the archives of a base, the members of an archive, and what is still on its way there."""

from __future__ import annotations

import json
import os
import shutil
import sys
from array import array
from collections.abc import Iterable, Iterator
from operator import attrgetter, itemgetter
from typing import Annotated, NamedTuple

import typer

from rear.cli.listing import levels
from rear.cli.listing.columns import Colors, in_columns
from rear.cli.listing.member_lines import entry_json, iso_time, local_time, long_line
from rear.cli.listing.pending import list_pending
from rear.cli.listing.selection import PATTERN_HELP, LineWriter, selected, split
from rear.cli.listing.tree import write_tree
from rear.cli.options import JsonLines, flag, valued
from rear.core.text import BINARY, shown, size_text
from rear.errors import UsageError
from rear.read.patterns import Patterns, has_wildcard
from rear.read.view import open_committed
from rear.zip.archive import Archive
from rear.zip.headers import CentralEntry


class ListingOptions(NamedTuple):
    """How a list is shown; ``depth`` is how many levels of names, ``None`` all of them."""

    long: bool
    human: bool
    as_json: bool
    null: bool
    columns: bool
    tree: bool
    metadata: bool
    depth: int | None
    by_time: bool
    by_size: bool
    reverse: bool

    @property
    def is_sorted(self) -> bool:
        """Whether the order is another one than that of the archive."""
        return self.by_time or self.by_size or self.reverse


def ls(
    path: Annotated[
        str,
        typer.Argument(
            metavar="[PATH]",
            envvar="REAR_BASE",
            help="A base or a directory in it, an archive, or a folder or member in one (ARCHIVE/MEMBER).",
        ),
    ] = ".",
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="[PATTERN]...", help=f"Show only what matches. {PATTERN_HELP}")
    ] = None,
    long: Annotated[bool, flag("Show mode, size and local time too.", "--long", "-l")] = False,
    human: Annotated[bool, flag("Show sizes as 3.2 MiB; with -l.", "--human", "-h")] = False,
    by_time: Annotated[bool, flag("The newest first.", "--time", "-t")] = False,
    by_size: Annotated[bool, flag("The largest first.", "--size", "-S")] = False,
    reverse: Annotated[bool, flag("The other way round.", "--reverse", "-r")] = False,
    recursive: Annotated[
        bool, flag("All names with their folders, one a line; so it is in a pipe.", "--recursive", "-R")
    ] = False,
    depth: Annotated[
        int | None,
        valued("N", "Show N levels, and what is deeper as folders; 1 on a terminal, else all.", "--depth", "-d", min=1),
    ] = None,
    one_column: Annotated[bool, flag("One name a line on a terminal, too.", "--one-column", "-1")] = False,
    tree: Annotated[bool, flag("Print a tree of directories.", "--tree")] = False,
    metadata: Annotated[bool, flag("Show the metadata of members too, as JSON; implies -l.", "--meta")] = False,
    as_json: JsonLines = False,
    null: Annotated[bool, flag("End exact names with NUL, for xargs -0; nothing is escaped.", "--null", "-0")] = False,
    pending: Annotated[
        bool, flag("Show the members that are not merged yet, and who wrote them.", "--pending")
    ] = False,
) -> None:
    """List the archives of a base, or the members of a Zip file.

    On a terminal it shows one level in columns, in the colours of LS_COLORS, and folders end in "/"; in a pipe all
    names, one a line, in the order of the archive. During a merge the archive is shown as it was before. Control
    characters in names are shown escaped.

    Example: rear ls -l /nfs/base/ar.zip 'logs/*.txt'
    """
    _check_options(
        {"--tree": tree, "--json": as_json, "--null": null, "--pending": pending},
        {
            "--long": long and not (as_json or pending),
            "--human": human,
            "--meta": metadata and not as_json,
            "--time": by_time and not null,
            "--size": by_size and not null,
            "--reverse": reverse and not null,
            "--depth": depth is not None and not (tree or null),
        },
    )
    if depth is not None and recursive:
        raise UsageError("--depth goes not with --recursive")
    is_terminal = sys.stdout.isatty()
    plain = not (as_json or null or long or metadata)
    options = ListingOptions(
        long=long or metadata,
        human=human,
        as_json=as_json,
        null=null,
        columns=is_terminal and plain and not (recursive or one_column),
        tree=tree,
        metadata=metadata,
        depth=depth if depth or recursive or as_json or null or not is_terminal else 1,
        by_time=by_time,
        by_size=by_size,
        reverse=reverse,
    )
    status = 0
    with LineWriter() as lines:
        if pending:
            status = list_pending(lines, path, patterns or [], as_json=as_json)
        elif os.path.isdir(path):
            status = _list_archives(lines, path, Patterns(patterns or []), options)
        else:
            _list_members(lines, path, patterns or [], options)
    if status:
        raise typer.Exit(status)


def _check_options(views: dict[str, bool], others: dict[str, bool]) -> None:
    """Refuse what would have no effect: two views, or an option that a view has no use for."""
    chosen = [name for name, given in views.items() if given]
    useless = [name for name, given in others.items() if given]
    if chosen == ["--json", "--pending"]:
        chosen = chosen[1:]
    if chosen and (useless or len(chosen) > 1):
        raise UsageError(f"{chosen[0]} goes not with {[*chosen[1:], *useless][0]}")


def _list_members(lines: LineWriter, path: str, given: list[str], options: ListingOptions) -> None:
    selection = split(path)
    patterns = Patterns([*filter(None, [selection.member]), *given])
    with open_committed(selection.archive) as archive:
        if options.tree:
            names = filter(patterns.matches, map(itemgetter(1), archive.names()))
            write_tree(lines, selection.archive, names, options.depth)
        elif options.depth is not None and not given and not has_wildcard(selection.member):
            folder = selection.member
            if options.long or options.by_time or options.by_size:
                found = levels.members_below(archive, folder, options.depth, with_metadata=options.metadata)
            else:
                found = levels.names_below(archive, folder, options.depth)
            _write_items(lines, found, options)
            return
        elif options.columns:
            _write_items(lines, map(levels.item_of, selected(archive, patterns)), options)
        else:
            _stream_members(lines, archive, patterns, options)
    lines.flush()
    patterns.check(selection.archive)


def _stream_members(lines: LineWriter, archive: Archive, patterns: Patterns, options: ListingOptions) -> None:
    """Write members as they come, a million of them in little memory."""
    if not (options.long or options.as_json or options.by_time or options.by_size):
        names: Iterable[str] = map(itemgetter(1), archive.names())
        names = filter(patterns.matches, names) if patterns else names
        if options.reverse:
            names = reversed(list(names))
        if options.null:
            lines.write_exact(names)
        else:
            lines.write_escaped(names)
        return
    entries = selected(archive, patterns)
    if options.as_json:
        lines.write_all(_json_with_metadata(archive, entries) if options.metadata else map(entry_json, entries))
    elif options.is_sorted:
        _write_sorted(lines, archive, entries, options)
    else:
        lines.write_escaped(_member_line(archive, entry, options) for entry in entries)


def _json_with_metadata(archive: Archive, entries: Iterable[CentralEntry]) -> Iterator[str]:
    for entry in entries:
        yield f'{entry_json(entry)[:-1]}, "metadata": {json.dumps(levels.metadata_of(archive, entry))}}}'


def _member_line(archive: Archive, entry: CentralEntry, options: ListingOptions) -> str:
    if not options.long:
        return entry.name
    return _item_line(levels.item_of(entry, about=levels.about_of(archive, entry) if options.metadata else ""), options)


def _write_sorted(
    lines: LineWriter, archive: Archive, entries: Iterable[CentralEntry], options: ListingOptions
) -> None:
    # The lines and an array of keys: of a million members, entries would take four times the memory.
    keys, texts = array("q"), []
    for position, entry in enumerate(entries):
        key = entry.mtime_ns // 1_000_000_000 if options.by_time else min(entry.size, (1 << 63) - 1)
        keys.append(key if options.by_time or options.by_size else -position)
        texts.append(_member_line(archive, entry, options))
    order = sorted(range(len(texts)), key=keys.__getitem__, reverse=not options.reverse)
    write = lines.write_exact if options.null else lines.write_escaped
    write(map(texts.__getitem__, order))


def _item_line(item: levels.Item, options: ListingOptions) -> str:
    """Return the line of a long list; the name, and so the line, is still to be escaped."""
    after = f"  {item.about}" if item.about else ""
    if item.members is None:
        return f"{long_line(item.mode, item.size, item.second, human=options.human)}{item.name}{after}"
    size = f"{size_text(item.size, BINARY):>10}" if options.human else f"{item.size:>18,}"
    return f"{item.members:>12,} members {size} {local_time(item.second)} {item.name}"


def _in_order(found: Iterable[levels.Item], options: ListingOptions) -> list[levels.Item]:
    items = sorted(found, key=attrgetter("name"), reverse=options.reverse)
    if options.by_time or options.by_size:
        items.sort(key=attrgetter("second" if options.by_time else "size"), reverse=not options.reverse)
    return items


def _write_items(lines: LineWriter, found: Iterable[levels.Item], options: ListingOptions) -> None:
    """Write a list in order, in columns where they are wanted."""
    items = _in_order(found, options)
    if options.null:
        lines.write_exact(item.name for item in items)
    elif options.columns:
        texts = [shown(item.name) for item in items]
        colors = Colors.of_environment()
        painted = [colors.paint(text, item.name, item.mode) for text, item in zip(texts, items, strict=True)]
        lines.write_all(in_columns(texts, painted, width=shutil.get_terminal_size().columns))
    else:
        lines.write_escaped(_item_line(item, options) if options.long else item.name for item in items)
    lines.flush()


def _list_archives(lines: LineWriter, folder: str, patterns: Patterns, options: ListingOptions) -> int:
    is_level = options.depth is not None and not patterns
    is_names = options.tree or options.null or (not options.long and (is_level or options.columns))
    found = levels.ArchiveItems(folder, patterns, counted=not is_names)
    if options.tree:
        write_tree(lines, folder, (item.name for item in found), options.depth)
    elif is_level and options.depth is not None:
        _write_items(lines, levels.collapse(found, options.depth), options)
    elif is_names:
        _write_items(lines, found, options)
    else:
        for item in _in_order(found, options) if options.is_sorted else found:
            lines.write(_archive_line(item, options))
            lines.flush()
    lines.flush()
    patterns.check(folder)
    return found.status


def _archive_line(item: levels.Item, options: ListingOptions) -> str:
    if options.as_json:
        about = {"archive": item.name, "members": item.members, "size": item.size, "mtime": iso_time(item.second)}
        return json.dumps(about)
    if options.long:
        return shown(_item_line(item, options))
    return f"{item.members or 0:>12,} members {size_text(item.size, BINARY):>10} {shown(item.name)}"
