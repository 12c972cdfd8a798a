"""The doctor, on real file systems: each probe where all is well, and where what it looks for is missing."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from faultfs import mounted, write_rules
from programs import run_code, run_rear, start_rear, wait_for

from rear.core.liveness import this_process, worker_name
from rear.core.text import fine_seconds_text
from rear.diagnostics import doctor, race_probes, visibility_probes
from rear.diagnostics.doctor import PROBES, examine
from rear.diagnostics.findings import JSON_VERSION, Finding, Judge
from rear.diagnostics.mounts import mount_of
from rear.diagnostics.place_probes import probe_filesystem
from rear.diagnostics.probe_context import ProbeContext
from rear.diagnostics.probe_process import METHODS, NoAnswerError, ProbeProcess
from rear.errors import BaseError, UsageError

FAST_SECONDS = 2.0


def findings(base: Path, **options: Any) -> dict[str, Finding]:
    found = {finding.probe: finding for finding in examine(base, visibility_limit_seconds=FAST_SECONDS, **options)}
    assert [name for name in os.listdir(base) if "doctor" in name] == []
    return found


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Run these probes alone."""
    monkeypatch.setattr(doctor, "PROBES", {name: PROBES[name] for name in names})


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finding]:
    """Run one probe and return what it found."""

    def run(base: Path, probe: str, **options: Any) -> Finding:
        only(monkeypatch, probe)
        found = findings(base, **options)
        found.pop("peer", None)
        assert list(found) == [probe]
        return found[probe]

    return run


def mount(*arguments: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


@contextmanager
def mount_at(point: Path, *arguments: str) -> Iterator[Path]:
    point.mkdir(parents=True, exist_ok=True)
    mount(*arguments, str(point))
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


@contextmanager
def image(folder: Path, maker: str, *options: str, size_bytes: int = 12 << 20) -> Iterator[Path]:
    """A small file system of its own in a file."""
    command = shutil.which(maker) or shutil.which(maker, path="/usr/sbin:/sbin")
    if command is None:
        pytest.skip(f"{maker} is not installed")
    path = folder / "image"
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    subprocess.run([command, *options, str(path)], capture_output=True, check=True)
    with mount_at(folder / "small", "-o", "loop", str(path)) as point:
        yield point


run_doctor = functools.partial(run_rear, "doctor", stdin=subprocess.DEVNULL, timeout=100)


# All is well.


def test_a_local_file_system_has_all_that_rear_relies_on(tmp_path: Path) -> None:
    if getattr(mount_of(tmp_path), "kind", "") not in ("ext4", "xfs", "btrfs"):
        pytest.skip("the tests' folder is on another kind of file system")
    found = findings(tmp_path)
    unchecked = {"visibility_claim", *(f"visibility_{method}" for method in METHODS)}
    assert set(found) == {*PROBES, *unchecked} - {"visibility"}
    assert {name for name, finding in found.items() if finding.status == "not checked"} == unchecked
    assert [finding for finding in found.values() if finding.status == "broken"] == []
    assert list(tmp_path.iterdir()) == []
    assert found["exclusive_create"].value == found["rename"].value == 0
    assert 0 < found["fsync"].value < 10  # type: ignore[operator]


def test_a_base_is_tried_below_its_own_folder_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / ".rear").mkdir()
    (tmp_path / "ar.zip").write_bytes(b"not touched")
    seen: set[str] = set()
    for finding in examine(tmp_path, progress=lambda probe: seen.update(os.listdir(tmp_path / ".rear"))):
        # The temporary folder itself may be in memory, which is said of it.
        assert finding.status != "broken" or finding.value in ("tmpfs", "ramfs")
    assert [name[:13] for name in seen] == [".rear-doctor-"]
    assert sorted(os.listdir(tmp_path)) == [".rear", "ar.zip"]
    assert list((tmp_path / ".rear").iterdir()) == []
    assert (tmp_path / "ar.zip").read_bytes() == b"not touched"


def test_progress_names_each_probe_before_its_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "filesystem", "name_case")
    said: list[str] = []
    for finding in examine(tmp_path, progress=said.append):
        said += [f"found {finding.probe}"]
    assert said == ["filesystem", "found filesystem", "name_case", "found name_case"]


