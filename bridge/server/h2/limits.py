"""What a peer may cost a connection, each with its reason; and budgets for frames that cost us more than the peer."""

from dataclasses import dataclass
from typing import Final

__all__ = ["SLOTS_PER_STREAM", "Budget", "Limits"]

_KIB: Final = 1024
SLOTS_PER_STREAM: Final = 2
"""A stream that the peer has reset is over to the peer, but keeps its slot until its call has ended (CVE-2023-44487).
That takes a busy bridge some time, in which a peer that stays within its streams must not be refused."""


@dataclass(frozen=True)
class Limits:
    """The bounds of one connection."""

    streams_max: int = 100
    """Streams at once. Slots are bounded too (SLOTS_PER_STREAM)."""
    list_bytes_max: int = 32 * _KIB
    """Headers of a request, decoded: far above what the bridge accepts, so that its own limit says so."""
    block_bytes_max: int = 64 * _KIB
    """Headers of a request, coded."""
    continuations_max: int = 16
    """Frames of one header block after its first (CVE-2024-27316)."""
    window_bytes: int = 1024 * _KIB
    """Bytes on their way to us on one connection. Those that came are counted for each stream."""
    control_burst: int = 1000
    control_per_s: float = 500
    """Frames that carry nothing: each setting of SETTINGS, PRIORITY, empty DATA, unknown types; PING, WINDOW_UPDATE and
    RST_STREAM of ended streams beyond those that are due for what was sent."""
    reset_burst: int = 1000
    reset_per_s: float = 200
    """Streams reset before they have ended, by the peer or for a fault of its (CVE-2023-44487, CVE-2025-8671)."""
    unsent_answers_bytes_max: int = 64 * _KIB
    """Answers to PING and SETTINGS that the peer does not read."""
    answer_bytes_max: int = 8 * _KIB
    """Headers of an answer, as a bound on those that the peer does not read: statuses have 6 KiB."""

    @property
    def unsent_bytes_max(self) -> int:
        """Bytes that the transport may keep for a peer that reads slowly: an answer for each stream, and more than all
        else that goes out before the transport is found full.
        """
        return 1024 * _KIB + self.streams_max * self.answer_bytes_max


class Budget:
    """A budget that refills with time: `burst` at once, `per_s` a second."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, burst: float, per_s: float, now: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = burst
        self._at = now

    def spend(self, now: float, count: int = 1) -> bool:
        """Spend so much; return False if there is too little left."""
        self._left -= count
        if self._left < 0:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
            self._at = now
        return self._left >= 0
