"""The commands of ``rear``, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from rear.cli import cat, config, demo, doctor, fsck, get, ls, scavenge, status, sweep
from rear.cli.grouping import GroupedCommands
from rear.cli.outcome import reported

app = typer.Typer(
    name="rear",
    cls=GroupedCommands,
    help="Many small files of many processes, in a few ordinary Zip archives.",
    no_args_is_help=True,
    # Plain help: it wraps anywhere, pastes anywhere, and needs no import of Rich.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="scavenge")(reported(scavenge.scavenge))
app.command(name="sweep")(reported(sweep.sweep))
app.command(name="ls")(reported(ls.ls))
app.command(name="cat")(reported(cat.cat))
app.command(name="get")(reported(get.get))
app.command(name="fsck")(reported(fsck.fsck))
app.command(name="status")(reported(status.status))
app.command(name="doctor")(reported(doctor.doctor))
app.command(name="config")(reported(config.config))
app.command(name="demo")(reported(demo.demo))

scavenger_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
scavenger_app.command(name="rear-scavenger")(reported(scavenge.scavenger))


def _show_version(wanted: bool) -> None:
    if wanted:
        from rear.cli.version import lines

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
