"""The command line: argv becomes calls of the library, its events and errors become text and an exit status."""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``rear``; the process ends with the command's exit status."""
    _run("app", "rear")


def scavenger_main() -> None:
    """Run ``rear-scavenger``, the name and options by which older programs call ``rear scavenge``."""
    _run("scavenger_app", "rear-scavenger")


def _run(application: str, program: str) -> None:
    try:
        # The slow part of a short command: Ctrl-C often comes here.
        from rear.cli import app
    except KeyboardInterrupt:
        sys.exit(130)
    getattr(app, application)(prog_name=program)
