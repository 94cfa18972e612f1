"""A transport without a network (`bridge/server/rpc.py`): a call is a message, and what was sent stays in lists."""

import asyncio
from collections.abc import Callable, Sequence

from bridge.core.headers import Metadata
from bridge.server.boundary import Boundary
from bridge.server.rpc import ClientDisconnectedError, RefusedByTransportError, TakeRoom


class FakeRpc:
    """One call. `ended` is the status, `None` while there is none; `disconnect` makes the caller leave."""

    def __init__(
        self,
        message: bytes | None,
        *,
        method: str = "CreateChatCompletion",
        metadata: Metadata = (),
        timeout_s: float | None = None,
        is_refused: bool = False,
    ) -> None:
        self.method = method
        self.metadata = metadata
        self.peer = "ipv4:127.0.0.1:1"
        self.certificate: dict[str, list[bytes]] = {}
        self.caller = None
        self.timeout_s = timeout_s
        self.is_expired = False
        self.is_refused = is_refused
        self.message = message
        self.headers: list[tuple[str, str]] | None = None
        self.sent: list[bytes] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.is_disconnected = False
        self.ended: tuple[int, str, dict[str, str | bytes]] | None = None

    def has_expired(self) -> bool:
        return self.is_expired

    async def receive(self, take_room: TakeRoom | None = None) -> bytes | None:
        if self.is_refused:
            raise RefusedByTransportError
        return self.message

    async def decode(self, data: bytes) -> bytes:
        return data

    async def send_headers(self, metadata: Sequence[tuple[str, str]]) -> None:
        assert self.headers is None
        assert not self.sent
        self.headers = list(metadata)

    async def send(self, message: bytes, on_progress: Callable[[], None] | None = None) -> None:
        await self.writable.wait()
        if self.is_disconnected:
            raise ClientDisconnectedError
        self.sent.append(message)

    def end(self, code: int, message: str, trailers: Metadata) -> None:
        assert self.ended is None
        self.ended = (code, message, dict(trailers))

    @property
    def code(self) -> int:
        """The status' number of a call that has ended."""
        assert self.ended is not None
        return self.ended[0]


def start(boundary: Boundary, rpc: FakeRpc) -> asyncio.Task[None]:
    """Start a call as a transport does, in a task of its own."""
    return asyncio.create_task(boundary.handle(rpc))
