"""A soak: workers and scavengers come, go, are killed, stopped and continued, and the disk fills up, for a while.

One random generator decides what is done; the processes themselves get seeds from it. When the time is over everything
ends, scavengers work off what is left, and `soak_judge.judge` compares the archives with what workers were promised.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bases import files_below
from soak_disk import Disk
from soak_judge import Verdict, history, judge
from soak_program import content, digest_of

import rear
from rear.core.layout import Layout

PROGRAM = Path(__file__).with_name("soak_program.py")
ARCHIVES = ["ar.zip", "runs/7/ar.zip", "runs/other.zip"]
SWEPT = "swept.zip"
OTHER_HOSTS = ["soak-b", "soak-c"]
WORKERS, SCAVENGERS = 3, 2
#: So long a process that nobody stops may do nothing that is seen; machines that run tests are busy, and what waits for
#: a scavenge may be GiBs.
HANG_SECONDS = 90.0
DRAIN_ROUNDS = 40
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):|^Fatal Python error:", re.MULTILINE)


@dataclass
class Process:
    """A process of the soak; its session holds its children too."""

    label: str
    kind: str
    popen: subprocess.Popen[bytes]
    stopped: bool = False
    killed: bool = False
    asked_to_end: bool = False
    #: Seconds on the monotonic clock since which nobody has stopped it.
    running_since: float = field(default_factory=time.monotonic)


class Soak:
    """One soak in one folder.

    Args:
        folder: an empty directory of its own.
        seed: what is done depends on it alone; how far processes have come then does not.
        seconds: how long to go on until everything is ended.
        large_bytes: up to so much a large member holds.
    """

    def __init__(self, folder: Path, seed: int, seconds: float, *, large_bytes: int = 40 << 20) -> None:
        self.seed, self.seconds, self.large_bytes = seed, seconds, large_bytes
        self.rng = random.Random(seed)
        self.folder = folder
        self.logs, self.sources, self.spool = folder / "logs", folder / "sources", folder / "spool"
        for path in (self.logs, self.sources, self.spool):
            path.mkdir()
        self.disk = Disk(folder)
        self.base = self.disk.mount / "base"
        self.base.mkdir()
        self.stop = folder / "stop"
        self.hosts: list[str | None] = [None, *(OTHER_HOSTS if os.geteuid() == 0 else [])]
        self.processes: list[Process] = []
        self.number = 0
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.full_until: float | None = None
        self.begun = time.monotonic()
        self.plan = open(self.logs / "plan.log", "a", buffering=1)
        self.sweeps = 0

    # --- what can happen

    def say(self, what: str) -> None:
        """Note what is done, for the history."""
        print(f"{time.monotonic() - self.begun:8.3f} {time.time():.3f} {what}", file=self.plan)

    def spawn(self, kind: str, command: list[str]) -> Process:
        """Start a process in a session of its own."""
        self.number += 1
        label = f"{kind}-{self.number}"
        folders = [Path(rear.__file__).parent.parent, PROGRAM.parent]
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        with open(self.logs / f"{label}.out", "wb") as out, open(self.logs / f"{label}.err", "wb") as err:
            popen = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True, cwd=self.folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "TMPDIR": str(temporary)},
            )  # fmt: skip
        self.say(f"{label} is process {popen.pid}: {' '.join(command)}")
        self.counts[kind] += 1
        process = Process(label, kind, popen)
        self.processes.append(process)
        return process

    def start_worker(self) -> None:
        rng = self.rng
        plan = {
            "seed": rng.getrandbits(64),
            "label": f"w{self.number + 1}",
            "log": str(self.logs / f"worker-{self.number + 1}.promises"),
            "base": str(self.base),
            "stop": str(self.stop),
            "host": rng.choice(self.hosts),
            "sources": str(self.sources),
            "archives": ARCHIVES,
            "files": rng.choice([5, 40, 400]),
            "threads": rng.choice([1, 1, 2, 4]),
            "forks": rng.random() < 0.5,
            "pause_seconds": rng.choice([0.002, 0.01, 0.05]),
            "large_bytes": self.large_bytes,
            "options": {
                "sync": rng.choice(["interval", "interval", "file"]),
                "sync_interval": rng.choice([0.02, 0.3, 1.0]),
                "lease_seconds": rng.choice([0.5, 1.0, 3.0]),
                "rotation_span": rng.choice([0.3, 1.0, 5.0]),
                "rotation_size": rng.choice([20_000, 1_000_000, 50_000_000]),
                # Not zstd: the judge reads with zipfile and unzip.
                "compression": rng.choice(["deflate", "deflate", "stored"]),
                "spool_size": rng.choice([0, 10_000, 8 << 20]),
            },
        }
        self.spawn("worker", [str(PROGRAM), "worker", json.dumps(plan)])

    def start_scavenger(self) -> None:
        rng = self.rng
        host = rng.choice(self.hosts)
        cap = rng.choice([None, None, 60, 400])
        if host is not None:
            plan = {
                "base": str(self.base),
                "host": host,
                "lease_seconds": rng.choice([1.0, 2.0]),
                "options": {"verify": rng.random() < 0.3, "max_members": cap},
            }
            self.spawn("elsewhere", [str(PROGRAM), "scavenge", json.dumps(plan)])
            return
        options = ["--json", *(["--verify"] if rng.random() < 0.3 else [])]
        options += [] if cap is None else ["--max-members", str(cap)]
        options += ["--flush", "--flush-wait", "1s"] if rng.random() < 0.25 else []
        is_repeating = rng.random() < 0.3
        options += ["--every", "1s"] if is_repeating else []
        kind = "repeating" if is_repeating else "scavenge"
        self.spawn(kind, ["-m", "rear", "scavenge", str(self.base), *options])

    def start_fsck(self) -> None:
        options = [option for option in ("--deep", "--dry-run") if self.rng.random() < 0.4]
        self.spawn("fsck", ["-m", "rear", "fsck", str(self.base), "--json", *options])

    def start_sweep(self) -> None:
        rng = self.rng
        with open(self.logs / "spool.promises", "a") as log:
            for _ in range(rng.randrange(30)):
                self.sweeps += 1
                name = f"{rng.randrange(5)}/{self.sweeps}.bin"
                path = self.spool / name
                path.parent.mkdir(exist_ok=True)
                data = content(rng, f"spooled {self.sweeps}", large_bytes=1_000_000)
                path.write_bytes(data)
                record = {
                    "what": "source", "id": f"spooled {self.sweeps}", "archive": SWEPT, "name": f"spool/{name}",
                    "size": len(data), "digest": digest_of(data), "kind": "swept", "source": str(path),
                }  # fmt: skip
                print(json.dumps(record), file=log)
        options = ["--delete"] if rng.random() < 0.8 else []
        options += ["--verify"] if rng.random() < 0.2 else []
        self.spawn(
            "sweep",
            ["-m", "rear", "sweep", str(self.spool), "--into", f"{SWEPT}/spool", "--base", str(self.base), "--wait",
             "3s", "--json", *options],
        )  # fmt: skip

    def start_reader(self) -> None:
        options = self.rng.choice([["--pending", str(self.base)], [str(self.base)], [str(self.base / ARCHIVES[0])]])
        self.spawn("ls", ["-m", "rear", "ls", "--json", *options])

    def living(self, *kinds: str) -> list[Process]:
        return [one for one in self.processes if not one.killed and (one.kind in kinds or not kinds)]

    def kill(self) -> None:
        living = self.living()
        if living:
            one = self.rng.choice(living)
            # Sometimes the process alone, and its children go on as orphans.
            self.signal(one, signal.SIGKILL, group=self.rng.random() < 0.7)
            one.killed = True

    def pause(self) -> None:
        running = [one for one in self.living() if not one.stopped]
        if running:
            one = self.rng.choice(running)
            self.signal(one, signal.SIGSTOP)
            one.stopped = True

    def resume(self) -> None:
        stopped = [one for one in self.processes if one.stopped]
        if stopped:
            self.go_on(self.rng.choice(stopped))

    def go_on(self, one: Process) -> None:
        self.signal(one, signal.SIGCONT)
        one.stopped = False
        one.running_since = time.monotonic()

    def end_politely(self) -> None:
        repeating = [one for one in self.living("repeating", "scavenge", "fsck", "sweep") if not one.asked_to_end]
        if repeating:
            one = self.rng.choice(repeating)
            # Ctrl-C while Python itself begins is Python's to answer.
            has_begun = (self.logs / f"{one.label}.out").stat().st_size > 0
            self.signal(one, signal.SIGINT if has_begun else signal.SIGTERM, group=False)
            one.asked_to_end = True

    def signal(self, one: Process, number: signal.Signals, *, group: bool = True) -> None:
        self.say(f"{number.name} to {one.label}{' and its children' if group else ''}")
        self.counts[number.name] += 1
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(one.popen.pid, number)
            else:
                os.kill(one.popen.pid, number)

    def fill(self) -> None:
        if self.disk.is_own and self.full_until is None:
            self.disk.fill(self.rng.choice([0, 50_000, 3_000_000]))
            self.full_until = time.monotonic() + self.rng.uniform(0.3, 2.5)
            self.counts["disk full"] += 1
            self.say("the disk is full")

    def make_room(self) -> None:
        if self.full_until is not None:
            self.disk.free()
            self.full_until = None
            self.say("the disk has room again")

    # --- the course of it

    def run(self) -> Verdict:
        """Do all of it, and return what the judge says."""
        try:
            deadline = self.begun + self.seconds
            while time.monotonic() < deadline and not self.faults:
                self.step()
                time.sleep(self.rng.uniform(0.01, 0.25))
            self.end_all()
            self.drain()
        finally:
            self.make_room()
            for one in self.processes:
                self.signal(one, signal.SIGKILL)
        verdict = judge(self.base, self.logs)
        for fault in self.faults:
            verdict.add(fault)
        for path in sorted(self.logs.glob("*.err")):
            text = path.read_text(errors="replace")
            if _TRACEBACK.search(text):
                verdict.add(f"traceback in {path.name}:\n{text[-3000:]}")
        verdict.counts.update(self.counts)
        return verdict

    def step(self) -> None:
        """Do one thing."""
        is_crowded = self.full_until is None and self.disk.is_crowded
        actions: list[tuple[Callable[[], None], float]] = [
            # On a slow machine workers fill the disk faster than scavengers, which are killed, can merge.
            (self.start_worker, 6.0 if len(self.living("worker")) < WORKERS and not is_crowded else 0.0),
            (self.start_scavenger, 4.0 if len(self.living("scavenge", "repeating", "elsewhere")) < SCAVENGERS else 0.0),
            (self.start_fsck, 0.7 if not self.living("fsck") else 0.0),
            (self.start_sweep, 0.7 if not self.living("sweep") else 0.0),
            (self.start_reader, 0.4 if not self.living("ls") else 0.0),
            (self.kill, 1.5),
            (self.pause, 1.5),
            (self.resume, 2.0),
            (self.end_politely, 0.4),
            (self.fill, 0.2),
        ]
        if self.full_until is not None and time.monotonic() > self.full_until:
            self.make_room()
        self.rng.choices([action for action, _ in actions], [weight for _, weight in actions])[0]()
        self.reap()

    def reap(self) -> None:
        """Take note of processes that have ended, and of those that hang."""
        for one in list(self.processes):
            status = one.popen.poll()
            if status is not None and not (one.killed and self.has_children(one)):
                self.processes.remove(one)
                self.say(f"{one.label} has ended with {status}")
                self.check_status(one, status)
            elif status is None and not one.stopped and one.kind not in ("worker", "repeating"):
                self.check_hang(one)

    def check_hang(self, one: Process) -> None:
        silent_seconds = time.time() - (self.logs / f"{one.label}.out").stat().st_mtime
        if min(silent_seconds, time.monotonic() - one.running_since) > HANG_SECONDS and not one.killed:
            self.faults.append(f"{one.label} does not end; see its .err")
            # With faulthandler this prints where all threads are.
            self.signal(one, signal.SIGABRT, group=False)
            one.killed = True

    def has_children(self, one: Process) -> bool:
        """Whether processes of its session are left, such that have not ended."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[2]) == one.popen.pid and fields[0] not in "ZX":
                    return True
        return False

    def check_status(self, one: Process, status: int) -> None:
        if one.killed:
            return
        allowed = {
            "worker": {0}, "ls": {0, 3, 6}, "fsck": {0, 1, 4, 8}, "sweep": {0, 1, 3, 9}, "scavenge": {0, 1, 3},
            "repeating": {0, 1, 3}, "elsewhere": {0, 3},
        }[one.kind]  # fmt: skip
        if one.asked_to_end:
            allowed = allowed | {130, 143, -signal.SIGTERM, -signal.SIGINT}
        error = (self.logs / f"{one.label}.err").read_text(errors="replace")
        if status not in allowed:
            self.faults.append(f"{one.label} has ended with {status}: {error[-2000:]}")
        elif status in (3, 9) and one.kind != "ls" and "No space left" not in error:
            self.faults.append(f"{one.label} has ended with an error that the disk is not to blame for: {error}")

    def end_all(self) -> None:
        """End everything: stopped ones go on, workers finish what they are at, the others are asked to end."""
        self.make_room()
        self.stop.touch()
        self.say("the end")
        for one in list(self.processes):
            if one.stopped:
                self.go_on(one)
            if one.killed:
                self.signal(one, signal.SIGKILL)
            if one.kind == "repeating":
                self.signal(one, signal.SIGTERM, group=False)
                one.asked_to_end = True
            one.running_since = time.monotonic()
        while self.processes:
            self.reap()
            for one in self.processes:
                self.check_hang(one)
                if one.killed:
                    self.signal(one, signal.SIGKILL)
            time.sleep(0.1)

    def drain(self) -> None:
        """Scavenge until nothing waits, then check everything until there is nothing left to repair."""
        options = [option for host in OTHER_HOSTS for option in ("--assume-dead", host)]
        for number in range(DRAIN_ROUNDS):
            one = self.spawn("scavenge", ["-m", "rear", "scavenge", str(self.base), "--json", *options])
            self.wait_for(one)
            if not self.waits() and number:
                break
            time.sleep(0.3)
        else:
            self.faults.append(f"after {DRAIN_ROUNDS} scavenges still waiting: {self.waits()[:20]}")
        for deep in ([], ["--deep"], ["--deep"]):
            one = self.spawn("fsck", ["-m", "rear", "fsck", str(self.base), "--json", *deep])
            status = self.wait_for(one)
        if status != 0:
            told = (self.logs / f"{one.label}.out").read_text(errors="replace")
            error = (self.logs / f"{one.label}.err").read_text(errors="replace")
            self.faults.append(f"the last fsck has ended with {status}: {told[-3000:]}{error}")

    def wait_for(self, one: Process) -> int:
        """Wait until a process ends, and return its status."""
        while one in self.processes:
            self.reap()
            time.sleep(0.05)
        return one.popen.returncode

    def waits(self) -> list[str]:
        """Return what a scavenge has still to do."""
        layout = Layout(self.base)
        waiting = []
        for folder in (layout.inbox, layout.claims, layout.intents):
            for name in files_below(folder):
                path = folder / name
                is_empty = (path.suffix == ".journal" and b"\n" not in path.read_bytes()) or path.stat().st_size == 0
                if not is_empty:
                    waiting.append(f"{folder.name}/{name}")
        return waiting


