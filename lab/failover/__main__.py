"""Our row of Failover Bench, with a runner of our own: `python -m lab failover`, or `make lab PART=failover`.

A full run takes about five minutes, most of it waits, and writes its table in docs/reliability.md; `--quick` shortens
the waits and only prints. The exit code is 1 if a scenario fails.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from lab.environment import describe_environment
from lab.failover.callers import CALLERS, Caller
from lab.failover.exchange import FULL, QUICK, Timing
from lab.failover.run import Cell, run
from lab.failover.scenarios import Evidence
from lab.report import RELIABILITY, Report, Result, run_parts

__all__ = ["main"]

LIBRARIES = ("grpcio", "httptools", "uvloop")
PART = "failover"
Row = Mapping[str, Cell]
"""A scenario's cells, by the callers' names."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab failover", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="wait less, and leave docs/ as it is")
    parser.add_argument("--tables", action="store_true", help="run nothing; write the table from docs/reliability/")
    given = parser.parse_args(arguments)
    runs = {} if given.tables else {PART: lambda: play(QUICK if given.quick else FULL)}
    bad = run_parts(RELIABILITY, runs, describe_environment(LIBRARIES), keeps=not given.quick)
    if not given.quick:
        RELIABILITY.write_tables()
    return 1 if bad else 0


def play(timing: Timing) -> Report:
    return Report(asyncio.run(list_results(timing)))


async def list_results(timing: Timing) -> list[Result]:
    """Run each scenario with each caller, the callers beside each other; return a result a scenario, and their sum."""
    columns = await asyncio.gather(*(_collect_cells(caller, timing) for caller in CALLERS.values()))
    rows = [dict(zip(CALLERS, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return [*map(_to_result, rows), _sum_up(rows)]


async def _collect_cells(caller: Caller, timing: Timing) -> list[Cell]:
    return [cell async for cell in run(caller, timing)]


def _to_result(cells: Row) -> Result:
    scenario = next(iter(cells.values())).scenario
    seen = [cell.evidence for cell in cells.values()]
    advice = {name: cell.broken for name, cell in cells.items() if cell.broken and cell.verdict == "partial"}
    return Result(
        f"{scenario.name} {scenario.fault}",
        sum(len(each.outcomes) for each in seen),
        "; ".join(f"{name}: {cell.verdict}" for name, cell in cells.items()),
        all(cell.verdict != "fail" for cell in cells.values()),
        {
            "codes": " / ".join(_find_code(each) for each in seen),
            "requests": " / ".join(f"{len(each.tries_s)}+{each.other_tries}" for each in seen),
            "s": " / ".join(f"{each.took_s:.1f}" for each in seen),
        },
        "; ".join(f"advice not followed: {', '.join(broken)}" for broken in advice.values()),
    )


def _find_code(seen: Evidence) -> str:
    """Return the code of the first call that was not OK, or else OK."""
    return next((each.code for each in seen.outcomes if each.code != "OK"), "OK")


def _sum_up(rows: Sequence[Row]) -> Result:
    counts = {name: Counter(row[name].verdict for row in rows) for name in CALLERS}
    words = {
        name: ", ".join(f"{number} {verdict}" for verdict, number in each.items()) for name, each in counts.items()
    }
    result = "; ".join(f"{name}: {each}" for name, each in words.items())
    return Result("all", len(rows), result, not any(each["fail"] for each in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
