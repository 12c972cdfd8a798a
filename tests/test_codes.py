"""Decisions are made on codes and types: no condition in `rear` reads a sentence that was written for people."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import rear
from rear.cli.display.progress import Progress
from rear.errors import Lack, NotLeaderError, UnsupportedError
from rear.events import Event, IndexFault, IndexRebuilt, JournalFault, JournalRebuilt, LeftAlone, WhyLeft
from rear.fsck.event_problems import problem_of

SOURCE = Path(rear.__file__).parent
SENTENCES = frozenset({"reason", "message", "detail", "strerror", "situation"})
"""Attributes, and variables, that hold text for people."""
ERRORS = frozenset({"error", "err", "exc", "exception", "failure", "cause"})
"""Variables and attributes that hold errors, beside those that ``except … as`` names."""
PARTS = frozenset({
    "lower", "upper", "strip", "rstrip", "lstrip", "casefold", "splitlines", "replace", "removeprefix", "partition",
    "rpartition",
})  # fmt: skip
"""Methods that make other sentences of one."""
READERS = frozenset({
    "startswith", "endswith", "removesuffix", "find", "rfind", "index", "rindex", "count", "split", "rsplit",
    "isspace", "isdigit", "__contains__", "__eq__",
})  # fmt: skip
"""Methods of a sentence that tell what is in it."""
MATCHERS = frozenset({"match", "search", "fullmatch", "findall", "finditer", "split", "get", "fnmatch", "fnmatchcase"})
"""Calls that look at what they are given: of patterns and of tables."""
WORDS = {"closed.reason != 'poisoned'"}
"""In the last record of a journal the reason is a word: see docs/reference/format.md."""


Function = ast.FunctionDef | ast.AsyncFunctionDef


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Everything in a function, or in a module, but what is in functions in it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Function):
            yield from walk(child)


def named(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class Scope:
    """A function or a module: its names for errors, and its variables that text for people was assigned to."""

    def __init__(self, node: ast.AST) -> None:
        self.nodes = list(walk(node))
        self.errors = ERRORS | {node.name for node in self.nodes if isinstance(node, ast.ExceptHandler)}
        self.variables: set[str] = set()
        for node in self.nodes:
            match node:
                case ast.Assign(targets=[target], value=value) if self.is_sentence(value):
                    self.variables |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}

    def is_error(self, node: ast.AST) -> bool:
        return named(node) in self.errors

    def is_sentence(self, node: ast.AST) -> bool:
        """Whether an expression is text for people: ``x.reason``, ``str(error)``, ``error.args``, or a part of one."""
        match node:
            case ast.Attribute(value=value, attr="args") if self.is_error(value):
                return True
            case ast.Attribute() | ast.Name():
                return named(node) in SENTENCES or (isinstance(node, ast.Name) and node.id in self.variables)
            case ast.Call(func=ast.Name(id="str" | "repr" | "format"), args=[value, *_]):
                return self.is_error(value) or self.is_sentence(value)
            case ast.JoinedStr(values=[ast.FormattedValue(value=value)]):
                return self.is_error(value) or self.is_sentence(value)
            case ast.NamedExpr(value=value) | ast.Subscript(value=value):
                return self.is_sentence(value)
            case ast.Call(func=ast.Attribute(value=value, attr=name)):
                return name in PARTS and self.is_sentence(value)
        return False


def decisions(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a program where something is decided by a sentence."""
    tree = ast.parse(source)
    for node in [tree, *(node for node in ast.walk(tree) if isinstance(node, Function))]:
        yield from decisions_in(Scope(node))


def decisions_in(scope: Scope) -> Iterator[tuple[int, str]]:
    is_sentence = scope.is_sentence
    for node in scope.nodes:
        match node:
            case ast.Compare(left=left, ops=operators, comparators=others):
                is_test_for_none = all(isinstance(one, (ast.Is, ast.IsNot)) for one in operators)
                is_found = not is_test_for_none and any(map(is_sentence, [left, *others]))
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments):
                is_found = (name in READERS and is_sentence(value)) or (
                    name in MATCHERS and any(map(is_sentence, arguments))
                )
            case ast.Call(func=ast.Name(id=name), args=arguments):
                is_found = name in MATCHERS and any(map(is_sentence, arguments))
            case ast.Subscript(slice=key, ctx=ast.Load()):
                is_found = is_sentence(key)
            case ast.Match(subject=subject):
                is_found = is_sentence(subject)
            case ast.MatchClass(kwd_attrs=names, kwd_patterns=patterns):
                is_found = any(
                    name in SENTENCES and not isinstance(pattern, (ast.MatchAs, ast.MatchSingleton))
                    for name, pattern in zip(names, patterns, strict=True)
                )
            case _:
                is_found = False
        if is_found:
            yield getattr(node, "lineno", 0), ast.unparse(node.subject if isinstance(node, ast.Match) else node)


