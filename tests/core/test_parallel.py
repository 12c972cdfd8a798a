"""Executors check and copy: the result is that of a single process, whatever becomes of the executor."""

from __future__ import annotations

import copy
import errno
import functools
import io
import itertools
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import fixtures
import pytest
from bases import check_base, contents, files_below, journals, of_kind, put, scavenge
from children import _note_pid, open_and_write, write_from_pool
from executors import BLOCK, EXPECTED, Here, Hopeless, Killing, Substituting, check, content, renew
from faults import Failing, in_child
from programs import run_code, start_rear, wait_for
from zips import flip

import rear
from rear.core import parallel
from rear.core.layout import Layout
from rear.core.parallel import Failed, Parallel, attempt, local_pool
from rear.core.problems import Problem
from rear.core.storage import LOCAL, Storage
from rear.errors import UsageError
from rear.events import Copied, Lost, Merged, Recovered, Refused, Renamed, RolledBack, Torn
from rear.fsck import inspection_tasks
from rear.fsck.archive import check_archive_file
from rear.fsck.base import fsck
from rear.fsck.inspection import inspect
from rear.fsck.inspection_tasks import ListedMembers
from rear.journal.reader import read_journal
from rear.scavenger import copy_tasks, merge
from rear.scavenger.check_tasks import JournaledMembers
from rear.scavenger.copy_tasks import CopyTask, Piece, batches, copy_for_leader
from rear.worker.pools import open_in_process

folder_base, base, small = fixtures.folder_base, fixtures.executors_base, fixtures.small_tasks


# ---- tasks and executors by themselves


def twice(number: int, storage: Storage) -> int:
    assert isinstance(storage, Storage)
    if number < 0:
        raise ValueError("a negative number")
    return 2 * number


@pytest.mark.parametrize("kind", [Here, functools.partial(ThreadPoolExecutor, 3), functools.partial(local_pool, 2)])
def test_results_come_in_the_order_of_the_tasks(kind: Callable[[], Executor]) -> None:
    with kind() as executor:
        assert list(Parallel(executor).run(twice, range(100))) == [(number, 2 * number) for number in range(100)]


def test_without_an_executor_everything_is_done_here() -> None:
    runner = Parallel()
    assert not runner.has_executor
    assert runner.is_local
    assert [result for _, result in runner.run(twice, range(5))] == [0, 2, 4, 6, 8]


