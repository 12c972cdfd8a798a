"""What the benchmarks write: text and noise from a fixed seed, the same in every process and on every machine."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

SEED = 20260101
SMALL_BYTES = 4096
#: This many contents are made, and used in turn: making them all would take longer than what is measured.
_DIFFERENT = 512
_WORDS = [
    "step", "energy", "force", "residual", "converged", "iteration", "grid", "solver", "time", "pressure", "density",
    "velocity", "temperature", "boundary", "cell", "flux", "gradient", "norm", "tolerance", "elapsed",
]  # fmt: skip
_LEVELS = ("INFO", "INFO", "INFO", "DEBUG", "WARNING")


#: Text comes again after this much: further back than any deflate looks.
_PERIOD_BYTES = 1 << 20


def text(size_bytes: int, seed: int) -> bytes:
    """Return lines of a log, with numbers that differ: they deflate to about a quarter."""
    if size_bytes > _PERIOD_BYTES:
        period = text(_PERIOD_BYTES, seed)
        return (period * (size_bytes // _PERIOD_BYTES + 1))[:size_bytes]
    generator = random.Random(SEED + seed)
    lines = []
    length = 0
    while length < size_bytes:
        second = generator.randrange(86_400)
        line = (
            f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02} {generator.choice(_LEVELS)} "
            f"{generator.choice(_WORDS)} {generator.choice(_WORDS)}={generator.randrange(100_000)} "
            f"{generator.choice(_WORDS)}={generator.random():.6f}\n"
        )
        lines.append(line)
        length += len(line)
    return "".join(lines).encode()[:size_bytes]


def noise(size_bytes: int, seed: int) -> bytes:
    """Return random bytes."""
    return random.Random(SEED + seed).randbytes(size_bytes)


def contents(size_bytes: int) -> list[bytes]:
    """Return different contents of one size: text and noise by turns."""
    return [(text if seed % 2 == 0 else noise)(size_bytes, seed) for seed in range(_DIFFERENT)]


def small_files(count: int, *, size_bytes: int = SMALL_BYTES, folders: int = 256) -> Iterator[tuple[str, bytes]]:
    """Yield names, in so many folders, with contents."""
    for number, content in zip(range(count), itertools.cycle(contents(size_bytes)), strict=False):
        yield f"{number % folders:02x}/{number:07d}.txt", content
