"""Try to break the bridge, within bounds, and say what came out: `python -m tests.torture`, or `make torture`.

A full run writes docs/reliability.md and docs/reliability/; a quick one, which takes minutes, prints alone. The exit
code is 1 where a finding is not as it must be.
"""

import argparse
import asyncio
import gc
import importlib
import logging
import sys
import time
import traceback

from tests.torture.report import Finding, Options, keep, lines, write

PARTS = ("faults", "chaos", "kill", "fuzz", "answers", "soak", "overload")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,…", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--seed", type=int, default=1, help="of every choice made by chance, not 0 (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="try less, and leave docs/ as it is")
    asked = parser.parse_args()
    parts = asked.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: expected parts among {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    logging.getLogger("asyncio").setLevel(
        logging.ERROR
    )  # it warns of peers that have left, which is what is tried here
    gc.freeze()  # what imports made stays: the collector need not walk it while calls are timed
    options = Options(asked.seed, asked.quick)
    return 1 if sum([failures(part, options) for part in parts]) else 0


def failures(part: str, options: Options) -> int:
    """Run a part, say and keep what it found, and give how many findings are not as they must be."""
    started_at = time.monotonic()
    try:
        findings = asyncio.run(importlib.import_module(f"tests.torture.{part}").run(options))
    except Exception as error:  # noqa: BLE001 - the other parts are to be tried all the same
        traceback.print_exc()
        findings = [Finding(part, "the part itself", 1, f"it broke off: {error!r}", ok=False, figures={})]
    took_s = time.monotonic() - started_at
    print(f"== {part}: {took_s:.0f} s", *lines(findings), sep="\n", flush=True)
    if not options.quick:
        keep(part, findings, options, took_s)
        write(PARTS)
    return sum(not each.ok for each in findings)


if __name__ == "__main__":
    sys.exit(main())
