"""What happened, as values: the library yields them, and the terminal, the JSON stream and the log only read them.

Every event has a ``kind`` (the class name in lower case with underscores) and a severity; `as_json` gives the object
that ``rear scavenge --json`` prints, one a line. Paths of archives are relative to the base, sizes are in bytes.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Literal, dataclass_transform

Severity = Literal["info", "warning", "loss"]
Phase = Literal[
    "waiting", "flushing", "recovering", "claiming", "checking", "planning", "copying", "syncing", "verifying",
    "indexing", "clearing", "inspecting", "reading", "rebuilding", "comparing", "tidying",
]  # fmt: skip

WhyLeft = Literal["worker-lives", "file-open", "worker-unseen", "taken"]
JournalFault = Literal["missing", "no-first-record", "first-record-damaged", "file-record-damaged", "made-by-another"]
IndexFault = Literal["missing", "outdated", "unreadable"]

SCHEMA_VERSION: Final = 1
"""Of what ``--json`` prints. Kinds and fields are added without a new number; one that is removed, or means something
else, needs one."""


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True)
class Event:
    """Base of all events: each class is a frozen dataclass, and says how severe what it tells of is."""

    severity: ClassVar[Severity] = "info"

    def __init_subclass__(cls, *, severity: Severity | None = None) -> None:
        if severity is not None:
            cls.severity = severity
        dataclass(frozen=True)(cls)

    @property
    def kind(self) -> str:
        """Stable name of the event."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def as_json(self) -> dict[str, Any]:
        """Return the event as a JSON object with ``kind`` and ``severity`` first."""
        return {"kind": self.kind, "severity": self.severity, **self.as_fields()}

    def as_fields(self) -> dict[str, Any]:
        """Return the fields of the event by name."""
        return asdict(self)


class Started(Event):
    """A scavenge has begun: this process leads the base."""

    base: str
    leader: str


class NothingYet(Event):
    """No worker has ever written to this base."""

    base: str


class Advanced(Event):
    """Where the work is: at the begin of each phase, and a few times a second while it lasts.

    ``subject`` is the final archive or the pair that it is at; ``done`` and ``total`` count what the phase goes
    through, ``total`` being null where nobody knows.
    """

    phase: Phase
    subject: str | None = None
    done: int = 0
    total: int | None = None


class RoundStarted(Event):
    """So many pairs, with so much to merge, are claimed, and are checked and merged now; then come the next ones."""

    pairs: int
    members: int
    size_bytes: int


class Claimed(Event):
    """A temp archive was taken: ``state`` is ``closed``, ``crashed`` or ``stale``."""

    pair: str
    state: str
    members: int
    size_bytes: int


class LeftAlone(Event):
    """A temp archive stays where it is; ``reason`` says why: its worker lives, or is not yet known to be dead.

    Without a sign of life for another ``wait_seconds`` it counts as dead; null where that is not what it waits for.
    ``fault`` is what keeps its journal from telling who writes it, a `JournalFault`; null when it does tell.
    """

    pair: str
    reason: str
    code: WhyLeft
    wait_seconds: float | None = None
    fault: str | None = None


class Refused(Event, severity="warning"):
    """Something cannot be worked on and was left as it is: ``subject`` names it, ``reason`` says why."""

    subject: str
    reason: str


class Planned(Event):
    """What a merge into one final archive will do (all that ``--dry-run`` does)."""

    archive: str
    members: int
    size_bytes: int
    renamed: int
    duplicates: int
    ranges: int


class Copied(Event):
    """Progress of one merge: bytes copied so far, of how many."""

    archive: str
    copied_bytes: int
    size_bytes: int


class Narrowed(Event):
    """A final archive was open to users who may not read ``pair``, which goes into it: its mode, octal, is less now."""

    archive: str
    mode_before: str
    mode: str
    pair: str


class Merged(Event):
    """A merge is committed: the final archive has ``members`` more."""

    archive: str
    members: int
    size_bytes: int
    archive_size_bytes: int


class Renamed(Event, severity="warning"):
    """A member met another one of the same name and other content; both are kept."""

    archive: str
    name: str
    new_name: str
    pair: str


