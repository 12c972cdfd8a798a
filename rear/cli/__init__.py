"""The command line: argv becomes calls of the library, its events and errors become text and an exit status.

*app* puts the *commands* together, one file each, with their common *options* and *executors*; *help* groups them,
*completion* knows what lies in archives, *targets* says which base and archive an argument means. *display* shows
events as a screen, lines or JSON, *listing* shows members; *byte_progress*, *standard_streams* and *lenient_stream*
write to people. *signals* ask a command to end, *exit* says how it ends, *exit_statuses* what each status means.
*demo_workers* is what ``rear demo`` starts.

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
    output = None
    try:
        from rear.cli.standard_streams import take_over

        output = take_over()
        _leave_odd_sizes()
        from rear.cli import app

        getattr(app, application)(prog_name=program)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as end:
        if output is not None and output.is_cut and end.code == 1:
            # That is how Typer ends where nobody reads its help any more.
            sys.exit(141)
        raise
    except OSError as error:
        # Of what Typer prints itself: `rear --help > /dev/full`.
        from rear.cli.exit import report
        from rear.cli.lenient_stream import LenientStream

        status = report(error)
        LenientStream(sys.stdout).flush()
        sys.exit(status)


def _leave_odd_sizes() -> None:
    """Have the terminal asked for its size where COLUMNS or LINES is no number that a screen can have."""
    for name in ("COLUMNS", "LINES"):
        text = os.environ.get(name, "")
        if not (text.isdecimal() and text.isascii() and 0 < int(text[:6]) < 1 << 16):
            os.environ.pop(name, None)
