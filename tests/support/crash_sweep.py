"""A sweep that is killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import rear
from rear.core.storage import LOCAL, Storage
from rear.ingest import sweep as sweeper

SWEEP = [
    sys.executable, "-c",
    "import sys; from pathlib import Path; from crash_sweep import sweep; sweep(Path(sys.argv[1]))",
]  # fmt: skip


def sweep(folder: Path, storage: Storage = LOCAL, **options: Any) -> list[Any]:
    before = sweeper.BATCH_FILES
    # Several batches, so that one is deleted before the next one is archived.
    sweeper.BATCH_FILES = 4  # type: ignore[misc]
    try:
        return list(
            rear.sweep(
                folder / "spool", "ar.zip/spool", base=folder / "base",
                delete=True, wait_seconds=0, storage=storage, **options,
            )
        )  # fmt: skip
    finally:
        sweeper.BATCH_FILES = before  # type: ignore[misc]
