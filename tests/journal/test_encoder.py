"""The fast ways to a member's bytes, one by one and many at once, give what the general functions give."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rear.core.names import Target
from rear.core.records import Append, Metadata, Open, Origin
from rear.journal.codec import encode_record
from rear.journal.encoder import Encoder, central_entries
from rear.worker.pair_writer import Item
from rear.zip.headers import Member, encode_central_entry, encode_local_header
from rear.zip.payload import Payload
from rear.zip.structures import LIMIT_32

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
sizes = st.integers(0, LIMIT_32 + 2) | st.integers(0, 1 << 40)
times = st.integers(0, 1 << 62) | st.integers(-(1 << 62), 0) | st.integers(1_700_000_000_000_000_000, 1 << 61)
opened = st.builds(
    Open, st.just(1), texts, texts, st.integers(0, 9), st.integers(0, (1 << 64) - 1), st.just(1), st.none(), st.none(),
    st.none(), st.just(0), st.just(60.0), st.just(0),
)  # fmt: skip
members = st.tuples(
    texts, texts, st.sampled_from([0, 8, 93]), st.integers(0, LIMIT_32), sizes, sizes, sizes, times,
    st.integers(0, 0xFFFFFFFF), st.none() | texts, st.none() | st.dictionaries(texts, st.integers(), max_size=2),
)  # fmt: skip


@given(opened, st.lists(members, min_size=1, max_size=6))
def test_it_gives_what_the_general_functions_give(opened: Open, members: list[tuple]) -> None:
    encoder = Encoder(opened)
    for sequence, given_member in enumerate(members):
        archive, name, method, crc, compressed_size, size, offset, mtime_ns, mode, source, metadata = given_member
        # Twice: parts are kept from the first time.
        for _ in range(2):
            payload = Payload(method, crc, compressed_size, size)
            item = Item(sequence, Target(archive, name), payload, mtime_ns, mode, source, metadata, None)
            encoded = encoder.encode(item, offset)
            expected = _expected(
                opened, sequence, Target(archive, name), payload, offset, mtime_ns, mode, source, metadata
            )
            assert encoded == expected
            described = Member(name, method, crc, compressed_size, size, mtime_ns, mode)
            record = Append(sequence, source, 0, size, offset, 0, archive, *described, metadata)
            assert encoder.header(record) == expected[1]


#: Members that many are made of at once, and odd ones among them.
ordinary = st.builds(
    Append,
    st.integers(0, 9),
    st.none() | texts,
    st.just(0),
    st.just(0),
    st.integers(0, LIMIT_32 - 1),
    st.just(0),
    texts,
    st.text(st.characters(codec="ascii"), min_size=1),
    st.sampled_from([0, 8, 93]),
    st.integers(0, LIMIT_32),
    st.integers(0, LIMIT_32 - 1),
    st.integers(0, LIMIT_32 - 1),
    st.integers(-(1 << 31) * 10**9, ((1 << 31) - 1) * 10**9) | st.just(10**18),
    st.sampled_from([0o100644, 0o40755]),
    st.none() | st.just({"a": 1}),
)
odd = [
    {},
    {"name": "ü"},
    {"size": LIMIT_32},
    {"compressed_size": LIMIT_32},
    {"offset": LIMIT_32},
    {"mtime_ns": 1 << 62},
    {"mtime_ns": -(1 << 62)},
]


@given(st.lists(ordinary, min_size=1, max_size=4), st.integers(0, 3), st.sampled_from(odd))
def test_entries_of_many_are_those_of_each(appends: list[Append], number: int, change: dict[str, Any]) -> None:
    appends[number % len(appends)] = appends[number % len(appends)]._replace(**change)
    offsets = [append.offset for append in appends]
    entries = central_entries(appends, offsets)
    assert (entries is None) == bool(change)
    if entries is not None:
        assert entries == [encode_central_entry(Member(*append[7:14]), append.offset) for append in appends]


def _expected(
    opened: Open, sequence: int, target: Target, payload: Payload, offset: int, mtime_ns: int, mode: int,
    source: str | None, metadata: Metadata | None,
) -> tuple[bytes, bytes, bytes]:  # fmt: skip
    (archive, name), size, compressed_size = target, payload.size, payload.compressed_size
    member = Member(name, payload.method, payload.crc, compressed_size, size, mtime_ns, mode)
    header = encode_local_header(
        member,
        Origin(opened.cookie, sequence, archive, opened.host, opened.worker, mtime_ns, mode, source, 0, metadata),
    )
    record = Append(
        sequence, source, 0, size, offset, len(header) + compressed_size, archive, name, payload.method, payload.crc,
        compressed_size, size, mtime_ns, mode, metadata,
    )  # fmt: skip
    return encode_record(record), header, encode_central_entry(member, offset)


def test_many_archives_and_modes_are_not_all_kept() -> None:
    opened = Open(1, "host", "worker", 0, 7, 1, None, None, None, 0, 60.0, 0)
    encoder, payload = Encoder(opened), Payload(0, 1, 2, 2)
    for number in range(2_500):
        target, mode = Target(f"{number}%d.zip", "a"), 0o100000 + number
        encoded = encoder.encode(Item(1, target, payload, 10**18, mode, None, None, None), 0)
        assert encoded == _expected(opened, 1, target, payload, 0, 10**18, mode, None, None)
    assert len(encoder._kinds) <= 1_000
