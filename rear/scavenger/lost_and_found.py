"""A lost+found: where bytes go that cannot be placed, instead of being deleted. Each item has a JSON note that says
what it is.

An item has the name of its temp archive and sequence number, so putting the same thing aside again after a crash
replaces it: the same note tells that it is the same. Nothing else is ever replaced: another item of that name gets a
number.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rear.core.layout import Layout, make_in_base
from rear.core.names import host_folder
from rear.core.records import Pair
from rear.core.storage import FRESH_SUFFIX, Storage, created, opened
from rear.zip.codecs import crc32
from rear.zip.headers import Member, encode_central_entry, encode_end
from rear.zip.member_data import raw_bytes

_READ_ONLY: Final = 0o444
DECODED_FACTOR: Final = 16
"""What decodes to more than so many times its length is a bomb, or might be one."""
DECODED_BYTES: Final = 256 << 20
"""So much of it is kept decoded all the same, in all; of what comes then its bytes as they are have to do."""


class LostAndFound:
    """A folder for bytes and notes, made when something is put there.

    Whatever is put there, the path of the item relative to ``base`` is returned. One leader at a time uses it: names
    are listed once, because items may be many.
    """

    def __init__(self, folder: Path, base: Path, *, storage: Storage) -> None:
        self._folder = folder
        self._base = base
        self._storage = storage
        self._names: set[str] | None = None
        self._decoded_bytes = DECODED_BYTES

    def takes_decoded(self, size: int, compressed_size: int) -> bool:
        """Whether plain bytes may be kept beside what they were decoded from, by what each takes; see `put_content`."""
        if size <= DECODED_FACTOR * compressed_size:
            return True
        if size > self._decoded_bytes:
            return False
        self._decoded_bytes -= size
        return True

    def put_bytes(self, name: str, descriptor: int | None, start: int, length: int, note: dict[str, Any]) -> str:
        """Keep a range of an open file, as far as it is there, as ``<name>.part`` with a note."""
        available = 0 if descriptor is None else max(0, min(length, self._storage.size(descriptor) - start))
        if descriptor is not None and available:
            # Of two items of one name the notes have to differ.
            note = {**note, "content_crc": self._crc(descriptor, start, available)}
        path = self._path(name, "part" if available else "json", note)
        if available and descriptor is not None:
            self._copy(path, descriptor, start, available, b"")
        return path.relative_to(self._base).as_posix()

    def put_member(
        self, name: str, descriptor: int, start: int, length: int, member: Member, note: dict[str, Any]
    ) -> str:
        """Keep one whole member, local header included, as ``<name>.zip``, an archive of its own, with a note."""
        path = self._path(name, "zip", note)
        entry = encode_central_entry(member, 0)
        end = encode_end(entries=1, directory_length=len(entry), directory_offset=length)
        self._copy(path, descriptor, start, length, entry + end)
        return path.relative_to(self._base).as_posix()

    def put_content(self, name: str, content: Iterable[bytes], note: dict[str, Any], *, mode: int = 0o666) -> str:
        """Keep plain bytes, what decodes of a damaged member, as ``<name>.partial`` with a note.

        ``mode`` is that of the file that they come from: nothing is readable for more users than it was.
        """
        # The note's name tells two members of one name apart from the raw bytes of the same item.
        path = self._path(f"{name}.partial", "json", note).with_suffix("")
        with self._kept(path, mode) as target:
            length = 0
            for piece in content:
                length += self._storage.write(target, [piece], length)
        return path.relative_to(self._base).as_posix()

    def put_file(self, name: str, path: Path, note: dict[str, Any]) -> str:
        """Move a file here as ``name``, with a note."""
        item = self._path(name, "json", note).with_suffix("")
        self._storage.rename(path, item)
        self._storage.sync_directory(self._folder)
        self._storage.sync_directory(path.parent)
        return item.relative_to(self._base).as_posix()

    def put_copy(self, name: str, path: Path, note: dict[str, Any]) -> str:
        """Keep a whole file, which stays where it is as well: by a second name where that can be, else a copy."""
        if name in self._known_names():
            # Kept before, by a check that died; or another file that was damaged on the same day.
            name = f"{secrets.token_hex(6)}-{name}"
        item = self._path(name, "json", note).with_suffix("")
        if self._storage.link(path, item):
            self._storage.sync_directory(self._folder)
        else:
            with opened(path, self._storage) as descriptor:
                self._copy(item, descriptor, 0, self._storage.size(descriptor), b"")
        return item.relative_to(self._base).as_posix()

    def put_pair(self, pair: Pair, folder: Path, note: dict[str, Any]) -> str:
        """Keep a temp archive as a whole, with its journal and a note."""
        stem = self._path(f"{pair.host}-{pair.stem}", "json", note).stem
        # Notes go last: without them its journal would tell of members that nobody has seen.
        for suffix in ("zip", "journal", "merged"):
            self._known_names().add(f"{stem}.{suffix}")
            with contextlib.suppress(FileNotFoundError):
                self._storage.rename(folder / f"{pair.stem}.{suffix}", self._folder / f"{stem}.{suffix}")
        return (self._folder / f"{stem}.zip").relative_to(self._base).as_posix()

    def _path(self, name: str, suffix: str, note: dict[str, Any]) -> Path:
        """Write a note, and return the path of what it tells of."""
        make_in_base(self._base, self._folder, storage=self._storage)
        data = json.dumps(note, indent=1, ensure_ascii=True).encode() + b"\n"
        names = self._known_names()
        stems = itertools.chain([name], (f"{name}~{number}" for number in itertools.count(1)))
        stem = next(stem for stem in stems if f"{stem}.json" not in names or self._has_note(stem, data))
        self._storage.replace(self._folder / f"{stem}.json", data)
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
        with self._kept(path, self._storage.mode(descriptor)) as target:
            # Holes stay holes: a sparse file of terabytes is easily made.
            self._storage.truncate(target, length)
            for begin, end in self._storage.data_ranges(descriptor, start, length):
                self._storage.copy_range(
                    descriptor, target, source_start=begin, target_start=begin - start, length=end - begin
                )
            if tail:
                self._storage.write(target, [tail], length)

    @contextmanager
    def _kept(self, path: Path, mode: int) -> Iterator[int]:
        """Make an item under a fresh name; when all of it is written, and synced, it gets its own."""
        fresh = f"{os.fspath(path)}.{secrets.token_hex(6)}{FRESH_SUFFIX}"
        # Bytes of others in a file of this user: read-only, it can never pass for a journal or an intent that he wrote.
        with created(fresh, self._storage, mode=mode & _READ_ONLY) as target:
            yield target
            self._storage.sync(target)
        self._storage.rename(fresh, path)
        self._storage.sync_directory(self._folder)


def lost_and_found_of(layout: Layout, *, storage: Storage) -> LostAndFound:
    """Return the lost+found of one base, for one scavenge."""
    # The date is for people; nothing is decided by it.
    return LostAndFound(layout.lost_and_found / time.strftime("%Y-%m-%d"), layout.base, storage=storage)


def item_name(pair: Pair, part: object, member: str = "") -> str:
    """Return the name of an item: of which temp archive it is, and which part; of content, with a name for people."""
    name = f"{pair.host}-{pair.stem}-{part}"
    return f"{name}-{host_folder(member.rstrip('/').rpartition('/')[2])}" if member else name
