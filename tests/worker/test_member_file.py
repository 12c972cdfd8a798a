"""The file object: like one that `open` returns, but that it goes into an archive, whole, once, or not at all."""

from __future__ import annotations

import contextlib
import csv
import gc
import gzip
import io
import json
import logging
import os
import pickle
import resource
import shutil
import sys
import tarfile
import tempfile
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import in_threads, run_code

import rear
from rear.core.storage import Storage
from rear.errors import RearError, UsageError
from rear.worker import spool_file
from rear.worker.member_file import MemberFile
from rear.worker.text_member_file import TextMemberFile, open_member
from rear.zip.codecs import DEFLATED, decode


class Sink:
    """An owner of files, and what it was told."""

    spool_size = 1 << 20
    success_only = True

    def __init__(self, error: BaseException | None = None) -> None:
        self.contents: list[bytes] = []
        self.discarded: list[str] = []
        self.error = error

    def archive(self, file: MemberFile) -> None:
        if self.error is not None:
            raise self.error
        payload = file.payload(DEFLATED)
        self.contents.append(b"".join(decode(payload.method, payload.chunks())))
        assert payload.size == file.size == len(self.contents[-1])
        payload.close()

    def discard(self, file: MemberFile) -> None:
        self.discarded.append(file.name)

    def keep(self, file: MemberFile) -> None:
        pass

    def open(self, mode: str = "w", *, spool_size: int = 1 << 20, success_only: bool = True, **options: Any) -> Any:
        self.spool_size, self.success_only = spool_size, success_only
        return open_member("ar.zip/a.txt", mode, self, **options)


@pytest.fixture(params=[1 << 20, 10, 0], ids=["memory", "spilling", "disk"])
def spool_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


# -- modes


@pytest.mark.parametrize(
    "mode", [f"{kind}{rest}" for kind in "wx" for rest in ("", "t", "b", "+", "+b", "b+", "t+", "+t")]
)
def test_modes_that_write(mode: str) -> None:
    sink = Sink()
    with sink.open(mode) as file:
        assert file.mode == mode
        assert file.name == "ar.zip/a.txt"
        assert isinstance(file, io.BufferedIOBase if "b" in mode else io.TextIOWrapper)
        assert (file.writable(), file.readable(), file.seekable(), file.isatty()) == (True, "+" in mode, True, False)
        data: Any = b"data" if "b" in mode else "data"
        file.write(data)
        if "+" not in mode:
            for read in (file.read, file.readline, file.readlines, file.__next__):
                with pytest.raises(io.UnsupportedOperation):
                    read()
        assert repr(file)
    assert sink.contents == [b"data"]


@pytest.mark.parametrize("mode", ["", "rw", "wbt", "ww", "w++", "wU", "q", "b", "+", "wx", "xa"])
def test_modes_that_mean_nothing(mode: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mode|one of") as theirs:
        open(tmp_path / "x", mode)
    with pytest.raises(UsageError) as ours:
        Sink().open(mode)
    assert mode == "" or str(theirs.value).split(":")[0].lower()[:30] == str(ours.value).split(":")[0].lower()[:30]


@pytest.mark.parametrize("mode", ["r", "rb", "r+", "a", "ab", "a+", "rt"])
def test_modes_that_need_an_old_file(mode: str) -> None:
    with pytest.raises(UsageError, match=r"reads what was written \('r'\)"):
        Sink().open(mode)


@pytest.mark.parametrize("option", [{"encoding": "utf-8"}, {"errors": "strict"}, {"newline": ""}])
def test_binary_takes_no_text_options(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="binary mode") as theirs:
        open(tmp_path / "x", "wb", **option)
    with pytest.raises(UsageError) as ours:
        Sink().open("wb", **option)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("option", "error"),
    [({"encoding": "nonsense"}, LookupError), ({"newline": "x"}, ValueError), ({"encoding": 5}, TypeError)],
)
def test_bad_text_options_leave_nothing(option: dict[str, Any], error: type[Exception]) -> None:
    sink = Sink()
    with pytest.raises(error):
        sink.open("w", **option)
    gc.collect()
    assert (sink.contents, sink.discarded) == ([], [])


