"""Arbitrary bytes, at the translation's functions and as raw HTTP/2 frames at the port: `python -m lab fuzz`.

A full run takes ten minutes per target and writes the table in docs/reliability.md; of some targets alone, it replaces
their rows. `--quick` takes 20 seconds each and only prints, as does `--seconds N`. `--minimize` then replaces the saved
corpus by the least inputs, of all that there are, that cover as much as all of them. Targets run side by side,
one per core.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from lab.environment import describe_environment
from lab.fuzz.libfuzzer import find_obstacle, fuzz_target, minimize
from lab.fuzz.port import fuzz_port
from lab.fuzz.targets import TARGETS
from lab.report import RELIABILITY, Report, Result, run_parts

__all__ = ["main"]

FULL_S, QUICK_S = 600, 20
FRAMES = "frames"
ALL = (*TARGETS, FRAMES)
LIBRARIES = ("grpcio", "httptools", "protobuf", "uvloop")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(ALL), metavar="TARGET,…", help=f"of {', '.join(ALL)} (all)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_S} s each, and leave docs/ as it is")
    parser.add_argument("--seconds", type=int, help=f"how long each ({FULL_S}); leaves docs/ as it is")
    parser.add_argument("--seed", type=int, default=1, help="not 0 (%(default)s)")
    parser.add_argument("--minimize", action="store_true", help="then minimize the saved corpus")
    given = parser.parse_args(arguments)
    names = given.only.split(",")
    if unknown := set(names) - set(ALL):
        parser.error(f"--only: expected targets among {', '.join(ALL)}, found {', '.join(sorted(unknown))}")
    seconds = given.seconds or (QUICK_S if given.quick else FULL_S)
    keeps = seconds == FULL_S
    environment = describe_environment(LIBRARIES, seed=str(given.seed))

    def run() -> Report:
        report = asyncio.run(fuzz(names, seconds, given.seed))
        return join(RELIABILITY.read("fuzz"), report) if keeps else report

    bad = run_parts(RELIABILITY, {"fuzz": run}, environment, keeps=keeps)
    if keeps:
        RELIABILITY.write_tables()
    for name in names if not bad and given.minimize else ():
        if name != FRAMES:
            print(asyncio.run(minimize(name)))
    return 1 if bad else 0


async def fuzz(names: Sequence[str], seconds: int, seed: int) -> Report:
    """Fuzz these targets, and then the port if it is among them."""
    why, ok = find_obstacle()
    targets = [name for name in names if name != FRAMES]
    if why:
        results = [Result(name, 0, why, ok) for name in targets]
    else:
        cores = asyncio.Semaphore(len(os.sched_getaffinity(0)))
        results = await asyncio.gather(*(fuzz_target(name, seconds, seed, cores) for name in targets))
    return Report([*results, *([await fuzz_port(seconds, seed)] if FRAMES in names else [])])


def join(kept: Report | None, report: Report) -> Report:
    """Return a report with what is kept of targets that were not run."""
    results = {each.case: each for each in (*(kept.results if kept else ()), *report.results)}
    return Report(list(results.values()), report.notes)


if __name__ == "__main__":
    sys.exit(main())
