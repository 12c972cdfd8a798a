"""The entry of ``rear``, ``rear-scavenger`` and ``python -m rear``; nothing is imported here that need not be.

Until a command runs, Ctrl-C ends the process at once and without a word: a traceback out of some import tells nobody
anything. While one runs, ``rear.cli.signals`` says what a signal does.
"""

import _signal  # type: ignore[import-not-found]  # signal itself imports enum
import os
import sys

_BEGUN_ANEW = "rear_begun_anew"


def main() -> None:
    """Run ``rear``; it ends the process."""
    _begin()
    from rear.cli import main as run

    run()


def scavenger_main() -> None:
    """Run ``rear-scavenger``; it ends the process."""
    _begin()
    from rear.cli import scavenger_main as run

    run()


def _begin() -> None:
    try:
        if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
            _signal.signal(_signal.SIGINT, _end_at_once)
    except ValueError:
        # Called by a thread, for whatever reason: only the first one may say what a signal does.
        pass
    _use_utf8()


def _end_at_once(number: int, _: object) -> None:
    os._exit(128 + number)


def _use_utf8() -> None:
    """Begin anew where the locale has another encoding, in which most names of files cannot be said."""
    if _BEGUN_ANEW in sys._xoptions:
        # Of no program that is started from here.
        os.environ.pop("PYTHONIOENCODING", None)
    elif sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode and sys.executable:
        options = ["-X", "utf8"]
        if sys.stdout is not None and "PYTHONIOENCODING" not in os.environ:
            os.environ["PYTHONIOENCODING"] = sys.stdout.encoding
            options += ["-X", _BEGUN_ANEW]
        os.execv(sys.executable, [sys.executable, *options, *sys.orig_argv[1:]])


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


if __name__ == "__main__":
    _leave_current_folder()
    main()
