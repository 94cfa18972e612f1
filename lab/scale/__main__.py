"""Write docs/scale.md: its costs from the benchmarks, its plan, its simulation: `python -m lab scale`.

A full run simulates how replicas are loaded, in about 15 seconds, and writes the tables and the plot. `--quick`
simulates with one seed and only prints. `--tables` simulates nothing: after new benchmarks or assumptions.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

from lab.environment import describe_environment
from lab.plots import open_plot
from lab.report import Page, Report, Result, run_parts
from lab.scale.balance import CASES, NEARLY, SEEDS, STEP_S, Case, Outcome, World, run_case
from lab.scale.plan import Assumed, render_costs, render_plan

__all__ = ["EVEN", "PAGE", "UNEVENNESS", "main", "render_tables", "write_page"]

PAGE: Final = Page("scale")
UNEVENNESS: Final = "most loaded / mean"
EVEN: Final = "a new replica has its share after"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="simulate with one seed, and leave docs/ as it is")
    parser.add_argument("--tables", action="store_true", help="simulate nothing; write the page from what is kept")
    given = parser.parse_args(arguments)
    bad = (
        []
        if given.tables
        else run_parts(
            PAGE,
            {"balance": lambda: simulate(SEEDS[:1]) if given.quick else simulate(SEEDS, PAGE.results / "balance.svg")},
            describe_environment(()),
            keeps=not given.quick,
        )
    )
    if not given.quick:
        write_page()
    return 1 if bad else 0


def write_page() -> None:
    PAGE.write_tables(render_tables())


def render_tables() -> dict[str, list[str]]:
    """Return the tables beside the simulation's own."""
    return {"costs": render_costs(), "plan": render_plan(), "assumed": render_assumptions()}


def render_assumptions() -> list[str]:
    """Return one row per assumption of the plan and of the simulation."""
    rows = ["| assumption | of | value |", "|---|---|---|"]
    kinds: dict[str, Assumed | World] = {"the plan": Assumed(), "the simulation": World()}
    for by, kind in kinds.items():
        rows += [f"| `{each.name}` | {by} | {getattr(kind, each.name):g} |" for each in fields(kind)]
    return rows


def simulate(seeds: Sequence[int], plot: Path | None = None) -> Report:
    """Run all cases, and draw them."""
    outcomes = [run_case(World(), case, seeds) for case in CASES]
    if plot:
        draw(outcomes, plot)
    return Report([build_result(each, len(seeds)) for each in outcomes])


def build_result(outcome: Outcome, seeds: int) -> Result:
    figures = {
        UNEVENNESS: outcome.unevenness,
        "its p99": outcome.unevenness_p99,
        EVEN: "never" if outcome.even_s is None else f"{outcome.even_s:.0f} s",
    }
    return Result(outcome.case.name, seeds, figures=figures, contender=describe_age(outcome.case))


def describe_age(case: Case) -> str:
    return "no connection age" if case.age_s is None else f"connection age {case.age_s:.0f} s"


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw the load of a new replica over time, one panel per kind of balancing."""
    kinds = {
        "pick_first": "pick_first",
        "round_robin": "round_robin",
        "least": "least request",
        "weighted": "weighted by load reports",
    }
    with open_plot(path) as plt:
        _, panels = plt.subplots(1, len(kinds), figsize=(13, 3.4), sharey=True, layout="constrained")
        for panel, (prefix, title) in zip(panels, kinds.items(), strict=True):
            for each in (each for each in outcomes if each.case.name.startswith(prefix)):
                minutes = [number * STEP_S / 60 for number in range(1, len(each.newcomer) + 1)]
                panel.plot(minutes, each.newcomer, label=label(each.case), linewidth=1.4)
            panel.axhline(NEARLY, color="0.6", linewidth=0.8, linestyle=":")
            panel.set_title(title)
            panel.set_xlabel("minutes since it joined")
            panel.legend(frameon=False, fontsize=8)
        panels[0].set_ylabel("load of the new replica / mean")
        panels[0].set_ylim(bottom=0)


def label(case: Case) -> str:
    _, comma, proxies = case.name.partition(", ")
    if comma:
        return proxies
    return "no age" if case.age_s is None else f"age {case.age_s:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
