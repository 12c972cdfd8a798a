"""The processes of a soak test: a worker that notes what it was promised, and a scavenger of another host.

    python soak_program.py worker '{"base": …, "log": …, …}'
    python soak_program.py scavenge '{"base": …, "host": …, …}'

A worker appends one JSON object a line to its log, each by a single write: ``begun`` before the first byte of a file is
handed over, ``kept`` once ``close()`` has returned, ``failed`` when it raised, ``source`` for a file that a pickup is
about to read. The log is outside of the base, so nothing that happens there changes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import hashlib
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CLONE_NEWUTS = 0x04000000
CLOSE_SECONDS = 60.0
WORDS = b"soak archive journal worker lease member scavenger intent commit index range copy "


def move_to_host(host: str | None) -> None:
    """Give this process a host name of its own: for all others it is on a host that they cannot see into."""
    if host is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUTS) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    socket.sethostname(host)


def digest_of(data: bytes) -> str:
    """Return what stands for a content in logs."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def content(rng: random.Random, identity: str, *, large_bytes: int) -> bytes:
    """Return bytes that no other file has, unless they are none at all."""
    kind = rng.random()
    if kind < 0.06:
        return b""
    head = f"{identity}\n".encode()
    if kind < 0.75:
        size = int(rng.expovariate(1 / 1_500))
    elif kind < 0.97:
        size = rng.randrange(200_000)
    elif kind < 0.996:
        size = rng.randrange(2_000_000)
    else:
        size = rng.randrange(large_bytes // 2, large_bytes)
    if rng.random() < 0.5:
        return head + rng.randbytes(size)
    return head + (WORDS * (size // len(WORDS) + 1))[:size]


class Log:
    """What a worker was promised, for the judge."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, what: str, identity: str, **fields: Any) -> None:
        """Append one line; a process that is killed has written all of it or nothing."""
        record = {"what": what, "id": identity, "pid": os.getpid(), "at": round(time.time(), 3), **fields}
        os.write(self._descriptor, json.dumps(record).encode() + b"\n")


class Work:
    """One process that writes until it is told to stop, has written its share, or is killed."""

    def __init__(self, plan: dict[str, Any]) -> None:
        import rear
        from rear.errors import NotArchivedError

        self.rear = rear
        self.unproven = NotArchivedError
        self.plan = plan
        self.log = Log(plan["log"])
        self.label: str = plan["label"]
        self.fs = rear.rear_fs(plan["base"], **plan["options"])
        self.left_open: list[tuple[str, Any]] = []
        self.children: list[int] = []

    def is_over(self) -> bool:
        """Whether the soak is over."""
        return os.path.exists(self.plan["stop"])

    def run(self) -> None:
        """Write with all threads, then close."""
        rng = random.Random(self.plan["seed"])
        threads = [
            threading.Thread(target=self.write_many, args=(f"{self.label}-t{number}", rng.getrandbits(64)), daemon=True)
            for number in range(self.plan["threads"] - 1)
        ]
        try:
            with self.fs:
                for thread in threads:
                    thread.start()
                self.write_many(f"{self.label}-m", rng.getrandbits(64), may_fork=self.plan["forks"])
                for thread in threads:
                    thread.join()
        except (self.unproven, OSError):
            self.close(clean=False)
        else:
            self.close(clean=True)
        for child in self.children:
            os.waitpid(child, 0)

    def close(self, *, clean: bool) -> None:
        """Close until that has worked: a disk that was full has room again some time.

        Args:
            clean: nothing has failed so far, so files that were still open are kept as well.
        """
        deadline = time.monotonic() + CLOSE_SECONDS
        while True:
            try:
                self.fs.close()
                break
            except (self.unproven, OSError):
                clean = False
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        for identity, file in self.left_open:
            self.log.note("kept" if clean and file.closed else "failed", identity)

    def write_many(self, label: str, seed: int, *, may_fork: bool = False) -> None:
        """Write one file after the other, of all kinds."""
        rng = random.Random(seed)
        for number in range(self.plan["files"]):
            if self.is_over():
                return
            identity = f"{label}-{number}"
            choice = rng.random()
            if choice < 0.1:
                self.pick_up(rng, identity)
            elif choice < 0.12:
                self.give_up(rng, identity)
            elif choice < 0.13:
                self.forget(rng, identity)
            elif choice < 0.15 and may_fork:
                self.leave_open(rng, identity)
            else:
                self.write_one(rng, identity)
            if may_fork and rng.random() < 0.02 and len(self.children) < 3:
                self.fork(f"{label}-c{number}", rng.getrandbits(64))
            if rng.random() < 0.01:
                with contextlib.suppress(OSError):
                    self.fs.sync()
            time.sleep(rng.expovariate(1 / self.plan["pause_seconds"]))

    def fork(self, label: str, seed: int) -> None:
        """Go on in a child as well, through the same ``rear_fs``."""
        pid = os.fork()
        if pid:
            self.children.append(pid)
            return
        status = 70
        try:
            self.children, self.left_open = [], []
            self.plan = {**self.plan, "files": 10}
            self.write_many(label, seed)
            self.close(clean=True)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)

    def begin(self, rng: random.Random, identity: str, kind: str) -> tuple[str, bytes]:
        """Choose a target and bytes, and note them."""
        archive = rng.choice(self.plan["archives"])
        name, data = f"{self.label}/{identity}.bin", b""
        if kind == "conflict":
            name = f"shared/{rng.randrange(12)}.txt"
            data = f"{identity}\n".encode() * rng.randrange(1, 40)
        elif kind == "same":
            name = f"same/{rng.randrange(20)}.txt"
            data = f"{name}\n".encode() * 50
        else:
            data = content(rng, identity, large_bytes=self.plan["large_bytes"])
        self.log.note("begun", identity, archive=archive, name=name, size=len(data), digest=digest_of(data), kind=kind)
        return f"{archive}/{name}", data

    def write_one(self, rng: random.Random, identity: str) -> None:
        """Write one file and note whether it was acknowledged."""
        choice = rng.random()
        target, data = self.begin(rng, identity, "conflict" if choice < 0.04 else "same" if choice < 0.07 else "unique")
        metadata = {"identity": identity, "number": rng.randrange(9)} if rng.random() < 0.2 else None
        opener: Callable[..., Any] = self.fs.open if rng.random() < 0.5 else self.rear.rear_open
        if "-c" in identity:
            opener = self.fs.open
        with self.noted(identity), opener(target, "wb", metadata=metadata) as file:
            for piece in pieces(rng, data):
                file.write(piece)
                if len(data) < 10_000 and rng.random() < 0.02:
                    time.sleep(0.05)

    @contextlib.contextmanager
    def noted(self, *identities: str) -> Iterator[None]:
        """Note that what the block closes is kept, or that its caller was told otherwise."""
        try:
            yield
        except OSError as error:
            for identity in identities:
                self.log.note("failed", identity, reason=str(error))
            time.sleep(0.1)
        else:
            for identity in identities:
                self.log.note("kept", identity)

    def give_up(self, rng: random.Random, identity: str) -> None:
        """Write a file whose block raises: it must never appear."""
        target, data = self.begin(rng, identity, "discarded")
        try:
            with self.fs.open(target, "wb") as file:
                file.write(data + b"never\n")
                raise KeyError(identity)
        except KeyError:
            pass

    def forget(self, rng: random.Random, identity: str) -> None:
        """Write a file and let the collector close it: nobody is told whether that worked."""
        target, data = self.begin(rng, identity, "forgotten")
        file = self.fs.open(target, "wb")
        file.write(data)

    def leave_open(self, rng: random.Random, identity: str) -> None:
        """Write a file that only the end of the ``rear_fs`` closes."""
        target, data = self.begin(rng, identity, "left open")
        file = self.fs.open(target, "wb")
        file.write(data)
        self.left_open.append((identity, file))

    def pick_up(self, rng: random.Random, identity: str) -> None:
        """Have a file or a folder of others archived and removed."""
        archive = rng.choice(self.plan["archives"])
        source = Path(self.plan["sources"], identity)
        names = [""] if rng.random() < 0.5 else [f"part {number}.bin" for number in range(rng.randrange(1, 5))]
        if names != [""]:
            source.mkdir()
        member = f"{self.label}/picked/{identity}"
        ids = []
        for number, name in enumerate(names):
            path = source / name if name else source
            data = content(rng, f"{identity} {number}", large_bytes=self.plan["large_bytes"] // 4)
            path.write_bytes(data)
            ids.append(f"{identity} {number}")
            self.log.note(
                "source", ids[-1], archive=archive, name=f"{member}/{name}" if name else member, size=len(data),
                digest=digest_of(data), kind="picked up", source=str(path),
            )  # fmt: skip
        with self.noted(*ids), self.fs.pickup(source, f"{archive}/{member}"):
            pass


def pieces(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """Cut bytes as programs do."""
    size = rng.choice([1 << 12, 1 << 16, 1 << 20, max(1, len(data))])
    for start in range(0, len(data), size):
        yield data[start : start + size]


def scavenge(plan: dict[str, Any]) -> int:
    """Scavenge once on a mount that locks nothing across hosts, with a short lease."""
    import rear
    import rear.scavenger.leader
    from rear.core.storage import Storage
    from rear.errors import NotLeaderError, RearError

    class Unlocked(Storage):
        def try_lock(self, descriptor: int) -> bool:
            return True

    rear.scavenger.leader.LEASE_SECONDS = plan["lease_seconds"]  # type: ignore[misc]
    try:
        for event in rear.scavenge(plan["base"], storage=Unlocked(), **plan["options"]):
            print(json.dumps(event.as_json()), flush=True)
    except NotLeaderError as error:
        print(f"rear: {error}", file=sys.stderr)
        return 0
    except (RearError, OSError) as error:
        print(f"rear: {error}", file=sys.stderr)
        return error.exit_status if isinstance(error, RearError) else 3
    return 0


def tell_unraisable(unraisable: Any) -> None:
    """Take it in one line that the collector could not archive a forgotten file: nobody else can be told."""
    if isinstance(unraisable.exc_value, OSError):
        os.write(2, f"forgotten, and not archived: {unraisable.exc_value}\n".encode())
    else:
        sys.__unraisablehook__(unraisable)


def main() -> int:
    """Run one of them, on a host of its own if it is to have one."""
    faulthandler.enable()
    sys.unraisablehook = tell_unraisable
    plan = json.loads(sys.argv[2])
    move_to_host(plan["host"])
    if sys.argv[1] == "scavenge":
        return scavenge(plan)
    Work(plan).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
