"""Reading archives: of many writers, damaged ones, and one that is being merged into meanwhile."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import zoo
from merges import Base, write_zip
from zips import archive_of, build, contents, overwrite

from rear.core.records import Origin
from rear.core.storage import Storage
from rear.errors import FutureVersionError, MemberNotFoundError, NotAZipError, UnsupportedError, ZipFormatError
from rear.journal.codec import encode_line
from rear.read import view as view_module
from rear.read.view import directory_of, open_committed
from rear.zip.codecs import DEFLATED, crc32
from rear.zip.headers import Member, encode_central_entry, encode_local_header
from rear.zip.member_ends import verify


@pytest.mark.parametrize("writer", zoo.WRITERS)
def test_archives_of_many_writers(writer: str, tmp_path: Path) -> None:
    path = zoo.make(writer, tmp_path)
    assert contents(path) == zoo.CONTENTS
    with open_committed(path) as archive:
        for entry in archive.entries():
            verify(archive, entry)
            assert archive.origin(entry) is None
            assert archive.local_header(entry).name == entry.name_bytes
        assert archive.directory == directory_of(path)


def test_encrypted_members(tmp_path: Path) -> None:
    zoo.write_tree(tmp_path / "tree")
    zoo.run(zoo.tool("zip"), "-qr", "-P", "secret", tmp_path / "e.zip", ".", cwd=tmp_path / "tree")
    with open_committed(tmp_path / "e.zip") as archive:
        entry = archive.find("short.txt")
        with pytest.raises(UnsupportedError, match=r"short\.txt.*encrypted"):
            verify(archive, entry)


def test_unknown_method(tmp_path: Path) -> None:
    zoo.write_tree(tmp_path / "tree")
    zoo.run(zoo.tool("7z"), "a", "-bd", "-mm=PPMd", tmp_path / "p.zip", "logs", cwd=tmp_path / "tree")
    with open_committed(tmp_path / "p.zip") as archive, pytest.raises(UnsupportedError, match=r"numbers.*method 98"):
        verify(archive, archive.find("logs/numbers"))


def test_links_to_archives_are_followed(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", "m")
    (tmp_path / "link.zip").symlink_to("a.zip")
    assert list(contents(tmp_path / "link.zip")) == ["m"]


def test_errors_name_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "no.zip"
    with pytest.raises(FileNotFoundError, match=r"no\.zip"):
        open_committed(path)
    path.write_bytes(b"text")
    with pytest.raises(NotAZipError, match=r"no\.zip: 4 bytes"):
        open_committed(path)
    with pytest.raises(OSError, match="not a regular file") as raised:
        open_committed(tmp_path)
    assert raised.value.filename == str(tmp_path)


def test_find(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", "logs/one.txt", "logs/two.txt", "README")
    with open_committed(path) as archive:
        assert archive.find("logs/two.txt").name == "logs/two.txt"
        for name, suggestion in (("logs/tow.txt", "logs/two.txt"), ("readme", "README"), ("one.txt", "logs/one.txt")):
            with pytest.raises(MemberNotFoundError, match=f"{name}.*did you mean .*{suggestion}"):
                archive.find(name)
        with pytest.raises(MemberNotFoundError) as raised:
            archive.find("x" * 70_000)
        assert "did you mean" not in str(raised.value)
        assert len(str(raised.value)) < 1000


def test_the_last_of_two_members_of_one_name_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with pytest.warns(UserWarning, match="Duplicate"):
        write_zip(path, "m", "m")
    with open_committed(path) as archive:
        first, last = archive.entries()
        assert first.offset < last.offset
        assert archive.find("m") == last


def test_reading_in_any_order_and_large(tmp_path: Path) -> None:
    big = os.urandom(5 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as writer:
        for number in range(300):
            writer.writestr(f"m{number}", b"%d" % number * number)
        writer.writestr("big", big)
        writer.writestr("big deflated", big, DEFLATED)
    with open_committed(tmp_path / "a.zip") as archive:
        found = list(archive.entries())
        for entry in [*reversed(found), *found[::7], *found]:
            data = b"".join(archive.read(entry))
            assert data == (big if entry.name.startswith("big") else entry.name[1:].encode() * int(entry.name[1:]))
        assert max(map(len, archive.read(found[-2]))) <= 1 << 20


@pytest.mark.parametrize(
    ("position", "data", "text"),
    [
        (0, b"XX", "no local header at byte 0"),
        (6, b"\x01", "encryption flag 1 in the local header, 0 in the directory"),
        (8, b"\x08", "method 8 in the local header, 0 in the directory"),
        (14, b"\0\0\0\0", "CRC-32 0 in the local header"),
        (18, b"\x01", "compressed size 1 in the local header, 12 in the directory"),
        (22, b"\x01", "size 1 in the local header, 12 in the directory"),
        (26, b"\x00", "name b'' in the local header"),
        (30, b"n", "name b'n' in the local header, b'm' in the directory"),
        (33, b"X", "CRC-32 [0-9a-f]{8} instead of [0-9a-f]{8}"),
    ],
)
def test_damaged_member(position: int, data: bytes, text: str, tmp_path: Path) -> None:
    path = overwrite(write_zip(tmp_path / "a.zip", "m", "other"), position, data)
    with open_committed(path) as archive:
        first, other = archive.entries()
        with pytest.raises(ZipFormatError, match=f"a.zip: member 'm': {text}"):
            verify(archive, first)
        verify(archive, other)


def forged(path: Path, *, size: int, compressed_size: int, method: int = 0, offset: int = 0, crc: int = 0) -> Path:
    member = Member("m", method, crc, compressed_size, size, 0, 0o644)
    body = encode_local_header(member, None) + b"content of m"
    path.write_bytes(archive_of(body, encode_central_entry(member, offset)))
    return path


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"size": 12, "compressed_size": 13}, "data would end at"),
        ({"size": 12, "compressed_size": 1 << 40}, "data would end at"),
        ({"size": 11, "compressed_size": 12}, "12 bytes or more instead of 11"),
        ({"size": 1 << 40, "compressed_size": 12}, "12 bytes instead of 1,099,511,627,776"),
        ({"size": 12, "compressed_size": 12, "offset": 1 << 50}, "no local header at byte"),
        ({"size": 12, "compressed_size": 12, "offset": 40}, "no local header at byte 40"),
        ({"size": 12, "compressed_size": 12, "method": 8}, "deflate stream"),
        ({"size": 12, "compressed_size": 12, "method": 14}, "LZMA properties"),
    ],
)
def test_forged_sizes_and_offsets(values: dict[str, int], text: str, tmp_path: Path) -> None:
    with open_committed(forged(tmp_path / "a.zip", **values)) as archive:
        entry = archive.find("m")
        with pytest.raises(ZipFormatError, match=f"member 'm': .*{text}"):
            verify(archive, entry)


def test_bomb_is_cut_short(tmp_path: Path) -> None:
    """A member that expands beyond its size is left at once."""
    import zlib

    data = zlib.compress(bytes(100 << 20), 9)[2:-4]
    build(tmp_path / "a.zip", [(Member("m", DEFLATED, 0, len(data), 10, 0, 0o644), data, None, 0)])
    with open_committed(tmp_path / "a.zip") as archive:
        pieces = archive.read(archive.find("m"))
        with pytest.raises(ZipFormatError, match="instead of 10"):
            next(pieces)


def test_origin(tmp_path: Path) -> None:
    origin = Origin(1, 2, "a.zip", "host", "worker", 123, 0o600, "/src", 4, {"k": "v"})
    build(tmp_path / "a.zip", [(Member("m", 0, crc32(b"data"), 4, 4, 123, 0o600), b"data", origin, 0)])
    with open_committed(tmp_path / "a.zip") as archive:
        assert archive.origin(archive.find("m")) == origin


def test_fingerprint_is_that_of_the_file(tmp_path: Path) -> None:
    from rear.zip.directory import fingerprint

    path = write_zip(tmp_path / "a.zip", *map(str, range(500)))
    with open_committed(path) as archive, open(path, "rb") as file:
        assert archive.fingerprint == fingerprint(file.fileno(), archive.directory)
        archive.close()
        archive.close()


# --- while a merge runs -------------------------------------------------------------------------------------------


def test_the_old_archive_is_shown_during_a_merge(tmp_path: Path) -> None:
    base = Base(tmp_path, "old", "older")
    before = contents(base.path)
    with open_committed(base.path) as archive:
        fingerprint, directory = archive.fingerprint, archive.directory
    base.begin()
    (tmp_path / "link.zip").symlink_to(base.path)
    assert contents(base.path) == contents(tmp_path / "link.zip") == before
    with open_committed(base.path) as archive:
        assert (archive.fingerprint, archive.directory) == (fingerprint, directory)
        assert directory_of(base.path) == directory
        base.commit()
        # Opened before the commit: still the old one.
        assert [entry.name for entry in archive.entries()] == ["old", "older"]
    assert list(contents(base.path)) == ["old", "new"]
    base.end()
    assert list(contents(base.path)) == ["old", "new"]


def test_an_archive_that_is_made_by_a_merge_does_not_exist_before(tmp_path: Path) -> None:
    base = Base(tmp_path)
    base.begin()
    assert base.path.exists()
    with pytest.raises(FileNotFoundError, match="first merge"):
        open_committed(base.path)
    base.commit()
    assert list(contents(base.path)) == ["old", "new"]
    base.end()


def test_an_intent_that_is_not_complete_does_not_count(tmp_path: Path) -> None:
    base = Base(tmp_path, "old")
    before, whole = contents(base.path), base.path.read_bytes()
    base.begin()
    base.writer.close()
    base.path.write_bytes(whole)
    intent = base.intent.read_bytes()
    planned = intent.rindex(b"\n", 0, -1) + 1
    for length in {*range(0, planned, 7), *range(planned, len(intent))}:
        base.intent.write_bytes(intent[:length])
        assert contents(base.path) == before, length
    base.intent.write_bytes(os.urandom(500))
    assert contents(base.path) == before


def test_an_intent_from_the_future_is_refused(tmp_path: Path) -> None:
    base = Base(tmp_path, "old")
    base.intent.write_bytes(encode_line({"kind": "begin", "format_version": 99}))
    with pytest.raises(FutureVersionError):
        open_committed(base.path)


class Racing(Storage):
    """Calls a function before its n-th copy or listing, as a merge in another process might come in between."""

    def __init__(self, method: str, *actions: object) -> None:
        self._method = method
        self._actions = list(actions)

    def _maybe(self, method: str) -> None:
        if method == self._method and self._actions:
            action = self._actions.pop(0)
            if callable(action):
                action()

    def copy_range(self, source: int, target: int, *, source_start: int, target_start: int, length: int) -> None:
        self._maybe("copy before")
        super().copy_range(source, target, source_start=source_start, target_start=target_start, length=length)
        self._maybe("copy after")

    def names(self, path: str | os.PathLike[str]) -> list[str]:
        self._maybe("names")
        return super().names(path)

    def size(self, descriptor: int) -> int:
        self._maybe("size")
        return super().size(descriptor)


@pytest.mark.parametrize("moment", ["copy before", "copy after", "names", "size"])
@pytest.mark.parametrize("limit", [0, 32 << 20], ids=["disk", "memory"])
def test_a_merge_that_begins_while_the_archive_is_opened(
    moment: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "SNAPSHOT_MEMORY_BYTES", limit)
    base = Base(tmp_path, "old", "older")
    before = contents(base.path)
    assert contents(base.path, storage=Racing(moment, base.begin)) == before


@pytest.mark.parametrize("moment", ["copy before", "copy after", "names"])
def test_a_merge_that_ends_while_the_archive_is_opened(moment: str, tmp_path: Path) -> None:
    base = Base(tmp_path, "old", "older")
    base.begin()
    assert list(contents(base.path, storage=Racing(moment, base.commit))) == ["old", "new"]
    assert list(contents(base.path, storage=Racing(moment, base.end))) == ["old", "new"]


@pytest.mark.parametrize("moment", ["copy before", "copy after", "names", "size"])
def test_a_whole_merge_while_the_archive_is_opened(moment: str, tmp_path: Path) -> None:
    base = Base(tmp_path, "old", "older")

    def merge() -> None:
        base.begin()
        base.commit()
        base.end()

    assert list(contents(base.path, storage=Racing(moment, None, merge))) in (["old", "older"], ["old", "new"])


def test_an_archive_that_changes_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "_PAUSE_SECONDS", 0)
    path = write_zip(tmp_path / "a.zip", "m")
    sizes = iter(range(1000))

    def change() -> None:
        path.write_bytes(path.read_bytes()[:-22])
        write_zip(path, *map(str, range(next(sizes) % 5)))

    with pytest.raises((OSError, NotAZipError)):
        open_committed(path, storage=Racing("copy before", *[change] * 1000))


def test_descriptors_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "_PAUSE_SECONDS", 0)

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    before = count()
    base = Base(tmp_path, "old", "older")
    base.begin()
    contents(base.path)
    directory_of(base.path)
    base.commit()
    base.end()
    contents(base.path)
    base.path.write_bytes(b"no zip at all, but some bytes")
    with pytest.raises(NotAZipError):
        open_committed(base.path)
    base.begin = lambda: None  # type: ignore[method-assign]
    base.intent.write_bytes(encode_line({"kind": "begin", "format_version": 99}))
    with pytest.raises(FutureVersionError):
        open_committed(base.path)
    assert count() == before


def test_truncated_while_it_is_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", "m", "n")
    with open_committed(path) as archive:
        entry = archive.find("n")
        os.truncate(path, entry.offset + 35)
        with pytest.raises(ZipFormatError, match=r"member 'n'"):
            verify(archive, entry)
