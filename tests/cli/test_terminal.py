"""The real program in a pseudo-terminal, and what a terminal emulator then shows; and in pipes, closed ones too.

Bases are made by real workers, some of them killed. Where a test has to come in the middle, the events of the real
scavenge are slowed down.
"""

from __future__ import annotations

import copy
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyte
import pytest
from checkout import ROOT
from programs import rear_command, run_rear, start

import rear
from rear.read.view import open_committed
from rear.zip.member_ends import verify

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")},
    "TERM": "xterm-256color",
    "LC_ALL": "C.UTF-8",
}
WORKER = """
import os, signal, sys
from rear import rear_fs, rear_open
number = int(sys.argv[2])
with rear_fs(sys.argv[1]):
    for index in range(40):
        with rear_open(f"runs/{number % 3}/ar.zip/w{number}/{index}.txt", "w") as file:
            file.write(f"{number} {index}\\n" * 100)
        if number % 2 and index == 30:
            os.kill(os.getpid(), signal.SIGKILL)
"""
#: The real program, but each event comes some time after the one before.
SLOWLY = """
import sys, time
from contextlib import closing
import rear, rear.fsck.base
pause_seconds = float(sys.argv.pop(1))
def slowed(function):
    def run(*arguments, **options):
        with closing(function(*arguments, **options)) as events:
            for event in events:
                time.sleep(pause_seconds)
                yield event
    return run
rear.scavenge, rear.sweep, rear.fsck.base.fsck = map(slowed, (rear.scavenge, rear.sweep, rear.fsck.base.fsck))
sys.argv[0] = "rear"
from rear.cli import main
main()
"""


class TwoScreens(pyte.Screen):
    """A terminal with a second screen for programs that take all of it, which pyte lacks."""

    def set_mode(self, *modes: int, **options: Any) -> None:
        if options.get("private") and 1049 in modes:
            self.first = copy.deepcopy(self.buffer), self.cursor.x, self.cursor.y
            self.erase_in_display(2)
        super().set_mode(*modes, **options)

    def reset_mode(self, *modes: int, **options: Any) -> None:
        if options.get("private") and 1049 in modes:
            self.buffer, self.cursor.x, self.cursor.y = self.first
        super().reset_mode(*modes, **options)


class Terminal:
    """A pseudo-terminal with a command in it."""

    def __init__(self, command: list[str], *, columns: int = 100, lines: int = 30, **environment: str) -> None:
        self.screen = TwoScreens(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.stream.feed(b"before\r\n")
        self.output = b""
        self.status: int | None = None
        self.pid, self.descriptor = pty.fork()
        if not self.pid:
            os.read(0, 1)
            os.execvpe(command[0], command, {**ENVIRONMENT, **environment})
        self.resize(columns, lines, signal_too=False)
        os.write(self.descriptor, b"\n")

    def resize(self, columns: int, lines: int, *, signal_too: bool = True) -> None:
        if signal_too:
            self.screen.resize(lines, columns)
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self, seconds: float) -> bool:
        """Feed what the program writes within some time; false at its end."""
        data = b""
        while select.select([self.descriptor], [], [], 0.01 if data else seconds)[0]:
            try:
                piece = os.read(self.descriptor, 1 << 16)
            except OSError:
                piece = b""
            if not piece:
                break
            data += piece
        else:
            piece = b" "
        self.output += data
        self.stream.feed(data)
        return bool(piece)

    def wait_for(self, condition: Callable[[str], bool], what: str) -> str:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if condition(text := self.text):
                return text
            assert self.read(0.3), f"ended before {what}:\n{self.text}"
        raise AssertionError(f"never {what}:\n{self.text}")

    def wait(self) -> int:
        """Wait for the end; return the exit status."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.read(0.2):
            pass
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.descriptor)
        return self.status

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def check_clean(self) -> None:
        """Nothing of the live screen is left, what stood before is there, the cursor is back at the end of it."""
        assert self.text.startswith("before\n")
        assert "━" not in self.text
        assert "FINAL ARCHIVE" not in self.text
        assert not self.screen.cursor.hidden
        assert self.output.count(b"\x1b[?1049h") == self.output.count(b"\x1b[?1049l")
        used = self.text.rstrip("\n").count("\n") + 1
        assert (self.screen.cursor.x, self.screen.cursor.y) == (0, used)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of six workers, three of them killed: 213 files that were acknowledged."""
    base = tmp_path_factory.mktemp("terminal") / "base"
    base.mkdir()
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(base), str(number)], env=ENVIRONMENT) for number in range(6)
    ]
    assert sorted(worker.wait() for worker in workers) == [-9, -9, -9, 0, 0, 0]
    return base


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "base")


