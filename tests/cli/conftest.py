"""Archives that several commands read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from listings import write_zip


@pytest.fixture
def ar(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "ar.zip", "README", "logs/a.txt", "logs/b.txt", "logs/deep/c.txt", "other/a.txt")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """An archive with a name that looks like a pattern, and with a directory."""
    return write_zip(tmp_path / "ar.zip", "README", "logs/a.txt", "logs/b.txt", "logs/[x].txt", "logs/deep/c.txt", "d/")


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.9 GB of zeros in 0.9 MB: long enough to look at a bar."""
    path = tmp_path_factory.mktemp("large") / "large.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(3):
            with archive.open(f"zeros-{number}", "w") as member:
                for _ in range(300):
                    member.write(bytes(1_000_000))
    return path
