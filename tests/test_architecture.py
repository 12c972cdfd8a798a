"""Which module may know which: read from the source, so that imports inside functions count too."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from checkout import REAR, ROOT
from programs import fresh

import rear

DOTTED = re.compile(r"rear(\.\w+)+")
ROOMS_ROW = re.compile(r"^\| `(\w+)` \|[^|]+\|([^|]*)\|([^|]+)\|$", re.MULTILINE)


class Room(NamedTuple):
    """A line of the table of rooms: what it imports, and its face, which has those files or all but those."""

    imports: set[str]
    files: set[str]
    has_all_but_those: bool

    def shows(self, file: str) -> bool:
        return (file in self.files) != self.has_all_but_those


def rooms_in(page: str) -> dict[str, Room]:
    """The table of rooms on a page: a room imports only what stands above it."""
    rooms: dict[str, Room] = {}
    for name, imports, face in ROOMS_ROW.findall(page):
        above = set(rooms)
        allowed = above if imports.strip() == "all" else set(re.findall(r"`(\w+)`", imports))
        assert allowed <= above, f"{name} imports {allowed - above}, which stands below it in the table"
        rooms[name] = Room(allowed, set(re.findall(r"`(\w+)`", face)), face.strip().startswith("all"))
    return rooms


#: That page is where people look, and what imports are held to.
ROOMS = rooms_in((ROOT / "docs" / "development" / "architecture.md").read_text(encoding="utf-8"))

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

#: Longer than this needs a reason in the docstring.
LONGEST_MODULE_LINES = 450

ALONE = {
    "typer": {"cli"},
    "rich": {"cli"},
    "sqlite_utils": {"index"},
    "sqlite3": {"index"},
    "isal": {"zip.codecs"},
    "zlib": {"cli.demo_workers"},
    "bz2": {"zip.codecs"},
    "lzma": {"zip.codecs"},
    "zstandard": {"zip.codecs"},
    "zipfile": {"zip.codecs"},
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
    "core.permissions": {"fchmod"},  # of what storage has just made
    "core.descent": {"open"},  # folders, on the way to what lies in them
    "core.openat2": {"open"},
    # Writes outside the base, under descriptors of its own.
    "zip.extraction": {"open", "makedirs", "mkdir", "unlink", "rename", "link", "symlink", "utime", "fchmod"},
    "core.source_file": {"open"},  # reads sources
    "ingest.job": {"open"},  # a record in the spool of the job, on local disk
    "read.view": {"open"},  # a directory in memory
    "salvage.info_zip": {"symlink"},  # a name for zip of what is open, in a folder outside of all bases
    "scavenger.daemon": {"makedirs"},  # the base, as workers do
    "cli.demo_workers": {"open"},  # what others made, to be picked up
    "cli.standard_streams": {"open"},  # /dev/null in place of closed descriptors
    "cli.lenient_stream": {"open"},  # /dev/null in place of a closed pipe
    "diagnostics.openmetrics": {"open"},  # a device or FIFO that the user names
    # Asks for what the seam does by other means when it is refused.
    "diagnostics.data_probes": {"open", "fsync", "copy_file_range"},
    # Removes its folder below descriptors, so that no link leads it elsewhere.
    "diagnostics.doctor": {"open", "unlink", "rmdir"},
}
"""Calls that touch files, by module; everything under a base goes through ``core.storage``."""

SOURCES = sorted(REAR.rglob("*.py"))


def module_of(path: Path, package: Path = REAR) -> str:
    """``zip.codecs`` for ``rear/zip/codecs.py``, ``zip.__init__`` for the room itself."""
    return ".".join(path.relative_to(package).with_suffix("").parts)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Everything but what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, (ast.Name, ast.Attribute))
            and (ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"))
        ):
            for other in child.orelse:
                yield other
                yield from walk(other)
            continue
        yield child
        yield from walk(child)


@functools.cache
def nodes_of(source: str) -> list[ast.AST]:
    return list(walk(ast.parse(source)))


def imports(path: Path, package: Path = REAR) -> Iterator[tuple[str, int]]:
    """Dotted names of what is imported, each with its line; a name of a module in a string is imported later."""

    def is_module(name: str) -> bool:
        return (package.parent / name.replace(".", "/")).with_suffix(".py").exists()

    for node in nodes_of(path.read_text()):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for name in node.names:
                # `from rear.zip import x` may mean a module or a name of the room.
                inner = f"{node.module}.{name.name}"
                yield inner if is_module(inner) else str(node.module), node.lineno
        elif isinstance(node, ast.Constant) and DOTTED.fullmatch(str(node.value)) and is_module(str(node.value)):
            yield str(node.value), node.lineno


class Import(NamedTuple):
    """One module that another one imports, both as `module_of` names them."""

    by: str
    of: str
    where: str


def own_imports(package: Path = REAR) -> list[Import]:
    """What the files of the package import of it."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for name, line in imports(path, package):
            first, *rest = name.split(".")
            if first == "rear":
                module = ".".join(rest) or "__init__"
                is_folder = (package / module.replace(".", "/")).is_dir()
                where = f"{path.relative_to(package.parent)}:{line} imports {name}"
                found.append(Import(module_of(path, package), f"{module}.__init__" if is_folder else module, where))
    return found


