"""Try to break the bridge, within bounds, and report the results: `python -m tests.torture`, or `make torture`.

A full run writes docs/reliability.md and docs/reliability/; a quick one takes minutes and only prints. `--tables`
attacks nothing and writes the tables from the saved results. The exit code is 1 if a finding is not as required.
"""

import argparse
import asyncio
import gc
import importlib
import logging
import sys
import time
import traceback

from tests.torture.report import Finding, Options, format_lines, save, write_page

PARTS = ("faults", "chaos", "kill", "fuzz", "answers", "soak", "overload")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,…", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--seed", type=int, default=1, help="of every random choice, not 0 (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="attack less, and leave docs/ as it is")
    parser.add_argument("--tables", action="store_true", help="attack nothing; write the tables from docs/reliability/")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: expected parts among {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    if arguments.tables:
        write_page(parts)
        return 0
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of peers that disconnect, which is the test here
    gc.freeze()  # the objects of imports stay: the collector need not walk them while calls are timed
    options = Options(arguments.seed, arguments.quick)
    return 1 if sum([run_part(part, options) for part in parts]) else 0


def run_part(part: str, options: Options) -> int:
    """Run a part, print and save its findings, and return how many of them are not as required."""
    started_at = time.monotonic()
    try:
        findings = asyncio.run(importlib.import_module(f"tests.torture.{part}").run(options))
    except Exception as error:  # noqa: BLE001 - the other parts run all the same
        traceback.print_exc()
        findings = [Finding(part, "the part itself", 1, f"it failed: {error!r}", ok=False, figures={})]
    duration_s = time.monotonic() - started_at
    print(f"== {part}: {duration_s:.0f} s", *format_lines(findings), sep="\n", flush=True)
    if not options.quick:
        save(part, findings, options, duration_s)
        write_page(PARTS)
    return sum(not each.ok for each in findings)


if __name__ == "__main__":
    sys.exit(main())
