"""A status as metrics: the OpenMetrics text format, in the part of it that is Prometheus' text format too.

Written to a file for the textfile collector of Prometheus' node exporter. Everything is a gauge, in base units, with
the base as label.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from rear.core.storage import FRESH_SUFFIX, LOCAL, Storage, StrPath
from rear.core.text import shown
from rear.diagnostics.backlog import State
from rear.diagnostics.status import ATTENTION_CODES, BaseStatus, Pile
from rear.errors import UsageError

_MODE: Final = 0o644
"""The node exporter runs as a user of its own."""
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

Labels = dict[str, str]


class Family(NamedTuple):
    """One metric: name, unit (the name ends with it; empty for plain counts), help, and values by labels."""

    name: str
    unit: str
    help: str
    samples: list[tuple[Labels, float | None]]


def as_text(status: BaseStatus) -> str:
    """Return a status in the OpenMetrics text format; what is not known has no line."""
    base = {"base": shown(status.base)}
    lines = []
    for family in families(status):
        samples = [(labels, value) for labels, value in family.samples if value is not None]
        if not samples:
            continue
        lines.append(f"# TYPE {family.name} gauge")
        lines += [f"# UNIT {family.name} {family.unit}"] if family.unit else []
        lines.append(f"# HELP {family.name} {family.help.translate(_ESCAPES)}")
        for labels, value in samples:
            text = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in (base | labels).items())
            lines.append(f"{family.name}{{{text}}} {_number(value)}")
    return "\n".join([*lines, "# EOF", ""])


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def families(status: BaseStatus) -> Iterator[Family]:
    """Yield all metrics of a status."""
    yield Family("rear_workers", "", "Workers with a temp archive that they have not ended, by host and state.", [
        ({"host": host.host, "state": state}, count)
        for host in status.hosts
        for state, count in (
            ("live", host.live), ("unconfirmed", host.unconfirmed), ("stale", host.stale), ("crashed", host.crashed)
        )
    ])  # fmt: skip
    yield from _backlog(status.backlog)
    age = None if status.oldest_ns is None else max(0.0, (status.taken_ns - status.oldest_ns) / 1e9)
    yield Family(
        "rear_backlog_oldest_age_seconds", "seconds",
        "Age of the oldest temp archive that is not merged; no line when there is none.", [({}, age)],
    )  # fmt: skip
    yield Family(
        "rear_inbox_unusable_files", "files", "Files in the inbox that cannot be used as they are.",
        [({}, status.unusable)],
    )  # fmt: skip
    leader = status.leader
    yield Family(
        "rear_leader", "", "1 for the scavenger that leads, with its host and what can be told of it.",
        [] if leader is None else [({"host": leader.host, "state": leader.state}, 1)],
    )  # fmt: skip
    yield from _last_scavenge(status)
    yield Family("rear_intents", "", "Merges under way, or dead before their end.", [({}, len(status.intents))])
    for name, what, files in (
        ("lost_and_found", "lost+found", status.lost_and_found), ("graveyard", "the graveyard", status.graveyard)
    ):  # fmt: skip
        yield Family(f"rear_{name}_items", "items", f"Items in {what}.", [({}, files.items)])
        yield Family(f"rear_{name}_bytes", "bytes", f"Bytes in {what}.", [({}, files.size_bytes)])
    if status.space is not None:
        space = status.space
        for name, unit, what, value in (
            ("size_bytes", "bytes", "Size of the file system.", space.size_bytes),
            ("free_bytes", "bytes", "Bytes that are free there for the user who looked.", space.free_bytes),
            ("inodes", "inodes", "Inodes of the file system.", space.inodes),
            ("free_inodes", "inodes", "Inodes that are free there.", space.free_inodes),
        ):
            yield Family(f"rear_filesystem_{name}", unit, what, [({}, value)])
    present = {attention.code for attention in status.attention}
    yield Family("rear_attention", "", "1 for each reason why a person or a scavenge should see to the base.", [
        ({"reason": code}, int(code in present)) for code in ATTENTION_CODES
    ])  # fmt: skip
    yield Family(
        "rear_status_timestamp_seconds", "seconds", "When this was seen, in seconds since 1970.",
        [({}, status.taken_ns / 1e9)],
    )  # fmt: skip


def _backlog(piles: Mapping[State, Pile]) -> Iterator[Family]:
    for name, unit, what in (
        ("temp_archives", "", "Temp archives that are not merged yet, by state."),
        ("members", "", "Members in them."),
        ("size_bytes", "bytes", "Bytes in them."),
    ):
        samples: list[tuple[Labels, float | None]] = [
            ({"state": state}, getattr(pile, name)) for state, pile in piles.items()
        ]
        yield Family(f"rear_backlog_{name}", unit, what, samples)


def _last_scavenge(status: BaseStatus) -> Iterator[Family]:
    """Yield what the last scavenge with a report did; a check has other totals."""
    last = next((summary for summary in status.scavenges if summary.totals.get("kind") == "finished"), None)
    if last is None:
        return
    yield Family(
        "rear_last_scavenge_timestamp_seconds", "seconds",
        "When the last scavenge that did or found something ended, in seconds since 1970.",
        [({}, last.finished_ns / 1e9)],
    )  # fmt: skip
    for name, unit, key, what in (
        ("members", "", "members", "Members that it merged."),
        ("size_bytes", "bytes", "size_bytes", "Bytes of them."),
        ("lost", "", "lost", "Members that it found lost."),
        ("refused", "", "refused", "Things that it left as they were."),
    ):
        value = last.totals.get(key)
        yield Family(f"rear_last_scavenge_{name}", unit, what, [({}, value if type(value) is int else None)])


def write_file(path: StrPath, text: str, *, storage: Storage = LOCAL) -> None:
    """Write metrics as a whole, for all to read: who reads the file sees the old text or the new one.

    Args:
        path: of the file; the node exporter reads those that end in ``.prom``.
        text: of the metrics.
        storage: the file system.

    Raises:
        UsageError: the path is that of a folder.
        OSError: it cannot be written; the old file is as it was.
    """
    if os.path.isdir(path):
        raise UsageError(f"{os.fspath(path)} is a folder: name a file, such as rear.prom in it")
    fresh = f"{os.fspath(path)}.{secrets.token_hex(6)}{FRESH_SUFFIX}"
    descriptor = storage.create(fresh)
    try:
        try:
            storage.write(descriptor, [text.encode()], 0)
            storage.set_mode(descriptor, _MODE)
            storage.sync(descriptor)
        finally:
            storage.close(descriptor)
        storage.rename(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            storage.unlink(fresh)
        raise
