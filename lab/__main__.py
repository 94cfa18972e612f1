"""The one door of the laboratory: `python -m lab bench|torture|failover|fuzz|scale [--quick] [--only PART,…] …`.

Each is a program of its own, `python -m lab.bench` and so on; `--help` behind its name shows its options.
"""

import importlib
import sys

PROGRAMS = {
    "bench": "compare the bridge with its alternatives; writes docs/performance.md",
    "torture": "try to break the bridge; writes docs/reliability.md",
    "failover": "the sixteen faults of Failover Bench; writes its table in docs/reliability.md",
    "fuzz": "arbitrary bytes at the translation and at the port; writes its table in docs/reliability.md",
    "scale": "the plan and the simulation of docs/scale.md",
}
USAGE = "\n".join([__doc__ or "", *(f"  {name:9}{what}" for name, what in PROGRAMS.items())])


def main() -> int:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in PROGRAMS:
        asks_help = name in {"--help", "-h"}
        print(USAGE if asks_help else f"expected one of {', '.join(PROGRAMS)}, found {name!r}")
        return 0 if asks_help else 2
    result: int = importlib.import_module(f"lab.{name}.__main__").main(arguments)
    return result


if __name__ == "__main__":
    sys.exit(main())