def test_a_mode_is_text() -> None:
    with pytest.raises(TypeError):
        Sink().open(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("newline", [None, "", "\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_text_is_encoded_as_open_does(newline: str | None, encoding: str, tmp_path: Path) -> None:
    text = "eins\nzwei\r\ndrei ü\n" * 1000
    sink = Sink()
    with sink.open("w+", encoding=encoding, newline=newline, spool_size=5000) as ours:
        theirs = open(tmp_path / "x", "w+", encoding=encoding, newline=newline)
        for file in (ours, theirs):
            file.write(text)
            file.seek(0)
        assert ours.read() == theirs.read()
        theirs.close()
    assert sink.contents == [(tmp_path / "x").read_bytes()]


# -- the same as a real file

_step = st.one_of(
    st.tuples(st.just("write"), st.binary(max_size=40)),
    st.tuples(st.just("writelines"), st.lists(st.binary(max_size=8), max_size=3)),
    st.tuples(st.just("seek"), st.integers(-5, 80), st.sampled_from([0, 0, 0, 1, 2, 9])),
    st.tuples(st.just("tell")),
    st.tuples(st.just("flush")),
    st.tuples(st.just("truncate"), st.one_of(st.none(), st.integers(-1, 80))),
    st.tuples(st.just("read"), st.one_of(st.none(), st.integers(-1, 50))),
    # Not 0: a real file for writing gives no error then.
    st.tuples(st.just("readline"), st.one_of(st.none(), st.integers(1, 50))),
    st.tuples(st.just("readinto"), st.integers(0, 50)),
    st.tuples(st.just("readlines")),
    st.tuples(st.just("iterate")),
)


def _run(file: Any, step: tuple[Any, ...]) -> object:
    name, *values = step
    try:
        if name == "readinto":
            buffer = bytearray(values[0])
            return file.readinto(buffer), bytes(buffer)
        if name == "iterate":
            return list(file)
        result = getattr(file, name)(*values)
    except (io.UnsupportedOperation, TypeError):
        # From Python 3.12 on, a file for writing cannot even be asked to read(None).
        return "unsupported"
    except (OSError, ValueError):
        return "invalid"
    # A real file may say None or something of its own here.
    return None if name == "flush" else result


@given(st.lists(_step, max_size=25), st.sampled_from(["w+b", "wb"]), st.sampled_from([0, 20, 60, 1000]))
@settings(max_examples=400, deadline=None)
def test_any_sequence_of_operations(steps: list[tuple[Any, ...]], mode: str, spool_size: int) -> None:
    sink = Sink()
    with tempfile.NamedTemporaryFile() as place, open(place.name, mode) as theirs:
        with sink.open(mode, spool_size=spool_size) as ours:
            for step in steps:
                assert _run(ours, step) == _run(theirs, step), step
                assert ours.tell() == theirs.tell(), step
        theirs.flush()
        assert sink.contents == [Path(place.name).read_bytes()]


_text_step = st.one_of(
    st.tuples(st.just("write"), st.text(st.sampled_from("ab\n\rü€"), max_size=40)),
    st.tuples(st.just("rewind")),
    st.tuples(st.just("end")),
    st.tuples(st.just("truncate"), st.integers(0, 80)),
    st.tuples(st.sampled_from(["read", "readline"]), st.integers(-1, 50)),
)


@given(st.lists(_text_step, max_size=15), st.sampled_from([0, 20, 1000]))
@settings(max_examples=150, deadline=None)
def test_any_sequence_of_text_operations(steps: list[tuple[Any, ...]], spool_size: int) -> None:
    sink = Sink()
    with tempfile.NamedTemporaryFile() as place, open(place.name, "w+", encoding="utf-8", errors="replace") as theirs:
        with sink.open("w+", encoding="utf-8", errors="replace", spool_size=spool_size) as ours:
            for name, *values in steps:
                results = []
                for file in (ours, theirs):
                    if name in ("rewind", "end"):
                        results.append(file.seek(0, 0 if name == "rewind" else 2))
                    else:
                        # Reading and writing by turns needs a seek or a flush between, for both.
                        file.seek(file.tell())
                        results.append(getattr(file, name)(*values))
                assert results[0] == results[1]
        theirs.flush()
        assert sink.contents == [Path(place.name).read_bytes()]


@pytest.mark.parametrize("mode", ["w+b", "w+"])
def test_odds_and_ends(mode: str, spool_size: int) -> None:
    sink = Sink()
    file = sink.open(mode, spool_size=spool_size)
    lines = ["one\n", "two\n", "three"]
    file.writelines(lines if mode == "w+" else [line.encode() for line in lines])
    file.seek(0)
    assert [line if mode == "w+" else line.decode() for line in file] == lines
    with pytest.raises(io.UnsupportedOperation, match="no file descriptor"):
        file.fileno()
    with pytest.raises(TypeError):
        file.write(5)
    binary = file if mode == "w+b" else file.buffer
    binary.seek(0)
    assert binary.peek(3)[:3] == b"one"
    assert binary.read1(4) == b"one\n"
    buffer = bytearray(2)
    assert binary.readinto1(buffer) == 2
    assert buffer == b"tw"
    with pytest.raises(io.UnsupportedOperation):
        binary.detach()
    file.close()
    file.close()
    file.discard()
    assert file.closed
    assert binary.closed
    for use in (file.tell, file.readable, file.flush, file.read, file.fileno, file.__enter__, lambda: file.write("")):
        with pytest.raises((ValueError, TypeError)):
            use()
    assert sink.contents == [b"one\ntwo\nthree"]
    assert sink.discarded == []


def test_other_buffers_are_counted_in_bytes() -> None:
    sink = Sink()
    with sink.open("wb", spool_size=100) as file:
        assert file.write(np.arange(20, dtype="<u8")) == 160
        assert not isinstance(file._file, io.BytesIO)
    assert sink.contents == [np.arange(20, dtype="<u8").tobytes()]


@pytest.mark.parametrize("how", ["seek", "truncate"])
def test_a_hole_takes_no_memory(how: str) -> None:
    payloads = []

    class Keeping(Sink):
        def archive(self, file: MemberFile) -> None:
            payloads.append(file.payload(DEFLATED))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = Keeping().open("wb")
    if how == "seek":
        file.seek((1 << 29) - 1)
        file.write(b"x")
    else:
        file.truncate(1 << 29)
    file.close()
    (payload,) = payloads
    assert payload.size == 1 << 29
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    payload.close()


# -- users of files


def _write_json(file: Any) -> None:
    json.dump({"a": [1, 2, "ü"]}, file)


def _write_csv(file: Any) -> None:
    csv.writer(file).writerows([[number, "x,y"] for number in range(500)])


def _write_log(file: Any) -> None:
    handler = logging.StreamHandler(file)
    for number in range(100):
        handler.emit(logging.LogRecord("n", 20, "p", 1, "line %d", (number,), None))
    handler.close()


def _write_print(file: Any) -> None:
    with contextlib.redirect_stdout(file):
        print("to standard output", 1, 2, flush=True)
    print("more", file=file)


def _copy_text(file: Any) -> None:
    shutil.copyfileobj(io.StringIO("text" * 9000), file)


@pytest.mark.parametrize("use", [_write_json, _write_csv, _write_log, _write_print, _copy_text])
def test_users_of_text_files(use: Callable[[Any], None], spool_size: int, tmp_path: Path) -> None:
    sink = Sink()
    with (
        sink.open("w", encoding="utf-8", spool_size=spool_size) as ours,
        open(tmp_path / "x", "w", encoding="utf-8") as theirs,
    ):
        use(ours)
        use(theirs)
    assert sink.contents == [(tmp_path / "x").read_bytes()]


def _write_npy(file: Any) -> None:
    np.save(file, np.arange(100_000).reshape(100, -1))


def _write_npz(file: Any) -> None:
    np.savez_compressed(file, a=np.arange(10), b=np.eye(3))


def _write_gzip(file: Any) -> None:
    with gzip.GzipFile("name", "wb", fileobj=file, mtime=1) as stream:
        stream.write(b"data" * 1000)


def _write_zip(file: Any) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a"), b"a" * 5000)
        with archive.open(zipfile.ZipInfo("b"), "w") as inner:
            inner.write(b"b" * 5000)


def _write_tar(file: Any) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))


def _copy_bytes(file: Any) -> None:
    shutil.copyfileobj(io.BytesIO(b"bytes" * 90_000), file)


def _pickle(file: Any) -> None:
    pickle.dump({"a": list(range(1000)), "b": bytes(200_000)}, file, protocol=5)


@pytest.mark.parametrize("use", [_write_npy, _write_npz, _write_gzip, _write_zip, _write_tar, _copy_bytes, _pickle])
def test_users_of_binary_files(use: Callable[[Any], None], spool_size: int, tmp_path: Path) -> None:
    sink = Sink()
    with sink.open("wb", spool_size=spool_size) as ours, open(tmp_path / "x", "wb") as theirs:
        use(ours)
        use(theirs)
    assert sink.contents == [(tmp_path / "x").read_bytes()]


def test_reading_back_what_was_written(spool_size: int) -> None:
    with Sink().open("w+b", spool_size=spool_size) as file:
        np.save(file, np.arange(1000))
        file.seek(0)
        assert (np.load(file) == np.arange(1000)).all()
        file.seek(0)
        file.truncate()
        _write_zip(file)
        assert zipfile.ZipFile(file).testzip() is None


def test_a_second_wrapper(spool_size: int) -> None:
    sink = Sink()
    with sink.open("wb", spool_size=spool_size) as file:
        text = io.TextIOWrapper(file, encoding="utf-8")
        text.write("über")
        text.detach()
    assert sink.contents == ["über".encode()]


def test_detach_gives_the_binary_file() -> None:
    sink = Sink()
    text = sink.open("w", encoding="utf-8")
    text.write("one ")
    binary = text.detach()
    with pytest.raises(ValueError, match="detached"):
        text.write("x")
    del text
    gc.collect()
    binary.write(b"two")
    binary.close()
    assert sink.contents == [b"one two"]


# -- the end


@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_discards(mode: str, error: type[BaseException], spool_size: int) -> None:
    sink = Sink()
    file = sink.open(mode, spool_size=spool_size)
    file.write("half" if mode == "w" else b"half")
    with pytest.raises(error), file:
        raise error
    assert file.closed
    file.close()
    assert (sink.contents, sink.discarded) == ([], ["ar.zip/a.txt"])
    file = sink.open(mode, spool_size=spool_size, success_only=False)
    file.write("half" if mode == "w" else b"half")
    with pytest.raises(error), file:
        raise error
    assert sink.contents == [b"half"]


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_closing_inside_the_block_archives(mode: str) -> None:
    sink = Sink()
    file = sink.open(mode)

    def close_and_fail() -> None:
        with file:
            file.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        close_and_fail()
    assert (sink.contents, sink.discarded) == ([b""], [])


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_failing_finish_is_tried_once(mode: str) -> None:
    sink = Sink(OSError(28, "No space left on device"))
    file = sink.open(mode)
    with pytest.raises(OSError, match="No space"):
        file.close()
    assert file.closed
    file.close()
    del file
    gc.collect()


def test_closing_the_binary_file_below_takes_the_text_along() -> None:
    sink = Sink()
    file = sink.open("w")
    file.write("pending")
    file.buffer.close()
    assert file.closed
    assert sink.contents == [b"pending"]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object = None) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool_file, "open_spool", fail)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("mode", ["w", "wb"])