def test_too_little_work_is_done_here() -> None:
    executor = Here()
    assert len(list(Parallel(executor).run(twice, range(5), is_worthwhile=False))) == 5
    assert executor.submitted == 0


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cannot schedule new futures after shutdown"),
        BrokenProcessPool("a child process was terminated"),
        CancelledError(),
        TimeoutError(),
        ConnectionError("CommClosedError"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_an_executor_does_not_do_is_done_here(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    assert [result for _, result in Parallel(Hopeless(error)).run(twice, range(200))] == [2 * n for n in range(200)]
    assert len(caplog.records) == 1, "said once"


def test_who_never_answers_is_not_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "PATIENCE_SECONDS", 0.2)
    begun = time.monotonic()
    assert len(list(Parallel(Hopeless(None)).run(twice, range(300)))) == 300
    assert time.monotonic() - begun < 5


def test_an_error_of_a_task_counts_when_it_occurs_here_too() -> None:
    assert attempt(rear.__version__, twice, -1, (), LOCAL) == Failed("ValueError: a negative number")
    with pytest.raises(ValueError, match="a negative number"):
        list(Parallel(Here()).run(twice, [1, -1, 2]))
    # Another host may have less space, or an older view.
    assert list(Parallel(Here()).run(twice, [-1], here=lambda number: 7)) == [(-1, 7)]


def test_a_worker_with_another_rear_does_nothing() -> None:
    assert isinstance(attempt("0.0.0", twice, 1, (), LOCAL), Failed)


def test_ctrl_c_is_not_for_the_processes_of_a_pool() -> None:
    with local_pool(1) as executor:
        pid = executor.submit(os.getpid).result()
        os.kill(pid, signal.SIGINT)
        assert executor.submit(os.getpid).result() == pid


def test_no_more_tasks_are_in_flight_than_can_be_worked_on() -> None:
    taken = itertools.count()
    with ThreadPoolExecutor(2) as executor:
        results = Parallel(executor).run(twice, (next(taken) for _ in range(1000)))
        next(results)
        assert next(taken) <= 6
        results.close()


def test_what_has_not_begun_is_cancelled() -> None:
    futures: list[Future[Any]] = []

    class Noting(Hopeless):
        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
            futures.append(super().submit(function, *arguments))
            if len(futures) == 1:
                futures[0].set_result(0)
            return futures[-1]

    results = Parallel(Noting(None)).run(twice, range(1000))
    next(results)
    results.close()
    assert futures
    assert all(future.cancelled() for future in futures[1:])


# ---- how copies are cut


@pytest.mark.parametrize("seed", range(30))
def test_tasks_are_whole_blocks_and_nobody_shares_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_tasks, "BLOCK_BYTES", 16)
    monkeypatch.setattr(copy_tasks, "TASK_BYTES", 64)
    chance = random.Random(seed)
    monkeypatch.setattr(copy_tasks, "TASK_MEMBERS", chance.choice([1, 2, 5000]))
    monkeypatch.setattr(copy_tasks, "_INLINE_BYTES", chance.choice([1, 20, 5000]))
    position = begin = chance.randrange(100)
    pieces, expected = [], b""
    sources = [chance.randbytes(5000), chance.randbytes(5000)]
    for _ in range(chance.randrange(40)):
        length, number = chance.choice([0, 1, 5, 16, 40, 300]), chance.randrange(3)
        start = chance.randrange(4000)
        source = sources[0][start : start + length] if number == 2 else f"source {number}"
        pieces.append(Piece(source, 0 if number == 2 else start, position, length))
        expected += sources[0 if number == 2 else number][start : start + length]
        position += length
    remainders: list[Piece] = []
    found = bytearray(len(expected))
    owners: dict[int, int] = {}
    tasks = list(batches(pieces, remainders))
    for owner, batch in enumerate([*tasks, remainders]):
        for piece in batch:
            data = piece.source if isinstance(piece.source, bytes) else sources[int(piece.source[-1])]
            at = piece.target_start - begin
            found[at : at + piece.length] = data[piece.source_start : piece.source_start + piece.length]
            for block in range(piece.target_start // 16, -(-piece.target_end // 16)):
                assert owners.setdefault(block, owner) == owner
    assert found == expected
    for batch in tasks:
        assert batch[0].target_start % 16 == 0
        assert batch[-1].target_end % 16 == 0
        assert all(left.target_end == right.target_start for left, right in itertools.pairwise(batch))
    assert sum(piece.length for batch in [*tasks, remainders] for piece in batch) == len(expected)


def test_a_run_of_members_stays_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_tasks, "TASK_BYTES", 64 << 20)
    remainders: list[Piece] = []
    [batch] = batches([Piece("a", 7, BLOCK - 10, 100 * BLOCK)], remainders)
    assert batch == [Piece("a", 17, BLOCK, 99 * BLOCK)]
    assert remainders == [Piece("a", 7, BLOCK - 10, 10), Piece("a", 7 + 99 * BLOCK + 10, 100 * BLOCK, BLOCK - 10)]


# ---- merges


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, bytes]:
    """What the final archives are without an executor."""
    base = renew(folder / "plain")
    scavenge(base)
    check(base)
    found = {name: (base / name).read_bytes() for name in ("ar.zip", "sub/new.zip")}
    shutil.rmtree(base)
    return found


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("kind", [Here, functools.partial(ThreadPoolExecutor, 3), functools.partial(local_pool, 2)])
def test_a_merge_is_the_same_on_any_executor(
    base: Path, plain: dict[str, bytes], kind: Callable[[], Executor], verify: bool
) -> None:
    inode = (base / "ar.zip").stat().st_ino
    with kind() as executor:
        events = scavenge(base, executor=executor, verify=verify)
    check(base)
    for name, data in plain.items():
        assert (base / name).read_bytes() == data
        copied = [event.copied_bytes for event in events if isinstance(event, Copied) and event.archive == name]
        assert copied == sorted(copied)
        assert len(copied) > 3
    assert (base / "ar.zip").stat().st_ino == inode
    if isinstance(executor, Here):
        assert len(executor.copies) > 6
        assert any(isinstance(piece.source, bytes) for task in executor.copies for piece in task.pieces)
        assert all(piece.target_start % BLOCK == 0 for task in executor.copies for piece in task.pieces[:1])


