"""Fuzz one target with atheris: `python -m tests.fuzz TARGET [libFuzzer's own options, folders or files]`.

It runs in .venv-fuzz with PYTHONPATH=.:generated, and `make fuzz` calls it for each target. A folder has an input a
file, the first folder takes what is found; files alone are run once each.
"""

import importlib
import sys
from collections.abc import Callable
from random import Random

import atheris

from tests.fuzz.targets import TARGETS


def main() -> None:
    name, *options = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"expected one of {', '.join(TARGETS)}, found {name!r}")
    with atheris.instrument_imports(include=["bridge"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    # libFuzzer runs itself anew to merge, by joining its arguments to a command.
    mutate = getattr(target, "mutate", None)
    custom = {"custom_mutator": mutator(mutate)} if mutate else {}
    atheris.Setup([f"{sys.executable} -m tests.fuzz {name}", *options], target.check, **custom)
    atheris.Fuzz()


def mutator(mutate: Callable[[bytes, Random], bytes]) -> Callable[[bytes, int, int], bytes]:
    """Give what libFuzzer asks for a changed input: by turns the target's way, and its own."""

    def changed(data: bytes, bytes_max: int, seed: int) -> bytes:
        chance = Random(seed)
        made = mutate(data, chance) if chance.random() < 0.5 else data
        return made if made != data and len(made) <= bytes_max else atheris.Mutate(data, bytes_max)

    return changed


if __name__ == "__main__":
    main()