def test_no_half_file_when_the_local_disk_is_full(mode: str) -> None:
    sink = Sink()
    file = sink.open(mode, spool_size=10)
    with contextlib.suppress(OSError):
        file.write("abc" * 5 if mode == "w" else b"abc" * 5)
    with pytest.raises(OSError, match="No space"):
        file.close()
    assert file.closed
    assert (sink.contents, sink.discarded) == ([], ["ar.zip/a.txt"])


def test_a_failure_of_the_spool_is_remembered() -> None:
    sink = Sink()
    file = sink.open("wb", spool_size=10)
    file.write(b"x" * 20)

    class Full(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    spool = file._file
    file._file = io.BufferedRandom(Full(os.dup(spool.fileno()), "rb+"))
    file._file.write(b"buffered")
    with pytest.raises(OSError, match="No space"):
        file.flush()
    spool_file._drop(file._file)
    file._file = spool
    file.write(b"y" * 200_000)
    with pytest.raises(OSError, match=r"not archived: .*No space") as error:
        file.close()
    assert error.value.filename == "ar.zip/a.txt"
    assert (sink.contents, sink.discarded) == ([], ["ar.zip/a.txt"])


@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_forgotten_file_is_archived_with_a_warning(mode: str, in_a_cycle: bool, spool_size: int) -> None:
    sink = Sink()
    # Files of other tests, which were interrupted, may still be open.
    others = set(spool_file._spools)
    file = sink.open(mode, spool_size=spool_size)
    piece = "forgotten" if mode == "w" else b"forgotten"
    file.write(piece)
    file.flush()
    file.write(piece)
    if in_a_cycle:
        file.itself = file
        if mode == "w":
            file.buffer.itself = [file.buffer, file]
    with pytest.warns(ResourceWarning, match=r"unclosed file 'ar.zip/a.txt'"):  # noqa: PT031
        del file
        gc.collect()
    assert sink.contents == [b"forgottenforgotten"]
    assert spool_file._spools <= others


def test_a_forgotten_file_that_cannot_be_archived_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_value))
    file = Sink(OSError(28, "No space left on device")).open("w")
    with pytest.warns(ResourceWarning):  # noqa: PT031
        del file
        gc.collect()
    assert [type(error) for error in seen] == [OSError]


