"""The progress of a scavenge, a check or a sweep: state made of events alone, in bounded memory, for whoever shows it.

No terminal and no clock of its own: `Progress.take` is given each event and the time at which it came.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from rear import events
from rear.cli.display.estimate import STEP_OF, Estimate
from rear.cli.display.screen_rows import ArchiveRows, FindingRow, PairLine, PairRows
from rear.cli.display.wording import describe, label_of, style_of
from rear.core.problems import Outcome, Problem, outcome_of

FINDINGS_KEPT: Final = 200
FINDINGS_LISTED: Final = 10
"""Of each label so many are kept for the summary, the first ones."""


class Progress:
    """Adds up the events of one command, of `follow`; ``now`` is in seconds, of a clock that only goes on."""

    def __init__(self, command: str, subject: str, now: float, *, dry_run: bool = False) -> None:
        self.command = command
        self.subject = subject
        self.is_dry_run = dry_run
        self.started = self.last = now
        self.leader: str | None = None
        self.phase: events.Phase | None = None
        self.phase_subject: str | None = None
        self.phase_done = 0
        self.phase_total: int | None = None
        self.phase_started = now
        self.end: events.Finished | events.Checked | events.Swept | None = None
        #: ``interrupted`` or ``failed``, and why.
        self.failure: str | None = None
        self.error: str | None = None
        self.needs_attention = False
        #: Pairs: in the inbox, taken from there, done with.
        self.waiting_pairs = self.seen_pairs = self.claimed_pairs = self.cleared_pairs = 0
        self.known_members = self.known_bytes = self.checked_members = 0
        self.merged_members = self.merged_bytes = self.merged_archives = 0
        self.planned_members = self.planned_bytes = 0
        self.duplicates = self.collected_files = self.collected_bytes = 0
        #: Pairs, and their members, by how their workers ended.
        self.ended: dict[str, tuple[int, int]] = {}
        self.archives = ArchiveRows()
        self.pairs = PairRows()
        #: By what is common to their reasons; and the last reason of each in full.
        self.left_alone: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self.findings: deque[FindingRow] = deque(maxlen=FINDINGS_KEPT)
        self.found: Counter[str] = Counter()
        self.listed: dict[str, list[FindingRow]] = {}
        self.outcomes: Counter[Outcome] = Counter()
        #: Findings by kind of event, or code of a problem.
        self.kinds: Counter[str] = Counter()
        self._estimate = Estimate()
        #: Bytes of rounds before, and of this round: handled by merges that have ended, and by the one at work.
        self._settled_bytes = self._round_bytes = self._at_work_bytes = 0
        self._round_end_bytes = 0

    # ---- events

    def take(self, event: events.Event, now: float) -> None:
        """Add the next event, which came at ``now``."""
        self._estimate.spend(self.phase, now - self.last)
        self.last = now
        handle = _HANDLERS.get(type(event))
        if handle is not None:
            handle(self, event)
        label = label_of(event)
        if label is not None:
            self._find(FindingRow(label, style_of(event), describe(event)), event)

    def warn(self, text: str) -> None:
        """Add what the library told its program's log."""
        self._add(FindingRow("warning", "yellow", text))

    def _find(self, finding: FindingRow, event: events.Event) -> None:
        outcome = outcome_of(event)
        if outcome is not None:
            self.outcomes[outcome] += 1
        self.kinds[event.code if isinstance(event, Problem) else event.kind] += 1
        self.needs_attention |= event.severity == "loss" or isinstance(event, events.Refused)
        self._add(finding)

    def _add(self, finding: FindingRow) -> None:
        self.findings.append(finding)
        self.found[finding.label] += 1
        listed = self.listed.setdefault(finding.label, [])
        if len(listed) < FINDINGS_LISTED:
            listed.append(finding)

    def _on_started(self, event: events.Started) -> None:
        self.leader = event.leader

    def _on_advanced(self, event: events.Advanced) -> None:
        phase, subject = event.phase, event.subject
        if phase != self.phase:
            self.phase, self.phase_started = phase, self.last
        self.phase_subject, self.phase_done, self.phase_total = subject, event.done, event.total
        if phase == "claiming":
            self.seen_pairs, self.waiting_pairs = event.done, max(event.total or 0, event.done)
        elif phase == "checking":
            pair = self.pairs.get(subject or "")
            if pair is not None:
                self.checked_members += event.done - pair.checked
                pair.checked = event.done
        elif phase == "clearing":
            self._end_check()
            self._end_round()
        elif subject is not None and phase not in ("reading", "tidying"):
            self._end_check()
            line = self.archives.at(subject)
            if phase != "comparing" or line.state in ("", "checked"):
                line.state = phase

    def _on_round_started(self, event: events.RoundStarted) -> None:
        self.pairs.begin_round()
        self.claimed_pairs += event.pairs
        self.known_members += event.members
        self.known_bytes += event.size_bytes
        self._round_end_bytes = self.known_bytes
        self._round_bytes = self._at_work_bytes = 0

    def _on_claimed(self, event: events.Claimed) -> None:
        self._end_check()
        if self.phase != "checking":
            self.phase, self.phase_started = "checking", self.last
        self.phase_subject, self.phase_done, self.phase_total = event.pair, 0, event.members
        self.pairs.begin(PairLine(event.pair, event.state, event.members, event.size_bytes, is_busy=True))
        pairs, members = self.ended.get(event.state, (0, 0))
        self.ended[event.state] = pairs + 1, members + event.members
        if self.is_dry_run:
            self.known_members += event.members
            self.known_bytes += event.size_bytes

    def _end_check(self) -> None:
        self.checked_members += self.pairs.end()

    def _on_left_alone(self, event: events.LeftAlone) -> None:
        lives = event.code in ("worker-lives", "file-open")
        common = event.reason.partition("; ")[0]
        self.left_alone[common] += 1
        # By name, because it may become a finding.
        self.reasons[common] = event.reason if event.fault is None else f"{event.reason}: {event.pair}"
        self.pairs.add_waiting(event.pair, "live" if lives else "waits")

    def _on_planned(self, event: events.Planned) -> None:
        line = self.archives.at(event.archive)
        line.coming_members, line.coming_bytes, line.copied_bytes = event.members, event.size_bytes, 0
        self.duplicates += event.duplicates
        self.planned_members += event.members
        self.planned_bytes += event.size_bytes
        if self.is_dry_run:
            line.state = "would be merged"

    def _on_copied(self, event: events.Copied) -> None:
        line = self.archives.at(event.archive)
        line.copied_bytes, line.coming_bytes = event.copied_bytes, event.size_bytes
        self.phase_done, self.phase_total = event.copied_bytes, event.size_bytes
        self._at_work_bytes = event.copied_bytes
        self._estimate.sample(self.last, self.done_bytes)

    def _on_merged(self, event: events.Merged) -> None:
        line = self.archives.at(event.archive)
        self.merged_archives += not line.members
        line.members += event.members
        line.size_bytes += event.size_bytes
        line.archive_size_bytes = event.archive_size_bytes
        line.coming_members = line.coming_bytes = line.copied_bytes = 0
        line.state = "merged"
        self.merged_members += event.members
        self.merged_bytes += event.size_bytes
        self._round_bytes += event.size_bytes
        self._at_work_bytes = 0
        self._estimate.sample(self.last, self.done_bytes)

    def _end_round(self) -> None:
        self.archives.end()
        # Of what was claimed, some was there already or had to be set aside: it is done with, too.
        self._settled_bytes, self._round_bytes, self._at_work_bytes = self._round_end_bytes, 0, 0

    def _on_cleared(self, event: events.Cleared) -> None:
        self.cleared_pairs += 1
        self.phase_done += self.phase == "clearing"
        self.pairs.remove(event.pair)

    def _on_bad_member(self, event: events.Lost | events.Torn) -> None:
        line = self.pairs.get(event.pair)
        if line is not None:
            line.bad += 1

    def _on_damaged(self, event: events.Damaged) -> None:
        line = self.pairs.get(event.pair) or self.pairs.add(PairLine(event.pair, "quarantined"))
        line.state = "quarantined"

    def _on_refused(self, event: events.Refused) -> None:
        if event.subject in self.pairs:
            self.pairs[event.subject].state = "refused"
        elif event.subject in self.archives:
            self.archives.refuse(event.subject)
            self._at_work_bytes = 0

    def _on_rolled(self, event: events.RolledBack | events.RolledForward) -> None:
        self.archives.at(event.archive).state = "undone" if isinstance(event, events.RolledBack) else "completed"

    def _on_rolled_over(self, event: events.RolledOver) -> None:
        self.archives.rename(event.archive, event.renamed_to)

    def _on_problem(self, event: Problem) -> None:
        line = self.archives.get(event.subject)
        if line is not None and event.outcome != "noted" and line.state in ("inspecting", "comparing", "checked"):
            line.state = {"left": "damaged", "repaired": "repaired"}.get(event.outcome, "to be repaired")

    def _on_collected(self, event: events.Collected) -> None:
        self.collected_files += 1
        self.collected_bytes += event.size_bytes

    def _on_source_left(self, event: events.SourceLeft) -> None:
        self.left_alone[event.reason] += 1
        self.reasons[event.reason] = event.reason

    def _on_end(self, event: events.Finished | events.Checked | events.Swept) -> None:
        self._end_check()
        self.archives.end()
        self.end = event
        if isinstance(event, events.Finished):
            self.merged_archives = event.archives

    # ---- what follows from them

    @property
    def done_bytes(self) -> int:
        """Bytes that are merged, there already, or set aside."""
        return self._settled_bytes + self._round_bytes + self._at_work_bytes

    @property
    def expected_pairs(self) -> int:
        """Temp archives that will be claimed, as far as can be known."""
        return max(self.waiting_pairs - sum(self.left_alone.values()), self.claimed_pairs)

    def _expected(self, known: int) -> float:
        """Return what is known of the pairs claimed so far, and as much for each of those still to come."""
        return known * self.expected_pairs / self.claimed_pairs if self.claimed_pairs else float(known)

    @property
    def expected_bytes(self) -> int:
        """Bytes of all pairs; a guess until all are claimed."""
        return round(self._expected(self.known_bytes))

    @property
    def expected_members(self) -> int:
        """Members of all pairs; a guess until all are claimed."""
        return round(self._expected(self.known_members))

    @property
    def is_guess(self) -> bool:
        """Whether there are pairs to come of which nothing is known yet."""
        return self.expected_pairs > self.claimed_pairs

    @property
    def fraction(self) -> float | None:
        """How much of everything is done, 0 to 1; of a check, how much of the phase."""
        if self.command == "fsck" and self.phase not in STEP_OF:
            return self.phase_done / self.phase_total if self.phase_total else None
        if not self.expected_bytes:
            return self.seen_pairs / self.waiting_pairs if self.waiting_pairs else None
        return min(self.done_bytes / self.expected_bytes, 1.0)

    @property
    def bytes_a_second(self) -> float | None:
        """Rate of the last seconds."""
        return self._estimate.bytes_a_second

    def seconds_left(self, now: float) -> float | None:
        """Return how long the rest will take, if all goes on as it did; ``None`` while nobody can know."""
        if self.command == "fsck" and self.phase not in STEP_OF:
            fraction, elapsed = self.fraction, now - self.phase_started
            return elapsed * (1 - fraction) / fraction if fraction and elapsed > 1.0 else None
        return self._estimate.seconds_left(
            Counter(claim=self.claimed_pairs, check=self.checked_members, merge=self.done_bytes),
            {
                "claim": self.expected_pairs - self.claimed_pairs,
                "check": self.expected_members - self.checked_members,
                "merge": self.expected_bytes - self.done_bytes,
            },
            phase=self.phase,
            more_seconds=now - self.last,
        )


_HANDLERS: Final[dict[type[events.Event], Callable[[Progress, Any], None]]] = {
    events.Started: Progress._on_started,
    events.Advanced: Progress._on_advanced,
    events.RoundStarted: Progress._on_round_started,
    events.Claimed: Progress._on_claimed,
    events.LeftAlone: Progress._on_left_alone,
    events.Planned: Progress._on_planned,
    events.Copied: Progress._on_copied,
    events.Merged: Progress._on_merged,
    events.Cleared: Progress._on_cleared,
    events.Lost: Progress._on_bad_member,
    events.Torn: Progress._on_bad_member,
    events.Damaged: Progress._on_damaged,
    events.Refused: Progress._on_refused,
    events.RolledBack: Progress._on_rolled,
    events.RolledForward: Progress._on_rolled,
    events.RolledOver: Progress._on_rolled_over,
    Problem: Progress._on_problem,
    events.Collected: Progress._on_collected,
    events.SourceLeft: Progress._on_source_left,
    events.Finished: Progress._on_end,
    events.Checked: Progress._on_end,
    events.Swept: Progress._on_end,
}
