"""``python -m bench [ROW …]`` runs rows; ``python -m bench report FILE`` shows or publishes what one run measured."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench import machine
from bench.peers import Peers
from bench.report import show_case, show_targets, update_page
from bench.results import Run, read
from bench.rows import ROWS, description
from bench.runner import ROOT, Bench, ContenderError
from bench.verdicts import judge

PAGE = ROOT / "docs" / "explanation" / "performance.md"
IMAGES = ROOT / "docs" / "images" / "performance"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures rear beside its peers and the limits of the machine; all rows unless some are named.",
        epilog="python -m bench report FILE [--write] shows what a run has left; "
        "--write renews docs/explanation/performance.md.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of: {', '.join(ROWS)}")
    parser.add_argument("--list", action="store_true", help="say what each row measures, and end")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: all rows in under 2 minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of all contenders (default: 3 to 5, quick: 1)")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="let the rear of another checkout take part, in turns with this one: what has a change cost?",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "build" / "bench",
        metavar="DIR",
        help="results.json and plots go there (default: %(default)s)",
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(tempfile.gettempdir()),
        metavar="DIR",
        help="existing folder on the filesystem to measure; up to 10 GB are written there (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rear-bench",
        metavar="DIR",
        help="peers that are not on this machine are downloaded to there (default: %(default)s)",
    )
    parser.add_argument("--no-download", action="store_true", help="leave out peers that are not on this machine")
    options = parser.parse_args(arguments)
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))} (there are: {', '.join(ROWS)})")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if not options.scratch.is_dir():
        parser.error(f"{options.scratch} is no folder")
    return options


def measure(options: argparse.Namespace) -> Run:
    """Run rows, and print each case when it is done."""
    peers = Peers(options.cache.absolute(), is_download_allowed=not options.no_download)
    run = Run(machine.describe(options.scratch), {"quick": options.quick, "rounds": options.rounds})
    print(", ".join(f"{name}: {value}" for name, value in run.machine.items()), flush=True)
    begin = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="rear-bench-", dir=options.scratch.absolute()))
    try:
        bench = Bench(
            run,
            peers,
            scratch,
            is_quick=options.quick,
            rounds=options.rounds,
            before=options.before and options.before.absolute(),
            tell=lambda line: print(line, flush=True),
        )
        with bench:
            for name in options.rows or ROWS:
                _run_row(bench, name)
                run.seconds = time.monotonic() - begin
                # Whoever is interrupted has what was measured so far.
                run.write(options.output / "results.json", [verdict.as_json() for verdict in judge(run)])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return run


def _run_row(bench: Bench, name: str) -> None:
    begin = time.monotonic()
    bench.row = name
    try:
        ROWS[name](bench)
    except (ContenderError, OSError) as error:
        # Data could not be made: the other rows do not need it.
        bench.fail(str(error))
    for results in bench.run.rows().get(name, {}).values():
        print("\n" + show_case(results), flush=True)
    print(f"({name}: {time.monotonic() - begin:.0f} s)", flush=True)


def finish(run: Run, output: Path) -> int:
    """Show what became of the targets, and draw; return 1 when a row, or rear in it, has failed."""
    remark = " (a quick run: sizes are smaller than said here)" if run.options["quick"] else ""
    print(f"\ntargets{remark}\n{show_targets(judge(run))}\n")
    print(f"{output / 'results.json'}, {run.seconds:.0f} s")
    draw(run, output / "plots")
    failed = [result for result in run.results if result.role == "rear" and result.failure]
    for result in failed:
        print(f"failed: {result.row}, {result.case}, {result.contender}: {result.failure}", file=sys.stderr)
    for row, reason in run.failures.items():
        print(f"failed: {row}: {reason}", file=sys.stderr)
    return 1 if failed or run.failures else 0


def draw(run: Run, folder: Path) -> None:
    """Draw all rows, if there is something to draw with."""
    try:
        from bench import plots
    except ImportError as error:
        print(f"no plots: {error}; pip install rear[bench]")
        return
    plots.draw(run, folder)
    print(f"plots in {folder}")


def report(arguments: Sequence[str]) -> int:
    """Show a run again; with ``--write`` put it into docs/explanation/performance.md."""
    parser = argparse.ArgumentParser(prog="python -m bench report", description="Shows what a run has left.")
    parser.add_argument("file", type=Path, metavar="FILE", help="results.json of a run")
    parser.add_argument(
        "--write", action="store_true", help="renew tables and plots of docs/explanation/performance.md"
    )
    options = parser.parse_args(arguments)
    try:
        run = read(options.file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for cases in run.rows().values():
        for results in cases.values():
            print(show_case(results) + "\n")
    print(f"targets\n{show_targets(judge(run))}")
    if options.write:
        update_page(PAGE, run)
        draw(run, IMAGES)
    return 0


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["report"]:
        return report(arguments[1:])
    options = parse(arguments)
    if options.list:
        for name in ROWS:
            print(f"{name:18}{description(name)[0]}")
        return 0
    return finish(measure(options), options.output)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # So that the scratch folder is removed, and the launcher ends what it runs.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
