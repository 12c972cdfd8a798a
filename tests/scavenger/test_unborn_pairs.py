"""Pairs whose journal has no first record yet: just being made, or what a loss of power left of one."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from bases import check_base, files_below, of_kind, scavenge, write
from programs import start_code

import rear
from rear.core.layout import Layout
from rear.core.liveness import BIRTH_SECONDS, this_process
from rear.core.problems import Problem, exit_status, outcome_of
from rear.core.storage import Storage
from rear.diagnostics.status import look_at
from rear.events import Cleared, LeftAlone
from rear.fsck.base import fsck
from rear.scavenger import claims

ELSEWHERE = "4711-5f5e100-0badcafe-0123456789abcdef"


class Later(Storage):
    """Its clock is ahead."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def uptime(self) -> float:
        return super().uptime() + self.seconds


def make_unborn(base: Path, host: str, worker: str, data: bytes = b"") -> list[Path]:
    folder = Layout(base).inbox / host
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{worker}-0.{suffix}" for suffix in ("journal", "zip")]
    for path in paths:
        path.write_bytes(data if path.suffix == ".zip" else b"")
    return paths


def problems(base: Path, **options: Any) -> list[Problem]:
    return [event for event in fsck(base, **options) if isinstance(event, Problem)]


def test_one_that_cannot_be_seen_waits_and_all_say_so_by_name(base: Path) -> None:
    base.mkdir()
    write(base, {"ar.zip/a": "a"})
    paths = make_unborn(base, "elsewhere", ELSEWHERE)
    name = f"elsewhere/{ELSEWHERE}-0"
    [left] = of_kind(scavenge(base), LeftAlone)
    assert (left.pair, left.fault, left.code) == (name, "no-first-record", "worker-unseen")
    assert 0 < left.wait_seconds <= BIRTH_SECONDS
    for report_only in (True, False):
        [problem] = problems(base, report_only=report_only)
        assert (problem.code, problem.subject, problem.outcome) == ("temp-archive-waits", name, "noted")
        assert "for another" in problem.detail
        assert exit_status([outcome_of(problem)]) == 0
    [left] = of_kind(list(rear.scavenge(base, dry_run=True)), LeftAlone)
    assert left.pair == name
    seen = look_at(base)
    [reason] = seen.waiting_reasons
    assert name in reason
    assert "for another" in reason
    assert seen.attention == ()
    # The last one who waits is right.
    almost, after = Later(BIRTH_SECONDS - 30), Later(BIRTH_SECONDS + 1)
    [left] = of_kind(scavenge(base, storage=almost), LeftAlone)
    assert left.wait_seconds < 31
    assert problems(base, report_only=True, storage=after) == []
    assert all(path.exists() for path in paths)
    assert [cleared.pair for cleared in of_kind(scavenge(base, storage=after), Cleared)] == [name]
    assert problems(base) == []
    check_base(base, {"ar.zip/a": b"a"})


def test_one_that_holds_bytes_is_told_of_before_it_is_a_finding(base: Path) -> None:
    make_unborn(base, "elsewhere", ELSEWHERE, b"\0" * 5000)
    scavenge(base)
    for _ in range(2):
        assert [problem.code for problem in problems(base)] == ["temp-archive-waits"]
    events = scavenge(base, storage=Later(BIRTH_SECONDS + 1))
    assert [event.kind for event in events if event.severity != "info"] == ["damaged"]
    assert files_below(Layout(base).inbox) == []


def test_one_that_is_seen_to_be_dead_goes_at_once(base: Path) -> None:
    base.mkdir()
    code = """if True:
        import sys
        from rear.core.liveness import this_process, worker_name
        print(worker_name(this_process(), "0123456789abcdef"), flush=True)
        sys.stdin.read()
    """
    with start_code(code, stdin=-1) as process:
        worker = process.stdout.readline().strip()
        make_unborn(base, this_process().host, worker)
        # It lives, and may be about to write its first record.
        for events in (scavenge(base), list(rear.scavenge(base, dry_run=True))):
            [left] = of_kind(events, LeftAlone)
            assert (left.code, left.wait_seconds) == ("worker-lives", None)
        assert problems(base) == problems(base, report_only=True) == []
        assert [host.live for host in look_at(base).hosts] == [1]
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert problems(base, report_only=True) == []
    assert [host.crashed for host in look_at(base).hosts] == [1]
    assert len(of_kind(scavenge(base), Cleared)) == 1
    assert files_below(Layout(base).inbox) == []


def test_somebody_may_say_that_it_is_dead(base: Path) -> None:
    make_unborn(base, "elsewhere", ELSEWHERE)
    assert len(of_kind(scavenge(base, assume_dead=["elsewhere"]), Cleared)) == 1
    assert files_below(Layout(base).inbox) == []


class Slow(Later):
    """A server that takes long to make a temp archive, while a scavenger removes the pair."""

    def __init__(self, is_removed: bool) -> None:
        super().__init__()
        self.is_removed = is_removed

    def create(self, path: Any, mode: int = 0o666) -> int:
        descriptor = super().create(path, mode)
        if os.fspath(path).endswith(".zip") and not self.seconds:
            self.seconds = BIRTH_SECONDS / 2 + 1
            if self.is_removed:
                for one in (Path(path), Path(path).with_suffix(".journal")):
                    one.unlink()
        return descriptor


def test_a_worker_that_is_slow_to_make_a_pair_looks_whether_it_is_still_there(base: Path) -> None:
    # A lease so long that nothing else would have it look.
    with rear.rear_fs(base, storage=Slow(is_removed=True), lease_seconds=1e6) as fs:
        with pytest.raises(OSError, match="not archived") as caught:
            fs.open("ar.zip/a", "w").close()
        assert caught.value.errno == errno.ESTALE
        with fs.open("ar.zip/b", "w") as file:
            file.write("b")
    scavenge(base)
    check_base(base, {"ar.zip/b": b"b"})
    with rear.rear_fs(base, storage=Slow(is_removed=False), lease_seconds=1e6) as fs, fs.open("ar.zip/c", "w") as file:
        file.write("c")
    scavenge(base)
    check_base(base, {"ar.zip/b": b"b", "ar.zip/c": b"c"})


def test_a_worker_may_rely_on_what_a_scavenger_waits() -> None:
    assert claims.GRAVEYARD_SECONDS >= BIRTH_SECONDS


class CountsListings(Later):
    listings = 0

    def names(self, path: Any) -> list[str]:
        self.listings += 1
        return super().names(path)


def test_many_of_them_cost_no_listing_each(base: Path) -> None:
    for number in range(100):
        make_unborn(base, "elsewhere", ELSEWHERE[:-3] + f"{number:03}")
    scavenge(base)
    for seconds in (0.0, BIRTH_SECONDS + 1):
        storage = CountsListings(seconds)
        scavenge(base, storage=storage)
        look_at(base, storage=storage)
        assert storage.listings < 60
    assert files_below(Layout(base).inbox) == []
