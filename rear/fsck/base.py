"""`rear fsck`: recovers a base. It scavenges, then checks each final archive, each index, and looks for strays.

It yields typed problems, each with what became of it, and the events of the scavenge. Nothing is removed that is not
proven to be elsewhere: a damaged archive and everything that cannot be placed stays in lost+found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rear.core.layout import Layout, is_directory, layout_of, look_anew
from rear.core.liveness import Liveness
from rear.core.names import STATE, check_archive
from rear.core.parallel import Parallel
from rear.core.problems import Outcome, Problem
from rear.core.storage import LOCAL, Storage, StrPath, opened
from rear.errors import (
    FormatError,
    FutureVersionError,
    IndexFormatError,
    JournalError,
    NotLeaderError,
    PathError,
    RearError,
    UnfinishedIntentError,
    UnsupportedError,
)
from rear.events import (
    Advanced,
    Checked,
    Claimed,
    Damaged,
    Event,
    IndexRebuilt,
    JournalDamaged,
    JournalRebuilt,
    Lost,
    NothingYet,
    Partial,
    Recovered,
    Refused,
    RolledBack,
    RolledForward,
    Torn,
)
from rear.fsck.inspection import inspect_steps
from rear.fsck.restore import Restoration
from rear.fsck.strays import find_strays
from rear.index.index import Index, rows_of
from rear.journal.intent import UNFINISHED_SUFFIX, read_intent
from rear.read.archive_tree import ArchiveTree
from rear.read.view import open_committed
from rear.salvage.scan import scan
from rear.salvage.scan_result import Found
from rear.scavenger.claims import ClaimedPair, Orphan
from rear.scavenger.inbox import Inbox
from rear.scavenger.leader import Leadership, is_led
from rear.scavenger.lost_and_found import lost_and_found_of
from rear.scavenger.options import options_for
from rear.scavenger.report import Report, report_refused
from rear.scavenger.scavenge import Scavenge

if TYPE_CHECKING:
    from concurrent.futures import Executor


def fsck(
    base: StrPath,
    *,
    report_only: bool = False,
    deep: bool = False,
    assume_dead: Sequence[str] = (),
    executor: Executor | None = None,
    storage: Storage = LOCAL,
) -> Iterator[Event]:
    """Check a base and repair what can be repaired without losing anything; yield problems and what happens.

    Nothing happens before the first event is asked for; the last one is `Checked`. What a live worker owns is never
    touched.

    Args:
        base: directory on the shared file system.
        report_only: change nothing; problems say what would be repaired.
        deep: read and decode every member of every final archive.
        assume_dead: as for `rear.scavenge`.
        executor: as for `rear.scavenge`; with ``deep`` it also reads the final archives.
        storage: the file system.

    Raises:
        BaseError: there is no such base.
        NotLeaderError: a scavenger is at work; nothing was done. With ``report_only`` it does not matter.
        OSError: the base cannot be read, or not be written.
    """
    return _run(layout_of(base), report_only, deep, Liveness(assume_dead), executor, storage)


def _run(
    layout: Layout, report_only: bool, deep: bool, liveness: Liveness, executor: Executor | None, storage: Storage
) -> Iterator[Event]:
    if not is_directory(layout.state):
        yield NothingYet(str(layout.base))
    with ExitStack() as stack:
        leadership = None
        if not report_only and is_directory(layout.state):
            leadership = stack.enter_context(Leadership(layout, liveness=liveness, storage=storage))
        report = Report()
        check = _Check(layout, leadership, deep, liveness, executor, storage)
        for event in check.events():
            report.add(event)
            yield event
        done = Checked(str(layout.base), check.archives, check.members, None)
        if leadership is not None:
            try:
                done = replace(done, report=report.write(layout, leadership.name, done.as_json(), storage=storage))
            except OSError as error:
                refused = report_refused(error)
                yield problem_of(refused) or refused
        yield done


class _Check:
    """One check of a base.

    Args:
        layout: the base.
        leadership: of this process; ``None`` to change nothing.
        deep: decode every member.
        liveness: says which workers have ended.
        executor: checks and copies, if there is one.
        storage: the file system.
    """

    def __init__(
        self,
        layout: Layout,
        leadership: Leadership | None,
        deep: bool,
        liveness: Liveness,
        executor: Executor | None,
        storage: Storage,
    ) -> None:
        self.archives = self.members = 0
        self._layout = layout
        self._leadership = leadership
        self._deep = deep
        self._liveness = liveness
        self._executor = executor
        self._parallel = Parallel(executor, storage=storage)
        self._storage = storage
        self._lost_and_found = lost_and_found_of(layout, storage=storage)

    @property
    def _outcome(self) -> Outcome:
        return "would repair" if self._leadership is None else "repaired"

    def events(self) -> Iterator[Event]:
        """Check everything, and yield what is found and done."""
        if self._leadership is None:
            yield Advanced("checking")
            yield from self._look_at_pairs()
            # What a scavenger is doing right now is no problem.
            outcome: Outcome = "noted" if is_led(self._layout, storage=self._storage) else "would repair"
            yield from self._look_at_claims(outcome)
            yield from self._guarded(f"{STATE}/intents", self._look_at_intents(outcome))
            yield from self._check_archives()
        else:
            yield from self._settle_intents(self._leadership)
            options = options_for(
                self._layout, verify=self._deep or None, executor=self._executor, storage=self._storage
            )
            scavenge = Scavenge(self._layout, options, self._leadership, self._liveness, self._storage)
            yield from self._as_problems(scavenge.recover())
            # An archive that is rebuilt now takes what waits for it.
            yield from self._check_archives()
            yield from self._as_problems(scavenge.merge())
        archives = list(self._final_archives())
        for number, archive in enumerate(archives):
            yield Advanced("comparing", archive, number, len(archives))
            yield from self._guarded(archive, self._check_index(archive))
        yield Advanced("tidying")
        yield from find_strays(self._layout, repair=self._leadership is not None, storage=self._storage)

    def _as_problems(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            yield problem_of(event) or event

    def _guarded(self, subject: str, events: Iterator[Event]) -> Iterator[Event]:
        """Let one archive that cannot be worked on not stop the others."""
        try:
            yield from events
        except NotLeaderError:
            raise
        except (RearError, OSError) as error:
            yield Problem("refused", subject, str(error), "left")

    # What there is to do, when nothing is to be changed.

    def _look_at_pairs(self) -> Iterator[Event]:
        inbox = Inbox(self._layout, liveness=self._liveness, storage=self._storage)
        for item in inbox.waiting(remember=False):
            found = inbox.peek(item) if not isinstance(item, (Event, Orphan)) else item
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
        for damage in claimed.journal.damage:
            yield Problem(
                "journal-damaged", subject, damage.reason, "would repair", offset=damage.start, length=damage.length
            )

    def _look_at_claims(self, outcome: Outcome) -> Iterator[Event]:
        for leader in self._storage.names(self._layout.claims):
            folder = self._layout.claims / leader
            files = [name for host in self._storage.names(folder) for name in self._storage.names(folder / host)]
            count = sum(name.endswith(".journal") for name in files)
            if count:
                detail = f"it had claimed {count:,} temp archives"
                yield Problem("scavenger-crashed", f"{STATE}/claims/{leader}", detail, outcome)

    def _look_at_intents(self, outcome: Outcome) -> Iterator[Event]:
        for name in self._storage.names(self._layout.intents):
            subject = f"{STATE}/intents/{name}"
            reason = self._why_useless(self._layout.intents / name) if name.endswith(".intent") else None
            if reason is not None:
                yield Problem("intent-unreadable", subject, reason, "would repair")
            elif name.endswith((".intent", UNFINISHED_SUFFIX)):
                detail = "a merge into a final archive is under way, or its scavenger has died"
                yield Problem("unfinished-merge", subject, detail, outcome)

    def _settle_intents(self, leadership: Leadership) -> Iterator[Event]:
        """Put aside records of merges by which nothing can be undone: what they protect is checked by other means."""
        folder = self._layout.intents
        for name in self._storage.names(folder):
            if not name.endswith(".intent"):
                continue
            subject = f"{STATE}/intents/{name}"
            try:
                reason = self._why_useless(folder / name)
                if reason is not None:
                    leadership.prove()
                    item = self._lost_and_found.put_file(name, folder / name, {"subject": subject, "reason": reason})
                    yield Problem("intent-unreadable", subject, reason, "repaired", lost_and_found=item)
            except NotLeaderError:
                raise
            except (RearError, OSError) as error:
                yield Problem("refused", subject, str(error), "left")

    def _why_useless(self, path: Path) -> str | None:
        try:
            intent = read_intent(path, storage=self._storage)
        except UnfinishedIntentError:
            return None
        except FutureVersionError:
            raise
        except JournalError as error:
            return str(error)
        target = self._layout.archive(intent.archive)
        if intent.old is None or intent.committed:
            return None
        look_anew(target, storage=self._storage)
        if target.name not in self._storage.names(target.parent):
            return f"its archive {intent.archive} is not there any more"
        if self._storage.size_of(target) < intent.old.offset:
            return f"its archive {intent.archive} is shorter than before the merge"
        return None

    # Final archives.

    def _final_archives(self) -> Iterator[str]:
        """Yield the final archives there are, by their paths in the base."""
        for archive in ArchiveTree(self._layout.base, any_kind=True):
            try:
                check_archive(archive)
            except PathError:
                continue
            yield archive

    def _check_archives(self) -> Iterator[Event]:
        archives = list(self._final_archives())
        for number, archive in enumerate(archives):
            yield Advanced("inspecting", archive, number, len(archives))
            self.archives += 1
            yield from self._guarded(archive, self._check_archive(archive))

    def _check_archive(self, archive: str) -> Iterator[Event]:
        mendable = []
        path = self._layout.archive(archive)
        look_anew(path, storage=self._storage)
        for found in inspect_steps(
            path, deep=self._deep, subject=archive, parallel=self._parallel, storage=self._storage
        ):
            if isinstance(found, Problem) and found.outcome == "would repair":
                mendable.append(found)
            else:
                yield found
        if mendable and self._leadership is not None:
            yield Advanced("rebuilding", archive)
            yield from self._restore(self._leadership, archive, mendable)
        else:
            yield from mendable

    # Indexes.

    def _check_index(self, archive: str) -> Iterator[Event]:
        look_anew(self._layout.archive(archive), storage=self._storage)
        try:
            found = open_committed(self._layout.archive(archive), storage=self._storage)
        except (FormatError, UnsupportedError):
            # That was said when the archive itself was checked.
            return
        with found:
            index = Index.open(self._layout, archive, storage=self._storage)
            entries = found.directory.entries
            self.members += entries
            damage = index.problems[0] if index.problems else _damage_of(index)
            if damage is None and index.matches(found.fingerprint, entries):
                return
            if damage is None and not index.segments and not self._is_ours(archive):
                return
            code = "index-damaged" if damage else "index-outdated" if index.segments else "index-missing"
            if self._leadership is not None:
                index.rebuild(rows_of(found), found.fingerprint)
        detail = damage or f"the archive has {entries:,} members"
        yield Problem(code, f"{STATE}/index/{archive}", detail, self._outcome)

    def _restore(self, leadership: Leadership, archive: str, mendable: list[Problem]) -> Iterator[Event]:
        """Rebuild an archive that is rear's; another one in the base may be somebody's who is just writing it."""
        if not self._is_ours(archive):
            for problem in mendable:
                detail = f"{problem.detail}; not rear's: mend it by rear fsck --output or --in-place, with its path"
                yield replace(problem, outcome="left", detail=detail)
            return
        restoration = Restoration(self._layout, leadership, self._lost_and_found, storage=self._storage)
        yield from restoration.restore(archive, mendable)

    def _is_ours(self, archive: str) -> bool:
        if Index.open(self._layout, archive, storage=self._storage).segments:
            return True
        with opened(self._layout.archive(archive), self._storage) as descriptor:
            return any(
                item.origin is not None
                for item in scan(descriptor, read_data=False, storage=self._storage)
                if isinstance(item, Found)
            )


def _damage_of(index: Index) -> str | None:
    """Read all rows of an index; tell what is wrong with them."""
    try:
        for _ in index.rows():
            pass
    except IndexFormatError as error:
        return str(error)
    return None


def problem_of(event: Event) -> Problem | None:
    """Return what an event of a scavenge means for a check; ``None`` where it tells of normal work."""
    match event:
        case RolledBack():
            detail = "it had not committed: the archive is as before, its members are merged anew"
            return Problem("unfinished-merge", event.archive, detail, "repaired")
        case RolledForward():
            return Problem("unfinished-merge", event.archive, "it had committed, and is complete now", "repaired")
        case Claimed(state="crashed" | "stale"):
            detail = f"its worker is gone; {event.members:,} members were checked one by one"
            return Problem("worker-crashed", event.pair, detail, "repaired")
        case JournalRebuilt():
            code = "journal-missing" if event.code == "missing" else "journal-damaged"
            detail = f"{event.reason}; {event.members:,} members are named by the temp archive itself"
            return Problem(code, event.pair, detail, "repaired")
        case JournalDamaged():
            return Problem("journal-damaged", event.pair, event.reason, "repaired", length=event.length)
        case Recovered():
            return Problem("member-recovered", event.archive, event.reason, "repaired", name=event.name)
        case Partial():
            return Problem(
                "member-not-closed", event.archive, f"{event.reason} (in {event.pair})", "repaired",
                name=event.name, lost_and_found=event.lost_and_found,
            )  # fmt: skip
        case IndexRebuilt():
            code = "index-missing" if event.code == "missing" else "index-outdated"
            return Problem(code, event.archive, f"made again of {event.members:,} members", "repaired")
        case Torn() | Lost():
            return Problem(
                "member-torn" if isinstance(event, Torn) else "member-lost", event.archive,
                f"{event.reason} (in {event.pair}, source {event.source or 'none'})",
                "repaired" if isinstance(event, Torn) else "left",
                offset=event.offset, length=event.length, name=event.name, lost_and_found=event.lost_and_found,
            )  # fmt: skip
        case Damaged():
            return Problem(
                "bytes-unplaced", event.pair, event.reason, "left",
                offset=event.start, length=event.length, lost_and_found=event.lost_and_found,
            )  # fmt: skip
        case Refused():
            return Problem("refused", event.subject, event.reason, "left")
    return None
