"""Exit statuses: each that the table gives a command is what the command ends with; and how wrong use is answered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bases import write
from programs import run_code, run_rear
from typer.main import get_command
from typer.testing import CliRunner
from zips import cut, directory_offset, flip, write_zip

import rear
from rear.cli import exit_statuses
from rear.cli import help as page_of_help
from rear.cli.app import app

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def used(tmp: Path) -> Path:
    base = tmp / "base"
    write(base, {"ar.zip/a.txt": "hello"})
    return base


def merged(tmp: Path) -> Path:
    base = used(tmp)
    list(rear.scavenge(base))
    return base


def strange(tmp: Path) -> Path:
    """A base with something in its inbox that is none of rear's."""
    base = used(tmp)
    (base / ".rear/inbox/notes of mine").touch()
    return base


def misconfigured(tmp: Path) -> Path:
    base = used(tmp)
    (base / ".rear/config.toml").write_text("[scavenger]\njobs = 0\n")
    return base


def archive(tmp: Path) -> Path:
    return merged(tmp) / "ar.zip"


def no_zip(tmp: Path) -> Path:
    (tmp / "no.zip").write_bytes(b"no" * 5000)
    return tmp / "no.zip"


def damaged(tmp: Path) -> Path:
    path = archive(tmp)
    flip(path, path.read_bytes().index(b"hello"))
    return path


def no_directory(tmp: Path) -> Path:
    used(tmp)
    path = write_zip(tmp / "torn.zip", {"a.txt": b"whole"})
    return cut(path, directory_offset(path))


def encrypted(tmp: Path) -> Path:
    path = write_zip(tmp / "secret.zip", {"a.txt": b"secret"})
    flip(path, 6, 1)
    flip(path, directory_offset(path) + 8, 1)
    return path


def escaping(tmp: Path) -> Path:
    return write_zip(tmp / "evil.zip", {"../evil.txt": b"out"})


def source(tmp: Path) -> Path:
    (tmp / "source").mkdir()
    (tmp / "source/a.txt").write_text("spool")
    return tmp / "source"


def missing(tmp: Path) -> Path:
    return tmp / "none"


CASES: list[tuple[int, Callable[[Path], Path], list[str]]] = [
    (0, used, ["scavenge", "{}"]),
    (1, strange, ["scavenge", "{}"]),
    (2, misconfigured, ["scavenge", "{}"]),
    (3, missing, ["scavenge", "{}"]),
    (0, source, ["sweep", "{}", "--into", "ar.zip", "--base", "{}/../base"]),
    (2, source, ["sweep", "{}", "--into", "no-archive", "--base", "{}/../base"]),
    (3, missing, ["sweep", "{}", "--into", "ar.zip", "--base", "{}/../base"]),
    (0, archive, ["ls", "{}"]),
    (3, missing, ["ls", "{}"]),
    (4, no_zip, ["ls", "{}"]),
    (6, archive, ["ls", "{}", "nothing*"]),
    (0, archive, ["cat", "{}/a.txt"]),
    (3, missing, ["cat", "{}/a.txt"]),
    (4, damaged, ["cat", "{}/a.txt"]),
    (5, encrypted, ["cat", "{}/a.txt"]),
    (6, archive, ["cat", "{}/b.txt"]),
    (0, archive, ["get", "{}"]),
    (3, missing, ["get", "{}"]),
    (4, damaged, ["get", "{}"]),
    (5, encrypted, ["get", "{}"]),
    (6, archive, ["get", "{}/b.txt"]),
    (8, escaping, ["get", "{}"]),
    (0, merged, ["fsck", "{}"]),
    (1, strange, ["status", "{}"]),
    (4, damaged, ["fsck", "--deep", "{}"]),
    (8, missing, ["fsck", "{}"]),
    (0, merged, ["status", "{}"]),
    (2, merged, ["status", "--every", "1s", "{}"]),
    (3, missing, ["status", "{}"]),
    (3, missing, ["doctor", "{}"]),
    (0, merged, ["find", "{}", "a.txt"]),
    (3, missing, ["find", "{}", "a.txt"]),
    (0, merged, ["find", "{}", "nothing"]),
    (0, archive, ["index", "{}"]),
    (3, missing, ["index", "{}"]),
    (0, source, ["put", "-r", "{}", "{up}/ar.zip/x/", "--base", "{up}"]),
    (7, missing, ["put", "{}", "{up}/ar.zip/x", "--base", "{up}"]),
    (0, used, ["run", "--base", "{}", "--into", "ar.zip/job", "--", "true"]),
    (127, used, ["run", "--base", "{}", "--into", "ar.zip/job", "--", "no-such-command-at-all"]),
    (0, no_directory, ["adopt", "{}", "{}/../base", "--into", "new.zip"]),
    (1, missing, ["adopt", "{}", "{}/../base", "--into", "new.zip"]),
    (0, merged, ["config", "{}"]),
    (2, misconfigured, ["config", "{}"]),
    (3, missing, ["config", "{}"]),
]


