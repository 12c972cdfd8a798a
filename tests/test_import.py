"""Which module may know which: read from the source, so that imports inside functions count too."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rear

ROOT = Path(rear.__file__).parent


def _layers() -> list[tuple[str, set[str]]]:
    """The table of modules in docs/architecture.md: that is where people look, and what imports are held to."""
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    layers: list[tuple[str, set[str]]] = []
    for layer, module in re.findall(r"^\| ([^|`]*?) ?\| `(\w+)` \|", page, re.MULTILINE):
        if layer:
            layers.append((layer, set()))
        layers[-1][1].add(module)
    return layers


LAYERS = _layers()
"""A module imports from layers above its own line alone. ``cli`` stands for all its modules."""

LAYER_OF = {module: number for number, (_, modules) in enumerate(LAYERS) for module in modules}

UPWARDS = {
    ("rear", "cli"),
}

ALONE = {
    "typer": {"cli"},
    "rich": {"cli", "cells", "screenparts", "screen", "lines", "tui"},
    "sqlite_utils": {"index", "segments"},
    "sqlite3": {"index", "segments"},
    "isal": {"codecs"},
    "zlib": {"codecs", "demo"},
    "bz2": {"codecs"},
    "lzma": {"codecs"},
    "zstandard": {"codecs"},
    "zipfile": {"codecs", "demo"},
    "zipfile_deflate64": {"codecs"},
    "fcntl": {"storage", "probeprocess", "dataprobes"},
    "shutil": {"cli"},
    "multiprocessing": {"parallel", "fs"},
    "distributed": {"dask"},
    "asyncio": set(),
    "trio": set(),
}
"""Who may import what comes from outside."""

CHANGES_FILES = {
    "open", "write", "pwrite", "pwritev", "writev", "ftruncate", "truncate", "fsync", "fdatasync", "rename", "renames",
    "replace", "unlink", "remove", "rmdir", "removedirs", "mkdir", "makedirs", "link", "symlink", "chmod", "fchmod",
    "chown", "utime", "mknod", "mkfifo", "copy_file_range", "sendfile", "lockf", "posix_fallocate",
}  # fmt: skip

OWN_FILES = {
    "storage": CHANGES_FILES,
    # Writes outside the base, under descriptors of its own.
    "extraction": {"open", "makedirs", "mkdir", "unlink", "rename", "link", "symlink", "utime", "fchmod"},
    "payload": {"open"},  # reads sources
    "daemon": {"makedirs"},  # the base, as workers do
    "demo": {"mkdir", "makedirs", "open", "remove", "unlink", "rmdir"},
    "cli": {"open"},  # /dev/null in place of closed descriptors
    "outlet": {"open"},  # /dev/null in place of a closed pipe
    # Asks for what the seam does by other means when it is refused.
    "dataprobes": {"open", "fsync", "copy_file_range"},
    "doctor": {"open", "unlink", "rmdir"},  # removes its folder below descriptors, so that no link leads it elsewhere
}
"""Calls of ``os`` that touch files, by module; everything under a base goes through ``storage``."""

SOURCES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    if len(relative.parts) > 1:
        return relative.parts[0]
    return "rear" if relative.stem == "__init__" else relative.stem


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Everything but what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from walk(other)
            continue
        yield child
        yield from walk(child)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names of what is imported, each with its line."""
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for name in node.names:
                # `from rear import x` may mean a module or a name of the package.
                inner = f"{node.module}.{name.name}"
                is_module = (ROOT.parent / inner.replace(".", "/")).with_suffix(".py").exists()
                yield inner if is_module else str(node.module), node.lineno


def test_every_module_has_a_layer() -> None:
    found = {module_of(path) for path in SOURCES}
    assert found == set(LAYER_OF), "name new modules in docs/architecture.md, and take old ones out"
    assert sum(len(modules) for _, modules in LAYERS) == len(LAYER_OF), "a module stands in two layers"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_downwards(path: Path) -> None:
    module = module_of(path)
    for name, line in imports(path):
        first, *rest = name.split(".")
        where = f"{path.relative_to(ROOT.parent)}:{line} imports {name}"
        if first != "rear":
            assert module in ALONE.get(first, {module}), f"{where}; only {sorted(ALONE[first])} may"
            continue
        target = rest[0] if rest else "rear"
        if target == module or (module, target) in UPWARDS or (module == "rear" and target in LAYER_OF):
            continue
        assert LAYER_OF[target] < LAYER_OF[module], f"{where}, which is no lower layer"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_changed_through_the_storage_seam(path: Path) -> None:
    allowed = OWN_FILES.get(module_of(path), set())
    for node in walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        where = f"{path.relative_to(ROOT.parent)}:{node.lineno}"
        if isinstance(node.value, ast.Name) and node.value.id == "os" and node.attr in CHANGES_FILES:
            assert node.attr in allowed, f"{where} calls os.{node.attr}"
        assert node.attr not in ("write_text", "write_bytes", "touch") or allowed, f"{where} uses {node.attr}"


def test_the_walker_sees_imports_in_functions_and_not_those_for_type_checkers(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import typer\nelse:\n    import rich\n"
        "def f():\n    from rear import fs, RearError\n    import sqlite3\n"
    )
    assert sorted(name for name, _ in imports(source)) == ["rear", "rear.worker.fs", "rich", "sqlite3", "typing"]


HEAVY = [
    "typer", "rich", "sqlite_utils", "sqlite3", "asyncio", "anyio", "trio", "tempfile", "multiprocessing", "zipfile",
    "distributed", "concurrent.futures", "subprocess", "shutil", "numpy", "zstandard", "bz2", "lzma", "http",
    "urllib.request", "logging", "dataclasses", "inspect", "secrets", "random", "hashlib", "socket", "traceback",
]  # fmt: skip


def fresh(code: str) -> str:
    """Return what code prints in a new interpreter, without what the environment's ``.pth`` files import."""
    search = [str(ROOT.parent), *(path for path in sys.path if path.endswith("site-packages"))]
    code = f"import sys; sys.path[:0] = {search!r}\n{code}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_rear_is_light() -> None:
    loaded = fresh("import rear\nprint(*sys.modules)").split()
    assert [name for name in HEAVY if name in loaded] == []
    assert "rear.scavenger.scavenge" not in loaded


def test_writing_small_files_stays_light(tmp_path: Path) -> None:
    code = (
        f"import rear\nwith rear.rear_fs({str(tmp_path / 'base')!r}):\n"
        "    with rear.rear_open('ar.zip/a', 'w') as f: f.write('x' * 100)\nprint(*sys.modules)"
    )
    loaded = fresh(code).split()
    assert [name for name in HEAVY if name in loaded] == []


def test_what_the_package_offers() -> None:
    for name in rear.__all__:
        assert getattr(rear, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rear.nothing
