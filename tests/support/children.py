"""What processes and tasks do that tests start: they find it by name."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rear
from rear import rear_fs, rear_open
from rear.errors import NoContextError
from rear.worker.pools import open_in_process


def _note_pid(path: Path) -> None:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")


def write_from_pool(number: int) -> int:
    with rear.rear_open(f"pool.zip/{number}.txt", "w") as file:
        file.write(f"content {number}")
    with ThreadPoolExecutor(1) as threads:
        threads.submit(write_from_thread, number).result()
    return os.getpid()


def write_from_thread(number: int) -> None:
    with rear.rear_open(f"pool.zip/thread/{number}.txt", "w") as file:
        file.write(f"thread {number}")


def open_and_write(base: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        # A thread that is older than the rear_fs.
        threads.submit(os.getpid).result()
        open_in_process(base)
        for number in range(19):
            write_from_pool(number)
        threads.submit(write_from_pool, 19).result()


ARCHIVES = ("one.zip", "deep/er/two.zip")


def content(worker: int, number: int) -> bytes:
    """Bytes that belong to one file alone; some shrink, some do not, some are empty."""
    chance = random.Random(worker * 1_000_003 + number)
    kind = number % 10
    if kind == 0:
        return b""
    if kind == 1:
        return chance.randbytes(chance.randrange(1, 60_000))
    line = f"worker {worker}, file {number}, {chance.random()}\n".encode()
    return line * chance.randrange(1, 200)


def target(worker: int, number: int) -> str:
    return f"{ARCHIVES[number % 2]}/{worker}/{number // 100}/{number}.dat"


def write_after(barrier: Any, base: str, number: int) -> None:
    with rear_fs(base):
        barrier.wait(30)
        with rear_open(target(number, 7), "wb") as file:
            file.write(content(number, 7))


def write(worker: int, numbers: range) -> None:
    for number in numbers:
        with rear_open(target(worker, number), "wb") as file:
            file.write(content(worker, number))


def write_in_pool(arguments: tuple[str, int]) -> int:
    base, number = arguments
    with rear_fs(base), rear_open(target(number % 4, number), "wb") as file:
        file.write(content(number % 4, number))
    return os.getpid()


def write_in_inherited(number: int) -> int:
    write(number % 4, range(number, number + 1))
    return os.getpid()


def leave_process(base: str, how: str) -> None:
    rear_fs(base).__enter__()
    write(1, range(3))
    file = rear_open("one.zip/open", "w")
    file.write("still open")
    if how == "thread":

        def late() -> None:
            time.sleep(0.3)
            write(2, range(3))

        threading.Thread(target=late).start()
    elif how == "only open":
        pass
    elif how == "sys.exit":
        sys.exit(0)
    elif how == "os._exit":
        os._exit(0)
    elif how == "exception":
        sys.stderr = open(os.devnull, "w")
        raise ZeroDivisionError


def only_an_open_file(base: str) -> None:
    fs = rear_fs(base)
    fs.__enter__()
    sys.modules["keep"] = rear_open("one.zip/open", "w")  # type: ignore[assignment]
    sys.modules["keep"].write("still open")  # type: ignore[attr-defined]


def write_task(number: int) -> int:
    with rear.rear_open(f"dask.zip/{number}.txt", "w") as file:
        file.write(f"content {number}")
    return os.getpid()


def try_task(number: int) -> bool:
    try:
        write_task(number)
    except NoContextError:
        return False
    return True
