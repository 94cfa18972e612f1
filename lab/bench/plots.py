"""The plots of docs/performance/, as SVG: dots on logarithmic scales, with the range of the rounds as a line.

`lab/plots.py` has their style, and saves them.
"""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from matplotlib.axes import Axes

from lab.bench import summary
from lab.bench.figures import median
from lab.bench.parts import growth, latency, streams
from lab.plots import open_plot
from lab.report import Result

__all__ = ["draw"]

COLOURS = ("#0072b2", "#e69f00", "#d55e00")
"""By Okabe and Ito: colour-blind readers can distinguish them."""
GREY = "#999999"
MARKS = "oDs"
TITLE_CHARS_MAX = 36
SUMMARY_COSTS = 3
"""Of the summary's columns, those that are CPU."""
BRIDGE_MARK = "(a)"


def draw(kept: Mapping[str, Sequence[Result]], directory: Path) -> None:
    """Draw the summary, and the plots of the parts that are kept."""
    with open_plot(directory / "summary.svg") as plt:
        _summary(plt, kept)
    plots = {"latency": _latency, "streams": _streams, "growth": _growth}
    for part in plots.keys() & kept.keys():
        with open_plot(directory / f"{part}.svg") as plt:
            plots[part](plt, kept[part])


def _summary(plt: ModuleType, kept: Mapping[str, Sequence[Result]]) -> None:
    """A bar per contender of the summary and cost, with its figure: the lengths are logarithmic."""
    costs = list(summary.COSTS.items())[:SUMMARY_COSTS]
    names = [words.replace("**", "") for words in summary.TITLES.values()]
    size = (2.2 + 3.2 * len(costs), 0.6 + 0.34 * len(names))
    _, axes = plt.subplots(1, len(costs), sharey=True, squeeze=False, figsize=size, layout="constrained")
    for panel, (title, (part, case, metric)) in zip(axes[0], costs, strict=True):
        values = [median(kept.get(part, ()), case, contender, metric) for contender in summary.TITLES]
        colours = [COLOURS[0] if name.startswith("ollm-bridge") else GREY for name in names]
        panel.barh(names, [value or 0.0 for value in values], color=colours, height=0.65)
        panel.set_xscale("log")
        panel.margins(x=0.25)
        for row, value in enumerate(values):
            if value is not None:
                place = {"textcoords": "offset points", "fontsize": 8}
                panel.annotate(summary.format_cost(value), (value, row), (4, -3), **place)
        panel.set_title(textwrap.fill(f"CPU of a {title}", TITLE_CHARS_MAX))
        panel.invert_yaxis()


def _latency(plt: ModuleType, results: Sequence[Result]) -> None:
    cases = (latency.MODERATE, *map(latency.name_unary, latency.FRACTIONS), latency.FIRST_CHUNK)
    _panels(plt, results, {f"{case}, ms": (case, ("p50 ms", "p99 ms", "p99.9 ms")) for case in cases})


def _streams(plt: ModuleType, results: Sequence[Result]) -> None:
    late = ("late p50 ms", streams.LATE, "late most ms")
    cases = map(streams.name_streams, streams.AT_ONCE)
    _panels(plt, results, {f"{case}: a chunk is late, ms": (case, late) for case in cases})


def _panels(plt: ModuleType, results: Sequence[Result], panels: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """A panel per case that was measured, a row per contender, a kind of dot per metric."""
    measured = {each.case for each in results}
    panels = {title: (case, metrics) for title, (case, metrics) in panels.items() if case in measured}
    contenders = list(dict.fromkeys(each.contender for each in results))
    size = (2.2 + 3.4 * len(panels), 1.3 + 0.3 * len(contenders))
    figure, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False, figsize=size, layout="constrained")
    for panel, (title, (case, metrics)) in zip(axes[0], panels.items(), strict=True):
        _dots(panel, [each for each in results if each.case == case], contenders, metrics)
        panel.set_title(title)
    if len(next(iter(panels.values()))[1]) > 1:
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


def _dots(panel: Axes, results: Sequence[Result], contenders: Sequence[str], metrics: Sequence[str]) -> None:
    for metric, colour, mark in zip(metrics, COLOURS, MARKS, strict=False):
        these = [(contenders.index(each.contender), each.figures[metric]) for each in results if metric in each.figures]
        points = [(row, min(values), statistics.median(values), max(values)) for row, values in these]
        rows, least, middle, most = zip(*(each for each in points if each[2] > 0), strict=True)
        panel.hlines(rows, [max(each, 1e-3) for each in least], most, colour, lw=1)
        panel.plot(middle, rows, mark, color=colour, markersize=5, label=metric)
        if len(metrics) == 1:
            for row, each in zip(rows, middle, strict=True):
                panel.annotate(f"{each:,.0f}", (each, row), (5, 3), textcoords="offset points", fontsize=8)
    panel.set_xscale("log")
    panel.margins(x=0.15)
    panel.set_yticks(range(len(contenders)), contenders)
    panel.set_ylim(len(contenders) - 0.5, -0.6)
    for label in panel.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith(BRIDGE_MARK) else "normal")


def _growth(plt: ModuleType, results: Sequence[Result]) -> None:
    _, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for panel, kind in zip(axes, (growth.MESSAGES, growth.CHUNKS), strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for each in results:
            size, _, its_kind = each.case.partition(" ")
            if its_kind == kind and growth.CPU in each.figures:
                point = (int(size.replace(",", "")), statistics.median(each.figures[growth.CPU]))
                lines.setdefault(each.contender, []).append(point)
        for (contender, points), colour, mark in zip(lines.items(), COLOURS, MARKS, strict=False):
            panel.loglog(*zip(*points, strict=True), marker=mark, color=colour, label=contender, markersize=4, lw=1)
        panel.set_xlabel(kind)
        panel.set_title(growth.CPU)
        panel.legend(fontsize=8)
