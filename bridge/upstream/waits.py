"""Which limit bounds the next wait for an answer's body.

The time without data has two limits: until a stream's first chunk, and from then on; bytes of any kind start it again.
The time without output of the model has one of its own, which comments do not extend. And a reader who has all that it
needs can bound what is left: no clock enters the reader for it. No timer is made here, since each wait has one. The
time that the reader takes between two waits counts for no limit but that of the end.
"""

import time
from collections.abc import Callable
from typing import Final

from bridge.settings import UpstreamSettings
from bridge.upstream.call import UpstreamCall
from bridge.upstream.failures import Wait

__all__ = ["Waits"]

_END: Final = Wait("end", 0.0, "upstream.finish_grace_s")


class Waits:
    """The limits of one body. `current` is the one that bounds the wait which began last."""

    __slots__ = (
        "_call",
        "_clock",
        "_ends_at",
        "_ends_in_s",
        "_first",
        "_idle",
        "_next_output",
        "_output",
        "_output_at_s",
        "current",
    )

    def __init__(
        self,
        settings: UpstreamSettings,
        call: UpstreamCall,
        *,
        is_stream: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call = call
        self._clock = clock
        self._idle = self.current = Wait("data", settings.idle_timeout_s, "upstream.idle_timeout_s")
        first = Wait("first chunk", settings.first_chunk_timeout_s, "upstream.first_chunk_timeout_s")
        self._first = first if is_stream else None
        self._output: Wait | None = None
        self._next_output: Wait | None = None
        self._output_at_s = 0.0  # by `waited_s` of the call
        if is_stream and settings.stall_timeout_s is not None:
            self._next_output = Wait("output", settings.stall_timeout_s, "upstream.stall_timeout_s")
            self._output = max(self._next_output, first._replace(what="output"), key=lambda wait: wait.limit_s)
        self._ends_at: float | None = None
        self._ends_in_s = 0.0

    @property
    def has_output_limit(self) -> bool:
        """Whether `note_output` has an effect."""
        return self._output is not None

    @property
    def is_end_due(self) -> bool:
        """Whether it was the end that the current wait was bounded for."""
        return self.current is _END

    def note_output(self) -> None:
        """Start the time until the next output of the model, since some has come."""
        self._output = self._next_output
        self._output_at_s = self._call.waited_s

    def end_within(self, limit_s: float, *, anew: bool) -> None:
        """End the body, with no failure, if it does not end so soon, whatever comes until then.

        The time begins with the first call of this, or again if `anew` or if the limit changes.
        """
        if self._ends_at is None or anew or limit_s != self._ends_in_s:
            self._ends_at = self._clock() + limit_s
            self._ends_in_s = limit_s

    def keep_open(self) -> None:
        """Take `end_within` back."""
        self._ends_at = None

    def is_over(self) -> bool:
        """Whether the body has had the time that `end_within` gave it."""
        return self._ends_at is not None and self._clock() >= self._ends_at

    def begin(self, now: float) -> float:
        """Return how long the wait that begins may last, and make its limit the current one."""
        wait = self._first if self._first is not None and self._call.first_chunk_at is None else self._idle
        left_s = wait.limit_s
        if self._output is not None:
            output_left_s = self._output.limit_s - (self._call.waited_s - self._output_at_s)
            if output_left_s < left_s:
                wait, left_s = self._output, max(output_left_s, 0.0)
        if self._ends_at is not None and (end_left_s := max(self._ends_at - now, 0.0)) < left_s:
            wait, left_s = _END, end_left_s
        self.current = wait
        return left_s
