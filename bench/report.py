"""Tables of a run: for the terminal, and in ``docs/explanation/performance.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.results import Result, Run
from bench.rows import ROWS, description
from bench.verdicts import Verdict, judge

_BLOCK = re.compile(r"(<!-- begin: bench (\S+) -->\n).*?(<!-- end: bench -->)", re.DOTALL)
_HIDDEN = frozenset({"seconds", "cpu_seconds", "peak_bytes", "process_seconds"})
HEADINGS = ("", "median", "min … max", "CPU", "peak", "to rear", "besides")


def number(value: float) -> str:
    """Return three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}" if value >= 1 else f"{value:.3g}"


def heading(results: Sequence[Result]) -> str:
    """Return what a case is, the unit of its numbers, and how often they were measured."""
    rounds = max(len(result.samples) for result in results)
    return f"{results[0].case}: {results[0].unit}, {rounds} round{'s' * (rounds != 1)}"


def cells(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    """Yield one row of cells a contender of one case, as in `HEADINGS`."""
    rounds = max(len(result.samples) for result in results)
    rear = next((result.median() for result in results if result.role == "rear" and result.samples), None)
    for result in results:
        median = result.median()
        if median is None:
            yield (result.contender, "failed", result.failure or "", "", "", "", "")
            continue
        values = [value * result.scale for value in result.values(result.quantity)]
        peak, cpu = result.median("peak_bytes") or 0.0, result.median("cpu_seconds") or 0.0
        name = f"{result.contender} (limit)" if result.role == "limit" else result.contender
        ratio = f"{number(median / rear)} ×" if rear else ""
        yield (
            name, number(median * result.scale), f"{number(min(values))} … {number(max(values))}", f"{number(cpu)} s",
            f"{peak / 1e6:.0f} MB", ratio, besides(result, rounds),
        )  # fmt: skip


def besides(result: Result, rounds: int) -> str:
    """Return the values that only some contenders have, and what was wrong, or less than ``rounds`` times."""
    parts = [] if len(result.samples) == rounds else [f"{len(result.samples)} of {rounds} rounds"]
    for name in dict.fromkeys(name for sample in result.samples for name in sample):
        value = result.median(name)
        if name in _HIDDEN or name == result.quantity or value is None:
            continue
        if name.endswith("_seconds"):
            same_unit = result.quantity == "seconds"
            shown, unit = (value * result.scale, result.unit) if same_unit else (value, "s")
            parts.append(f"{name.removesuffix('_seconds')} {number(shown)} {unit}")
        elif name.endswith("_bytes"):
            parts.append(f"{name.removesuffix('_bytes')} {value / 1e6:.1f} MB")
        else:
            parts.append(f"{name.replace('_', ' ')} {number(value)}")
    if result.failure:
        parts.append(f"then failed: {result.failure}")
    return ", ".join(parts)


def show_case(results: Sequence[Result]) -> str:
    """Return the table of one case for the terminal."""
    head = (f"{results[0].row}, {heading(results)}", *HEADINGS[1:])
    lines = [head, *((f"  {first}", *rest) for first, *rest in cells(results))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    shown = []
    for line in lines:
        columns = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False)),
        ]
        shown.append("  ".join([*columns, line[-1]]).rstrip())
    return "\n".join(shown)


def shown_verdict(verdict: Verdict) -> tuple[str, str, str]:
    """Return the number that was measured, the one that is aimed at, and the one by CPU time."""
    unit = f" {verdict.unit or '×'}"
    sign = "≤" if verdict.sense == "at most" else "≥"
    value = "–" if verdict.value is None else f"{number(verdict.value)}{unit}"
    by_cpu = "" if verdict.by_cpu is None else f"{number(verdict.by_cpu)}{unit}"
    return value, f"{sign} {verdict.limit:g}{unit}", by_cpu


def show_targets(verdicts: Sequence[Verdict]) -> str:
    """Return what became of the targets for the terminal."""
    lines = []
    for verdict in verdicts:
        value, limit, by_cpu = shown_verdict(verdict)
        reason = f"  ({verdict.reason})" if verdict.reason else ""
        by_cpu = by_cpu and f"{by_cpu} CPU"
        lines.append(f"  {verdict.status:<13}{value:>14}  {limit:<16}{by_cpu:>13}  {verdict.what}{reason}")
    return "\n".join(lines)


# ---- docs/explanation/performance.md


def page(text: str, run: Run, images: str) -> str:
    """Return the page with its blocks made anew: the machine, the targets, and each row.

    Args:
        text: the page as it is.
        run: what was measured.
        images: folder of the plots, relative to the page.

    Raises:
        ValueError: the page has a block for a row that there is not.
    """

    def block(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name == "machine":
            made = _machine(run)
        elif name == "targets":
            made = _targets(judge(run))
        elif name in ROWS:
            made = _row(name, run, images)
        else:
            raise ValueError(f"the page has a block for {name}, and there is no such row")
        # Markdown wants the blank lines.
        return f"{begin}\n{made}\n\n{end}"

    return _BLOCK.sub(block, text)


def update_page(path: Path, run: Run) -> None:
    """Write the blocks of a page anew."""
    path.write_text(page(path.read_text(encoding="utf-8"), run, "images/performance"), encoding="utf-8")


def _machine(run: Run) -> str:
    lines = [f"- {name}: {_escaped(str(value))}" for name, value in run.machine.items()]
    peers = ", ".join(f"{name} {version}".removesuffix(" 0.1.2") for name, version in sorted(run.peers.items()))
    lines.append(f"- peers: {_escaped(peers) or 'none'}")
    lines += [f"- without {_escaped(name)}: {_escaped(reason)}" for name, reason in run.missing.items()]
    lines += [f"- failed: {_escaped(row)}: {_escaped(reason)}" for row, reason in run.failures.items()]
    kind = "quick run" if run.options.get("quick") else "full run"
    return "\n".join([*lines, f"- {kind} of {run.seconds / 60:.1f} minutes"])


def _targets(verdicts: Sequence[Verdict]) -> str:
    lines = ["| target | aimed at | measured | by CPU time | |", "|---|---:|---:|---:|---|"]
    for verdict in verdicts:
        value, limit, by_cpu = shown_verdict(verdict)
        status = f"**{verdict.status}**" if verdict.status == "missed" else verdict.status
        lines.append(f"| {_escaped(verdict.what)} | {limit} | {value} | {by_cpu} | {status} |")
    return "\n".join(lines)


def _row(name: str, run: Run, images: str) -> str:
    lines = [*(f"{paragraph}\n" for paragraph in description(name))]
    lines.append(f"![{name}]({images}/{name}.svg)\n")
    cases = run.rows().get(name, {})
    if not cases:
        return "\n".join([*lines[:-1], "Not measured in this run."])
    for results in cases.values():
        lines += [
            f"| {_escaped(heading(results))} | {' | '.join(HEADINGS[1:])} |",
            "|---" + "|---:" * 5 + "|---|",
        ]
        lines += [f"| {' | '.join(map(_escaped, line))} |" for line in cells(results)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