def wrong_directions(found: list[Import], rooms: dict[str, Room]) -> Iterator[str]:
    for by, of, where in found:
        room, other = room_of(by), room_of(of)
        if other == room:
            continue
        if room in BESIDE:
            if other not in BESIDE[room] | FOUNDATIONS:
                yield f"{where}, which {room} may not"
        elif other in BESIDE:
            # The commands use the package as users do.
            if other not in FOUNDATIONS and room != "cli":
                yield f"{where}, which lies above the rooms"
        elif other not in rooms[room].imports:
            yield f"{where}: {room} may import {sorted(rooms[room].imports)} alone"


def beyond_faces(found: list[Import], rooms: dict[str, Room]) -> Iterator[str]:
    for by, of, where in found:
        other, _, file = of.partition(".")
        # The package itself hands out public names, wherever they are.
        if other in rooms and other != room_of(by) and by != "__init__" and not rooms[other].shows(file):
            yield f"{where}, which is not in the face of {other}"


def stale_faces(found: list[Import], rooms: dict[str, Room], package: Path = REAR) -> Iterator[str]:
    for name, room in rooms.items():
        files = {path.stem for path in (package / name).glob("*.py")}
        used = {of.partition(".")[2] for by, of, _ in found if room_of(of) == name != room_of(by)}
        yield from (f"{name}: there is no file {file}" for file in sorted(room.files - files))
        if not room.has_all_but_those:
            yield from (f"{name}: nobody imports {file}" for file in sorted(room.files & files - used))


def circle_inside(found: list[Import], room: str) -> list[str]:
    graph: dict[str, set[str]] = {}
    for by, of, _ in found:
        # What a room's __init__ hands out, it imports late.
        if room_of(by) == room_of(of) == room and by not in (of, f"{room}.__init__"):
            graph.setdefault(by, set()).add(of)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [*error.args[1]]
    return []


def is_too_long(source: str) -> bool:
    """Whether a module is long, and its docstring gives no reason."""
    has_reason = "long because" in (ast.get_docstring(ast.parse(source)) or "").casefold()
    return len(source.splitlines()) > LONGEST_MODULE_LINES and not has_reason


OWN_IMPORTS = own_imports()