# What the kernel says of the mount.


@pytest.mark.parametrize(
    ("kind", "options", "status", "words"),
    [
        ("ext4", "rw,relatime", "ok", ""),
        ("tmpfs", "rw,size=1g", "broken", "promise 1"),
        ("nfs4", "rw,vers=4.2,hard,local_lock=none", "ok", ""),
        ("nfs", "rw,vers=3,hard,nolock,local_lock=all", "degraded", "Locks hold on one host only"),
        ("nfs4", "rw,soft,local_lock=none", "degraded", "soft: "),
        ("nfs4", "rw,softerr,local_lock=none", "degraded", "soft: "),
        ("nfs4", "rw,noac,hard", "degraded", "noac: "),
        ("nfs4", "rw,acdirmax=600,hard", "degraded", "up to 600 s"),
        ("nfs4", "rw,acdirmax=30,hard", "ok", ""),
        ("fuse.sshfs", "rw", "degraded", "FUSE"),
        ("vfat", "rw", "degraded", "4 GiB"),
        ("overlay", "rw", "degraded", "container"),
    ],
)
def test_type_and_options_of_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, status: str, words: str
) -> None:
    # Lines as the kernel writes them; the mounts themselves cannot all be had on one machine.
    text = f"22 1 0:21 / / rw - ext4 /dev/a rw\n30 22 0:30 / {tmp_path} rw,relatime - {kind} server:/x {options}\n"
    monkeypatch.setattr("rear.diagnostics.place_probes.mount_of", lambda path: mount_of(path, text))
    found = probe_filesystem(ProbeContext(tmp_path, tmp_path, doctor.LOCAL))
    assert (found.status, found.value) == (status, kind)
    assert words in found.effect


def test_the_mount_of_a_path_is_the_longest_and_last_one(tmp_path: Path) -> None:
    spaced = tmp_path / "two words"
    (spaced / "in").mkdir(parents=True)
    escaped = str(spaced).replace(" ", "\\040")
    text = (
        "1 0 0:1 / / rw shared:1 master:2 - ext4 /dev/a rw\n"
        f"2 1 0:2 / {escaped} ro - nfs server:/x rw\n"
        f"3 1 0:3 /sub {escaped} rw,noexec - nfs4 server:/y rw,vers=4.2\n"
        f"4 1 0:4 / {escaped}/i rw - tmpfs none rw\n"
        "damaged line\n"
    )
    found = mount_of(spaced / "in", text)
    assert found is not None
    assert found == (3, "/sub", str(spaced), "nfs4", "server:/y", {"rw": "", "noexec": "", "vers": "4.2"})
    assert mount_of("/", text)[0] == 1  # type: ignore[index]
    assert mount_of("/", "") is None


def test_where_mounts_are_not_told_the_type_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rear.diagnostics.mounts._MOUNTINFO", str(tmp_path / "none"))
    assert probe_filesystem(ProbeContext(tmp_path, tmp_path, doctor.LOCAL)).status == "not checked"


def test_memory_keeps_no_promise_over_a_loss_of_power(tmp_path: Path, one: Callable[..., Finding]) -> None:
    with mount_at(tmp_path / "memory", "-t", "tmpfs", "none") as base:
        found = one(base, "filesystem")
    assert (found.status, found.value) == ("broken", "tmpfs")


# Space.


def test_little_space_and_few_inodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "free_space", "free_inodes")
    with image(tmp_path, "mkfs.ext4", "-q", "-m0", "-N", "64") as base:
        found = findings(base)
        assert found["free_space"].status == found["free_inodes"].status == "broken"
        assert 0 < found["free_space"].value < 12 << 20  # type: ignore[operator]
        assert 10 < found["free_inodes"].value < 64  # type: ignore[operator]
    with mount_at(tmp_path / "medium", "-t", "tmpfs", "-o", "size=1g,nr_inodes=5000", "none") as base:
        found = findings(base)
        assert found["free_space"].status == found["free_inodes"].status == "degraded"


