"""The other programs: found on this machine, or downloaded and unpacked into a cache folder, or named as missing.

Nothing is installed into the system: Debian packages are unpacked below the cache folder, and the original rear gets a
virtual environment there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ORIGINAL = "original rear 0.1.2"
ORIGINAL_REQUIREMENT = "rear==0.1.2"
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Program:
    """A program that is run as a peer.

    Args:
        name: what it is called.
        packages: Debian packages that hold it and its library; those that a release does not know are passed over.
        version_arguments: how to ask it for its version; some answer with a status that is not 0.
    """

    name: str
    packages: tuple[str, ...]
    version_arguments: tuple[str, ...]


PROGRAMS = (
    Program("zip", ("zip",), ("-v",)),
    Program("unzip", ("unzip",), ("-v",)),
    Program("zipinfo", ("unzip",), ()),
    Program("zipmerge", ("zipmerge", "libzip4", "libzip4t64", "libzip5"), ("-V",)),
    Program("7z", ("p7zip-full", "7zip"), ()),
    Program("bsdtar", ("libarchive-tools", "libarchive13", "libarchive13t64"), ("--version",)),
    Program("strace", ("strace", "libunwind8"), ("-V",)),
)


@dataclass(frozen=True)
class Peer:
    """A peer that can be run: its program, what the environment has to hold for it, and its version."""

    path: str
    environment: dict[str, str]
    version: str


class Peers:
    """All peers, looked for once.

    Args:
        cache: folder that downloads are kept in; made when it is needed.
        is_download_allowed: whether to download what is not on this machine.

    Attributes:
        found: peers by name.
        missing: why the others cannot be run, by name.
    """

    def __init__(self, cache: Path, *, is_download_allowed: bool = True) -> None:
        self._cache = cache
        self._is_download_allowed = is_download_allowed
        self.found: dict[str, Peer] = {}
        self.missing: dict[str, str] = {}

    def look_for(self, names: Sequence[str]) -> None:
        """Find peers by name, and sort them into ``found`` and ``missing``."""
        for name in names:
            if name in self.found or name in self.missing:
                continue
            peer = self._original() if name == ORIGINAL else self._program(name)
            if isinstance(peer, Peer):
                self.found[name] = peer
            else:
                self.missing[name] = peer

    def _program(self, name: str) -> Peer | str:
        program = next(program for program in PROGRAMS if program.name == name)
        path = shutil.which(name)
        if path is not None:
            return _checked(path, {}, program)
        if not self._is_download_allowed:
            return f"not installed (Debian package {program.packages[0]}), and nothing is to be downloaded"
        unpacked = self._cache / "packages"
        if not list(unpacked.glob(f"usr/bin/{name}")):
            reason = _unpack(program.packages, unpacked, self._cache / "downloads")
            if reason:
                return f"not installed (Debian package {program.packages[0]}); {reason}"
        libraries = {str(library.parent) for library in unpacked.glob("usr/lib/**/lib*.so*")}
        return _checked(
            str(unpacked / "usr/bin" / name), {"LD_LIBRARY_PATH": os.pathsep.join(sorted(libraries))}, program
        )

    def _original(self) -> Peer | str:
        folder = self._cache / f"original-python{sys.version_info.major}.{sys.version_info.minor}"
        python = folder / "bin" / "python"
        if not _is_original_in(python):
            if not self._is_download_allowed:
                return "not installed, and nothing is to be downloaded"
            try:
                venv.create(folder, with_pip=True, clear=True)
                pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                _run([*pip, ORIGINAL_REQUIREMENT])
            except (OSError, subprocess.SubprocessError) as error:
                return f"pip install {ORIGINAL_REQUIREMENT} failed: {_reason(error)}"
        if not _is_original_in(python):
            return f"{ORIGINAL_REQUIREMENT} was installed, but cannot be imported"
        return Peer(str(python), {}, "0.1.2")


def _is_original_in(python: Path) -> bool:
    try:
        _run([str(python), "-I", "-c", "from rear.scavenger.scavenge import try_scan_once"], folder="/")
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _checked(path: str, environment: dict[str, str], program: Program) -> Peer | str:
    """Run a program once: one that lacks a library is no peer."""
    try:
        done = subprocess.run(
            [path, *program.version_arguments],
            capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            env={**os.environ, **environment}, timeout=_TIMEOUT_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"it is there, but cannot be run: {_reason(error)}"
    said = done.stdout + done.stderr
    if done.returncode == 127:
        return f"it is there, but cannot be run: {said.strip()}"
    version = re.search(r"\d+\.\d+(\.\d+)?", said)
    return Peer(path, environment, version.group() if version else "unknown")


def _unpack(packages: Sequence[str], folder: Path, downloads: Path) -> str | None:
    """Download packages and unpack them, without installing; return what went wrong, if all did."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "there is no apt-get to download it with"
    folder.mkdir(parents=True, exist_ok=True)
    downloads.mkdir(parents=True, exist_ok=True)
    reason: str | None = None
    for package in packages:
        try:
            _run(["apt-get", "download", "-qq", package], folder=str(downloads))
            # Names of downloads begin with that of the package.
            for archive in downloads.glob(f"{package}_*.deb"):
                _run(["dpkg-deb", "-x", str(archive), str(folder)])
        except (OSError, subprocess.SubprocessError) as error:
            # A library is called otherwise in each release, and may be there already: the program itself decides.
            if package == packages[0]:
                reason = f"apt-get could not download it: {_reason(error)}"
    return reason


def _run(argv: Sequence[str], *, folder: str | None = None) -> None:
    subprocess.run(
        argv, check=True, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, cwd=folder,
        timeout=_TIMEOUT_SECONDS,
    )  # fmt: skip


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    said = (getattr(error, "stderr", None) or str(error)).strip()
    return str(said).splitlines()[-1] if said else "no reason given"