def test_the_table_names_every_room() -> None:
    folders = [path.name for path in REAR.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert sorted(ROOMS) == sorted(folders), "the table of rooms in docs/development/architecture.md"
    files = {path.stem for path in REAR.glob("*.py")}
    assert files == set(BESIDE), "a file beside the rooms: which room does it belong in?"


def test_imports_go_to_rooms_above() -> None:
    assert list(wrong_directions(OWN_IMPORTS, ROOMS)) == []


def test_of_another_room_only_its_face_is_imported() -> None:
    assert list(beyond_faces(OWN_IMPORTS, ROOMS)) == []


def test_a_face_has_only_files_that_others_import() -> None:
    assert list(stale_faces(OWN_IMPORTS, ROOMS)) == [], "the table of rooms in docs/development/architecture.md"


def test_inside_a_room_no_imports_go_in_a_circle() -> None:
    assert [circle for room in ROOMS if (circle := circle_inside(OWN_IMPORTS, room))] == []


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


def test_no_module_is_long_without_a_reason() -> None:
    long = [module_of(path) for path in SOURCES if is_too_long(path.read_text())]
    assert long == [], "its docstring has to say: long because …"


def test_what_comes_from_outside_is_known_to_few() -> None:
    assert [
        f"{path.relative_to(ROOT)}:{line} imports {name}; only {sorted(ALONE[first])} may"
        for path in SOURCES
        for name, line in imports(path)
        if (first := room_of(name)) in ALONE and not {module_of(path), room_of(module_of(path))} & ALONE[first]
    ] == []


def file_changes(source: str) -> Iterator[tuple[int, str]]:
    """Lines where a program changes files by itself, and by which call of ``os``, pathlib or Python."""
    for node in nodes_of(source):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in CHANGES_FILES:
                yield node.lineno, name
            case ast.Attribute(attr="write_text" | "write_bytes" | "touch" as name):
                yield node.lineno, name
            case ast.ImportFrom(module="os", names=names):
                yield from ((node.lineno, alias.name) for alias in names if alias.name in CHANGES_FILES)
            case ast.Call(func=ast.Name(id="open"), args=[_, ast.Constant(value=str(mode)), *_]) if set(mode) & set(
                "wax+"
            ):
                yield node.lineno, "open"


def test_files_are_changed_through_the_storage_seam() -> None:
    assert [
        (module_of(path), line, call)
        for path in SOURCES
        for line, call in file_changes(path.read_text())
        if call not in OWN_FILES.get(module_of(path), set())
    ] == [], "everything under a base goes through core.storage"


@pytest.mark.parametrize(
    "text",
    [
        "os.replace(a, b)", "from os import fsync", "def f(): os.open(a, 0)", "Path(a).write_text('x')", "path.touch()",
        "open(a, 'wb')", "with open(a, 'r+b') as file: pass", "call = os.rename", "if not TYPE_CHECKING: os.unlink(a)",
    ],
)  # fmt: skip
def test_a_changed_file_is_found(text: str) -> None:
    assert len(list(file_changes(text))) == 1


@pytest.mark.parametrize(
    "text", ["os.read(0, 1)", "text.replace(a, b)", "open(a)", "open(a, 'rb')", "storage.unlink(a)", "file.write(a)"]
)
def test_other_calls_are_no_change(text: str) -> None:
    assert list(file_changes(text)) == []


def test_permissions_are_needed() -> None:
    """What may be done and is not done is forgotten."""
    modules = {module_of(path): path for path in SOURCES}
    imported = [(module, room_of(name)) for module, path in modules.items() for name, _ in imports(path)]
    assert set(OWN_FILES) <= set(modules)
    for module in set(OWN_FILES) - {"core.storage"}:
        used = {call for _, call in file_changes(modules[module].read_text())}
        assert OWN_FILES[module] <= used, module
    for outside, places in ALONE.items():
        users = {module for module, name in imported if name == outside}
        assert places <= users | set(map(room_of, users)), outside


def test_the_walker_sees_imports_in_functions_and_not_those_for_type_checkers(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import typer\nelse:\n    import rich\n"
        "if not TYPE_CHECKING:\n    import bz2\n"
        "def f():\n    from rear import errors, RearError\n    from rear.zip import codecs\n    import sqlite3\n"
        "LATER = 'rear.zip.window', 'rear.partial'\n"
    )
    names = ["bz2", "rear", "rear.errors", "rear.zip.codecs", "rear.zip.window", "rich", "sqlite3", "typing"]
    assert sorted(name for name, _ in imports(source)) == names


TABLE = """
| `core` | what all stand on | | all |
| `zip` | the format | `core` | all but `fast` |
| `read` | archives | `core` `zip` | `view` |
| `cli` | commands | all | `__init__` |
"""
#: A small house in which everything is in order.
HOUSE = {
    "__init__": "_WHERE = {'open_archive': 'rear.read.members'}", "__main__": "from rear.cli import main",
    "errors": "", "core.__init__": "", "core.text": "from rear.errors import RearError",
    "zip.__init__": "", "zip.codecs": "import rear.core.text", "zip.fast": "from rear.zip import codecs",
    "read.__init__": "def __getattr__(name):\n    from rear.read.view import View",
    "read.members": "from rear.read import view", "read.view": "from rear.zip import codecs",
    "cli.__init__": "def main():\n    from rear.cli import app",
    "cli.app": "import rear\nfrom rear.read.view import View",
}  # fmt: skip


def complaints(folder: Path, changed: dict[str, str], table: str = TABLE) -> list[str]:
    """Build the small house with some modules changed; return what the checks say of it."""
    for module, text in (HOUSE | changed).items():
        path = (folder / "rear" / module.replace(".", "/")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    rooms, found = rooms_in(table), own_imports(folder / "rear")
    return [
        *wrong_directions(found, rooms), *beyond_faces(found, rooms), *stale_faces(found, rooms, folder / "rear"),
        *(f"circle: {' '.join(circle)}" for room in rooms if (circle := circle_inside(found, room))),
    ]  # fmt: skip


def test_a_house_in_order(tmp_path: Path) -> None:
    assert complaints(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        (
            "core.text",
            "import rear.zip.codecs",
            "rear/core/text.py:1 imports rear.zip.codecs: core may import [] alone",
        ),
        ("core.text", "def f():\n    from rear.zip import codecs", "core may import [] alone"),
        ("core.text", "from rear import zip", "which lies above the rooms"),
        ("core.text", "import rear", "which lies above the rooms"),
        ("core.text", "LATER = ['rear.zip.codecs']", "core may import [] alone"),
        ("zip.codecs", "import rear.read.view", "zip may import ['core'] alone"),
        ("errors", "import rear.core.text", "which errors may not"),
        ("read.view", "from rear.zip.fast import encode", "which is not in the face of zip"),
        ("cli.app", "from rear.read import members, view", "which is not in the face of read"),
        ("cli.app", "from rear.read import nothing, view", "which is not in the face of read"),
        ("cli.app", "import rear", "read: nobody imports view"),
        ("core.text", "import rear.core.log", "circle: "),
        ("read.view", "def f():\n    from rear.read import members", "circle: "),
    ],
)
def test_an_import_that_is_wrong_is_found(tmp_path: Path, module: str, text: str, complaint: str) -> None:
    changed = {"core.log": "from rear.core.text import shown", module: text}
    assert [found for found in complaints(tmp_path, changed) if complaint in found]


def test_a_face_with_a_file_that_is_not_there_is_found(tmp_path: Path) -> None:
    assert complaints(tmp_path, {}, TABLE.replace("`fast`", "`faster`")) == ["zip: there is no file faster"]
    assert complaints(tmp_path, {}, TABLE.replace("`view`", "`view` `gone`")) == ["read: there is no file gone"]


def test_a_table_that_allows_imports_from_below_is_found() -> None:
    with pytest.raises(AssertionError, match="below"):
        rooms_in(TABLE.replace("| `core` |", "| `core` `read` |", 1))


def test_a_long_module_is_found() -> None:
    assert not is_too_long("x\n" * LONGEST_MODULE_LINES)
    assert is_too_long("x\n" * (LONGEST_MODULE_LINES + 1))
    assert not is_too_long('"""Long because it is a table."""\n' + "x\n" * LONGEST_MODULE_LINES)
    assert is_too_long("# long because I say so\n" + "x\n" * LONGEST_MODULE_LINES)


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
