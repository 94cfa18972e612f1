"""Measure the bridge beside its alternatives: `python -m tests.benchmarks`, or `make bench`.

A full run writes docs/performance.md and docs/performance/; a quick one prints alone, as do one of fewer contenders
and one with --print. `--only cpu --contenders bridge,bare` is the shortest comparison; `--beside DIRECTORY` measures
the bridge of another checkout in the same run, for before and after.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.benchmarks import h2load, report
from tests.benchmarks.contenders import CONTENDERS, Contender, create_bridge
from tests.benchmarks.fleet import Effort
from tests.benchmarks.processes import LOAD_CORES, SERVER_CORES, BenchmarkError

PARTS = ("cpu", "latency", "streams", "memory", "sizes", "workers", "growth", "callers", "upstream")
ROUNDS, RUN_S = 5, 1.5
QUICK_ROUNDS, QUICK_RUN_S = 2, 0.6
QUICK_CONTENDERS = ("bridge", "bare", "aiohttp")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    keys = [each.key for each in CONTENDERS]
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,…", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--contenders", metavar="KEY,…", help=f"of {', '.join(keys)} (all that are installed)")
    parser.add_argument(
        "--beside", action="append", default=[], type=Path, metavar="DIRECTORY", help="another checkout"
    )
    parser.add_argument("--quick", action="store_true", help="measure less, beside fewer, and leave docs/ as it is")
    parser.add_argument("--print", action="store_true", help="leave docs/ as it is")
    options = parser.parse_args()
    parts = options.only.split(",")
    chosen = (options.contenders or ",".join(QUICK_CONTENDERS if options.quick else keys)).split(",")
    for name, given, known in (("--only", parts, PARTS), ("--contenders", chosen, keys)):
        if unknown := set(given) - set(known):
            parser.error(f"{name}: expected some of {', '.join(known)}, found {', '.join(sorted(unknown))}")
    if h2load.version() is None:
        sys.exit(h2load.MISSING)
    contenders = select_installed(chosen, options.beside)
    writes = not (options.quick or options.print or options.contenders or options.beside)
    rounds, run_s = (QUICK_ROUNDS, QUICK_RUN_S) if options.quick else (ROUNDS, RUN_S)
    os.sched_setaffinity(0, LOAD_CORES)
    print(f"{report.format_surroundings(report.describe_surroundings())}", flush=True)
    print(f"The server under test on core {SERVER_CORES[0]}, load and upstream on {LOAD_CORES}; medians (least-most).")
    with tempfile.TemporaryDirectory() as files:
        effort = Effort(contenders, Path(files), rounds, run_s, options.quick)
        failed = [part for part in parts if not measure_part(part, effort, writes=writes)]
    if writes:
        report.write(PARTS)
    sys.exit(f"without figures: {', '.join(failed)}" if failed else None)


def select_installed(chosen: list[str], beside: list[Path]) -> tuple[Contender, ...]:
    """The chosen contenders with the bridge, which is always measured, at their head; says which are not there."""
    wanted = [each for each in CONTENDERS if each.key in chosen or each.key == "bridge"]
    for each in wanted:
        if not each.is_installed:
            print(f"{each.title} is not measured: {each.program} is missing ({each.how})")
    there = [each for each in wanted if each.is_installed]
    return (*there[:1], *map(create_bridge, beside), *there[1:])


def measure_part(part: str, effort: Effort, *, writes: bool) -> bool:
    """Measure a part, print and keep its results. Return False if it failed; the other parts still run."""
    surroundings, began = report.describe_surroundings(), time.monotonic()
    try:
        result = importlib.import_module(f"tests.benchmarks.parts.{part}").run(effort)
    except (BenchmarkError, OSError, subprocess.SubprocessError):
        traceback.print_exc()
        return False
    took_s = time.monotonic() - began
    print(f"\n== {part}: {took_s:.0f} s", *report.lines(part, result), sep="\n", flush=True)
    if writes:
        report.keep(part, result, surroundings, took_s)
    return True


if __name__ == "__main__":
    main()