@contextlib.contextmanager
def soaked(folder: Path, seed: int, seconds: float, *, large_bytes: int = 40 << 20) -> Iterator[Verdict]:
    """Soak, and give the verdict to the block; base and logs stay in ``folder`` when there is a fault, else nothing."""
    soak = Soak(folder, seed, seconds, large_bytes=large_bytes)
    verdict = None
    try:
        verdict = soak.run()
        yield verdict
    finally:
        soak.plan.close()
        has_failed = verdict is None or bool(verdict.faults)
        soak.disk.close(folder / "base" if has_failed else None)
        if not has_failed:
            shutil.rmtree(folder, ignore_errors=True)


def report(verdict: Verdict, logs: Path, seed: int) -> str:
    """Return what is wrong, with the history of the files concerned."""
    faults = "\n".join(verdict.faults[:30])
    return f"seed {seed}, kept in {logs.parent}\n{faults}\n--- history\n{history(logs, verdict)}"


def main() -> int:
    """Soak from the command line: ``python tests/support/soak.py FOLDER SEED SECONDS``."""
    folder, seed, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    folder.mkdir(parents=True)
    with soaked(folder, seed, seconds) as verdict:
        print(dict(verdict.counts))
        if verdict.faults:
            print(report(verdict, folder / "logs", seed))
    return bool(verdict.faults)


if __name__ == "__main__":
    sys.exit(main())
