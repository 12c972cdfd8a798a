"""How a command ends: errors as one clear line on standard error, and an exit status."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer

from rear.cli.lenient_stream import LenientStream
from rear.cli.signals import Ended, ended_by_signals
from rear.core.text import printable, shown
from rear.errors import RearError

P = ParamSpec("P")

ATTENTION = 1
SYSTEM_ERROR = 3
INTERRUPTED = 130
CLOSED_PIPE = 141
_ADVICE = {
    errno.ENOSPC: "free some space and run it again",
    errno.EDQUOT: "free some space or raise the quota, and run it again",
    errno.EACCES: "check its owner and mode",
    errno.EROFS: "the file system is mounted read-only",
}


def report(error: RearError | OSError) -> int:
    """Print an error as one line on standard error; return the exit status for it."""
    note(told(error))
    return error.exit_status if isinstance(error, RearError) else SYSTEM_ERROR


def told(error: Exception) -> str:
    """Return an error in words; one that nobody foresaw with its kind."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else _current_folder()
        advice = _ADVICE.get(error.errno or 0)
        return f"{place}{error.strerror}" + (f"; {advice}" if advice else "")
    if isinstance(error, (RearError, OSError)):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _current_folder() -> str:
    """Return what an error is about that names no file, if that is the current folder, which was removed."""
    try:
        os.getcwd()
    except OSError:
        return "the current folder: "
    return ""


def note(text: str) -> None:
    """Print one line on standard error, if anybody is there to read it."""
    stream = LenientStream(sys.stderr)
    stream.write(f"rear: {printable(text)}\n")
    stream.flush()


def say(line: str) -> None:
    """Print one line about what goes well on standard error."""
    typer.echo(shown(line), err=True)


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Make a command end as it should whatever is foreseeable: no traceback, and a status that says what it was."""

    @functools.wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            with ended_by_signals():
                command(*arguments, **options)
                if sys.stdout is not None:
                    sys.stdout.flush()
        except BrokenPipeError:
            # `rear ls | head`: the reader has what it wanted.
            raise typer.Exit(CLOSED_PIPE) from None
        except Ended as end:
            note(f"ended by {end}; nothing is lost, run it again to go on")
            raise typer.Exit(128 + end.number) from None
        except KeyboardInterrupt:
            note("interrupted; nothing is lost, run it again to go on")
            raise typer.Exit(INTERRUPTED) from None
        except (RearError, OSError) as error:
            raise typer.Exit(report(error)) from None
        finally:
            # What is buffered for a reader that is gone is dropped here; Python would complain at exit.
            LenientStream(sys.stdout).flush()

    return run
