"""Results of the laboratory, in one form: kept as JSON, printed as a table, and written into a page of docs/.

A part of a program (`lab/bench/parts/cpu.py`, `lab/torture/attacks.py`) returns a Report. A full run keeps it in
docs/PAGE/PART.json, and writes the page's table of each part from the kept files; so a part that runs alone leaves the
other tables as they are. A table compares contenders if its results name them, else it lists cases.
"""

import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from docs.pages import replace_rows
from lab.environment import ROOT, format_environment

__all__ = ["RELIABILITY", "Figure", "Kept", "MarkerError", "Page", "Report", "Result", "build_table", "run_parts"]

Figure = float | str | tuple[float, ...]
"""A number, words, or a value per round."""
WRITTEN_BY = "make lab"


class MarkerError(Exception):
    """A page has no place for a table: its figures would be lost without a word."""


@dataclass(frozen=True)
class Result:
    """One case of a part: how often it was tried, the outcome in words, and whether it is as required.

    A figure's name has its unit. `contender` is whose figures they are, if several are compared.
    """

    case: str
    tried: int
    outcome: str = ""
    ok: bool = True
    figures: Mapping[str, Figure] = field(default_factory=dict)
    note: str = ""
    contender: str = ""


@dataclass
class Report:
    """What a part returns. `notes` are sentences about the run as a whole."""

    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        return all(each.ok for each in self.results)


@dataclass
class Kept(Report):
    """A kept report, with the environment of its run."""

    environment: Mapping[str, str] = field(default_factory=dict)
    took_s: int = 0


@dataclass(frozen=True)
class Page:
    """docs/NAME.md with a table per part, and docs/NAME/ with a file per part.

    In the parts `beside` the first figure is also given as a multiple of the contender `reference`.
    """

    name: str
    beside: frozenset[str] = frozenset()
    reference: str = ""
    folder: Path = ROOT / "docs"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.md"

    @property
    def results(self) -> Path:
        return self.folder / self.name

    def keep(self, part: str, report: Report, environment: Mapping[str, str], took_s: float) -> None:
        """Keep a part's report, one result a line."""
        document = {"environment": dict(environment), "took_s": round(took_s), "notes": report.notes}
        head = json.dumps(document, indent=1, ensure_ascii=False).removesuffix("\n}")
        rows = ",\n  ".join(json.dumps(_to_json(each), ensure_ascii=False) for each in report.results)
        self.results.mkdir(exist_ok=True)
        (self.results / f"{part}.json").write_text(f'{head},\n "results": [\n  {rows}\n ]\n}}\n', encoding="utf-8")

    def read(self, part: str) -> Kept | None:
        """Return a part's kept report, or None."""
        file = self.results / f"{part}.json"
        if not file.exists():
            return None
        document = json.loads(file.read_text(encoding="utf-8"))
        results = [_from_json(each) for each in document.pop("results")]
        return Kept(results=results, **document)

    def read_all(self) -> dict[str, Kept]:
        """Return every kept report, by part."""
        parts = sorted(file.stem for file in self.results.glob("*.json"))
        return {part: kept for part in parts if (kept := self.read(part)) is not None}

    def write_tables(self, more: Mapping[str, Sequence[str]] | None = None) -> None:
        """Write the table of each kept part, and `more` tables; the page must have their markers."""
        tables = {part: self._render(part, kept) for part, kept in self.read_all().items()}
        for part, rows in (tables | dict(more or {})).items():
            self.replace_table(part, rows)

    def replace_table(self, part: str, rows: Sequence[str]) -> None:
        """Put the rows between the part's markers. Raises MarkerError if the page lacks them."""
        text = self.path.read_text(encoding="utf-8")
        try:
            written = replace_rows(text, part, rows, written_by=WRITTEN_BY)
        except ValueError as error:
            raise MarkerError(f"the table of {part} has no place in {self.path.name}: {error}") from error
        self.path.write_text(written, encoding="utf-8")

    def list_lines(self, part: str, report: Report) -> list[str]:
        """Return a part's table for a terminal."""
        if not any(each.contender for each in report.results):
            return [*map(_format_line, report.results), *report.notes]
        heads, rows = compare(report.results, self._find_reference(part))
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        return [*("  ".join(_align(row, widths)).rstrip() for row in (heads, *rows)), *report.notes]

    def _render(self, part: str, kept: Kept) -> list[str]:
        if any(each.contender for each in kept.results):
            rows = build_table(*compare(kept.results, self._find_reference(part)))
            rounds = f" {max(each.tried for each in kept.results)} rounds,"
        else:
            rows, rounds = build_table(*list_cases(kept.results), words=4), ""
        notes = ["", *(f"- {note}" for note in kept.notes)] if kept.notes else []
        return [f"{format_environment(kept.environment)}{rounds} {kept.took_s:,} s.", "", *rows, *notes]

    def _find_reference(self, part: str) -> str:
        return self.reference if part in self.beside else ""


