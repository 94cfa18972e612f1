"""What a part of the torture is asked for, what it found, and the report that these make.

The results of a full run are kept as JSON, one file a part, in docs/reliability/; the tables of docs/reliability.md are
made of them, so a part that is run alone leaves the others' as they are.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests import pages

__all__ = ["Finding", "Options", "keep", "lines", "write"]

PAGE = pages.ROOT / "docs/reliability.md"
RESULTS = pages.ROOT / "docs/reliability"
_LIBRARIES = ("grpcio", "aiohttp", "uvloop")


@dataclass(frozen=True)
class Options:
    """How hard to try. `seed` makes a run repeatable; `quick` takes seconds where a full run takes minutes."""

    seed: int
    quick: bool


@dataclass(frozen=True)
class Finding:
    """One case of a part: how often it was tried, what came out, whether that is as it should be, and the figures."""

    part: str
    case: str
    tried: int
    outcome: str
    ok: bool
    figures: dict[str, float | str]
    note: str = ""


def lines(findings: Iterable[Finding]) -> Iterable[str]:
    """Give a line a finding, for a terminal."""
    for each in findings:
        what = "; ".join(filter(None, (each.outcome, _figures(each), each.note)))
        yield f"{'ok ' if each.ok else 'BAD'} {each.part}: {each.case} (tried {each.tried}): {what}"


def keep(part: str, findings: Sequence[Finding], options: Options, took_s: float) -> None:
    """Keep a part's results, and what they were had with."""
    result = {"seed": options.seed, **pages.describe_environment(_LIBRARIES), "took_s": round(took_s)}
    result["findings"] = [asdict(each) for each in findings]
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (RESULTS / f"{part}.json").write_text(text + "\n", encoding="utf-8")


def write(parts: Iterable[str]) -> None:
    """Write the page's tables anew, of the parts whose results are kept."""
    for part in parts:
        file = RESULTS / f"{part}.json"
        if file.exists():
            rows = _table(json.loads(file.read_text(encoding="utf-8")))
            pages.replace_part(PAGE, part, rows, written_by="make torture")


def _table(result: dict[str, Any]) -> list[str]:
    findings = [Finding(**each) for each in result["findings"]]
    versions = ", ".join(f"{name} {result[name]}" for name in ("python", *_LIBRARIES))
    run = f"{result['date']}, commit {result['commit']}, seed {result['seed']}, {result['took_s']:,} s"
    rows = [
        f"{run}, on {result['machine']}; {versions}.",
        "",
        "| case | tried | what came out | figures |",
        "|---|---|---|---|",
    ]
    for each in findings:
        outcome = each.outcome if each.ok else f"**not as it must be:** {each.outcome}"
        cells = (each.case, f"{each.tried:,}", "; ".join(filter(None, (outcome, each.note))), _figures(each))
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return rows


def _figures(finding: Finding) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in finding.figures.items())


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"
