"""Settings: which source wins, what is refused, what it costs; by real workers and the real command."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bases import of_kind, put, write
from faults import needs_strace
from pages import between, quoted, rows, text_of
from programs import fresh, run_rear

import rear
from rear.core import config
from rear.core.config import SETTINGS, Config
from rear.core.layout import Layout
from rear.core.storage import LOCAL, Storage, StrPath
from rear.errors import ConfigError, UsageError
from rear.events import Refused, RolledOver, SetAside

DEFAULTS = {setting.name: setting.default for setting in SETTINGS}


def write_config(base: Path, text: str | bytes) -> Path:
    path = base / ".rear/config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_one(base: Path, **options: Any) -> rear.RearFs:
    with rear.rear_fs(base, **options) as fs:
        put(fs, "ar.zip/a", "x" * 5000)
    return fs


# --- which source wins --------------------------------------------------------------------------------------------


def test_an_argument_beats_a_variable_beats_the_file_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lease(**options: Any) -> float:
        return rear.rear_fs(tmp_path, **options)._worker.options.lease_seconds

    assert lease() == 60.0
    write_config(tmp_path, "[worker]\nlease_seconds = '5m'\n")
    assert lease() == 300.0
    monkeypatch.setenv("REAR_LEASE_SECONDS", "")
    assert lease() == 300.0
    monkeypatch.setenv("REAR_LEASE_SECONDS", "20s")
    assert lease() == 20.0
    assert lease(lease_seconds=7) == 7


def test_the_defaults_are_those_of_the_worker_and_the_scavenger() -> None:
    from rear.scavenger.options import ScavengeOptions
    from rear.worker.worker_options import WorkerOptions

    worker, scavenger = WorkerOptions(), ScavengeOptions()
    for setting in SETTINGS:
        owner: object = worker if setting.table == "worker" else scavenger
        if hasattr(owner, setting.name):
            assert getattr(owner, setting.name) == setting.default, setting.name
    # Whatever is a default is a value that may be written, too.
    for setting in SETTINGS:
        if setting.default is not None:
            assert setting.read(setting.default) == setting.default
            text = str(setting.default).lower()
            assert setting.read(text) == setting.default


def test_every_setting_of_the_file_reaches_the_worker(tmp_path: Path) -> None:
    write_config(
        tmp_path,
        "[worker]\nrotation_span = 20\nrotation_size = '5M'\ncompression = 'stored'\nsync = 'file'\n"
        "sync_interval = 0.5\nlease_seconds = 30\nspool_size = 0\n",
    )
    fs = write_one(tmp_path)
    options = fs._worker.options
    assert (options.rotation_span, options.rotation_size, options.sync) == (20.0, 5 << 20, "file")
    assert (options.sync_interval, options.lease_seconds, fs._files.spool_size) == (0.5, 30.0, 0)
    (journal,) = (tmp_path / ".rear/inbox").rglob("*.journal")
    assert '"method":0,' in journal.read_text()
    assert '"lease_seconds":30.0' in journal.read_text()


def test_scavengers_of_a_base_agree(tmp_path: Path) -> None:
    write_config(tmp_path, "[scavenger]\non_conflict = 'first'\nmax_members = 1\n")
    write_one(tmp_path)
    list(rear.scavenge(tmp_path))
    write(tmp_path, {"ar.zip/a": "other"})
    write(tmp_path, {"ar.zip/b": "more"})
    kinds = {type(event) for event in rear.scavenge(tmp_path)}
    assert RolledOver in kinds
    assert sorted(path.name for path in tmp_path.glob("*.zip")) != ["ar.zip"]
    write_one(tmp_path / "second")
    write_config(tmp_path / "second", "[scavenger]\non_conflict = 'first'\n")
    list(rear.scavenge(tmp_path / "second"))
    for command in (["scavenge"], ["fsck"]):
        write(tmp_path / "second", {"ar.zip/a": f"other, for {command[0]}"})
        done = run_rear(*command, tmp_path / "second")
        assert "a~1" not in done.stdout + done.stderr
        assert "lost+found" in done.stdout + done.stderr, command
    write(tmp_path / "second", {"ar.zip/a": "once more"})
    events = list(rear.scavenge(tmp_path / "second", on_conflict="rename"))
    assert not of_kind(events, SetAside, Refused)


def test_an_option_can_say_no_to_the_file(tmp_path: Path) -> None:
    write_config(tmp_path, "[scavenger]\nverify = true\n")
    found = Config(Layout(tmp_path))
    assert found.resolve("scavenger", {})["verify"] is True
    assert found.resolve("scavenger", {"verify": False})["verify"] is False
    assert run_rear("scavenge", "--no-verify", tmp_path).returncode == 0


# --- what is wrong ------------------------------------------------------------------------------------------------

BAD = [
    ("[worker]\n\nsync = 'flie'\n", "line 3: sync: 'flie' is none of interval, file"),
    ("[worker]\nlease_seconds = true\n", "line 2: lease_seconds: True is no duration"),
    ("[worker]\nlease_seconds = 0\n", "line 2: lease_seconds: 0 is no duration"),
    ("[worker]\nlease_seconds = nan\n", "line 2: lease_seconds: nan is no duration"),
    ("[worker]\nlease_seconds = inf\n", "line 2: lease_seconds: inf is no duration"),
    ("[worker]\nrotation_size = 1.5\n", "line 2: rotation_size: 1.5 is no size"),
    ("[worker]\nrotation_size = '5 apples'\n", "line 2: rotation_size: '5 apples' is no size"),
    ("[worker]\nspool_size = -1\n", "line 2: spool_size: -1 is no size"),
    ("[worker]\ncompression = ['zstd']\n", "line 2: compression: "),
    ("[worker]\nsync = {a = 1}\n", "line 2: sync: "),
    ("worker.sync = 3\n", "line 1: sync: 3 is none of"),
    ("worker = 'fast'\n", "worker has to be a table"),
    ("[worker\n", "it is no TOML: "),
    ("[worker]\nsync = 'file'\nsync = 'file'\n", "it is no TOML: "),
    (b"[worker]\n\xff\n", "line 2: it is not text in UTF-8"),
    ("a = " + "[" * 20_000, "it is no TOML: "),
    ("#" * 70_000, "longer than 65,536 bytes"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
def test_nonsense_is_refused_before_anything_is_written(text: str | bytes, message: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        rear.rear_fs(tmp_path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)
    assert os.listdir(tmp_path / ".rear") == ["config.toml"]


def test_a_bad_file_is_one_line_and_status_2(tmp_path: Path) -> None:
    path = write_config(tmp_path, "[scavenger]\nmax_members = 0\n")
    for command in ("scavenge", "config"):
        done = run_rear(command, tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"rear: {path}, line 2: max_members: 0 is no number, 1 or more\n"
    # What does not need it is not stopped by it.
    assert run_rear("status", tmp_path).returncode == 0
    assert rear.rear_fs(tmp_path)._worker.options.sync == "interval"


def test_a_variable_that_makes_no_sense_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REAR_ROTATION_SIZE", "big")
    with pytest.raises(UsageError, match=r"REAR_ROTATION_SIZE: rotation_size: 'big' is no size"):
        rear.rear_fs(tmp_path)


def test_an_unknown_key_stops_no_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_config(
        tmp_path, "[worker]\nsync = 'file'\nshiny = 5\n[future]\nx = 1\n['\\u001b[31m']\n[scavenger]\nsync = 1\n"
    )
    with caplog.at_level(logging.WARNING, "rear"):
        assert rear.rear_fs(tmp_path)._worker.options.sync == "file"
    said = [record.getMessage() for record in caplog.records]
    assert f"{path}, line 3: worker.shiny is no setting; it is ignored" in said
    assert f"{path}, line 4: future is no setting; it is ignored" in said
    assert any("scavenger.sync" in line for line in said)
    assert len(said) == 4
    assert "\x1b" not in "".join(said)
    done = run_rear("config", tmp_path)
    assert done.returncode == 0
    assert f"rear: {path}, line 3: worker.shiny is no setting; it is ignored" in done.stderr.splitlines()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path, "")
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="a link, and below a base none is followed") as refused:
        rear.rear_fs(tmp_path)
    assert refused.value.filename == str(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        rear.rear_fs(tmp_path)


def test_fsck_knows_the_file(tmp_path: Path) -> None:
    write_one(tmp_path)
    list(rear.scavenge(tmp_path))
    write_config(tmp_path, "[worker]\nsync = 'file'\n")
    done = run_rear("fsck", "--json", tmp_path)
    assert done.returncode == 0
    assert "config.toml" not in done.stdout


# --- what it costs ------------------------------------------------------------------------------------------------


def test_a_worker_pays_one_open_and_no_toml(tmp_path: Path) -> None:
    needs_strace()
    log = tmp_path / "log"
    (tmp_path / "base" / ".rear").mkdir(parents=True)
    code = (
        "import sys, rear\nwith rear.rear_fs(sys.argv[1]):\n"
        "    for number in range(10):\n"
        "        with rear.rear_open(f'ar.zip/{number}', 'w') as f: f.write('x')"
    )
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=%file"]
    subprocess.run([*command, sys.executable, "-c", code, str(tmp_path / "base")], check=True, timeout=60)
    lines = [line for line in log.read_text().splitlines() if "config.toml" in line]
    assert len(lines) == 1
    assert "ENOENT" in lines[0]
    loaded = fresh(f"import rear; rear.rear_fs({str(tmp_path / 'base')!r}); import sys; print(*sys.modules)").split()
    assert "tomllib" not in loaded


# --- showing it ---------------------------------------------------------------------------------------------------


def test_rear_config_shows_each_value_and_its_source(tmp_path: Path) -> None:
    path = write_config(tmp_path, "[worker]\nlease_seconds = 30\n\n[scavenger]\nmax_size = '2G'\n")
    done = run_rear("config", tmp_path, env=os.environ | {"REAR_JOBS": "3"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = {words[0]: words[1:] for line in done.stdout.splitlines() if len(words := line.split(None, 2)) == 3}
    assert lines["lease_seconds"] == ["30.0", f"{path}, line 2"]
    assert lines["max_size"] == [str(2 << 30), f"{path}, line 5"]
    assert lines["jobs"] == ["3", "REAR_JOBS"]
    assert lines["sync"] == ['"interval"', "default"]
    found = json.loads(run_rear("config", "--json", tmp_path, env=os.environ | {"REAR_JOBS": "3"}).stdout)
    assert (found["version"], found["kind"], found["file"]) == (1, "config", str(path))
    by_name = {setting["name"]: setting for setting in found["settings"]}
    assert by_name["jobs"] == {
        "table": "scavenger", "name": "jobs", "value": 3, "source": "REAR_JOBS", "default": 1, "variable": "REAR_JOBS"
    }  # fmt: skip
    assert run_rear("config", tmp_path / "none").returncode == 3


def test_the_page_lists_all_settings() -> None:
    section = between(text_of("docs/how-to/configure.md"), "<!-- settings:", "<!-- end of settings -->")
    documented = [(quoted(row[0])[0], quoted(row[1])[0], quoted(row[2])[0], row[3].strip("`")) for row in rows(section)]
    assert documented == [
        (
            setting.table,
            setting.name,
            setting.variable,
            "none" if setting.default is None else json.dumps(setting.default),
        )
        for setting in SETTINGS
    ]
    for row, setting in zip(rows(section), SETTINGS, strict=True):
        assert row[4].partition(": ")[0] == setting.meaning
        for choice in quoted(row[4]):
            assert setting.read(choice) == choice
    example = text_of("docs/how-to/configure.md").partition("```toml\n")[2].partition("```")[0]
    assert config._parse(example, "x").keys() == {"worker", "scavenger"}
    assert LOCAL is not None


@pytest.mark.parametrize("times", [1, 2])
def test_a_server_that_is_busy_for_a_moment_stops_no_worker(base: Path, times: int) -> None:
    (base / ".rear").mkdir(parents=True)
    (base / ".rear" / "config.toml").write_text('[worker]\nsync = "file"\n')
    failures = [errno.EIO] * times

    class Busy(Storage):
        def open(self, path: StrPath, **options: Any) -> int:
            if failures and str(path).endswith("config.toml"):
                number = failures.pop()
                raise OSError(number, os.strerror(number), path)
            return super().open(path, **options)

    if times == 1:
        rear.rear_fs(base, storage=Busy()).close()
    else:
        with pytest.raises(OSError, match="Input/output error"):
            rear.rear_fs(base, storage=Busy())
