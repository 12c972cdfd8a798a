"""Zip files from many writers, small enough to be damaged at every byte.

    python tools/make_zoo.py FOLDER             # one file a writer; names the writers that are not installed
    python tools/make_zoo.py FOLDER --only 7z   # those whose name begins so

Each archive comes back as a `Sample`: its bytes, and what each of its members is. What a member is stands in the
intact archive's directory, read by Python's ``zipfile``, not by rear: rear is what is judged with it.
"""

from __future__ import annotations

import argparse
import bz2
import importlib.util
import io
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import rear
from rear.zip.headers import local_header_length
from rear.zip.origin import decode_origin

STORED, DEFLATED, DEFLATE64, BZIP2, LZMA, ZSTANDARD = 0, 8, 9, 12, 14, 93
PASSWORD: Final = "secret"
STUB: Final = b'#!/bin/sh\nexec unzip -q "$0"\n' + b"#" * 3000 + b"\n"
MOMENT: Final = 1_700_000_000
SMALL: Final = {
    "d/text": b"".join(b"line %d\n" % number for number in range(24)),
    "empty": b"",
    "noise.bin": random.Random(5).randbytes(60),
    "folder/": b"",
    "last.txt": b"the last one, the last one, the last one\n",
}
#: Which methods rear decodes; anything else it can only carry along.
DECODED: Final = frozenset({STORED, DEFLATED, DEFLATE64, BZIP2, LZMA, ZSTANDARD})


class MissingProgramError(Exception):
    """A writer, or a program to compare with, is not installed."""


@dataclass(frozen=True)
class Member:
    """One member as its writer meant it."""

    name: str
    content: bytes
    raw: bytes
    method: int
    encrypted: bool
    crc: int

    @property
    def is_verifiable(self) -> bool:
        """Whether rear can decode it and compare its CRC; else it can only carry the raw data along."""
        return self.method in DECODED and not self.encrypted


@dataclass(frozen=True)
class Sample:
    """An intact archive; ``directory`` is where its central directory begins, ``cookie`` that of a temp archive."""

    name: str
    data: bytes
    members: tuple[Member, ...]
    directory: int
    cookie: int | None = None


class Unseekable(io.RawIOBase):
    """Like a pipe: zipfile then writes data descriptors."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target

    def writable(self) -> bool:
        """As every pipe to write to."""
        return True

    def write(self, data: Any) -> int:
        """Pass data on."""
        return self._target.write(data)


# --- our own bytes: what no program writes on request


class Written(NamedTuple):
    """One member for `assemble`; ``raw`` is the data as it is to stand in the archive."""

    name: bytes
    content: bytes
    method: int = STORED
    raw: bytes | None = None


def encode(content: bytes, method: int) -> bytes:
    """Return content as one stream of a method, by other means than rear's."""
    if method == STORED:
        return content
    if method == DEFLATED:
        stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        return stream.compress(content) + stream.flush()
    if method == BZIP2:
        return bz2.compress(content)
    if method == ZSTANDARD:
        import zstandard

        return zstandard.ZstdCompressor().compress(content)
    if method == LZMA:
        # APPNOTE 5.8.8: version, length of the properties, the properties, the raw stream.
        stream_filter = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16}
        properties = bytes([(2 * 5 + 0) * 9 + 3]) + struct.pack("<I", 1 << 16)
        return b"\x09\x04\x05\0" + properties + lzma.compress(content, lzma.FORMAT_RAW, filters=[stream_filter])
    raise ValueError(f"no encoder for method {method}")


