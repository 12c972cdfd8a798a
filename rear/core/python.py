"""Other processes of Python that run modules of this package."""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE_FOLDER = str(Path(__file__).resolve().parents[2])


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package with the modules of this process.

    ``python -m`` would look into the current folder first, and import a ``random.py`` that somebody keeps there.

    Args:
        module: name of the module, or of a package with ``__main__``.
        arguments: what it finds in `sys.argv`.
    """
    # An empty entry means the current folder; where this package was found by it, its own folder comes last.
    path = [*filter(None, sys.path), _PACKAGE_FOLDER]
    code = f"import sys; sys.path[:] = {path!r}; import runpy; runpy.run_module({module!r}, None, '__main__', True)"
    return [sys.executable, "-c", code, *arguments]
