"""A real Dask scheduler and real worker processes on loopback, some of which are killed in the middle."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fixtures
import pytest
from bases import check_base, contents, files_below, of_kind, scavenge
from children import try_task, write_task
from executors import Killing, check, renew
from programs import run_code, run_rear

import rear
from rear.core.layout import Layout
from rear.core.parallel import Parallel
from rear.core.storage import Storage
from rear.events import Lost, Refused
from rear.journal.reader import read_journal

pytest.importorskip("distributed", reason="needs the extra rear[dask]")

from distributed import Client

from rear.dask import RearPlugin, connected

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed.*"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


folder_base, base, small = fixtures.folder_base, fixtures.executors_base, fixtures.small_tasks


class Cluster:
    """A scheduler and two workers, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port = free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        self.workers: list[subprocess.Popen[bytes]] = []
        self.heal()

    def heal(self) -> None:
        """Make sure that two workers run."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < 2:
            self.add_worker()
        with self.client() as client:
            client.wait_for_workers(2, timeout=60)

    def add_worker(self) -> subprocess.Popen[bytes]:
        worker = self._start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
            "--local-directory", str(self.folder), "--death-timeout", "60",
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def _start(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{kind}.log", "ab") as log:
            command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
            return subprocess.Popen(command, stdout=log, stderr=log)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        client = Client(self.address, set_as_default=False, timeout=60)
        try:
            yield client
        finally:
            client.close()

    def close(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def cluster_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(cluster_of_all: Cluster) -> Cluster:
    cluster_of_all.heal()
    return cluster_of_all


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Cluster]:
    """One whose scheduler is killed."""
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


class Substituting:
    """The executor of a Dask client whose tasks get another storage."""

    def __init__(self, executor: Any, storage: Storage) -> None:
        self._executor = executor
        self._storage = storage

    def submit(self, function: Any, /, *arguments: Any) -> Any:
        return self._executor.submit(function, *arguments[:-1], self._storage)


# ---- scavenging


@pytest.mark.parametrize("template", ["template", "crashed"])
def test_a_scavenge_on_a_cluster(base: Path, cluster: Cluster, template: str) -> None:
    renew(base, template)
    asked = 0
    with connected(cluster.address) as executor:
        original = executor.submit

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal asked
            asked += 1
            return original(*arguments, **options)

        executor.submit = counted  # type: ignore[method-assign]
        assert not Parallel(executor).is_local
        events = scavenge(base, executor=executor, verify=True)
    assert asked > 10
    assert not of_kind(events, Lost, Refused)
    check(base)
    assert files_below(Layout(base).intents) == []


@pytest.mark.parametrize("operation", ["copy_range", "read"])
def test_a_worker_is_killed_in_the_middle(base: Path, cluster: Cluster, tmp_path: Path, operation: str) -> None:
    renew(base, "crashed")
    with connected(cluster.address) as executor:
        storage = Killing(tmp_path / "killed", operation)
        events = scavenge(base, executor=Substituting(executor, storage), verify=True)
    assert (tmp_path / "killed").exists()
    assert sum(worker.poll() is not None for worker in cluster.workers) == 1
    assert not of_kind(events, Lost, Refused)
    check(base)


def test_all_workers_are_killed(base: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rear.core.parallel, "PATIENCE_SECONDS", 2.0)
    renew(base, "crashed")
    with connected(cluster.address) as executor:
        for worker in cluster.workers:
            worker.kill()
        events = scavenge(base, executor=executor, verify=True)
    assert not of_kind(events, Lost, Refused)
    check(base)


def test_the_scheduler_is_killed_in_the_middle(
    base: Path, doomed: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rear.core.parallel, "PATIENCE_SECONDS", 5.0)
    monkeypatch.setattr(rear.dask, "CONNECT_SECONDS", 3.0)
    renew(base, "crashed")
    begun = time.monotonic()
    with connected(doomed.address) as executor:
        storage = Killing(tmp_path / "killed", "copy_range", doomed.scheduler.pid)
        events = scavenge(base, executor=Substituting(executor, storage), verify=True)
    assert (tmp_path / "killed").exists()
    assert doomed.scheduler.wait(10) == -signal.SIGKILL
    assert not of_kind(events, Lost, Refused)
    check(base)
    assert time.monotonic() - begun < 60


# ---- rear_fs on workers


EXPECTED = {f"dask.zip/{number}.txt": f"content {number}".encode() for number in range(40)}


def test_rear_fs_on_each_worker(tmp_path: Path, cluster: Cluster) -> None:
    base = tmp_path / "base"
    plugin = RearPlugin(base, compression="stored")
    with cluster.client() as client:
        client.register_plugin(plugin)
        pids = set(client.gather(client.map(write_task, range(40), pure=False)))
        assert pids == {worker.pid for worker in cluster.workers}
        journals = list(Layout(base).inbox.glob("*/*.journal"))
        assert len(journals) == 2
        client.unregister_worker_plugin(plugin.name)
        # Closed in good order, and nobody writes there by mistake.
        assert all(read_journal(journal).closed for journal in journals)
        assert client.submit(try_task, 99, pure=False).result() is False
    scavenge(base)
    check_base(base, EXPECTED)


def test_a_worker_that_comes_later_and_one_that_ends(tmp_path: Path, cluster: Cluster) -> None:
    base = tmp_path / "base"
    with cluster.client() as client:
        plugin = RearPlugin(base)
        client.register_plugin(plugin)
        added = cluster.add_worker()
        client.wait_for_workers(3, timeout=60)
        pids = set(client.gather(client.map(write_task, range(40), pure=False)))
        assert added.pid in pids
        for worker in cluster.workers:
            worker.send_signal(signal.SIGTERM)
            worker.wait(30)
        client.unregister_worker_plugin(plugin.name)
    journals = list(Layout(base).inbox.glob("*/*.journal"))
    assert len(journals) == len(pids)
    assert all(read_journal(journal).closed for journal in journals)
    scavenge(base)
    check_base(base, EXPECTED)


def test_what_a_killed_worker_has_acknowledged_is_kept(tmp_path: Path, cluster: Cluster) -> None:
    base = tmp_path / "base"
    with cluster.client() as client:
        plugin = RearPlugin(base)
        client.register_plugin(plugin)
        client.gather(client.map(write_task, range(40), pure=False))
        for worker in cluster.workers:
            worker.kill()
            worker.wait()
        client.unregister_worker_plugin(plugin.name)
    scavenge(base)
    check_base(base, EXPECTED)


# ---- the command line


def test_dask_on_the_command_line(base: Path, cluster: Cluster) -> None:
    done = run_rear("scavenge", base, "--dask", cluster.address)
    assert (done.returncode, done.stderr) == (0, done.stderr)
    assert "Traceback" not in done.stderr
    check(base)
    done = run_rear("fsck", base, "--deep", "--dask", cluster.address)
    assert done.returncode == 0, done.stderr
    with rear.scavengerd(base, every=5, dask=cluster.address):
        pass


@pytest.mark.parametrize("name", ["scavenge", "fsck"])
def test_no_scheduler_answers(base: Path, name: str) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    code = "import rear.dask, rear.cli\nrear.dask.CONNECT_SECONDS = 1\nrear.cli.main()"
    done = run_code(code, name, base, "--dask", address)
    assert done.returncode == (8 if name == "fsck" else 3)
    assert f"rear: {address}: no Dask scheduler answers" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(contents(base / "ar.zip")) == 2, "nothing was merged"


@pytest.mark.parametrize("address", ["no address", "tcp://", "foo://x:1", ""])
def test_an_address_that_cannot_be(base: Path, address: str) -> None:
    code = "import rear.dask, rear.cli\nrear.dask.CONNECT_SECONDS = 1\nrear.cli.main()"
    done = run_code(code, "scavenge", base, "--dask", address)
    assert done.returncode in (2, 3), done.stderr
    assert "Traceback" not in done.stderr


def test_dask_is_not_installed(base: Path) -> None:
    code = "import sys\nsys.modules['distributed'] = None\nimport rear.cli\nrear.cli.main()"
    done = run_code(code, "scavenge", base, "--dask", "tcp://127.0.0.1:1")
    assert done.returncode == 5
    assert "pip install 'rear[dask]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_somebody_else_answers_there(base: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        code = "import rear.dask, rear.cli\nrear.dask.CONNECT_SECONDS = 1\nrear.cli.main()"
        address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        done = run_code(code, "scavenge", base, "--dask", address)
    assert done.returncode == 3
    assert f"rear: {address}: no Dask scheduler answers" in done.stderr
    assert "Traceback" not in done.stderr
