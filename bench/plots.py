"""Draws a run: one SVG a row, growth curves where the row shows how cost grows, and bars where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.results import Result, Run

_REAR, _REAR_MORE, _LIMIT = "#c2410c", "#f59e66", "#9ca3af"
_PEERS = ("#1d4ed8", "#0f766e", "#7c3aed", "#4d7c0f", "#be185d", "#0369a1", "#57534e")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "rear",  # the same file for the same numbers
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(run: Run, folder: Path) -> None:
    """Draw every row of a run into ``<row>.svg``.

    Args:
        run: what was measured.
        folder: made when it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        for row, cases in run.rows().items():
            groups = _groups(cases)
            figure = _curves(groups) if groups else _bars(cases)
            figure.suptitle(row)
            figure.tight_layout()
            figure.savefig(folder / f"{row}.svg", metadata={"Date": None})
            pyplot.close(figure)


def _groups(cases: Mapping[str, Sequence[Result]]) -> dict[str, list[Result]]:
    """Return the results that belong to curves, by what stands before the last comma of their cases."""
    groups: dict[str, list[Result]] = {}
    for case, results in cases.items():
        kind = case.partition(", ")[0] if ", " in case else ""
        groups.setdefault(kind, []).extend(result for result in results if result.x is not None and result.samples)
    return {kind: results for kind, results in groups.items() if len({result.x for result in results}) > 1}


def _colours(results: Sequence[Result]) -> dict[str, str]:
    colours: dict[str, str] = {}
    peers = iter(_PEERS * 4)
    for result in results:
        if result.contender in colours:
            continue
        if result.role == "rear":
            colours[result.contender] = _REAR_MORE if _REAR in colours.values() else _REAR
        else:
            colours[result.contender] = _LIMIT if result.role == "limit" else next(peers)
    return colours


def _curves(groups: Mapping[str, Sequence[Result]]) -> Figure:
    figure, axes = pyplot.subplots(1, len(groups), figsize=(4.6 * len(groups) + 1, 3.6), squeeze=False)
    for axis, (kind, results) in zip(axes[0], groups.items(), strict=True):
        colours = _colours(results)
        for contender, colour in colours.items():
            points = sorted(
                (result.x, result.median() or 0.0, result.scale)
                for result in results
                if result.contender == contender and result.x is not None
            )
            style = "--" if colour == _LIMIT else "-"
            heights = [median * scale for _, median, scale in points]
            axis.plot([x for x, *_ in points], heights, style, marker="o", markersize=3, color=colour, label=contender)
        axis.set_title(kind, fontsize=9)
        axis.set_xlabel(_meaning_of_x(results[0].row))
        axis.set_ylabel(results[0].unit)
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
        axis.legend(fontsize=7, frameon=False)
    return figure


def _meaning_of_x(row: str) -> str:
    meanings = {
        "latency": "ms a metadata request",
        "memory": "GiB of the member",
        "merge-growth": "members that were there before",
    }
    return meanings.get(row, "members")


def _bars(cases: Mapping[str, Sequence[Result]]) -> Figure:
    whole = {case: [result for result in results if result.samples] for case, results in cases.items()}
    heights = [max(1, len(results)) for results in whole.values()]
    figure, axes = pyplot.subplots(
        len(whole), 1, figsize=(7, 0.26 * sum(heights) + 0.75 * len(whole) + 0.4), squeeze=False, height_ratios=heights
    )
    for axis, (case, results) in zip(axes[:, 0], whole.items(), strict=True):
        _draw_case(axis, case, results)
    return figure


def _draw_case(axis: Axes, case: str, results: Sequence[Result]) -> None:
    colours = _colours(results)
    for position, result in enumerate(results):
        values = [value * result.scale for value in result.values(result.quantity)]
        median = (result.median() or 0.0) * result.scale
        axis.barh(
            position, median, 0.7, color=colours[result.contender],
            xerr=[[median - min(values)], [max(values) - median]], error_kw={"linewidth": 0.8, "ecolor": "#374151"},
        )  # fmt: skip
    axis.set_yticks(range(len(results)), [result.contender for result in results])
    axis.invert_yaxis()
    axis.set_title(f"{case}: {results[0].unit}" if results else case, fontsize=9, loc="left")
