"""A lost+found: where bytes go that cannot be placed, instead of being deleted. Each item has a JSON note that says
what it is.

An item has the name of its temp archive and sequence number, so putting the same thing aside again after a crash
replaces it: the same note tells that it is the same. Nothing else is ever replaced: another item of that name gets a
number.

Items and notes belong to whoever wrote what is in them, as far as that can be, and are open to nobody else than that
was. Nobody may write them, or rename them but for who has put them there: a file of root's with content that a stranger
chose would be an intent in the right place.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from rear.core.descent import status_of
from rear.core.layout import Layout, make_in_base
from rear.core.names import host_folder
from rear.core.records import Pair
from rear.core.storage import FRESH_SUFFIX, Storage, created, opened
from rear.core.trust import is_private
from rear.scavenger.owners import OwnerBudget
from rear.zip.codecs import crc32
from rear.zip.headers import Member, encode_central_entry, encode_end
from rear.zip.member_data import raw_bytes

_WRITE_OF_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_READ_ONLY: Final = 0o444
DECODED_FACTOR: Final = 16
"""What decodes to more than so many times its length is a bomb, or might be one."""
DECODED_BYTES: Final = 256 << 20
"""So much of it is kept decoded all the same, of each user; of what comes then its bytes as they are have to do."""


class LostAndFound:
    """A folder for bytes and notes, made when something is put there.

    Whatever is put there, the path of the item relative to ``base`` is returned. One leader at a time uses it: names
    are listed once, because items may be many.
    """

    def __init__(self, folder: Path, base: Path, *, storage: Storage) -> None:
        self._folder = folder
        self._base = base
        self._storage = storage
        self._is_made = False
        self._names: set[str] | None = None
        self._decoded = OwnerBudget(DECODED_BYTES)

    def takes_decoded(self, size: int, compressed_size: int, owner: int = 0) -> bool:
        """Whether plain bytes may be kept beside what they were decoded from, by what each takes; see `put_content`.

        ``owner`` is the user whose bytes they are.
        """
        return size <= DECODED_FACTOR * compressed_size or self._decoded.takes(owner, size)

    def put_bytes(self, name: str, descriptor: int | None, start: int, length: int, note: dict[str, Any]) -> str:
        """Keep a range of an open file, as far as it is there, as ``<name>.part`` with a note."""
        available = 0 if descriptor is None else max(0, min(length, self._storage.size(descriptor) - start))
        if descriptor is not None and available:
            # Of two items of one name the notes have to differ.
            note = {**note, "content_crc": self._crc(descriptor, start, available)}
        path = self._path(name, "part" if available else "json", note, descriptor)
        if available and descriptor is not None:
            self._copy(path, descriptor, start, available, b"")
        return path.relative_to(self._base).as_posix()

    def put_member(
        self, name: str, descriptor: int, start: int, length: int, member: Member, note: dict[str, Any]
    ) -> str:
        """Keep one whole member, local header included, as ``<name>.zip``, an archive of its own, with a note."""
        path = self._path(name, "zip", note, descriptor)
        entry = encode_central_entry(member, 0)
        end = encode_end(entries=1, directory_length=len(entry), directory_offset=length)
        self._copy(path, descriptor, start, length, entry + end)
        return path.relative_to(self._base).as_posix()

    def put_content(self, name: str, content: Iterable[bytes], note: dict[str, Any], *, source: int) -> str:
        """Keep plain bytes, what decodes of a damaged member of an open file, as ``<name>.partial`` with a note."""
        # The note's name tells two members of one name apart from the raw bytes of the same item.
        path = self._path(f"{name}.partial", "json", note, source).with_suffix("")
        with self._kept(path, source) as target:
            length = 0
            for piece in content:
                length += self._storage.write(target, [piece], length)
        return path.relative_to(self._base).as_posix()

    def put_file(self, name: str, path: Path, note: dict[str, Any]) -> str:
        """Move a file here as ``name``, with a note."""
        item = self._path(name, "json", note, path).with_suffix("")
        self._storage.rename(path, item)
        self._storage.sync_directory(self._folder)
        self._storage.sync_directory(path.parent)
        return item.relative_to(self._base).as_posix()

    def put_copy(self, name: str, path: Path, note: dict[str, Any]) -> str:
        """Keep a whole file, which stays where it is as well: by a second name where that can be, else a copy."""
        if name in self._known_names():
            # Kept before, by a check that died; or another file that was damaged on the same day.
            name = f"{secrets.token_hex(6)}-{name}"
        item = self._path(name, "json", note, path).with_suffix("")
        if self._storage.link(path, item):
            self._storage.sync_directory(self._folder)
        else:
            with opened(path, self._storage) as descriptor:
                self._copy(item, descriptor, 0, self._storage.size(descriptor), b"")
        return item.relative_to(self._base).as_posix()

    def put_pair(self, pair: Pair, folder: Path, note: dict[str, Any]) -> str:
        """Keep a temp archive as a whole, with its journal and a note."""
        stem = self._path(f"{pair.host}-{pair.stem}", "json", note, folder / f"{pair.stem}.zip").stem
        # Notes go last: without them its journal would tell of members that nobody has seen.
        for suffix in ("zip", "journal", "merged"):
            self._known_names().add(f"{stem}.{suffix}")
            with contextlib.suppress(FileNotFoundError):
                self._storage.rename(folder / f"{pair.stem}.{suffix}", self._folder / f"{stem}.{suffix}")
        return (self._folder / f"{stem}.zip").relative_to(self._base).as_posix()

    def _path(self, name: str, suffix: str, note: dict[str, Any], source: int | Path | None) -> Path:
        """Write a note on what comes from ``source``, and return the path of what it tells of."""
        self._make_folder()
        data = json.dumps(note, indent=1, ensure_ascii=True).encode() + b"\n"
        names = self._known_names()
        stems = itertools.chain([name], (f"{name}~{number}" for number in itertools.count(1)))
        stem = next(stem for stem in stems if f"{stem}.json" not in names or self._has_note(stem, data))
        with self._kept(self._folder / f"{stem}.json", source) as target:
            self._storage.write(target, [data], 0)
        names.update((f"{stem}.json", f"{stem}.{suffix}", stem))
        return self._folder / f"{stem}.{suffix}"

    def _known_names(self) -> set[str]:
        if self._names is None:
            self._names = set(self._storage.names(self._folder))
        return self._names

    def _crc(self, descriptor: int, start: int, length: int) -> int:
        """Return the CRC-32 of what is data in a range."""
        crc = 0
        for begin, end in self._storage.data_ranges(descriptor, start, length):
            for piece in raw_bytes(descriptor, begin, end - begin, storage=self._storage):
                crc = crc32(piece, crc)
        return crc

    def _has_note(self, stem: str, data: bytes) -> bool:
        try:
            with opened(self._folder / f"{stem}.json", self._storage) as descriptor:
                return self._storage.read(descriptor, len(data) + 1, 0) == data
        except OSError:
            # Another user has shut hers, or it is no file: nothing that this may replace.
            return False

    def _copy(self, path: Path, descriptor: int, start: int, length: int, tail: bytes) -> None:
        with self._kept(path, descriptor) as target:
            # Holes stay holes: a sparse file of terabytes is easily made.
            self._storage.truncate(target, length)
            for begin, end in self._storage.data_ranges(descriptor, start, length):
                self._storage.copy_range(
                    descriptor, target, source_start=begin, target_start=begin - start, length=end - begin
                )
            if tail:
                self._storage.write(target, [tail], length)

    def _make_folder(self) -> None:
        """Make the folder, or make sure that nobody else may write to it.

        Raises:
            PermissionError: it is another user's by now; the next scavenge takes another one.
        """
        was_there = self._folder.is_dir()
        if was_there and self._is_made:
            return
        make_in_base(self._base, self._folder, storage=self._storage)
        descriptor = self._storage.open_directory(self._folder)
        try:
            status = os.fstat(descriptor)
            # Some mounts show another owner also of what was made just now.
            if was_there and status.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it belongs to another user", os.fspath(self._folder))
            if not is_private(status):
                with contextlib.suppress(OSError):
                    self._storage.set_mode(descriptor, stat.S_IMODE(status.st_mode) & ~_WRITE_OF_OTHERS)
        finally:
            self._storage.close(descriptor)
        self._is_made = True

    @contextmanager
    def _kept(self, path: Path, source: int | Path | None) -> Iterator[int]:
        """Make an item of what ``source`` holds under a fresh name; when it is written, and synced, it gets its own."""
        fresh = f"{os.fspath(path)}.{secrets.token_hex(6)}{FRESH_SUFFIX}"
        with ExitStack() as stack:
            if isinstance(source, Path):
                with contextlib.suppress(OSError):
                    source = stack.enter_context(opened(source, self._storage))
            # Bytes of others in a file of this user: read-only, it can never pass for a journal or an intent of his.
            mode = _READ_ONLY if source is None else 0o400
            target = stack.enter_context(created(fresh, self._storage, mode=mode))
            if isinstance(source, int):
                self._storage.copy_owner_and_mode(source, target)
                with contextlib.suppress(OSError):
                    self._storage.set_mode(target, self._storage.mode(target) & _READ_ONLY)
            yield target
            self._storage.sync(target)
        self._storage.rename(fresh, path)
        self._storage.sync_directory(self._folder)


def lost_and_found_of(layout: Layout, *, storage: Storage) -> LostAndFound:
    """Return the lost+found of one base, for one scavenge: a folder for today's items of this user."""
    # The date is for people; nothing is decided by it.
    folder = layout.lost_and_found / time.strftime("%Y-%m-%d")
    if not _may_be_mine(folder):
        folder = folder.with_name(f"{folder.name}-uid{os.geteuid()}")
    if not _may_be_mine(folder):
        folder = folder.with_name(f"{folder.name}-{secrets.token_hex(3)}")
    return LostAndFound(folder, layout.base, storage=storage)


def _may_be_mine(folder: Path) -> bool:
    try:
        status = status_of(folder)
    except OSError:
        # It is not there; what is shut is told of when something is put there.
        return True
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def item_name(pair: Pair, part: object, member: str = "") -> str:
    """Return the name of an item: of which temp archive it is, and which part; of content, with a name for people."""
    name = f"{pair.host}-{pair.stem}-{part}"
    return f"{name}-{host_folder(member.rstrip('/').rpartition('/')[2])}" if member else name
