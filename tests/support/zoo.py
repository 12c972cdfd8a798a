"""Zip files from many writers, for the tests that read archives which rear did not make; see ``tools/make_zoo.py``."""

from __future__ import annotations

import importlib.util
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import make_zoo
from make_zoo import STUB, MissingProgramError

__all__ = ["CONTENTS", "STUB", "WRITERS", "make", "run", "tool", "write_tree"]

CONTENTS = {
    "empty": b"",
    "short.txt": b"hello\n",
    "logs/numbers": b"".join(b"%d\n" % number for number in range(30_000)),
    "logs/noise.bin": random.Random(5).randbytes(70_000),
}
#: Those of the zoo that add nothing of their own, and that Python's zipfile reads too, or an external program does.
WRITERS = (
    "zipfile", "zipfile-stored", "zipfile-bzip2", "zipfile-lzma", "zipfile-zip64", "zipfile-comment", "zipfile-stream",
    "zipfile-stream-stored",
    "zip", "zip-stored", "zip-zip64", "zip-stream", "zip-bzip2", "zip-prefix", "zip-prefix-adjusted",
    "7z", "7z-deflate64", "7z-bzip2", "7z-lzma", "bsdtar", "bsdtar-stored",
    "bytes-bare-8", "bytes-signature64-8", "bytes-zip64", "bytes-zstd",
)  # fmt: skip


def tool(name: str) -> str:
    """Return the path of an external program, or skip the test."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*arguments: str | Path, cwd: Path | None = None, stdin: bytes | None = None) -> bytes:
    """Run a program that has to succeed; return what it wrote."""
    result = subprocess.run(list(map(str, arguments)), cwd=cwd, input=stdin, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def write_tree(folder: Path) -> Path:
    """Write `CONTENTS` as files."""
    return make_zoo.write_tree(folder, CONTENTS)


def needs_deflate64() -> None:
    """Skip a test where its decoder, an extra that is compiled, is not installed; importing it patches zipfile."""
    if importlib.util.find_spec("zipfile_deflate64") is None:
        pytest.skip("needs the extra rear[deflate64]")


def make(writer: str, folder: Path) -> Path:
    """Return an archive of `CONTENTS` from one of `WRITERS`; skip the test when the program is missing."""
    target = folder / f"{writer}.zip"
    try:
        target.write_bytes(make_zoo.make(writer, CONTENTS))
    except MissingProgramError as error:
        pytest.skip(str(error))
    return target
