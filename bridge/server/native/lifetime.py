"""How long a connection lives: its age, its idleness, and pings that find out whether its peer still lives.

Pure: the user tells the time and what happened, and asks what to do and when to ask again.
"""

import enum
import math
from typing import Final

from bridge.settings import ConnectionSettings

__all__ = ["PING", "Action", "Lifetime"]

PING: Final = b"alive?\0\0"
_JITTER: Final = 0.1
"""Of an age, either way: it spreads the reconnects of callers that came at once."""


class Action(enum.Enum):
    """What to do with a connection."""

    NOTHING = 0
    PING = 1
    GO_AWAY = 2  # it is old or idle
    CLOSE = 3  # calls outlasted the grace, or the peer does not answer


class Lifetime:
    """The times of one connection. `chance` is a number between 0 and 1.

    The user sets `received_at` when bytes come, and `idle_since` when the last call ends, None when one starts.
    `is_idle`: it goes away since it is idle.
    """

    def __init__(self, settings: ConnectionSettings, now: float, chance: float) -> None:
        self._settings = settings
        age_s = math.inf if settings.age_s is None else settings.age_s * (1 + _JITTER * (2 * chance - 1))
        self._old_at = now + age_s
        self._idle_s = settings.idle_s or math.inf
        self._ping_s = settings.ping_s or math.inf
        self._pinged_at: float | None = None
        self._is_going = False
        self.is_idle = False
        self.received_at = now
        self.idle_since: float | None = now

    def check(self, now: float) -> Action:
        """Return what to do now."""
        if self._is_going:
            return Action.CLOSE if now >= self._old_at + self._settings.age_grace_s else Action.NOTHING
        if now >= self._old_at or now >= self._idle_at:
            self.is_idle = now < self._old_at
            self._old_at = min(self._old_at, now)
            self._is_going = True
            return Action.GO_AWAY
        if self._pinged_at is not None and self.received_at >= self._pinged_at:
            self._pinged_at = None
        if self._pinged_at is not None:
            return Action.CLOSE if now >= self._pinged_at + self._settings.ping_timeout_s else Action.NOTHING
        if now >= self.received_at + self._ping_s:
            self._pinged_at = now
            return Action.PING
        return Action.NOTHING

    @property
    def next_at(self) -> float:
        """When to check again; infinite for never."""
        if self._is_going:
            return self._old_at + self._settings.age_grace_s
        ping_at = self.received_at + self._ping_s
        if self._pinged_at is not None and self.received_at < self._pinged_at:
            ping_at = self._pinged_at + self._settings.ping_timeout_s
        return min(self._old_at, self._idle_at, ping_at)

    @property
    def _idle_at(self) -> float:
        return math.inf if self.idle_since is None else self.idle_since + self._idle_s