def slowly(seconds: float, *arguments: object) -> list[str]:
    return [sys.executable, "-c", SLOWLY, str(seconds), *map(str, arguments)]


def check_all_there(base: Path) -> None:
    """Each file that a worker was told is kept is in its archive once."""
    list(rear.scavenge(base))
    names = []
    for number in range(3):
        with open_committed(base / f"runs/{number}/ar.zip") as archive:
            for entry in archive.entries():
                verify(archive, entry)
                names.append(entry.name)
    expected = [f"w{worker}/{index}.txt" for worker in range(6) for index in range(31 if worker % 2 else 40)]
    assert sorted(names) == sorted(expected)


# ---- the live screen


def test_a_scavenge_shows_its_work_on_any_size_and_leaves_a_summary(base: Path) -> None:
    terminal = Terminal(slowly(0.1, "scavenge", base))
    text = terminal.wait_for(lambda text: "FINAL ARCHIVE" in text, "an archive shown")
    assert f"rear scavenge {base}"[:40] in text
    assert re.search(r"^\S+-\d+-[0-9a-f]{12} leads$", text, re.MULTILINE)
    assert re.search(r"crashed → salvaged 31 of 31$", text, re.MULTILINE)
    assert re.search(r"of [\d.]+ kB · .*\d+ of 213 members", text)
    assert terminal.screen.cursor.hidden
    for columns, lines in ((60, 15), (40, 10), (80, 24), (160, 40)):
        terminal.resize(columns, lines)
        enough = len(terminal.output) + columns * lines
        terminal.wait_for(lambda text, enough=enough: len(terminal.output) > enough, "drawn anew")
        terminal.read(0.2)
        rows = terminal.text.splitlines()
        assert rows[0].startswith("rear scavenge "), "each frame begins at the top"
        assert sum("rear scavenge" in row for row in rows) == 1
        assert sum("FINAL ARCHIVE" in row for row in rows) == 1
        assert all(len(row) <= columns for row in rows)
    assert terminal.wait() == 0
    terminal.check_clean()
    assert re.search(rf"^{base}: scavenged in .* by \S+$", terminal.text, re.MULTILINE)
    assert re.search(r"^  merged   213 members \(.*\) into 3 archives$", terminal.text, re.MULTILINE)
    assert re.search(r"^  crashed  3 workers: 93 members checked one by one$", terminal.text, re.MULTILINE)
    check_all_there(base)


def test_a_check_shows_its_work(base: Path) -> None:
    list(rear.scavenge(base))
    terminal = Terminal(slowly(0.1, "fsck", base))
    terminal.wait_for(lambda text: "checking runs/" in text and "inspecting" in text, "archives shown")
    terminal.wait_for(lambda text: "comparing the index of runs/" in text, "indexes shown")
    status = terminal.wait()
    terminal.check_clean()
    assert re.search(r"checked +3 archives with 213 members", terminal.text)
    assert status in (0, 4)


def test_ctrl_c_leaves_a_clean_terminal_and_a_safe_base(base: Path) -> None:
    terminal = Terminal(slowly(0.05, "scavenge", base))
    terminal.wait_for(lambda text: re.search("indexing|merged$", text, re.MULTILINE) is not None, "merging")
    os.write(terminal.descriptor, b"\x03")
    assert terminal.wait() == 130
    assert "Traceback" not in terminal.text
    assert terminal.text.count("nothing is lost, run it again to go on") == 1
    assert f"{base}: interrupted after" in terminal.text
    terminal.check_clean()
    check_all_there(base)


