"""Shell completion, asked as shells ask: a real bash runs the function that is installed; zsh and fish by protocol."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rear.cli.completion import ANSWERS_LIMIT, _common, _for_shell, members_below

MEMBERS = ["logs/a.txt", "logs/b.txt", "logs/deep/c d.txt", "logs/deep/e.txt", "notes.txt", "one/two/three.txt"]
EVIL = [
    "logs/$(touch pwned)",
    "logs/`touch pwned`",
    "logs/a;touch pwned",
    "logs/x\ny",
    "logs/\x1b[31m",
    'logs/a"b',
    "logs/*",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an archive, and a ``rear`` to be found on the path."""
    with zipfile.ZipFile(tmp_path / "ar.zip", "w") as archive:
        archive.mkdir("logs")
        for name in MEMBERS + EVIL:
            archive.writestr(name, b"x")
    (tmp_path / "no.zip").write_bytes(b"no Zip file" * 100)
    program = tmp_path / "bin/rear"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rear "$@"\n')
    program.chmod(0o755)
    return tmp_path


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **more}


BASH = r"""
eval "$(_REAR_COMPLETE=source_bash rear)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_rear_completion rear
[ ${#COMPREPLY[@]} -eq 0 ] || printf '%s\n' "${COMPREPLY[@]}"
"""


