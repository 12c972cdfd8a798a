"""Commands where little is as it should be: standard streams, environment, current folder, and Ctrl-C at any moment.

Never a traceback, and never silence with status 0 about a result that did not get out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bases import write
from checkout import ROOT
from programs import rear_command, run_code
from typer.main import get_command
from zips import write_zip

import rear
from rear.cli.app import app

NAMES = {"ar.zip/größe/測定.txt": "naïve\n", "ar.zip/a.txt": "hello\n"}

#: What prints its result, by name; ``{}`` is the folder of `place`.
RESULTS = {
    "help": "--help", "help of a command": "scavenge --help", "version": "--version", "ls": "ls {}/base",
    "ls of an archive": "ls {}/base/ar.zip", "ls as JSON": "ls --json {}/base/ar.zip", "find": "find {}/base",
    "exact names": "find -0 {}/base", "cat": "cat {}/base/ar.zip/a.txt", "index": "index {}/base/ar.zip",
    "index as CSV": "index --csv {}/base/ar.zip", "status": "status {}/base", "status as JSON": "status --json {}/base",
    "config": "config {}/base", "doctor": "doctor {}/base", "events": "fsck --json {}/base",
    "completion": "--show-completion bash",
}  # fmt: skip
#: What does something, and sums up at most.
WORK = {
    "scavenge": "scavenge {}/base", "sweep": "sweep {}/spool --into new.zip --base {}/base", "fsck": "fsck {}/base",
    "adopt": "adopt {}/other.zip {}/base --into adopted.zip", "put": "put {}/spool/a {}/base/ar.zip/put",
    "get": "get -C {}/out {}/base/ar.zip", "run": "run --base {}/base --into ar.zip/job -- echo done",
    "scavenge by several": "scavenge --jobs 2 {}/base", "an archive": "fsck --deep {}/base/ar.zip",
}  # fmt: skip
#: Without their argument these mean the current folder.
HERE = ("scavenge", "status", "fsck", "config", "doctor")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edges")
    write(folder / "base", NAMES)
    list(rear.scavenge(folder / "base"))
    (folder / "spool").mkdir()
    (folder / "spool/a").write_text("swept")
    write_zip(folder / "other.zip", {"x.txt": b"adopted"})
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "place")


def arguments(text: str, place: Path) -> list[str]:
    return [part.replace("{}", str(place)) for part in text.split()]


def run(
    command: list[str], redirection: str = "", *, before: str = "", **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a command behind some shell, with variables set, or unset where they are ``None``."""
    # Typer looks for a shell among the processes above, and there may be none.
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    variables = {name: value for name, value in (os.environ | environment).items() if value is not None}
    done = subprocess.run(
        ["sh", "-c", f'{before} exec "$@" {redirection}', "sh", *command],
        env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="surrogateescape", timeout=60,
        check=False,
    )  # fmt: skip
    for words in ("Traceback", "Exception ignored"):
        assert words not in done.stderr, done.stderr
    return done


def test_every_command_is_tried() -> None:
    tried = {text.split()[0] for text in (*RESULTS.values(), *WORK.values())}
    assert set(get_command(app).commands) - tried == {"demo"}  # type: ignore[attr-defined]


