"""The targets of the bridge, and its figures beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.contenders import BARE, BRIDGE, OPENAI_SDK, Contender
from tests.benchmarks.figures import Figure, median
from tests.benchmarks.parts import cpu, growth, latency, memory, streams, workers

__all__ = ["TARGETS", "Target", "table"]

Kept = Mapping[str, Sequence[Figure]]


@dataclass(frozen=True)
class Target:
    """`read` returns the figure, or None if it was not measured; it must be at most, or at least, `bound`."""

    what: str
    bound: float
    unit: str
    read: Callable[[Kept], float | None]
    at_least: bool = False

    def row(self, kept: Kept) -> list[str]:
        value = self.read(kept)
        aim = f"{'at least' if self.at_least else 'at most'} {_words(self.bound, self.unit)}"
        if value is None:
            return [self.what, aim, "not measured", ""]
        met = value >= self.bound if self.at_least else value <= self.bound
        return [self.what, aim, _words(value, self.unit), "met" if met else "**not met**"]


def table(kept: Kept) -> tuple[list[str], list[list[str]]]:
    return ["what", "target", "measured", ""], [each.row(kept) for each in TARGETS]


def _words(value: float, unit: str) -> str:
    digits = f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 100 else f"{value:.0f}"
    return f"{digits} {unit}".strip()


def _metric_of(part: str, measure: str, metric: str, contender: Contender = BRIDGE) -> Callable[[Kept], float | None]:
    return lambda kept: median(kept.get(part, ()), measure, contender.title, metric)


def _beside(measure: str, other: Contender) -> Callable[[Kept], float | None]:
    def read(kept: Kept) -> float | None:
        mine, its = (_metric_of("cpu", measure, cpu.CPU, each)(kept) for each in (BRIDGE, other))
        return mine / its if mine is not None and its else None

    return read


HALF = latency.name_unary("half")
THOUSAND = streams.name_streams(1000)
TWO = workers.create_workers(2)

TARGETS = (
    Target("CPU of a unary call, beside (b)", 2.5, "x", _beside(cpu.UNARY, BARE)),
    Target("CPU of a chunk as fast as they come, beside (b)", 1.5, "x", _beside(cpu.FAST, BARE)),
    Target("CPU of a chunk on its own, beside (b)", 1.5, "x", _beside(cpu.PACED, BARE)),
    Target("CPU of a unary call, beside (c) with the OpenAI SDK", 1 / 3, "x", _beside(cpu.UNARY, OPENAI_SDK)),
    Target("CPU of a chunk as fast as they come, beside the same", 0.25, "x", _beside(cpu.FAST, OPENAI_SDK)),
    Target("CPU of a chunk on its own, beside the same", 0.25, "x", _beside(cpu.PACED, OPENAI_SDK)),
    Target(
        "added to a unary call at half of capacity, p50",
        1.5,
        "ms",
        _metric_of("latency", HALF, latency.name_added("p50")),
    ),
    Target("the same, p99", 5, "ms", _metric_of("latency", HALF, latency.name_added("p99"))),
    Target(
        "added to a first chunk at half of capacity, p50",
        1.5,
        "ms",
        _metric_of("latency", latency.FIRST_CHUNK, latency.name_added("p50")),
    ),
    Target(
        "lateness of a chunk, 1,000 paced streams on half a core, p99",
        50,
        "ms",
        _metric_of("streams", THOUSAND, streams.LATE),
    ),
    Target("chunks lost of them", 0, "", _metric_of("streams", THOUSAND, streams.LOST)),
    Target("memory of a stream open and silent", 60, "KB", _metric_of("memory", memory.PROCESS, memory.OPEN_KB)),
    Target(
        "two workers on two cores of their own, unary calls beside one's",
        1.8,
        "x",
        _metric_of("workers", workers.UNARY, workers.OWN_CORES, TWO),
        at_least=True,
    ),
    Target("the same, chunks", 1.8, "x", _metric_of("workers", workers.CHUNK, workers.OWN_CORES, TWO), at_least=True),
    Target(
        "growth with the messages of a request (1 is linear)",
        growth.EXPONENT_MAX,
        "",
        _metric_of("growth", growth.MESSAGES, growth.EXPONENT),
    ),
    Target(
        "growth with the chunks of a stream (1 is linear)",
        growth.EXPONENT_MAX,
        "",
        _metric_of("growth", growth.CHUNKS, growth.EXPONENT),
    ),
)
