"""Where things lie in this checkout, from wherever a test lies."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REAR = ROOT / "rear"
SUPPORT = ROOT / "tests" / "support"