def test_a_file_system_that_counts_no_inodes(tmp_path: Path, one: Callable[..., Finding]) -> None:
    with mount_at(tmp_path / "uncounted", "-t", "tmpfs", "-o", "nr_inodes=0", "none") as base:
        assert one(base, "free_inodes").status == "not checked"


def fill(base: Path, what: str) -> None:
    with open(base / "filler", "wb", buffering=0) as file:
        for number in range(1 << 20):
            if what == "bytes":
                file.write(bytes(4096))
            else:
                (base / str(number)).touch()


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_full_disk_ends_with_one_line(tmp_path: Path, what: str) -> None:
    with image(tmp_path, "mkfs.ext4", "-q", "-m0", "-N", "64") as base:
        with pytest.raises(OSError, match="No space"):
            fill(base, what)
        done = run_doctor(base)
        left = [name for name in os.listdir(base) if "doctor" in name]
    assert (done.returncode, left) == (3, [])
    assert done.stderr.count("\n") == 1
    assert ("no inode is left" if what == "inodes" else "No space left on device") in done.stderr


def test_a_read_only_mount_ends_with_one_line(tmp_path: Path) -> None:
    with mount_at(tmp_path / "ro", "-t", "tmpfs", "-o", "ro", "none") as base:
        done = run_doctor(base)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "Read-only file system" in done.stderr


# Names.


def test_rear_on_another_file_system_than_its_base(tmp_path: Path, one: Callable[..., Finding]) -> None:
    with mount_at(tmp_path / "base" / ".rear", "-t", "tmpfs", "none"):
        found = one(tmp_path / "base", "one_filesystem")
    assert found.status == "broken"
    assert "EXDEV" in found.seen


@pytest.mark.parametrize(
    ("probe", "properties", "seen"),
    [
        ("name_length", {"name_bytes": 143}, "143 bytes"),
        ("names", {"refused_characters": ":*"}, "refused: 'colon:' 'star*'"),
        ("name_case", {"case_insensitive": True}, "differ in case alone are one"),
        ("append_and_read_back", {"wrong_reads": True}, "another process reads other bytes"),
        ("append_and_read_back", {"garbage_in_holes": True}, "a hole does not read as zeros"),
        ("copy_file_range", {"wrong_reads": True}, "other bytes"),
    ],
)
def test_what_a_file_system_can_do_wrong(
    tmp_path: Path, one: Callable[..., Finding], probe: str, properties: dict[str, Any], seen: str
) -> None:
    (tmp_path / "root").mkdir()
    with mounted(tmp_path / "root", tmp_path / "mount") as _:
        assert one(tmp_path / "mount", probe).status == "ok"
        write_rules(tmp_path / "mount.json", **properties)
        found = one(tmp_path / "mount", probe)
    assert found.status == "broken"
    assert seen in found.seen


def test_names_that_fat_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "filesystem", "names", "name_case")
    with image(tmp_path, "mkfs.vfat") as base:
        found = findings(base)
    assert [found[name].status for name in ("filesystem", "names", "name_case")] == ["degraded", "broken", "broken"]


# Bytes.


