"""One request as the emulator saw it, and what became of it: what tests look at to learn what the bridge sent."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

from bridge.emulator.steps import JsonObject

__all__ = ["Exchange"]

_RECORD_FIELDS = (
    *("method", "path", "json", "tags", "billed", "received_at", "status", "events_sent", "finished", "closed_at"),
)


@dataclass(eq=False)
class Exchange:
    """One request as the emulator saw it, and what became of it."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name; repeated ones joined by a comma."""
    body: bytes
    json: JsonObject | None = None
    """The body parsed; None if it is no JSON object."""
    tags: dict[str, str] = field(default_factory=dict)
    """As the spend log would have them."""
    billed: bool = False
    """False for a dry run, a refused request, and all that is no completion."""
    received_at: float = field(default_factory=time.monotonic)
    """`time.monotonic()` when the request was complete."""
    status: int | None = None
    """None until a status line has been written."""
    events_sent: int = 0
    """SSE data events written, `[DONE]` included."""
    finished: bool = False
    """Whether the whole response has been written."""
    closed_at: float | None = None
    """`time.monotonic()` when the peer closed or reset the connection, before the end or after; None until then."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set together with `closed_at`."""

    async def wait_closed(self, timeout_s: float = 30) -> float:
        """Wait until the peer has disconnected and return `closed_at`; TimeoutError if it stays."""
        async with asyncio.timeout(timeout_s):
            await self.closed.wait()
        return cast("float", self.closed_at)

    def record(self) -> JsonObject:
        """Return the exchange as JSON for other processes; of the authorization, only whether there was one."""
        headers = {name: value for name, value in self.headers.items() if name != "authorization"}
        return {name: getattr(self, name) for name in _RECORD_FIELDS} | {
            "headers": headers,
            "authorization": "authorization" in self.headers,
            "body_bytes": len(self.body),
        }
