"""Options that several commands have, and what becomes of their values."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

import typer

from rear.core.text import parse_seconds, parse_size_bytes
from rear.errors import UsageError


def base_argument(help: str, metavar: str = "[BASE]") -> Any:
    """Return the argument for a base, which is that of the environment or the current folder without it."""
    return typer.Argument(envvar="REAR_BASE", help=help, metavar=metavar, show_default="the current folder")


def flag(help: str, *names: str) -> Any:
    """Return an option that is given or not."""
    return typer.Option(*names, help=help)


def valued(metavar: str, help: str, *names: str, min: int | None = None, default: str | None = None) -> Any:
    """Return an option with a value; without names it is called like its parameter. ``default`` is what help says."""
    return typer.Option(*names, metavar=metavar, help=help, min=min, show_default=default or True)


#: Of commands that write, or that only look.
Base = Annotated[str, base_argument("The base that the workers write to.")]
#: Of commands whose arguments are other things.
BaseOption = Annotated[
    str, typer.Option("--base", envvar="REAR_BASE", help="The base.", metavar="BASE", show_default="the current folder")
]
AssumeDead = Annotated[
    list[str] | None,
    valued(
        "HOST|WORKER",
        "You know that this host, worker or scavenger is gone: do not wait for its lease. May be repeated.",
    ),
]
Meta = Annotated[list[str] | None, valued("KEY=VALUE", "Metadata of each member. Repeatable.")]
EscapeNames = Annotated[
    bool,
    flag(
        "Archive what no member name can hold (a line end, a backslash, a byte that is no UTF-8) as %0A, %5C, %FF; "
        "rear get --unescape-names takes that back.",
        "--escape-names",
    ),
]
OneFileSystem = Annotated[bool, flag("Leave out what is mounted below a folder.", "--one-file-system")]
Compression = Annotated[str | None, valued("METHOD", "deflate, stored or zstd.", default="deflate")]

# ---- how it is shown

Plain = Annotated[bool, flag("Lines instead of a live screen; so it is anyway without a terminal.", "--plain")]
Json = Annotated[bool, flag("One JSON object a line on standard output; see the page JSON.", "--json")]
Quiet = Annotated[bool, flag("Only what needs attention.", "--quiet", "-q")]
JsonObject = Annotated[bool, flag("Print one JSON object.", "--json")]
JsonLines = Annotated[bool, flag("Print one JSON object a line.", "--json")]


def style_of(*, plain: bool, json: bool, quiet: bool) -> str:
    """Return the style that options ask for, as `rear.cli.display.follow.follow` knows it."""
    return "json" if json else "quiet" if quiet else "plain" if plain else "live"


# ---- durations, sizes and times, as people write them


def seconds(text: str, *, zero: bool = False) -> float:
    """Return a duration such as ``30``, ``30s``, ``5m``, ``2h`` or ``1d`` in seconds; ``zero``: it may be 0."""
    try:
        return parse_seconds(text, zero=zero)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def size_bytes(text: str | None, *, zero: bool = False) -> int | None:
    """Return a size such as ``1000``, ``500M`` or ``50G`` (powers of 1024) in bytes; ``None`` where none is given.

    ``zero``: it may be 0.
    """
    try:
        return None if text is None else parse_size_bytes(text, zero=zero)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def moment(text: str | None) -> datetime | None:
    """Return a time such as ``2h`` (ago), ``2026-11-21`` or ``2026-11-21T08:30``; local unless it has an offset.

    ``None`` where none is given.
    """
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        pass
    try:
        return datetime.now() - timedelta(seconds=seconds(text))
    except (typer.BadParameter, OverflowError):
        raise typer.BadParameter(f"{text!r} is no time: write 2h or 1d (ago), 2026-11-21 or 2026-11-21T08:30") from None
