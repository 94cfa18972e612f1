"""The options and findings of a part of the torture, and the report that they become.

The results of a full run are saved as JSON in docs/reliability/, one file a part; the tables of docs/reliability.md are
built from them, so a part that runs alone leaves the tables of the others as they are.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from tests import pages

__all__ = ["Finding", "Options", "format_lines", "save", "write_page"]

PAGE = pages.ROOT / "docs/reliability.md"
RESULTS = pages.ROOT / "docs/reliability"
_LIBRARIES = ("grpcio", "httptools", "httpx2", "uvloop")


@dataclass(frozen=True)
class Options:
    """`seed` makes a run repeatable; `quick` takes seconds instead of minutes."""

    seed: int
    quick: bool


@dataclass(frozen=True)
class Finding:
    """One case of a part: the number of attempts, the result, whether it is as required, and the figures."""

    part: str
    case: str
    attempts: int
    result: str
    ok: bool
    figures: dict[str, float | str]
    note: str = ""


def format_lines(findings: Iterable[Finding]) -> Iterable[str]:
    """Yield one line per finding, for a terminal."""
    for each in findings:
        details = "; ".join(filter(None, (each.result, _format_figures(each), each.note)))
        yield f"{'ok ' if each.ok else 'BAD'} {each.part}: {each.case} (attempts {each.attempts}): {details}"


def save(part: str, findings: Sequence[Finding], options: Options, duration_s: float) -> None:
    """Save a part's results with the versions and the machine that they depend on."""
    result: dict[str, Any] = {"seed": options.seed, **pages.describe_environment(())}
    result["libraries"] = {name: version(name) for name in _LIBRARIES}
    result["duration_s"] = round(duration_s)
    result["findings"] = [asdict(each) for each in findings]
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (RESULTS / f"{part}.json").write_text(text + "\n", encoding="utf-8")


def write_page(parts: Iterable[str]) -> None:
    """Write the page's table of each part that has saved results."""
    for part in parts:
        file = RESULTS / f"{part}.json"
        if file.exists():
            rows = _build_table(json.loads(file.read_text(encoding="utf-8")))
            pages.replace_part(PAGE, part, rows, written_by="make torture")


def _build_table(result: dict[str, Any]) -> list[str]:
    findings = [Finding(**each) for each in result["findings"]]
    versions = [f"Python {result['python']}", *(f"{name} {number}" for name, number in result["libraries"].items())]
    run = f"{result['date']}, commit {result['commit']}, seed {result['seed']}, {result['duration_s']:,} s"
    rows = [
        f"{run}, on {result['machine']}; {', '.join(versions)}.",
        "",
        "| case | attempts | result | figures |",
        "|---|---|---|---|",
    ]
    for each in findings:
        result_text = each.result if each.ok else f"**not as required:** {each.result}"
        cells = (
            each.case,
            f"{each.attempts:,}",
            "; ".join(filter(None, (result_text, each.note))),
            _format_figures(each),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return rows


def _format_figures(finding: Finding) -> str:
    return ", ".join(f"{name} {_format_number(value)}" for name, value in finding.figures.items())


def _format_number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"
