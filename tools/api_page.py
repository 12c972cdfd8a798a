"""Makes docs/reference/api.md: what users import, from its docstrings and signatures."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any, Final

#: Module, then the names in it, in the order of the page.
PUBLIC: Final = {
    "Write": [("rear", ["rear_fs", "rear_open", "rear_pickup"])],
    "Merge": [("rear", ["scavenge", "scavengerd", "sweep"]), ("rear.fsck", ["fsck"])],
    "Read": [("rear", ["find", "Search", "FoundMember"]), ("rear.index", ["IndexRow"])],
    "Names of files": [("rear", ["escape_name", "unescape_name"])],
    "Logs": [("rear.logging", ["RearHandler"])],
    "In pools and clusters": [("rear", ["open_in_process"]), ("rear.dask", ["RearPlugin"])],
}
_SECTION: Final = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples):$", re.MULTILINE)
_STARS: Final[dict[Any, str]] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_ITEM: Final = re.compile(r"^(\*{0,2}[\w, ]+): ", re.MULTILINE)


def api_page() -> str:
    """Return the page."""
    lines = [
        "<!-- Made by tools/api_page.py from docstrings: change those, not this page. -->\n",
        "# Python\n",
        "What `import rear` offers, and the modules beside it. Errors: [Errors](errors.md). "
        "Events: [Format](format.md#events).\n",
    ]
    for title, modules in PUBLIC.items():
        lines.append(f"## {title}\n")
        for module, names in modules:
            for name in names:
                lines += _entry(module, name)
    return "\n".join(lines).rstrip("\n") + "\n"


def _entry(module: str, name: str) -> Iterator[str]:
    thing = getattr(importlib.import_module(module), name)
    yield f"### {module}.{name}\n"
    yield f"```text\n{_signature(name, thing)}\n```\n"
    yield from _body(inspect.getdoc(thing) or "")
    if inspect.isclass(thing) and not issubclass(thing, BaseException):
        for attribute, member in vars(thing).items():
            if attribute.startswith("_") or not (
                inspect.isfunction(member) or isinstance(member, (property, classmethod))
            ):
                continue
            function = member.__func__ if isinstance(member, classmethod) else member
            doc = inspect.getdoc(function)
            if doc is None:
                continue
            if isinstance(member, property):
                yield f"#### {name}.{attribute}\n"
            else:
                yield f"#### {name}.{attribute}\n\n```text\n{_signature(attribute, function)}\n```\n"
            yield from _body(doc)


def _signature(name: str, thing: Any) -> str:
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    parameters = [one for one in signature.parameters.values() if one.name not in ("self", "cls", "storage")]
    shown: list[str] = []
    was_keyword = False
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and not was_keyword:
            was_keyword = True
            shown.append("*")
        if one.kind is one.VAR_POSITIONAL:
            was_keyword = True
        default = "" if one.default is one.empty else f"={one.default!r}"
        shown.append(f"{_STARS.get(one.kind, '')}{one.name}{default}")
    flat = f"{name}({', '.join(shown)})"
    return flat if len(flat) <= 100 else f"{name}(\n    " + ",\n    ".join(shown) + ",\n)"


def _body(docstring: str) -> Iterator[str]:
    """Yield a docstring in Google's style as Markdown."""
    parts = _SECTION.split(docstring)
    if parts[0].strip():
        yield f"{_prose(parts[0].strip())}\n"
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        section, after = _indented(text)
        if title in ("Args", "Attributes", "Raises"):
            rows = _ITEM.split(section)[1:]
            yield f"| {'error' if title == 'Raises' else 'argument' if title == 'Args' else 'attribute'} | |\n|---|---|"
            for item, meaning in zip(rows[::2], rows[1::2], strict=True):
                if item.strip("*") == "storage":
                    continue
                yield f"| `{item.strip()}` | {_cell(meaning)} |"
            yield ""
        elif title in ("Returns", "Yields"):
            yield f"{title} {_prose(section)[0].lower()}{_prose(section)[1:]}\n"
        else:
            yield f"```text\n{section}\n```\n"
        if after:
            yield f"{_prose(after)}\n"


def _indented(text: str) -> tuple[str, str]:
    """Split what is indented below a heading from the paragraphs behind it."""
    inside: list[str] = []
    lines = text.strip("\n").split("\n")
    while lines and (not lines[0] or lines[0].startswith(" ")):
        inside.append(lines.pop(0).removeprefix("    "))
    return "\n".join(inside).strip(), "\n".join(lines).strip()


def _prose(text: str) -> str:
    blocks = [" ".join(block.split()) for block in text.split("\n\n")]
    return re.sub(r"`(?:rear\.)?(\w+\.)*?_?([\w.]+)`", r"`\2`", "\n\n".join(blocks).replace("``", "`"))


def _cell(text: str) -> str:
    return _prose(text).replace("\n\n", " ").replace("|", "\\|")
