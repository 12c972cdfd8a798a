"""A status as metrics: the OpenMetrics text format, in the part of it that is Prometheus' text format too.

Written to a file for the textfile collector of Prometheus' node exporter. Everything is a gauge, in base units, with
the base as label.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import Final, NamedTuple

from rear.core.storage import FRESH_SUFFIX, LOCAL, Storage, StrPath, created
from rear.core.text import printable
from rear.diagnostics.status import ATTENTION_CODES, BaseStatus, Files
from rear.errors import UsageError

_MODE: Final = 0o644
"""The node exporter runs as a user of its own."""
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

_UNITS: Final = frozenset({"bytes", "files", "inodes", "items", "seconds"})

Labels = dict[str, str]


class Family(NamedTuple):
    """One metric: name, which ends with its unit unless it is a plain count, help, and values by labels."""

    name: str
    help: str
    samples: list[tuple[Labels, float | None]]

    @property
    def unit(self) -> str:
        """Unit, as OpenMetrics wants it; empty for plain counts."""
        last = self.name.rpartition("_")[2]
        return last if last in _UNITS else ""


def _single(name: str, help: str, value: float | None) -> Family:
    return Family(name, help, [({}, value)])


def as_text(status: BaseStatus) -> str:
    """Return a status in the OpenMetrics text format; what is not known has no line."""
    base = {"base": status.base}
    lines = []
    for family in families(status):
        samples = [(labels, value) for labels, value in family.samples if value is not None]
        if not samples:
            continue
        lines.append(f"# TYPE {family.name} gauge")
        lines += [f"# UNIT {family.name} {family.unit}"] if family.unit else []
        lines.append(f"# HELP {family.name} {family.help.translate(_ESCAPES)}")
        for labels, value in samples:
            text = ",".join(f'{key}="{_label(label)}"' for key, label in (base | labels).items())
            lines.append(f"{family.name}{{{text}}} {_number(value)}")
    return "\n".join([*lines, "# EOF", ""])


def _label(text: str) -> str:
    """Return the value of a label: the format escapes a line end itself, and leaves other control characters raw."""
    return "\n".join(map(printable, text.split("\n"))).translate(_ESCAPES)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def families(status: BaseStatus) -> Iterator[Family]:
    """Yield all metrics of a status."""
    yield Family(
        "rear_workers",
        "Workers with a temp archive that they have not ended, by host and state.",
        [
            ({"host": host.host, "state": state}, getattr(host, state))
            for host in status.hosts
            for state in ("live", "unconfirmed", "stale", "crashed")
        ],
    )
    for name, what in (
        ("temp_archives", "Temp archives that are not merged yet, by state."),
        ("members", "Members in them."),
        ("size_bytes", "Bytes in them."),
    ):
        samples = [({"state": str(state)}, getattr(pile, name)) for state, pile in status.backlog.items()]
        yield Family(f"rear_backlog_{name}", what, samples)
    age = None if status.oldest_ns is None else max(0.0, (status.taken_ns - status.oldest_ns) / 1e9)
    yield _single(
        "rear_backlog_oldest_age_seconds",
        "Age of the oldest temp archive that is not merged; no line when there is none.",
        age,
    )
    yield _single("rear_inbox_unusable_files", "Files in the inbox that cannot be used as they are.", status.unusable)
    leader = status.leader
    yield Family(
        "rear_leader",
        "1 for the scavenger that leads, with its host and what can be told of it.",
        [] if leader is None else [({"host": leader.host, "state": leader.state}, 1)],
    )
    yield from _last_scavenge(status)
    yield _single("rear_intents", "Merges under way, or dead before their end.", len(status.intents))
    yield from _files("lost_and_found", "lost+found", status.lost_and_found)
    yield from _files("graveyard", "the graveyard", status.graveyard)
    if status.space is not None:
        space, prefix = status.space, "rear_filesystem"
        yield _single(f"{prefix}_size_bytes", "Size of the file system.", space.size_bytes)
        yield _single(f"{prefix}_free_bytes", "Bytes that are free there for the user who looked.", space.free_bytes)
        yield _single(f"{prefix}_inodes", "Inodes of the file system.", space.inodes)
        yield _single(f"{prefix}_free_inodes", "Inodes that are free there.", space.free_inodes)
    present = {attention.code for attention in status.attention}
    yield Family(
        "rear_attention",
        "1 for each reason why a person or a scavenge should see to the base.",
        [({"reason": code}, int(code in present)) for code in ATTENTION_CODES],
    )
    yield _single("rear_status_timestamp_seconds", "When this was seen, in seconds since 1970.", status.taken_ns / 1e9)


def _files(name: str, where: str, files: Files) -> Iterator[Family]:
    yield _single(f"rear_{name}_items", f"Items in {where}.", files.items)
    yield _single(f"rear_{name}_bytes", f"Bytes in {where}.", files.size_bytes)


def _last_scavenge(status: BaseStatus) -> Iterator[Family]:
    """Yield what the last scavenge with a report did; a check has other totals."""
    last = next((summary for summary in status.scavenges if summary.totals.get("kind") == "finished"), None)
    if last is None:
        return
    yield _single(
        "rear_last_scavenge_timestamp_seconds",
        "When the last scavenge that did or found something ended, in seconds since 1970.",
        last.finished_ns / 1e9,
    )
    for name, what in (
        ("members", "Members that it merged."),
        ("size_bytes", "Bytes of them."),
        ("lost", "Members that it found lost."),
        ("refused", "Things that it left as they were."),
    ):
        value = last.totals.get(name)
        yield _single(f"rear_last_scavenge_{name}", what, value if type(value) is int else None)


def write_file(path: StrPath, text: str, *, storage: Storage = LOCAL) -> None:
    """Write metrics as a whole, for all to read: who reads the file sees the old text or the new one.

    What a symbolic link leads to is written; into a device or a FIFO, the text itself.

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
    if os.path.exists(path) and not os.path.isfile(path):
        # A device or a FIFO (/dev/stdout) takes what is written; a file in its place would break what else uses it.
        # Without waiting for somebody who reads a FIFO: nobody may come.
        with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            file.write(text)
        return
    # A link stays one: what it leads to is written anew.
    path = os.path.realpath(path)
    fresh = f"{path}.{secrets.token_hex(6)}{FRESH_SUFFIX}"
    try:
        with created(fresh, storage) as descriptor:
            storage.write(descriptor, [text.encode()], 0)
            storage.set_mode(descriptor, _MODE)
            storage.sync(descriptor)
        storage.rename(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            storage.unlink(fresh)
        raise
