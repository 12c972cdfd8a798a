"""The command line: argv becomes calls of the library, its events and errors become text and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = 130
SYSTEM_ERROR = 3


def main() -> NoReturn:
    """Run ``rear``; the process ends with the command's exit status."""
    from rear.cli.app import app

    _run(app)


def scavenger_main() -> NoReturn:
    """Run ``rear-scavenger``, the name and options by which older programs call ``rear scavenge``."""
    from rear.cli.app import scavenger_app

    _run(scavenger_app)


def _run(app: Callable[[], object]) -> NoReturn:
    from rear.errors import RearError

    try:
        app()
        status = 0
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except RearError as error:
        _say(str(error))
        status = error.exit_status
    except KeyboardInterrupt:
        _say("interrupted; nothing is lost, run it again to go on")
        status = INTERRUPTED
    except BrokenPipeError:
        status = 0
    except OSError as error:
        _say(_describe(error))
        status = SYSTEM_ERROR
    sys.exit(_flush(status))


def _flush(status: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # `rear ls | head`: the reader has what it wanted. Python would complain again when it closes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _say(_describe(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SYSTEM_ERROR
    return status


def _describe(error: OSError) -> str:
    text = error.strerror or str(error)
    if error.filename is None:
        return text
    advice = {errno.ENOSPC: "; free some space and run it again", errno.EACCES: "; check its owner and mode"}
    return f"{os.fsdecode(error.filename)}: {text}{advice.get(error.errno or 0, '')}"


def _say(text: str) -> None:
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    print(f"rear: {shown}", file=sys.stderr)
