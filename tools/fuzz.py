"""Coverage-guided fuzzing of one reader, with atheris: ``python tools/fuzz.py journal --seconds 600``.

Starts from valid files, changes them as `fuzz_targets.mutate` does and as libFuzzer does, and stops with status 77 and
the input in ``--findings`` at the first failure, at more than 1 GiB of memory, or when one input takes 10 seconds.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

NAMES: Final = ("journal", "intent", "directory", "scanner")
MEMORY_MIB: Final = 1024
INPUT_SECONDS: Final = 10
INPUT_LIMIT_BYTES: Final = 1 << 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(description="Coverage-guided fuzzing of one reader.")
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="folder to go on from and to add to; a temporary one by default")
    parser.add_argument("--findings", type=Path, default=Path("."), help="folder for inputs that fail")
    parser.add_argument("--input", type=Path, help="only run this file, as a finding is looked at")
    options = parser.parse_args(arguments)
    if options.input is not None:
        import fuzz_targets

        fuzz_targets.TARGETS[options.target].check(options.input.read_bytes())
        return 0
    try:
        import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    if options.corpus is None:
        # libFuzzer ends its process without cleaning up.
        with tempfile.TemporaryDirectory() as scratch:
            given = sys.argv[1:] if arguments is None else list(arguments)
            return subprocess.run([sys.executable, __file__, *given, "--corpus", scratch], check=False).returncode
    _fuzz(atheris, options)
    return 0


def _fuzz(atheris: Any, options: argparse.Namespace) -> None:
    with atheris.instrument_imports(include=["rear"]):
        import fuzz_targets
    target = fuzz_targets.TARGETS[options.target]
    seeds = target.seeds()
    corpus: Path = options.corpus
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        corpus.joinpath(f"seed-{number}").write_bytes(seed)

    def mutate(data: bytes, limit_bytes: int, seed: int) -> bytes:
        generator = random.Random(seed)
        if generator.randint(0, 2):
            changed = fuzz_targets.mutate(data, generator.choice(seeds), generator, records=target.records)
        else:
            changed = atheris.Mutate(data, limit_bytes)
        return changed[:limit_bytes]

    options.findings.mkdir(parents=True, exist_ok=True)
    settings = [
        f"-max_total_time={options.seconds}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}",
        f"-max_len={INPUT_LIMIT_BYTES}", f"-artifact_prefix={options.findings}/", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *settings, str(corpus)], target.check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