def bash(folder: Path, *words: str) -> list[str]:
    """Words as the line has them, quotes and backslashes included; the last one is completed."""
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", *words],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def by_protocol(folder: Path, shell: str, line: str) -> str:
    variables = {"_REAR_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
    if shell == "fish":
        variables["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    done = subprocess.run(
        ["rear"], cwd=folder, env=environment(folder, **variables), capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@needs_bash
def test_bash_completes_commands_options_and_members(folder: Path) -> None:
    assert bash(folder, "rear", "sca") == ["scavenge"]
    assert bash(folder, "rear", "scavenge", "--ver") == ["--verify"]
    assert bash(folder, "rear", "cat", "ar.zip/lo") == ["ar.zip/logs/a.txt", "ar.zip/logs/b.txt", "ar.zip/logs/deep/"]
    assert bash(folder, "rear", "get", f"{folder}/ar.zip/n") == [f"{folder}/ar.zip/notes.txt"]
    # Outside of archives the shell's own completion is better.
    assert bash(folder, "rear", "cat", "a") == []
    assert bash(folder, "rear", "ls", "ar.zip") == []
    assert bash(folder, "rear", "cat", "no.zip/x") == []
    assert bash(folder, "rear", "cat", "none.zip/x") == []


@needs_bash
def test_bash_gets_words_that_it_reads_as_the_name(folder: Path) -> None:
    for typed in ("ar.zip/logs/deep/c", r"ar.zip/logs/deep/c\ d"):
        (answer,) = bash(folder, "rear", "cat", typed)
        assert shlex.split(answer) == ["ar.zip/logs/deep/c d.txt"]
    assert bash(folder, "rear", "cat", "'ar.zip/logs/deep/c d") == ["ar.zip/logs/deep/c d.txt"]


@needs_bash
def test_patterns_after_an_archive_are_relative_to_it(folder: Path) -> None:
    assert bash(folder, "rear", "ls", "ar.zip", "logs/deep/e") == ["logs/deep/e.txt"]


@needs_bash
def test_bash_in_a_terminal_completes_a_line_and_runs_it(folder: Path) -> None:
    import pty
    import select

    variables = environment(folder, PS1="$ ", TERM="dumb")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], variables)
    seen = b""

    def read_until(mark: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while mark not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 65536)

    try:
        os.write(terminal, b'eval "$(_REAR_COMPLETE=source_bash rear)"; echo rea""dy\n')
        read_until(b"\nready\r\n$ ")
        os.write(terminal, b"rear cat ar.zip/one\t")
        read_until(b"one/two/three.txt ")
        os.write(terminal, b"; echo status=$?\n")
        read_until(b"xstatus=0")
    finally:
        os.close(terminal)
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_zsh_and_fish(folder: Path) -> None:
    found = by_protocol(folder, "zsh", "rear cat ar.zip/logs/")
    assert found.strip() == """_arguments '*: :(("ar.zip/logs/a.txt"\n"ar.zip/logs/b.txt"\n"ar.zip/logs/deep/"))'"""
    assert by_protocol(folder, "zsh", "rear cat none").strip() == "_files"
    assert by_protocol(folder, "fish", "rear cat ar.zip/logs/").splitlines() == [
        "ar.zip/logs/a.txt", "ar.zip/logs/b.txt", "ar.zip/logs/deep/"
    ]  # fmt: skip
    assert by_protocol(folder, "fish", "rear cat ar.zip/logs/deep/").splitlines()[0] == "ar.zip/logs/deep/c d.txt"
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            ["rear"],
            env=environment(folder, _REAR_COMPLETE=f"source_{shell}"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "_REAR_COMPLETE" in done.stdout, shell
        checker = shutil.which(shell)
        if checker is not None:
            subprocess.run([checker, "-n"], input=done.stdout, text=True, check=True, timeout=60)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_names_on_which_a_shell_could_act_are_not_offered(folder: Path, shell: str) -> None:
    if shell == "bash":
        found = "\n".join(bash(folder, "rear", "cat", "ar.zip/logs/"))
    else:
        found = by_protocol(folder, shell, "rear cat ar.zip/logs/")
    assert "a.txt" in found
    assert not set("$`;\x1b*") & set(found.removeprefix("_arguments '*: :"))
    assert "touch" not in found
    assert not (folder / "pwned").exists()


# --- which names --------------------------------------------------------------------------------------------------


def test_a_folder_that_is_the_only_answer_is_opened() -> None:
    assert members_below("", ["a/b/c/x", "a/b/c/y"]) == ["a/b/c/x", "a/b/c/y"]
    assert members_below("", ["a/b/c/x", "a/b/y"]) == ["a/b/c/", "a/b/y"]
    assert members_below("a", ["a/b/c/x", "ab"]) == ["a/", "ab"]
    assert members_below("a/", ["a/", "a/b/", "a/b/x"]) == ["a/b/x"]
    assert members_below("z", ["a"]) == []


names = st.lists(st.text("ab/", min_size=1, max_size=8).filter(lambda name: "//" not in name), max_size=12)


@given(names, st.text("ab/", max_size=3))
def test_every_answer_leads_to_a_member_and_every_member_is_led_to(names: list[str], typed: str) -> None:
    wanted = [name for name in names if name.startswith(typed) and name != typed and not name.endswith("/")]
    found = members_below(typed, names)
    assert len(found) == len(set(found))
    for answer in found:
        assert answer.startswith(typed)
        assert answer in wanted or (answer.endswith("/") and any(name.startswith(answer) for name in wanted))
    for name in wanted:
        assert sum(name == answer or (answer.endswith("/") and name.startswith(answer)) for answer in found) == 1
    # A single answer is a member: a shell puts a space behind it.
    assert len(found) != 1 or found[0] in wanted


@pytest.mark.parametrize(("last", "shared"), [("file-1", "file-"), ("fi", "fi"), ("other", "")])
def test_many_answers_are_cut_and_still_have_the_common_beginning_of_all(last: str, shared: str) -> None:
    members = [f"logs/file-{number:07}" for number in range(100_000)] + [f"logs/{last}"]
    found = members_below("lo", members)
    assert ANSWERS_LIMIT <= len(found) <= ANSWERS_LIMIT + 5
    assert _common(found) == _common(members) == f"logs/{shared}"


def test_an_archive_that_takes_too_long_is_not_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rear.cli.completion.LIMIT_SECONDS", -1.0)
    assert members_below("", ["a", "b"]) == []


def test_what_is_escaped_for_which_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_REAR_COMPLETE", "complete_zsh")
    assert _for_shell("a b") == "a b"
    monkeypatch.setenv("_REAR_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "rear\ncat\na")
    assert _for_shell("a b^c") == "a\\ b\\^c"
    monkeypatch.setenv("COMP_WORDS", 'rear\ncat\n"a')
    assert _for_shell("a b") == "a b"