class SetAside(Event, severity="warning"):
    """A member was not merged, or was replaced, by the conflict policy; its bytes are in lost+found."""

    archive: str
    name: str
    pair: str
    reason: str
    lost_and_found: str


@dataclass(frozen=True)
class _BadMember:
    archive: str
    name: str
    pair: str
    source: str | None
    offset: int
    length: int
    reason: str
    lost_and_found: str


class Torn(_BadMember, Event, severity="warning"):
    """The last member of a crashed worker was being written when it died; it had not been acknowledged."""


class Lost(_BadMember, Event, severity="loss"):
    """A journaled member has no good bytes; what there is of it is in lost+found."""


class Damaged(Event, severity="loss"):
    """Part of a journal is unreadable; members recorded there alone are not known by name."""

    pair: str
    start: int
    length: int
    reason: str
    lost_and_found: str


class JournalDamaged(Event, severity="warning"):
    """Part of a journal is unreadable, yet all members of its temp archive are accounted for."""

    pair: str
    length: int
    reason: str


class JournalRebuilt(Event, severity="warning"):
    """A journal was missing or unusable; what it said was read from the members' own extra fields."""

    pair: str
    members: int
    reason: str
    code: JournalFault


class Partial(Event, severity="warning"):
    """A file whose writer died before it closed it: what was flushed is a member, or, by policy, in lost+found."""

    archive: str
    name: str
    pair: str
    size_bytes: int
    reason: str
    lost_and_found: str | None


class Recovered(Event, severity="warning"):
    """A member that journal or temp archive alone would have lost was saved; ``reason`` says from what.

    ``source`` is the file that it was archived anew from, if it was.
    """

    archive: str
    name: str
    pair: str
    reason: str
    source: str | None = None


class RolledBack(Event, severity="warning"):
    """A merge that had died before its commit was undone: the old archive is back, its members will be merged again."""

    archive: str


class RolledForward(Event, severity="warning"):
    """A merge that had died after its commit was completed."""

    archive: str


class RolledOver(Event):
    """A final archive had reached its cap and was renamed; a new one begins."""

    archive: str
    renamed_to: str


class IndexRebuilt(Event):
    """The index of a final archive was missing or did not match it, and was made again from the archive."""

    archive: str
    members: int
    reason: str
    code: IndexFault


class Cleared(Event):
    """A pair whose members are all accounted for was removed."""

    pair: str


class Checked(Event):
    """A check is over: how many final archives, with how many members, were looked at."""

    base: str
    archives: int
    members: int
    report: str | None


class Finished(Event):
    """The scavenge is over: the totals."""

    members: int
    size_bytes: int
    archives: int
    renamed: int
    duplicates: int
    torn: int
    lost: int
    refused: int
    left_alone: int
    report: str | None


class SweepStarted(Event):
    """A sweep of a folder has begun: what it finds goes below ``prefix`` in a final archive."""

    base: str
    directory: str
    archive: str
    prefix: str


class Collected(Event):
    """A sweep has copied a file to a temp archive (with ``--dry-run``: would do so); ``name`` is the member's."""

    source: str
    archive: str
    name: str
    size_bytes: int


class SourceLeft(Event):
    """A sweep does not take a file or a folder, and that is as it should be; ``reason`` says why."""

    source: str
    reason: str


class SourceDeleted(Event):
    """A sweep has removed a file, after its bytes were found committed in the member ``name``."""

    source: str
    archive: str
    name: str
    size_bytes: int


class Waiting(Event):
    """A sweep waits until others have merged, for ``wait_seconds`` at most; ``reason`` says for what."""

    reason: str
    wait_seconds: float


class Swept(Event):
    """A sweep is over: the totals."""

    directory: str
    archive: str
    files: int
    archived: int
    size_bytes: int
    there_already: int
    deleted: int
    pending: int
    left_alone: int
    refused: int


class Adopted(Event):
    """All that there is to say of one Zip that was to be adopted; ``is_salvaged``: it had no directory."""

    source: str
    archived: int
    size_bytes: int
    there_already: int
    pending: int
    refused: int
    is_salvaged: bool
    is_deleted: bool
