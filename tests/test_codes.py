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
from rear.fsck.base import problem_of

SOURCE = Path(rear.__file__).parent
SENTENCES = frozenset({"reason", "message", "detail", "strerror", "situation"})
"""Attributes, and variables, that hold text for people."""
ERRORS = frozenset({"error", "exc", "exception", "failure", "cause"})
READERS = frozenset({"startswith", "endswith", "removesuffix", "find", "index", "count", "split", "rsplit"})
WORDS = {"closed.reason != 'poisoned'"}
"""In the last record of a journal the reason is a word: see docs/reference/format.md."""


def reads_sentence(node: ast.AST) -> bool:
    """Whether an expression is a sentence: ``x.reason``, ``str(error)``, ``error.args`` or a part of one."""
    match node:
        case ast.Attribute(attr="args", value=ast.Name(id=name)):
            return name in ERRORS
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name in SENTENCES
        case ast.Call(func=ast.Name(id="str" | "repr"), args=[ast.Name(id=name)]):
            return name in ERRORS
        case (
            ast.Subscript(value=value) | ast.Call(func=ast.Attribute(value=value, attr="lower" | "strip" | "casefold"))
        ):
            return reads_sentence(value)
    return False


def decisions(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a program where something is decided by a sentence."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(left=left, ops=operators, comparators=others):
                sides = [left, *others]
                is_test_for_none = all(isinstance(one, (ast.Is, ast.IsNot)) for one in operators)
                if not is_test_for_none and any(map(reads_sentence, sides)):
                    yield node.lineno, ast.unparse(node)
            case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in READERS and reads_sentence(value):
                yield node.lineno, ast.unparse(node)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re")), args=arguments):
                if any(map(reads_sentence, arguments)):
                    yield node.lineno, ast.unparse(node)
            case ast.Match(subject=subject) if reads_sentence(subject):
                yield node.lineno, ast.unparse(subject)


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
        *[None] * 4, "journal-missing", *["journal-damaged"] * 3, "index-missing", "index-outdated", "index-outdated",
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
