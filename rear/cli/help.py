"""The page of help of ``rear``: its commands in groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from typer.core import TyperGroup

GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "Write": ("put", "run", "sweep", "adopt"),
    "Merge": ("scavenge", "status"),
    "Read": ("ls", "find", "cat", "get", "index"),
    "Check and repair": ("fsck", "doctor"),
    "Set up": ("config", "demo"),
}
"""A command that stands in none of them is shown under `OTHERS`."""
OTHERS: Final = "More"


class GroupedCommands(TyperGroup):
    """Shows commands in groups, each with the whole first line of its help."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; while a shell completes a line, one that knows what is inside archives."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and ctx.resilient_parsing:
            from rear.cli.completion import offer_members

            offer_members(cmd_name, command)
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write all groups."""
        commands = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))}
        shown = [name for name, command in commands.items() if not command.hidden]
        width = max(map(len, shown), default=0)
        for title, names in grouped(shown):
            with formatter.section(title):
                # Padded, so that the columns of all groups line up.
                formatter.write_dl([(name.ljust(width), _first_line(commands[name])) for name in names])


def grouped(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each group that has some of the commands, with their names."""
    for title, members in GROUPS.items():
        if present := [name for name in members if name in names]:
            yield title, present
    listed = {name for members in GROUPS.values() for name in members}
    if others := [name for name in names if name not in listed]:
        yield OTHERS, others


def _first_line(command: Any) -> str:
    return " ".join((command.help or "").partition("\n\n")[0].split())