# ---- standard streams


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_that_does_not_get_out_is_an_error(name: str, place: Path) -> None:
    for redirection, reason in ((">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
        done = run(rear_command(*arguments(RESULTS[name], place)), redirection)
        assert done.returncode == (8 if name == "events" else 3), (redirection, done.stderr)
        assert f"rear: standard output: {reason}" in done.stderr
    piped = run(
        ["bash", "-c", '"$@" | true; exit "${PIPESTATUS[0]}"', "bash", *rear_command(*arguments(RESULTS[name], place))]
    )
    assert (piped.returncode, piped.stderr) in ((141, ""), (0, ""))


@pytest.mark.parametrize("name", WORK)
def test_work_is_done_whoever_listens(name: str, place: Path) -> None:
    command = rear_command(*arguments(WORK[name], place))
    expected = run(command)
    assert expected.returncode == 0, expected.stderr
    for redirection in (">/dev/full", "2>/dev/full", "<&- >&- 2>&-"):
        shutil.rmtree(place / "out", ignore_errors=True)
        done = run(command, redirection)
        assert done.returncode == 0, (redirection, done.stderr)
        if redirection.startswith(">") and expected.stdout and name != "run":
            assert "the summary did not get out" in done.stderr


@pytest.mark.parametrize("name", RESULTS)
def test_results_without_standard_error_or_input(name: str, place: Path) -> None:
    for redirection in ("2>/dev/full <&-",) if name in ("doctor", "config") else ("2>/dev/full", "2>&- <&-"):
        done = run(rear_command(*arguments(RESULTS[name], place)), redirection)
        assert (done.returncode, bool(done.stdout)) == (0, True), redirection


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&- >&-"])
def test_the_status_stays_where_the_reason_cannot_be_told(redirection: str, place: Path) -> None:
    for wanted, text in (
        (2, "ls --nonsense"), (2, "nonsense"), (2, "cat {}/base/ar.zip"), (3, "ls {}/gone"),
        (6, "cat {}/base/ar.zip/b"), (8, "fsck {}/gone"), (7, "put {}/gone {}/base/ar.zip/x"),
        (2, "scavenge --every never {}/base"),
    ):  # fmt: skip
        assert run(rear_command(*arguments(text, place)), redirection).returncode == wanted, text


def test_closed_standard_input_is_no_empty_file(place: Path) -> None:
    for text in ("cat -", "put - {}/base/ar.zip/x"):
        done = run(rear_command(*arguments(text, place)), "<&-")
        assert done.returncode == 3
        assert "standard input: Bad file descriptor" in done.stderr
    assert not list((place / "base/.rear/inbox").glob("*/*"))
    assert run(rear_command("scavenge", "--every", "1h", "--until-eof", place / "base"), "<&-").returncode == 0


def test_a_repeated_scavenge_ends_with_its_reader(place: Path) -> None:
    command = rear_command("scavenge", "--json", "--every", "0.1s", place / "base")
    done = run(["bash", "-c", '"$@" | head -1 >/dev/null; exit "${PIPESTATUS[0]}"', "bash", *command])
    assert (done.returncode, done.stderr) == (141, "")


# ---- environment

ODD = [
    {"COLUMNS": "0", "LINES": "0"}, {"COLUMNS": "-5", "LINES": "-1"}, {"COLUMNS": "abc", "LINES": "9" * 30},
    {"COLUMNS": "1", "LINES": "1"}, {"COLUMNS": "٣"}, {"COLUMNS": "9" * 5000},
    {"TERM": None, "HOME": None, "PATH": None, "LANG": None}, {"TERM": "nonsense", "HOME": "/proc/nowhere"},
    {"TMPDIR": "/nowhere"}, {"TMPDIR": "/dev/null", "TEMP": "", "TMP": "\n"}, {"PYTHONOPTIMIZE": "2"},
    {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "ascii:strict"}, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONUNBUFFERED": "1"},
    {"PYTHONWARNINGS": "error"}, {"TZ": "No/Where"},
    {"LS_COLORS": "=;:*=:"}, {"XDG_CACHE_HOME": "/nowhere", "NO_COLOR": "1", "FORCE_COLOR": "1"},
]  # fmt: skip


@pytest.mark.parametrize(
    "odd", ODD, ids=lambda odd: ",".join(f"{name}={str(value)[:9]!r}" for name, value in odd.items())
)
def test_an_odd_environment(odd: dict[str, str | None], place: Path) -> None:
    for name in ("ls of an archive", "status"):
        done = run([shutil.which(sys.executable) or "", *rear_command(*arguments(RESULTS[name], place))[1:]], **odd)
        assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr
    assert run(rear_command(*arguments(WORK["scavenge"], place)), **odd).returncode == 0


@pytest.mark.parametrize("name", [*RESULTS, *WORK])
def test_nothing_is_as_it_should_be(name: str, place: Path) -> None:
    text = RESULTS.get(name) or WORK[name]
    done = run(
        rear_command(*arguments(text, place)), COLUMNS="0", LINES="-1", TERM=None, HOME=None, TMPDIR="/nowhere",
        PYTHONOPTIMIZE="2", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", LANG=None,
        PYTHONIOENCODING="ascii:strict",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_isolated(place: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from rear.__main__ import main; main()"
    for text in (RESULTS["ls"], WORK["scavenge"]):
        assert run([sys.executable, "-I", "-c", code, *arguments(text, place)]).returncode == 0


# ---- the current folder

REMOVED = "mkdir gone && cd gone && rmdir ../gone &&"


@pytest.mark.parametrize("name", [*RESULTS, *WORK])
def test_the_current_folder_was_removed(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = RESULTS.get(name) or WORK[name]
    done = run(rear_command(*arguments(text, place)), before=REMOVED)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", HERE)
def test_the_current_folder_is_meant_and_was_removed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(rear_command(command), before=REMOVED)
    assert done.returncode == (8 if command == "fsck" else 3)
    assert done.stderr.startswith("rear: the current folder"), done.stderr
    assert done.stderr.count("\n") == 1


TRAPS = ("random", "typing", "sqlite3", "socket", "pickle", "struct", "threading", "tempfile", "enum", "json", "typer")


@pytest.mark.parametrize("name", ["scavenge by several", "run", "put", "an archive", "doctor", "status"])
def test_nothing_is_imported_from_the_current_folder(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the installed command does; ``python -m`` itself has looked there before anything of rear was asked."""
    monkeypatch.chdir(tmp_path)
    for trap in (*TRAPS, "rear"):
        (tmp_path / f"{trap}.py").write_text(f"open({str(tmp_path / 'caught')!r}, 'a').write(__name__ + '\\n')\n")
    script = tmp_path / "bin/rear"
    script.parent.mkdir()
    script.write_text("import sys\nfrom rear.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n")
    text = RESULTS.get(name) or WORK[name]
    done = run([sys.executable, str(script), *arguments(text, place)])
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "caught").exists(), (tmp_path / "caught").read_text()
    (tmp_path / "rear.py").unlink()
    shutil.rmtree(place / "out", ignore_errors=True)
    done = run(rear_command(*arguments(text, place)), PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "caught").exists(), (tmp_path / "caught").read_text()


# ---- Ctrl-C

#: Interrupts itself at the import of that number, from the first one on that takes time.
INTERRUPTED = """
import os, signal, sys
left, how, has_begun = int(sys.argv.pop(1)), sys.argv.pop(1), False

def count(event, arguments):
    global left, has_begun
    if event == "import":
        has_begun = has_begun or arguments[0] == "rear.cli"
        left -= has_begun
        if not left:
            os.kill(os.getpid(), getattr(signal, how))

if sys.argv[1] == "rear-scavenger":
    del sys.argv[1]
    sys.addaudithook(count)
    from rear.__main__ import scavenger_main
    scavenger_main()
else:
    sys.addaudithook(count)
    from rear.__main__ import main
    main()
"""


def moments() -> Iterator[int]:
    yield from (1, 2, 5, 20, 50, 90, 150, 300)


@pytest.mark.parametrize("text", ["ls {}/base/ar.zip", "--help", "--version", "rear-scavenger -d {}/base"])
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_a_signal_while_it_is_imported(text: str, how: str, place: Path) -> None:
    ends = set()
    for moment in moments():
        done = run_code(INTERRUPTED, moment, how, *arguments(text, place))
        assert "Traceback" not in done.stderr, (moment, done.stderr)
        assert len(done.stderr.splitlines()) <= 1
        ends.add(done.returncode)
    assert ends & {130, 143, -15}
    assert ends <= {0, 130, 143, -15}


def test_little_is_imported_before_ctrl_c_is_expected() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\n"
        "class Stop:\n    def find_spec(self, name, *_):\n"
        "        if name == 'rear.cli': print(sorted(set(sys.modules) - before)); sys.exit()\n"
        "sys.meta_path.insert(0, Stop())\nimport rear.__main__\n"
        "rear.__main__.main()"
    )
    assert run_code(code).stdout == "['__future__', 'rear', 'rear.__main__']\n"


def test_a_program_that_imports_the_entry_in_a_thread() -> None:
    code = (
        "import signal, threading\nthread = threading.Thread(target=__import__, args=('rear.__main__',))\n"
        "thread.start(); thread.join()\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    done = run_code(code)
    assert (done.returncode, done.stderr) == (0, "")
