"""What the benchmarks write: small files, all different, that deflate to about two thirds, as measured data does."""

from __future__ import annotations

import base64
import itertools
import random
from collections.abc import Iterator

SIZE_BYTES = 4096
_DIFFERENT = 500


def _one(generator: random.Random) -> bytes:
    noise = base64.b64encode(generator.randbytes(SIZE_BYTES // 2))
    return (noise + b"2026-01-01 00:00:00 INFO step done\n" * SIZE_BYTES)[:SIZE_BYTES]


def names_and_contents(count: int) -> Iterator[tuple[str, bytes]]:
    """Member names with their contents; the same for every call."""
    generator = random.Random(0)
    contents = [_one(generator) for _ in range(min(count, _DIFFERENT))]
    for number, content in zip(range(count), itertools.cycle(contents), strict=False):
        yield f"{number % 256:02x}/{number:06d}.txt", content