@pytest.mark.parametrize(
    ("injected", "status", "seen"),
    [
        ("error=EXDEV", "degraded", "refused: EXDEV"),
        ("error=ENOSYS", "degraded", "refused: ENOSYS"),
        ("retval=0", "degraded", "stops after 0 of"),
        ("error=EIO", "broken", "refused: EIO"),
        ("retval=3158073", "broken", "other bytes"),
    ],
)
def test_copy_file_range_that_fails_or_lies(tmp_path: Path, injected: str, status: str, seen: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    inject = ["-e", "trace=copy_file_range", "-e", f"inject=copy_file_range:{injected}"]
    code = (
        "import sys, json; from rear.diagnostics import doctor; name = 'copy_file_range'\n"
        "doctor.PROBES = {name: doctor.PROBES[name]}\n"
        "print(*(json.dumps(finding.as_json()) for finding in doctor.examine(sys.argv[1])))"
    )
    command = ["strace", "-qq", "-o", "/dev/null", *inject, sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "PTRACE" in done.stderr:
        pytest.skip("this system lets no one trace")
    found = json.loads(done.stdout)
    assert (found["status"], found["probe"]) == (status, "copy_file_range"), done.stderr
    assert seen in found["seen"]


def test_a_reflink_is_never_more_than_welcome(tmp_path: Path, one: Callable[..., Finding]) -> None:
    # A clone with other bytes than its source cannot be had here: FUSE has no FICLONE, and no kernel does it wrong.
    assert one(tmp_path, "reflink").status == "ok"
    with image(tmp_path, "mkfs.xfs", "-q", "-m", "reflink=1", size_bytes=320 << 20) as base:
        found = one(base, "reflink")
    assert (found.status, found.seen) == ("ok", "files can share their bytes; rear does not need it")


# Stable storage and clocks.


@pytest.mark.parametrize(
    ("probe", "rule", "status", "seen"),
    [
        ("fsync", {"operation": "fsync", "delay_seconds": 0.11}, "degraded", "median 11"),
        ("fsync", {"operation": "fsync", "delay_seconds": 1.1, "first": 3, "last": 3}, "degraded", "worst 1.1 s"),
        ("fsync", {"operation": "fsync", "error": "EIO"}, "broken", "EIO"),
        ("directory_fsync", {"operation": "fsyncdir", "error": "EINVAL"}, "broken", "refused: EINVAL"),
        ("directory_fsync", {"operation": "fsyncdir", "error": "EIO"}, "broken", "EIO"),
        ("append_and_read_back", {"operation": "read", "error": "EIO"}, "broken", "EIO"),
        ("exclusive_create", {"operation": "create", "path": "created-5", "error": "EIO"}, "broken", "EIO"),
        ("exclusive_create", {"operation": "create", "path": "created-50", "error": "EEXIST"}, "degraded", "in 1 of"),
    ],
)
def test_slow_and_failing_calls(
    tmp_path: Path, one: Callable[..., Finding], probe: str, rule: dict[str, Any], status: str, seen: str
) -> None:
    (tmp_path / "root").mkdir()
    with mounted(tmp_path / "root", tmp_path / "mount", rule):
        found = one(tmp_path / "mount", probe)
    assert found.status == status
    assert seen in found.seen


def test_a_disk_that_fills_up_meanwhile_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    rule = {"operation": "write", "path": "/fsync/", "first": 3, "error": "ENOSPC"}
    with mounted(tmp_path / "root", tmp_path / "mount", rule):
        done = run_doctor(tmp_path / "mount")
    assert done.returncode == 3
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path / "root") == []


def test_a_server_with_another_clock(tmp_path: Path, one: Callable[..., Finding]) -> None:
    (tmp_path / "root").mkdir()
    with mounted(tmp_path / "root", tmp_path / "mount", clock_offset_seconds=3600):
        found = one(tmp_path / "mount", "clock")
    assert found.status == "degraded"
    assert found.value == pytest.approx(3600, abs=1)
    assert "No decision" in found.effect


# Locks.


@pytest.mark.parametrize(
    ("rules", "properties", "status", "seen"),
    [
        ([], {"locks": "granted to all"}, "degraded", "gets a lock that another one holds"),
        ([], {"locks": "never released"}, "broken", "still held"),
        ([{"operation": "lock", "error": "ENOLCK"}], {}, "degraded", "there are none (ENOLCK)"),
        ([{"operation": "lock", "error": "EIO"}], {}, "broken", "refused: EIO"),
        ([{"operation": "lock", "delay_seconds": 3, "first": 2, "last": 2}], {}, "broken", "no answer within 1 s"),
    ],
)
def test_locks_that_do_not_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rules: list[dict[str, Any]],
    properties: dict[str, Any],
    status: str,
    seen: str,
) -> None:
    only(monkeypatch, "locks", "rename")
    monkeypatch.setattr(race_probes, "LOCK_SECONDS", 1.0)
    monkeypatch.setattr(race_probes, "DEAD_LOCK_SECONDS", 0.3)
    (tmp_path / "root").mkdir()
    with mounted(tmp_path / "root", tmp_path / "mount", *rules, **properties):
        found = findings(tmp_path / "mount")
    assert found["locks"].status == status
    assert seen in found["locks"].seen
    assert found["rename"].status == "ok"


# Two mounts.