def test_small_merges_are_copied_here(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "SHARED_COPY_BYTES", 256 << 20)
    executor = Here()
    scavenge(base, executor=executor)
    check(base)
    assert executor.copies == []


@pytest.mark.parametrize(
    "error", [RuntimeError("shut down"), BrokenProcessPool("killed"), CancelledError()], ids=lambda error: str(error)
)
def test_a_merge_without_any_help_of_its_executor(base: Path, plain: dict[str, bytes], error: BaseException) -> None:
    scavenge(base, executor=Hopeless(error), verify=True)
    check(base)
    assert {name: (base / name).read_bytes() for name in plain} == plain


def test_a_task_that_runs_twice(base: Path, plain: dict[str, bytes]) -> None:
    class Twice(Here):
        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
            super().submit(function, *arguments)
            return super().submit(function, *arguments)

    with Twice() as executor:
        scavenge(base, executor=executor, verify=True)
    check(base)
    assert {name: (base / name).read_bytes() for name in plain} == plain


def test_a_worker_that_cannot_write_is_replaced_by_the_leader(base: Path) -> None:
    """Another host may have no quota, or an old view of the files."""
    for error in (errno.ENOSPC, errno.ESTALE, errno.ENOENT, errno.EACCES):
        renew(base)
        broken = Failing(error, lambda point, path: True)
        executor = Here(lambda arguments, broken=broken: (*arguments[:-1], broken))
        events = scavenge(base, executor=executor, verify=True)
        assert broken.failed
        assert not of_kind(events, Lost, Refused)
        check(base)


def test_a_worker_that_sees_another_file_of_that_name_writes_nothing(base: Path, tmp_path: Path) -> None:
    intents = tmp_path / "intents"
    intents.mkdir()
    permit = intents / f"x-1-{'0' * 16}.permit"
    (intents / "x-1.intent").touch()
    permit.touch()
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"b" * 100)
    task = CopyTask(str(permit), str(tmp_path / "b"), (tmp_path / "a").stat().st_ino, (Piece(b"xyz", 0, 0, 3),))
    with pytest.raises(OSError, match="another file") as caught:
        copy_for_leader(task, LOCAL)
    assert caught.value.errno == errno.ECANCELED
    assert (tmp_path / "b").read_bytes() == b"b" * 100
    assert copy_for_leader(task._replace(inode=(tmp_path / "b").stat().st_ino), LOCAL) == 3
    assert (tmp_path / "b").read_bytes() == b"xyz" + b"b" * 97
    assert sorted(os.listdir(intents)) == sorted([permit.name, "x-1.intent"])
    for gone in (permit, intents / "x-1.intent"):
        gone.unlink()
        with pytest.raises(OSError, match="is over"):
            copy_for_leader(task._replace(inode=(tmp_path / "b").stat().st_ino), LOCAL)
        gone.touch()
    assert (tmp_path / "b").read_bytes() == b"xyz" + b"b" * 97


class Corrupting(Storage):
    """Copies one byte wrong, once."""

    def __init__(self) -> None:
        self.is_done = False

    def copy_range(self, source: int, target: int, *, source_start: int, target_start: int, length: int) -> None:
        super().copy_range(source, target, source_start=source_start, target_start=target_start, length=length)
        if not self.is_done:
            self.is_done = True
            at = target_start + length // 2
            self.write(target, [bytes([self.read(target, 1, at)[0] ^ 1])], at)


def test_bytes_that_a_worker_copied_wrong_do_not_pass_verify(base: Path) -> None:
    before = (base / "ar.zip").read_bytes()
    corrupting = Corrupting()
    executor = Here(lambda arguments: (*arguments[:-1], corrupting))
    [refused] = of_kind(scavenge(base, executor=executor, verify=True), Refused)
    assert corrupting.is_done
    assert refused.subject == "ar.zip"
    assert "is not the same after the merge as before it" in refused.reason
    assert (base / "ar.zip").read_bytes() == before
    scavenge(base)
    check(base)


