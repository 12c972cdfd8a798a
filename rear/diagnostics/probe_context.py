"""The place in which the probes of the doctor work: a folder of its own, and second processes in it."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

from rear.core.storage import Storage, created
from rear.diagnostics.probe_process import ProbeProcess


@dataclass(slots=True)
class ProbeContext:
    """Where probes work.

    Attributes:
        base: the base.
        folder: a new folder in it that nobody else uses.
        storage: the file system.
        near: second processes that work in ``folder``.
        far: second processes that work in it through the peer; the same as ``near`` without one.
        has_peer: whether there is one.
        limit_seconds: how long to wait for what another mount has to show.
    """

    base: Path
    folder: Path
    storage: Storage
    near: list[ProbeProcess] = field(default_factory=list)
    far: list[ProbeProcess] = field(default_factory=list)
    has_peer: bool = False
    limit_seconds: float = 60.0

    def place(self, name: str) -> Path:
        """Make a folder for one probe."""
        path = self.folder / name
        self.storage.make_directories(path, sync=False)
        return path

    def write_file(self, path: Path, data: bytes, *, sync: bool = True) -> None:
        """Make a new file with this content."""
        with created(path, self.storage) as descriptor:
            self.storage.write(descriptor, [data], 0)
            if sync:
                self.storage.sync(descriptor)

    def end_processes(self) -> None:
        """End the second processes: all are killed before the end of one is waited for."""
        for process in (*self.near, *self.far):
            process.kill()
        for process in (*self.near, *self.far):
            process.close()

    def renew_processes(self) -> None:
        """Replace the second processes: a late answer must not be taken for one to the next question."""
        self.end_processes()
        for processes in (self.near, self.far):
            for number, process in enumerate(processes):
                processes[number] = ProbeProcess(process.folder)


def error_name(number: int | None) -> str:
    """Return the symbol of an error number: ``ENOSPC``."""
    return errno.errorcode.get(number or 0, str(number))
