"""How hard the bridge is attacked."""

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """`seed` makes a run repeatable; `quick` takes seconds instead of minutes.

    `rps` is how many calls a second the part `load` makes.
    """

    seed: int
    quick: bool
    rps: int = 300
