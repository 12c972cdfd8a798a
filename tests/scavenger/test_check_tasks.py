"""What ``--verify`` reads back of merged members: also their headers, byte by byte."""

from __future__ import annotations

from pathlib import Path

from rear.core.records import Origin
from rear.core.storage import LOCAL
from rear.scavenger.check_tasks import MergedMember, MergedMembers, find_changed
from rear.zip.codecs import STORED, crc32
from rear.zip.headers import Member, encode_local_header

DATA = b"hello"
MTIME_NS = 10**18


def test_a_wrong_byte_anywhere_in_a_header_is_noticed(tmp_path: Path) -> None:
    member = Member("a.txt", STORED, crc32(DATA), len(DATA), len(DATA), MTIME_NS, 0o100644)
    header = encode_local_header(member, Origin(1, 1, "ar.zip", "host", "worker", MTIME_NS, 0o100644))
    path = tmp_path / "ar.zip"
    path.write_bytes(header + DATA + bytes(2_000))
    merged = MergedMember("a.txt", 0, STORED, len(DATA), len(DATA), crc32(DATA))
    task = MergedMembers(str(path), path.stat().st_ino, (merged,))
    assert find_changed(task, LOCAL) == []
    for position in range(len(header) + len(DATA)):
        with path.open("r+b") as file:
            file.seek(position)
            before = file.read(1)
            file.seek(position)
            file.write(bytes([before[0] ^ 0x40]))
        assert find_changed(task, LOCAL) == [0], position
        with path.open("r+b") as file:
            file.seek(position)
            file.write(before)
