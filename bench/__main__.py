"""``python -m bench [ROW …]``: runs the rows, prints medians and ratios, and writes all samples as JSON if asked to."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import rear
from bench import ingest, merge
from bench.runner import Result, measure

ROWS = {"ingest": ingest.rows, "merge": merge.rows}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of rear; all rows unless named.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the files, one round")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of all contenders (default: 5, quick: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(tempfile.gettempdir()),
        metavar="DIR",
        help="existing folder on the filesystem to measure (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))} (there are: {', '.join(ROWS)})")
    if options.rounds is None:
        options.rounds = 1 if options.quick else 5
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def show(results: Sequence[Result]) -> None:
    """Print one row: median, ratio to the first contender, and the range."""
    first = results[0]
    print(f"\n{first.row + ', ' + first.unit:26}{'median':>10}{'ratio':>8}   min … max")
    for result in results:
        ratio = result.median / first.median
        spread = f"{min(result.samples):.3g} … {max(result.samples):.3g}"
        print(f"  {result.contender:24}{result.median:>10.3g}{ratio:>8.2f}   {spread}")


def main() -> None:
    options = parse()
    machine = {
        "rear": rear.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "scratch": str(options.scratch),
        "rounds": options.rounds,
        "quick": options.quick,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    results: list[Result] = []
    for name in options.rows or ROWS:
        for row in ROWS[name](quick=options.quick):
            measured = measure(row, options.rounds, options.scratch)
            show(measured)
            results += measured
    if options.json:
        report = {"machine": machine, "results": [{**asdict(result), "median": result.median} for result in results]}
        options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
