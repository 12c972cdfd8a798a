"""Pictures of the terminal from real runs: docs/images/terminal/*.svg.

    python tools/screenshots.py [scavenge] [fsck]

Real workers write to a base in a temporary folder, some of them are killed, one lives on, an archive is damaged. Then
`rear.scavenge` and `rear.fsck.base` run, and a frame of the live screen is taken where most is to be seen, with Rich's
SVG export. Process numbers and times differ from run to run, so pictures are renewed by hand and looked at.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rear
from rear.cli.display.progress import Progress
from rear.cli.display.screen_parts import frame
from rear.cli.display.summary import summary_lines
from rear.core.text import shown
from rear.events import Claimed, Event, LeftAlone, Lost, Merged
from rear.fsck.base import fsck

TARGET: Final = Path(__file__).resolve().parent.parent / "docs" / "images" / "terminal"
WIDTH: Final = 100
_SHOWN_BASE: Final = "/nfs/base"

_WORKER: Final = """
import os, random, signal, sys
from rear import rear_fs, rear_open
base, number, files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
choose = random.Random(number)
with rear_fs(base):
    for index in range(files):
        for archive in ("runs/7/ar.zip", "logs/2026.zip", "results.zip"):
            with rear_open(f"{archive}/w{number}/{index:05}.bin", "wb") as file:
                file.write(choose.randbytes(choose.randrange(30_000)))
    with rear_open("results.zip/settings.json", "w") as file:
        file.write(f"worker {number}")
    if number % 3 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 10:
        print(flush=True)
        sys.stdin.read()
"""


def make_base(folder: Path) -> tuple[Path, subprocess.Popen[bytes]]:
    """Let eleven workers write; four are killed, the last one lives on. Then damage bytes of a killed one."""
    base = folder / "base"
    base.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(rear.__file__).parent.parent)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(base), str(number), str(20 + 13 * number)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for number in range(11)
    ]  # fmt: skip
    last = workers.pop()
    assert last.stdout is not None
    last.stdout.readline()
    for number, worker in enumerate(workers):
        worker.communicate()
        expected = -signal.SIGKILL if number % 3 == 0 else 0
        if worker.returncode != expected:
            raise SystemExit(f"worker {number} ended with status {worker.returncode}")
    for worker in (workers[6], workers[9]):
        pair = next(base.glob(f".rear/inbox/*/{worker.pid}-*.zip"))
        with open(pair, "r+b") as file:
            file.seek(60_000)
            file.write(bytes(40))
    return base, last


def run(name: str, events: Iterable[Event], progress: Progress, is_now: Callable[[Event, Progress], bool]) -> None:
    """Take events to their end; make a picture of the screen at one of them, and one of the summary."""
    has_picture = False
    for event in events:
        progress.take(event, time.monotonic())
        if not has_picture and is_now(event, progress):
            has_picture = True
            save(name, frame(progress, time.monotonic(), width=WIDTH, height=32), f"rear {progress.command}")
    if not has_picture:
        raise SystemExit(f"there was nothing to take a picture of for {name}")
    lines = list(summary_lines(progress, lists_all=True))
    width = max(len(line.head) for line in lines)
    texts = [
        Text(f"  {line.head:{width}}  " * bool(number) + shown(line.text), style=line.style)
        for number, line in enumerate(lines)
    ]
    save(f"{name}-summary", [Text(f"$ rear {progress.command} {_SHOWN_BASE}", "dim"), *texts], "summary")


def save(name: str, lines: list[Text], title: str) -> None:
    """Write one picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        line.end = "\n"
        console.print(line)
    TARGET.mkdir(parents=True, exist_ok=True)
    path = TARGET / f"{name}.svg"
    # Without the fonts that Rich would load from another site.
    code = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title=title, unique_id=name, code_format=code)
    path.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    print(path)


def main() -> int:
    """Make the pictures that are named, or all."""
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="rear-screenshots-") as folder:
        base, last = make_base(Path(folder))
        try:
            # A picture tells of the base by the name that the documentation gives it.
            progress = Progress("scavenge", _SHOWN_BASE, time.monotonic())
            done: set[type[Event]] = set()

            def is_salvaging(event: Event, progress: Progress) -> bool:
                done.add(type(event))
                busy = [line for line in progress.archives.values() if line.is_busy]
                return done >= {Claimed, Lost, LeftAlone, Merged} and bool(busy) and progress.phase == "copying"

            if not wanted or "scavenge" in wanted:
                run("scavenge", rear.scavenge(base, verify=True), progress, is_salvaging)
            else:
                list(rear.scavenge(base))
            with open(base / "logs/2026.zip", "r+b") as file:
                file.seek(70_000)
                file.write(bytes(40))
            progress = Progress("fsck", _SHOWN_BASE, time.monotonic())
            if not wanted or "fsck" in wanted:
                run("fsck", fsck(base, deep=True), progress, lambda event, progress: progress.phase == "comparing")
        finally:
            last.communicate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