def assemble(
    members: Sequence[Written], *, flags: int = 0, descriptor: str = "", zip64: bool = False, directory: bool = True
) -> bytes:
    """Return a Zip (APPNOTE 4.3.6) with what the caller wants in it.

    Args:
        members: in their order.
        flags: general purpose bits for all of them (4.4.4).
        descriptor: none when empty, else ``signature`` or ``bare``, with ``64`` after it for 8-byte sizes (4.3.9).
        zip64: a Zip64 field in each header even where it is not needed (4.5.3).
        directory: whether to write the central directory.
    """
    parts: list[bytes] = []
    entries: list[bytes] = []
    position = 0
    for member in members:
        raw = encode(member.content, member.method) if member.raw is None else member.raw
        # Writers know what is empty beforehand.
        follows = bool(descriptor and member.content)
        crc, bits = zlib.crc32(member.content), flags | (8 if follows else 0)
        wide = zip64 or (follows and descriptor.endswith("64"))
        known = (0, 0, 0) if follows else (crc, len(raw), len(member.content))
        extra = struct.pack("<2H2Q", 1, 16, known[2], known[1]) if wide else b""
        sizes = (0xFFFFFFFF, 0xFFFFFFFF) if wide else known[1:]
        version = 45 if wide else 20
        head = struct.pack(
            "<4s5H3I2H", b"PK\3\4", version, bits, member.method, 0x6000, 0x5A21, known[0], *sizes,
            len(member.name), len(extra),
        )  # fmt: skip
        tail = b""
        if follows:
            form = "<I2Q" if wide else "<3I"
            tail = struct.pack(form, crc, len(raw), len(member.content))
            tail = tail if descriptor.startswith("bare") else b"PK\7\x08" + tail
        block = head + member.name + extra + raw + tail
        entries.append(
            struct.pack(
                "<4s6H3I5H2I", b"PK\1\2", 3 << 8 | 63, version, bits, member.method, 0x6000, 0x5A21, crc, len(raw),
                len(member.content), len(member.name), 0, 0, 0, 0, 0o100644 << 16, position,
            )
            + member.name
        )  # fmt: skip
        parts.append(block)
        position += len(block)
    if directory:
        length = sum(map(len, entries))
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(members), len(members), length, position, 0)
        parts += [*entries, end]
    return b"".join(parts)


def written(contents: Mapping[str, bytes], method: int = STORED, encoding: str = "utf-8") -> list[Written]:
    """Return members for `assemble`."""
    return [
        Written(name.encode(encoding), content, method if content else STORED) for name, content in contents.items()
    ]


def _own_bytes(contents: Mapping[str, bytes], variant: str) -> bytes:
    accented = {name.replace("d/", "dé/"): content for name, content in contents.items()}
    match variant.split("-"):
        case ["bare", method]:
            return assemble(written(contents, int(method)), descriptor="bare")
        case ["signature64", method]:
            return assemble(written(contents, int(method)), descriptor="signature64")
        case ["bare64", method]:
            return assemble(written(contents, int(method)), descriptor="bare64")
        case ["zip64"]:
            return assemble(written(contents, DEFLATED), zip64=True)
        case ["zstd"]:
            return assemble(written(contents, ZSTANDARD))
        case ["cp437"]:
            return assemble(written(accented, DEFLATED, "cp437"))
        case ["utf8"]:
            return assemble(written(accented, DEFLATED), flags=1 << 11)
        case ["nested"]:
            inner = assemble(written({f"inner/{name}": content for name, content in contents.items()}))
            return assemble(written({"a": b"before\n", "inner.zip": inner, "z": b"after\n"}))
    raise ValueError(f"no bytes of our own are called {variant}")


# --- other programs


