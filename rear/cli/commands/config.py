"""``rear config``: each setting, its value, and where that comes from."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Final

import typer

from rear.cli.options import JsonObject, base_argument
from rear.core.text import shown

JSON_VERSION: Final = 1


def config(base: Annotated[str, base_argument("The base.")] = ".", as_json: JsonObject = False) -> None:
    """Show the settings of a base, and where each comes from.

    An option of a command or an argument in Python comes first; then an environment variable (REAR_SYNC for sync);
    then .rear/config.toml in the base, which its workers and scavengers share; then the default. What the file says
    and does not count, because others may have written it, is told.

    Example: rear config /nfs/base
    """
    from rear.core.config import Config
    from rear.core.layout import layout_of

    found = Config(layout_of(base))
    values = found.values()
    if as_json:
        settings = [
            {
                "table": value.setting.table,
                "name": value.setting.name,
                "value": value.value,
                "source": value.source,
                "default": value.setting.default,
                "variable": value.setting.variable,
            }
            for value in values
        ]
        about = {
            "version": JSON_VERSION,
            "kind": "config",
            "file": found.path,
            "unknown": found.unknown,
            "ignored": found.ignored,
        }
        typer.echo(json.dumps({**about, "settings": settings}))
        return
    table = ""
    for value in values:
        if value.setting.table != table:
            table = value.setting.table
            typer.echo(f"[{table}]")
        text = "" if value.value is None else json.dumps(value.value, ensure_ascii=False)
        typer.echo(f"{value.setting.name:<14} {shown(text):<12} {shown(value.source)}")
    for line in (*found.unknown, *found.ignored):
        print(f"rear: {shown(line)}", file=sys.stderr)
