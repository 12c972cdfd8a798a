"""Bases: written, made again, scavenged, read; and the judge who says whether one is as it has to be."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rear
from rear.core.layout import Layout
from rear.core.storage import LOCAL
from rear.events import Event
from rear.journal.pending import with_notes
from rear.journal.reader import Journal, read_journal


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in memory where there is one: these tests sync thousands of times."""
    memory = "/dev/shm"
    where = memory if os.path.isdir(memory) and os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="rear-test-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put(fs: rear.RearFs, target: str, data: str | bytes, **options: Any) -> None:
    """Write one file."""
    with fs.open(target, "w" if isinstance(data, str) else "wb", **options) as file:
        file.write(data)


def write(base: Path, files: dict[str, bytes] | dict[str, str], **options: Any) -> None:
    """Write files, given by target; options are those of `rear.rear_fs`."""
    with rear.rear_fs(base, **options) as fs:
        for target, data in files.items():
            put(fs, target, data)


def renew(base: Path, template: Path) -> Path:
    """Make a folder a copy of another one, whatever it was."""
    shutil.rmtree(base, ignore_errors=True)
    return shutil.copytree(template, base, symlinks=True)


def scavenge(base: Path, **options: Any) -> list[Event]:
    """Scavenge and return all events."""
    return list(rear.scavenge(base, **options))


def of_kind(events: list[Event], *kinds: type[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kinds)]


def journals(base: Path) -> list[Journal]:
    """Return the journals of all pairs that wait."""
    return [read_journal(path) for path in sorted((base / ".rear" / "inbox").glob("*/*.journal"))]


_sound: set[bytes] = set()


def check_archive(path: Path) -> None:
    """Assert that an archive passes the tests of three independent programs."""
    digest = hashlib.blake2b(path.read_bytes()).digest()
    if digest in _sound:
        return
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    commands = [("unzip", ["-tq"]), ("7z", ["t", "-bso0", "-bsp0"])]
    for program, arguments in commands:
        if shutil.which(program) is not None:
            result = subprocess.run([program, *arguments, str(path)], capture_output=True, text=True, check=False)
            assert result.returncode == 0, f"{program}: {result.stdout}{result.stderr}"
    _sound.add(digest)


def contents(path: Path) -> list[tuple[str, bytes]]:
    """Return name and content of each member, in the order of the directory."""
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def members(base: Path, archive: str = "ar.zip") -> dict[str, bytes]:
    """Return what a sound archive holds; no name may be there twice."""
    check_archive(base / archive)
    found = contents(base / archive)
    assert len(found) == len(dict(found)), "a name is there twice"
    return dict(found)


def found_in(base: Path) -> dict[str, bytes]:
    """Return all members of all final archives, which are sound; none may be there twice."""
    found: dict[str, bytes] = {}
    for path in sorted(base.rglob("*.zip")):
        relative = path.relative_to(base)
        if ".rear" not in relative.parts:
            check_archive(path)
            for name, data in contents(path):
                target = f"{relative.as_posix()}/{name}"
                assert target not in found, f"{target} is there twice"
                found[target] = data
    return found


def files_below(folder: Path) -> list[str]:
    """Return the relative paths of all files in a tree."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def unfinished_graves(base: Path) -> list[str]:
    """Return the files of buried pairs that have members which are not merged."""
    folder = Layout(base).graveyard
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.glob("*/*.journal"))
        if with_notes(read_journal(path), path, storage=LOCAL).pending()
    ]


def check_base(
    base: Path,
    acknowledged: dict[str, bytes],
    *,
    perhaps: dict[str, bytes] | None = None,
    lost_and_found: bool = False,
    leftovers: bool = False,
) -> None:
    """Assert that a base is as a scavenge has to leave it.

    Args:
        base: the base; no worker writes to it.
        acknowledged: what has to be in the final archives, by target: exactly once, byte for byte, and nothing else.
        perhaps: what may be there too, once and whole: it was being written.
        lost_and_found: something may be there; otherwise it has to be empty.
        leftovers: files may be left in the inbox, for instance a journal whose worker died before it wrote a record.
    """
    perhaps = perhaps or {}
    found = found_in(base)
    missing = acknowledged.keys() - found.keys()
    extra = found.keys() - acknowledged.keys() - perhaps.keys()
    assert not missing, f"lost: {sorted(missing)}"
    assert not extra, f"not asked for: {sorted(extra)}"
    for target, data in found.items():
        expected = acknowledged[target] if target in acknowledged else perhaps[target]
        if data != expected:
            raise AssertionError(f"{target}: {len(data)} bytes {data[:60]!r}, not {len(expected)} {expected[:60]!r}")
    layout = Layout(base)
    for folder in (layout.claims, layout.intents):
        assert files_below(folder) == [], folder
    assert unfinished_graves(base) == []
    if not leftovers:
        assert files_below(layout.inbox) == []
    if not lost_and_found:
        assert files_below(layout.lost_and_found) == []
