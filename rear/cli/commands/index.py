"""``rear index``: what the index of an archive knows, and whether it mirrors the archive."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rear.cli.exit import ATTENTION, note
from rear.cli.listing.member_lines import iso_time_ns
from rear.cli.listing.selection import LineWriter, split
from rear.cli.options import JsonObject, flag
from rear.core.text import BINARY, printable, shown, size_text
from rear.errors import NotLeaderError, UsageError

if TYPE_CHECKING:
    from rear.fsck.reindex import IndexState
    from rear.index.index import IndexRow

#: With the wide forms of East Asian text, which some spreadsheets take for the same.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_STATES = {
    "current": "mirrors the archive",
    "outdated": "does not mirror the archive any more; the next merge makes it anew, or --rebuild does it now",
    "damaged": "damaged; the next merge makes it anew, or --rebuild does it now",
    "missing": "there is none; the next merge makes one, or --rebuild does it now",
}


def index(
    path: Annotated[str, typer.Argument(metavar="ARCHIVE", help="A final archive of a base.")],
    rebuild: Annotated[
        bool, flag("Make the index anew from the archive; scavengers wait meanwhile.", "--rebuild")
    ] = False,
    as_csv: Annotated[
        bool,
        flag(
            "Print all rows as CSV, with the columns of the SQLite table members; what a spreadsheet could take for a "
            "formula begins with an apostrophe.",
            "--csv",
        ),
    ] = False,
    as_raw_csv: Annotated[bool, flag("The same for programs: all text exactly as it is.", "--csv-raw")] = False,
    as_json: JsonObject = False,
) -> None:
    """Show the index of an archive: its SQLite files, and whether they mirror the archive.

    The files open in sqlite-utils and Datasette; "Index" in the documentation has the tables, and queries to begin
    with.

    Example: rear index --csv /nfs/base/ar.zip > members.csv
    """
    if as_csv + as_raw_csv + as_json > 1:
        raise UsageError("name one of --csv, --csv-raw and --json")
    selection = split(path)
    if selection.member:
        raise UsageError(f"{path!r} names a member: an archive has an index, {selection.archive!r} here")
    if rebuild:
        _rebuild(selection.archive)
    if as_csv or as_raw_csv:
        _write_csv(selection.archive, is_raw=as_raw_csv)
    elif as_json or not rebuild:
        _show(selection.archive, as_json=as_json)


def _rebuild(path: str) -> None:
    from rear.fsck.reindex import reindex

    try:
        members = reindex(path)
    except NotLeaderError as error:
        # Elsewhere that is no failure: the other one does the same work. Here it does not.
        note(f"{error}; the index is as it was, run it again later")
        raise typer.Exit(ATTENTION) from None
    note(f"{path}: the index was made anew, {members:,} members")


def _show(path: str, *, as_json: bool) -> None:
    from rear.fsck.reindex import index_state

    state = index_state(path)
    with LineWriter() as lines:
        lines.write_all([json.dumps(_as_json(state))] if as_json else _described(state))


def _described(state: IndexState) -> Iterable[str]:
    yield f"archive  {shown(state.archive)}, {state.members:,} members"
    yield f"index    {_STATES[state.state]}"
    yield f"folder   {shown(str(state.folder))}"
    if state.segments:
        yield f"{'file':<12} {'rows':>12} {'removed':>8} {'size':>10}  written"
    for segment in state.segments:
        size = size_text(_size(segment.path), BINARY)
        written = iso_time_ns(segment.created_ns)
        yield f"{segment.path.name:<12} {segment.members:>12,} {segment.removed:>8,} {size:>10}  {written}"
    for problem in state.problems:
        yield f"ignored  {shown(problem)}"


def _as_json(state: IndexState) -> dict[str, Any]:
    return {
        "archive": state.archive,
        "folder": str(state.folder),
        "state": state.state,
        "members": state.members,
        "indexed": state.indexed,
        "fingerprint": state.fingerprint,
        "segments": [
            {
                "file": segment.path.name,
                "number": segment.number,
                "id": segment.id,
                "rows": segment.members,
                "removed": segment.removed,
                "size": _size(segment.path),
                "written": iso_time_ns(segment.created_ns),
                "fingerprint": segment.fingerprint,
            }
            for segment in state.segments
        ],
        "problems": state.problems,
    }


def _size(path: os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        # A newer segment took its rows just now.
        return 0


def _write_csv(path: str, *, is_raw: bool) -> None:
    from rear.index.index import rows_of
    from rear.read.find import mirroring_index
    from rear.read.view import open_committed

    found = mirroring_index(path)
    if found is not None:
        _write_rows(found.rows(), is_raw)
        return
    note(f"{path} has no index that fits: read the archive itself instead; rear index --rebuild makes one")
    with open_committed(path) as archive:
        _write_rows(rows_of(archive), is_raw)


def _write_rows(rows: Iterable[IndexRow], is_raw: bool) -> None:
    from rear.index.index import IndexRow

    writer = csv.writer(_Output(), lineterminator="\n")
    writer.writerow(IndexRow._fields)
    for row in rows:
        *values, metadata = row
        text = None if metadata is None else json.dumps(metadata, ensure_ascii=not is_raw, separators=(",", ":"))
        cells = [*values, text]
        writer.writerow(cells if is_raw else map(_safe_cell, cells))
    sys.stdout.buffer.flush()


def _safe_cell(cell: object) -> object:
    """Return a cell that a spreadsheet takes for text and a terminal shows: anybody may name a file ``=cmd|…``."""
    if not isinstance(cell, str):
        return cell
    # CSV injection, as OWASP describes it.
    return ("'" if cell.startswith(_FORMULA_STARTS) else "") + printable(cell)


class _Output:
    """Standard output for `csv`: exact bytes in a pipe or file, on a terminal nothing that it would act on."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()

    def write(self, line: str) -> None:
        if self._is_terminal:
            sys.stdout.write(f"{printable(line.removesuffix(chr(10)))}\n")
        else:
            sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape"))
