"""Which module may know which: read from the source, so that imports inside functions count too."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from checkout import REAR, ROOT
from programs import fresh

import rear

ROOMS_ROW = re.compile(r"^\| `(\w+)` \|[^|]+\|([^|]*)\|([^|]+)\|$", re.MULTILINE)


class Room(NamedTuple):
    """A line of the table of rooms."""

    imports: set[str]
    is_shown: Callable[[str], bool]


def _rooms() -> dict[str, Room]:
    """The table in docs/development/architecture.md: that is where people look, and what imports are held to."""
    page = (ROOT / "docs" / "development" / "architecture.md").read_text(encoding="utf-8")
    rooms: dict[str, Room] = {}
    for name, imports, face in ROOMS_ROW.findall(page):
        above = set(rooms)
        allowed = above if imports.strip() == "all" else set(re.findall(r"`(\w+)`", imports))
        assert allowed <= above, f"{name} imports {allowed - above}, which stands below it in the table"
        rooms[name] = Room(allowed, _shown(face))
    return rooms


def _shown(face: str) -> Callable[[str], bool]:
    names = set(re.findall(r"`(\w+)`", face))
    return (lambda file: file not in names) if face.strip().startswith("all") else (lambda file: file in names)


ROOMS = _rooms()

#: What lies beside the rooms, and which of them it may import.
BESIDE: dict[str, set[str]] = {
    "errors": set(),
    "events": {"errors"},
    "logging": {"core", "read", "worker"},
    "dask": {"core", "worker"},
    "fsspec": {"core", "read", "worker"},
    "__init__": {"core", "read", "worker", "scavenger", "ingest"},
    "__main__": {"cli"},
}
FOUNDATIONS = {"errors", "events"}

ALONE = {
    "typer": {"cli"},
    "rich": {"cli"},
    "sqlite_utils": {"index"},
    "sqlite3": {"index"},
    "isal": {"zip.codecs"},
    "zlib": {"zip.codecs", "cli.demo_workers"},
    "bz2": {"zip.codecs"},
    "lzma": {"zip.codecs"},
    "zstandard": {"zip.codecs"},
    "zipfile": {"zip.codecs", "cli.demo_workers"},
    "zipfile_deflate64": {"zip.codecs"},
    "fcntl": {"core.storage", "diagnostics.probe_process", "diagnostics.data_probes"},
    "shutil": {"cli"},
    "multiprocessing": {"core.parallel", "worker.fs"},
    "distributed": {"dask"},
    "asyncio": set(),
    "trio": set(),
}
"""Which room or file may import what comes from outside."""

CHANGES_FILES = {
    "open", "write", "pwrite", "pwritev", "writev", "ftruncate", "truncate", "fsync", "fdatasync", "rename", "renames",
    "replace", "unlink", "remove", "rmdir", "removedirs", "mkdir", "makedirs", "link", "symlink", "chmod", "fchmod",
    "chown", "utime", "mknod", "mkfifo", "copy_file_range", "sendfile", "lockf", "posix_fallocate",
}  # fmt: skip

OWN_FILES = {
    "core.storage": CHANGES_FILES,
    # Writes outside the base, under descriptors of its own.
    "zip.extraction": {"open", "makedirs", "mkdir", "unlink", "rename", "link", "symlink", "utime", "fchmod"},
    "core.source_file": {"open"},  # reads sources
    "scavenger.daemon": {"makedirs"},  # the base, as workers do
    "cli.demo_workers": {"mkdir", "makedirs", "open", "remove", "unlink", "rmdir"},
    "cli.__init__": {"open"},  # /dev/null in place of closed descriptors
    "cli.outlet": {"open"},  # /dev/null in place of a closed pipe
    # Asks for what the seam does by other means when it is refused.
    "diagnostics.data_probes": {"open", "fsync", "copy_file_range"},
    # Removes its folder below descriptors, so that no link leads it elsewhere.
    "diagnostics.doctor": {"open", "unlink", "rmdir"},
}
"""Calls of ``os`` that touch files, by module; everything under a base goes through ``core.storage``."""

SOURCES = sorted(REAR.rglob("*.py"))


def module_of(path: Path) -> str:
    """``zip.codecs`` for ``rear/zip/codecs.py``, ``zip.__init__`` for the room itself."""
    return ".".join(path.relative_to(REAR).with_suffix("").parts)


def room_of(module: str) -> str:
    return module.partition(".")[0]


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
                # `from rear.zip import x` may mean a module or a name of the room.
                inner = f"{node.module}.{name.name}"
                is_module = (REAR.parent / inner.replace(".", "/")).with_suffix(".py").exists()
                yield inner if is_module else str(node.module), node.lineno


def own_imports(path: Path) -> Iterator[tuple[str, str]]:
    """What a file imports of rear, as `module_of` names it, each with where."""
    for name, line in imports(path):
        first, *rest = name.split(".")
        if first == "rear":
            module = ".".join(rest) or "__init__"
            is_room = (REAR / module.replace(".", "/")).is_dir()
            yield f"{module}.__init__" if is_room else module, f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_the_table_names_every_room() -> None:
    folders = [path.name for path in REAR.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert sorted(ROOMS) == sorted(folders), "the table of rooms in docs/development/architecture.md"
    files = {path.stem for path in REAR.glob("*.py")}
    assert files == set(BESIDE), "a file beside the rooms: which room does it belong in?"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_go_to_rooms_above(path: Path) -> None:
    room = room_of(module_of(path))
    for target, where in own_imports(path):
        other = room_of(target)
        if other == room:
            continue
        if room in BESIDE:
            assert other in BESIDE[room] | FOUNDATIONS, f"{where}, which {room} may not"
        elif other in BESIDE:
            # The commands use the package as users do.
            assert other in FOUNDATIONS or room == "cli", f"{where}, which lies above the rooms"
        else:
            assert other in ROOMS[room].imports, f"{where}: {room} may import {sorted(ROOMS[room].imports)} alone"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_of_another_room_only_its_face_is_imported(path: Path) -> None:
    if module_of(path) == "__init__":
        return  # it hands out public names, wherever they are
    for target, where in own_imports(path):
        other, _, file = target.partition(".")
        if other in ROOMS and other != room_of(module_of(path)) and target != "cli.__init__":
            assert ROOMS[other].is_shown(file), f"{where}, which is not in the face of {other}"


def test_inside_a_room_no_imports_go_in_a_circle() -> None:
    graph = {
        module_of(path): {target for target, _ in own_imports(path) if target != module_of(path)} for path in SOURCES
    }
    for room in ROOMS:
        inside = {module: targets for module, targets in graph.items() if room_of(module) == room}
        # What a room's __init__ hands out, it imports late.
        inside.pop(f"{room}.__init__", None)
        TopologicalSorter(inside).prepare()


def test_no_room_is_called_like_a_public_name() -> None:
    assert not set(rear.__all__) & set(ROOMS), "importing a file of the room would take the public name away"


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES if path.parent != REAR}), ids=str)
def test_every_room_tells_its_flow_in_ten_lines(folder: Path) -> None:
    documentation = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert 1 <= len(documentation.splitlines()) <= 10
    if folder.parent == REAR:
        files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        told = set(re.findall(r"\*(\w+)\*", documentation))
        assert told <= files | {path.name for path in folder.iterdir() if path.is_dir()}, "files that are not there"


#: Longer than this needs a reason in the docstring.
LONGEST_MODULE_LINES = 450


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_module_is_long_without_a_reason(path: Path) -> None:
    text = path.read_text()
    lines = len(text.splitlines())
    has_reason = "long because" in (ast.get_docstring(ast.parse(text)) or "").casefold()
    assert lines <= LONGEST_MODULE_LINES or has_reason, "its docstring has to say: long because …"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_what_comes_from_outside_is_known_to_few(path: Path) -> None:
    module = module_of(path)
    for name, line in imports(path):
        first = name.partition(".")[0]
        if first in ALONE:
            where = f"{path.relative_to(ROOT)}:{line} imports {name}"
            assert {module, room_of(module)} & ALONE[first], f"{where}; only {sorted(ALONE[first])} may"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_files_are_changed_through_the_storage_seam(path: Path) -> None:
    allowed = OWN_FILES.get(module_of(path), set())
    for node in walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        where = f"{path.relative_to(ROOT)}:{node.lineno}"
        if isinstance(node.value, ast.Name) and node.value.id == "os" and node.attr in CHANGES_FILES:
            assert node.attr in allowed, f"{where} calls os.{node.attr}"
        assert node.attr not in ("write_text", "write_bytes", "touch") or allowed, f"{where} uses {node.attr}"


def test_the_walker_sees_imports_in_functions_and_not_those_for_type_checkers(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import typer\nelse:\n    import rich\n"
        "def f():\n    from rear import errors, RearError\n    from rear.zip import codecs\n    import sqlite3\n"
    )
    names = ["rear", "rear.errors", "rear.zip.codecs", "rich", "sqlite3", "typing"]
    assert sorted(name for name, _ in imports(source)) == names


HEAVY = [
    "typer", "rich", "sqlite_utils", "sqlite3", "asyncio", "anyio", "trio", "tempfile", "multiprocessing", "zipfile",
    "distributed", "concurrent.futures", "subprocess", "shutil", "numpy", "zstandard", "bz2", "lzma", "http",
    "urllib.request", "logging", "dataclasses", "inspect", "secrets", "random", "hashlib", "socket", "traceback",
]  # fmt: skip


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
