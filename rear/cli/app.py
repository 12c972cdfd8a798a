"""The commands of ``rear``, put together."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from rear.cli.commands import (
    adopt,
    cat,
    config,
    demo,
    doctor,
    find,
    fsck,
    get,
    index,
    ls,
    put,
    run,
    scavenge,
    status,
    sweep,
)
from rear.cli.exit import reported
from rear.cli.help import GroupedCommands

_PLAIN: Final[dict[str, Any]] = {
    # Plain help: it wraps anywhere, pastes anywhere, and needs no import of Rich.
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="rear",
    cls=GroupedCommands,
    help="Many small files of many processes, in a few ordinary Zip archives.",
    no_args_is_help=True,
    **_PLAIN,
)
_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    # -h is for sizes there, as in ls.
    "ls": {"help_option_names": ["--help"]},
    "run": {"allow_interspersed_args": False},
}
for _module in (scavenge, sweep, ls, find, adopt, put, run, cat, get, index, fsck, status, doctor, config, demo):
    _name = _module.__name__.rpartition(".")[2]
    app.command(name=_name, context_settings=_SETTINGS.get(_name))(reported(getattr(_module, _name)))

scavenger_app = typer.Typer(add_completion=False, **_PLAIN)
scavenger_app.command(name="rear-scavenger")(reported(scavenge.scavenger))


def _show_version(wanted: bool) -> None:
    if wanted:
        from rear.cli.commands.version import lines

        typer.echo("\n".join(lines()))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the versions of rear and what it stands on."
        ),
    ] = False,
) -> None:
    """Many small files of many processes, in a few ordinary Zip archives."""
