"""Writes what follows from the code in docs/: the pages named in `main`, and parts of format.md and architecture.md.

    python tools/generate_docs.py            # write what has changed
    python tools/generate_docs.py --check    # change nothing; status 1 and the names of pages that are out of date

The result depends on the code alone: not on the width of the terminal, the locale or the time zone.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from typer.main import get_command

sys.path.insert(0, str(Path(__file__).resolve().parent))

import format_example
from api_page import api_page
from man_page import man_page

from rear import errors, events
from rear.cli import exit_statuses
from rear.cli.app import app, scavenger_app
from rear.cli.display.json_lines import Schema, Warned
from rear.cli.display.summary import Summary
from rear.core import problems

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
PACKAGE: Final = DOCS.parent / "rear"
BEGIN: Final = "<!-- begin: tools/format_example.py -->\n"
END: Final = "<!-- end: tools/format_example.py -->\n"
FILES_BEGIN: Final = "<!-- begin: files, made by tools/generate_docs.py from docstrings -->\n"
FILES_END: Final = "<!-- end: files -->\n"
_NOTE: Final = "<!-- Made by tools/generate_docs.py from {}: change that, not this page. -->\n"
#: How the tests run examples (see tests/support/snippets.py) that need something, or end with another status than 0.
_SNIPPETS: Final = {
    "rear fsck --output": "exit 1",
    "rear doctor": "skip, needs a second mount of the export",
}
#: Typer adds these two to every application.
_FOREIGN_OPTIONS: Final = frozenset({"install_completion", "show_completion"})


def errors_page() -> str:
    """Return errors.md: the docstring of `rear.errors`, and one of each class."""
    documentation = inspect.getdoc(errors) or ""
    title, tree, *rest = re.split(r"\n\n(?=\S|    )", documentation)
    lines = [
        _NOTE.format("rear/errors.py"), "# Errors\n", f"{_prose(title)}\n",
        f"```text\n{textwrap.dedent(tree)}\n```\n", *(f"{_prose(paragraph)}\n" for paragraph in rest),
        "| class, in `rear.errors` | status | is also | meaning |", "|---|---|---|---|",
    ]  # fmt: skip
    for error in _classes(errors.RearError):
        also = [
            base.__name__
            for base in error.__bases__
            if not issubclass(base, errors.RearError) and base is not Exception
        ]
        row = (
            f"`{error.__name__}`",
            str(error.exit_status),
            ", ".join(f"`{name}`" for name in also),
            _docstring(error),
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _classes(error: type[errors.RearError]) -> Iterator[type[errors.RearError]]:
    yield error
    for child in error.__subclasses__():
        yield from _classes(child)


def _docstring(documented: type) -> str:
    return _prose(inspect.getdoc(documented) or "")


def _prose(text: str) -> str:
    """Return a paragraph of a docstring as one line of Markdown."""
    return " ".join(text.replace("``", "`").split())


def statuses_page() -> str:
    """Return exit-statuses.md: what `rear.cli.exit_statuses` says, and which class of error has which."""
    by_status: dict[int, list[str]] = {}
    for error in _classes(errors.RearError):
        by_status.setdefault(error.exit_status, []).append(f"`{error.__name__}`")
    group: Any = get_command(app)
    anywhere = ", ".join(map(str, exit_statuses.ANYWHERE))
    lines = [
        _NOTE.format("rear/cli/exit_statuses.py"), "# Exit statuses\n",
        "| status | meaning | errors, in `rear.errors` |", "|---|---|---|",
        *(
            f"| {number} | {_pipes(meaning)} | {', '.join(by_status.get(number, []))} |"
            for number, meaning in exit_statuses.MEANINGS.items()
        ),
        "",
        "`rear fsck` has the statuses of fsck(8) instead. Each error is one line on standard error. Commands that take "
        "several files or members go on after an error; theirs is the status of one of the errors.\n",
        "## By command\n",
        f"Besides, any command can end with {anywhere}.\n",
        "| command | status | meaning there |", "|---|---|---|",
        *(
            f"| `rear {name}` | {number} | {_pipes(meaning)} |"
            for name, command in group.commands.items()
            if not command.hidden
            for number, meaning in exit_statuses.of_command(name).items()
            if number not in exit_statuses.ANYWHERE
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _pipes(text: str) -> str:
    return text.replace("|", "\\|")


def problems_page() -> str:
    """Return problems.md: every code of `rear.core.problems.CATALOG`."""
    lines = [
        _NOTE.format("rear/core/problems.py"), "# Problems\n",
        "What `rear fsck` finds has a code that stays the same from version to version; with `--json` it is the field "
        "`code`. Beside it stands what became of it, the `outcome`:\n",
        "| outcome | meaning | exit status |", "|---|---|---|",
        "| `repaired` | nothing more to do | 1, when no other problem is left |",
        "| `would repair` | nothing was changed, because of `-n` or for want of `--in-place` or `--output` | 4 |",
        "| `left` | it could not be repaired, or not without losing something; what there is of it was kept | 4 |",
        "| `noted` | worth knowing, nothing is wrong | 0 |",
        "",
        "The exit status is that of fsck(8): 0 clean, 1 everything was repaired, 4 something is left, 8 it could not "
        "run. Codes in **bold** tell of stored bytes that are not whole any more.\n",
        "## Fields\n",
        "An object of `--json` with `kind` `problem` has these fields, `null` where they say nothing:\n",
        "| field | meaning |", "|---|---|",
        "| `severity` | `info` when it is noted, `loss` when bytes are gone for good, else `warning` |",
        *(f"| {name} | {meaning} |" for name, meaning in _attributes(problems.Problem)),
        "",
        "## Codes\n",
        "| code | meaning | what is done about it |", "|---|---|---|",
        *(f"| {_code(kind)} | {_cell(kind.meaning)} | {_cell(kind.repair)} |" for kind in problems.CATALOG.values()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _attributes(described: type) -> Iterator[tuple[str, str]]:
    section = (inspect.getdoc(described) or "").partition("Attributes:\n")[2]
    for line in section.splitlines():
        name, _, meaning = line.strip().partition(": ")
        yield f"`{name}`", _prose(meaning).rstrip(".")


def _code(kind: problems.ProblemKind) -> str:
    return f"**`{kind.code}`**" if kind.is_loss else f"`{kind.code}`"


def json_page() -> str:
    """Return json.md: every object that ``--json`` of scavenge, fsck and sweep prints."""
    lines = [
        _NOTE.format("rear/events.py, json_lines.py and summary.py in rear/cli/display"), "# JSON\n",
        "`rear scavenge`, `rear fsck` and `rear sweep` print with `--json` one object a line on standard output, in "
        "ASCII, as things happen. The first one is of kind `schema`, then come events, the last one is of kind "
        "`summary`. Every object has `kind` and `severity` (`info`; `warning`: look at it, nothing is lost; `loss`: "
        "bytes are missing).\n",
        f"This is version {events.SCHEMA_VERSION} of the schema. Kinds and fields are added without a new number, so "
        "ignore those that you do not know; when one is removed, or means something else, the number grows. Bytes of "
        "a name that are no UTF-8 are lone surrogates (`\\udc80` to `\\udcff`), as in Python.\n",
        "```sh", "rear scavenge --json /nfs/base | jq -c 'select(.severity != \"info\")'", "```\n",
    ]  # fmt: skip
    framing: tuple[type[events.Event], ...] = (Schema, Summary, Warned)
    for kind in framing:
        types = dict(_json_fields(kind))
        lines += [
            f"## {_kind_name(kind)}\n", f"{_docstring(kind).partition(' Attributes:')[0]}\n",
            "| field | type | meaning |", "|---|---|---|",
            *(f"| {field} | {types[field.strip('`')]} | {meaning} |" for field, meaning in _attributes(kind)), "",
        ]  # fmt: skip
    lines += [
        "## Events\n",
        "What each field means stands in [Format](format.md#events). Problems, of kind `problem`, have a page of "
        "[their own](problems.md#fields).\n",
        "| kind | severity | fields |", "|---|---|---|",
    ]  # fmt: skip
    # Dataclasses with slots are made twice.
    for kind in {kind.__name__: kind for kind in events.Event.__subclasses__()}.values():
        if kind.__module__ == events.__name__:
            fields = ", ".join(f"`{field}`: {type_name}" for field, type_name in _json_fields(kind))
            lines.append(f"| `{_kind_name(kind)}` | {kind.severity} | {fields} |")
    return "\n".join(lines) + "\n"


def _kind_name(kind: type[events.Event]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


_JSON_TYPES: Final = {
    "str": "text", "Phase": "text", "int": "integer", "float": "number", "bool": "boolean", "None": "null",
    "dict[str, int]": "object", "WhyLeft": "text", "JournalFault": "text", "IndexFault": "text",
}  # fmt: skip


def _json_fields(kind: type) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(kind):
        yield field.name, " or ".join(_JSON_TYPES[part] for part in str(field.type).split(" | "))


def cli_page() -> str:
    """Return cli.md: every command, argument and option of the Typer application."""
    group: Any = get_command(app)
    parts = [_NOTE.format("rear/cli/"), "# Command line\n", f"{_prose(group.help)}\n"]
    parts += [
        "`rear COMMAND --help` says the same. Exit statuses stand in [Exit statuses](exit-statuses.md). Durations "
        "are written `30s`, `5m`, `2h`, `1d`; sizes `1000`, `500M`, `50G` (powers of 1024).\n",
        *_options(group), "",
        "`rear --install-completion` makes bash, zsh or fish complete commands, options and what is inside archives "
        "(`rear cat ar.zip/lo<TAB>`); `rear --show-completion` prints what it would install.\n",
    ]  # fmt: skip
    for name, command in group.commands.items():
        if not command.hidden:
            parts += _command(f"rear {name}", command)
    parts += _command("rear-scavenger", get_command(scavenger_app))
    return "\n".join(parts).rstrip("\n") + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## {name}\n"
    arguments = [parameter for parameter in command.params if _is_argument(parameter)]
    usage = " ".join([name, "[OPTIONS]", *(_argument(parameter) for parameter in arguments)])
    yield f"```text\n{usage}\n```\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        example = paragraph.removeprefix("Example: ")
        if example == paragraph:
            yield f"{_prose(paragraph)}\n"
            continue
        marks = [f"<!-- snippet: {mark} -->\n" for begin, mark in _SNIPPETS.items() if example.startswith(begin)]
        yield f"{''.join(marks)}```sh\n{example}\n```\n"
    if arguments:
        yield from ("| argument | default | environment | meaning |", "|---|---|---|---|")
        for parameter in arguments:
            row = (f"`{_argument(parameter)}`", _default(parameter), _environment(parameter), _cell(parameter.help))
            yield f"| {' | '.join(row)} |"
        yield ""
    yield from _options(command)
    yield ""


def _options(command: Any) -> Iterator[str]:
    yield from ("| option | default | environment | meaning |", "|---|---|---|---|")
    for parameter in command.params:
        if _is_argument(parameter) or parameter.hidden or parameter.name in _FOREIGN_OPTIONS:
            continue
        written = [*sorted(parameter.opts, key=lambda name: (name[:2] == "--", name)), *parameter.secondary_opts]
        names = ", ".join(f"`{name}`" for name in written)
        meaning = _cell(parameter.help) + _range(parameter.type)
        row = (names + _value(parameter), _default(parameter), _environment(parameter), meaning)
        yield f"| {' | '.join(row)} |"
    help_names = ", ".join(f"`{name}`" for name in command.context_settings.get("help_option_names", ("-h", "--help")))
    yield f"| {help_names} |  |  | Show the help and exit. |"


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _argument(parameter: Any) -> str:
    shown = str(parameter.metavar or parameter.name.upper())
    return shown if parameter.required or shown[0] == "[" else f"[{shown}]"


def _value(parameter: Any) -> str:
    if parameter.is_flag:
        return ""
    choices = getattr(parameter.type, "choices", None)
    kind = "N" if parameter.type.name.casefold().startswith("int") else "TEXT"
    return f" `{' | '.join(choices) if choices else parameter.metavar or kind}`".replace("|", "\\|")


def _range(kind: Any) -> str:
    least, most = getattr(kind, "min", None), getattr(kind, "max", None)
    if least is None and most is None:
        return ""
    return f" {least} or more." if most is None else f" {least} to {most}."


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.default is None or parameter.default is False or parameter.required:
        return ""
    return f"`{parameter.default}`"


def _environment(parameter: Any) -> str:
    return f"`{parameter.envvar}`" if parameter.envvar else ""


def _cell(text: str | None) -> str:
    return _prose(text or "").replace("|", "\\|").replace("*", "\\*").replace("[", "\\[")


def format_page() -> str:
    """Return format.md with the example of now between its marks."""
    return _between_marks("reference/format.md", BEGIN, END, f"{format_example.example()}\n")


def architecture_page() -> str:
    """Return architecture.md with the first sentence of each file's docstring, by room."""
    rooms: dict[Path, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        rooms.setdefault(path.parent, []).append(path)
    lines: list[str] = []
    for folder, files in rooms.items():
        lines += [f"### {folder.relative_to(PACKAGE.parent).as_posix()}/", "", "| file | is about |", "|---|---|"]
        lines += [f"| `{path.stem}` | {_first_sentence(path)} |" for path in files if path.stem != "__init__"]
        lines.append("")
    return _between_marks("development/architecture.md", FILES_BEGIN, FILES_END, "\n".join(lines))


def _first_sentence(path: Path) -> str:
    documentation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return _cell(re.split(r"(?<=[.?!])\s|\n\n", documentation.strip())[0].rstrip("."))


def _between_marks(page: str, begin: str, end: str, text: str) -> str:
    before, _, rest = (DOCS / page).read_text(encoding="utf-8").partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise SystemExit(f"docs/{page} lacks the marks {begin.strip()} and {end.strip()}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main() -> int:
    """Write the pages, or only compare them."""
    parser = argparse.ArgumentParser(description="Write the parts of docs/ that follow from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 when a page is out of date")
    check = parser.parse_args().check
    stale = []
    pages = {
        "reference/errors.md": errors_page,
        "reference/exit-statuses.md": statuses_page,
        "reference/problems.md": problems_page,
        "reference/cli.md": cli_page,
        "reference/json.md": json_page,
        "reference/api.md": api_page,
        "reference/format.md": format_page,
        "reference/man/rear.1": man_page,
        "development/architecture.md": architecture_page,
    }
    for name, page in pages.items():
        path, text = DOCS / name, page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale:
        print(
            f"{'out of date' if check else 'written'}: {', '.join(f'docs/{name}' for name in stale)}", file=sys.stderr
        )
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
