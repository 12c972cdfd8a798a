"""The commands of ``rear``, put together."""

from __future__ import annotations

from typing import Annotated

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
# -h is for sizes there, as in ls.
app.command(name="ls", context_settings={"help_option_names": ["--help"]})(reported(ls.ls))
app.command(name="find")(reported(find.find))
app.command(name="adopt")(reported(adopt.adopt))
app.command(name="put")(reported(put.put))
app.command(name="run", context_settings={"allow_interspersed_args": False})(reported(run.run))
app.command(name="cat")(reported(cat.cat))
app.command(name="get")(reported(get.get))
app.command(name="index")(reported(index.index))
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
