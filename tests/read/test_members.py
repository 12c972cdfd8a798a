"""Reading from Python: members of any archive, and of a base while they are still on their way."""

from __future__ import annotations

import io
import random
import signal
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest
from bases import put
from faults import SEED
from programs import start_code
from zips import flip

import rear
from rear import rear_fs, rear_open
from rear.errors import MemberNotFoundError, UnsupportedError, UsageError, ZipFormatError

RANDOM = random.Random(SEED)
DATA = bytes(RANDOM.choices(b"abc \n", k=400_000))
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def write_zip(path: Path, method: int, data: bytes = DATA) -> Path:
    with zipfile.ZipFile(path, "w", method) as zipped:
        zipped.writestr("a.bin", data)
        zipped.writestr("deep/b.txt", "one\r\ntwo\näöü\n")
        zipped.mkdir("folder")
    return path


# ---- archives


@pytest.mark.parametrize("method", METHODS)
def test_an_archive_reads_like_files(tmp_path: Path, method: int) -> None:
    with rear.open_archive(write_zip(tmp_path / "x.zip", method)) as archive:
        assert archive.names() == list(archive) == ["a.bin", "deep/b.txt", "folder/"]
        assert (len(archive), "a.bin" in archive, "b" in archive) == (3, True, False)
        assert archive.entry("a.bin").size == len(DATA)
        assert archive.read("a.bin") == DATA
        with archive.open("a.bin") as one, archive.open("a.bin") as other:
            assert one.read(7) == DATA[:7]
            assert other.read() == DATA
            assert one.read() == DATA[7:]
            assert one.read() == b""
        with archive.open("deep/b.txt", "r", encoding="utf-8") as text:
            assert text.readlines() == ["one\n", "two\n", "äöü\n"]
        with pytest.raises(MemberNotFoundError, match=r"a\.bin"):
            archive.open("A.bin")
        with pytest.raises(IsADirectoryError):
            archive.open("folder/")
        with pytest.raises(UsageError):
            archive.open("a.bin", "w")
        with pytest.raises(UsageError):
            archive.open("a.bin", "rb", encoding="utf-8")


