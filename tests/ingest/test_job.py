"""``rear run``: what a job prints and leaves, its exit status, signals, and what is left when somebody is killed."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from bases import check_archive, contents
from programs import rear_command, run_rear, wait_for

import rear
from rear.core.layout import Layout
from rear.index.index import Index
from rear.ingest.job import Job


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """The folder for temporary files."""
    (tmp_path / "local").mkdir()
    return tmp_path / "local"


def command(base: Path, *arguments: object, into: str = "ar.zip/jobs/7") -> list[str]:
    return rear_command("run", "--base", base, "--into", into, *arguments)


def run(base: Path, local: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"TMPDIR": str(local)}
    return subprocess.run(command(base, *arguments), capture_output=True, env=environment, timeout=60, **options)


def start(base: Path, local: Path, script: str, *options: str, **others: Any) -> subprocess.Popen[bytes]:
    """Start a job and wait until it has printed ``ready``."""
    process = subprocess.Popen(
        command(base, *options, "--", "sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(local)}, **others,
    )  # fmt: skip
    assert process.stdout.readline() == b"ready\n"
    return process


def members(base: Path) -> dict[str, bytes]:
    list(rear.scavenge(base))
    check_archive(base / "ar.zip")
    return {name.removeprefix("jobs/7/"): data for name, data in contents(base / "ar.zip")}


def test_what_a_job_prints_and_leaves(base: Path, local: Path) -> None:
    script = 'cat; echo trouble >&2; mkdir $REAR_OUTPUT/deep; echo 1 > $REAR_OUTPUT/deep/x; ln -s deep "$REAR_OUTPUT/l"'
    done = run(base, local, "--meta", "who=me", "--", "sh", "-c", script, input=b"from standard input\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"from standard input\n", b"trouble\n")
    assert list(local.iterdir()) == []
    found = members(base)
    told = json.loads(found.pop("run.json"))
    assert found == {
        "stdout": b"from standard input\n", "stderr": b"trouble\n", "output/deep/x": b"1\n", "output/l": b"deep",
    }  # fmt: skip
    assert (told["command"], told["exit_status"]) == (["sh", "-c", script], 0)
    assert told["started"] <= told["ended"]
    rows = Index.open(Layout(base), "ar.zip").rows()
    assert [row.metadata for row in rows] == [{"who": "me", "exit_status": "0"}] * 5


def test_a_job_that_leaves_nothing_and_is_quiet(base: Path, local: Path) -> None:
    done = run(base, local, "--quiet", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"")
    found = members(base)
    assert json.loads(found.pop("run.json"))["exit_status"] == 3
    assert found == {"stdout": b"out\n", "stderr": b"err\n"}


def test_an_output_folder_of_ones_own_is_copied(base: Path, local: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/before").write_bytes(b"0")
    done = run(base, local, "--output", tmp_path / "results", "sh", "-c", 'echo 1 > "$REAR_OUTPUT/a"')
    assert done.returncode == 0
    assert {name for name in members(base) if "output" in name} == {"output/before", "output/a"}
    assert sorted(os.listdir(tmp_path / "results")) == ["a", "before"]


def test_large_output_comes_whole_and_in_order(base: Path, local: Path) -> None:
    script = "import os\nfor i in range(300): os.write(1, b'%07d\\n' % i * 1000); os.write(2, b'e' * 5000)"
    done = run(base, local, sys.executable, "-c", script)
    expected = b"".join(b"%07d\n" % number * 1000 for number in range(300))
    assert done.stdout == expected
    found = members(base)
    assert found["stdout"] == expected
    assert found["stderr"] == b"e" * 1_500_000


@pytest.mark.parametrize(("program", "status"), [("no-such-program", 127), ("/etc/passwd", 126), ("/", 126)])
def test_what_cannot_be_started(base: Path, local: Path, program: str, status: int) -> None:
    done = run(base, local, program)
    assert done.returncode == status
    assert done.stderr.startswith(f"rear: {program}: ".encode())
    assert done.stderr.count(b"\n") == 1
    assert not base.exists()
    assert list(local.iterdir()) == []


@pytest.mark.parametrize(
    ("into", "message"), [("plain", b"no archive"), ("ar.zip/../x", b"'..'"), (".rear/a.zip/x", b".rear")]
)
def test_a_target_that_cannot_be_is_refused_before_the_job_runs(
    base: Path, local: Path, tmp_path: Path, into: str, message: bytes
) -> None:
    done = subprocess.run(command(base, "touch", tmp_path / "ran", into=into), capture_output=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_base_that_is_a_file_is_refused_before_the_job_runs(local: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for base in (tmp_path / "file", tmp_path / "file/base"):
        done = run(base, local, "touch", tmp_path / "ran")
        assert done.returncode == 3
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT]
)
def test_signals_reach_the_job(base: Path, local: Path, number: int) -> None:
    process = start(base, local, "sleep 100 & echo ready; wait")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    found = members(base)
    assert json.loads(found["run.json"])["exit_status"] == 128 + number
    assert found["stdout"] == b"ready\n"


def test_a_job_that_handles_a_signal_goes_on(base: Path, local: Path, tmp_path: Path) -> None:
    # Ends when it is told to: on a busy machine a second has passed before the signals come.
    wait = f"until test -e {tmp_path}/go; do sleep 0.05; done"
    process = start(base, local, f"trap 'echo checkpoint' USR1; trap '' TERM; echo ready; {wait}; exit 4")
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == b"checkpoint\n"
    (tmp_path / "go").touch()
    process.communicate(timeout=30)
    assert process.returncode == 4
    assert members(base)["stdout"] == b"ready\ncheckpoint\n"


def test_an_ignored_signal_stays_ignored(base: Path, local: Path) -> None:
    process = start(
        base, local, "echo ready; sleep 0.5; echo done", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, b"done\n")


def test_what_a_killed_job_had_printed_and_left_is_archived(base: Path, local: Path) -> None:
    process = start(base, local, "echo 1 > $REAR_OUTPUT/half; echo $$ >&2; echo ready; exec sleep 100")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL
    found = members(base)
    assert (found["stdout"], found["output/half"]) == (b"ready\n", b"1\n")
    assert json.loads(found["run.json"])["exit_status"] == 137


def test_when_rear_itself_is_killed_all_is_in_the_local_folder(base: Path, local: Path) -> None:
    process = start(base, local, "echo 1 > $REAR_OUTPUT/half; echo ready; sleep 0.2; echo more; echo and more")
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    [folder] = local.glob("rear-run-*")
    assert (folder / "stdout").read_bytes() == b"ready\n"
    assert json.loads((folder / "run.json").read_text())["into"] == "ar.zip/jobs/7"
    # What the documentation says to do then.
    run_rear("put", "-r", "--move", f"{folder}/.", "ar.zip/jobs/7", "--base", base, check=True)
    assert set(members(base)) == {"stdout", "stderr", "output/half", "run.json"}
    assert not folder.exists()


def test_a_process_left_in_the_background_does_not_hold_the_job_up(base: Path, local: Path) -> None:
    before = time.monotonic()
    done = run(base, local, "sh", "-c", "sleep 30 & echo ready")
    assert (done.returncode, done.stdout) == (0, b"ready\n")
    assert time.monotonic() - before < 20
    assert members(base)["stdout"] == b"ready\n"


def test_output_that_cannot_be_archived_is_kept_and_said(base: Path, local: Path) -> None:
    done = run(base, local, "sh", "-c", "echo 1 > $REAR_OUTPUT/file; mkfifo $REAR_OUTPUT/fifo; echo out")
    assert done.returncode == 7
    [folder] = local.glob("rear-run-*")
    assert b"a FIFO" in done.stderr
    assert str(folder).encode() in done.stderr
    assert os.listdir(folder / "output") == ["fifo"]
    assert set(members(base)) == {"stdout", "stderr", "output/file"}


def test_whoever_looks_on_may_leave(base: Path, local: Path) -> None:
    process = start(base, local, "echo ready; sleep 0.3; for i in $(seq 2000); do echo line $i; done")
    process.stdout.close()
    assert process.wait(30) == 0
    assert members(base)["stdout"].count(b"\n") == 2001


def test_on_a_terminal_ctrl_c_reaches_the_job_once_and_its_output_is_archived(base: Path, local: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
        arguments = command(base, "--", "sh", "-c", script)
        os.execve(arguments[0], arguments, os.environ | {"TMPDIR": str(local)})
    shown = b""
    while b"ready" not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    os.close(terminal)
    assert members(base)["stdout"] == b"ready\ncaught\n"


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_pausing_pauses_the_job(base: Path, local: Path) -> None:
    # Only builtins: a shell whose child is stopped between vfork and exec does not count as stopped.
    process = start(base, local, "echo ready; while [ ! -e $REAR_OUTPUT/end ]; do :; done")
    [child] = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: state_of(process.pid) in "T")
    wait_for(lambda: state_of(child) in "T")
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: state_of(child) in "RS")
    [output] = local.glob("rear-run-*/output")
    (output / "end").write_bytes(b"")
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert members(base)["output/end"] == b""


def test_a_base_that_is_gone_in_the_end_costs_nothing(base: Path, local: Path) -> None:
    done = run(base, local, "sh", "-c", f"echo out; echo 1 > $REAR_OUTPUT/file; echo > {base}")
    assert done.returncode == 3, done.stderr
    [folder] = local.glob("rear-run-*")
    assert str(folder).encode() in done.stderr
    assert (folder / "stdout").read_bytes() == b"out\n"
    assert (folder / "output/file").read_bytes() == b"1\n"
    assert json.loads((folder / "run.json").read_text())["exit_status"] == 0


def test_a_failed_job_keeps_its_status_when_archiving_fails_too(base: Path, local: Path) -> None:
    done = run(base, local, "sh", "-c", f"echo > {base}; exit 42")
    assert done.returncode == 42
    assert b"rear-run-" in done.stderr


def test_a_full_local_disk_at_the_end_keeps_nothing_from_the_base(
    base: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(local))
    job = Job(["sh", "-c", "echo printed"], base=str(base), folder="ar.zip/jobs/7", pass_through=False)
    real, calls = Job._describe, []

    def describe(self: Job, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run.json")
        real(self, *arguments)

    monkeypatch.setattr(Job, "_describe", describe)
    ended = job.run()
    assert ended.exit_status == 0
    assert [error.errno for error in ended.failures if isinstance(error, OSError)] == [errno.ENOSPC]
    found = members(base)
    assert found["stdout"] == b"printed\n"
    # What is not complete has no such member, and the folder is named.
    assert "run.json" not in found
    assert ended.kept is not None


def test_one_bad_output_costs_itself_alone(base: Path, local: Path) -> None:
    script = r"""cd $REAR_OUTPUT; mkfifo pipe; echo > "$(printf 'a\nb')"; echo > "$(printf 'caf\351')"; echo 1 > good"""
    ended = run(base, local, "--", "sh", "-c", script)
    assert ended.returncode != 0
    for name in (b"pipe", b"a\\nb", b"caf"):
        assert name in ended.stderr, ended.stderr
    assert b"Traceback" not in ended.stderr
    # Without run.json: it says that nothing is missing.
    assert members(base) == {"stdout": b"", "stderr": b"", "output/good": b"1\n"}
    (kept,) = local.glob("rear-run-*")
    assert len(os.listdir(kept / "output")) == 3


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("rmdir $REAR_OUTPUT; echo data > $REAR_OUTPUT", "is a regular file now"),
        ("rmdir $REAR_OUTPUT; ln -s /etc $REAR_OUTPUT", "is a symbolic link now"),
        ("rmdir $REAR_OUTPUT; mkfifo $REAR_OUTPUT", "is a FIFO now"),
        ("rmdir $REAR_OUTPUT", "the command removed its output folder"),
        ("cd $REAR_OUTPUT/..; mv output elsewhere; mkdir output", "still holds files that were not archived"),
        ("cd $REAR_OUTPUT/..; rm stdout; echo other > stdout", "stdout was replaced by the command"),
        ("cd $REAR_OUTPUT/..; rm stdout; ln -s /etc/passwd stdout", "stdout was replaced by the command"),
        ("rm -r ${REAR_OUTPUT%/output}", "the command removed its output folder"),
        ("mkdir -p $REAR_OUTPUT/base/.rear; touch $REAR_OUTPUT/base/x", "still holds files that were not archived"),
    ],
)
@pytest.mark.parametrize("is_own", [True, False])
def test_a_command_that_replaces_its_output(
    base: Path, local: Path, tmp_path: Path, script: str, told: str, is_own: bool
) -> None:
    options = [] if is_own else ["--output", tmp_path / "out"]
    if not is_own and ("/.." in script or "/base" in script or "%" in script):
        pytest.skip("that is about the local folder")
    done = run(base, local, *options, "--", "sh", "-c", f"echo printed; {script}")
    assert done.returncode == 7, done.stderr
    assert told in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    found = members(base) if base.exists() else {}
    assert "output/passwd" not in found
    assert not any(b"root:" in data for data in found.values())
    if "still holds" not in told:
        assert "run.json" not in found
    if "regular" in told:
        (output,) = [tmp_path / "out"] if not is_own else local.glob("rear-run-*/output")
        assert output.read_bytes() == b"data\n"


def test_the_folder_for_output_may_be_made_anew_and_named_by_a_link(base: Path, local: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    script = "rm -r $REAR_OUTPUT; mkdir $REAR_OUTPUT; echo 1 > $REAR_OUTPUT/x"
    assert run(base, local, "--output", tmp_path / "link", "--", "sh", "-c", script).returncode == 0
    assert run(base, local, "--", "sh", "-c", script, check=True).returncode == 0
    assert members(base)["output/x"] == b"1\n"
    assert (tmp_path / "out/x").exists()
    assert os.listdir(local) == []