def test_a_bind_mount_as_peer(tmp_path: Path) -> None:
    (tmp_path / "a" / "base").mkdir(parents=True)
    with mount_at(tmp_path / "b", "--bind", str(tmp_path / "a")):
        found = findings(tmp_path / "a" / "base", peer=tmp_path / "b" / "base")
        assert found["peer"].status == "not checked"
        assert "same device number" in found["peer"].seen
        assert {found[f"visibility_{method}"].status for method in (*METHODS, "claim")} == {"ok"}
        for name in ("exclusive_create", "rename", "rename_over", "locks", "append_and_read_back"):
            assert found[name].status == "ok", found[name]
        assert "on two mounts" in found["rename"].seen


def test_the_mount_point_alone_will_do_as_peer(tmp_path: Path, one: Callable[..., Finding]) -> None:
    with mount_at(tmp_path / "a", "-t", "tmpfs", "none"), mount_at(tmp_path / "b", "--bind", str(tmp_path / "a")):
        base = tmp_path / "a" / "deep" / "base"
        base.mkdir(parents=True)
        assert one(base, "locks", peer=tmp_path / "b").status == "ok"


def test_peers_that_are_none(tmp_path: Path) -> None:
    base, other = tmp_path / "base", tmp_path / "other"
    base.mkdir()
    other.mkdir()
    with pytest.raises(UsageError, match="same mount"):
        list(examine(base, peer=other))
    with pytest.raises(UsageError, match="is not a directory"):
        list(examine(base, peer=tmp_path / "none"))
    with mount_at(tmp_path / "foreign", "-t", "tmpfs", "none") as foreign:
        begun = time.monotonic()
        with pytest.raises(UsageError, match="does not show"):
            list(examine(base, peer=foreign))
        assert time.monotonic() - begun < 5
        done = run_doctor(base, "--peer", foreign)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert list(base.iterdir()) == []


@contextmanager
def two_mounts(
    tmp_path: Path, *, far_options: tuple[str, ...] = (), far: dict[str, Any] | None = None, **properties: Any
) -> Iterator[tuple[Path, Path]]:
    """One folder through two mounts, each with a cache and locks of its own."""
    (tmp_path / "root").mkdir()
    near, other = tmp_path / "near", tmp_path / "far"
    with (
        mounted(tmp_path / "root", near, **properties),
        mounted(tmp_path / "root", other, options=far_options, **(properties if far is None else far)),
    ):
        yield near, other


def test_two_mounts_that_lock_apart(tmp_path: Path) -> None:
    with two_mounts(tmp_path) as (near, far):
        found = findings(near, peer=far)
    assert found["peer"].status == "ok"
    assert (found["locks"].status, found["exclusive_create"].status, found["rename"].status) == ("degraded", "ok", "ok")
    assert "on another mount gets a lock" in found["locks"].seen


def test_an_exclusive_create_that_is_none(tmp_path: Path, one: Callable[..., Finding]) -> None:
    with two_mounts(tmp_path, exclusive_create=False) as (near, far):
        # On a busy machine two processes may miss each other in all races of one probe.
        found = next(found for _ in range(5) if (found := one(near, "exclusive_create", peer=far)).status == "broken")
    assert 0 < found.value <= race_probes.RACES  # type: ignore[operator]


def test_a_rename_that_several_win(tmp_path: Path, one: Callable[..., Finding]) -> None:
    with two_mounts(tmp_path, rename="keeps") as (near, far):
        found = one(near, "rename", peer=far)
    assert (found.status, found.value) == ("broken", race_probes.RACES)


def test_a_rename_that_was_done_and_reported_as_failed(tmp_path: Path, one: Callable[..., Finding]) -> None:
    (tmp_path / "root").mkdir()
    with mounted(tmp_path / "root", tmp_path / "mount", rename="denies"):
        found = one(tmp_path / "mount", "rename")
    assert (found.status, found.value) == ("degraded", race_probes.RACES)


def test_a_rename_over_a_file_in_two_steps(tmp_path: Path, one: Callable[..., Finding]) -> None:
    with two_mounts(tmp_path, rename="copies") as (near, far):
        found = one(near, "rename_over", peer=far)
    assert found.status == "broken"
    assert " 0 times there was no file" not in found.seen


