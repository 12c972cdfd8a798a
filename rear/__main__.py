"""The entry of ``rear``, ``rear-scavenger`` and ``python -m rear``; nothing is imported here that need not be.

Until a command runs, Ctrl-C ends the process at once and without a word: a traceback out of some import tells nobody
anything. While one runs, ``rear.cli.signals`` says what a signal does.
"""

import _signal  # type: ignore[import-not-found]  # signal itself imports enum
import os
import sys


def _end_at_once(number: int, _: object) -> None:
    os._exit(128 + number)


try:
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _end_at_once)
except ValueError:
    # Imported by a thread, for whatever reason: only the first one may say what a signal does.
    pass


def _leave_current_folder() -> None:
    """``python -m`` looks there first, for all that is imported: somebody may keep a ``random.py`` in it."""
    package_folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        is_first = not sys.flags.safe_path and sys.path[0] in ("", os.getcwd())
    except OSError:
        # It was removed, so it is not on the path.
        is_first = False
    if is_first and sys.path[0] != package_folder:
        del sys.path[0]


def _use_utf8() -> None:
    """Begin anew where the locale has another encoding, in which most names of files cannot be said."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode and "utf8" not in sys._xoptions:
        if sys.stdout is not None:
            os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


if __name__ == "__main__":
    _leave_current_folder()
_use_utf8()

from rear.cli import main, scavenger_main  # noqa: E402

__all__ = ["main", "scavenger_main"]

if __name__ == "__main__":
    main()
