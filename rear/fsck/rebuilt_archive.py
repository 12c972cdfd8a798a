"""A rebuilt archive that takes the place of a damaged one: written aside, synced, read back, and only then renamed.

Write order, so that at no instant there is less than before. A is the archive, N the new one.

    1. what does not get into N is put aside, with notes, and synced
    2. N is written under a name of its own, with owner and mode of A, and synced
    3. N is read back, all of it, and compared with what was to be written (`rear.salvage.read_back`)
    4. A gets a second name (a copy, where the file system has no hard links); folder synced
    5. N is renamed to its place; folder synced

A crash before 5 leaves A as it was, and perhaps N under its own name. Step 4 is the caller's, and what has to be sure
before it: one archive alone is kept beside N (`rear.fsck.archive`); one of a base is kept in lost+found, and the leader
proves that it still leads (`rear.fsck.restore`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple, Self

from rear.core.problems import Problem
from rear.core.storage import Storage, StrPath, close_read, opened
from rear.errors import UnsupportedError
from rear.salvage import info_zip
from rear.salvage.read_back import why_wrong
from rear.salvage.rebuild import Rebuilt, rebuild
from rear.salvage.rebuilt_names import KnownMember
from rear.scavenger.lost_and_found import LostAndFound


class _Aside(NamedTuple):
    """Keeps what does not get into a new archive for those who may read the old one."""

    lost_and_found: LostAndFound
    original: int

    def put_bytes(self, name: str, descriptor: int | None, start: int, length: int, note: dict[str, Any]) -> str:
        return self.lost_and_found.put_bytes(name, descriptor, start, length, note)

    def takes_decoded(self, size: int, compressed_size: int) -> bool:
        return self.lost_and_found.takes_decoded(size, compressed_size)

    def put_content(self, name: str, content: Iterable[bytes], note: dict[str, Any]) -> str:
        return self.lost_and_found.put_content(name, content, note, source=self.original)


@dataclass
class RebuiltArchive:
    """A new archive; use it as a context manager: what has no place at the end is removed.

    Args:
        path: the damaged archive.
        fresh: where the new one is written; nobody else uses this name.
        subject: what problems call the archive.
        keep_aside: takes what does not get into the new archive.
        known: returns what an index says of the member at an offset of the old archive.
        item_prefix: what names of items given to ``keep_aside`` begin with.
        storage: the file system.

    Attributes:
        original: the damaged archive, open.
        wrong: where the new archive is not what was to be written; ``None`` if it is, or has no members.
    """

    path: StrPath
    fresh: StrPath
    _: KW_ONLY
    subject: str
    keep_aside: LostAndFound
    known: Callable[[int], KnownMember | None] | None = None
    item_prefix: str = ""
    storage: Storage
    original: int = field(init=False)
    wrong: str | None = field(init=False, default=None)
    _is_begun: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.original = self.storage.open(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._remove()
        finally:
            close_read(self.original, self.storage)

    def build(self, source: int, tell: Callable[[Problem], None]) -> Rebuilt:
        """Write the members of a damaged archive, sync the new one and read it back; what was written before goes.

        Args:
            source: the damaged archive, or what another program has made of it, open.
            tell: takes what is not as it should be.

        Raises:
            UnsupportedError: the archive is split into volumes.
            OSError: one of the files cannot be read or written.
        """
        storage = self.storage
        self._remove()
        # Before there is anything to remove: it may be interrupted at any instant.
        self._is_begun = True
        try:
            target = storage.create(self.fresh, 0o600)
        except FileExistsError:
            self._is_begun = False
            raise
        try:
            storage.copy_owner_and_mode(self.original, target)
            work = rebuild(
                source,
                target=target,
                keep_aside=_Aside(self.keep_aside, self.original),
                subject=self.subject,
                known=self.known,
                item_prefix=self.item_prefix,
                storage=storage,
            )
            rebuilt = run_rebuild(work, tell)
            storage.sync(target)
        finally:
            storage.close(target)
        wrong = why_wrong(self.fresh, rebuilt.written, source=source, storage=storage) if rebuilt.members else None
        self.wrong = wrong
        return rebuilt

    def build_by_zip(self, folder: StrPath, tell: Callable[[Problem], None]) -> tuple[Rebuilt | None, str]:
        """Let ``zip -FF`` try, in ``folder``; what it makes is scanned, and checked, like the archive itself.

        Returns:
            what came of it, ``None`` where ``zip`` has made nothing; and why it could not be tried, if so.

        Raises:
            UnsupportedError, OSError: as of `build`.
        """
        try:
            fixed = info_zip.fix(self.path, folder, storage=self.storage)
        except UnsupportedError as error:
            return None, str(error)
        if fixed is None:
            return None, ""
        try:
            with opened(fixed, self.storage) as descriptor:
                return self.build(descriptor, tell), ""
        finally:
            self.storage.unlink(fixed)

    def install(self, path: StrPath) -> None:
        """Give the new archive its name, whatever has it now."""
        self.storage.rename(self.fresh, path)
        self._is_begun = False
        self.storage.sync_directory(os.path.dirname(path))

    def _remove(self) -> None:
        if self._is_begun:
            with contextlib.suppress(FileNotFoundError):
                self.storage.unlink(self.fresh)
            self._is_begun = False


def run_rebuild(work: Generator[Problem, None, Rebuilt], tell: Callable[[Problem], None]) -> Rebuilt:
    """Run a rebuild to its end; ``tell`` takes its problems."""
    while True:
        try:
            tell(next(work))
        except StopIteration as end:
            rebuilt: Rebuilt = end.value
            return rebuilt
