"""The command line: argv becomes calls of the library, its events and errors become text and an exit status."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run ``rear``; the process ends with the command's exit status."""
    _run("app", "rear")


def scavenger_main() -> None:
    """Run ``rear-scavenger``, the name and options by which older programs call ``rear scavenge``."""
    _run("scavenger_app", "rear-scavenger")


def _run(application: str, program: str) -> None:
    _keep_standard_streams()
    try:
        # The slow part of a short command: Ctrl-C often comes here.
        from rear.cli import app
    except KeyboardInterrupt:
        sys.exit(130)
    getattr(app, application)(prog_name=program)


def _keep_standard_streams() -> None:
    """Open what was closed of the descriptors 0 to 2: an archive that got one of them would get messages written in."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
