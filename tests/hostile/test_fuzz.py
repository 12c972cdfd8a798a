"""Readers of what anybody may have written: valid files, changed a little, and bytes; see ``tools/fuzz_targets.py``."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from checkout import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "tools"))

import fuzz_targets
from fuzz_targets import TARGETS, Bounded, RunawayError

from rear.errors import JournalError
from rear.journal.codec import decode_line, encode_line
from rear.journal.intent import read_intent

T = TypeVar("T")
EXAMPLES = 300
#: Fixed, so that a failure is a change of the code; ``nox -s fuzz`` looks for new ones.
PROFILE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Chosen:
    """Makes choices from a list of numbers, the first possible one when it is used up: hypothesis can shrink that."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = iter(numbers)

    def randint(self, low: int, high: int) -> int:
        return low + next(self._numbers, 0) % (high - low + 1)

    def choice(self, values: Sequence[T]) -> T:
        return values[self.randint(0, len(values) - 1)]


@pytest.fixture(scope="module")
def seeds() -> dict[str, list[bytes]]:
    return {name: target.seeds() for name, target in TARGETS.items()}


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_pass(name: str, seeds: dict[str, list[bytes]]) -> None:
    assert len(seeds[name]) >= 3
    for data in seeds[name]:
        TARGETS[name].check(data)


@pytest.mark.parametrize("name", TARGETS)
@PROFILE
@given(numbers=st.lists(st.integers(0, 1 << 16), max_size=30))
def test_changed_files(name: str, seeds: dict[str, list[bytes]], numbers: list[int]) -> None:
    target, generator = TARGETS[name], Chosen(numbers)
    data = generator.choice(seeds[name])
    target.check(fuzz_targets.mutate(data, generator.choice(seeds[name]), generator, records=target.records))


@pytest.mark.parametrize("name", TARGETS)
def test_many_changes(name: str, seeds: dict[str, list[bytes]]) -> None:
    """The same without hypothesis between, which is slower than most readers."""
    target, generator = TARGETS[name], random.Random(7)
    for _ in range(10 * EXAMPLES):
        data = fuzz_targets.mutate(
            generator.choice(seeds[name]), generator.choice(seeds[name]), generator, records=target.records
        )
        try:
            target.check(data)
        except Exception as error:
            error.add_note(f"{data!r}")
            raise


@pytest.mark.parametrize("name", TARGETS)
@PROFILE
@given(data=st.binary(max_size=400) | st.lists(st.sampled_from(
    [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08", b"\xff" * 4, bytes(30),
     b"\n", b'00000000 {"kind":"append"}']) | st.binary(max_size=20), max_size=30).map(b"".join))  # fmt: skip
def test_bytes(name: str, data: bytes) -> None:
    TARGETS[name].check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_truncated_at_every_length(name: str, seeds: dict[str, list[bytes]]) -> None:
    for data in seeds[name][:3]:
        for length in range(len(data)):
            TARGETS[name].check(data[:length])


def test_bounds_are_real() -> None:
    """The harness itself notices what it is there for."""
    with Bounded(b"x" * 100) as storage:
        with pytest.raises(RunawayError, match="a read of"):
            storage.read(storage.descriptor, 1 << 30, 0)
        with pytest.raises(RunawayError, match="too many"):
            assert [storage.read(storage.descriptor, 1, 1000) for _ in range(1 << 20)]


# --- what fuzzing found


def forged_intent(**changes: Any) -> bytes:
    """An intent whose first record says something else."""
    begin, _, rest = fuzz_targets.intent_seeds()[3].partition(b"\n")
    payload = decode_line(begin)
    payload["old"].update({key: value for key, value in changes.items() if key in payload["old"]})
    payload.update({key: value for key, value in changes.items() if key not in payload["old"]})
    return encode_line(payload) + rest


@pytest.mark.parametrize("archive", ["../ar.zip", "/ar.zip", "", "ar.txt", "a\0.zip", ".rear/ar.zip"])
def test_an_intent_for_a_path_outside_the_base_is_damaged(archive: str, tmp_path: Path) -> None:
    path = tmp_path / "forged.intent"
    path.write_bytes(forged_intent(archive=archive))
    with pytest.raises(JournalError, match="no archive of this base"):
        read_intent(path)


@pytest.mark.parametrize("length", [1 << 63, 1 << 64, 10**40])
def test_an_intent_with_positions_that_no_file_has_is_damaged(length: int, tmp_path: Path) -> None:
    path = tmp_path / "forged.intent"
    path.write_bytes(forged_intent(archive_length=length, offset=0, tail_length=length))
    with pytest.raises(JournalError, match="impossible positions"):
        read_intent(path)


def test_an_intent_whose_directory_goes_beyond_the_archive_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "forged.intent"
    path.write_bytes(forged_intent(length=1 << 40))
    with pytest.raises(JournalError, match="impossible positions"):
        read_intent(path)


def test_a_comment_full_of_end_records_costs_few_reads() -> None:
    """Each of them ends at the last byte and describes all entries before it, which are to be counted."""
    entries = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, *[0] * 14) * 70_000
    count = 65_535 // 22
    records = [
        struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entries) + 22 * number, 0, 22 * (count - 1 - number))
        for number in range(count)
    ]
    fuzz_targets.check_directory(entries + b"".join(records))
