"""Fixtures of several test files, each of which gives them the names it likes: ``base = fixtures.scratch_base``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import crash_scavenger
import executors
import pytest


@pytest.fixture
def made_base(tmp_path: Path) -> Path:
    """A folder that may be a base."""
    (tmp_path / "base").mkdir()
    return tmp_path / "base"


@pytest.fixture
def scratch_base(scratch: Path) -> Path:
    return scratch / "base"


@pytest.fixture
def scratch_work(scratch: Path) -> Path:
    return scratch / "work"


@pytest.fixture
def folder_base(folder: Path) -> Iterator[Path]:
    """Where bases of one test come to lie, and are removed; beside it lies what all tests of the file share."""
    yield folder / "base"
    shutil.rmtree(folder / "base", ignore_errors=True)


@pytest.fixture(scope="module")
def crash_template(folder: Path) -> Path:
    """A base with work for a scavenger that is killed."""
    return crash_scavenger.make_base(folder / "template")


@pytest.fixture
def executors_base(folder_base: Path) -> Iterator[Path]:
    """A base with work for executors."""
    yield executors.renew(folder_base)
    shutil.rmtree(folder_base.with_name("kept"), ignore_errors=True)


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    executors.make_small(monkeypatch)
