"""Zips written by hand, changed, and read again."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import zoo

from rear.core.records import Origin
from rear.core.storage import Storage
from rear.read.view import open_committed
from rear.zip.codecs import crc32
from rear.zip.directory import locate
from rear.zip.headers import Member, encode_central_entry, encode_end, encode_local_header

ORIGIN = Origin(7, 1, "ar.zip", "host", "worker", 0, 0o100644)


def write_zip(path: Any, members: dict[str, bytes], method: int = zipfile.ZIP_STORED, *, comment: bytes = b"") -> Any:
    """Write an archive as zipfile does; the path, or file, is returned."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.comment = comment
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def flip(path: Path, position: int, bits: int = 0x10) -> None:
    """Change bits of one byte."""
    data = bytearray(path.read_bytes())
    data[position] ^= bits
    path.write_bytes(data)


def overwrite(path: Path, position: int, data: bytes) -> Path:
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(data)
    return path


def directory_offset(path: Path) -> int:
    with open(path, "rb") as file:
        return locate(file.fileno()).offset


def archive_of(body: bytes, *entries: bytes, comment: bytes = b"") -> bytes:
    """Return an archive of what stands before its directory, and the entries there."""
    directory = b"".join(entries)
    return (
        body
        + directory
        + encode_end(entries=len(entries), directory_length=len(directory), directory_offset=len(body), comment=comment)
    )


def build(path: Path, members: list[tuple[Member, bytes, Origin | None, int]], *, shift: int = 0) -> Path:
    """Write an archive by hand: each member with what its origin field says, and bytes to leave free before it."""
    body, entries = b"", []
    for member, data, origin, gap in members:
        body += bytes(gap)
        entries.append(encode_central_entry(member, len(body) + shift))
        body += encode_local_header(member, origin) + data
    path.write_bytes(archive_of(body, *entries))
    return path


def member(name: str, data: bytes) -> Member:
    return Member(name, 0, crc32(data), len(data), len(data), 10**18, 0o100644)


def contents(path: Path, **options: Storage) -> dict[str, bytes]:
    with open_committed(path, **options) as archive:
        return {entry.name: b"".join(archive.read(entry)) for entry in archive.entries() if not entry.is_directory}


def members_of(count: int = 5) -> dict[str, bytes]:
    return {f"dir/{number}.txt": f"line of {number}\n".encode() * 50 for number in range(count)}


def cut(path: Path, end: int) -> Path:
    with open(path, "r+b") as file:
        file.truncate(end)
    return path


def offsets(path: Path) -> dict[str, int]:
    with open_committed(path) as archive:
        return {entry.name: archive.directory.prefix + entry.offset for entry in archive.entries()}


def stored(name: str, data: bytes, origin: Origin | None) -> bytes:
    facts = Member(name, 0, zlib.crc32(data), len(data), len(data), 1_700_000_000_123_456_789, 0o100640)
    return encode_local_header(facts, origin) + data


def many_members(writer: str, folder: Path) -> bytes:
    """Return an archive without its directory, of members of all sorts about which there is no question."""
    names = [*(f"d/{number % 7}/{number}.txt" for number in range(400)), "d/", "d/empty", "é/ü.txt", "é/"]
    plain = {name: b"" if name.endswith(("/", "empty")) else f"{name} ".encode() * (len(name) % 9) for name in names}
    if writer == "rear":
        return b"".join(
            stored(name, data, ORIGIN._replace(sequence=number, mode=0o100640))
            for number, (name, data) in enumerate(plain.items())
        )
    if writer == "zip":
        for name, data in plain.items():
            path = folder / "tree" / name
            if name.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        zoo.run(zoo.tool("zip"), "-q0r", folder / "made.zip", ".", cwd=folder / "tree")
    else:
        with zipfile.ZipFile(folder / "made.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in plain.items():
                archive.writestr(name, data, compress_type=zipfile.ZIP_STORED if len(data) < 40 else None)
    data = (folder / "made.zip").read_bytes()
    return data[: directory_offset(folder / "made.zip")]


def write_overlapping(path: Path) -> tuple[bytes, int]:
    """Write a member within another one; return what the outer one holds, and where the inner one begins."""
    inner = encode_local_header(member("inner", b"data"), None) + b"data"
    outer = member("outer", inner)
    body = encode_local_header(outer, None) + inner
    start = len(body) - len(inner)
    entries = encode_central_entry(outer, 0), encode_central_entry(member("inner", b"data"), start)
    path.write_bytes(archive_of(body, *entries))
    return inner, start
