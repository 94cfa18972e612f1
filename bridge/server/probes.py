"""The health checks that are being answered: there is always room for one more.

A check is answered as soon as its message is there, so one that keeps its slot waits for its caller: for the message,
or for room for the answer. The one that has waited longest gives way to the next, so that callers who finish nothing
can't keep others from an answer, however many addresses they have.
"""

import contextlib
from collections.abc import Iterator

from bridge.server.admission import overload_error
from bridge.server.call import RpcCall

__all__ = ["Probes"]


class Probes:
    """At most `calls_max` checks."""

    def __init__(self, calls_max: int) -> None:
        self._calls_max = calls_max
        self._calls: dict[RpcCall, None] = {}
        limit = f"calls_max = {calls_max}"
        self._failure = overload_error(
            f"too many health checks at once ({limit}): this one waited longest for its caller"
        )

    @contextlib.contextmanager
    def hold(self, call: RpcCall) -> Iterator[None]:
        """Hold a slot inside the block; the call may be interrupted."""
        if len(self._calls) >= self._calls_max:
            slowest = next(iter(self._calls))
            del self._calls[slowest]
            slowest.interrupt(self._failure)
        self._calls[call] = None
        try:
            yield
        finally:
            self._calls.pop(call, None)
