"""Figures, and what is read from them: pure, so that it can be tested without a server."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["QUANTILES", "Figure", "exponent", "join_rounds", "median", "percentile", "quantiles"]

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True)
class Figure:
    """The results of one contender in one measure. `metric` ends in its unit; `values` has one value per round."""

    measure: str
    contender: str
    metric: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


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


def join_rounds(figures: Iterable[Figure]) -> list[Figure]:
    """One figure for those of several rounds."""
    values: dict[tuple[str, str, str], tuple[float, ...]] = {}
    for each in figures:
        key = (each.measure, each.contender, each.metric)
        values[key] = values.get(key, ()) + each.values
    return [Figure(*key, each) for key, each in values.items()]


def median(figures: Iterable[Figure], measure: str, contender: str, metric: str) -> float | None:
    """Return the median of one figure among others, or None if it was not measured."""
    key = (measure, contender, metric)
    return next((each.median for each in figures if (each.measure, each.contender, each.metric) == key), None)
