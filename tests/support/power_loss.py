"""A storage that knows what is on stable storage, and loses power."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bases import renew, scavenge
from faults import SEED, Point, Tampered, after, in_child, some

from rear.core.storage import Storage

BLOCK_BYTES = 512
OFF = 99


class Powered(Tampered):
    """Knows what is on stable storage; ``lose_power`` leaves behind a folder with what may have survived.

    Args:
        disk: the folder whose contents matter; everything in it counts as synced at the beginning.
    """

    def __init__(self, disk: Path, act: Callable[[Point, str], None] = lambda point, path: None) -> None:
        super().__init__(act)
        self.disk = disk
        #: Which file has which name now, and which had it at the beginning; folders are None.
        self.entries: dict[str, int | None] = {}
        self.synced: dict[int, bytes] = {}
        self.last: dict[int, bytes] = {}
        for path in sorted(disk.rglob("*")):
            number = None if path.is_dir() else len(self.synced)
            self.entries[str(path)] = number
            if number is not None:
                self.synced[number] = path.read_bytes()
        self.begin = dict(self.entries)
        self.changes: list[tuple[str, str, int | None]] = []
        self.certain = 0

    def _is_mine(self, path: object) -> bool:
        return str(path).startswith(f"{self.disk}/")

    def _change(self, source: str, target: str, number: int | None = None) -> None:
        """Note that a name was added (no source), removed (no target) or changed."""
        self.changes.append((source, target, number))
        apply(self.entries, self.changes[-1])

    def _keep(self, path: object) -> None:
        number = self.entries.get(str(path))
        if number is not None:
            self.last[number] = Path(str(path)).read_bytes()

    def create(self, path: Any, mode: int = 0o666) -> int:
        descriptor = super().create(path, mode)
        if self._is_mine(path):
            self.synced[len(self.synced)] = b""
            self._change("", str(path), len(self.synced) - 1)
        return descriptor

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        number = self.entries.get(os.readlink(f"/proc/self/fd/{descriptor}"))
        if number is not None:
            self.synced[number] = os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def sync_directory(self, path: Any) -> None:
        super().sync_directory(path)
        for number, (source, target, _) in enumerate(self.changes):
            if str(path) in (os.path.dirname(source), os.path.dirname(target)):
                self.certain = max(self.certain, number + 1)

    def rename(self, source: Any, target: Any) -> None:
        self._keep(target)
        super().rename(source, target)
        if self._is_mine(source):
            self._change(str(source), str(target))

    def link(self, source: Any, target: Any) -> bool:
        linked = super().link(source, target)
        if linked and self._is_mine(target):
            self._change("", str(target), self.entries[str(source)])
        return linked

    def unlink(self, path: Any) -> None:
        self._keep(path)
        super().unlink(path)
        if self._is_mine(path):
            self._change(str(path), "")

    def remove_directory(self, path: Any) -> None:
        super().remove_directory(path)
        if self._is_mine(path):
            self._change(str(path), "")

    def make_directories(self, path: Any, *, sync: bool = True) -> None:
        folder = Path(path)
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            self._begin("mkdir", folder)
            os.mkdir(folder)
            self._change("", str(folder))
            if sync:
                self.sync_directory(folder.parent)

    def lose_power(self, target: Path, chance: random.Random) -> None:
        """Write a state that the disk may be in now."""
        kept = chance.choice([self.certain, len(self.changes), chance.randint(self.certain, len(self.changes))])
        names = dict(self.begin)
        for change in self.changes[:kept]:
            apply(names, change)
        now = {number: path for path, number in self.entries.items() if number is not None}
        for path, number in sorted(names.items()):
            survivor = target / os.path.relpath(path, self.disk)
            if number is None:
                survivor.mkdir(parents=True, exist_ok=True)
                continue
            synced = self.synced[number]
            current = Path(now[number]).read_bytes() if number in now else self.last[number]
            survivor.parent.mkdir(parents=True, exist_ok=True)
            survivor.write_bytes(synced if synced == current else mixed(synced, current, chance))


def apply(names: dict[str, int | None], change: tuple[str, str, int | None]) -> None:
    source, target, number = change
    if not source:
        names[target] = number
    elif not target:
        del names[source]
    elif source in names and names[source] is not None:
        names[target] = names.pop(source)
    else:
        for name in [name for name in names if name == source or name.startswith(f"{source}/")]:
            names[target + name[len(source) :]] = names.pop(name)


def mixed(synced: bytes, current: bytes, chance: random.Random) -> bytes:
    """Return what may be left of a file that was changed after its last sync."""
    kind = chance.randrange(4)
    if kind < 2:
        return (synced, current)[kind]
    length = chance.choice([len(synced), len(current), chance.randint(*sorted((len(synced), len(current))))])
    parts = []
    for start in range(0, length, BLOCK_BYTES):
        end = min(length, start + BLOCK_BYTES)
        old, new = synced[start:end], current[start:end]
        # What lies beyond the end of the one that was chosen is zeros.
        part = chance.choice([old, new, new] if old else [new, new, b""])
        parts.append(part.ljust(end - start, b"\0"))
    return b"".join(parts)


def run_until(
    point: Point, disk: Path, left: Path, work: Callable[[Any], object], seed: int, kind: type[Powered] = Powered
) -> int:
    """Run in a child process until the power goes at one point, and leave what survives in ``left``."""

    def child() -> None:
        storage = kind(disk)

        def act(found: Point, path: str) -> None:
            if found[::2] == point[::2]:
                storage.lose_power(left, random.Random(f"{SEED} {point} {seed}"))
                os._exit(OFF)

        storage.act = act
        work(storage)
        # The number of operations of the background thread varies.
        storage.lose_power(left, random.Random(seed))

    ended = in_child(child)
    assert ended in (0, OFF)
    return ended


def lose_power_at_each(
    template: Path, work: Callable[[Path, Storage], object], judge: Callable[[Path], object], *, points: int, seeds: int
) -> int:
    """Let the power go at some points of what is done to a copy of a base, and judge what is left, several times each.

    Returns:
        How many times that was.
    """
    disk, left = template.with_name("disk"), template.with_name("left")

    def renew_disk() -> None:
        shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(disk, ignore_errors=True)
        renew(disk / "base", template)

    renew_disk()
    counting = Powered(disk)
    work(disk / "base", counting)
    chosen = some(counting.points, points)
    for point in chosen:
        for seed in range(seeds):
            renew_disk()
            run_until(point, disk, left, lambda storage: work(disk / "base", storage), seed)
            with after(f"power lost at {point}, seed {seed}"):
                judge(left / "base")
    return len(chosen) * seeds


def scavenge_on(base: Path, storage: Storage) -> None:
    scavenge(base, storage=storage)