@pytest.mark.parametrize(
    ("options", "far", "late", "status"),
    [
        # What the kernel remembers by itself. Its listings are true, as on NFS.
        (("attr_timeout=1", "entry_timeout=1", "negative_timeout=1", "direct_io="), {}, "stat", "degraded"),
        ((), {"stale_listing_seconds": 1}, "listdir", "degraded"),
        ((), {"stale_listing_seconds": 60}, "listdir", "broken"),
        ((), {"stale_size_seconds": 1}, "open", "degraded"),
        ((), {"stale_size_seconds": 1}, "listed", "broken"),
    ],
)
def test_a_mount_that_shows_what_was(
    tmp_path: Path,
    one: Callable[..., Finding],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    far: dict[str, Any],
    late: str,
    status: str,
) -> None:
    only(monkeypatch, "visibility")
    with two_mounts(tmp_path, far_options=options, far=far) as (near, other):
        found = findings(near, peer=other)
    finding = found[f"visibility_{late}"]
    assert finding.status == status, found
    assert 0.5 < finding.value <= FAST_SECONDS  # type: ignore[operator]
    if late != "listdir":
        assert found["visibility_listdir"].status == "ok"


def test_a_file_that_is_short_for_who_takes_it(tmp_path: Path, one: Callable[..., Finding]) -> None:
    with two_mounts(tmp_path, far={"stale_size_seconds": 60}) as (near, far):
        found = one(near, "visibility_claim", peer=far)
    assert (found.status, found.value) == ("broken", visibility_probes.CLAIMS)


# How it ends.


def test_a_base_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BaseError, match="does not exist"):
        examine(tmp_path / "none")
    with pytest.raises(BaseError, match="is not a directory"):
        examine(tmp_path / "file")
    assert run_doctor(tmp_path / "none").returncode == 3


def test_a_base_that_may_not_be_written_to() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    code = (
        # Who it becomes may not read the interpreter's modules: what is needed has to be loaded before.
        "import os, sys; import rear.cli.app; from rear.cli import main\n"
        "from rear.diagnostics.doctor import this_process\n"
        "this_process()\n"
        "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)\n"
        "sys.argv[1:1] = ['doctor', '--json']; main()"
    )
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        done = run_code(code, base)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("\n") == 1
    assert "Permission denied; check its owner and mode" in done.stderr


def test_closing_the_iterator_removes_the_folder(tmp_path: Path) -> None:
    with closing(examine(tmp_path)) as found:
        next(found)
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


def start_and_wait_for(base: Path, probe: str) -> subprocess.Popen[str]:
    process = start_rear("doctor", "--json", base, start_new_session=True)
    for line in process.stdout:
        if json.loads(line).get("probe") == probe:
            return process
    raise AssertionError("it ended before")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, status: int) -> None:
    # The race of renames over a file lasts a second.
    process = start_and_wait_for(tmp_path, "rename")
    assert len(os.listdir(tmp_path)) == 1
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors.count("\n") == (number == signal.SIGINT)
    assert os.listdir(tmp_path) == []
    assert second_processes(tmp_path) == []


