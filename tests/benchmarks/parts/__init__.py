"""The parts of the benchmarks; each has a `run`, which takes an Effort and returns a Result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.contenders import Contender
from tests.benchmarks.figures import Figure
from tests.benchmarks.h2load import Ran

__all__ = ["Result", "figures"]


@dataclass
class Result:
    """`notes` are sentences for the reader, about this run."""

    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def figures(
    measure: str, runs: Mapping[Contender, Sequence[Ran]], metrics: Mapping[str, Callable[[Ran], float]]
) -> list[Figure]:
    """Read the same metrics from the runs of each contender."""
    return [
        Figure(measure, contender.title, metric, tuple(read(ran) for ran in each))
        for contender, each in runs.items()
        for metric, read in metrics.items()
    ]
