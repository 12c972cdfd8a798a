"""The man page rear(1), docs/reference/man/rear.1, made from the help of the commands for `tools/generate_docs.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, Final

from typer.main import get_command

from rear.cli import exit_statuses
from rear.cli.app import app
from rear.cli.help import grouped
from rear.core import config

_COMMENT: Final = r".\" Made by tools/generate_docs.py from rear/cli/: change that, not this page."
_SPECIAL: Final = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}


def man_page() -> str:
    """Return the page in the man(7) macros of troff, in ASCII."""
    group: Any = get_command(app)
    lines = [
        _COMMENT, '.TH REAR 1 "" rear "User Commands"', ".SH NAME", rf"rear \- {_text(_first(group.help).rstrip('.'))}",
        ".SH SYNOPSIS", ".B rear", _text("[OPTIONS] COMMAND [ARGS]..."), ".SH DESCRIPTION",
        _text(
            "Each worker process appends the files that it writes to a temp archive of its own, with a journal beside "
            "it; a scavenger moves the members, as they are, into final archives: ordinary Zip files. What a worker "
            "has closed survives its death. BASE is the folder on a shared file system that all of this lies in."
        ),
        ".SH OPTIONS", *_options(group), ".SH COMMANDS",
        *(line for _, names in grouped(_visible(group)) for name in names for line in _command(name, group)),
        ".SH EXIT STATUS", *(line for item in exit_statuses.MEANINGS.items() for line in _item(str(item[0]), item[1])),
        ".PP", _text("rear fsck has those of fsck(8):"),
        *(line for item in exit_statuses.COMMANDS["fsck"].items() for line in _item(str(item[0]), item[1])),
        ".SH ENVIRONMENT", *_item("REAR_BASE", "the base, when a command is given none"),
        *_item("REAR_TRUSTED_BASES", "bases of others that count where none is named; with colons between them"),
        *(line for setting in config.SETTINGS for line in _item(setting.variable, _setting(setting))),
        *_item("TMPDIR", "where large files are kept while they are written, and indexes built: local disk"),
        ".SH FILES", *_item("BASE/.rear/config.toml", "settings of the base, by the same names in small letters"),
        *_item("BASE/.rear/reports/", "what scavenges did, and what needs attention"),
        *_item("BASE/.rear/lost+found/", "bytes that could not be placed; nothing is deleted instead"),
        ".SH SEE ALSO", ".BR zip (1),", ".BR unzip (1),", ".BR fsck (8)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _visible(group: Any) -> list[str]:
    return [name for name, command in group.commands.items() if not command.hidden]


def _command(name: str, group: Any) -> Iterator[str]:
    command = group.commands[name]
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = " ".join(["[OPTIONS]", *map(_argument, arguments)])
    yield f".SS rear {name} {_text(usage)}"
    examples, is_first = [], True
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        text, _, example = paragraph.partition("Example: ")
        examples += [example] if example else []
        if text.strip():
            yield from ([] if is_first else [".PP"])
            yield _text(text)
            is_first = False
    for parameter in arguments:
        if parameter.help:
            yield from _item(_argument(parameter), parameter.help)
    yield from _options(command)
    for example in examples:
        yield from (".PP", "Example:", ".EX", _text(example, fill=False), ".EE")


def _options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        if parameter.param_type_name == "argument" or parameter.hidden:
            continue
        names = [*sorted(parameter.opts, key=lambda name: (name[:2] == "--", name)), *parameter.secondary_opts]
        value = "" if parameter.is_flag else f" {_value(parameter)}"
        yield from _item(", ".join(names) + value, _meaning(parameter))
    yield from _item(", ".join(command.context_settings.get("help_option_names", ["-h", "--help"])), "Show the help.")


def _value(parameter: Any) -> str:
    choices = getattr(parameter.type, "choices", None)
    return str(parameter.metavar or ("|".join(choices) if choices else "N"))


def _meaning(parameter: Any) -> str:
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    is_told = shown not in (None, False, True, "", 0) and not callable(shown)
    return f"{parameter.help or ''}{f' Default: {shown}.' if is_told else ''}"


def _argument(parameter: Any) -> str:
    shown = str(parameter.metavar or parameter.name.upper())
    return shown if parameter.required or shown[0] == "[" else f"[{shown}]"


def _setting(setting: config.Setting) -> str:
    return f"{setting.meaning}; {'none' if setting.default is None else setting.default} by default"


def _item(tag: str, text: str) -> Iterator[str]:
    yield from (".TP", f".B {_text(tag)}", _text(re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)))


def _first(text: str) -> str:
    return text.partition("\n\n")[0]


def _text(text: str, *, fill: bool = True) -> str:
    """Return a text as one line that troff takes literally."""
    line = text.replace("…", "...").replace("`", "")
    line = " ".join(line.split()) if fill else line.strip()
    line = "".join(_SPECIAL.get(character) or _ascii(character) for character in line)
    return rf"\&{line}" if line[:1] == "." else line


def _ascii(character: str) -> str:
    return character if character.isascii() else rf"\[u{ord(character):04X}]"
