"""Figures, and what is read from them: pure, so that it can be tested without a server."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from lab.report import Result

__all__ = ["QUANTILES", "build_result", "exponent", "join_rounds", "median", "percentile", "quantiles"]

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def build_result(case: str, contender: str, figures: Mapping[str, Sequence[float]]) -> Result:
    """Return the result of a contender in a case; each figure has a value per round."""
    values = {name: tuple(each) for name, each in figures.items()}
    return Result(case, max(map(len, values.values())), figures=values, contender=contender)


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The least value that so large a part of the ordered values does not exceed: one that was seen (nearest rank)."""
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def quantiles(values: Iterable[float], *, scale: float = 1.0) -> dict[str, float]:
    """p50, p99, p99.9 and the most. Of fewer than 1,000 values the p99.9 is the most."""
    ordered = sorted(values)
    return {name: percentile(ordered, fraction) * scale for name, fraction in QUANTILES.items()} | {
        "most": ordered[-1] * scale
    }


def exponent(costs: Mapping[int, float]) -> float:
    """How a cost grows between the two largest sizes: 1 is linear, 2 is quadratic, less than 1 has a fixed part."""
    (less, cost), (more, higher) = sorted(costs.items())[-2:]
    return math.log(higher / cost) / math.log(more / less)


def join_rounds(results: Iterable[Result]) -> list[Result]:
    """Return one result per case and contender: the values of their rounds, in order."""
    joined: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {}
    for each in results:
        figures = joined.setdefault((each.case, each.contender), {})
        for name, values in each.figures.items():
            figures[name] = figures.get(name, ()) + values
    return [build_result(case, contender, figures) for (case, contender), figures in joined.items()]


def median(results: Iterable[Result], case: str, contender: str, metric: str) -> float | None:
    """Return the median of one figure among others, or None if it was not measured."""
    of = (each.figures.get(metric) for each in results if (each.case, each.contender) == (case, contender))
    return next((statistics.median(values) for values in of if values is not None), None)
