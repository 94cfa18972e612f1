"""The report: tables for a terminal and for docs/performance.md, of results that are kept as JSON, one file a part.

A part that is run alone leaves the others' tables as they are. Plots and the list of targets are made of the same
files.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests import pages
from tests.benchmarks import h2load
from tests.benchmarks.contenders import BRIDGE
from tests.benchmarks.figures import Figure
from tests.benchmarks.parts import Result
from tests.benchmarks.processes import ALL_CORES, find_program

__all__ = ["describe_surroundings", "format_surroundings", "keep", "lines", "read_kept", "write"]

PAGE = pages.ROOT / "docs/performance.md"
RESULTS = pages.ROOT / "docs/performance"
WRITTEN_BY = "make bench"
LIBRARIES = ("grpcio", "protobuf", "aiohttp", "httpx2", "openai", "uvloop")
BESIDE = ("cpu", "sizes", "callers")
"""Parts whose first metric is also given as so many times the bridge's."""


def keep(part: str, result: Result, had_with: Mapping[str, str], took_s: float) -> None:
    """Keep a part's results, and what they were had with."""
    rounds = max(len(each.values) for each in result.figures)
    document = {**had_with, "rounds": rounds, "took_s": round(took_s), "notes": result.notes}
    figures = [asdict(each) | {"values": [_short(value) for value in each.values]} for each in result.figures]
    head = json.dumps(document, indent=1, ensure_ascii=False).removesuffix("\n}")
    rows = ",\n  ".join(json.dumps(each, ensure_ascii=False) for each in figures)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{part}.json").write_text(f'{head},\n "figures": [\n  {rows}\n ]\n}}\n', encoding="utf-8")


def read_kept(part: str) -> tuple[list[Figure], dict[str, Any]] | None:
    """Return a part's figures and the rest of its file, or None if it has not run yet."""
    file = RESULTS / f"{part}.json"
    if not file.exists():
        return None
    document = json.loads(file.read_text(encoding="utf-8"))
    return [Figure(**each | {"values": tuple(each["values"])}) for each in document.pop("figures")], document


def write(parts: Iterable[str]) -> None:
    """Write the page's tables and the plots anew, of the parts whose results are kept."""
    from tests.benchmarks import plots, targets  # noqa: PLC0415 - matplotlib is not needed for what is only printed

    results = {part: result for part in parts if (result := read_kept(part)) is not None}
    for part, (figures, document) in results.items():
        heads, rows = table(figures, beside=part in BESIDE)
        run = f"{format_surroundings(document)} {document['rounds']} rounds, {document['took_s']:,} s."
        pages.replace_part(
            PAGE, part, [run, "", *markdown(heads, rows), *_paragraph(document["notes"])], written_by=WRITTEN_BY
        )
    heads, rows = targets.table({part: figures for part, (figures, _) in results.items()})
    pages.replace_part(PAGE, "targets", markdown(heads, rows), written_by=WRITTEN_BY)
    plots.draw({part: figures for part, (figures, _) in results.items()}, RESULTS)


def lines(part: str, result: Result) -> list[str]:
    """The table for a terminal, and the notes."""
    heads, rows = table(result.figures, beside=part in BESIDE)
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        *("  ".join(_align(row, widths)).rstrip() for row in (heads, *rows)),
        *result.notes,
    ]


def _align(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    words = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
    return words + [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]


def table(figures: Sequence[Figure], *, beside: bool) -> tuple[list[str], list[list[str]]]:
    """A row for each contender in each measure, a column for each metric; `beside` adds the times of the bridge."""
    metrics = list(dict.fromkeys(each.metric for each in figures))
    by_place: dict[tuple[str, str], dict[str, Figure]] = {}
    for each in figures:
        by_place.setdefault((each.measure, each.contender), {})[each.metric] = each
    rows, last = [], ""
    for (measure, contender), found_here in by_place.items():
        cells = [cell(found_here.get(metric)) for metric in metrics]
        if beside:
            bridge = by_place.get((measure, BRIDGE.title), {})
            cells.insert(1, times(found_here.get(metrics[0]), bridge.get(metrics[0])))
        rows.append(["" if measure == last else measure, contender, *cells])
        last = measure
    heads = ["", "", *metrics]
    if beside:
        heads.insert(3, "x (a)")
    return heads, rows


def cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    least, most = number(min(figure.values)), number(max(figure.values))
    middle = number(figure.median)
    return middle if least == most else f"{middle} ({least}-{most})"


def times(mine: Figure | None, bridge: Figure | None) -> str:
    return f"{mine.median / bridge.median:.2f}" if mine and bridge and bridge.median else ""


def number(value: float) -> str:
    """Three digits that count, or all before the point."""
    size = abs(value)
    return f"{value:,.{0 if size >= 100 or value == round(value) else 1 if size >= 10 else 2}f}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---"] * 2 + ["--:"] * (len(heads) - 2)
    return [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in (heads, rule, *rows)]


def _paragraph(notes: Sequence[str]) -> list[str]:
    return ["", *(f"- {note}" for note in notes)] if notes else []


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def describe_surroundings() -> dict[str, str]:
    """Return the environment of a run. The load average shows whether others use the machine."""
    cores = f"{len(ALL_CORES)} cores ({_processor()}), {platform.system()} {platform.release()} {platform.machine()}"
    programs = {"h2load": h2load.version(), "litellm": _litellm(), "envoy": _envoy(), "nginx": _nginx()}
    return (
        pages.describe_environment(LIBRARIES)
        | {"machine": cores, "load": f"{os.getloadavg()[0]:.1f}"}
        | {name: version for name, version in programs.items() if version}
    )


def format_surroundings(had_with: Mapping[str, Any]) -> str:
    programs = ("python", *LIBRARIES, "h2load", "litellm", "envoy", "nginx")
    versions = ", ".join(f"{name} {had_with[name]}" for name in programs if name in had_with)
    return (
        f"{had_with['date']}, commit {had_with['commit']}, on {had_with['machine']}; "
        f"load average at the beginning {had_with['load']}; {versions}."
    )


def _processor() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return names[0] if names else platform.processor()


def _ask_version(program: str | Path | None, option: str, pattern: str) -> str | None:
    if program is None or not Path(program).exists():
        return None
    done = subprocess.run([program, option], capture_output=True, text=True, check=False)
    version = re.search(pattern, done.stdout + done.stderr)
    return version[1] if version else None


def _litellm() -> str | None:
    names = [path.name for path in pages.ROOT.glob(".venv-litellm/lib/*/site-packages/litellm-*.dist-info")]
    return names[0].removeprefix("litellm-").removesuffix(".dist-info") if names else None


def _envoy() -> str | None:
    return _ask_version(pages.ROOT / ".venv-mesh/bin/envoy", "--version", r"/(\d+\.\d+\.\d+)/")


def _nginx() -> str | None:
    return _ask_version(find_program("nginx"), "-v", r"nginx/(\S+)")
