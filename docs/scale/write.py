"""Write the tables of docs/scale.md from costs.json and balance.json. `--check` fails if they are not current.

`--simulate` first writes balance.json and balance.svg, in about 15 seconds. The picture needs matplotlib, which
`make .venv/ready-bench` installs.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from docs.pages import replace_rows, run
from docs.scale.balance import CASES, NEARLY, SEEDS, STEP_S, World, run_case
from docs.scale.plan import COSTS, RATES, Assumed, Costs, Needs, calculate_needs, count_log_line_bytes, count_series

__all__ = ["BALANCE", "PAGE", "render_page"]

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parent / "scale.md"
BALANCE: Final = HERE / "balance.json"
PICTURE: Final = HERE / "balance.svg"


def render_costs() -> list[str]:
    """Return one row per cost: measured ones with the minimum and maximum of their rounds, and counted ones."""
    units = {"us": "µs", "mib": "MiB", "kib": "KiB"}
    rows = ["| what | cost |", "|---|---|"]
    for name, row in json.loads(COSTS.read_text(encoding="utf-8"))["costs"].items():
        spread = f" ({row['spread'][0]} to {row['spread'][1]})" if row["spread"] else ""
        rows.append(f"| {row['what']} | {row['value']}{spread} {units[name.rpartition('_')[2]]} |")
    models = Assumed().models
    on = json.loads(COSTS.read_text(encoding="utf-8"))["on"]
    return [
        *rows,
        f"| series of a pod at `/metrics`, with 1 model, with {models} | {count_series(1)}, {count_series(models)} |",
        f"| a stream's line in the log | {count_log_line_bytes()} bytes |",
        "",
        f"Measured with {on}; CPU is the median of the rounds, with their minimum and maximum.",
    ]


def render_plan() -> list[str]:
    """Return one column per rate."""
    columns = [calculate_needs(rate, Costs.read(), Assumed()) for rate in RATES]
    return [
        "| chunks a second | " + " | ".join(_format_number(each.rate) for each in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {name} | " + " | ".join(show(each) for each in columns) + " |" for name, show in _PLAN.items()),
    ]


_PLAN: Final[dict[str, Callable[[Needs], str]]] = {
    "streams open at once": lambda each: _format_number(each.open_streams),
    "calls a second": lambda each: _format_number(each.calls_per_s),
    "cores, all used": lambda each: _format_number(each.cores),
    "**pods** of one core": lambda each: f"**{_format_number(each.pods)}**",
    "streams open on a pod": lambda each: _format_number(each.streams_per_pod),
    "memory of a pod's bridge": lambda each: f"{each.memory_mib:.0f} MiB",
    "connections to the gateway": lambda each: _format_number(each.open_streams),
    "addresses of a NAT, if there is one": lambda each: _format_number(each.nat_addresses),
    "connections of callers, each to every pod": lambda each: _format_number(each.connections),
    "a DNS answer with every pod": lambda each: f"{_format_number(each.dns_answer_bytes)} bytes",
    "series": lambda each: _format_number(each.series),
    "samples a second": lambda each: _format_number(each.samples_per_s),
    "log": lambda each: f"{each.log_mb_per_s:.2g} MB/s, {each.log_mb_per_s * 0.0864:.2g} TB a day",
}


def _format_number(value: float) -> str:
    """Format a number with three digits."""
    if value >= 1e6:
        return f"{value / 1e6:.3g} million"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def render_balance() -> list[str]:
    """Return one row per kind of balancing."""
    rows = [
        "| balancing | connection age | most loaded / mean | its p99 | a new replica has its share after |",
        "|---|---|---|---|---|",
    ]
    for each in json.loads(BALANCE.read_text(encoding="utf-8"))["outcomes"]:
        age = "none" if each["age_s"] is None else f"{each['age_s']:.0f} s"
        even = "never" if each["even_s"] is None else f"{each['even_s']:.0f} s"
        rows.append(f"| {each['name']} | {age} | {each['unevenness']:.2f} | {each['unevenness_p99']:.2f} | {even} |")
    return rows


def render_assumptions() -> list[str]:
    """Return one row per assumption of the plan and of the simulation."""
    rows = ["| assumption | of | value |", "|---|---|---|"]
    kinds: dict[str, Assumed | World] = {"the plan": Assumed(), "the simulation": World()}
    for by, kind in kinds.items():
        rows += [f"| `{each.name}` | {by} | {getattr(kind, each.name):g} |" for each in fields(kind)]
    return rows


TABLES: Final = {"costs": render_costs, "plan": render_plan, "balance": render_balance, "assumed": render_assumptions}


def render_page(page: str) -> str:
    """Return the page with its current tables."""
    for name, table in TABLES.items():
        page = replace_rows(page, name, table(), written_by="docs/scale/write.py")
    return page


def simulate() -> None:
    """Run all cases, write their results, and draw them."""
    world = World()
    outcomes = []
    for case in CASES:
        result = run_case(world, case, SEEDS)
        shown = {"name": case.name, "age_s": case.age_s}
        shown |= {"unevenness": result.unevenness, "unevenness_p99": result.unevenness_p99}
        outcomes.append({**shown, "even_s": result.even_s, "newcomer": [round(each, 3) for each in result.newcomer]})
        print(case.name, case.age_s, f"{result.unevenness:.2f}", result.even_s, flush=True)
    kept = {"world": asdict(world), "seeds": list(SEEDS), "step_s": STEP_S, "outcomes": outcomes}
    BALANCE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    draw(outcomes)


def draw(outcomes: Iterable[dict[str, Any]]) -> None:
    """Draw the load of a new replica over time, one panel per kind of balancing."""
    import matplotlib as mpl  # noqa: PLC0415 - the tables do without
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.rcParams.update(
        {"svg.hashsalt": "balance", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    )
    kinds = {"pick_first": "pick_first", "round_robin": "round_robin", "least": "least request"}
    figure, panels = plt.subplots(1, len(kinds), figsize=(10, 3.4), sharey=True, layout="constrained")
    for panel, (prefix, title) in zip(panels, kinds.items(), strict=True):
        for each in (each for each in outcomes if each["name"].startswith(prefix)):
            minutes = [number * STEP_S / 60 for number in range(1, len(each["newcomer"]) + 1)]
            panel.plot(minutes, each["newcomer"], label=_make_label(each), linewidth=1.4)
        panel.axhline(NEARLY, color="0.6", linewidth=0.8, linestyle=":")
        panel.set_title(title)
        panel.set_xlabel("minutes since it joined")
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("load of the new replica / mean")
    panels[0].set_ylim(bottom=0)
    figure.savefig(PICTURE, metadata={"Date": None})


def _make_label(each: dict[str, Any]) -> str:
    if each["name"].startswith("least"):
        return str(each["name"]).removeprefix("least request, ")
    return "no age" if each["age_s"] is None else f"age {each['age_s']:.0f} s"


if __name__ == "__main__":
    if "--simulate" in sys.argv:
        simulate()
    sys.exit(run(PAGE, render_page, "python -m docs.scale.write"))
