"""Measure the bridge beside its alternatives: `python -m lab bench`, or `make lab PART=bench`.

A full run writes docs/performance.md and docs/performance/; a quick one prints alone, as do one of fewer contenders
and one with --print. `--only cpu --contenders bridge,bare` is the shortest comparison; `--beside DIRECTORY` measures
the bridge of another checkout in the same run, for before and after. `--tables` writes the page from the kept results.
"""

import argparse
import functools
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lab.bench import h2load
from lab.bench.contenders import CONTENDERS, ON_REQUEST, Contender, create_bridge
from lab.bench.fleet import Effort
from lab.bench.page import PAGE, describe_surroundings, write_page
from lab.bench.processes import LOAD_CORES, SERVER_CORES
from lab.environment import format_environment
from lab.report import Report, run_parts

__all__ = ["PARTS", "main"]

PARTS = (
    "cpu",
    "paced",
    "kinds",
    "shapes",
    "tls",
    "latency",
    "streams",
    "memory",
    "sizes",
    "workers",
    "growth",
    "callers",
    "upstream",
)
ROUNDS, RUN_S = 5, 1.5
QUICK_ROUNDS, QUICK_RUN_S = 2, 0.6
QUICK_CONTENDERS = ("bridge", "native", "bare", "go_bare", "go_keep", "aiohttp")


def main(arguments: Sequence[str] | None = None) -> int:
    keys = [each.key for each in CONTENDERS]
    given = parse(arguments, [*keys, *(each.key for each in ON_REQUEST)])
    if given.tables:
        write_page()
        return 0
    if h2load.version() is None:
        sys.exit(h2load.MISSING)
    chosen = given.contenders or (QUICK_CONTENDERS if given.quick else keys)
    contenders = select_installed(chosen, given.beside)
    keeps = not (given.quick or given.print or given.contenders or given.beside)
    environment = describe_surroundings()
    os.sched_setaffinity(0, LOAD_CORES)
    print(format_environment(environment), flush=True)
    print(f"The server under test on core {SERVER_CORES[0]}, load and upstream on {LOAD_CORES}; medians (least-most).")
    with tempfile.TemporaryDirectory() as files:
        effort = Effort(
            contenders, Path(files), *((QUICK_ROUNDS, QUICK_RUN_S) if given.quick else (ROUNDS, RUN_S)), given.quick
        )
        parts = {part: functools.partial(run, part, effort) for part in given.only}
        bad = run_parts(PAGE, parts, environment, keeps=keeps)
    if keeps:
        write_page()
    return 1 if bad else 0


def parse(arguments: Sequence[str] | None, keys: Sequence[str]) -> argparse.Namespace:
    on_request = ", ".join(each.key for each in ON_REQUEST)
    parser = argparse.ArgumentParser(
        prog="python -m lab bench",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,…", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument(
        "--contenders", metavar="KEY,…", help=f"of {', '.join(keys)} (all that are installed, but for {on_request})"
    )
    parser.add_argument(
        "--beside", action="append", default=[], type=Path, metavar="DIRECTORY", help="another checkout"
    )
    parser.add_argument("--quick", action="store_true", help="measure less, beside fewer, and leave docs/ as it is")
    parser.add_argument("--print", action="store_true", help="leave docs/ as it is")
    parser.add_argument("--tables", action="store_true", help="measure nothing; write the page from docs/performance/")
    given = parser.parse_args(arguments)
    given.only = given.only.split(",")
    given.contenders = given.contenders.split(",") if given.contenders else []
    for name, words, known in (("--only", given.only, PARTS), ("--contenders", given.contenders, keys)):
        if unknown := set(words) - set(known):
            parser.error(f"{name}: expected some of {', '.join(known)}, found {', '.join(sorted(unknown))}")
    return given


def select_installed(chosen: Sequence[str], beside: Sequence[Path]) -> tuple[Contender, ...]:
    """The chosen contenders with the bridge, which is always measured, at their head; says which are not there."""
    wanted = [each for each in (*CONTENDERS, *ON_REQUEST) if each.key in chosen or each.key == "bridge"]
    for each in wanted:
        if not each.is_installed:
            print(f"{each.title} is not measured: {each.program} is missing ({each.how})")
    there = [each for each in wanted if each.is_installed]
    return (*there[:1], *map(create_bridge, beside), *there[1:])


def run(part: str, effort: Effort) -> Report:
    report: Report = importlib.import_module(f"lab.bench.parts.{part}").run(effort)
    return report


if __name__ == "__main__":
    sys.exit(main())
