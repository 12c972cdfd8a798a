"""What `rear ls`, `cat` and `get` are asked, and what they show."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

from typer.testing import CliRunner

from rear.cli.app import app
from rear.core.records import Abort, Append, Close, Open
from rear.errors import RearError
from rear.journal.writer import JournalWriter

NOW = 1_700_000_000


class Result:
    """What a command left: exit status, standard output, standard error."""

    def __init__(self, *arguments: str | Path) -> None:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        self.out, self.err = result.stdout_bytes.decode("utf-8", "replace"), result.stderr
        error = result.exception
        if error is not None and not isinstance(error, (SystemExit, RearError, OSError)):
            raise error
        self.error = None if isinstance(error, SystemExit) else error
        self.status = result.exit_code
        if isinstance(error, (RearError, OSError)):
            # As main() does.
            self.status = getattr(error, "exit_status", 3)
            self.err += str(error)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def info(name: str, mode: int = 0o100644, second: int = NOW) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name, time.localtime(second)[:6])
    made.external_attr = mode << 16
    made.create_system = 3
    return made


def write_zip(path: Path, *members: str | tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            name, data = member if isinstance(member, tuple) else (member, f"content of {member}".encode())
            archive.writestr(info(name) if isinstance(name, str) else name, data)
    return path


def append(sequence: int, archive: str, name: str) -> Append:
    return Append(sequence, None, 0, 5, 0, 100, archive, name, 0, 0, 5, 5, NOW * 10**9, 0o644)


def write_journal(path: Path, *records: Open | Append | Abort | Close) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = Open(1, "host", "w-1", 1, 5, 7, None, None, None, 0, 10.0, 0)
    writer = JournalWriter(os.open(path, os.O_RDWR | os.O_CREAT))
    for record in (opened, *records):
        writer.append(record)
    writer.close()
