"""What rear's scanner, ``zip -FF``, ``7z`` and ``bsdtar`` recover from damaged Zip files.

    python tools/compare_recovery.py                     # all writers, all damage; prints the table
    python tools/compare_recovery.py --write             # the same, and its section of docs/how-to/recover.md
    python tools/compare_recovery.py --every 40          # one of 40 of the systematic cases, the same each time
    python tools/compare_recovery.py --every 40 --offset 3    # other ones
    python tools/compare_recovery.py --writer 7z --kind hole

Status 1 when rear recovers less than another program, or delivers a wrong byte or a name that was not there.

*Right* is a member under its name with exactly its bytes; whether its reader complained about it is noted beside.
*Wrong* is a file with other bytes, *phantom* a name that was not in the archive, or was found twice.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from damage_zoo import SEED, Case, has_own_bytes, scenarios, systematic
from make_zoo import PASSWORD, Member, MissingProgramError, Sample, program, samples

from rear.salvage.scan import scan
from rear.salvage.scan_result import Found, Nested, recovered_content

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "recover.md"
_SECTION: Final = re.compile(r"<!-- Made by tools/compare_recovery\.py.*?<!-- End of what it made\. -->\n", re.DOTALL)
SECONDS = 10
FILE_LIMIT_BYTES = 32 << 20
FULL_MEMBERS: Final = 2000
PEERS: Final = ("zip -FF", "7z", "bsdtar", "bsdtar from a pipe")


@dataclass
class Outcome:
    """What one program made of one case; members by name."""

    right: set[str] = field(default_factory=set)
    #: Right bytes, but the program said that something is wrong with it.
    doubted: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    phantoms: list[str] = field(default_factory=list)
    ended: bool = True


# --- rear


def recover(case: Case, path: Path, *, cookie: int | None = None) -> Outcome:
    """Return what rear's scanner makes of a case that is stored at ``path``."""
    outcome = Outcome()
    members = {member.name: member for member in case.sample.members}
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found: list[Found] = []
        for event in scan(descriptor, cookie=cookie):
            if isinstance(event, Found):
                found.append(event)
            elif isinstance(event, Nested):
                found = [old for old in found if not event.start <= old.offset < event.start + event.length]
        for one in found:
            _judge(outcome, case, members, one, descriptor)
    finally:
        os.close(descriptor)
    return outcome


def _judge(outcome: Outcome, case: Case, members: dict[str, Member], found: Found, descriptor: int) -> None:
    """Add one finding: ``whole`` has to be right, ``unverified`` is right only for what nobody can verify."""
    alias = case.aliases.get(found.name)
    member = members.get(alias or found.name)
    if member is None:
        # A name that is said to be doubtful claims nothing when some header of that member was touched.
        if found.state == "whole" or (found.state == "unverified" and not case.touched):
            outcome.phantoms.append(found.name)
        elif found.state == "unverified":
            data = b"".join(recovered_content(descriptor, found))
            same = [name for name in case.touched if data in (members[name].content, members[name].raw)]
            outcome.doubted.update(same)
            if not same and found.recoverable_bytes:
                outcome.phantoms.append(found.name)
        return
    if found.state == "lost" or found.recoverable_bytes > len(member.content):
        if found.state == "whole":
            outcome.wrong.append(found.name)
        return
    data = b"".join(recovered_content(descriptor, found))
    if found.state == "whole" and data != member.content:
        outcome.wrong.append(found.name)
    elif found.state == "whole" and found.name in outcome.right:
        outcome.phantoms.append(found.name)
    elif alias is not None:
        return
    elif found.state == "whole" or (found.state == "unverified" and not member.is_verifiable and data == member.raw):
        outcome.right.add(found.name)
    elif data == member.content or (
        # What rear cannot decode it hands out as it stands: what its damaged bytes are worth, a decoder may find out.
        not member.is_verifiable and found.state == "unverified" and len(data) == len(member.raw)
    ):
        outcome.doubted.add(found.name)


# --- the others


