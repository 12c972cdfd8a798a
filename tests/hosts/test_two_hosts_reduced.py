"""What two hosts on a network file system showed, reduced to one process on a local disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from bases import check_base, put, scavenge

import rear
from rear.core.storage import LOCAL, Storage


class FullServer(Storage):
    """A full server behind a page cache: writes succeed, then a sync fails, once, and what was not synced is gone."""

    def __init__(self) -> None:
        self.full = False
        self._synced: dict[tuple[int, int], int] = {}
        self._dirty: set[tuple[int, int]] = set()

    @staticmethod
    def _key(descriptor: int) -> tuple[int, int]:
        state = os.fstat(descriptor)
        return state.st_dev, state.st_ino

    def write(self, descriptor: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        self._dirty.add(self._key(descriptor))
        return super().write(descriptor, buffers, offset)

    def sync(self, descriptor: int) -> None:
        key = self._key(descriptor)
        if self.full and key in self._dirty:
            self._dirty.discard(key)
            os.ftruncate(descriptor, self._synced.get(key, 0))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().sync(descriptor)
        self._dirty.discard(key)
        self._synced[key] = os.fstat(descriptor).st_size


def test_pairs_that_failed_on_a_full_server_leave_nothing_behind(tmp_path: Path) -> None:
    storage = FullServer()
    acknowledged: dict[str, bytes] = {}
    base = tmp_path / "base"
    with rear.rear_fs(base, sync="file", storage=storage) as fs:

        def write(name: str) -> None:
            put(fs, f"a.zip/{name}", name.encode() * 100)
            acknowledged[f"a.zip/{name}"] = name.encode() * 100

        write("before")
        storage.full = True
        for number in range(3):
            with pytest.raises(OSError, match="this member was not archived"):
                write(f"refused-{number}")
        storage.full = False
        write("after")
    events = [event for _ in range(2) for event in scavenge(base)]
    assert not [event for event in events if event.kind in ("refused", "lost", "left_alone")]
    check_base(base, acknowledged, lost_and_found=True)


def test_a_descriptor_that_another_thread_has_closed_is_an_error_of_the_operating_system() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        LOCAL.sync(-1)
