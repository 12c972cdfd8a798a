"""The row about how long starting takes."""

from __future__ import annotations

import sys

from bench.peers import ORIGINAL
from bench.runner import ROOT, Bench, Command, Contender, rear_command


def start(bench: Bench) -> None:
    """``import rear`` beside an interpreter that does nothing, and the shortest commands; whole processes."""
    project = {"PYTHONPATH": str(ROOT)}
    bare = Contender("bare interpreter", lambda folder: Command([sys.executable, "-c", "pass"]), "limit")
    bench.compare(
        "import",
        [
            Contender(
                "import rear",
                lambda folder: Command([sys.executable, "-c", "import rear"], environment=project),
                "rear",
            ),
            Contender(
                ORIGINAL,
                lambda folder: Command([bench.peer(ORIGINAL).path, "-I", "-c", "import rear"]),
                needs=ORIGINAL,
            ),
            bare,
        ],
        unit="ms",
        scale=1e3,
        rounds=21,
        quick_rounds=5,
    )
    bench.compare(
        "command",
        [
            Contender("rear --help", lambda folder: rear_command("--help"), "rear"),
            Contender("rear --version", lambda folder: rear_command("--version"), "rear"),
            Contender(
                "zip -v",
                lambda folder: Command([bench.peer("zip").path, "-v"], environment=bench.peer("zip").environment),
                needs="zip",
            ),
            bare,
        ],
        unit="ms",
        scale=1e3,
        rounds=11,
        quick_rounds=5,
    )