RELIABILITY: Final = Page("reliability")
"""The page that several programs write their tables in."""


def run_parts(
    page: Page, parts: Mapping[str, Callable[[], Report]], environment: Mapping[str, str], *, keeps: bool
) -> list[str]:
    """Run parts one after the other, print their results and, if so asked, keep them. Return the parts that are not OK.

    A part that fails is reported and not kept; the others still run.
    """
    return [part for part, run in parts.items() if not _run_part(page, part, run, environment, keeps=keeps)]


def _run_part(page: Page, part: str, run: Callable[[], Report], environment: Mapping[str, str], *, keeps: bool) -> bool:
    started_at = time.monotonic()
    try:
        report = run()
    except Exception:  # noqa: BLE001 - whatever it is, it is this part's
        traceback.print_exc()
        print(f"\n== {part}: it failed", flush=True)
        return False
    took_s = time.monotonic() - started_at
    print(f"\n== {part}: {took_s:.0f} s", *page.list_lines(part, report), sep="\n", flush=True)
    if keeps:
        page.keep(part, report, environment, took_s)
    return report.is_ok


def compare(results: Sequence[Result], reference: str) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: a row for each contender in each case, a column for each figure."""
    metrics = list(dict.fromkeys(name for each in results for name in each.figures))
    of_reference = {each.case: each.figures for each in results if each.contender == reference}
    rows: list[list[str]] = []
    last = ""
    for each in results:
        cells = [format_figure(each.figures[name]) if name in each.figures else "" for name in metrics]
        if reference:
            cells.insert(1, _format_multiple(each.figures, of_reference.get(each.case, {}), metrics[0]))
        rows.append(["" if each.case == last else each.case, each.contender, *cells])
        last = each.case
    heads = ["", "", *metrics]
    if reference:
        heads.insert(3, f"x {reference[:3]}")
    return heads, rows


def list_cases(results: Iterable[Result]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: a row for each case."""
    rows = []
    for each in results:
        outcome = each.outcome if each.ok else f"**not as required:** {each.outcome}"
        rows.append([each.case, f"{each.tried:,}", "; ".join(filter(None, (outcome, each.note))), _join_figures(each)])
    return ["case", "tried", "outcome", "figures"], rows


def build_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 2) -> list[str]:
    """Return a table for a page; the columns after the first `words` are numbers."""
    rule = ["---"] * words + ["--:"] * (len(heads) - words)
    return [f"| {' | '.join(map(_escape, row))} |".replace("|  |", "| |") for row in (heads, rule, *rows)]


def format_figure(figure: Figure) -> str:
    """Return words as they are, and numbers as their median, with the minimum and the maximum if these differ."""
    if isinstance(figure, str):
        return figure
    values = figure if isinstance(figure, tuple) else (figure,)
    least, middle, most = map(format_number, (min(values), statistics.median(values), max(values)))
    return middle if least == most else f"{middle} ({least}-{most})"


def format_number(value: float) -> str:
    """Return three digits that count, or all before the point."""
    size = abs(value)
    if size >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def _format_line(each: Result) -> str:
    details = "; ".join(filter(None, (each.outcome, _join_figures(each), each.note)))
    return f"{'ok ' if each.ok else 'BAD'} {each.case} (tried {each.tried}): {details}"


def _join_figures(each: Result) -> str:
    return ", ".join(f"{name} {format_figure(figure)}" for name, figure in each.figures.items())


def _format_multiple(figures: Mapping[str, Figure], reference: Mapping[str, Figure], metric: str) -> str:
    mine, its = figures.get(metric), reference.get(metric)
    if not (mine and its):
        return ""
    multiple = statistics.median(mine) / statistics.median(its)
    return f"{multiple:.2f}" if multiple >= 0.1 else f"{multiple:.2g}"


def _align(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    words = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
    return words + [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _to_json(result: Result) -> dict[str, Any]:
    """Return what differs from the defaults: a file has thousands of values."""
    figures = {name: _shorten(figure) for name, figure in result.figures.items()}
    empty = asdict(Result("", 0))
    given = asdict(result) | {"figures": figures}
    return {name: value for name, value in given.items() if name in {"case", "tried"} or value != empty[name]}


def _from_json(row: dict[str, Any]) -> Result:
    figures = {
        name: tuple(value) if isinstance(value, list) else value for name, value in row.get("figures", {}).items()
    }
    return Result(**row | {"figures": figures})


def _shorten(figure: Figure) -> Any:
    if isinstance(figure, str):
        return figure
    return [_shorten(each) for each in figure] if isinstance(figure, tuple) else float(f"{figure:.6g}")
