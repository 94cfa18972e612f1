"""Fuzz one target with atheris: `python -m lab.fuzz.instrument TARGET [libFuzzer's own options, folders or files]`.

It runs in .venv-fuzz with PYTHONPATH=.:generated, and `libfuzzer.py` runs it for each target. A folder has one input a
file, and the first folder takes new ones; single files run once each.
"""

import importlib
import sys
from collections.abc import Callable
from random import Random

import atheris

from lab.fuzz.targets import TARGETS


def main() -> None:
    name, *options = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"expected one of {', '.join(TARGETS)}, found {name!r}")
    with atheris.instrument_imports(include=["bridge"]):
        target = importlib.import_module(f"lab.fuzz.{name}")
    # To merge, libFuzzer runs itself again: it joins its arguments to a command.
    mutate = getattr(target, "mutate", None)
    custom = {"custom_mutator": build_mutator(mutate)} if mutate else {}
    atheris.Setup([f"{sys.executable} -m lab.fuzz.instrument {name}", *options], target.check, **custom)
    atheris.Fuzz()


def build_mutator(mutate: Callable[[bytes, Random], bytes]) -> Callable[[bytes, int, int], bytes]:
    """Return libFuzzer's custom mutator: by turns the target's, and libFuzzer's own."""

    def change(data: bytes, bytes_max: int, seed: int) -> bytes:
        chance = Random(seed)
        mutated = mutate(data, chance) if chance.random() < 0.5 else data
        return mutated if mutated != data and len(mutated) <= bytes_max else atheris.Mutate(data, bytes_max)

    return change


if __name__ == "__main__":
    main()