def test_a_terminal_that_disappears_ends_the_scavenge_safely(base: Path) -> None:
    terminal = Terminal(slowly(0.05, "scavenge", base))
    terminal.wait_for(lambda text: "copying" in text or "indexing" in text, "merging")
    os.close(terminal.descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 128 + signal.SIGHUP
    check_all_there(base)


def test_without_hangup_the_scavenge_outlives_its_terminal(base: Path) -> None:
    terminal = Terminal(["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *slowly(0.02, "scavenge", base)])
    terminal.wait_for(lambda text: "copying" in text or "indexing" in text, "merging")
    os.close(terminal.descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
    assert len(list(base.glob(".rear/inbox/*/*"))) == 0
    check_all_there(base)


def test_ctrl_z_gives_the_terminal_back_and_fg_goes_on(base: Path, tmp_path: Path) -> None:
    (tmp_path / "slowly.py").write_text(SLOWLY)
    terminal = Terminal(["bash", "--norc", "-i"], columns=200, PS1="$ ")
    os.write(terminal.descriptor, f"{sys.executable} {tmp_path}/slowly.py 0.1 scavenge {base}\n".encode())
    terminal.wait_for(lambda text: "FINAL ARCHIVE" in text, "an archive shown")
    os.write(terminal.descriptor, b"\x1a")
    terminal.wait_for(lambda text: "Stopped" in text, "stopped")
    assert "FINAL ARCHIVE" not in terminal.text
    assert terminal.text.startswith("before\n")
    assert not terminal.screen.cursor.hidden
    os.write(terminal.descriptor, b"fg\n")
    terminal.wait_for(lambda text: "FINAL ARCHIVE" in text, "drawn again")
    terminal.wait_for(lambda text: "  report " in text, "done")
    os.write(terminal.descriptor, b"exit\n")
    assert terminal.wait() == 0
    assert "merged   213 members" in terminal.text


@pytest.mark.parametrize(
    ("options", "environment"), [(["--plain"], {}), (["--plain"], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})]
)
def test_plain_lines_on_a_terminal(base: Path, options: list[str], environment: dict[str, str]) -> None:
    terminal = Terminal(rear_command("scavenge", *options, base), columns=200, **environment)
    assert terminal.wait() == 0
    assert b"\x1b[?" not in terminal.output, "nothing but colours"
    if environment.get("TERM") == "dumb":
        assert b"\x1b" not in terminal.output
    assert bool(re.search(rb"\x1b\[[\d;]*3\dm", terminal.output)) is (not environment)
    assert "runs/0/ar.zip: 71 members merged" in terminal.text
    assert "merged   213 members" in terminal.text


def test_names_are_shown_escaped_on_a_screen_made_smaller(tmp_path: Path) -> None:
    spool = tmp_path / "spool\x1b[31m"
    spool.mkdir()
    (tmp_path / "base").mkdir()
    for name in (b"new\nline", b"bell\x07", b"latin\xe9", b"clear\x1b[2J", "right\u202eleft".encode()):
        (spool / os.fsdecode(name)).write_bytes(b"odd")
    terminal = Terminal(
        slowly(0.1, "sweep", spool, "--into", "ar.zip", "--base", tmp_path / "base"),
        columns=300,
        lines=50,
        COLUMNS="270",
        LINES="40",
    )
    expected = (r"new\nline", r"latin\xe9", r"clear\x1b[2J", r"bell\x07")
    terminal.wait_for(lambda text: "FOUND" in text and all(name in text for name in expected), "findings shown")
    rows = terminal.text.splitlines()
    assert max(map(len, rows)) <= 270, "COLUMNS can make a screen narrower, LINES lower"
    assert not any(rows[40:])
    assert terminal.wait() == 1
    assert r"spool\x1b[31m" in terminal.text
    for raw in (b"\x07", b"\x1b[2J/", b"clear\x1b", b"\xe9", "\u202e".encode(), b"spool\x1b"):
        assert raw not in terminal.output


# ---- pipes


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_rear(*arguments, stdin=subprocess.DEVNULL, env=ENVIRONMENT, **options)


def test_the_summary_is_the_result_and_the_rest_goes_to_standard_error(base: Path) -> None:
    done = run("scavenge", base)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{base}: scavenged in ")
    assert "  merged   213 members" in done.stdout
    assert done.stderr.count(" merged, the archive has ") == 3
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "2>/dev/full", ">/dev/full", "| true"])
def test_closed_and_full_streams_cost_no_file(base: Path, redirection: str) -> None:
    command = ["sh", "-c", f'"$@" {redirection}', "sh", *rear_command("scavenge", base)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert not list(base.glob(".rear/inbox/*/*")), "all was merged"
    check_all_there(base)


def test_who_stops_reading_json_stops_the_scavenge_safely(base: Path) -> None:
    process = start(slowly(0.02, "scavenge", "--json", base), env=ENVIRONMENT, text=False)
    assert json.loads(process.stdout.readline())["kind"] == "schema"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 141
    check_all_there(base)


# ---- JSON


def documented() -> dict[str, dict[str, str]]:
    """Types of the fields of each kind, as docs/reference/json.md and docs/reference/problems.md tell them."""
    page = (ROOT / "docs/reference/json.md").read_text()
    kinds = {
        kind: dict(re.findall(r"`(\w+)`: ([a-z ]+)", fields))
        for kind, fields in re.findall(r"^\| `(\w+)` \| \w+ \| (.*) \|$", page.partition("## Events")[2], re.MULTILINE)
    }
    for kind, table in re.findall(r"^## ([a-z]+)\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL):
        kinds[kind] = dict(re.findall(r"^\| `(\w+)` \| ([a-z ]+) \|", table, re.MULTILINE))
    fields = (ROOT / "docs/reference/problems.md").read_text().partition("## Fields")[2].partition("## Codes")[0]
    kinds["problem"] = dict.fromkeys(re.findall(r"^\| `(\w+)` \|", fields, re.MULTILINE), "text or integer or null")
    return kinds


TYPES = {
    "text": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "null": type(None),
}  # fmt: skip


def check_objects(output: str, command: str) -> list[dict[str, Any]]:
    """Each object has exactly the fields that are documented, of the documented types."""
    kinds = documented()
    objects = [json.loads(line) for line in output.splitlines()]
    for found in objects:
        fields = {name: value for name, value in found.items() if name not in ("kind", "severity")}
        assert found["severity"] in ("info", "warning", "loss")
        assert fields.keys() == kinds[found["kind"]].keys() - {"severity"}, found["kind"]
        for name, value in fields.items():
            allowed = [TYPES[type_name] for type_name in kinds[found["kind"]][name].split(" or ")]
            assert any(isinstance(value, kind) for kind in allowed), (found["kind"], name, value)
    assert (objects[0]["kind"], objects[0]["version"], objects[0]["command"]) == ("schema", 1, command)
    assert (objects[-1]["kind"], objects[-1]["command"]) == ("summary", command)
    assert all(found["kind"] not in ("schema", "summary") for found in objects[1:-1])
    return objects


def test_json_of_a_scavenge_a_check_and_a_sweep_is_as_documented(base: Path, tmp_path: Path) -> None:
    pair = sorted(base.glob(".rear/inbox/*/*.zip"))[0]
    with open(pair, "r+b") as file:
        file.seek(1000)
        file.write(b"damaged" * 20)
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / os.fsdecode(b"latin\xe9")).write_text("odd")
    (spool / "a.txt").write_text("a")
    checked = check_objects(run("fsck", "-n", "--json", base).stdout, "fsck")
    assert checked[-1]["outcomes"]["would repair"] == 3
    scavenged = check_objects(run("scavenge", "--json", base).stdout, "scavenge")
    kinds = {found["kind"] for found in scavenged}
    assert {"advanced", "round_started", "claimed", "planned", "merged", "cleared", "lost", "finished"} <= kinds
    assert scavenged[-1]["members"] == sum(found["members"] for found in scavenged if found["kind"] == "merged")
    assert scavenged[-1]["needs_attention"]
    assert scavenged[-1]["found"] == Counter(found["kind"] for found in scavenged if found["severity"] != "info")
    swept = check_objects(run("sweep", spool, "--into", "ar.zip", "--base", base, "--json").stdout, "sweep")
    assert [found["kind"] for found in swept].count("collected") == 1
    assert json.dumps(swept).count("latin\\udce9") >= 1
    check_objects(run("fsck", "--json", base).stdout, "fsck")


def test_json_ends_with_a_summary_after_an_error_and_a_signal(base: Path, tmp_path: Path) -> None:
    done = run("scavenge", "--json", tmp_path / "none")
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    process = start(slowly(0.05, "scavenge", "--json", base), env=ENVIRONMENT)
    lines = list(read_until(process.stdout, "copying"))
    process.send_signal(signal.SIGTERM)
    rest, told = process.communicate(timeout=30)
    assert process.returncode == 143
    assert told == "rear: ended by SIGTERM; nothing is lost, run it again to go on\n"
    objects = check_objects("".join(lines) + rest, "scavenge")
    assert objects[-1]["status"] == "interrupted"
    check_all_there(base)


def read_until(stream: Any, words: str) -> Iterator[str]:
    for line in stream:
        yield line
        if words in line:
            return
