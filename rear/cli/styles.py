"""``--plain``, ``--json`` and ``--quiet``: how a command shows what happens."""

from __future__ import annotations

from typing import Annotated

import typer

Plain = Annotated[
    bool, typer.Option("--plain", help="Lines instead of a live screen; so it is anyway without a terminal.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output; see the page JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only what needs attention.")]


def style_of(*, plain: bool, json: bool, quiet: bool) -> str:
    """Return the style that options ask for, as `rear.tui.follow` knows it."""
    return "json" if json else "quiet" if quiet else "plain" if plain else "live"
