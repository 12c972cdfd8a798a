"""The stage of `test_two_hosts`: programs on two hosts, what they said, and the judge at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bases import check_archive, check_base
from checkout import ROOT
from two_hosts_program import content, read_log, target

sys.path.insert(0, str(ROOT / "tools"))

from netfs.gluster import Gluster
from netfs.laboratory import OUT, SHARE, Command, Host, Laboratory
from netfs.namespaces import LaboratoryError, wait_until
from netfs.nfs import Nfs, NfsHost

__all__ = ["KINDS", "LEASE_SECONDS", "Laboratory", "NfsHost", "Program", "Stage"]

PROGRAM = Path(__file__).resolve().with_name("two_hosts_program.py")
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{PROGRAM.parent}",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}
LEASE_SECONDS = 3.0
KINDS: dict[str, type[Laboratory]] = {"nfs": Nfs, "gluster": Gluster}


class Program:
    """A worker or scavenger on a host."""

    def __init__(self, host: Host, command: Command, log: Path) -> None:
        self.host = host
        self.command = command
        self.log = log

    def lines(self, *kinds: str) -> list[dict[str, Any]]:
        """Return what it has logged, of some kinds."""
        return [line for line in read_log(self.log) if line["kind"] in kinds or not kinds]

    def wait_for(self, *kinds: str, count: int = 1, seconds: float = 30.0) -> None:
        """Return when it has logged that often."""
        deadline = time.monotonic() + seconds
        while len(self.lines(*kinds)) < count:
            if time.monotonic() > deadline:
                raise LaboratoryError(f"no {kinds} within {seconds} s: {self._tail()}")
            assert self.command.running or self.lines(*kinds), f"it has ended: {self._tail()}"
            time.sleep(0.05)

    def _tail(self) -> str:
        said = self.command.output.read_text(errors="replace")[-2000:] if self.command.output.exists() else ""
        return f"{self.log.name}: {self.lines()[-8:]} {said}"

    def stop(self, seconds: float = 40.0) -> None:
        """Ask it to end, and return when it has."""
        self.wait_for("started")
        self.host.run("/bin/kill", "-TERM", str(self.lines("started")[0]["pid"]))
        self.end(seconds)

    def end(self, seconds: float = 40.0) -> None:
        """Return when it has ended in good order."""
        status = self.command.wait(seconds)
        assert status == 0, f"status {status}: {self._tail()}"


class Stage:
    """One scenario on one base.

    Args:
        laboratory: server and hosts.
        name: of the base.
        folder: where a copy of the base goes to be judged.
    """

    def __init__(self, laboratory: Laboratory, name: str, folder: Path) -> None:
        self.laboratory = laboratory
        self.a, self.b = laboratory.a, laboratory.b
        self._name = name
        self._folder = folder
        self._programs: list[Program] = []
        self._workers: dict[str, Program] = {}
        self._large: set[str] = set()
        #: Targets of what was in the final archives before the merge of a scenario.
        self.merged: list[str] = []
        self.passed = False

    @property
    def base(self) -> str:
        """The base as hosts have it."""
        return f"{SHARE}/{self._name}"

    def wait_for_share(self) -> None:
        """Return when both hosts have found the server again, after the scenario before."""
        for host in (self.a, self.b):
            wait_until(partial(_has_share, host), 60, "the share answers")

    def _start(self, host: Host, what: str, *options: str) -> Program:
        log = f"{self._name}-{len(self._programs)}-{what}-{host.name}"
        command = host.start(
            sys.executable, str(PROGRAM), what, self.base, f"{OUT}/{log}.log", *options,
            output=f"{log}.out", environment=ENVIRONMENT,
        )  # fmt: skip
        program = Program(host, command, self.laboratory.out / f"{log}.log")
        self._programs.append(program)
        return program

    def work(self, host: Host, *options: str, large: bool = False) -> Program:
        """Start a worker on a host."""
        prefix = f"{host.name}{len(self._workers)}"
        worker = self._start(host, "work", "--prefix", prefix, *options, *(["--large"] if large else []))
        self._workers[prefix] = worker
        if large:
            self._large.add(prefix)
        return worker

    def scavenge(self, host: Host, *options: str) -> Program:
        """Start a scavenger on a host that goes on until it is stopped."""
        return self._start(host, "scavenge", "--pause", "0.5", *options)

    def execute(self, host: Host, *options: str) -> Program:
        """Start an executor on a host, for leaders that are started with `executor_options`."""
        (self.laboratory.out / self._name).mkdir(exist_ok=True)
        return self._start(host, "execute", "--executor", f"{OUT}/{self._name}", *options)

    def executor_options(self, patience_seconds: float) -> tuple[str, ...]:
        """Return options for a scavenger that gives work to the executor."""
        return ("--executor", f"{OUT}/{self._name}", "--patience", str(patience_seconds))

    def kill(self, program: Program) -> None:
        """Kill a program on its host."""
        program.host.run("/bin/kill", "-KILL", str(program.lines("started")[0]["pid"]))
        program.command.wait(10)

    def settle(self, host: Host, seconds: float = 40.0) -> Program:
        """Scavenge on a host until nothing is left to do."""
        scavenger = self.start_settling(host, seconds)
        scavenger.end(seconds + 20)
        return scavenger

    def end_well(self, host: Host, *unwanted: str, seconds: float = 40.0) -> None:
        """Settle on a host, and judge; events of these kinds may not have been."""
        self.settle(host, seconds)
        assert not self.events(*unwanted)
        self.judge()

    def start_settling(self, host: Host, seconds: float = 40.0) -> Program:
        """Start a scavenger on a host that ends when nothing is left to do."""
        return self._start(host, "scavenge", "--pause", "0.5", "--settle", "--seconds", str(seconds))

    def look_and_merge(self, host: Host, after: Program) -> Program:
        """Read the archives on a host until a scavenger merges; then write a few, and merge them right after it."""
        prefix = f"{host.name}{len(self._workers)}"
        log = f"{OUT}/{after.log.name}"
        program = self._start(
            host, "look_and_merge", "--after", log, "--prefix", prefix, "--count", "6", "--pause", "0.02", "--settle"
        )
        self._workers[prefix] = program
        return program

    def rear(self, host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run rear's own command on a host."""
        return host.run(sys.executable, "-m", "rear", *arguments, environment=ENVIRONMENT)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Return all events of some kinds, of all scavengers."""
        return [line for program in self._programs for line in program.lines(*kinds)]

    def called_lost(self) -> set[str]:
        """Return the targets of all files that scavengers called lost."""
        return {f"{event['archive']}/{event['name']}" for event in self.events("lost")}

    def acknowledged(self) -> list[str]:
        """Return the targets of all acknowledged files."""
        return [line["target"] for worker in self._workers.values() for line in worker.lines("acknowledged")]

    def refused(self) -> list[str]:
        """Return the targets of all files whose writers were told that they were not archived."""
        return [line["target"] for worker in self._workers.values() for line in worker.lines("refused")]

    def _content(self, path: str) -> bytes:
        return content(path, large=path.split("/")[-2] in self._large)

    def judge(
        self, *, may_be_lost: set[str] | None = None, lost_and_found: bool = False, false_alarms: bool = False
    ) -> set[str]:
        """Assert that every acknowledged file is in its final archive once, byte for byte, and nothing else is left.

        Args:
            may_be_lost: acknowledged files that power loss may have cost.
            lost_and_found: whether something may be there, of files that were not acknowledged.
            false_alarms: whether files may have been called lost, or a journal damaged, though nothing is lost: of a
                host that could not be reached, or of a server that forgot what it had not synced.

        Returns:
            those of ``may_be_lost`` that are not there.
        """
        copy = self._folder / self._name
        shutil.copytree(self.laboratory.share / self._name, copy, symlinks=True)
        required = {path: self._content(path) for path in self.acknowledged() if path not in (may_be_lost or ())}
        perhaps = {path: self._content(path) for path in self._begun() if path not in required}
        check_base(copy, required, perhaps=perhaps, lost_and_found=lost_and_found)
        assert required, "nothing was acknowledged: this proves nothing"
        if not false_alarms:
            assert not self.called_lost() & required.keys()
            assert not self.events("damaged")
        self.passed = True
        there = {f"{path.relative_to(copy)}/{name}" for path, name in _members(copy)}
        return set(may_be_lost or ()) - there

    def keep_evidence(self) -> None:
        """Copy the base as it is, for somebody who wants to know why a scenario failed."""
        base = self.laboratory.share / self._name
        if base.exists():
            shutil.copytree(base, self._folder / "base as it was", symlinks=True, dirs_exist_ok=True)

    def check_archives(self, host: Host, expected: list[str], *, by_others: bool) -> None:
        """Assert that the final archives hold what they held before a merge that cannot be done now.

        Args:
            host: where rear reads them.
            expected: targets of the members.
            by_others: whether other programs can read them too.
        """
        found = []
        for archive in {path.split(".zip/")[0] + ".zip" for path in expected}:
            done = self.rear(host, "ls", f"{self.base}/{archive}")
            assert done.returncode == 0, done.stdout
            found += [f"{archive}/{name}" for name in done.stdout.splitlines()]
            if by_others:
                check_archive(self.laboratory.share / self._name / archive)
        assert sorted(found) == sorted(expected)

    def _begun(self) -> Iterator[str]:
        """Yield what each worker may have begun to write."""
        for prefix, worker in self._workers.items():
            lines = worker.lines("acknowledged", "refused")
            for number in range(len(lines) + 2):
                yield target(prefix, number)


def _has_share(host: Host) -> bool:
    return host.run("/bin/ls", SHARE).returncode == 0


def _members(copy: Path) -> Iterator[tuple[Path, str]]:
    for path in copy.rglob("*.zip"):
        if ".rear" not in path.relative_to(copy).parts:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield path, name