@pytest.mark.parametrize(
    ("status", "make", "arguments"), CASES, ids=[f"{case[2][0]}-{case[0]}-{case[1].__name__}" for case in CASES]
)
def test_a_command_ends_as_the_table_says(
    status: int, make: Callable[[Path], Path], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = [argument.replace("{}", str(path)).replace("{up}", str(tmp_path)) for argument in arguments]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == status, result.output
    assert status in exit_statuses.of_command(arguments[0])
    if status > 1:
        assert result.stderr.startswith(("rear: ", "Usage: ")) or "ar.zip" in result.stderr
        assert "Traceback" not in result.output


def test_the_table_is_of_commands_that_there_are() -> None:
    assert set(exit_statuses.COMMANDS) <= set(COMMANDS)
    for name, own in exit_statuses.COMMANDS.items():
        assert set(own) <= set(exit_statuses.MEANINGS), name
        tried = {case[0] for case in CASES if case[2][0] == name}
        assert not {number for number in tried if number not in exit_statuses.of_command(name)}


def test_closed_output_and_interrupts(tmp_path: Path) -> None:
    write_zip(tmp_path / "many.zip", {f"a-rather-long-name-of-a-member-{number}": b"" for number in range(20_000)})
    command = f'"{sys.executable}" -m rear ls "{tmp_path}/many.zip" | head -1 >/dev/null; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")


# --- wrong use ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["scavange"], "'scavenge'"),
        (["fskc"], "'fsck'"),
        (["scavenge", "--verfy"], "--verify"),
        (["staus"], "'status'"),
    ],
)
def test_the_nearest_command_or_option_is_suggested(arguments: list[str], suggestion: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert suggestion in result.stderr
    assert len(result.stderr.splitlines()) <= 5


def test_every_command_stands_once_in_the_help_with_an_example() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    for name, command in COMMANDS.items():
        if command.hidden:
            continue
        assert sum(line.startswith(f"  {name} ") for line in shown.splitlines()) == 1, name
        assert f"Example: rear {name}" in (command.help or ""), name
    assert "..." not in shown.partition("Options:")[2]
    assert len(shown.splitlines()) < 70


def test_commands_of_no_group_are_shown_all_the_same() -> None:
    assert list(page_of_help.grouped(["ls", "new", "scavenge"])) == [
        ("Merge", ["scavenge"]), ("Read", ["ls"]), (page_of_help.OTHERS, ["new"])
    ]  # fmt: skip
    listed = [name for names in page_of_help.GROUPS.values() for name in names]
    assert len(listed) == len(set(listed))


def test_help_and_version_load_neither_rich_nor_the_library_of_merges() -> None:
    code = (
        "import sys\nfrom rear.cli import main\nsys.argv = ['rear', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('rich', 'sqlite3', 'rear.scavenger.merge') if name in sys.modules])"
    )
    done = run_code(code, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_comes_with_the_versions_that_matter() -> None:
    from importlib.metadata import version

    done = run_rear("--version")
    first, *others = done.stdout.splitlines()
    assert (done.returncode, first) == (0, f"rear {rear.__version__}")
    found = {line[:17].strip(): line[17:].strip() for line in others}
    assert found["isal"] == version("isal")
    assert found["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["journal format"] == "1"
    assert set(found) > {"SQLite", "zipfile-deflate64", "zstandard", "intent format", "index schema", "platform"}


def test_what_is_not_installed_is_said_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from rear.cli.commands import version

    monkeypatch.setitem(version._EXTRAS, "no-such-package-at-all", "zstd")
    assert version._installed("no-such-package-at-all") == "not installed: pip install 'rear[zstd]'"


def test_help_to_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rear", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 3
    assert done.stderr.startswith("rear: ")
    assert len(done.stderr.splitlines()) == 1
