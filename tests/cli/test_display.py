"""What a screen, lines and the summary tell, without a terminal: state made of events, text that fits."""

from __future__ import annotations

import dataclasses
import io
import logging
import random
import time
import unicodedata
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from rear import events
from rear.cli.display.cells import Column, aligned, row, shortened
from rear.cli.display.follow import follow, show
from rear.cli.display.lines import REMINDER_SECONDS, Lines, progress_line
from rear.cli.display.progress import FINDINGS_KEPT, Progress
from rear.cli.display.screen_parts import clock_text, frame, share
from rear.cli.display.screen_rows import ARCHIVE_LIMIT, PAIR_LIMIT
from rear.cli.display.summary import summary_lines, summary_of
from rear.cli.display.wording import describe
from rear.cli.lenient_stream import LenientStream
from rear.core.problems import Problem
from rear.core.text import seconds_text, shown, size_text
from rear.events import (
    Advanced,
    Checked,
    Claimed,
    Cleared,
    Copied,
    Damaged,
    Event,
    Finished,
    LeftAlone,
    Lost,
    Merged,
    Planned,
    Recovered,
    Refused,
    RoundStarted,
    Started,
)

LOST = Lost("ar.zip", "a\x1b[2J.txt", "h/w-0", None, 10, 20, "its data is damaged", ".rear/lost+found/x")


def fed(happened: Iterable[Event], command: str = "scavenge", **options: bool) -> Progress:
    """A progress to which one event comes a second."""
    progress = Progress(command, "/base", 0.0, **options)
    for second, event in enumerate(happened, 1):
        progress.take(event, float(second))
    return progress


