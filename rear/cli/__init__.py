"""The command line: argv becomes calls of the library, its events and errors become text and an exit status.

*app* puts the *commands* together, one file each, with their common *options* and *executors*; *help* groups them,
*completion* knows what lies in archives, *targets* says which base and archive an argument means. *display* shows
events as a screen, lines or JSON, *listing* shows members; *byte_progress* and *lenient_stream* write to people.
*signals* ask a command to end, *exit* says how it ends, *exit_statuses* what each status means. *demo_workers* is what
``rear demo`` starts.

Imports every room.
"""

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
    try:
        _open_closed_streams()
        # The slow part of a short command: Ctrl-C often comes here, or while Typer looks at the commands.
        from rear.cli import app

        getattr(app, application)(prog_name=program)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        # Of what Typer prints itself: `rear --help > /dev/full`.
        from rear.cli.exit import report
        from rear.cli.lenient_stream import LenientStream

        status = report(error)
        LenientStream(sys.stdout).flush()
        sys.exit(status)


def _open_closed_streams() -> None:
    """Let ``rear ls >&-`` write to nowhere: else the next file that is opened gets the number of standard output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
