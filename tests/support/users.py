"""Real users of one group, who run `rear` and write files; only root can be several users, so others skip them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import users_program

GROUP = 47_100
ALICE, BOB = 47_001, 47_002
"""Users that no machine has, each with a primary group of its own number, and in the group."""
UMASKS = (0o002, 0o022, 0o027, 0o077)


class Done(NamedTuple):
    status: int
    output: str
    errors: str


class Users:
    """Does things as a user, in one program that is started once."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self._program = program

    def _ask(self, user: int, umask: int, *arguments: object) -> Done:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        request = {"user": user, "group": GROUP, "umask": umask, "arguments": list(map(str, arguments))}
        print(json.dumps(request), file=self._program.stdin, flush=True)
        return Done(**json.loads(self._program.stdout.readline()))

    def rear(self, user: int, *arguments: object, umask: int = 0o022) -> Done:
        """Run `rear` as a user."""
        return self._ask(user, umask, "rear", *arguments)

    def write(self, user: int, base: Path, prefix: str, count: int = 3, *, umask: int = 0o022) -> None:
        """Write some files as a user, whose worker has to end well."""
        done = self._ask(user, umask, "write", base, prefix, count)
        assert done.status == 0, done.errors


@contextlib.contextmanager
def users() -> Iterator[Users]:
    """Become several users, where that can be."""
    if os.geteuid() != 0:
        pytest.skip("only root can be several users")
    command = [sys.executable, users_program.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        yield Users(program)
        assert program.stdin is not None
        program.stdin.close()


@contextlib.contextmanager
def base_of_mode(mode: int, *, group: int = GROUP, user: int = 0) -> Iterator[Path]:
    """A base of that mode, in a folder that all users can get to."""
    # pytest's own folders are shut to others.
    folder = Path(tempfile.mkdtemp(prefix="rear-users-"))
    try:
        folder.chmod(0o755)
        base = folder / "base"
        base.mkdir()
        os.chown(base, user, group)
        base.chmod(mode)
        yield base
    finally:
        shutil.rmtree(folder, ignore_errors=True)
