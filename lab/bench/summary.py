"""The opening of docs/performance.md: the bridge, its front's limit, Go, the OpenAI SDK and LiteLLM, at a glance."""

from collections.abc import Mapping, Sequence

from lab.bench.contenders import BARE, BRIDGE, GO_BARE, GO_KEEP, LITELLM, NATIVE, OPENAI_SDK
from lab.bench.figures import median
from lab.bench.parts import cpu, memory, paced
from lab.report import Result

__all__ = ["COSTS", "TITLES", "format_cost", "summarize"]

TITLES = {
    NATIVE.title: "**ollm-bridge**, native engine",
    BRIDGE.title: "**ollm-bridge**, grpcio engine",
    BARE.title: "the limit of grpc.aio: no bridge, answers from memory",
    GO_BARE.title: "the limit of grpc-go: no bridge, answers from memory",
    GO_KEEP.title: "a bridge in Go that keeps unknown keys",
    OPENAI_SDK.title: "a bridge with grpc.aio and the OpenAI SDK",
    LITELLM.title: "LiteLLM's proxy (HTTP)",
}
COSTS = {
    "unary call, µs": ("cpu", cpu.UNARY, cpu.CPU),
    "chunk as fast as they come, µs": ("cpu", cpu.FAST, cpu.CPU),
    f"chunk of {paced.AT_ONCE} streams with one each {paced.INTERVAL_MS} ms, µs": ("paced", paced.CASE, cpu.CPU),
    "silent stream, KB": ("memory", memory.PROCESS, memory.OPEN_KB),
    "start, s": ("memory", memory.PROCESS, memory.START_S),
}


def summarize(kept: Mapping[str, Sequence[Result]]) -> tuple[list[str], list[list[str]]]:
    """Return the table's heads and rows: medians, "" for what was not measured."""
    rows = [
        [
            words,
            *(format_cost(median(kept.get(part, ()), case, title, metric)) for part, case, metric in COSTS.values()),
        ]
        for title, words in TITLES.items()
    ]
    return ["", *COSTS], rows


def format_cost(value: float | None) -> str:
    """Return a cost with three digits, "" if there is none."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
