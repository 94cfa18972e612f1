"""Try to break the bridge, within bounds: `python -m lab torture`, or `make lab PART=torture`.

A full run writes docs/reliability.md and docs/reliability/; a quick one takes minutes and only prints, and so does one
of the engine grpcio, but for the parts that have a table for each engine. `--tables` attacks nothing and writes the
tables from the kept results. The exit code is 1 if a result is not as required.
"""

import argparse
import asyncio
import functools
import gc
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from lab.environment import describe_environment
from lab.report import RELIABILITY, Report, run_parts
from lab.torture.options import Options

__all__ = ["BY_ENGINE", "ENGINE", "LIBRARIES", "PARTS", "find_table", "main"]

PARTS = ("faults", "chaos", "kill", "attacks", "hostile", "answers", "held", "soak", "load", "overload")
BY_ENGINE = ("attacks", "soak", "overload")
"""Parts with a table for each engine: that of grpcio has its name behind the part's."""
ENGINE = "native"
LIBRARIES = ("grpcio", "httptools", "httpx2", "uvloop")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,…", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--seed", type=int, default=1, help="of every random choice, not 0 (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="attack less, and leave docs/ as it is")
    parser.add_argument("--engine", default=ENGINE, choices=("native", "grpcio"), help="of the call port (%(default)s)")
    parser.add_argument(
        "--rps", type=int, default=Options.rps, metavar="N", help="calls a second of the part load (%(default)s)"
    )
    parser.add_argument("--tables", action="store_true", help="attack nothing; write the tables from docs/reliability/")
    given = parser.parse_args(arguments)
    parts = given.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: expected parts among {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    os.environ["TEST_SERVER_ENGINE"] = given.engine  # read by tests/kit, which the parts import later
    options = Options(given.seed, given.quick, given.rps)
    bad = [] if given.tables else attack(parts, options, given.engine)
    if not given.quick:
        RELIABILITY.write_tables()
    return 1 if bad else 0


def attack(parts: Sequence[str], options: Options, engine: str) -> list[str]:
    """Run the parts one after the other. Return those with a result that is not as required.

    A full run keeps its results for docs/ if there is a table for this engine.
    """
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of peers that disconnect, which is the test here
    gc.freeze()  # the objects of imports stay: the collector need not walk them while calls are timed
    environment = describe_environment(LIBRARIES, seed=str(options.seed))
    bad = []
    for part in parts:
        name, is_kept = find_table(part, engine)
        runs = {name: functools.partial(run, part, options)}
        bad += run_parts(RELIABILITY, runs, environment, keeps=is_kept and not options.quick)
    return bad


def find_table(part: str, engine: str) -> tuple[str, bool]:
    """Return the name of a part's results with this engine, and whether the page has a table for them."""
    return (part, True) if engine == ENGINE else (f"{part}-{engine}", part in BY_ENGINE)


def run(part: str, options: Options) -> Report:
    return Report(asyncio.run(importlib.import_module(f"lab.torture.{part}").run(options)))


if __name__ == "__main__":
    sys.exit(main())
