"""What all connections of the native engine share: settings, methods, and counts that have a bound for all of them."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import structlog

from bridge.server.h2.frames import Http2Error
from bridge.server.h2.limits import Limits
from bridge.server.native.arrivals import Arrivals
from bridge.server.rpc import RpcMethod
from bridge.settings import Settings
from bridge.telemetry import Observer

__all__ = ["Connected", "Shared"]

_MISUSE_LOG_S: Final = 1.0
_LOG: Final = structlog.get_logger("ollm_bridge")


class Connected(Protocol):
    """A connection, as far as the engine uses it."""

    @property
    def is_going_away(self) -> bool:
        """Whether new streams are ignored, or the connection is over."""
        ...

    def prepare_to_go_away(self, message: str) -> None:
        """Ask the peer to open no more streams; after a while, ignore those that it opens."""
        ...

    def go_away(self) -> None:
        """Ignore streams that the peer opens from now on."""
        ...

    def abort(self) -> None:
        """Close the connection at once."""
        ...


class Shared:
    """`routes` has the methods by their paths, `links` the connections that are open; none is added while it stops."""

    def __init__(
        self, settings: Settings, methods: Iterable[RpcMethod], observers: Sequence[Observer], limits: Limits
    ) -> None:
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.routes = {f"/{method.service}/{method.name}".encode(): method for method in methods}
        self.arrivals = Arrivals(self.routes)
        self.unread_bytes = 0
        self.links: set[Connected] = set()
        self.is_stopping = False
        self._observers = observers
        self._misuses: dict[str, int] = {}

    def add(self, link: Connected) -> bool:
        """Add a connection; return False if there are too many, or if the engine stops."""
        if self.is_stopping or len(self.links) >= self.settings.connections.connections_max:
            return False
        self.links.add(link)
        return True

    def remove(self, link: Connected) -> None:
        """Remove a connection that is over."""
        self.links.discard(link)

    def count_unread(self, change: int) -> bool:
        """Count bytes that nobody reads yet; return False if there are more than the limit."""
        self.unread_bytes += change
        return change <= 0 or self.unread_bytes <= self.settings.connections.unread_bytes_max

    def count_misuse(self, fault: Http2Error) -> None:
        """Count a connection that was ended for its peer's fault; the log has them in sum."""
        for observer in self._observers:
            observer.end_connection(fault.reason)
        if not self._misuses:
            self.loop.call_later(_MISUSE_LOG_S, self._log_misuses)
        self._misuses[fault.reason] = self._misuses.get(fault.reason, 0) + 1

    def _log_misuses(self) -> None:
        misuses, self._misuses = self._misuses, {}
        _LOG.warning("connections ended for what their callers did", **misuses)
