"""Zip files from many writers, for the tests that read archives which rear did not make."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import IO, Any

import pytest

CONTENTS = {
    "empty": b"",
    "short.txt": b"hello\n",
    "logs/numbers": b"".join(b"%d\n" % number for number in range(30_000)),
    "logs/noise.bin": random.Random(5).randbytes(70_000),
}
STUB = b'#!/bin/sh\nexec unzip -q "$0"\n' + b"#" * 3000 + b"\n"
WRITERS = (
    "zipfile", "zipfile-stored", "zipfile-bzip2", "zipfile-lzma", "zipfile-zip64", "zipfile-comment", "zipfile-stream",
    "zip", "zip-zip64", "zip-stream", "zip-prefix", "zip-prefix-adjusted",
    "7z", "7z-deflate64", "7z-bzip2", "7z-lzma", "bsdtar",
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
    for name, data in CONTENTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def make(writer: str, folder: Path) -> Path:
    """Return an archive of `CONTENTS` from one of `WRITERS`; skip the test when the program is missing."""
    target = folder / f"{writer}.zip"
    program, _, variant = writer.partition("-")
    if program == "zipfile":
        _make_with_zipfile(target, variant)
        return target
    tree = write_tree(folder / "tree")
    if program == "zip":
        options = {"zip64": ["-fz"], "stream": ["-fd"]}.get(variant, [])
        run(tool("zip"), "-qr", *options, target, *sorted(os.listdir(tree)), cwd=tree)
        if variant.startswith("prefix"):
            target.write_bytes(STUB + target.read_bytes())
        if variant == "prefix-adjusted":
            run("zip", "-qA", target)
    elif program == "7z":
        method = {"deflate64": "Deflate64", "bzip2": "BZip2", "lzma": "LZMA"}.get(variant, "Deflate")
        run(tool("7z"), "a", "-bd", f"-mm={method}", target, ".", cwd=tree)
    else:
        run(tool("bsdtar"), "--format", "zip", "-cf", target, *sorted(os.listdir(tree)), cwd=tree)
    return target


def _make_with_zipfile(target: Path, variant: str) -> None:
    method = {
        "stored": zipfile.ZIP_STORED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA,
    }.get(variant, zipfile.ZIP_DEFLATED)  # fmt: skip
    with (
        open(target, "wb") as file,
        zipfile.ZipFile(Unseekable(file) if variant == "stream" else file, "w", method) as archive,
    ):
        for name, data in CONTENTS.items():
            with archive.open(name, "w", force_zip64=variant == "zip64") as member:
                member.write(data)
        if variant == "comment":
            archive.comment = b"a comment with PK\x01\x02 in it" + bytes(30)


class Unseekable(io.RawIOBase):
    """Like a pipe: zipfile then writes data descriptors."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._target.write(data)