# ---- processes that are killed


@pytest.mark.parametrize("operation", ["copy_range", "read"])
def test_a_process_of_the_pool_is_killed_in_the_middle(
    base: Path, plain: dict[str, bytes], tmp_path: Path, operation: str
) -> None:
    with Substituting(Killing(tmp_path / "killed", operation)) as executor:
        events = scavenge(base, executor=executor, verify=True)
    assert (tmp_path / "killed").exists()
    assert not of_kind(events, Lost, Refused)
    check(base)
    assert {name: (base / name).read_bytes() for name in plain} == plain


def test_pool_processes_end_with_a_leader_that_is_killed(base: Path, plain: dict[str, bytes]) -> None:
    pids = base.parent / "pids"

    def lead() -> None:
        executor = local_pool(2)
        list(executor.map(_note_pid, [pids] * 8))
        for event in rear.scavenge(base, executor=executor):
            if isinstance(event, Copied):
                os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lead) == -signal.SIGKILL
    workers = {int(line) for line in pids.read_text().split()}
    assert workers
    wait_for(lambda: not any(map(_runs, workers)))
    events = scavenge(base)
    assert of_kind(events, RolledBack)
    check(base)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ---- checks


@pytest.mark.parametrize(
    "kind", [Here, functools.partial(ThreadPoolExecutor, 3), functools.partial(Hopeless, CancelledError())]
)
def test_what_a_crashed_worker_left_is_checked_the_same(base: Path, kind: Callable[[], Executor]) -> None:
    """Whole members, damaged ones, a torn temp archive: what an executor calls bad is looked at again."""
    said = []
    for executor in (None, kind()):
        renew(base, "crashed")
        [temp_archive] = (Layout(base).inbox).glob("*/*.zip")
        with open(temp_archive, "r+b") as file:
            for offset in (3_000, 100_000):
                file.seek(offset)
                file.write(b"damage")
            file.truncate(os.path.getsize(temp_archive) - 5_000)
        events = scavenge(base, executor=executor)
        kinds = (Lost, Torn, Recovered, Renamed, Merged)
        said.append(of_kind(events, kinds))
        assert len(of_kind(events, Lost, Torn)) >= 3
    assert [str(event) for event in said[0]] == [str(event) for event in said[1]]


def test_members_of_many_small_pairs_are_checked_together(base: Path) -> None:
    for number in range(6):
        assert in_child(functools.partial(write_and_die, base, number)) == -signal.SIGKILL
    with Here() as executor:
        events = scavenge(base, executor=executor)
    assert not of_kind(events, Lost, Refused)
    asked = [task for task in executor.tasks if isinstance(task, tuple) and isinstance(task[0], JournaledMembers)]
    assert any(len(parts) > 1 for parts in asked)
    assert {part.path for parts in asked for part in parts} != set()
    assert len(contents(base / "many.zip")) == 12


def write_and_die(base: Path, number: int) -> None:
    with rear.rear_fs(base) as fs:
        for name in "ab":
            put(fs, f"many.zip/{number}{name}", name * number)
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_executor_without_a_codec_or_with_an_old_view_loses_nothing(base: Path) -> None:
    """Whatever it says of a member, this process has looked for itself before anything is called lost."""
    renew(base, "crashed")

    class Blind(Storage):
        def size(self, descriptor: int) -> int:
            return min(10, super().size(descriptor))

    executor = Here(lambda arguments: (*arguments[:-1], Blind()))
    events = scavenge(base, executor=executor, verify=True)
    assert executor.submitted > 3
    assert not of_kind(events, Lost, Torn, Refused)
    check(base)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "large.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(200):
            archive.writestr(f"{number}.txt", random.Random(number).randbytes(500) * (number % 9))
    with open(path, "r+b") as file:
        for offset in (400, 20_000, 60_000):
            file.seek(offset)
            file.write(b"no such data")
    return path