def program(name: str) -> str:
    """Return the path of a program.

    Raises:
        MissingProgramError: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise MissingProgramError(f"{name} is not installed")
    return path


def _run(*arguments: str | Path, cwd: Path) -> bytes:
    command = list(map(str, arguments))
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: status {done.returncode}: {(done.stdout + done.stderr)[-500:]!r}")
    return done.stdout


def write_tree(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """Write contents as files, all of one age."""
    for name, data in contents.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, (MOMENT, MOMENT))
    return folder


def _zipfile(contents: Mapping[str, bytes], variant: str) -> bytes:
    method = {
        "stored": zipfile.ZIP_STORED, "stream-stored": zipfile.ZIP_STORED, "bzip2": zipfile.ZIP_BZIP2,
        "lzma": zipfile.ZIP_LZMA,
    }.get(variant, zipfile.ZIP_DEFLATED)  # fmt: skip
    buffer = io.BytesIO()
    target: IO[bytes] = buffer
    if variant.startswith("stream"):
        target = Unseekable(buffer)  # type: ignore[assignment]
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo(name, (2023, 11, 14, 22, 13, 20))
            info.compress_type = method if content else zipfile.ZIP_STORED
            with archive.open(info, "w", force_zip64=variant == "zip64") as member:
                member.write(content)
        if variant == "comment":
            archive.comment = b"a comment with PK\x01\x02 in it" + bytes(30)
    return buffer.getvalue()


def _info_zip(contents: Mapping[str, bytes], variant: str) -> bytes:
    options = {
        "stored": ["-0"], "zip64": ["-fz"], "stream": ["-fd"], "bzip2": ["-Z", "bzip2"],
        "encrypted": ["-P", PASSWORD],
    }.get(variant, [])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        tree, target = write_tree(Path(folder, "tree"), contents), Path(folder, "made.zip")
        if variant == "pipe":
            return _run(program("zip"), "-q", "-", *contents, cwd=tree)
        _run(program("zip"), "-q", *options, target, *contents, cwd=tree)
        if variant.startswith("prefix"):
            target.write_bytes(STUB + target.read_bytes())
        if variant == "prefix-adjusted":
            _run(program("zip"), "-qA", target, cwd=tree)
        return target.read_bytes()


def _seven_zip(contents: Mapping[str, bytes], variant: str) -> bytes:
    method = {"deflate64": "Deflate64", "bzip2": "BZip2", "lzma": "LZMA", "ppmd": "PPMd"}.get(variant, "Deflate")
    if variant == "deflate64" and importlib.util.find_spec("zipfile_deflate64") is None:
        raise MissingProgramError("what it writes is read with the extra rear[deflate64], which is not installed")
    options = {"encrypted": [f"-p{PASSWORD}"], "aes": [f"-p{PASSWORD}", "-mem=AES256"]}.get(variant, [])
    with tempfile.TemporaryDirectory() as folder:
        tree, target = write_tree(Path(folder, "tree"), contents), Path(folder, "made.zip")
        _run(program("7z"), "a", "-bd", "-tzip", f"-mm={method}", *options, target, ".", cwd=tree)
        return target.read_bytes()


def _bsdtar(contents: Mapping[str, bytes], variant: str) -> bytes:
    options = ["--options", "zip:compression=store"] if variant == "stored" else []
    if variant == "aes":
        options = ["--options", "zip:encryption=aes256", "--passphrase", PASSWORD]
    with tempfile.TemporaryDirectory() as folder:
        tree, target = write_tree(Path(folder, "tree"), contents), Path(folder, "made.zip")
        command = program("bsdtar"), "--format", "zip", *options
        if variant == "pipe":
            return _run(*command, "-b", "1", "-cf", "-", *contents, cwd=tree)
        _run(*command, "-cf", target, *contents, cwd=tree)
        return target.read_bytes()


def _jar(contents: Mapping[str, bytes], variant: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tree, target = write_tree(Path(folder, "tree"), contents), Path(folder, "made.jar")
        _run(program("jar"), "c0f" if variant == "stored" else "cf", target, *contents, cwd=tree)
        return target.read_bytes()


def _rear(contents: Mapping[str, bytes], variant: str) -> bytes:
    # rear writes no members for folders.
    files = {name: content for name, content in contents.items() if not name.endswith("/")}
    kind, _, compression = variant.partition("-")
    with tempfile.TemporaryDirectory() as base:
        with rear.rear_fs(base, compression=compression or "deflate"):
            for name, content in files.items():
                with rear.rear_open(f"ar.zip/{name}", "wb") as file:
                    file.write(content)
        if kind == "temp":
            (path,) = Path(base).glob(".rear/inbox/*/*.zip")
            return path.read_bytes()
        for _ in rear.scavenge(base):
            pass
        return Path(base, "ar.zip").read_bytes()


_MAKERS: Final[dict[str, Callable[[Mapping[str, bytes], str], bytes]]] = {
    "zipfile": _zipfile, "zip": _info_zip, "7z": _seven_zip, "bsdtar": _bsdtar, "jar": _jar, "bytes": _own_bytes,
    "rear": _rear,
}  # fmt: skip
WRITERS: Final = (
    "zipfile", "zipfile-stored", "zipfile-bzip2", "zipfile-lzma", "zipfile-zip64", "zipfile-comment",
    "zipfile-stream", "zipfile-stream-stored",
    "zip", "zip-stored", "zip-zip64", "zip-stream", "zip-pipe", "zip-bzip2", "zip-encrypted",
    "zip-prefix", "zip-prefix-adjusted",
    "7z", "7z-deflate64", "7z-bzip2", "7z-lzma", "7z-ppmd", "7z-encrypted", "7z-aes",
    "bsdtar", "bsdtar-stored", "bsdtar-pipe", "bsdtar-aes",
    "jar", "jar-stored",
    "bytes-bare-0", "bytes-bare-8", "bytes-signature64-0", "bytes-signature64-8", "bytes-bare64-0", "bytes-bare64-8",
    "bytes-zip64", "bytes-zstd", "bytes-cp437", "bytes-utf8", "bytes-nested",
    "rear-temp", "rear-temp-stored", "rear-temp-zstd", "rear-final",
)  # fmt: skip
"""Program and variant; see `make`."""


def make(writer: str, contents: Mapping[str, bytes]) -> bytes:
    """Return an archive of ``contents`` (names that end in ``/`` are folders) by one of `WRITERS`.

    Raises:
        MissingProgramError: its program is not installed.
    """
    maker, _, variant = writer.partition("-")
    return _MAKERS[maker](contents, variant)


# --- what is in it


def _name_of(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename.encode("utf-8" if info.flag_bits & 1 << 11 else "cp437")
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("cp437")


def raw_members(data: bytes) -> Iterator[tuple[zipfile.ZipInfo, bytes]]:
    """Yield each entry of an intact archive's directory with its raw data."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            name_length, extra_length = struct.unpack_from("<2H", data, info.header_offset + 26)
            start = info.header_offset + 30 + name_length + extra_length
            yield info, data[start : start + info.compress_size]


