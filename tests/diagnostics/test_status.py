"""``rear status``: what it says of real workers and scavenges, and that it only looks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import between, quoted, rows, text_of
from programs import rear_command, run_code, run_rear, start_code, start_rear

import rear
from rear.cli.app import app
from rear.core.layout import Layout
from rear.core.liveness import this_process
from rear.core.records import Append, Beat, Close, Open, Pair
from rear.core.storage import LOCAL
from rear.diagnostics import status as status_module
from rear.diagnostics.backlog import Signs, glance_at
from rear.diagnostics.openmetrics import as_text, families, write_file
from rear.diagnostics.status import ATTENTION_CODES, BaseStatus, Observer, look_at
from rear.errors import BaseError
from rear.journal.codec import encode_record

WRITE = """
import sys, time, rear
base, name, count, end = sys.argv[1:]
with rear.rear_fs(base):
    for number in range(int(count)):
        with rear.rear_open(f"ar.zip/{name}/{number}", "w") as file:
            file.write("x" * 100)
    print("written", flush=True)
    if end == "wait":
        time.sleep(60)
"""


@contextlib.contextmanager
def worker(base: Path, name: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """A worker that has written and goes on living until the block ends."""
    process = start_code(WRITE, base, name, count, "wait", stderr=None)
    try:
        assert process.stdout.readline() == "written\n"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def write_pair(
    base: Path, number: int, *, host: str = "elsewhere", members: int = 3, closed: bool = True, beats: int = 0
) -> Path:
    """Write the journal of a pair of another host, with an empty temp archive."""
    layout, pair = Layout(base), Pair(host, f"{number + 1}-ab-00000000-{number:016x}", 0)
    folder = layout.inbox_folder(pair)
    folder.mkdir(parents=True, exist_ok=True)
    opened = Open(1, host, pair.worker, 0, 7, number + 1, 5, "boot", "pid:[1]", 0, 60.0, time.time_ns() - 10**11)
    lines = [encode_record(opened)]
    lines += [
        encode_record(Append(k + 1, None, 0, 5, 100 * k, 100, "ar.zip", f"m{k}", 0, 1, 5, 5, 0, 0o100644))
        for k in range(members)
    ]
    lines += [encode_record(Beat(k + 1)) for k in range(beats)]
    lines += [encode_record(Close("exit", members, 100 * members + 50))] * closed
    path = layout.journal(pair)
    path.write_bytes(b"".join(lines))
    layout.temp_archive(pair).write_bytes(b"")
    return path


def everything(base: Path) -> dict[str, tuple[int, int, int]]:
    """All that a look could change: names, sizes, times of change, of files and folders."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns, path.lstat().st_ctime_ns)
        for path in [base, *base.rglob("*")]
    }


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a merged archive, a crashed worker, an ended one."""
    base = tmp_path_factory.mktemp("status") / "base"
    run_code(WRITE, base, "merged", 4, "end", check=True)
    list(rear.scavenge(base))
    run_code(WRITE, base, "ended", 5, "end", check=True)
    with worker(base, "crashed", 7):
        pass
    return base


def test_it_tells_live_crashed_and_ended_workers_apart(used: Path) -> None:
    with worker(used, "live", 3):
        seen = look_at(used)
    here = this_process().host
    assert [(host.host, host.live, host.crashed, host.unconfirmed, host.stale) for host in seen.hosts] == [
        (here, 1, 1, 0, 0)
    ]
    assert {state: pile.members for state, pile in seen.backlog.items() if pile.temp_archives} == {
        "live": 3, "crashed": 7, "closed": 5
    }  # fmt: skip
    assert (seen.total.temp_archives, seen.total.members) == (3, 15)
    on_disk = {path.stat().st_size for path in (used / ".rear/inbox").rglob("*.zip")}
    assert seen.backlog["crashed"].size_bytes in on_disk
    assert seen.backlog["closed"].size_bytes in on_disk
    assert seen.oldest_ns is not None
    assert 0 <= seen.taken_ns - seen.oldest_ns < 600e9
    assert [(summary.totals["kind"], summary.totals["members"]) for summary in seen.scavenges] == [("finished", 4)]
    assert seen.leader is None
    assert [attention.code for attention in seen.attention] == ["crashed_workers"]
    # The one that was live until now is cleaned away, for the tests to come.
    list(rear.scavenge(used, dry_run=True))


def test_it_changes_nothing_and_needs_no_right_to_write(used: Path) -> None:
    before = everything(used)
    assert run_rear("status", used).returncode == 1
    assert run_rear("status", used, "--json").returncode == 1
    assert everything(used) == before


def test_what_a_base_that_is_missing_or_new_says(tmp_path: Path) -> None:
    missing = run_rear("status", tmp_path / "none")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert missing.stderr == f"rear: {tmp_path / 'none'} does not exist: name the base that the workers write to\n"
    (tmp_path / "file").touch()
    assert run_rear("status", tmp_path / "file").returncode == 3
    new = run_rear("status", tmp_path)
    assert new.returncode == 0
    assert "none has written here yet" in new.stdout
    with pytest.raises(BaseError):
        look_at(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/usr/bin/setpriv"), reason="root reads everything")
def test_a_base_that_may_not_be_read_is_one_clear_line(tmp_path: Path) -> None:
    base = tmp_path / "base"
    write_pair(base, 1)
    tmp_path.chmod(0o755)
    (base / ".rear/inbox").chmod(0)
    drop = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    reachable = subprocess.run([*drop, "ls", str(base)], capture_output=True, check=False).returncode == 0
    if not reachable:
        pytest.skip("the folder of the tests is closed to other users")
    done = subprocess.run([*drop, *rear_command("status", base)], capture_output=True, text=True, timeout=60)
    (base / ".rear/inbox").chmod(0o755)
    if "No module named" in done.stderr or "can't open" in done.stderr:
        pytest.skip("the program is closed to other users")
    assert done.returncode == 3
    assert done.stderr.splitlines() == [f"rear: {base}/.rear/inbox: Permission denied; check its owner and mode"]


def test_workers_of_other_hosts_need_a_second_look(tmp_path: Path) -> None:
    path = write_pair(tmp_path, 1, closed=False, beats=1)
    observer = Observer(tmp_path)
    first = observer.look()
    assert [(host.host, host.live, host.unconfirmed) for host in first.hosts] == [("elsewhere", 0, 1)]
    assert first.attention == ()
    with open(path, "ab") as file:
        file.write(encode_record(Beat(2)))
    assert [(host.live, host.unconfirmed) for host in observer.look().hosts] == [(1, 0)]


def test_what_a_scavenge_of_this_host_noted_makes_a_silent_worker_stale(tmp_path: Path) -> None:
    write_pair(tmp_path, 1, closed=False, beats=1)
    list(rear.scavenge(tmp_path))
    assert look_at(tmp_path).hosts[0].unconfirmed == 1
    note = Layout(tmp_path).observation("workers")
    noted = json.loads(note.read_text())
    noted["seen"] = {name: [beat, seconds + 61, since] for name, (beat, seconds, since) in noted["seen"].items()}
    note.write_text(json.dumps(noted))
    seen = look_at(tmp_path)
    assert (seen.hosts[0].stale, seen.backlog["stale"].members) == (1, 3)
    assert [attention.code for attention in seen.attention] == ["crashed_workers"]


def test_a_leader_that_was_killed_and_its_intent_need_attention(tmp_path: Path) -> None:
    base = tmp_path / "base"
    run_code(WRITE, base, "a", 5, "end", check=True)
    code = (
        "import os, signal, sys, rear\nfrom rear.core.storage import Storage\n"
        "class Dies(Storage):\n"
        "    def copy_range(self, *arguments, **options):\n"
        "        print('copying', flush=True); signal.pause()\n"
        "list(rear.scavenge(sys.argv[1], storage=Dies()))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(base)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "copying\n"
            seen = look_at(base)
            assert (seen.leader.pid, seen.leader.state) == (process.pid, "live")
            assert seen.leader.since_ns is not None
            assert (seen.intents, seen.attention) == (("ar.zip",), ())
            assert (seen.backlog["claimed"].members, seen.backlog["closed"].members) == (5, 0)
            shown = run_rear("status", base)
            assert shown.returncode == 0
            assert f"process {process.pid} on {this_process().host}, since 2" in shown.stdout
        finally:
            process.kill()
    seen = look_at(base)
    assert seen.leader.state == "crashed"
    assert [attention.code for attention in seen.attention] == ["leader_gone", "intents_left"]
    list(rear.scavenge(base))
    seen = look_at(base)
    assert (seen.leader, seen.intents, seen.attention, seen.total.members) == (None, (), (), 0)


def test_files_that_are_no_pairs_and_lost_and_found_need_attention(tmp_path: Path) -> None:
    write_pair(tmp_path, 1)
    inbox = tmp_path / ".rear/inbox"
    (inbox / "elsewhere/notes\x1b[31m.txt").write_text("mine")
    write_pair(tmp_path, 2).unlink()
    write_pair(tmp_path, 3).write_bytes(encode_record(Open(99, "elsewhere", "x", 0, 7, 1, 5, "b", "p", 0, 60.0, 1)))
    kept = tmp_path / ".rear/lost+found/2026-01-01"
    kept.mkdir(parents=True)
    (kept / "a.part").write_bytes(b"x" * 1000)
    (kept / "a.json").write_text("{}")
    seen = look_at(tmp_path)
    assert seen.unusable == 3
    assert [attention.code for attention in seen.attention] == ["unusable_files", "lost_and_found"]
    assert seen.lost_and_found == (1, 1002, True)
    done = run_rear("status", tmp_path)
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    assert "notes\\x1b[31m.txt" in done.stdout


def test_members_of_long_journals_are_counted_from_their_ends(tmp_path: Path) -> None:
    for number, (members, beats, closed) in enumerate(
        [(5000, 0, False), (5000, 900, False), (5000, 0, True), (0, 3, False)]
    ):
        glance = glance_at(write_pair(tmp_path, number, members=members, beats=beats, closed=closed), storage=LOCAL)
        assert glance.opened is not None
        assert glance.members == members
        assert glance.size_bytes == (100 * members + 50 * closed if members else 0)


def test_a_torn_or_damaged_end_of_a_journal_does_not_stop_the_count(tmp_path: Path) -> None:
    path = write_pair(tmp_path, 1, members=10, closed=False)
    whole = path.read_bytes()
    for cut in range(len(whole) - 400, len(whole)):
        path.write_bytes(whole[:cut])
        assert glance_at(path, storage=LOCAL).members in range(6, 11)
    path.write_bytes(whole + b"\0" * 5000)
    assert glance_at(path, storage=LOCAL).members == 10
    path.write_bytes(b"\xff" * 100_000)
    assert glance_at(path, storage=LOCAL)[:4] == (None, None, 0, 0)


def test_ten_thousand_temp_archives_take_little_time(tmp_path: Path) -> None:
    for number in range(2000):
        write_pair(tmp_path, number, host=f"node{number % 100}", members=20, closed=number % 2 == 0)
    begun = time.process_time()
    seen = look_at(tmp_path)
    used = time.process_time() - begun
    assert (seen.total.temp_archives, seen.total.members, len(seen.hosts)) == (2000, 40_000, 100)
    # A fifth of the number, ten times what it takes.
    assert used < 5
    done = run_rear("status", tmp_path)
    assert len(done.stdout.splitlines()) < 30
    assert "… and 85 more hosts" in done.stdout


def test_reports_with_many_findings_are_read_from_their_beginning(tmp_path: Path) -> None:
    write_pair(tmp_path, 1)
    reports = tmp_path / ".rear/reports"
    reports.mkdir()
    report = {
        "version": 1, "leader": "node7-1-abc", "started_ns": 5, "finished_ns": 6,
        "summary": {"kind": "finished", "members": 3, "refused": 2, "text": '\n "archives"'}, "archives": ["ar.zip"],
        "findings": [{"kind": "refused"}] * 50_000,
    }  # fmt: skip
    (reports / "20260101T000000-node7-1-abc.json").write_text(json.dumps(report, indent=1))
    (reports / "20260102T000000-node7-1-abc.json").write_text('{"version": 1')
    seen = look_at(tmp_path)
    assert [summary.totals["members"] for summary in seen.scavenges] == [3]
    assert [attention.code for attention in seen.attention] == ["refused"]


# --- JSON and metrics ---------------------------------------------------------------------------------------------


def test_the_json_object_is_the_documented_one(used: Path) -> None:
    done = run_rear("status", used, "--json")
    found = json.loads(done.stdout)
    section = between(text_of("docs/how-to/watch.md"), "<!-- status:", "<!-- end of status -->")
    documented = {name: row[2] for row in rows(section) for name in quoted(row[0])}
    assert set(documented) == set(found)
    assert (found["version"], found["kind"]) == (status_module.JSON_VERSION, "status")
    for name in ("scavenges", "hosts", "attention"):
        assert found[name], name
        assert set(found[name][0]) <= {*quoted(next(row[2] for row in rows(section) if f"`{name}`" in row[0]))}
    for name in ("space", "lost_and_found", "graveyard", "total"):
        meaning = documented[name] + documented["backlog"]
        assert all(f"`{key}`" in meaning for key in found[name]), name
    assert set(found["backlog"]) == set(status_module.BACKLOG_STATES)
    table = between(text_of("docs/how-to/watch.md"), "## What needs attention", "A base that no worker")
    assert [quoted(row[0])[0] for row in rows(table)] == list(ATTENTION_CODES)


SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (-?[0-9]+(?:\.[0-9]+)?)')


def parse_metrics(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Read the OpenMetrics text format by its rules for gauges, and refuse what they refuse."""
    assert text.endswith("# EOF\n")
    families: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    described: dict[str, set[str]] = {}
    current = ""
    for line in text.removesuffix("# EOF\n").splitlines():
        if line.startswith("#"):
            _, word, name, rest = line.split(" ", 3)
            assert word in ("TYPE", "HELP", "UNIT")
            if name != current:
                # All lines of one family stand together.
                assert name not in families
                current, families[name], described[name] = name, {}, set()
            assert not families[name], "metadata comes before the samples"
            assert word not in described[name]
            described[name].add(word)
            assert word != "TYPE" or rest == "gauge"
            assert word != "UNIT" or name.endswith(f"_{rest}")
            continue
        found = SAMPLE.fullmatch(line)
        assert found is not None, line
        assert found[1] == current
        labels = tuple(re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', found[2]))
        assert len(dict(labels)) == len(labels)
        assert labels not in families[current], "the same series twice"
        families[current][labels] = float(found[3])
    assert all(families.values()), "a family without samples"
    assert all({"TYPE", "HELP"} <= words for words in described.values())
    return families


def test_metrics_are_written_at_once_for_all_to_read(used: Path, tmp_path: Path) -> None:
    target = tmp_path / "rear.prom"
    target.write_text("old")
    done = run_rear("status", used, "--openmetrics", target, preexec_fn=lambda: os.umask(0o077))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["rear.prom"]
    found = parse_metrics(target.read_text())
    base = ("base", str(used))
    seen = look_at(used)
    assert found["rear_backlog_members"][base, ("state", "crashed")] == seen.backlog["crashed"].members > 0
    assert found["rear_last_scavenge_members"][(base,)] == 4
    assert found["rear_attention"][base, ("reason", "crashed_workers")] == 1
    assert found["rear_attention"][base, ("reason", "no_space")] == 0
    section = between(text_of("docs/how-to/watch.md"), "<!-- metrics:", "<!-- end of metrics -->")
    documented = {name for row in rows(section) for name in quoted(row[0])}
    assert documented == {family.name for family in families(seen)}


def test_metrics_hold_whatever_a_path_or_a_host_is_called(tmp_path: Path) -> None:
    base = tmp_path / 'a"b\\c\nd\udcff'
    write_pair(base, 1)
    found = parse_metrics(as_text(look_at(base)))
    assert [dict(labels)["state"] for labels in found["rear_backlog_members"]] == list(status_module.BACKLOG_STATES)


def test_a_metrics_file_that_cannot_be_written_leaves_nothing_behind(used: Path, tmp_path: Path) -> None:
    class Full(type(LOCAL)):  # type: ignore[misc]
        def sync(self, descriptor: int) -> None:
            raise OSError(28, "No space left on device")

    target = tmp_path / "rear.prom"
    target.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        write_file(target, "new", storage=Full())
    assert os.listdir(tmp_path) == ["rear.prom"]
    assert target.read_text() == "old"
    assert run_rear("status", used, "--openmetrics", tmp_path).returncode == 2
    assert run_rear("status", used, "--openmetrics", tmp_path / "none/rear.prom").returncode == 3


def test_metrics_go_where_a_link_leads_and_into_a_fifo(tmp_path: Path) -> None:
    """A device or a FIFO is written to, and never replaced by a file."""
    target, link, fifo = tmp_path / "rear.prom", tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(target)
    os.mkfifo(fifo)
    write_file(link, "metrics")
    assert link.is_symlink()
    assert target.read_text() == "metrics"
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_file(fifo, "metrics")
    assert os.read(reading, 100) == b"metrics"
    os.close(reading)
    assert fifo.is_fifo()


# --- watching -----------------------------------------------------------------------------------------------------


def test_watching_into_a_pipe_prints_again_and_again_until_it_is_asked_to_stop(used: Path) -> None:
    with start_rear("status", "--watch", "--every", "0.1s", "--json", used) as process:
        first, second = json.loads(process.stdout.readline()), json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert second["taken_ns"] > first["taken_ns"]
    assert (process.returncode, errors) == (1, "")


def test_options_that_contradict_each_other(used: Path) -> None:
    assert run_rear("status", used, "--json", "--openmetrics", "x").returncode == 2
    assert run_rear("status", used, "--every", "1s").returncode == 2


def test_watching_on_a_terminal_leaves_it_clean_and_follows_its_size(used: Path) -> None:
    pyte = pytest.importorskip("pyte")
    import fcntl
    import pty
    import struct
    import termios

    screen = pyte.Screen(100, 30)
    stream = pyte.ByteStream(screen)
    # Given in full: readline, once imported, sets LINES and COLUMNS where os.environ does not see them.
    variables = {name: text for name, text in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    variables["TERM"] = "xterm-256color"
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, rear_command("status", "--watch", "--every", "0.3s", used), variables)

    def resize(lines: int, columns: int) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        screen.resize(lines, columns)

    raw = bytearray()

    def feed(until: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while until not in "\n".join(screen.display):
            assert time.monotonic() < deadline, "\n".join(screen.display)
            if select.select([terminal], [], [], 1)[0]:
                data = os.read(terminal, 65536)
                raw.extend(data)
                stream.feed(data)

    resize(30, 100)
    try:
        feed("attention")
        resize(20, 60)
        screen.reset()
        feed("attention")
        assert max(len(line.rstrip()) for line in screen.display) <= 60
        os.kill(child, signal.SIGINT)
        with contextlib.suppress(OSError):
            while data := os.read(terminal, 65536):
                raw.extend(data)
        _, ended = os.waitpid(child, 0)
    finally:
        os.close(terminal)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended) == 1
    # On the other screen, and back; the cursor is shown again; and the last page stands below the prompt.
    assert raw.count(b"\x1b[?1049h") == raw.count(b"\x1b[?1049l") == 1
    assert raw.rindex(b"\x1b[?25h") > raw.rindex(b"\x1b[?25l")
    assert b"attention" in raw[raw.rindex(b"\x1b[?1049l") :]
    assert b"Traceback" not in raw


def test_every_field_of_a_status_is_a_value(used: Path) -> None:
    seen = look_at(used)
    assert dataclasses.is_dataclass(BaseStatus)
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.unusable = 3  # type: ignore[misc]
    assert json.loads(json.dumps(seen.as_json()))["base"] == str(used)
    assert app is not None
    assert Signs(Layout(used), "workers", LOCAL).state("nobody", "1/1", 60.0) == "unconfirmed"