@pytest.mark.parametrize("kind", [Here, functools.partial(ThreadPoolExecutor, 3), functools.partial(local_pool, 2)])
def test_a_deep_check_finds_the_same_on_any_executor(damaged: Path, kind: Callable[[], Executor]) -> None:
    alone = list(inspect(damaged, deep=True))
    assert {problem.code for problem in alone} >= {"member-data-damaged"}
    with kind() as executor:
        assert list(inspect(damaged, deep=True, parallel=Parallel(executor))) == alone
        assert list(check_archive_file(damaged, deep=True, executor=executor)) == alone
    if isinstance(executor, Here):
        parts = of_kind(executor.tasks, ListedMembers)
        assert len(parts) > 4, "one archive is checked by several"
        assert max(len(pickle.dumps(part)) for part in parts) < 64 << 10


class Stream(io.RawIOBase):
    """What cannot seek: sizes and CRC then stand behind the data."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb", buffering=0)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self.file.write(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def streamed(path: Path) -> None:
    with Stream(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for number in range(60):
            archive.writestr(
                f"{number}.txt", content(number), zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            )


def with_a_torn_directory(path: Path) -> None:
    streamed(path)
    data = bytearray(path.read_bytes())
    # A name in the middle of the directory that is longer than it says.
    at = data.rindex(b"30.txt") - 18
    data[at : at + 2] = b"\xff\x01"
    path.write_bytes(data)


def with_members_one_inside_the_other(path: Path) -> None:
    """Many entries of the same bytes: to read them all would take as long as anybody pleases."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("large", os.urandom(60_000))
        for number in range(40):
            twin = copy.copy(archive.filelist[0])
            twin.filename = twin.orig_filename = f"{number:05}"
            archive.filelist.append(twin)


def with_wrong_headers(path: Path) -> None:
    streamed(path)
    data = bytearray(path.read_bytes())
    for name in (b"11.txt", b"31.txt"):
        at = data.index(name)
        data[at] ^= 2
    at = data.index(b"41.txt") - 30
    data[at : at + 4] = b"none"
    path.write_bytes(data)


