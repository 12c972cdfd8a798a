"""What is checked, and how: ``nox`` runs the default sessions, ``nox --list`` shows all of them."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
SUPPORTED = ["3.11", "3.12", "3.13"]
TYPED = ["rear", "tools", "bench", "noxfile.py"]
FUZZED = ["journal", "intent", "directory", "scanner"]

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = [f"tests-{RUNNING}", "lint", "types", "docs"]
# Nox would make missing interpreters an error where CI is set, and might download them.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"


def install(session: nox.Session, *requirements: str) -> None:
    """Install once per virtual environment and project file: pip needs seconds to find that there is nothing to do."""
    wanted = "\0".join([str(ROOT), *requirements, (ROOT / "pyproject.toml").read_text()])
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    stamp = Path(session.virtualenv.location, "installed.sha256")
    if stamp.exists() and stamp.read_text() == digest:
        return
    session.install("--quiet", *requirements)
    if "-e" in requirements:
        try:
            session.install("--quiet", "-e", ".[deflate64]")
        except nox.command.CommandFailed:
            session.warn("going on without Deflate64, which is compiled: what needs it is skipped")
    stamp.write_text(digest)


def pytest(session: nox.Session, *arguments: str, crash: str) -> None:
    """Run pytest, a process a core. Its status 5, nothing collected, fails too: no tests prove nothing."""
    install(session, "-e", ".[test]")
    spread = ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
    session.run("python", "-m", "pytest", *spread, *arguments, *session.posargs, env={"REAR_CRASH": crash})


@nox.session(python=sorted({*SUPPORTED, RUNNING}))
def tests(session: nox.Session) -> None:
    """All tests; those that crash at many points take a fixed-seed slice of them."""
    pytest(session, crash="slice")


@nox.session
def crash(session: nox.Session) -> None:
    """The tests that crash at many points, at every point. Takes long."""
    pytest(session, "-m", "crash", "--timeout=3600", crash="full")


@nox.session
def zoo(session: nox.Session) -> None:
    """All writers and all damage beside zip -FF, 7z and bsdtar; takes long; ``-- --write`` renews the page."""
    install(session, "-e", ".[test]")
    session.run("python", "tools/compare_recovery.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Coverage-guided fuzzing, a minute for each reader; or ``nox -s fuzz -- journal --seconds 600``."""
    install(session, "-e", ".[zstd]")
    try:
        session.install("--quiet", "atheris")
    except nox.command.CommandFailed:
        session.skip("atheris cannot be installed here: it has wheels for some versions of Python on Linux alone")
    arguments = [session.posargs] if session.posargs else [[name] for name in FUZZED]
    for each in arguments:
        session.run("python", "tools/fuzz.py", *each)


@nox.session
def netfs(session: nox.Session) -> None:
    """Two hosts on NFS and on GlusterFS, on this machine; needs root and packages, and says which. Takes minutes."""
    install(session, "-e", ".[test]")
    session.run("python", "-m", "pytest", "tests/hosts/test_two_hosts.py", *session.posargs, env={"REAR_NETFS": "1"})


@nox.session
def soak(session: nox.Session) -> None:
    """Everything at once, killed and stopped at random: REAR_SOAK_SECONDS (300), REAR_SOAK_SEED (the clock)."""
    env = {
        "REAR_SOAK_SECONDS": os.environ.get("REAR_SOAK_SECONDS", "300"),
        "REAR_SOAK_SEED": os.environ.get("REAR_SOAK_SEED", str(int(time.time()))),
    }
    install(session, "-e", ".[test]")
    session.run("python", "-m", "pytest", "-s", "tests/long/test_soak.py", *session.posargs, env=env)


@nox.session
def forged(session: nox.Session) -> None:
    """Forged bases, one after the other: REAR_FORGED_SECONDS (3600), and REAR_FORGED_SEED of the first (the clock)."""
    env = {
        "REAR_FORGED_SECONDS": os.environ.get("REAR_FORGED_SECONDS", "3600"),
        "REAR_FORGED_SEED": os.environ.get("REAR_FORGED_SEED", str(int(time.time()))),
    }
    install(session, "-e", ".[test]")
    test = "tests/hostile/test_forged_bases.py::test_forged_bases_for_a_while"
    session.run("python", "-m", "pytest", "-s", test, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and formatting."""
    install(session, "ruff")
    session.run("python", "-m", "ruff", "check", ".")
    session.run("python", "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    install(session, "-e", ".[types]")
    # Mypy refuses a folder without Python files.
    targets = [name for name in TYPED if (ROOT / name).is_file() or any((ROOT / name).rglob("*.py"))]
    session.run("python", "-m", "mypy", "--strict", *targets)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as a web site in ``site/``; warnings are errors."""
    install(session, "-e", ".[docs]")
    session.run("python", "-m", "mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks beside other programs, under 15 minutes; arguments go on: ``nox -s bench -- merge --quick``."""
    install(session, "-e", ".[bench]")
    session.run("python", "-m", "bench", *session.posargs)
