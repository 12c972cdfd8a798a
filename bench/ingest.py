"""One process writes many small files. Times include opening and closing what is written to."""

from __future__ import annotations

import os
import zipfile
from functools import partial
from pathlib import Path
from time import perf_counter

from bench.payload import names_and_contents
from bench.runner import Contender, Row
from rear import rear_fs, rear_open

_JOURNAL_RECORD = b"j" * 150
"""About as long as the record that rear journals for a file."""


class Ingest:
    """Ways to write the same ``count`` files."""

    def __init__(self, count: int) -> None:
        self.files = list(names_and_contents(count))

    def rear(self, folder: Path, *, compression: str) -> float:
        start = perf_counter()
        with rear_fs(folder, compression=compression):
            for name, content in self.files:
                with rear_open(f"ar.zip/{name}", "wb") as file:
                    file.write(content)
        return perf_counter() - start

    def zipfile(self, folder: Path, *, method: int) -> float:
        start = perf_counter()
        # Level 1 is the fastest of zlib, and the one that compares with ISA-L's.
        with zipfile.ZipFile(folder / "ar.zip", "w", method, compresslevel=1) as archive:
            for name, content in self.files:
                archive.writestr(name, content)
        return perf_counter() - start

    def plain_files(self, folder: Path) -> float:
        start = perf_counter()
        for directory in {os.path.dirname(name) for name, _ in self.files}:
            os.mkdir(folder / directory)
        prefix = f"{folder}/"
        for name, content in self.files:
            with open(prefix + name, "wb") as file:
                file.write(content)
        return perf_counter() - start

    def two_writes(self, folder: Path) -> float:
        """The least that a journal and an archive cost: two system calls a file."""
        start = perf_counter()
        archive = os.open(folder / "archive", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for _, content in self.files:
            os.write(journal, _JOURNAL_RECORD)
            os.write(archive, content)
        os.close(journal)
        os.close(archive)
        return perf_counter() - start


def rows(*, quick: bool) -> list[Row]:
    count = 5_000 if quick else 50_000
    ingest = Ingest(count)
    limits = [Contender("plain open()", ingest.plain_files), Contender("two bare os.write", ingest.two_writes)]
    return [
        Row(
            f"ingest {compression}",
            "µs a file",
            1e6 / count,
            [
                Contender("rear", partial(ingest.rear, compression=compression)),
                Contender(f"zipfile {compression}", partial(ingest.zipfile, method=method)),
                *limits,
            ],
        )
        for compression, method in [("stored", zipfile.ZIP_STORED), ("deflate", zipfile.ZIP_DEFLATED)]
    ]
