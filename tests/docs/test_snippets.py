"""Every command and snippet of README and docs, run: see `snippets` for the notation."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from checkout import ROOT
from snippets import RUN, World, snippets_of

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
WITH_SNIPPETS = [page for page in PAGES if any(one.language in RUN for one in snippets_of(page))]


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_snippets_of_a_page_run(page: Path, tmp_path: Path) -> None:
    with closing(World(tmp_path)) as world:
        for snippet in snippets_of(page):
            if snippet.language in RUN and not snippet.skip:
                world.run(snippet)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_looks_like_a_command_is_marked_as_one(page: Path) -> None:
    for snippet in snippets_of(page):
        if snippet.language == "text":
            looks_so = snippet.text.startswith(("$ ", "rear ", "import ", "from ")) and "[OPTIONS]" not in snippet.text
            assert not looks_so, f"{snippet}: make it a console"


def test_a_snippet_that_is_not_run_says_why() -> None:
    skipped = [one for page in PAGES for one in snippets_of(page) if one.skip]
    assert all(len(one.skip) > 8 for one in skipped)
    assert len(skipped) <= 24, list(map(str, skipped))
