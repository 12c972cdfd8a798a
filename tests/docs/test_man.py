"""The man page: the installed troff and man read it without a complaint, and it has all that the commands have."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from typing import Any

import pytest
from checkout import ROOT
from typer.main import get_command

from rear.cli.app import app
from rear.core.config import SETTINGS

PAGE = ROOT / "docs/reference/man/rear.1"


def rendered(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [*command, str(PAGE)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "MANWIDTH": "500", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    # Bold and underlined letters are struck over.
    return " ".join(re.sub(r".\x08|\x1b\[[0-9;]*m", "", done.stdout).split())


def test_troff_has_nothing_to_complain_of_and_says_all() -> None:
    text = rendered("groff", "-man", "-ww", "-Tutf8", "-rLL=500n", "-P-c")
    group: Any = get_command(app)
    for name, command in group.commands.items():
        assert f"rear {name} [OPTIONS]" in text, name
        section = text.partition(f"rear {name} [OPTIONS]")[2]
        for parameter in command.params:
            if parameter.param_type_name != "argument" and not parameter.hidden:
                assert all(option in section for option in parameter.opts), (name, parameter.name)
        (example, *_) = re.findall(r"Example: (rear [^\n]*)", command.help)
        assert " ".join(example.split()) in section, name
    assert all(setting.variable in text for setting in SETTINGS)
    assert "130 Ctrl-C" in text


def test_man_shows_it() -> None:
    text = rendered("man", "--warnings=w", "-l")
    assert text.startswith("REAR(1)")
    assert "EXIT STATUS" in text


def test_mandoc_has_nothing_to_complain_of() -> None:
    rendered("mandoc", "-T", "lint", "-W", "error")


def test_the_page_is_plain_ascii_of_short_commands() -> None:
    text = PAGE.read_text(encoding="ascii")
    requests = {line.split()[0] for line in text.splitlines() if line.startswith(".")}
    assert requests <= {r".\"", ".TH", ".SH", ".SS", ".PP", ".TP", ".B", ".BR", ".EX", ".EE"}
    assert not [line for line in text.splitlines() if line.startswith("'") or line != line.rstrip()]


def test_pip_installs_it_where_man_looks() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["shared-data"] == {PAGE.relative_to(ROOT).as_posix(): "share/man/man1/rear.1"}