def _limited(command: Sequence[str | Path], folder: Path, log: Path, stdin: bytes = b"") -> bool:
    """Run a program with bounds on its time and on each file that it writes; return whether it ended by itself."""
    bounded = ["sh", "-c", f'ulimit -f {FILE_LIMIT_BYTES // 512} && exec "$@"', "sh", *map(str, command)]
    with open(log, "wb") as output:
        try:
            done = subprocess.run(
                bounded, cwd=folder, input=stdin, stdout=output, stderr=subprocess.STDOUT, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode >= 0


def _complaints(log: Path, pattern: str) -> set[str]:
    text = log.read_bytes()[: 4 << 20].decode("utf-8", "surrogateescape")
    return {match.rstrip("/") for match in re.findall(pattern, text, re.MULTILINE)}


def _judge_tree(case: Case, outcome: Outcome, root: Path, complaints: set[str]) -> None:
    members: dict[str, Member] = {}
    parents: set[str] = set()
    for member in case.sample.members:
        name = member.name.rstrip("/")
        members[name] = member
        parents.update("/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1))
        # A name without UTF-8 flag may come out as its bytes stand in the archive.
        members.setdefault(member.name.encode("cp437", "replace").decode("utf-8", "surrogateescape"), member)
    for alias, name in case.aliases.items():
        members.setdefault(alias.rstrip("/"), members[name.rstrip("/")])
    for name, content in _files(root, max(len(member.content) for member in case.sample.members)):
        found = members.get(name)
        if found is None:
            if content is not None or (name not in parents and not any(root.joinpath(name).iterdir())):
                outcome.phantoms.append(name)
        elif content is None and found.name.endswith("/"):
            if name not in parents:
                outcome.right.add(found.name)
        elif content != found.content:
            outcome.wrong.append(name)
        elif name in {alias.rstrip("/") for alias in case.aliases}:
            continue
        elif name in complaints:
            outcome.doubted.add(found.name)
        else:
            outcome.right.add(found.name)


def _files(root: Path, limit_bytes: int) -> Iterator[tuple[str, bytes | None]]:
    """Yield each file below a folder with its content (a little more than the limit at most), ``None`` for folders."""
    for folder, folders, names in os.walk(root):
        for name in folders + names:
            path = os.path.join(folder, name)
            mode, relative = os.lstat(path).st_mode, os.path.relpath(path, root)
            if stat.S_ISDIR(mode):
                yield relative, None
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    yield relative, file.read(limit_bytes + 1)
            else:
                yield relative, b"no regular file"


def _zip_ff(case: Case, archive: Path, folder: Path) -> Outcome:
    outcome, log = Outcome(), folder / "log"
    # It asks whether the archive is split.
    outcome.ended = _limited([program("zip"), "-FF", archive, "--out", folder / "fixed.zip"], folder, log, b"y\n")
    members = {
        member.name.encode(encoding): member for member in case.sample.members for encoding in _encodings(member)
    }
    aliases = {alias.encode("utf-8", "surrogateescape") for alias in case.aliases}
    try:
        data = folder.joinpath("fixed.zip").read_bytes()
    except OSError:
        return outcome
    for entry in _entries(data):
        member = members.get(entry.name)
        if entry.name in aliases:
            continue
        if member is None or member.name in outcome.right | outcome.doubted:
            outcome.phantoms.append(entry.name.decode("utf-8", "replace"))
        elif entry.raw != member.raw or entry.method != member.method:
            outcome.wrong.append(member.name)
        elif entry.size == len(member.content) and entry.encrypted == member.encrypted and entry.crc == member.crc:
            outcome.right.add(member.name)
        else:
            # Who unpacks the repaired archive will be told that it is damaged.
            outcome.doubted.add(member.name)
    return outcome


def _encodings(member: Member) -> Iterator[str]:
    yield "utf-8"
    try:
        member.name.encode("cp437")
        yield "cp437"
    except UnicodeEncodeError:
        return


class _Entry(NamedTuple):
    name: bytes
    method: int
    encrypted: bool
    crc: int
    size: int
    raw: bytes


def _entries(data: bytes) -> Iterator[_Entry]:
    """Yield what a forgiving reader gets from a repaired archive; its extra fields may be cut off."""
    end = data.rfind(b"PK\5\6")
    if end < 0 or end + 22 > len(data):
        return
    length, position = struct.unpack_from("<2I", data, end + 12)
    stop = position + length
    while position + 46 <= min(stop, len(data)) and data.startswith(b"PK\1\2", position):
        (_, _, flags, method, _, crc, compressed_size, size, *lengths, _, _, _, offset) = struct.unpack_from(
            "<4HI3I5H2I", data, position + 4
        )
        name = data[position + 46 : position + 46 + lengths[0]]
        position += 46 + sum(lengths)
        if data.startswith(b"PK\3\4", offset) and offset + 30 <= len(data):
            start = offset + 30 + sum(struct.unpack_from("<2H", data, offset + 26))
            yield _Entry(name, method, bool(flags & 1), crc, size, data[start : start + compressed_size])


def _seven_zip(case: Case, archive: Path, folder: Path) -> Outcome:
    outcome, log, out = Outcome(), folder / "log", folder / "out"
    out.mkdir()
    outcome.ended = _limited([program("7z"), "x", "-bd", "-y", f"-p{PASSWORD}", f"-o{out}", archive], folder, log)
    _judge_tree(case, outcome, out, _complaints(log, r"^ERROR: .* : (.+)$"))
    return outcome


def _bsdtar(case: Case, archive: Path, folder: Path, *, pipe: bool = False) -> Outcome:
    outcome, log, out = Outcome(), folder / "log", folder / "out"
    out.mkdir()
    command = [program("bsdtar"), "-xvf", "-" if pipe else archive, "-C", out, "--passphrase", PASSWORD]
    outcome.ended = _limited(command, folder, log, case.data if pipe else b"")
    _judge_tree(case, outcome, out, _complaints(log, r"^x (.+?): .+$"))
    return outcome


_PEERS: Final[dict[str, Callable[[Case, Path, Path], Outcome]]] = {
    "zip -FF": _zip_ff, "7z": _seven_zip, "bsdtar": _bsdtar,
    "bsdtar from a pipe": lambda case, archive, folder: _bsdtar(case, archive, folder, pipe=True),
}  # fmt: skip


def missing_peers() -> dict[str, str]:
    """Return which of `PEERS` cannot run here, and why."""
    missing = {}
    for name in PEERS:
        try:
            program(name.split()[0])
        except MissingProgramError as error:
            missing[name] = str(error)
    return missing


# --- all of them


@dataclass
class Comparison:
    """One case and what everybody made of it; ``violations`` is empty when rear is at least as good as all others."""

    case: Case
    outcomes: dict[str, Outcome]
    violations: list[str]


def compare(case: Case, peers: Iterable[str] = PEERS) -> Comparison:
    """Let rear and the others recover one case, each in a folder of its own."""
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        archive = Path(scratch, "case.zip")
        archive.write_bytes(case.data)
        mine = {"rear": recover(case, archive)}
        if case.sample.cookie is not None:
            # A scavenger knows the cookie from the journal.
            mine["rear, with the cookie"] = recover(case, archive, cookie=case.sample.cookie)
        for number, peer in enumerate(peers):
            folder = Path(scratch, f"{number}")
            folder.mkdir()
            outcomes[peer] = _PEERS[peer](case, archive, folder)
    violations = [
        violation for name, outcome in mine.items() for violation in _violations(case, name, outcome, outcomes)
    ]
    return Comparison(case, {"rear": mine["rear"], **outcomes}, violations)


def _violations(case: Case, name: str, mine: Outcome, others: dict[str, Outcome]) -> Iterator[str]:
    """Yield in what rear is worse than any other program.

    It may doubt what was touched, where others notice nothing. Of a member without data nothing but the name is left
    when its header is destroyed, and no more is demanded; nor of one that only its password tells from damage, where
    the others complain.
    """
    for member in mine.wrong:
        yield f"{name} delivers {member!r} with wrong bytes"
    for member in mine.phantoms:
        yield f"{name} delivers {member!r}, which was not there"
    listed = {
        member.name
        for member in case.sample.members
        if not member.content and member.name in case.touched and not has_own_bytes(case, member.name)
    }
    sealed = {member.name for member in case.sample.members if not member.is_verifiable} & case.touched
    for other, outcome in others.items():
        for member in sorted(outcome.right - mine.right - listed):
            if member not in mine.doubted:
                yield f"{other} recovers {member!r}, {name} does not"
            elif member not in case.touched:
                yield f"{other} recovers {member!r} without a doubt, {name} with one"
        for member in sorted(outcome.doubted - mine.right - mine.doubted - listed - sealed):
            yield f"{other} recovers {member!r} and complains, {name} does not recover it"


def small_cases(sample: Sample, every: int = 1, offset: int = 0) -> list[Case]:
    """Return the systematic cases of one sample, or one of ``every`` of each kind, always the same.

    Args:
        sample: the intact archive.
        every: one of so many.
        offset: which of them; the slices of all offsets below ``every`` hold each case once, if there are so many.
    """
    kinds: dict[str, list[Case]] = {}
    for case in systematic(sample):
        kinds.setdefault(case.kind, []).append(case)
    generator = random.Random(f"{SEED} {sample.name}")
    chosen = []
    for cases in kinds.values():
        if every > 1:
            generator.shuffle(cases)
        chosen += cases[offset % min(len(cases), every) :: every]
    return chosen


@dataclass
class Row:
    """Sums over the cases of one kind of damage."""

    cases: int = 0
    members: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, comparison: Comparison) -> None:
        """Add one case."""
        self.cases += 1
        self.members += len(comparison.case.sample.members)
        for name, outcome in comparison.outcomes.items():
            count = self.counts.setdefault(name, Counter())
            count["right"] += len(outcome.right)
            count["doubted"] += len(outcome.doubted)
            count["wrong"] += len(outcome.wrong)
            count["phantom"] += len(outcome.phantoms)
            count["stopped"] += not outcome.ended

    def cell(self, name: str) -> str:
        """Return what one program did, for the table."""
        count = self.counts.get(name)
        if count is None:
            return "–"
        extra = [f"{count[what]:,} {what}" for what in ("doubted", "wrong", "phantom", "stopped") if count[what]]
        return "; ".join([f"{count['right']:,}", *extra])


def table(rows: dict[str, Row]) -> str:
    """Return Markdown."""
    names = ["rear", *PEERS]
    lines = [
        f"| damage | cases | members | {' | '.join(f'`{name}`' for name in names)} |",
        f"|---|{'---:|' * (2 + len(names))}",
    ]
    for kind, row in rows.items():
        cells = " | ".join(row.cell(name) for name in names)
        lines.append(f"| {kind} | {row.cases:,} | {row.members:,} | {cells} |")
    return "\n".join(lines) + "\n"


def cases(
    *, writer: str = "", kind: str = "", every: int = 1, offset: int = 0, members: int = FULL_MEMBERS
) -> Iterator[Case]:
    """Yield systematic cases of small archives, then those of many members.

    Args:
        writer: only samples whose name begins so.
        kind: only kinds of damage in whose name this stands.
        every: one of so many of the systematic cases, always the same.
        offset: which of them.
        members: of each large archive; none of these with 0.
    """
    for sample in samples(writer):
        if isinstance(sample, Sample):
            yield from (case for case in small_cases(sample, every, offset) if kind in case.kind)
        else:
            print(f"{sample[0]}: skipped: {sample[1]}", file=sys.stderr)
    if members and not writer:
        for make_case in scenarios(members):
            try:
                case = make_case()
            except MissingProgramError as error:
                print(f"skipped: {error}", file=sys.stderr)
                continue
            if kind in case.kind:
                yield case


def run(chosen: Iterator[Case], peers: Sequence[str], *, jobs: int, keep: Path | None = None) -> tuple[str, int]:
    """Compare all cases; return the table and how many of them rear fails, which are printed and kept."""
    rows: dict[str, Row] = {}
    failed = 0
    started = time.monotonic()
    with ThreadPoolExecutor(jobs) as executor:
        while batch := list(itertools.islice(chosen, 500)):
            for comparison in executor.map(lambda case: compare(case, peers), batch):
                rows.setdefault(comparison.case.kind, Row()).add(comparison)
                if comparison.violations:
                    failed += 1
                    _report(comparison, failed, keep)
            done = sum(row.cases for row in rows.values())
            print(f"{done:,} cases, {failed:,} fail, {time.monotonic() - started:,.0f} s", file=sys.stderr)
    return table(rows), failed


def _report(comparison: Comparison, number: int, keep: Path | None) -> None:
    print(comparison.case, *(f"\n    {violation}" for violation in comparison.violations), file=sys.stderr)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        keep.joinpath(f"{number}.zip").write_bytes(comparison.case.data)


_INTRODUCTION: Final = """\
<!-- Made by tools/compare_recovery.py --write: change that, not this section. -->
## Recovery compared

What `rear`'s scanner and other programs get out of damaged Zip files. The first rows are small archives of every
writer (Python's `zipfile`, Info-ZIP, 7-Zip, libarchive, Java's `jar`, rear, and bytes that no program writes on
request) with the same damage at every byte or field; the others are archives of {members:,} members with damage as it
was met.
Numbers are members; `members` is how many the undamaged archives hold in all.

- **right** (the plain number): under its name, with exactly its bytes, without complaint. A member that `rear` cannot
  decode (encrypted, PPMd) counts when its raw data is exact.
- **doubted**: the same, but the program says that something is wrong with it. `rear` does so when name, sizes or CRC
  contradict each other.
- **wrong**: delivered with other bytes, whether the program complains or not.
- **phantom**: delivered under a name that was not in the archive, or twice.
- **stopped**: it did not end within {seconds} seconds, or wrote {limit} MiB into one file; times this was so.

A folder counts only where it holds nothing: programs make folders for what is in them anyway.

How `rear` is judged beside the others:

- Of a member that damage touched, its bytes are enough, also when `rear` says that it cannot vouch for them
  (`unverified`, `partial`): that is *doubted*. What damage did not touch has to be *right*.
- What `rear` calls whole is *wrong* with one other byte. What it calls partial is not held against it.
- Of a member that `rear` cannot decode and that damage touched, raw data of the right length is enough. It is not
  demanded at all where the other program, which has the password, complains.
- An empty member is not demanded when its own header or descriptor is damaged: nothing is left of it but a name.
- A name that never was, of a member that `rear` calls unverified, is what became of a damaged name when its bytes are
  those of a member that damage touched; otherwise it is a *phantom*. What cannot be decoded counts for nothing there.
- Where the only copy of a name was changed, nobody is asked for the old name or blamed for the new one.
{skipped}
{verdict}
`tests/salvage/test_zoo.py` looks at a slice of all cases, `nox -s zoo` at all.

Programs: {programs}.

"""


def page(rows: str, failed: int, missing: dict[str, str], members: int, every: int) -> str:
    """Return the section of docs/how-to/recover.md."""
    notes = [f"- {name}: {reason}." for name, reason in missing.items()]
    if every > 1:
        notes.append(f"- Of the damage at every byte or field, one of {every} cases is in the table.")
    verdict = (
        "What is aimed at: `rear` recovers what any of the others recovers, and delivers no wrong byte and no phantom. "
        f"In this table that holds in all cases{f' but {failed:,}' if failed else ''}."
    )
    if every > 1:
        verdict += " Cases that are not in it may hold some where it does not."
    skipped = "".join(f"{note}\n" for note in ["", *notes])
    head = _INTRODUCTION.format(
        members=members,
        seconds=SECONDS,
        limit=FILE_LIMIT_BYTES >> 20,
        skipped=skipped,
        verdict=verdict,
        programs=_versions(),
    )
    return f"{head}{rows}\n<!-- End of what it made. -->\n"


def _versions() -> str:
    found = []
    for command, pattern in (
        (["zip", "-v"], r"This is Zip ([\d.]+)"), (["7z"], r"7-Zip \S+ ([\d.]+)"),
        (["bsdtar", "--version"], r"libarchive ([\d.]+)"),
    ):  # fmt: skip
        try:
            text = subprocess.run(
                [program(command[0]), *command[1:]], capture_output=True, text=True, check=False, timeout=SECONDS
            ).stdout
        except MissingProgramError:
            continue
        version = re.search(pattern, text)
        found.append(f"{command[0]} {version.group(1) if version else 'of unknown version'}")
    return ", ".join(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, and write the page."""
    parser = argparse.ArgumentParser(description="Compare what rear and others recover from damaged Zip files.")
    parser.add_argument("--write", action="store_true", help=f"write its section of {PAGE.name}")
    parser.add_argument("--writer", default="", help="samples whose name begins so")
    parser.add_argument("--kind", default="", help="kinds of damage in whose name this stands")
    parser.add_argument("--every", type=int, default=1, help="one of so many systematic cases")
    parser.add_argument("--offset", type=int, default=0, help="which of so many")
    parser.add_argument("--members", type=int, default=FULL_MEMBERS, help="of each large archive; 0: none of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="folder for the archives that fail")
    parser.add_argument("--alone", action="store_true", help="rear without the others")
    options = parser.parse_args(arguments)
    missing = missing_peers()
    peers = [] if options.alone else [peer for peer in PEERS if peer not in missing]
    chosen = cases(
        writer=options.writer, kind=options.kind, every=options.every, offset=options.offset, members=options.members
    )
    rows, failed = run(chosen, peers, jobs=options.jobs, keep=options.keep)
    print(rows)
    if options.write:
        section = page(rows, failed, missing, options.members, options.every)
        PAGE.write_text(_SECTION.sub(lambda _: section, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
