"""The values of the metrics of METRICS: plain numbers, which one thread writes and others may copy.

No lock guards them: the event loop's thread alone writes, and `merge` may copy in another thread, since it takes each
dict as a whole by one operation of Python's. A histogram that is written meanwhile may lack its last value in some of
its figures; the next copy has it.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, TypeAlias

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from bridge.telemetry.metric_table import METRICS, MODEL_LABELS, MetricSpec

__all__ = ["MODELS_MAX", "OTHER_MODEL", "Histogram", "Labels", "ModelLabels", "Store"]

MODELS_MAX: Final = 100
"""Models with a label of their own. Each costs about 90 series; a gateway has a few dozen models."""
OTHER_MODEL: Final = "other"

Labels: TypeAlias = tuple[str, ...]


class Histogram:
    """Values counted by bucket: the first whose upper bound is not less than the value. The last has no bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, counts: Sequence[int], sum_: float) -> None:
        """Add the figures of another histogram of the same bounds. Raises ValueError if the bounds differ in number."""
        self.counts = [mine + other for mine, other in zip(self.counts, counts, strict=True)]
        self.sum += sum_

    def cumulative(self) -> list[int]:
        """Return for each bucket the number of values up to its bound; the last is the number of all."""
        return list(accumulate(self.counts))


class _Series(dict[Labels, Histogram]):
    """A metric's histograms by their labels' values, made when they are first asked for."""

    def __init__(self, bounds: Sequence[float]) -> None:
        super().__init__()
        self.bounds = bounds

    def __missing__(self, labels: Labels) -> Histogram:
        histogram = self[labels] = Histogram(self.bounds)
        return histogram


class ModelLabels:
    """Which models have a label of their own: the first MODELS_MAX that were added, for good."""

    def __init__(self) -> None:
        self._models: set[str] = set()

    def find(self, model: str, *, add: bool) -> str:
        """Return the model's label. `add` says whether a new model may take a place, if one is left."""
        if model in self._models:
            return model
        if not add or not model or len(self._models) >= MODELS_MAX:
            return OTHER_MODEL
        self._models.add(model)
        return model


class Store:
    """The values of every metric, by its key in METRICS and by its labels' values."""

    def __init__(self) -> None:
        self.numbers: dict[str, defaultdict[Labels, float]] = {}
        self.histograms: dict[str, _Series] = {}
        for key, spec in METRICS.items():
            if spec.kind == "histogram":
                self.histograms[key] = series = _Series(spec.buckets)
                if not spec.labels:
                    series[()] = Histogram(spec.buckets)
            else:
                self.numbers[key] = defaultdict(int, {} if spec.labels else {(): 0})

    def merge(self, other: "Store", *, gauges: bool = True, models: ModelLabels | None = None) -> None:
        """Add the values of another store. `models` bounds the models of several stores together."""
        for key, numbers in other.numbers.items():
            if key != "info" and (gauges or METRICS[key].kind != "gauge"):  # versions are not to be summed
                mine, is_sum = self.numbers[key], METRICS[key].total == "sum"
                for labels, value in dict(numbers).items():
                    mine[labels] = mine[labels] + value if is_sum else min(mine.get(labels, value), value)
        for key, series in other.histograms.items():
            place = _MODEL_PLACES.get(key) if models else None
            for labels, histogram in dict(series).items():
                if models and place is not None:
                    model = models.find(labels[place], add=labels[place] != OTHER_MODEL)
                    labels = (*labels[:place], model, *labels[place + 1 :])  # noqa: PLW2901 - the same series, bounded
                self.histograms[key][labels].add(histogram.counts, histogram.sum)

    def dump(self) -> dict[str, Any]:
        """Return the values as JSON's types, for `load`."""
        return {
            "numbers": {key: list(numbers.items()) for key, numbers in self.numbers.items()},
            "histograms": {
                key: [(labels, histogram.counts, histogram.sum) for labels, histogram in series.items()]
                for key, series in self.histograms.items()
            },
        }

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> "Store":
        """Return the store that was dumped. Raises KeyError, TypeError or ValueError if it was none."""
        store = cls()
        for key, numbers in dumped["numbers"].items():
            store.numbers[key].update((tuple(labels), value) for labels, value in numbers)
        for key, series in dumped["histograms"].items():
            for labels, counts, sum_ in series:
                store.histograms[key][tuple(labels)].add(counts, sum_)
        return store

    def collect(self) -> Iterator[Metric]:
        """Yield each metric as a family of prometheus_client's, in the table's order."""
        for key, spec in METRICS.items():
            if spec.kind == "histogram":
                yield self._collect_histogram(spec, self.histograms[key])
            else:
                kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
                family = kind(spec.name, spec.help, labels=spec.labels)
                for labels, value in self.numbers[key].items():
                    family.add_metric(labels, value)
                yield family

    @staticmethod
    def _collect_histogram(spec: MetricSpec, series: _Series) -> Metric:
        family = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
        names = [*map(floatToGoString, spec.buckets), "+Inf"]
        for labels, histogram in series.items():
            family.add_metric(labels, list(zip(names, histogram.cumulative(), strict=True)), histogram.sum)
        return family


_MODEL_PLACES: Final = {
    key: place for key, spec in METRICS.items() for place, label in enumerate(spec.labels) if label in MODEL_LABELS
}