@pytest.mark.parametrize("method", METHODS)
def test_seeks_give_what_a_file_would(tmp_path: Path, method: int) -> None:
    plain = io.BytesIO(DATA)
    with rear.open_archive(write_zip(tmp_path / "x.zip", method)) as archive, archive.open("a.bin") as file:
        for _ in range(25):
            whence = RANDOM.choice([0, 1, 2])
            offset = RANDOM.randrange(-len(DATA) // 8, len(DATA) // 8)
            offset += {0: len(DATA) // 2, 1: 0, 2: -len(DATA) // 4}[whence]
            if whence == 1 and plain.tell() + offset < 0:
                continue
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            length = RANDOM.choice([1, 100, 90_000])
            assert file.read(length) == plain.read(length)
            assert file.tell() == plain.tell()


def test_a_seek_in_a_stored_member_reads_no_more_than_it_has_to(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("big", bytes(50 << 20))
    with rear.open_archive(path) as archive, archive.open("big") as file:
        before = _bytes_read()
        file.seek(-10, io.SEEK_END)
        assert file.read() == bytes(10)
        assert _bytes_read() - before < 1 << 20


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_is_told_when_it_is_read_to_the_end(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "x.zip", method, b"0123456789" * 10)
    flip(path, 31 + 5 + 3)
    with rear.open_archive(path) as archive, archive.open("a.bin") as file, pytest.raises(ZipFormatError, match="bin"):
        file.read()


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    subprocess.run(["zip", "-qP", "word", "x.zip", "secret"], cwd=tmp_path, check=True)
    with rear.open_archive(tmp_path / "x.zip") as archive, pytest.raises(UnsupportedError, match="encrypted"):
        archive.open("secret")


# ---- a base


def test_what_was_just_closed_is_read_at_once_and_later_from_the_archive(base: Path) -> None:
    with rear_fs(base) as fs:
        for name, data in (
            ("small", b"x"),
            ("text", DATA[:50_000]),
            ("noise", RANDOM.randbytes(90_000)),
            ("empty", b""),
        ):
            with rear_open(f"ar.zip/{name}", "wb") as file:
                file.write(data)
            with rear_open(f"ar.zip/{name}", "rb") as file:
                assert file.read() == data
                file.seek(max(0, len(data) - 3))
                assert file.read() == data[-3:]
        with rear_open("ar.zip/lines", "w") as file:
            file.write("ä\nb\n")
        with fs.open("ar.zip/lines", "r") as file:
            assert list(file) == ["ä\n", "b\n"]
    list(rear.scavenge(base))
    assert not list((base / ".rear/inbox").rglob("*.zip"))
    with rear_fs(base):
        with rear_open("ar.zip/text", "rb") as file:
            assert file.read() == DATA[:50_000]
        with rear_open("ar.zip/lines", "r") as file:
            assert file.read() == "ä\nb\n"


def test_what_is_not_acknowledged_is_not_there(base: Path) -> None:
    with rear_fs(base):
        file = rear_open("ar.zip/open", "w")
        file.write("x")
        with pytest.raises(FileNotFoundError, match="open"):
            rear_open("ar.zip/open", "r")
        failed = rear_open("ar.zip/failed", "w")
        failed.write("x")
        failed.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        with pytest.raises(FileNotFoundError):
            rear_open("ar.zip/failed", "r")
        file.close()
        with rear_open("ar.zip/open", "r") as found:
            assert found.read() == "x"


def other_process(base: Path, code: str) -> subprocess.Popen[str]:
    script = f"import sys\nfrom rear import rear_fs, rear_open\nwith rear_fs({str(base)!r}):\n    {code}\n"
    script += "    print('ready', flush=True)\n    sys.stdin.read()\n"
    process = start_code(script, stdin=subprocess.PIPE, stderr=None)
    assert process.stdout.readline() == "ready\n"
    return process


def test_members_of_other_workers_live_or_killed(base: Path) -> None:
    with other_process(base, "f = rear_open('ar.zip/theirs', 'w'); f.write('theirs'); f.close()") as process:
        with rear_fs(base), rear_open("ar.zip/theirs", "r") as file:
            assert file.read() == "theirs"
        process.send_signal(signal.SIGKILL)
    with rear_fs(base), rear_open("ar.zip/theirs", "r") as file:
        assert file.read() == "theirs"


def test_the_final_archive_comes_first_and_of_those_on_their_way_the_latest(base: Path) -> None:
    with rear_fs(base):
        for text in ("first", "second"):
            with rear_open("ar.zip/a", "w") as file:
                file.write(text)
        with rear_open("ar.zip/a", "r") as file:
            assert file.read() == "second"
    list(rear.scavenge(base))
    with rear_fs(base):
        with rear_open("ar.zip/a", "w") as file:
            file.write("third")
        with rear_open("ar.zip/a", "r") as file:
            assert file.read() == "first"


def test_a_torn_member_is_not_there_and_an_older_whole_one_is(base: Path) -> None:
    with rear_fs(base):
        for data in (b"whole" * 100, b"torn!" * 100):
            with rear_open("ar.zip/a", "wb") as file:
                file.write(data)
        [temp] = (base / ".rear/inbox").rglob("*.zip")
        with temp.open("r+b") as file:
            file.seek(-1, io.SEEK_END)
            file.write(b"\xff")
        with rear_open("ar.zip/a", "rb") as file:
            assert file.read() == b"whole" * 100


def test_members_that_are_being_claimed_and_merged_are_found_all_the_time(base: Path) -> None:
    """A scavenger takes and merges while others read: no moment may come in which a member is nowhere."""
    with rear_fs(base) as fs:
        for number in range(30):
            put(fs, f"ar.zip/{number}", str(number))
    stop = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        with rear_fs(base) as fs:
            while not stop.is_set():
                number = random.randrange(30)
                try:
                    with fs.open(f"ar.zip/{number}", "r") as file:
                        assert file.read() == str(number)
                except BaseException as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        list(rear.scavenge(base))
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_member_in_a_claim_folder_is_found(base: Path) -> None:
    with rear_fs(base) as fs, fs.open("ar.zip/a", "w") as file:
        file.write("x")
    inbox, claims = base / ".rear/inbox", base / ".rear/claims/some-leader"
    claims.parent.mkdir(parents=True, exist_ok=True)
    inbox.rename(claims)
    with rear_fs(base) as fs, fs.open("ar.zip/a", "r") as file:
        assert file.read() == "x"