@pytest.mark.parametrize(
    "make", [streamed, with_a_torn_directory, with_members_one_inside_the_other, with_wrong_headers]
)
def test_a_deep_check_of_odd_archives_is_the_same(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "odd.zip"
    make(path)
    alone = list(inspect(path, deep=True))
    assert bool(alone) is (make is not streamed)
    with Here() as executor:
        assert list(inspect(path, deep=True, parallel=Parallel(executor))) == alone
    assert executor.submitted
    asked = of_kind(executor.tasks, ListedMembers)
    assert sum(entry.compressed_size for task in asked for entry in task.entries) <= path.stat().st_size
    assert list(inspect(path, deep=True, parallel=Parallel(Hopeless(CancelledError())))) == alone


def test_processes_of_this_host_are_not_asked_for_what_one_does_as_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zip"
    streamed(path)

    class Counted(ThreadPoolExecutor):
        submitted = 0

        def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
            Counted.submitted += 1
            return super().submit(*arguments, **named)

    for seconds, is_asked in ((10.0, False), (0.0, True)):
        monkeypatch.setattr(inspection_tasks, "LOCAL_CHECK_SECONDS", seconds)
        with Counted(2) as executor:
            assert list(inspect(path, deep=True, parallel=Parallel(executor))) == []
        assert bool(Counted.submitted) is is_asked
    # Another host has a network of its own.
    monkeypatch.setattr(inspection_tasks, "LOCAL_CHECK_SECONDS", 10.0)
    with Here() as elsewhere:
        assert list(inspect(path, deep=True, parallel=Parallel(elsewhere))) == []
    assert elsewhere.submitted


def test_a_deep_check_whose_process_is_killed(damaged: Path, tmp_path: Path) -> None:
    alone = list(inspect(damaged, deep=True))
    with Substituting(Killing(tmp_path / "killed", "read")) as executor:
        assert list(inspect(damaged, deep=True, parallel=Parallel(executor))) == alone
    assert (tmp_path / "killed").exists()


def test_a_check_of_a_base_on_an_executor(base: Path) -> None:
    renew(base, "crashed")
    with ThreadPoolExecutor(2) as executor:
        problems = of_kind(fsck(base, deep=True, executor=executor), Problem)
    assert {problem.outcome for problem in problems} <= {"repaired", "noted"}
    check(base)
    archive = base / "ar.zip"
    flip(archive, archive.read_bytes().index(EXPECTED["ar.zip/one/7.bin"]))
    with Here() as counted:
        found = of_kind(fsck(base, deep=True, executor=counted), Problem)
    assert [(problem.code, problem.name) for problem in found] == [("member-data-damaged", "one/7.bin")]
    assert counted.submitted


# ---- the command line


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output + errors


@pytest.fixture(scope="module")
def large(folder: Path) -> Path:
    """A base with so much in it that the command line shares it: 300 MiB in one archive, of a crashed worker."""
    base = folder / "large"
    assert in_child(functools.partial(write_large, base)) == -signal.SIGKILL
    return base


def write_large(base: Path) -> None:
    with rear.rear_fs(base, compression="stored", spool_size=1 << 30) as fs:
        for number in range(75):
            put(fs, f"ar.zip/{number}.bin", large_content(number))
        os.kill(os.getpid(), signal.SIGKILL)


def large_content(number: int) -> bytes:
    return random.Random(number).randbytes(1 << 16) * 64


@pytest.mark.parametrize("jobs", [1, 2])
def test_jobs(large: Path, jobs: int) -> None:
    base = renew(large.with_name("base"), "large")
    status, said = ended(start_rear("scavenge", base, "--verify", "--jobs", jobs))
    assert status == 0, said
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert len(archive.namelist()) == 75
        for number in range(75):
            assert archive.read(f"{number}.bin") == large_content(number)
    assert files_below(Layout(base).intents) == []
    assert ended(start_rear("fsck", "--deep", "--jobs", jobs, base))[0] == 0
    assert ended(start_rear("fsck", "--deep", "--jobs", jobs, base / "ar.zip"))[0] == 0
    with open(base / "ar.zip", "r+b") as file:
        file.seek(100 << 20)
        file.write(b"damage")
    status, said = ended(start_rear("fsck", "--deep", "--jobs", jobs, base / "ar.zip"))
    assert status == 4
    assert "member-data-damaged" in said
    shutil.rmtree(base)


def test_ctrl_c_ends_everything_at_once(large: Path) -> None:
    """All processes of the terminal get the signal."""
    base = renew(large.with_name("base"), "large")
    process = start_rear("scavenge", base, "--verify", "--jobs", 2, start_new_session=True)
    deadline = time.monotonic() + 30
    # In the middle of a merge: a copy is registered.
    while not list(Layout(base).intents.glob("*.copying")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    status, said = ended(process)
    assert status == 130, said
    assert "Traceback" not in said
    assert not _group_lives(process.pid)
    assert not (base / "ar.zip").exists()
    assert files_below(Layout(base).intents) == []
    assert ended(start_rear("scavenge", base))[0] == 0
    with zipfile.ZipFile(base / "ar.zip") as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 75
    shutil.rmtree(base)


def _group_lives(group: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--jobs", "0"], "0 is not in the range"), (["--jobs", "2", "--dask", "tcp://127.0.0.1:1"], "name one of them")],
)
@pytest.mark.parametrize("name", ["scavenge", "fsck"])
def test_options_that_cannot_be(base: Path, name: str, arguments: list[str], said: str) -> None:
    status, output = ended(start_rear(name, base, *arguments))
    assert status in (2, 8)
    assert said in output
    assert "Traceback" not in output


def test_little_work_starts_no_process(base: Path) -> None:
    code = (
        "import sys, rear, concurrent.futures.process as p\n"
        "from rear.core.parallel import local_pool\n"
        "with local_pool(2) as pool:\n"
        "    for event in rear.scavenge(sys.argv[1], executor=pool): pass\n"
        "    print(len(pool._processes))\n"
    )
    assert run_code(code, base, check=True).stdout.strip() == "0"
    check(base)


TRAPS = ("random", "typing", "socket", "pickle", "struct", "threading", "tempfile", "signal", "sqlite3", "rear")
STARTS_PROCESSES = """
import os, signal, sys
from rear.core.parallel import local_pool
if __name__ == "__main__":
    with local_pool(2) as pool:
        tasks = [pool.submit(signal.getsignal, signal.SIGINT) for _ in range(4)]
        assert all(task.result() is signal.SIG_IGN for task in tasks)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert "PYTHONSAFEPATH" not in os.environ
    print("done")
"""


def test_processes_import_nothing_of_the_current_folder_and_hear_no_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/program.py").write_text(STARTS_PROCESSES)
    for trap in TRAPS:
        (tmp_path / f"{trap}.py").write_text(f"open({str(tmp_path / 'caught')!r}, 'a').write(__name__ + '\\n')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, tmp_path / "bin/program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert not (tmp_path / "caught").exists(), (tmp_path / "caught").read_text()


def test_scavengerd_with_jobs(base: Path) -> None:
    with rear.scavengerd(base, every=0.2, jobs=2):
        pass
    check(base)
    with pytest.raises(UsageError, match="1 or more"):
        rear.scavengerd(base, jobs=0)


# ---- rear_fs in pools


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["ProcessPoolExecutor", "multiprocessing.Pool", "multiprocessing.Process"])
def test_rear_fs_in_the_processes_of_a_pool(tmp_path: Path, method: str, kind: str) -> None:
    """They end by os._exit, and yet their temp archives are ended in good order."""
    base = tmp_path / "base"
    context: Any = multiprocessing.get_context(method)
    if kind == "ProcessPoolExecutor":
        with ProcessPoolExecutor(2, context, open_in_process, (base, {"compression": "stored"})) as pool:
            pids = set(pool.map(write_from_pool, range(20)))
    elif kind == "multiprocessing.Pool":
        pool = context.Pool(2, open_in_process, (base,))
        pids = set(pool.map(write_from_pool, range(20), chunksize=2))
        pool.close()
        pool.join()
    else:
        process = context.Process(target=open_and_write, args=(base,))
        process.start()
        process.join()
        assert process.exitcode == 0
        pids = {process.pid}
    assert os.getpid() not in pids
    journals = list(Layout(base).inbox.glob("*/*.journal"))
    assert len(journals) == len(pids)
    for journal in journals:
        closed = read_journal(journal).closed
        assert closed.reason == "exit"
    scavenge(base)
    expected = {f"pool.zip/{number}.txt": f"content {number}".encode() for number in range(20)}
    expected |= {f"pool.zip/thread/{number}.txt": f"thread {number}".encode() for number in range(20)}
    check_base(base, expected)


def test_a_pool_process_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), open_in_process, (base,)) as pool:
        pid = pool.submit(write_from_pool, 3).result()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            pool.submit(write_from_pool, 4).result()
    scavenge(base)
    check_base(base, {"pool.zip/3.txt": b"content 3", "pool.zip/thread/3.txt": b"thread 3"})


