"""One scavenge of a base: the flow inbox → claim → check → plan → copy → commit → index → clear.

It yields events and prints nothing. Whenever it stops, the next one goes on from what is on disk.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from rear.core.layout import Layout, has_state, layout_of
from rear.core.liveness import Liveness
from rear.core.log import Pace
from rear.core.names import STATE
from rear.core.parallel import Parallel
from rear.core.records import Pair
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import NotLeaderError, RearError
from rear.events import (
    Advanced,
    Cleared,
    Damaged,
    Event,
    Finished,
    JournalDamaged,
    JournalRebuilt,
    LeftAlone,
    NothingYet,
    Refused,
    RoundStarted,
    Started,
)
from rear.scavenger.claims import ClaimedPair, Claims, Orphan
from rear.scavenger.dry_run import preview
from rear.scavenger.final_archive import open_final_archive
from rear.scavenger.flushed_files import PartialPolicy
from rear.scavenger.gc_pause import seldom_collected
from rear.scavenger.inbox import Inbox
from rear.scavenger.leader import Leadership
from rear.scavenger.lost_and_found import lost_and_found_of
from rear.scavenger.merge import Merger
from rear.scavenger.options import ScavengeOptions, options_for
from rear.scavenger.owners import OwnerBudget, Owners
from rear.scavenger.pair_check import DECODED_BYTES, PairCheck
from rear.scavenger.plan import Candidate, Conflict, by_archive
from rear.scavenger.rebuilt_journal import JournalMaker
from rear.scavenger.recovery import Recovery
from rear.scavenger.refusals import unusable_parts
from rear.scavenger.report import Report, Totals, report_refused
from rear.scavenger.rollover import Cap, roll_over

if TYPE_CHECKING:
    from concurrent.futures import Executor

MEMBERS_A_ROUND = 100_000
"""Journals of about this many members are held in memory at once."""
PAIRS_A_ROUND = 1_000
"""Or so many pairs: a folder of claims is listed for many of them, which has them all."""
MEMBERS_IN_MEMORY = 2 * MEMBERS_A_ROUND
"""A pair that would bring a round above this many waits for the next one."""
MEMBERS_A_FILE = 10
"""A pair of a flushed file takes as much memory as so many members of others."""
BYTES_A_ROUND = 1 << 30
"""About so much is checked before it is merged: what a scavenge that is ended half-way has done stays done."""
_WAIT_POLL_SECONDS = 5.0


def scavenge(
    base: StrPath,
    *,
    verify: bool | None = None,
    dry_run: bool = False,
    flush: bool = False,
    flush_wait_seconds: float = 30.0,
    wait: bool = False,
    on_conflict: Conflict | None = None,
    partial: PartialPolicy | None = None,
    max_size: int | None = None,
    max_members: int | None = None,
    assume_dead: Sequence[str] = (),
    executor: Executor | None = None,
    owner_only: bool = False,
    storage: Storage = LOCAL,
) -> Iterator[Event]:
    """Merge what workers have ended, or left behind, into the final archives, and yield what happens.

    Nothing happens before the first event is asked for; the last one is `Finished`. What is not given is set by the
    environment, by the base's ``.rear/config.toml``, or by default: see ``rear config``.

    Args:
        base: directory on the shared file system.
        verify: read and check every member before the merge, and the merged bytes before they count.
        dry_run: only say what would be merged; nothing is changed.
        flush: ask live workers to end their temp archives now, and wait for them.
        flush_wait_seconds: how long to wait for them at most.
        wait: wait until a leader or workers that cannot be seen from here have shown a sign of life, or have not done
            so for a lease and count as dead: a minute, usually. Without it a later scavenge takes them over.
        on_conflict: what becomes of members of one name and different content: ``"rename"`` keeps both (``a~1.txt``),
            ``"first"`` and ``"last"`` keep one and bring the other to lost+found.
        partial: what becomes of a file that its writer flushed, and did not close before it died: ``"keep"``: what was
            flushed is a member with ``"rear.partial": true`` in its metadata; ``"drop"``: it goes to lost+found.
        max_size: bytes above which a final archive is renamed ``ar-0.zip`` and a new one begins.
        max_members: members above which the same happens.
        assume_dead: hosts, workers and leaders (by the names that events and errors give them) that somebody knows to
            be gone, so that nothing waits for their leases. It decides only where nothing can be seen from here: a
            process of this host that runs is never taken for dead.
        executor: checks members and copies ranges, when there is much of it: any `concurrent.futures.Executor` whose
            workers see the base under the same path. It is not shut down.
        owner_only: take only pairs that belong to this user, end only merges that this user has begun, and merge only
            into archives of this user; all else is left as it is.
        storage: the file system.

    Raises:
        UsageError: an option has a value that cannot be used.
        BaseError: there is no such base, or something of it is shut without which nothing can be merged.
        NotLeaderError: another scavenger is at work; nothing to do.
        OSError: the base cannot be written.
    """
    layout = layout_of(base)
    options = options_for(
        layout,
        verify=verify,
        on_conflict=on_conflict,
        max_size=max_size,
        max_members=max_members,
        dry_run=dry_run,
        flush=flush,
        flush_wait_seconds=flush_wait_seconds,
        wait=wait,
        assume_dead=assume_dead,
        executor=executor,
        partial=partial,
        owner_only=owner_only,
        storage=storage,
    )
    return _run(layout, options, storage)


def _run(layout: Layout, options: ScavengeOptions, storage: Storage) -> Iterator[Event]:
    if not has_state(layout):
        # Not made here: a scavenge in the wrong folder leaves no trace.
        yield NothingYet(str(layout.base))
        yield Finished(0, 0, 0, 0, 0, 0, 0, 0, 0, None)
        return
    totals = Totals()
    liveness = Liveness(options.assume_dead)
    if options.dry_run:
        owners = Owners(owner_only=options.owner_only)
        for event in preview(
            layout, on_conflict=options.on_conflict, liveness=liveness, owners=owners, storage=storage
        ):
            totals.add(event)
            yield event
        yield totals.summary()
        return
    with (yield from _leadership(layout, options, liveness, storage)) as leadership:
        run, report = Scavenge(layout, options, leadership, liveness, storage), Report()
        try:
            for event in run.events():
                totals.add(event)
                report.add(event)
                yield event
        except OSError:
            # Who takes over takes files and folders away, and an NFS client makes a file whose lock it lost fail for
            # ever: then that is what there is to say.
            leadership.prove()
            raise
        name = None
        try:
            name = report.write(layout, leadership.name, totals.summary().as_json(), storage=storage)
        except OSError as error:
            refused = report_refused(error)
            totals.add(refused)
            yield refused
        yield totals.summary(name)


def _leadership(
    layout: Layout, options: ScavengeOptions, liveness: Liveness, storage: Storage
) -> Generator[Event, None, Leadership]:
    """Return the right to scavenge, after a wait if it may be waited for.

    Raises:
        NotLeaderError: another scavenger leads, or may still do so.
    """
    deadline = None
    while True:
        try:
            return Leadership(layout, liveness=liveness, storage=storage)
        except NotLeaderError as error:
            if not options.wait or error.wait_seconds is None:
                raise
            # One that shows a sign of life meanwhile leads: it is not waited for again.
            deadline = deadline or storage.uptime() + error.wait_seconds + _WAIT_POLL_SECONDS
            if storage.uptime() > deadline:
                raise
            yield Advanced("waiting")
            time.sleep(min(error.wait_seconds, _WAIT_POLL_SECONDS))


class Scavenge:
    """The steps of one scavenge, by a leader."""

    def __init__(
        self, layout: Layout, options: ScavengeOptions, leadership: Leadership, liveness: Liveness, storage: Storage
    ) -> None:
        self._layout = layout
        self._options = options
        self._leadership = leadership
        self._liveness = liveness
        self._storage = storage
        self._owners = Owners(owner_only=options.owner_only)
        self._claims = Claims(leadership, owners=self._owners, storage=storage)
        self._inbox = Inbox(layout, liveness=liveness, owners=self._owners, storage=storage)
        self._recovery = Recovery(leadership, self._claims, owners=self._owners, storage=storage)
        self._lost_and_found = lost_and_found_of(layout, storage=storage)
        self._adopted: list[ClaimedPair] = []
        self._decoded = OwnerBudget(DECODED_BYTES)
        self._journals = JournalMaker(self._lost_and_found, storage=storage)
        self._cap = Cap(options.max_size, options.max_members)
        self._parallel = Parallel(options.executor, storage=storage)
        self._merger = Merger(
            leadership,
            self._claims,
            self._recovery,
            self._lost_and_found,
            options=options,
            parallel=self._parallel,
            storage=storage,
        )

    def events(self) -> Iterator[Event]:
        """Scavenge, and yield what happens; neither the last event, `Finished`, nor the report is of this."""
        yield from self.recover()
        yield from self.merge()

    def recover(self) -> Iterator[Event]:
        """Take over from leaders before, and bring their merges to an end."""
        yield Started(str(self._layout.base), self._leadership.name)
        yield from unusable_parts(self._layout, self._layout.optional, storage=self._storage)
        if self._options.flush:
            yield Advanced("flushing")
            try:
                self._inbox.ask_for_flush(self._options.flush_wait_seconds)
            except OSError as error:
                self._leadership.prove()
                yield Refused(f"{STATE}/flush", f"live workers could not be asked to end their temp archives: {error}")
        yield Advanced("recovering")
        yield from self._claims.adopt()
        adopted: list[ClaimedPair] = []
        for item in self._claims.adopted():
            for outcome in self._with_journal(item):
                if isinstance(outcome, ClaimedPair):
                    adopted.append(outcome)
                else:
                    yield outcome
        yield from self._recovery.recover({claimed.name: claimed for claimed in adopted})
        self._adopted = adopted

    def merge(self) -> Iterator[Event]:
        """Merge what leaders before had claimed, and what waits; `recover` has to come first."""
        deadline = None
        while True:
            left: list[LeftAlone | Refused] = []
            for event in self._merge_once():
                if self._options.wait and isinstance(event, (LeftAlone, Refused)):
                    left.append(event)
                else:
                    yield event
            seconds = max((one.wait_seconds or 0.0 for one in left if isinstance(one, LeftAlone)), default=0.0)
            # Who shows a sign of life meanwhile is not waited for again.
            deadline = deadline or self._storage.uptime() + seconds + _WAIT_POLL_SECONDS
            if not seconds or self._storage.uptime() >= deadline:
                break
            yield Advanced("waiting")
            time.sleep(min(seconds, _WAIT_POLL_SECONDS))
        yield from left
        self._claims.finish()
        for name in sorted(self._liveness.unused):
            yield Refused(name, "assumed dead as asked, but no temp archive waits for a host or worker of that name")

    def _merge_once(self) -> Generator[Event, None, None]:
        adopted, self._adopted = self._adopted, []
        waiting = len(adopted) + self._inbox.count()
        items = itertools.chain(adopted, self._claims.exhumed(), self._inbox.waiting())
        return seldom_collected(self._work_off(items, waiting))

    def _work_off(
        self, items: Iterable[ClaimedPair | Pair | Orphan | Event], waiting: int
    ) -> Generator[Event, None, None]:
        """Claim and merge in rounds, so that memory stays bounded however much is waiting."""
        batch: list[ClaimedPair] = []
        # Pairs of one flushed file are seen together, as far as memory allows, and hold one member each.
        files: list[ClaimedPair] = []
        members, in_files, size_bytes, pace, is_in_doubt = 0, 0, 0, Pace(), False
        yield Advanced("claiming", None, 0, waiting)
        for number, item in enumerate(items):
            if pace.is_due():
                yield Advanced("claiming", None, number, max(waiting, number))
            if isinstance(item, Event):
                yield item
                continue
            if batch and self._inbox.in_doubt and not is_in_doubt:
                yield from self._round(batch)
                batch, members, size_bytes = [], 0, 0
            is_in_doubt = self._inbox.in_doubt
            taken = item if isinstance(item, ClaimedPair) else self._claims.claim(item)
            for claimed in self._with_journal(taken):
                if isinstance(claimed, Event):
                    yield claimed
                    continue
                if claimed.journal.file is not None:
                    files.append(claimed)
                    in_files += claimed.journal.weight + MEMBERS_A_FILE
                    continue
                if batch and members + claimed.journal.weight > MEMBERS_IN_MEMORY:
                    yield from self._round(batch)
                    batch, members, size_bytes = [], 0, 0
                batch.append(claimed)
                members += claimed.journal.weight
                last = next(reversed(claimed.journal.appends.values()), None)
                size_bytes += last.offset + last.length if last is not None else 0
            is_full = members >= MEMBERS_A_ROUND or size_bytes >= BYTES_A_ROUND or len(batch) >= PAIRS_A_ROUND
            if batch and is_full:
                yield from self._round(batch)
                batch, members, size_bytes = [], 0, 0
            if in_files >= MEMBERS_IN_MEMORY:
                yield from self._round(files)
                files, in_files = [], 0
        if batch or files:
            yield from self._round([*batch, *files])

    def _with_journal(self, item: ClaimedPair | Orphan | Event) -> Iterator[ClaimedPair | Event]:
        """Give a temp archive without a usable journal one, or keep it in lost+found as a whole."""
        if not isinstance(item, Orphan):
            yield item
            return
        pair, folder = item.pair, self._claims.folder(item.pair)
        # To be taken over makes the journal go missing as well.
        self._leadership.prove()
        try:
            members, remark = self._journals.make(pair, folder)
            if not members:
                reason = f"{item.reason}, and no member in the temp archive can be placed{remark}"
                kept = self._lost_and_found.put_pair(pair, folder, {"pair": str(pair), "reason": reason})
                yield Damaged(str(pair), 0, 0, reason, kept)
                return
        except (RearError, OSError) as error:
            yield Refused(
                str(pair), f"{item.reason}, and it cannot be made anew: {error}; the next scavenge tries again"
            )
            return
        yield JournalRebuilt(str(pair), members, item.reason, item.code)
        again = self._claims.read(pair)
        if isinstance(again, Orphan):
            # A server that gives files of root to another user (root_squash) does not even tell whose this one is.
            again = Refused(str(pair), f"{again.reason}, and made anew it belongs to another user than this one")
        yield again

    def _round(self, batch: list[ClaimedPair]) -> Iterator[Event]:
        batch.sort(key=lambda claimed: (claimed.pair.host, claimed.pair.worker, claimed.pair.rotation))
        lengths = [append.length for claimed in batch for append in claimed.journal.pending()]
        yield RoundStarted(len(batch), len(lengths), sum(lengths))
        salvage = PairCheck(
            self._layout,
            self._claims,
            self._lost_and_found,
            batch,
            options=self._options,
            decoded=self._decoded,
            parallel=self._parallel,
            storage=self._storage,
        )
        with closing(salvage):
            yield from self._merge_round(batch, salvage)
        yield Advanced("clearing", None, 0, len(batch))
        for claimed in batch:
            try:
                yield from self._clear(claimed, salvage)
            except NotLeaderError:
                raise
            except (RearError, OSError) as error:
                self._leadership.prove()
                yield Refused(
                    claimed.name, f"it can be neither put back nor removed: {error}; the next scavenge goes on with it"
                )

    def _merge_round(self, batch: list[ClaimedPair], salvage: PairCheck) -> Iterator[Event]:
        candidates_of: dict[str, list[Candidate]] = {}
        yield from salvage.prove_notes()
        for claimed in batch:
            for item in salvage.check(claimed):
                if isinstance(item, list):
                    for archive, candidates in by_archive(item).items():
                        candidates_of.setdefault(archive, []).extend(candidates)
                else:
                    yield item
        for archive, candidates in candidates_of.items():
            try:
                yield from self._merge(archive, candidates)
            except NotLeaderError:
                raise
            except (RearError, OSError) as error:
                self._leadership.prove()
                yield Refused(
                    archive, f"{error}; of its {len(candidates):,} new members, those not merged yet stay in the inbox"
                )
        yield from salvage.second_copies.settle()

    def _merge(self, archive: str, candidates: list[Candidate]) -> Iterator[Event]:
        yield from self._recovery.put_unreadable_aside(archive)
        while candidates:
            with open_final_archive(self._layout, archive, storage=self._storage) as target:
                self._owners.check(target.descriptor, archive)
                fitting = self._cap.fitting(candidates, target.directory)
            if fitting == 0:
                self._leadership.prove()
                yield roll_over(self._layout, archive, storage=self._storage)
                continue
            yield from self._merger.merge(archive, candidates[:fitting])
            candidates = candidates[fitting:]

    def _clear(self, claimed: ClaimedPair, salvage: PairCheck) -> Iterator[Event]:
        """Remove a pair whose members are all accounted for; put one back that has members left."""
        pending = claimed.journal.pending()
        if pending or salvage.has_failed(claimed):
            # The next leader looks up what an unfinished merge holds, or was taken over: it is not to come as new.
            stays = any(map(self._recovery.has_unfinished_merge, {append.archive for append in pending}))
            if not stays and not (claimed.is_taken_over and salvage.has_failed(claimed)):
                self._claims.release(claimed)
            return
        damage = claimed.journal.damage
        if claimed.state != "stale" and salvage.has_remains(claimed) and not salvage.has_grown(claimed):
            yield from salvage.put_away_remains(claimed)
            return
        self._claims.clear(claimed)
        if damage and claimed.state != "stale":
            length = sum(one.length for one in damage)
            yield JournalDamaged(claimed.name, length, f"{damage[0].reason}; no member is missing")
        yield Cleared(claimed.name)
