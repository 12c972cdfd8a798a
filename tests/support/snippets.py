"""The snippets of the documentation, and a small world in which they run.

A fenced block of ``sh``, ``bash``, ``python`` or ``console`` is run, in the order of its page, in one world a page. An
HTML comment before the fence says what is special::

    <!-- snippet: skip, needs a Slurm cluster -->   not run; the reason is obligatory
    <!-- snippet: exit 0|1 -->                       the (last) command ends with one of these statuses
    <!-- snippet: file simulate.py -->               becomes a file; nothing is run, unless "run" follows
    <!-- snippet: continues -->                      Python that goes on from the Python block before
    <!-- snippet: background -->                     runs until it is asked to stop, by SIGTERM
    <!-- snippet: output varies -->                  console: what is printed is not compared
    <!-- snippet: needs bsdtar -->                   not run where that program is missing
    <!-- snippet: installed pandas rear -->         not run unless these distributions are installed
    <!-- snippet: before touch /scratch/a -->        shell that prepares it, up to the end of the comment

Several are separated by ``;`` ("before" comes last). Paths below ``/nfs``, ``/scratch``, ``/mnt`` and ``/old`` lie in
the world.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from checkout import ROOT, SUPPORT

import rear

DIRECTIVES = {
    "skip", "exit", "file", "continues", "background", "run", "output", "needs", "installed", "before",
}  # fmt: skip
RUN = ("sh", "bash", "python", "console")
PLACES = ("/nfs", "/scratch", "/mnt", "/old")
TIMEOUT_SECONDS = 100
#: With ``REAR_SNIPPETS=write`` what consoles print replaces what the pages say.
RENEW = os.environ.get("REAR_SNIPPETS") == "write"

_FENCE = re.compile(
    r"(?:^[ ]*<!-- snippet: (?P<directives>.*?) -->\n\s*)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Snippet:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    skip: str = ""
    exit_statuses: tuple[int, ...] = (0,)
    needs: str = ""
    installed: str = ""
    file: str = ""
    flags: frozenset[str] = frozenset()
    before: str = ""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def snippets_of(page: Path) -> Iterator[Snippet]:
    """Yield all fenced blocks that name a language."""
    source = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(source):
        line = source.count("\n", 0, match.start("indent")) + 1
        options = dict(_directives(match["directives"] or ""))
        flags = frozenset(name for name in ("continues", "background", "run") if name in options)
        if options.get("output") == "varies":
            flags |= {"varies"}
        unknown = options.keys() - DIRECTIVES
        assert not unknown, f"{page.name}:{line}: unknown directive {unknown}"
        yield Snippet(
            page,
            line,
            match["language"],
            textwrap.dedent(match["text"]),
            skip=options.get("skip", ""),
            exit_statuses=tuple(map(int, options.get("exit", "0").split("|"))),
            needs=options.get("needs", ""),
            installed=options.get("installed", ""),
            file=options.get("file", ""),
            flags=flags,
            before=options.get("before", ""),
        )


def _directives(text: str) -> Iterator[tuple[str, str]]:
    while text:
        name, _, rest = text.strip().partition(" ")
        if name.rstrip(",") in ("before", "skip"):
            yield name.rstrip(","), rest.strip()
            return
        value, _, text = rest.partition(";")
        if name.endswith(";"):
            name, value, text = name[:-1], "", rest
        yield name, value.strip()


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@dataclass
class World:
    """Folders and files as the documentation speaks of them.

    Args:
        root: an empty folder.
    """

    root: Path
    python: str = ""
    _cluster: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home = self.root / "home"
        for folder in ("home", "nfs/base", "scratch/spool/sub", "scratch/job7", "mnt", "bin", "old/inbox"):
            (self.root / folder).mkdir(parents=True)
        for name, module in (("rear", "rear"), ("sqlite-utils", "sqlite_utils")):
            self._program(name, f'exec {sys.executable} -m {module} "$@"')
        self._program("scenario", f'exec {sys.executable} {SUPPORT / "scenario.py"} "$@"')
        for name in ("python", "python3"):
            self._program(name, f'exec {sys.executable} "$@"')
        scratch = self.root / "scratch"
        (scratch / "out.h5").write_bytes(b"made by others")
        (scratch / "spool/a.log").write_text("spooled\n")
        (scratch / "spool/sub/b.log").write_text("spooled, too\n")
        (scratch / "job7/result.csv").write_text("x,y\n1,2\n")
        past = time.time() - 86_400
        for path in scratch.rglob("*"):
            os.utime(path, (past, past))
        self.environment = os.environ | {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(self.home),
            "COLUMNS": "120", "TZ": "UTC", "USER": "me", "SLURM_JOB_ID": "17",
        }  # fmt: skip
        self._write_base()

    def _program(self, name: str, line: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def _write_base(self) -> None:
        """Two archives, of which each has something more to come, and two Zips that are nobody's."""
        base = self.root / "nfs/base"
        for folder in ("", "second/", "third/", "later/"):
            with rear.rear_fs(base) as fs:
                for archive in ("ar.zip", "runs/7/ar.zip"):
                    for name in ("logs/a.txt", "logs/b.txt", "relpath/to/file", "a.csv"):
                        with fs.open(f"{archive}/{folder}{name}", "w", metadata={"experiment": "e17"}) as file:
                            file.write("x,y\n1,2\n")
            if folder != "later/":
                list(rear.scavenge(base))
        with zipfile.ZipFile(self.root / "old/inbox/node1-1700000000.zip", "w") as archive:
            archive.writestr("ar.zip/logs/old.txt", "old\n")
        self._program("simulate", 'echo simulated; echo 1 > "$REAR_OUTPUT/result.txt"')
        (self.home / "simulate").symlink_to(self.root / "bin/simulate")
        (self.home / "out").mkdir()
        for name in ("result.csv", "log.txt", "out/data.txt"):
            (self.home / name).write_text("x,y\n1,2\n")
        for name, cut in (("some.zip", 0), ("damaged.zip", 30), ("results.zip", 0)):
            path = self.home / name
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.txt", "a\n" * 100)
                archive.writestr("b.txt", "b\n" * 100)
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size - cut)

    def close(self) -> None:
        """End what was started for the page."""
        for process in self._cluster:
            process.kill()
            process.wait()

    def _dask(self) -> str:
        """Return the address of a scheduler with a worker; both are started when a page first speaks of them."""
        file = self.root / "scheduler.json"
        if not self._cluster:
            for program in (
                ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
                ["dask_worker", "--nworkers", "1", "--nthreads", "2", "--no-dashboard"],
            ):
                command = [
                    sys.executable,
                    "-m",
                    f"distributed.cli.{program[0]}",
                    *program[1:],
                    "--scheduler-file",
                    file,
                ]
                nowhere = subprocess.DEVNULL
                process = subprocess.Popen(command, cwd=self.home, env=self.environment, stdout=nowhere, stderr=nowhere)
                self._cluster.append(process)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                return str(json.loads(file.read_text())["address"])
            except (OSError, ValueError):
                time.sleep(0.1)
        raise AssertionError("the Dask scheduler does not start")

    # ---- running

    def run(self, snippet: Snippet) -> None:
        """Run one snippet.

        Raises:
            AssertionError: it does not do what the page says.
        """
        if snippet.needs and shutil.which(snippet.needs) is None:
            return
        if not all(map(_is_installed, snippet.installed.split())):
            return
        if snippet.before:
            self._shell(snippet.before, (0,), snippet)
        text = self._inside(snippet.text)
        if snippet.file:
            path = self.home / snippet.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if "run" not in snippet.flags:
                return
        if snippet.language == "python":
            self.python = (self.python if "continues" in snippet.flags else "") + text
            script = self.home / (snippet.file or "snippet.py")
            script.write_text(self.python)
            self._execute([sys.executable, str(script)], snippet)
        elif snippet.language == "console":
            self._console(snippet)
        else:
            self._execute(["bash", "-euo", "pipefail", "-c", text], snippet)

    def _inside(self, text: str) -> str:
        if "tcp://host:8786" in text:
            text = text.replace("tcp://host:8786", self._dask())
        return re.sub(r"(?<![\w.])(" + "|".join(PLACES) + r")(?=/)", lambda match: f"{self.root}{match[1]}", text)

    def _execute(self, command: list[str], snippet: Snippet) -> str:
        process = subprocess.Popen(
            command, cwd=self.home, env=self.environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="surrogateescape",
        )  # fmt: skip
        if "background" in snippet.flags:
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"{snippet}: still running after {TIMEOUT_SECONDS} s:\n{output}") from None
        expected = (0, 143, -signal.SIGTERM) if "background" in snippet.flags else snippet.exit_statuses
        assert process.returncode in expected, f"{snippet}: status {process.returncode}:\n{snippet.text}\n{output}"
        assert "Traceback" not in output, f"{snippet}:\n{output}"
        return output

    def _shell(self, text: str, statuses: tuple[int, ...], snippet: Snippet) -> str:
        wanted = Snippet(snippet.page, snippet.line, "sh", text, exit_statuses=statuses)
        return self._execute(["bash", "-uo", "pipefail", "-c", self._inside(text)], wanted)

    def _console(self, snippet: Snippet) -> None:
        """Run each ``$ command`` (with lines that begin with ``> ``), and compare what it prints."""
        steps: list[tuple[str, list[str]]] = []
        for line in snippet.text.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            elif line.startswith("> ") and steps and not steps[-1][1]:
                steps[-1] = (f"{steps[-1][0]}\n{line[2:]}", [])
            else:
                assert steps, f"{snippet}: output before a command"
                steps[-1][1].append(line)
        renewed = ""
        for number, (command, expected) in enumerate(steps, 1):
            output = self._shell(command, snippet.exit_statuses if number == len(steps) else (0,), snippet)
            printed = output.replace(str(self.root), "").splitlines()
            same = list(map(self.normalized, printed)) == list(map(self.normalized, expected))
            renewed += "$ " + command.replace("\n", "\n> ") + "\n"
            renewed += "".join(f"{line}\n" for line in (expected if same else printed))
            if expected and "varies" not in snippet.flags and not RENEW:
                assert same, f"{snippet}: {command} prints\n{output}"
        if RENEW and "varies" not in snippet.flags:
            page = snippet.page.read_text(encoding="utf-8")
            snippet.page.write_text(page.replace(snippet.text, renewed, 1), encoding="utf-8")

    @staticmethod
    def normalized(line: str) -> str:
        """Return a line without what differs from run to run: names of hosts, workers and reports, times, sizes."""
        line = re.sub(r"\b[\w.-]+/(\d+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]{16})(-\d+)?", "HOST/WORKER", line)
        line = re.sub(r"\d{8}T\d{6}-[\w.-]+-\d+-[0-9a-f]{12}", "REPORT", line)
        line = re.sub(r"\b[\w.]+-\d+-[0-9a-f]{12}\b", "LEADER", line)
        line = re.sub(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?", "TIME", line)
        line = re.sub(r"\d[\d,.]*( ?(bytes?|[kMGT]i?B|µs|ms|s)\b)", "SIZE", line)
        line = re.sub(r"process \d+", "process PID", line)
        # Offsets depend on how long the name of the host and the number of the process are.
        line = re.sub(r"(?<=the first )\d+|(?<=\": )\d+|(?<=bytes )\d+(?= to )|\d[\d,]{3,}", "NUMBER", line)
        return re.sub(r"[ \t]+", " ", line).strip()