def test_the_initializer_names_the_innermost_base(tmp_path: Path) -> None:
    """Also in a process that is forked where another one was open."""
    with rear.rear_fs(tmp_path / "outer"):
        with rear.rear_open("a.zip/outer", "w") as file:
            file.write("outer")
        with ProcessPoolExecutor(
            1, multiprocessing.get_context("fork"), open_in_process, (tmp_path / "inner",)
        ) as pool:
            pool.submit(write_from_pool, 1).result()
    scavenge(tmp_path / "outer")
    scavenge(tmp_path / "inner")
    check_base(tmp_path / "outer", {"a.zip/outer": b"outer"})
    check_base(tmp_path / "inner", {"pool.zip/1.txt": b"content 1", "pool.zip/thread/1.txt": b"thread 1"})


def test_joblib(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    base = tmp_path / "base"
    code = (
        "import sys, joblib\n"
        "from children import write_from_pool\n"
        "from rear.worker.pools import open_in_process\n"
        "if __name__ == '__main__':\n"
        "    with joblib.parallel_config('loky', n_jobs=2, initializer=open_in_process, initargs=(sys.argv[1],)):\n"
        "        joblib.Parallel()(joblib.delayed(write_from_pool)(number) for number in range(20))\n"
    )
    run_code(code, base, check=True)
    assert joblib.__version__
    wait_for(lambda: all(journal.closed for journal in journals(base)), 30)
    scavenge(base)
    assert len(contents(base / "pool.zip")) == 40
