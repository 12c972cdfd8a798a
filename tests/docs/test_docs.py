"""The documentation against the code: what is generated is up to date, tables name what there is, examples run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from checkout import ROOT
from pages import between, quoted, rows, text_of
from typer.main import get_command

import rear
from rear import events
from rear.cli.app import app, scavenger_app
from rear.core import records
from rear.journal import codec, reader

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


# ---- generated


@pytest.mark.parametrize(
    "environment", [{"COLUMNS": "40", "LC_ALL": "C", "TZ": "Asia/Tokyo"}, {"COLUMNS": "300", "TZ": "UTC"}]
)
def test_generated_pages_are_up_to_date(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate_docs.py"), "--check"],
        capture_output=True, text=True, env=os.environ | environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}: run tools/generate_docs.py"


def test_the_byte_example_is_that_of_the_tool() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "format_example.py")],
        capture_output=True, encoding="utf-8", timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout in text_of("docs/reference/format.md")


def test_the_byte_example_is_a_journal_and_a_zip_that_python_reads(tmp_path: Path) -> None:
    import io
    import zipfile

    page = between(
        text_of("docs/reference/format.md"),
        "<!-- begin: tools/format_example.py -->",
        "<!-- end: tools/format_example.py -->",
    )
    lines, *blocks = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "x.journal"
    path.write_text(lines)
    read = reader.read_journal(path)
    assert read.closed is not None
    assert (read.damage, read.torn, list(read.appends)) == ([], None, [1])
    data = bytearray()
    for line in "".join(blocks).splitlines():
        assert int(line[:6], 16) == len(data)
        data += bytes.fromhex(line[8 : 8 + 47])
    assert len(data) == read.closed.length
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("a.txt") == b"hello\n"


# ---- tables


def commands() -> Iterator[tuple[str, Any]]:
    group: Any = get_command(app)
    yield "rear", group
    for name, command in group.commands.items():
        yield f"rear {name}", command
    yield "rear-scavenger", get_command(scavenger_app)


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_every_option_of_the_command_line_is_documented(name: str, command: Any) -> None:
    page = text_of("docs/reference/cli.md")
    section = page.partition("\n## ")[0] if name == "rear" else between(f"{page}\n## ", f"\n## {name}\n", "\n## ")
    documented = set(quoted(section))
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name in ("install_completion", "show_completion"):
            continue
        if parameter.param_type_name == "argument":
            assert any((parameter.metavar or parameter.name.upper()) in shown for shown in documented), parameter.name
        else:
            assert set(parameter.opts) <= documented
            assert " ".join((parameter.help or "").split()[:3]) in section.replace("\\", "")
        if parameter.envvar:
            assert parameter.envvar in documented
            assert parameter.envvar in quoted(text_of("docs/explanation/concepts.md"))


#: Problems are events too, and have a page of their own.
EVENTS = {kind.__name__: kind for kind in events.Event.__subclasses__() if kind.__module__ == events.__name__}


def test_every_event_is_documented_with_its_fields() -> None:
    section = between(text_of("docs/reference/format.md"), "<!-- events", "<!-- end of events -->")
    kinds, _, types = section.partition("| field | type |")
    documented = {quoted(row[0])[0]: (row[1], quoted(row[2])) for row in rows(kinds)}
    actual = {
        re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): (kind.severity, [field.name for field in fields(kind)])
        for name, kind in EVENTS.items()
    }
    assert documented == actual
    explained = {name for row in rows(f"| field | type |{types}") for name in quoted(row[0])}
    assert explained == {name for _, names in actual.values() for name in names}


def test_every_phase_is_documented() -> None:
    section = text_of("docs/reference/format.md").partition("### Phases")[2].partition("\n#")[0]
    assert [quoted(row[0])[0] for row in rows(section)] == list(get_args(events.Phase))


def test_every_journal_record_is_documented_with_its_keys() -> None:
    section = between(text_of("docs/reference/format.md"), "<!-- records", "<!-- end of records -->")
    kinds = {
        "open": records.Open, "append": records.Append, "abort": records.Abort, "beat": records.Beat,
        "close": records.Close, "merged": records.MergedRecord, "file": records.File, "part": records.Part,
    }  # fmt: skip
    names = {
        "int": "integer", "str": "text", "float": "number", "Metadata": "object",
        "tuple[int, ...]": "array of integers",
    }  # fmt: skip
    parts = re.split(r"^\*\*`(\w+)`\*\*", section, flags=re.MULTILINE)[1:]
    documented = {
        kind: [(quoted(row[0])[0], row[1]) for row in rows(text)]
        for kind, text in zip(parts[::2], parts[1::2], strict=True)
    }
    actual = {}
    for name, kind in kinds.items():
        keys = []
        for key, annotation in kind.__annotations__.items():
            declared = annotation if isinstance(annotation, str) else annotation.__forward_arg__
            base, _, optional = declared.partition(" | ")
            keys.append((key, names[base] + (", may be absent" if optional else "")))
        actual[name] = keys
    assert documented == actual
    assert f"`format_version` | integer | {codec.FORMAT_VERSION} |" in section


def test_every_exit_status_of_an_error_is_documented() -> None:
    def statuses(error: type[rear.RearError]) -> set[int]:
        return {error.exit_status}.union(*map(statuses, error.__subclasses__()))

    section = text_of("docs/reference/exit-statuses.md").partition("## By command")[0]
    assert {str(status) for status in statuses(rear.RearError)} <= {row[0] for row in rows(section)}


# ---- links


def leads_somewhere(folder: Path, target: str) -> bool:
    """Whether there is such a file, seen from a folder, and such a heading in it."""
    path, _, anchor = target.partition("#")
    linked = folder / path
    if not anchor or not linked.exists():
        return linked.exists()
    heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert leads_somewhere(page.parent, page.name + target if target.startswith("#") else target), target


def lost_pages(text: str) -> list[str]:
    """Pages of this documentation that a program names, in whatever it says, and that are not there."""
    named = re.findall(r"\bdocs/[\w./-]*\.md\b(?:#[\w-]+)?", text)
    return [name for name in named if not leads_somewhere(ROOT, name)]


@pytest.mark.parametrize("folder", ["rear", "tools", "bench", "tests"])
def test_pages_that_programs_name_are_there(folder: str) -> None:
    sources = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh", "")]
    assert sources
    lost = {
        path.relative_to(ROOT).as_posix(): lost_pages(path.read_text(encoding="utf-8"))
        for path in sources
        if path.is_file() and path != Path(__file__)
    }
    assert {path: names for path, names in lost.items() if names} == {}


def test_a_page_that_is_not_there_is_found() -> None:
    assert lost_pages("see docs/reference/format.md, docs/reference/format.md#journal.") == []
    assert lost_pages('note("see docs/format.md.")  # docs/reference/format.md') == ["docs/format.md"]
    assert lost_pages("docs/reference/format.md#no-such-part") == ["docs/reference/format.md#no-such-part"]


def pages_in_navigation(settings: str) -> list[str]:
    return sorted(re.findall(r": (\S+\.md)$", settings.partition("\nnav:\n")[2], re.MULTILINE))


def test_every_page_stands_once_in_the_navigation() -> None:
    assert pages_in_navigation(text_of("mkdocs.yml")) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")
    )


def test_a_page_that_stands_twice_in_the_navigation_is_found() -> None:
    settings = (
        "\nnav:\n  - Start: index.md\n  - How to:\n      - Watch: how-to/watch.md\n      - Look: how-to/watch.md\n"
    )
    assert pages_in_navigation(settings) == ["how-to/watch.md", "how-to/watch.md", "index.md"]
