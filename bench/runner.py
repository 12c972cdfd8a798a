"""Runs contenders in turns (A B C A B C …), so that a drift of the machine meets all of them alike.

Each runs in a process of its own, started by `bench.launcher`, in an empty folder of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.peers import ORIGINAL, Peer, Peers
from bench.results import Result, Role, Run

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 300
ENOUGH_SECONDS: Mapping[Role, float] = {"rear": 8.0, "limit": 8.0, "peer": 4.0}
"""Who has run for this long in a case takes no part in its further rounds, so that all rows end in time."""
TOO_MUCH_SECONDS = 12.0
"""Who has run for this long does so once only; all others twice at least."""


@dataclass(frozen=True)
class Command:
    """A program to run as it is: its time is that of the process, from start to exit.

    Args:
        argv: program and arguments.
        statuses: exit statuses that are none of a failure.
        stdin: file to read from.
        cpus: run on these alone.
        environment: added to that of the benchmark.
    """

    argv: Sequence[str]
    statuses: tuple[int, ...] = (0,)
    stdin: Path | None = None
    cpus: Sequence[int] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A Python function to run: its time is what its `bench.job.Stopwatch` measured.

    Args:
        function: ``module:function``.
        arguments: passed as JSON.
        python: interpreter, if not this one; that of the original rear cannot import this one.
        cpus: run on these alone.
        prefix: program and arguments to run it under.
        environment: added to that of the benchmark.
    """

    function: str
    arguments: Mapping[str, Any]
    python: str = sys.executable
    cpus: Sequence[int] | None = None
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


Step = Command | Job


@dataclass(frozen=True)
class Contender:
    """One way to do the job of a case.

    Args:
        name: how it is called in the results.
        step: returns what is run, for a folder.
        role: what it is in the comparison.
        prepare: makes in the folder what the step needs; not measured.
        after: looks at what the step left, raises if it is wrong, and returns more values; not measured.
        needs: name of the peer that has to be there, or names.
        root: the checkout whose rear and whose jobs are run.
    """

    name: str
    step: Callable[[Path], Step]
    role: Role = "peer"
    prepare: Callable[[Path], None] | None = None
    after: Callable[[Path], Mapping[str, float] | None] | None = None
    needs: str | tuple[str, ...] = ()
    root: Path = ROOT


class ContenderError(Exception):
    """A contender failed, or did something wrong."""


