"""Runs `rear`, or writes files, as other users: one request a line of standard input, its answer a line of output.

Python itself may be where those users cannot read, so a warm-up imports all that is needed. Then each request gets a
child that becomes its user: ``{"user": 1000, "group": 100, "umask": 18, "arguments": ["rear", "scavenge", "/base"]}``.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import rear
from rear.cli import main


def write(base: str, prefix: str, count: str) -> None:
    with rear.rear_fs(base) as fs:
        for number in range(int(count)):
            with fs.open(f"{prefix}{number}.txt", "w") as file:
                file.write(f"{prefix}{number}")


def run(what: str, *arguments: str) -> int:
    """Do something; return its exit status."""
    try:
        if what == "write":
            write(*arguments)
        else:
            sys.argv[:] = ["rear", *arguments]
            main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def warm_up() -> None:
    for encoding in ("ascii", "idna", "latin_1", "unicode_escape", "utf_16", "utf_32", "utf_8_sig", "cp437"):
        codecs.lookup(encoding)
    said = os.dup(1), os.dup(2)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        Path(folder, ".rear/inbox/host/stray").mkdir(parents=True)
        for _ in range(2):
            run("write", folder, "ar.zip/", "2")
            for command in ("scavenge", "fsck", "status"):
                run("rear", command, folder)
            run("rear", "fsck", "-n", folder)
            run("rear", "scavenge", "--dry-run", folder)
            run("rear", "find", folder, "*")
    sys.stdout.flush()
    os.dup2(said[0], 1)
    os.dup2(said[1], 2)


def answer(user: int, group: int, umask: int, arguments: list[str]) -> dict[str, Any]:
    """Do it in a child, as that user."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            os.chdir("/")
            if user:
                os.setgroups([group])
                os.setgid(user)
                os.setuid(user)
                # Who was root before may not look at its own /proc/self/ns otherwise: PR_SET_DUMPABLE.
                ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
            os.umask(umask)
            status = run(*arguments)
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read().decode())
        return {"status": os.waitstatus_to_exitcode(status), "output": said[0], "errors": said[1]}


if __name__ == "__main__":
    warm_up()
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)
