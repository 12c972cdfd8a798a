"""The judge of a soak test: what workers were promised, against what is on disk when all is over."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bases import check_archive, files_below
from soak_program import digest_of

from rear.core.layout import Layout

_ROLLED_OVER = re.compile(r"-[0-9]+(?=\.zip\Z)")
_RENAMED = re.compile(r"~[0-9]+(?=(\.[^./]*)?\Z)")
_SHOWN = 12


class Key(NamedTuple):
    """A content under a name in an archive or one that it was renamed to when it was full."""

    family: str
    name: str
    digest: str


class Promises:
    """What the logs of all workers say.

    Attributes:
        begun: by identity, the record of each file that was begun or lay there to be picked up.
        kept: identities whose ``close()`` has returned.
    """

    def __init__(self, logs: Path) -> None:
        self.begun: dict[str, dict[str, Any]] = {}
        self.kept: set[str] = set()
        self.failed: set[str] = set()
        for path in sorted(logs.glob("*.promises")):
            for line in path.read_bytes().splitlines():
                record = json.loads(line)
                what, identity = record["what"], record["id"]
                if what in ("begun", "source"):
                    assert identity not in self.begun, f"the soak itself gave {identity} to two files"
                    self.begun[identity] = record
                else:
                    (self.kept if what == "kept" else self.failed).add(identity)

    def by_key(self) -> dict[Key, list[str]]:
        """Return the identities of the files that have each content and name."""
        found: dict[Key, list[str]] = {}
        for identity, record in self.begun.items():
            found.setdefault(Key(record["archive"], record["name"], record["digest"]), []).append(identity)
        return found


class Verdict:
    """What is wrong, each in a line, and the words by which its history can be found in the logs."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.words: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, fault: str, *words: str) -> None:
        """Note a fault."""
        self.faults.append(fault)
        self.words += words


def judge(base: Path, logs: Path) -> Verdict:
    """Compare a base, which nobody works on any more, with what its workers were promised.

    Args:
        base: the base.
        logs: folder with the ``*.promises`` of all workers.
    """
    verdict, promises = Verdict(), Promises(logs)
    found = _members(base, verdict)
    expected = promises.by_key()
    _judge_members(found, expected, promises, verdict)
    for identity, record in promises.begun.items():
        if record["what"] == "source":
            _judge_source(identity, record, found, verdict)
    _judge_state(base, promises, verdict)
    verdict.counts["begun"] = len(promises.begun)
    verdict.counts["kept"] = len(promises.kept)
    verdict.counts["failed"] = len(promises.failed)
    verdict.counts["members"] = sum(map(len, found.values()))
    return verdict


def _members(base: Path, verdict: Verdict) -> dict[Key, list[str]]:
    """Return the archives that hold each member, once for each time."""
    found: dict[Key, list[str]] = {}
    for path in sorted(base.rglob("*.zip")):
        relative = path.relative_to(base)
        if relative.parts[0] == ".rear":
            continue
        verdict.counts["archives"] += 1
        try:
            check_archive(path)
            members = list(_read(path))
        except (AssertionError, OSError, zipfile.BadZipFile) as error:
            verdict.add(f"{relative} is no sound archive: {error!r}", relative.as_posix())
            continue
        family = _ROLLED_OVER.sub("", relative.as_posix())
        for name, digest in members:
            found.setdefault(Key(family, name, digest), []).append(relative.as_posix())
    return found


def _read(path: Path) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            yield entry.filename, digest_of(archive.read(entry))


def _judge_members(
    found: dict[Key, list[str]], expected: dict[Key, list[str]], promises: Promises, verdict: Verdict
) -> None:
    seen: dict[Key, list[str]] = {}
    for key, places in found.items():
        original = key
        if key not in expected:
            original = key._replace(name=_RENAMED.sub("", key.name))
            if original not in expected or promises.begun[expected[original][0]]["kind"] != "conflict":
                verdict.add(f"nobody wrote {key.name} with content {key.digest}, which is in {places}", key.name)
                continue
            verdict.counts["renamed"] += 1
        seen.setdefault(original, []).extend(places)
    for key, identities in expected.items():
        places = seen.get(key, [])
        kind = promises.begun[identities[0]]["kind"]
        if kind == "discarded":
            if places:
                verdict.add(f"{key.name} was given up by its writer, and is in {places}", *identities)
            continue
        # A name is free again in the archive that begins when one is full, so equal files get a copy in each.
        most = len(set(places)) if kind == "same" else 1
        if len(places) > max(1, most):
            verdict.add(f"{key.name} is there {len(places)} times: {places}", *identities)
        if not places and promises.kept.intersection(identities):
            verdict.add(f"{key.family}/{key.name} was acknowledged, and is lost", key.name, *identities)
        if places and not promises.kept.intersection(identities):
            verdict.counts["kept without a promise"] += 1


def _judge_source(identity: str, record: dict[str, Any], found: dict[Key, list[str]], verdict: Verdict) -> None:
    source = Path(record["source"])
    try:
        is_in_place = digest_of(source.read_bytes()) == record["digest"]
    except (FileNotFoundError, NotADirectoryError):
        is_in_place = False
    if is_in_place:
        verdict.counts["sources in place"] += 1
    elif Key(record["archive"], record["name"], record["digest"]) not in found:
        verdict.add(f"{source} is neither in place nor in {record['archive']}", record["name"], identity)


def _judge_state(base: Path, promises: Promises, verdict: Verdict) -> None:
    layout = Layout(base)
    for folder in (layout.claims, layout.intents):
        for name in files_below(folder):
            verdict.add(f"left in {folder.name}: {name}", os.path.basename(name))
    for name in files_below(layout.inbox):
        path = layout.inbox / name
        # Of a worker that died before its first record, two files stay that hold nothing.
        if b"\n" in path.read_bytes() if path.suffix == ".journal" else path.stat().st_size:
            verdict.add(f"left in the inbox: {name}", path.stem)
    kept = {
        (record["archive"], record["name"])
        for identity, record in promises.begun.items()
        if identity in promises.kept and record["kind"] not in ("conflict", "same")
    }
    for path in sorted(layout.lost_and_found.rglob("*.json")):
        note = json.loads(path.read_bytes())
        verdict.counts["in lost+found"] += 1
        if (note.get("archive"), note.get("name")) in kept:
            verdict.add(f"acknowledged, and in lost+found: {path.name}: {note}", str(note.get("name")))
        elif "name" not in note:
            verdict.add(f"something without a name is in lost+found: {path.name}: {note}", path.stem)


def history(logs: Path, verdict: Verdict) -> str:
    """Return every line of all logs that tells of what is wrong, in the order of the logs."""
    words = [word for word in verdict.words if word][:_SHOWN]
    lines = []
    for path in sorted(logs.iterdir()):
        found = (line for line in path.read_text(errors="replace").splitlines() if any(word in line for word in words))
        lines += [f"{path.name}: {line[:600]}" for line in found]
    return "\n".join(lines[: 40 * _SHOWN])
