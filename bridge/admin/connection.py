"""A connection to the admin port: one request and one answer, each within its time and size.

If there are too many connections, the oldest one ends, first of those whose request has not come: so silent or slow
clients do not keep a probe out. What is served is the ASGI application's business; its answers must have
`connection: close`. uvicorn, on which this stands, has no such bounds (`bridge/http_server/shell.py`).
"""

import asyncio
import time
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Limits", "make_connection_class"]


@dataclass(frozen=True)
class Limits:
    """What one client, and all together, may take."""

    connections_max: int = 128
    """A few probes, a scraper and the browsers of a team."""
    request_bytes_max: int = 16_384
    """A browser's cookies for `localhost` are of all that was ever developed there."""
    request_s: float = 5.0
    answer_s: float = 30.0
    """From the request to the answer's last byte, a slow reader included."""


def make_connection_class(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the class of a server's connections, with these limits."""
    return type("_LimitedConnection", (_Connection,), {"limits": limits})


class _Connection(HttpToolsProtocol):
    """A connection of one request, within `limits`."""

    limits: Limits
    has_request = False
    is_aborted = False
    received_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self.opened_at = time.monotonic()
        self.timer = self.loop.call_later(self.limits.request_s, self.abort)
        self.make_room()

    def make_room(self) -> None:
        """End another connection if there are too many: the oldest whose request has not come, else the oldest."""
        others = [
            each
            for each in self.connections
            if isinstance(each, _Connection) and each is not self and not each.is_aborted
        ]
        if len(others) >= self.limits.connections_max:
            min(others, key=lambda each: (each.has_request, each.opened_at)).abort()

    def data_received(self, data: bytes) -> None:
        if self.has_request:
            return  # nothing of what follows a request's head is wanted
        self.received_bytes += len(data)
        if self.received_bytes > self.limits.request_bytes_max:
            self.send_400_response(f"the request has more than {self.limits.request_bytes_max} bytes\n")
        else:
            super().data_received(data)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.has_request = True
        self.timer.cancel()
        self.timer = self.loop.call_later(self.limits.answer_s, self.abort)

    def abort(self) -> None:
        self.is_aborted = True  # it stays in `connections` until the loop's next turn
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)
