"""A window gives what the file has, wherever one reads, in few system calls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rear.core.storage import Storage
from rear.zip.window import FIRST_BYTES, PIECE_BYTES, Window

DATA = os.urandom(1 << 16) * 3 + b"the end"
places = st.integers(0, len(DATA) + 10) | st.integers(0, 1 << 70)


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> int:
    path = tmp_path_factory.mktemp("window") / "file"
    path.write_bytes(DATA)
    return os.open(path, os.O_RDONLY)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([10, FIRST_BYTES, PIECE_BYTES]),
    st.lists(st.tuples(st.sampled_from(["read", "read_on", "load"]), places, st.integers(0, 1 << 17)), max_size=9),
)
def test_it_gives_what_the_file_has(descriptor: int, first_bytes: int, reads: list[tuple[str, int, int]]) -> None:
    window = Window(descriptor, 0, len(DATA), first_bytes=first_bytes)
    for how, position, length in reads:
        expected = DATA[position : position + length]
        if how == "load":
            window.load(position, length)
            at = position - window.base
            assert at >= 0
            assert window.data[at : at + length] == expected
        else:
            assert getattr(window, how)(position, length) == expected
        assert window.data == DATA[window.base : window.base + len(window.data)]


def test_reads_that_go_forward_are_few(tmp_path: Path) -> None:
    path, reads = tmp_path / "file", []
    path.write_bytes(bytes(8 << 20))

    class Counting(Storage):
        def read(self, descriptor: int, length: int, offset: int) -> bytes:
            reads.append(length)
            return super().read(descriptor, length, offset)

    with open(path, "rb") as file:
        window = Window(file.fileno(), 0, 8 << 20, first_bytes=FIRST_BYTES, storage=Counting())
        for position in range(0, 8 << 20, 512):
            assert len(window.read_on(position, 512)) == 512
    assert len(reads) < 15
    # One member alone costs little.
    assert reads[0] <= 1 << 16
