"""Programs run in a process of their own."""

from __future__ import annotations

import subprocess
import sys

from checkout import ROOT


def fresh(code: str) -> str:
    """Return what code prints in a new interpreter, without what the environment's ``.pth`` files import."""
    search = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    code = f"import sys; sys.path[:0] = {search!r}\n{code}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
