"""All rows by name, in the order in which they run."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from bench.end_to_end import end_to_end
from bench.growth import merge_growth
from bench.ingest import ingest, ingest_large, ingest_parallel
from bench.latency import latency
from bench.memory import memory
from bench.merge import merge, merge_interleaved, merge_large, verify
from bench.operations import operations
from bench.reading import fsck, ls
from bench.runner import Bench
from bench.salvage import salvage, salvage_tiny
from bench.start import start

ROWS: dict[str, Callable[[Bench], None]] = {
    "ingest": ingest,
    "ingest-large": ingest_large,
    "ingest-parallel": ingest_parallel,
    "operations": operations,
    "latency": latency,
    "merge": merge,
    "merge-large": merge_large,
    "merge-interleaved": merge_interleaved,
    "merge-growth": merge_growth,
    "verify": verify,
    "salvage": salvage,
    "salvage-tiny": salvage_tiny,
    "ls": ls,
    "fsck": fsck,
    "end-to-end": end_to_end,
    "memory": memory,
    "start": start,
}


def description(name: str) -> list[str]:
    """Return the paragraphs that say what a row measures."""
    text = inspect.getdoc(ROWS[name]) or ""
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
