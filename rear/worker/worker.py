"""One process that writes: its rolling temp archives, and what it keeps until that is proven on stable storage.

A member is *acknowledged* when `Worker.append` returns: it is then in a file of the operating system and survives
SIGKILL of this process. It is *proven* when a sync that began later has succeeded on a pair that was still this
worker's own. Until then it is kept in memory (small ones) or in its spool file, and when the pair fails or is lost it
is written again to a new pair, under its old sequence number, by which a scavenger recognises a second copy.

One background thread syncs, beats, rolls over and answers flush requests; it starts with the first member. Lock
order: `_sync_lock` (one sync, close or read-back at a time) before `_lock` (appends and the choice of the pair; never
held while a sync of the background thread waits for a server). The collector, which closes forgotten files, and
signal handlers may come back to `append` from the middle of anything here: see `Worker._append_apart`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from rear.core.layout import Layout
from rear.core.liveness import Process, this_process, worker_name
from rear.core.log import tell_error, warn
from rear.core.names import Target
from rear.core.records import Metadata, Pair
from rear.core.storage import LOCAL, Storage
from rear.errors import NotArchivedError, RearError, SourceError, UsageError
from rear.worker.flushed_file import Content, Parts
from rear.worker.flushed_pair import PartsPair
from rear.worker.pair_writer import Item, PairWriter, open_record
from rear.zip.payload import Payload

RETAINED_LIMIT_BYTES = 32 << 20
"""More than this is not kept for a second try: the append that exceeds it waits for a sync."""
_HURRY_BYTES = RETAINED_LIMIT_BYTES // 2
"""With so much kept the background thread syncs at once, so that appends seldom have to wait."""
DIRECTORY_LIMIT_BYTES = 4 << 20
"""A temp archive of many tiny members ends here: its directory is held in memory until then."""
_ITEM_BYTES = 1 << 10
"""What a kept member takes besides its bytes, about: a million empty files must not fill the memory."""
_BEATS_A_LEASE = 4
_JITTER = 0.25
"""By up to this part of it a temp archive ends before its `rotation_span`."""
_LONGEST_WAIT_SECONDS = 3600.0


_Pair = TypeVar("_Pair", bound=PairWriter)


class WorkerOptions:
    """How a worker behaves; see `rear.rear_fs` for the meaning of each."""

    __slots__ = ("lease_seconds", "rotation_size", "rotation_span", "sync", "sync_interval")

    def __init__(
        self,
        rotation_span: float = 300.0,
        rotation_size: int = 1 << 30,
        sync: str = "interval",
        sync_interval: float = 1.0,
        lease_seconds: float = 60.0,
    ) -> None:
        self.rotation_span = rotation_span
        self.rotation_size = rotation_size
        self.sync = sync
        self.sync_interval = sync_interval
        self.lease_seconds = lease_seconds
        for name in ("rotation_span", "rotation_size", "sync_interval", "lease_seconds"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
                raise UsageError(f"{name} is {value!r}: it has to be a number greater than 0")
        if not math.isfinite(self.lease_seconds):
            raise UsageError(f"lease_seconds is {self.lease_seconds!r}: without an end, no one could ever take over")
        if self.sync not in ("interval", "file"):
            raise UsageError(f"sync is {self.sync!r}: it has to be 'interval' or 'file'")


class Worker:
    """Appends members to temp archives that this process alone owns. Safe from many threads and across ``fork``.

    Args:
        layout: the base; nothing is made there before the first member.
        options: rotation, sync and lease.
        on_first_pair: called once in each process before its first files are made.
        storage: the file system.
    """

    def __init__(
        self, layout: Layout, options: WorkerOptions, *, on_first_pair: Callable[[], None], storage: Storage = LOCAL
    ) -> None:
        self.layout = layout
        self.options = options
        self._syncs_each = options.sync == "file"
        self._on_first_pair = on_first_pair
        self._storage = storage
        self._closed = False
        self._begin()
        _workers.add(self)

    def _begin(self) -> None:
        self._process: Process | None = None
        self._name = ""
        self._rotations = itertools.count()
        self._sequences = itertools.count(1)
        self._pair: PairWriter | None = None
        self._rolling: list[tuple[PairWriter, str]] = []
        self._failed: list[PairWriter] = []
        self._attempt: PairWriter | None = None
        self._retained: list[Item] = []
        self._retained_bytes = 0
        self._stable: list[Item] = []
        #: Files that are flushed before they are closed; each has a pair of its own.
        self._flushed: set[Parts] = set()
        self._answered_flushes: set[str] = set()
        #: What the program's log is to be told once no lock is held: how, the message, its values.
        self._told: list[tuple[Any, ...]] = []
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._hurries = False
        self._pair_seconds = 0.0
        self._inside: set[int] = set()
        self._wake = threading.Event()
        self._lock = threading.RLock()
        self._sync_lock = threading.RLock()

    def forget_parent(self) -> None:
        """In a child of ``fork``: leave the parent's files alone and begin with nothing."""
        inherited = [pair for pair in (self._pair, *self._failed, *(pair for pair, _ in self._rolling)) if pair]
        flushed = self._flushed
        self._begin()
        for pair in inherited:
            pair.release_after_fork()
        for parts in flushed:
            parts.leave_after_fork()

    @property
    def closed(self) -> bool:
        """Whether members are refused."""
        return self._closed

    def append(
        self,
        target: Target,
        payload: Payload,
        mtime_ns: int,
        mode: int,
        source: str | None = None,
        metadata: Metadata | None = None,
        on_stable: Callable[[], None] | None = None,
    ) -> None:
        """Append one member; returning acknowledges it.

        Args:
            target: final archive and name.
            payload: its bytes; closed by the worker when they are no longer needed.
            mtime_ns: time of last change, nanoseconds since the epoch.
            mode: ``st_mode`` of the file.
            source: path that it was picked up from, for the journal.
            metadata: travels in journal, extra field and index.
            on_stable: called, by any thread, once the bytes are on stable storage and were read back.

        Raises:
            OSError: neither the current pair nor a new one took the member; with the path of its archive. Earlier
                members are untouched, and the worker goes on with the next one.
            SourceError: the source changed meanwhile.
            RearError: the worker is closed.
        """
        item = Item(next(self._sequences), target, payload, mtime_ns, mode, source, metadata, on_stable)
        thread = threading.get_ident()
        try:
            if thread in self._inside:
                self._append_apart(item)
                return
            try:
                self._inside.add(thread)
                with self._lock:
                    if self._closed:
                        self._check_open(target)
                    self._place(item)
                    self._retained.append(item)
                    self._retained_bytes += payload.compressed_size + _ITEM_BYTES
                    if len(self._retained) == 1:
                        self._wake.set()
                    elif self._retained_bytes > _HURRY_BYTES and not self._hurries:
                        self._hurries = True
                        self._wake.set()
                    must_wait = self._syncs_each or self._retained_bytes > RETAINED_LIMIT_BYTES
                    pair = item.pair
                    assert pair is not None
                    # After a gap, prove that it is still ours before acknowledging.
                    if not must_wait and pair.is_doubtful() and not pair.confirm():
                        self._lose(pair)
                        self._renew(None)
                    if pair is self._pair and (
                        pair.length >= self.options.rotation_size or pair.directory_length >= DIRECTORY_LIMIT_BYTES
                    ):
                        self._roll_over("rotation")
                if must_wait:
                    self._sync_until(item)
            except BaseException:
                self._withdraw(item)
                raise
            finally:
                self._inside.discard(thread)
                if self._told:
                    self._tell_log()
        except OSError as error:
            payload.close()
            raise self._explain(error, target) from error
        except BaseException:
            payload.close()
            raise

    def open_parts(self, target: Target, method: int, mode: int, metadata: Metadata | None, content: Content) -> Parts:
        """Return what keeps a file that is flushed before it is closed.

        Args:
            target: final archive and name.
            method: compression method.
            mode: ``st_mode`` of the file.
            metadata: travels with the member.
            content: the file; to be passed with each call, too.

        Raises:
            RearError: the worker is closed.
        """
        self._check_open(target)
        parts = Parts(
            target, method, mode, metadata, content,
            new_pair=self._new_parts_pair, next_sequence=self._sequences.__next__, ended=self._flushed.discard,
            uptime=self._storage.uptime, syncs_each=self.options.sync == "file",
            sync_interval=self.options.sync_interval,
            beat_seconds=self.options.lease_seconds / _BEATS_A_LEASE,
            wake=self._wake.set,
        )  # fmt: skip
        self._flushed.add(parts)
        return parts

    def _new_parts_pair(self) -> PartsPair:
        if self._process is None or self._thread is None:
            with self._lock:
                pair = self._make_pair(PartsPair, None)
                self._start_thread()
        else:
            # Without the lock: whoever has it may wait for the file, which the collector closes.
            pair = self._make_pair(PartsPair, None)
        self._wake.set()
        return pair

    def sync(self) -> None:
        """Bring everything acknowledged so far to stable storage.

        Raises:
            OSError: that is not possible now; it is kept and tried again.
        """
        thread = self._begin_alone()
        try:
            self._inside.add(thread)
            for parts in list(self._flushed):
                parts.sync()
            with self._sync_lock:
                with self._lock:
                    last = max((item.sequence for item in self._retained), default=0)
                # Pairs that have rolled over, members that lost theirs, then the current pair.
                self._finish_rolling()
                while unproven := self._kept_until(last):
                    self._sync_until(next((item for item in unproven if item.pair is None), unproven[-1]))
        finally:
            self._inside.discard(thread)
            self._tell_log()

    def _kept_until(self, sequence: int) -> list[Item]:
        with self._lock:
            return [item for item in self._retained if item.sequence <= sequence]

    def roll_over(self, reason: str = "flush") -> None:
        """End the current temp archive, so that a scavenger can take it; the background thread closes it."""
        with self._lock:
            self._roll_over(reason)

    def close(self) -> None:
        """Close everything, so that a scavenger can take it at once. A second call tries again what the first left
        undone.

        Raises:
            NotArchivedError: acknowledged members could not be proven on stable storage, by name.
        """
        thread = self._begin_alone()
        try:
            self._inside.add(thread)
            self._close()
        finally:
            self._inside.discard(thread)
            self._tell_log()

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            self._stopping = True
            self._roll_over("exit")
        self._wake.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
        for parts in list(self._flushed):
            parts.leave()
        with self._sync_lock:
            try:
                self._finish_rolling()
                if self._retained or self._failed:
                    with self._lock:
                        self._renew(None)
                        self._roll_over("exit")
                    self._finish_rolling()
            except OSError as error:
                names = [f"{item.target.archive}/{item.target.name}" for item in self._retained]
                if names:
                    raise NotArchivedError(_list_unproven(names, error)) from error
                self._told.append((warn, "%s: %s", self.layout.base, error))
            for pair in self._failed:
                self._told.append((warn, "%s stays unfinished until this process has ended", pair.path))

    def _check_open(self, target: Target) -> None:
        if self._closed:
            raise RearError(
                f"{target.archive}/{target.name} was not archived: the rear_fs of {self.layout.base} is closed"
            )

    def _begin_alone(self) -> int:
        """Return the running thread, to be added to `_inside` and discarded in one ``try``, or Ctrl-C leaves it there.

        Raises:
            RearError: it is in there already, so it would wait for itself.
        """
        thread = threading.get_ident()
        if thread in self._inside:
            raise RearError("called by a signal handler that interrupted rear itself: raise an exception there instead")
        return thread

    def _append_apart(self, item: Item) -> None:
        """Write a member to a pair of its own and sync it, without any lock.

        This very thread is in the middle of something here, and was interrupted by the collector, which closes a
        forgotten file, or by a signal handler that writes one. What it was about to do cannot be waited for.
        """
        self._check_open(item.target)
        pair = self._new_pair(None)
        try:
            pair.append(item)
            pair.sync()
            if item.on_stable is not None:
                self._tell(item)
            pair.close("rotation")
        except BaseException:
            if pair.members == 0:
                pair.remove()
            else:
                # The caller is told that it was not archived, so it must not turn up later.
                with contextlib.suppress(OSError):
                    pair.abort([item.sequence])
            pair.release()
            raise
        item.payload.close()

    # Everything below down to the background thread runs with _lock held.

    def _withdraw(self, item: Item) -> None:
        """Forget a member that is not acknowledged after all."""
        with self._lock:
            self._let_go(item)
            if item.pair is not None and not item.proven:
                # Written well, but the caller is told otherwise (Ctrl-C while waiting for a sync).
                with contextlib.suppress(OSError):
                    item.pair.abort([item.sequence])
                # A sync that is under way must not prove it: its source would be removed.
                item.pair = None

    def _let_go(self, item: Item) -> None:
        if item in self._retained:
            self._retained.remove(item)
            self._retained_bytes -= item.payload.compressed_size + _ITEM_BYTES

    def _explain(self, error: OSError, target: Target) -> OSError:
        reason = os.strerror(error.errno) if error.errno else str(error)
        path = str(self.layout.base / target.archive / target.name)
        return OSError(error.errno, f"{reason}: this member was not archived, earlier ones are safe", path)

    def _place(self, item: Item) -> None:
        if self._pair is not None:
            try:
                self._pair.append(item)
                return
            except OSError as error:
                self._give_up(self._pair, error, item)
        self._renew(item)

    def _new_pair(self, repeats_from: int | None) -> PairWriter:
        return self._make_pair(PairWriter, repeats_from)

    def _make_pair(self, kind: type[_Pair], repeats_from: int | None) -> _Pair:
        # Whoever is called back in the middle of a first pair may make one as well: name and record of each agree.
        process, name = self._process, self._name
        if process is None:
            self._on_first_pair()
            process = this_process()
            name = self._name = worker_name(process, os.urandom(8).hex())
            self._process = process
        pair = Pair(process.host, name, next(self._rotations))
        opened = open_record(
            process, name, pair.rotation,
            cookie=int.from_bytes(os.urandom(8), "little") >> 2 | 1, uid=os.getuid(),
            lease_seconds=float(self.options.lease_seconds),
            created_ns=time.time_ns(), repeats_from=repeats_from,
        )  # fmt: skip
        # Workers of a job begin together; from their second temp archive on they do not all come at once.
        self._pair_seconds = self.options.rotation_span * (1.0 - _JITTER * os.urandom(1)[0] / 256)
        return kind(self.layout, pair, opened, storage=self._storage)

    def _renew(self, item: Item | None) -> None:
        """Begin a new pair with all that has no place, and ``item``.

        Raises:
            OSError: that failed as well. What was acknowledged stays kept, and is tried again with the next member.
        """
        homeless = [kept for kept in self._retained if kept.pair is None]
        if item is None and not homeless:
            self._settle_failed([])
            return
        self._roll_over("rotation")
        repeated: list[Item] = []
        tried = [*homeless, *([item] if item and self._failed else [])]
        first = min((one.sequence for one in tried), default=None)
        # Current from now on, so that it is beaten while its first member, perhaps of gigabytes, is written.
        pair = self._pair = self._new_pair(first)
        try:
            self._start_thread()
            self._wake.set()
            repeated += (kept for kept in homeless if self._repeat(pair, kept))
            if repeated:
                pair.sync()
                if not pair.is_owned():
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(pair.path))
            self._settle_failed(repeated)
            self._prove(pair, repeated)
            if item is not None:
                pair.append(item)
        except OSError as error:
            self._give_up(pair, error, item)
            if pair in self._failed and not any(kept.proven for kept in repeated):
                self._keep_attempt(pair)
            raise

    def _keep_attempt(self, pair: PairWriter) -> None:
        """Keep one failed pair of mere repetitions, not one for each try: memory has them all too."""
        if self._attempt in self._failed and not self._attempt.holds_only_copy:
            self._failed.remove(self._attempt)
            self._attempt.remove()
        self._attempt = pair

    def _repeat(self, pair: PairWriter, kept: Item) -> bool:
        try:
            pair.append(kept)
        except SourceError as error:
            # A pickup whose source has changed since: the copy in the failed pair is all there is, and stays valid.
            self._told.append(
                (tell_error, "%s/%s could not be written again: %s", kept.target.archive, kept.target.name, error)
            )
            for failed in self._failed:
                failed.needed = failed.holds_only_copy = True
            self._let_go(kept)
            kept.payload.close()
            return False
        return True

    def _give_up(self, pair: PairWriter, error: OSError, item: Item | None = None) -> None:
        """Never again write a member to this pair or sync it: its members that are not proven need another place."""
        self._told.append(
            (warn, "%s: %s; its members that are not yet synced go to a new temp archive", pair.path, error)
        )
        if pair is self._pair:
            self._pair = None
        self._rolling = [(rolling, reason) for rolling, reason in self._rolling if rolling is not pair]
        for kept in self._retained:
            if kept.pair is pair:
                kept.pair = None
        if pair.members == 0:
            pair.remove()
            return
        if item is not None:
            with contextlib.suppress(OSError):
                # Without this record a scavenger finds the bytes torn, or the same member in a later pair.
                pair.abort([item.sequence])
        self._failed.append(pair)

    def _settle_failed(self, repeated: list[Item]) -> None:
        """Close pairs that failed: their proven members count, those that were repeated elsewhere do not."""
        failed, self._failed = self._failed, []
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
                self._told.append((warn, "%s cannot be ended now: %s", pair.path, error))
                self._failed.append(pair)

    def _lose(self, pair: PairWriter) -> None:
        """Leave a pair to the scavenger that took it while this process was paused, and write nothing to it."""
        self._told.append(
            (warn, "%s was taken over while this process was paused; going on in a new temp archive", pair.path)
        )
        if pair is self._pair:
            self._pair = None
        self._rolling = [(rolling, reason) for rolling, reason in self._rolling if rolling is not pair]
        for kept in self._retained:
            if kept.pair is pair:
                kept.pair = None
        pair.release()

    def _roll_over(self, reason: str) -> None:
        if self._pair is not None:
            self._rolling.append((self._pair, reason))
            self._pair = None
            self._wake.set()

    def _prove(self, pair: PairWriter, items: list[Item]) -> None:
        """Let go of members of ``pair``: a sync that began after them has succeeded."""
        proven = [item for item in items if item.pair is pair]
        if not proven:
            return
        count = len(proven)
        if len(self._retained) >= count and self._retained[0] is proven[0] and self._retained[count - 1] is proven[-1]:
            # Both are in the order of the members: these are the first ones, as nearly always.
            self._retained = self._retained[count:]
        else:
            sequences = {item.sequence for item in proven}
            self._retained = [item for item in self._retained if item.sequence not in sequences]
        pair.needed = True
        for item in proven:
            item.proven = True
            payload = item.payload
            self._retained_bytes -= payload.compressed_size + _ITEM_BYTES
            if item.on_stable is not None:
                self._stable.append(item)
            elif payload.data is None:
                payload.close()

    # Everything below takes _sync_lock first, then _lock for moments.

    def _sync_until(self, item: Item) -> None:
        """Return when a member is proven; many threads share one sync."""
        with self._sync_lock:
            # Another thread may give it up meanwhile.
            if not item.proven and (pair := item.pair) is not None:
                self._sync_pair(pair)
            with self._lock:
                if not item.proven and item.pair is None:
                    self._renew(None)
            self._tell_stable()

    def _sync_pair(self, pair: PairWriter) -> None:
        """Sync a pair and prove what it held before; a pair that fails or is no longer ours is replaced.

        Raises:
            OSError: its members found no place in a new pair either.
        """
        with self._lock:
            items = [item for item in self._retained if item.pair is pair]
        try:
            pair.sync()
        except OSError as error:
            with self._lock:
                # Otherwise another thread has found it lost meanwhile, and has seen to its members.
                if not pair.released:
                    self._give_up(pair, error)
                    self._renew(None)
            return
        with self._lock:
            if pair.is_doubtful() and not pair.confirm():
                self._lose(pair)
                self._renew(None)
            self._prove(pair, items)

    def _tell_stable(self) -> None:
        """Read back what sources were waiting for, and tell them; before the pair is closed."""
        with self._lock:
            stable, self._stable = self._stable, []
        for item in stable:
            self._tell(item)
            item.payload.close()

    def _tell(self, item: Item) -> None:
        try:
            if item.pair is None or item.on_stable is None or not item.pair.holds(item):
                raise RearError("the archived bytes are not those that were read")
            item.on_stable()
        except Exception as error:
            self._told.append((tell_error, "%s stays in place: %s", item.source, error))

    def _finish_rolling(self) -> None:
        """Sync and close pairs that have rolled over.

        Raises:
            OSError: members of one of them found no place.
        """
        while True:
            with self._lock:
                if not self._rolling:
                    return
                pair, reason = self._rolling[0]
            self._sync_pair(pair)
            self._tell_stable()
            if not self._is_rolling(pair):
                continue
            try:
                pair.close(reason)
            except OSError as error:
                # All its members are proven; a scavenger takes it over once this process is gone.
                self._told.append((warn, "%s stays unfinished until this process has ended: %s", pair.path, error))
                pair.release()
            with self._lock:
                self._rolling = [(rolling, why) for rolling, why in self._rolling if rolling is not pair]

    def _is_rolling(self, pair: PairWriter) -> bool:
        with self._lock:
            return any(rolling is pair for rolling, _ in self._rolling)

    # The background thread.

    def _start_thread(self) -> None:
        if self._thread is not None or self._closed:
            return
        # Known before it starts, so that Ctrl-C in between cannot lead to a second one.
        self._thread = threading.Thread(target=self._work, name=f"rear {self._name}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            # The interpreter is shutting down: close() does it all.
            self._thread = None

    def _work(self) -> None:
        thread = self._begin_alone()
        try:
            self._inside.add(thread)
            self._run()
        finally:
            self._inside.discard(thread)
            self._tell_log()

    def _run(self) -> None:
        beat_seconds = self.options.lease_seconds / _BEATS_A_LEASE
        beaten = synced = self._storage.uptime()
        while True:
            pair, dirty = self._pair, bool(self._retained)
            if not self._rolling:
                self._wake.wait(self._idle_seconds(pair, dirty, beaten, synced, beat_seconds))
            self._wake.clear()
            if self._stopping:
                return
            try:
                now = self._storage.uptime()
                if pair is not None and now - max(beaten, pair.created) >= beat_seconds:
                    beaten = now
                    self._beat(pair)
                for parts in list(self._flushed):
                    parts.tend(now)
                # An append of gigabytes holds the lock for long; beats must go on.
                if not self._lock.acquire(timeout=min(beat_seconds / 2, _LONGEST_WAIT_SECONDS)):
                    self._wake.set()
                    continue
                try:
                    if self._pair is not None and now - self._pair.created >= self._pair_seconds:
                        self._roll_over("rotation")
                finally:
                    self._lock.release()
                with self._sync_lock:
                    self._finish_rolling()
                    if self._hurries or now - synced >= self.options.sync_interval:
                        synced = now
                        self._hurries = False
                        self._sync_all()
            except Exception as error:
                # Whatever it is: without this thread nothing would be synced, beaten or rolled over any more.
                expected = isinstance(error, OSError)
                tell_error(
                    "%s: %r; acknowledged members are kept and tried again",
                    self.layout.base,
                    error,
                    with_traceback=not expected,
                )
                self._wake.wait(min(self.options.sync_interval, _LONGEST_WAIT_SECONDS))
            self._tell_log()

    def _tell_log(self) -> None:
        """Log what there is to be told, without any lock: a handler of that log may be waiting for one of ours."""
        while self._told:
            tell, message, *values = self._told.pop(0)
            tell(message, *values)

    def _idle_seconds(
        self, pair: PairWriter | None, dirty: bool, beaten: float, synced: float, beat_seconds: float
    ) -> float | None:
        due = [time for parts in list(self._flushed) if (time := parts.due) is not None]
        if dirty:
            due.append(synced + self.options.sync_interval)
        if pair is not None:
            due += [max(beaten, pair.created) + beat_seconds, pair.created + self._pair_seconds]
        return max(0.0, min(min(due) - self._storage.uptime(), _LONGEST_WAIT_SECONDS)) if due else None

    def _sync_all(self) -> None:
        with self._lock:
            last = self._retained[-1] if self._retained else None
        if last is not None:
            self._sync_until(last)

    def _beat(self, pair: PairWriter) -> None:
        try:
            if pair.is_doubtful():
                owned = pair.confirm() and pair.beat()
            else:
                owned = pair.beat()
        except OSError as error:
            with self._lock:
                # Also when it has rolled over meanwhile: the kernel tells of a failed sync once.
                if not pair.released and pair not in self._failed:
                    self._give_up(pair, error)
                    self._renew(None)
            return
        if not owned:
            with self._lock:
                if pair is self._pair:
                    self._lose(pair)
                    self._renew(None)
            return
        requests = set(self._storage.names(self.layout.flush_requests))
        if requests - self._answered_flushes:
            self.roll_over("flush")
        self._answered_flushes = requests


def _list_unproven(names: list[str], error: OSError) -> str:
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"{len(names)} acknowledged members could not be brought to stable storage ({error}): {shown}"


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for worker in list(_workers):
        worker.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
