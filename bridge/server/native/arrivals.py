"""Requests for which there is no room: refused as they arrive, before anything of them is looked at but their path.

The boundary knows of a call once its task has begun, but the requests of one read come all at once, and their tasks
begin after it. So those that were let in and have not begun count too. Else a burst would be let in as a whole, and
each call of it that finds no slot would cost as much as one that is served.
"""

from collections.abc import Mapping

from bridge.server.native.answers import Refusals
from bridge.server.rpc import RpcMethod

__all__ = ["Arrivals"]


class Arrivals:
    """Says which requests to refuse, and counts the calls that were let in and have not begun."""

    def __init__(self, routes: Mapping[bytes, RpcMethod]) -> None:
        self._routes = routes
        self._refusals = Refusals()
        self._let_in = 0
        self._starting = 0

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

    def start(self, route: RpcMethod) -> None:
        """Count a call whose task was made, until `begin`."""
        if route.refuse is not None:
            self._starting += 1

    def begin(self, route: RpcMethod) -> None:
        """Count it no more: its task has begun, or never will."""
        if route.refuse is not None:
            self._starting -= 1
