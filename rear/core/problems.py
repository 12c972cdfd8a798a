"""Problems that `rear fsck` finds, as values with a stable code and a meaning, and the exit status that they make.

``docs/reference/problems.md`` is made from the catalog. A problem says what became of it: it is ``repaired``; fsck
``would repair`` it, if it were told to; it is ``left``, because nothing can be done; or it is only ``noted``: worth
knowing, but nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from rear.events import Event, Refused, Severity

Outcome = Literal["repaired", "left", "would repair", "noted"]

CLEAN: Final = 0
REPAIRED: Final = 1
LEFT: Final = 4
COULD_NOT_RUN: Final = 8
"""Exit statuses of fsck(8)."""


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """What a code stands for.

    Attributes:
        code: stable name, words joined by hyphens; the first one says what it concerns.
        meaning: what was found.
        repair: what `rear fsck` does about it, or what a person can do.
        is_loss: bytes that somebody stored are not whole any more.
    """

    code: str
    meaning: str
    repair: str
    is_loss: bool


_KINDS: Final = {
    # ---- one archive
    "archive-not-a-zip": (
        "No end record describes the file, and no member was found in it.",
        "None. The file stays as it is; where `zip` is installed, `zip -FF` was tried on a copy.",
    ),
    "archive-directory-damaged": (
        "The central directory is missing, cut off, or does not describe this file; or entries in it are damaged.",
        "The archive is rebuilt from its local headers as a new file; the damaged one is kept.",
    ),
    "archive-split": (
        "The archive is one volume of several.",
        "None: rear reads archives of one file. Join the volumes first (`zip -s 0`).",
    ),
    "archive-unsupported": ("The central directory is encrypted or compressed.", "None: it cannot be checked here."),
    "archive-prefix": (
        "Other bytes stand before the first member, as in a self-extracting archive.",
        "None is needed.",
    ),
    "archive-gap": (
        "Bytes between members, or behind the last one, belong to none: zeros, a replaced member, or another "
        "program's data.",
        "None is needed. When an archive is rebuilt, such bytes are kept aside unless they are zeros.",
    ),
    "archive-repaired-by-zip": (
        "No member was found, but `zip -FF` found some; they passed all checks.",
        "The archive is built from what `zip -FF` wrote.",
    ),
    # ---- one member of it
    "member-header-missing": (
        "There is no local header where the directory says that a member begins.",
        "The archive is rebuilt from the local headers that are there.",
    ),
    "member-header-differs": (
        "A local header and its directory entry contradict each other in name, method, encryption, CRC-32 or sizes.",
        "The archive is rebuilt; whichever of the two fits the data counts.",
    ),
    "member-overlap": (
        "Two members share bytes, or a member reaches into the directory.",
        "The archive is rebuilt: bytes belong to one member at most.",
    ),
    "member-unsafe-name": (
        "A name is absolute, has a `..` or a drive letter and a backslash, or holds NUL: extracted carelessly, it "
        "would be written elsewhere. Names that are only unusual (a backslash, a control character, `//`), or unsafe "
        "on Windows alone (`C:/x`), are noted.",
        "None: a name is part of what was archived. `rear get` refuses such members, save for `C:/x`; `rear cat` "
        "shows them.",
    ),
    "member-duplicate-name": (
        "Several members have one name; most programs show the last one alone. rear itself never writes that: "
        "among members of other programs it is noted.",
        "When an archive is rebuilt, the member that counts keeps the name, the others become `name~1` and so on.",
    ),
    "member-data-damaged": (
        "The data of a member does not decode, or its size or CRC-32 is wrong (`--deep`).",
        "None: restore it from elsewhere. `rear cat` writes what can be read.",
    ),
    "member-unverifiable": (
        "A member is encrypted, or its compression method has no codec here: its data was not checked.",
        "None is needed. It is copied as it is.",
    ),
    "member-partial": (
        "A member is damaged, and the beginning of it decodes.",
        "What decodes is kept as `<name>.partial`, and the raw bytes of the member beside it.",
    ),
    "member-lost": (
        "A member is known by its header, directory entry or journal record, but none of its data can be read.",
        "Its raw bytes, if there are any, are kept in lost+found. Restore it from elsewhere.",
    ),
    "member-recovered": (
        "A whole member was found that no directory and no journal tells of.",
        "It goes to its final archive, or keeps its place in a rebuilt one.",
    ),
    "member-torn": (
        "A member was being written when its worker died; it had not been acknowledged.",
        "Its bytes are kept in lost+found.",
    ),
    "member-not-closed": (
        "A worker died before it closed a file that it had flushed.",
        "What was flushed is a member, marked `rear.partial` in its metadata.",
    ),
    # ---- a base
    "unfinished-merge": ("A merge died before it was done.", "It is undone when it had not committed, else completed."),
    "intent-unreadable": (
        "The record of a merge that died cannot be read, so the merge can be neither undone nor completed by it.",
        "The final archive is checked, and rebuilt if need be; the record is kept in lost+found.",
    ),
    "worker-crashed": (
        "A worker ended without closing its temp archive.",
        "`rear scavenge` checks its members one by one and merges those that are whole.",
    ),
    "scavenger-crashed": (
        "A scavenger ended, or is paused, with temp archives that it had claimed.",
        "They are merged; `rear scavenge` does that too.",
    ),
    "temp-archive-waits": (
        "A journal does not say yet who writes it, or is missing, and its worker cannot be seen from here: it may be "
        "alive, and just making it.",
        "None is needed: after ten minutes without a change the next scavenge takes it, or removes it if it is empty.",
    ),
    "journal-missing": (
        "A temp archive has no journal.",
        "Its members are found by their local headers, which say where they belong.",
    ),
    "journal-damaged": (
        "Part of a journal is unreadable.",
        "Members whose records are gone are found by their local headers.",
    ),
    "temp-archive-missing": (
        "A journal tells of members, but its temp archive is gone.",
        "The members are reported as lost, by name; the journal is kept in lost+found.",
    ),
    "bytes-unplaced": (
        "Bytes of a temp archive or a damaged archive belong to no member.",
        "They are kept in lost+found.",
    ),
    "index-missing": ("A final archive has no index.", "It is made from the archive."),
    "index-damaged": ("A segment of an index cannot be read.", "The index is made again from the archive."),
    "index-outdated": (
        "An index does not mirror its archive: another program changed the archive, or a merge could not write it.",
        "The index is made again from the archive.",
    ),
    "index-stray": (
        "The final archive of an index is not there: moved or removed by somebody, or lost.",
        "None: the index still names what the archive held. Remove the index when that is of no use any more.",
    ),
    "stray-temporary": (
        "A file is the rest of a write that never ended.",
        "It is removed when it holds nothing of its own, else it goes to lost+found.",
    ),
    "stray-file": ("A file in rear's folders is not rear's.", "None: look what it is."),
    "lost-and-found-items": (
        "Something was put into lost+found earlier.",
        "None: look at it, and remove it when you do not need it any more.",
    ),
    "refused": ("Something could not be worked on.", "None: the message says why, and what to do."),
}

_LOSSES: Final = frozenset({"member-data-damaged", "member-partial", "member-lost", "temp-archive-missing"})

CATALOG: Final[Mapping[str, ProblemKind]] = MappingProxyType(
    {code: ProblemKind(code, meaning, repair, code in _LOSSES) for code, (meaning, repair) in _KINDS.items()}
)
"""Every code with its meaning, in the order of the documentation."""


_REBUILT: Final = frozenset(
    {
        "archive-directory-damaged",
        "member-header-missing",
        "member-header-differs",
        "member-overlap",
        "member-duplicate-name",
    }
)


class Problem(Event):
    """One finding of a check, and what became of it.

    Attributes:
        code: what it is.
        subject: the archive or other file that it concerns.
        detail: what was found, with evidence.
        outcome: what became of it.
        offset: where it is in the file, if it is at one place.
        length: how many bytes it concerns.
        name: the member.
        lost_and_found: where bytes of it were put.
    """

    code: str
    subject: str
    detail: str
    outcome: Outcome
    offset: int | None = None
    length: int | None = None
    name: str | None = None
    lost_and_found: str | None = None

    def __post_init__(self) -> None:
        if self.code not in CATALOG:
            raise ValueError(f"{self.code!r} is no code of a problem")

    @property
    def severity(self) -> Severity:  # type: ignore[override]
        """``info`` when noted, ``loss`` when bytes are gone for good, else ``warning``."""
        if self.outcome == "noted":
            return "info"
        return "loss" if self.outcome == "left" and CATALOG[self.code].is_loss else "warning"

    @property
    def needs_rebuild(self) -> bool:
        """Whether the archive has to be rebuilt to mend it."""
        return self.outcome == "would repair" and self.code in _REBUILT


def outcome_of(event: Event) -> Outcome | None:
    """Return what became of a problem that an event tells of; ``None`` when it tells of none."""
    if isinstance(event, Problem):
        return event.outcome
    # Two members that met under one name are no problem, nor is other normal work.
    return "left" if event.severity == "loss" or isinstance(event, Refused) else None


def exit_status(outcomes: Iterable[Outcome | None]) -> int:
    """Return the exit status of fsck(8): 0 clean, 1 everything was repaired, 4 something is left."""
    found = set(outcomes)
    if found & {"left", "would repair"}:
        return LEFT
    return REPAIRED if "repaired" in found else CLEAN
