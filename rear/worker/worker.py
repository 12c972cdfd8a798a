"""One process that writes: its rolling temp archives, and what it keeps until that is proven on stable storage.

A member is *acknowledged* when `Worker.append` returns: it is then in a file of the operating system and survives
SIGKILL of this process. It is *proven* when a sync that began later has succeeded on a pair that was still this
worker's own. Until then it is kept in memory (small ones) or in its spool file, see ``rear.worker.retained``,
and when the pair fails or is lost it is written again to a new pair, under its old sequence number, by which a
scavenger recognises a second copy.

One background thread syncs, beats, rolls over and answers flush requests; it starts with the first member. Lock
order: that of the `Prover` (one sync, close or read-back at a time) before `_lock` (appends and the choice of the pair;
never held while a sync of the background thread waits for a server). The collector, which closes forgotten files, and
signal handlers may come back to `append` from the middle of anything here: see `Worker._append_apart`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Callable

from rear.core.layout import Layout, check_place, without_links
from rear.core.log import LaterLog
from rear.core.names import Target
from rear.core.records import Metadata
from rear.core.storage import LOCAL, Storage, is_failure
from rear.errors import NotArchivedError, RearError
from rear.worker.background import LONGEST_WAIT_SECONDS, BackgroundThread
from rear.worker.flushed_file import FlushedFile
from rear.worker.flushed_pair import FlushedPair
from rear.worker.pair_writer import Item, PairWriter
from rear.worker.pairs import Pairs
from rear.worker.retained import HURRY_BYTES, RETAINED_LIMIT_BYTES, Prover, Retained
from rear.worker.spool_file import MemberBytes
from rear.worker.worker_options import WorkerOptions
from rear.zip.payload import Payload

_OWN_ARCHIVES_LIMIT = 10_000


class Worker:
    """Appends members to temp archives that this process alone owns. Safe from many threads and across ``fork``.

    Args:
        layout: the base; nothing is made there before the first member.
        options: rotation, sync and lease.
        on_first_pair: called once in each process before its first files are made.
        storage: the file system.
    """

    def __init__(
        self,
        layout: Layout,
        options: WorkerOptions | None = None,
        *,
        on_first_pair: Callable[[], None] = lambda: None,
        storage: Storage = LOCAL,
    ) -> None:
        self.layout = layout
        self.options = options or WorkerOptions()
        self._syncs_each = self.options.syncs_each
        self._on_first_pair = on_first_pair
        self._storage = storage
        #: Members are refused.
        self.closed = False
        #: Archives that are known not to belong to another base.
        self.own_archives: set[str] = set()
        self._begin()
        _workers.add(self)

    def _begin(self) -> None:
        self._sequences = itertools.count(1)
        #: What is to be told once no lock is held.
        self.log = LaterLog()
        self._lock = threading.RLock()
        self._retained = Retained()
        self._pairs = Pairs(
            self.layout, self.options, self._retained, self.log,
            on_first_pair=self._on_first_pair, on_change=self._start_thread, storage=self._storage,
        )  # fmt: skip
        self._prover = Prover(self._lock, self._pairs, self._retained, self.log)
        #: Files that are flushed before they are closed; each has a pair of its own.
        self._flushed: set[FlushedFile] = set()
        self._background = BackgroundThread(self, storage=self._storage)

    def forget_parent(self) -> None:
        """In a child of ``fork``: leave the parent's files alone and begin with nothing."""
        flushed = self._flushed
        self._retained.forget_parent()
        for pair in self._pairs.forget_parent():
            pair.release_after_fork()
        self._begin()
        for file in flushed:
            file.leave_after_fork()

    def append(
        self,
        target: Target,
        payload: Payload,
        mtime_ns: int,
        mode: int,
        metadata: Metadata | None = None,
        source: str | None = None,
        on_stable: Callable[[], None] | None = None,
    ) -> None:
        """Append one member; returning acknowledges it.

        Args:
            target: final archive and name.
            payload: its bytes; closed by the worker when they are no longer needed.
            mtime_ns: time of last change, nanoseconds since the epoch.
            mode: ``st_mode`` of the file.
            metadata: travels in journal, extra field and index.
            source: path that it was picked up from, for the journal.
            on_stable: called, by any thread, once the bytes are on stable storage and were read back.

        Raises:
            OSError: neither the current pair nor a new one took the member; with the path of its archive. Earlier
                members are untouched, and the worker goes on with the next one.
            SourceError: the source changed meanwhile.
            RearError: the worker is closed.
        """
        item = Item(next(self._sequences), target, payload, mtime_ns, mode, source, metadata, on_stable)
        try:
            if self._is_inside():
                self._append_apart(item)
                return
            try:
                with self._lock:
                    if self.closed:
                        self._check_open(target)
                    self._pairs.place(item)
                    retained = self._retained
                    retained.keep(item)
                    if len(retained.items) == 1:
                        self._background.wake()
                    elif retained.bytes > HURRY_BYTES and not self._background.hurries:
                        self._background.hurry()
                    must_wait = self._syncs_each or retained.bytes > RETAINED_LIMIT_BYTES
                    pair = item.pair
                    assert pair is not None
                    # After a gap, prove that it is still ours before acknowledging.
                    if not must_wait and pair.is_doubtful() and not pair.confirm():
                        self._pairs.lose(pair)
                        self._pairs.renew()
                    if pair is self._pairs.current and pair.is_full(self.options.rotation_size):
                        self._pairs.roll_over("rotation")
                if must_wait:
                    self._prover.sync_until(item)
            except BaseException:
                self._withdraw(item)
                raise
            finally:
                if self.log.waiting:
                    self.log.tell()
        except OSError as error:
            payload.close()
            if not is_failure(error):
                raise
            path = str(self.layout.base / target.archive / target.name)
            raise explained(error, "this member was not archived, earlier ones are safe", path) from error
        except BaseException:
            payload.close()
            raise

    def sync(self) -> None:
        """Bring everything acknowledged so far to stable storage.

        Raises:
            OSError: that is not possible now; it is kept and tried again.
        """
        self.run_alone(self._sync)

    def _sync(self) -> None:
        for file in list(self._flushed):
            file.sync()
        with self._prover.lock:
            with self._lock:
                last = max((item.sequence for item in self._retained.items), default=0)
            self._prover.finish_rolling()
            self._prover.sync_up_to(last)

    def roll_over(self, reason: str = "flush") -> None:
        """End the current temp archive, so that a scavenger can take it; the background thread closes it."""
        with self._lock:
            self._pairs.roll_over(reason)

    def close(self) -> None:
        """Close everything, so that a scavenger can take it at once. A second call tries again what the first left
        undone.

        Raises:
            NotArchivedError: acknowledged members could not be proven on stable storage, by name.
        """
        self.run_alone(self._close)

    def _close(self) -> None:
        with self._lock:
            self.closed = True
            self._background.stopping = True
            self._pairs.roll_over("exit")
        self._background.stop()
        for file in list(self._flushed):
            file.leave()
        try:
            with self._prover.lock:
                self._prover.finish_rolling()
                # A pair that was found lost has found its members a new one.
                if self._retained.items or self._pairs.failed or self._pairs.current is not None:
                    with self._lock:
                        self._pairs.renew()
                        self._pairs.roll_over("exit")
                    self._prover.finish_rolling()
        except OSError as error:
            if not is_failure(error):
                raise
            names = [f"{item.target.archive}/{item.target.name}" for item in self._retained.items]
            if names:
                raise NotArchivedError(_list_unproven(names, error)) from error
            self.log.warn("%s: %s", self.layout.base, error)
        for pair in self._pairs.failed:
            self.log.warn("%s stays unfinished until this process has ended", pair.path)

    def _check_open(self, target: Target) -> None:
        if self.closed:
            raise RearError(
                f"{target.archive}/{target.name} was not archived: the rear_fs of {self.layout.base} is closed"
            )

    def run_alone(self, do: Callable[[], None]) -> None:
        """Call something in the middle of which nobody may come back in this thread, and tell the log afterwards.

        Raises:
            RearError: this thread is in the middle of something here, so it would wait for itself.
        """
        if self._is_inside():
            raise RearError("called by a signal handler that interrupted rear itself: raise an exception there instead")
        try:
            do()
        finally:
            self.log.tell()

    def _is_inside(self) -> bool:
        """Whether this thread is in the middle of something here: its locks tell, which no exception leaves taken.

        The background thread always is: it beats without these locks, and with that of a journal.
        """
        owns_lock = self._lock._is_owned() or self._prover.lock._is_owned()  # type: ignore[attr-defined]
        return owns_lock or self._background.is_current

    def _append_apart(self, item: Item) -> None:
        """Write a member to a pair of its own and sync it, without any lock.

        The collector, which closes a forgotten file, or a signal handler that writes one has interrupted this very
        thread: what it was about to do cannot be waited for.
        """
        self._check_open(item.target)
        pair = self._pairs.make(PairWriter)
        try:
            pair.append(item)
            pair.sync()
        except BaseException:
            if pair.members == 0:
                pair.remove()
            else:
                # The caller is told that it was not archived, so it must not turn up later.
                with contextlib.suppress(OSError):
                    pair.abort([item.sequence])
            pair.release()
            raise
        with contextlib.ExitStack() as stack:
            stack.callback(pair.release)
            # Kept from here on: its source may have gone.
            if item.on_stable is not None:
                self._prover.tell(item)
            pair.close("rotation")
            stack.pop_all()
        item.payload.close()

    def check_place(self, archive: str) -> str:
        """Return an archive's path without links; refuse one of another base, or into which no scavenger could merge.

        Errors are those of `rear.core.layout.check_place`.
        """
        if archive in self.own_archives:
            return archive
        archive = without_links(self.layout, archive)
        check_place(self.layout, archive)
        if len(self.own_archives) >= _OWN_ARCHIVES_LIMIT:
            self.own_archives.clear()
        self.own_archives.add(archive)
        return archive

    # For files that are flushed before they are closed.

    def open_flushed(
        self, target: Target, method: int, mode: int, metadata: Metadata | None, content: MemberBytes
    ) -> FlushedFile:
        """Return what keeps a file that is flushed before it is closed; each of its calls takes ``content`` as well.

        Raises:
            RearError: the worker is closed.
        """
        self._check_open(target)
        file = FlushedFile(target, method, mode, metadata, content, self)
        self._flushed.add(file)
        return file

    def end_flushed(self, file: FlushedFile) -> None:
        """Forget a file that has nothing more to beat or sync."""
        self._flushed.discard(file)

    def next_sequence(self) -> int:
        """Return a number that no other member has."""
        return next(self._sequences)

    def make_flushed_pair(self) -> FlushedPair:
        """Return a new pair for one file.

        Raises:
            OSError: its files cannot be made.
        """
        if not (self._pairs.has_begun and self._background.has_started):
            with self._lock:
                pair = self._pairs.make(FlushedPair)
                self._start_thread()
        else:
            # Without the lock: whoever has it may wait for the file, which the collector closes.
            pair = self._pairs.make(FlushedPair)
            self.wake()
        return pair

    def _start_thread(self) -> None:
        if not self.closed:
            self._background.start(self._pairs.worker)
        self.wake()

    def wake(self) -> None:
        """Have the background thread look again at what there is to do."""
        self._background.wake()

    def _withdraw(self, item: Item) -> None:
        """Forget a member that is not acknowledged after all."""
        with self._lock:
            self._retained.let_go(item)
            if item.pair is not None and not item.proven:
                # Written well, but the caller is told otherwise (Ctrl-C while waiting for a sync).
                with contextlib.suppress(OSError):
                    item.pair.abort([item.sequence])
                # A sync that is under way must not prove it: its source would be removed.
                item.pair = None

    # For the background thread.

    @property
    def current_pair(self) -> PairWriter | None:
        """The pair that takes the next member."""
        return self._pairs.current

    def next_due(self, pair: PairWriter | None, beaten: float, synced: float) -> float | None:
        """Return when there is something to do, on the clock ``uptime``; nothing ever before something comes.

        ``pair`` is the current one; the last beat and the last sync were at ``beaten`` and ``synced``.
        """
        if self._pairs.rolling:
            return 0.0
        due = [wanted for file in list(self._flushed) if (wanted := file.due) is not None]
        if self._retained.items:
            due.append(synced + self.options.sync_interval)
        if pair is not None:
            created = pair.created
            due += [max(beaten, created) + self.options.beat_seconds, created + self._pairs.rotation_seconds]
        return min(due, default=None)

    def beat(self, pair: PairWriter) -> bool:
        """Show that this process lives; false when the pair has failed, or is no longer this process's own.

        Raises:
            OSError: then its members found no place in a new pair either.
        """
        try:
            is_owned = (not pair.is_doubtful() or pair.confirm()) and pair.beat()
        except OSError as error:
            with self._lock:
                # Also when it has rolled over meanwhile: the kernel tells of a failed sync once.
                if not pair.released and pair not in self._pairs.failed:
                    self._pairs.give_up(pair, error)
                    self._pairs.renew()
            return False
        if not is_owned:
            with self._lock:
                if pair is self._pairs.current:
                    self._pairs.lose(pair)
                    self._pairs.renew()
        return is_owned

    def tend(self, now: float) -> bool:
        """See to files that were flushed, and roll over; false when an append held the lock for too long for that."""
        for file in list(self._flushed):
            file.tend(now)
        # An append of gigabytes holds the lock for long; beats must go on.
        if not self._lock.acquire(timeout=min(self.options.beat_seconds / 2, LONGEST_WAIT_SECONDS)):
            return False
        try:
            pair = self._pairs.current
            if pair is not None and now - pair.created >= self._pairs.rotation_seconds:
                self._pairs.roll_over("rotation")
        finally:
            self._lock.release()
        return True

    def finish(self, takes_sync: Callable[[], bool]) -> None:
        """End pairs that have rolled over, then sync the current one if ``takes_sync`` says so.

        Raises:
            OSError: members of one of them found no place.
        """
        with self._prover.lock:
            self._prover.finish_rolling()
            if takes_sync():
                self._prover.sync_last()


def explained(error: OSError, what: str, path: str) -> OSError:
    """Return an error with what it means for whoever wrote ``path``."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OSError(error.errno, f"{reason}: {what}", path)


def _list_unproven(names: list[str], error: OSError) -> str:
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"{len(names)} acknowledged members could not be brought to stable storage ({error}): {shown}"


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for worker in list(_workers):
        worker.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
