"""The demo: real worker processes on a temporary base, one of them killed, then scavenged and checked.

``python -m rear.cli.demo_workers BASE NUMBER FILES`` is one worker. It prints a line for each file once that is
acknowledged, so that whoever started it knows what has to be in the archives afterwards.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from zlib import crc32

from rear.core.python import python_command
from rear.read.view import open_committed
from rear.worker.fs import rear_fs, rear_open, rear_pickup
from rear.zip.member_ends import verify

ARCHIVES = ("results.zip", "logs/2026.zip")
_WORDS = "merge claim sweep node rank epoch loss step write sync journal cluster Größe naïve 測定"


def write_files(base: str, number: int, files: int) -> None:
    """Be one worker: write ``files`` files of different kinds and say which are acknowledged."""
    choose = random.Random(number)
    with rear_fs(base):
        for index in range(files):
            kind = index % 5
            folder = f"worker-{number}"
            if kind == 0:
                _write_text(f"{ARCHIVES[1]}/{folder}/run {index:04}.log", choose)
            elif kind == 1:
                _write_json(f"{ARCHIVES[0]}/{folder}/metrics-{index:04}.json", choose, index)
            elif kind == 2:
                _write_csv(f"{ARCHIVES[0]}/{folder}/größe-{index:04}.csv", choose)
            elif kind == 3:
                _write_binary(f"{ARCHIVES[0]}/{folder}/tensor-{index:04}.bin", choose)
            else:
                _pick_up(f"{ARCHIVES[1]}/{folder}/picked-up-{index:04}.dat", choose, f"{base}-scratch-{number}-{index}")


def _acknowledge(path: str, content: bytes) -> None:
    print(f"{crc32(content)} {len(content)} {path}", flush=True)


def _write_text(path: str, choose: random.Random) -> None:
    words = _WORDS.split()
    text = "".join(f"{' '.join(choose.choices(words, k=9))}\n" for _ in range(choose.randrange(1, 60)))
    with rear_open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    _acknowledge(path, text.encode())


def _write_json(path: str, choose: random.Random, index: int) -> None:
    with rear_open(path, "w+", encoding="utf-8", metadata={"index": index}) as file:
        json.dump({"loss": [choose.random() for _ in range(40)]}, file)
        file.seek(0)
        content = file.read().encode()
    _acknowledge(path, content)


def _write_csv(path: str, choose: random.Random) -> None:
    with rear_open(path, "w+", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([choose.randrange(10**6) for _ in range(6)] for _ in range(choose.randrange(100)))
        file.seek(0)
        content = file.read().encode()
    _acknowledge(path, content)


def _write_binary(path: str, choose: random.Random) -> None:
    content = choose.randbytes(choose.randrange(20_000))
    with rear_open(path, "wb") as file:
        file.write(content)
    _acknowledge(path, content)


def _pick_up(path: str, choose: random.Random, source: str) -> None:
    content = choose.randbytes(200) * choose.randrange(1, 40)
    with rear_pickup(source, path) as made_by_others, open(made_by_others, "wb") as file:
        file.write(content)
    _acknowledge(path, content)


@dataclass(slots=True)
class Run:
    """What the workers of one demo acknowledged: ``(CRC-32, size)`` by path."""

    acknowledged: dict[str, tuple[int, int]] = field(default_factory=dict)
    killed: int = 0


def run_workers(base: str, workers: int, files: int) -> Run:
    """Run worker processes at once, and kill the first one with SIGKILL when it is half-way."""
    run = Run()
    processes = [
        subprocess.Popen(
            python_command("rear.cli.demo_workers", base, str(number), str(files)),
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        for number in range(workers)
    ]
    run.killed = processes[0].pid

    def listen(process: subprocess.Popen[str]) -> None:
        for count, line in enumerate(_lines(process), 1):
            crc, size, path = line.split(" ", 2)
            run.acknowledged[path] = int(crc), int(size)
            if process.pid == run.killed and count == files // 2:
                process.kill()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(listen, processes))
    for process in processes[1:]:
        if process.returncode:
            raise RuntimeError(f"worker {process.pid} ended with status {process.returncode}")
    return run


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            # The victim may die in the middle of a line: that file was acknowledged, but nobody was told.
            if line.endswith("\n"):
                yield line.rstrip("\n")
    process.wait()


def check(base: str, acknowledged: dict[str, tuple[int, int]]) -> list[str]:
    """Read every member of the final archives; return what is wrong: missing, double, or with other content."""
    found: dict[str, tuple[int, int]] = {}
    problems = []
    for name in ARCHIVES:
        with open_committed(os.path.join(base, name)) as archive:
            for entry in archive.entries():
                path = f"{name}/{entry.name}"
                if path in found:
                    problems.append(f"{path} is there twice")
                verify(archive, entry)
                found[path] = entry.crc, entry.size
    for path, expected in acknowledged.items():
        if found.get(path) != expected:
            problems.append(f"{path} is {'missing' if path not in found else 'different'}")
    return problems


if __name__ == "__main__":
    write_files(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