def test_nothing_is_decided_by_a_sentence() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, text in decisions(path.read_text(encoding="utf-8"))
        if text not in WORDS
    ]
    assert found == [], "give what is decided by a field `code`"


@pytest.mark.parametrize(
    "text",
    [
        'if "missing" in event.reason: pass',
        'code = "a" if event.reason == "there was none" else "b"',
        "while item.reason != FILE_IS_OPEN: pass",
        "lives = event.reason.startswith('its worker lives')",
        "if reason.endswith('gone'): pass",
        "if 'volume' in str(error): pass",
        "if 'volume' in str(error).lower(): pass",
        "reason = str(error).removesuffix(': nothing to do here')",
        "if error.args[0] == 'no': pass",
        "if error.args == ('no',): pass",
        "if re.match('its worker', problem.detail): pass",
        "if 'volume' not in failure.strerror: pass",
        "match event.reason:\n    case 'missing': pass",
        "match event:\n    case LeftAlone(reason='missing'): pass",
        "if reason in ('there was none', 'outdated'): pass",
        "if re.search('its worker', str(error)): pass",
        "if ITS_WORKER.search(str(error)): pass",
        "if fnmatch(event.reason, 'its *'): pass",
        "state = STATES[event.reason]",
        "state = STATES.get(reason, 'waits')",
        "if error.args[0] in KNOWN: pass",
        "if 'volume' in str(self.error): pass",
        "if 'volume' in f'{error}': pass",
        "try: pass\nexcept OSError as refusal:\n    if 'volume' in str(refusal): pass",
        "text = str(error)\nif 'volume' in text: pass",
        "if (text := str(error)) == 'volume': pass",
        "lines = str(error).splitlines()[0]\nif lines == 'volume': pass",
        "head, _, tail = event.reason.partition(':')\nif tail == 'gone': pass",
        "if str(error).removeprefix(path) == ': gone': pass",
        "if str(event.reason) == 'missing': pass",
    ],
)
def test_a_decision_by_a_sentence_is_found(text: str) -> None:
    assert len(list(decisions(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "if event.code == 'missing': pass",
        "if reason is not None: pass",
        "yield Refused(name, f'{error}: {item.reason}')",
        "if isinstance(error, UnsupportedError): pass",
        "if error.errno == errno.ENOSPC: pass",
        "match event:\n    case LeftAlone(reason=reason): pass",
        "match event:\n    case LeftAlone(code='missing', reason=reason): yield reason",
        "lines = source[0]\nif lines == 'a': pass",
        "text = str(error)\nnote(text)",
        "found = PATTERN.search(name)",
        "tally[event.reason] += 1",
        "common = event.reason.partition('; ')[0]\nnote(common)",
    ],
)
def test_other_decisions_are_not_found(text: str) -> None:
    assert list(decisions(text)) == []


def worded(reason: str) -> Iterator[Event]:
    """Yield one event of each code."""
    for left in get_args(WhyLeft):
        yield LeftAlone("h/w-0", reason, left)
    for journal in get_args(JournalFault):
        yield JournalRebuilt("h/w-0", 1, reason, journal)
    for index in get_args(IndexFault):
        yield IndexRebuilt("ar.zip", 1, reason, index)


SENTENCES_OF_OLD = ("its worker lives", "its journal is missing", "there was none", "something else altogether")


def codes_of_problems(reason: str) -> list[str | None]:
    problems = map(problem_of, worded(reason))
    return [None if problem is None else problem.code for problem in problems]


def states_of_pairs(reason: str) -> list[str]:
    states = []
    for event in worded(reason):
        if isinstance(event, LeftAlone):
            progress = Progress("scavenge", "base", 0.0)
            progress.take(event, 1.0)
            states += [line.state for line in progress.pairs.values()]
    return states


@pytest.mark.parametrize("reason", SENTENCES_OF_OLD)
def test_a_check_and_the_screen_say_the_same_whatever_the_reasons_are_called(reason: str) -> None:
    assert codes_of_problems(reason) == [
        *[None] * 4, "journal-missing", *["journal-damaged"] * 4, "index-missing", "index-outdated", "index-outdated",
    ]  # fmt: skip
    assert states_of_pairs(reason) == ["live", "live", "waits", "waits"]


@pytest.mark.parametrize("code", get_args(Lack))
def test_the_code_of_an_error_travels_with_it(code: Lack) -> None:
    error = pickle.loads(pickle.dumps(UnsupportedError("the message", code)))
    assert (str(error), error.code) == ("the message", code)


def test_who_does_not_lead_says_what_is_and_what_to_do() -> None:
    error = pickle.loads(pickle.dumps(NotLeaderError("process 1 leads", "nothing to do here")))
    assert str(error) == "process 1 leads: nothing to do here"
    assert error.situation == "process 1 leads"
