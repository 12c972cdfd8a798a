"""Processes of rear run rear's modules, whatever the current folder holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rear.core.python import python_command


def test_modules_of_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    for name in ("random", "json", "typer", "rear", "runpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')\n")
    done = subprocess.run(
        python_command("rear", "--version"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_scavenger_beside_a_program_imports_nothing_of_the_current_folder(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    (tmp_path / "here").mkdir()
    program.write_text("import rear\nwith rear.scavengerd('base'): pass\nprint('done')\n")
    (tmp_path / "here/random.py").write_text("raise SystemExit('imported from the current folder')\n")
    command = [sys.executable, str(program)]
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")
