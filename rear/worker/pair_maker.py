"""What makes the pairs of one worker: it gives the worker its name, and each pair its number and first record."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

from rear.core.layout import Layout
from rear.core.liveness import Process, this_process, worker_name
from rear.core.records import Pair
from rear.core.storage import Storage
from rear.worker.pair_writer import PairWriter, open_record
from rear.worker.worker_options import WorkerOptions

JITTER: Final = 0.25
"""By up to this part of it a temp archive ends before its `rotation_span`."""

_Pair = TypeVar("_Pair", bound=PairWriter)


class PairMaker:
    """Makes pairs, each with names that were never used before.

    Args:
        layout: the base.
        options: of the worker.
        on_first_pair: called before the first files are made.
        storage: the file system.
    """

    def __init__(
        self, layout: Layout, options: WorkerOptions, *, on_first_pair: Callable[[], None], storage: Storage
    ) -> None:
        self.worker = ""
        #: After so long the newest pair ends.
        self.rotation_seconds = 0.0
        self._layout = layout
        self._options = options
        self._on_first_pair = on_first_pair
        self._storage = storage
        self._process: Process | None = None
        self._rotations = itertools.count()

    @property
    def has_begun(self) -> bool:
        """Whether the worker has its name."""
        return self._process is not None

    def make(self, kind: type[_Pair], repeats_from: int | None = None) -> _Pair:
        """Make a pair.

        Args:
            kind: its class.
            repeats_from: the lowest number of a member that may stand in an earlier pair, too.

        Raises:
            OSError: its files cannot be made.
        """
        # Whoever is called back in the middle of a first pair may make one as well: name and record of each agree.
        process, name = self._process, self.worker
        if process is None:
            self._on_first_pair()
            process = this_process()
            name = self.worker = worker_name(process, os.urandom(8).hex())
            self._process = process
        pair = Pair(process.host, name, next(self._rotations))
        opened = open_record(
            process,
            name,
            pair.rotation,
            cookie=int.from_bytes(os.urandom(8), "little") >> 2 | 1,
            uid=os.getuid(),
            lease_seconds=float(self._options.lease_seconds),
            created_ns=time.time_ns(),
            repeats_from=repeats_from,
        )
        # Workers of a job begin together; from their second temp archive on they do not all come at once.
        self.rotation_seconds = self._options.rotation_span * (1.0 - JITTER * os.urandom(1)[0] / 256)
        return kind(self._layout, pair, opened, storage=self._storage)
