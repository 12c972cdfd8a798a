"""Rescue of members whose bytes in the temp archive are no good: written anew from where the same bytes still are.

That is the data of the temp archive itself where only the local header is damaged, nothing at all where the journal
says that the member is empty, or the source of a pickup that is still there. Size and CRC-32 in the journal decide
whether they are the same bytes.

A rescue is a file in the leader's claim folder for the merge of one round. Nobody depends on it: after a crash the
next leader makes it again, or finds its members merged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from rear.core.parallel import identity_of
from rear.core.records import Append, origin_of, recorded_time_ns
from rear.core.source_file import open_source
from rear.core.storage import Storage
from rear.core.trust import is_own_word
from rear.errors import FormatError, RearError
from rear.journal.check import why_data_bad
from rear.scavenger.claims import RESCUE_SUFFIX, ClaimedPair
from rear.scavenger.plan import Candidate
from rear.zip.codecs import STORED, STREAM_ENDS, crc32
from rear.zip.headers import encode_local_header, member_of
from rear.zip.member_data import raw_bytes
from rear.zip.payload import Payload, payload_of_bytes, payload_of_file

_SPOOL_BYTES: Final = 8 << 20


class Rescue:
    """Rescued members of one pair.

    ``source`` is the open temp archive, ``None`` where there is none.
    """

    def __init__(self, claimed: ClaimedPair, source: int | None, *, storage: Storage) -> None:
        self.claimed = claimed
        self.source = source
        self._path: Path = claimed.folder / f"{claimed.pair.stem}{RESCUE_SUFFIX}"
        self._rescued = dataclasses.replace(claimed, data=self._path)
        self._storage = storage
        self._descriptor = -1
        self._length = 0

    def from_data(self, append: Append) -> Candidate | None:
        """Return a member whose data in the temp archive is what the journal says; ``None`` when it is not.

        Raises:
            UnsupportedError: the data cannot be decoded here.
            OSError: the temp archive cannot be read, or the rescue not written.
        """
        if not append.size:
            return self._write(append, [])
        if self.source is None or append.data_offset < append.offset:
            return None
        if append.offset + append.length > self._storage.size(self.source):
            return None
        if why_data_bad(self.source, append, self._storage) is not None:
            return None
        return self._write(append, self._data_of(append))

    def from_parts(self, append: Append) -> Candidate:
        """Return a member made of the parts of a file: their data as it is, and an end of the stream.

        Raises:
            FormatError: the temp archive changed meanwhile.
            OSError: the temp archive cannot be read, or the rescue not written.
        """
        end = STREAM_ENDS[append.method]
        ended = append._replace(compressed_size=append.compressed_size + len(end))
        return self._write(ended, itertools.chain(self._data_of(append), [end]))

    def _data_of(self, append: Append) -> Iterator[bytes]:
        assert self.source is not None
        return raw_bytes(self.source, append.data_offset, append.compressed_size, storage=self._storage)

    def from_source(self, append: Append) -> Candidate | str:
        """Return a picked-up member from its source, or say why that cannot be.

        Whoever may write a journal could name any file in it: so journal and source have to belong to the caller, and
        nobody else may have written the journal. No word tells of a source what the journal does not say.
        """
        if append.source is None:
            return ""
        if append.source_start or append.source_end != append.size:
            return f"its source {append.source} is needed in part only"
        if not _may_name_sources(self.claimed):
            return f"its source {append.source} is left alone: that is taken only by the user whose worker had it"
        try:
            return self._from_source(append, append.source)
        except (RearError, OSError, ValueError) as error:
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return f"its source cannot be used: {text if append.source in text else f'{append.source}: {text}'}"

    def _from_source(self, append: Append, source: str) -> Candidate | str:
        if stat.S_ISLNK(append.mode):
            before = os.lstat(source)
            payload = payload_of_bytes(os.readlink(os.fsencode(source)), STORED)
            if reason := _why_other(source, append, before, os.lstat(source)):
                return reason
            return self._write_payload(append, source, payload)
        descriptor, _ = open_source(source)
        with os.fdopen(descriptor, "rb") as file:
            # Before anything is read: it may be of any size.
            before = os.fstat(descriptor)
            if reason := _why_other(source, append, before, before):
                return reason
            payload = payload_of_file(file, append.size, append.method, _SPOOL_BYTES)
            try:
                found = self._write_payload(append, source, payload)
            finally:
                payload.close()
            return _why_other(source, append, before, os.fstat(descriptor)) or found

    def _write_payload(self, append: Append, source: str, payload: Payload) -> Candidate | str:
        if (payload.size, payload.crc) != (append.size, append.crc):
            return f"its source {source} has other content"
        append = append._replace(method=payload.method, compressed_size=payload.compressed_size)
        return self._write(append, payload.chunks())

    def _write(self, append: Append, data: Iterable[bytes]) -> Candidate:
        opened = self.claimed.opened
        size, crc = (append.size, append.crc) if append.size else (0, crc32(b""))
        member = member_of(append)._replace(crc=crc, size=size)
        if not append.size:
            member = member._replace(method=STORED, compressed_size=0)
        header = encode_local_header(member, origin_of(opened, append))
        descriptor = self._open()
        position = self._length + self._storage.write(descriptor, [header], self._length)
        for piece in data:
            position += self._storage.write(descriptor, [piece], position)
        if position != self._length + len(header) + member.compressed_size:
            raise FormatError(f"{append.name} changed while it was written anew")
        rescued = append._replace(
            offset=self._length,
            length=position - self._length,
            method=member.method,
            crc=crc,
            compressed_size=member.compressed_size,
        )
        self._length = position
        return Candidate(self._rescued, rescued)

    def _open(self) -> int:
        if self._descriptor < 0:
            with contextlib.suppress(FileNotFoundError):
                self._storage.unlink(self._path)
            # As long as it is there: what may be private stays so.
            self._descriptor = self._storage.create(self._path, 0o600)
            self._rescued.identity = identity_of(os.fstat(self._descriptor))
        return self._descriptor

    def close(self) -> None:
        """Remove what was written: its members are merged, or will be rescued again."""
        if self._descriptor >= 0:
            self._storage.close(self._descriptor)
            self._descriptor = -1
            with contextlib.suppress(FileNotFoundError):
                self._storage.unlink(self._path)


def _may_name_sources(claimed: ClaimedPair) -> bool:
    """Whether a journal's word about files elsewhere counts: the caller's own worker has written all of it."""
    status = claimed.journal.status
    # One made anew repeats what a damaged one said.
    is_as_written = claimed.opened.created_ns != 0
    return is_as_written and status is not None and status.st_uid == os.geteuid() and is_own_word(status)


def _why_other(source: str, append: Append, before: os.stat_result, now: os.stat_result) -> str:
    """Tell why a source is not the file that a journal names; nothing when it is, and was all the time."""
    if before.st_uid != os.geteuid():
        return f"its source {source} belongs to another user"
    for status in (before, now):
        if stat.S_IFMT(status.st_mode) != stat.S_IFMT(append.mode) and stat.S_IFMT(append.mode):
            return f"its source {source} has changed since: it is something else"
        if (status.st_size, recorded_time_ns(status.st_mtime_ns)) != (append.size, append.mtime_ns):
            return f"its source {source} has changed since: other size or time"
    if (before.st_dev, before.st_ino) != (now.st_dev, now.st_ino):
        return f"its source {source} was replaced"
    return ""
