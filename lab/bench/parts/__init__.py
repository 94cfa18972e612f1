"""The parts of the benchmarks; each has a `run`, which takes an Effort and returns a Report."""

from collections.abc import Callable, Mapping, Sequence

from lab.bench.contenders import Contender
from lab.bench.figures import build_result
from lab.bench.h2load import Ran
from lab.report import Result

__all__ = ["read_runs"]


def read_runs(
    case: str, runs: Mapping[Contender, Sequence[Ran]], metrics: Mapping[str, Callable[[Ran], float]]
) -> list[Result]:
    """Read the same metrics from the runs of each contender."""
    return [
        build_result(case, contender.title, {metric: [read(ran) for ran in each] for metric, read in metrics.items()})
        for contender, each in runs.items()
    ]