def second_processes(base: Path) -> list[str]:
    """Processes that have a file open below a folder."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        found += [pid for link in links if link.startswith(f"{base}/")]
    return found


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_what_a_killed_doctor_leaves_the_next_one_removes(tmp_path: Path) -> None:
    process = start_and_wait_for(tmp_path, "rename")
    seconds = children(process.pid)
    assert len(seconds) == 4
    process.kill()
    process.communicate(timeout=30)
    wait_for(lambda: all(map(is_gone, seconds)))
    (left,) = os.listdir(tmp_path)
    (tmp_path / left / "rename" / "link").symlink_to(tmp_path.parent)
    found = findings(tmp_path)
    assert (found["leftovers"].status, found["leftovers"].value) == ("ok", 1)
    assert os.listdir(tmp_path) == []
    assert tmp_path.parent.is_dir()


def test_what_is_not_known_to_be_left_over_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "clock")
    here = this_process()
    names = {
        "running": f".rear-doctor-{worker_name(here, '00')}.{here.host}",
        "elsewhere": f".rear-doctor-{worker_name(here, '00')}.other-host",
        "forged": ".rear-doctor-notes",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    found = {finding.probe: finding for finding in examine(tmp_path)}
    assert sorted(os.listdir(tmp_path)) == sorted(names.values())
    assert (found["leftovers"].status, found["leftovers"].value) == ("degraded", 2)
    assert names["elsewhere"] in found["leftovers"].seen
    assert names["running"] not in found["leftovers"].seen


# The command.


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    done = run_doctor(tmp_path, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["version"] for line in lines} == {JSON_VERSION}
    *found, end = lines
    assert {line["kind"] for line in found} == {"finding"}
    assert all(list(line)[2:] == ["probe", "status", "value", "unit", "seen", "effect"] for line in found)
    assert end["kind"] == "finished"
    counted = {status: sum(line["status"] == status for line in found) for status in ("ok", "degraded", "broken")}
    assert {status: end[status] for status in counted} == counted
    assert end["not_checked"] == len(METHODS) + 1
    assert done.returncode == (1 if end["broken"] else 0)
    assert done.stderr == ""


def test_plain_lines_in_a_pipe_and_status_1_for_a_broken_promise(tmp_path: Path) -> None:
    with mount_at(tmp_path / "memory", "-t", "tmpfs", "none") as base:
        done = run_doctor(base)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert lines[0].startswith("broken       filesystem            tmpfs, mounted on ")
    assert lines[-1].endswith("a promise of rear does not hold here: see what is broken")
    assert "\x1b" not in done.stdout


def test_a_forged_name_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / ".rear-doctor-\x1b[2J\n").mkdir()
    done = run_doctor(tmp_path)
    assert "\\x1b[2J\\n" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("columns", [40, 80])
def test_on_a_terminal_no_line_is_wider_than_it(tmp_path: Path, columns: int) -> None:
    import pty

    reader, writer = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"}
    streams = {"stdin": writer, "stdout": writer, "stderr": writer}
    process = start_rear("doctor", tmp_path, **streams, env=environment, start_new_session=True)
    os.close(writer)
    shown = b""
    try:
        while data := os.read(reader, 65536):
            shown += data
    except OSError:
        pass  # what Linux says at the end of a terminal
    finally:
        os.close(reader)
    assert process.wait(30) == (1 if b"broken" in shown else 0), shown.decode()
    import re

    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    lines = [line for part in plain.split("\n") for line in part.split("\r")]
    assert any("exclusive_create" in line for line in lines)
    assert max(len(line.rstrip()) for line in lines) <= columns


# Parts.


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.000012, "12 µs"), (-0.0021, "-2.1 ms"), (0.25, "250 ms"), (27.31, "27.3 s"), (3600.0, "3,600.0 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert fine_seconds_text(seconds) == text


def test_findings_are_values() -> None:
    assert Judge("a").ok("b") == Judge("a").ok("b")
    with pytest.raises(AttributeError):
        Judge("a").ok("b").seen = "c"  # type: ignore[misc]


def test_a_second_process_that_dies_or_hangs_is_told(tmp_path: Path) -> None:
    process = ProbeProcess(tmp_path)
    try:
        assert process.ask("list") == {"names": []}
        with pytest.raises(FileNotFoundError):
            process.ask("read", name="none", offset=0, length=1)
        with pytest.raises(NoAnswerError, match="within 0 s"):
            process.receive(0.01)
        process.kill()
        with pytest.raises(NoAnswerError, match="died"):
            process.ask("list")
    finally:
        process.close()


def test_a_second_process_uses_the_modules_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a trap')")
    monkeypatch.chdir(tmp_path)
    process = ProbeProcess(tmp_path)
    try:
        assert process.ask("list") == {"names": ["json.py"]}
    finally:
        process.close()


def test_every_probe_is_documented() -> None:
    page = (ROOT / "docs" / "how-to" / "try-a-filesystem.md").read_text(encoding="utf-8")
    names = {*(set(PROBES) - {"visibility"}), *(f"visibility_{method}" for method in METHODS), "peer", "leftovers"}
    assert [name for name in sorted(names) if f"| `{name}` |" not in page] == []
