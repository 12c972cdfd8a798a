"""A merge that goes as far as a test lets it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from rear.core.layout import Layout
from rear.journal.intent import Begin, Move, commit_intent, write_intent
from rear.read.view import directory_of

MOVES = [Move("h/w-1-1", 1, "new", 0, 100)]


def write_zip(path: Path, *members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, f"content of {name}")
    return path


class Base:
    """A base with one final archive, and a merge into it that goes as far as a test lets it."""

    def __init__(self, folder: Path, *members: str) -> None:
        self.layout = Layout(folder)
        self.layout.intents.mkdir(parents=True)
        self.path = write_zip(folder / "ar.zip", *members) if members else folder / "ar.zip"
        self.intent = self.layout.intent("ar.zip")

    def begin(self) -> None:
        """Write the intent, and then over the directory, as a merge does."""
        old = descriptor = None
        if self.path.exists():
            old = directory_of(self.path)
            descriptor = os.open(self.path, os.O_RDONLY)
        self.writer = write_intent(self.intent, Begin("ar.zip", "me", old), MOVES, archive_descriptor=descriptor)
        if descriptor is not None:
            os.close(descriptor)
        with open(self.path, "r+b" if old else "wb") as file:
            file.seek(old.offset if old else 0)
            file.write(b"half of a member " * 1000)

    def commit(self) -> None:
        write_zip(self.path, "old", "new")
        commit_intent(self.writer)

    def end(self) -> None:
        self.writer.close()
        self.intent.unlink()
