"""The targets of the bridge, and its figures beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lab.bench.contenders import BARE, BRIDGE, GO_KEEP, NATIVE, OPENAI_SDK, Contender
from lab.bench.figures import median
from lab.bench.parts import cpu, growth, kinds, latency, memory, paced, streams, workers
from lab.report import Result

__all__ = ["TARGETS", "Target", "compare"]

Kept = Mapping[str, Sequence[Result]]


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


def compare(kept: Kept) -> tuple[list[str], list[list[str]]]:
    return ["what", "target", "measured", ""], [each.row(kept) for each in TARGETS]


def _words(value: float, unit: str) -> str:
    digits = f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 100 else f"{value:.0f}"
    return f"{digits} {unit}".strip()


def _metric_of(part: str, measure: str, metric: str, contender: Contender) -> Callable[[Kept], float | None]:
    return lambda kept: median(kept.get(part, ()), measure, contender.title, metric)


def _beside(load: tuple[str, str], other: Contender, contender: Contender = BRIDGE) -> Callable[[Kept], float | None]:
    part, measure = load
    return _divide(*(_metric_of(part, measure, cpu.CPU, each) for each in (contender, other)))


def _divide(
    read: Callable[[Kept], float | None], other: Callable[[Kept], float | None]
) -> Callable[[Kept], float | None]:
    def divide(kept: Kept) -> float | None:
        mine, its = read(kept), other(kept)
        return mine / its if mine is not None and its else None

    return divide


UNARY, FAST, PACED = ("cpu", cpu.UNARY), ("cpu", cpu.FAST), ("paced", paced.CASE)
HALF = latency.name_unary("half")
THOUSAND = streams.name_streams(1000)
_COSTS = {
    "CPU of a unary call": UNARY,
    "CPU of a chunk as fast as they come": FAST,
    f"CPU of a chunk of {paced.AT_ONCE} streams with one each {paced.INTERVAL_MS} ms": PACED,
}


def _list_costs(
    contender: Contender, prefix: str, beside_bare: Sequence[float], beside_go: Sequence[float]
) -> list[Target]:
    """Return the targets of an engine's cost, beside bare grpc.aio and beside the Go bridge that keeps unknown keys."""
    return [
        Target(f"{prefix}{what}, beside {name}", bound, "x", _beside(load, other, contender))
        for name, other, bounds in (("bare grpc.aio", BARE, beside_bare), ("the Go bridge (c)", GO_KEEP, beside_go))
        for (what, load), bound in zip(_COSTS.items(), bounds, strict=True)
    ]


def _list_kinds(contender: Contender, prefix: str) -> list[Target]:
    text = _metric_of("kinds", kinds.TEXT, cpu.CPU, contender)
    return [
        Target(
            f"{prefix}CPU of {kind}, beside one of text",
            1.2,
            "x",
            _divide(_metric_of("kinds", kind, cpu.CPU, contender), text),
        )
        for kind in (kinds.REASONING, kinds.ARGUMENTS)
    ]


def _list_latencies(contender: Contender, prefix: str, case: str, p50_ms: float, p99_ms: float) -> list[Target]:
    return [
        Target(
            f"{prefix}added to {case}, {name}",
            bound,
            "ms",
            _metric_of("latency", case, latency.name_added(name), contender),
        )
        for name, bound in (("p50", p50_ms), ("p99", p99_ms))
    ]


def _list_processes(contender: Contender, prefix: str, open_kb: float, start_s: float) -> list[Target]:
    """Return the targets of memory, start and workers."""
    two = workers.create_workers(2, contender)
    return [
        Target(
            f"{prefix}memory of a stream open and silent",
            open_kb,
            "KB",
            _metric_of("memory", memory.PROCESS, memory.OPEN_KB, contender),
        ),
        Target(
            f"{prefix}start to accept", start_s, "s", _metric_of("memory", memory.PROCESS, memory.START_S, contender)
        ),
        *(
            Target(
                f"{prefix}two workers on two cores of their own, {what} beside one's",
                1.9,
                "x",
                _metric_of("workers", case, workers.OWN_CORES, two),
                at_least=True,
            )
            for what, case in (("unary calls", workers.UNARY), ("chunks", workers.CHUNK))
        ),
    ]


def _list_streams(contender: Contender, prefix: str) -> list[Target]:
    """Return the targets of many paced streams, and of how the cost grows with the size of a call."""
    return [
        Target(
            f"{prefix}lateness of a chunk, 1,000 paced streams on half a core, p99",
            50,
            "ms",
            _metric_of("streams", THOUSAND, streams.LATE, contender),
        ),
        Target(f"{prefix}chunks lost of them", 0, "", _metric_of("streams", THOUSAND, streams.LOST, contender)),
        *(
            Target(
                f"{prefix}growth with the {measure} (1 is linear)",
                growth.EXPONENT_MAX,
                "",
                _metric_of("growth", measure, growth.EXPONENT, contender),
            )
            for measure in (growth.MESSAGES, growth.CHUNKS)
        ),
    ]


TARGETS = (
    *_list_costs(NATIVE, "native engine: ", (1.7, 0.6, 1.0), (2.2, 0.7, 1.0)),
    *_list_kinds(NATIVE, "native engine: "),
    *_list_latencies(NATIVE, "native engine: ", latency.MODERATE, 0.4, 1.0),
    *_list_processes(NATIVE, "native engine: ", 25, 0.25),
    *_list_streams(NATIVE, "native engine: "),
    *_list_costs(BRIDGE, "grpcio engine: ", (3.0, 1.5, 1.6), (4.0, 1.6, 1.5)),
    *_list_kinds(BRIDGE, "grpcio engine: "),
    *_list_latencies(BRIDGE, "grpcio engine: ", latency.MODERATE, 0.6, 1.5),
    *_list_latencies(BRIDGE, "grpcio engine: ", HALF, 1.5, 5),
    *_list_processes(BRIDGE, "grpcio engine: ", 35, 0.35),
    *_list_streams(BRIDGE, "grpcio engine: "),
    Target(
        "grpcio engine: CPU of a unary call, beside (c) with the OpenAI SDK", 1 / 3, "x", _beside(UNARY, OPENAI_SDK)
    ),
    Target("grpcio engine: CPU of a chunk as fast as they come, beside the same", 0.25, "x", _beside(FAST, OPENAI_SDK)),
)
