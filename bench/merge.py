"""Ten temp archives become one final archive. rear syncs it to disk; of the others only "cat, fsync" does."""

from __future__ import annotations

import os
import subprocess
import zipfile
from functools import partial
from pathlib import Path
from time import perf_counter

import rear
from bench.payload import names_and_contents
from bench.runner import Contender, Row

_ARCHIVES = 10


class Merge:
    """Ways to merge ``count`` members that lie in ten archives."""

    def __init__(self, count: int) -> None:
        files = list(names_and_contents(count))
        self.parts = [files[first::_ARCHIVES] for first in range(_ARCHIVES)]
        self.count = count

    def rear(self, folder: Path, *, compression: str) -> float:
        for part in self.parts:
            with rear.rear_fs(folder, compression=compression):
                for name, content in part:
                    with rear.rear_open(f"ar.zip/{name}", "wb") as file:
                        file.write(content)
        os.sync()
        start = perf_counter()
        for _ in rear.scavenge(folder):
            pass
        seconds = perf_counter() - start
        self._check(folder / "ar.zip")
        return seconds

    def zipfile(self, folder: Path, *, method: int) -> float:
        sources = self._archives(folder, method)
        target = folder / "ar.zip"
        start = perf_counter()
        with zipfile.ZipFile(target, "w", method, compresslevel=1) as merged:
            for source in sources:
                with zipfile.ZipFile(source) as archive:
                    for info in archive.infolist():
                        merged.writestr(info, archive.read(info), method, 1)
        seconds = perf_counter() - start
        self._check(target)
        return seconds

    def cat(self, folder: Path, *, method: int, fsync: bool) -> float:
        """The bytes alone, no Zip: the limit of what a merge by copying can reach."""
        sources = self._archives(folder, method)
        start = perf_counter()
        with open(folder / "bytes", "wb") as target:
            subprocess.run(["cat", *sources], stdout=target, check=True)
            if fsync:
                os.fsync(target.fileno())
        return perf_counter() - start

    def _archives(self, folder: Path, method: int) -> list[Path]:
        sources = []
        for number, part in enumerate(self.parts):
            sources.append(folder / f"part{number}.zip")
            with zipfile.ZipFile(sources[-1], "w", method, compresslevel=1) as archive:
                for name, content in part:
                    archive.writestr(name, content)
        os.sync()
        return sources

    def _check(self, path: Path) -> None:
        """A merge that loses members is not fast, it is wrong."""
        with zipfile.ZipFile(path) as archive:
            found = len(set(archive.namelist()))
        if found != self.count:
            raise RuntimeError(f"{path.name} has {found} of {self.count} members")


def rows(*, quick: bool) -> list[Row]:
    merge = Merge(_ARCHIVES * (500 if quick else 5_000))
    return [
        Row(
            f"merge {compression}",
            "s",
            1,
            [
                Contender("rear", partial(merge.rear, compression=compression)),
                Contender("zipfile read, writestr", partial(merge.zipfile, method=method)),
                Contender("cat", partial(merge.cat, method=method, fsync=False)),
                Contender("cat, fsync", partial(merge.cat, method=method, fsync=True)),
            ],
        )
        for compression, method in [("stored", zipfile.ZIP_STORED), ("deflate", zipfile.ZIP_DEFLATED)]
    ]
