"""How fast a queue moves: from how its last turns came, when the turn of a place in it will come.

Only turns that were waited for count, so the pace is that of a full bridge. A queue that has stood still since its last
turn is as slow as that already: the time until now counts too. Without enough turns nothing is known.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Pace"]

_TURNS_MIN: Final = 8
_TURNS_MAX: Final = 64


class Pace:
    """The last turns of a queue. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turns_at: deque[float] = deque(maxlen=_TURNS_MAX)

    def add_turn(self) -> None:
        """Note that the first in the queue has its turn."""
        self._turns_at.append(self._clock())

    def forget(self) -> None:
        """Forget the turns, since nobody waits any more."""
        self._turns_at.clear()

    def estimate_wait_s(self, place: int) -> float:
        """Return how long a place in the queue will wait, the first being 1; 0 if nothing is known."""
        turns = len(self._turns_at)
        if turns < _TURNS_MIN:
            return 0.0
        return place * (self._clock() - self._turns_at[0]) / turns