@pytest.mark.parametrize(
    "hold", ["file = ", "import builtins; builtins.f = ", "x = []; x.append(x); x += [1]; x[1] = "]
)
@pytest.mark.parametrize("mode", ["w", "wb"])
def test_interpreter_exit_with_an_open_file(hold: str, mode: str) -> None:
    program = f"""
        from rear.worker.text_member_file import open_member

        class Owner:
            spool_size, success_only = 10, True

            def archive(self, file):
                print("archived", file.payload(8).size, flush=True)

        {hold}open_member("a.zip/b", {mode!r}, Owner())
    """
    done = run_code(textwrap.dedent(program))
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout in ("archived 0\n", "")


# -- forks


def _in_child(function: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("mode", ["w+", "w+b"])
def test_a_forked_child_cannot_disturb_the_parent(mode: str, spool_size: int) -> None:
    sink = Sink()
    piece = "some text\n" if mode == "w+" else b"some text\n"
    file = sink.open(mode, spool_size=spool_size)
    files = {"open": file}
    file.write(piece * 20_000)

    def use() -> None:
        uses: list[Callable[[], object]] = [lambda: file.write(piece), lambda: file.seek(0), lambda: file.truncate(3)]
        if mode == "w+b":
            uses += [file.read, file.readline, file.flush, file.tell, lambda: file.readinto(bytearray(5))]
        for one in uses:
            with pytest.raises(RearError, match="before a fork"):
                one()
        with file:
            pass
        assert file.closed
        assert (sink.contents, sink.discarded) == ([], [])
        with sink.open(mode) as own:
            own.write(piece)
        assert sink.contents == [b"some text\n"]

    def discard() -> None:
        file.discard()
        assert sink.discarded == []

    for child in (use, discard):
        _in_child(child)
        file.write(piece)
    del use, discard, child, file

    def forget() -> None:
        files.clear()
        gc.collect()
        assert not spool_file._spools
        assert sink.contents == []

    _in_child(forget)
    file = files["open"]
    file.write(piece)
    file.seek(0)
    assert file.read() == piece * 20_003
    file.close()
    assert sink.contents == [b"some text\n" * 20_003]


def test_types() -> None:
    sink = Sink()
    with sink.open("w") as text, sink.open("wb") as binary:
        assert type(text) is TextMemberFile
        assert type(binary) is MemberFile
        assert type(text.buffer) is MemberFile


def test_threads_that_share_a_file_lose_no_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those while the buffer is made, either, which takes long here."""

    class SlowMemory(spool_file.Memory):
        def __init__(self, data: bytes) -> None:
            time.sleep(0.05)
            super().__init__(data)

    monkeypatch.setattr(spool_file, "Memory", SlowMemory)
    sink = Sink()
    file = sink.open("wb")
    together = threading.Barrier(4)

    def write(letter: bytes) -> None:
        together.wait()
        for _ in range(3):
            file.write(letter * 10)

    in_threads(write, (b"a", b"b", b"c", b"d"))
    file.close()
    assert [len(content) for content in sink.contents] == [120]


def test_threads_that_share_a_file_lose_nothing_when_it_goes_to_its_spool(tmp_path: Path) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with rear.rear_fs(tmp_path / "base", spool_size=4096) as fs:
            for number in range(40):
                file: Any = fs.open(f"ar.zip/{number}", "wb")

                def write(file: Any = file) -> None:
                    for _ in range(40):
                        file.write(bytes(64))

                in_threads(lambda _: write(), range(4))
                assert file.size == 4 * 40 * 64
                file.discard()
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_what_is_written_while_a_file_is_being_closed_is_refused(tmp_path: Path, mode: str) -> None:
    """It would come too late, and its writer would not know."""
    refused: list[str] = []
    files: list[Any] = []

    class Meddling(Storage):
        def write(self, descriptor: int, buffers: Any, offset: int) -> int:
            for change in (lambda: files[0].write(b"late"), files[0].flush, lambda: files[0].seek(0)):
                with pytest.raises(ValueError, match="closed file"):
                    change()
                refused.append("refused")
            return super().write(descriptor, buffers, offset)

    with rear.rear_fs(tmp_path / "base", storage=Meddling()) as fs, fs.open("ar.zip/a", mode) as file:
        files.append(file.buffer if mode == "w" else file)
        file.write("first" if mode == "w" else b"first")
    assert refused
    list(rear.scavenge(tmp_path / "base"))
    with zipfile.ZipFile(tmp_path / "base/ar.zip") as archive:
        assert archive.read("a") == b"first"