def scavenge_of(pairs: int, archives: int = 1) -> Iterable[Event]:
    """The events of a scavenge of one round, as `rear.scavenge` yields them."""
    yield Started("/base", "node1-1-ab")
    yield Advanced("recovering")
    yield Advanced("claiming", None, 0, pairs)
    yield RoundStarted(pairs, 10 * pairs, 1000 * pairs)
    for pair in range(pairs):
        yield Claimed(f"node{pair % 7}/{pair}-0", "crashed" if pair % 10 == 1 else "closed", 10, 1000)
    for number in range(archives):
        archive, size = f"runs/{number}/ar.zip", 1000 * pairs // archives
        yield Advanced("planning", archive, 0, 10 * pairs)
        yield Planned(archive, 10 * pairs // archives, size, 0, 0, 1)
        yield Advanced("copying", archive, 0, size)
        yield Copied(archive, size // 2, size)
        yield Merged(archive, 10 * pairs // archives, size, 5 * size)
        yield Advanced("indexing", archive)
    yield Advanced("clearing", None, 0, pairs)
    for pair in range(pairs):
        yield Cleared(f"node{pair % 7}/{pair}-0")
    yield Finished(10 * pairs, 1000 * pairs, archives, 0, 0, 0, 0, 0, 0, ".rear/reports/r.json")


def text_of(progress: Progress, width: int = 80, height: int = 24, now: float = 100.0) -> str:
    return "\n".join(line.plain.rstrip() for line in frame(progress, now, width=width, height=height))


# ---- state


def test_a_scavenge_from_begin_to_end() -> None:
    happened = list(scavenge_of(20))
    progress = fed(happened[:8])
    assert (progress.leader, progress.phase, progress.known_bytes) == ("node1-1-ab", "checking", 20_000)
    assert progress.pairs["node1/1-0"].state == "crashed"
    copied = next(number for number, event in enumerate(happened) if isinstance(event, Copied))
    progress = fed(happened[: copied + 1])
    assert (progress.phase, progress.done_bytes, progress.fraction) == ("copying", 10_000, 0.5)
    assert progress.archives["runs/0/ar.zip"].is_busy
    assert "copying 50 %" in text_of(progress)
    progress = fed(happened)
    assert (progress.merged_members, progress.done_bytes, progress.fraction) == (200, 20_000, 1.0)
    assert progress.cleared_pairs == 20
    assert not progress.pairs, "what is cleared is not shown any more"
    assert progress.archives["runs/0/ar.zip"].state == "merged"


def test_time_left_follows_from_what_each_step_took() -> None:
    happened = list(scavenge_of(20))
    merged = next(number for number, event in enumerate(happened) if isinstance(event, Copied))
    progress = fed(happened[: merged + 1])
    assert progress.seconds_left(progress.last) == pytest.approx(3.0), "half of the bytes took planning and copying"
    assert fed(happened[:3]).seconds_left(4.0) is None, "nobody can know yet"


def test_pairs_that_are_still_to_come_count_as_much_as_those_before() -> None:
    progress = fed(
        [
            Advanced("claiming", None, 0, 100),
            RoundStarted(25, 250, 5000),
            LeftAlone("h/w-0", "its worker lives", "worker-lives"),
        ]
    )
    assert progress.is_guess
    assert (progress.expected_pairs, progress.expected_bytes) == (99, 19_800)
    assert "of about" in progress_line(progress, 3.0)


def test_salvage_and_quarantine_are_told_pair_by_pair() -> None:
    progress = fed(
        [RoundStarted(2, 50, 500), Claimed("h/w-0", "crashed", 40, 400), Advanced("checking", "h/w-0", 12, 40)]
    )
    assert "crashed → salvaging 12 of 40" in text_of(progress, 120)
    for event in (LOST, Claimed("h/x-0", "stale", 10, 100)):
        progress.take(event, 5.0)
    assert "crashed → salvaged 39 of 40" in text_of(progress, 120)
    progress.take(Damaged("h/x-0", 0, 0, "no member can be placed", ".rear/lost+found/y"), 6.0)
    assert "quarantined" in text_of(progress, 120)
    assert progress.needs_attention
    assert progress.found == {"LOST": 1, "DAMAGED": 1}


def test_only_what_was_archived_from_its_source_is_called_so() -> None:
    found = [Recovered("ar.zip", "a", "h/w-0", "no record"), Recovered("ar.zip", "b", "h/w-0", "damaged", "/scratch/b")]
    assert fed(found).found == {"recovered": 1, "re-archived from source": 1}


def test_a_check_counts_what_became_of_problems() -> None:
    progress = fed(
        [
            Advanced("inspecting", "a.zip", 0, 2), Problem("archive-gap", "a.zip", "10 zeros", "noted"),
            Advanced("inspecting", "b.zip", 1, 2), Problem("member-data-damaged", "b.zip", "bad CRC", "left", name="x"),
            Advanced("comparing", "a.zip", 0, 2), Advanced("comparing", "b.zip", 1, 2), Checked("/base", 2, 7, None),
        ],
        "fsck",
    )  # fmt: skip
    assert progress.outcomes == {"noted": 1, "left": 1}
    assert {line.archive: line.state for line in progress.archives.values()} == {"a.zip": "whole", "b.zip": "damaged"}
    title, *rest = [line.text for line in summary_lines(progress, lists_all=False)]
    assert title == "/base: 1 left, 1 noted"
    assert "2 archives with 7 members" in rest


@pytest.mark.parametrize("state", ["closed", "crashed"])
def test_memory_is_bounded_however_much_there_is(state: str) -> None:
    progress = Progress("scavenge", "/base", 0.0)
    count = 10_000
    progress.take(RoundStarted(count, count, count), 1.0)
    for number in range(count):
        progress.take(Claimed(f"h/{number}-0", state, 1, number), 1.0)
        progress.take(LeftAlone(f"live/{number}-0", "its worker lives", "worker-lives"), 1.0)
        progress.take(Planned(f"{number}.zip", 1, 1, 0, 0, 1), 1.0)
        progress.take(Merged(f"{number}.zip", 1, 1, 1), 1.0)
        progress.take(LOST, 1.0)
    assert len(progress.pairs) <= PAIR_LIMIT
    assert len(progress.archives) <= ARCHIVE_LIMIT
    assert len(progress.findings) == FINDINGS_KEPT
    assert len(progress.pairs) + sum(progress.pairs.more.values()) == 2 * count, "the rest is counted"
    assert len(progress.archives) + progress.archives.more == count
    assert progress.merged_archives == count
    shown_text = text_of(progress, 100, 40)
    assert "h/9999-0".partition("/")[2] in shown_text, "the busiest one comes first"
    assert f"{state}" in shown_text
    assert "10,000 LOST" in shown_text
    lines = list(summary_lines(progress, lists_all=True))
    assert len(lines) < 40


def test_events_cost_little() -> None:
    happened = list(scavenge_of(10_000, archives=500))
    best = min(_seconds_of(happened) for _ in range(3))
    assert best < 50e-6, f"{best * 1e6:.1f} µs an event"


def _seconds_of(happened: list[Event]) -> float:
    progress, begin = Progress("scavenge", "/base", 0.0), time.process_time()
    for event in happened:
        progress.take(event, 1.0)
    return (time.process_time() - begin) / len(happened)


def test_every_event_is_taken_and_shown_by_all_views(capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "str": "x\x1b", "int": 3, "float": 1.0, "bool": True, "str | None": None, "int | None": 5,
        "float | None": 5.0, "Phase": "claiming", "WhyLeft": "taken", "JournalFault": "missing",
        "IndexFault": "missing",
    }  # fmt: skip
    kinds = {kind.__name__: kind for kind in Event.__subclasses__() if kind.__module__ == events.__name__}
    happened = [
        kind(*[values[str(field.type)] for field in dataclasses.fields(kind)])
        for kind in kinds.values()
        if kind is not Claimed
    ]
    happened.append(Claimed("h/w-0", "closed", 1, 1))
    for style in ("plain", "quiet", "json"):
        follow(happened, style, command="scavenge", subject="/base")
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err
    progress = fed(happened)
    for width in (80, 30):
        assert "\x1b" not in text_of(progress, width)


# ---- text that fits

NAMES = st.text(st.characters(exclude_categories=()), max_size=60) | st.text(
    "ab測Größe\u0301\u0300🗜\\\n\x1b\udce9", max_size=60
)


@given(NAMES, st.integers(0, 50))
def test_a_shortened_name_fits_and_keeps_both_ends(name: str, width: int) -> None:
    short = shortened(name, width)
    assert cell_len(short) <= width
    assert short.isprintable()
    assert cell_len(aligned(name, width)) == width
    if cell_len(shown(name)) <= width:
        assert short == shown(name)
    elif width >= 3:
        head, _, tail = short.partition("…")
        assert shown(name).startswith(head)
        assert shown(name).endswith(tail)
        assert cell_len(short) >= width - 2, "only a wide character may leave a cell free"
        assert not (tail and unicodedata.combining(tail[0]))


def test_a_name_is_shortened_in_the_middle() -> None:
    assert shortened("runs/2026/experiment-17/ar.zip", 15) == "runs/20…/ar.zip"
    assert shortened("測定結果の一覧表.zip", 11) == "測定….zip"
    assert shortened("x" * 10**6, 9) == "xxxx…xxxx"
    assert shortened("a\nb", 9) == r"a\nb"


@pytest.mark.parametrize("width", [1, 2, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 5, 8, 12, 24, 60])
def test_a_frame_fits_any_screen(width: int, height: int) -> None:
    progress = fed(list(scavenge_of(300, archives=40))[:-250])
    progress.subject = "/nfs/測定/" + "very-long" * 30
    for number in range(50):
        progress.take(LOST, 2000.0 + number)
        progress.take(Refused("ar.zip", "no space\non device"), 2000.0)
    lines = frame(progress, 3000.0, width=width, height=height)
    assert len(lines) <= height
    assert all(cell_len(line.plain) <= width for line in lines)
    if width >= 40 and height >= 12:
        assert "50 LOST" in text_of(progress, width, height)
        assert len(lines) >= height - 3, "the space is used"


def test_a_frame_of_ascii_alone() -> None:
    lines = frame(fed(list(scavenge_of(30))[:30]), 100.0, width=80, height=24, is_ascii=True)
    assert all(line.plain.isascii() for line in lines)


def test_lines_are_shared_fairly() -> None:
    assert share(10, [2, 100, 100]) == [2, 4, 4]
    assert share(3, [5, 5, 5]) == [1, 1, 1]
    assert share(2, [5, 5, 5]) == [1, 1, 0]
    assert share(-4, [5]) == [0]
    assert share(100, [1, 2]) == [1, 2]
    choose = random.Random(1)
    for _ in range(100):
        needs, available = [choose.randrange(20) for _ in range(4)], choose.randrange(60)
        shares = share(available, needs)
        assert sum(shares) == min(available, sum(needs))
        assert all(part <= need for part, need in zip(shares, needs, strict=True))


def test_rows_have_the_width_that_was_asked_for() -> None:
    columns = [Column("NAME", 0), Column("SIZE", 6, True)]
    assert row([("測定.zip", ""), ("12 kB", "")], columns, 20).plain == "測定.zip       12 kB"
    assert cell_len(row([("x" * 99, ""), ("1", "")], columns, 20).plain) == 20


def test_sizes_and_times() -> None:
    sizes = [0, 1, 999, 1000, 999_949, 999_950, 35_700, 10**12, 10**18]
    assert [size_text(size) for size in sizes] == [
        "0 bytes", "1 byte", "999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "35.7 kB", "1.0 TB", "1,000.0 PB",
    ]  # fmt: skip
    assert [seconds_text(seconds) for seconds in (0.04, 59.0, 61, 7500)] == [
        "0.0 s",
        "59.0 s",
        "1 min 1 s",
        "2 h 5 min",
    ]
    assert [clock_text(seconds) for seconds in (7, 754, 3723)] == ["0:07", "12:34", "1:02:03"]


# ---- lines and summary


def test_long_runs_are_reminded_of_in_lines() -> None:
    stream = io.StringIO()
    progress = Progress("scavenge", "/base", 0.0)
    lines = Lines(progress, LenientStream(stream), is_quiet=False)
    for now, event in (
        (0.0, RoundStarted(2, 20, 4000)),
        (1.0, Claimed("h/w-0", "closed", 20, 4000)),
        (2.0, Advanced("planning", "ar.zip", 0, 20)),
        (3.0, Advanced("copying", "ar.zip", 0, 4000)),
        (REMINDER_SECONDS + 2, Copied("ar.zip", 1000, 4000)),
        (REMINDER_SECONDS + 3, Copied("ar.zip", 1100, 4000)),
    ):
        progress.take(event, now)
        lines.show(event)
    assert stream.getvalue().splitlines() == [
        "h/w-0: 20 members, 4.0 kB", "copying ar.zip: 1.0 kB of 4.0 kB, 1 min 30 s left",
    ]  # fmt: skip


def test_normal_work_is_counted_after_some_lines_and_findings_are_never_silent() -> None:
    stream = io.StringIO()
    progress = Progress("scavenge", "/base", 0.0)
    lines = Lines(progress, LenientStream(stream), is_quiet=True)
    for event in [Claimed("h/w-0", "closed", 1, 1)] * 30 + [LOST] * 25:
        progress.take(event, 1.0)
        lines.show(event)
    lines.close()
    shown_lines = stream.getvalue().splitlines()
    assert len(shown_lines) == 21
    assert shown_lines[0] == shown(describe(LOST))
    assert shown_lines[-1] == "… and 5 more of kind lost"


def test_the_summary_reads_well() -> None:
    happened = [*list(scavenge_of(20, archives=2))[:-1], LOST, LeftAlone("h/x-0", "its worker lives", "worker-lives")]
    progress = fed([*happened, Finished(200, 20_000, 2, 0, 0, 0, 1, 0, 1, ".rear/reports/r.json")])
    lines = [(line.head, line.text) for line in summary_lines(progress, lists_all=False)]
    assert lines == [
        ("", f"/base: scavenged in {seconds_text(progress.last)} by node1-1-ab"),
        ("merged", "200 members (20.0 kB) into 2 archives"),
        ("", "runs/0/ar.zip  100 members  10.0 kB  now 50.0 kB"),
        ("", "runs/1/ar.zip  100 members  10.0 kB  now 50.0 kB"),
        ("crashed", "2 workers: 20 members checked one by one"),
        ("LOST", "1 member, what there is of it is in lost+found"),
        ("", f"- {describe(LOST)}"),
        ("left alone", "1 temp archive: its worker lives"),
        ("report", ".rear/reports/r.json"),
        ("next", "look at .rear/lost+found: what there is of them is kept there; rear fsck checks the whole base"),
    ]
    found = summary_of(progress).as_json()
    assert (found["kind"], found["status"], found["needs_attention"], found["found"]) == (
        "summary",
        "done",
        True,
        {"lost": 1},
    )


def test_warnings_of_the_library_are_findings(capsys: pytest.CaptureFixture[str]) -> None:
    def happened() -> Iterable[Event]:
        logging.getLogger("rear").warning("the index of %s could not be written", "a\x07.zip")
        yield Finished(0, 0, 0, 0, 0, 0, 0, 0, 0, None)

    progress = follow(happened(), "plain", command="scavenge", subject="/base")
    assert progress.found == {"warning": 1}
    assert capsys.readouterr().err == "warning: the index of a\\x07.zip could not be written\n"


def test_a_command_may_sum_up_in_words_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert show([LOST], "plain")
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{shown(describe(LOST))}\n")


class Gone(io.StringIO):
    """A terminal that has disappeared."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_a_lenient_stream_goes_silent_when_nobody_is_there() -> None:
    for stream in (None, Gone()):
        lenient = LenientStream(stream)
        assert lenient.write("text") == 4
        lenient.flush()
    assert not LenientStream(None).isatty()
