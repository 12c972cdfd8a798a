"""Jobs that write files: rear, and what one would use instead. Times are from the first opening to the last closing.

``acknowledged_seconds`` is the moment at which the last file was written and closed. For rear, what comes after it is
the last fsync of archive and journal; the others leave that to the kernel, unless they say so.
"""

from __future__ import annotations

import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

from bench import data
from bench.job import Stopwatch, fork_workers
from rear import rear_fs, rear_open

_JOURNAL_RECORD = b"j" * 150
"""About as long as the record that rear journals for a small file."""
_ACKNOWLEDGED = "acknowledged_seconds"
_PIECE_BYTES = 1 << 20

Files = Sequence[tuple[str, bytes]]


def files_of(kind: str, count: int) -> Files:
    """Return files to write: ``small``, ``few folders`` (small, too), ``log`` (5 MB each), ``noise`` (100 MB each)."""
    if kind in ("small", "few folders"):
        return list(data.small_files(count, folders=256 if kind == "small" else 4))
    if kind == "log":
        return [(f"log-{number}.txt", data.text(5_000_000, number)) for number in range(count)]
    noise = data.noise(100_000_000, 0)
    return [(f"noise-{number}.bin", noise) for number in range(count)]


def _pieces(content: bytes) -> Iterator[bytes | memoryview]:
    """Yield contents as a program writes them: small ones at once, large ones in pieces."""
    if len(content) <= _PIECE_BYTES:
        yield content
        return
    view = memoryview(content)
    for start in range(0, len(view), _PIECE_BYTES):
        yield view[start : start + _PIECE_BYTES]


def write_with_rear(stopwatch: Stopwatch, *, folder: str, kind: str, count: int, compression: str) -> None:
    files = files_of(kind, count)
    with stopwatch, rear_fs(folder, compression=compression):
        _write_members(files)
        stopwatch.lap(_ACKNOWLEDGED)


def _write_members(files: Files) -> None:
    for name, content in files:
        with rear_open(f"ar.zip/{name}", "wb") as file:
            for piece in _pieces(content):
                file.write(piece)


def write_plain_files(stopwatch: Stopwatch, *, folder: str, kind: str, count: int) -> None:
    files = files_of(kind, count)
    with stopwatch:
        _write_plain(folder, files)
        stopwatch.lap(_ACKNOWLEDGED)


def _write_plain(folder: str, files: Files) -> None:
    for directory in {os.path.dirname(name) for name, _ in files}:
        os.makedirs(os.path.join(folder, directory), exist_ok=True)
    prefix = f"{folder}/"
    for name, content in files:
        with open(prefix + name, "wb") as file:
            for piece in _pieces(content):
                file.write(piece)


def write_with_zipfile(stopwatch: Stopwatch, *, folder: str, kind: str, count: int, method: int, level: int) -> None:
    files = files_of(kind, count)
    path = Path(folder, "ar.zip")
    with stopwatch, zipfile.ZipFile(path, "w", method, compresslevel=level) as archive:
        for name, content in files:
            archive.writestr(name, content)
        stopwatch.lap(_ACKNOWLEDGED)


def write_with_tarfile(stopwatch: Stopwatch, *, folder: str, kind: str, count: int) -> None:
    files = files_of(kind, count)
    with stopwatch, tarfile.open(Path(folder, "ar.tar"), "w") as archive:
        for name, content in files:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, BytesIO(content))
        stopwatch.lap(_ACKNOWLEDGED)


def write_bare(stopwatch: Stopwatch, *, folder: str, kind: str, count: int, sync: bool) -> None:
    """The least that an archive and a journal cost: two system calls a file, and no Zip."""
    files = files_of(kind, count)
    with stopwatch:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        archive, journal = os.open(f"{folder}/archive", flags), os.open(f"{folder}/journal", flags)
        for _, content in files:
            os.write(journal, _JOURNAL_RECORD)
            os.write(archive, content)
        stopwatch.lap(_ACKNOWLEDGED)
        for descriptor in (journal, archive):
            if sync:
                os.fsync(descriptor)
            os.close(descriptor)


def write_with_threads(stopwatch: Stopwatch, *, folder: str, count: int, threads: int, writer: str) -> None:
    """Write the same files by several threads of one process, by ``rear`` or by ``plain``."""
    parts = _parts(count, threads)
    with stopwatch:
        if writer == "plain":
            _run_threads([partial(_write_plain, folder, part) for part in parts])
        else:
            with rear_fs(folder, compression="stored"):
                _run_threads([partial(_write_members, part) for part in parts])


def write_with_processes(stopwatch: Stopwatch, *, folder: str, count: int, processes: int, writer: str) -> None:
    """Write the same files by several processes, by ``rear`` or by ``plain``."""
    parts = _parts(count, processes)
    with stopwatch:
        if writer == "plain":
            fork_workers(processes, lambda worker: write_part_plainly(folder, parts[worker]))
        else:
            fork_workers(processes, lambda worker: write_part_with_rear(folder, parts[worker], compression="stored"))


def write_part_with_rear(folder: str, files: Files, *, compression: str = "deflate") -> None:
    """Be one worker; not measured by itself."""
    with rear_fs(folder, compression=compression):
        _write_members(files)


def write_part_plainly(folder: str, files: Files) -> None:
    """Be one process that writes plain files; not measured by itself."""
    _write_plain(folder, files)


def _parts(count: int, parts: int) -> list[Files]:
    files = list(data.small_files(count))
    return [files[first::parts] for first in range(parts)]


def _run_threads(functions: Sequence[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def write_rotating(stopwatch: Stopwatch, *, folder: str, count: int, rotation_bytes: int) -> None:
    """Write small files so that a new temp archive begins each time that one holds so many bytes of content."""
    files = list(data.small_files(count))
    with stopwatch, rear_fs(folder, compression="stored", rotation_size=rotation_bytes):
        _write_members(files)
    stopwatch.note("temp_archives", sum(1 for _ in Path(folder, ".rear/inbox").rglob("*.zip")))
