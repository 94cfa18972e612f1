"""The plots of docs/performance/, as SVG: dots on logarithmic scales, with the range of the rounds as a line.

The files are the same for the same figures: no date, no random ids.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from tests.benchmarks.figures import Figure
from tests.benchmarks.parts import cpu, growth, latency, streams

__all__ = ["draw"]

STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.color": "#dddddd",
    "svg.fonttype": "none",
    "svg.hashsalt": "ollm-bridge",
}
COLOURS = ("#0072b2", "#e69f00", "#d55e00")
"""By Okabe and Ito: colour-blind readers can distinguish them."""
MARKS = "oDs"
BRIDGE_MARK = "(a)"


def draw(kept: Mapping[str, Sequence[Figure]], directory: Path) -> None:
    """Draw the plots of the parts that there are."""
    plots: dict[str, Callable[[Sequence[Figure]], None]] = {
        "cpu": _cpu,
        "latency": _latency,
        "streams": _streams,
        "growth": _growth,
    }
    for part in plots.keys() & kept.keys():
        with mpl.rc_context(STYLE):
            plots[part](kept[part])
            plt.savefig(directory / f"{part}.svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close()


def _cpu(figures: Sequence[Figure]) -> None:
    measures = (cpu.UNARY, cpu.FAST, cpu.PACED)
    _panels(figures, {f"CPU of {measure}, µs": (measure, (cpu.CPU,)) for measure in measures})


def _latency(figures: Sequence[Figure]) -> None:
    measures = (*map(latency.unary_at, latency.FRACTIONS), latency.FIRST_CHUNK)
    _panels(figures, {f"{measure}, ms": (measure, ("p50 ms", "p99 ms", "p99.9 ms")) for measure in measures})


def _streams(figures: Sequence[Figure]) -> None:
    measures = map(streams.streams_of, streams.AT_ONCE)
    late = ("late p50 ms", streams.LATE, "late most ms")
    _panels(figures, {f"{measure}: a chunk is late, ms": (measure, late) for measure in measures})


def _panels(figures: Sequence[Figure], panels: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """A panel a measure, a row a contender, a kind of dot a metric."""
    contenders = list(dict.fromkeys(each.contender for each in figures))
    size = (2.2 + 3.4 * len(panels), 1.3 + 0.3 * len(contenders))
    figure, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False, figsize=size, layout="constrained")
    for panel, (title, (measure, metrics)) in zip(axes[0], panels.items(), strict=True):
        _dots(panel, [each for each in figures if each.measure == measure], contenders, metrics)
        panel.set_title(title)
    if len(next(iter(panels.values()))[1]) > 1:
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


def _dots(panel: Axes, figures: Sequence[Figure], contenders: Sequence[str], metrics: Sequence[str]) -> None:
    for metric, colour, mark in zip(metrics, COLOURS, MARKS, strict=False):
        these = [each for each in figures if each.metric == metric and each.median > 0]
        rows = [contenders.index(each.contender) for each in these]
        panel.hlines(rows, [max(min(e.values), 1e-3) for e in these], [max(e.values) for e in these], colour, lw=1)
        panel.plot([each.median for each in these], rows, mark, color=colour, markersize=5, label=metric)
        if len(metrics) == 1:
            for row, each in zip(rows, these, strict=True):
                panel.annotate(
                    f"{each.median:,.0f}", (each.median, row), (5, 3), textcoords="offset points", fontsize=8
                )
    panel.set_xscale("log")
    panel.margins(x=0.15)
    panel.set_yticks(range(len(contenders)), contenders)
    panel.set_ylim(len(contenders) - 0.5, -0.6)
    for label in panel.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith(BRIDGE_MARK) else "normal")


def _growth(figures: Sequence[Figure]) -> None:
    measures = (growth.MESSAGES, growth.CHUNKS)
    _, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for panel, measure in zip(axes, measures, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for each in figures:
            size, _, kind = each.measure.partition(" ")
            if kind == measure and each.metric == growth.CPU:
                lines.setdefault(each.contender, []).append((int(size.replace(",", "")), each.median))
        for (contender, points), colour, mark in zip(lines.items(), COLOURS, MARKS, strict=False):
            panel.loglog(*zip(*points, strict=True), marker=mark, color=colour, label=contender, markersize=4, lw=1)
        panel.set_xlabel(measure)
        panel.set_title(growth.CPU)
        panel.legend(fontsize=8)
