"""Calls for which there is no room: refused as they arrive, without a task.

If there is no room for any call, nothing of a request is looked at but its path. If there is none for this caller's,
its head is read first, since who calls may stand there.

The boundary knows of a call once its task has begun, but the requests of one read come all at once, and their tasks
begin after it. So those that were let in and have not begun count too. Else a burst would be let in as a whole, and
each call of it that finds no slot would cost as much as one that is served. In the same way the boundary learns of a
cancellation later: a caller who cancels a call to make another one has room for it.
"""

from collections.abc import Mapping

from bridge.core.headers import Metadata
from bridge.core.status import GrpcStatus
from bridge.server.native.answers import Refusals
from bridge.server.rpc import Caller, Certificate, RpcMethod

__all__ = ["Arrivals"]


class Arrivals:
    """Says which calls to refuse, and counts those that were let in and have not begun.

    A call is told of by `start`, `begin`, `leave` if it is cancelled after it began, and then `end`.
    """

    def __init__(self, routes: Mapping[bytes, RpcMethod]) -> None:
        self._routes = routes
        self._refusals, self._refusals_of_callers = Refusals(), Refusals()
        self._let_in = 0
        self._starting = 0
        self._of_caller: dict[str, int] = {}

    def refuse(self, path: bytes) -> bytes | None:
        """Return the whole answer of a request that is refused, as a coded block; None if it is let in."""
        route = self._routes.get(path)
        if route is None or route.refuse is None:
            return None
        status = route.refuse(route.name, self._let_in + self._starting)
        if status is not None:
            return self._refusals.encode(status)
        self._let_in += 1
        return None

    def end_read(self) -> None:
        """Forget the requests that were let in since the last time: those of them that become calls `start` now."""
        self._let_in = 0

    def identify(
        self, route: RpcMethod, metadata: Metadata, certificate: Certificate, peer: str
    ) -> Caller | bytes | None:
        """Return who makes a call, None if that is not known yet; or the whole answer, if there is no room for it."""
        if route.identify is None:
            return None
        found = route.identify(route.name, metadata, certificate, peer, self._of_caller)
        return self._refusals_of_callers.encode(found) if isinstance(found, GrpcStatus) else found

    def start(self, route: RpcMethod, caller: Caller | None) -> None:
        """Count a call whose task was made, until `begin`."""
        if route.refuse is not None:
            self._starting += 1
        self._count(caller, 1)

    def begin(self, route: RpcMethod, caller: Caller | None) -> None:
        """Count it no more: its task has begun, or never will."""
        if route.refuse is not None:
            self._starting -= 1
        self._count(caller, -1)

    def leave(self, caller: Caller | None) -> None:
        """Make room for another call of this caller: one that the boundary counts was cancelled."""
        self._count(caller, -1)

    def end(self, caller: Caller | None) -> None:
        """Take that room back: the call that was cancelled has ended."""
        self._count(caller, 1)

    def _count(self, caller: Caller | None, change: int) -> None:
        if caller is None:
            return
        count = self._of_caller.get(caller.bucket, 0) + change
        if count:
            self._of_caller[caller.bucket] = count
        else:
            self._of_caller.pop(caller.bucket, None)
