"""Notes: what scavengers wrote down beside a journal about its members, and how far that is believed.

Whoever may write beside a journal may write a note. So what a process has noted itself it knows, and what it reads is a
hint, until the members are found again in their archives. By itself a note counts only where these are gone: when it
names the pair, and its file is private, of the caller, root or the pair's writer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rear.core.records import MergedRecord
from rear.core.storage import PRIVATE_MODE, Storage
from rear.core.trust import is_own_word, is_trusted
from rear.journal.codec import encode_record
from rear.journal.reader import Journal, read_notes
from rear.journal.writer import JournalWriter

_SEQUENCES_A_RECORD: Final = 5_000


def counts_alone(journal: Journal, sequence: int, pair: str) -> bool:
    """Whether a note that was read with a journal counts although its member cannot be found."""
    return journal.merged[sequence].pair == pair and _is_believed(journal.notes_status, journal)


def write_notes(
    path: Path, journal: Journal, unproven: set[int], records: Iterable[MergedRecord], *, storage: Storage
) -> None:
    """Add to the notes beside a journal, and bring them to stable storage; their folder is not synced.

    What others wrote is never continued: a file of the caller takes its place, with what counts of it.

    Args:
        path: of the notes.
        journal: as it was read with them.
        unproven: members of which they alone say that they are done with.
        records: what is to be added.
        storage: the file system.

    Raises:
        OSError: that failed; the notes of before are there, and perhaps some of the new ones.
    """
    notes = read_notes(path, storage=storage)
    if notes.status is None:
        writer = JournalWriter(storage.create(path, PRIVATE_MODE), storage=storage)
    else:
        if notes.status.st_uid != os.geteuid() or not is_own_word(notes.status):
            kept = notes.merged
            if not _is_believed(notes.status, journal):
                kept = {sequence: record for sequence, record in journal.merged.items() if sequence not in unproven}
            storage.replace(path, b"".join(map(encode_record, dict.fromkeys(kept.values()))), PRIVATE_MODE)
            notes = read_notes(path, storage=storage)
        writer = JournalWriter.resume(path, notes, storage=storage)
    try:
        for record in records:
            writer.append(record)
            journal.take(record)
            unproven.difference_update(record.sequences)
        writer.sync()
    finally:
        writer.close()


def notes_of(sequences: list[int], target: str, intent: str, pair: str) -> Iterable[MergedRecord]:
    """Return the records that say that members of a pair are in ``target``."""
    for start in range(0, len(sequences), _SEQUENCES_A_RECORD):
        yield MergedRecord(tuple(sequences[start : start + _SEQUENCES_A_RECORD]), target, intent, pair)


def _is_believed(notes: os.stat_result | None, journal: Journal) -> bool:
    return notes is not None and is_own_word(notes) and is_trusted(notes, journal.status)