def sample_of(name: str, data: bytes, contents: Mapping[str, bytes] | None = None) -> Sample:
    """Return what an intact archive holds.

    Args:
        name: of the sample.
        data: the archive.
        contents: of its members, for those that ``zipfile`` cannot decode.
    """
    members = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info, raw in raw_members(data):
            member_name = _name_of(info)
            content = (contents or {}).get(member_name)
            if content is None:
                content = archive.read(info)
            encrypted = bool(info.flag_bits & 1)
            members.append(Member(member_name, content, raw, info.compress_type, encrypted, info.CRC))
        directory = archive.start_dir
    cookie = None
    if name.startswith("rear-temp"):
        origin = decode_origin(data[: local_header_length(data[:30])])
        cookie = origin.cookie if origin else None
    return Sample(name, data, tuple(members), directory, cookie)


def sample(writer: str, contents: Mapping[str, bytes] = SMALL) -> Sample:
    """Return an archive of ``contents`` by one of `WRITERS`, and what is in it.

    Raises:
        MissingProgramError: its program is not installed.
    """
    return sample_of(writer, make(writer, contents), contents)


def samples(only: str = "") -> Iterator[Sample | tuple[str, str]]:
    """Yield a sample of each writer whose name begins with ``only``, or its name and why there is none."""
    for writer in WRITERS:
        if writer.startswith(only):
            try:
                yield sample(writer)
            except MissingProgramError as error:
                yield writer, str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the zoo into a folder."""
    parser = argparse.ArgumentParser(description="Write small Zip files of many writers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="writers whose name begins so")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for made in samples(options.only):
        if isinstance(made, Sample):
            options.folder.joinpath(f"{made.name}.zip").write_bytes(made.data)
            print(f"{made.name:24} {len(made.data):6,} bytes, {len(made.members)} members")
        else:
            print(f"{made[0]:24} skipped: {made[1]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
