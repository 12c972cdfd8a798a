"""The inbox of a base: which pairs wait there for a scavenge, because their worker has ended, and which are left alone.

A worker that can be seen from here is gone, or lives. Any other counts as gone when its journal has not changed over a
whole lease: what was seen is written down for the next scavenge. So does one whose process runs, and does not beat: it
may be another program by now (``exec``), or hang.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace

from rear.core.layout import Layout, make_in_base, parse_pair
from rear.core.liveness import Liveness, Observations, Process, process_of, process_of_worker
from rear.core.names import is_litter, is_safe_component
from rear.core.records import Pair
from rear.core.storage import Storage
from rear.events import Cleared, Event, LeftAlone, Refused
from rear.journal.reader import Journal, skim_journal
from rear.scavenger.claims import (
    GRAVEYARD_SECONDS,
    ClaimedPair,
    Orphan,
    load_journal,
    read_pair,
    remove_pair,
    taken,
    without_first_record,
)
from rear.scavenger.owners import ALL, Owners
from rear.scavenger.refusals import names_in, names_unless_shut, saved, shut_folder

_FLUSH_POLL_SECONDS = 0.25
_USUAL_JOURNAL_BYTES = 256 << 20
"""Longer journals are of few pairs, and of forged ones: they are read when all others have been merged."""

_USUAL_NOTES_BYTES = 4 << 20


class Inbox:
    """The inbox of one base.

    Attributes:
        in_doubt: all pairs in good order have been yielded, and those come now that may cost much, or never be merged.
    """

    in_doubt = False

    def __init__(self, layout: Layout, *, liveness: Liveness, owners: Owners = ALL, storage: Storage) -> None:
        self._layout = layout
        self._owners = owners
        self._liveness = liveness
        self._storage = storage
        self._observations = Observations(layout, topic="workers", storage=storage)

    def count(self) -> int:
        """Count the journals in the inbox, those of live workers too."""
        inbox = self._layout.inbox
        hosts = filter(is_safe_component, names_unless_shut(inbox, storage=self._storage))
        names = (names_unless_shut(inbox / host, storage=self._storage) for host in hosts)
        return sum(name.endswith(".journal") for some in names for name in some)

    def waiting(self, *, remember: bool = True) -> Iterator[Pair | Orphan | Event]:
        """Yield the pairs in the inbox whose worker has ended, and say why others are left alone.

        Those in good order come first: whatever the others cost, it keeps nobody waiting. To remember is to write down
        which beats were seen, for the next scavenge on this host.
        """
        self.in_doubt = False
        doubtful: list[Pair | Orphan] = []
        for item in self._found(doubtful, remember=remember):
            if isinstance(item, Orphan):
                doubtful.append(item)
            else:
                yield item
        self.in_doubt = True
        yield from doubtful
        if remember:
            yield from saved(self._observations)

    def _found(self, doubtful: list[Pair | Orphan], *, remember: bool) -> Iterator[Pair | Orphan | Event]:
        """Yield what is there; pairs whose journal is not in good order are put to the doubtful ones."""
        for host in self._hosts(remember):
            if is_litter(host):
                continue
            if not is_safe_component(host):
                yield Refused(f".rear/inbox/{host}", "not a name that rear gives; left as it is")
                continue
            try:
                names = names_in(self._layout.inbox / host, storage=self._storage)
            except OSError as error:
                yield shut_folder(self._layout, self._layout.inbox / host, error)
                continue
            present = set(names)
            for name in names:
                pair = parse_pair(host, name)
                if pair is not None:
                    yield from self._look_at(pair, name, present, doubtful, remember=remember)
                elif not is_litter(name):
                    yield Refused(f".rear/inbox/{host}/{name}", "not a name that rear gives; left as it is")

    def _hosts(self, remember: bool) -> list[str]:
        if remember:
            return self._storage.names(self._layout.inbox)
        # Who only looks has been told.
        return names_unless_shut(self._layout.inbox, storage=self._storage)

    def _look_at(
        self, pair: Pair, name: str, present: set[str], doubtful: list[Pair | Orphan], *, remember: bool
    ) -> Iterator[Pair | Orphan | Event]:
        """Yield what a file of a pair means, if it is the one that speaks for the pair."""
        try:
            is_orphan = name.endswith(".zip") and f"{pair.stem}.journal" not in present
            if not is_orphan and not name.endswith(".journal"):
                return
            if left := self._owners.left(pair, self._layout.inbox_folder(pair)):
                yield left
            elif is_orphan:
                yield self._orphan(Orphan(pair, "missing"), present)
            else:
                reason, in_order = self._why_not(pair, present)
                if reason is None and not in_order:
                    doubtful.append(pair)
                    return
                if isinstance(reason, Orphan) and self._is_unborn(pair, present):
                    if remember:
                        remove_pair(pair, self._layout.inbox_folder(pair), storage=self._storage)
                    reason = Cleared(str(pair))
                yield pair if reason is None else reason
        except OSError as error:
            yield Refused(str(pair), f"it cannot be looked at: {error}; left as it is")

    def peek(self, pair: Pair) -> ClaimedPair | Orphan | Event:
        """Read a pair where it is, without taking it."""
        try:
            return read_pair(pair, self._layout.inbox_folder(pair), storage=self._storage)
        except OSError as error:
            return Refused(str(pair), f"it cannot be looked at: {error}; left as it is")

    def _length(self, pair: Pair, present: set[str]) -> int:
        """Return the length of a temp archive, 0 of one that is not there."""
        path = self._layout.temp_archive(pair)
        try:
            return self._storage.size_of(path)
        except FileNotFoundError:
            # NFS may deny a file that is there, and a listing shows.
            if path.name in present and path.name in self._storage.names(path.parent):
                raise
            return 0

    def _orphan(self, orphan: Orphan, present: set[str]) -> Orphan | LeftAlone:
        """Decide about a temp archive whose journal cannot show a beat: its worker's name, and its length, have to.

        No record says what lease it has, and a worker that is just making it may be slow: see `BIRTH_SECONDS`.
        """
        pair = orphan.pair
        process = process_of_worker(pair.host, pair.worker) or Process(pair.host, 0, None, None, None)
        running = self._liveness.is_running(process, pair.worker)
        # Also of one that is gone: what is no file, or shut, is not taken.
        length = self._length(pair, present)
        if running is False:
            return orphan
        unchanged = self._observations.unchanged_seconds(str(pair), f"/{length}")
        if unchanged >= GRAVEYARD_SECONDS:
            return orphan
        left = _left(f"{orphan.reason}, and", pair, running, GRAVEYARD_SECONDS - unchanged)
        return replace(left, fault=orphan.code)

    def _why_not(self, pair: Pair, present: set[str]) -> tuple[Orphan | Event | None, bool]:
        """Return why a pair is not to be claimed, if so, and whether it is in good order at first sight."""
        journal = load_journal(pair, self._layout.inbox_folder(pair), skim_journal, storage=self._storage)
        if journal is None or isinstance(journal, Event):
            return journal or taken(pair), False
        in_order = (
            not journal.damage and journal.length <= _USUAL_JOURNAL_BYTES and self._has_usual_notes(pair, present)
        )
        opened = journal.opened
        if opened is None:
            return self._orphan(without_first_record(pair, journal), present), False
        if journal.closed is not None:
            return None, in_order
        running = self._liveness.is_running(process_of(opened), opened.worker)
        if running is False:
            return None, in_order
        unchanged = self._observations.unchanged_seconds(str(pair), f"{journal.beats}/{journal.length}")
        if unchanged >= opened.lease_seconds:
            return None, in_order
        left = opened.lease_seconds - unchanged
        return _left("", pair, running, left, has_file=journal.file is not None), False

    def _has_usual_notes(self, pair: Pair, present: set[str]) -> bool:
        name = f"{pair.stem}.merged"
        if name not in present:
            return True
        with contextlib.suppress(FileNotFoundError):
            return self._storage.size_of(self._layout.inbox_folder(pair) / name) <= _USUAL_NOTES_BYTES
        return True

    def _is_unborn(self, pair: Pair, present: set[str]) -> bool:
        """Whether a worker that is gone died before its first record: then it wrote no member at all."""
        journal = load_journal(pair, self._layout.inbox_folder(pair), storage=self._storage)
        if not isinstance(journal, Journal) or journal.opened is not None or journal.damage or journal.appends:
            return False
        return self._length(pair, present) == 0

    def ask_for_flush(self, wait_seconds: float) -> None:
        """Leave a request that live workers see with their next beat, and wait until they have answered."""
        folder = self._layout.flush_requests
        make_in_base(self._layout.base, folder, storage=self._storage)
        for name in self._storage.names(folder):
            # Requests of scavengers that died while waiting.
            with contextlib.suppress(OSError):
                if self._owners.takes(folder / name):
                    self._storage.unlink(folder / name)
        request = folder / secrets.token_hex(8)
        self._storage.close(self._storage.create(request))
        try:
            deadline = self._storage.uptime() + wait_seconds
            asked = set(self._live_pairs())
            while asked and self._storage.uptime() < deadline:
                time.sleep(_FLUSH_POLL_SECONDS)
                asked &= set(self._live_pairs())
        finally:
            self._storage.unlink(request)

    def _live_pairs(self) -> Iterator[str]:
        for item in self.waiting(remember=False):
            # A file that is still open is not asked for: its pair ends with it.
            if isinstance(item, LeftAlone) and item.code not in ("file-open", "taken"):
                yield item.pair


def _left(what: str, pair: Pair, running: bool | None, seconds: float, *, has_file: bool = False) -> LeftAlone:
    """Return the event that tells of a pair whose worker lives, or counts as alive for another while."""
    if running is None:
        reason = (
            f"its worker on {pair.host} cannot be seen from here; without a sign of life for another {seconds:.0f} s "
            "it counts as dead"
        )
        return LeftAlone(str(pair), f"{what} {reason}".lstrip(), "worker-unseen", seconds)
    # No request ends the pair of a file.
    reason = "its worker lives" + (", and has not closed the file that it flushes" if has_file else "")
    return LeftAlone(str(pair), f"{what} {reason}".lstrip(), "file-open" if has_file else "worker-lives")
