"""Work that somebody has begun in a base and not ended: temp archives without worker, claims, and intents of merges.

What a live worker or scavenger is doing is nothing of that kind. Where nothing is to be changed, it is told what a
scavenge would do; what is in the way of one is put aside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rear.core.layout import Layout, look_anew
from rear.core.liveness import Liveness
from rear.core.names import STATE
from rear.core.problems import Outcome, Problem
from rear.core.records import Pair
from rear.core.storage import Storage, opened
from rear.core.trust import counts_for_archive
from rear.errors import FutureVersionError, JournalError, UnfinishedIntentError
from rear.events import Claimed, Event, Refused
from rear.fsck.event_problems import guarded, problem_of
from rear.journal.intent import UNFINISHED_SUFFIX, read_open_intent
from rear.scavenger.claims import ClaimedPair, Orphan
from rear.scavenger.inbox import Inbox
from rear.scavenger.leader import Leadership
from rear.scavenger.lost_and_found import LostAndFound
from rear.scavenger.refusals import hosts_in, names_unless_shut


class UnfinishedWork:
    """Looks for it in one base.

    Args:
        layout: the base.
        liveness: says which workers have ended.
        storage: the file system.
    """

    def __init__(self, layout: Layout, liveness: Liveness, *, storage: Storage) -> None:
        self._layout = layout
        self._liveness = liveness
        self._storage = storage

    def temp_archives(self) -> Iterator[Event]:
        """Yield what waits in the inbox, and what is wrong with it."""
        inbox = Inbox(self._layout, liveness=self._liveness, storage=self._storage)
        for item in inbox.waiting(remember=False):
            if isinstance(item, Event):
                yield problem_of(item) or item
            else:
                pair = item.pair if isinstance(item, Orphan) else item
                yield from guarded(str(pair), self._look_at(item, inbox))

    def _look_at(self, item: Pair | Orphan, inbox: Inbox) -> Iterator[Event]:
        found = item if isinstance(item, Orphan) else inbox.peek(item)
        if isinstance(found, Orphan):
            code = "journal-missing" if found.code == "missing" else "journal-damaged"
            yield Problem(code, f"{STATE}/inbox/{found.pair}", found.reason, "would repair")
        elif isinstance(found, ClaimedPair):
            yield from self._look_at_pair(found)
        else:
            yield problem_of(found) or found

    def _look_at_pair(self, claimed: ClaimedPair) -> Iterator[Event]:
        pending = claimed.journal.pending()
        yield Claimed(str(claimed.pair), claimed.state, len(pending), sum(append.length for append in pending))
        subject = f"{STATE}/inbox/{claimed.pair}"
        if claimed.state != "closed":
            yield Problem(
                "worker-crashed", subject, f"its worker is gone; {len(pending):,} members wait", "would repair"
            )
        if claimed.temp_archive.name not in self._storage.names(claimed.folder):
            detail = f"of {len(pending):,} members, what is not elsewhere will be lost"
            yield Problem("temp-archive-missing", subject, detail, "would repair")
        else:
            # Whoever may not open it learns it now.
            self._storage.size_of(claimed.temp_archive)
        for damage in claimed.journal.damage:
            yield Problem(
                "journal-damaged", subject, damage.reason, "would repair", offset=damage.start, length=damage.length
            )

    def claims(self, outcome: Outcome) -> Iterator[Event]:
        """Yield scavengers that have claimed temp archives, with this outcome."""
        for leader in names_unless_shut(self._layout.claims, storage=self._storage):
            folder = self._layout.claims / leader
            count = 0
            for found in hosts_in(self._layout, folder, storage=self._storage):
                if isinstance(found, Refused):
                    yield problem_of(found) or found
                else:
                    count += sum(name.endswith(".journal") for name in found[1])
            if count:
                detail = f"it had claimed {count:,} temp archives"
                yield Problem("scavenger-crashed", f"{STATE}/claims/{leader}", detail, outcome)

    def intents(self, outcome: Outcome) -> Iterator[Event]:
        """Yield merges that are not complete, with this outcome, and intents by which nothing can be undone."""
        for name in names_unless_shut(self._layout.intents, storage=self._storage):
            if name.endswith((".intent", UNFINISHED_SUFFIX)):
                subject = f"{STATE}/intents/{name}"
                yield from guarded(subject, self._look_at_intent(self._layout.intents / name, subject, outcome))

    def _look_at_intent(self, path: Path, subject: str, outcome: Outcome) -> Iterator[Event]:
        reason = self._why_useless(path) if path.suffix == ".intent" else None
        if reason is not None:
            yield Problem("intent-unreadable", subject, reason, "would repair")
        else:
            detail = "a merge into a final archive is under way, or its scavenger has died"
            yield Problem("unfinished-merge", subject, detail, outcome)

    def settle_intents(self, leadership: Leadership, lost_and_found: LostAndFound) -> Iterator[Event]:
        """Put aside records of merges by which nothing can be undone: what they protect is checked by other means.

        Raises:
            NotLeaderError: another scavenger has taken over.
        """
        folder = self._layout.intents
        for name in (name for name in self._storage.names(folder) if name.endswith(".intent")):
            subject = f"{STATE}/intents/{name}"
            yield from guarded(subject, self._settle_intent(folder / name, subject, leadership, lost_and_found))

    def _settle_intent(
        self, path: Path, subject: str, leadership: Leadership, lost_and_found: LostAndFound
    ) -> Iterator[Event]:
        reason = self._why_useless(path)
        if reason is not None:
            leadership.prove()
            item = lost_and_found.put_file(path.name, path, {"subject": subject, "reason": reason})
            yield Problem("intent-unreadable", subject, reason, "repaired", lost_and_found=item)

    def _why_useless(self, path: Path) -> str | None:
        with opened(path, self._storage) as descriptor:
            try:
                intent = read_open_intent(descriptor, storage=self._storage)
            except UnfinishedIntentError:
                return None
            except FutureVersionError:
                raise
            except JournalError as error:
                return str(error)
            status = os.fstat(descriptor)
        target = self._layout.archive(intent.archive)
        if not counts_for_archive(status, path, target):
            return f"it belongs to user {status.st_uid}, who may not replace its archive {intent.archive}"
        if intent.old is None or intent.committed:
            return None
        look_anew(target, storage=self._storage)
        if target.name not in self._storage.names(target.parent):
            return f"its archive {intent.archive} is not there any more"
        if self._storage.size_of(target) < intent.old.offset:
            return f"its archive {intent.archive} is shorter than before the merge"
        return None
