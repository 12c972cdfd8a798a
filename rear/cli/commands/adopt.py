"""``rear adopt``: members of other Zips into final archives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from rear.cli.exit import ATTENTION, say
from rear.cli.options import EscapeNames, Quiet, flag, seconds, valued
from rear.core.text import BINARY, size_text

if TYPE_CHECKING:
    from rear.events import Adopted, Event


def adopt(
    zips: Annotated[list[str], typer.Argument(metavar="FILE.zip...", help="Zips of any origin, also torn ones.")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base; made if it is missing.")],
    into: Annotated[
        str | None,
        valued(
            "ARCHIVE[/PREFIX]",
            "The final archive, relative to the base, and a folder in it. Without it, members say where they "
            "belong: ar.zip/name.",
        ),
    ] = None,
    delete: Annotated[
        bool, flag("Remove each Zip once all its members are read back from committed archives.", "--delete")
    ] = False,
    wait: Annotated[str, valued("DURATION", "How long to wait, all in all, while another scavenger leads.")] = "60s",
    escape_names: EscapeNames = False,
    json: Annotated[bool, flag("One JSON object a line on standard output.", "--json")] = False,
    quiet: Quiet = False,
) -> None:
    """Bring temp archives of the original program, or any other Zips, into final archives.

    Each member is checked, and copied without compressing it anew where that can be. Torn Zips are salvaged. Running
    it again adopts only what is new.

    Example: rear adopt /old/inbox/*.zip /nfs/base --delete

    Example: rear adopt results.zip /nfs/base --into ar.zip/results
    """
    import rear
    from rear.cli.display.follow import show

    with closing(
        rear.adopt(  # type: ignore[type-var]
            zips, base=base, into=into, delete=delete, wait_seconds=seconds(wait, zero=True), escape_names=escape_names
        )
    ) as events:
        style = "json" if json else "quiet" if quiet else "plain"
        needs_attention = show(events if json else _told(events, quiet=quiet), style)
    if needs_attention:
        raise typer.Exit(ATTENTION)


def _told(events: Iterator[Event], *, quiet: bool) -> Iterator[Event]:
    """Pass events on, and tell in words of those of an adoption."""
    from rear.events import Adopted, Waiting

    for event in events:
        match event:
            case Waiting() if not quiet:
                say(f"waiting for {event.wait_seconds:.0f} s at most: {event.reason}")
            case Adopted() if not quiet:
                say(_summary(event))
        yield event


def _summary(event: Adopted) -> str:
    counts = {
        "there already": event.there_already,
        "not merged yet": event.pending,
        "in need of attention": event.refused,
    }
    parts = [f"{event.source}: {event.archived:,} members ({size_text(event.size_bytes, BINARY)}) adopted"]
    parts += [f"{count:,} {what}" for what, count in counts.items() if count]
    parts += ["salvaged"] * event.is_salvaged + ["deleted"] * event.is_deleted
    return ", ".join(parts)
