"""The pairs of one worker: the one that takes the next member, those that have rolled over, those that have failed.

A pair that took an error stays until what it alone held is proven elsewhere: what it says after a failed sync cannot
be relied on; the members that were proven in it before that can. What is kept because it is not proven finds its way to
another pair here. Who calls holds the worker's lock.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from rear.core.layout import Layout
from rear.core.liveness import Process, this_process, worker_name
from rear.core.log import LaterLog
from rear.core.names import host_folder
from rear.core.records import Open, Pair
from rear.core.storage import Storage, is_failure
from rear.errors import SourceError
from rear.journal.codec import FORMAT_VERSION
from rear.worker.pair_writer import Item, PairWriter
from rear.worker.retained import Retained
from rear.worker.worker_options import WorkerOptions

JITTER: Final = 0.25
"""By up to this part of it a temp archive ends before its `rotation_span`."""

_Pair = TypeVar("_Pair", bound=PairWriter)


class Pairs:
    """Makes the pairs of a worker, and chooses which one takes a member.

    ``on_first_pair`` is called before the first files are made, ``on_change`` when there is a pair to be looked after
    or to be closed.
    """

    def __init__(
        self,
        layout: Layout,
        options: WorkerOptions,
        retained: Retained,
        log: LaterLog,
        *,
        on_first_pair: Callable[[], None],
        on_change: Callable[[], None],
        storage: Storage,
    ) -> None:
        self.current: PairWriter | None = None
        #: To be synced and closed, and why.
        self.rolling: list[tuple[PairWriter, str]] = []
        self.failed: list[PairWriter] = []
        #: The last failed one that held mere repetitions.
        self._attempt: PairWriter | None = None
        #: Name of the worker, from the first pair on.
        self.worker = ""
        #: After so long the newest pair ends.
        self.rotation_seconds = 0.0
        self._process: Process | None = None
        self._rotations = itertools.count()
        self._layout = layout
        self._options = options
        self._retained = retained
        self._log = log
        self._on_first_pair = on_first_pair
        self._on_change = on_change
        self._storage = storage

    def __iter__(self) -> Iterator[PairWriter]:
        """All of them."""
        if self.current is not None:
            yield self.current
        yield from self.failed
        for pair, _ in self.rolling:
            yield pair

    def forget_parent(self) -> list[PairWriter]:
        """In a child of ``fork``: forget all pairs, and return them.

        In place: a signal handler may have forked in the middle of a call here, which then goes on in the child.
        """
        inherited = list(self)
        self.current, self.rolling, self.failed, self._attempt = None, [], [], None
        self.worker, self._process, self._rotations = "", None, itertools.count()
        return inherited

    @property
    def has_begun(self) -> bool:
        """Whether the worker has its name."""
        return self._process is not None

    def make(self, kind: type[_Pair], repeats_from: int | None = None) -> _Pair:
        """Make a pair of a class, with names that were never used before; it takes no lock.

        ``repeats_from`` is the lowest number of a member that may stand in an earlier pair, too.

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
        try:
            return self._make(kind, process, name, repeats_from)
        except PermissionError:
            # Another user of this host has shut its folder, or an older rear made it by her umask: this user has one
            # of its own. Its host name is nobody's, so that a lease decides when this worker counts as dead.
            own = process._replace(host=host_folder(f"{process.host}-uid{os.getuid()}"))
            with contextlib.suppress(OSError):
                made = self._make(kind, own, name, repeats_from)
                self._process = own
                return made
            raise

    def _make(self, kind: type[_Pair], process: Process, name: str, repeats_from: int | None) -> _Pair:
        pair = Pair(process.host, name, next(self._rotations))
        opened = Open(
            FORMAT_VERSION, *pair, cookie=int.from_bytes(os.urandom(8), "little") >> 2 | 1,
            pid=process.pid, process_start=process.process_start, boot_id=process.boot_id,
            pid_namespace=process.pid_namespace, uid=os.getuid(), lease_seconds=float(self._options.lease_seconds),
            created_ns=time.time_ns(), repeats_from=repeats_from, time_namespace=process.time_namespace,
        )  # fmt: skip
        # Workers of a job begin together; from their second temp archive on they do not all come at once.
        self.rotation_seconds = self._options.rotation_span * (1.0 - JITTER * os.urandom(1)[0] / 256)
        return kind(self._layout, pair, opened, storage=self._storage)

    def place(self, item: Item) -> None:
        """Append a member to the current pair, or else to a new one.

        Raises:
            OSError: neither took it.
            SourceError: its source changed meanwhile.
        """
        if (pair := self.current) is not None:
            try:
                pair.append(item)
                return
            except OSError as error:
                if not is_failure(error):
                    raise
                self.give_up(pair, error, item)
        self.renew(item)

    def renew(self, item: Item | None = None) -> None:
        """Begin a new pair with all that has no place, and ``item``.

        Raises:
            OSError: that failed as well. What was acknowledged stays kept, and is tried again with the next member.
        """
        homeless = self._retained.of(None)
        if item is None and not homeless:
            self._settle([])
            return
        self.roll_over("rotation")
        repeated: list[Item] = []
        tried = [*homeless, *([item] if item and self.failed else [])]
        first = min((one.sequence for one in tried), default=None)
        # Current from now on, so that it is beaten while its first member, perhaps of gigabytes, is written.
        pair = self.current = self.make(PairWriter, first)
        try:
            self._on_change()
            repeated += (kept for kept in homeless if self._repeat(pair, kept))
            if repeated:
                pair.sync()
                if not pair.is_owned():
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(pair.path))
            self._settle(repeated)
            self._retained.prove(pair, repeated)
            if item is not None:
                pair.append(item)
        except OSError as error:
            self.give_up(pair, error, item)
            if pair in self.failed and not any(kept.proven for kept in repeated):
                # One failed pair of mere repetitions is kept, not one for each try: memory has them all too.
                if self._attempt in self.failed and not self._attempt.holds_only_copy:
                    self.failed.remove(self._attempt)
                    self._attempt.remove()
                self._attempt = pair
            raise

    def _repeat(self, pair: PairWriter, kept: Item) -> bool:
        try:
            pair.append(kept)
        except SourceError as error:
            # A pickup whose source has changed since.
            self._log.tell_error("%s/%s could not be written again: %s", *kept.target, error)
            # Its copy in one of these is all there is, and stays valid.
            for failed in self.failed:
                failed.needed = failed.holds_only_copy = True
            self._retained.let_go(kept)
            kept.payload.close()
            return False
        return True

    def _settle(self, repeated: list[Item]) -> None:
        """Close failed pairs: their proven members count, those that were repeated elsewhere do not."""
        failed, self.failed = self.failed, []
        for pair in failed:
            if not pair.needed:
                # What it held is proven elsewhere, and what it says after a failed sync cannot be relied on.
                pair.remove()
                continue
            try:
                if not pair.is_owned():
                    # Nobody has beaten it since it failed. Who took it knows all that this could tell.
                    pair.release()
                    continue
                if not pair.holds_only_copy:
                    pair.cut_back()
                pair.abort([item.sequence for item in repeated])
                pair.close("poisoned")
            except OSError as error:
                self._log.warn("%s cannot be ended now: %s", pair.path, error)
                self.failed.append(pair)

    def give_up(self, pair: PairWriter, error: OSError, item: Item | None = None) -> None:
        """Never again write a member to this pair or sync it: its members that are not proven need another place.

        ``item`` is the member that it took when it failed.
        """
        self._log.warn("%s: %s; its members that are not yet synced go to a new temp archive", pair.path, error)
        self._abandon(pair)
        if pair.members == 0 or pair.is_inherited:
            pair.remove()
            return
        if item is not None:
            with contextlib.suppress(OSError):
                # Without this record a scavenger finds the bytes torn, or the same member in a later pair.
                pair.abort([item.sequence])
        self.failed.append(pair)

    def lose(self, pair: PairWriter) -> None:
        """Leave a pair to the scavenger that took it, and write nothing to it; what that has not seen goes elsewhere.

        It may have taken this process for dead by mistake, while it went on writing. What it has seen it knows by its
        number.
        """
        self._log.warn("%s was taken over by a scavenger; going on in a new temp archive", pair.path)
        self._abandon(pair)
        try:
            self._retained.keep_again(pair.written_since_confirmed())
        except OSError as error:
            self._log.warn("%s: %s; what was written to it last counts only if that scavenger saw it", pair.path, error)
        pair.release()

    def _abandon(self, pair: PairWriter) -> None:
        if pair is self.current:
            self.current = None
        self.forget_rolling(pair)
        self._retained.make_homeless(pair)

    def roll_over(self, reason: str) -> None:
        """Let the current pair be closed."""
        if self.current is not None:
            self.rolling.append((self.current, reason))
            self.current = None
            self._on_change()

    def is_rolling(self, pair: PairWriter) -> bool:
        """Whether a pair has rolled over, and is still to be closed."""
        return any(rolling is pair for rolling, _ in self.rolling)

    def forget_rolling(self, pair: PairWriter) -> None:
        """Forget a pair that is closed, or of no use any more."""
        self.rolling = [(rolling, reason) for rolling, reason in self.rolling if rolling is not pair]