class Bench:
    """Runs contenders and keeps what they took; the rows get one of these.

    Args:
        run: takes the results.
        peers: the other programs.
        scratch: existing folder on the filesystem to measure; all that is put there is removed.
        is_quick: small sizes and one round.
        rounds: how often each contender runs, if it is to be the same for all rows.
        before: another checkout, whose rear runs as a peer right after the one of this project.
        tell: called with a line of progress.
    """

    def __init__(
        self,
        run: Run,
        peers: Peers,
        scratch: Path,
        *,
        is_quick: bool,
        rounds: int | None,
        before: Path | None = None,
        tell: Callable[[str], None],
    ) -> None:
        self.run = run
        self.peers = peers
        self.is_quick = is_quick
        self.row = ""
        self._rounds = rounds
        self._before = before
        self._scratch = scratch
        self._tell = tell
        self._shared: dict[str, Path] = {}
        self._count = 0

    def __enter__(self) -> Self:
        modules = self._scratch / "modules"
        modules.mkdir()
        # The original's interpreter is to find this package, and not the rear beside it.
        (modules / "bench").symlink_to(ROOT / "bench")
        launcher = ROOT / "bench" / "launcher.py"
        self._launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", str(launcher)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            # It ends what it runs, too.
            self._launcher.terminate()
        # Closes its input, which ends it, and waits.
        self._launcher.__exit__(None, None, None)

    # ---- for rows

    def size(self, full: int, quick: int) -> int:
        """Return the one of two sizes that this run uses."""
        return quick if self.is_quick else full

    def shared(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return a folder with data that several contenders only read; made when it is first asked for."""
        if name not in self._shared:
            folder = self._scratch / "shared" / name
            folder.mkdir(parents=True)
            make(folder)
            os.sync()
            self._shared[name] = folder
        return self._shared[name]

    def forget(self, name: str) -> None:
        """Remove shared data that is large and not needed any more."""
        folder = self._shared.pop(name, None)
        if folder is not None:
            shutil.rmtree(folder)

    def has(self, name: str) -> bool:
        """Tell whether a peer is there; if it is not, that is said once."""
        self.peers.look_for([name])
        if name in self.peers.found:
            self.run.peers[name] = self.peers.found[name].version
            return True
        if name not in self.run.missing:
            self.run.missing[name] = self.peers.missing[name]
            self._tell(f"  without {name}: {self.peers.missing[name]}")
        return False

    def peer(self, name: str) -> Peer:
        """Return a peer that is there; steps of contenders that need it are asked for only then."""
        return self.peers.found[name]

    def skip(self, contender: str, reason: str) -> None:
        """Say that somebody cannot take part in this row."""
        self.run.missing[f"{self.row}: {contender}"] = reason
        self._tell(f"  without {contender}: {reason}")

    def fail(self, reason: str) -> None:
        """Say that the rest of this row could not be measured."""
        self.run.failures[self.row] = reason
        self._tell(f"  {self.row} failed: {reason}")

    def do(self, step: Step) -> dict[str, float]:
        """Run a step that makes data; it is not measured."""
        return self._execute(step, self._new_folder())

    def compare(
        self,
        case: str,
        contenders: Sequence[Contender],
        *,
        quantity: str = "seconds",
        unit: str = "s",
        scale: float = 1.0,
        rounds: int = 5,
        quick_rounds: int = 1,
        x: float | None = None,
    ) -> None:
        """Run all contenders of a case in turns, and keep what they took.

        Args:
            case: what they have to do; names the case within the row.
            contenders: those that need a missing peer are named and left out.
            quantity: which value counts.
            unit: what it is shown in.
            scale: factor from the value to the unit.
            rounds: how often each one runs, unless the run says otherwise; the slow ones less often.
            quick_rounds: the same for a quick run.
            x: how large the job is, where the row shows how cost grows.
        """
        results: list[tuple[Contender, Result]] = []
        for contender in self._with_before(contenders):
            if self._is_there(contender):
                result = Result(self.row, case, contender.name, contender.role, quantity, unit, scale, x)
                results.append((contender, result))
        spent = dict.fromkeys((result.contender for _, result in results), 0.0)
        for _ in range(self._rounds or (quick_rounds if self.is_quick else rounds)):
            for contender, result in results:
                if result.failure is None and (self._rounds or _is_wanted_again(result, spent[contender.name])):
                    begin = time.monotonic()
                    self._measure(contender, result)
                    spent[contender.name] += time.monotonic() - begin
        self.run.results += [result for _, result in results]

    # ---- one contender

    def _with_before(self, contenders: Sequence[Contender]) -> Iterator[Contender]:
        for contender in contenders:
            yield contender
            if contender.role == "rear" and self._before is not None:
                yield replace(contender, name=f"{contender.name}, before", role="peer", root=self._before)

    def _is_there(self, contender: Contender) -> bool:
        needs = (contender.needs,) if isinstance(contender.needs, str) else contender.needs
        return all(map(self.has, needs))

    def _measure(self, contender: Contender, result: Result) -> None:
        folder = self._new_folder()
        try:
            if contender.prepare is not None:
                contender.prepare(folder)
            # Nobody pays for what the one before left unwritten.
            os.sync()
            sample = self._execute(contender.step(folder), folder, contender.root)
            if contender.after is not None:
                sample |= contender.after(folder) or {}
            result.samples.append(sample)
        except (ContenderError, OSError, ValueError) as error:
            result.failure = str(error)
            self._tell(f"  {contender.name} failed: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _new_folder(self) -> Path:
        self._count += 1
        folder = self._scratch / f"run-{self._count}"
        folder.mkdir()
        return folder

    def _execute(self, step: Step, folder: Path, root: Path = ROOT) -> dict[str, float]:
        values_path, errors = self._scratch / "values.json", self._scratch / "stderr"
        values_path.unlink(missing_ok=True)
        order: dict[str, Any] = {
            "folder": str(folder), "stdin": os.devnull, "stdout": os.devnull, "stderr": str(errors),
            "cpus": step.cpus, "timeout_seconds": TIMEOUT_SECONDS,
        }  # fmt: skip
        if isinstance(step, Command):
            statuses = step.statuses
            more = dict(step.environment)
            if "PYTHONPATH" in more:
                more["PYTHONPATH"] = str(root)
            order |= {"argv": list(step.argv), "environment": environment(more)}
            if step.stdin is not None:
                order["stdin"] = str(step.stdin)
        else:
            statuses = (0,)
            order |= self._order_of_job(step, values_path, root)
        answer = self._order(order)
        if answer["is_timed_out"]:
            raise ContenderError(f"did not end within {TIMEOUT_SECONDS} s")
        if answer["status"] not in statuses:
            said = errors.read_text(errors="replace").strip().splitlines()
            raise ContenderError(f"status {answer['status']}: {said[-1] if said else 'no message'}")
        sample: dict[str, float] = {name: answer[name] for name in ("seconds", "cpu_seconds", "peak_bytes")}
        sample["process_seconds"] = sample["seconds"]
        if isinstance(step, Job):
            sample |= json.loads(values_path.read_text())
        return sample

    def _order_of_job(self, job: Job, values_path: Path, root: Path) -> dict[str, Any]:
        is_original = ORIGINAL in self.peers.found and job.python == self.peers.found[ORIGINAL].path
        path = self._scratch / "modules" if is_original else root
        argv = [*job.prefix, job.python, "-P", "-m", "bench.job", job.function, str(values_path)]
        more = {**job.environment, "PYTHONPATH": str(path)}
        return {"argv": [*argv, json.dumps(dict(job.arguments))], "environment": environment(more)}

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._launcher.stdin is not None
        assert self._launcher.stdout is not None
        self._launcher.stdin.write(json.dumps(order) + "\n")
        self._launcher.stdin.flush()
        answer = self._launcher.stdout.readline()
        if not answer:
            raise RuntimeError("the launcher has ended")
        result: dict[str, Any] = json.loads(answer)
        return result


def _is_wanted_again(result: Result, spent_seconds: float) -> bool:
    enough = ENOUGH_SECONDS[result.role] if len(result.samples) > 1 else TOO_MUCH_SECONDS
    return spent_seconds < enough


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of contenders: this one, without what would make rear behave otherwise.

    Bytecode may be kept, as it is for an installed package: otherwise each process would compile rear's source anew.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("REAR_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**kept, "LC_ALL": "C.UTF-8", **more}


def rear_command(*arguments: str, **options: Any) -> Command:
    """Return the command line of the rear in this project."""
    return Command([sys.executable, "-P", "-m", "rear", *arguments], environment={"PYTHONPATH": str(ROOT)}, **options)
