"""``rear demo``: the whole way once, on a temporary base."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from typing import Annotated

import typer

from rear.core.python import python_command


def demo(
    workers: Annotated[int, typer.Option(help="Worker processes.", min=2, max=64)] = 6,
    files: Annotated[int, typer.Option(help="Files that each of them writes.", min=10, max=100_000)] = 600,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the base, to look around in it.")] = False,
) -> None:
    """Show the whole way: write, kill a worker, scavenge, verify.

    Worker processes write to a temporary base; one of them is killed; what is merged is checked with an independent
    tool.

    Example: rear demo --workers 8 --keep
    """
    folder = tempfile.mkdtemp(prefix="rear-demo-")
    try:
        status = _run(os.path.join(folder, "base"), workers, files)
    finally:
        if not keep:
            shutil.rmtree(folder)
    if keep:
        print(f"kept: {folder}")
    raise typer.Exit(status)


def _run(base: str, workers: int, files: int) -> int:
    import rear
    from rear.cli import demo_workers as logic
    from rear.cli.display.follow import follow

    print(f"1. {workers} worker processes write {files} files each into {' and '.join(logic.ARCHIVES)};")
    run = logic.run_workers(base, workers, files)
    print(
        f"   process {run.killed} was killed with SIGKILL half-way; {len(run.acknowledged):,} files were acknowledged"
    )
    print("2. rear scavenge --verify", flush=True)
    follow(rear.scavenge(base, verify=True), "plain", command="scavenge", subject=base)
    sys.stdout.flush()
    print("3. the final archives, and what another program says of them")
    failures = [name for name in logic.ARCHIVES if not _is_accepted(os.path.join(base, name))]
    problems = logic.check(base, run.acknowledged)
    for problem in problems[:20]:
        print(f"   {problem}")
    if failures or problems:
        print(f"FAILED: {len(failures)} archives refused, {len(problems)} files missing, double or different")
        return 1
    print(f"all {len(run.acknowledged):,} acknowledged files are in the archives, each once, byte for byte")
    return 0


def _is_accepted(path: str) -> bool:
    """Test an archive with ``unzip``, or with Python's own ``zipfile`` where that is missing."""
    unzip = shutil.which("unzip")
    command = [unzip, "-tqq", path] if unzip else [sys.executable, "-I", "-m", "zipfile", "-t", path]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    # Python's module says what is wrong and ends with status 0 all the same.
    accepted = result.returncode == 0 and "bad" not in result.stdout
    listing = subprocess.run(
        python_command("rear", "ls", path), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    verdict = "accepts it" if accepted else f"refuses it: {result.stdout}{result.stderr}"
    print(
        f"   {os.path.basename(path)}: {len(listing):,} members, {os.path.getsize(path):,} bytes; "
        f"{'unzip -t' if unzip else 'zipfile'} {verdict}"
    )
    for line in (*listing[:2], "…", *listing[-1:]):
        print(f"     {line}")
    return accepted
