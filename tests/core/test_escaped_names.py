"""Names of files that no member can have: escaped, taken back, and nothing else made of them."""

from __future__ import annotations

import itertools
import os
import random

import pytest

import rear
from rear.core.escaped_names import escape_path, member_folder, member_name, member_target
from rear.core.names import check_name
from rear.errors import PathError

LETTERS = [
    b"%",
    b"0",
    b"A",
    b"a",
    b"2",
    b"5",
    b"C",
    b"F",
    b"\\",
    b"\n",
    b"\x7f",
    b"\x85",
    b"\xc2",
    b"\xc3",
    b"\xa9",
    b".",
]


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("plain.txt", "plain.txt"), ("a\nb", "a%0Ab"), ("a\\b", "a%5Cb"), ("\x7f\x1b", "%7F%1B"), ("\x85", "%C2%85"),
        ("\udcff", "%FF"), ("é", "é"), ("e\u0301", "e\u0301"), ("\u202e", "\u202e"), ("a\n/b\\", "a%0A/b%5C"),
        # A percent sign counts only where it would be taken for an escape.
        ("100%", "100%"), ("%20", "%20"), ("%2F", "%2F"), ("%2E%2E", "%2E%2E"), ("%0a", "%0a"), ("%00", "%00"),
        ("%0A", "%250A"), ("%250A", "%25250A"), ("%%0A", "%%250A"), ("%C3%A9", "%25C3%25A9"), ("%\n", "%%0A"),
        # Bytes that are UTF-8 only together.
        ("\udcc3\udca9", "é"), ("\udcc3\n\udca9", "%C3%0A%A9"),
    ],
)  # fmt: skip
def test_what_is_escaped(name: str, escaped: str) -> None:
    assert rear.escape_name(name) == escaped
    assert os.fsencode(rear.unescape_name(escaped)) == os.fsencode(name)
    check_name(escaped)


@pytest.mark.parametrize(
    "name",
    [
        "%C3%A9",
        "%41",
        "%2F",
        "%2E%2E",
        "%00",
        "%0a",
        "%",
        "%0",
        "%25",
        "%2541",
        "%2F%0A%2F%41%C3%A9",
        "%E2%82%AC",
    ],
)
def test_what_only_looks_escaped_stays(name: str) -> None:
    assert rear.unescape_name(name) == name


def test_each_part_is_taken_back_by_itself() -> None:
    assert rear.unescape_name("%C3%A9/%0A/%2F/") == "%C3%A9/\n/%2F/"


def test_no_two_names_become_the_same() -> None:
    names = [b"".join(letters) for length in range(1, 5) for letters in itertools.product(LETTERS, repeat=length)]
    names += [bytes([byte]) for byte in range(1, 256)]
    escaped = {}
    for name in dict.fromkeys(names):
        member = rear.escape_name(os.fsdecode(name))
        check_name(f"x{member}")
        assert escaped.setdefault(member, name) == name
        assert os.fsencode(rear.unescape_name(member)) == name


def test_nothing_leaves_its_folder() -> None:
    """Whatever is taken back is one part, and none that leads elsewhere."""
    chance = random.Random(5)
    alphabet = "%%%%0123456789ABCDEFacf./"
    for _ in range(50_000):
        name = "".join(chance.choices(alphabet, k=chance.randrange(1, 16)))
        for part, plain in zip(name.split("/"), rear.unescape_name(name).split("/"), strict=True):
            assert "\0" not in plain
            assert plain == part or plain not in ("", ".", "..")
            assert plain == part or rear.escape_name(plain) == part


def test_targets() -> None:
    assert escape_path("a%0A/ar.zip/b%0A\n.zip/c") == "a%0A/ar.zip/b%250A%0A.zip/c"
    assert member_target("ar.zip/a\nb", escape=True) == ("ar.zip", "a%0Ab")
    assert member_folder("ar.zip/a\nb/", escape=True) == ("ar.zip", "a%0Ab/")
    assert member_folder("ar.zip", escape=True) == ("ar.zip", "")
    assert member_name("a\\b", escape=True, prefix="p/") == "p/a%5Cb"
    with pytest.raises(PathError):
        # The path of an archive is that of a file.
        member_target("a\n.zip/b", escape=True)


def test_who_is_refused_hears_of_the_option() -> None:
    for refused in (
        lambda: member_target("ar.zip/a\nb", escape=False),
        lambda: member_folder("ar.zip/a\nb", escape=False),
        lambda: member_name("a\nb", escape=False),
    ):
        with pytest.raises(PathError, match=r"U\+000A.*--escape-names.*escape_names=True.*a%0Ab"):
            refused()
    for name in ("a//b", "../a\n", "a\0b", "x" * 70_000):
        with pytest.raises(PathError) as caught:
            member_name(name, escape=False)
        assert "--escape-names" not in str(caught.value)
